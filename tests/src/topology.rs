//! A small cluster of network namespaces.
//!
//! ```text
//!  client ──── router ──── fabric (bridge) ─┬── n1 ──── pods 10.244.1.0/24, fd00:244:1::/64
//!  192.0.2.10  .1   .1     198.51.100.0/24  └── n2 ──── pods 10.244.2.0/24, fd00:244:2::/64
//!                          node N: .1N
//! ```
//!
//! The router sends external addresses (203.0.113.0/24) and ClusterIPs to n1, and knows the way to the pods as any router of a
//! flat network does. Nodes filter strictly by reverse path. A pod's link is either *routed*
//! (the gateway address on the host's end of the veth, one route for each pod) or *bridged* (the ends enslaved to `cni0`).

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::manifests::Manifests;
use crate::place::{Family, Place};
use crate::scope::Scope;
use crate::shell::{self, sh};

/// How pods are linked to their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodLinks {
    /// Each veth is routed.
    Routed,
    /// The veths are ports of a bridge.
    Bridged,
}

/// How nodes reach each other and the router, and the pods of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// By `eth0`.
    Plain,
    /// By `eth0.100`, a VLAN.
    Vlan,
    /// By `bond0`, whose port `eth0` is.
    Bond,
    /// By `eth0`, and pods by `over0`, a VXLAN.
    Vxlan,
    /// By `eth0`, and pods by `over0`, a tunnel without Ethernet headers (IP in IPv6).
    Tunnel,
    /// By `eth0`, and pods by `over0`, a `WireGuard` link, which has none either.
    WireGuard,
}

impl Uplink {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Plain, Self::Vlan, Self::Bond, Self::Vxlan, Self::Tunnel, Self::WireGuard];

    /// The link that carries a node's address.
    pub fn device(self) -> &'static str {
        match self {
            Self::Plain | Self::Vxlan | Self::Tunnel | Self::WireGuard => "eth0",
            Self::Vlan => "eth0.100",
            Self::Bond => "bond0",
        }
    }

    /// The lines that make [`Self::device`] on a machine that has `eth0`.
    fn setup(self) -> &'static str {
        match self {
            Self::Plain | Self::Vxlan | Self::Tunnel | Self::WireGuard => "link set eth0 up\n",
            Self::Vlan => "link set eth0 up\nlink add link eth0 name eth0.100 type vlan id 100\nlink set eth0.100 up\n",
            Self::Bond => {
                "link add bond0 type bond mode active-backup miimon 100\nlink set eth0 master bond0\nlink set bond0 up\n"
            }
        }
    }

    /// The type of link that the kernel must know, if it is not one that all do.
    fn kind(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Vlan => Some("vlan id 100"),
            Self::Bond => Some("bond"),
            Self::Vxlan => Some("vxlan id 7 dstport 4789"),
            Self::Tunnel => Some("ip6tnl local ::1 remote ::2 mode any"),
            Self::WireGuard => Some("wireguard"),
        }
    }
}

/// The ClusterIPs of a lab: `10.96.0.N` and `fd00:96::N`.
pub fn cluster_ip(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 96, 0, n).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, digits(n)).into(),
    }
}

/// External addresses: `203.0.113.N` and `2001:db8:ee::N`. The router sends them to n1.
pub fn external_ip(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(203, 0, 113, n).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0xee, 0, 0, 0, 0, digits(n)).into(),
    }
}

/// The group of an IPv6 address that is written with the same digits as the decimal number: 53 is `::53`.
pub(crate) fn digits(n: u8) -> u16 {
    let n = u16::from(n);
    n / 100 * 0x100 + n / 10 % 10 * 0x10 + n % 10
}

/// The external prefixes, as `--allow-external-ips` wants them.
pub const EXTERNAL: &str = "203.0.113.0/24,2001:db8:ee::/64";

