//! Some nodes on one network, a router, and a client behind it: where addresses move from node to node.
//!
//! ```text
//!  client ──── router ──── fabric (bridge) ─┬── n1, n2, ...   198.51.100.(10 + N)
//!  192.0.2.10  .1   .1     198.51.100.0/24  └── server        198.51.100.50, the endpoint of all Services
//! ```
//!
//! The server is on no node, so that it lives whichever node fails.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::agent::{Agent, Options};
use crate::manifests::{Manifests, Service};
use crate::matrix::{PORT, TARGET};
use crate::neighbors::{arping, mac, neighbor, pings, pool, ranges};
use crate::place::{Family, Place};
use crate::process::eventually;
use crate::scope::Scope;
use crate::topology::{Node, quiet_ipv6};
use crate::traffic::{Protocol, Server};

/// How long a node may take to be heard.
const SOON: Duration = Duration::from_mins(1);

/// The network. Everything in it ends with it.
#[derive(Debug)]
pub struct Segment {
    /// Behind the router.
    pub client: Place,
    /// Between the client and the nodes.
    pub router: Place,
    /// The bridge that the router, the server and the nodes are ports of; and one that only cut-off nodes are ports of.
    pub fabric: Place,
    /// The endpoint.
    pub server: Place,
    /// The nodes n1, n2, ...
    pub nodes: Vec<Node>,
    /// The folder that the agents watch.
    pub manifests: Manifests,
    /// The key that the nodes share.
    pub key: PathBuf,
    _server: Server,
    scope: Scope,
}

impl Segment {
    /// Builds the network with some nodes, and a pool of the numbers from 100 on that is announced everywhere.
    pub fn new(count: u8) -> Result<Self> {
        let scope = Scope::open()?;
        let logs = scope.directory("logs")?;
        let outside = scope.cgroup("out")?;
        let place = |name: &str, v4: [u8; 4], v6: &str| -> Result<Place> {
            Ok(Place::new(name, scope.netns(name)?, &outside, &logs, v4.into(), v6.parse()?))
        };
        let client = place("client", [192, 0, 2, 10], "2001:db8:1::10")?;
        let router = place("router", [198, 51, 100, 1], "2001:db8:2::1")?;
        let fabric = place("fabric", [0; 4], "::")?;
        let server = place("server", [198, 51, 100, 50], "2001:db8:2::50")?;
        let nodes = (1..=count).map(|number| Node::new(&scope, &logs, number)).collect::<Result<Vec<_>>>()?;
        let manifests = Manifests::new(scope.directory("manifests")?, scope.directory("staging")?);
        let key = scope.dir().join("key");
        std::fs::write(&key, "a key that all nodes of the test share")?;
        wire(&client, &router, &fabric, &server, &nodes)?;
        for node in &nodes {
            manifests.node(node.name(), &[node.host.ip(Family::V4), node.host.ip(Family::V6)])?;
        }
        manifests.write("addresses", &pool(&ranges(100, 249), &[]))?;
        let served = Server::start(&server, &[(Protocol::Tcp, TARGET), (Protocol::Udp, TARGET)])?;
        Ok(Self { client, router, fabric, server, nodes, manifests, key, _server: served, scope })
    }

    /// A directory that ends with it.
    pub fn dir(&self) -> &Path {
        self.scope.dir()
    }

    /// Adds Services, which get addresses of the pool.
    pub fn services(&self, count: u8) -> Result<()> {
        (1..=count).try_for_each(|n| {
            let service = Service::new(&format!("s{n}"), n).with("type", json!("LoadBalancer"));
            let service = service.port("TCP", PORT, TARGET).port("UDP", PORT, TARGET);
            self.manifests.apply(&service.ready("elsewhere", &self.server))
        })
    }

    /// Adds many Services of IPv4 with an address each, which no prefix of the network holds: `198.18.(N / 256).(N % 256)`.
    pub fn crowd(&self, count: u16) -> Result<Vec<IpAddr>> {
        self.manifests.write("addresses", &pool(&["198.18.0.0/22".to_owned()], &[]))?;
        self.router.ip_batch("route add 198.18.0.0/22 dev eth0\n")?;
        let [high, low]: [fn(u16) -> u8; 2] = [|n| n.to_be_bytes()[0], |n| n.to_be_bytes()[1]];
        let service = |n: u16| {
            let own = json!([format!("10.97.{}.{}", high(n), low(n))]);
            let service = Service::new(&format!("c{n}"), 1).with("type", json!("LoadBalancer"));
            let service = service.with("clusterIP", own[0].clone()).with("clusterIPs", own);
            let service = service.with("ipFamilies", json!(["IPv4"])).with("ipFamilyPolicy", json!("SingleStack"));
            let asked = IpAddr::from([198, 18, high(n), low(n)]);
            service.with("loadBalancerIP", json!(asked)).port("TCP", PORT, TARGET).ready("elsewhere", &self.server)
        };
        self.manifests.apply_all("crowd", &(1..=count).map(service).collect::<Vec<_>>())?;
        Ok((1..=count).map(|n| IpAddr::from([198, 18, high(n), low(n)])).collect())
    }

