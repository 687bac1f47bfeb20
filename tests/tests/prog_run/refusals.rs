//! Packets that are not served: answered in place, or dropped.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use culvert_abi::Reason;
use culvert_tests::fixture::{Body, Extension, Net, Packet, Programs, Story, fin, nets, rst, syn, tcp, tcp_ack, udp};

use super::{ALL, DATA, SCTP, SCTP_LONG, UDP, UDP_BARE, at, tell};

/// The answer to a refused TCP segment.
fn reset(net: &Net, from: SocketAddr, to: SocketAddr, seq: u32, ack: u32, flags: u8) -> Packet {
    let (sport, dport) = (from.port(), to.port());
    let body = Body::Tcp { sport, dport, seq, ack, flags, window: 0, data: vec![] };
    answer(net, Packet::new(from.ip(), to.ip(), body))
}

/// What answers have in common.
fn answer(net: &Net, packet: Packet) -> Packet {
    Packet { ttl: 64, fragment: net.vip.is_ipv4().then_some((0, false, 0)), ..packet }
}

/// The answer to another refused packet.
fn unreachable(net: &Net, packet: &Packet) -> Packet {
    let body = if net.vip.is_ipv4() {
        let header = 20 + packet.options.len();
        Body::Icmp(3, 3, 0, packet.bytes()[..header + 8].to_vec())
    } else {
        let mut quote = packet.bytes();
        quote.truncate(128);
        Body::Icmp(1, 4, 0, quote)
    };
    answer(net, Packet::new(packet.dst, packet.src, body))
}

#[test]
fn refusals_are_answered_in_place() -> Result<()> {
    const RST: u8 = 4;
    const RST_ACK: u8 = 0x14;
    let mut stories = Vec::new();
    for net in nets() {
        for (ingress, from) in [("node_ingress", net.client), ("pod_ingress", net.pod), ("node_ingress_l3", net.client)]
        {
            let (client, empty, closed) = (at(from, 40_000), at(net.vip, 81), at(net.vip, 9999));
            let unlisted = at(net.vip, 85);
            let mut story = Story::new(format!("refused at {ingress}, client {from}"), &net.world());
            for asked in [empty, closed, unlisted] {
                story = story
                    .answered(ingress, syn(client, asked), reset(&net, asked, client, 0, 0x1122_3345, RST_ACK))
                    .dropped(ingress, rst(client, asked));
                for make in [UDP, UDP_BARE, SCTP, SCTP_LONG] {
                    story = story.answered(ingress, make(client, asked), unreachable(&net, &make(client, asked)));
                }
                // A test run without an Ethernet header wants an IP header behind the first 14 bytes all the same.
                if ingress != "node_ingress_l3" {
                    let short = udp(client, asked, &[]);
                    story = story.answered(ingress, short.clone(), unreachable(&net, &short));
                }
            }
            story = story
                // In the middle of a connection: only a port that is not served is told.
                .dropped(ingress, tcp(client, empty, DATA))
                .dropped(ingress, tcp(client, unlisted, DATA))
                .answered(ingress, tcp(client, closed, DATA), reset(&net, closed, client, 0x0102_0304, 0, RST))
                .answered(ingress, fin(client, closed), reset(&net, closed, client, 0x0102_0304, 0, RST))
                .answered(ingress, tcp_ack(client, closed), reset(&net, closed, client, 0x0102_0304, 0, RST));
            // Sequence numbers wrap, and data counts.
            let mut wrapping = syn(client, closed).numbers(u32::MAX - 1, 0);
            if let Body::Tcp { data, .. } = &mut wrapping.body {
                data.extend([1, 2, 3, 4, 5]);
            }
            story = story.answered(ingress, wrapping, reset(&net, closed, client, 0, 4, RST_ACK));
            // A port of the node itself that no Service has is not ours to refuse.
            story = story
                .left(ingress, syn(client, at(net.node, 9999)))
                .left(ingress, udp(client, at(net.node, 9999), DATA));
            if net.vip.is_ipv4() {
                let options = syn(client, empty).options(&[1, 1, 1, 0]);
                story = story.answered(ingress, options, reset(&net, empty, client, 0, 0x1122_3345, RST_ACK));
                let options = udp(client, empty, DATA).options(&[1; 40]);
                story = story.answered(ingress, options.clone(), unreachable(&net, &options));
            } else {
                let extended = udp(client, empty, DATA).extended(&[Extension::padding(0), Extension::padding(60)]);
                story = story.answered(ingress, extended.clone(), unreachable(&net, &extended));
            }
            stories.push(story);
        }
    }
    tell(stories)
}

#[test]
fn drops_are_silent() -> Result<()> {
    let mut programs = Programs::load()?;
    for net in nets() {
        let client = at(net.client, 40_000);
        let stranger = at(net.stranger, 40_000);
        let nowhere: IpAddr = if net.vip.is_ipv4() { "0.0.0.0".parse()? } else { "::".parse()? };
        let loopback: IpAddr = if net.vip.is_ipv4() { "127.0.0.9".parse()? } else { "::1".parse()? };
        let ranged = at(net.vip, 83);
        let cases = [
            (Reason::NoLocalEndpoints, client, at(net.vip, 82)),
            (Reason::SourceRange, stranger, ranged),
            (Reason::Martian, at(nowhere, 40_000), at(net.vip, 80)),
            (Reason::Martian, at(loopback, 40_000), at(net.vip, 80)),
        ];
        for (reason, from, to) in cases {
            for (name, _, make) in ALL {
                let before = programs.kernel.reason(reason)?;
                Story::new(format!("{}, {name}", reason.name()), &net.world())
                    .dropped("node_ingress", make(from, to))
                    .dropped("pod_ingress", make(from, to))
                    .run(&mut programs)?;
                ensure!(programs.kernel.reason(reason)? == before + 2, "{} is not counted", reason.name());
            }
        }
        Story::new("inside the ranges", &net.world())
            .becomes("node_ingress", syn(client, ranged), syn(client, at(net.local, 8083)))
            .run(&mut programs)?;
        // The host's own packets that its sockets left alone.
        Story::new("the host", &net.world())
            .dropped("node_egress", syn(at(net.node, 40_000), at(net.vip, 82)))
            .left("node_egress", syn(at(net.node, 40_000), at(net.vip, 80)))
            .left("pod_egress", syn(at(net.node, 40_000), at(net.vip, 82)))
            .run(&mut programs)?;
    }
    Ok(())
}