/// A node: its host namespace and what an agent on it is given.
#[derive(Debug)]
pub struct Node {
    /// The host's namespace, in the node's cgroup.
    pub host: Place,
    /// The node's number, from 1.
    pub number: u8,
    /// A bpffs of its own.
    pub bpffs: PathBuf,
    /// The agent's socket goes here.
    pub run: PathBuf,
    pods: u8,
}

impl Node {
    /// A node with a number, which is not wired yet: `198.51.100.(10 + N)` and `2001:db8:2::1N`.
    pub fn new(scope: &Scope, logs: &Path, number: u8) -> Result<Self> {
        let name = format!("n{number}");
        let address = (Ipv4Addr::new(198, 51, 100, 10 + number), v6(&format!("2001:db8:2::1{number}"))?);
        let host = Place::new(&name, scope.netns(&name)?, &scope.cgroup(&name)?, logs, address.0, address.1);
        let (bpffs, run) = (scope.bpffs(&format!("{name}-bpf"))?, scope.directory(&format!("{name}-run"))?);
        Ok(Self { host, number, bpffs, run, pods: 0 })
    }

    /// The node's name, `n1` or `n2`.
    pub fn name(&self) -> &str {
        self.host.name()
    }
}

/// The cluster. Everything in it ends with it.
#[derive(Debug)]
pub struct Lab {
    /// Outside of the cluster, one router away. Has a second pair of addresses: [`Lab::CLIENT_2`].
    pub client: Place,
    /// Between the client and the nodes.
    pub router: Place,
    /// The bridge that the router and the nodes are ports of.
    pub fabric: Place,
    /// The nodes n1 and n2.
    pub nodes: [Node; 2],
    /// The folder that the agents watch.
    pub manifests: Manifests,
    links: PodLinks,
    uplink: Uplink,
    scope: Scope,
}

