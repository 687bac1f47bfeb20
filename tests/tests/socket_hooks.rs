//! The socket programs, by what a client sees: who answered, what `getpeername` and `recvfrom` say, which error.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use culvert_abi::{Affinity, AffinityKey, Reason, address, proto, socket_mode, ticks};
use culvert_tests::place::{Family, Place};
use culvert_tests::sockets::{Bench, SERVERS, backend_id, server, service_id, vip};
use culvert_tests::traffic::{Ask, Outcome, Protocol, Session};
use culvert_tests::world::{Frontend, View};

/// Enough choices among three servers that each is met: one is missed once in 10^9 runs.
const MANY: usize = 60;

/// Every way to ask an address: both protocols, connected and not, and IPv4 from an IPv6 socket as well.
fn forms(to: SocketAddr) -> Vec<Ask> {
    let plain = [Ask::tcp(to), Ask::udp(to), Ask::udp(to).unconnected()];
    let mapped = plain.iter().filter(|_| to.is_ipv4()).map(|ask| ask.clone().mapped());
    plain.iter().cloned().chain(mapped).collect()
}

/// The address as a socket of the request's kind shows it.
fn shown(ask: &Ask, session: &Session) -> Result<SocketAddr> {
    Ok(match (ask.to.ip(), session.local()?.ip()) {
        (IpAddr::V4(ip), IpAddr::V6(_)) => (ip.to_ipv6_mapped(), ask.to.port()).into(),
        _ => ask.to,
    })
}

fn open(place: &Place, ask: &Ask) -> Result<Session> {
    Session::open(place, ask)?.map_err(|outcome| anyhow::anyhow!("{} {ask:?}: {outcome}", place.name()))
}

/// Who answers, if anybody does.
fn who(place: &Place, ask: &Ask) -> Result<String> {
    let outcome = place.ask(ask)?;
    let Some(server) = outcome.server() else { bail!("{} {ask:?}: {outcome}", place.name()) };
    Ok(server.to_owned())
}

/// Everybody who answers.
fn all(place: &Place, ask: &Ask) -> Result<BTreeSet<String>> {
    (0..MANY).map(|_| who(place, ask)).collect()
}

fn everybody() -> BTreeSet<String> {
    SERVERS.map(str::to_owned).into()
}

/// A Service on TCP and UDP port 80 with all three servers.
fn serve(bench: &mut Bench, n: u8) -> Result<()> {
    bench.serve(n, 80, Protocol::Tcp, 3);
    bench.serve(n, 80, Protocol::Udp, 3);
    bench.commit()
}

#[test]
fn every_form_reaches_every_backend_and_shows_the_frontend() -> Result<()> {
    for (mode, served) in [(socket_mode::ALL, &["host", "pod"][..]), (socket_mode::HOST, &["host"])] {
        let mut bench = Bench::new(mode)?;
        serve(&mut bench, 1)?;
        for place in [&bench.host, &bench.pod] {
            for ask in Family::BOTH.into_iter().flat_map(|family| forms((vip(family, 1), 80).into())) {
                if !served.contains(&place.name()) {
                    let outcome = place.ask(&ask)?;
                    ensure!(outcome == Outcome::Unreachable, "{} {ask:?}: {outcome}", place.name());
                    continue;
                }
                let servers = all(place, &ask)?;
                ensure!(servers == everybody(), "{} {ask:?}: {servers:?}", place.name());
                let mut session = open(place, &ask)?;
                if let Ok(peer) = session.peer() {
                    ensure!(peer == shown(&ask, &session)?, "{} {ask:?}: getpeername says {peer}", place.name());
                }
                // An answer from another source than the one asked would be a stranger's.
                let outcome = session.exchange();
                ensure!(outcome.answer().is_some(), "{} {ask:?}: {outcome}", place.name());
            }
        }
        // Each form asked MANY times and once more, and each of these chose.
        for (family, forms) in [(Family::V4, 6), (Family::V6, 3)] {
            let counted = bench.kernel.service(service_id(family, 1))?.connections;
            ensure!(counted == (forms * (MANY + 1) * served.len()) as u64, "{family:?}: {counted} counted");
        }
    }
    Ok(())
}

