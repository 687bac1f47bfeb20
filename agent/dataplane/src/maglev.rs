//! Maglev tables: which backend a hash slot belongs to, the same on every node.
//!
//! Each backend prefers the slots in an order of its own, made from its identity. The backends take turns, and each
//! takes the first slot of its order that is free (Eisenbud et al., "Maglev", NSDI 2016, section 3.4). Shares then
//! differ by at most one slot, and a backend that leaves gives its slots away while few others move.

use std::net::IpAddr;

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

/// Fills a table of `size` slots (a prime) with indexes into `members`, at most `u16::MAX` of them. The result depends
/// on the set of members alone: in another order the indexes are others, the members at them are not.
pub fn slots(members: &[Member], size: u32) -> Vec<u16> {
    if members.is_empty() || size < 2 {
        return Vec::new();
    }
    let mut order: Vec<u16> = (0..members.len() as u16).collect();
    order.sort_unstable_by_key(|index| members[*index as usize]);
    let mut walks: Vec<Walk> = order.iter().map(|index| Walk::new(*index, &members[*index as usize], size)).collect();

    let mut slots = vec![FREE; size as usize];
    let mut left = size;
    loop {
        for walk in &mut walks {
            for _ in 0..walk.turns {
                walk.take(&mut slots, size);
                left -= 1;
                if left == 0 {
                    return slots;
                }
            }
        }
    }
}

/// A slot that nobody has; no index, for a list holds at most `u16::MAX` backends.
const FREE: u16 = u16::MAX;

/// One member's walk through the slots, in the order of its preference.
struct Walk {
    index: u16,
    turns: u16,
    at: u32,
    step: u32,
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
        Self { index, turns, at: at as u32, step: step as u32 }
    }

    /// Takes the next free slot. There is one: `size` is a prime, so the walk passes through every slot.
    fn take(&mut self, slots: &mut [u16], size: u32) {
        loop {
            let slot = &mut slots[self.at as usize];
            self.at += self.step;
            if self.at >= size {
                self.at -= size;
            }
            if *slot == FREE {
                *slot = self.index;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn no_members_no_slots() {
        assert!(slots(&[], MAGLEV_SIZES[1]).is_empty());
    }
}
