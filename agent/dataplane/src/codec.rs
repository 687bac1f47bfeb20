//! Between typed rows and the bytes of the maps: the one place that knows how the two address families differ.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use culvert_abi::{
    APPENDED, AnnouncedKey, Backend, BackendCounters, Flow, FlowKey, Frontend, FrontendKey, Plain, RangeKey,
    ServiceCounters, V4, V6, proto, role,
};
use culvert_api::plan::Protocol;
use ipnet::IpNet;

use crate::store::Map;

/// An address family, and its maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4 = 4,
    /// IPv6.
    V6 = 6,
}

#[allow(missing_docs)] // each is the map of that name
impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// 0 or 1, for arrays of both.
    pub fn index(self) -> usize {
        usize::from(self == Self::V6)
    }

    fn pick(self, v4: Map, v6: Map) -> Map {
        if self == Self::V4 { v4 } else { v6 }
    }

    pub fn addresses(self) -> Map {
        self.pick(Map::ADDRESSES_V4, Map::ADDRESSES_V6)
    }

    pub fn frontends(self) -> Map {
        self.pick(Map::FRONTENDS_V4, Map::FRONTENDS_V6)
    }

    pub fn backends(self) -> Map {
        self.pick(Map::BACKENDS_V4, Map::BACKENDS_V6)
    }

    pub fn ranges(self) -> Map {
        self.pick(Map::RANGES_V4, Map::RANGES_V6)
    }

    pub fn flows_new(self) -> Map {
        self.pick(Map::FLOWS_NEW_V4, Map::FLOWS_NEW_V6)
    }

    pub fn flows(self) -> Map {
        self.pick(Map::FLOWS_V4, Map::FLOWS_V6)
    }

    /// The two maps of flows, the new ones first: a flow moves from them to the others, never back. With each whether it is
    /// that of the established.
    pub fn flow_maps(self) -> [(Map, bool); 2] {
        [(self.flows_new(), false), (self.flows(), true)]
    }

    pub fn backend_counters(self) -> Map {
        self.pick(Map::BACKEND_COUNTERS_V4, Map::BACKEND_COUNTERS_V6)
    }
}

/// Where a frontend is: its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendAt {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
}

/// A row of `BACKENDS_V4/V6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendRow {
    /// Endpoint address.
    pub address: IpAddr,
    /// Endpoint port.
    pub port: u16,
    /// Bits of [`culvert_abi::backend`].
    pub flags: u16,
    /// Generation of the id.
    pub generation: u32,
    /// The Service port's id.
    pub service: u32,
}

/// An address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct At {
    /// Address; unspecified where there is none.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
}

/// A row of the flow maps, with its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRow {
    /// Source as the key says.
    pub src: At,
    /// Destination as the key says.
    pub dst: At,
    /// IP protocol number.
    pub proto: u8,
    /// One of [`culvert_abi::role`].
    pub role: u8,
    /// The client.
    pub client: At,
    /// What it asked for.
    pub frontend: At,
    /// Who serves it.
    pub backend: At,
    /// What the backend sees instead of the client; port 0 while nothing is chosen.
    pub source: At,
    /// Packets that this row matched.
    pub packets: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Backend id, 0 = left alone.
    pub backend_id: u32,
    /// Its generation.
    pub generation: u32,
    /// The Service port's id.
    pub service: u32,
    /// Tick of the last packet.
    pub seen: u32,
    /// Tick of the first packet.
    pub born: u32,
    /// Bits of [`culvert_abi::flow`].
    pub flags: u32,
    /// It lies in `FLOWS`, not in `FLOWS_NEW`.
    pub established: bool,
}

/// The IP protocol number.
pub fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => proto::TCP,
        Protocol::Udp => proto::UDP,
        Protocol::Sctp => proto::SCTP,
    }
}

/// The protocol of a number that the programs serve.
pub fn protocol(number: u8) -> Option<Protocol> {
    match number {
        proto::TCP => Some(Protocol::Tcp),
        proto::UDP => Some(Protocol::Udp),
        proto::SCTP => Some(Protocol::Sctp),
        _ => None,
    }
}