impl Lab {
    /// The client's second address of each family.
    pub const CLIENT_2: (Ipv4Addr, Ipv6Addr) =
        (Ipv4Addr::new(192, 0, 2, 77), Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x77));

    /// Builds a cluster whose pods will be linked in the given way.
    pub fn new(links: PodLinks) -> Result<Self> {
        Self::with_uplink(links, Uplink::Plain)
    }

    /// Builds a cluster whose nodes are linked in the given way, too.
    pub fn with_uplink(links: PodLinks, uplink: Uplink) -> Result<Self> {
        let scope = Scope::open()?;
        let logs = scope.directory("logs")?;
        let outside = scope.cgroup("out")?;
        let place = |name: &str, cgroup: &Path, v4, v6| -> Result<Place> {
            Ok(Place::new(name, scope.netns(name)?, cgroup, &logs, v4, v6))
        };
        let client = place("client", &outside, v4("192.0.2.10")?, v6("2001:db8:1::10")?)?;
        let router = place("router", &outside, v4("198.51.100.1")?, v6("2001:db8:2::1")?)?;
        let fabric = place("fabric", &outside, Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED)?;
        let nodes = [Node::new(&scope, &logs, 1)?, Node::new(&scope, &logs, 2)?];
        let manifests = Manifests::new(scope.directory("manifests")?, scope.directory("staging")?);
        let lab = Self { client, router, fabric, nodes, manifests, links, uplink, scope };
        lab.wire()?;
        for node in &lab.nodes {
            lab.manifests.node(node.name(), &[node.host.ip(Family::V4), node.host.ip(Family::V6)])?;
        }
        Ok(lab)
    }

    /// The prefix of every name that the machine sees.
    pub fn prefix(&self) -> &str {
        self.scope.prefix()
    }

    /// The run's directory: manifests, logs, sockets.
    pub fn dir(&self) -> &Path {
        self.scope.dir()
    }

    /// How pods are linked.
    pub fn links(&self) -> PodLinks {
        self.links
    }

    /// Leaves everything on the machine when the lab is dropped.
    pub fn keep(&mut self) {
        self.scope.keep();
    }

    /// Makes a pod on a node (0 or 1), linked as the lab is.
    pub fn pod(&mut self, node: usize, name: &str) -> Result<Place> {
        let links = self.links;
        self.linked_pod(node, name, links)
    }

    /// Makes a pod on a node, linked in a given way.
    pub fn linked_pod(&mut self, node: usize, name: &str, links: PodLinks) -> Result<Place> {
        let Self { nodes, scope, .. } = self;
        let node = nodes.get_mut(node).context("no such node")?;
        let (n, last) = (node.number, 10 + node.pods);
        node.pods += 1;
        let logs = scope.directory("logs")?;
        let (v4, v6) = (Ipv4Addr::new(10, 244, n, last), v6(&format!("fd00:244:{n}::{last}"))?);
        let pod = Place::new(name, scope.netns(name)?, node.host.cgroup(), &logs, v4, v6);
        quiet_ipv6(&pod)?;
        let host_end = format!("veth-{name}");
        node.host.ip_batch(&format!(
            "link add {host_end} type veth peer name eth0 netns {}\nlink set {host_end} up\n",
            pod.netns()
        ))?;
        let (gw4, gw6) = (format!("10.244.{n}.1"), format!("fd00:244:{n}::1"));
        match links {
            PodLinks::Routed => {
                node.host.ip_batch(&format!(
                    "addr add {gw4}/32 dev {host_end}\naddr add {gw6}/128 dev {host_end} nodad\n\
                     route add {v4}/32 dev {host_end} src {gw4}\nroute add {v6}/128 dev {host_end}\n"
                ))?;
                pod.ip_batch(&format!(
                    "link set lo up\nlink set eth0 up\naddr add {v4}/32 dev eth0\naddr add {v6}/128 dev eth0 nodad\n\
                     route add {gw4}/32 dev eth0 scope link src {v4}\nroute add {gw6}/128 dev eth0\n\
                     route add default via {gw4} src {v4}\nroute add default via {gw6}\n"
                ))?;
            }
            PodLinks::Bridged => {
                node.host.ip_batch(&format!("link set {host_end} master cni0\n"))?;
                node.host.run(|| {
                    // As the bridge plugin's hairpinMode does: a pod may reach itself through a Service.
                    let path = format!("/sys/class/net/{host_end}/brport/hairpin_mode");
                    if Path::new(&path).exists() {
                        return Ok(std::fs::write(path, "1")?);
                    }
                    sh(&format!("bridge link set dev {host_end} hairpin on")).map(drop)
                })?;
                pod.ip_batch(&format!(
                    "link set lo up\nlink set eth0 up\naddr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n\
                     route add default via {gw4}\nroute add default via {gw6}\n"
                ))?;
            }
        }
        Ok(pod)
    }

    /// Deletes a pod's link, as a runtime does when the pod ends.
    pub fn unplug(&self, node: usize, pod: &Place) -> Result<()> {
        let node = self.nodes.get(node).context("no such node")?;
        node.host.ip_batch(&format!("link delete veth-{}\n", pod.name()))
    }

    /// Lets the router send an address (a prefix) to a node (0 or 1).
    pub fn route(&self, prefix: &str, node: usize) -> Result<()> {
        let node = self.nodes.get(node).context("no such node")?;
        let family = if prefix.contains(':') { Family::V6 } else { Family::V4 };
        self.router.ip_batch(&format!("route replace {prefix} via {}\n", node.host.ip(family)))
    }

    /// Another project's rules on both nodes: what netfilter's conntrack calls invalid is dropped, what it knows passes, new
    /// flows of the cluster and towards pods pass, and nothing else is forwarded.
    pub fn firewall(&self) -> Result<()> {
        for node in &self.nodes {
            for (iptables, pods, nodes) in [
                ("iptables-legacy", "10.244.0.0/16", "198.51.100.0/24"),
                ("ip6tables-legacy", "fd00:244::/32", "2001:db8:2::/64"),
            ] {
                for rule in [
                    "-P FORWARD DROP".to_owned(),
                    "-A FORWARD -m conntrack --ctstate INVALID -j DROP".to_owned(),
                    // Bridged frames pass here as well; conntrack does not track neighbour discovery.
                    "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED,UNTRACKED -j ACCEPT".to_owned(),
                    format!("-A FORWARD -m conntrack --ctstate NEW -d {pods} -j ACCEPT"),
                    format!("-A FORWARD -m conntrack --ctstate NEW -d {nodes} -j ACCEPT"),
                ] {
                    node.host.sh(&format!("{iptables} -w {rule}"))?;
                }
            }
        }
        Ok(())
    }

    /// Hides from netfilter what only crosses a bridge, as on a node without `br_netfilter`.
    pub fn bridges_without_netfilter(&self) -> Result<()> {
        for node in &self.nodes {
            for family in ["iptables", "ip6tables"] {
                // Not there: `br_netfilter` is not either.
                if node.host.run(|| Ok(Path::new("/proc/sys/net/bridge").exists()))? {
                    node.host.sysctl(&format!("bridge/bridge-nf-call-{family}"), "0")?;
                }
            }
        }
        Ok(())
    }

    /// Links, addresses and routes of everything but pods.
    fn wire(&self) -> Result<()> {
        let up = self.uplink.device();
        for place in [&self.client, &self.router, &self.fabric, &self.nodes[0].host, &self.nodes[1].host] {
            quiet_ipv6(place)?;
        }
        for host in [&self.router, &self.nodes[0].host, &self.nodes[1].host] {
            for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                host.sysctl(setting, "1")?;
            }
            for scope in ["all", "default"] {
                host.sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "1")?;
            }
            // Time-exceeded and the like are asserted by tests: no limit of their rate.
            host.sysctl("ipv4/icmp_ratelimit", "0")?;
            host.sysctl("ipv6/icmp/ratelimit", "0")?;
        }
        let mut fabric = String::from("link add br0 type bridge forward_delay 0 mcast_snooping 0\nlink set br0 up\n");
        for (port, place) in [("router", &self.router), ("n1", &self.nodes[0].host), ("n2", &self.nodes[1].host)] {
            writeln!(fabric, "link add {port} type veth peer name eth0 netns {}", place.netns())?;
            writeln!(fabric, "link set {port} master br0 up")?;
        }
        self.fabric.ip_batch(&fabric)?;
        self.router.ip_batch(&format!(
            "link set lo up\n{}addr add 198.51.100.1/24 dev {up}\naddr add 2001:db8:2::1/64 dev {up} nodad\n\
             link add eth1 type veth peer name eth0 netns {}\nlink set eth1 up\n\
             addr add 192.0.2.1/24 dev eth1\naddr add 2001:db8:1::1/64 dev eth1 nodad\n\
             route add 10.96.0.0/16 via 198.51.100.11\nroute add fd00:96::/112 via 2001:db8:2::11\n\
             route add 203.0.113.0/24 via 198.51.100.11\nroute add 2001:db8:ee::/64 via 2001:db8:2::11\n\
             route add 10.244.1.0/24 via 198.51.100.11\nroute add fd00:244:1::/64 via 2001:db8:2::11\n\
             route add 10.244.2.0/24 via 198.51.100.12\nroute add fd00:244:2::/64 via 2001:db8:2::12\n",
            self.uplink.setup(),
            self.client.netns()
        ))?;
        self.client.ip_batch(&format!(
            "link set lo up\nlink set eth0 up\naddr add 192.0.2.10/24 dev eth0\naddr add 2001:db8:1::10/64 dev eth0 nodad\n\
             addr add {}/24 dev eth0\naddr add {}/64 dev eth0 preferred_lft 0 nodad\n\
             route add default via 192.0.2.1\nroute add default via 2001:db8:1::1\n",
            Self::CLIENT_2.0,
            Self::CLIENT_2.1
        ))?;
        for (node, other) in [(&self.nodes[0], &self.nodes[1]), (&self.nodes[1], &self.nodes[0])] {
            let (n, o) = (node.number, other.number);
            let mut lines = format!(
                "link set lo up\n{}addr add {}/24 dev {up}\naddr add {}/64 dev {up} nodad\n\
                 route add default via 198.51.100.1\nroute add default via 2001:db8:2::1\n\
                 route add 10.244.{o}.0/24 via {}\nroute add fd00:244:{o}::/64 via {}\n",
                self.uplink.setup(),
                node.host.v4(),
                node.host.v6(),
                other.host.v4(),
                other.host.v6()
            );
            if self.links == PodLinks::Bridged {
                write!(
                    lines,
                    "link add cni0 type bridge forward_delay 0 mcast_snooping 0\nlink set cni0 up\n\
                     addr add 10.244.{n}.1/24 dev cni0\naddr add fd00:244:{n}::1/64 dev cni0 nodad\n"
                )?;
            }
            node.host.ip_batch(&lines)?;
        }
        self.overlay()
    }

    /// Leads pods of the other node over `over0`, where the lab has it.
    fn overlay(&self) -> Result<()> {
        for (node, other) in [(&self.nodes[0], &self.nodes[1]), (&self.nodes[1], &self.nodes[0])] {
            let (n, o) = (node.number, other.number);
            let kind = match self.uplink {
                Uplink::Plain | Uplink::Vlan | Uplink::Bond => return Ok(()),
                Uplink::Vxlan => {
                    format!("vxlan id 7 dstport 4789 local {} remote {}", node.host.v4(), other.host.v4())
                }
                Uplink::Tunnel => {
                    format!("ip6tnl mode any encaplimit none local {} remote {}", node.host.v6(), other.host.v6())
                }
                Uplink::WireGuard => "wireguard".to_owned(),
            };
            node.host.ip_batch(&format!(
                "link add over0 type {kind}\nlink set over0 up\n\
                 addr add 10.250.0.{n}/24 dev over0\naddr add fd00:250::{n}/64 dev over0 nodad\n\
                 route replace 10.244.{o}.0/24 via 10.250.0.{o} dev over0 onlink\n\
                 route replace fd00:244:{o}::/64 via fd00:250::{o} dev over0 onlink\n"
            ))?;
        }
        if self.uplink == Uplink::WireGuard { self.introduce() } else { Ok(()) }
    }

    /// Gives the nodes' `WireGuard` links keys, and tells each of the other.
    fn introduce(&self) -> Result<()> {
        const PORT: u16 = 51_820;
        let [first, second] = [0, 1].map(|node: usize| &self.nodes[node].host);
        for host in [first, second] {
            let key = sh("wg genkey")?;
            let mut command = shell::split(&format!("wg set over0 listen-port {PORT} private-key /proc/self/fd/0"));
            host.run(|| shell::feed(&mut command, &key))?;
        }
        for (host, other) in [(first, second), (second, first)] {
            let key = other.sh("wg show over0 public-key")?;
            let (key, address) = (key.trim(), other.v4());
            host.sh(&format!("wg set over0 peer {key} endpoint {address}:{PORT} allowed-ips 0.0.0.0/0,::/0"))?;
        }
        Ok(())
    }
}

/// Whether the kernel knows the links of an uplink.
pub fn has_uplink(uplink: Uplink) -> Result<bool> {
    let Some(kind) = uplink.kind() else { return Ok(true) };
    let scope = Scope::open()?;
    let netns = scope.netns("probe")?;
    sh(&format!("ip -n {netns} link add base type veth peer name other"))?;
    let base = if uplink == Uplink::Vlan { "link base " } else { "" };
    Ok(sh(&format!("ip -n {netns} link add {base}name probe type {kind}")).is_ok())
}

/// No duplicate address detection (an address would be unusable for a second) and no router advertisements.
pub fn quiet_ipv6(place: &Place) -> Result<()> {
    place.run(|| {
        for scope in ["all", "default"] {
            for setting in ["accept_dad", "accept_ra"] {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/{setting}"), "0")?;
            }
        }
        Ok(())
    })
}

fn v4(text: &str) -> Result<Ipv4Addr> {
    text.parse().with_context(|| text.to_owned())
}

fn v6(text: &str) -> Result<Ipv6Addr> {
    text.parse().with_context(|| text.to_owned())
}
