//! Echo (RFC 792, RFC 4443 4): the request becomes the reply.

use culvert_abi::{V4, announced};

use super::{Announcement, Counter, Mac, send};
use crate::{
    ETHERNET,
    csum::Diff,
    packet::{Header, Packet, is_martian, is_multicast},
    skb::{Cover, Skb},
    verdict::NEXT,
};

pub const REQUEST_V4: u8 = 8;
pub const REQUEST_V6: u8 = 128;
const REPLY_V4: u8 = 0;
const REPLY_V6: u8 = 129;
/// Hop limit of replies.
const TTL: u8 = 64;

/// Answers a request whose ICMP header is at `at`.
#[inline(always)]
pub fn answer<const W: usize>(skb: Skb, packet: &Packet<W>, at: u32) -> i32 {
    let (source, destination) = (&packet.tuple.src, &packet.tuple.dst);
    let Some(asked) = Announcement::find(skb, destination) else { return NEXT };
    let Some([d0, d1, d2, s0, s1, s2]) = skb.load::<[u16; 6]>(0) else { return NEXT };
    let (to, from): (Mac, Mac) = ([d0, d1, d2], [s0, s1, s2]);
    let silent = asked.row.flags & announced::ECHO == 0 || !asked.speaks();
    if silent || to != asked.mac || !is_plain(packet) || is_martian(source) || is_multicast(source) {
        return NEXT;
    }
    if !rewrite(skb, packet, at) || !skb.store_uncovered(0, &[from, asked.mac]) {
        return crate::verdict::rewritten(false);
    }
    send(skb, &asked, Counter::Echoes)
}

/// Neither options nor fragments: what does not fit into a packet is not asked for by those who look whether it lives.
#[inline(always)]
pub fn is_plain<const W: usize>(packet: &Packet<W>) -> bool {
    const FRAGMENT: u32 = 0x3fff;
    if W == V4 {
        return packet.header.word(0) >> 24 == 0x45 && packet.header.word(1) & FRAGMENT == 0;
    }
    packet.header.version() == 6
}

/// The addresses change places, which changes no sum; type and hop limit change.
#[inline(always)]
fn rewrite<const W: usize>(skb: Skb, packet: &Packet<W>, at: u32) -> bool {
    let (source, destination) = (&packet.tuple.src, &packet.tuple.dst);
    let (asks, answers) = if W == V4 { (REQUEST_V4, REPLY_V4) } else { (REQUEST_V6, REPLY_V6) };
    let diff = Diff::NONE.half(u16::from(asks), u16::from(answers));
    skb.update_checksum(at + 2, diff, Cover::Body, false)
        && skb.store(at, &answers)
        && skb.store(ETHERNET + Header::<W>::SOURCE, destination)
        && skb.store(ETHERNET + Header::<W>::DESTINATION, source)
        && hop_limit(skb, packet)
}

/// The hop limit of what this node sends.
#[inline(always)]
pub fn hop_limit<const W: usize>(skb: Skb, packet: &Packet<W>) -> bool {
    if W != V4 {
        return skb.store_uncovered(ETHERNET + 7, &TTL);
    }
    let old = (packet.header.word(2) >> 24) as u8;
    skb.update_header_checksum(ETHERNET + 10, u32::from(old), u32::from(TTL)) && skb.store(ETHERNET + 8, &TTL)
}
