//! How a cluster comes up.
//!
//! ```text
//!  certificates ─┐                    ┌ etcd
//!  namespaces ───┼─ files ── places ──┤                                        controllers
//!  images ───────┘                    └ n1: containerd, kubelet ── API server ─┤ add-ons ── all nodes ready
//!                                       n2...: containerd ── kubelet ──────────┘
//! ```

use std::{fs, time::Duration};

use anyhow::{Context, Result};

use super::{
    Purpose, addons, config, network,
    node::Materials,
    options::{Cni, Options, Proxy},
    parts::{self, Image, Program, Programs},
    pki, places,
    plan::Place,
    registry::Entry,
    store::Store,
};
use crate::{
    image,
    oci::Archive,
    step::{Job, alone},
    ui::say,
    workspace::Workspace,
};

/// Instances of inotify that clusters may need: some ten a node.
const WATCHERS: u32 = 1024;
/// Limit of a step once programs and images are there.
const LIMIT: Duration = Duration::from_mins(5);

/// What a cluster is made of.
pub struct Parts {
    /// Its programs, and those of the tests if asked for.
    pub programs: Programs,
    images: Vec<Archive>,
    agent: Option<Archive>,
}

impl Parts {
    /// Builds what is missing.
    pub fn prepare(workspace: &Workspace, options: &Options, purpose: Purpose) -> Result<Self> {
        let mut wanted = Program::CLUSTER.to_vec();
        // Images of the tests are there as well: one store serves all clusters.
        let mut pictures = [Image::CLUSTER, Image::TESTS, &[Image::Servers]].concat();
        wanted.extend(match purpose {
            Purpose::Any => &[],
            Purpose::Upstream => Program::TESTS,
            Purpose::Software => Program::SOFTWARE,
        });
        if options.cni == Cni::Flannel {
            pictures.extend(Image::FLANNEL);
        }
        if options.proxy == Proxy::Culvert {
            wanted.push(Program::Helm);
        }
        let programs = alone(workspace, "programs", parts::LIMIT, |job| parts::programs(job, &wanted))?;
        let images = alone(workspace, "images", parts::LIMIT, |job| parts::images(job, &pictures))?;
        let agent = match options.proxy {
            Proxy::Culvert => Some(image::usual(workspace)?),
            _ => None,
        };
        Ok(Self { programs, images, agent })
    }
}

/// Makes a cluster. Whatever a failed or interrupted one leaves is removed by the next run.
pub fn run(workspace: &Workspace, options: &Options, parts: &Parts) -> Result<Entry> {
    let store = alone(workspace, "image store", LIMIT, |job| Store::prepare(job, &parts.programs, &parts.images))?;
    let entry = Entry::open(options, &workspace.cache.join("clusters"))?;
    let name = options.name.clone();
    match build(workspace, &entry, parts, &store) {
        Ok(()) => Ok(entry),
        Err(error) => {
            // Its logs are what one wants to see now.
            Err(error.context(format!(
                "the logs are in {}; `cargo xtask cluster down --name {name}` removes all",
                entry.files.display()
            )))
        }
    }
}

fn build(workspace: &Workspace, entry: &Entry, parts: &Parts, store: &Store) -> Result<()> {
    let materials = Materials { plan: &entry.plan, files: &entry.files, programs: &parts.programs };
    alone(workspace, "places", LIMIT, |job| make_places(job, &materials, store))?;
    alone(workspace, "control plane", LIMIT, |job| start(job, &materials))?;
    alone(workspace, "nodes", LIMIT, |job| join(job, &materials, parts))
}

fn make_places(job: &mut Job, materials: &Materials, store: &Store) -> Result<()> {
    let Materials { plan, files, .. } = materials;
    job.note("certificates");
    fs::create_dir_all(materials.pki())?;
    pki::make(plan, &materials.pki())?;
    materials.write_kubeconfigs()?;
    job.note("files");
    for node in plan.nodes() {
        materials.write_node(node, store)?;
    }
    job.note("network");
    network::create(plan)?;
    allow_watches()?;
    job.note("namespaces");
    places::start(plan, files, plan.places())
}

/// Starts the nodes anew, after their places have gone.
pub fn restart(job: &mut Job, materials: &Materials) -> Result<()> {
    let Materials { plan, files, .. } = materials;
    job.note("network");
    network::create_nodes(plan)?;
    job.note("namespaces");
    places::start(plan, files, plan.nodes().map(Place::Node))?;
    job.note("containerd and kubelet");
    for node in plan.nodes() {
        materials.start_runtime(node)?;
    }
    for node in plan.nodes() {
        materials.await_runtime(node)?;
        materials.start_kubelet(node)?;
    }
    Ok(())
}

/// Every node's programs watch files, and Linux counts all of them as one user's.
fn allow_watches() -> Result<()> {
    let path = "/proc/sys/fs/inotify/max_user_instances";
    let allowed: u32 = fs::read_to_string(path)?.trim().parse().context(path)?;
    if allowed < WATCHERS {
        fs::write(path, WATCHERS.to_string()).context(path)?;
        say(&format!("      {path} is {WATCHERS} now, for {allowed} are too few"));
    }
    Ok(())
}

fn start(job: &mut Job, materials: &Materials) -> Result<()> {
    materials.start_etcd()?;
    for node in materials.plan.nodes() {
        materials.start_runtime(node)?;
    }
    job.note("waiting for the API server, a pod of the first node");
    materials.await_runtime(1)?;
    materials.start_kubelet(1)?;
    materials.await_api_server()?;
    materials.start_controllers()
}

fn join(job: &mut Job, materials: &Materials, parts: &Parts) -> Result<()> {
    let plan = materials.plan;
    let kubectl = materials.kubectl()?;
    let objects: Vec<_> = plan.nodes().map(|node| config::node::object(plan, node)).collect();
    kubectl.apply(&config::list(&objects))?;
    for node in plan.nodes().skip(1) {
        materials.await_runtime(node)?;
        materials.start_kubelet(node)?;
    }
    addons::install(job, materials, parts.agent.as_ref())?;
    job.note("waiting for all nodes");
    addons::await_all(job, materials)
}
