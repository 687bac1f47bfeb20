//! What tests with programs of Kubernetes need: an API server with its etcd, kube-proxy, helm and kubectl, and the API server's
//! schema as its source publishes it.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    cluster::parts::{Program, programs},
    process, setup,
    setup::Go,
    step::Job,
};

const PROGRAMS: &[Program] =
    &[Program::Etcd, Program::KubeApiserver, Program::KubeProxy, Program::Kubectl, Program::Helm];

/// What these tests find in their environment besides.
pub fn environment(job: &mut Job) -> Result<Vec<(&'static str, String)>> {
    setup::cluster(job.workspace)?;
    let directories = programs(job, PROGRAMS)?.search_path()?;
    Ok(vec![("CULVERT_KUBERNETES", directories.to_string_lossy().into_owned()), ("CULVERT_OPENAPI", schema(job)?)])
}

/// Where the schema lies: in the module that the API server is built from.
fn schema(job: &Job) -> Result<String> {
    let mut download = Go::find(job.workspace).context("no Go")?.command();
    download.args(["mod", "download", "-json", "k8s.io/kubernetes"]);
    download.current_dir(job.workspace.root.join("tests/cluster/kubernetes"));
    let module: Value = serde_json::from_str(&process::output(&mut download)?)?;
    let directory = module["Dir"].as_str().context("the module has no directory")?;
    Ok(format!("{directory}/api/openapi-spec/v3"))
}
