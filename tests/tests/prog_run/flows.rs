//! Flows: whom they stay with, when they end, what their rows say.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use culvert_abi::{BackendCounters, Flow, FlowKey, Reason, backend, flow, idle, proto, role};
use culvert_tests::fixture::{Body, Packet, Programs, Story, fin, nets, rst, syn, tcp, tcp_ack, udp, words4, words6};
use culvert_tests::world::{Backend, Table, View};

use super::{DATA, Make, TCP_SYN, UDP, at, rows};

#[test]
fn a_client_of_an_affine_service_stays() -> Result<()> {
    let mut programs = Programs::load()?;
    for net in nets() {
        programs.reset(&net.world())?;
        let mut ports = std::collections::BTreeSet::new();
        for client in 0..20 {
            let mut own = std::collections::BTreeSet::new();
            for port in 0..10 {
                let ip = match net.client {
                    IpAddr::V4(ip) => IpAddr::V4((u32::from(ip) + client).into()),
                    IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) + u128::from(client)).into()),
                };
                let frame = udp(at(ip, 40_000 + port), at(net.vip, 84), DATA).frame(false);
                let seen = programs.run("node_ingress", &frame)?;
                let dport = if ip.is_ipv4() { 14 + 22 } else { 14 + 42 };
                own.insert(u16::from_be_bytes([seen.bytes[dport], seen.bytes[dport + 1]]));
            }
            ensure!(own.len() == 1, "client {client} met {own:?}");
            ports.extend(own);
        }
        // 20 clients among 4 backends: one is met by nobody once in 80 runs, two are once in 10^5.
        ensure!(ports.len() >= 3 && ports.iter().all(|port| (8084..8088).contains(port)), "{ports:?}");
    }
    Ok(())
}

#[test]
fn a_client_of_an_affine_service_leaves_a_backend_that_is_not_in_the_list() -> Result<()> {
    const SERVICE: u32 = 6;
    const CLUSTER: u16 = backend::NOT_IN_CLUSTER_LIST;
    const LOCAL: u16 = backend::NOT_IN_LOCAL_LIST;
    let mut programs = Programs::load()?;
    for net in nets() {
        let mut port = 40_000;
        // Each time a new connection of the same client; the port of its backend.
        let mut served = |programs: &mut Programs| -> Result<u16> {
            port += 1;
            let seen = programs.run("node_ingress", &syn(at(net.client, port), at(net.vip, 84)).frame(false))?;
            let dport = if net.client.is_ipv4() { 14 + 22 } else { 14 + 42 };
            Ok(u16::from_be_bytes([seen.bytes[dport], seen.bytes[dport + 1]]))
        };
        for (local_list, not_here, not_elsewhere) in [(false, CLUSTER, LOCAL), (true, LOCAL, CLUSTER)] {
            let mut world = net.world();
            for frontend in world.frontends.values_mut().filter(|frontend| frontend.service == SERVICE) {
                frontend.views = frontend.views.map(|view| View { local_list, ..view });
            }
            programs.reset(&world)?;
            let first = served(&mut programs)?;
            let found = world.backends.iter().find(|(_, row)| row.service == SERVICE && row.at.port() == first);
            let (&id, &row) = found.with_context(|| format!("port {first} is no backend's"))?;
            let whole = world.tables[&SERVICE].clone();

            // That it is not in the other list does not matter here.
            world.backends.insert(id, Backend { flags: row.flags | not_elsewhere, ..row });
            programs.kernel.write(&world)?;
            ensure!(served(&mut programs)? == first, "it is in this list still");

            // It lives on for the other list alone.
            world.backends.insert(id, Backend { flags: row.flags | not_here, ..row });
            let others: Vec<u32> = whole.list.iter().copied().filter(|other| *other != id).collect();
            world.tables.insert(SERVICE, Table::list(&others));
            programs.kernel.write(&world)?;
            let second = served(&mut programs)?;
            ensure!((8084..8088).contains(&second) && second != first, "{second} after {first}");

            // Back in the list it is one of four, and the client has the other.
            world.backends.insert(id, row);
            world.tables.insert(SERVICE, whole);
            programs.kernel.write(&world)?;
            for _ in 0..10 {
                ensure!(served(&mut programs)? == second, "the client stays with its new backend");
            }
        }
    }
    Ok(())
}