// ===== keys and values to bytes =====

/// Key of an array.
pub fn index_key(index: u32) -> [u8; 4] {
    index.to_ne_bytes()
}

/// Key of `ADDRESSES_V4/V6`: the address as it lies in a packet.
pub fn address_key(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Key of `FRONTENDS_V4/V6`.
pub fn frontend_key(at: FrontendAt) -> Vec<u8> {
    fn encode<const W: usize>(addr: [u32; W], at: FrontendAt) -> Vec<u8> {
        FrontendKey::<W> { addr, port: at.port.to_be(), proto: at.proto, zero: 0 }.bytes().to_vec()
    }
    match at.address {
        IpAddr::V4(address) => encode::<V4>(words(&address.octets()), at),
        IpAddr::V6(address) => encode::<V6>(words(&address.octets()), at),
    }
}

/// Value of `BACKENDS_V4/V6`.
pub fn backend_value(row: BackendRow) -> Vec<u8> {
    fn encode<const W: usize>(addr: [u32; W], row: BackendRow) -> Vec<u8> {
        let BackendRow { address: _, port, flags, generation, service } = row;
        Backend::<W> { addr, port: port.to_be(), flags, generation, service }.bytes().to_vec()
    }
    match row.address {
        IpAddr::V4(address) => encode::<V4>(words(&address.octets()), row),
        IpAddr::V6(address) => encode::<V6>(words(&address.octets()), row),
    }
}

/// Key of `RANGES_V4/V6`.
pub fn range_key(ranges: u32, net: IpNet) -> Vec<u8> {
    fn encode<const W: usize>(ranges: u32, addr: [u32; W], length: u8) -> Vec<u8> {
        RangeKey::<W> { prefix_len: 32 + u32::from(length), ranges, addr }.bytes().to_vec()
    }
    match net {
        IpNet::V4(net) => encode::<V4>(ranges, words(&net.network().octets()), net.prefix_len()),
        IpNet::V6(net) => encode::<V6>(ranges, words(&net.network().octets()), net.prefix_len()),
    }
}

/// A time as rows have it; what is too long for them is as long as can be.
pub fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Key of `ANNOUNCED` and `ANNOUNCED_COUNTERS`.
pub fn announced_key(address: IpAddr, link: u32) -> Vec<u8> {
    let (addr, family) = match address {
        IpAddr::V4(address) => ([u32::from_ne_bytes(address.octets()), 0, 0, 0], Family::V4),
        IpAddr::V6(address) => (words(&address.octets()), Family::V6),
    };
    AnnouncedKey { addr, family: family as u32, ifindex: link }.bytes().to_vec()
}

/// Value of `RANGES_V4/V6`: it says nothing.
pub const RANGE_VALUE: [u8; 4] = 1_u32.to_ne_bytes();

/// Key and value of a flow row, as the programs would write them.
pub fn flow(row: &FlowRow) -> (Vec<u8>, Vec<u8>) {
    fn encode<const W: usize>(row: &FlowRow) -> (Vec<u8>, Vec<u8>) {
        let key = FlowKey::<W> {
            src: address_words(row.src.address),
            dst: address_words(row.dst.address),
            sport: row.src.port.to_be(),
            dport: row.dst.port.to_be(),
            proto: row.proto,
            role: row.role,
            zero: 0,
        };
        let value = Flow::<W> {
            packets: row.packets,
            bytes: row.bytes,
            client: address_words(row.client.address),
            frontend: address_words(row.frontend.address),
            backend: address_words(row.backend.address),
            source: address_words(row.source.address),
            client_port: row.client.port.to_be(),
            frontend_port: row.frontend.port.to_be(),
            backend_port: row.backend.port.to_be(),
            source_port: row.source.port.to_be(),
            backend_id: row.backend_id,
            generation: row.generation,
            service: row.service,
            seen: row.seen,
            flags: row.flags,
            born: row.born,
            appended: [0; APPENDED],
        };
        (key.bytes().to_vec(), value.bytes().to_vec())
    }
    match Family::of(row.client.address) {
        Family::V4 => encode::<V4>(row),
        Family::V6 => encode::<V6>(row),
    }
}

// ===== bytes to keys and values =====

/// The index that is the key of an array's row.
pub fn decode_index(key: &[u8]) -> u32 {
    u32::from_ne_bytes(prefix(key))
}

/// Key of `ADDRESSES_V4/V6`.
pub fn decode_address(family: Family, key: &[u8]) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(prefix::<4>(key)).into(),
        Family::V6 => Ipv6Addr::from(prefix::<16>(key)).into(),
    }
}

