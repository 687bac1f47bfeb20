//! Where the kernel's rows differ from the books: after somebody else wrote to the maps, or a rollback that failed.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
};

use culvert_abi::{MAGLEV_SIZES, Plain, Table, address, backend};
use culvert_api::{plan::ServiceKey, status};

use crate::{
    codec::{self, At, Family, index_key},
    ledger::{Cause, Ledger},
    maglev::{self, Member},
    reconcile::{Held, HeldTable, Port},
    store::{Map, Store},
};

/// A row that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// The Service; `None` for rows that several share or nobody has.
    pub service: Option<ServiceKey>,
    /// Where it is.
    pub place: Place,
    /// What should be there; `None` = nothing.
    pub expected: Option<Vec<u8>>,
    /// What is there.
    pub found: Option<Vec<u8>>,
}

/// A place in the kernel's maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A row of a map.
    Row {
        /// The map.
        map: Map,
        /// Its key.
        key: Vec<u8>,
    },
    /// A descriptor in `TABLES`; its value is the word.
    Table(u32),
    /// A slice of `SLAB` from this unit on; its value are the units.
    Slice(u32),
}

impl Drift {
    /// The order in which differences are repaired: what is referred to before what refers to it.
    pub(crate) fn rank(&self) -> u8 {
        match &self.place {
            Place::Row { map: Map::BACKENDS_V4 | Map::BACKENDS_V6, .. } => 0,
            Place::Slice(_) => 1,
            Place::Table(_) => 2,
            Place::Row { map: Map::RANGES_V4 | Map::RANGES_V6, .. } => 3,
            Place::Row { map: Map::FRONTENDS_V4 | Map::FRONTENDS_V6, .. } => 4,
            Place::Row { .. } => 5,
        }
    }

    /// Writes what should be there.
    pub(crate) fn repair(&self, store: &mut impl Store) -> Result<(), Cause> {
        match (&self.place, &self.expected) {
            (Place::Row { map, key }, value) => {
                let written = match value {
                    Some(value) => store.put(*map, key, value),
                    None => store.delete(*map, key),
                };
                written.map_err(|source| Cause::Store { map: *map, source })
            }
            (Place::Table(index), Some(word)) => {
                store.publish_table(*index, word.as_slice().try_into().map_or(0, u64::from_ne_bytes));
                Ok(())
            }
            (Place::Slice(base), Some(bytes)) => {
                let units: Vec<u16> = bytes.as_chunks::<2>().0.iter().map(|unit| u16::from_ne_bytes(*unit)).collect();
                store.write_slab(*base, &units).map_err(|source| Cause::WriteSlab { source })
            }
            (Place::Table(_) | Place::Slice(_), None) => Ok(()),
        }
    }
}

/// Compares one thing after another, and collects the differences.
pub(crate) struct Comparison<'a, S> {
    ledger: &'a Ledger<S>,
    service: Option<ServiceKey>,
    found: Vec<Drift>,
}

impl<'a, S: Store> Comparison<'a, S> {
    pub fn new(ledger: &'a Ledger<S>) -> Self {
        Self { ledger, service: None, found: Vec::new() }
    }

    /// The differences.
    pub fn finish(self) -> Vec<Drift> {
        self.found
    }

    /// Frontends, backends, descriptors and lists of a Service.
    pub fn rows(&mut self, key: &ServiceKey, held: &Held) -> io::Result<()> {
        self.service = Some(key.clone());
        for port in &held.ports {
            for (at, value) in &port.frontends {
                // It may have gone to another Service, whose plan came first.
                if self.ledger.owners.get(at) == Some(&port.id) {
                    self.row(port.family.frontends(), codec::frontend_key(*at), value.bytes())?;
                }
            }
            for held in &port.backends {
                let row = self.ledger.backend_row(held, port.id);
                self.row(port.family.backends(), index_key(held.id).to_vec(), &codec::backend_value(row))?;
            }
            for table in &port.tables {
                let word = self.ledger.store.table(table.index);
                self.compare(Place::Table(table.index), &table.word.to_ne_bytes(), Some(word.to_ne_bytes().to_vec()));
                self.slice(Table::unpack(table.word).base, &table.list())?;
            }
        }
        self.service = None;
        Ok(())
    }