#[test]
fn other_addresses_are_left_alone() -> Result<()> {
    let mut bench = Bench::new(socket_mode::ALL)?;
    serve(&mut bench, 1)?;
    for family in Family::BOTH {
        for ask in forms(server(family, 1)) {
            let mut session = open(&bench.pod, &ask)?;
            ensure!(session.exchange().server() == Some("b"), "{ask:?}");
            if let Ok(peer) = session.peer() {
                ensure!(peer == shown(&ask, &session)?, "{ask:?}: {peer}");
            }
        }
        for ask in forms((vip(family, 2), 80).into()) {
            ensure!(bench.pod.ask(&ask)? == Outcome::Unreachable, "{ask:?}");
        }
    }
    Ok(())
}

#[test]
fn a_service_without_endpoints_refuses_at_once() -> Result<()> {
    let mut bench = Bench::new(socket_mode::ALL)?;
    serve(&mut bench, 1)?;
    bench.change(1, |frontend| frontend.views = [View::REJECT; 3]);
    bench.commit()?;
    for place in [&bench.host, &bench.pod] {
        for ask in Family::BOTH.into_iter().flat_map(|family| forms((vip(family, 1), 80).into())) {
            let outcome = place.ask(&ask)?;
            ensure!(outcome == Outcome::Refused, "{} {ask:?}: {outcome}", place.name());
        }
    }
    ensure!(bench.kernel.reason(Reason::NoEndpoints)? == 18);
    ensure!(bench.kernel.service(service_id(Family::V4, 1))?.rejected == 12);
    ensure!(bench.kernel.service(service_id(Family::V6, 1))?.rejected == 6);
    Ok(())
}

#[test]
fn a_service_whose_table_names_nobody_refuses_at_once() -> Result<()> {
    let mut bench = Bench::new(socket_mode::ALL)?;
    serve(&mut bench, 1)?;
    for family in Family::BOTH {
        for index in 0..3 {
            bench.world.backends.remove(&backend_id(family, 1, index));
        }
    }
    bench.commit()?;
    for place in [&bench.host, &bench.pod] {
        for ask in Family::BOTH.into_iter().flat_map(|family| forms((vip(family, 1), 80).into())) {
            let outcome = place.ask(&ask)?;
            ensure!(outcome == Outcome::Refused, "{} {ask:?}: {outcome}", place.name());
        }
    }
    ensure!(bench.kernel.reason(Reason::NoTable)? == 18);
    ensure!(bench.kernel.service(service_id(Family::V4, 1))?.rejected == 12);
    Ok(())
}

#[test]
fn a_port_that_nobody_serves_is_refused_where_the_address_says_so() -> Result<()> {
    let mut bench = Bench::new(socket_mode::ALL)?;
    serve(&mut bench, 1)?;
    serve(&mut bench, 2)?;
    for family in Family::BOTH {
        bench.world.addresses.insert(vip(family, 2), address::FRONTEND);
    }
    bench.commit()?;
    for (n, expected) in [(1, Outcome::Refused), (2, Outcome::Unreachable)] {
        for place in [&bench.host, &bench.pod] {
            for ask in Family::BOTH.into_iter().flat_map(|family| forms((vip(family, n), 81).into())) {
                let outcome = place.ask(&ask)?;
                ensure!(outcome == expected, "{} {ask:?}: {outcome}", place.name());
            }
        }
    }
    ensure!(bench.kernel.reason(Reason::PortNotServed)? == 18);
    Ok(())
}

