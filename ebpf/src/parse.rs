//! From bytes to a tuple. What cannot be read, or is no business of ours, ends here.

use culvert_abi::{Reason, V4, proto};

use crate::{
    fragment,
    packet::{Header, Kind, Packet, signal},
    skb::Skb,
};

/// What became of an attempt to read a packet. A number, because it crosses a function call of the kernel's machine.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Parsed {
    /// There is a tuple.
    Tuple,
    /// Not for us: another protocol, or something that is never translated.
    Foreign,
    /// [`Reason::Malformed`].
    Malformed,
    /// [`Reason::TooManyExtensions`].
    TooManyExtensions,
    /// A later fragment whose first one was not seen.
    FragmentUnknown,
}

impl Parsed {
    /// Why a packet that looked like ours is left to the stack.
    #[inline(always)]
    pub fn reason(self) -> Option<Reason> {
        match self {
            Self::Malformed => Some(Reason::Malformed),
            Self::TooManyExtensions => Some(Reason::TooManyExtensions),
            _ => None,
        }
    }
}

/// Bits of the fragment offset in the second word of an IPv4 header.
const OFFSET: u32 = 0x1fff;

/// Extension headers that are walked.
const EXTENSIONS: u32 = 6;

/// IPv6 extension headers (IANA).
mod extension {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const DESTINATION: u8 = 60;
}

/// Completes a packet of which the IP header at `l3` was read.
#[inline(never)]
pub fn parse<const W: usize>(skb: Skb, l3: u32, packet: &mut Packet<W>) -> Parsed {
    let network = if W == V4 { ipv4(skb, l3, packet) } else { ipv6(skb, l3, packet) };
    if network != Parsed::Tuple {
        return network;
    }
    let (protocol, kind) = (packet.tuple.proto, packet.kind);
    let icmp = if W == V4 { proto::ICMP } else { proto::ICMPV6 };
    let size = match protocol {
        proto::TCP => 20,
        proto::UDP => 8,
        // Its checksum spans the datagram, and an association does not fragment by itself.
        proto::SCTP if kind == Kind::Whole => 12,
        _ if protocol == icmp && kind == Kind::Whole => return error_inside(skb, packet),
        _ => return Parsed::Foreign,
    };
    if kind == Kind::LaterFragment {
        return if fragment::recall(packet) { Parsed::Tuple } else { Parsed::FragmentUnknown };
    }
    if packet.l4 + size > packet.end {
        return Parsed::Malformed;
    }
    transport(skb, packet)
}

#[inline(always)]
fn ipv4<const W: usize>(skb: Skb, l3: u32, packet: &mut Packet<W>) -> Parsed {
    const MORE: u32 = 0x2000;
    let size = (packet.header.word(0) >> 24 & 0xf) * 4;
    let holds = skb.len() - l3;
    let total = match packet.header.word(0) & 0xffff {
        // Segments of more than 64 KiB together have no length of their own (BIG TCP).
        0 if skb.gso_size() != 0 => holds,
        total => total,
    };
    if packet.header.version() != 4 || size < 20 || total < size || total > holds {
        return Parsed::Malformed;
    }
    packet.l4 = l3 + size;
    packet.end = l3 + total;
    packet.bytes = total;
    packet.tuple.proto = packet.header.next();
    let fragment = packet.header.word(1);
    packet.fragment = (fragment >> 16) as u16 as u32;
    packet.kind = if fragment & OFFSET != 0 {
        Kind::LaterFragment
    } else if fragment & MORE != 0 {
        Kind::FirstFragment
    } else {
        Kind::Whole
    };
    Parsed::Tuple
}

#[inline(always)]
fn ipv6<const W: usize>(skb: Skb, l3: u32, packet: &mut Packet<W>) -> Parsed {
    let holds = skb.len() - l3;
    let total = match packet.header.word(1) >> 16 {
        // As above; RFC 2675.
        0 if skb.gso_size() != 0 => holds,
        payload => 40 + payload,
    };
    if packet.header.version() != 6 || total > holds {
        return Parsed::Malformed;
    }
    packet.l4 = l3 + 40;
    packet.end = l3 + total;
    packet.bytes = total;
    packet.tuple.proto = packet.header.next();
    extensions(skb, packet)
}