    /// Maglev slots of a Service; they are computed anew.
    pub fn slots(&mut self, key: &ServiceKey, held: &Held) -> io::Result<()> {
        self.service = Some(key.clone());
        for port in &held.ports {
            let places: HashMap<u32, At> = port.backends.iter().map(|backend| (backend.id, backend.at)).collect();
            for table in &port.tables {
                let Table { base, count, .. } = Table::unpack(table.word);
                self.slice(base + 2 * u32::from(count), &slots(table, &places))?;
            }
        }
        self.service = None;
        Ok(())
    }

    fn slice(&mut self, base: u32, expected: &[u16]) -> io::Result<()> {
        if expected.is_empty() {
            return Ok(());
        }
        let found = self.ledger.store.read_slab(base, expected.len())?;
        self.compare(Place::Slice(base), &bytes(expected), Some(bytes(&found)));
        Ok(())
    }

    /// Addresses and source ranges.
    pub fn shared(&mut self) -> io::Result<()> {
        for (at, state) in &self.ledger.addresses {
            if state.written != 0 {
                let map = Family::of(*at).addresses();
                self.row(map, codec::address_key(*at), &state.written.to_ne_bytes())?;
            }
        }
        for (id, nets) in self.ledger.ranges.iter() {
            for net in nets {
                self.row(Family::of(net.addr()).ranges(), codec::range_key(id, *net), &codec::RANGE_VALUE)?;
            }
        }
        Ok(())
    }

    /// Rows that nobody has. `held` are all Services.
    pub fn strangers<'h>(&mut self, held: impl Iterator<Item = &'h Held>) -> io::Result<()> {
        let ports: Vec<&Port> = held.flat_map(|held| &held.ports).collect();
        for family in Family::ALL {
            self.unknown(family.addresses(), |ledger, key| {
                ledger.addresses.contains_key(&codec::decode_address(family, key))
            })?;
            self.unknown(family.frontends(), |ledger, key| {
                ledger.owners.contains_key(&codec::decode_frontend_key(family, key))
            })?;
            self.unknown(family.ranges(), |ledger, key| {
                codec::decode_range_key(family, key)
                    .is_some_and(|(id, net)| ledger.ranges.get(id).is_some_and(|nets| nets.binary_search(&net).is_ok()))
            })?;
            let ports = ports.iter().filter(|port| port.family == family);
            let ids: HashSet<u32> = ports.flat_map(|port| &port.backends).map(|backend| backend.id).collect();
            self.unknown_backends(family, &ids)?;
        }
        Ok(())
    }

    fn unknown(&mut self, map: Map, known: impl Fn(&Ledger<S>, &[u8]) -> bool) -> io::Result<()> {
        let Self { ledger, found, .. } = self;
        ledger.store.for_each(map, &mut |key, value| {
            if !known(ledger, key) {
                let place = Place::Row { map, key: key.to_vec() };
                found.push(Drift { service: None, place, expected: None, found: Some(value.to_vec()) });
            }
        })
    }

    fn unknown_backends(&mut self, family: Family, ids: &HashSet<u32>) -> io::Result<()> {
        let map = family.backends();
        let Self { ledger, found, .. } = self;
        ledger.store.for_each(map, &mut |key, value| {
            let row = codec::decode_backend(family, value);
            if row.flags & backend::ALIVE == 0 || ids.contains(&codec::decode_index(key)) {
                return;
            }
            let expected = codec::backend_value(codec::BackendRow { flags: 0, ..row });
            let place = Place::Row { map, key: key.to_vec() };
            found.push(Drift { service: None, place, expected: Some(expected), found: Some(value.to_vec()) });
        })
    }

    fn row(&mut self, map: Map, key: Vec<u8>, expected: &[u8]) -> io::Result<()> {
        let found = self.ledger.store.get(map, &key)?;
        self.compare(Place::Row { map, key }, expected, found);
        Ok(())
    }

    fn compare(&mut self, place: Place, expected: &[u8], found: Option<Vec<u8>>) {
        if found.as_deref() != Some(expected) {
            let expected = Some(expected.to_vec());
            self.found.push(Drift { service: self.service.clone(), place, expected, found });
        }
    }
}

/// The slots that a table should have.
fn slots(table: &HeldTable, places: &HashMap<u32, At>) -> Vec<u16> {
    let size = MAGLEV_SIZES.get(usize::from(table.class())).copied().unwrap_or(0);
    let places = table.members.iter().filter_map(|id| places.get(id));
    let members: Vec<Member> = places.map(|at| Member { address: at.address, port: at.port, weight: 1 }).collect();
    maglev::slots(&members, size)
}