/// getaddrinfo connects a UDP socket to the port that is wanted of TCP, to see which source address it would get.
#[test]
fn a_resolvers_look_for_a_route_is_not_refused() -> Result<()> {
    let mut bench = Bench::new(socket_mode::ALL)?;
    bench.serve(1, 80, Protocol::Tcp, 3);
    bench.commit()?;
    for family in Family::BOTH {
        for (port, expected) in [(80, Outcome::Unreachable), (0, Outcome::Unreachable), (81, Outcome::Refused)] {
            let outcome = bench.pod.ask(&Ask::udp((vip(family, 1), port)))?;
            ensure!(outcome == expected, "{family:?} {port}: {outcome}");
        }
    }
    Ok(())
}

#[test]
fn a_drop_is_left_to_the_packet_hooks() -> Result<()> {
    let mut bench = Bench::new(socket_mode::ALL)?;
    serve(&mut bench, 1)?;
    bench.change(1, |frontend| frontend.views = [View::DROP; 3]);
    bench.commit()?;
    for place in [&bench.host, &bench.pod] {
        for ask in Family::BOTH.into_iter().flat_map(|family| forms((vip(family, 1), 80).into())) {
            let outcome = place.ask(&ask)?;
            ensure!(outcome == Outcome::Unreachable, "{} {ask:?}: {outcome}", place.name());
        }
    }
    Ok(())
}

#[test]
fn host_and_pods_have_views_of_their_own_and_ranges_are_for_packets() -> Result<()> {
    let mut bench = Bench::new(socket_mode::ALL)?;
    serve(&mut bench, 1)?;
    serve(&mut bench, 2)?;
    bench.change(1, |frontend| frontend.views[culvert_abi::audience::PODS] = View::REJECT);
    bench.change(2, |frontend| frontend.ranges = 7);
    bench.commit()?;
    for family in Family::BOTH {
        for ask in forms((vip(family, 1), 80).into()) {
            ensure!(bench.host.ask(&ask)?.answer().is_some(), "{ask:?}");
            ensure!(bench.pod.ask(&ask)? == Outcome::Refused, "{ask:?}");
        }
        for ask in forms((vip(family, 2), 80).into()) {
            ensure!(bench.host.ask(&ask)?.answer().is_some(), "{ask:?}");
            ensure!(bench.pod.ask(&ask)? == Outcome::Unreachable, "{ask:?}");
        }
    }
    Ok(())
}

#[test]
fn affinity_holds_for_a_namespace_until_its_time_or_its_backend_ends() -> Result<()> {
    let mut bench = Bench::new(socket_mode::ALL)?;
    serve(&mut bench, 1)?;
    bench.change(1, |frontend| frontend.affinity = 10_800);
    bench.commit()?;
    for family in Family::BOTH {
        for place in [bench.host.clone(), bench.pod.clone()] {
            let asks = forms((vip(family, 1), 80).into());
            let first = who(&place, &asks[0])?;
            for ask in &asks {
                let servers = all(&place, ask)?;
                ensure!(servers == BTreeSet::from([first.clone()]), "{} {ask:?}: {servers:?}", place.name());
            }

            // Once the rows have come of age, everyone is met again.
            let mut met = BTreeSet::new();
            for _ in 0..MANY {
                age(&mut bench, 10_800)?;
                met.insert(who(&place, &asks[0])?);
            }
            ensure!(met == everybody(), "{family:?} {}: {met:?}", place.name());

            // One second less is not of age.
            let last = who(&place, &asks[0])?;
            for _ in 0..MANY {
                age(&mut bench, 10_798)?;
                ensure!(who(&place, &asks[0])? == last);
            }
        }
    }

    let ask = Ask::tcp((vip(Family::V4, 1), 80));
    let first = who(&bench.pod, &ask)?;
    let index = SERVERS.iter().position(|name| *name == first).context("an unknown server")? as u8;
    bench.remove(1, index);
    bench.commit()?;
    let second = who(&bench.pod, &ask)?;
    ensure!(second != first);
    ensure!(all(&bench.pod, &ask)? == BTreeSet::from([second]));
    Ok(())
}

