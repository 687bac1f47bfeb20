//! What a cluster gets once its API server answers: a network, a proxy, DNS.

use std::{fs, process::Command, thread};

use anyhow::{Context, Result};

use super::{
    cgroup::Hierarchies,
    config,
    node::Materials,
    options::{Cni, Proxy},
    parts::{Image, Program},
    places,
    plan::Place,
};
use crate::{oci::Archive, process::output, step::Job};

/// How long all nodes may take.
const LIMIT: &str = "--timeout=180s";

/// Installs the add-ons.
pub fn install(job: &mut Job, materials: &Materials, agent: Option<&Archive>) -> Result<()> {
    let plan = materials.plan;
    let kubectl = materials.kubectl()?;
    if plan.cni == Cni::Flannel {
        kubectl.apply(&config::flannel::objects(plan, Image::Flannel.name(), Image::FlannelCni.name()))?;
    }
    if let Some(mode) = plan.proxy.kube_proxy_mode() {
        kubectl.apply(&config::kube_proxy::objects(plan, Image::KubeProxy.name(), mode))?;
    }
    if let Some(agent) = agent {
        install_agent(job, materials, agent)?;
    }
    kubectl.apply(&config::coredns::objects(plan, Image::CoreDns.name()))
}

/// Installs the agent as a user does, by its chart; its image is imported beside those that nodes share.
fn install_agent(job: &mut Job, materials: &Materials, agent: &Archive) -> Result<()> {
    let plan = materials.plan;
    job.note("the agent's image");
    thread::scope(|scope| {
        let imports: Vec<_> = plan.nodes().map(|node| scope.spawn(move || import(materials, node, agent))).collect();
        imports.into_iter().try_for_each(|import| import.join().ok().context("the thread was lost")?)
    })?;
    job.note("the agent");
    let values = materials.files.join("culvert-values.json");
    let cgroup2 = Hierarchies::find()?.unified().to_owned();
    fs::write(&values, config::culvert::values(plan, &agent.name, &cgroup2).to_string())?;
    let mut helm = Command::new(materials.programs.path(Program::Helm)?);
    helm.args(["upgrade", "--install", "culvert"]).arg(job.workspace.root.join("deploy/helm/culvert"));
    helm.args(["--namespace", "kube-system", "--values"]).arg(&values);
    helm.arg("--kubeconfig").arg(materials.kubeconfig());
    job.run(helm)?;
    if plan.loadbalancers {
        let kubectl = materials.kubectl()?;
        let wait = [&["wait", "--for=condition=Established", LIMIT][..], &config::culvert::DEFINITIONS].concat();
        job.run(kubectl.command(&wait))?;
        kubectl.apply(&config::culvert::configuration(plan))?;
    }
    Ok(())
}

fn import(materials: &Materials, node: u8, agent: &Archive) -> Result<()> {
    let mut ctr = places::enter(materials.files, Place::Node(node), materials.programs.path(Program::Ctr)?);
    ctr.args(["-n", "k8s.io", "images", "import", "--local"]).arg(&agent.path);
    output(&mut ctr).map(drop)
}

/// Waits until every node can run pods and serves Services.
pub fn await_all(job: &mut Job, materials: &Materials) -> Result<()> {
    let plan = materials.plan;
    let kubectl = materials.kubectl()?;
    let mut wait = |arguments: &[&str]| -> Result<()> { job.run(kubectl.command(arguments)) };
    match plan.proxy {
        // In-cluster configuration leads nowhere then, so the overlay does not come up.
        Proxy::None if plan.cni == Cni::Flannel => return Ok(()),
        Proxy::None => {}
        Proxy::Culvert => {
            wait(&["-n", "kube-system", "rollout", "status", config::culvert::DAEMON_SET, LIMIT])?;
            if plan.loadbalancers {
                wait(&["-n", "kube-system", "rollout", "status", config::culvert::CONTROLLER, LIMIT])?;
            }
        }
        Proxy::Nftables | Proxy::Iptables => {
            wait(&["-n", "kube-system", "rollout", "status", "daemonset/kube-proxy", LIMIT])?;
        }
    }
    wait(&["wait", "--for=condition=Ready", "nodes", "--all", LIMIT])?;
    wait(&["-n", "kube-system", "rollout", "status", "deployment/coredns", LIMIT])
}
