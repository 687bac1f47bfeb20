//! Numbers that the kernel programs index by: given out, taken back, and found again after a restart.

use std::collections::{BTreeSet, VecDeque};

use culvert_api::plan::{Protocol, ServicePlan};

use crate::{
    codec::{Family, protocol_number},
    hash::Hash,
};

/// The identity of a Service port, in one family: the hash of its name. It stands in each of its frontends, and finds
/// the port's id again after a restart. Never 0.
pub fn identity(plan: &ServicePlan, port_name: &str, protocol: Protocol, family: Family) -> u64 {
    let hash = Hash::new(0)
        .bytes(plan.namespace.as_bytes())
        .end()
        .bytes(plan.name.as_bytes())
        .end()
        .bytes(port_name.as_bytes())
        .end()
        .bytes(&[protocol_number(protocol), family as u8])
        .finish();
    hash.max(1)
}

/// Ids from 1 up to a capacity; 0 means none. A number that was never used comes before one that was, and of those the one
/// that rests longest: what still refers to the old meaning has had the most time to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    fresh: u32,
    capacity: u32,
    returned: VecDeque<u32>,
}

impl Pool {
    /// Ids below `capacity`.
    pub fn new(capacity: u32) -> Self {
        Self::restored(capacity, &BTreeSet::new())
    }

    /// Ids below `capacity`, of which a restart found some in use.
    pub fn restored(capacity: u32, used: &BTreeSet<u32>) -> Self {
        let fresh = used.last().map_or(1, |last| last.saturating_add(1));
        let returned = (1..fresh).filter(|id| !used.contains(id)).collect();
        Self { fresh, capacity, returned }
    }

    /// An id, if one is left.
    pub fn allocate(&mut self) -> Option<u32> {
        if self.fresh < self.capacity {
            self.fresh += 1;
            return Some(self.fresh - 1);
        }
        self.returned.pop_front()
    }

    /// Takes an id back.
    pub fn free(&mut self, id: u32) {
        self.returned.push_back(id);
    }

    /// Takes back an id that was given out and never used: it is the next one again.
    pub fn undo(&mut self, id: u32) {
        if id + 1 == self.fresh {
            self.fresh = id;
        } else {
            self.returned.push_front(id);
        }
    }

    /// Ids in use.
    pub fn used(&self) -> u32 {
        self.fresh - 1 - self.returned.len() as u32
    }

    /// Ids in all.
    pub fn capacity(&self) -> u32 {
        self.capacity.saturating_sub(1)
    }
}

/// Generations of backend ids: how a flow tells its backend from a later one with the same id.
#[derive(Clone, Debug, Default)]
pub struct Generations(Vec<u32>);

impl Generations {
    /// What the kernel's row says.
    pub fn restore(&mut self, id: u32, generation: u32) {
        *self.at(id) = generation;
    }

    /// The id gets another meaning: its next generation, never 0.
    pub fn next(&mut self, id: u32) -> u32 {
        let generation = self.at(id);
        *generation = generation.wrapping_add(1).max(1);
        *generation
    }

    /// The generation in force, 0 for an id that was never used.
    pub fn get(&self, id: u32) -> u32 {
        self.0.get(id as usize).copied().unwrap_or(0)
    }

    fn at(&mut self, id: u32) -> &mut u32 {
        let index = id as usize;
        if index >= self.0.len() {
            self.0.resize(index + 1, 0);
        }
        &mut self.0[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unused_ids_come_before_returned_ones_and_the_oldest_of_these_first() {
        let mut pool = Pool::new(4);
        assert_eq!(pool.allocate(), Some(1));
        assert_eq!(pool.allocate(), Some(2));
        pool.free(2);
        pool.free(1);
        assert_eq!(pool.used(), 0);
        assert_eq!(pool.allocate(), Some(3));
        assert_eq!(pool.allocate(), Some(2));
        assert_eq!(pool.allocate(), Some(1));
        assert_eq!(pool.allocate(), None);
        assert_eq!((pool.used(), pool.capacity()), (3, 3));
    }

    #[test]
    fn a_restart_gives_out_no_id_twice() {
        let mut pool = Pool::restored(8, &BTreeSet::from([2, 5]));
        assert_eq!(pool.used(), 2);
        let all: Vec<u32> = std::iter::from_fn(|| pool.allocate()).collect();
        assert_eq!(all, [6, 7, 1, 3, 4]);
    }

    #[test]
    fn an_undone_id_is_the_next_one() {
        let mut pool = Pool::new(10);
        assert_eq!(pool.allocate(), Some(1));
        pool.undo(1);
        assert_eq!((pool.allocate(), pool.allocate()), (Some(1), Some(2)));
        pool.undo(1);
        assert_eq!(pool.used(), 1);
    }

    #[test]
    fn generations_differ_and_skip_zero() {
        let mut generations = Generations::default();
        assert_eq!((generations.get(3), generations.next(3), generations.next(3)), (0, 1, 2));
        generations.restore(3, u32::MAX);
        assert_eq!(generations.next(3), 1);
    }
}
