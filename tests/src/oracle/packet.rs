//! Reading a frame, as docs/DATAPATH.md ("Packets: the tuple") says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use culvert_abi::proto;

/// Bytes of the Ethernet header.
pub const ETHERNET: usize = 14;

/// Addresses and ports in the direction of travel, and the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// Who sends.
    pub src: SocketAddr,
    /// Who is to receive.
    pub dst: SocketAddr,
    /// The protocol's number.
    pub proto: u8,
}

impl Tuple {
    /// The other direction.
    #[must_use]
    pub fn turned(self) -> Self {
        Self { src: self.dst, dst: self.src, ..self }
    }
}

/// Where things lie in a frame, and what they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The tuple.
    pub tuple: Tuple,
    /// What there is to be rewritten.
    pub kind: Kind,
    /// What the segment says about its connection.
    pub says: Says,
    /// The layer-4 header; of an error the ICMP header.
    pub l4: usize,
    /// The end of the IP packet.
    pub end: usize,
}

/// What kind of packet it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// With its layer-4 header.
    Whole,
    /// The first fragment of a datagram, with its identification.
    First(u32),
    /// A later fragment.
    Later(u32),
    /// An ICMP error: the IP header inside, and the layer-4 header inside.
    Error {
        /// Offset of the inner IP header.
        ip: usize,
        /// Offset of the inner layer-4 header.
        l4: usize,
    },
}

/// What a segment says about its connection.
#[expect(clippy::struct_excessive_bools, reason = "flags of a segment, as the headers have them")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Says {
    /// TCP SYN without ACK, SCTP INIT.
    pub open: bool,
    /// TCP SYN with ACK, SCTP INIT ACK.
    pub accept: bool,
    /// TCP FIN, SCTP SHUTDOWN or SHUTDOWN ACK.
    pub fin: bool,
    /// TCP RST, SCTP ABORT.
    pub reset: bool,
}

/// Why there is no tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// None of ours.
    Foreign,
    /// Cannot be.
    Malformed,
    /// More extension headers than are walked.
    TooManyExtensions,
    /// A later fragment without ports, whose identification this is.
    Later(u32),
}

/// The addresses of the fixed IP header; `None` if the frame is not IP, or has less than that.
pub fn addresses(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match frame.get(12..14)? {
        [0x08, 0x00] => {
            frame.get(ETHERNET..ETHERNET + 20)?;
            Some((v4(frame, ETHERNET + 12)?.into(), v4(frame, ETHERNET + 16)?.into()))
        }
        [0x86, 0xdd] => Some((v6(frame, ETHERNET + 8)?.into(), v6(frame, ETHERNET + 24)?.into())),
        _ => None,
    }
}

/// Reads a frame. `ports` knows the ports of fragmented datagrams, by addresses, protocol and identification.
pub fn read(frame: &[u8], ports: impl Fn(IpAddr, IpAddr, u8, u32) -> Option<(u16, u16)>) -> Result<Packet, Unread> {
    let (src, dst) = addresses(frame).ok_or(Unread::Foreign)?;
    let network = if dst.is_ipv4() { ipv4(frame) } else { ipv6(frame) }?;
    let Network { proto, l4, end, fragment } = network;
    let size = match (proto, fragment) {
        (proto::TCP, _) => 20,
        (proto::UDP, _) => 8,
        (proto::SCTP, Fragment::None) => 12,
        (proto::ICMP, Fragment::None) if dst.is_ipv4() => return error(frame, dst, l4, end).ok_or(Unread::Foreign),
        (proto::ICMPV6, Fragment::None) if dst.is_ipv6() => return error(frame, dst, l4, end).ok_or(Unread::Foreign),
        _ => return Err(Unread::Foreign),
    };
    let tuple = |sport, dport| Tuple { src: SocketAddr::new(src, sport), dst: SocketAddr::new(dst, dport), proto };
    let kind = match fragment {
        Fragment::None => Kind::Whole,
        Fragment::First(id) => Kind::First(id),
        Fragment::Later(id) => {
            let (sport, dport) = ports(src, dst, proto, id).ok_or(Unread::Later(id))?;
            let says = Says::default();
            return Ok(Packet { tuple: tuple(sport, dport), kind: Kind::Later(id), says, l4, end });
        }
    };
    let segment = frame.get(l4..end).filter(|segment| segment.len() >= size).ok_or(Unread::Malformed)?;
    let port = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
    Ok(Packet { tuple: tuple(port(0), port(2)), kind, says: says(proto, segment), l4, end })
}

/// What the IP header and its extensions say.
struct Network {
    proto: u8,
    l4: usize,
    end: usize,
    fragment: Fragment,
}

#[derive(Clone, Copy)]
enum Fragment {
    None,
    First(u32),
    Later(u32),
}

