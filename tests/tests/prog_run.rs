//! The packet programs, packet by packet: what goes in, what comes out.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use culvert_abi::{Config, Flow, FlowKey, Reason, backend, config, flow, proto, role};
use culvert_tests::fixture::{
    Body, Extension, Net, PORT_HIGH, PORT_LOW, Packet, Programs, Story, fin, nets, rst, syn, tcp, tcp_ack, udp, words4,
    words6,
};

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

#[test]
fn a_frontend_becomes_its_backend_and_back() -> Result<()> {
    let pairs = [("pod_ingress", "pod_egress"), ("node_ingress", "node_egress"), ("node_ingress_l3", "node_egress_l3")];
    tell(pairs.into_iter().flat_map(|(ingress, egress)| {
        each(&format!("{ingress} and back"), |story, net, _, make| {
            let (client, vip, backend) = (at(net.client, 40_000), at(net.vip, 80), at(net.local, 8080));
            let story = story
                .becomes(ingress, make(client, vip), make(client, backend))
                .left("pod_egress", make(client, backend))
                .left("pod_ingress", make(backend, client));
            // Without an Ethernet header a test run takes the family from the source address; see `Net`.
            if egress == "node_egress_l3" {
                return story.becomes("node_egress", make(backend, client), make(vip, client));
            }
            story.becomes(egress, make(backend, client), make(vip, client)).becomes(
                ingress,
                make(client, vip),
                make(client, backend),
            )
        })
    }))
}

#[test]
fn a_port_that_stays_needs_no_new_checksum_of_it() -> Result<()> {
    tell(each("vip:89", |story, net, _, make| {
        let (client, vip, backend) = (at(net.client, 40_000), at(net.vip, 89), at(net.local, 80));
        let story = story.becomes("node_ingress", make(client, vip), make(client, backend));
        story.becomes("node_egress", make(backend, client), make(vip, client))
    }))
}

#[test]
fn a_remote_backend_sees_the_node() -> Result<()> {
    tell(each("NodePort", |story, net, protocol, make| {
        let (client, asked, backend) = (at(net.client, 40_000), at(net.node, 30080), at(net.remote, 8080));
        let source = at(net.node, net.port(client, backend, protocol));
        story
            .becomes("node_ingress", make(client, asked), make(client, backend))
            .becomes("node_egress", make(client, backend), make(source, backend))
            .becomes("node_ingress", make(backend, source), make(backend, client))
            .becomes("node_egress", make(backend, client), make(asked, client))
            .becomes("node_ingress", make(client, asked), make(client, backend))
            .becomes("node_egress", make(client, backend), make(source, backend))
            // A pod asks the same: it keeps its address.
            .becomes("pod_ingress", make(at(net.pod, 40_000), asked), make(at(net.pod, 40_000), backend))
            .left("node_egress", make(at(net.pod, 40_000), backend))
    }))
}

#[test]
fn a_port_in_the_range_is_kept_and_a_taken_one_is_not() -> Result<()> {
    tell(each("source ports", |story, net, protocol, make| {
        let (asked, backend) = (at(net.node, 30080), at(net.remote, 8080));
        let (first, second) = (at(net.client, 61_234), at(net.stranger, 61_234));
        let other = at(net.node, net.port(second, backend, protocol));
        story
            .becomes("node_ingress", make(first, asked), make(first, backend))
            .becomes("node_egress", make(first, backend), make(at(net.node, 61_234), backend))
            .becomes("node_ingress", make(second, asked), make(second, backend))
            .becomes("node_egress", make(second, backend), make(other, backend))
            .becomes("node_ingress", make(backend, at(net.node, 61_234)), make(backend, first))
            .becomes("node_ingress", make(backend, other), make(backend, second))
    }))
}

#[test]
fn a_link_without_an_address_translates_no_source() -> Result<()> {
    tell(each("no source", |mut story, net, _, make| {
        story.world.links.clear();
        let (client, asked, backend) = (at(net.client, 40_000), at(net.node, 30080), at(net.remote, 8080));
        let story = story.becomes("node_ingress", make(client, asked), make(client, backend));
        story.dropped("node_egress", make(client, backend))
    }))
}

