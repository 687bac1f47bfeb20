//! The books, read back from the kernel's maps after a restart: ids, generations, tables and ranges go on as they are, so
//! that flows which refer to them stay valid.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::IpAddr,
    time::Duration,
};

use culvert_abi::{Frontend, Table, address, backend};
use culvert_api::plan::Protocol;
use ipnet::IpNet;

use super::held::{HeldBackend, HeldTable, Port};
use crate::{
    codec::{self, At, BackendRow, Family, FrontendAt},
    ids::Pool,
    ledger::{AddressState, Ledger, RangeSets},
    store::{Map, Store},
};

/// What the kernel holds that no Service has claimed yet.
#[derive(Debug, Default)]
pub struct Unclaimed {
    /// Service ports by identity.
    pub ports: HashMap<u64, Port>,
    /// Backends that are alive and belong to no known Service port.
    pub backends: Vec<(u32, BackendRow)>,
    /// Tables (index, descriptor) that no frontend refers to.
    pub tables: Vec<(u32, u64)>,
    /// Frontends that cannot be made sense of.
    pub frontends: Vec<(FrontendAt, Frontend)>,
}

/// Reads the maps.
pub fn restore<S: Store>(store: S, now: Duration) -> io::Result<(Ledger<S>, Unclaimed)> {
    let mut ledger = Ledger::new(store);
    let mut unclaimed = Unclaimed::default();
    let mut services = frontends(&ledger, &mut unclaimed)?;
    backends(&mut ledger, &mut services, &mut unclaimed)?;
    tables(&mut ledger, &mut services, &mut unclaimed)?;
    ranges(&mut ledger, &services, now)?;
    addresses(&mut ledger)?;
    for port in services.values() {
        for (at, value) in &port.frontends {
            ledger.owners.insert(*at, value.service);
            ledger.addresses.entry(at.address).or_default().frontends += 1;
        }
    }
    let used = services.keys().copied().collect();
    ledger.services = Pool::restored(ledger.store.capacity(Map::SERVICE_COUNTERS), &used);
    unclaimed.ports = services.into_values().map(|port| (port.identity, port)).collect();
    Ok((ledger, unclaimed))
}

/// Service ports by id, from their frontends.
fn frontends<S: Store>(ledger: &Ledger<S>, unclaimed: &mut Unclaimed) -> io::Result<BTreeMap<u32, Port>> {
    let mut rows: Vec<(FrontendAt, Frontend)> = Vec::new();
    for family in Family::ALL {
        ledger.store.for_each(family.frontends(), &mut |key, value| {
            rows.push((codec::decode_frontend_key(family, key), codec::decode_frontend(value)));
        })?;
    }
    rows.sort_unstable_by_key(|(at, _)| *at);
    let capacity = ledger.store.capacity(Map::SERVICE_COUNTERS);
    let mut ids: HashMap<u64, u32> = HashMap::new();
    let mut ports: BTreeMap<u32, Port> = BTreeMap::new();
    for (at, value) in rows {
        let family = Family::of(at.address);
        let id = *ids.entry(value.identity).or_insert(value.service);
        let protocol = codec::protocol(at.proto).filter(|_| (1..capacity).contains(&value.service));
        let Some(protocol) = protocol.filter(|_| id == value.service) else {
            unclaimed.frontends.push((at, value));
            continue;
        };
        let port = ports.entry(id).or_insert_with(|| empty(value.identity, id, family, protocol));
        if (port.identity, port.family, port.protocol) == (value.identity, family, protocol) {
            port.frontends.push((at, value));
        } else {
            unclaimed.frontends.push((at, value));
        }
    }
    Ok(ports)
}

fn empty(identity: u64, id: u32, family: Family, protocol: Protocol) -> Port {
    let (backends, tables, frontends) = (Vec::new(), Vec::new(), Vec::new());
    Port { identity, id, family, name: String::new(), protocol, backends, tables, frontends }
}

