//! Announced addresses: ARP, neighbour discovery and echo, frame by frame. What a frame says is read by the pure model of
//! `culvert-announce`, which shares no code with the programs.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{MapData, RingBuf};
use culvert_abi::{Plain as _, Rival, announced, rival};
use culvert_announce::probe::packet::{Arp, Mac, Neighbor, Packet as Frame, solicited_node};
use culvert_tests::fixture::{Body, Extension, LINK, MAC, Packet, Programs, Seen, Story, nets, syn, tcp, udp};
use culvert_tests::world::{Announced, World};

use super::{at, tell};

pub(super) const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(super) const ASKING_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
pub(super) const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0x12, 0x3456);
pub(super) const ASKING_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x77);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const OURS: Mac = Mac(MAC);
pub(super) const PEER: Mac = Mac([2, 0, 0, 0, 0, 0xb]);
const STRANGER: Mac = Mac([2, 0, 0, 0, 0, 0xc]);

pub(super) const LEFT: i32 = -1;
pub(super) const REDIRECTED: i32 = 7;

/// Both addresses on the link, with these rows.
pub(super) fn world(until: u64, flags: u32) -> World {
    let [net, _] = nets();
    let announced =
        [V4.into(), V6.into()].map(|ip: IpAddr| ((ip, LINK), Announced { until, flags, ..Announced::default() }));
    World { announced: announced.into(), links: net.world().links, ..World::default() }
}

fn speaking() -> World {
    world(u64::MAX, announced::ANSWER | announced::ECHO)
}

fn addressed(to: Mac, mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].copy_from_slice(&to.0);
    frame
}

pub(super) fn request(from: Mac, sender: Ipv4Addr) -> Vec<u8> {
    Frame::Arp(Arp { sender, ..Arp::announcement(from, V4) }).encode()
}

fn solicitation(from: Mac, source: Ipv6Addr, link: Option<Mac>) -> Vec<u8> {
    Frame::Neighbor(Neighbor::Solicitation { from, source, target: V6, link }).encode()
}

fn advertisement(from: Mac, destination: Ipv6Addr, solicited: bool, overrides: bool) -> Vec<u8> {
    let (target, link) = (V6, Some(from));
    let source = target;
    Frame::Neighbor(Neighbor::Advertisement { from, source, destination, target, link, solicited, overrides }).encode()
}

/// The answer to a frame, as the RFCs want it.
fn answer(frame: &[u8]) -> Option<Vec<u8>> {
    let to = Mac(*frame.first_chunk()?);
    let group = |mac: Mac| mac.0[0] & 1 != 0 || mac.0 == [0; 6];
    match Frame::decode(frame)? {
        Frame::Arp(Arp { is_reply: false, sender_mac, sender, target: V4, .. }) => {
            let fit = (to == Mac::BROADCAST || to == OURS) && !group(sender_mac) && sender_mac != OURS && sender != V4;
            let reply = Arp { is_reply: true, sender_mac: OURS, sender: V4, target_mac: sender_mac, target: sender };
            let reply = addressed(sender_mac, Frame::Arp(reply).encode());
            fit.then(|| [&reply, frame.get(42..).unwrap_or_default()].concat())
        }
        Frame::Neighbor(Neighbor::Solicitation { from, source, target: V6, link }) => {
            let asking = link.unwrap_or(from);
            let odd = source.is_multicast() || source.is_loopback();
            if !(to == OURS || to.0[..2] == [0x33, 0x33]) || group(asking) || asking == OURS || odd {
                return None;
            }
            if source.is_unspecified() {
                return Some(Frame::Neighbor(Neighbor::unsolicited(OURS, V6)).encode());
            }
            Some(addressed(asking, advertisement(OURS, source, true, false)))
        }
        _ => None,
    }
}

/// What a program does with a frame is what the model says.
pub(super) fn agrees(programs: &mut Programs, frame: &[u8], about: &str) -> Result<bool> {
    let seen = programs.run("node_ingress", frame)?;
    let want = match answer(frame) {
        Some(bytes) => Seen { verdict: REDIRECTED, bytes },
        None => Seen { verdict: LEFT, bytes: frame.to_vec() },
    };
    ensure!(seen == want, "{about}\n  in   {frame:02x?}\n  out  {seen:02x?}\n  want {want:02x?}");
    Ok(want.verdict == REDIRECTED)
}

