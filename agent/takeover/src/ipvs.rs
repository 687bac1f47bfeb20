//! The kernel's load balancer, over generic netlink (`linux/ip_vs.h`), and the link that carries the addresses of Services.
//!
//! kube-proxy's own cleanup flushes all virtual services. Here only those go whose address is on kube-proxy's link, and those
//! of a node port, which its sets name.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use culvert_api::takeover::{Subsystem, Trace, TraceKind};
use culvert_dataplane::netlink::{Netlink, find};
use netlink_packet_core::NLM_F_ACK;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_sys::protocols::NETLINK_GENERIC;

use crate::{
    Findings, ipset,
    message::{Answer, Message},
    names::LINK,
};

/// Exists where the kernel has the load balancer. To ask for its netlink family where it has none would load it.
const PROC: &str = "/proc/thread-self/net/ip_vs";
/// `GENL_ID_CTRL`, `CTRL_CMD_GETFAMILY`, `CTRL_ATTR_FAMILY_NAME`, `CTRL_ATTR_FAMILY_ID`.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_NAME: u16 = 2;
const FAMILY_ID: u16 = 1;
/// `IPVS_GENL_NAME`, and its commands.
const IPVS: &str = "IPVS";
const DELETE_SERVICE: u8 = 3;
const GET_SERVICE: u8 = 4;
const VERSION: u8 = 1;
/// `IPVS_CMD_ATTR_SERVICE`, and what is in it.
const SERVICE: u16 = 1;
const AF: u16 = 1;
const V4: u16 = libc::AF_INET as u16;
const V6: u16 = libc::AF_INET6 as u16;
const PROTOCOL: u16 = 2;
const ADDRESS: u16 = 3;
const PORT: u16 = 4;
/// Bytes of `struct genlmsghdr`.
const HEAD: usize = 4;

/// A virtual service; those by firewall mark are never kube-proxy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Service {
    protocol: u8,
    address: SocketAddr,
}

/// Looks for what is kube-proxy's.
pub fn find_all(findings: &mut Findings) -> io::Result<()> {
    let trace = |subsystem, kind, name| Trace { subsystem, table: None, kind, name };
    let (_, services) = services()?;
    findings.found.extend(services.into_iter().map(|Service { protocol, address }| {
        let protocol = match protocol {
            6 => "tcp".to_owned(),
            17 => "udp".to_owned(),
            132 => "sctp".to_owned(),
            other => other.to_string(),
        };
        trace(Subsystem::Ipvs, TraceKind::Service, format!("{protocol} {address}"))
    }));
    if link(&Netlink::route()?)?.is_some() {
        findings.found.push(trace(Subsystem::Link, TraceKind::Link, LINK.to_owned()));
    }
    Ok(())
}

/// Removes the virtual services, which must go before their sets.
pub fn remove_services() -> io::Result<()> {
    let (family, services) = services()?;
    let netlink = Netlink::open(NETLINK_GENERIC)?;
    for service in services {
        match netlink.request_raw(&delete(family, service), |_| ()) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            result => result?,
        }
    }
    Ok(())
}

/// Removes the link, and with it its addresses.
pub fn remove_link() -> io::Result<()> {
    let netlink = Netlink::route()?;
    let Some(index) = link(&netlink)? else { return Ok(()) };
    let mut message = LinkMessage::default();
    message.header.index = index;
    netlink.request(RouteNetlinkMessage::DelLink(message), NLM_F_ACK).map(drop)
}

/// The index of kube-proxy's link. A link of that name and another kind is somebody else's.
fn link(netlink: &Netlink) -> io::Result<Option<u32>> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::IfName(LINK.to_owned()));
    let answer = match netlink.request(RouteNetlinkMessage::GetLink(request), 0) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
        result => result?,
    };
    Ok(answer.into_iter().find_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) if is_dummy(&link) => Some(link.header.index),
        _ => None,
    }))
}

fn is_dummy(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(info) => info.contains(&LinkInfo::Kind(InfoKind::Dummy)),
        _ => false,
    })
}

/// The netlink family's id, and the virtual services that are kube-proxy's.
fn services() -> io::Result<(u16, Vec<Service>)> {
    if !Path::new(PROC).exists() {
        return Ok((0, Vec::new()));
    }
    let addresses = addresses()?;
    let node_ports = ipset::node_ports()?;
    let netlink = Netlink::open(NETLINK_GENERIC)?;
    let family = family(&netlink)?;
    let mut services = Vec::new();
    let request = Message::new(family, Answer::Dump, &[GET_SERVICE, VERSION, 0, 0]);
    netlink.dump_raw(&request.finish(), |frame| services.extend(frame.payload.get(HEAD..).and_then(parse)))?;
    services.retain(|Service { protocol, address }| {
        addresses.contains(&address.ip()) || node_ports.contains(&(*protocol, address.port()))
    });
    services.sort_unstable();
    Ok((family, services))
}

