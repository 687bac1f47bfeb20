//! Replies between the pods of one bridge take the way of the requests, through the IP stack.
//!
//! A request to a Service goes to the bridge itself, which is the pods' gateway; its destination changes, and the stack
//! routes it back into the bridge. The backend knows its client's real address, finds it on its own link, and
//! answers past the stack. Netfilter's conntrack would see half of each connection, and another project's
//! firewall drop what it calls invalid. So a reply that begins on a bridge is handed to the bridge. `br_netfilter`, which
//! shows netfilter what crosses a bridge, does as much, on the nodes that have it.

use culvert_abi::{V4, flow, link, role};

use crate::{
    filter,
    flow::find,
    fragment, maps,
    packet::Packet,
    parse::{Parsed, parse},
    skb::Skb,
};

/// Hands a packet from a pod to its bridge, if it is a reply of a flow that crosses no other link.
#[inline(always)]
pub fn hand_over<const W: usize, const L3: u32>(skb: Skb, packet: &mut Packet<W>) {
    if filter::has(&packet.tuple.src) {
        reply::<W, L3>(skb, packet);
    }
}

#[inline(never)]
fn reply<const W: usize, const L3: u32>(skb: Skb, packet: &mut Packet<W>) {
    // SAFETY: the words are copied at once; the agent replaces whole rows.
    let Some(row) = (unsafe { maps::LINKS.get(skb.ifindex()) }) else { return };
    let routes = if W == V4 { link::BRIDGE_V4 } else { link::BRIDGE_V6 };
    if row.flags & routes == 0 {
        return;
    }
    let bridge = row.bridge;
    let Some([a, b, c]) = skb.load::<[u16; 3]>(0) else { return };
    if [a ^ bridge[0], b ^ bridge[1], c ^ bridge[2]] == [0; 3] || parse(skb, L3, packet) != Parsed::Tuple {
        return;
    }
    // An ICMP error by somebody else on the way is no word of the backend.
    if packet.header.source() != packet.tuple.src {
        return;
    }
    let Some(row) = find(packet.key(role::PATH)) else { return };
    if !row.is_of(&packet.tuple) || row.has(flow::FOREIGN) {
        return;
    }
    fragment::remember(packet);
    // If it fails, the reply goes straight to its client.
    let _ = skb.store_uncovered(0, &bridge);
}
