//! A host and a pod whose sockets are hooked, each with servers of its own.
//!
//! ```text
//!  cgroup of the run: all eight programs
//!  ├── host  netns of the node   lo: 10.244.0.1-3, fd00:244::1-3
//!  └── pod   netns of a pod      lo: the same
//!            servers a, b, c: TCP and UDP, port 8080 + n at the n-th address
//! ```
//!
//! There is no link and no route but those of lo: a call that is not translated finds no way to a Service address and
//! says so at once (`ENETUNREACH`), so that "left alone" is an answer like any other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use culvert_abi::{Config, address, proto};

use crate::place::{Family, Place};
use crate::scope::Scope;
use crate::traffic::{Protocol, Server};
use crate::world::{Backend, Frontend, Kernel, Table, View, World};

/// The namespaces, their servers, and the programs.
pub struct Bench {
    /// The node's network namespace.
    pub host: Place,
    /// A pod's.
    pub pod: Place,
    /// What the maps hold; call [`Bench::commit`] after a change.
    pub world: World,
    /// The programs and maps.
    pub kernel: Kernel,
    _servers: Vec<Server>,
    _scope: Scope,
}

/// The servers of each place: their names, and their backend ids by family.
pub const SERVERS: [&str; 3] = ["a", "b", "c"];

/// The address of a Service.
pub fn vip(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 96, 0, n).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, n.into()).into(),
    }
}

/// Where the n-th server listens, from 0.
pub fn server(family: Family, n: u8) -> SocketAddr {
    let ip: IpAddr = match family {
        Family::V4 => Ipv4Addr::new(10, 244, 0, n + 1).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, u16::from(n) + 1).into(),
    };
    (ip, 8080 + u16::from(n)).into()
}

impl Bench {
    /// Builds the places, with the programs in a socket mode (`culvert_abi::socket_mode`), and empty maps.
    pub fn new(mode: u32) -> Result<Self> {
        let scope = Scope::open()?;
        let cgroup = scope.cgroup("sockets")?;
        let place = |name: &str| {
            let netns = scope.netns(name)?;
            let (v4, v6) = (Ipv4Addr::new(10, 244, 0, 1), Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 1));
            let place = Place::new(name, netns, &cgroup, scope.dir(), v4, v6);
            place.ip_batch(
                "link set lo up\n\
                 addr add 10.244.0.1/32 dev lo\naddr add 10.244.0.2/32 dev lo\naddr add 10.244.0.3/32 dev lo\n\
                 addr add fd00:244::1/128 dev lo nodad\naddr add fd00:244::2/128 dev lo nodad\n\
                 addr add fd00:244::3/128 dev lo nodad\n",
            )?;
            anyhow::Ok(place)
        };
        let (host, pod) = (place("host")?, place("pod")?);
        let mut servers = Vec::new();
        for (place, (n, name)) in
            [&host, &pod].into_iter().flat_map(|place| (0..).zip(SERVERS).map(move |s| (place, s)))
        {
            let at = Family::BOTH.map(|family| server(family, n));
            let named = Place::new(name, place.netns().to_owned(), &cgroup, scope.dir(), place.v4(), place.v6());
            let ports = [Protocol::Tcp, Protocol::Udp].map(|protocol| (protocol, at[0].port()));
            servers.push(Server::start_at(&named, &at.map(|at| at.ip()), &ports)?);
        }

        let config = Config { host_netns: netns_cookie(&host)?, socket_mode: mode, ..Config::zeroed() };
        let mut kernel = Kernel::open(config, &[])?;
        kernel.attach_sockets(&cgroup)?;
        Ok(Self { host, pod, world: World::default(), kernel, _servers: servers, _scope: scope })
    }

    /// Adds a Service at `vip(family, n)`:`port` in both families, balanced over the first `backends` servers for everyone.
    /// The Service's id is `10 * n`, and one more for IPv6; backend ids follow from it.
    pub fn serve(&mut self, n: u8, port: u16, protocol: Protocol, backends: u8) {
        for family in Family::BOTH {
            let service = service_id(family, n);
            let ids: Vec<u32> = (0..backends).map(|i| backend_id(family, n, i)).collect();
            for i in 0..backends {
                self.world.backends.insert(backend_id(family, n, i), Backend::new(server(family, i), service));
            }
            self.world.tables.insert(service, Table::list(&ids));
            let name = (SocketAddr::from((vip(family, n), port)), number(protocol));
            self.world.frontends.insert(name, Frontend::new(service, View::table(service)));
            self.world.addresses.insert(vip(family, n), address::FRONTEND | address::REFUSE);
        }
    }

    /// Changes the frontends of an address.
    pub fn change(&mut self, n: u8, change: impl Fn(&mut Frontend)) {
        for ((at, _), frontend) in &mut self.world.frontends {
            if Family::BOTH.into_iter().any(|family| at.ip() == vip(family, n)) {
                change(frontend);
            }
        }
    }

    /// Takes the `i`-th server out of a Service, as the agent does when an endpoint goes.
    pub fn remove(&mut self, n: u8, i: u8) {
        for family in Family::BOTH {
            let id = backend_id(family, n, i);
            self.world.backends.remove(&id);
            if let Some(table) = self.world.tables.get_mut(&service_id(family, n)) {
                table.list.retain(|other| *other != id);
            }
        }
    }

    /// Writes the world into the maps.
    pub fn commit(&mut self) -> Result<()> {
        self.kernel.write(&self.world)
    }
}

/// The id of the Service at the n-th address.
pub fn service_id(family: Family, n: u8) -> u32 {
    10 * u32::from(n) + u32::from(family == Family::V6)
}

/// The id of the backend that the i-th server is to that Service.
pub fn backend_id(family: Family, n: u8, i: u8) -> u32 {
    10 * service_id(family, n) + u32::from(i) + 1
}

/// The number of a protocol.
fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => proto::TCP,
        Protocol::Udp => proto::UDP,
        Protocol::Sctp => proto::SCTP,
    }
}

fn netns_cookie(place: &Place) -> Result<u64> {
    place.run(|| Ok(culvert_dataplane::netns::cookie()?))
}