#[test]
fn a_backend_that_goes_ends_its_datagrams_and_keeps_its_connections() -> Result<()> {
    let mut programs = Programs::load()?;
    for net in nets() {
        let (client, vip) = (at(net.client, 40_000), at(net.vip, 88));
        let backends = [at(net.local, 8088), at(net.remote, 8088)];
        let mut world = net.world();
        programs.reset(&world)?;
        // Both protocols to whom the hash says.
        let chosen = |programs: &mut Programs, packet: Packet| -> Result<SocketAddr> {
            let seen = programs.run("node_ingress", &packet.frame(false))?;
            let made = |to: &SocketAddr| {
                let mut packet = packet.clone();
                packet.dst = to.ip();
                match &mut packet.body {
                    Body::Tcp { dport, .. } | Body::Udp { dport, .. } => *dport = to.port(),
                    _ => {}
                }
                packet.frame(false)
            };
            let to = backends.iter().find(|to| made(to) == seen.bytes);
            to.copied().ok_or_else(|| anyhow::anyhow!("to neither backend: {seen:?}"))
        };
        let datagrams = chosen(&mut programs, udp(client, vip, DATA))?;
        let connection = chosen(&mut programs, syn(client, vip))?;
        for _ in 0..5 {
            ensure!(chosen(&mut programs, udp(client, vip, DATA))? == datagrams, "a flow stays");
        }
        // Both die, then others take their ids at another place.
        for row in world.backends.values_mut().filter(|row| row.service == 9) {
            row.flags = 0;
        }
        programs.kernel.write(&world)?;
        ensure!(programs.run("node_ingress", &udp(client, vip, DATA).frame(false))?.verdict == 7, "nobody is there");
        ensure!(
            programs.run("node_ingress", &syn(at(net.stranger, 40_000), vip).frame(false))?.verdict == 7,
            "nor for TCP"
        );
        ensure!(chosen(&mut programs, tcp(client, vip, DATA))? == connection, "a connection goes on");
        for row in world.backends.values_mut().filter(|row| row.service == 9) {
            row.flags = backend::ALIVE;
            row.generation += 1;
            row.at.set_ip(if row.at == datagrams {
                backends.map(|at| at.ip())[usize::from(row.at == backends[0])]
            } else {
                datagrams.ip()
            });
        }
        programs.kernel.write(&world)?;
        ensure!(chosen(&mut programs, udp(client, vip, DATA))? != datagrams, "the same slot has another address now");
        ensure!(chosen(&mut programs, tcp(client, vip, DATA))? == connection, "a connection goes on still");
        ensure!(chosen(&mut programs, syn(client, vip))? != connection, "a new connection goes to the living");
    }
    Ok(())
}

