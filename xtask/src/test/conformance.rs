//! Upstream's tests of Services on real clusters: the core ones once, and a few of them in every other dimension, other
//! ones for each commit.

use anyhow::{Context, Result, bail};

use crate::{
    cluster::options::{Options, Proxy},
    e2e::{
        self, Trial, matrix,
        results::Results,
        selection::{Sample, Selection},
    },
    lanes::lanes,
    step::{Job, Verdict},
    workspace::Workspace,
};

/// How many specs each dimension but the first gets.
const SAMPLE: usize = 8;
/// How many of those of Services of type LoadBalancer.
const LOAD_BALANCERS: usize = 5;
/// How many clusters with a sample there are at the same time: so few specs wait more than they compute, and one cluster comes up
/// while another one is tested.
const SIDE_BY_SIDE: usize = 2;

/// Specs, and the cluster that they run on.
struct Column {
    title: String,
    options: Options,
    selection: Selection,
    sample: Option<Sample>,
}

impl Column {
    fn new(number: usize, (title, options): (String, Options), commit: &str) -> Result<Self> {
        let name = format!("conformance{number}").parse().map_err(anyhow::Error::msg)?;
        let size = if options.loadbalancers { LOAD_BALANCERS } else { SAMPLE };
        let selection =
            if options.loadbalancers { Selection::load_balancers(&options) } else { Selection::core(&options) };
        Ok(Self {
            // It rotates the samples.
            sample: (number > 0).then(|| Sample { size, seed: format!("{commit} {title}") }),
            title: format!("core {title}"),
            options: Options { name, ..options },
            selection,
        })
    }

    fn run(&self, workspace: &Workspace) -> Result<Results> {
        let Self { title, options, selection, sample } = self;
        e2e::on_a_cluster(workspace, &Trial { title, options, selection, sample: sample.as_ref(), whole: false }, false)
    }
}

/// Runs them.
pub fn run(job: &mut Job) -> Result<Verdict> {
    let columns = columns(job.workspace)?;
    let mut failed = Vec::new();
    // The core has the processors to itself.
    let (core, samples) = columns.split_at(1);
    for (columns, at_once) in [(core, 1), (samples, SIDE_BY_SIDE)] {
        let results = lanes(columns, at_once, |column| column.run(job.workspace));
        for (column, results) in columns.iter().zip(results) {
            failed.extend(tell(job, column, results.context("the thread was lost").flatten()));
        }
    }
    for line in &failed {
        job.report(line);
    }
    if !failed.is_empty() {
        bail!("{} specs or clusters failed", failed.len());
    }
    Ok(Verdict::Passed)
}

/// One for each dimension, the core at the front.
fn columns(workspace: &Workspace) -> Result<Vec<Column>> {
    let commit = workspace.git(&["rev-parse", "HEAD"])?;
    let base = Options::usual("conformance".parse().map_err(anyhow::Error::msg)?);
    let columns = matrix::columns(&base).into_iter().filter(|(_, options)| options.proxy == Proxy::Culvert);
    let load_balancers = matrix::load_balancers(&base).into_iter().take(1);
    columns.chain(load_balancers).enumerate().map(|(number, column)| Column::new(number, column, &commit)).collect()
}

/// Says and counts what became of a column; gives what failed. A dimension whose cluster does not come up is one failure, and the
/// others are tried.
fn tell(job: &mut Job, column: &Column, results: Result<Results>) -> Vec<String> {
    let title = &column.title;
    let results = match results {
        Ok(results) => results,
        Err(error) => return vec![format!("{title}: {error:#}")],
    };
    // Which ones they were is for everybody to see.
    for (name, verdict) in results.rows().filter(|_| column.sample.is_some()) {
        job.report(&format!("{title}: {name}: {}", verdict.word()));
    }
    let counts = results.counts();
    job.count(counts.passed, counts.failed, counts.skipped);
    results.failures().map(|(name, why)| format!("{title}: {name}: {why}")).collect()
}
