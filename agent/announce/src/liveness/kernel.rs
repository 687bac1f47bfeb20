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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// From then on.
    pub stamp: Time,
    /// For that.
    pub version: u64,
}

/// What a kernel that runs holds, as its agent reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The boot's number.
    pub boot: u64,
    /// Who counts.
    pub electorate: Electorate,
    /// Its addresses.
    pub claims: BTreeSet<IpAddr>,
    /// The version that a grant must have to count.
    pub version: u64,
    /// How long it goes on without an agent.
    pub agent_until: Time,
    /// How long the witness stands with it.
    pub witness_until: Time,
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

    /// A kernel that has run for a while.
    pub fn running(id: NodeId, held: Held, times: Times) -> Self {
        let Held { boot, electorate, claims, version, agent_until, witness_until } = held;
        Self { electorate, claims, version, agent_until, witness_until, ..Self::new(id, boot, times) }
    }

    /// What the kernel's program has noted of grants.
    pub fn note(&mut self, grants: BTreeMap<NodeId, Grant>) {
        self.grants = grants;
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

    /// The random number of the boot.
    pub fn boot(&self) -> u64 {
        self.boot
    }

    /// How long it goes on without an agent, and how long the witness stands with it.
    pub fn until(&self) -> (Time, Time) {
        (self.agent_until, self.witness_until)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const BOOT: u64 = 77;

    fn ms(ms: u64) -> Time {
        Duration::from_millis(ms)
    }

    fn address() -> IpAddr {
        IpAddr::from([192, 0, 2, 1])
    }

    /// Node 1 of three, with an address in version 5.
    fn kernel() -> Kernel {
        let mut kernel = Kernel::new(1, BOOT, Times::default());
        let mut electorate = Electorate::default();
        electorate.change(BTreeSet::from([1, 2, 3]), Time::ZERO);
        kernel.set_electorate(electorate);
        kernel.agent_lives(Time::ZERO);
        kernel.activate(5, BTreeSet::from([address()]));
        kernel
    }

    fn beat(from: NodeId, seq: u64, boot: u64, stamp: Time, grant: Option<u64>) -> Beat {
        Beat { from, to: 1, seq, stamp: Stamp { boot, time: stamp }, grant }
    }

    #[test]
    fn which_grants_count() {
        let now = ms(1000);
        for (what, beat, counts) in [
            ("as it should be", beat(2, 1, BOOT, ms(900), Some(5)), true),
            ("a later version", beat(2, 1, BOOT, ms(900), Some(6)), true),
            ("an earlier version", beat(2, 1, BOOT, ms(900), Some(4)), false),
            ("none", beat(2, 1, BOOT, ms(900), None), false),
            ("an old stamp", beat(2, 1, BOOT, ms(400), Some(5)), false),
            ("a stamp of the future", beat(2, 1, BOOT, ms(1001), Some(5)), false),
            ("a stamp of an earlier boot", beat(2, 1, BOOT - 1, ms(900), Some(5)), false),
            ("a stranger's", beat(9, 1, BOOT, ms(900), Some(5)), false),
            ("its own", beat(1, 1, BOOT, ms(900), Some(5)), false),
            ("for another", Beat { to: 3, ..beat(2, 1, BOOT, ms(900), Some(5)) }, false),
        ] {
            let mut kernel = kernel();
            kernel.beat(&beat, now);
            assert_eq!(kernel.speaks(address(), now), counts, "{what}");
            // From the stamp on, whenever the beat came.
            assert_eq!(kernel.speaks(address(), ms(1499)), counts, "{what}");
            assert!(!kernel.speaks(address(), ms(1500)), "{what}");
        }
    }

    #[test]
    fn a_beat_counts_once() {
        let mut kernel = kernel();
        let one = beat(2, 8, BOOT, ms(10), Some(5));
        let echo = kernel.beat(&one, ms(20)).unwrap();
        let stamp = Stamp { boot: BOOT, time: ms(20) };
        assert_eq!(echo, Echo { from: 1, to: 2, seq: 8, stamp, mute: false });
        assert_eq!(kernel.beat(&one, ms(30)), None);
        assert_eq!(kernel.beat(&beat(2, 7, BOOT, ms(25), Some(5)), ms(30)), None);
        assert!(kernel.beat(&beat(3, 7, BOOT, ms(25), Some(5)), ms(30)).is_some());
    }

    /// Who hears that a kernel is mute gives its addresses away at once; so an agent that comes back a moment later finds
    /// no grant that is left, nor one that is still on its way.
    #[test]
    fn a_mute_kernel_starts_anew() {
        let mut kernel = kernel();
        let minute = ms(60_000);
        kernel.beat(&beat(2, 1, BOOT, ms(59_900), Some(5)), ms(59_950));
        assert!(kernel.speaks(address(), ms(59_999)) && !kernel.speaks(address(), minute));
        assert!(kernel.beat(&beat(3, 1, BOOT, ms(59_900), None), minute).unwrap().mute);
        kernel.agent_lives(minute);
        assert!(!kernel.speaks(address(), minute));
        kernel.beat(&beat(2, 2, BOOT, ms(59_950), Some(5)), ms(60_010));
        assert!(!kernel.speaks(address(), ms(60_010)));
        kernel.beat(&beat(2, 3, BOOT, ms(60_010), Some(5)), ms(60_020));
        assert!(kernel.speaks(address(), ms(60_020)));
    }
}
