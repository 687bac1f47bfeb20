//! Which links are hooked, as what, and with which source addresses (pure).
//!
//! | link | is |
//! |---|---|
//! | loopback, port of a bond, header that the programs do not know | left alone |
//! | matched by `--pod-links` or `--node-links` | what the option says |
//! | veth or netkit in a bridge or under Open vSwitch | pod side |
//! | other ports of a bridge | left alone: the bridge is where L3 ends |
//! | veth or netkit with a Node address or the default route | node side |
//! | other veth or netkit whose peer is in another namespace (ptp, Calico, cloud CNIs) | pod side |
//! | network card, bond, VLAN, tunnel, tun | node side |
//! | bridge with a Node address or the default route, or with an address and a port that is no pod's | node side |
//! | macvlan or ipvlan with an address | node side |
//!
//! A veth of which only the addresses of the Node object would tell what it is waits until they are known; at a restart
//! it stays what it was.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{
    Direction, Patterns,
    state::{Header, Kind, Link, Network},
};

/// What a hooked link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The host's end of a pod's link.
    Pod,
    /// A link to other machines, with Ethernet headers.
    Node,
    /// A link to other machines, without a link-layer header.
    NodeL3,
}

/// What a link is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The link's name.
    pub name: String,
    /// Which programs.
    pub role: Role,
    /// The kernel's source address there, for each family that has one.
    pub source: Source,
    /// Of a pod link in a bridge that is the pods' gateway: that bridge.
    pub bridge: Option<Bridge>,
    /// Set up: a node link that is not is hooked only when it is.
    pub up: bool,
    /// Of a node link whose neighbours ask for link addresses: what they are told.
    pub segment: Option<Segment>,
}

/// A link on which addresses can be answered for that it does not carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its link-layer address.
    pub mac: [u8; 6],
    /// It can carry packets.
    pub running: bool,
    /// How often its carrier came.
    pub carrier_ups: u32,
    /// The prefixes that are connected to it.
    pub prefixes: BTreeSet<IpNet>,
}

/// A bridge that its ports' IP packets can be handed to, to be routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Its link-layer address.
    pub mac: [u8; 6],
    /// It has an IPv4 address.
    pub v4: bool,
    /// It has an IPv6 address that is not link-local.
    pub v6: bool,
}

/// Source addresses of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// IPv4.
    pub v4: Option<std::net::Ipv4Addr>,
    /// IPv6.
    pub v6: Option<std::net::Ipv6Addr>,
}

/// What is known beside the network itself.
#[derive(Clone, Copy, Debug)]
pub struct Knowledge<'a> {
    /// `--pod-links`.
    pub pod_links: &'a Patterns,
    /// `--node-links`.
    pub node_links: &'a Patterns,
    /// Addresses of this node's Node object; `None` until it was seen.
    pub node_addresses: Option<&'a BTreeSet<IpAddr>>,
    /// What links were hooked as, by ifindex.
    pub hooked: &'a BTreeMap<u32, Role>,
}

impl Role {
    /// The program for a direction.
    pub const fn program(self, direction: Direction) -> &'static str {
        match (self, direction) {
            (Self::Pod, Direction::Ingress) => "pod_ingress",
            (Self::Pod, Direction::Egress) => "pod_egress",
            (Self::Node, Direction::Ingress) => "node_ingress",
            (Self::Node, Direction::Egress) => "node_egress",
            (Self::NodeL3, Direction::Ingress) => "node_ingress_l3",
            (Self::NodeL3, Direction::Egress) => "node_egress_l3",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Pod,
    Node,
}

/// The links that are to be hooked, by ifindex.
pub fn classify(network: &Network, known: Knowledge<'_>) -> BTreeMap<u32, Wanted> {
    let view = View { network, known };
    let wanted = network.links.iter().filter_map(|(index, link)| {
        let role = match (view.side(*index, link)?, link.header) {
            (Side::Pod, Header::Ethernet) => Role::Pod,
            (Side::Node, Header::Ethernet) => Role::Node,
            (Side::Node, Header::None) => Role::NodeL3,
            _ => return None,
        };
        let bridge = if role == Role::Pod { view.gateway(link) } else { None };
        let source = view.source(*index, link);
        let segment = if role == Role::Node { segment(link) } else { None };
        Some((*index, Wanted { name: link.name.clone(), role, source, bridge, up: link.up, segment }))
    });
    wanted.collect()
}

/// kube-proxy in its mode ipvs gave this link all ClusterIPs; it may have been left behind.
const IPVS_LINK: &str = "kube-ipvs0";

/// The addresses that the node's links carry: no port of theirs is refused, and no ClusterIP among them translated.
pub fn local_addresses(network: &Network) -> BTreeSet<IpAddr> {
    let links = network.links.values().filter(|link| link.name != IPVS_LINK);
    links.flat_map(|link| link.addresses.iter().map(|address| address.ip)).collect()
}

/// Tunnels are left out: who is at their other end has routes, and is nobody's neighbour.
fn segment(link: &Link) -> Option<Segment> {
    if !link.arp || matches!(link.kind, Kind::Tunnel | Kind::Tun) {
        return None;
    }
    let net = |address: &super::state::Address| Some(IpNet::new(address.ip, address.prefix_length).ok()?.trunc());
    let prefixes = link.addresses.iter().filter_map(net).collect();
    let Link { running, carrier_ups, .. } = *link;
    Some(Segment { mac: link.mac?, running, carrier_ups, prefixes })
}

struct View<'a> {
    network: &'a Network,
    known: Knowledge<'a>,
}

