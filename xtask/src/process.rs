//! Child processes: output goes line by line to a log file and to whoever listens, and no child outlives its time.

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    path::Path,
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// How long output may still come after the child has gone, from a grandchild that holds its pipe.
const GRACE: Duration = Duration::from_secs(2);

enum Event {
    Line(String),
    Closed,
    Exited(io::Result<ExitStatus>),
}

/// Runs `command` to its end, with standard output and error merged in their order; every line goes to `listen`.
///
/// # Errors
/// If it cannot be started, fails, or takes longer than `limit` (then it and its descendants are killed).
pub fn run(mut command: Command, limit: Duration, mut listen: impl FnMut(&str)) -> Result<()> {
    let shown = show(&command);
    let (reader, writer) = io::pipe().context("no pipe")?;
    command.stdin(Stdio::null()).stdout(writer.try_clone().context("no pipe")?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("cannot start `{shown}`"))?;
    drop(command); // It holds the pipe's other end.
    let id = child.id();

    let (events, queue) = mpsc::channel();
    let lines = events.clone();
    thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if lines.send(Event::Line(text)).is_err() {
                return;
            }
            line.clear();
        }
        let _ = lines.send(Event::Closed);
    });
    thread::spawn(move || events.send(Event::Exited(child.wait())));

    let mut deadline = Instant::now() + limit;
    let mut status = None;
    let mut closed = false;
    while status.is_none() || !closed {
        match queue.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Event::Line(line)) => listen(&line),
            Ok(Event::Closed) => closed = true,
            Ok(Event::Exited(exit)) => {
                status = Some(exit.with_context(|| format!("cannot wait for `{shown}`"))?);
                deadline = Instant::now() + GRACE;
            }
            Err(_) if status.is_some() => break,
            Err(RecvTimeoutError::Timeout) => {
                kill_tree(id);
                bail!("`{shown}` was ended after {}: no result", crate::ui::clock(limit));
            }
            Err(RecvTimeoutError::Disconnected) => bail!("`{shown}` was lost"),
        }
    }
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("`{shown}`: {status}"),
        None => bail!("`{shown}` was lost"),
    }
}

/// The standard output of a short command that must succeed.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}`: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command as one would type it, shortened.
pub fn show(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_else(|| command.get_program());
    let mut text = program.to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
        if text.len() > 120 {
            text.push_str(" ...");
            break;
        }
    }
    text
}

/// Kills a process that this program started, and all that descend from it.
pub fn kill_tree(id: u32) {
    let mut tree = vec![id];
    let mut next = 0;
    while let Some(&parent) = tree.get(next) {
        tree.extend(children(parent));
        next += 1;
    }
    let ids = tree.iter().map(u32::to_string);
    let _ = Command::new("kill").arg("-KILL").args(ids).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

fn children(parent: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{parent}/task")) else { return Vec::new() };
    threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

/// A log file that takes every line of a step.
pub struct Log {
    file: fs::File,
}

impl Log {
    /// Opens the file at `path`, emptied.
    pub fn create(path: &Path) -> Result<Self> {
        let file = fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { file })
    }

    /// Adds a line.
    pub fn line(&mut self, line: &str) {
        let _ = writeln!(self.file, "{line}");
    }
}

/// The last `count` lines of a log.
pub fn tail(path: &Path, count: usize) -> String {
    let Ok(file) = fs::File::open(path) else { return String::new() };
    let lines: Vec<String> = BufReader::new(file).lines().map_while(Result::ok).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
