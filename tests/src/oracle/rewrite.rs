//! The two rewrites, on the bytes of a frame.

use std::net::{IpAddr, SocketAddr};

use culvert_abi::proto;

use super::packet::{ETHERNET, Kind, Packet};
use super::sum::{balance, crc32c, sum};

/// Which end of a packet changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The one that sends.
    Source,
    /// The one that is to receive.
    Destination,
}

/// The frame with one end replaced.
pub fn rewrite(frame: &[u8], packet: &Packet, end: End, to: SocketAddr) -> Vec<u8> {
    let mut new = frame.to_vec();
    match packet.kind {
        Kind::Error { ip, l4 } => error(frame, &mut new, packet, end, to, ip, l4),
        Kind::Later(_) => header(frame, &mut new, ETHERNET, end, to.ip()),
        Kind::Whole | Kind::First(_) => {
            header(frame, &mut new, ETHERNET, end, to.ip());
            put_port(&mut new, packet.l4, end, to.port());
            transport(frame, &mut new, packet.tuple.proto, ETHERNET, packet.l4, packet.end);
        }
    }
    new
}

/// Replaces an address of the IP header at `ip`; its checksum goes with it.
fn header(old: &[u8], new: &mut [u8], ip: usize, end: End, to: IpAddr) {
    match (to, end) {
        (IpAddr::V4(to), End::Source) => new[ip + 12..ip + 16].copy_from_slice(&to.octets()),
        (IpAddr::V4(to), End::Destination) => new[ip + 16..ip + 20].copy_from_slice(&to.octets()),
        (IpAddr::V6(to), End::Source) => new[ip + 8..ip + 24].copy_from_slice(&to.octets()),
        (IpAddr::V6(to), End::Destination) => new[ip + 24..ip + 40].copy_from_slice(&to.octets()),
    }
    if to.is_ipv4() {
        keep_sum(new, ip + 10, sum(&[&old[ip..ip + 20]]), |new| sum(&[&new[ip..ip + 20]]));
    }
}

/// The bytes of both addresses of the IP header at `ip`.
fn pseudo(frame: &[u8], ip: usize) -> &[u8] {
    if frame[ip] >> 4 == 4 { &frame[ip + 12..ip + 20] } else { &frame[ip + 8..ip + 40] }
}

fn put_port(new: &mut [u8], l4: usize, end: End, port: u16) {
    let at = if end == End::Source { l4 } else { l4 + 2 };
    new[at..at + 2].copy_from_slice(&port.to_be_bytes());
}

/// Sets the checksum field so that the sum is what it was.
fn keep_sum(new: &mut [u8], field: usize, wanted: u16, covered: impl Fn(&[u8]) -> u16) {
    new[field..field + 2].fill(0);
    let value = balance(wanted, covered(new));
    new[field..field + 2].copy_from_slice(&value.to_be_bytes());
}

/// Brings the checksum of the segment at `l4` in line with its ports and the addresses of the header at `ip`. A field that
/// lies beyond `end` is not there.
fn transport(old: &[u8], new: &mut [u8], proto: u8, ip: usize, l4: usize, end: usize) {
    let field = l4
        + match proto {
            proto::TCP => 16,
            proto::UDP => 6,
            _ => return association(old, new, l4, end),
        };
    if field + 2 > end || (proto == proto::UDP && old[field..field + 2] == [0, 0]) {
        return;
    }
    let covered = |frame: &[u8]| sum(&[pseudo(frame, ip), &frame[l4..end]]);
    if pseudo(old, ip) == pseudo(new, ip) && old[l4..end] == new[l4..end] {
        return;
    }
    keep_sum(new, field, covered(old), covered);
    if proto == proto::UDP && new[field..field + 2] == [0, 0] {
        new[field..field + 2].fill(0xff);
    }
}

/// Likewise for SCTP. A checksum that was wrong stays wrong by the same bits.
fn association(old: &[u8], new: &mut [u8], l4: usize, end: usize) {
    let field: [u8; 4] = [old[l4 + 8], old[l4 + 9], old[l4 + 10], old[l4 + 11]];
    if field == [0; 4] || old[l4..l4 + 4] == new[l4..l4 + 4] {
        return;
    }
    let of = |frame: &[u8]| crc32c(&[&frame[l4..l4 + 8], &[0; 4], &frame[l4 + 12..end]]);
    let value = u32::from_le_bytes(field) ^ of(old) ^ of(new);
    new[l4 + 8..l4 + 12].copy_from_slice(&value.to_le_bytes());
}

/// An error: the quoted packet went the other way, so its other end changes. The outer address follows where it is that of
/// the same end point.
fn error(old: &[u8], new: &mut [u8], packet: &Packet, end: End, to: SocketAddr, ip: usize, l4: usize) {
    let (inner_end, was) = match end {
        End::Source => (End::Destination, packet.tuple.src.ip()),
        End::Destination => (End::Source, packet.tuple.dst.ip()),
    };
    header(old, new, ip, inner_end, to.ip());
    put_port(new, l4, inner_end, to.port());
    if packet.tuple.proto != proto::SCTP {
        transport(old, new, packet.tuple.proto, ip, l4, packet.end);
    }
    let (src, dst) = super::packet::addresses(old).unwrap_or((was, was));
    let outer = if end == End::Source { src } else { dst };
    if outer == was {
        header(old, new, ETHERNET, end, to.ip());
    }
    // ICMP for IPv4 has no pseudo header (RFC 792), ICMPv6 has one (RFC 4443 2.3).
    let covered = |frame: &[u8]| {
        let addresses = if was.is_ipv4() { &[] } else { pseudo(frame, ETHERNET) };
        sum(&[addresses, &frame[packet.l4..packet.end]])
    };
    if old != new {
        keep_sum(new, packet.l4 + 2, covered(old), covered);
    }
}