#[test]
fn a_pod_reaches_itself() -> Result<()> {
    tell(each("hairpin", |story, net, protocol, make| {
        let (pod, vip, backend) = (at(net.pod, 40_000), at(net.vip, 86), at(net.pod, 8080));
        let source = at(net.node, net.port(pod, backend, protocol));
        story
            .becomes("pod_ingress", make(pod, vip), make(pod, backend))
            .becomes("pod_egress", make(pod, backend), make(source, backend))
            .becomes("pod_ingress", make(backend, source), make(backend, pod))
            .becomes("pod_egress", make(backend, pod), make(vip, pod))
    }))
}

#[test]
fn what_is_not_ours_is_left_alone() -> Result<()> {
    tell(each("not ours", |story, net, protocol, make| {
        let (client, ssh) = (at(net.client, 40_000), at(net.node, 22));
        let icmp = if net.vip.is_ipv4() { 8 } else { 128 };
        let mut story =
            story.left("node_ingress", make(client, at(net.pod, 80))).left("node_ingress", make(client, ssh));
        // A port of the reserved range that we gave to nobody, and an address with nothing but flows.
        story = story.left("node_ingress", make(client, at(net.node, 62_000)));
        story = story.left("node_ingress", make(client, at(net.old, 80)));
        story = story.left("node_ingress", Packet::new(net.client, net.vip, Body::Icmp(icmp, 0, 1, DATA.to_vec())));
        story = story.left("node_ingress", Packet::new(net.client, net.vip, Body::Raw(47, DATA.to_vec())));
        for program in ["pod_egress", "node_egress"] {
            story = story.left(program, make(client, ssh)).left(program, make(at(net.local, 8080), client));
        }
        let _ = protocol;
        story
    }))
}

/// Type and code of an error that needs no fragmentation, of one that a host sends, and of a refusal.
fn errors(net: &Net) -> [(u8, u8); 3] {
    if net.vip.is_ipv4() { [(3, 4), (3, 3), (11, 0)] } else { [(2, 0), (1, 4), (3, 0)] }
}

#[test]
fn errors_are_translated_with_the_packet_that_they_quote() -> Result<()> {
    let mut stories = Vec::new();
    for quoted in [8, 12, 18, 20, 40, 100] {
        stories.extend(each(&format!("errors quoting {quoted} bytes"), |mut story, net, _, make| {
            let (client, vip, backend) = (at(net.client, 40_000), at(net.vip, 80), at(net.local, 8080));
            story = story.becomes("node_ingress", make(client, vip), make(client, backend));
            for kind in errors(net) {
                let error = |from, packet: Packet| Packet::error(from, kind, &packet, quoted);
                story = story
                    // About a reply, from a router before the client and from the client itself.
                    .becomes(
                        "node_ingress",
                        error(net.router, make(vip, client)),
                        error(net.router, make(backend, client)),
                    )
                    .becomes(
                        "node_ingress",
                        error(net.client, make(vip, client)),
                        error(net.client, make(backend, client)),
                    )
                    .left("pod_egress", error(net.router, make(backend, client)))
                    // About a request, from a router behind us and from the backend itself.
                    .left("pod_ingress", error(net.local, make(client, backend)))
                    .becomes(
                        "node_egress",
                        error(net.router, make(client, backend)),
                        error(net.router, make(client, vip)),
                    )
                    .becomes("node_egress", error(net.local, make(client, backend)), error(net.vip, make(client, vip)));
            }
            story
        }));
    }
    tell(stories)
}

