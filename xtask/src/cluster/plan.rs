//! Names and addresses of a cluster: a function of its options and its slot, which no other living cluster has.
//!
//! ```text
//!  this machine ── link ── hub ── bridge ── n1  n2  n3 ...      each a network namespace
//!                           └──── client                        outside of the nodes' network, behind a router
//! ```
//! The hub is the router of the nodes' network, and etcd, controller manager and scheduler run there; the API server is
//! a static pod of `n1`. Slot `s` owns:
//!
//! | | IPv4 | IPv6 |
//! |---|---|---|
//! | pods of node `k` | `10.(64+s).k.0/24` | `fd00:c1:s:1kk::/64` |
//! | Services | `10.(96+s).0.0/16` | `fd00:c1:s:5::/108` |
//! | nodes; `.1` hub, `.(10+k)` node `k`, from `.200` on LoadBalancers | `10.(128+s).0.0/24` | `fd00:c1:s:1::/64` |
//! | client; `.1` hub, `.2` client | `10.(160+s).1.0/24` | `fd00:c1:s:2::/64` |
//! | this machine; `.1` hub, `.2` machine | `10.(128+s).2.0/24` | `fd00:c1:s:3::/64` |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::options::{Cni, Families, Name, Options, Proxy, Sockets};

/// How many clusters can exist at a time.
pub const SLOTS: u8 = 32;
/// Port of the API server, on the first node.
pub const API_PORT: u16 = 6443;
const ZONES: [&str; 3] = ["zone-a", "zone-b", "zone-c"];

/// A cluster to be, or one that is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The cluster's name.
    pub name: Name,
    /// What tells its addresses and links from other clusters'.
    pub slot: u8,
    /// Its address families.
    pub families: Families,
    /// How pods are connected.
    pub cni: Cni,
    /// What makes Services work.
    pub proxy: Proxy,
    /// Culvert's socket mode.
    pub sockets: Sockets,
    /// Services of type LoadBalancer get addresses, and they are announced.
    pub loadbalancers: bool,
    /// How many nodes it has.
    pub size: u8,
}

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// One of a cluster's networks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Network {
    /// Where the nodes are, on the bridge.
    Nodes,
    /// Where the outside client is.
    Client,
    /// The link to this machine.
    Machine,
}

/// An address with the length of its network's prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefix {
    /// The address.
    pub address: IpAddr,
    /// Bits of the prefix.
    pub length: u8,
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}/{}", self.address, self.length)
    }
}

/// A place of the cluster: a network namespace with processes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The router between all, with the control plane.
    Hub,
    /// The client outside.
    Client,
    /// The node of that number, from 1.
    Node(u8),
}

impl Place {
    /// Its short name, and a node's own name.
    pub fn name(self) -> String {
        match self {
            Self::Hub => "hub".to_owned(),
            Self::Client => "client".to_owned(),
            Self::Node(number) => format!("n{number}"),
        }
    }
}

impl Plan {
    /// The plan of a cluster with these options, in this slot.
    pub fn new(options: &Options, slot: u8) -> Self {
        Self {
            name: options.name.clone(),
            slot,
            families: options.families,
            cni: options.cni,
            proxy: options.proxy,
            sockets: options.sockets,
            loadbalancers: options.loadbalancers,
            size: options.nodes,
        }
    }

    /// The numbers of its nodes.
    pub fn nodes(&self) -> impl Iterator<Item = u8> + Clone + use<> {
        1..=self.size
    }

