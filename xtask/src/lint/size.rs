//! Files stay short enough to be read in one go.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail};

use crate::{
    process,
    step::{Job, Verdict},
};

/// Lines that a source file may have.
const LIMIT: usize = 650;

/// Counts the lines of every Rust source that git knows.
pub fn check(job: &mut Job) -> Result<Verdict> {
    let root = &job.workspace.root;
    let list = process::output(Command::new("git").current_dir(root).args(["ls-files", "*.rs"]))?;
    let mut long = Vec::new();
    for path in list.lines() {
        let file = root.join(path);
        if !file.exists() {
            continue; // Removed, but not yet for git.
        }
        let lines = fs::read_to_string(file).with_context(|| format!("cannot read {path}"))?.lines().count();
        if lines > LIMIT {
            long.push(format!("{path} has {lines} lines"));
        }
    }
    if !long.is_empty() {
        bail!("{}; the limit is {LIMIT}", long.join(", "));
    }
    Ok(Verdict::Passed)
}
