//! A power failure of all nodes at once. What is on their disks stays: images, containers that were, what kubelet and the
//! agent remember. Processes, namespaces, links, bpffs and rules are gone, as after a real one; etcd and the controllers,
//! in the hub, go on.

use std::{collections::HashSet, process::Command, time::Duration};

use anyhow::Result;

use super::{
    cgroup::Hierarchies,
    node::Materials,
    parts::{self, Program},
    plan::Place,
    registry::Existing,
    up,
};
use crate::{process::output, step::alone, workspace::Workspace};

const LIMIT: Duration = Duration::from_mins(5);

/// Reboots the nodes; returns once their kubelets run. Pods take their time afterwards.
pub fn run(workspace: &Workspace, cluster: &Existing) -> Result<()> {
    let programs = alone(workspace, "programs", parts::LIMIT, |job| parts::programs(job, Program::CLUSTER))?;
    let Existing { plan, files } = cluster;
    let materials = Materials { plan, files, programs: &programs };
    alone(workspace, "reboot", LIMIT, |job| {
        job.note("the lights go out");
        let names: HashSet<String> = plan.nodes().map(|node| plan.machine_name(Place::Node(node))).collect();
        Hierarchies::find()?.remove(|name| names.contains(name))?;
        for name in &names {
            output(Command::new("ip").args(["netns", "delete", name]))?;
        }
        for node in plan.nodes() {
            // The hub's end goes with the node's, but not at once.
            let (hub, link) = (plan.machine_name(Place::Hub), Place::Node(node).name());
            let _ = output(Command::new("ip").args(["-n", &hub, "link", "delete", &link]));
        }
        up::restart(job, &materials)
    })
}