/// The addresses on kube-proxy's link.
fn addresses() -> io::Result<BTreeSet<IpAddr>> {
    let netlink = Netlink::route()?;
    let Some(index) = link(&netlink)? else { return Ok(BTreeSet::new()) };
    let answer = netlink.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let of_link = answer.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewAddress(message) if message.header.index == index => Some(message),
        _ => None,
    });
    Ok(of_link
        .flat_map(|message| message.attributes)
        .filter_map(|attribute| match attribute {
            AddressAttribute::Address(address) | AddressAttribute::Local(address) => Some(address),
            _ => None,
        })
        .collect())
}

fn family(netlink: &Netlink) -> io::Result<u16> {
    let mut id = None;
    let request = Message::new(CONTROL, Answer::Acknowledge, &[GET_FAMILY, 1, 0, 0]).text(FAMILY_NAME, IPVS);
    netlink.request_raw(&request.finish(), |frame| {
        let bytes = frame.payload.get(HEAD..).and_then(|bytes| find(bytes, FAMILY_ID));
        id = bytes.and_then(|bytes| Some(u16::from_ne_bytes(*bytes.first_chunk()?)));
    })?;
    id.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Reads one virtual service; `None` for one by firewall mark.
fn parse(attributes: &[u8]) -> Option<Service> {
    let service = find(attributes, SERVICE)?;
    let number = |kind| Some(u16::from_ne_bytes(*find(service, kind)?.first_chunk()?));
    let address = find(service, ADDRESS)?;
    let ip = match number(AF)? {
        V4 => IpAddr::from(*address.first_chunk::<4>()?),
        V6 => IpAddr::from(*address.first_chunk::<16>()?),
        _ => return None,
    };
    let port = u16::from_be_bytes(*find(service, PORT)?.first_chunk()?);
    Some(Service { protocol: u8::try_from(number(PROTOCOL)?).ok()?, address: (ip, port).into() })
}

fn delete(family: u16, service: Service) -> Vec<u8> {
    let Service { protocol, address } = service;
    let af = if address.is_ipv4() { V4 } else { V6 };
    // `union nf_inet_addr` has room for both.
    let mut ip = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    ip.resize(16, 0);
    let inside: [(u16, &[u8]); 4] = [
        (AF, &af.to_ne_bytes()),
        (PROTOCOL, &u16::from(protocol).to_ne_bytes()),
        (ADDRESS, &ip),
        (PORT, &address.port().to_be_bytes()),
    ];
    let head = [DELETE_SERVICE, VERSION, 0, 0];
    Message::new(family, Answer::Acknowledge, &head).nested(SERVICE, &inside).finish()
}

#[cfg(test)]
mod tests {
    use culvert_dataplane::netlink::frames;
    use proptest::prelude::*;

    use super::*;

    fn captured(address: &str, protocol: u8) -> Vec<u8> {
        // What asks for the removal of a service describes it as the kernel does.
        delete(33, Service { protocol, address: address.parse().unwrap() })
    }

    #[test]
    fn a_service_is_read_as_it_is_written() {
        for (address, protocol) in [("10.96.0.10:53", 17), ("[fd00:96::a]:443", 6)] {
            let bytes = captured(address, protocol);
            let frame = frames(&bytes).next().unwrap();
            assert_eq!(frame.kind, 33);
            assert_eq!(frame.payload[..HEAD], [DELETE_SERVICE, VERSION, 0, 0]);
            let expected = Service { protocol, address: address.parse().unwrap() };
            assert_eq!(parse(&frame.payload[HEAD..]), Some(expected));
        }
    }

    #[test]
    fn a_service_by_firewall_mark_is_nobody_s_here() {
        let bytes =
            Message::new(33, Answer::Quiet, &[]).nested(SERVICE, &[(AF, &2_u16.to_ne_bytes()), (5, &[1, 0, 0, 0])]);
        assert_eq!(parse(&bytes.finish()[16..]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes: Vec<u8>, at in 0_usize..100, byte: u8) {
            let _ = parse(&bytes);
            let mut bytes = captured("10.96.0.10:53", 17).split_off(20);
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            let _ = parse(&bytes);
        }
    }
}