fn is_left(programs: &mut Programs, program: &str, frame: &[u8], about: &str) -> Result<()> {
    let seen = programs.run(program, frame)?;
    ensure!(seen == Seen { verdict: LEFT, bytes: frame.to_vec() }, "{about}: {seen:02x?}");
    Ok(())
}

/// Frames that are answered.
pub(super) fn questions() -> Vec<(&'static str, Vec<u8>)> {
    let padded = [request(PEER, ASKING_V4), vec![0xee; 18]].concat();
    let mut with_nonce = solicitation(PEER, ASKING_V6, Some(PEER));
    with_nonce.splice(78..78, [14, 1, 1, 2, 3, 4, 5, 6]);
    with_nonce[19] += 8;
    vec![
        ("a request", request(PEER, ASKING_V4)),
        ("a request with padding", padded),
        ("a request to one host", addressed(OURS, request(PEER, ASKING_V4))),
        ("a probe", request(PEER, Ipv4Addr::UNSPECIFIED)),
        ("a solicitation", solicitation(PEER, ASKING_V6, Some(PEER))),
        ("a solicitation to one host", addressed(OURS, to_one(solicitation(PEER, ASKING_V6, None)))),
        ("a solicitation for another's link address", solicitation(PEER, ASKING_V6, Some(STRANGER))),
        ("a solicitation with two options", sealed(with_nonce)),
        ("duplicate address detection", solicitation(PEER, Ipv6Addr::UNSPECIFIED, None)),
    ]
}

/// The destination of a solicitation is the target itself.
fn to_one(mut frame: Vec<u8>) -> Vec<u8> {
    frame[38..54].copy_from_slice(&V6.octets());
    sealed(frame)
}

/// The right checksum.
fn sealed(mut frame: Vec<u8>) -> Vec<u8> {
    frame[56..58].fill(0);
    let (length, body) = ((frame.len() - 54) as u32 + 58, &frame[22..]);
    let mut sum = body.chunks(2).map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u64>();
    sum += u64::from(length);
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    let check = (!(sum as u16)).to_be_bytes();
    frame[56..58].copy_from_slice(&check);
    frame
}

#[test]
fn questions_are_answered_and_nothing_else_is() -> Result<()> {
    let mut programs = Programs::load()?;
    programs.reset(&speaking())?;
    for (about, frame) in questions() {
        ensure!(agrees(&mut programs, &frame, about)?, "{about} is not answered by the model");
        for program in ["pod_ingress", "pod_egress", "node_egress"] {
            is_left(&mut programs, program, &frame, about)?;
        }
        // Each bit, and each of some values of each byte: nothing is answered that should not be, or otherwise.
        for byte in 0..frame.len() {
            for value in (0..8).map(|bit| frame[byte] ^ (1 << bit)).chain([0, 1, 2, 0xff]) {
                let mut changed = frame.clone();
                changed[byte] = value;
                agrees(&mut programs, &changed, &format!("{about}, byte {byte} = {value:#x}"))?;
                if byte >= 22 && frame[12..14] == [0x86, 0xdd] {
                    agrees(&mut programs, &sealed(changed), &format!("{about}, sealed, byte {byte} = {value:#x}"))?;
                }
            }
        }
        for length in 14..frame.len() {
            // The kernel itself refuses to run a program on less than an IP header where one must be.
            let too_short = frame[12..14] == [0x86, 0xdd] && length < 54;
            if !too_short {
                agrees(&mut programs, &frame[..length], &format!("{about}, {length} bytes"))?;
            }
        }
    }
    Ok(())
}

