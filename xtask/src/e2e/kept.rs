//! What a run found, kept beside its reports: `target/e2e/TITLE.json`.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    results::{Results, Verdict},
    run::{file_name, reports},
};
use crate::{process::output, workspace::Workspace};

/// A run that came to its end.
pub struct Run {
    /// What it ran on; its column's heading.
    pub title: String,
    /// The day, UTC, as `2026-01-31`.
    pub date: String,
    /// What git calls the tree.
    pub version: String,
    /// What became of each spec.
    pub results: Results,
}

impl Run {
    /// A run of this tree that begins now.
    pub fn begin(workspace: &Workspace, title: &str) -> Result<Self> {
        let date = output(Command::new("date").args(["--utc", "+%Y-%m-%d"]))?;
        Ok(Self {
            title: title.to_owned(),
            date: date.trim().to_owned(),
            version: workspace.git(&["describe", "--always", "--dirty"])?,
            results: Results::default(),
        })
    }

    /// Keeps it.
    pub fn keep(&self, workspace: &Workspace) -> Result<()> {
        let path = path(workspace, &self.title);
        fs::write(&path, format!("{:#}\n", self.json())).with_context(|| path.display().to_string())
    }

    /// The one that was kept under this title; none if there is none, or none that is whole.
    pub fn kept(workspace: &Workspace, title: &str) -> Option<Self> {
        let text = fs::read(path(workspace, title)).ok()?;
        Self::read(title, &serde_json::from_slice(&text).ok()?)
    }

    fn json(&self) -> Value {
        let specs: Vec<Value> = self.results.rows().map(|(name, verdict)| spec(name, verdict)).collect();
        json!({ "date": self.date, "version": self.version, "specs": specs })
    }

    fn read(title: &str, value: &Value) -> Option<Self> {
        let text = |field: &str| value[field].as_str().map(str::to_owned);
        let rows = value["specs"].as_array()?.iter().map(row).collect::<Option<Vec<_>>>()?;
        Some(Self {
            title: title.to_owned(),
            date: text("date")?,
            version: text("version")?,
            results: Results::from_rows(rows),
        })
    }
}

fn path(workspace: &Workspace, title: &str) -> PathBuf {
    reports(workspace).join(format!("{}.json", file_name(title)))
}

fn spec(name: &str, verdict: &Verdict) -> Value {
    match verdict {
        Verdict::Passed => json!({ "name": name, "verdict": "passed" }),
        Verdict::Failed(why) => json!({ "name": name, "verdict": "failed", "why": why }),
        Verdict::Skipped(why) => json!({ "name": name, "verdict": "skipped", "why": why }),
    }
}

fn row(value: &Value) -> Option<(String, Verdict)> {
    let why = || value["why"].as_str().map(str::to_owned);
    let verdict = match value["verdict"].as_str()? {
        "passed" => Verdict::Passed,
        "failed" => Verdict::Failed(why()?),
        "skipped" => Verdict::Skipped(why()?),
        _ => return None,
    };
    Some((value["name"].as_str()?.to_owned(), verdict))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_back_as_it_was() {
        let rows = vec![
            ("a".to_owned(), Verdict::Passed),
            ("b".to_owned(), Verdict::Failed("lost\nit".to_owned())),
            ("c".to_owned(), Verdict::Skipped("no SCTP".to_owned())),
        ];
        let results = Results::from_rows(rows);
        let run = Run { title: "t".into(), date: "2026-01-31".into(), version: "abc".into(), results };
        let again = Run::read("t", &run.json()).unwrap();
        assert_eq!((again.date, again.version, again.results), (run.date, run.version, run.results));
    }

    #[test]
    fn what_is_not_whole_is_not_taken() {
        assert!(Run::read("t", &json!({ "date": "x", "version": "y" })).is_none());
        let failed = json!({ "name": "a", "verdict": "failed" });
        assert!(Run::read("t", &json!({ "date": "x", "version": "y", "specs": [failed] })).is_none());
    }
}