#[test]
fn a_connection_that_is_over_makes_room() -> Result<()> {
    let mut programs = Programs::load()?;
    for net in nets() {
        let (client, vip, twin) = (at(net.client, 40_000), at(net.vip, 80), at(net.vip, 87));
        let backend = at(net.local, 8080);
        let opened = Story::new("one backend behind two frontends", &net.world())
            .becomes("node_ingress", syn(client, vip), syn(client, backend))
            .dropped("node_ingress", syn(client, twin))
            .dropped("node_ingress", syn(client, twin))
            .becomes("node_ingress", syn(at(net.client, 40_001), twin), syn(at(net.client, 40_001), backend));
        opened.clone().run(&mut programs)?;
        let endings = [
            vec![("node_ingress", rst(client, vip), rst(client, backend))],
            vec![("node_egress", rst(backend, client), rst(vip, client))],
            vec![
                ("node_egress", fin(backend, client), fin(vip, client)),
                ("node_ingress", fin(client, vip), fin(client, backend)),
            ],
        ];
        for ending in endings {
            let mut story = opened.clone();
            let count = ending.len();
            for (i, (program, packet, becomes)) in ending.into_iter().enumerate() {
                if i + 1 == count && count > 1 {
                    story = story.dropped("node_ingress", syn(client, twin));
                }
                story = story.becomes(program, packet, becomes);
            }
            story
                .becomes("node_ingress", syn(client, twin), syn(client, backend))
                .becomes("node_egress", tcp_ack(backend, client), tcp_ack(twin, client))
                .run(&mut programs)?;
        }
        ensure!(programs.kernel.reason(Reason::FlowCollision)? > 0, "a collision is counted");
    }
    Ok(())
}

#[test]
fn who_asks_its_backend_past_a_closed_flow_is_left_alone() -> Result<()> {
    const INIT: Make = |from, to| Packet::sctp(from, to, 1, DATA);
    const INIT_ACK: Make = |from, to| Packet::sctp(from, to, 2, DATA);
    const ABORT: Make = |from, to| Packet::sctp(from, to, 6, DATA);
    const SCTP: Make = |from, to| Packet::sctp(from, to, 0, DATA);
    const TCP: Make = |from, to| tcp(from, to, DATA);
    let mut programs = Programs::load()?;
    let kinds =
        [("TCP", proto::TCP, [TCP_SYN, tcp_ack, TCP, rst]), ("SCTP", proto::SCTP, [INIT, INIT_ACK, SCTP, ABORT])];
    for (net, (name, protocol, [opens, accepts, data, resets])) in
        nets().into_iter().flat_map(|net| kinds.map(|kind| (net, kind)))
    {
        let client = at(net.client, 40_000);
        let here = (at(net.vip, 80), at(net.local, 8080), client);
        let there_asked = at(net.node, 30080);
        let there_backend = at(net.remote, 8080);
        let there = (there_asked, there_backend, at(net.node, net.port(client, there_backend, protocol)));
        for (asked, backend, source) in [here, there] {
            let about = |what: &str| format!("{name}, {client} -> {asked}: {what}");
            let asks = |story: Story, packet: Make| {
                let story = story.becomes("node_ingress", packet(client, asked), packet(client, backend));
                if source == client {
                    story.left("node_egress", packet(client, backend))
                } else {
                    story.becomes("node_egress", packet(client, backend), packet(source, backend))
                }
            };
            let hears = |story: Story, packet: Make| {
                let story = if source == client {
                    story.left("node_ingress", packet(backend, client))
                } else {
                    story.becomes("node_ingress", packet(backend, source), packet(backend, client))
                };
                story.becomes("node_egress", packet(backend, client), packet(asked, client))
            };
            let open = |story: Story| asks(hears(asks(story, opens), accepts), data);
            let closed = |what: &str| asks(open(Story::new(about(what), &net.world())), resets);
            let left = |story: Story, packet: Make| {
                story.left("node_egress", packet(client, backend)).left("node_egress", packet(backend, client))
            };
            // It begins, or it is answered to where its beginning passed elsewhere.
            left(closed("seen from the start").left("node_egress", opens(client, backend)), data).run(&mut programs)?;
            let answered = closed("seen from the answer").left("node_egress", accepts(backend, client));
            let answered = left(left(answered, data), accepts);
            answered.left("node_ingress", data(backend, source)).run(&mut programs)?;
            // What is left over of the flow is of the flow still.
            hears(closed("late packets"), data).run(&mut programs)?;
            // The next connection by way of the frontend is a flow.
            open(closed("again by way of the frontend")).run(&mut programs)?;
            open(left(closed("again after one beside it").left("node_egress", opens(client, backend)), data))
                .run(&mut programs)?;
        }
    }
    Ok(())
}