    /// Starts an agent on a node (from 0) that hears the others.
    pub fn start(&self, node: usize, options: &Options) -> Result<Agent> {
        let mut options = options.clone();
        options.flags.extend(["--layer2-key-file".to_owned(), self.key.display().to_string()]);
        Agent::start_on(self.nodes.get(node).context("no such node")?, &self.manifests, &options, "api")
    }

    /// Starts an agent on each node.
    pub fn start_all(&self, options: &Options) -> Result<Vec<Agent>> {
        let mut agents = (0..self.nodes.len()).map(|node| self.start(node, options)).collect::<Result<Vec<_>>>()?;
        agents.iter_mut().try_for_each(Agent::ready)?;
        Ok(agents)
    }

    /// Drops everything to and from a node (from 0) at the bridge, which leaves its link the carrier; or lets it through again.
    pub fn cut(&self, node: usize, cut: bool) -> Result<()> {
        // Disabled, or forwarding. (`ip link set ... type bridge_slave state` is accepted and does nothing.)
        let state = if cut { 0 } else { 3 };
        self.fabric.sh(&format!("bridge link set dev n{} state {state}", node + 1)).map(drop)
    }

    /// Moves a node (from 0) to the network of those that reach only each other, or back.
    pub fn part(&self, node: usize, apart: bool) -> Result<()> {
        let bridge = if apart { "br1" } else { "br0" };
        self.fabric.ip_batch(&format!("link set n{} master {bridge} up\n", node + 1))
    }

    /// Waits until all agents hear a node (from 0) again, but its own.
    pub fn heard(&self, node: usize, agents: &[Agent]) -> Result<()> {
        let name = self.nodes.get(node).context("no such node")?.name();
        eventually(&format!("{name} is heard again"), SOON, || {
            for agent in agents.iter().filter(|agent| agent.node() != name) {
                let said = agent.cli_json("l2")?;
                let nodes = said["nodes"].as_array().context("no nodes")?;
                if !nodes.iter().any(|node| node["name"] == name && node["alive"] == true) {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
    }

    /// The link addresses of the nodes.
    pub fn macs(&self) -> Result<Vec<String>> {
        self.nodes.iter().map(|node| mac(&node.host, "eth0")).collect()
    }

    /// The node (from 0) that the router's neighbour cache points to for an address, if it answers.
    pub fn owner(&self, to: IpAddr) -> Result<Option<usize>> {
        if !pings(&self.router, to)? {
            return Ok(None);
        }
        let known = neighbor(&self.router, "eth0", to)?;
        Ok(self.macs()?.into_iter().position(|mac| Some(mac) == known))
    }

    /// The nodes (from 0) whose kernels answer to ARP for an address of IPv4, one for each answer to two requests.
    pub fn answering(&self, from: &Place, to: IpAddr) -> Result<Vec<usize>> {
        let macs = self.macs()?;
        let replies = arping(from, "eth0", to)?;
        Ok(replies.iter().filter_map(|reply| macs.iter().position(|mac| mac == reply)).collect())
    }
}

fn wire(client: &Place, router: &Place, fabric: &Place, server: &Place, nodes: &[Node]) -> Result<()> {
    let hosts = || nodes.iter().map(|node| &node.host);
    for place in [client, router, fabric, server].into_iter().chain(hosts()) {
        quiet_ipv6(place)?;
    }
    for place in std::iter::once(router).chain(hosts()) {
        for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            place.sysctl(setting, "1")?;
        }
    }
    let bridge = "type bridge forward_delay 0 mcast_snooping 0";
    let mut lines = format!("link add br0 {bridge}\nlink set br0 up\nlink add br1 {bridge}\nlink set br1 up\n");
    for place in [router, server].into_iter().chain(hosts()) {
        let port = place.name();
        writeln!(lines, "link add {port} type veth peer name eth0 netns {}", place.netns())?;
        writeln!(lines, "link set {port} master br0 up")?;
    }
    fabric.ip_batch(&lines)?;
    for place in [router, server].into_iter().chain(hosts()) {
        place.ip_batch(&format!(
            "link set lo up\nlink set eth0 up\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n",
            place.v4(),
            place.v6()
        ))?;
    }
    for place in std::iter::once(server).chain(hosts()) {
        place.ip_batch("route add default via 198.51.100.1\nroute add default via 2001:db8:2::1\n")?;
    }
    router.ip_batch(&format!(
        "link add eth1 type veth peer name eth0 netns {}\nlink set eth1 up\n\
         addr add 192.0.2.1/24 dev eth1\naddr add 2001:db8:1::1/64 dev eth1 nodad\n",
        client.netns()
    ))?;
    client.ip_batch(
        "link set lo up\nlink set eth0 up\naddr add 192.0.2.10/24 dev eth0\naddr add 2001:db8:1::10/64 dev eth0 nodad\n\
         route add default via 192.0.2.1\nroute add default via 2001:db8:1::1\n",
    )
}