/// Walks the extension headers.
#[inline(always)]
fn extensions<const W: usize>(skb: Skb, packet: &mut Packet<W>) -> Parsed {
    let mut walked = 0;
    loop {
        let next = packet.tuple.proto;
        let known = matches!(
            next,
            extension::HOP_BY_HOP
                | extension::ROUTING
                | extension::FRAGMENT
                | extension::AUTHENTICATION
                | extension::DESTINATION
        );
        if !known {
            return Parsed::Tuple;
        }
        if walked == EXTENSIONS {
            return Parsed::TooManyExtensions;
        }
        walked += 1;
        if packet.l4 + 8 > packet.end {
            return Parsed::Malformed;
        }
        let Some([first, second]) = skb.load::<[u32; 2]>(packet.l4) else { return Parsed::Malformed };
        let (first, length) = (u32::from_be(first), u32::from_be(first) >> 16 & 0xff);
        packet.tuple.proto = (first >> 24) as u8;
        packet.l4 += match next {
            extension::FRAGMENT => 8,
            extension::AUTHENTICATION => (length + 2) * 4,
            _ => (length + 1) * 8,
        };
        // With segments left the destination is a waypoint, and the checksum is for another address.
        if next == extension::ROUTING && first & 0xff != 0 {
            return Parsed::Foreign;
        }
        if next == extension::FRAGMENT {
            packet.fragment = second;
            if first & 0xfff8 != 0 {
                packet.kind = Kind::LaterFragment;
                return Parsed::Tuple;
            }
            if first & 1 != 0 {
                packet.kind = Kind::FirstFragment;
            }
        }
        if packet.l4 > packet.end {
            return Parsed::Malformed;
        }
    }
}

/// Reads ports, and what the segment says about its connection.
#[inline(always)]
fn transport<const W: usize>(skb: Skb, packet: &mut Packet<W>) -> Parsed {
    let (sport, dport, signals) = if packet.tuple.proto == proto::TCP {
        let Some([sport, dport, .., flags]) = skb.load::<[u16; 7]>(packet.l4) else { return Parsed::Malformed };
        (sport, dport, tcp_signals(u16::from_be(flags) as u8))
    } else {
        let Some([sport, dport]) = skb.load::<[u16; 2]>(packet.l4) else { return Parsed::Malformed };
        (sport, dport, first_chunk(skb, packet).map_or(0, sctp_signals))
    };
    packet.tuple.sport = sport;
    packet.tuple.dport = dport;
    packet.signals = signals;
    Parsed::Tuple
}

/// The type of an SCTP packet's first chunk (RFC 9260 3.2).
#[inline(always)]
fn first_chunk<const W: usize>(skb: Skb, packet: &Packet<W>) -> Option<u8> {
    let has_one = packet.tuple.proto == proto::SCTP && packet.l4 + 12 < packet.end;
    if has_one { skb.load(packet.l4 + 12) } else { None }
}

#[inline(always)]
fn tcp_signals(flags: u8) -> u8 {
    const FIN: u8 = 1;
    const SYN: u8 = 1 << 1;
    const RST: u8 = 1 << 2;
    const ACK: u8 = 1 << 4;
    let mut signals = 0;
    if flags & SYN != 0 {
        signals |= if flags & ACK == 0 { signal::OPEN } else { signal::ACCEPT };
    }
    if flags & FIN != 0 {
        signals |= signal::FIN;
    }
    if flags & RST != 0 {
        signals |= signal::RESET;
    }
    signals
}

#[inline(always)]
fn sctp_signals(chunk: u8) -> u8 {
    match chunk {
        1 => signal::OPEN,
        2 => signal::ACCEPT,
        6 => signal::RESET,
        7 | 8 => signal::FIN,
        _ => 0,
    }
}

/// Whether an ICMP type is that of an error that quotes a packet.
#[inline(always)]
fn quotes<const W: usize>(kind: u8) -> bool {
    if W == V4 { matches!(kind, 3 | 11 | 12) } else { matches!(kind, 1..=4) }
}

/// Takes the tuple from the packet that an ICMP error quotes, turned round: it points the way the error travels.
#[inline(always)]
fn error_inside<const W: usize>(skb: Skb, packet: &mut Packet<W>) -> Parsed {
    let inner = packet.l4 + 8;
    if inner + Header::<W>::SIZE > packet.end || !skb.load(packet.l4).is_some_and(quotes::<W>) {
        return Parsed::Foreign;
    }
    let Some(header) = Header::<W>::load(skb, inner) else { return Parsed::Foreign };
    // An error is sent to the source of what it quotes (RFC 1122 3.2.2, RFC 4443 2.2).
    if header.source() != packet.tuple.dst {
        return Parsed::Foreign;
    }
    let size = if W == V4 { (header.word(0) >> 24 & 0xf) * 4 } else { 40 };
    let readable = if W == V4 {
        header.version() == 4 && size >= 20 && header.word(1) & OFFSET == 0
    } else {
        header.version() == 6
    };
    let quoted = inner + size;
    if !readable || quoted + 8 > packet.end || !matches!(header.next(), proto::TCP | proto::UDP | proto::SCTP) {
        return Parsed::Foreign;
    }
    let Some([sport, dport]) = skb.load::<[u16; 2]>(quoted) else { return Parsed::Foreign };
    packet.kind = Kind::Error;
    packet.inner = inner;
    packet.inner_l4 = quoted;
    packet.tuple.src = header.destination();
    packet.tuple.sport = dport;
    packet.tuple.dport = sport;
    packet.tuple.proto = header.next();
    Parsed::Tuple
}
