//! The world that the scripts play in: a Service of every kind, in both families and three protocols.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use culvert_abi::{address, audience, backend, link, proto};

use super::Ports;
use crate::place::Family;
use crate::world::{Backend, Frontend, Link, Table, View, World};

/// Where the packets are seen: the loopback of the namespace, which `BPF_PROG_TEST_RUN` takes.
pub const LINK: u32 = 1;

/// The link address of the bridge that this link is a port of.
pub const BRIDGE: [u8; 6] = [2, 0, 0, 0xb, 0, 1];

/// Few enough source ports to run out of.
pub const PORTS: Ports = Ports { low: 61_000, high: 61_019 };

/// The world, and who may play in it.
#[derive(Clone, Debug)]
pub struct Scene {
    /// What the maps hold.
    pub world: World,
    /// All frontends.
    pub frontends: Vec<(SocketAddr, u8)>,
    /// Addresses of ours that serve less than one may think.
    pub corners: Vec<IpAddr>,
    /// Backends, by family.
    pub backends: [Vec<SocketAddr>; 2],
}

/// An address of a group: `10.G.0.N` or `fd00:G::N`.
fn ip(family: Family, group: u8, n: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, group, 0, n).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, group.into(), 0, 0, 0, 0, 0, n.into()).into(),
    }
}

/// The groups of addresses.
mod group {
    pub const LOCAL: u8 = 1;
    pub const REMOTE: u8 = 2;
    pub const OUTSIDE: u8 = 50;
    pub const CLUSTER: u8 = 96;
    pub const EXTERNAL: u8 = 97;
    pub const CORNER: u8 = 98;
    pub const NODE: u8 = 99;
}

/// The pods of this node.
pub fn pods(family: Family) -> [IpAddr; 4] {
    // The first two are backends as well: they meet themselves.
    [1, 2, 101, 102].map(|n| ip(family, group::LOCAL, n))
}

/// Clients elsewhere; the last one is outside of the source ranges.
pub fn outsiders(family: Family) -> [IpAddr; 3] {
    [1, 2, 200].map(|n| ip(family, group::OUTSIDE, n))
}

/// Addresses that no packet should come from.
pub fn impostors(family: Family) -> [IpAddr; 4] {
    match family {
        Family::V4 => ["127.0.0.1", "0.0.0.0", "224.0.0.5", "255.255.255.255"].map(|ip| ip.parse().unwrap_or(ip4())),
        Family::V6 => ["::1", "::", "ff02::5", "ff05::2"].map(|ip| ip.parse().unwrap_or(ip4())),
    }
}

fn ip4() -> IpAddr {
    Ipv4Addr::LOCALHOST.into()
}

/// The address that translated sources get.
pub fn node(family: Family) -> IpAddr {
    ip(family, group::NODE, 1)
}

/// What is added to a Service's id for the table of its local list.
const LOCAL_TABLES: u32 = 1_000;

/// A Service of the scene.
struct Kind {
    /// The n-th local (`true`) or remote backends.
    backends: &'static [(bool, u8)],
    /// Size class of its table.
    class: u8,
    affinity: u32,
    ranges: u32,
    audiences: Audiences,
}

enum Audiences {
    /// All balance; strangers have their address replaced.
    All,
    /// All balance, at the ClusterIP over the local list. The last backend, a local one, is in that list alone.
    InternalLocal,
    /// All balance, strangers over the local list, but at the ClusterIP. The last backend is in that list alone.
    ExternalLocal,
    /// Pods balance, the rest is dropped.
    Pods,
    Reject,
    Drop,
    /// A table that is not there, and one that is empty.
    NoTable,
    Empty,
}

const PLAIN: Kind = Kind { backends: &[], class: 0, affinity: 0, ranges: 0, audiences: Audiences::All };

/// Two remote backends, a local one of both lists, and one of the local list alone.
const TWO_LISTS: Kind =
    Kind { backends: &[(true, 1), (false, 1), (false, 2), (true, 3)], class: 1, affinity: 60, ..PLAIN };

