//! What tests on a real cluster need: the cluster, and an image of the agent to upgrade to.

use anyhow::{Context, Result};

use super::{kit::Kit, suite::Suite};
use crate::{
    cluster::{
        self, Purpose,
        options::{Cni, Options},
    },
    image,
    oci::Archive,
    setup,
    step::{Job, Verdict},
};

/// Runs the tests of a cluster on one with pods on bridges, then those that reboot nodes on one with an overlay that finds
/// the API server by its Service.
pub fn run(job: &mut Job) -> Result<Verdict> {
    let kit = Kit::build(job)?;
    let next = next(job)?;
    setup::software(job.workspace)?;
    let addresses = Options { loadbalancers: true, ..options("tests", 3, Cni::Bridge)? };
    let first = on_cluster(job, &kit, Suite::Cluster, &addresses, &next);
    let second = on_cluster(job, &kit, Suite::Reboot, &options("reboot", 2, Cni::Flannel)?, &next);
    first.and(second)
}

fn options(name: &str, nodes: u8, cni: Cni) -> Result<Options> {
    let name = name.parse().map_err(anyhow::Error::msg)?;
    Ok(Options { nodes, cni, ..Options::usual(name) })
}

/// The agent with another layout of its maps, as an image.
fn next(job: &mut Job) -> Result<Archive> {
    setup::image(job.workspace)?;
    let path = job.workspace.root.join("target/image/culvert-next.tar");
    image::build_with(job, &path, &image::full_name(Some("next")), &["culvert-dataplane/layout-next"])
}

fn on_cluster(job: &mut Job, kit: &Kit, suite: Suite, options: &Options, next: &Archive) -> Result<Verdict> {
    let cluster = cluster::bring_up(job.workspace, options, Purpose::Software)?;
    let environment = vec![
        ("CULVERT_CLUSTER", cluster.description().display().to_string()),
        ("CULVERT_NEXT_IMAGE", next.path.display().to_string()),
        ("CULVERT_XTASK", std::env::current_exe().context("this program's path")?.display().to_string()),
    ];
    let verdict = suite.run_with(job, kit, environment);
    cluster.remove()?;
    verdict
}
