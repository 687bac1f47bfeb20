//! An API server that goes away for long, and one that is restarted: traffic goes on, and the state converges after.

use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use culvert_tests::cluster::traffic::{Load, Server};
use culvert_tests::cluster::{Cluster, LIMIT, Namespace, Site, objects};
use culvert_tests::process::eventually;
use serde_json::{Value, json};

const PORT: u16 = 7000;
const NODE_PORT: u16 = 31710;
const RATE: u32 = 300;
/// Longer than a watch lives, at the pace that agents' pauses grow to.
const LONG: Duration = Duration::from_secs(90);
/// The API server's static pod on n1, and where it is put aside.
const MANIFEST: &str = "/etc/kubernetes/manifests/kube-apiserver.json";
const ASIDE: &str = "/etc/kubernetes/kube-apiserver.json";

struct Stage {
    cluster: Cluster,
    namespace: Namespace,
    client: Site,
    _servers: Vec<Server>,
}

/// The slice of the Service `web`, with a pod's address.
fn slice(server: &Site) -> Result<Value> {
    Ok(objects::slice("web-1", "web", server.address()?, PORT))
}

impl Stage {
    fn new() -> Result<Self> {
        let cluster = Cluster::open()?;
        cluster.await_agents(&[])?;
        let namespace = cluster.namespace("away")?;
        let image = cluster.image("busybox")?;
        let mut web = objects::node_port_service("web", "", PORT, NODE_PORT);
        web["spec"]["selector"] = Value::Null;
        let pods = [("server-a", "n2"), ("server-b", "n3"), ("client", "n2")];
        namespace.apply(&pods.map(|(name, node)| objects::pod(name, name, node, image)))?;
        namespace.await_pods(&["pod/server-a", "pod/server-b", "pod/client"])?;
        let servers = ["server-a", "server-b"].map(|name| Server::start(&namespace.pod(name)?, PORT));
        namespace.apply(&[web, slice(&namespace.pod("server-a")?)?])?;
        let client = namespace.pod("client")?;
        let stage = Self { cluster, namespace, client, _servers: servers.into_iter().collect::<Result<_>>()? };
        stage.served_by("server-a")?;
        Ok(stage)
    }

    /// Waits until a server answers to a pod and outside.
    fn served_by(&self, server: &str) -> Result<()> {
        let front = self.namespace.front("web")?;
        let outside = (self.cluster.address("n1")?, NODE_PORT).into();
        for (from, to) in [(&self.client, front), (&self.cluster.site("client")?, outside)] {
            eventually(&format!("{server} answers at {to}"), LIMIT, || {
                let report = Load::brief(from, to, 100)?;
                ensure!(report.connects.servers.keys().all(|name| name == server), "{:?}", report.connects.servers);
                Ok(report.streams.servers.contains_key(server).then_some(()))
            })?;
        }
        Ok(())
    }

    /// Does `work` under load from the pod and from outside, of which nothing may be lost.
    fn under_load(&self, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let outside = (self.cluster.address("n1")?, NODE_PORT).into();
        let loads = [
            Load::start(&self.client, self.namespace.front("web")?, RATE)?,
            Load::start(&self.cluster.site("client")?, outside, RATE)?,
        ];
        work()?;
        for load in loads {
            let report = load.finish()?;
            eprintln!("{name}: {report}");
            ensure!(report.clean(), "{name}: {report}");
        }
        Ok(())
    }

    /// What was said to the API server after its return arrives at all nodes.
    fn converges(&self, server: &str) -> Result<()> {
        self.cluster.await_api_server()?;
        self.namespace.apply(&[slice(&self.namespace.pod(server)?)?])?;
        self.served_by(server)?;
        self.cluster.await_health()
    }
}

fn is_away(cluster: &Cluster) -> Result<()> {
    eventually("the API server is away", LIMIT, || {
        match cluster.kubectl(&["get", "--raw=/readyz", "--request-timeout=2s"]) {
            Ok(said) => bail!("it says {said}"),
            Err(_) => Ok(Some(())),
        }
    })
}

#[test]
fn traffic_goes_on_while_the_api_server_is_away() -> Result<()> {
    let stage = Stage::new()?;
    let (cluster, n1) = (&stage.cluster, stage.cluster.site("n1")?);
    let before = cluster.agents()?;
    stage.under_load("the API server is away", || {
        n1.sh(&format!("mv {MANIFEST} {ASIDE}"))?;
        is_away(cluster)?;
        thread::sleep(LONG);
        // The agents go too. kubelet starts them again, and they find what the last ones left.
        cluster.kill_agents(&before)?;
        for node in cluster.nodes() {
            eventually(&format!("the agent of {node} runs again"), LIMIT, || {
                let status = cluster.status(&node)?;
                ensure!(status["healthy"] == json!(false), "{status}");
                Ok(Some(()))
            })?;
        }
        n1.sh(&format!("mv {ASIDE} {MANIFEST}"))?;
        cluster.await_api_server()?;
        cluster.await_health()
    })?;
    stage.converges("server-b")
}

#[test]
fn traffic_goes_on_while_the_api_server_is_restarted() -> Result<()> {
    let stage = Stage::new()?;
    stage.under_load("the API server is restarted", || {
        for _ in 0..3 {
            stage.cluster.site("n1")?.sh("pkill -KILL -x kube-apiserver")?;
            is_away(&stage.cluster)?;
            stage.cluster.await_api_server()?;
        }
        Ok(())
    })?;
    stage.converges("server-b")
}
