//! `cargo xtask e2e`: what Kubernetes itself asserts of Services, on a real cluster.
//!
//! ```text
//!  selection ── run: ginkgo, twice ── JUnit at target/e2e/ ── junit ── results ── table, counts
//! ```
//! The table is computed from ginkgo's own reports. Nothing is tried again.

mod junit;
mod matrix;
mod results;
mod run;
mod selection;

use std::{process::ExitCode, time::Duration};

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    cluster::{
        self, Tests,
        options::{Families, Options, Proxy},
    },
    step::alone,
    ui::say,
    workspace::Workspace,
};
use results::{Counts, Results, table};
use selection::Selection;

/// Arguments of `e2e`.
#[derive(Args)]
pub struct Arguments {
    /// Run only specs that match this regular expression (Go's)
    #[arg(long, value_name = "RE")]
    focus: Option<String>,
    /// Leave out specs that match this regular expression (Go's)
    #[arg(long, value_name = "RE")]
    skip: Option<String>,
    /// Run kube-proxy in mode nftables too, and show both
    #[arg(long)]
    compare: bool,
    /// Run every family, CNI and socket mode, and write docs/CONFORMANCE.md
    #[arg(long, conflicts_with_all = ["compare", "proxy", "families", "cni", "sockets"])]
    matrix: bool,
    /// Leave the cluster in place afterwards
    #[arg(long, conflicts_with_all = ["compare", "matrix"])]
    keep: bool,
    #[command(flatten)]
    options: Options,
}

impl Arguments {
    fn selection(&self, options: &Options) -> Selection {
        Selection::new(self.focus.as_deref(), self.skip.as_deref(), options.families == Families::Dual)
    }
}

/// Limit of one call of the test runner.
const LIMIT: Duration = Duration::from_mins(90);

/// Runs the tests; failed ones give the exit code of a failure.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let columns = if arguments.matrix { matrix::columns(&arguments.options) } else { columns(arguments) };
    let mut runs = Vec::new();
    for (title, options) in &columns {
        runs.push((title.clone(), one(workspace, arguments, options)?));
    }
    say("");
    say(&table(&runs));
    if arguments.matrix {
        matrix::write(workspace, &runs)?;
    }
    if runs.len() > 1 {
        for (title, results) in &runs {
            say(&format!("{title}: {}", results.counts()));
        }
    }
    // The reference proxy's failures are no failures of this project's.
    let judged = if arguments.compare { &runs[..1] } else { &runs[..] };
    let sum = judged.iter().map(|(_, results)| results.counts()).fold(Counts::default(), Counts::plus);
    say(&sum.to_string());
    Ok(if sum.failed == 0 && sum.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn columns(arguments: &Arguments) -> Vec<(String, Options)> {
    let mut columns = vec![(arguments.options.proxy.to_string(), arguments.options.clone())];
    if arguments.compare {
        let reference = Options { proxy: Proxy::Nftables, ..arguments.options.clone() };
        columns.push((reference.proxy.to_string(), reference));
    }
    columns
}

/// Makes a cluster, runs the tests there, and removes it.
fn one(workspace: &Workspace, arguments: &Arguments, options: &Options) -> Result<Results> {
    let cluster = cluster::bring_up(workspace, options, Tests::With)?;
    let title = matrix::title(options);
    let selection = arguments.selection(options);
    let outcome = alone(workspace, &format!("e2e {title}"), LIMIT, |job| {
        let results = run::run(job, &cluster, &selection, &title.replace([' ', ':'], "-"))?;
        job.report(&results.counts().to_string());
        Ok(results)
    });
    if arguments.keep {
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
