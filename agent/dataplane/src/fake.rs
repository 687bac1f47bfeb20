//! The kernel's maps in memory, with the kernel's rules: sizes of keys and values, capacities, errors.

use std::{
    collections::BTreeMap,
    io,
    ops::Bound::{Excluded, Unbounded},
};

use culvert_abi::{
    Affinity, AffinityKey, Announced, AnnouncedCounters, AnnouncedKey, Backend, BackendCounters, BeatCounters, Flow,
    FlowKey, Frontend, FrontendKey, Grant, Link, Liveness, PAGE_UNITS, RangeKey, Reason, ServiceCounters, V4, V6,
};

use crate::store::{Cursor, Map, Store};

/// Rows that each kind of map takes.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // each is the capacity of the maps of that name
pub struct Sizes {
    pub addresses: u32,
    pub frontends: u32,
    pub backends: u32,
    pub ranges: u32,
    pub services: u32,
    pub flows: u32,
    pub tables: u32,
    pub slab_pages: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            addresses: 16_384,
            frontends: 16_384,
            backends: 16_384,
            ranges: 4_096,
            services: 8_192,
            flows: 65_536,
            tables: 16_384,
            slab_pages: 1_024,
        }
    }
}

/// What a map does when it is full, and how it is addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `BPF_MAP_TYPE_HASH`: E2BIG.
    Hash,
    /// `BPF_MAP_TYPE_LPM_TRIE`: ENOSPC.
    Trie,
    /// `BPF_MAP_TYPE_LRU_HASH`: another row goes.
    Lru,
    /// `BPF_MAP_TYPE_ARRAY`, or per CPU with one CPU: every index exists.
    Array,
}

#[derive(Clone, Debug)]
struct FakeMap {
    kind: Kind,
    key: usize,
    value: usize,
    capacity: u32,
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A fake of the kernel's maps, of one CPU.
#[derive(Clone, Debug)]
pub struct FakeStore {
    maps: BTreeMap<Map, FakeMap>,
    tables: Vec<u64>,
    slab: Vec<u16>,
    writes: u64,
    fault: Option<Fault>,
}

/// What goes wrong, after so many more writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// System calls fail with `EIO`. What is written through a mapping goes on.
    Fails(u64),
    /// One system call fails, as when memory was short for a moment.
    FailsOnce(u64),
    /// The agent is dead: nothing has an effect any more.
    Killed(u64),
}

impl Default for FakeStore {
    fn default() -> Self {
        Self::new(Sizes::default())
    }
}

impl FakeStore {
    /// Empty maps of the given sizes.
    pub fn new(sizes: Sizes) -> Self {
        let maps = ALL.iter().map(|map| (*map, FakeMap::new(*map, &sizes))).collect();
        let slab = vec![0; sizes.slab_pages as usize * PAGE_UNITS];
        Self { maps, tables: vec![0; sizes.tables as usize], slab, writes: 0, fault: None }
    }

    /// Writes so far: rows put, inserted or deleted, tables published, slices written.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// Sets what goes wrong; `None`: nothing.
    pub fn set_fault(&mut self, fault: Option<Fault>) {
        self.fault = fault;
    }

    /// Rows in a map; of an array, those ever written.
    pub fn len(&self, map: Map) -> usize {
        self.maps[&map].rows.len()
    }

    /// Whether a map has no rows.
    pub fn is_empty(&self, map: Map) -> bool {
        self.len(map) == 0
    }

    /// A write by a system call.
    fn write(&mut self) -> io::Result<()> {
        match &mut self.fault {
            Some(Fault::Fails(0) | Fault::Killed(0)) => return Err(io::Error::from_raw_os_error(EIO)),
            Some(Fault::FailsOnce(0)) => {
                self.fault = None;
                return Err(io::Error::from_raw_os_error(EIO));
            }
            Some(Fault::Fails(left) | Fault::FailsOnce(left) | Fault::Killed(left)) => *left -= 1,
            None => {}
        }
        self.writes += 1;
        Ok(())
    }

    /// A write through a mapping: whether it has an effect.
    fn write_mapped(&mut self) -> bool {
        match &mut self.fault {
            Some(Fault::Killed(0)) => return false,
            Some(Fault::Killed(left)) => *left -= 1,
            Some(Fault::Fails(_) | Fault::FailsOnce(_)) | None => {}
        }
        self.writes += 1;
        true
    }

