//! What tests with programs of Kubernetes need: an API server, kube-proxy, helm and kubectl, and the API server's schema as its
//! source publishes it.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    cluster::parts::{Program, programs},
    process, setup,
    setup::Go,
    step::Job,
};

const PROGRAMS: &[Program] = &[Program::KubeApiserver, Program::KubeProxy, Program::Kubectl, Program::Helm];

/// What these tests find in their environment besides.
pub fn environment(job: &mut Job) -> Result<Vec<(&'static str, String)>> {
    setup::cluster(job.workspace)?;
    let programs = programs(job, PROGRAMS)?;
    let path = |program| programs.path(program).map(|path| path.display().to_string());
    let directory = |program: &Program| programs.path(*program)?.parent().context("a program in no directory");
    let directories = PROGRAMS.iter().map(directory).collect::<Result<Vec<&Path>>>()?;
    Ok(vec![
        ("CULVERT_KUBERNETES", std::env::join_paths(directories)?.to_string_lossy().into_owned()),
        ("CULVERT_KUBE_APISERVER", path(Program::KubeApiserver)?),
        ("CULVERT_HELM", path(Program::Helm)?),
        ("CULVERT_KUBECTL", path(Program::Kubectl)?),
        ("CULVERT_OPENAPI", schema(job)?),
    ])
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
