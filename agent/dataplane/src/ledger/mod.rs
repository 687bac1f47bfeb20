//! The books on the kernel's maps: every id, slice, range set and address, who has it, and what its row says.
//!
//! Changes are made in a transaction: each write and each allocation notes how it is undone. [`Ledger::commit`] forgets the
//! notes; [`Ledger::rollback`] follows them backwards, so that a Service that cannot be programmed keeps its last good rows.
//! What a transaction gives up rests for [`REST`] before it is used again, for a program may be reading it.

mod addresses;
mod error;
mod ranges;

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::IpAddr,
    time::Duration,
};

use culvert_abi::{Frontend, Plain, Table};

use crate::{
    codec::{self, At, BackendRow, Family, FrontendAt, index_key},
    ids::{Generations, Pool},
    reconcile::HeldBackend,
    slab::Slab,
    store::{Map, Store},
};

pub use addresses::AddressState;
pub use error::Cause;
pub use ranges::RangeSets;

/// How long what was given up stays as it is: longer than any program runs.
pub const REST: Duration = Duration::from_secs(1);

/// The books, and the store they are about.
pub struct Ledger<S> {
    /// The kernel's maps.
    pub store: S,
    pub(crate) services: Pool,
    pub(crate) backends: [Pool; 2],
    pub(crate) generations: [Generations; 2],
    pub(crate) tables: Pool,
    pub(crate) slab: Slab,
    pub(crate) ranges: RangeSets,
    /// The Service port (id) that has each frontend.
    pub(crate) owners: HashMap<FrontendAt, u32>,
    pub(crate) addresses: HashMap<IpAddr, AddressState>,
    undo: Vec<Undo>,
    released: Vec<Release>,
    resting: VecDeque<(Duration, Release)>,
    /// A rollback could not write: memory and kernel may differ.
    unsure: bool,
    /// An address began to linger.
    lingers: bool,
}

/// How one step of a transaction is undone.
enum Undo {
    Put { map: Map, key: Vec<u8>, value: Vec<u8> },
    Delete { map: Map, key: Vec<u8> },
    Publish { index: u32, word: u64 },
    Service(u32),
    Backend(Family, u32),
    Table(u32),
    Slice { base: u32, units: u32 },
    Ranges(u32),
    Owner(FrontendAt, Option<u32>),
    Address(IpAddr, Option<AddressState>),
}

/// What is given up, and rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    Service(u32),
    Backend(Family, u32),
    /// A table that no frontend refers to any more. Its descriptor stays until the rest is over.
    Table {
        index: u32,
        word: u64,
    },
    Slice {
        base: u32,
        units: u32,
    },
    /// One reference to a set of ranges.
    Ranges(u32),
}

impl<S: Store> Ledger<S> {
    /// The books on empty maps.
    pub fn new(store: S) -> Self {
        Self {
            services: Pool::new(store.capacity(Map::SERVICE_COUNTERS)),
            backends: Family::ALL.map(|family| Pool::new(store.capacity(family.backends()))),
            generations: Default::default(),
            tables: Pool::new(store.table_capacity()),
            slab: Slab::new(store.slab_capacity()),
            ranges: RangeSets::default(),
            owners: HashMap::new(),
            addresses: HashMap::new(),
            undo: Vec::new(),
            released: Vec::new(),
            resting: VecDeque::new(),
            unsure: false,
            lingers: false,
            store,
        }
    }

    // ===== transactions =====

    /// Keeps what was written. What it gave up begins to rest.
    pub fn commit(&mut self, now: Duration) {
        self.undo.clear();
        for release in std::mem::take(&mut self.released) {
            self.rest(release, now);
        }
    }

    /// Puts everything back as it was at the last commit.
    pub fn rollback(&mut self, now: Duration) {
        self.released.clear();
        for step in std::mem::take(&mut self.undo).into_iter().rev() {
            if self.undo(step, now).is_err() {
                self.unsure = true;
            }
        }
    }

    fn undo(&mut self, step: Undo, now: Duration) -> io::Result<()> {
        match step {
            Undo::Put { map, key, value } => return self.store.put(map, &key, &value),
            Undo::Delete { map, key } => return self.store.delete(map, &key),
            Undo::Publish { index, word } => self.store.publish_table(index, word),
            Undo::Service(id) => self.services.undo(id),
            Undo::Backend(family, id) => self.backends[family.index()].undo(id),
            Undo::Table(index) => self.tables.undo(index),
            Undo::Slice { base, units } => self.slab.free(base, units),
            // A set that was written in vain is deleted after its rest.
            Undo::Ranges(id) => self.rest(Release::Ranges(id), now),
            Undo::Owner(at, Some(owner)) => drop(self.owners.insert(at, owner)),
            Undo::Owner(at, None) => drop(self.owners.remove(&at)),
            Undo::Address(address, Some(state)) => drop(self.addresses.insert(address, state)),
            Undo::Address(address, None) => drop(self.addresses.remove(&address)),
        }
        Ok(())
    }

