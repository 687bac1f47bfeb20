//! Egress: the source changes. A backend that answers becomes the frontend that was asked, and a client becomes the
//! address that its backend is to answer to.

use culvert_abi::{Reason, V4, V6, address, flow, hook, role, verdict as view_verdict};

use crate::{
    clock, count, filter,
    flow::{Row, closed, end, find, mark},
    fragment,
    lookup::{self, Audience},
    nat,
    outcome::Outcome,
    packet::{Packet, signal},
    parse::{Parsed, parse},
    skb::Skb,
    source, trace,
    verdict::{self, NEXT},
};

/// The program of a link: `HOOK` says which side it is on, `L3` where IP begins.
#[inline(always)]
pub fn run<const HOOK: u8, const L3: u32>(skb: Skb) -> i32 {
    match verdict::family(skb) {
        Some(V4) => family::<V4, HOOK, L3>(skb),
        Some(_) => family::<V6, HOOK, L3>(skb),
        None => NEXT,
    }
}

#[inline(never)]
fn family<const W: usize, const HOOK: u8, const L3: u32>(skb: Skb) -> i32 {
    let Some(packet) = Packet::<W>::read(skb, L3) else { return NEXT };
    let outcome = decide::<W, HOOK, L3>(skb, packet);
    if outcome == Outcome::LEAVE {
        return NEXT;
    }
    trace::outcome(skb, packet, outcome, HOOK);
    if outcome == Outcome::TRANSLATE {
        return verdict::rewritten(nat::rewrite::<W, L3, false>(skb, packet));
    }
    verdict::conclude::<W, L3>(skb, packet, outcome, HOOK)
}

#[inline(always)]
fn decide<const W: usize, const HOOK: u8, const L3: u32>(skb: Skb, packet: &mut Packet<W>) -> Outcome {
    if verdict::backend_gone::<W, L3>(skb, packet) {
        return Outcome::reject(Reason::BackendGone);
    }
    if parse(skb, L3, packet) != Parsed::Tuple {
        return Outcome::LEAVE;
    }
    if filter::has(&packet.tuple.src)
        && let Some(row) = find(packet.key(role::PATH))
    {
        return reply(packet, &row);
    }
    if filter::has(&packet.tuple.dst)
        && let Some(row) = find(packet.turned(role::PATH))
    {
        return request(skb, packet, &row);
    }
    if HOOK == hook::NODE_EGRESS && skb.has_socket() { host(packet) } else { Outcome::LEAVE }
}

/// A packet of the backend: the frontend speaks.
#[inline(always)]
fn reply<const W: usize>(packet: &mut Packet<W>, row: &Row<W>) -> Outcome {
    if !row.is_of(&packet.tuple) {
        return Outcome::LEAVE;
    }
    if packet.says(signal::ACCEPT) && closed(row.flow().flags) {
        return make_room(row, packet.tuple.proto);
    }
    fragment::remember(packet);
    let (frontend, port) = (row.flow().frontend, row.flow().frontend_port);
    packet.aim(&frontend, port);
    let outcome = if row.has(flow::FOREIGN) { Outcome::LEAVE } else { Outcome::TRANSLATE };
    if packet.is_error() {
        return outcome;
    }
    row.touch(clock::now());
    row.count(packet.bytes);
    count::service(row.flow().service, |counters| {
        counters.reply_packets += 1;
        counters.reply_bytes += packet.bytes as u64;
    });
    let says = flow::REPLIED
        | (if packet.says(signal::FIN) { flow::BACKEND_FIN } else { 0 })
        | (if packet.says(signal::RESET) { flow::RESET } else { 0 });
    if says & !row.flow().flags != 0 {
        mark(row, packet.tuple.proto, role::PATH, says);
    }
    outcome
}

/// A packet to the backend: where the client's address is replaced, that happens here.
#[inline(always)]
fn request<const W: usize>(skb: Skb, packet: &mut Packet<W>, row: &Row<W>) -> Outcome {
    if packet.says(signal::OPEN) && closed(row.flow().flags) && row.is_of(packet.turned(role::PATH)) {
        return make_room(row, packet.tuple.proto);
    }
    if row.has(flow::FOREIGN) || !row.has(flow::REPLACE_CLIENT) || !row.is_of(packet.turned(role::PATH)) {
        return Outcome::LEAVE;
    }
    fragment::remember(packet);
    if !packet.is_error() {
        row.touch(clock::now());
    }
    if row.flow().source_port == 0 {
        if packet.is_error() {
            return Outcome::LEAVE;
        }
        let outcome = source::choose(packet, row, skb.ifindex());
        if outcome != Outcome::TRANSLATE {
            return outcome;
        }
    }
    let (source, port) = (row.flow().source, row.flow().source_port);
    packet.aim(&source, port);
    Outcome::TRANSLATE
}

/// A closed flow gives way to a connection past the frontend on the same ports. The flow's own next connection would have
/// taken its rows at ingress.
#[inline(always)]
fn make_room<const W: usize>(row: &Row<W>, proto: u8) -> Outcome {
    end(row, proto, role::PATH);
    Outcome::LEAVE
}

/// A packet of the host itself that the socket hook left alone: it dies here if its Service says so.
#[inline(always)]
fn host<const W: usize>(packet: &mut Packet<W>) -> Outcome {
    let tuple = &packet.tuple;
    if packet.is_error() || lookup::address(&tuple.dst) & address::FRONTEND == 0 {
        return Outcome::LEAVE;
    }
    let Some(frontend) = lookup::frontend(&tuple.dst, tuple.dport, tuple.proto) else { return Outcome::LEAVE };
    packet.service = frontend.service;
    match lookup::view(&frontend, Audience::Host).verdict {
        view_verdict::DROP => Outcome::drop(Reason::NoLocalEndpoints),
        _ => Outcome::LEAVE,
    }
}