#[test]
fn only_where_and_while_it_is_announced() -> Result<()> {
    let mut programs = Programs::load()?;
    let flags = announced::ANSWER | announced::ECHO;
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    let now = std::time::Duration::from(now).as_nanos() as u64;
    let soon = now + 60_000_000_000;
    let without_mac = {
        let mut world = speaking();
        world.links.values_mut().for_each(|link| link.mac = [0; 6]);
        world
    };
    let elsewhere = {
        let mut world = speaking();
        world.announced = world.announced.into_iter().map(|((ip, _), row)| ((ip, LINK + 1), row)).collect();
        world
    };
    for (about, world, answered) in [
        ("for ever", world(u64::MAX, flags), true),
        ("until soon", world(soon, flags), true),
        ("until a moment ago", world(now, flags), false),
        ("never", world(0, flags), false),
        ("watched only", world(u64::MAX, 0), false),
        ("on another link", elsewhere, false),
        ("on a link whose address is not known", without_mac, false),
        ("nowhere", World::default(), false),
    ] {
        programs.reset(&world)?;
        for (question, frame) in questions() {
            if answered {
                agrees(&mut programs, &frame, &format!("{question} for what is announced {about}"))?;
            } else {
                is_left(&mut programs, "node_ingress", &frame, &format!("{question}, announced {about}"))?;
            }
        }
        for at in world.announced.keys().filter(|(_, link)| *link == LINK) {
            let counted = programs.kernel.announced(*at)?;
            let asked = questions().iter().filter(|(_, frame)| (frame[13] == 6) == at.0.is_ipv4()).count() as u64;
            let known = world.links.values().any(|link| link.mac != [0; 6]);
            let want = if known { (asked, if answered { 0 } else { asked }) } else { (0, 0) };
            ensure!((counted.requests, counted.refusals) == want, "{about}, {}: {counted:?}", at.0);
            ensure!(counted.answers == counted.requests - counted.refusals, "{about}: {counted:?}");
        }
    }
    Ok(())
}

/// What the agent was told since the last look.
fn told(ring: &mut RingBuf<MapData>) -> Vec<Rival> {
    std::iter::from_fn(|| ring.next().map(|record| Rival::from_prefix(&record))).collect()
}

#[test]
fn the_agent_is_told_of_rivals() -> Result<()> {
    let mut programs = Programs::load()?;
    let ring = programs.kernel.object().take_map("RIVALS").context("RIVALS")?;
    let mut ring = RingBuf::try_from(ring)?;
    let reply = |from| Frame::Arp(Arp { is_reply: true, ..Arp::announcement(from, V4) }).encode();
    let uses = [
        ("an announcement", request(STRANGER, V4)),
        ("a reply to all", reply(STRANGER)),
        ("a reply to one", addressed(PEER, reply(STRANGER))),
        (
            "a request for another address",
            Frame::Arp(Arp { target: ASKING_V4, ..Arp::announcement(STRANGER, V4) }).encode(),
        ),
        ("an unsolicited advertisement", advertisement(STRANGER, ALL_NODES, false, true)),
        ("a solicited advertisement", addressed(PEER, advertisement(STRANGER, ASKING_V6, true, true))),
    ];
    let asks = [
        ("a probe", request(STRANGER, Ipv4Addr::UNSPECIFIED)),
        ("duplicate address detection", solicitation(STRANGER, Ipv6Addr::UNSPECIFIED, None)),
    ];
    let nothing = [
        ("our own announcement", request(OURS, V4)),
        ("our own advertisement", advertisement(OURS, ALL_NODES, false, true)),
        ("a solicited advertisement to all", advertisement(STRANGER, ALL_NODES, true, true)),
        ("a request", request(STRANGER, ASKING_V4)),
        ("a solicitation", solicitation(STRANGER, ASKING_V6, Some(STRANGER))),
    ];
    for (speaks, world) in [(true, speaking()), (false, world(0, 0))] {
        let frames = uses.iter().map(|one| (one, Some(rival::USES)));
        let frames = frames.chain(asks.iter().map(|one| (one, (!speaks).then_some(rival::ASKS))));
        for ((about, frame), kind) in frames.chain(nothing.iter().map(|one| (one, None))) {
            programs.reset(&world)?;
            for _ in 0..3 {
                let seen = programs.run("node_ingress", frame)?;
                ensure!(kind.is_none() || seen.verdict == LEFT, "{about}: {seen:?}");
            }
            let ip: IpAddr = if frame[13] == 6 { V4.into() } else { V6.into() };
            let (told, counted) = (told(&mut ring), programs.kernel.announced((ip, LINK))?.rivals);
            let Some(kind) = kind else {
                ensure!(told.is_empty() && counted == 0, "{about}: {told:?}, {counted}");
                continue;
            };
            // Three within a moment are told of once.
            let [one] = told.as_slice() else { anyhow::bail!("{about}: {told:?}") };
            let family = if ip.is_ipv4() { 4 } else { 6 };
            ensure!(counted == 3 && (one.kind, one.family, one.ifindex) == (kind, family, LINK), "{about}: {one:?}");
            ensure!(one.mac == STRANGER.0 && one.at != 0, "{about}: {one:?}");
        }
    }
    Ok(())
}