/// Key of `FRONTENDS_V4/V6`.
pub fn decode_frontend_key(family: Family, key: &[u8]) -> FrontendAt {
    fn decode<const W: usize>(key: &[u8]) -> FrontendAt {
        let key = FrontendKey::<W>::from_prefix(key);
        FrontendAt { address: ip(key.addr), port: u16::from_be(key.port), proto: key.proto }
    }
    match family {
        Family::V4 => decode::<V4>(key),
        Family::V6 => decode::<V6>(key),
    }
}

/// Key of `ANNOUNCED` and `ANNOUNCED_COUNTERS`: an address and a link.
pub fn decode_announced_key(key: &[u8]) -> (IpAddr, u32) {
    let AnnouncedKey { addr, family, ifindex } = AnnouncedKey::from_prefix(key);
    (wide_ip(addr, family), ifindex)
}

/// An address in the four words that both families share in some maps; `family`: 4 or 6.
pub fn wide_ip(addr: [u32; 4], family: u32) -> IpAddr {
    if family == Family::V4 as u32 { ip([addr[0]]) } else { ip(addr) }
}

/// Value of `FRONTENDS_V4/V6`.
pub fn decode_frontend(value: &[u8]) -> Frontend {
    Frontend::from_prefix(value)
}

/// Value of `BACKENDS_V4/V6`.
pub fn decode_backend(family: Family, value: &[u8]) -> BackendRow {
    fn decode<const W: usize>(value: &[u8]) -> BackendRow {
        let Backend { addr, port, flags, generation, service } = Backend::<W>::from_prefix(value);
        BackendRow { address: ip(addr), port: u16::from_be(port), flags, generation, service }
    }
    match family {
        Family::V4 => decode::<V4>(value),
        Family::V6 => decode::<V6>(value),
    }
}

/// Key of `RANGES_V4/V6`: the set and one of its prefixes; `None` for a key that is not ours.
pub fn decode_range_key(family: Family, key: &[u8]) -> Option<(u32, IpNet)> {
    fn decode<const W: usize>(key: &[u8]) -> Option<(u32, IpNet)> {
        let RangeKey { prefix_len, ranges, addr } = RangeKey::<W>::from_prefix(key);
        let length = u8::try_from(prefix_len.checked_sub(32)?).ok()?;
        Some((ranges, IpNet::new(ip(addr), length).ok()?))
    }
    match family {
        Family::V4 => decode::<V4>(key),
        Family::V6 => decode::<V6>(key),
    }
}

/// A row of a flow map, which is `family.flows()` if `established`, else `family.flows_new()`.
pub fn decode_flow(family: Family, established: bool, key: &[u8], value: &[u8]) -> FlowRow {
    fn decode<const W: usize>(established: bool, key: &[u8], value: &[u8]) -> FlowRow {
        let key = FlowKey::<W>::from_prefix(key);
        let value = Flow::<W>::from_prefix(value);
        let at = |address, port: u16| At { address: ip::<W>(address), port: u16::from_be(port) };
        FlowRow {
            src: at(key.src, key.sport),
            dst: at(key.dst, key.dport),
            proto: key.proto,
            role: key.role,
            client: at(value.client, value.client_port),
            frontend: at(value.frontend, value.frontend_port),
            backend: at(value.backend, value.backend_port),
            source: at(value.source, value.source_port),
            packets: value.packets,
            bytes: value.bytes,
            backend_id: value.backend_id,
            generation: value.generation,
            service: value.service,
            seen: value.seen,
            born: value.born,
            flags: value.flags,
            established,
        }
    }
    match family {
        Family::V4 => decode::<V4>(established, key, value),
        Family::V6 => decode::<V6>(established, key, value),
    }
}

