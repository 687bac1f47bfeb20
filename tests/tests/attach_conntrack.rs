//! Connections that netfilter translated before the agent came.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context as _, Result, ensure};
use culvert_dataplane::conntrack::{Translated, translated};
use culvert_tests::place::{Family, Place};
use culvert_tests::scope::Scope;
use culvert_tests::shell::sh;

/// Where a family's server listens, and the Service address that leads there.
fn addresses(family: Family) -> (SocketAddr, SocketAddr) {
    match family {
        Family::V4 => ((Ipv4Addr::new(10, 244, 0, 1), 8080).into(), (Ipv4Addr::new(10, 96, 0, 1), 80).into()),
        Family::V6 => (
            (Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 1), 8080).into(),
            (Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 1), 80).into(),
        ),
    }
}

#[test]
fn translated_connections_are_found_as_long_as_they_live() -> Result<()> {
    let scope = Scope::open()?;
    let (netns, cgroup) = (scope.netns("host")?, scope.cgroup("host")?);
    let host = Place::new("host", netns, &cgroup, scope.dir(), Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
    host.run(|| {
        sh("ip link set lo up")?;
        for family in Family::BOTH {
            let (server, service) = addresses(family);
            // Without nodad, an IPv6 address cannot be bound to before the kernel's own work has looked at it.
            let (iptables, nodad) = match family {
                Family::V4 => ("iptables-legacy", ""),
                Family::V6 => ("ip6tables-legacy", " nodad"),
            };
            sh(&format!("ip addr add {} dev lo{nodad}", server.ip()))?;
            sh(&format!("ip route add {} dev lo", service.ip()))?;
            sh(&format!(
                "{iptables} -t nat -A OUTPUT -d {} -p tcp --dport {} -j DNAT --to-destination {server}",
                service.ip(),
                service.port()
            ))?;
            let listener = TcpListener::bind(server)?;
            let client = TcpStream::connect(service).with_context(|| format!("{service}"))?;
            let (accepted, _) = listener.accept()?;
            let straight = TcpStream::connect(server)?;
            let expected = Translated {
                client: client.local_addr()?,
                frontend: service,
                backend: server,
                source: accepted.peer_addr()?,
            };
            let found: Vec<_> = of(family)?;
            ensure!(found == [expected], "{found:?} where {expected:?} is, and {straight:?} is not translated");
            drop((client, accepted, straight));
            let left = of(family)?;
            ensure!(left.is_empty(), "closed, but {left:?}");
        }
        Ok(())
    })
}

/// The translated connections of a family.
fn of(family: Family) -> Result<Vec<Translated>> {
    let of = |address: IpAddr| Family::of(address) == family;
    Ok(translated()?.into_iter().filter(|connection| of(connection.client.ip())).collect())
}