/// The model that the agent runs calls the same frames a conflict.
#[test]
fn rivals_are_those_of_the_model() -> Result<()> {
    use culvert_announce::probe::{Start, Watch};
    use std::time::Duration;
    let mut programs = Programs::load()?;
    let ring = programs.kernel.object().take_map("RIVALS").context("RIVALS")?;
    let mut ring = RingBuf::try_from(ring)?;
    let frames = [request(STRANGER, V4), advertisement(STRANGER, ALL_NODES, false, true)];
    for frame in frames {
        let ip: IpAddr = if frame[13] == 6 { V4.into() } else { V6.into() };
        for byte in 0..frame.len() {
            for value in (0..8).map(|bit| frame[byte] ^ (1 << bit)) {
                let mut changed = frame.clone();
                changed[byte] = value;
                if ip.is_ipv6() && (22..86).contains(&byte) {
                    changed = sealed(changed);
                }
                programs.reset(&speaking())?;
                programs.run("node_ingress", &changed)?;
                let mut watch = Watch::new(ip, OURS, Start::AtOnce, 0, Duration::ZERO);
                let model = Frame::decode(&changed)
                    .and_then(|packet| watch.heard(&packet, &BTreeSet::new(), Duration::ZERO))
                    .map(|(conflict, _)| conflict.mac.0);
                let kernel = told(&mut ring).first().map(|rival| rival.mac);
                ensure!(kernel == model, "byte {byte} = {value:#x}: {kernel:?} instead of {model:?}\n{changed:02x?}");
            }
        }
    }
    Ok(())
}

pub(super) fn echo(from: IpAddr, to: IpAddr, kind: u8) -> Packet {
    Packet::new(from, to, Body::Icmp(kind, 0, 0x1234_0001, b"some bytes, an odd number of them.!".to_vec()))
}

#[test]
fn echo_is_answered() -> Result<()> {
    let mut stories = Vec::new();
    for net in nets() {
        let ip = net.vip;
        let (asks, answers) = if ip.is_ipv4() { (8, 0) } else { (128, 129) };
        let mut world = net.world();
        world.announced.insert(
            (ip, LINK),
            Announced { until: u64::MAX, flags: announced::ANSWER | announced::ECHO, ..Announced::default() },
        );
        let question = echo(net.client, ip, asks);
        let mut long = question.clone();
        long.body = Body::Icmp(asks, 0, 7, vec![0x5a; 1400]);
        let mut answer_to_long = echo(ip, net.client, answers).ttl(64);
        answer_to_long.body = Body::Icmp(answers, 0, 7, vec![0x5a; 1400]);
        let loopback: IpAddr = if ip.is_ipv4() { "127.0.0.1".parse()? } else { "::1".parse()? };
        let group: IpAddr = if ip.is_ipv4() { "224.0.0.1".parse()? } else { "ff02::1".parse()? };
        let mut story = Story::new(format!("echo of {ip}"), &world)
            .answered("node_ingress", question.clone(), echo(ip, net.client, answers).ttl(64))
            .answered("node_ingress", question.clone().ttl(1), echo(ip, net.client, answers).ttl(64))
            .answered("node_ingress", long, answer_to_long)
            .left("node_ingress", echo(net.client, ip, answers))
            .left("node_ingress", echo(net.client, net.old, asks))
            .left("node_ingress", echo(loopback, ip, asks))
            .left("node_ingress", echo(group, ip, asks))
            .left("pod_ingress", question.clone())
            .left("node_egress", question.clone())
            // What is no question is served as ever.
            .becomes(
                "node_ingress",
                syn(at(net.client, 40_000), at(ip, 80)),
                syn(at(net.client, 40_000), at(net.local, 8080)),
            );
        for piece in question.fragments(24, 9) {
            story = story.left("node_ingress", piece);
        }
        story = if ip.is_ipv4() {
            story.left("node_ingress", question.clone().options(&[1, 1, 1, 0]))
        } else {
            story.left("node_ingress", question.clone().extended(&[Extension::padding(60)]))
        };
        stories.push(story);
        for (about, flags, until) in
            [("not switched on", announced::ANSWER, u64::MAX), ("out of time", announced::ANSWER | announced::ECHO, 0)]
        {
            world.announced.insert((ip, LINK), Announced { until, flags, ..Announced::default() });
            stories.push(Story::new(format!("echo of {ip}, {about}"), &world).left("node_ingress", question.clone()));
        }
    }
    tell(stories)
}