#[test]
fn only_a_client_that_answers_keeps_its_source_for_long() -> Result<()> {
    let mut programs = Programs::load()?;
    for net in nets() {
        // Both want the same port of the node; the first has it as long as its flow lives.
        let (asked, backend, port) = (at(net.node, 30080), at(net.remote, 8080), at(net.node, 61_234));
        let (first, second) = (at(net.client, 61_234), at(net.stranger, 61_234));
        let opens = |packet: Make| {
            Story::new(format!("client {first}"), &net.world())
                .becomes("node_ingress", packet(first, asked), packet(first, backend))
                .becomes("node_egress", packet(first, backend), packet(port, backend))
        };
        let says =
            |story: Story, packet: Make| story.becomes("node_ingress", packet(first, asked), packet(first, backend));
        let reply = |story: Story, packet: Make| {
            story.becomes("node_ingress", packet(backend, port), packet(backend, first)).becomes(
                "node_egress",
                packet(backend, first),
                packet(asked, first),
            )
        };
        let (opened, asks) = (opens(TCP_SYN), opens(UDP));
        let (replied, told) = (reply(opened.clone(), tcp_ack), reply(asks.clone(), UDP));
        let (established, talking) = (says(replied.clone(), tcp_ack), says(told.clone(), UDP));
        let cases = [
            ("opened", TCP_SYN, opened.clone(), idle::OPENING),
            ("a FIN that nobody answered", TCP_SYN, says(opened, fin), idle::OPENING),
            ("replied", TCP_SYN, replied, idle::OPENING),
            ("established", TCP_SYN, established.clone(), idle::ESTABLISHED),
            ("closing", TCP_SYN, says(established, fin), idle::CLOSING),
            ("asks", UDP, asks, idle::UDP_NEW),
            ("told", UDP, told, idle::UDP_NEW),
            ("talking", UDP, talking, idle::UDP),
        ];
        for (state, packet, story, limit) in cases {
            let protocol = if limit == idle::UDP_NEW || limit == idle::UDP { proto::UDP } else { proto::TCP };
            let other = at(net.node, net.port(second, backend, protocol));
            for (idle, source) in [(limit - 2, other), (limit + 2, port)] {
                story.run(&mut programs)?;
                programs.age(idle)?;
                Story::new(format!("{state}, then idle for {idle} s"), &net.world())
                    .becomes("node_ingress", packet(second, asked), packet(second, backend))
                    .becomes("node_egress", packet(second, backend), packet(source, backend))
                    .go_on(&mut programs)?;
            }
        }
    }
    Ok(())
}

#[test]
fn an_expired_flow_whose_source_is_taken_is_ended_and_counted() -> Result<()> {
    const BACKEND: u32 = 2;
    let mut programs = Programs::load()?;
    let net = nets()[0];
    let (asked, backend, port) = (at(net.node, 30080), at(net.remote, 8080), at(net.node, 61_234));
    let opens = |client| {
        Story::new("opens", &net.world()).becomes("node_ingress", syn(client, asked), syn(client, backend)).becomes(
            "node_egress",
            syn(client, backend),
            syn(port, backend),
        )
    };
    let (first, second) = (at(net.client, 61_234), at(net.stranger, 61_234));
    opens(first).run(&mut programs)?;
    programs.age(idle::OPENING + 2)?;
    opens(second).go_on(&mut programs)?;
    let left = rows::<1>(&mut programs, "FLOWS_NEW_V4")?;
    ensure!(left.len() == 3, "the rows of the second alone: {left:?}");
    let counted = programs.kernel.array::<BackendCounters>("BACKEND_COUNTERS_V4")?.get(&BACKEND, 0)?;
    ensure!((counted.packets, counted.bytes) == (1, 40), "{counted:?}");
    Ok(())
}

