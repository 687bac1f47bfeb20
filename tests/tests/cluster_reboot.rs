//! All nodes of a cluster that never had a kube-proxy lose power. flannel looks for the API server at the Service
//! `kubernetes`, and pods cannot come up without flannel: it is the agent, with what it remembers, that everything waits for.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use culvert_tests::cluster::{Cluster, LIMIT, Namespace, objects, timeout};
use culvert_tests::process::eventually;
use culvert_tests::shell::run;

const PORT: u16 = 8080;
const NODE_PORT: u16 = 31720;
/// A file that does not outlive a node's reboot.
const UP: &str = "/run/up";

/// Waits until both pods answer to a pod by their Service's name, and outside at a node port.
fn serves(cluster: &Cluster, namespace: &Namespace) -> Result<()> {
    let url = format!("http://{}:{NODE_PORT}/hostname", cluster.address("n1")?);
    let outside = cluster.site("client")?;
    let name = format!("web.{}.svc.cluster.local", namespace.name());
    let inside = format!("curl --silent --show-error --max-time 5 http://{name}:{PORT}/hostname");
    let mut seen = std::collections::BTreeSet::new();
    eventually("both pods answer outside", LIMIT, || {
        seen.insert(outside.sh(&format!("curl --silent --show-error --max-time 5 {url}"))?);
        ensure!(seen.len() == 2, "{seen:?}");
        Ok(Some(()))
    })?;
    eventually("a pod finds the Service by its name", LIMIT, || {
        let words: Vec<&str> = ["exec", "deployment/web", "--"].into_iter().chain(inside.split(' ')).collect();
        let said = namespace.kubectl(&words)?;
        ensure!(seen.contains(said.trim_end()), "{said}");
        Ok(Some(()))
    })
}

/// Waits until pods of all nodes were made or ready after the reboot.
fn all_ready(cluster: &Cluster) -> Result<()> {
    cluster.await_rollout("kube-flannel", "daemonset/flannel")?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "nodes", "--all", &timeout()])?;
    cluster.await_rollout("kube-system", "deployment/coredns")
}

#[test]
fn a_cluster_comes_up_again_without_kube_proxy() -> Result<()> {
    let xtask = std::env::var_os("CULVERT_XTASK").context("CULVERT_XTASK names no xtask, which reboots nodes")?;
    let cluster = Cluster::open()?;
    // From now on nobody tells the agents where an API server is.
    cluster.upgrade(&["apiServers=null"])?;
    let namespace = cluster.namespace("reboot")?;
    let mut container = objects::container(cluster.image("agnhost")?, &["/agnhost", "netexec"]);
    container["readinessProbe"] = objects::http_probe(PORT, "/hostname");
    namespace.apply(&[
        objects::deployment("web", 2, &container),
        objects::node_port_service("web", "web", PORT, NODE_PORT),
    ])?;
    namespace.await_rollout("deployment/web")?;
    serves(&cluster, &namespace)?;

    for round in 1..=2 {
        let before = cluster.agents()?;
        for node in cluster.nodes() {
            cluster.site(&node)?.sh(&format!("touch {UP}"))?;
        }
        run(Command::new(&xtask).args(["cluster", "reboot", "--name", &cluster.description.name]))?;
        for node in cluster.nodes() {
            cluster.site(&node)?.sh(&format!("test ! -e {UP}"))?;
        }
        cluster.await_api_server()?;
        cluster.await_agents(&before).with_context(|| format!("reboot {round}"))?;
        cluster.await_health()?;
        all_ready(&cluster)?;
        namespace.await_rollout("deployment/web")?;
        serves(&cluster, &namespace)?;
    }
    Ok(())
}