#[test]
fn echo_to_another_link_address_is_left_alone() -> Result<()> {
    let mut programs = Programs::load()?;
    programs.reset(&speaking())?;
    for (from, to, kind) in [(IpAddr::V4(ASKING_V4), IpAddr::V4(V4), 8), (ASKING_V6.into(), V6.into(), 128)] {
        let frame = echo(from, to, kind).frame(false);
        ensure!(programs.run("node_ingress", &frame)?.verdict == REDIRECTED, "{to}");
        is_left(&mut programs, "node_ingress", &addressed(STRANGER, frame.clone()), "another's")?;
        is_left(&mut programs, "node_ingress", &addressed(Mac::BROADCAST, frame), "to all")?;
        ensure!(programs.kernel.announced((to, LINK))?.echoes == 1, "{to} is not counted");
    }
    ensure!(solicited_node(V6).segments()[7] == 0x3456, "the group of the address");
    Ok(())
}

/// What stands of TCP and is not known here goes to the node that had the address before; all else is this node's.
#[test]
fn connections_that_stand_go_on_through_the_node_before() -> Result<()> {
    for net in nets() {
        let ip = net.vip;
        let mut programs = Programs::load()?;
        let mut world = net.world();
        let row = Announced { until: u64::MAX, flags: announced::ANSWER, before: STRANGER.0, before_until: u64::MAX };
        world.announced.insert((ip, LINK), row);
        programs.reset(&world)?;
        let (client, at_service) = (at(net.client, 40_000), at(ip, 80));
        let segment = tcp(client, at_service, b"more");
        let standing = segment.frame(false);
        let handed = Seen { verdict: REDIRECTED, bytes: from(OURS, addressed(STRANGER, standing.clone())) };
        ensure!(
            programs.run("node_ingress", &standing)? == handed,
            "{ip}: {:02x?}",
            programs.run("node_ingress", &standing)?
        );
        // It is not sent back to where it comes from.
        let back = programs.run("node_ingress", &from(STRANGER, standing.clone()))?;
        ensure!(back.verdict != REDIRECTED, "{ip}: {back:02x?}");
        // What begins is this node's, and so is what follows it.
        programs.reset(&world)?;
        for packet in [syn(client, at_service), segment] {
            let seen = programs.run("node_ingress", &packet.frame(false))?;
            ensure!(seen.verdict == LEFT && seen.bytes != packet.frame(false), "{ip}: {seen:02x?}");
        }
        let datagram = programs.run("node_ingress", &udp(client, at_service, b"?").frame(false))?;
        ensure!(datagram.bytes[..6] != STRANGER.0, "{ip}: a datagram");
        // Its time is over, or there was none.
        for row in [Announced { before_until: 1, ..row }, Announced { before_until: 0, before: [0; 6], ..row }] {
            world.announced.insert((ip, LINK), row);
            programs.reset(&world)?;
            let seen = programs.run("node_ingress", &standing)?;
            ensure!(seen.verdict == LEFT, "{ip}, {row:?}: {seen:02x?}");
        }
        // Other links are not concerned.
        ensure!(programs.run("pod_ingress", &standing)?.verdict == LEFT, "{ip}: from a pod");
    }
    Ok(())
}

/// The same frame from another link address.
fn from(mac: Mac, mut frame: Vec<u8>) -> Vec<u8> {
    frame[6..12].copy_from_slice(&mac.0);
    frame
}
