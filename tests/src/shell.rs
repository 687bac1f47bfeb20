//! Commands of the system (`ip`, `tc`, `bpftool`, ...), with errors that say what was run and what it answered.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

/// Runs a command line, split at white space, and returns its standard output.
pub fn sh(line: &str) -> Result<String> {
    run(&mut split(line))
}

/// A command from a line of words separated by white space; nothing is quoted or expanded.
pub fn split(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command
}

/// Runs a command to its end and returns its standard output; a failure carries the standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    checked(command, &output)
}

/// Runs a command with `input` as its standard input.
pub fn feed(command: &mut Command, input: &str) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    checked(command, &output).with_context(|| format!("input:\n{input}"))
}

fn checked(command: &Command, output: &Output) -> Result<String> {
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
