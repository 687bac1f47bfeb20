//! What the commands print: results to stdout, everything else to stderr, and no panic when nobody reads.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Row, Table};
use serde::Serialize;

use crate::cli::Cli;

/// How a command ended; its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// 0: all is well.
    Well,
    /// 1: the work could not be done.
    Failed,
    /// 3: the work is done, and the answer is not good.
    Unwell,
}

impl From<Done> for ExitCode {
    fn from(done: Done) -> Self {
        match done {
            Done::Well => Self::SUCCESS,
            Done::Failed => Self::from(1),
            Done::Unwell => Self::from(3),
        }
    }
}

/// Writes a result. A reader that has gone away (`| head`) is no error.
pub fn print(text: &str) -> Result<()> {
    write(text).map(drop)
}

/// Writes a part of a result; `false` if nobody reads any more.
pub fn write(text: &str) -> Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write the result"),
    }
}

/// Writes a line to stderr, where it can be read or not.
pub fn complain(line: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// An error with its causes, but for those that the error before has named already.
pub fn explain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.as_str() {
        "" => cause,
        text if text.ends_with(&cause) => text.to_owned(),
        text => format!("{text}: {cause}"),
    })
}

/// Writes a result as JSON.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// A table with these headings, without lines, as wide as the terminal.
pub fn table<T: Into<Row>>(headings: T) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_header(headings);
    table
}

/// The table's text: no trailing blanks.
pub fn lines(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// Prints a shell's completions.
pub fn completions(shell: clap_complete::Shell) -> Result<Done> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "culvert", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(Done::Well)
}

/// Writes the manual pages, one a command.
pub fn manual(directory: &Path) -> Result<Done> {
    clap_mangen::generate_to(Cli::command(), directory)
        .with_context(|| format!("cannot write to {}", directory.display()))?;
    Ok(Done::Well)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_named_once() {
        let error = anyhow::anyhow!("no such file").context("/etc/x: no such file").context("cannot start");
        assert_eq!(explain(&error), "cannot start: /etc/x: no such file");
    }
}