#[test]
fn flows_outlive_their_frontend() -> Result<()> {
    let mut programs = Programs::load()?;
    for net in nets() {
        let (client, vip, backend) = (at(net.client, 40_000), at(net.vip, 80), at(net.local, 8080));
        Story::new("begins", &net.world())
            .becomes("node_ingress", syn(client, vip), syn(client, backend))
            .run(&mut programs)?;
        let mut world = net.world();
        world.frontends.retain(|(at, _), _| at.ip() != net.vip);
        world.addresses.insert(net.vip, culvert_abi::address::LINGER);
        programs.kernel.write(&world)?;
        Story::new("goes on", &world)
            .becomes("node_ingress", tcp(client, vip, DATA), tcp(client, backend, DATA))
            .becomes("node_egress", tcp(backend, client, DATA), tcp(vip, client, DATA))
            .left("node_ingress", syn(at(net.client, 40_001), vip))
            .go_on(&mut programs)?;
    }
    Ok(())
}

#[test]
fn a_closed_connection_goes_back_among_the_new_ones() -> Result<()> {
    let mut programs = Programs::load()?;
    let net = nets()[0];
    let (client, asked, backend) = (at(net.client, 40_000), at(net.node, 30080), at(net.remote, 8080));
    let source = at(net.node, net.port(client, backend, proto::TCP));
    let from_client = |story: Story, packet: Make| {
        story.becomes("node_ingress", packet(client, asked), packet(client, backend)).becomes(
            "node_egress",
            packet(client, backend),
            packet(source, backend),
        )
    };
    let from_backend = |story: Story, packet: Make| {
        story.becomes("node_ingress", packet(backend, source), packet(backend, client)).becomes(
            "node_egress",
            packet(backend, client),
            packet(asked, client),
        )
    };
    let opened =
        |name| from_client(from_backend(from_client(Story::new(name, &net.world()), TCP_SYN), tcp_ack), tcp_ack);
    for (name, story) in [
        ("FINs, the backend's last", from_backend(from_client(opened("a"), fin), fin)),
        ("FINs, the client's last", from_client(from_backend(opened("b"), fin), fin)),
        ("a reset of the client", from_client(opened("c"), rst)),
        ("a reset of the backend", from_backend(opened("d"), rst)),
    ] {
        story.run(&mut programs)?;
        for when in ["closed", "after one packet more"] {
            let (old, new) = (rows::<1>(&mut programs, "FLOWS_V4")?, rows::<1>(&mut programs, "FLOWS_NEW_V4")?);
            ensure!(old.is_empty() && new.len() == 3, "{name}, {when}: {old:?}, {new:?}");
            // It is translated as before, and stays where it is.
            from_client(Story::new(name, &net.world()), tcp_ack).go_on(&mut programs)?;
        }
    }
    Ok(())
}

