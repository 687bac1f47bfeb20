//! One of the best nodes for every address, evenly.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

type Best<'a> = BTreeMap<IpAddr, BTreeSet<&'a str>>;

/// Chooses one of the best nodes for each address; no set of them is empty.
///
/// In the result no address could go to one of its best nodes that answers for two addresses fewer. Where all nodes are
/// equally good for all addresses, the largest load is at most one more than the smallest.
pub(super) fn spread<'a>(best: &Best<'a>, holders: &BTreeMap<IpAddr, String>) -> BTreeMap<IpAddr, &'a str> {
    let nodes: BTreeSet<&str> = best.values().flatten().copied().collect();
    let mut spread = Spread::new(best.len(), nodes);
    for (address, nodes) in best {
        if let Some(holder) = holders.get(address).and_then(|holder| nodes.get(holder.as_str())) {
            spread.give(*address, holder);
        }
    }
    // By hash, so that neighbouring addresses, which come and go together, are not always the first or the last.
    let mut rest: Vec<_> = best.iter().filter(|(address, _)| !spread.chosen.contains_key(*address)).collect();
    rest.sort_by_key(|(address, _)| (hash(**address, ""), **address));
    for (address, nodes) in rest {
        if let Some(node) = spread.place(*address, nodes) {
            spread.give(*address, node);
        }
    }
    spread.even_out(best);
    spread.chosen
}

struct Spread<'a> {
    chosen: BTreeMap<IpAddr, &'a str>,
    load: BTreeMap<&'a str, usize>,
    /// The share that every node has room for.
    share: usize,
    /// How many nodes have room for one more than that.
    extras: usize,
}

impl<'a> Spread<'a> {
    fn new(addresses: usize, nodes: BTreeSet<&'a str>) -> Self {
        let count = nodes.len().max(1);
        let load = nodes.into_iter().map(|node| (node, 0)).collect();
        Self { chosen: BTreeMap::new(), load, share: addresses / count, extras: addresses % count }
    }

    fn load(&self, node: &str) -> usize {
        self.load.get(node).copied().unwrap_or_default()
    }

    fn give(&mut self, address: IpAddr, node: &'a str) {
        if let Some(before) = self.chosen.insert(address, node) {
            self.load.entry(before).and_modify(|load| *load -= 1);
        }
        *self.load.entry(node).or_default() += 1;
    }

    /// The node with the highest hash among those that have room. If none has, for others than all nodes are good for
    /// the address, the one with the least to do.
    fn place(&self, address: IpAddr, nodes: &BTreeSet<&'a str>) -> Option<&'a str> {
        let with_more = self.load.values().filter(|load| **load > self.share).count();
        let room = |node: &&&str| {
            let load = self.load(node);
            load < self.share || (load == self.share && with_more < self.extras)
        };
        let by_hash = |node: &&&'a str| (hash(address, node), **node);
        let with_room = nodes.iter().filter(room).max_by_key(by_hash);
        with_room.or_else(|| nodes.iter().max_by_key(|node| (Reverse(self.load(node)), by_hash(node)))).copied()
    }

    /// Moves single addresses, from the node with the most, while that makes it more even. Every move makes the sum of
    /// the squared loads smaller, so there is an end.
    fn even_out(&mut self, best: &Best<'a>) {
        while let Some((address, to)) = self.unevenness(best) {
            self.give(address, to);
        }
    }

    /// The move that does the most: from the largest load to the smallest, and of these the address that the other
    /// node would have got by its hash.
    fn unevenness(&self, best: &Best<'a>) -> Option<(IpAddr, &'a str)> {
        let (least, most) = (self.load.values().min()?, self.load.values().max()?);
        if most - least < 2 {
            return None;
        }
        let moves = self.chosen.iter().flat_map(|(address, from)| {
            let others = best.get(address).into_iter().flatten();
            others.map(|to| (*address, self.load(from), self.load(to), *to))
        });
        let worth = moves.filter(|(_, from, to, _)| *from >= to + 2);
        let best = worth.max_by_key(|(address, from, to, node)| (*from, Reverse(*to), hash(*address, node), *address));
        best.map(|(address, _, _, node)| (address, node))
    }
}

/// A hash that every node and every version computes alike: FNV-1a, with the finish of `SplitMix64`, as FNV alone leaves
/// the high bits of short texts close to one another. (Both are in the public domain.)
fn hash(address: IpAddr, node: &str) -> u64 {
    let octets = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let sum = octets.iter().chain(node.as_bytes()).fold(0xcbf2_9ce4_8422_2325, fold);
    let mixed = (sum ^ (sum >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
