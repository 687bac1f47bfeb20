//! TCP connections whose destination netfilter translates: what kube-proxy left when it made room for the agent.
//!
//! They are read once, at the agent's first start, over nfnetlink. A kernel without conntrack has none.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::{
    Error,
    netlink::{Frame, Netlink, find},
};

/// A connection whose destination netfilter replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Translated {
    /// The client, as it sent the first packet.
    pub client: SocketAddr,
    /// What it asked for.
    pub frontend: SocketAddr,
    /// Who answers instead.
    pub backend: SocketAddr,
    /// Whom the backend sees: the client, or what netfilter put in its place.
    pub source: SocketAddr,
}

/// Type of a message: subsystem ctnetlink (1), message `IPCTNL_MSG_CT_GET` (1).
const GET: u16 = 1 << 8 | 1;
/// `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY`, `CTA_PROTOINFO`.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const PROTOCOL_STATE: u16 = 4;
/// Bytes of `struct nfgenmsg`.
const FAMILY_HEADER: usize = 4;
/// Bytes of `struct nlmsghdr` and `struct nfgenmsg`.
const REQUEST: usize = 20;
/// States of a connection that goes on (`enum tcp_conntrack`): all that are before the last FIN.
const LIVE: std::ops::RangeInclusive<u8> = 1..=5;

/// The translated TCP connections of both families; none where there is no conntrack.
pub fn translated() -> Result<Vec<Translated>, Error> {
    let failed = Error::netlink("conntrack");
    let mut found = Vec::new();
    match dump(|frame| found.extend(parse(frame.payload.get(FAMILY_HEADER..).unwrap_or_default()))) {
        Err(error) if !absent(&error) => return Err(failed(error)),
        _ => {}
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// No netfilter, no conntrack, or no conntrack over netlink.
fn absent(error: &io::Error) -> bool {
    const MISSING: [i32; 5] = [libc::EPROTONOSUPPORT, libc::EAFNOSUPPORT, libc::EINVAL, libc::EOPNOTSUPP, libc::ENOENT];
    error.raw_os_error().is_some_and(|code| MISSING.contains(&code))
}

/// Dumps all connections. A dump that changes while it runs lacks none that lived all the time.
fn dump(mut message: impl FnMut(Frame<'_>)) -> io::Result<()> {
    let netlink = Netlink::open(NETLINK_NETFILTER)?;
    let mut request = [0; REQUEST];
    request[..4].copy_from_slice(&(REQUEST as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&GET.to_ne_bytes());
    request[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    // Family 0: all of them.
    netlink.dump_raw(&request, &mut message).map(drop)
}

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tuple {
    source: SocketAddr,
    destination: SocketAddr,
    protocol: u8,
}

/// Reads the attributes of one connection; `None` if it is not TCP, is over, or is not translated.
fn parse(attributes: &[u8]) -> Option<Translated> {
    let original = tuple(find(attributes, ORIGINAL)?)?;
    let reply = tuple(find(attributes, REPLY)?)?;
    if original.protocol != culvert_abi::proto::TCP || original.destination == reply.source {
        return None;
    }
    // CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE
    let state = find(attributes, PROTOCOL_STATE).and_then(|tcp| find(find(tcp, 1)?, 1)).and_then(<[u8]>::first);
    if state.is_some_and(|state| !LIVE.contains(state)) {
        return None;
    }
    Some(Translated {
        client: original.source,
        frontend: original.destination,
        backend: reply.source,
        source: reply.destination,
    })
}

fn tuple(attributes: &[u8]) -> Option<Tuple> {
    // CTA_TUPLE_IP: CTA_IP_V4_SRC, _V4_DST, _V6_SRC, _V6_DST. CTA_TUPLE_PROTO: CTA_PROTO_NUM, _SRC_PORT, _DST_PORT.
    let (ip, protocol) = (find(attributes, 1)?, find(attributes, 2)?);
    let address = |v4, v6| match find(ip, v4) {
        Some(bytes) => Some(IpAddr::from(*bytes.first_chunk::<4>()?)),
        None => Some(IpAddr::from(*find(ip, v6)?.first_chunk::<16>()?)),
    };
    let port = |kind| Some(u16::from_be_bytes(*find(protocol, kind)?.first_chunk()?));
    Some(Tuple {
        source: (address(1, 3)?, port(2)?).into(),
        destination: (address(2, 4)?, port(3)?).into(),
        protocol: *find(protocol, 1)?.first()?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NESTED: u16 = 0x8000;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn direction(kind: u16, protocol: u8, source: &str, destination: &str) -> Vec<u8> {
        let (source, destination): (SocketAddr, SocketAddr) = (source.parse().unwrap(), destination.parse().unwrap());
        let address = |v4, v6, address: SocketAddr| match address.ip() {
            IpAddr::V4(ip) => attribute(v4, &ip.octets()),
            IpAddr::V6(ip) => attribute(v6, &ip.octets()),
        };
        let ip = [address(1, 3, source), address(2, 4, destination)].concat();
        let ports = [
            attribute(1, &[protocol]),
            attribute(2, &source.port().to_be_bytes()),
            attribute(3, &destination.port().to_be_bytes()),
        ];
        attribute(kind | NESTED, &[attribute(1 | NESTED, &ip), attribute(2 | NESTED, &ports.concat())].concat())
    }

    fn connection(protocol: u8, state: u8, original: [&str; 2], reply: [&str; 2]) -> Vec<u8> {
        let tcp = attribute(1 | NESTED, &attribute(1, &[state]));
        [
            direction(ORIGINAL, protocol, original[0], original[1]),
            direction(REPLY, protocol, reply[0], reply[1]),
            attribute(PROTOCOL_STATE | NESTED, &tcp),
        ]
        .concat()
    }

    const ESTABLISHED: u8 = 3;
    const TIME_WAIT: u8 = 7;

    #[test]
    fn a_translated_connection_is_read() {
        let bytes = connection(
            6,
            ESTABLISHED,
            ["[fd00::9]:40000", "[fd00:96::1]:80"],
            ["[fd00:244::7]:8080", "[fd00::11]:50001"],
        );
        let expected = Translated {
            client: "[fd00::9]:40000".parse().unwrap(),
            frontend: "[fd00:96::1]:80".parse().unwrap(),
            backend: "[fd00:244::7]:8080".parse().unwrap(),
            source: "[fd00::11]:50001".parse().unwrap(),
        };
        assert_eq!(parse(&bytes), Some(expected));
    }

    #[test]
    fn others_are_left_out() {
        let there = ["10.0.0.9:40000", "10.96.0.1:80"];
        let back = ["10.244.1.7:8080", "10.0.0.9:40000"];
        assert!(parse(&connection(6, ESTABLISHED, there, back)).is_some());
        assert_eq!(parse(&connection(17, ESTABLISHED, there, back)), None, "UDP");
        assert_eq!(parse(&connection(6, TIME_WAIT, there, back)), None, "over");
        assert_eq!(parse(&connection(6, ESTABLISHED, there, ["10.96.0.1:80", "10.0.0.1:5"])), None, "only the source");
        let other_port = parse(&connection(6, ESTABLISHED, there, ["10.96.0.1:8080", "10.0.0.9:40000"]));
        assert!(other_port.is_some(), "a port alone");
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }

        #[test]
        fn a_damaged_connection_is_no_trouble(at in 0_usize..200, byte: u8) {
            let mut bytes = connection(6, ESTABLISHED, ["10.0.0.9:1", "10.96.0.1:80"], ["10.244.1.7:80", "10.0.0.9:1"]);
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            let _ = parse(&bytes);
        }
    }
}