/// Makes all affinity rows `seconds` older.
fn age(bench: &mut Bench, seconds: u32) -> Result<()> {
    let mut map = bench.kernel.hash::<AffinityKey, Affinity>("AFFINITY")?;
    let rows: Vec<_> = map.iter().collect::<Result<_, _>>()?;
    for (key, row) in rows {
        map.insert(key, Affinity { seen: row.seen.wrapping_sub(ticks(seconds)), ..row }, 0)?;
    }
    Ok(())
}

#[test]
fn an_unconnected_socket_stays_with_its_backend_while_that_lives() -> Result<()> {
    let mut bench = Bench::new(socket_mode::ALL)?;
    for family in Family::BOTH {
        serve(&mut bench, 1)?;
        for ask in forms((vip(family, 1), 80).into()).into_iter().filter(|ask| ask.protocol == Protocol::Udp) {
            serve(&mut bench, 1)?;
            let mut session = open(&bench.pod, &ask)?;
            let first = session.exchange().server().context("no answer")?.to_owned();
            for _ in 0..MANY {
                let outcome = session.exchange();
                ensure!(outcome.server() == Some(&first), "{ask:?}: {first}, then {outcome}");
            }
            if session.peer().is_ok() {
                continue;
            }
            let index = SERVERS.iter().position(|name| *name == first).context("an unknown server")? as u8;
            bench.remove(1, index);
            bench.commit()?;
            let second = session.exchange();
            let second = second.server().with_context(|| format!("{ask:?}: {second}"))?.to_owned();
            ensure!(second != first);
            for _ in 0..MANY {
                ensure!(session.exchange().server() == Some(second.as_str()));
            }

            // The id is given to another endpoint: the same row, another generation.
            let id = backend_id(family, 1, index);
            bench.serve(1, 80, Protocol::Udp, 3);
            bench.world.backends.get_mut(&id).context("the backend is back")?.generation += 1;
            bench.commit()?;
            ensure!(session.exchange().server() == Some(second.as_str()));
        }
    }
    Ok(())
}

/// A datagram socket in a place, of which a test says each call.
fn datagram_socket(place: &Place, family: Family) -> Result<UdpSocket> {
    place.run(|| {
        let any: SocketAddr = match family {
            Family::V4 => "0.0.0.0:0".parse()?,
            Family::V6 => "[::]:0".parse()?,
        };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        Ok(socket)
    })
}

/// Receives an answer: who gave it, and from where it seemed to come.
fn receive(socket: &UdpSocket) -> Result<(String, SocketAddr)> {
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer)?;
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    Ok((text.split(' ').nth(2).context("not an answer")?.to_owned(), from))
}

const QUESTION: &[u8] = b"Q 1 0 \n";

#[test]
fn a_socket_that_is_connected_again_is_what_its_last_connect_made_it() -> Result<()> {
    let mut bench = Bench::new(socket_mode::ALL)?;
    bench.serve(1, 80, Protocol::Udp, 1);
    bench.commit()?;
    for family in Family::BOTH {
        let frontend = SocketAddr::from((vip(family, 1), 80));
        let socket = datagram_socket(&bench.pod, family)?;
        for _ in 0..2 {
            socket.connect(frontend)?;
            ensure!(socket.peer_addr()? == frontend);
            socket.connect(socket.peer_addr()?)?;
            ensure!(socket.peer_addr()? == frontend);
            socket.send(QUESTION)?;
            ensure!(receive(&socket)? == ("a".to_owned(), frontend));

            // The backend that it had by way of the frontend, and one that it never had.
            socket.connect(server(family, 0))?;
            ensure!(socket.peer_addr()? == server(family, 0));
            socket.send(QUESTION)?;
            ensure!(receive(&socket)? == ("a".to_owned(), server(family, 0)));
            socket.connect(frontend)?;
            socket.connect(server(family, 1))?;
            ensure!(socket.peer_addr()? == server(family, 1));
        }
        let refused = socket.connect((vip(family, 1), 81)).err().context("port 81 is served")?;
        ensure!(refused.kind() == std::io::ErrorKind::ConnectionRefused, "{refused}");
    }
    Ok(())
}

