//! What tests with programs of Kubernetes need: an API server with its etcd, kube-proxy, helm and kubectl, the API server's
//! schema as its source publishes it, and MetalLB: its controller, and the module that its samples and manifests lie in.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    cluster::parts::{Program, programs},
    process, setup,
    setup::Go,
    step::Job,
};

const PROGRAMS: &[Program] = &[
    Program::Etcd,
    Program::KubeApiserver,
    Program::KubeProxy,
    Program::Kubectl,
    Program::Helm,
    Program::MetalLbController,
];

/// What these tests find in their environment besides.
pub fn environment(job: &mut Job) -> Result<Vec<(&'static str, String)>> {
    setup::cluster(job.workspace)?;
    let directories = programs(job, PROGRAMS)?.search_path()?;
    let schema = format!("{}/api/openapi-spec/v3", source(job, "kubernetes", "k8s.io/kubernetes")?);
    let metallb = source(job, "kubernetes-0.34", "go.universe.tf/metallb")?;
    let directories = directories.to_string_lossy().into_owned();
    Ok(vec![("CULVERT_KUBERNETES", directories), ("CULVERT_OPENAPI", schema), ("CULVERT_METALLB", metallb)])
}

/// Where the source of a module lies that `directory` of `tests/cluster` pins.
fn source(job: &Job, directory: &str, module: &str) -> Result<String> {
    let mut download = Go::find(job.workspace).context("no Go")?.command();
    download.args(["mod", "download", "-json", module]);
    download.current_dir(job.workspace.root.join("tests/cluster").join(directory));
    let module: Value = serde_json::from_str(&process::output(&mut download)?)?;
    Ok(module["Dir"].as_str().context("the module has no directory")?.to_owned())
}