const KINDS: [Kind; 18] = [
    Kind { backends: &[(true, 1)], ..PLAIN },
    Kind { backends: &[(false, 1)], ..PLAIN },
    Kind { backends: &[(true, 1), (false, 1), (true, 2), (false, 2), (false, 3)], class: 1, ..PLAIN },
    Kind { backends: &[(true, 1), (true, 2), (false, 1), (false, 2)], ..PLAIN },
    Kind { backends: &[(true, 1), (false, 1), (false, 2), (true, 3)], class: 1, affinity: 60, ..PLAIN },
    Kind { backends: &[(true, 4), (false, 4), (false, 5)], affinity: 10_800, ..PLAIN },
    Kind { backends: &[(true, 1), (false, 3)], class: 2, ranges: 1, ..PLAIN },
    Kind { backends: &[(true, 1), (false, 1)], class: 1, ranges: 2, ..PLAIN },
    Kind { audiences: Audiences::Reject, ..PLAIN },
    Kind { audiences: Audiences::Drop, ..PLAIN },
    Kind { backends: &[(true, 1), (false, 2)], class: 1, audiences: Audiences::Pods, ..PLAIN },
    Kind { audiences: Audiences::NoTable, ..PLAIN },
    Kind { audiences: Audiences::Empty, ..PLAIN },
    Kind { backends: &[(true, 1), (true, 2)], class: 1, ..PLAIN },
    Kind { backends: &[(false, 1), (false, 2), (false, 3)], class: 1, ..PLAIN },
    Kind { backends: &[(true, 2)], ..PLAIN },
    Kind { audiences: Audiences::InternalLocal, ..TWO_LISTS },
    Kind { audiences: Audiences::ExternalLocal, ..TWO_LISTS },
];

impl Scene {
    /// The backends of a frontend's Service, but for one that is in its local list alone.
    pub fn backends_of(&self, frontend: SocketAddr, proto: u8) -> &[u32] {
        let table = self.world.frontends.get(&(frontend, proto)).and_then(|row| self.world.tables.get(&row.service));
        table.map_or(&[], |table| &table.list)
    }
}