impl View<'_> {
    fn side(&self, index: u32, link: &Link) -> Option<Side> {
        let master = link.master.and_then(|index| self.network.links.get(&index)).map(|master| master.kind);
        if link.kind == Kind::Loopback || master == Some(Kind::Bond) {
            return None;
        }
        let pod = self.known.pod_links.decide(&link.name);
        let node = self.known.node_links.decide(&link.name);
        match (pod, node) {
            (Some(true), _) => return Some(Side::Pod),
            (_, Some(true)) => return Some(Side::Node),
            _ => {}
        }
        let side = self.guess(index, link, master)?;
        let excluded = if side == Side::Pod { pod } else { node };
        (excluded != Some(false)).then_some(side)
    }

    fn guess(&self, index: u32, link: &Link, master: Option<Kind>) -> Option<Side> {
        let port = master.is_some_and(|master| master != Kind::Vrf);
        if port {
            return (link.kind == Kind::Pair && link.peer_elsewhere).then_some(Side::Pod);
        }
        match link.kind {
            Kind::Physical | Kind::Bond | Kind::Vlan | Kind::Tunnel | Kind::Tun => Some(Side::Node),
            Kind::Shared => (!link.addresses.is_empty()).then_some(Side::Node),
            Kind::Bridge => (self.leads_out(index, link) || self.joins(index, link)).then_some(Side::Node),
            Kind::Pair if self.leads_out(index, link) => Some(Side::Node),
            Kind::Pair if !link.peer_elsewhere => None,
            Kind::Pair if self.known.node_addresses.is_some() => Some(Side::Pod),
            Kind::Pair => Some(match self.known.hooked.get(&index)? {
                Role::Pod => Side::Pod,
                Role::Node | Role::NodeL3 => Side::Node,
            }),
            Kind::Vrf | Kind::Loopback | Kind::Other => None,
        }
    }

    /// The default route or an address of the Node object.
    fn leads_out(&self, index: u32, link: &Link) -> bool {
        let carries = |addresses: &BTreeSet<IpAddr>| link.addresses.iter().any(|own| addresses.contains(&own.ip));
        self.network.defaults.iter().any(|route| route.link == index) || self.known.node_addresses.is_some_and(carries)
    }

    /// A bridge with an address that joins pods, or nothing, to the outside.
    fn joins(&self, index: u32, link: &Link) -> bool {
        let outside = |port: &Link| {
            let kind = matches!(port.kind, Kind::Physical | Kind::Bond | Kind::Vlan | Kind::Tunnel);
            let excluded = port.kind == Kind::Pair && self.known.pod_links.decide(&port.name) == Some(false);
            port.master == Some(index) && (kind || excluded)
        };
        link.addresses.iter().any(|address| address.source) && self.network.links.values().any(outside)
    }

    /// The bridge that a link is a port of, if it has addresses.
    fn gateway(&self, link: &Link) -> Option<Bridge> {
        let bridge = self.network.links.get(&link.master?).filter(|master| master.kind == Kind::Bridge)?;
        let has = |v4: bool| bridge.addresses.iter().any(|address| address.source && address.ip.is_ipv4() == v4);
        let (v4, v6) = (has(true), has(false));
        (v4 || v6).then_some(Bridge { mac: bridge.mac?, v4, v6 })
    }

    /// The source addresses of packets that leave by a link: the link's own, its bridge's, the default route's, or any.
    fn source(&self, index: u32, link: &Link) -> Source {
        let master = link.master.and_then(|index| self.network.links.get(&index));
        let near = link.addresses.iter().chain(master.into_iter().flat_map(|master| &master.addresses));
        let any = self.network.links.values().flat_map(|link| &link.addresses);
        // A source that the default route names beats the link's first address.
        let defaults = self.network.defaults.iter();
        let named = defaults.clone().filter(|route| route.link == index).map(|route| route.source);
        let candidates: Vec<IpAddr> = named
            .chain(near.filter(|address| address.source).map(|address| address.ip))
            .chain(defaults.map(|route| route.source))
            .chain(any.filter(|address| address.source).map(|address| address.ip))
            .collect();
        Source {
            v4: candidates.iter().find_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None }),
            v6: candidates.iter().find_map(|ip| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None }),
        }
    }
}

#[cfg(test)]
#[path = "classify_tests.rs"]
mod tests;
