//! What netlink says of the node's network: links, addresses, and where its default routes lead.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};

use crate::netlink::Netlink;

/// The node's network at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Links by ifindex, each with its addresses.
    pub links: BTreeMap<u32, Link>,
    /// Where a packet to a far address leaves: at most one way for each family.
    pub defaults: Vec<DefaultRoute>,
}

/// A network link.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // each is one of the kernel's flags
pub struct Link {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// What a packet begins with there.
    pub header: Header,
    /// Its link-layer address, if it has one of Ethernet's.
    pub mac: Option<[u8; 6]>,
    /// The bridge, bond or VRF that it belongs to.
    pub master: Option<u32>,
    /// Its other end or lower link is in another network namespace.
    pub peer_elsewhere: bool,
    /// It is set up (`IFF_UP`).
    pub up: bool,
    /// It can carry packets: set up, with a carrier.
    pub running: bool,
    /// How often its carrier came.
    pub carrier_ups: u32,
    /// Neighbours are asked for their link addresses there.
    pub arp: bool,
    /// Its addresses, in the kernel's order.
    pub addresses: Vec<Address>,
}

/// Kinds of links, as far as it matters what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A network card, or what pretends to be one.
    Physical,
    /// One end of a pair: veth, netkit.
    Pair,
    /// A bridge.
    Bridge,
    /// A bond or team.
    Bond,
    /// A VLAN on another link.
    Vlan,
    /// A tunnel: VXLAN, Geneve, IPIP, GRE, WireGuard and their like.
    Tunnel,
    /// A tun (a VPN, as a rule) or tap (a virtual machine).
    Tun,
    /// A link that shares another one's wire: macvlan, ipvlan.
    Shared,
    /// A VRF.
    Vrf,
    /// Loopback.
    Loopback,
    /// Nothing that carries traffic to or from elsewhere: dummy, ifb, nlmon.
    Other,
}

/// What a packet begins with at the hooks of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// An Ethernet header.
    Ethernet,
    /// The IP header.
    None,
    /// A header that the programs do not know (that of `IPoIB`).
    Unknown,
}

/// An address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address itself.
    pub ip: IpAddr,
    /// The kernel would take it as the source of a packet to anywhere: global, primary, not deprecated or tentative.
    pub source: bool,
    /// Length of the prefix that is connected with it.
    pub prefix_length: u8,
}

/// Where packets to far addresses leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefaultRoute {
    /// The link.
    pub link: u32,
    /// The source address that the kernel takes.
    pub source: IpAddr,
}

/// Addresses that only a default route leads to: class E (RFC 1112), and the 6bone's that were given back (RFC 3701).
const FAR: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(240, 0, 0, 1)), IpAddr::V6(Ipv6Addr::new(0x3ffe, 0, 0, 0, 0, 0, 0, 1))];

impl Network {
    /// Reads everything.
    pub fn read(netlink: &Netlink) -> io::Result<Self> {
        let mut network = Self::default();
        for message in netlink.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))? {
            if let RouteNetlinkMessage::NewLink(message) = message {
                network.links.extend(link(&message));
            }
        }
        for message in netlink.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
            let RouteNetlinkMessage::NewAddress(message) = message else { continue };
            let link = network.links.get_mut(&message.header.index);
            if let (Some(link), Some(address)) = (link, address(&message)) {
                link.addresses.push(address);
            }
        }
        for far in FAR {
            network.defaults.extend(way_to(netlink, far)?);
        }
        Ok(network)
    }
}

/// Whether a notification may change the [`Network`].
pub fn concerns(message: &RouteNetlinkMessage) -> bool {
    match message {
        RouteNetlinkMessage::NewLink(_)
        | RouteNetlinkMessage::DelLink(_)
        | RouteNetlinkMessage::NewAddress(_)
        | RouteNetlinkMessage::DelAddress(_) => true,
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            route.header.destination_prefix_length == 0
        }
        _ => false,
    }
}

