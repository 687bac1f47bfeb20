//! Who owns which units of `SLAB`. Only the allocation: writing, publishing and waiting for readers are the ledger's.
//!
//! Large slices (with Maglev slots) are taken from the low end of a hole and small ones (lists) from its high end, so that
//! the small do not scatter over the space that the large need. A freed slice joins the holes beside it.

use std::collections::{BTreeMap, BTreeSet};

use culvert_abi::PAGE_UNITS;

/// Slices of at least so many units count as large.
const LARGE: u32 = PAGE_UNITS as u32;

/// The free space of `SLAB`, in units of `u16`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slab {
    /// Holes: base to length.
    holes: BTreeMap<u32, u32>,
    /// The same holes: length, base.
    by_length: BTreeSet<(u32, u32)>,
    capacity: u32,
    used: u32,
}

/// How full the slab is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupancy {
    /// Units in all.
    pub capacity: u32,
    /// Units in slices, those that rest included.
    pub used: u32,
    /// Units of the largest hole: the largest slice that fits.
    pub largest_hole: u32,
    /// Number of holes.
    pub holes: usize,
}

impl Slab {
    /// An empty slab of `capacity` units.
    pub fn new(capacity: u32) -> Self {
        let mut slab = Self { holes: BTreeMap::new(), by_length: BTreeSet::new(), capacity, used: 0 };
        slab.insert(0, capacity & !1);
        slab
    }

    /// Takes `units` (rounded up to an even number) from the smallest hole that holds them: the base, which is even.
    pub fn allocate(&mut self, units: u32) -> Option<u32> {
        let units = even(units)?;
        let (length, base) = *self.by_length.range((units, 0)..).next()?;
        self.remove(base, length);
        let rest = length - units;
        self.used += units;
        if units >= LARGE {
            self.insert(base + units, rest);
            return Some(base);
        }
        self.insert(base, rest);
        Some(base + rest)
    }

    /// Takes exactly the slice of `units` at `base`, as a restart finds it in the kernel; `false` if it is not free.
    pub fn reserve(&mut self, base: u32, units: u32) -> bool {
        let Some(units) = even(units).filter(|_| base.is_multiple_of(2)) else { return false };
        let Some((hole, length)) = self.holes.range(..=base).next_back().map(|(hole, length)| (*hole, *length)) else {
            return false;
        };
        let before = base - hole;
        let Some(after) = length.checked_sub(before).and_then(|rest| rest.checked_sub(units)) else { return false };
        self.remove(hole, length);
        self.insert(hole, before);
        self.insert(base + units, after);
        self.used += units;
        true
    }

    /// Gives back a slice that `allocate` or `reserve` gave out.
    pub fn free(&mut self, base: u32, units: u32) {
        let Some(units) = even(units) else { return };
        self.used = self.used.saturating_sub(units);
        let (mut start, mut end) = (base, base + units);
        if let Some((hole, length)) = self.holes.range(..base).next_back().map(|(hole, length)| (*hole, *length))
            && hole + length == base
        {
            self.remove(hole, length);
            start = hole;
        }
        if let Some(length) = self.holes.get(&end).copied() {
            self.remove(end, length);
            end += length;
        }
        self.insert(start, end - start);
    }

    /// How full the slab is.
    pub fn occupancy(&self) -> Occupancy {
        Occupancy {
            capacity: self.capacity,
            used: self.used,
            largest_hole: self.by_length.last().map_or(0, |(length, _)| *length),
            holes: self.holes.len(),
        }
    }

    fn insert(&mut self, base: u32, length: u32) {
        if length > 0 {
            self.holes.insert(base, length);
            self.by_length.insert((length, base));
        }
    }

    fn remove(&mut self, base: u32, length: u32) {
        self.holes.remove(&base);
        self.by_length.remove(&(length, base));
    }
}

/// The next even number; `None` for 0 and for what would overflow.
fn even(units: u32) -> Option<u32> {
    (units > 0).then(|| units.checked_next_multiple_of(2)).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_slices_leave_the_low_end_to_large_ones() {
        let mut slab = Slab::new(20_000);
        assert_eq!(slab.allocate(20), Some(19_980));
        assert_eq!(slab.allocate(5_023), Some(0));
        assert_eq!(slab.allocate(19), Some(19_960));
        assert_eq!(slab.allocate(5_023), Some(5_024));
        assert_eq!(slab.allocate(10_000), None);
    }

    #[test]
    fn holes_join_again() {
        let mut slab = Slab::new(10_000);
        let bases: Vec<u32> = (0..5).map(|_| slab.allocate(2_000).unwrap()).collect();
        assert_eq!(slab.allocate(2), None);
        for index in [1, 3, 0, 4, 2] {
            slab.free(bases[index], 2_000);
        }
        assert_eq!(slab, Slab::new(10_000));
    }

    #[test]
    fn reserve_takes_what_is_free_only() {
        let mut slab = Slab::new(1_000);
        assert!(slab.reserve(100, 50));
        assert!(!slab.reserve(148, 10), "overlaps the end");
        assert!(!slab.reserve(90, 20), "overlaps the start");
        assert!(!slab.reserve(151, 10), "odd");
        assert!(!slab.reserve(990, 20), "beyond the end");
        assert!(slab.reserve(150, 850));
        assert_eq!(slab.occupancy(), Occupancy { capacity: 1_000, used: 900, largest_hole: 100, holes: 1 });
    }

    proptest! {
        /// Slices never overlap, stay even and inside, and all space comes back in one hole.
        #[test]
        fn slices_are_disjoint(steps in prop::collection::vec((1_u32..6_000, any::<prop::sample::Index>(), any::<bool>()), 1..200)) {
            let mut slab = Slab::new(60_000);
            let mut live: Vec<(u32, u32)> = Vec::new();
            for (units, pick, free) in steps {
                if free && !live.is_empty() {
                    let (base, units) = live.swap_remove(pick.index(live.len()));
                    slab.free(base, units);
                } else if let Some(base) = slab.allocate(units) {
                    prop_assert!(base % 2 == 0 && base + units <= 60_000);
                    prop_assert!(live.iter().all(|(b, u)| base + units <= *b || b + u <= base));
                    live.push((base, units));
                }
            }
            for (base, units) in live {
                slab.free(base, units);
            }
            prop_assert_eq!(slab, Slab::new(60_000));
        }
    }
}