/// Builds the scene.
pub fn scene() -> Scene {
    let mut scene =
        Scene { world: World::default(), frontends: Vec::new(), corners: Vec::new(), backends: [vec![], vec![]] };
    for (f, family) in Family::BOTH.into_iter().enumerate() {
        for (p, proto) in [proto::TCP, proto::UDP, proto::SCTP].into_iter().enumerate() {
            for (k, kind) in KINDS.iter().enumerate() {
                let service = (1 + f * 100 + p * 30 + k) as u32;
                add(&mut scene, family, proto, k as u8 + 1, service, kind);
            }
        }
        scene.backends[f] =
            scene.world.backends.values().map(|b| b.at).filter(|at| Family::of(at.ip()) == family).collect();
        scene.backends[f].sort_unstable();
        scene.backends[f].dedup();
        addresses(&mut scene, family);
    }
    let v4 = match node(Family::V4) {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    let v6 = match node(Family::V6) {
        IpAddr::V6(ip) => ip,
        IpAddr::V4(_) => Ipv6Addr::UNSPECIFIED,
    };
    let flags = link::POD | link::BRIDGE_V4 | link::BRIDGE_V6;
    scene.world.links.insert(LINK, Link { v4, v6, flags, bridge: BRIDGE, mac: [0; 6] });
    scene.frontends = scene.world.frontends.keys().copied().collect();
    scene
}

fn add(scene: &mut Scene, family: Family, proto: u8, n: u8, service: u32, kind: &Kind) {
    let two_lists = matches!(kind.audiences, Audiences::InternalLocal | Audiences::ExternalLocal);
    let (mut list, mut local_list) = (Vec::new(), Vec::new());
    for (i, (local, backend)) in kind.backends.iter().enumerate() {
        let group = if *local { group::LOCAL } else { group::REMOTE };
        let at = SocketAddr::new(ip(family, group, *backend), 8080);
        let mut row = Backend::new(at, service);
        if !local {
            row.flags &= !backend::LOCAL;
        }
        let id = service * 8 + i as u32;
        if two_lists && i + 1 == kind.backends.len() {
            row.flags |= backend::NOT_IN_CLUSTER_LIST;
        } else {
            list.push(id);
        }
        if *local {
            local_list.push(id);
        } else if two_lists {
            row.flags |= backend::NOT_IN_LOCAL_LIST;
        }
        scene.world.backends.insert(id, row);
    }
    let table = |list: &[u32]| if kind.class == 0 { Table::list(list) } else { Table::maglev(list, kind.class) };
    if !matches!(kind.audiences, Audiences::NoTable) {
        scene.world.tables.insert(service, table(&list));
    }
    if two_lists {
        scene.world.tables.insert(service + LOCAL_TABLES, table(&local_list));
    }
    let balance = View::table(service);
    let mut frontend = Frontend::new(service, balance);
    frontend.affinity = kind.affinity;
    frontend.ranges = kind.ranges;
    frontend.views = match kind.audiences {
        Audiences::Pods => [balance, View::DROP, View::DROP],
        Audiences::Reject => [View::REJECT; 3],
        Audiences::Drop => [View::DROP; 3],
        _ => [balance, balance, View { replace: true, ..balance }],
    };
    // Everyone has a ClusterIP and an external address of its own; all share the node's address.
    let cluster = SocketAddr::new(ip(family, group::CLUSTER, n), 80);
    let external = SocketAddr::new(ip(family, group::EXTERNAL, n), 80);
    let port = SocketAddr::new(node(family), 30_000 + u16::from(n));
    // A client that sticks to what was drawn at random has one way there: of a draw that ends in a collision nobody sees what
    // it was.
    let names = if kind.affinity != 0 && kind.class == 0 { vec![cluster] } else { vec![cluster, external, port] };
    for name in names {
        scene.world.frontends.insert((name, proto), frontend.clone());
    }
    // The external address keeps the client's.
    if let Some(frontend) = scene.world.frontends.get_mut(&(external, proto)) {
        frontend.views[audience::EXTERNAL].replace = false;
    }
    let here = View { local_list: true, ..View::table(service + LOCAL_TABLES) };
    let over_local = match kind.audiences {
        Audiences::InternalLocal => vec![(cluster, [here, here, View { replace: true, ..here }])],
        Audiences::ExternalLocal => [external, port].map(|name| (name, [balance, balance, here])).to_vec(),
        _ => vec![],
    };
    for (name, views) in over_local {
        if let Some(frontend) = scene.world.frontends.get_mut(&(name, proto)) {
            frontend.views = views;
        }
    }
}

fn addresses(scene: &mut Scene, family: Family) {
    let world = &mut scene.world;
    for n in 1..=KINDS.len() as u8 {
        world.addresses.insert(ip(family, group::CLUSTER, n), address::FRONTEND | address::REFUSE);
        world.addresses.insert(ip(family, group::EXTERNAL, n), address::FRONTEND);
    }
    world.addresses.insert(node(family), address::FRONTEND | address::SOURCE);
    let corners =
        [address::LINGER, address::REFUSE, address::SOURCE, address::FRONTEND | address::SOURCE | address::REFUSE];
    for (n, meaning) in (1..).zip(corners) {
        let ip = ip(family, group::CORNER, n);
        world.addresses.insert(ip, meaning);
        scene.corners.push(ip);
    }
    let nets = |list: &[&str]| list.iter().filter_map(|net| net.parse().ok()).collect::<Vec<ipnet::IpNet>>();
    let (first, second): (&[&str], &[&str]) = match family {
        Family::V4 => (&["10.50.0.0/25", "10.1.0.0/24"], &["10.50.0.1/32", "10.0.0.0/15"]),
        Family::V6 => (&["fd00:32::/121", "fd00:1::/64"], &["fd00:32::1/128", "fd00::/31"]),
    };
    world.ranges.entry(1).or_default().extend(nets(first));
    world.ranges.entry(2).or_default().extend(nets(second));
}