    fn map(&mut self, map: Map) -> io::Result<&mut FakeMap> {
        self.maps.get_mut(&map).ok_or_else(|| io::Error::from_raw_os_error(EINVAL))
    }
}

const EIO: i32 = 5;
const E2BIG: i32 = 7;
const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;

const ALL: [Map; 25] = [
    Map::ADDRESSES_V4,
    Map::ADDRESSES_V6,
    Map::FRONTENDS_V4,
    Map::FRONTENDS_V6,
    Map::BACKENDS_V4,
    Map::BACKENDS_V6,
    Map::RANGES_V4,
    Map::RANGES_V6,
    Map::AFFINITY,
    Map::FLOWS_NEW_V4,
    Map::FLOWS_NEW_V6,
    Map::FLOWS_V4,
    Map::FLOWS_V6,
    Map::LINKS,
    Map::ANNOUNCED,
    Map::ANNOUNCED_COUNTERS,
    Map::LIVENESS,
    Map::VOTERS,
    Map::GRANTS,
    Map::FLOOR,
    Map::BEATS,
    Map::SERVICE_COUNTERS,
    Map::BACKEND_COUNTERS_V4,
    Map::BACKEND_COUNTERS_V6,
    Map::REASONS,
];

impl FakeMap {
    fn new(map: Map, sizes: &Sizes) -> Self {
        fn flows<const W: usize>() -> (usize, usize) {
            (size_of::<FlowKey<W>>(), size_of::<Flow<W>>())
        }
        let (kind, (key, value), capacity) = match map {
            Map::ADDRESSES_V4 => (Kind::Hash, (4, 4), sizes.addresses),
            Map::ADDRESSES_V6 => (Kind::Hash, (16, 4), sizes.addresses),
            Map::FRONTENDS_V4 => (Kind::Hash, (size_of::<FrontendKey<V4>>(), size_of::<Frontend>()), sizes.frontends),
            Map::FRONTENDS_V6 => (Kind::Hash, (size_of::<FrontendKey<V6>>(), size_of::<Frontend>()), sizes.frontends),
            Map::BACKENDS_V4 => (Kind::Array, (4, size_of::<Backend<V4>>()), sizes.backends),
            Map::BACKENDS_V6 => (Kind::Array, (4, size_of::<Backend<V6>>()), sizes.backends),
            Map::RANGES_V4 => (Kind::Trie, (size_of::<RangeKey<V4>>(), 4), sizes.ranges),
            Map::RANGES_V6 => (Kind::Trie, (size_of::<RangeKey<V6>>(), 4), sizes.ranges),
            Map::AFFINITY => (Kind::Lru, (size_of::<AffinityKey>(), size_of::<Affinity>()), sizes.flows),
            Map::FLOWS_NEW_V4 | Map::FLOWS_V4 => (Kind::Lru, flows::<V4>(), sizes.flows),
            Map::FLOWS_NEW_V6 | Map::FLOWS_V6 => (Kind::Lru, flows::<V6>(), sizes.flows),
            Map::LINKS => (Kind::Hash, (4, size_of::<Link>()), 4_096),
            Map::ANNOUNCED => (Kind::Hash, (size_of::<AnnouncedKey>(), size_of::<Announced>()), 16_384),
            Map::ANNOUNCED_COUNTERS => {
                (Kind::Hash, (size_of::<AnnouncedKey>(), size_of::<AnnouncedCounters>()), 16_384)
            }
            Map::LIVENESS => (Kind::Hash, (4, size_of::<Liveness>()), 1),
            Map::VOTERS => (Kind::Hash, (8, 8), 1_024),
            Map::GRANTS => (Kind::Hash, (8, size_of::<Grant>()), 1_024),
            Map::FLOOR => (Kind::Array, (4, 8), 1),
            Map::BEATS => (Kind::Array, (4, size_of::<BeatCounters>()), 1),
            Map::SERVICE_COUNTERS => (Kind::Array, (4, size_of::<ServiceCounters>()), sizes.services),
            Map::BACKEND_COUNTERS_V4 | Map::BACKEND_COUNTERS_V6 => {
                (Kind::Array, (4, size_of::<BackendCounters>()), sizes.backends)
            }
            Map::REASONS => (Kind::Array, (4, 8), Reason::COUNT),
        };
        Self { kind, key, value, capacity, rows: BTreeMap::new() }
    }

