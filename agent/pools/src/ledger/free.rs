//! The free addresses of one range, as intervals: the cost is that of what is in use, whatever the range's size.

use std::collections::BTreeMap;
use std::net::IpAddr;

use culvert_model::Family;

use crate::range::{Range, address, is_buggy, number};

/// Intervals of free addresses. Each begins with one that may be given out.
#[derive(Clone, Debug)]
pub(super) struct Free {
    range: Range,
    avoid_buggy: bool,
    /// First to last, apart from one another.
    intervals: BTreeMap<u128, u128>,
}

impl Free {
    /// All of a range.
    pub(super) fn new(range: Range, avoid_buggy: bool) -> Self {
        let mut free = Self { range, avoid_buggy, intervals: BTreeMap::new() };
        free.insert(number(range.first()), number(range.last()));
        free
    }

    pub(super) fn range(&self) -> &Range {
        &self.range
    }

    pub(super) fn family(&self) -> Family {
        self.range.family()
    }

    /// The lowest free address.
    pub(super) fn first(&self) -> Option<IpAddr> {
        self.intervals.keys().next().map(|first| address(self.family(), *first))
    }

    /// Takes an address out.
    pub(super) fn take(&mut self, taken: IpAddr) {
        let taken = number(taken);
        let Some((&first, &last)) = self.intervals.range(..=taken).next_back().filter(|(_, last)| **last >= taken)
        else {
            return;
        };
        self.intervals.remove(&first);
        if let Some(before) = taken.checked_sub(1).filter(|before| *before >= first) {
            self.insert(first, before);
        }
        if let Some(after) = taken.checked_add(1).filter(|after| *after <= last) {
            self.insert(after, last);
        }
    }

    /// Puts an address back.
    pub(super) fn put(&mut self, freed: IpAddr) {
        let freed = number(freed);
        let (mut first, mut last) = (freed, freed);
        if let Some((&of, &to)) = self.intervals.range(..=freed).next_back() {
            if to >= freed {
                return;
            }
            if to + 1 == freed {
                first = of;
            }
        }
        if let Some(next) = freed.checked_add(1)
            && let Some(to) = self.intervals.remove(&next)
        {
            last = to;
        }
        self.insert(first, last);
    }

    /// Adds an interval, without what may not be given out at its beginning; the rest of that kind is met when an interval
    /// begins with it.
    fn insert(&mut self, mut first: u128, last: u128) {
        while self.avoid_buggy && is_buggy(address(self.family(), first)) {
            if first == last {
                return;
            }
            first += 1;
        }
        self.intervals.insert(first, last);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn all(free: &Free) -> BTreeSet<u128> {
        let usable = |n: &u128| !(free.avoid_buggy && is_buggy(address(free.family(), *n)));
        free.intervals.iter().flat_map(|(first, last)| *first..=*last).filter(usable).collect()
    }

    proptest! {
        /// As a plain set of addresses, of which the lowest is the first.
        #[test]
        fn as_a_set(avoid in any::<bool>(), moves in proptest::collection::vec((any::<bool>(), 0_u128..40), 0..200)) {
            let base = number("192.0.2.240".parse().unwrap());
            let mut free = Free::new(Range::parse("192.0.2.240-192.0.3.23").unwrap(), avoid);
            let usable = |n: &u128| !(avoid && is_buggy(address(Family::V4, *n)));
            let mut set: BTreeSet<u128> = (base..base + 40).filter(usable).collect();
            for (take, n) in moves {
                if !usable(&(base + n)) {
                    continue;
                }
                let at = address(Family::V4, base + n);
                if take {
                    free.take(at);
                    set.remove(&(base + n));
                } else {
                    free.put(at);
                    set.insert(base + n);
                }
                prop_assert_eq!(&all(&free), &set);
                prop_assert_eq!(free.first().map(number), set.first().copied());
            }
        }
    }

    #[test]
    fn ends_of_the_number_space() {
        let mut free = Free::new(Range::parse("::/0").unwrap(), false);
        for text in ["::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] {
            free.take(text.parse().unwrap());
        }
        assert_eq!(free.first(), Some("::1".parse().unwrap()));
        for text in ["::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] {
            free.put(text.parse().unwrap());
        }
        assert_eq!(free.intervals, BTreeMap::from([(0, u128::MAX)]));
    }
}
