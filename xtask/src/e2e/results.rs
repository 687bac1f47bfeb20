//! The results of a run, and the tables made of them.

use std::collections::HashMap;

use comfy_table::{ContentArrangement, Table, presets};

use super::{
    junit::{Outcome, Spec},
    kept::Run,
};

/// What became of one spec.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// All held.
    Passed,
    /// Something did not.
    Failed(String),
    /// It was not run, and why.
    Skipped(String),
}

impl Verdict {
    /// A word for it.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Passed => "pass",
            Self::Failed(_) => "FAIL",
            Self::Skipped(_) => "skip",
        }
    }

    /// Why it is not that all held.
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Passed => None,
            Self::Failed(why) | Self::Skipped(why) => Some(why),
        }
    }
}

/// The specs of a run, in the order of upstream's suite.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Results {
    rows: Vec<(String, Verdict)>,
}

/// How many specs ended in which way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Those that passed.
    pub passed: usize,
    /// Those that failed.
    pub failed: usize,
    /// Those that were not run.
    pub skipped: usize,
}

impl Counts {
    /// The sums of both.
    pub fn plus(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

impl Results {
    /// What became of the `wanted` specs in `reports`, of which each may have run a part. `left_out` says why a spec was
    /// not to be run; any other one that is in no part has failed. Failures of anything else count too.
    pub fn new(wanted: &[String], reports: &[Vec<Spec>], left_out: impl Fn(&str) -> Option<String>) -> Self {
        let mut found: HashMap<&str, Verdict> = HashMap::new();
        let mut others = Vec::new();
        for spec in reports.iter().flatten() {
            let verdict = match &spec.outcome {
                Outcome::Passed => Verdict::Passed,
                Outcome::Failed(why) => Verdict::Failed(why.clone()),
                Outcome::Skipped(why) => Verdict::Skipped(why.clone()),
                Outcome::Unselected => continue,
            };
            if !wanted.contains(&spec.name) {
                others.push((spec.name.clone(), verdict));
                continue;
            }
            // Whatever else is said of it, a failure is one.
            match found.get(spec.name.as_str()) {
                Some(Verdict::Failed(_)) => {}
                _ => drop(found.insert(&spec.name, verdict)),
            }
        }
        let missing =
            |name: &str| left_out(name).map_or(Verdict::Failed("it did not run".to_owned()), Verdict::Skipped);
        let verdict = |name: &String| found.remove(name.as_str()).unwrap_or_else(|| missing(name));
        let mut rows: Vec<_> =
            wanted.iter().zip(wanted.iter().map(verdict)).map(|(name, one)| (name.clone(), one)).collect();
        rows.extend(others);
        Self { rows }
    }

    /// Results that were kept.
    pub fn from_rows(rows: Vec<(String, Verdict)>) -> Self {
        Self { rows }
    }

    /// The same, with what another run says of specs that this one did not run.
    pub fn completed(mut self, other: &Self) -> Self {
        for (name, verdict) in &other.rows {
            match self.rows.iter_mut().find(|(one, _)| one == name) {
                Some((_, known @ Verdict::Skipped(_))) => known.clone_from(verdict),
                Some(_) => {}
                None => self.rows.push((name.clone(), verdict.clone())),
            }
        }
        self
    }

    /// What became of each spec, by its name.
    pub fn rows(&self) -> impl Iterator<Item = (&str, &Verdict)> {
        self.rows.iter().map(|(name, verdict)| (name.as_str(), verdict))
    }

    /// How many specs ended in which way.
    pub fn counts(&self) -> Counts {
        let count = |is: fn(&Verdict) -> bool| self.rows.iter().filter(|(_, verdict)| is(verdict)).count();
        Counts {
            passed: count(|verdict| *verdict == Verdict::Passed),
            failed: count(|verdict| matches!(verdict, Verdict::Failed(_))),
            skipped: count(|verdict| matches!(verdict, Verdict::Skipped(_))),
        }
    }

    /// The specs that failed, and what ginkgo says of them first.
    pub fn failures(&self) -> impl Iterator<Item = (&str, String)> {
        self.rows().filter_map(|(name, verdict)| match verdict {
            Verdict::Failed(why) => Some((name, short(why))),
            Verdict::Passed | Verdict::Skipped(_) => None,
        })
    }

    fn get(&self, name: &str) -> Option<&Verdict> {
        self.rows.iter().find(|(one, _)| one == name).map(|(_, verdict)| verdict)
    }
}

/// Longest reason that a table shows.
const REASON: usize = 160;

/// The table of one or several runs, a column for each.
pub fn table(runs: &[&Run]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["spec"].into_iter().chain(runs.iter().map(|run| run.title.as_str())).chain(["why"]));
    for (name, cells, why) in merged(runs) {
        table.add_row([name].into_iter().chain(cells.iter().map(|cell| (*cell).to_owned())).chain([why]));
    }
    table.to_string()
}

/// The same as Markdown.
pub fn markdown(runs: &[&Run]) -> String {
    let titles: Vec<&str> = runs.iter().map(|run| run.title.as_str()).collect();
    let mut lines =
        vec![format!("| spec | {} | why |", titles.join(" | ")), format!("|---|{}---|", "---|".repeat(runs.len()))];
    for (name, cells, why) in merged(runs) {
        let text = |text: &str| text.replace('|', "\\|").replace('<', "&lt;");
        lines.push(format!("| {} | {} | {} |", text(&name), cells.join(" | "), text(&why)));
    }
    lines.join("\n")
}

/// One row for each spec of any run: its name, a word for each run, and the reasons.
fn merged(runs: &[&Run]) -> Vec<(String, Vec<&'static str>, String)> {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in runs.iter().flat_map(|run| &run.results.rows) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names.into_iter().map(|name| row(name, runs)).collect()
}

fn row(name: &str, runs: &[&Run]) -> (String, Vec<&'static str>, String) {
    let mut reasons: Vec<String> = Vec::new();
    let mut cells = Vec::new();
    for run in runs {
        let verdict = run.results.get(name);
        cells.push(verdict.map_or("", Verdict::word));
        let why = verdict.and_then(Verdict::why).map(short).filter(|why| !reasons.contains(why));
        reasons.extend(why);
    }
    (name.trim_start_matches("[sig-network] ").to_owned(), cells, reasons.join("; "))
}

fn short(why: &str) -> String {
    let line = why.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(REASON) {
        Some((end, _)) => format!("{} ...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, outcome: Outcome) -> Spec {
        Spec { name: name.to_owned(), outcome, seconds: 1.0 }
    }

    fn results() -> Results {
        let wanted = ["a", "b", "c", "d"].map(str::to_owned);
        let parallel = vec![
            spec("a", Outcome::Passed),
            spec("b", Outcome::Unselected),
            spec("c", Outcome::Skipped("no nodes".to_owned())),
            spec("d", Outcome::Unselected),
        ];
        let serial = vec![
            spec("a", Outcome::Unselected),
            spec("b", Outcome::Failed("lost\n  it".to_owned())),
            spec("BeforeSuite", Outcome::Failed("crash".to_owned())),
        ];
        Results::new(&wanted, &[parallel, serial], |name| Some(format!("{name} is left out")))
    }

    #[test]
    fn every_wanted_spec_has_a_verdict_and_every_other_failure_too() {
        let results = results();
        assert_eq!(results.get("a"), Some(&Verdict::Passed));
        assert_eq!(results.get("b"), Some(&Verdict::Failed("lost\n  it".to_owned())));
        assert_eq!(results.get("d"), Some(&Verdict::Skipped("d is left out".to_owned())));
        assert_eq!(results.counts(), Counts { passed: 1, failed: 2, skipped: 2 });
    }

    #[test]
    fn a_run_that_never_came_leaves_nothing_passed() {
        let results = Results::new(&["a".to_owned()], &[], |_| None);
        assert_eq!(results.counts(), Counts { passed: 0, failed: 1, skipped: 0 });
    }

    #[test]
    fn another_run_completes_what_was_not_run() {
        let other = ["a", "d", "e"].map(|name| (name.to_owned(), Verdict::Failed("no".to_owned())));
        let results = results().completed(&Results { rows: other.into() });
        assert_eq!(results.get("a"), Some(&Verdict::Passed));
        assert_eq!(results.get("d"), Some(&Verdict::Failed("no".to_owned())));
        assert_eq!(results.get("e"), results.get("d"));
    }

    #[test]
    fn columns_stand_side_by_side() {
        let other = Results { rows: vec![("a".to_owned(), Verdict::Failed("x|y".to_owned()))] };
        let run = |title: &str, results| Run {
            title: title.to_owned(),
            date: String::new(),
            version: String::new(),
            results,
        };
        let text = markdown(&[&run("culvert", results()), &run("kube-proxy", other)]);
        assert!(text.contains("| a | pass | FAIL | x\\|y |"), "{text}");
        assert!(text.contains("| b | FAIL |  | lost it |"), "{text}");
    }
}
