//! Steps of `lint` and `test`: each has a name, a limit and a log file, runs once, and leaves a row in the table.

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use crate::{
    lanes::lanes,
    process::{self, Log},
    ui::{Progress, say},
    workspace::Workspace,
};

/// How much of a failed step's log is shown.
const TAIL: usize = 100;

/// One thing to check.
pub struct Step {
    /// What `--only` takes; steps of a group share what stands before the dash.
    pub name: &'static str,
    /// What it does, for `--list`.
    pub about: &'static str,
    /// The longest that a child process of it may take.
    pub limit: Duration,
    /// Whether it is a failure if it cannot run here.
    pub required: bool,
    /// Runs it.
    pub run: fn(&mut Job) -> Result<Verdict>,
}

/// How a step ended that did not fail.
pub enum Verdict {
    /// All held.
    Passed,
    /// It cannot run on this machine, and why.
    NotRun(String),
}

/// A running step: where its commands' output goes.
pub struct Job<'a> {
    /// The checkout and its caches.
    pub workspace: &'a Workspace,
    limit: Duration,
    log: Log,
    path: PathBuf,
    progress: Progress,
    counts: Counts,
}

impl<'a> Job<'a> {
    fn start(workspace: &'a Workspace, name: &str, limit: Duration) -> Result<Self> {
        let (log, path) = (Log::create(&workspace.log(name))?, workspace.log(name));
        Ok(Self { workspace, limit, log, path, progress: Progress::begin(name), counts: Counts::default() })
    }

    /// Runs a command that must succeed; the results of test harnesses in its output are counted.
    pub fn run(&mut self, command: Command) -> Result<()> {
        self.listen(command, |_| false)
    }

    /// The same, with `take` seeing each line first; what it takes is not logged.
    pub fn listen(&mut self, command: Command, mut take: impl FnMut(&str) -> bool) -> Result<()> {
        self.log.line(&format!("$ {}", process::show(&command)));
        process::run(command, self.limit, |line| {
            if take(line) {
                return;
            }
            self.log.line(line);
            self.progress.line(line);
            self.counts.add(line);
        })
    }

    /// Runs the `command` of each of `items`, `at_once` of them at the same time. What one says is in the log when it has ended, in one
    /// piece. The answers are in the items' order: its lines, and how it ended.
    pub fn side_by_side<T: Sync>(
        &mut self,
        items: &[T],
        at_once: usize,
        command: impl Fn(&T) -> Command + Sync,
    ) -> Vec<(Vec<String>, Result<()>)> {
        let limit = self.limit;
        let job = Mutex::new(self);
        let locked = || job.lock().unwrap_or_else(PoisonError::into_inner);
        let outcomes = lanes(items, at_once, |item| {
            let command = command(item);
            let mut lines = vec![format!("$ {}", process::show(&command))];
            let result = process::run(command, limit, |line| {
                lines.push(line.to_owned());
                locked().progress.line(line);
            });
            let mut job = locked();
            for line in &lines {
                job.log.line(line);
                job.counts.add(line);
            }
            (lines, result)
        });
        outcomes
            .into_iter()
            .map(|outcome| outcome.unwrap_or_else(|| (Vec::new(), Err(anyhow!("its thread was lost")))))
            .collect()
    }

    /// Runs a command with much output: all of it goes to the log, and what `tell` makes of a line is the progress.
    pub fn watch(&mut self, command: Command, mut tell: impl FnMut(&str) -> Option<String>) -> Result<()> {
        self.log.line(&format!("$ {}", process::show(&command)));
        process::run(command, self.limit, |line| {
            self.log.line(line);
            if let Some(line) = tell(line) {
                self.progress.line(&line);
            }
        })
    }

    /// Adds a line of the step's own to its log.
    pub fn note(&mut self, line: &str) {
        self.log.line(line);
        self.progress.line(line);
    }

    /// Says that a part is done, on the terminal too.
    pub fn report(&mut self, line: &str) {
        self.log.line(line);
        say(&format!("      {line}"));
    }

    /// Counts tests that another runner than Rust's ran.
    pub const fn count(&mut self, passed: usize, failed: usize, skipped: usize) {
        self.counts.passed += passed as u64;
        self.counts.failed += failed as u64;
        self.counts.skipped += skipped as u64;
    }

    fn end(self, mark: &str, note: &str) {
        self.progress.end(mark, note);
    }

    fn fail(mut self, why: &str) {
        self.progress.end("FAIL", why);
        let tail = process::tail(&self.path, TAIL);
        self.log.line(why);
        if !tail.is_empty() {
            say(&tail);
        }
        say(&format!("      all of it: {}", self.path.display()));
    }
}

/// Runs something outside of the table, with the same progress and log file.
pub fn alone<T>(
    workspace: &Workspace,
    name: &str,
    limit: Duration,
    run: impl FnOnce(&mut Job) -> Result<T>,
) -> Result<T> {
    let mut job = Job::start(workspace, name, limit)?;
    let outcome = run(&mut job);
    match &outcome {
        Ok(_) => job.end("ok", ""),
        Err(error) => job.fail(&format!("{error:#}")),
    }
    outcome.with_context(|| name.to_owned())
}

