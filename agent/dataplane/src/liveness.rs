//! Who may speak for announced addresses: what the agent tells the kernel program, and which grants that has noted. One
//! writer: the agent's layer 2 task. Times are of the boot clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::Duration,
};

use culvert_abi::{BeatCounters, ELECTORATES, Electorate, Grant as Value, Liveness as Row, Plain, VOTERS, Voter};

use crate::{
    codec::nanoseconds,
    store::{Map, Store},
};

/// What the agent says of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Liveness {
    /// This node's number.
    pub id: u64,
    /// Random, of the boot.
    pub boot: u64,
    /// The version of its claims that a grant must have to count.
    pub version: u64,
    /// Its agent is there until then.
    pub agent_until: Duration,
    /// The witness stands with it until then.
    pub witness_until: Duration,
    /// How long a grant lasts from its stamp.
    pub lease: Duration,
    /// The states of SHA-256 behind the inner and the outer block of the key.
    pub key: [[u32; 8]; 2],
    /// The nodes that count.
    pub nodes: BTreeSet<u64>,
    /// Earlier sets, and how long they count too; the oldest first.
    pub earlier: Vec<(Duration, BTreeSet<u64>)>,
}

/// What another node grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// It lasts from then.
    pub stamp: Duration,
    /// The version that it is for.
    pub version: u64,
}

/// The maps.
#[derive(Clone, Debug)]
pub struct Maps<S>(S);

impl<S: Store> Maps<S> {
    /// The maps as they are, empty or left by another agent.
    pub fn new(store: S) -> Self {
        Self(store)
    }

    /// What was said last; `None`: nothing since the boot.
    pub fn read(&self) -> io::Result<Option<Liveness>> {
        let row = self.0.get(Map::LIVENESS, &0_u32.to_ne_bytes())?;
        Ok(row.map(|row| Liveness::decode(&Row::from_prefix(&row))))
    }

    /// Says it; not more often than once a millisecond, for a program may still read the row before.
    ///
    /// # Errors
    /// `InvalidInput`: more nodes or sets than a row has room for. Nothing is written then.
    pub fn write(&mut self, liveness: &Liveness) -> io::Result<()> {
        let row = liveness.encode()?;
        // Strangers before the row goes: whose grants count is known when it is there.
        self.admit(liveness)?;
        self.0.put(Map::LIVENESS, &0_u32.to_ne_bytes(), row.bytes())
    }

    /// The grants that were noted and not withdrawn since, by node.
    pub fn grants(&self) -> io::Result<BTreeMap<u64, Grant>> {
        let floor = self.0.get(Map::FLOOR, &0_u32.to_ne_bytes())?.and_then(|floor| number(&floor)).unwrap_or(0);
        let mut grants = BTreeMap::new();
        self.0.for_each(Map::GRANTS, &mut |key, value| {
            let Value { seen: _, stamp, version } = Value::from_prefix(value);
            if let Some(node) = number(key).filter(|_| stamp > floor) {
                grants.insert(node, Grant { stamp: Duration::from_nanos(stamp), version });
            }
        })?;
        Ok(grants)
    }

    /// What became of beats, over all CPUs.
    pub fn counters(&self) -> io::Result<BeatCounters> {
        let mut sum = BeatCounters::zeroed();
        let rows = self.0.get(Map::BEATS, &0_u32.to_ne_bytes())?.unwrap_or_default();
        for row in rows.chunks_exact(size_of::<BeatCounters>()).map(BeatCounters::from_prefix) {
            sum.echoed += row.echoed;
            sum.refused += row.refused;
            sum.ignored += row.ignored;
        }
        Ok(sum)
    }

    /// Whose beats are answered, and what others have granted is forgotten.
    fn admit(&mut self, liveness: &Liveness) -> io::Result<()> {
        let mut wanted: BTreeMap<u64, u64> = BTreeMap::new();
        for (until, nodes) in liveness.sets() {
            for node in nodes {
                let until = until.map_or(u64::MAX, nanoseconds);
                wanted.entry(*node).and_modify(|known| *known = until.max(*known)).or_insert(until);
            }
        }
        let mut known = BTreeMap::new();
        self.0.for_each(Map::VOTERS, &mut |key, value| {
            known.extend(number(key).zip(number(value)));
        })?;
        for (node, until) in &wanted {
            if known.get(node) != Some(until) {
                self.0.put(Map::VOTERS, &node.to_ne_bytes(), &until.to_ne_bytes())?;
            }
        }
        for node in known.into_keys().filter(|node| !wanted.contains_key(node)) {
            self.0.delete(Map::VOTERS, &node.to_ne_bytes())?;
            self.0.delete(Map::GRANTS, &node.to_ne_bytes())?;
        }
        Ok(())
    }
}

