//! Sources for what goes to other nodes: how many can be had, and whose are given to another.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use culvert_abi::{BackendCounters, Config, Reason};
use culvert_tests::fixture::{Net, PORT_HIGH, PORT_LOW, Packet, Programs, Story, fin, nets, rst, syn, tcp, tcp_ack};

use super::{DATA, at, rows};

/// Ports of a node that has few.
const FEW: u16 = 4;

/// The programs on a node with [`FEW`] ports for sources.
fn short_of_ports() -> Result<Programs> {
    Programs::with(Config { port_low: PORT_LOW, port_high: PORT_LOW + FEW - 1, ..Config::zeroed() })
}

/// A connection to a backend elsewhere.
#[derive(Clone, Copy, Debug)]
struct Connection {
    client: SocketAddr,
    asked: SocketAddr,
    backend: SocketAddr,
    /// Whom the backend sees.
    source: SocketAddr,
}

impl Connection {
    /// Opens it, with the source that the programs choose; `None` if they find none.
    fn open(programs: &mut Programs, net: &Net, client: SocketAddr) -> Result<Option<Self>> {
        let (asked, backend) = (at(net.node, 30080), at(net.remote, 8080));
        let inside = syn(client, backend).frame(false);
        let seen = programs.run("node_ingress", &syn(client, asked).frame(false))?;
        ensure!(seen.bytes == inside, "{client} is not sent to {backend}: {seen:?}");
        let seen = programs.run("node_egress", &inside)?;
        if seen.verdict == 2 {
            return Ok(None);
        }
        let sport = if client.is_ipv4() { 14 + 20 } else { 14 + 40 };
        let port = u16::from_be_bytes([seen.bytes[sport], seen.bytes[sport + 1]]);
        let source = at(net.node, port);
        ensure!(seen.bytes == syn(source, backend).frame(false), "{client}: {seen:?}");
        Ok(Some(Self { client, asked, backend, source }))
    }

    /// What the client says, as far as the backend.
    fn says(&self, story: Story, packet: fn(SocketAddr, SocketAddr) -> Packet) -> Story {
        let Self { client, asked, backend, source } = *self;
        story.becomes("node_ingress", packet(client, asked), packet(client, backend)).becomes(
            "node_egress",
            packet(client, backend),
            packet(source, backend),
        )
    }

    /// What the backend says, as far as the client.
    fn hears(&self, story: Story, packet: fn(SocketAddr, SocketAddr) -> Packet) -> Story {
        let Self { client, asked, backend, source } = *self;
        story.becomes("node_ingress", packet(backend, source), packet(backend, client)).becomes(
            "node_egress",
            packet(backend, client),
            packet(asked, client),
        )
    }
}

/// Opens a connection that must find a source.
fn open(programs: &mut Programs, net: &Net, port: u16) -> Result<Connection> {
    Connection::open(programs, net, at(net.client, port))?.with_context(|| format!("no source for {port}"))
}

#[test]
fn a_closed_connection_gives_its_source_to_who_finds_no_other() -> Result<()> {
    type End = fn(&Connection, Story) -> Story;
    const BACKEND: u32 = 2;
    let mut programs = short_of_ports()?;
    let net = nets()[0];
    let endings: [(&str, End); 3] = [
        ("a reset of the client", |one, story| one.says(story, rst)),
        ("a reset of the backend", |one, story| one.hears(story, rst)),
        ("a FIN from both", |one, story| one.says(one.hears(story, fin), fin)),
    ];
    for (name, end) in endings {
        programs.reset(&net.world())?;
        let story = || Story::new(name, &net.world());
        let all = (0..FEW).map(|i| open(&mut programs, &net, 40_000 + i)).collect::<Result<Vec<_>>>()?;
        let sources: BTreeSet<_> = all.iter().map(|one| one.source).collect();
        ensure!(sources.len() == usize::from(FEW), "every port is used: {all:?}");
        let exhausted = programs.kernel.reason(Reason::PortsExhausted)?;
        let turned_away = |programs: &mut Programs, port| -> Result<()> {
            let other = Connection::open(programs, &net, at(net.client, port))?;
            ensure!(other.is_none(), "{name}: took the source of one that lives: {other:?}");
            Ok(())
        };
        turned_away(&mut programs, 50_000)?;
        // One FIN is no end.
        all[3].says(story(), fin).go_on(&mut programs)?;
        turned_away(&mut programs, 50_001)?;
        ensure!(programs.kernel.reason(Reason::PortsExhausted)? == exhausted + 2, "{name}: not counted");

        // Of two that are closed, the one that has been for longer goes first.
        let counted = |programs: &mut Programs| -> Result<u64> {
            Ok(programs.kernel.array::<BackendCounters>("BACKEND_COUNTERS_V4")?.get(&BACKEND, 0)?.packets)
        };
        end(&all[2], story()).go_on(&mut programs)?;
        programs.age(3)?;
        end(&all[1], story()).go_on(&mut programs)?;
        for (old, port) in [(2, 50_002), (1, 50_003)] {
            let before = counted(&mut programs)?;
            let new = open(&mut programs, &net, port)?;
            ensure!(new.source == all[old].source, "{name}: {new:?} instead of {:?}", all[old]);
            ensure!(counted(&mut programs)? > before, "{name}: the packets of the old one are lost");
            let left = rows::<1>(&mut programs, "FLOWS_NEW_V4")?;
            let port = all[old].client.port().to_be();
            ensure!(left.iter().all(|(_, row)| row.client_port != port), "{name}: rows of the old one: {left:?}");
            new.says(new.hears(story(), tcp_ack), |from, to| tcp(from, to, DATA)).go_on(&mut programs)?;
        }
        turned_away(&mut programs, 50_004)?;
        // The others did not notice.
        all[0].says(all[0].hears(story(), tcp_ack), |from, to| tcp(from, to, DATA)).go_on(&mut programs)?;
        all[3].hears(story(), fin).go_on(&mut programs)?;
    }
    Ok(())
}

#[test]
fn a_free_source_is_taken_before_that_of_a_closed_connection() -> Result<()> {
    let mut programs = short_of_ports()?;
    for net in nets() {
        programs.reset(&net.world())?;
        let all = (0..FEW - 1).map(|i| open(&mut programs, &net, 40_000 + i)).collect::<Result<Vec<_>>>()?;
        for one in &all {
            one.says(Story::new("reset", &net.world()), rst).go_on(&mut programs)?;
        }
        programs.age(5)?;
        let last = open(&mut programs, &net, 50_000)?;
        ensure!(all.iter().all(|one| one.source != last.source), "{last:?} took a port of {all:?}");
    }
    Ok(())
}

#[test]
fn nearly_all_ports_can_be_used() -> Result<()> {
    // Of 4,536 ports; each connection is to find one, though ever fewer are left.
    const CONNECTIONS: u16 = 4_000;
    let mut programs = Programs::with(Config { port_low: PORT_LOW, port_high: PORT_HIGH, ..Config::zeroed() })?;
    for net in nets() {
        programs.reset(&net.world())?;
        let mut sources = BTreeSet::new();
        for port in 20_000..20_000 + CONNECTIONS {
            sources.insert(open(&mut programs, &net, port)?.source);
        }
        ensure!(sources.len() == usize::from(CONNECTIONS), "{} sources", sources.len());
    }
    Ok(())
}