/// Counters of a Service port, summed over the CPUs of a per-CPU value.
pub fn decode_service_counters(value: &[u8]) -> ServiceCounters {
    let mut sum = ServiceCounters::zeroed();
    for cpu in value.chunks_exact(size_of::<ServiceCounters>()) {
        let one = ServiceCounters::from_prefix(cpu);
        let ServiceCounters { connections, packets, bytes, reply_packets, reply_bytes, rejected, dropped } = one;
        sum.connections += connections;
        sum.packets += packets;
        sum.bytes += bytes;
        sum.reply_packets += reply_packets;
        sum.reply_bytes += reply_bytes;
        sum.rejected += rejected;
        sum.dropped += dropped;
    }
    sum
}

/// Counters of a backend.
pub fn decode_backend_counters(value: &[u8]) -> BackendCounters {
    BackendCounters::from_prefix(value)
}

/// A `u64`, summed over the CPUs of a per-CPU value.
pub fn decode_count(value: &[u8]) -> u64 {
    value.chunks_exact(8).map(|cpu| u64::from_ne_bytes(prefix(cpu))).sum()
}

/// A `u32` value.
pub fn decode_word(value: &[u8]) -> u32 {
    u32::from_ne_bytes(prefix(value))
}

/// The ORIGIN row's key direction: client to frontend.
pub fn is_origin(row: &FlowRow) -> bool {
    row.role == role::ORIGIN
}

// ===== words =====

fn prefix<const N: usize>(bytes: &[u8]) -> [u8; N] {
    std::array::from_fn(|i| bytes.get(i).copied().unwrap_or(0))
}

fn words<const W: usize>(octets: &[u8]) -> [u32; W] {
    std::array::from_fn(|i| u32::from_ne_bytes(prefix(octets.get(4 * i..).unwrap_or_default())))
}

fn address_words<const W: usize>(address: IpAddr) -> [u32; W] {
    match address {
        IpAddr::V4(address) => words(&address.octets()),
        IpAddr::V6(address) => words(&address.octets()),
    }
}

fn ip<const W: usize>(words: [u32; W]) -> IpAddr {
    let octet = |i: usize| words.get(i / 4).map_or(0, |word| word.to_ne_bytes()[i % 4]);
    if W == V4 {
        Ipv4Addr::from(std::array::from_fn::<u8, 4, _>(octet)).into()
    } else {
        Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(octet)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_the_way_through_bytes() {
        for address in ["192.0.2.1", "2001:db8::1"] {
            let address: IpAddr = address.parse().unwrap();
            let family = Family::of(address);
            let at = FrontendAt { address, port: 443, proto: proto::TCP };
            assert_eq!(decode_frontend_key(family, &frontend_key(at)), at);
            let row = BackendRow { address, port: 8080, flags: 3, generation: 7, service: 9 };
            assert_eq!(decode_backend(family, &backend_value(row)), row);
            assert_eq!(decode_address(family, &address_key(address)), address);
            assert_eq!(decode_announced_key(&announced_key(address, 7)), (address, 7));
            let net = IpNet::new(address, 24).unwrap().trunc();
            assert_eq!(decode_range_key(family, &range_key(5, net)), Some((5, net)));
        }
    }

    #[test]
    fn addresses_and_ports_lie_as_in_a_packet() {
        let key = frontend_key(FrontendAt { address: "192.0.2.1".parse().unwrap(), port: 443, proto: proto::TCP });
        assert_eq!(key, [192, 0, 2, 1, 1, 187, 6, 0]);
        let key = range_key(1, "10.0.0.0/8".parse().unwrap());
        assert_eq!(key[..4], 40_u32.to_ne_bytes());
        assert_eq!(key[8..], [10, 0, 0, 0]);
    }
}
