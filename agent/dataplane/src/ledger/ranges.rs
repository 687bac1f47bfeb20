//! Sets of source ranges: each different set of prefixes is in the kernel once, whatever refers to it, and never changes.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    time::Duration,
};

use ipnet::IpNet;

use super::{Cause, Ledger, REST, Release, Undo};
use crate::{
    codec::{self, Family},
    ids::Pool,
    store::Store,
};

/// The sets.
pub struct RangeSets {
    ids: Pool,
    by_content: HashMap<Vec<IpNet>, u32>,
    sets: BTreeMap<u32, Set>,
}

struct Set {
    nets: Vec<IpNet>,
    references: u32,
    /// When the last reference went.
    released: Duration,
}

impl Default for RangeSets {
    fn default() -> Self {
        Self::restored(BTreeMap::new(), Duration::ZERO)
    }
}

impl RangeSets {
    /// The sets that a restart found in the kernel, none referred to yet.
    pub fn restored(found: BTreeMap<u32, Vec<IpNet>>, now: Duration) -> Self {
        let ids = Pool::restored(u32::MAX, &found.keys().copied().collect());
        let mut by_content = HashMap::new();
        let mut sets = BTreeMap::new();
        for (id, mut nets) in found {
            nets.sort_unstable();
            by_content.entry(nets.clone()).or_insert(id);
            sets.insert(id, Set { nets, references: 0, released: now });
        }
        Self { ids, by_content, sets }
    }

    /// The prefixes of a set, sorted.
    pub fn get(&self, id: u32) -> Option<&[IpNet]> {
        self.sets.get(&id).map(|set| set.nets.as_slice())
    }

    /// All sets.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &[IpNet])> {
        self.sets.iter().map(|(id, set)| (*id, set.nets.as_slice()))
    }

    /// Adds a reference, as a restart finds it.
    pub fn refer(&mut self, id: u32) {
        if let Some(set) = self.sets.get_mut(&id) {
            set.references += 1;
        }
    }

    /// Sets that nothing refers to.
    pub fn unused(&self) -> Vec<u32> {
        self.sets.iter().filter(|(_, set)| set.references == 0).map(|(id, _)| *id).collect()
    }

    /// Drops a reference; whether it was the last.
    pub(super) fn release(&mut self, id: u32, now: Duration) -> bool {
        let Some(set) = self.sets.get_mut(&id) else { return false };
        set.references = set.references.saturating_sub(1);
        set.released = now;
        set.references == 0
    }

    /// Deletes the rows of a set that nothing has referred to while it rested.
    pub(super) fn reclaim(&mut self, store: &mut impl Store, id: u32, now: Duration) -> io::Result<()> {
        let Some(set) = self.sets.get(&id).filter(|set| set.references == 0 && set.released + REST <= now) else {
            return Ok(());
        };
        for net in &set.nets {
            store.delete(family(*net).ranges(), &codec::range_key(id, *net))?;
        }
        let Some(set) = self.sets.remove(&id) else { return Ok(()) };
        if self.by_content.get(&set.nets) == Some(&id) {
            self.by_content.remove(&set.nets);
        }
        self.ids.free(id);
        Ok(())
    }
}

impl<S: Store> Ledger<S> {
    /// Refers to the set of these prefixes (sorted, all of one family): its id, 0 for none. A new set is written whole before
    /// any frontend names it.
    pub(crate) fn refer_ranges(&mut self, nets: &[IpNet]) -> Result<u32, Cause> {
        if nets.is_empty() {
            return Ok(0);
        }
        if let Some(id) = self.ranges.by_content.get(nets).copied() {
            self.ranges.refer(id);
            self.undo.push(Undo::Ranges(id));
            return Ok(id);
        }
        let id = self.ranges.ids.allocate().ok_or(Cause::Ranges)?;
        let set = Set { nets: nets.to_vec(), references: 1, released: Duration::ZERO };
        self.ranges.sets.insert(id, set);
        self.undo.push(Undo::Ranges(id));
        for net in nets {
            let map = family(*net).ranges();
            let written = self.store.put(map, &codec::range_key(id, *net), &codec::RANGE_VALUE);
            written.map_err(|source| self.failed(map, source))?;
        }
        self.ranges.by_content.insert(nets.to_vec(), id);
        Ok(id)
    }

    /// Gives up a reference.
    pub(crate) fn release_ranges(&mut self, id: u32) {
        if id != 0 {
            self.release(Release::Ranges(id));
        }
    }

    /// Lets sets that nothing refers to rest, to be deleted then.
    pub(crate) fn release_unused_ranges(&mut self, now: Duration) {
        for id in self.ranges.unused() {
            self.rest(Release::Ranges(id), now);
        }
    }
}

fn family(net: IpNet) -> Family {
    Family::of(net.addr())
}
