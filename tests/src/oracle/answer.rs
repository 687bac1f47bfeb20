//! The answers to refused packets, from scratch.

use std::net::IpAddr;

use culvert_abi::proto;

use super::frame;
use super::packet::{ETHERNET, Kind, Packet, be16};

/// The answer to a refused packet. `None`: it is not answered. `strange` says that the port is not served at all.
pub fn answer(frame: &[u8], packet: &Packet, strange: bool) -> Option<Vec<u8>> {
    let (client, asked) = (packet.tuple.src, packet.tuple.dst);
    if packet.kind != Kind::Whole || martian(client.ip()) || client.ip().is_multicast() || is_class_e(client.ip()) {
        return None;
    }
    let (number, payload) = if packet.tuple.proto == proto::TCP {
        if packet.says.reset || !(packet.says.open || strange) {
            return None;
        }
        let segment = &frame[packet.l4..packet.end];
        let word = |at: usize| u32::from(be16(segment, at)) << 16 | u32::from(be16(segment, at + 2));
        let flags = segment[13];
        let (seq, ack, flags) = if flags & 0x10 != 0 {
            (word(8), 0, 0x04)
        } else {
            let data = (segment.len() as u32).wrapping_sub(u32::from(segment[12] >> 4) * 4);
            let length = data.wrapping_add(u32::from(flags & 0x02 != 0)).wrapping_add(u32::from(flags & 0x01 != 0));
            (0, word(4).wrapping_add(length), 0x14)
        };
        (proto::TCP, frame::tcp(asked, client, &frame::Tcp { flags, seq, ack, window: 0, ..frame::Tcp::default() }))
    } else if client.is_ipv4() {
        let quote = &frame[ETHERNET..packet.l4 + 8];
        (proto::ICMP, frame::icmp(asked.ip(), client.ip(), 3, 3, quote))
    } else {
        let quote = &frame[ETHERNET..packet.end.min(ETHERNET + 128)];
        (proto::ICMPV6, frame::icmp(asked.ip(), client.ip(), 1, 4, quote))
    };
    let ip = frame::Ip { id: 0, dont_fragment: true, ..frame::Ip::default() };
    let mut answer = frame::ip(asked.ip(), client.ip(), number, &ip, &payload);
    answer[..6].copy_from_slice(&frame[6..12]);
    answer[6..12].copy_from_slice(&frame[..6]);
    Some(answer)
}

/// An address that nothing comes from over a link: loopback or unspecified.
pub fn martian(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified()
}

/// 240.0.0.0/4 and broadcast: many hosts, or none.
fn is_class_e(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if ip.octets()[0] >= 240)
}
