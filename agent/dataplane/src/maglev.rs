//! Maglev tables: which backend a hash slot belongs to, the same on every node.
//!
//! Each backend prefers the slots in an order of its own, made from its identity. The backends take turns, and each
//! takes the first slot of its order that is free (Eisenbud et al., "Maglev", NSDI 2016, section 3.4). Shares then
//! differ by at most one slot, and a backend that leaves gives its slots away while few others move.

use std::{iter, net::IpAddr};

use culvert_abi::MAGLEV_SIZES;

use crate::hash::Hash;

/// Slots a backend at the upper edge of a size class. At 400 a backend that leaves moves under 1 % of the others'.
const SLOTS_PER_BACKEND: usize = 400;

/// A backend as the table knows it: nothing that could differ between nodes or change with time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Endpoint address.
    pub address: IpAddr,
    /// Endpoint port.
    pub port: u16,
    /// Its share, relative to the other members'; 0 counts as 1.
    pub weight: u16,
}

/// The size class (index into [`MAGLEV_SIZES`]) of a table of `count` backends: a pure function of the number, so that
/// every node takes the same. A single backend needs no slots.
pub fn class(count: usize) -> u8 {
    if count <= 1 {
        return 0;
    }
    let fits = |size: u32| count * SLOTS_PER_BACKEND <= size as usize;
    let last = MAGLEV_SIZES.len() - 1;
    (1..last).find(|class| fits(MAGLEV_SIZES[*class])).unwrap_or(last) as u8
}

/// Fills a table of `size` slots (a prime below 2^20) with indexes into `members`, at most `u16::MAX` of them. The result depends
/// on the set of members alone: in another order the indexes are others, the members at them are not.
pub fn slots(members: &[Member], size: u32) -> Vec<u16> {
    if members.is_empty() || size < 2 {
        return Vec::new();
    }
    let mut order: Vec<u16> = (0..members.len() as u16).collect();
    order.sort_unstable_by_key(|index| members[*index as usize]);
    let mut walks: Vec<Walk> = order.iter().map(|index| Walk::new(*index, &members[*index as usize], size)).collect();

    let mut slots = vec![FREE; size as usize];
    let round: usize = walks.iter().map(|walk| usize::from(walk.turns)).sum();
    let last = size.isqrt() as usize;
    let rounds = (slots.len() - last) / round;
    for _ in 0..rounds {
        for walk in &mut walks {
            for _ in 0..walk.turns {
                walk.take(&mut slots);
            }
        }
    }
    // Whose turn it is for each slot that is left.
    let turns = (0..walks.len()).cycle().flat_map(|walk| iter::repeat_n(walk, walks[walk].turns.into()));
    let turns: Vec<usize> = turns.take(slots.len() - rounds * round).collect();
    let (walked, picked) = turns.split_at(turns.len() - last);
    for walk in walked {
        walks[*walk].take(&mut slots);
    }
    let mut rest = Rest::of(&slots, &walks, size);
    for walk in picked {
        let (index, slot) = (walks[*walk].index, rest.take(*walk));
        slots[slot as usize] = index;
    }
    slots
}

/// A slot that nobody has; no index, for a list holds at most `u16::MAX` backends.
const FREE: u16 = u16::MAX;

/// One member's walk through the slots, in the order of its preference.
struct Walk {
    index: u16,
    turns: u16,
    /// The slot that is next.
    at: u32,
    /// From a slot to the next, forth.
    step: u32,
    /// The same, back: `size - step`.
    back: u32,
}

impl Walk {
    fn new(index: u16, member: &Member, size: u32) -> Self {
        let hash = |seed| {
            let hash = Hash::new(seed);
            let hash = match member.address {
                IpAddr::V4(address) => hash.bytes(&address.octets()),
                IpAddr::V6(address) => hash.bytes(&address.octets()),
            };
            hash.bytes(&member.port.to_be_bytes()).finish()
        };
        let turns = member.weight.max(1);
        let (at, step) = (hash(1) % u64::from(size), 1 + hash(2) % u64::from(size - 1));
        let step = step as u32;
        Self { index, turns, at: at as u32, step, back: size - step }
    }

    /// Takes the next free slot. There is one: the size is a prime, so the walk passes through every slot.
    fn take(&mut self, slots: &mut [u16]) {
        while slots[self.at as usize] != FREE {
            self.advance();
        }
        slots[self.at as usize] = self.index;
        self.advance();
    }

    fn advance(&mut self) {
        let (before, none) = self.at.overflowing_sub(self.back);
        self.at = if none { self.at + self.step } else { before };
    }
}

/// The last free slots. To find one by walking takes as many steps as the table has slots for each that is free, and the last
/// few would take half of all the time. So each is asked how many steps away it is, and the nearest is taken.
struct Rest {
    free: Vec<u32>,
    size: u32,
    /// Of each walk: where it is, and what a slot's distance is multiplied by for the number of steps.
    walks: Vec<(u32, u64)>,
}

impl Rest {
    /// Bits of a number of steps, as a fraction of `size`, that make room for a slot's place in the list. Two numbers of steps
    /// differ in the others: a size is below 2^21.
    const PLACE: u32 = 20;

