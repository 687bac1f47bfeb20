//! ICMP errors: the packet that they quote is translated back to what its sender knows (RFC 5508 4.2, RFC 7915 4.5 for
//! the idea): inner header, inner checksums, the checksum of ICMP over them, and the outer address where it is the same.

use culvert_abi::{V4, proto};

use crate::{
    csum::Diff,
    nat::{Old, address},
    packet::{Header, Packet},
    skb::{Cover, Skb},
};

/// Gives an ICMP error its target. The quoted packet travelled the other way: for a new destination its source
/// changes, for a new source its destination.
#[inline(always)]
pub fn rewrite<const W: usize, const L3: u32, const DESTINATION: bool>(
    skb: Skb,
    packet: &Packet<W>,
    old: &Old<W>,
) -> bool {
    let check_at = packet.l4 + 2;
    let addr = Diff::NONE.words(old.addr, &packet.target);
    let Some(diff) = quoted::<W, DESTINATION>(skb, packet, old, addr) else { return false };
    if !skb.update_checksum(check_at, diff, Cover::Body, false) {
        return false;
    }
    // The end point itself speaks, or a router on the way does.
    if !DESTINATION && skb.load::<[u32; W]>(L3 + Header::<W>::SOURCE) != Some(*old.addr) {
        return true;
    }
    address::<W, L3, DESTINATION>(skb, old.addr, &packet.target)
        && (W == V4 || skb.update_checksum(check_at, addr, Cover::PseudoHeader, false))
}

/// Rewrites the quoted packet; what changed in it.
#[inline(always)]
fn quoted<const W: usize, const DESTINATION: bool>(
    skb: Skb,
    packet: &Packet<W>,
    old: &Old<W>,
    addr: Diff,
) -> Option<Diff> {
    let addr_at = packet.inner + if DESTINATION { Header::<W>::SOURCE } else { Header::<W>::DESTINATION };
    let port_at = packet.inner_l4 + if DESTINATION { 0 } else { 2 };
    let mut diff = Diff::NONE.words(old.addr, &packet.target);
    let mut written = skb.store(addr_at, &packet.target);
    if W == V4 {
        let check: u16 = skb.load(packet.inner + 10)?;
        diff = diff.half(check, addr.apply(check));
        written &= skb.store(packet.inner + 10, &addr.apply(check));
    }
    if old.port != packet.target_port {
        diff = diff.half(old.port, packet.target_port);
        written &= skb.store(port_at, &packet.target_port);
    }
    let covered = addr.half(old.port, packet.target_port);
    let check_at = packet.inner_l4
        + match packet.tuple.proto {
            proto::UDP => 6,
            proto::TCP => 16,
            // SCTP's covers the whole packet, of which this is a part.
            _ => return written.then_some(diff),
        };
    if check_at + 2 > packet.end {
        return written.then_some(diff);
    }
    let check: u16 = skb.load(check_at)?;
    let updated = match (packet.tuple.proto, check, covered.apply(check)) {
        (proto::UDP, 0, _) => 0,
        (proto::UDP, _, 0) => 0xffff,
        (_, _, updated) => updated,
    };
    written &= skb.store(check_at, &updated);
    written.then_some(diff.half(check, updated))
}
