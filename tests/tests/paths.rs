//! What the path does to packets: small MTUs, fragments, hops that answer.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use culvert_tests::agent::{Options, SocketMode};
use culvert_tests::matrix::{PORT, node_port};
use culvert_tests::place::{Family, Place};
use culvert_tests::stage::{Scenery, Stage, everywhere, session};
use culvert_tests::topology::{PodLinks, cluster_ip, external_ip};
use culvert_tests::traffic::{Ask, Protocol};

const N: u8 = 1;
const MODES: [SocketMode; 2] = [SocketMode::All, SocketMode::Host];

/// Backends a on n1 and c on n2, with policy Cluster.
fn stage(links: PodLinks, mode: SocketMode) -> Result<Stage> {
    let scenery = Scenery::new(links)?;
    scenery.lab.firewall()?;
    let service = everywhere("web", N).ready("n1", &scenery.cast.a).ready("n2", &scenery.cast.c);
    scenery.start(&Options::new(mode)?, [&service])
}

/// Asks until both backends have answered with a message of the wanted size. A datagram that is lost while the path MTU
/// is learnt is sent again, as a program does; a stream must never stand still.
fn both_answer(from: &Place, ask: &Ask, sizes: (usize, usize)) -> Result<()> {
    let ask = ask.clone().sizes(sizes.0, sizes.1);
    let attempts = if ask.protocol == Protocol::Udp { 4 } else { 1 };
    let mut seen = BTreeSet::new();
    for _ in 0..60 {
        let mut session = session(from, &ask)?;
        let mut last = session.exchange();
        for _ in 1..attempts {
            if last.answer().is_none() {
                last = session.exchange();
            }
        }
        let what = format!("{} -> {} {:?} {sizes:?}: {last}", from.name(), ask.to, ask.protocol);
        let answer = last.answer().context(what)?;
        ensure!(answer.received >= sizes.0 && answer.size >= sizes.1, "{answer:?}");
        seen.insert(answer.server.clone());
        if seen.len() == 2 {
            return Ok(());
        }
    }
    anyhow::bail!("{} -> {}: only {seen:?} answered", from.name(), ask.to)
}

/// The frontends that a client outside and a pod use, each with who asks.
fn questions(stage: &Stage, family: Family) -> Vec<(&Place, Ask)> {
    let lab = &stage.cluster.lab;
    let outside = [(external_ip(family, 100 + N), PORT), (lab.nodes[0].host.ip(family), node_port(N))];
    let inside = [(cluster_ip(family, N), PORT)];
    let ask = |to: (IpAddr, u16)| [Ask::tcp(to), Ask::udp(to), Ask::udp(to).unconnected()];
    let outside = outside.into_iter().flat_map(ask).map(|ask| (&lab.client, ask));
    let inside = inside.into_iter().flat_map(ask);
    outside.chain(inside.map(|ask| (&stage.cast.p, ask))).collect()
}

fn every_question(stage: &Stage, sizes: (usize, usize)) -> Result<()> {
    for family in Family::BOTH {
        for (from, ask) in questions(stage, family) {
            both_answer(from, &ask.patience(std::time::Duration::from_secs(2)), sizes)?;
        }
    }
    Ok(())
}

/// A datagram that fills an Ethernet frame, over IPv6 or IPv4; a stream is cut into such by itself.
const FULL: usize = 1_400;

#[test]
fn a_narrow_link_towards_the_client_is_learnt_by_backends() -> Result<()> {
    let stage = stage(PodLinks::Routed, SocketMode::Host)?;
    stage.cluster.lab.router.sh("ip link set eth1 mtu 1300")?;
    for family in Family::BOTH {
        for (from, ask) in questions(&stage, family).into_iter().filter(|(from, _)| from.name() == "client") {
            both_answer(from, &ask, (0, FULL))?;
        }
    }
    for family in Family::BOTH {
        let to = (external_ip(family, 100 + N), PORT);
        both_answer(&stage.cluster.lab.client, &Ask::tcp(to), (0, 100_000))?;
    }
    Ok(())
}

#[test]
fn narrow_links_towards_pods_are_learnt_by_clients() -> Result<()> {
    for (links, mode) in [(PodLinks::Routed, SocketMode::Host), (PodLinks::Routed, SocketMode::All)] {
        let stage = stage(links, mode)?;
        for (node, pod) in [(0, "a"), (1, "c")] {
            stage.cluster.lab.nodes[node].host.sh(&format!("ip link set veth-{pod} mtu 1300"))?;
        }
        every_question(&stage, (FULL, 0)).with_context(|| format!("{links:?} {mode:?}"))?;
        for family in Family::BOTH {
            let to = (external_ip(family, 100 + N), PORT);
            both_answer(&stage.cluster.lab.client, &Ask::tcp(to), (100_000, 0))?;
        }
    }
    Ok(())
}

#[test]
fn fragments_follow_their_first_one() -> Result<()> {
    for links in [PodLinks::Routed, PodLinks::Bridged] {
        for mode in MODES {
            let stage = stage(links, mode)?;
            for sizes in [(4_000, 0), (0, 9_000), (30_000, 30_000)] {
                every_question(&stage, sizes).with_context(|| format!("{links:?} {mode:?} {sizes:?}"))?;
            }
        }
    }
    Ok(())
}

/// The addresses of the hops that answer, in order; `None` for one that does not.
fn traceroute(from: &Place, kind: &str, to: IpAddr, port: u16) -> Result<Vec<Option<IpAddr>>> {
    let output = from.sh(&format!("traceroute -n -q 1 -w 2 -m 5 {kind} -p {port} {to}"))?;
    let hop = |line: &str| line.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    Ok(output.lines().skip(1).map(hop).collect())
}

#[test]
fn traceroute_shows_the_way_and_ends_at_the_frontend() -> Result<()> {
    let scenery = Scenery::new(PodLinks::Routed)?;
    let near = everywhere("near", 1).ready("n1", &scenery.cast.a);
    let far = everywhere("far", 2).ready("n2", &scenery.cast.c);
    let stage = scenery.start(&Options::new(SocketMode::Host)?, [&near, &far])?;
    let lab = &stage.cluster.lab;
    for family in Family::BOTH {
        let first: IpAddr = if family == Family::V4 { "192.0.2.1".parse()? } else { "2001:db8:1::1".parse()? };
        let [n1, n2] = [lab.nodes[0].host.ip(family), lab.nodes[1].host.ip(family)];
        let (near, far) = (external_ip(family, 101), external_ip(family, 102));
        for (to, hops) in [(near, vec![first, n1]), (far, vec![first, n1, n2])] {
            let hops: Vec<_> = hops.into_iter().map(Some).collect();
            let seen = traceroute(&lab.client, "-U", to, PORT)?;
            ensure!(seen.starts_with(&hops), "UDP to {to}: {seen:?}, not {hops:?}");
            let whole: Vec<_> = hops.into_iter().chain([Some(to)]).collect();
            let seen = traceroute(&lab.client, "-T", to, PORT)?;
            ensure!(seen == whole, "TCP to {to}: {seen:?}, not {whole:?}");
        }
        // From a pod, through a ClusterIP: the node is the first hop.
        let to = cluster_ip(family, 2);
        let seen = traceroute(&stage.cast.p, "-T", to, PORT)?;
        ensure!(seen.last() == Some(&Some(to)) && seen.len() == 3, "TCP to {to}: {seen:?}");
    }
    Ok(())
}
