//! The terminal: a line that moves for each thing that runs, plain lines where nobody watches.

use std::{
    io::{self, IsTerminal, Write},
    sync::{
        LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Without a terminal, a sign of life this often.
const HEARTBEAT: Duration = Duration::from_mins(1);

/// Standard output belongs to somebody else.
static QUIET: AtomicBool = AtomicBool::new(false);

/// The moving lines, one below the other.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Leaves standard output to a command's result, which is for programs; what is said from now on goes to standard error.
pub fn leave_output() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Writes one line to standard output. A reader that went away is no error.
pub fn say(line: &str) {
    let quiet = QUIET.load(Ordering::Relaxed);
    let _ = BARS.suspend(|| if quiet { writeln!(io::stderr(), "{line}") } else { writeln!(io::stdout(), "{line}") });
}

/// Something that takes a while.
pub struct Progress {
    name: String,
    started: Instant,
    bar: ProgressBar,
    terminal: bool,
    spoke: Instant,
}

impl Progress {
    /// Shows that `name` has begun.
    pub fn begin(name: &str) -> Self {
        let terminal = io::stderr().is_terminal();
        let bar = if terminal { BARS.add(ProgressBar::new_spinner()) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg:.dim}") {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        if !terminal {
            say(&format!("      {name} ..."));
        }
        Self { name: name.to_owned(), started: Instant::now(), bar, terminal, spoke: Instant::now() }
    }

    /// What it is at: the last line of its output.
    pub fn line(&mut self, line: &str) {
        let line = line.trim();
        if line.is_empty() {
            return;
        }
        self.bar.set_message(line.to_owned());
        if !self.terminal && self.spoke.elapsed() > HEARTBEAT {
            self.spoke = Instant::now();
            say(&format!("      {} {}: {line}", self.name, clock(self.started.elapsed())));
        }
    }

    /// Replaces the moving line by its result; `mark` is a word of at most five letters.
    pub fn end(self, mark: &str, note: &str) {
        self.bar.finish_and_clear();
        let space = if note.is_empty() { "" } else { "  " };
        say(&format!("{mark:>5} {} {}{space}{note}", self.name, clock(self.started.elapsed())));
    }
}

/// A duration as a person says it: `0.4s`, `12s`, `3m05s`.
pub fn clock(duration: Duration) -> String {
    match duration.as_secs() {
        0..10 => format!("{:.1}s", duration.as_secs_f32()),
        seconds @ 10..60 => format!("{seconds}s"),
        seconds => format!("{}m{:02}s", seconds / 60, seconds % 60),
    }
}
