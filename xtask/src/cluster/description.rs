//! What tests are told of a cluster: a file of JSON, read by `tests/src/cluster`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::{
    cgroup::Hierarchies,
    control_plane,
    parts::{Image, Program},
    places,
    plan::{Network, Place, Plan},
    registry::Entry,
    up::Parts,
};
use crate::workspace::Workspace;

/// Images that tests make pods of, by the names that they have there.
const IMAGES: [(&str, Image); 4] = [
    ("agnhost", Image::Agnhost),
    ("busybox", Image::Busybox),
    ("coredns", Image::CoreDns),
    ("servers", Image::Servers),
];

/// Where it is, among a cluster's files.
pub fn path(files: &Path) -> PathBuf {
    files.join("description.json")
}

/// Writes it.
pub fn write(workspace: &Workspace, entry: &Entry, parts: &Parts) -> Result<()> {
    let Entry { plan, files, .. } = entry;
    let cgroup2 = Hierarchies::find()?.unified().to_owned();
    let places: Map<String, Value> =
        plan.places().map(|place| (place.name(), describe(plan, files, &cgroup2, place))).collect();
    let program = |program| parts.programs.path(program).ok();
    let software: Map<String, Value> = Program::SOFTWARE
        .iter()
        .filter_map(|one| Some((one.recipe().name.to_owned(), json!(program(*one)?))))
        .collect();
    let description = json!({
        "name": plan.name.as_str(),
        "kubeconfig": control_plane::kubeconfig(files),
        "kubectl": program(Program::Kubectl),
        "helm": program(Program::Helm),
        "ctr": program(Program::Ctr),
        "chart": workspace.root.join("deploy/helm/culvert"),
        "images": IMAGES.map(|(name, image)| (name.to_owned(), json!(image.name()))).into_iter().collect::<Map<_, _>>(),
        "programs": software,
        "places": places,
    });
    let path = path(files);
    fs::write(&path, description.to_string()).with_context(|| path.display().to_string())
}

fn describe(plan: &Plan, files: &Path, cgroup2: &Path, place: Place) -> Value {
    let addresses = plan.families().iter().map(|family| match place {
        Place::Hub => plan.hub(Network::Nodes, *family).address,
        Place::Client => plan.peer(Network::Client, *family).address,
        Place::Node(node) => plan.node(node, *family).address,
    });
    json!({
        "enter": places::enter_script(files, place),
        "cgroup": cgroup2.join(plan.machine_name(place)),
        "addresses": addresses.collect::<Vec<_>>(),
    })
}
