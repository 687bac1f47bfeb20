//! The kernel's maps behind the [`Store`] interface.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use crate::{
    Error,
    store::{Cursor, Map as Name, Store},
    sys::{Map, Mapping, Write},
};

/// Rows that are read with one call.
const BATCH: usize = 1_024;

const NAMES: [(Name, &str); 25] = [
    (Name::ADDRESSES_V4, "ADDRESSES_V4"),
    (Name::ADDRESSES_V6, "ADDRESSES_V6"),
    (Name::FRONTENDS_V4, "FRONTENDS_V4"),
    (Name::FRONTENDS_V6, "FRONTENDS_V6"),
    (Name::BACKENDS_V4, "BACKENDS_V4"),
    (Name::BACKENDS_V6, "BACKENDS_V6"),
    (Name::RANGES_V4, "RANGES_V4"),
    (Name::RANGES_V6, "RANGES_V6"),
    (Name::AFFINITY, "AFFINITY"),
    (Name::FLOWS_NEW_V4, "FLOWS_NEW_V4"),
    (Name::FLOWS_NEW_V6, "FLOWS_NEW_V6"),
    (Name::FLOWS_V4, "FLOWS_V4"),
    (Name::FLOWS_V6, "FLOWS_V6"),
    (Name::LINKS, "LINKS"),
    (Name::ANNOUNCED, "ANNOUNCED"),
    (Name::ANNOUNCED_COUNTERS, "ANNOUNCED_COUNTERS"),
    (Name::LIVENESS, "LIVENESS"),
    (Name::VOTERS, "VOTERS"),
    (Name::GRANTS, "GRANTS"),
    (Name::FLOOR, "FLOOR"),
    (Name::BEATS, "BEATS"),
    (Name::SERVICE_COUNTERS, "SERVICE_COUNTERS"),
    (Name::BACKEND_COUNTERS_V4, "BACKEND_COUNTERS_V4"),
    (Name::BACKEND_COUNTERS_V6, "BACKEND_COUNTERS_V6"),
    (Name::REASONS, "REASONS"),
];

/// The pinned maps. Clones speak to the same maps.
#[derive(Clone, Debug)]
pub struct KernelStore(Arc<Maps>);

#[derive(Debug)]
struct Maps {
    by_name: BTreeMap<Name, Map>,
    tables: Mapping,
    table_count: u32,
    /// Mapped for each access only: touched pages of a mapping count as the agent's own memory.
    slab: Map,
}

impl KernelStore {
    /// Opens the maps that are pinned in a directory.
    pub fn open(pins: &Path) -> Result<Self, Error> {
        let open = |name: &str| {
            let map = Map::open(&pins.join(name)).map_err(Error::map(name))?;
            map.ok_or_else(|| Error::NoMap(name.to_owned()))
        };
        let maps = NAMES.iter().map(|(key, name)| Ok((*key, open(name)?))).collect::<Result<_, Error>>()?;
        let tables = open("TABLES")?;
        let table_count = tables.shape().rows;
        let tables = Mapping::new(&tables).map_err(Error::map("TABLES"))?;
        Ok(Self(Arc::new(Maps { by_name: maps, tables, table_count, slab: open("SLAB")? })))
    }

    /// Maps units of the slab; the second value is the first one's place in the mapping.
    fn slab(&self, base: u32, count: usize) -> io::Result<(Mapping, usize)> {
        const UNIT: usize = size_of::<u16>();
        let start = base as usize * UNIT;
        let (mapping, start) = Mapping::part(&self.0.slab, start..start + count * UNIT)?;
        Ok((mapping, start / UNIT))
    }

    fn map(&self, name: Name) -> io::Result<&Map> {
        self.0.by_name.get(&name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Store for KernelStore {
    fn put(&mut self, map: Name, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.map(map)?.update(key, value, Write::Any)
    }

    fn insert(&mut self, map: Name, key: &[u8], value: &[u8]) -> io::Result<bool> {
        match self.map(map)?.update(key, value, Write::New) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn delete(&mut self, map: Name, key: &[u8]) -> io::Result<()> {
        self.map(map)?.delete(key).map(drop)
    }

    fn get(&self, map: Name, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let map = self.map(map)?;
        let mut value = vec![0; map.row_size()];
        Ok(map.lookup(key, &mut value)?.then_some(value))
    }

    fn for_each(&self, map: Name, row: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<()> {
        let mut cursor = Cursor::default();
        while self.scan(map, &mut cursor, BATCH, row)? {}
        Ok(())
    }

    fn scan(
        &self,
        map: Name,
        cursor: &mut Cursor,
        limit: usize,
        row: &mut dyn FnMut(&[u8], &[u8]),
    ) -> io::Result<bool> {
        let map = self.map(map)?;
        let mut batch = map.walk(limit);
        batch.cursor = std::mem::take(&mut cursor.0);
        let more = map.next_batch(&mut batch)?;
        for (key, value) in batch.rows(map) {
            row(key, value);
        }
        cursor.0 = batch.cursor;
        Ok(more)
    }

    fn capacity(&self, map: Name) -> u32 {
        self.map(map).map_or(0, |map| map.shape().rows)
    }

    fn table(&self, index: u32) -> u64 {
        self.0.tables.words().get(index as usize).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn publish_table(&mut self, index: u32, word: u64) {
        if let Some(table) = self.0.tables.words().get(index as usize) {
            table.store(word, Ordering::Release);
        }
    }

    fn table_capacity(&self) -> u32 {
        self.0.table_count
    }

    fn write_slab(&mut self, base: u32, units: &[u16]) -> io::Result<()> {
        if units.is_empty() {
            return Ok(());
        }
        let (slab, start) = self.slab(base, units.len())?;
        for (unit, value) in slab.units().iter().skip(start).zip(units) {
            unit.store(*value, Ordering::Relaxed);
        }
        Ok(())
    }

    fn read_slab(&self, base: u32, count: usize) -> io::Result<Vec<u16>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let (slab, start) = self.slab(base, count)?;
        Ok(slab.units().iter().skip(start).take(count).map(|unit| unit.load(Ordering::Relaxed)).collect())
    }

    fn slab_capacity(&self) -> u32 {
        self.0.slab.shape().rows * culvert_abi::PAGE_UNITS as u32
    }
}
