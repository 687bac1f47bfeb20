//! The packet programs on the links of pods, under real sockets: checksums that the sender leaves to a network card,
//! segments that travel together, fragments, and what a client is told.
//!
//! ```text
//!  pod a ──veth──┐
//!  pod b ──veth──┴─ node (routes between them, serves in its host network)
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use culvert_abi::{Config, Reason, address, link, proto, socket_mode};
use culvert_tests::place::{Family, Place};
use culvert_tests::scope::Scope;
use culvert_tests::traffic::{Ask, Outcome, Server};
use culvert_tests::world::{Backend, Frontend, Kernel, Link, Table, View, World};

/// Where each server listens.
const PORT: u16 = 8080;

/// The places, their servers, and the programs.
struct Bench {
    node: Place,
    a: Place,
    world: World,
    kernel: Kernel,
    _servers: Vec<Server>,
    _scope: Scope,
}

/// What is served at which port of the Service's address.
#[derive(Clone, Copy)]
enum Port {
    /// Pod b.
    Other = 80,
    /// The node.
    Node = 81,
    /// Pod a itself.
    Own = 82,
    /// Nobody: no endpoint.
    Empty = 83,
    /// Nobody: no frontend.
    Closed = 84,
}

fn vip(family: Family, port: Port) -> SocketAddr {
    let ip: IpAddr = match family {
        Family::V4 => Ipv4Addr::new(10, 96, 0, 1).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 1).into(),
    };
    (ip, port as u16).into()
}

impl Bench {
    /// Builds the places. With `sockets` the pods' sockets are hooked as well.
    fn new(sockets: bool) -> Result<Self> {
        let scope = Scope::open()?;
        let cgroup = scope.cgroup("packets")?;
        let place = |name: &str, n: u8| {
            let (v4, v6) = (Ipv4Addr::new(10, 244, 9, n), Ipv6Addr::new(0xfd00, 0x244, 9, 0, 0, 0, 0, n.into()));
            anyhow::Ok(Place::new(name, scope.netns(name)?, &cgroup, scope.dir(), v4, v6))
        };
        let (node, a, b) = (place("node", 1)?, place("a", 2)?, place("b", 3)?);
        node.ip_batch("link set lo up\n")?;
        for pod in [&a, &b] {
            let (name, netns, v4, v6) = (pod.name(), pod.netns(), pod.v4(), pod.v6());
            node.ip_batch(&format!(
                "link add veth-{name} type veth peer name eth0 netns {netns}\n\
                 addr add {}/32 dev veth-{name}\naddr add {}/128 dev veth-{name} nodad\nlink set veth-{name} up\n",
                node.v4(),
                node.v6()
            ))?;
            pod.ip_batch(&format!(
                "link set lo up\naddr add {v4}/32 dev eth0\naddr add {v6}/128 dev eth0 nodad\nlink set eth0 up\n\
                 route add {n4} dev eth0\nroute add default via {n4}\n\
                 route add {n6} dev eth0\nroute add default via {n6}\n",
                n4 = node.v4(),
                n6 = node.v6()
            ))?;
            node.ip_batch(&format!("route add {v4} dev veth-{name}\nroute add {v6} dev veth-{name}\n"))?;
        }
        node.sysctl("ipv4/ip_forward", "1")?;
        node.sysctl("ipv6/conf/all/forwarding", "1")?;
        for strict in ["all", "veth-a", "veth-b"] {
            node.sysctl(&format!("ipv4/conf/{strict}/rp_filter"), "1")?;
        }
        let servers = [&node, &a, &b].map(|place| Server::echo(place, PORT)).into_iter().collect::<Result<_>>()?;

        let socket_mode = if sockets { socket_mode::ALL } else { socket_mode::HOST };
        let config = Config { port_low: 61_000, port_high: 65_535, socket_mode, ..Config::zeroed() };
        let mut kernel = Kernel::open(config, &[])?;
        if sockets {
            kernel.attach_sockets(&cgroup)?;
        }
        let mut links = Vec::new();
        for (program, direction) in [("pod_ingress", TcAttachType::Ingress), ("pod_egress", TcAttachType::Egress)] {
            let loaded = kernel.object().program_mut(program).context(program)?;
            let loaded: &mut SchedClassifier = loaded.try_into()?;
            loaded.load()?;
            for pod in [&a, &b] {
                let name = format!("veth-{}", pod.name());
                links.push(node.run(|| Ok((index(&name)?, loaded.attach(&name, direction)?)))?.0);
            }
        }
        let mut bench = Self { world: world(&node, &a, &b, &links), node, a, kernel, _servers: servers, _scope: scope };
        bench.commit()?;
        Ok(bench)
    }