    fn of(slots: &[u16], walks: &[Walk], size: u32) -> Self {
        let free = (0..size).zip(slots).filter(|(_, slot)| **slot == FREE).map(|(at, _)| at).collect();
        let unit = u64::MAX / u64::from(size) + 1;
        let walks =
            walks.iter().map(|walk| (walk.at, u64::from(inverse(walk.step, size)).wrapping_mul(unit))).collect();
        Self { free, size, walks }
    }

    /// Takes the slot that a walk would come to first.
    fn take(&mut self, walk: usize) -> u32 {
        let (at, factor) = self.walks[walk];
        // Steps to a slot are `distance / step` modulo `size`. As a fraction of `size` in 64 bits the modulo is what
        // overflows.
        let steps = self.free.iter().map(|slot| u64::from(slot + self.size - at).wrapping_mul(factor));
        let places = steps.zip(0..).map(|(steps, place)| steps >> Self::PLACE << Self::PLACE | place);
        let place = places.min().unwrap_or(0) & ((1 << Self::PLACE) - 1);
        let slot = self.free.swap_remove(place as usize);
        // From that slot on: all before it have been taken.
        self.walks[walk].0 = slot;
        slot
    }
}

/// The number that times `step` is 1 modulo `size`, a prime (extended Euclidean algorithm).
fn inverse(step: u32, size: u32) -> u32 {
    let (mut remainders, mut factors) = ((i64::from(size), i64::from(step)), (0_i64, 1_i64));
    while remainders.1 != 0 {
        let quotient = remainders.0 / remainders.1;
        remainders = (remainders.1, remainders.0 - quotient * remainders.1);
        factors = (factors.1, factors.0 - quotient * factors.1);
    }
    factors.0.rem_euclid(i64::from(size)) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn members(count: u32) -> Vec<Member> {
        let address = |n: u32| IpAddr::from((0x0a00_0000 + n).to_be_bytes());
        (1..=count).map(|n| Member { address: address(n), port: 8080, weight: 1 }).collect()
    }

    #[test]
    fn classes_have_400_slots_a_backend_and_edges_off_round_numbers() {
        let edges: Vec<usize> = (1..2_000).filter(|count| class(*count) != class(count + 1)).collect();
        assert_eq!(edges, [1, 12, 30, 125]);
        assert_eq!(class(65_535), 4);
        assert_eq!((class(0), class(1)), (0, 0));
    }

    #[test]
    fn shares_differ_by_one_slot_at_most() {
        for count in [2, 3, 10, 12, 13, 100] {
            let table = slots(&members(count), MAGLEV_SIZES[class(count as usize) as usize]);
            let mut shares = vec![0_u32; count as usize];
            for index in &table {
                shares[usize::from(*index)] += 1;
            }
            let (min, max) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(max - min <= 1, "{count} backends: shares from {min} to {max}");
        }
    }

    #[test]
    fn the_order_of_arrival_does_not_matter() {
        let forth = members(10);
        let back: Vec<Member> = forth.iter().rev().copied().collect();
        let resolve = |list: &[Member]| -> Vec<Member> {
            slots(list, MAGLEV_SIZES[1]).into_iter().map(|index| list[index as usize]).collect()
        };
        assert_eq!(resolve(&forth), resolve(&back));
    }

    #[test]
    fn weights_are_shares() {
        let mut list = members(3);
        list[1].weight = 2;
        let table = slots(&list, MAGLEV_SIZES[1]);
        let share = |index| table.iter().filter(|slot| **slot == index).count();
        assert!(share(1).abs_diff(2 * share(0)) <= 2 && share(0).abs_diff(share(2)) <= 1);
    }

    /// As the paper has it, step by step.
    fn textbook(members: &[Member], size: u32) -> Vec<u16> {
        let mut order: Vec<usize> = (0..members.len()).collect();
        order.sort_unstable_by_key(|index| members[*index]);
        let mut walks: Vec<Walk> = order.iter().map(|index| Walk::new(*index as u16, &members[*index], size)).collect();
        let mut slots = vec![FREE; size as usize];
        let mut left = size;
        loop {
            for walk in &mut walks {
                for _ in 0..walk.turns {
                    while slots[walk.at as usize] != FREE {
                        walk.at = (walk.at + walk.step) % size;
                    }
                    slots[walk.at as usize] = walk.index;
                    left -= 1;
                    if left == 0 {
                        return slots;
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn tables_are_those_of_the_paper(
            size in prop::sample::select(vec![2_u32, 3, 5, 7, 31, 401, 1_009]),
            identities in prop::collection::btree_map(any::<(u32, u16)>(), 0_u16..5, 1..40),
        ) {
            let member = |((address, port), weight): ((u32, u16), u16)| Member { address: IpAddr::from(address.to_be_bytes()), port, weight };
            let members: Vec<Member> = identities.into_iter().map(member).collect();
            prop_assert_eq!(slots(&members, size), textbook(&members, size));
        }
    }

    #[test]
    fn large_tables_are_those_of_the_paper_too() {
        for (count, class) in [(2, 1), (10, 1), (25, 2), (100, 3), (1_000, 4), (3_000, 1)] {
            let size = MAGLEV_SIZES[class];
            assert!(slots(&members(count), size) == textbook(&members(count), size), "{count} members");
        }
    }

    #[test]
    fn no_members_no_slots() {
        assert!(slots(&[], MAGLEV_SIZES[1]).is_empty());
    }
}
