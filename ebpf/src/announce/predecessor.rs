//! Connections that stood when an address came here from another node that lives: they go on through that one, which knows
//! them. A connection that begins is this node's.

use culvert_abi::proto;

use super::{Announcement, Mac};
use crate::{
    clock,
    packet::{Packet, signal},
    skb::Skb,
    verdict::NEXT,
};

/// Whether a packet of no flow that is known here may be of one that the node before this one knows.
#[inline(never)]
pub fn is_of_another<const W: usize>(skb: Skb, packet: &Packet<W>) -> bool {
    packet.tuple.proto == proto::TCP && !packet.says(signal::OPEN) && before(skb, packet).is_some()
}

/// Sends it there, out of the link that it came in by.
#[inline(never)]
pub fn hand_over<const W: usize>(skb: Skb, packet: &Packet<W>) -> i32 {
    let Some((before, own)) = before(skb, packet) else { return NEXT };
    if !skb.store_uncovered(0, &[before, own]) {
        return NEXT;
    }
    skb.turn_back(0)
}

/// The link addresses of that node and of this one's link. `None`: there is none, or the packet comes from there.
#[inline(always)]
fn before<const W: usize>(skb: Skb, packet: &Packet<W>) -> Option<(Mac, Mac)> {
    let found = Announcement::find(skb, &packet.tuple.dst)?;
    if clock::nanoseconds() >= found.row.before_until {
        return None;
    }
    let [m0, m1, m2, m3, m4, m5] = found.row.before;
    let before = [[m0, m1], [m2, m3], [m4, m5]].map(u16::from_ne_bytes);
    let sender = skb.load::<Mac>(6)?;
    (sender != before).then_some((before, found.mac))
}
