//! Nodes as they are met, and what becomes of their links.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::*;
use crate::links::state::{Address, DefaultRoute};

/// A node's network, described link by link.
#[derive(Default)]
struct Host {
    network: Network,
    pod_links: String,
    node_links: String,
    node_addresses: Option<BTreeSet<IpAddr>>,
    hooked: BTreeMap<u32, Role>,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefixed(text: &str) -> (IpAddr, u8) {
    let (address, length) = text.split_once('/').unwrap_or((text, "24"));
    (ip(address), length.parse().unwrap())
}

impl Host {
    /// A host whose Node object has an address.
    fn of(node: &str) -> Self {
        Self { node_addresses: Some(BTreeSet::from([ip(node)])), ..Self::default() }
    }

    /// Adds a link; `with` is a list of `peer-elsewhere`, `down`, `no-carrier`, `no-arp`, `no-header`, `unknown-header`,
    /// `master=N`, `default` and addresses, which may have a prefix length.
    fn link(mut self, index: u32, name: &str, kind: Kind, with: &str) -> Self {
        let mut link = Link {
            name: name.to_owned(),
            kind,
            header: Header::Ethernet,
            mac: Some([2, 0, 0, 0, 0, index as u8]),
            master: None,
            peer_elsewhere: false,
            up: true,
            running: true,
            carrier_ups: 1,
            arp: true,
            addresses: Vec::new(),
        };
        for word in with.split_whitespace() {
            match word {
                "peer-elsewhere" => link.peer_elsewhere = true,
                "down" => (link.up, link.running) = (false, false),
                "no-carrier" => link.running = false,
                "no-arp" => link.arp = false,
                "no-header" => link.header = Header::None,
                "unknown-header" => link.header = Header::Unknown,
                "default" => {
                    let source = link.addresses[0].ip;
                    self.network.defaults.push(DefaultRoute { link: index, source });
                }
                _ => {
                    if let Some(master) = word.strip_prefix("master=") {
                        link.master = Some(master.parse().unwrap());
                    } else {
                        let (ip, prefix_length) = prefixed(word);
                        link.addresses.push(Address { ip, source: true, prefix_length });
                    }
                }
            }
        }
        self.network.links.insert(index, link);
        self
    }

    fn classify(&self) -> BTreeMap<u32, Wanted> {
        classify(
            &self.network,
            Knowledge {
                pod_links: &self.pod_links.parse().unwrap(),
                node_links: &self.node_links.parse().unwrap(),
                node_addresses: self.node_addresses.as_ref(),
                hooked: &self.hooked,
            },
        )
    }

    /// Hooked links as `name=Role`.
    fn roles(&self) -> Vec<String> {
        self.classify().values().map(|wanted| format!("{}={:?}", wanted.name, wanted.role)).collect()
    }

