//! What the kernel program does, as a state machine that it can be checked against.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Beat, Echo, Electorate, NodeId, Stamp, Time, Times};

/// The kernel's part of a node. It outlives its agent.
#[derive(Clone, Debug)]
pub struct Kernel {
    id: NodeId,
    times: Times,
    boot: u64,
    electorate: Electorate,
    /// Its addresses, and the version that a grant must have to count.
    claims: BTreeSet<IpAddr>,
    version: u64,
    grants: BTreeMap<NodeId, Grant>,
    seen: BTreeMap<NodeId, u64>,
    /// Stamps up to here count no more.
    floor: Time,
    agent_until: Time,
    witness_until: Time,
}

/// What another node grants: a lease from a stamp on, for a version of the claims.
#[derive(Clone, Copy, Debug)]
struct Grant {
    stamp: Time,
    version: u64,
}

impl Kernel {
    /// A kernel that has just booted; `boot` is random.
    pub fn new(id: NodeId, boot: u64, times: Times) -> Self {
        Self {
            id,
            times,
            boot,
            electorate: Electorate::default(),
            claims: BTreeSet::new(),
            version: 0,
            grants: BTreeMap::new(),
            seen: BTreeMap::new(),
            floor: Time::ZERO,
            agent_until: Time::ZERO,
            witness_until: Time::ZERO,
        }
    }

    /// Takes a beat whose key was right, and answers it. What is for another node, of a stranger, or no newer than the
    /// last one of its sender has no answer and no effect.
    pub fn beat(&mut self, beat: &Beat, now: Time) -> Option<Echo> {
        let is_new = self.seen.get(&beat.from).is_none_or(|seen| *seen < beat.seq);
        if beat.to != self.id || beat.from == self.id || !self.electorate.contains(beat.from, now) || !is_new {
            return None;
        }
        self.seen.insert(beat.from, beat.seq);
        let mute = now >= self.agent_until;
        if mute {
            // Who hears that withdraws its support at once, so none may be left.
            (self.floor, self.grants) = (now, BTreeMap::new());
        }
        let Stamp { boot, time } = beat.stamp;
        if let Some(version) = beat.grant
            && boot == self.boot
            && self.floor < time
            && time <= now
        {
            let stamp = self.grants.get(&beat.from).map_or(time, |grant| grant.stamp.max(time));
            self.grants.insert(beat.from, Grant { stamp, version });
        }
        let stamp = Stamp { boot: self.boot, time: now };
        Some(Echo { from: self.id, to: beat.from, seq: beat.seq, stamp, mute })
    }

    /// Whether it answers for an address.
    pub fn speaks(&self, address: IpAddr, now: Time) -> bool {
        self.claims.contains(&address) && now < self.agent_until && self.is_quorate(self.version, now)
    }

    /// Whether a majority grants its claims in a version or a later one.
    pub fn is_quorate(&self, version: u64, now: Time) -> bool {
        self.electorate.is_quorum(&self.votes(version, now), now < self.witness_until, now)
    }

    /// Whether a third of a lease from now the witness will decide, if no other grant comes: time to ask it. When it is
    /// not needed any more, the agent first calls [`Kernel::set_witness`] with the present time, then lets the Lease go.
    pub fn needs_witness(&self, now: Time) -> bool {
        let votes = self.votes(self.version, now.saturating_add(self.times.lease / 3));
        let is_quorum = |witness| self.electorate.is_quorum(&votes, witness, now);
        is_quorum(true) && !is_quorum(false)
    }

    /// Who grants a version until a time; this node always.
    fn votes(&self, version: u64, until: Time) -> BTreeSet<NodeId> {
        let live = self
            .grants
            .iter()
            .filter(|(_, grant)| grant.version >= version && until < grant.stamp.saturating_add(self.times.lease));
        live.map(|(node, _)| *node).chain([self.id]).collect()
    }

    /// Whether a node's latest grant is for a version of the claims or a later one.
    pub fn is_granted(&self, by: NodeId, version: u64) -> bool {
        self.grants.get(&by).is_some_and(|grant| grant.version >= version)
    }

    /// Its addresses.
    pub fn claims(&self) -> &BTreeSet<IpAddr> {
        &self.claims
    }

    /// The version that a grant must have to count.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The agent puts claims in force.
    pub fn activate(&mut self, version: u64, claims: BTreeSet<IpAddr>) {
        (self.version, self.claims) = (version, claims);
    }

    /// The agent takes addresses away.
    pub fn retire(&mut self, addresses: &BTreeSet<IpAddr>) {
        self.claims.retain(|address| !addresses.contains(address));
    }

    /// The agent says that it is there.
    pub fn agent_lives(&mut self, now: Time) {
        self.agent_until = now.saturating_add(self.times.agent);
    }

    /// Who counts.
    pub fn electorate(&self) -> &Electorate {
        &self.electorate
    }

    /// The agent says who counts.
    pub fn set_electorate(&mut self, electorate: Electorate) {
        self.electorate = electorate;
    }

    /// The witness stands with this node until a time: as long as a Lease was renewed for, from when the request was
    /// sent; or, with a gateway, [`Times::lease`] after it answered.
    pub fn set_witness(&mut self, until: Time) {
        self.witness_until = until;
    }
}