/// The same for a command that may fail, because there is another way; whether it did not.
pub fn attempt(workspace: &Workspace, name: &str, limit: Duration, command: Command) -> Result<bool> {
    let mut job = Job::start(workspace, name, limit)?;
    let outcome = job.run(command);
    match &outcome {
        Ok(()) => job.end("ok", ""),
        Err(error) => job.end("-", &format!("did not work: {error:#}")),
    }
    Ok(outcome.is_ok())
}

/// Results of single tests.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Counts {
    /// Adds a harness's last line: `test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; ...`.
    fn add(&mut self, line: &str) {
        let Some((_, results)) = line.split_once("test result: ") else { return };
        let results = results.split_once(". ").map_or(results, |(_, results)| results);
        for part in results.split("; ") {
            let Some((number, what)) = part.split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }

    fn sum(self) -> u64 {
        self.passed + self.failed + self.skipped
    }
}

/// What became of a step.
struct Row {
    name: &'static str,
    took: Duration,
    outcome: Outcome,
    counts: Counts,
}

enum Outcome {
    Passed,
    Failed(String),
    NotRun { why: String, required: bool },
}

/// Runs all of `steps`, whatever becomes of any, and ends with the table.
///
/// # Errors
/// If a log file cannot be written. Failed steps give the exit code of a failure.
pub fn run_all<'a>(workspace: &Workspace, steps: impl IntoIterator<Item = &'a Step>) -> Result<ExitCode> {
    let mut rows = Vec::new();
    for step in steps {
        rows.push(run_one(workspace, step)?);
    }
    say("");
    say(&table(&rows));
    let counts = rows.iter().map(count).fold(Counts::default(), |sum, one| Counts {
        passed: sum.passed + one.passed,
        failed: sum.failed + one.failed,
        skipped: sum.skipped + one.skipped,
    });
    say(&format!("{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped));
    Ok(if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_one(workspace: &Workspace, step: &Step) -> Result<Row> {
    let started = Instant::now();
    let mut job = Job::start(workspace, step.name, step.limit)?;
    let outcome = match (step.run)(&mut job) {
        Ok(Verdict::Passed) => Outcome::Passed,
        Ok(Verdict::NotRun(why)) => Outcome::NotRun { why, required: step.required },
        Err(error) => Outcome::Failed(format!("{error:#}")),
    };
    let counts = job.counts;
    match &outcome {
        Outcome::Passed if counts.sum() > 0 => job.end("ok", &format!("{} tests", counts.passed)),
        Outcome::Passed => job.end("ok", ""),
        Outcome::NotRun { why, .. } => job.end("-", &format!("not run: {why}")),
        Outcome::Failed(why) => job.fail(why),
    }
    Ok(Row { name: step.name, took: started.elapsed(), outcome, counts })
}

/// A step's part in the sums. One without single tests counts as one test, and one that fails has at least one failure.
fn count(row: &Row) -> Counts {
    let one = Counts { passed: row.counts.passed, failed: row.counts.failed, skipped: row.counts.skipped };
    match &row.outcome {
        Outcome::Passed if one.sum() > 0 => one,
        Outcome::Passed => Counts { passed: 1, ..one },
        Outcome::Failed(_) | Outcome::NotRun { required: true, .. } => Counts { failed: one.failed.max(1), ..one },
        Outcome::NotRun { required: false, .. } => Counts { skipped: one.skipped.max(1), ..one },
    }
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["step", "minutes", "tests", "result"]);
    for row in rows {
        let tests = if row.counts.sum() > 0 { row.counts.passed.to_string() } else { String::new() };
        let result = match &row.outcome {
            Outcome::Passed => "passed".to_owned(),
            Outcome::Failed(why) => format!("FAILED: {why}"),
            Outcome::NotRun { why, required: true } => format!("FAILED, it is required but did not run: {why}"),
            Outcome::NotRun { why, required: false } => format!("not run: {why}"),
        };
        table.add_row([row.name.to_owned(), format!("{:.1}", row.took.as_secs_f64() / 60.0), tests, result]);
    }
    let total: Duration = rows.iter().map(|row| row.took).sum();
    table.add_row(["all".to_owned(), format!("{:.1}", total.as_secs_f64() / 60.0), String::new(), String::new()]);
    for column in 1..=2 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(outcome: Outcome, passed: u64, failed: u64) -> Row {
        Row { name: "x", took: Duration::ZERO, outcome, counts: Counts { passed, failed, skipped: 0 } }
    }

    #[test]
    fn harness_results_add_up() {
        let mut counts = Counts::default();
        counts.add("running 3 tests");
        counts.add("test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 1 filtered out; finished in 0.00s");
        counts.add("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out");
        assert_eq!(counts, Counts { passed: 13, failed: 2, skipped: 3 });
    }

    #[test]
    fn a_required_step_that_did_not_run_is_a_failure() {
        let not_run = |required| Outcome::NotRun { why: "no kernel".to_owned(), required };
        assert_eq!(count(&row(not_run(true), 0, 0)).failed, 1);
        assert_eq!(count(&row(not_run(false), 0, 0)), Counts { passed: 0, failed: 0, skipped: 1 });
        assert_eq!(count(&row(Outcome::Failed("crash".to_owned()), 7, 0)), Counts { passed: 7, failed: 1, skipped: 0 });
        assert_eq!(count(&row(Outcome::Passed, 0, 0)).passed, 1);
    }
}