fn bytes(units: &[u16]) -> Vec<u8> {
    units.iter().flat_map(|unit| unit.to_ne_bytes()).collect()
}

// ===== in words =====

impl From<&Drift> for status::Drift {
    fn from(drift: &Drift) -> Self {
        let words = |value: &Option<Vec<u8>>| value.as_deref().map(|value| describe(&drift.place, value));
        let (map, key) = match &drift.place {
            Place::Row { map, key } => (format!("{map:?}"), describe_key(*map, key)),
            Place::Table(index) => (String::from("TABLES"), index.to_string()),
            Place::Slice(base) => (String::from("SLAB"), format!("unit {base}")),
        };
        let mut expected = words(&drift.expected);
        let mut found = words(&drift.found);
        if let (Place::Slice(_), Some(wanted), Some(is)) = (&drift.place, &drift.expected, &drift.found) {
            let at = wanted.iter().zip(is).take_while(|(wanted, is)| wanted == is).count() / 2;
            let unit = |bytes: &[u8]| bytes.as_chunks::<2>().0.get(at).map_or(0, |unit| u16::from_ne_bytes(*unit));
            expected = Some(format!("{} at {at} of {} units", unit(wanted), wanted.len() / 2));
            found = Some(format!("{} at {at}", unit(is)));
        }
        Self { service: drift.service.as_ref().map(ToString::to_string), map, key, expected, found }
    }
}

fn family(map: Map) -> Family {
    match map {
        Map::ADDRESSES_V6 | Map::FRONTENDS_V6 | Map::BACKENDS_V6 | Map::RANGES_V6 => Family::V6,
        _ => Family::V4,
    }
}

fn describe_key(map: Map, key: &[u8]) -> String {
    let family = family(map);
    match map {
        Map::ADDRESSES_V4 | Map::ADDRESSES_V6 => codec::decode_address(family, key).to_string(),
        Map::FRONTENDS_V4 | Map::FRONTENDS_V6 => {
            let at = codec::decode_frontend_key(family, key);
            format!("{} protocol {}", SocketAddr::new(at.address, at.port), at.proto)
        }
        Map::RANGES_V4 | Map::RANGES_V6 => match codec::decode_range_key(family, key) {
            Some((id, net)) => format!("set {id} {net}"),
            None => format!("{key:02x?}"),
        },
        _ => codec::decode_index(key).to_string(),
    }
}

fn describe(place: &Place, value: &[u8]) -> String {
    let map = match place {
        Place::Table(_) => {
            let Table { base, count, class } = Table::unpack(value.try_into().map_or(0, u64::from_ne_bytes));
            return format!("unit {base}, {count} backends, class {class}");
        }
        Place::Slice(_) => return format!("{} units", value.len() / 2),
        Place::Row { map, .. } => *map,
    };
    match map {
        Map::ADDRESSES_V4 | Map::ADDRESSES_V6 => describe_flags(codec::decode_word(value)),
        Map::FRONTENDS_V4 | Map::FRONTENDS_V6 => {
            let row = codec::decode_frontend(value);
            let views = row.views.map(|view| format!("{}/{}/{}", view.table, view.verdict, view.flags));
            format!(
                "service {} ({:016x}), affinity {} s, ranges {}, flags {}, views (table/verdict/flags) {}",
                row.service,
                row.identity,
                row.affinity_seconds,
                row.ranges,
                row.flags,
                views.join(" ")
            )
        }
        Map::BACKENDS_V4 | Map::BACKENDS_V6 => {
            let row = codec::decode_backend(family(map), value);
            let at = SocketAddr::new(row.address, row.port);
            format!("{at}, flags {}, generation {}, service {}", row.flags, row.generation, row.service)
        }
        _ => format!("{value:02x?}"),
    }
}

fn describe_flags(flags: u32) -> String {
    let names = [
        (address::FRONTEND, "FRONTEND"),
        (address::REFUSE, "REFUSE"),
        (address::LINGER, "LINGER"),
        (address::SOURCE, "SOURCE"),
    ];
    let set: Vec<&str> = names.into_iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| name).collect();
    if set.is_empty() { flags.to_string() } else { set.join("|") }
}
