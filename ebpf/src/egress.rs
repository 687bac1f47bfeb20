//! Egress: the source changes. A backend that answers becomes the frontend that was asked, and a client becomes the
//! address that its backend is to answer to.

use culvert_abi::{Link, Reason, V4, V6, address, flow, flow_hash, hook, role, verdict as view_verdict};

use crate::{
    clock, count, filter,
    flow::{self as rows, Row, Slot, find, insert, mark, vacate},
    fragment,
    lookup::{self, Audience},
    maps::{self, config},
    migrate, nat,
    outcome::Outcome,
    packet::{Packet, signal},
    parse::{Parsed, parse},
    skb::Skb,
    trace,
    verdict::{self, NEXT},
};

/// Ports that are tried for a translated source, and how far apart they are: a prime, so that neighbours in the hash do
/// not try the same ones.
const TRIES: u32 = 16;
const STRIDE: u32 = 7919;

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
        let outcome = choose_source(packet, row, skb.ifindex());
        if outcome != Outcome::TRANSLATE {
            return outcome;
        }
    }
    let (source, port) = (row.flow().source, row.flow().source_port);
    packet.aim(&source, port);
    Outcome::TRANSLATE
}

/// Chooses the source of a flow, and writes it to its rows.
#[inline(never)]
fn choose_source<const W: usize>(packet: &mut Packet<W>, path: &Row<W>, ifindex: u32) -> Outcome {
    packet.service = path.flow().service;
    if rows::migrating()
        && let Some((addr, port)) = migrate::source(packet.turned(role::PATH))
    {
        path.set_source(&addr, port);
        return Outcome::TRANSLATE;
    }
    let Some(source) = address_of_link::<W>(ifindex) else { return Outcome::drop(Reason::NoSourceAddress) };
    let tuple = &packet.tuple;
    let low = config::port_low() as u32;
    let size = (config::port_high() as u32).wrapping_sub(low) + 1;
    let own = (u16::from_be(tuple.sport) as u32).wrapping_sub(low);
    let hash = flow_hash(&tuple.src, &tuple.dst, tuple.sport, tuple.dport, tuple.proto);
    // The client's own port first, if it is in the range.
    let mut i = u32::from(own >= size);
    while i <= TRIES {
        let offset = if i == 0 { Some(own) } else { hash.wrapping_add((i - 1) * STRIDE).checked_rem(size) };
        let Some(offset) = offset else { break };
        if take_source(packet.tuple.proto, path, &source, ((low + offset) as u16).to_be()) {
            return Outcome::TRANSLATE;
        }
        i += 1;
    }
    Outcome::drop(Reason::PortsExhausted)
}

/// The address that the kernel would use as source on a link.
#[inline(always)]
fn address_of_link<const W: usize>(ifindex: u32) -> Option<[u32; W]> {
    // SAFETY: the words are copied at once; the agent replaces whole rows.
    let link: &Link = unsafe { maps::LINKS.get(ifindex) }?;
    let words = if W == V4 { [link.v4, 0, 0, 0] } else { link.v6 };
    let addr = core::array::from_fn(|i| words.get(i).copied().unwrap_or(0));
    (addr != [0; W]).then_some(addr)
}

/// Takes a source for a flow, if no live flow to the same backend has it.
#[inline(never)]
fn take_source<const W: usize>(proto: u8, path: &Row<W>, source: &[u32; W], port: u16) -> bool {
    let Some(key) = rows::key_of(path.flow(), proto, role::RETURN, Slot::Writer) else { return false };
    key.dst = *source;
    key.dport = port;
    if let Some(row) = find(key)
        && !vacate(&row, key, clock::now())
    {
        return false;
    }
    path.set_source(source, port);
    if !insert(key, path.flow(), path.established) {
        path.set_source(&[0; W], 0);
        return false;
    }
    rows::share_source(path, proto);
    true
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