#[test]
fn rows_say_what_passed() -> Result<()> {
    let mut programs = Programs::load()?;
    let net = nets()[0];
    let (client, asked, backend) = (at(net.client, 40_000), at(net.node, 30080), at(net.remote, 8080));
    let source = at(net.node, net.port(client, backend, proto::TCP));
    let story = Story::new("a connection", &net.world())
        .becomes("node_ingress", syn(client, asked), syn(client, backend))
        .becomes("node_egress", syn(client, backend), syn(source, backend))
        .becomes("node_ingress", tcp_ack(backend, source), tcp_ack(backend, client))
        .becomes("node_egress", tcp_ack(backend, client), tcp_ack(asked, client));
    story.run(&mut programs)?;
    ensure!(rows::<1>(&mut programs, "FLOWS_V4")?.is_empty(), "not established before the client speaks again");
    let new = rows::<1>(&mut programs, "FLOWS_NEW_V4")?;
    ensure!(new.len() == 3, "{new:?}");
    Story::new("goes on", &net.world())
        .becomes("node_ingress", tcp(client, asked, DATA), tcp(client, backend, DATA))
        .go_on(&mut programs)?;
    ensure!(rows::<1>(&mut programs, "FLOWS_NEW_V4")?.is_empty(), "all rows are moved");
    let mut seen = Vec::new();
    for (key, row) in rows::<1>(&mut programs, "FLOWS_V4")? {
        let words = |ip| if let IpAddr::V4(ip) = ip { words4(ip) } else { [0] };
        ensure!((row.client, row.client_port) == (words(client.ip()), client.port().to_be()), "{row:?}");
        ensure!((row.frontend, row.frontend_port) == (words(asked.ip()), asked.port().to_be()), "{row:?}");
        ensure!((row.backend, row.backend_port) == (words(backend.ip()), backend.port().to_be()), "{row:?}");
        ensure!((row.source, row.source_port) == (words(source.ip()), source.port().to_be()), "{row:?}");
        if key.role != role::RETURN {
            ensure!(row.flags == flow::REPLACE_CLIENT | flow::REPLIED, "{row:?}");
        }
        seen.push((key.role, row.packets, row.bytes));
    }
    seen.sort_unstable();
    let [origin, path, _] = seen[..] else { anyhow::bail!("{seen:?}") };
    let data = DATA.len() as u64;
    ensure!(origin == (role::ORIGIN, 2, 80 + data) && path == (role::PATH, 1, 40), "{seen:?}");
    let service = programs.kernel.service(2)?;
    ensure!((service.connections, service.packets, service.reply_packets) == (1, 2, 1), "{service:?}");
    ensure!((service.bytes, service.reply_bytes) == (80 + data, 40), "{service:?}");
    Ok(())
}

#[test]
fn connections_of_netfilter_are_left_to_it() -> Result<()> {
    let mut programs = Programs::load()?;
    for net in nets() {
        programs.reset(&net.world())?;
        let (client, vip, backend) = (at(net.client, 40_000), at(net.vip, 80), at(net.local, 8080));
        match (client.ip(), vip.ip(), backend.ip()) {
            (IpAddr::V4(c), IpAddr::V4(f), IpAddr::V4(b)) => {
                foreign(&mut programs, "FLOWS_V4", [words4(c), words4(f), words4(b)])?;
            }
            (IpAddr::V6(c), IpAddr::V6(f), IpAddr::V6(b)) => {
                foreign(&mut programs, "FLOWS_V6", [words6(c), words6(f), words6(b)])?;
            }
            _ => {}
        }
        Story::new("foreign", &net.world())
            .left("node_ingress", tcp(client, vip, DATA))
            .left("node_egress", tcp(backend, client, DATA))
            .left("node_egress", tcp(client, backend, DATA))
            // A new connection from the same port is ours.
            .becomes("node_ingress", syn(client, vip), syn(client, backend))
            .becomes("node_egress", tcp_ack(backend, client), tcp_ack(vip, client))
            .go_on(&mut programs)?;
    }
    Ok(())
}

/// Writes the rows of a TCP connection from port 40000 to 80 that netfilter sends to 8080.
fn foreign<const W: usize>(programs: &mut Programs, map: &str, [client, frontend, to]: [[u32; W]; 3]) -> Result<()>
where
    FlowKey<W>: aya::Pod,
    Flow<W>: aya::Pod,
{
    let (client_port, frontend_port, backend_port) = (40_000_u16.to_be(), 80_u16.to_be(), 8080_u16.to_be());
    let mut row = Flow { client, frontend, backend: to, client_port, frontend_port, backend_port, ..Flow::zeroed() };
    row.flags = flow::FOREIGN | flow::REPLIED;
    row.seen = programs.now();
    let key = |src, dst, sport, dport, role| FlowKey { src, dst, sport, dport, proto: proto::TCP, role, zero: 0 };
    let mut map = programs.kernel.hash(map)?;
    map.insert(key(client, frontend, client_port, frontend_port, role::ORIGIN), row, 0)?;
    map.insert(key(to, client, backend_port, client_port, role::PATH), row, 0)?;
    Ok(())
}
