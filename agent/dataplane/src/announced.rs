//! Addresses that the kernel answers for in layer 2: the rows, and what was counted. One writer: the agent's layer 2 task.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv6Addr},
    path::Path,
    time::Duration,
};

use culvert_abi::{Announced as Value, AnnouncedCounters, Plain, Rival as Record, announced, rival};

use crate::{
    codec,
    kernel::KernelStore,
    links::state::Network,
    netlink::Netlink,
    store::{Map, Store},
    sys::Frames,
};

/// An address on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The address.
    pub address: IpAddr,
    /// The link's ifindex.
    pub link: u32,
}

/// What the kernel may do there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// It answers; else it only tells of hosts that use the address.
    pub answers: bool,
    /// So also to ping.
    pub echo: bool,
    /// It answers only while a majority of the nodes grants what this one claims ([`crate::liveness`]).
    pub quorum: bool,
    /// Not longer than until then, of the monotonic clock; `None` = always.
    pub until: Option<Duration>,
    /// The node that had the address before.
    pub before: Option<Before>,
}

/// The node that had an address before: connections that stand and that are not known here go to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before {
    /// Its link-layer address.
    pub mac: [u8; 6],
    /// Not longer than until then, of the monotonic clock.
    pub until: Duration,
}

/// Another host that uses an address, or is about to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rival {
    /// Where.
    pub place: Place,
    /// Its link-layer address.
    pub mac: [u8; 6],
    /// It asks whether it may use the address; else it does.
    pub asks: bool,
}

/// The rows.
#[derive(Clone, Debug)]
pub struct Announced<S>(S);

impl<S: Store> Announced<S> {
    /// The rows as they are, empty or left by another agent.
    pub fn new(store: S) -> Self {
        Self(store)
    }

    /// All rows.
    pub fn rows(&self) -> io::Result<BTreeMap<Place, Row>> {
        let mut rows = BTreeMap::new();
        self.0.for_each(Map::ANNOUNCED, &mut |key, value| {
            let (address, link) = codec::decode_announced_key(key);
            rows.insert(Place { address, link }, decode(value));
        })?;
        Ok(rows)
    }

    /// Writes a row. Its counters begin at zero, or go on.
    pub fn put(&mut self, place: Place, row: Row) -> io::Result<()> {
        let key = codec::announced_key(place.address, place.link);
        self.0.insert(Map::ANNOUNCED_COUNTERS, &key, AnnouncedCounters::zeroed().bytes())?;
        self.0.put(Map::ANNOUNCED, &key, encode(row).bytes())
    }

    /// Removes a row and its counters.
    pub fn remove(&mut self, place: Place) -> io::Result<()> {
        let key = codec::announced_key(place.address, place.link);
        self.0.delete(Map::ANNOUNCED, &key)?;
        self.0.delete(Map::ANNOUNCED_COUNTERS, &key)
    }

    /// What was counted, for each row.
    pub fn counters(&self) -> io::Result<BTreeMap<Place, AnnouncedCounters>> {
        let mut rows = BTreeMap::new();
        self.0.for_each(Map::ANNOUNCED_COUNTERS, &mut |key, value| {
            let (address, link) = codec::decode_announced_key(key);
            rows.insert(Place { address, link }, AnnouncedCounters::from_prefix(value));
        })?;
        Ok(rows)
    }
}

impl Rival {
    /// Reads a record of the ring buffer.
    pub fn decode(record: &[u8]) -> Self {
        let Record { addr, at: _, ifindex, family, kind, mac, zero: _ } = Record::from_prefix(record);
        let place = Place { address: codec::wide_ip(addr, family.into()), link: ifindex };
        Self { place, mac, asks: kind == rival::ASKS }
    }
}

fn encode(Row { answers, echo, quorum, until, before }: Row) -> Value {
    let until = until.map_or(u64::MAX, codec::nanoseconds);
    let before_until = before.map_or(0, |before| codec::nanoseconds(before.until));
    let flag = |is: bool, flag| if is { flag } else { 0 };
    let flags = flag(answers, announced::ANSWER) | flag(echo, announced::ECHO) | flag(quorum, announced::QUORUM);
    let before = before.map_or([0; 6], |before| before.mac);
    Value { until, before_until, flags, before, zero: [0; 6] }
}

fn decode(value: &[u8]) -> Row {
    let Value { until, before_until, flags, before, zero: _ } = Value::from_prefix(value);
    let before_until = Duration::from_nanos(before_until);
    Row {
        answers: flags & announced::ANSWER != 0,
        echo: flags & announced::ECHO != 0,
        quorum: flags & announced::QUORUM != 0,
        until: (until != u64::MAX).then(|| Duration::from_nanos(until)),
        before: (!before_until.is_zero()).then_some(Before { mac: before, until: before_until }),
    }
}

/// Where frames to the group go in which solicitations for an address are heard (RFC 4291 2.7.1, RFC 2464 7).
pub fn group(address: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c] = address.octets();
    [0x33, 0x33, 0xff, a, b, c]
}

/// Takes back for what groups links were opened, for `culvert cleanup`. What fails goes with the link.
pub(crate) fn leave_groups(maps: &Path) {
    let Ok(store) = KernelStore::open(maps) else { return };
    let network = Netlink::route().and_then(|netlink| Network::read(&netlink));
    let (Ok(rows), Ok(frames), Ok(network)) = (Announced::new(store).rows(), Frames::open(), network) else { return };
    for Place { address, link } in rows.into_keys() {
        if let (IpAddr::V6(address), Some(link)) = (address, network.links.get(&link)) {
            let _ = frames.close_to(&link.name, group(address));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeStore;

    fn place(address: &str, link: u32) -> Place {
        Place { address: address.parse().unwrap(), link }
    }

    #[test]
    fn rows_are_what_was_written() {
        let mut rows = Announced::new(FakeStore::default());
        let (v4, v6) = (place("192.0.2.1", 7), place("2001:db8::1", 8));
        let before = Some(Before { mac: [2, 0, 0, 0, 0, 9], until: Duration::from_secs(8) });
        let speaks = Row { answers: true, echo: true, quorum: true, until: Some(Duration::from_secs(9)), before };
        let watches = Row { answers: false, echo: false, quorum: false, until: None, before: None };
        rows.put(v4, speaks).unwrap();
        rows.put(v6, watches).unwrap();
        assert_eq!(rows.rows().unwrap(), BTreeMap::from([(v4, speaks), (v6, watches)]));
        rows.put(v6, speaks).unwrap();
        rows.remove(v4).unwrap();
        rows.remove(v4).unwrap();
        assert_eq!(rows.rows().unwrap(), BTreeMap::from([(v6, speaks)]));
        assert_eq!(rows.counters().unwrap().into_keys().collect::<Vec<_>>(), [v6]);
    }

    #[test]
    fn rivals_are_read() {
        let record = Record {
            addr: [u32::from_ne_bytes([192, 0, 2, 1]), 0, 0, 0],
            at: 5,
            ifindex: 7,
            family: 4,
            kind: rival::ASKS,
            mac: [2, 0, 0, 0, 0, 9],
            zero: 0,
        };
        let read = Rival::decode(record.bytes());
        assert_eq!(read, Rival { place: place("192.0.2.1", 7), mac: [2, 0, 0, 0, 0, 9], asks: true });
    }
}