    fn commit(&mut self) -> Result<()> {
        self.kernel.write(&self.world)
    }
}

fn index(name: &str) -> Result<u32> {
    Ok(nix::net::if_::if_nametoindex(name)?)
}

/// The Service, in both families and protocols.
fn world(node: &Place, a: &Place, b: &Place, links: &[u32]) -> World {
    let mut world = World::default();
    for family in Family::BOTH {
        world.addresses.insert(vip(family, Port::Other).ip(), address::FRONTEND | address::REFUSE);
        world.addresses.insert(node.ip(family), address::SOURCE);
        for (port, place) in
            [(Port::Other, Some(b)), (Port::Node, Some(node)), (Port::Own, Some(a)), (Port::Empty, None)]
        {
            let service = 10 * port as u32 + u32::from(family == Family::V6);
            let view = place.map_or(View::REJECT, |place| {
                world.backends.insert(service, Backend::new(place.socket(family, PORT), service));
                world.tables.insert(service, Table::list(&[service]));
                View::table(service)
            });
            for protocol in [proto::TCP, proto::UDP] {
                world.frontends.insert((vip(family, port), protocol), Frontend::new(service, view));
            }
        }
    }
    for ifindex in links {
        let (v4, v6, none) = (node.v4(), node.v6(), [0; 6]);
        world.links.insert(*ifindex, Link { v4, v6, flags: link::POD, bridge: none, mac: none });
    }
    world
}

/// Requests and answers of all sizes: one segment, many that travel together, datagrams in fragments.
fn forms(to: SocketAddr) -> [Ask; 6] {
    [
        Ask::tcp(to),
        Ask::tcp(to).sizes(300_000, 10),
        Ask::tcp(to).sizes(10, 300_000),
        Ask::udp(to),
        Ask::udp(to).sizes(5_000, 10),
        Ask::udp(to).sizes(10, 5_000).unconnected(),
    ]
}

#[test]
fn all_that_a_pod_sends_arrives_and_all_answers_come_back() -> Result<()> {
    let bench = Bench::new(false)?;
    for family in Family::BOTH {
        let node = bench.node.ip(family);
        for (port, server, seen) in [
            (Port::Other, "b", bench.a.ip(family)),
            (Port::Node, "node", bench.a.ip(family)),
            // Through the node, whose address the pod sees instead of its own.
            (Port::Own, "a", node),
        ] {
            for ask in forms(vip(family, port)) {
                let outcome = bench.a.ask(&ask)?;
                let Some(answer) = outcome.answer() else { bail!("{ask:?}: {outcome}") };
                ensure!(answer.server == server && answer.peer.ip() == seen, "{ask:?}: {answer:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_client_that_is_refused_is_told_at_once() -> Result<()> {
    let bench = Bench::new(false)?;
    for family in Family::BOTH {
        for port in [Port::Empty, Port::Closed] {
            for ask in
                [Ask::tcp(vip(family, port)), Ask::udp(vip(family, port)), Ask::udp(vip(family, port)).sizes(1_200, 0)]
            {
                let outcome = bench.a.ask(&ask)?;
                ensure!(outcome == Outcome::Refused, "{ask:?}: {outcome}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_socket_whose_backend_is_gone_is_told_so() -> Result<()> {
    let mut bench = Bench::new(true)?;
    for family in Family::BOTH {
        let to = vip(family, Port::Other);
        let unspecified: IpAddr = match family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = bench.a.run(|| {
            let socket = UdpSocket::bind((unspecified, 0))?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(std::time::Duration::from_secs(3)))?;
            Ok(socket)
        })?;
        let ask = |socket: &UdpSocket| -> std::io::Result<usize> {
            socket.send(b"Q 1 0 \n")?;
            socket.recv(&mut [0; 100])
        };
        ask(&socket).context("while the backend lives")?;
        let gone = bench.kernel.reason(Reason::BackendGone)?;
        for backend in bench.world.backends.values_mut() {
            backend.generation += 1;
        }
        bench.commit()?;
        let told = ask(&socket).map_err(|error| error.kind());
        ensure!(told == Err(std::io::ErrorKind::ConnectionRefused), "{told:?}");
        ensure!(bench.kernel.reason(Reason::BackendGone)? == gone + 1, "and it is counted");
        // The resolver behind it connects anew.
        bench.a.run(|| Ok(socket.connect(to)?))?;
        ask(&socket).context("connected anew")?;
    }
    Ok(())
}