    fn check(&self, key: &[u8], value: Option<&[u8]>) -> io::Result<()> {
        let fits = key.len() == self.key && value.is_none_or(|value| value.len() == self.value);
        if !fits {
            return Err(io::Error::from_raw_os_error(EINVAL));
        }
        if self.kind == Kind::Array && index(key) >= self.capacity {
            return Err(io::Error::from_raw_os_error(E2BIG));
        }
        Ok(())
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if !self.rows.contains_key(key) && self.rows.len() >= self.capacity as usize {
            match self.kind {
                Kind::Hash => return Err(io::Error::from_raw_os_error(E2BIG)),
                Kind::Trie => return Err(io::Error::from_raw_os_error(ENOSPC)),
                Kind::Lru => drop(self.rows.pop_first()),
                Kind::Array => {}
            }
        }
        self.rows.insert(key.to_vec(), value.to_vec());
        Ok(())
    }
}

impl Store for FakeStore {
    fn put(&mut self, map: Map, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.write()?;
        let map = self.map(map)?;
        map.check(key, Some(value))?;
        map.put(key, value)
    }

    fn insert(&mut self, map: Map, key: &[u8], value: &[u8]) -> io::Result<bool> {
        self.write()?;
        let map = self.map(map)?;
        map.check(key, Some(value))?;
        if map.kind == Kind::Array || map.rows.contains_key(key) {
            return Ok(false);
        }
        map.put(key, value)?;
        Ok(true)
    }

    fn delete(&mut self, map: Map, key: &[u8]) -> io::Result<()> {
        self.write()?;
        let map = self.map(map)?;
        map.check(key, None)?;
        if map.kind == Kind::Array {
            return Err(io::Error::from_raw_os_error(EINVAL));
        }
        map.rows.remove(key);
        Ok(())
    }

    fn get(&self, map: Map, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let map = &self.maps[&map];
        if map.check(key, None).is_err() {
            return Ok(None);
        }
        let row = map.rows.get(key).cloned();
        Ok(row.or_else(|| (map.kind == Kind::Array).then(|| vec![0; map.value])))
    }

    fn for_each(&self, map: Map, row: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<()> {
        let map = &self.maps[&map];
        if map.kind != Kind::Array {
            map.rows.iter().for_each(|(key, value)| row(key, value));
            return Ok(());
        }
        let zero = vec![0; map.value];
        for index in 0..map.capacity {
            let key = index.to_ne_bytes();
            row(&key, map.rows.get(key.as_slice()).unwrap_or(&zero));
        }
        Ok(())
    }

    fn scan(&self, map: Map, cursor: &mut Cursor, limit: usize, row: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<bool> {
        let from = if cursor.0.is_empty() { Unbounded } else { Excluded(cursor.0.as_slice()) };
        let mut last = None;
        for (key, value) in self.maps[&map].rows.range::<[u8], _>((from, Unbounded)).take(limit) {
            row(key, value);
            last = Some(key.clone());
        }
        *cursor = Cursor(last.unwrap_or_default());
        Ok(!cursor.0.is_empty())
    }

    fn capacity(&self, map: Map) -> u32 {
        self.maps[&map].capacity
    }

    fn table(&self, index: u32) -> u64 {
        self.tables.get(index as usize).copied().unwrap_or(0)
    }

    fn publish_table(&mut self, index: u32, word: u64) {
        if self.write_mapped()
            && let Some(table) = self.tables.get_mut(index as usize)
        {
            *table = word;
        }
    }

    fn table_capacity(&self) -> u32 {
        self.tables.len() as u32
    }

    fn write_slab(&mut self, base: u32, units: &[u16]) -> io::Result<()> {
        let written = self.write_mapped();
        let base = base as usize;
        let slice = self.slab.get_mut(base..base + units.len());
        let slice = slice.ok_or_else(|| io::Error::from_raw_os_error(EINVAL))?;
        if written {
            slice.copy_from_slice(units);
        }
        Ok(())
    }

    fn read_slab(&self, base: u32, count: usize) -> io::Result<Vec<u16>> {
        let base = base as usize;
        let slice = self.slab.get(base..base + count);
        Ok(slice.ok_or_else(|| io::Error::from_raw_os_error(EINVAL))?.to_vec())
    }

    fn slab_capacity(&self) -> u32 {
        self.slab.len() as u32
    }
}

fn index(key: &[u8]) -> u32 {
    key.try_into().map_or(u32::MAX, u32::from_ne_bytes)
}