    /// All places.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        [Place::Hub, Place::Client].into_iter().chain(self.nodes().map(Place::Node))
    }

    /// The place that a user names.
    pub fn place(&self, name: &str) -> Option<Place> {
        self.places().find(|place| place.name() == name)
    }

    /// The address families, the primary one first.
    pub fn families(&self) -> &'static [Family] {
        match self.families {
            Families::V4 => &[Family::V4],
            Families::V6 => &[Family::V6],
            Families::Dual => &[Family::V4, Family::V6],
        }
    }

    fn primary(&self) -> Family {
        self.families()[0]
    }

    /// What all names of this cluster on this machine begin with.
    pub fn prefix(&self) -> String {
        prefix(&self.name)
    }

    /// The name of a place's network namespace and cgroup on this machine.
    pub fn machine_name(&self, place: Place) -> String {
        format!("{}{}", self.prefix(), place.name())
    }

    /// The name of this machine's end of the link to the hub.
    pub fn machine_link(&self) -> String {
        format!("cvc{}", self.slot)
    }

    fn at(&self, network: Network, host: u8, family: Family) -> Prefix {
        let (second, index) = match network {
            Network::Nodes => (128, 0),
            // Upstream's tests take the /16 around a node for the nodes' network, and want to see clients from outside.
            Network::Client => (160, 1),
            Network::Machine => (128, 2),
        };
        match family {
            Family::V4 => Prefix { address: Ipv4Addr::new(10, second + self.slot, index, host).into(), length: 24 },
            Family::V6 => self.v6(u16::from(index) + 1, u16::from(host), 64),
        }
    }

    fn v6(&self, subnet: u16, host: u16, length: u8) -> Prefix {
        let address = Ipv6Addr::new(0xfd00, 0xc1, u16::from(self.slot), subnet, 0, 0, 0, host);
        Prefix { address: address.into(), length }
    }

    /// A network itself.
    pub fn network(&self, network: Network, family: Family) -> Prefix {
        self.at(network, 0, family)
    }

    /// The hub's address in a network.
    pub fn hub(&self, network: Network, family: Family) -> Prefix {
        self.at(network, 1, family)
    }

    /// A node's address.
    pub fn node(&self, node: u8, family: Family) -> Prefix {
        self.at(Network::Nodes, 10 + node, family)
    }

    /// A node's addresses, as kubelet's `--node-ip` takes them.
    pub fn node_ips(&self, node: u8) -> String {
        self.join(|family| self.node(node, family).address.to_string())
    }

    /// The address of the client, or of this machine, in the network that it shares with the hub.
    pub fn peer(&self, network: Network, family: Family) -> Prefix {
        self.at(network, 2, family)
    }

    /// The pods of one node.
    pub fn node_pods(&self, node: u8, family: Family) -> Prefix {
        match family {
            Family::V4 => Prefix { address: Ipv4Addr::new(10, 64 + self.slot, node, 0).into(), length: 24 },
            Family::V6 => self.v6(0x100 + u16::from(node), 0, 64),
        }
    }

    /// The pods of all nodes.
    pub fn pods(&self) -> String {
        self.join(|family| self.all_pods(family).to_string())
    }

    /// The pods of all nodes, of one family.
    pub fn all_pods(&self, family: Family) -> Prefix {
        match family {
            Family::V4 => Prefix { address: Ipv4Addr::new(10, 64 + self.slot, 0, 0).into(), length: 16 },
            Family::V6 => self.v6(0x100, 0, 56),
        }
    }

    /// The range of ClusterIPs.
    pub fn services(&self) -> String {
        self.join(|family| {
            let length = if family == Family::V4 { 16 } else { 108 };
            Prefix { address: self.service(0, family), length }.to_string()
        })
    }

    fn service(&self, host: u8, family: Family) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(10, 96 + self.slot, 0, host).into(),
            Family::V6 => self.v6(5, u16::from(host), 108).address,
        }
    }

    /// Addresses of the nodes' network that nobody has, for Services of type LoadBalancer: a range of each family.
    pub fn load_balancers(&self) -> Vec<String> {
        let at = |family, host| self.at(Network::Nodes, host, family).address;
        self.families().iter().map(|family| format!("{}-{}", at(*family, 200), at(*family, 249))).collect()
    }

    /// The ClusterIP of the API server.
    pub fn kubernetes_service(&self) -> IpAddr {
        self.service(1, self.primary())
    }

    /// The ClusterIPs of DNS, one for each family.
    pub fn dns_services(&self) -> Vec<IpAddr> {
        self.families().iter().map(|family| self.service(10, *family)).collect()
    }

    /// The address of the API server: the first node's.
    pub fn api(&self) -> IpAddr {
        self.node(1, self.primary()).address
    }

    /// The address of etcd, in the hub.
    pub fn etcd(&self) -> IpAddr {
        self.hub(Network::Nodes, self.primary()).address
    }

    /// The API server's URL.
    pub fn api_url(&self) -> String {
        format!("https://{}:{API_PORT}", bracketed(self.api()))
    }

    fn join(&self, part: impl Fn(Family) -> String) -> String {
        self.families().iter().map(|family| part(*family)).collect::<Vec<_>>().join(",")
    }
}

