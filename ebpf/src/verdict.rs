//! What the kernel is told about a packet, and what is shared by both directions on the way there.

use aya_ebpf::bindings::{BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC};
use culvert_abi::{Reason, V4, V6, hook, proto};

use crate::{
    count::{self, Incident},
    outcome::Outcome,
    packet::{Header, Kind, Packet},
    parse::{Parsed, parse},
    reject,
    skb::Skb,
    socket,
};

/// The next program of the hook, or the stack: `TCX_NEXT`, and what clsact calls unspecified.
pub const NEXT: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;

/// The address width of a packet that may be ours. A packet with a tag belongs to another link.
#[inline(always)]
pub fn family(skb: Skb) -> Option<usize> {
    const IPV4: u32 = 0x0800_u16.to_be() as u32;
    const IPV6: u32 = 0x86dd_u16.to_be() as u32;
    if skb.vlan_present() != 0 {
        return None;
    }
    match skb.protocol() {
        IPV4 => Some(V4),
        IPV6 => Some(V6),
        _ => None,
    }
}

/// The verdict on a packet that was to be rewritten. Half a rewrite leads nowhere.
#[inline(always)]
pub fn rewritten(done: bool) -> i32 {
    if done { NEXT } else { DROP }
}

/// Counts a packet that dies, and answers it if that is so decided and may be.
#[inline(never)]
pub fn conclude<const W: usize, const L3: u32>(skb: Skb, packet: &Packet<W>, outcome: Outcome, hook: u8) -> i32 {
    let answered = outcome.is_reject() && reject::answer::<W, L3>(skb, packet, outcome);
    let how = if answered { count::Outcome::Rejected } else { count::Outcome::Dropped };
    account(skb, packet, outcome, how, hook);
    if !answered {
        return DROP;
    }
    // What came in goes out again; what this host sent comes back to it.
    let towards = if hook == hook::NODE_EGRESS || hook == hook::POD_EGRESS { BPF_F_INGRESS } else { 0 };
    skb.turn_back(towards)
}

#[inline(never)]
fn account<const W: usize>(skb: Skb, packet: &Packet<W>, outcome: Outcome, how: count::Outcome, hook: u8) {
    let tuple = &packet.tuple;
    let Some(reason) = Reason::ALL.get(outcome.reason() as usize) else { return };
    count::incident(
        how,
        *reason,
        &Incident {
            src: tuple.src,
            dst: tuple.dst,
            sport: tuple.sport,
            dport: tuple.dport,
            proto: tuple.proto,
            hook,
            ifindex: skb.ifindex(),
            service: packet.service,
        },
    );
}

/// Whether a UDP packet comes from a socket that was connected to a backend which is gone. If so, the packet is parsed.
#[inline(always)]
pub fn backend_gone<const W: usize, const L3: u32>(skb: Skb, packet: &mut Packet<W>) -> bool {
    skb.has_socket() && packet.header.next() == proto::UDP && sent_to_gone::<W, L3>(skb, packet)
}

#[inline(never)]
fn sent_to_gone<const W: usize, const L3: u32>(skb: Skb, packet: &mut Packet<W>) -> bool {
    let Some(sk) = skb.socket() else { return false };
    let l4 = L3 + if W == V4 { (packet.header.word(0) >> 24 & 0xf) * 4 } else { Header::<W>::SIZE };
    let Some(port) = skb.load(l4 + 2) else { return false };
    let Some(service) = socket::gone(sk, &packet.tuple.dst, port) else { return false };
    packet.service = service;
    parse(skb, L3, packet) == Parsed::Tuple && packet.kind == Kind::Whole
}