#[test]
fn a_connected_socket_sends_to_its_peer_also_when_the_call_names_the_frontend() -> Result<()> {
    let mut bench = Bench::new(socket_mode::ALL)?;
    serve(&mut bench, 1)?;
    for family in Family::BOTH {
        let frontend = SocketAddr::from((vip(family, 1), 80));
        for _ in 0..MANY {
            let socket = datagram_socket(&bench.pod, family)?;
            socket.connect(frontend)?;
            // An answer from another backend than the peer would never be received.
            socket.send_to(QUESTION, frontend)?;
            ensure!(receive(&socket)?.1 == frontend);
        }
    }
    Ok(())
}

#[test]
fn two_frontends_of_one_backend_are_told_apart_by_who_was_asked_last() -> Result<()> {
    let mut bench = Bench::new(socket_mode::ALL)?;
    for n in [1, 2] {
        bench.serve(n, 53, Protocol::Udp, 1);
    }
    bench.commit()?;
    for family in Family::BOTH {
        let socket = datagram_socket(&bench.pod, family)?;
        for n in [1, 2, 1, 1, 2] {
            let frontend = SocketAddr::from((vip(family, n), 53));
            socket.send_to(QUESTION, frontend)?;
            ensure!(receive(&socket)? == ("a".to_owned(), frontend));
        }
        // An address that no frontend led to is itself.
        socket.send_to(QUESTION, server(family, 1))?;
        ensure!(receive(&socket)? == ("b".to_owned(), server(family, 1)));
    }
    Ok(())
}

#[test]
fn tables_with_slots_and_dead_rows_choose_live_backends() -> Result<()> {
    let mut bench = Bench::new(socket_mode::ALL)?;
    serve(&mut bench, 1)?;
    for family in Family::BOTH {
        let ids = [0, 1, 2].map(|i| backend_id(family, 1, i));
        bench.world.tables.insert(service_id(family, 1), culvert_tests::world::Table::maglev(&ids, 1));
    }
    bench.commit()?;
    for ask in Family::BOTH.into_iter().flat_map(|family| forms((vip(family, 1), 80).into())) {
        ensure!(all(&bench.pod, &ask)? == everybody(), "{ask:?}");
    }
    // The table still lists a backend that is gone, as it does for a moment while the agent replaces it.
    for family in Family::BOTH {
        bench.world.backends.remove(&backend_id(family, 1, 1));
    }
    bench.commit()?;
    for ask in Family::BOTH.into_iter().flat_map(|family| forms((vip(family, 1), 80).into())) {
        ensure!(all(&bench.pod, &ask)? == BTreeSet::from(["a".to_owned(), "c".to_owned()]), "{ask:?}");
    }
    Ok(())
}

#[test]
fn protocols_on_one_port_are_apart() -> Result<()> {
    let mut bench = Bench::new(socket_mode::ALL)?;
    bench.serve(1, 80, Protocol::Tcp, 1);
    bench.commit()?;
    // The same port of UDP belongs to another Service, with another server.
    for family in Family::BOTH {
        let (service, id) = (900, 901 + u32::from(family == Family::V6));
        bench.world.backends.insert(id, culvert_tests::world::Backend::new(server(family, 2), service));
        bench.world.tables.insert(id, culvert_tests::world::Table::list(&[id]));
        let name = (SocketAddr::from((vip(family, 1), 80)), proto::UDP);
        bench.world.frontends.insert(name, Frontend::new(service, View::table(id)));
    }
    bench.commit()?;
    for ask in Family::BOTH.into_iter().flat_map(|family| forms((vip(family, 1), 80).into())) {
        let expected = if ask.protocol == Protocol::Tcp { "a" } else { "c" };
        ensure!(who(&bench.host, &ask)? == expected, "{ask:?}");
    }
    Ok(())
}