/// A node's zone.
pub fn zone(node: u8) -> &'static str {
    ZONES[usize::from(node - 1) % ZONES.len()]
}

/// What all names of a cluster on this machine begin with.
pub fn prefix(name: &Name) -> String {
    format!("cvc-{name}-")
}

/// An address as it stands in a URL.
pub fn bracketed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

#[cfg(test)]
pub mod tests {
    use std::collections::HashSet;

    use super::*;

    /// The plan of a cluster in slot 3 with two nodes.
    pub fn plan(families: Families) -> Plan {
        let options = Options {
            name: "test".parse().unwrap(),
            nodes: 2,
            proxy: Proxy::Culvert,
            families,
            cni: Cni::Bridge,
            sockets: Sockets::All,
            loadbalancers: false,
        };
        Plan::new(&options, 3)
    }

    #[test]
    fn addresses_are_as_documented() {
        let plan = plan(Families::Dual);
        assert_eq!(plan.node(2, Family::V4).to_string(), "10.131.0.12/24");
        assert_eq!(plan.node_ips(2), "10.131.0.12,fd00:c1:3:1::c");
        assert_eq!(plan.node_pods(2, Family::V4).to_string(), "10.67.2.0/24");
        assert_eq!(plan.node_pods(2, Family::V6).to_string(), "fd00:c1:3:102::/64");
        assert_eq!(plan.pods(), "10.67.0.0/16,fd00:c1:3:100::/56");
        assert_eq!(plan.services(), "10.99.0.0/16,fd00:c1:3:5::/108");
        assert_eq!(plan.kubernetes_service().to_string(), "10.99.0.1");
        assert_eq!(plan.dns_services().len(), 2);
        assert_eq!(plan.load_balancers(), ["10.131.0.200-10.131.0.249", "fd00:c1:3:1::c8-fd00:c1:3:1::f9"]);
        assert_eq!(plan.peer(Network::Machine, Family::V4).to_string(), "10.131.2.2/24");
        assert_eq!(plan.peer(Network::Client, Family::V4).to_string(), "10.163.1.2/24");
    }

    #[test]
    fn one_family_is_alone() {
        let plan = plan(Families::V6);
        assert_eq!(plan.services(), "fd00:c1:3:5::/108");
        assert_eq!(plan.api_url(), "https://[fd00:c1:3:1::b]:6443");
    }

    #[test]
    fn slots_share_nothing() {
        let mut seen = HashSet::new();
        for slot in 0..SLOTS {
            let plan = Plan { slot, ..plan(Families::Dual) };
            for text in [plan.pods(), plan.services(), plan.machine_link(), plan.api_url()] {
                for part in text.split(',') {
                    assert!(seen.insert(part.to_owned()), "{part} twice");
                }
            }
        }
    }

    #[test]
    fn zones_have_as_many_nodes() {
        let zones: Vec<_> = (1..=6).map(zone).collect();
        assert_eq!(zones, ["zone-a", "zone-b", "zone-c", "zone-a", "zone-b", "zone-c"]);
    }

    #[test]
    fn places_have_names() {
        let plan = plan(Families::V4);
        assert_eq!(plan.place("n2"), Some(Place::Node(2)));
        assert_eq!(plan.place("n3"), None);
        assert_eq!(plan.machine_name(Place::Hub), "cvc-test-hub");
        assert!(plan.machine_link().len() < 16);
    }
}