fn ipv4(frame: &[u8]) -> Result<Network, Unread> {
    let ip = &frame[ETHERNET..];
    let (header, total) = (usize::from(ip[0] & 0xf) * 4, usize::from(be16(ip, 2)));
    if ip[0] >> 4 != 4 || header < 20 || total < header || total > ip.len() {
        return Err(Unread::Malformed);
    }
    let id = u32::from(be16(ip, 4));
    let fragment = match be16(ip, 6) & 0x3fff {
        0 => Fragment::None,
        0x2000 => Fragment::First(id),
        _ => Fragment::Later(id),
    };
    Ok(Network { proto: ip[9], l4: ETHERNET + header, end: ETHERNET + total, fragment })
}

fn ipv6(frame: &[u8]) -> Result<Network, Unread> {
    const MOST: usize = 6;
    let ip = &frame[ETHERNET..];
    let end = ETHERNET + 40 + usize::from(be16(ip, 4));
    if ip[0] >> 4 != 6 || end > frame.len() {
        return Err(Unread::Malformed);
    }
    let (mut proto, mut l4, mut fragment) = (ip[6], ETHERNET + 40, Fragment::None);
    let mut walked = 0;
    while matches!(proto, 0 | 43 | 44 | 51 | 60) {
        if walked == MOST {
            return Err(Unread::TooManyExtensions);
        }
        walked += 1;
        let rest = &frame[l4..end];
        if rest.len() < 8 {
            return Err(Unread::Malformed);
        }
        if proto == 43 && rest[3] != 0 {
            return Err(Unread::Foreign);
        }
        l4 += match proto {
            44 => 8,
            51 => (usize::from(rest[1]) + 2) * 4,
            _ => (usize::from(rest[1]) + 1) * 8,
        };
        if proto == 44 {
            let id = u32::from_be_bytes([rest[4], rest[5], rest[6], rest[7]]);
            let offset = be16(rest, 2);
            if offset & 0xfff8 != 0 {
                return Ok(Network { proto: rest[0], l4, end, fragment: Fragment::Later(id) });
            }
            if offset & 1 != 0 {
                fragment = Fragment::First(id);
            }
        }
        proto = rest[0];
        if l4 > end {
            return Err(Unread::Malformed);
        }
    }
    Ok(Network { proto, l4, end, fragment })
}

fn says(proto: u8, segment: &[u8]) -> Says {
    match (proto, segment.get(12), segment.get(13)) {
        (proto::TCP, _, Some(flags)) => Says {
            open: flags & 0x12 == 0x02,
            accept: flags & 0x12 == 0x12,
            fin: flags & 0x01 != 0,
            reset: flags & 0x04 != 0,
        },
        (proto::SCTP, Some(chunk), _) => {
            Says { open: *chunk == 1, accept: *chunk == 2, fin: matches!(chunk, 7 | 8), reset: *chunk == 6 }
        }
        _ => Says::default(),
    }
}

/// An ICMP error: the tuple is that of the quoted packet, turned round.
fn error(frame: &[u8], to: IpAddr, l4: usize, end: usize) -> Option<Packet> {
    let packet = &frame[..end];
    let (ip, kind) = (l4 + 8, *packet.get(l4)?);
    let (inner_src, inner_dst, proto, inner_l4) = if to.is_ipv4() {
        let inner = packet.get(ip..ip + 20)?;
        let header = usize::from(inner[0] & 0xf) * 4;
        if !matches!(kind, 3 | 11 | 12) || inner[0] >> 4 != 4 || header < 20 || be16(inner, 6) & 0x1fff != 0 {
            return None;
        }
        (v4(packet, ip + 12)?.into(), v4(packet, ip + 16)?.into(), inner[9], ip + header)
    } else {
        let inner = packet.get(ip..ip + 40)?;
        if !matches!(kind, 1..=4) || inner[0] >> 4 != 6 {
            return None;
        }
        (IpAddr::from(v6(packet, ip + 8)?), IpAddr::from(v6(packet, ip + 24)?), inner[6], ip + 40)
    };
    let ports = packet.get(inner_l4..inner_l4 + 8)?;
    if inner_src != to || !matches!(proto, proto::TCP | proto::UDP | proto::SCTP) {
        return None;
    }
    let tuple = Tuple {
        src: SocketAddr::new(inner_dst, be16(ports, 2)),
        dst: SocketAddr::new(inner_src, be16(ports, 0)),
        proto,
    };
    Some(Packet { tuple, kind: Kind::Error { ip, l4: inner_l4 }, says: Says::default(), l4, end })
}

/// A number of two bytes.
pub fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn v4(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(octets.into())
}

fn v6(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
    Some(octets.into())
}
