//! Ingress: the destination changes. A frontend becomes a backend, a translated source becomes its client again.

use culvert_abi::{Reason, V4, V6, address, flow, hook, program, proto, role};

use crate::{
    admit, announce, bridge, clock, count,
    flow::{backend_lives, closed, end, establish, expired, find, mark},
    fragment, lookup,
    maps::{self, config},
    nat,
    outcome::Outcome,
    packet::{Packet, signal},
    parse::{Parsed, parse},
    skb::Skb,
    trace,
    verdict::{self, NEXT},
};

/// The program of a link: `HOOK` says which side it is on, `L3` where IP begins.
#[inline(always)]
pub fn run<const HOOK: u8, const L3: u32>(skb: Skb) -> i32 {
    match verdict::family(skb) {
        Some(V4) => family::<V4, HOOK, L3>(skb),
        Some(_) => family::<V6, HOOK, L3>(skb),
        None if announces::<HOOK, L3>() => announce::arp(skb),
        None => NEXT,
    }
}

/// Whether addresses are announced on such links: hosts that ask for a link address are on the other side.
const fn announces<const HOOK: u8, const L3: u32>() -> bool {
    HOOK == hook::NODE_INGRESS && L3 == crate::ETHERNET
}

#[inline(never)]
fn family<const W: usize, const HOOK: u8, const L3: u32>(skb: Skb) -> i32 {
    let Some(packet) = Packet::<W>::read(skb, L3) else { return NEXT };
    if announces::<HOOK, L3>() && announce::concerns(packet) {
        let answered = announce::icmp(skb, packet);
        if answered != NEXT {
            return answered;
        }
    }
    if announces::<HOOK, L3>() && announce::is_beat(skb, packet) {
        skb.continue_with(&maps::PROGRAMS, program::BEAT);
        return NEXT;
    }
    let outcome = decide::<W, HOOK, L3>(skb, packet);
    if outcome == Outcome::LEAVE {
        return NEXT;
    }
    trace::outcome(skb, packet, outcome, HOOK);
    if outcome == Outcome::TRANSLATE {
        return verdict::rewritten(nat::rewrite::<W, L3, true>(skb, packet));
    }
    if announces::<HOOK, L3>() && outcome == Outcome::HAND_OVER {
        return announce::hand_over(skb, packet);
    }
    verdict::conclude::<W, L3>(skb, packet, outcome, HOOK)
}

#[inline(always)]
fn decide<const W: usize, const HOOK: u8, const L3: u32>(skb: Skb, packet: &mut Packet<W>) -> Outcome {
    if HOOK == hook::POD_INGRESS && verdict::backend_gone::<W, L3>(skb, packet) {
        return Outcome::reject(Reason::BackendGone);
    }
    let meaning = lookup::address(&packet.tuple.dst);
    if meaning == 0 {
        if HOOK == hook::POD_INGRESS {
            bridge::hand_over::<W, L3>(skb, packet);
        }
        return Outcome::LEAVE;
    }
    let parsed = parse(skb, L3, packet);
    if parsed != Parsed::Tuple {
        return unreadable(parsed, meaning);
    }
    fragment::remember(packet);
    if meaning & address::SOURCE != 0 && is_reserved(packet.tuple.dport) && unsnat(packet) {
        return Outcome::TRANSLATE;
    }
    if meaning & (address::FRONTEND | address::REFUSE | address::LINGER) == 0 {
        return Outcome::LEAVE;
    }
    match follow(packet) {
        Some(outcome) => outcome,
        None if packet.is_error() => Outcome::LEAVE,
        None if announces::<HOOK, L3>() && announce::is_of_another(skb, packet) => Outcome::HAND_OVER,
        None => admit::admit(packet, meaning, HOOK == hook::POD_INGRESS),
    }
}

/// What becomes of a packet to one of our addresses that has no tuple. A fragment that came before its first one is lost, unless the
/// address is one of the node's links: what is no Service's there is for the stack, which puts fragments in order.
#[inline(always)]
fn unreadable(parsed: Parsed, meaning: u32) -> Outcome {
    let served = meaning & (address::FRONTEND | address::LINGER) != 0 && meaning & address::SOURCE == 0;
    if parsed == Parsed::FragmentUnknown && served {
        return Outcome::drop(Reason::FragmentUnknown);
    }
    if let Some(reason) = parsed.reason() {
        count::reason(reason);
    }
    Outcome::LEAVE
}

/// Whether a port (network order) may be one that we gave to a client.
#[inline(always)]
fn is_reserved(port: u16) -> bool {
    let port = u16::from_be(port);
    port >= config::port_low() && port <= config::port_high()
}

/// Aims a reply to a translated source at the client. A miss goes on: others may use such ports too.
#[inline(always)]
fn unsnat<const W: usize>(packet: &mut Packet<W>) -> bool {
    let Some(row) = find(packet.key(role::RETURN)) else { return false };
    if !row.is_of(&packet.tuple) {
        return false;
    }
    let (client, port) = (row.flow().client, row.flow().client_port);
    packet.aim(&client, port);
    true
}

/// Goes on with the flow that the packet belongs to. `None`: there is none, or none that can be used any more.
#[inline(always)]
fn follow<const W: usize>(packet: &mut Packet<W>) -> Option<Outcome> {
    let now = clock::now();
    let row = find(packet.key(role::ORIGIN))?;
    let proto = packet.tuple.proto;
    if !row.is_of(&packet.tuple) {
        return None;
    }
    let opens = packet.says(signal::OPEN);
    let usable = if opens {
        !closed(row.flow().flags) && backend_lives(row.flow())
    } else {
        proto != proto::UDP || backend_lives(row.flow())
    };
    if !usable || expired(&row, proto, role::ORIGIN, now) {
        end(&row, proto, role::ORIGIN);
        return None;
    }
    let (backend, port) = (row.flow().backend, row.flow().backend_port);
    packet.aim(&backend, port);
    let outcome = if row.has(flow::FOREIGN) { Outcome::LEAVE } else { Outcome::TRANSLATE };
    if packet.is_error() {
        return Some(outcome);
    }
    row.touch(now);
    row.count(packet.bytes);
    packet.service = row.flow().service;
    packet.count_request();
    let says = (if packet.says(signal::FIN) { flow::CLIENT_FIN } else { 0 })
        | (if packet.says(signal::RESET) { flow::RESET } else { 0 });
    if says & !row.flow().flags != 0 {
        mark(&row, proto, role::ORIGIN, says);
    }
    if !row.established && row.has(flow::REPLIED) && !opens && !closed(row.flow().flags) {
        establish(&row, proto);
    }
    Some(outcome)
}
