//! Who counts, and what a majority is.

use std::collections::BTreeSet;

use super::{NodeId, Time};

/// The nodes whose grants count.
///
/// A change of it is seen by every node at another time. Two nodes that count in different sets could both find a
/// majority, so after a change the earlier set counts as well for a while, and there must be a majority in each. If
/// every node sees a change within that while, the sets of any two have one in common. A kernel keeps them for the next
/// agent; one that has just booted knows of no earlier set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Electorate {
    now: BTreeSet<NodeId>,
    earlier: Vec<(Time, BTreeSet<NodeId>)>,
}

impl Electorate {
    /// Takes another set; what counted until now, if anything did, does so until a time.
    pub fn change(&mut self, nodes: BTreeSet<NodeId>, until: Time) {
        if nodes == self.now {
            return;
        }
        let before = std::mem::replace(&mut self.now, nodes);
        if !before.is_empty() {
            self.earlier.push((until, before));
        }
    }

    /// Whether a node counts.
    pub fn contains(&self, node: NodeId, now: Time) -> bool {
        self.sets(now).any(|set| set.contains(&node))
    }

    /// All that count.
    pub fn nodes(&self, now: Time) -> BTreeSet<NodeId> {
        self.sets(now).flatten().copied().collect()
    }

    /// Whether these are a majority of every set. Of exactly half of a set the witness decides: the Lease at the API
    /// server, or the gateway's answer. It stands with one node only.
    pub fn is_quorum(&self, votes: &BTreeSet<NodeId>, witness: bool, now: Time) -> bool {
        self.sets(now).all(|set| {
            let twice = 2 * set.intersection(votes).count();
            twice > set.len() || (witness && twice == set.len() && twice > 0)
        })
    }

    /// The set of now, and earlier ones with how long they count; the oldest first.
    pub fn parts(&self) -> (&BTreeSet<NodeId>, &[(Time, BTreeSet<NodeId>)]) {
        (&self.now, &self.earlier)
    }

    /// Of these parts.
    pub fn of(now: BTreeSet<NodeId>, earlier: Vec<(Time, BTreeSet<NodeId>)>) -> Self {
        Self { now, earlier }
    }

    fn sets(&self, now: Time) -> impl Iterator<Item = &BTreeSet<NodeId>> {
        let earlier = self.earlier.iter().filter(move |(until, _)| now < *until);
        std::iter::once(&self.now).chain(earlier.map(|(_, set)| set))
    }

    /// Forgets what counts no more.
    pub fn settle(&mut self, now: Time) {
        self.earlier.retain(|(until, _)| now < *until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn set(nodes: &[NodeId]) -> BTreeSet<NodeId> {
        nodes.iter().copied().collect()
    }

    fn electorate(nodes: &[NodeId]) -> Electorate {
        let mut electorate = Electorate::default();
        electorate.change(set(nodes), Time::ZERO);
        electorate
    }

    #[test]
    fn what_is_a_quorum() {
        let cases: [(&[NodeId], &[NodeId], bool, bool); 10] = [
            (&[1], &[1], false, true),
            (&[1], &[2], true, false),
            (&[1, 2], &[1], false, false),
            (&[1, 2], &[1], true, true),
            (&[1, 2], &[1, 2], false, true),
            (&[1, 2, 3], &[1], true, false),
            (&[1, 2, 3], &[1, 3, 9], false, true),
            (&[1, 2, 3, 4], &[1, 2], false, false),
            (&[1, 2, 3, 4], &[1, 2], true, true),
            (&[], &[1], true, false),
        ];
        for (nodes, votes, witness, want) in cases {
            let got = electorate(nodes).is_quorum(&set(votes), witness, Time::ZERO);
            assert_eq!(got, want, "{votes:?} of {nodes:?}, witness {witness}");
        }
    }

    #[test]
    fn after_a_change_both_count_for_a_while() {
        let at = Duration::from_secs;
        let mut changing = electorate(&[1, 2, 3]);
        changing.change(set(&[1, 4, 5]), at(10));
        assert!(!changing.is_quorum(&set(&[1, 2]), false, at(9)));
        assert!(!changing.is_quorum(&set(&[1, 4]), false, at(9)));
        assert!(changing.is_quorum(&set(&[1, 2, 4]), false, at(9)));
        assert!(changing.is_quorum(&set(&[1, 4]), false, at(10)));
        assert!(changing.contains(2, at(9)) && !changing.contains(2, at(10)));
        changing.settle(at(10));
        assert_eq!(changing, electorate(&[1, 4, 5]));
    }
}