fn link(message: &LinkMessage) -> Option<(u32, Link)> {
    let header = match message.header.link_layer_type {
        LinkLayerType::Ether => Header::Ethernet,
        // The kernel's dev_is_mac_header_xmit().
        LinkLayerType::Tunnel
        | LinkLayerType::Tunnel6
        | LinkLayerType::Sit
        | LinkLayerType::Ipgre
        | LinkLayerType::Ip6gre
        | LinkLayerType::Void
        | LinkLayerType::None
        | LinkLayerType::Rawip
        | LinkLayerType::Ppp => Header::None,
        _ => Header::Unknown,
    };
    let flags = message.header.flags;
    let mut found = Link {
        name: String::new(),
        kind: if flags.contains(LinkFlags::Loopback) { Kind::Loopback } else { Kind::Physical },
        header,
        mac: None,
        master: None,
        peer_elsewhere: false,
        up: flags.contains(LinkFlags::Up),
        running: flags.contains(LinkFlags::Up | LinkFlags::Running | LinkFlags::LowerUp),
        carrier_ups: 0,
        arp: !flags.contains(LinkFlags::Noarp),
        addresses: Vec::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name.clone_from(name),
            LinkAttribute::Address(mac) => found.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::Controller(index) => found.master = Some(*index),
            LinkAttribute::LinkNetNsId(_) => found.peer_elsewhere = true,
            LinkAttribute::CarrierUpCount(count) => found.carrier_ups = *count,
            LinkAttribute::LinkInfo(infos) => {
                found.kind = infos.iter().find_map(kind).unwrap_or(found.kind);
            }
            _ => {}
        }
    }
    (!found.name.is_empty()).then_some((message.header.index, found))
}

fn kind(info: &LinkInfo) -> Option<Kind> {
    let LinkInfo::Kind(kind) = info else { return None };
    Some(match kind {
        InfoKind::Veth | InfoKind::Netkit => Kind::Pair,
        InfoKind::Bridge => Kind::Bridge,
        InfoKind::Bond | InfoKind::Team => Kind::Bond,
        InfoKind::Vlan => Kind::Vlan,
        InfoKind::MacVlan | InfoKind::IpVlan => Kind::Shared,
        InfoKind::Vrf => Kind::Vrf,
        InfoKind::Tun => Kind::Tun,
        InfoKind::Vxlan
        | InfoKind::Geneve
        | InfoKind::GreTap
        | InfoKind::GreTap6
        | InfoKind::IpIp
        | InfoKind::Ip6Tnl
        | InfoKind::SitTun
        | InfoKind::GreTun
        | InfoKind::GreTun6
        | InfoKind::Vti
        | InfoKind::Vti6
        | InfoKind::Wireguard
        | InfoKind::Xfrm
        | InfoKind::BareUdp => Kind::Tunnel,
        InfoKind::Dsa | InfoKind::Wwan | InfoKind::RmNet | InfoKind::VirtWifi | InfoKind::MacSec | InfoKind::Ipoib => {
            Kind::Physical
        }
        _ => Kind::Other,
    })
}

fn address(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut peer) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => peer = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let unfit = AddressFlags::Secondary | AddressFlags::Deprecated | AddressFlags::Tentative | AddressFlags::Dadfailed;
    // Without `Local` there is no peer, and `Address` is the link's own.
    let ip = local.or(peer)?;
    let source = message.header.scope == AddressScope::Universe && !flags.intersects(unfit);
    Some(Address { ip, source, prefix_length: message.header.prefix_len })
}

/// Where and with what source the kernel would send a packet to `far`.
fn way_to(netlink: &Netlink, far: IpAddr) -> io::Result<Option<DefaultRoute>> {
    let mut question = RouteMessage::default();
    question.header.address_family = if far.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    question.header.destination_prefix_length = if far.is_ipv4() { 32 } else { 128 };
    question.attributes.push(RouteAttribute::Destination(far.into()));
    let answer = match netlink.request(RouteNetlinkMessage::GetRoute(question), 0) {
        Ok(answer) => answer,
        // No route, a route that prohibits it, or no such family.
        Err(error) => {
            return match error.raw_os_error() {
                Some(
                    libc::ENETUNREACH
                    | libc::EHOSTUNREACH
                    | libc::EACCES
                    | libc::EINVAL
                    | libc::EAFNOSUPPORT
                    | libc::EOPNOTSUPP,
                ) => Ok(None),
                _ => Err(error),
            };
        }
    };
    let (mut link, mut source) = (None, None);
    for message in &answer {
        let RouteNetlinkMessage::NewRoute(route) = message else { continue };
        if route.header.kind != RouteType::Unicast {
            continue;
        }
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => link = Some(*index),
                RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => source = Some(IpAddr::V4(*ip)),
                RouteAttribute::PrefSource(RouteAddress::Inet6(ip)) => source = Some(IpAddr::V6(*ip)),
                _ => {}
            }
        }
    }
    Ok(link.zip(source).map(|(link, source)| DefaultRoute { link, source }))
}
