//! The kernel's maps as the reconciler sees them: a small interface that the kernel implements, and a faithful fake.

use std::io;

/// A map that the agent writes or reads, by the name it has in the object and as a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types, missing_docs)]
pub enum Map {
    ADDRESSES_V4,
    ADDRESSES_V6,
    FRONTENDS_V4,
    FRONTENDS_V6,
    BACKENDS_V4,
    BACKENDS_V6,
    RANGES_V4,
    RANGES_V6,
    AFFINITY,
    FLOWS_NEW_V4,
    FLOWS_NEW_V6,
    FLOWS_V4,
    FLOWS_V6,
    LINKS,
    ANNOUNCED,
    ANNOUNCED_COUNTERS,
    LIVENESS,
    VOTERS,
    GRANTS,
    FLOOR,
    BEATS,
    SERVICE_COUNTERS,
    BACKEND_COUNTERS_V4,
    BACKEND_COUNTERS_V6,
    REASONS,
}

/// Where a [`Store::scan`] stands; the default is the start of the map. Only the store knows what the bytes mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor(pub Vec<u8>);

/// What the reconciler does to the kernel. Each operation is idempotent; deleting what is not there is no error.
/// Keys and values are the bytes of `culvert_abi` types.
pub trait Store {
    /// Inserts or replaces one row (per-CPU maps: the value holds those of all possible CPUs, as `get` gives them).
    fn put(&mut self, map: Map, key: &[u8], value: &[u8]) -> io::Result<()>;
    /// Inserts one row unless it exists; `false` if it does.
    fn insert(&mut self, map: Map, key: &[u8], value: &[u8]) -> io::Result<bool>;
    /// Deletes one row.
    fn delete(&mut self, map: Map, key: &[u8]) -> io::Result<()>;
    /// Reads one row (per-CPU maps: the values of all possible CPUs, one after the other).
    fn get(&self, map: Map, key: &[u8]) -> io::Result<Option<Vec<u8>>>;
    /// Calls `row` for each row; rows that change meanwhile may be seen or not. Arrays yield every index.
    fn for_each(&self, map: Map, row: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<()>;
    /// Calls `row` for about `limit` rows from where `cursor` stands on, and moves it; `false` at the end of the map, where
    /// the cursor is at the start again. The default reads the whole map at once.
    fn scan(&self, map: Map, cursor: &mut Cursor, limit: usize, row: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<bool> {
        let _ = limit;
        *cursor = Cursor::default();
        self.for_each(map, row)?;
        Ok(false)
    }
    /// How many rows the map can hold.
    fn capacity(&self, map: Map) -> u32;
    /// Reads `TABLES[index]`.
    fn table(&self, index: u32) -> u64;
    /// Publishes `TABLES[index]` with one atomic store (release).
    fn publish_table(&mut self, index: u32, word: u64);
    /// How many tables there are.
    fn table_capacity(&self) -> u32;
    /// Writes `units` into `SLAB` from unit `base` on.
    fn write_slab(&mut self, base: u32, units: &[u16]) -> io::Result<()>;
    /// Reads `count` units of `SLAB` from unit `base` on.
    fn read_slab(&self, base: u32, count: usize) -> io::Result<Vec<u16>>;
    /// Units that `SLAB` holds.
    fn slab_capacity(&self) -> u32;
}
