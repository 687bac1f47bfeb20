//! What a cluster gets once its API server answers: a network, a proxy, DNS.

use anyhow::Result;

use super::{
    config,
    node::Materials,
    options::{Cni, Proxy},
    parts::Image,
};
use crate::{oci::Archive, step::Job};

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

fn install_agent(_job: &mut Job, _materials: &Materials, _agent: &Archive) -> Result<()> {
    anyhow::bail!("not yet")
}

/// Waits until every node can run pods and serves Services.
pub fn await_all(job: &mut Job, materials: &Materials) -> Result<()> {
    let plan = materials.plan;
    let kubectl = materials.kubectl()?;
    let mut wait = |arguments: &[&str]| -> Result<()> { job.run(kubectl.command(arguments)) };
    wait(&["wait", "--for=condition=Ready", "nodes", "--all", LIMIT])?;
    match plan.proxy {
        Proxy::None => return Ok(()),
        Proxy::Culvert => wait(&["-n", "kube-system", "rollout", "status", "daemonset/culvert", LIMIT])?,
        Proxy::Nftables | Proxy::Iptables => wait(&["-n", "kube-system", "rollout", "status", "daemonset/kube-proxy", LIMIT])?,
    }
    wait(&["-n", "kube-system", "rollout", "status", "deployment/coredns", LIMIT])
}
