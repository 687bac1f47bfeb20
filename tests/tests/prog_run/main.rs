//! The packet programs, packet by packet: what goes in, what comes out.

mod announce;
mod errors;
mod flows;
mod fragments;
mod headers;
mod layouts;
mod liveness;
mod refusals;
mod sources;
mod translation;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use culvert_abi::{Flow, FlowKey, proto};
use culvert_tests::fixture::{Net, Packet, Programs, Story, nets, syn, tcp, udp};

const DATA: &[u8] = b"some bytes, an odd number of them.!";

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

/// What is told for each kind of packet.
type Make = fn(SocketAddr, SocketAddr) -> Packet;
const TCP_SYN: Make = syn;
const TCP: Make = |from, to| tcp(from, to, DATA);
const UDP: Make = |from, to| udp(from, to, DATA);
const UDP_BARE: Make = |from, to| udp(from, to, DATA).bare();
const SCTP: Make = |from, to| Packet::sctp(from, to, 0, DATA);
const SCTP_BARE: Make = |from, to| Packet::sctp(from, to, 0, DATA).bare();
const SCTP_LONG: Make = |from, to| Packet::sctp(from, to, 0, &[0x5a; 1200]);
const ALL: [(&str, u8, Make); 7] = [
    ("tcp syn", proto::TCP, TCP_SYN),
    ("tcp", proto::TCP, TCP),
    ("udp", proto::UDP, UDP),
    ("udp without checksum", proto::UDP, UDP_BARE),
    ("sctp", proto::SCTP, SCTP),
    ("sctp without checksum", proto::SCTP, SCTP_BARE),
    ("sctp, 1200 bytes", proto::SCTP, SCTP_LONG),
];

/// Runs stories one after the other, each on an empty node.
fn tell(stories: impl IntoIterator<Item = Story>) -> Result<()> {
    let mut programs = Programs::load()?;
    let mut failed = Vec::new();
    for story in stories {
        if let Err(error) = story.run(&mut programs) {
            failed.push(format!("{error:#}"));
        }
    }
    ensure!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
    Ok(())
}

/// A story for each family, protocol and kind of packet.
fn each(about: &str, story: impl Fn(Story, &Net, u8, Make) -> Story) -> Vec<Story> {
    let mut stories = Vec::new();
    for net in nets() {
        for (name, protocol, make) in ALL {
            let title = format!("{about}, {name}, client {}", net.client);
            stories.push(story(Story::new(title, &net.world()), &net, protocol, make));
        }
    }
    stories
}

/// The rows of a map of flows: how many of each role, and all their values.
fn rows<const W: usize>(programs: &mut Programs, map: &str) -> Result<Vec<(FlowKey<W>, Flow<W>)>>
where
    FlowKey<W>: aya::Pod,
    Flow<W>: aya::Pod,
{
    Ok(programs.flows::<W>(map)?.into_values().collect())
}
