//! The two rewrites: a new destination, or a new source. Checksums are updated, never computed anew.

use culvert_abi::{V4, proto};

use crate::{
    csum::{Diff, crc32c_change},
    icmp,
    packet::{Header, Kind, Packet},
    skb::{Cover, Skb},
};

/// Gives a packet its target as destination (`DESTINATION`) or as source. `false` if the buffer could not be written.
#[inline(never)]
pub fn rewrite<const W: usize, const L3: u32, const DESTINATION: bool>(skb: Skb, packet: &Packet<W>) -> bool {
    let old = Old::of::<DESTINATION>(packet);
    if packet.kind == Kind::Error {
        return icmp::rewrite::<W, L3, DESTINATION>(skb, packet, &old);
    }
    if !address::<W, L3, DESTINATION>(skb, old.addr, &packet.target) {
        return false;
    }
    if packet.kind == Kind::LaterFragment {
        return true;
    }
    let port_at = packet.l4 + if DESTINATION { 2 } else { 0 };
    let (from, to) = (old.port, packet.target_port);
    match packet.tuple.proto {
        proto::TCP => transport(skb, packet, &old, packet.l4 + 16, false) && port(skb, port_at, from, to),
        proto::UDP => transport(skb, packet, &old, packet.l4 + 6, true) && port(skb, port_at, from, to),
        _ => sctp::<W, DESTINATION>(skb, packet, &old) && port(skb, port_at, from, to),
    }
}

/// What is replaced.
pub struct Old<'a, const W: usize> {
    /// The address.
    pub addr: &'a [u32; W],
    /// The port, network order.
    pub port: u16,
}

impl<'a, const W: usize> Old<'a, W> {
    #[inline(always)]
    fn of<const DESTINATION: bool>(packet: &'a Packet<W>) -> Self {
        let tuple = &packet.tuple;
        if DESTINATION {
            Self { addr: &tuple.dst, port: tuple.dport }
        } else {
            Self { addr: &tuple.src, port: tuple.sport }
        }
    }
}

/// Writes an address of the IP header, and its checksum.
#[inline(always)]
pub fn address<const W: usize, const L3: u32, const DESTINATION: bool>(
    skb: Skb,
    from: &[u32; W],
    to: &[u32; W],
) -> bool {
    let at = L3 + if DESTINATION { Header::<W>::DESTINATION } else { Header::<W>::SOURCE };
    if W == V4 {
        return skb.update_header_checksum(L3 + 10, from[0], to[0]) && skb.store(at, to);
    }
    // No header checksum makes up for it. The layer-4 checksum does, and takes its own part off the card's sum.
    skb.store_uncovered(at, to)
}

#[inline(always)]
fn port(skb: Skb, at: u32, from: u16, to: u16) -> bool {
    from == to || skb.store(at, &to)
}

/// Updates the checksum of TCP or UDP.
#[inline(always)]
fn transport<const W: usize>(skb: Skb, packet: &Packet<W>, old: &Old<W>, at: u32, zero_is_none: bool) -> bool {
    let addr = Diff::NONE.words(old.addr, &packet.target);
    let port = Diff::NONE.half(old.port, packet.target_port);
    skb.update_checksum(at, addr, Cover::PseudoHeader, zero_is_none)
        && (old.port == packet.target_port || skb.update_checksum(at, port, Cover::Body, zero_is_none))
}

/// Updates the CRC-32c of SCTP, which covers ports and not addresses (RFC 9260 6.8). Zero stays zero: a network card
/// is to fill it in, or both ends do without (RFC 9653).
#[inline(always)]
fn sctp<const W: usize, const DESTINATION: bool>(skb: Skb, packet: &Packet<W>, old: &Old<W>) -> bool {
    let Some(crc) = skb.load::<u32>(packet.l4 + 8) else { return false };
    if crc == 0 || old.port == packet.target_port {
        return true;
    }
    let delta = u16::from_le(old.port ^ packet.target_port) as u32;
    let delta = if DESTINATION { delta << 16 } else { delta };
    let change = crc32c_change(delta, packet.end - packet.l4);
    skb.store(packet.l4 + 8, &(u32::from_le(crc) ^ change).to_le())
}