    /// Whether a rollback failed: the kernel must be compared with the books.
    pub(crate) fn unsure(&self) -> bool {
        self.unsure
    }

    /// The kernel was compared with the books, and is as they say.
    pub(crate) fn sure(&mut self) {
        self.unsure = false;
    }

    /// Whether an address lingers since the last call.
    pub(crate) fn take_lingers(&mut self) -> bool {
        std::mem::take(&mut self.lingers)
    }

    pub(crate) fn release(&mut self, release: Release) {
        self.released.push(release);
    }

    fn rest(&mut self, release: Release, now: Duration) {
        if let Release::Ranges(id) = release
            && !self.ranges.release(id, now)
        {
            return;
        }
        self.resting.push_back((now + REST, release));
    }

    /// When something has rested long enough.
    pub fn rested_at(&self) -> Option<Duration> {
        self.resting.front().map(|(at, _)| *at)
    }

    /// Takes back what has rested long enough.
    pub fn reclaim(&mut self, now: Duration) {
        while let Some((at, release)) = self.resting.front().copied()
            && at <= now
        {
            self.resting.pop_front();
            match release {
                Release::Service(id) => self.services.free(id),
                Release::Backend(family, id) => self.backends[family.index()].free(id),
                Release::Table { index, word } => {
                    self.store.publish_table(index, 0);
                    self.tables.free(index);
                    let table = Table::unpack(word);
                    self.slab.free(table.base, table.units());
                }
                Release::Slice { base, units } => self.slab.free(base, units),
                Release::Ranges(id) => {
                    if self.ranges.reclaim(&mut self.store, id, now).is_err() {
                        self.resting.push_back((now + REST, release));
                    }
                }
            }
        }
    }

    fn put(&mut self, map: Map, key: &[u8], value: &[u8], before: Option<Vec<u8>>) -> Result<(), Cause> {
        self.store.put(map, key, value).map_err(|source| self.failed(map, source))?;
        let key = key.to_vec();
        self.undo.push(match before {
            Some(value) => Undo::Put { map, key, value },
            None => Undo::Delete { map, key },
        });
        Ok(())
    }

    fn delete(&mut self, map: Map, key: &[u8], before: Vec<u8>) -> Result<(), Cause> {
        self.store.delete(map, key).map_err(|source| Cause::Store { map, source })?;
        self.undo.push(Undo::Put { map, key: key.to_vec(), value: before });
        Ok(())
    }

    fn get(&self, map: Map, key: &[u8]) -> Result<Option<Vec<u8>>, Cause> {
        self.store.get(map, key).map_err(|source| Cause::Store { map, source })
    }

    fn failed(&self, map: Map, source: io::Error) -> Cause {
        const E2BIG: i32 = 7;
        match source.raw_os_error() {
            Some(E2BIG) => Cause::Full { map, capacity: self.store.capacity(map) },
            _ if source.kind() == io::ErrorKind::StorageFull => Cause::Full { map, capacity: self.store.capacity(map) },
            _ => Cause::Store { map, source },
        }
    }

    // ===== Service ports =====

    /// An id for a Service port, with counters at zero.
    pub(crate) fn new_service(&mut self) -> Result<u32, Cause> {
        let id = self.services.allocate().ok_or(Cause::Services { capacity: self.services.capacity() })?;
        self.undo.push(Undo::Service(id));
        self.zero(Map::SERVICE_COUNTERS, id)?;
        Ok(id)
    }

    fn zero(&mut self, map: Map, id: u32) -> Result<(), Cause> {
        let Some(mut counters) = self.get(map, &index_key(id))? else { return Ok(()) };
        if counters.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        counters.fill(0);
        self.store.put(map, &index_key(id), &counters).map_err(|source| Cause::Store { map, source })
    }

    // ===== backends =====

