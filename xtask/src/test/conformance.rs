//! Upstream's tests of Services on real clusters: the core ones once, and a few of them in every other dimension, other
//! ones for each commit.

use anyhow::{Result, bail};

use crate::{
    cluster::options::{Options, Proxy},
    e2e::{
        self, Trial, matrix,
        selection::{Sample, Selection},
    },
    step::{Job, Verdict},
};

/// How many specs each dimension but the first gets.
const SAMPLE: usize = 8;
/// How many of those of Services of type LoadBalancer.
const LOAD_BALANCERS: usize = 5;

/// Runs them.
pub fn run(job: &mut Job) -> Result<Verdict> {
    // It rotates the samples.
    let commit = job.workspace.git(&["rev-parse", "HEAD"])?;
    let base = Options::usual("conformance".parse().map_err(anyhow::Error::msg)?);
    let columns = matrix::columns(&base).into_iter().filter(|(_, options)| options.proxy == Proxy::Culvert);
    let load_balancers = matrix::load_balancers(&base).into_iter().take(1);
    let mut failed = Vec::new();
    for (number, (title, options)) in columns.chain(load_balancers).enumerate() {
        let size = if options.loadbalancers { LOAD_BALANCERS } else { SAMPLE };
        let sample = (number > 0).then(|| Sample { size, seed: format!("{commit} {title}") });
        let selection =
            if options.loadbalancers { Selection::load_balancers(&options) } else { Selection::core(&options) };
        let title = format!("core {title}");
        let trial =
            Trial { title: &title, options: &options, selection: &selection, sample: sample.as_ref(), whole: false };
        // A dimension whose cluster does not come up is one failure, and the others are tried.
        match e2e::on_a_cluster(job.workspace, &trial, false) {
            Ok(results) => {
                // Which ones they were is for everybody to see.
                for (name, verdict) in results.rows().filter(|_| sample.is_some()) {
                    job.report(&format!("{title}: {name}: {}", verdict.word()));
                }
                let counts = results.counts();
                job.count(counts.passed, counts.failed, counts.skipped);
                failed.extend(results.failures().map(|(name, why)| format!("{title}: {name}: {why}")));
            }
            Err(error) => failed.push(format!("{title}: {error:#}")),
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