    /// The IPv4 source of a link.
    fn source(&self, index: u32) -> Option<std::net::Ipv4Addr> {
        self.classify()[&index].source.v4
    }
}

#[test]
fn addresses_are_answered_for_where_neighbours_ask() {
    let host = Host::of("10.0.0.5")
        .link(2, "eth0", Kind::Physical, "10.0.0.5/20 2001:db8::5/64 default")
        .link(3, "eth1", Kind::Physical, "no-carrier")
        .link(4, "eth0.100", Kind::Vlan, "10.7.0.5")
        .link(5, "bond0", Kind::Bond, "10.8.0.5")
        .link(6, "flannel.1", Kind::Tunnel, "10.244.0.0/32")
        .link(7, "ipvlan0", Kind::Shared, "no-arp 10.9.0.5")
        .link(8, "veth1", Kind::Pair, "peer-elsewhere 10.244.1.1/32")
        .link(9, "wg0", Kind::Tunnel, "no-header 10.10.0.5");
    let links = host.classify();
    let segments = links.values().filter_map(|wanted| Some((wanted.name.as_str(), wanted.segment.as_ref()?)));
    let segments: Vec<String> = segments
        .map(|(name, Segment { running, prefixes, .. })| {
            let prefixes: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
            format!("{name} {running} {}", prefixes.join(","))
        })
        .collect();
    let want =
        ["eth0 true 10.0.0.0/20,2001:db8::/64", "eth1 false ", "eth0.100 true 10.7.0.0/24", "bond0 true 10.8.0.0/24"];
    assert_eq!(segments, want);
    assert_eq!(links[&2].segment.as_ref().unwrap().mac, [2, 0, 0, 0, 0, 2]);
}

#[test]
fn a_cloud_node_with_routed_pods() {
    // Calico: no address on the host's ends.
    let host = Host::of("10.0.0.5")
        .link(1, "lo", Kind::Loopback, "127.0.0.1")
        .link(2, "ens5", Kind::Physical, "10.0.0.5 default")
        .link(3, "cali1", Kind::Pair, "peer-elsewhere")
        .link(4, "vxlan.calico", Kind::Tunnel, "10.244.1.0")
        .link(5, "tunl0", Kind::Tunnel, "no-header down");
    assert_eq!(host.roles(), ["ens5=Node", "cali1=Pod", "vxlan.calico=Node", "tunl0=NodeL3"]);
    assert!(!host.classify()[&5].up);
    assert_eq!(host.source(3), Some([10, 0, 0, 5].into()), "the kernel falls back to the default route's");
    assert_eq!(host.source(4), Some([10, 244, 1, 0].into()));
}

#[test]
fn point_to_point_links_carry_the_gateway() {
    let host = Host::of("10.0.0.5").link(2, "eth0", Kind::Physical, "10.0.0.5 default").link(
        3,
        "veth1",
        Kind::Pair,
        "peer-elsewhere 10.244.1.1",
    );
    assert_eq!(host.roles(), ["eth0=Node", "veth1=Pod"]);
    assert_eq!(host.source(3), Some([10, 244, 1, 1].into()));
}

#[test]
fn a_bridge_of_pods_is_left_alone_and_its_ports_are_hooked() {
    let host = Host::of("10.0.0.5")
        .link(2, "eth0", Kind::Physical, "10.0.0.5 default")
        .link(3, "cni0", Kind::Bridge, "10.244.1.1")
        .link(4, "veth1", Kind::Pair, "peer-elsewhere master=3")
        .link(5, "tap0", Kind::Tun, "master=3");
    assert_eq!(host.roles(), ["eth0=Node", "veth1=Pod"]);
    assert_eq!(host.source(4), Some([10, 244, 1, 1].into()), "hairpins take the bridge's address");
}

#[test]
fn a_bridge_that_is_the_gateway_is_known_by_its_ports() {
    let host = |bridge: &str| {
        Host::of("10.0.0.5")
            .link(2, "eth0", Kind::Physical, "10.0.0.5 default")
            .link(3, "cni0", Kind::Bridge, bridge)
            .link(4, "veth1", Kind::Pair, "peer-elsewhere master=3")
            .classify()
    };
    let mac = [2, 0, 0, 0, 0, 3];
    assert_eq!(host("10.244.1.1")[&4].bridge, Some(Bridge { mac, v4: true, v6: false }));
    assert_eq!(host("10.244.1.1 fd00::1")[&4].bridge, Some(Bridge { mac, v4: true, v6: true }));
    assert_eq!(host("")[&4].bridge, None, "the gateway is elsewhere");
    assert_eq!(host("10.244.1.1")[&2].bridge, None);
}

#[test]
fn a_bridge_with_the_uplink_is_where_l3_ends() {
    let host = Host::of("10.0.0.5")
        .link(2, "eth0", Kind::Physical, "master=3")
        .link(3, "br0", Kind::Bridge, "10.0.0.5 default")
        .link(4, "veth1", Kind::Pair, "peer-elsewhere master=3");
    assert_eq!(host.roles(), ["br0=Node", "veth1=Pod"]);
    let unknown_node = Host { node_addresses: None, ..host };
    assert_eq!(unknown_node.roles(), ["br0=Node", "veth1=Pod"]);
}

#[test]
fn bonds_and_vlans() {
    let host = Host::of("10.0.0.5")
        .link(2, "eno1", Kind::Physical, "master=4")
        .link(3, "eno2", Kind::Physical, "master=4")
        .link(4, "bond0", Kind::Bond, "")
        .link(5, "bond0.100", Kind::Vlan, "10.0.0.5 default");
    assert_eq!(host.roles(), ["bond0=Node", "bond0.100=Node"]);
}

#[test]
fn a_port_of_a_bond_is_not_even_hooked_on_request() {
    let mut host =
        Host::of("10.0.0.5").link(2, "eno1", Kind::Physical, "master=4").link(4, "bond0", Kind::Bond, "10.0.0.5");
    host.node_links = "eno1,bond0".to_owned();
    assert_eq!(host.roles(), ["bond0=Node"]);
}

#[test]
fn a_port_of_a_vrf_is_where_l3_ends() {
    let host = Host::of("10.0.0.5").link(2, "eth0", Kind::Physical, "10.0.0.5 master=3").link(3, "blue", Kind::Vrf, "");
    assert_eq!(host.roles(), ["eth0=Node"]);
}

#[test]
fn nodes_that_are_containers_have_a_veth_as_uplink() {
    // kind: the uplink is known by the default route, or by the Node's address.
    let host = Host::of("172.18.0.2")
        .link(2, "eth0", Kind::Pair, "peer-elsewhere 172.18.0.2 default")
        .link(3, "eth1", Kind::Pair, "peer-elsewhere 172.18.9.2")
        .link(4, "veth1", Kind::Pair, "peer-elsewhere 10.244.1.1");
    assert_eq!(host.roles(), ["eth0=Node", "eth1=Pod", "veth1=Pod"]);
    let told = Host { node_links: "eth*".to_owned(), ..host };
    assert_eq!(told.roles(), ["eth0=Node", "eth1=Node", "veth1=Pod"]);
}

#[test]
fn a_veth_waits_for_the_node_object_and_stays_what_it_was_at_a_restart() {
    let mut host = Host::default().link(2, "eth0", Kind::Pair, "peer-elsewhere 172.18.0.2").link(
        3,
        "veth1",
        Kind::Pair,
        "peer-elsewhere 10.244.1.1",
    );
    assert_eq!(host.roles(), [] as [String; 0]);
    host.hooked = BTreeMap::from([(2, Role::Node), (3, Role::Pod)]);
    assert_eq!(host.roles(), ["eth0=Node", "veth1=Pod"]);
    host.hooked.clear();
    host.node_addresses = Some(BTreeSet::from([ip("172.18.0.2")]));
    assert_eq!(host.roles(), ["eth0=Node", "veth1=Pod"]);
}

#[test]
fn a_pair_within_the_host_is_left_alone() {
    let host = Host::of("10.0.0.5").link(2, "in", Kind::Pair, "").link(3, "out", Kind::Pair, "");
    assert_eq!(host.roles(), [] as [String; 0]);
}

#[test]
fn tunnels_without_a_header_get_the_programs_for_it() {
    let host = Host::of("10.0.0.5").link(2, "wg0", Kind::Tunnel, "no-header 10.9.0.1").link(
        3,
        "ib0",
        Kind::Physical,
        "unknown-header 10.8.0.1",
    );
    assert_eq!(host.roles(), ["wg0=NodeL3"]);
}

#[test]
fn what_carries_no_traffic_is_left_alone() {
    let host = Host::of("10.0.0.5")
        .link(2, "nodelocaldns", Kind::Other, "169.254.20.10 10.96.0.10")
        .link(3, "macvlan0", Kind::Shared, "")
        .link(4, "macvlan1", Kind::Shared, "10.0.0.6");
    assert_eq!(host.roles(), ["macvlan1=Node"]);
}

#[test]
fn patterns_say_no_as_well() {
    let mut host = Host::of("10.0.0.5")
        .link(2, "eth0", Kind::Physical, "10.0.0.5 default")
        .link(3, "eth1", Kind::Physical, "10.7.0.5")
        .link(4, "veth1", Kind::Pair, "peer-elsewhere")
        .link(5, "lxc1", Kind::Pair, "peer-elsewhere");
    host.node_links = "!eth1".to_owned();
    host.pod_links = "!lxc*".to_owned();
    assert_eq!(host.roles(), ["eth0=Node", "veth1=Pod"]);
}

#[test]
fn a_veth_uplink_in_a_bridge_is_named_with_patterns() {
    let mut host = Host::of("10.0.0.5")
        .link(2, "up", Kind::Pair, "peer-elsewhere master=4")
        .link(3, "veth1", Kind::Pair, "peer-elsewhere master=4")
        .link(4, "br0", Kind::Bridge, "10.0.0.5 default");
    host.pod_links = "!up".to_owned();
    assert_eq!(host.roles(), ["veth1=Pod", "br0=Node"]);
}

#[test]
fn local_addresses_leave_out_what_ipvs_mode_left() {
    let host = Host::of("10.0.0.5")
        .link(1, "lo", Kind::Loopback, "127.0.0.1")
        .link(2, "nodelocaldns", Kind::Other, "10.96.0.10")
        .link(3, "kube-ipvs0", Kind::Other, "10.96.0.1 10.96.0.10");
    assert_eq!(local_addresses(&host.network), BTreeSet::from([ip("127.0.0.1"), ip("10.96.0.10")]));
}

#[test]
fn sources_prefer_what_the_default_route_names() {
    let mut host = Host::of("10.0.0.5").link(2, "eth0", Kind::Physical, "10.0.0.4 10.0.0.5 2001:db8::5");
    host.network.defaults.push(DefaultRoute { link: 2, source: ip("10.0.0.5") });
    let source = host.classify()[&2].source;
    assert_eq!(source.v4, Some([10, 0, 0, 5].into()));
    assert_eq!(source.v6.map(IpAddr::from), Some(ip("2001:db8::5")));
}