#[test]
fn errors_about_translated_sources_find_the_client_and_the_backend() -> Result<()> {
    tell([8, 20, 100].into_iter().flat_map(|quoted| {
        each(&format!("errors beyond the node quoting {quoted} bytes"), |mut story, net, protocol, make| {
            let (client, asked, backend) = (at(net.client, 40_000), at(net.node, 30080), at(net.remote, 8080));
            let source = at(net.node, net.port(client, backend, protocol));
            story = story.becomes("node_ingress", make(client, asked), make(client, backend)).becomes(
                "node_egress",
                make(client, backend),
                make(source, backend),
            );
            for kind in errors(net) {
                let error = |from, packet: Packet| Packet::error(from, kind, &packet, quoted);
                story = story
                    // From the backend and from a router, about a request.
                    .becomes(
                        "node_ingress",
                        error(net.remote, make(source, backend)),
                        error(net.remote, make(client, backend)),
                    )
                    .becomes(
                        "node_egress",
                        error(net.remote, make(client, backend)),
                        error(net.node, make(client, asked)),
                    )
                    .becomes(
                        "node_ingress",
                        error(net.router, make(source, backend)),
                        error(net.router, make(client, backend)),
                    )
                    .becomes(
                        "node_egress",
                        error(net.router, make(client, backend)),
                        error(net.router, make(client, asked)),
                    )
                    // From a router, about a reply.
                    .becomes(
                        "node_ingress",
                        error(net.router, make(asked, client)),
                        error(net.router, make(backend, client)),
                    )
                    .becomes(
                        "node_egress",
                        error(net.router, make(backend, client)),
                        error(net.router, make(backend, source)),
                    );
            }
            story
        })
    }))
}

#[test]
fn errors_of_nobody_are_left_alone() -> Result<()> {
    tell(each("errors without a flow", |mut story, net, _, make| {
        let (client, vip, backend) = (at(net.client, 40_000), at(net.vip, 80), at(net.local, 8080));
        for kind in errors(net) {
            story = story
                .left("node_ingress", Packet::error(net.router, kind, &make(vip, client), 8))
                .left("node_egress", Packet::error(net.router, kind, &make(client, backend), 8));
        }
        story = story.becomes("node_ingress", make(client, vip), make(client, backend));
        // Too little of the packet, a later fragment, an error that was not sent to whom it is about.
        let kind = errors(net)[0];
        story = story.left("node_ingress", Packet::error(net.router, kind, &make(vip, client), 7));
        let later = make(vip, client).fragments(8, 7)[1].clone();
        story = story.left("node_ingress", Packet::error(net.router, kind, &later, 8));
        let mut astray = Packet::error(net.router, kind, &make(vip, client), 8);
        astray.dst = net.node;
        story.left("node_ingress", astray)
    }))
}

