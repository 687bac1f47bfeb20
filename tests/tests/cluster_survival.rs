//! What becomes of traffic on a real cluster while its agents are killed, upgraded and rolled back: nothing.
//!
//! Requests are counted by their numbers, next to an equal run in which nothing happens; both are printed. The other version of
//! the agent has another layout of its maps.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use culvert_tests::cluster::agents::Agent;
use culvert_tests::cluster::traffic::{Load, Server};
use culvert_tests::cluster::{Cluster, Namespace, Site, objects};
use culvert_tests::traffic::Report;

/// Where servers listen.
const PORT: u16 = 7000;
const NODE_PORT: u16 = 31700;
/// Requests a second from each client; the machine has other work, and three clients at that.
const RATE: u32 = 200;
/// How long load goes before and after what happens.
const BREATH: Duration = Duration::from_secs(2);

/// Two pods that serve, on different nodes, and clients: a pod and its node, and one outside.
struct Stage {
    cluster: Cluster,
    clients: Vec<(Site, SocketAddr)>,
    _servers: Vec<Server>,
    _namespace: Namespace,
}

impl Stage {
    fn new() -> Result<Self> {
        let cluster = Cluster::open()?;
        cluster.await_agents(&[])?;
        let namespace = cluster.namespace("survival")?;
        let image = cluster.image("busybox")?;
        namespace.apply(&[
            objects::pod("server-a", "web", "n2", image),
            objects::pod("server-b", "web", "n3", image),
            objects::pod("client-pod", "client", "n2", image),
            objects::node_port_service("web", "web", PORT, NODE_PORT),
        ])?;
        namespace.await_pods(&["pod/server-a", "pod/server-b", "pod/client-pod"])?;
        let servers = ["server-a", "server-b"].map(|name| Server::start(&namespace.pod(name)?, PORT));
        let front = namespace.front("web")?;
        // n1 has no endpoint: what comes in there goes on with another source.
        let outside = (cluster.address("n1")?, NODE_PORT).into();
        let clients = vec![
            (namespace.pod("client-pod")?, front),
            (cluster.site("n2")?, front),
            (cluster.site("client")?, outside),
        ];
        Ok(Self { cluster, clients, _servers: servers.into_iter().collect::<Result<_>>()?, _namespace: namespace })
    }

    /// Does `work` under load from all clients at the same time.
    fn under_load(&self, work: impl FnOnce() -> Result<()>) -> Result<Vec<Report>> {
        let start = |(from, to): &(Site, SocketAddr)| Load::start(from, *to, RATE);
        let loads = self.clients.iter().map(start).collect::<Result<Vec<_>>>()?;
        thread::sleep(BREATH);
        work()?;
        thread::sleep(BREATH);
        loads.into_iter().map(Load::finish).collect()
    }

    /// Does the work under load, then has the same load for the same time without it, and compares.
    fn survives(&self, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut took = Duration::ZERO;
        let hit = self.under_load(|| {
            let started = Instant::now();
            work()?;
            took = started.elapsed();
            Ok(())
        })?;
        let control = self.under_load(|| {
            thread::sleep(took);
            Ok(())
        })?;
        for (((site, _), hit), control) in self.clients.iter().zip(&hit).zip(&control) {
            // Past the capture of the test's output: these figures are wanted when all is well, too.
            let mut stderr = std::io::stderr().lock();
            writeln!(stderr, "{name}, from {}: {hit}\nthe same without: {control}\n", site.name())?;
        }
        for ((site, _), (hit, control)) in self.clients.iter().zip(hit.iter().zip(&control)) {
            ensure!(control.clean(), "{name}, from {}: the control run is not clean: {control}", site.name());
            ensure!(hit.clean(), "{name}, from {}: {hit}", site.name());
            ensure!(hit.connects.servers.len() == 2, "{name}: only {:?} answered", hit.connects.servers);
        }
        Ok(())
    }

    fn kill(&self) -> Result<()> {
        let before = self.cluster.agents()?;
        self.cluster.kill_agents(&before)?;
        self.cluster.await_agents(&before)?;
        self.cluster.await_health()
    }

    fn upgrade_and_back(&self) -> Result<()> {
        let before = self.cluster.agents()?;
        self.cluster.upgrade(&["image.tag=next", "logging.level=debug"])?;
        let next = self.cluster.agents()?;
        ensure!(next.iter().all(|agent| agent.image.ends_with(":next")), "{next:?}");
        self.cluster.await_health()?;
        self.cluster.rollback()?;
        let after = self.cluster.agents()?;
        ensure!(images(&after) == images(&before), "{after:?}");
        self.cluster.await_health()
    }
}

fn images(agents: &[Agent]) -> Vec<&str> {
    agents.iter().map(|agent| agent.image.as_str()).collect()
}

#[test]
fn agents_are_killed_upgraded_and_rolled_back() -> Result<()> {
    let next = std::env::var_os("CULVERT_NEXT_IMAGE").map(PathBuf::from);
    let next = next.context("CULVERT_NEXT_IMAGE names no image of the other map layout")?;
    let stage = Stage::new()?;
    stage.cluster.import(&next)?;
    for mode in ["all", "host"] {
        stage.cluster.upgrade(&[&format!("socketMode={mode}")])?;
        stage.survives(&format!("kill -9 of all agents, socket mode {mode}"), || stage.kill())?;
        stage.survives(&format!("rolling upgrade and rollback, socket mode {mode}"), || stage.upgrade_and_back())?;
    }
    stage.cluster.upgrade(&["socketMode=all"])
}