    /// A row for a backend that was not there; its id. The row's generation is set here.
    pub(crate) fn new_backend(&mut self, mut row: BackendRow) -> Result<u32, Cause> {
        let family = Family::of(row.address);
        let pool = &mut self.backends[family.index()];
        let id = pool.allocate().ok_or(Cause::Backends { family, capacity: pool.capacity() })?;
        self.undo.push(Undo::Backend(family, id));
        row.generation = self.generations[family.index()].next(id);
        if row.generation > 1 {
            self.zero(family.backend_counters(), id)?;
        }
        let gone = BackendRow { flags: 0, ..row };
        self.put(family.backends(), &index_key(id), &codec::backend_value(row), Some(codec::backend_value(gone)))?;
        Ok(id)
    }

    /// Changes the flags of a backend; 0 ends its UDP flows at once.
    pub(crate) fn change_backend(&mut self, id: u32, before: BackendRow, flags: u16) -> Result<(), Cause> {
        let family = Family::of(before.address);
        let after = codec::backend_value(BackendRow { flags, ..before });
        self.put(family.backends(), &index_key(id), &after, Some(codec::backend_value(before)))?;
        if flags == 0 {
            self.release(Release::Backend(family, id));
        }
        Ok(())
    }

    /// The row that a backend has in the kernel.
    pub(crate) fn backend_row(&self, held: &HeldBackend, service: u32) -> BackendRow {
        let At { address, port } = held.at;
        let generation = self.generations[Family::of(address).index()].get(held.id);
        BackendRow { address, port, flags: held.flags, generation, service }
    }

    // ===== tables =====

    /// Writes a slice of a list and its slots; the descriptor to publish.
    pub(crate) fn new_slice(&mut self, members: &[u32], slots: &[u16], class: u8) -> Result<u64, Cause> {
        let count = u16::try_from(members.len()).map_err(|_| Cause::List { count: members.len() })?;
        let mut table = Table { base: 0, count, class };
        let units = table.units();
        let Some(base) = self.slab.allocate(units) else {
            return Err(Cause::Slab { units, largest: self.slab.occupancy().largest_hole });
        };
        self.undo.push(Undo::Slice { base, units });
        table.base = base;
        let mut slice = Vec::with_capacity(units as usize);
        slice.extend(members.iter().flat_map(|id| [*id as u16, (*id >> 16) as u16]));
        slice.extend_from_slice(slots);
        self.store.write_slab(base, &slice).map_err(|source| Cause::WriteSlab { source })?;
        Ok(table.pack())
    }

    /// Publishes a slice under a new index.
    pub(crate) fn new_table(&mut self, word: u64) -> Result<u32, Cause> {
        let index = self.tables.allocate().ok_or(Cause::Tables { capacity: self.tables.capacity() })?;
        self.undo.push(Undo::Table(index));
        self.store.publish_table(index, word);
        self.undo.push(Undo::Publish { index, word: 0 });
        Ok(index)
    }

    /// Publishes a slice in place of another.
    pub(crate) fn switch_table(&mut self, index: u32, before: u64, word: u64) {
        self.store.publish_table(index, word);
        self.undo.push(Undo::Publish { index, word: before });
        let before = Table::unpack(before);
        self.release(Release::Slice { base: before.base, units: before.units() });
    }

    // ===== frontends =====

    /// Writes a frontend's row for its owner, who may take it from another.
    pub(crate) fn put_frontend(&mut self, at: FrontendAt, value: &Frontend) -> Result<(), Cause> {
        let map = Family::of(at.address).frontends();
        let key = codec::frontend_key(at);
        let owner = self.owners.get(&at).copied();
        let before = if owner.is_some() { self.get(map, &key)? } else { None };
        self.put(map, &key, value.bytes(), before)?;
        self.undo.push(Undo::Owner(at, owner));
        self.owners.insert(at, value.service);
        if owner.is_none() {
            self.change_address(at.address, |state| state.frontends += 1);
        }
        Ok(())
    }

    /// Its owner gives a frontend up. The row is still there, for the address goes first.
    pub(crate) fn disown_frontend(&mut self, at: FrontendAt) {
        let owner = self.owners.remove(&at);
        self.undo.push(Undo::Owner(at, owner));
        self.change_address(at.address, |state| state.frontends = state.frontends.saturating_sub(1));
    }

    /// Deletes the row of a frontend that nobody owns.
    pub(crate) fn delete_frontend(&mut self, at: FrontendAt, before: &Frontend) -> Result<(), Cause> {
        self.delete(Family::of(at.address).frontends(), &codec::frontend_key(at), before.bytes().to_vec())
    }
}