impl Liveness {
    fn sets(&self) -> impl Iterator<Item = (Option<Duration>, &BTreeSet<u64>)> {
        let earlier = self.earlier.iter().map(|(until, nodes)| (Some(*until), nodes));
        std::iter::once((None, &self.nodes)).chain(earlier)
    }

    fn encode(&self) -> io::Result<Row> {
        let [inner, outer] = self.key;
        let mut row = Row {
            id: self.id,
            boot: self.boot,
            version: self.version,
            agent_until: nanoseconds(self.agent_until),
            witness_until: nanoseconds(self.witness_until),
            lease: nanoseconds(self.lease),
            inner,
            outer,
            ..Row::zeroed()
        };
        let mut voters: BTreeMap<u64, Voter> = BTreeMap::new();
        for (i, (until, nodes)) in self.sets().enumerate() {
            let set = row.electorates.get_mut(i).ok_or_else(|| too_many("sets of nodes", ELECTORATES))?;
            *set = Electorate { until: until.map_or(0, nanoseconds), size: nodes.len() as u32, zero: 0 };
            for node in nodes {
                voters.entry(*node).or_insert(Voter { id: *node, ..Voter::zeroed() }).join(i);
            }
        }
        row.count = voters.len() as u32;
        let mut places = row.voters.iter_mut();
        for voter in voters.into_values() {
            *places.next().ok_or_else(|| too_many("nodes", VOTERS))? = voter;
        }
        Ok(row)
    }

    fn decode(row: &Row) -> Self {
        let voters = row.voters.iter().take(row.count as usize);
        let voters: Vec<&Voter> = voters.collect();
        let members = |i| voters.iter().filter(|voter| voter.is_in(i)).map(|voter| voter.id).collect();
        let earlier = row.electorates.iter().enumerate().skip(1).filter(|(_, set)| set.size != 0);
        Self {
            id: row.id,
            boot: row.boot,
            version: row.version,
            agent_until: Duration::from_nanos(row.agent_until),
            witness_until: Duration::from_nanos(row.witness_until),
            lease: Duration::from_nanos(row.lease),
            key: [row.inner, row.outer],
            nodes: members(0),
            earlier: earlier.map(|(i, set)| (Duration::from_nanos(set.until), members(i))).collect(),
        }
    }
}

fn too_many(what: &str, most: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("more than {most} {what}"))
}

fn number(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeStore;

    fn said() -> Liveness {
        let at = Duration::from_secs;
        Liveness {
            id: 3,
            boot: 77,
            version: 5,
            agent_until: at(60),
            witness_until: at(1),
            lease: Duration::from_millis(600),
            key: [[1; 8], [2; 8]],
            nodes: [3, 4, 5].into(),
            earlier: vec![(at(9), [3, 4].into()), (at(10), [4, 6].into())],
        }
    }

    #[test]
    fn what_is_read_is_what_was_said() {
        let mut maps = Maps::new(FakeStore::default());
        assert_eq!(maps.read().unwrap(), None);
        maps.write(&said()).unwrap();
        assert_eq!(maps.read().unwrap(), Some(said()));
    }

    #[test]
    fn too_many_nodes_change_nothing() {
        let mut maps = Maps::new(FakeStore::default());
        maps.write(&said()).unwrap();
        let crowd = Liveness { nodes: (0..=VOTERS as u64).collect(), ..said() };
        assert_eq!(maps.write(&crowd).unwrap_err().to_string(), "more than 256 nodes");
        let sets = Liveness { earlier: vec![(Duration::ZERO, [1].into()); ELECTORATES], ..said() };
        assert_eq!(maps.write(&sets).unwrap_err().to_string(), "more than 8 sets of nodes");
        assert_eq!(maps.read().unwrap(), Some(said()));
    }

    #[test]
    fn grants_of_those_that_count_no_more_are_forgotten() {
        let mut maps = Maps::new(FakeStore::default());
        maps.write(&said()).unwrap();
        for (node, stamp) in [(4_u64, 8), (5, 9), (6, 0)] {
            let grant = Value { seen: 1, stamp, version: 5 };
            maps.0.put(Map::GRANTS, &node.to_ne_bytes(), grant.bytes()).unwrap();
        }
        let grant = |stamp| Grant { stamp: Duration::from_nanos(stamp), version: 5 };
        assert_eq!(maps.grants().unwrap(), BTreeMap::from([(4, grant(8)), (5, grant(9))]));
        maps.write(&Liveness { nodes: [3, 5].into(), earlier: Vec::new(), ..said() }).unwrap();
        assert_eq!(maps.grants().unwrap(), BTreeMap::from([(5, grant(9))]));
    }
}
