//! `cargo xtask e2e`: what Kubernetes itself asserts of Services, on a real cluster.
//!
//! ```text
//!  selection ── run: ginkgo, twice ── JUnit at target/e2e/ ── junit ── results ── table, counts
//! ```
//! The table is computed from ginkgo's own reports. Nothing is tried again.

mod junit;
mod kept;
pub mod matrix;
pub mod results;
mod run;
pub mod selection;

use std::{process::ExitCode, time::Duration};

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    cluster::{
        self, Purpose,
        options::{Options, Proxy},
    },
    step::alone,
    ui::say,
    workspace::Workspace,
};
use kept::Run;
use results::{Counts, Results, table};
use selection::{Sample, Selection};

/// Arguments of `e2e`.
#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own on the command line")]
pub struct Arguments {
    /// Run only specs that match this regular expression (Go's)
    #[arg(long, value_name = "RE")]
    focus: Option<String>,
    /// Leave out specs that match this regular expression (Go's)
    #[arg(long, value_name = "RE")]
    skip: Option<String>,
    /// Run kube-proxy in mode nftables too, and show both
    #[arg(long, conflicts_with = "loadbalancers")]
    compare: bool,
    /// Run every family, CNI and socket mode, and write docs/CONFORMANCE.md
    #[arg(long, conflicts_with_all = ["compare", "proxy", "families", "cni", "sockets", "loadbalancers"])]
    matrix: bool,
    /// Take the results of columns that an earlier run has kept at target/e2e, of whatever version
    #[arg(long, requires = "matrix", conflicts_with_all = ["focus", "skip"])]
    resume: bool,
    /// Leave the cluster in place afterwards
    #[arg(long, conflicts_with_all = ["compare", "matrix"])]
    keep: bool,
    #[command(flatten)]
    options: Options,
}

impl Arguments {
    fn selection(&self, options: &Options) -> Selection {
        Selection::new(self.focus.as_deref(), self.skip.as_deref(), options)
    }
}

/// Limit of one call of the test runner.
const LIMIT: Duration = Duration::from_mins(90);

/// Runs the tests; failed ones give the exit code of a failure.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let columns = if arguments.matrix {
        [matrix::columns(&arguments.options), matrix::load_balancers(&arguments.options)].concat()
    } else {
        columns(arguments)
    };
    let mut runs = Vec::new();
    let mut sum = Counts::default();
    for (number, (title, options)) in columns.iter().enumerate() {
        let run = one(workspace, arguments, title, options)?;
        // The reference proxy's failures beside it are no failures of this project's.
        if number == 0 || options.proxy == Proxy::Culvert {
            sum = sum.plus(run.results.counts());
        }
        runs.push(run);
    }
    say("");
    say(&table(&runs.iter().collect::<Vec<_>>()));
    if arguments.matrix {
        matrix::write(workspace, &runs)?;
    }
    if runs.len() > 1 {
        for run in &runs {
            say(&format!("{}: {}", run.title, run.results.counts()));
        }
    }
    say(&sum.to_string());
    Ok(if sum.failed == 0 && sum.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn columns(arguments: &Arguments) -> Vec<(String, Options)> {
    let mut columns = vec![(matrix::title(&arguments.options), arguments.options.clone())];
    if arguments.compare {
        let reference = Options { proxy: Proxy::Nftables, ..arguments.options.clone() };
        columns.push((matrix::title(&reference), reference));
    }
    columns
}

/// What this column's run found: the kept one's results, or those of a new run.
fn one(workspace: &Workspace, arguments: &Arguments, title: &str, options: &Options) -> Result<Run> {
    if arguments.resume
        && let Some(run) = Run::kept(workspace, title)
    {
        say(&format!("      {title}: {} (kept, of {} at {})", run.results.counts(), run.date, run.version));
        return Ok(run);
    }
    let selection = arguments.selection(options);
    let trial = Trial { title, options, selection: &selection, sample: None, whole: true };
    let mut run = Run::begin(workspace, title)?;
    run.results = on_a_cluster(workspace, &trial, arguments.keep)?;
    if arguments.focus.is_none() && arguments.skip.is_none() {
        if let Some((options, selection)) = Selection::for_fewer_nodes(options).filter(|_| !arguments.keep) {
            let title = format!("{title} fewer nodes");
            let trial = Trial { title: &title, options: &options, selection: &selection, sample: None, whole: true };
            run.results = run.results.completed(&on_a_cluster(workspace, &trial, false)?);
        }
        run.keep(workspace)?;
    }
    Ok(run)
}

/// A run of upstream's tests on a cluster of its own.
#[derive(Clone, Copy)]
pub struct Trial<'a> {
    /// Its name, and its reports'.
    pub title: &'a str,
    /// The cluster.
    pub options: &'a Options,
    /// The specs.
    pub selection: &'a Selection,
    /// Only so many of them.
    pub sample: Option<&'a Sample>,
    /// Whether specs that are left out count as skipped.
    pub whole: bool,
}

/// Makes a cluster, runs the tests there, and removes it or leaves it in place.
///
/// # Errors
/// If the cluster does not come up or the tests cannot be run. Failed specs are results.
pub fn on_a_cluster(workspace: &Workspace, trial: &Trial, keep: bool) -> Result<Results> {
    let cluster = cluster::bring_up(workspace, trial.options, Purpose::Upstream)?;
    let outcome = alone(workspace, &format!("e2e {}", trial.title), LIMIT, |job| {
        let results = run::run(job, &cluster, trial)?;
        job.report(&results.counts().to_string());
        Ok(results)
    });
    if keep {
        cluster.keep()?;
    } else {
        cluster.remove()?;
    }
    let results = outcome?;
    if results.counts() == Counts::default() {
        bail!("no spec matches");
    }
    Ok(results)
}
