//! Building frames.

use std::net::{IpAddr, SocketAddr};

use culvert_abi::proto;

use super::sum::{crc32c, sum};

/// What an IP header says beyond addresses and protocol.
#[derive(Clone, Debug)]
pub struct Ip {
    /// TTL or hop limit.
    pub ttl: u8,
    /// Identification, of IPv4 and of fragments.
    pub id: u32,
    /// IPv4: DF.
    pub dont_fragment: bool,
    /// Offset in bytes (a multiple of 8), and whether more follow.
    pub fragment: Option<(u16, bool)>,
    /// IPv4: words of options. IPv6: numbers of the extension headers before a fragment header.
    pub extras: Vec<u8>,
}

impl Default for Ip {
    fn default() -> Self {
        Self { ttl: 64, id: 0, dont_fragment: false, fragment: None, extras: Vec::new() }
    }
}

/// A frame with an IP packet, its checksum right.
pub fn ip(src: IpAddr, dst: IpAddr, number: u8, ip: &Ip, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x02, 0, 0, 0, 0, 0x0b, 0x02, 0, 0, 0, 0, 0x0a];
    if let (IpAddr::V4(src), IpAddr::V4(dst)) = (src, dst) {
        frame.extend([0x08, 0x00]);
        frame.extend(ipv4(src.octets(), dst.octets(), number, ip, payload.len()));
    } else {
        frame.extend([0x86, 0xdd]);
        frame.extend(ipv6(octets(src), octets(dst), number, ip, payload.len()));
    }
    frame.extend(payload);
    frame
}

fn ipv4(src: [u8; 4], dst: [u8; 4], number: u8, ip: &Ip, payload: usize) -> Vec<u8> {
    let header = 20 + 4 * ip.extras.len();
    let total = (header + payload) as u16;
    let (offset, more) = ip.fragment.unwrap_or((0, false));
    let flags = (offset / 8) | (u16::from(more) << 13) | (u16::from(ip.dont_fragment) << 14);
    let mut bytes = vec![0x40 | (header / 4) as u8, 0];
    bytes.extend(total.to_be_bytes());
    bytes.extend((ip.id as u16).to_be_bytes());
    bytes.extend(flags.to_be_bytes());
    bytes.extend([ip.ttl, number, 0, 0]);
    bytes.extend(src);
    bytes.extend(dst);
    // No operation.
    bytes.resize(header, 1);
    let check = !sum(&[&bytes]);
    bytes[10..12].copy_from_slice(&check.to_be_bytes());
    bytes
}

fn ipv6(src: Vec<u8>, dst: Vec<u8>, number: u8, ip: &Ip, payload: usize) -> Vec<u8> {
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    let mut numbers = ip.extras.clone();
    numbers.extend(ip.fragment.map(|_| FRAGMENT));
    numbers.push(number);
    let mut extensions = Vec::new();
    for pair in numbers.windows(2) {
        let (this, next) = (pair[0], pair[1]);
        match this {
            FRAGMENT => {
                let (offset, more) = ip.fragment.unwrap_or((0, false));
                extensions.extend([next, 0]);
                extensions.extend((offset | u16::from(more)).to_be_bytes());
                extensions.extend(ip.id.to_be_bytes());
            }
            AUTHENTICATION => {
                extensions.extend([next, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]);
            }
            // PadN; a routing header has type 0 and no segments left.
            _ => extensions.extend([next, 0, 1, 0, 0, 0, 0, 0]),
        }
    }
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend(((extensions.len() + payload) as u16).to_be_bytes());
    bytes.extend([numbers[0], ip.ttl]);
    bytes.extend(src);
    bytes.extend(dst);
    bytes.extend(extensions);
    bytes
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// The sum of the pseudo header and the payload.
fn covered(src: IpAddr, dst: IpAddr, number: u8, payload: &[u8]) -> u16 {
    let length = (payload.len() as u32).to_be_bytes();
    sum(&[&octets(src), &octets(dst), &[0, number], &length, payload])
}

/// What a TCP segment says.
#[derive(Clone, Debug, Default)]
pub struct Tcp {
    /// The flags: FIN 1, SYN 2, RST 4, PSH 8, ACK 16, ...
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Window.
    pub window: u16,
    /// Words of options.
    pub options: u8,
    /// What it carries.
    pub data: Vec<u8>,
}

/// A TCP segment, its checksum right.
pub fn tcp(src: SocketAddr, dst: SocketAddr, tcp: &Tcp) -> Vec<u8> {
    let mut bytes = ports(src, dst);
    bytes.extend(tcp.seq.to_be_bytes());
    bytes.extend(tcp.ack.to_be_bytes());
    bytes.extend([(5 + tcp.options) << 4, tcp.flags]);
    bytes.extend(tcp.window.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.resize(20 + 4 * usize::from(tcp.options), 1);
    bytes.extend(&tcp.data);
    let check = !covered(src.ip(), dst.ip(), proto::TCP, &bytes);
    bytes[16..18].copy_from_slice(&check.to_be_bytes());
    bytes
}

/// A UDP datagram, its checksum right, or none.
pub fn udp(src: SocketAddr, dst: SocketAddr, data: &[u8], checked: bool) -> Vec<u8> {
    let mut bytes = ports(src, dst);
    bytes.extend(((8 + data.len()) as u16).to_be_bytes());
    bytes.extend([0; 2]);
    bytes.extend(data);
    if checked {
        let check = match !covered(src.ip(), dst.ip(), proto::UDP, &bytes) {
            0 => 0xffff,
            check => check,
        };
        bytes[6..8].copy_from_slice(&check.to_be_bytes());
    }
    bytes
}

/// An SCTP packet with one chunk, its checksum right, or none.
pub fn sctp(src: SocketAddr, dst: SocketAddr, chunk: u8, data: &[u8], checked: bool) -> Vec<u8> {
    let mut bytes = ports(src, dst);
    bytes.extend([0xde, 0xad, 0xbe, 0xef, 0, 0, 0, 0, chunk, 0]);
    bytes.extend(((4 + data.len()) as u16).to_be_bytes());
    bytes.extend(data);
    if checked {
        let crc = crc32c(&[&bytes]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}

/// An ICMP or `ICMPv6` error that quotes a packet, its checksum right.
pub fn icmp(src: IpAddr, dst: IpAddr, kind: u8, code: u8, quote: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0, 0, 0, 0, 0];
    bytes.extend(quote);
    let check = if src.is_ipv4() { !sum(&[&bytes]) } else { !covered(src, dst, proto::ICMPV6, &bytes) };
    bytes[2..4].copy_from_slice(&check.to_be_bytes());
    bytes
}

fn ports(src: SocketAddr, dst: SocketAddr) -> Vec<u8> {
    [src.port().to_be_bytes(), dst.port().to_be_bytes()].concat()
}