#[test]
fn fragments_follow_the_first_one() -> Result<()> {
    let mut stories = Vec::new();
    for net in nets() {
        for (name, protocol, make) in
            [("tcp", proto::TCP, TCP), ("udp", proto::UDP, UDP), ("bare", proto::UDP, UDP_BARE)]
        {
            let (client, vip, backend) = (at(net.client, 40_000), at(net.vip, 80), at(net.local, 8080));
            let pieces = |from, to, id| make(from, to).fragments(24, id);
            let title = format!("fragments, {name}, client {}", net.client);
            let [first, later] = pieces(client, vip, 7);
            let [to_first, to_later] = pieces(client, backend, 7);
            let mut story = Story::new(&title, &net.world())
                .dropped("node_ingress", later.clone())
                .becomes("node_ingress", first, to_first.clone())
                .becomes("node_ingress", later.clone(), to_later.clone())
                .becomes("node_ingress", later, to_later.clone())
                .dropped("node_ingress", pieces(client, vip, 8)[1].clone())
                .left("pod_egress", to_first)
                .left("pod_egress", to_later);
            // The way back, and a fragment that has nothing to do with us.
            let [first, later] = pieces(backend, client, 9);
            let [from_first, from_later] = pieces(vip, client, 9);
            story = story
                .left("pod_ingress", first.clone())
                .left("pod_ingress", later.clone())
                .left("node_egress", later.clone())
                .becomes("node_egress", first, from_first)
                .becomes("node_egress", later, from_later)
                .left("node_ingress", pieces(client, at(net.pod, 80), 10)[1].clone());
            stories.push(story);
            // Through a translated source.
            let (asked, backend) = (at(net.node, 30080), at(net.remote, 8080));
            let source = at(net.node, net.port(client, backend, protocol));
            let mut story = Story::new(format!("{title}, NodePort"), &net.world());
            for i in 0..2 {
                story = story
                    .becomes("node_ingress", pieces(client, asked, 7)[i].clone(), pieces(client, backend, 7)[i].clone())
                    .becomes(
                        "node_egress",
                        pieces(client, backend, 7)[i].clone(),
                        pieces(source, backend, 7)[i].clone(),
                    );
            }
            for i in 0..2 {
                story = story
                    .becomes(
                        "node_ingress",
                        pieces(backend, source, 8)[i].clone(),
                        pieces(backend, client, 8)[i].clone(),
                    )
                    .becomes("node_egress", pieces(backend, client, 8)[i].clone(), pieces(asked, client, 8)[i].clone());
            }
            stories.push(story);
            // Nobody is told about a fragment.
            let [first, later] = pieces(client, at(net.vip, 81), 7);
            stories.push(
                Story::new(format!("{title}, refused"), &net.world())
                    .dropped("node_ingress", first)
                    .dropped("node_ingress", later),
            );
        }
        let [first, later] = SCTP(at(net.client, 40_000), at(net.vip, 80)).fragments(16, 7);
        stories.push(
            Story::new("SCTP in fragments", &net.world()).left("node_ingress", first).left("node_ingress", later),
        );
    }
    tell(stories)
}

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
            let mut story = Story::new(format!("refused at {ingress}, client {from}"), &net.world());
            for asked in [empty, closed] {
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
            (Reason::NoTable, client, at(net.vip, 85)),
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
fn headers_in_all_their_forms() -> Result<()> {
    let [v4, v6] = nets();
    let mut stories = Vec::new();
    for (name, _, make) in ALL {
        let (client, vip, backend) = (at(v4.client, 40_000), at(v4.vip, 80), at(v4.local, 8080));
        let mut story = Story::new(format!("options, {name}"), &v4.world());
        for options in [&[1, 1, 1, 0][..], &[1; 40]] {
            story = story.becomes(
                "node_ingress",
                make(client, vip).options(options),
                make(client, backend).options(options),
            );
            story = story.becomes(
                "node_egress",
                make(backend, client).options(options),
                make(vip, client).options(options),
            );
        }
        stories.push(story);

        let (client, vip, backend) = (at(v6.client, 40_000), at(v6.vip, 80), at(v6.local, 8080));
        let authentication = Extension(51, [&[4][..], &[0; 22]].concat());
        let routing =
            |left| Extension(43, vec![2, 2, left, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let (hop, options, atomic) = (Extension::padding(0), Extension::padding(60), Extension::fragment(0, false, 7));
        let mut chains = vec![
            vec![hop.clone()],
            vec![hop.clone(), options.clone(), routing(0), authentication, options.clone()],
            vec![options.clone(); 6],
        ];
        if make as usize != SCTP as usize {
            chains.push(vec![atomic]);
        }
        let mut story = Story::new(format!("extensions, {name}"), &v6.world());
        for chain in &chains {
            story =
                story.becomes("node_ingress", make(client, vip).extended(chain), make(client, backend).extended(chain));
            story =
                story.becomes("node_egress", make(backend, client).extended(chain), make(vip, client).extended(chain));
        }
        for chain in [vec![options.clone(); 7], vec![routing(1)]] {
            story = story.left("node_ingress", make(client, vip).extended(&chain));
            story = story.left("node_egress", make(backend, client).extended(&chain));
        }
        stories.push(story);
    }
    tell(stories)
}

#[test]
fn what_cannot_be_read_is_left_alone() -> Result<()> {
    let mut programs = Programs::load()?;
    for net in nets() {
        programs.reset(&net.world())?;
        let ip = if net.vip.is_ipv4() { 20 } else { 40 };
        for (name, protocol, make) in ALL {
            let whole = make(at(net.client, 40_000), at(net.vip, 80)).frame(false);
            let needed = match protocol {
                proto::TCP => 20,
                proto::UDP => 8,
                _ => 12,
            };
            // Cut short, with lengths that agree and with lengths that lie.
            for length in 0..needed {
                let mut short = whole[..14 + ip + length].to_vec();
                set_length(&mut short, length);
                leaves(&mut programs, &short, Some(Reason::Malformed), &format!("{name} of {length} bytes"))?;
                let lie = &whole[..14 + ip + length];
                leaves(&mut programs, lie, Some(Reason::Malformed), &format!("{name} cut to {length} bytes"))?;
            }
            // The first bytes of the IP header: version and length.
            for first in 0..=255_u8 {
                let good = if net.vip.is_ipv4() { first == 0x45 } else { first >> 4 == 6 };
                let reads_options = net.vip.is_ipv4() && first >> 4 == 4 && first & 0xf > 5;
                if !good && !reads_options {
                    let mut odd = whole.clone();
                    odd[14] = first;
                    leaves(&mut programs, &odd, Some(Reason::Malformed), &format!("{name}, first byte {first:#x}"))?;
                }
            }
            // Padding of the link behind the packet is no part of it.
            let (client, backend) = (at(net.client, 40_000), at(net.local, 8080));
            let pad = [0xee; 30];
            let seen = programs.run("node_ingress", &[&whole[..], &pad].concat())?;
            ensure!(seen.bytes == [&make(client, backend).frame(false)[..], &pad].concat(), "{name} with padding");
        }
        let tagged =
            [&[2; 12][..], &[0x81, 0, 0, 5], &syn(at(net.client, 1), at(net.vip, 80)).frame(false)[12..]].concat();
        leaves(&mut programs, &tagged, None, "a tag")?;
        leaves(&mut programs, &[0; 60], None, "no protocol")?;
    }
    Ok(())
}

/// Writes the length that the IP header says.
fn set_length(frame: &mut [u8], payload: usize) {
    let (at, value) = if frame[14] >> 4 == 4 { (16, 20 + payload) } else { (18, payload) };
    frame[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
}

/// The packet goes on as it is at every program, and ingress counts why.
fn leaves(programs: &mut Programs, frame: &[u8], reason: Option<Reason>, about: &str) -> Result<()> {
    for program in ["pod_ingress", "node_ingress", "pod_egress", "node_egress"] {
        let before = reason.map(|reason| programs.kernel.reason(reason)).transpose()?;
        let seen = programs.run(program, frame)?;
        ensure!(seen.verdict == -1 && seen.bytes == frame, "{about} at {program}: {seen:?}");
        let counted = u64::from(program.ends_with("ingress"));
        if let (Some(reason), Some(before)) = (reason, before) {
            let after = programs.kernel.reason(reason)?;
            ensure!(after == before + counted, "{about} at {program}: {} {before} then {after}", reason.name());
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
        ensure!(programs.run("node_ingress", &udp(client, vip, DATA).frame(false))?.verdict == 2, "nobody is there");
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

/// The rows of a map of flows: how many of each role, and all their values.
fn rows<const W: usize>(programs: &mut Programs, map: &str) -> Result<Vec<(FlowKey<W>, Flow<W>)>>
where
    FlowKey<W>: aya::Pod,
    Flow<W>: aya::Pod,
{
    Ok(programs.flows::<W>(map)?.into_values().collect())
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

/// How many rows there are in the maps of another layout.
fn previous(programs: &mut Programs) -> Result<usize> {
    let mut count = 0;
    for map in ["PREVIOUS_FLOWS_NEW", "PREVIOUS_FLOWS"] {
        count += programs.flows::<1>(&format!("{map}_V4"))?.len() + programs.flows::<4>(&format!("{map}_V6"))?.len();
    }
    Ok(count)
}

#[test]
fn two_layouts_share_their_flows() -> Result<()> {
    let ports = Config { port_low: PORT_LOW, port_high: PORT_HIGH, ..Config::zeroed() };
    let mut programs = Programs::with(Config { flags: config::MIGRATING, ..ports })?;
    for net in nets() {
        let (client, asked, backend) = (at(net.client, 40_000), at(net.node, 30080), at(net.remote, 8080));
        let source = at(net.node, net.port(client, backend, proto::TCP));
        let request =
            Story::new("request", &net.world()).becomes("node_ingress", syn(client, asked), syn(client, backend));
        let onward =
            Story::new("onward", &net.world()).becomes("node_egress", syn(client, backend), syn(source, backend));
        let reply = Story::new("reply", &net.world())
            .becomes("node_ingress", tcp_ack(backend, source), tcp_ack(backend, client))
            .becomes("node_egress", tcp_ack(backend, client), tcp_ack(asked, client));
        let more = Story::new("more", &net.world())
            .becomes("node_ingress", tcp(client, asked, DATA), tcp(client, backend, DATA))
            .becomes("node_egress", tcp(client, backend, DATA), tcp(source, backend, DATA));

        // The other programs were alone until some packet; ours go on from there.
        let steps = [&request, &onward, &reply, &more, &more];
        for alone in 1..steps.len() {
            programs.reset(&net.world())?;
            for step in &steps[..alone] {
                step.go_on(&mut programs)?;
            }
            // Nobody asks these for anything: the port would be chosen anew, and another one.
            programs.become_previous()?;
            for step in &steps[alone..] {
                step.go_on(&mut programs)?;
            }
        }

        // The ingress of ours wrote a flow, and the other programs' egress chose a port that ours would not.
        programs.reset(&net.world())?;
        request.go_on(&mut programs)?;
        ensure!(previous(&mut programs)? == 2, "both rows are written along");
        let chosen = at(net.node, source.port() ^ 1);
        match net.node {
            IpAddr::V4(ip) => choose_there(&mut programs, "PREVIOUS_FLOWS_NEW_V4", words4(ip), chosen.port())?,
            IpAddr::V6(ip) => choose_there(&mut programs, "PREVIOUS_FLOWS_NEW_V6", words6(ip), chosen.port())?,
        }
        Story::new("a port chosen elsewhere", &net.world())
            .becomes("node_ingress", tcp_ack(backend, chosen), tcp_ack(backend, client))
            .becomes("node_egress", syn(client, backend), syn(chosen, backend))
            .go_on(&mut programs)?;

        // What ends, ends there too: else the next miss would bring it back.
        programs.reset(&net.world())?;
        request.go_on(&mut programs)?;
        onward.go_on(&mut programs)?;
        ensure!(previous(&mut programs)? == 3, "all rows are written along");
        Story::new("ends", &net.world())
            .becomes("node_ingress", rst(client, asked), rst(client, backend))
            .go_on(&mut programs)?;
        let mut world = net.world();
        world.frontends.clear();
        programs.kernel.write(&world)?;
        Story::new("over", &world).left("node_ingress", syn(client, asked)).go_on(&mut programs)?;
        ensure!(previous(&mut programs)? == 0, "no row is left there");
    }
    Ok(())
}

/// Chooses a source for the only flow of a map, as other programs would: in its two rows, and in a third.
fn choose_there<const W: usize>(programs: &mut Programs, map: &str, source: [u32; W], port: u16) -> Result<()>
where
    FlowKey<W>: aya::Pod,
    Flow<W>: aya::Pod,
{
    for (key, mut row) in rows::<W>(programs, map)? {
        (row.source, row.source_port) = (source, port.to_be());
        let mut map = programs.kernel.hash(map)?;
        map.insert(key, row, 0)?;
        if key.role == role::PATH {
            map.insert(FlowKey { dst: source, dport: port.to_be(), role: role::RETURN, ..key }, row, 0)?;
        }
    }
    Ok(())
}