/// Generations of all ids; live backends go to their Service ports.
fn backends<S: Store>(
    ledger: &mut Ledger<S>,
    ports: &mut BTreeMap<u32, Port>,
    unclaimed: &mut Unclaimed,
) -> io::Result<()> {
    for family in Family::ALL {
        let mut used = BTreeSet::new();
        let generations = &mut ledger.generations[family.index()];
        let mut strays = Vec::new();
        ledger.store.for_each(family.backends(), &mut |key, value| {
            let id = codec::decode_index(key);
            let row = codec::decode_backend(family, value);
            if row.generation != 0 {
                generations.restore(id, row.generation);
            }
            if row.flags & backend::ALIVE == 0 || id == 0 {
                return;
            }
            used.insert(id);
            let at = At { address: row.address, port: row.port };
            match ports.get_mut(&row.service).filter(|port| port.family == family) {
                Some(port) => port.backends.push(HeldBackend { at, flags: row.flags, id }),
                None => strays.push((id, row)),
            }
        })?;
        unclaimed.backends.extend(strays);
        ledger.backends[family.index()] = Pool::restored(ledger.store.capacity(family.backends()), &used);
    }
    for port in ports.values_mut() {
        port.backends.sort_by_key(|backend| (backend.at, backend.id));
        let service = port.id;
        let mut last = None;
        port.backends.retain(|backend| {
            let twice = last.replace(backend.at) == Some(backend.at);
            if twice {
                unclaimed.backends.push((backend.id, ledger.backend_row(backend, service)));
            }
            !twice
        });
    }
    Ok(())
}

/// Slices of the slab; tables go to the Service port whose frontends refer to them.
fn tables<S: Store>(
    ledger: &mut Ledger<S>,
    ports: &mut BTreeMap<u32, Port>,
    unclaimed: &mut Unclaimed,
) -> io::Result<()> {
    let mut words: BTreeMap<u32, u64> = BTreeMap::new();
    let mut used = BTreeSet::new();
    for index in 1..ledger.store.table_capacity() {
        let word = ledger.store.table(index);
        let table = Table::unpack(word);
        if word == 0 {
            continue;
        }
        if ledger.slab.reserve(table.base, table.units()) {
            used.insert(index);
            words.insert(index, word);
        } else {
            // Not a slice that an agent could have published: nothing may choose from it.
            ledger.store.publish_table(index, 0);
        }
    }
    ledger.tables = Pool::restored(ledger.store.table_capacity(), &used);
    for port in ports.values_mut() {
        let views = port.frontends.iter().flat_map(|(_, value)| value.views);
        let indexes: BTreeSet<u32> = views.map(|view| view.table).filter(|index| *index != 0).collect();
        for index in indexes {
            let Some(word) = words.remove(&index) else { continue };
            let Table { base, count, .. } = Table::unpack(word);
            let units = ledger.store.read_slab(base, 2 * usize::from(count))?;
            let ids = units.as_chunks::<2>().0.iter().map(|[low, high]| u32::from(*low) | u32::from(*high) << 16);
            port.tables.push(HeldTable { index, word, members: ids.collect() });
        }
    }
    unclaimed.tables = words.into_iter().collect();
    Ok(())
}

fn ranges<S: Store>(ledger: &mut Ledger<S>, ports: &BTreeMap<u32, Port>, now: Duration) -> io::Result<()> {
    let mut sets: BTreeMap<u32, Vec<IpNet>> = BTreeMap::new();
    for family in Family::ALL {
        ledger.store.for_each(family.ranges(), &mut |key, _| {
            if let Some((id, net)) = codec::decode_range_key(family, key) {
                sets.entry(id).or_default().push(net);
            }
        })?;
    }
    ledger.ranges = RangeSets::restored(sets, now);
    for (_, value) in ports.values().flat_map(|port| &port.frontends) {
        ledger.ranges.refer(value.ranges);
    }
    Ok(())
}

/// What each address means stays as it is until it is confirmed or pruned.
fn addresses<S: Store>(ledger: &mut Ledger<S>) -> io::Result<()> {
    let mut rows: Vec<(IpAddr, u32)> = Vec::new();
    for family in Family::ALL {
        ledger.store.for_each(family.addresses(), &mut |key, value| {
            rows.push((codec::decode_address(family, key), codec::decode_word(value)));
        })?;
    }
    for (at, written) in rows {
        let linger = written & address::LINGER != 0;
        let kept = written & !address::LINGER;
        ledger.addresses.insert(at, AddressState { linger, kept, written, ..AddressState::default() });
    }
    Ok(())
}
