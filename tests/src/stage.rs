//! The cluster that most tests play on: two pods on each node, of which one serves, and an agent on each node.

use anyhow::{Context as _, Result};

use crate::agent::{Cluster, Options, SocketMode};
use crate::manifests::Service;
use crate::matrix::{PORT, TARGET, node_port, protocols};
use crate::place::Place;
use crate::topology::{Lab, PodLinks, Uplink};
use crate::traffic::{Ask, Outcome, Protocol, Server, Session};

/// The places of a stage. `a` and `c` serve on [`TARGET`], and so do the hosts; `p` and `q` only ask.
#[derive(Clone, Debug)]
pub struct Cast {
    /// A pod of n1 that serves.
    pub a: Place,
    /// A pod of n2 that serves.
    pub c: Place,
    /// A pod of n1 that asks.
    pub p: Place,
    /// A pod of n2 that asks.
    pub q: Place,
    /// The host of n1.
    pub n1: Place,
    /// The host of n2.
    pub n2: Place,
}

/// A cluster without agents yet: its pods and their servers.
#[derive(Debug)]
pub struct Scenery {
    /// The servers of a, c, n1 and n2.
    pub servers: Vec<Server>,
    /// Who is there.
    pub cast: Cast,
    /// The lab.
    pub lab: Lab,
}

impl Scenery {
    /// Pods and servers.
    pub fn new(links: PodLinks) -> Result<Self> {
        Self::with_uplink(links, Uplink::Plain)
    }

    /// Pods and servers on nodes that are linked in a given way.
    pub fn with_uplink(links: PodLinks, uplink: Uplink) -> Result<Self> {
        let mut lab = Lab::with_uplink(links, uplink)?;
        let [n1, n2] = [0, 1].map(|n: usize| lab.nodes[n].host.clone());
        let (a, c) = (lab.pod(0, "a")?, lab.pod(1, "c")?);
        let cast = Cast { a, c, p: lab.pod(0, "p")?, q: lab.pod(1, "q")?, n1, n2 };
        let ports: Vec<_> = protocols().into_iter().map(|protocol| (protocol, TARGET)).collect();
        let places = [&cast.a, &cast.c, &cast.n1, &cast.n2];
        let servers = places.into_iter().map(|place| Server::start(place, &ports)).collect::<Result<_>>()?;
        Ok(Self { servers, cast, lab })
    }

    /// Puts Services into the manifests and starts the agents on them.
    pub fn start<'a>(self, options: &Options, services: impl IntoIterator<Item = &'a Service>) -> Result<Stage> {
        for service in services {
            self.lab.manifests.apply(service)?;
        }
        let cluster = Cluster::start(self.lab, options)?;
        Ok(Stage { servers: self.servers, cast: self.cast, cluster })
    }
}

/// A cluster with its agents.
#[derive(Debug)]
pub struct Stage {
    /// The servers of a, c, n1 and n2, in this order.
    pub servers: Vec<Server>,
    /// Who is there.
    pub cast: Cast,
    /// The lab and the agents.
    pub cluster: Cluster,
}

impl Stage {
    /// Routed pods and agents with the usual options.
    pub fn new<'a>(mode: SocketMode, services: impl IntoIterator<Item = &'a Service>) -> Result<Self> {
        Scenery::new(PodLinks::Routed)?.start(&Options::new(mode)?, services)
    }

    /// Checks a table of what clients see, for the Service with a number.
    pub fn check(&self, n: u8, table: &str) -> Result<()> {
        let Cast { a, c, p, q, .. } = &self.cast;
        crate::matrix::check(&self.cluster.lab, &[a, c, p, q], n, table)
    }
}

/// A Service of every protocol with every kind of frontend, its number N in each address.
pub fn everywhere(name: &str, n: u8) -> Service {
    targeting(name, n, TARGET)
}

/// The same, for another port of the endpoints.
pub fn targeting(name: &str, n: u8, target: u16) -> Service {
    let add =
        |service: Service, protocol: Protocol| service.port(&format!("{protocol:?}").to_uppercase(), PORT, target);
    let service = protocols().into_iter().fold(Service::new(name, n), add);
    service.node_port(node_port(n)).external_ips(n).load_balancer(100 + n)
}

/// Opens a session that must come about.
pub fn session(place: &Place, ask: &Ask) -> Result<Session> {
    Session::open(place, ask)?.map_err(|outcome| anyhow::anyhow!("{} -> {}: {outcome}", place.name(), ask.to))
}

/// The server that answers; anything else is an error.
pub fn answered(outcome: &Outcome) -> Result<String> {
    let server = outcome.server().map(str::to_owned);
    server.with_context(|| outcome.to_string())
}
