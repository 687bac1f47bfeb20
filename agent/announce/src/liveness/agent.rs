//! Who is heard, what others claim, and what this node claims.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Beat, Echo, Electorate, Kernel, Letter, NodeId, Said, Stamp, Time, Times};

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a beat.
    Beat(Beat),
    /// Send a letter.
    Letter {
        /// To whom.
        to: NodeId,
        /// What.
        letter: Letter,
    },
    /// Put claims in force ([`Kernel::activate`]).
    Activate {
        /// Their version.
        version: u64,
        /// Addresses.
        claims: BTreeSet<IpAddr>,
    },
    /// Take addresses away ([`Kernel::retire`]), before anything that stands behind this action is done.
    Retire(BTreeSet<IpAddr>),
}

/// The agent's part of a node.
#[derive(Clone, Debug)]
pub struct Agent {
    id: NodeId,
    times: Times,
    started: Time,
    electorate: Electorate,
    peers: BTreeMap<NodeId, Peer>,
    /// Number of the last message, and what it was at start.
    seq: u64,
    first: u64,
    next_beat: Time,
    /// What the caller's choice gives to this node.
    wanted: BTreeSet<IpAddr>,
    /// What the other nodes are told, and since when.
    claims: BTreeSet<IpAddr>,
    /// `None`: it has nothing to say yet, and the others go by what an earlier agent said.
    said: Option<Said>,
    version: u64,
    claimed: Time,
    /// Addresses of the claims that peers refuse, and those that wait for another try.
    refused: BTreeSet<IpAddr>,
    waiting: BTreeMap<IpAddr, Time>,
    /// Addresses that are kept until somebody else claims them, and since when.
    unwanted: BTreeMap<IpAddr, Time>,
}

#[derive(Clone, Debug, Default)]
struct Peer {
    /// When the last echo came, with its stamp and the number of its beat.
    heard: Option<(Time, Stamp, u64)>,
    mute: bool,
    /// What it told last, and what of its claims is supported. Nothing of one that is not heard.
    told: Option<Claims>,
    supported: Option<Claims>,
    /// The latest version that it told of itself.
    latest: u64,
}

#[derive(Clone, Debug)]
struct Claims {
    version: u64,
    addresses: BTreeSet<IpAddr>,
    said: Said,
}

impl Peer {
    fn is_alive(&self, times: Times, now: Time) -> bool {
        !self.mute && self.heard.is_some_and(|(heard, ..)| now < heard.saturating_add(times.silence))
    }

    fn has_news(&self) -> bool {
        let supported = self.supported.as_ref().map(|claims| claims.version);
        self.told.as_ref().is_some_and(|told| supported < Some(told.version))
    }
}

impl Agent {
    /// An agent that starts, with what its kernel holds. `seq` is greater than any number that an earlier agent of the
    /// node gave to a message or a version: microseconds since 1970 are. `nodes` are those that count; the kernel is to be
    /// told what comes of it ([`Agent::electorate`]).
    pub fn new(kernel: &Kernel, id: NodeId, nodes: BTreeSet<NodeId>, seq: u64, times: Times, now: Time) -> Self {
        let mut electorate = kernel.electorate().clone();
        electorate.change(nodes, now.saturating_add(times.settle));
        Self {
            id,
            times,
            started: now,
            electorate,
            peers: BTreeMap::new(),
            seq,
            first: seq,
            next_beat: now,
            wanted: kernel.claims().clone(),
            claims: kernel.claims().clone(),
            said: None,
            version: seq.max(kernel.version() + 1),
            claimed: now,
            refused: BTreeSet::new(),
            waiting: BTreeMap::new(),
            unwanted: BTreeMap::new(),
        }
    }

    /// When a node's last echo came, if ever.
    pub fn heard(&self, id: NodeId) -> Option<Time> {
        Some(self.peers.get(&id)?.heard?.0)
    }

    /// Nodes that are heard and whose kernel serves.
    pub fn alive(&self, now: Time) -> BTreeSet<NodeId> {
        self.peers.iter().filter(|(_, peer)| peer.is_alive(self.times, now)).map(|(id, _)| *id).collect()
    }

    /// Whether all that count are heard and have told what they claim.
    pub fn knows_all(&self, now: Time) -> bool {
        let others = self.electorate.nodes(now).into_iter().filter(|id| *id != self.id);
        others.into_iter().all(|id| self.peers.get(&id).is_some_and(|peer| peer.told.is_some()))
    }

    /// What the nodes that are heard say, if they have said anything.
    pub fn said(&self, now: Time) -> impl Iterator<Item = (NodeId, &Said)> {
        let alive = self.peers.iter().filter(move |(_, peer)| peer.is_alive(self.times, now));
        alive.filter_map(|(id, peer)| Some((*id, &peer.told.as_ref()?.said)))
    }

    /// Who claims what, as far as it is known here.
    pub fn holders(&self) -> BTreeMap<IpAddr, NodeId> {
        let own = self.claims.iter().map(|address| (*address, self.id));
        let others = self.peers.iter().filter_map(|(id, peer)| Some((*id, peer.supported.as_ref()?)));
        let others = others.flat_map(|(id, supported)| supported.addresses.iter().map(move |address| (*address, id)));
        own.chain(others).collect()
    }

    /// What the other nodes are to know of this one. Before the first time, they are told nothing, not even claims: an agent that has
    /// just started knows less than the one before it told.
    pub fn say(&mut self, said: Said, now: Time) -> Vec<Action> {
        if self.said.as_ref() == Some(&said) {
            return Vec::new();
        }
        self.said = Some(said);
        // In a version of its own, so that it is told again until everybody has it. What waits for a majority waits on.
        self.version += 1;
        self.tell_all(now)
    }

    /// When [`Agent::tick`] is due: a beat, or somebody is silent for too long. No grant and no letter counts here.
    pub fn next(&self) -> Time {
        let silent = self.peers.values().filter(|peer| peer.supported.is_some() || peer.told.is_some());
        let silent = silent.filter_map(|peer| Some(peer.heard?.0.saturating_add(self.times.silence)));
        silent.fold(self.next_beat, Time::min)
    }

    /// Whether claims wait for a majority: then [`Agent::tick`] is due as soon as grants may have come.
    pub fn waits(&self, kernel: &Kernel, now: Time) -> bool {
        // What has no majority for long gets one with a beat, if ever.
        self.version > kernel.version() && now < self.claimed.saturating_add(self.times.patience)
    }

    /// The choice gives these addresses to this node.
    pub fn want(&mut self, addresses: BTreeSet<IpAddr>) {
        self.wanted = addresses;
    }

    /// Another electorate; the one before counts as well for [`Times::settle`].
    pub fn elect(&mut self, nodes: BTreeSet<NodeId>, now: Time) {
        self.electorate.change(nodes, now.saturating_add(self.times.settle));
        self.electorate.settle(now);
    }

    /// Who counts, for the kernel ([`Kernel::set_electorate`]).
    pub fn electorate(&self) -> &Electorate {
        &self.electorate
    }

    /// Takes an echo whose key was right. One of a beat that was not sent, or no newer than the last, has no effect.
    pub fn echo(&mut self, echo: &Echo, now: Time) {
        let Some(peer) = self.peers.get_mut(&echo.from) else { return };
        let is_new = peer.heard.is_none_or(|(_, _, seq)| seq < echo.seq);
        if echo.to != self.id || echo.seq > self.seq || echo.seq <= self.first || !is_new {
            return;
        }
        peer.heard = Some((now, echo.stamp, echo.seq));
        peer.mute = echo.mute;
    }

    /// Takes a letter whose key was right.
    pub fn letter(&mut self, from: NodeId, letter: Letter, kernel: &Kernel, now: Time) -> Vec<Action> {
        if from == self.id || !self.electorate.contains(from, now) {
            return Vec::new();
        }
        match letter {
            Letter::Ask => self.told(from).into_iter().collect(),
            Letter::Claims { version, addresses, said } => {
                self.claimed_by(from, Claims { version, addresses, said }, now)
            }
            Letter::Refusal { version, addresses } if version == self.version => {
                self.refused.extend(addresses.intersection(&self.claims));
                // Without a majority nothing is lost, and what another has is what keeps the majority away.
                let lost = !kernel.is_quorate(kernel.version(), now);
                let given_up = if lost { std::mem::take(&mut self.refused) } else { BTreeSet::new() };
                self.drop_claims(&given_up, now, now.saturating_add(self.times.patience))
            }
            Letter::Refusal { .. } => Vec::new(),
        }
    }

    /// Another node tells what it claims.
    fn claimed_by(&mut self, from: NodeId, told: Claims, now: Time) -> Vec<Action> {
        let (version, theirs) = (told.version, told.addresses.clone());
        let Some(peer) = self.peers.get_mut(&from).filter(|peer| peer.is_alive(self.times, now)) else {
            return Vec::new();
        };
        if version < peer.latest {
            return Vec::new();
        }
        peer.latest = version;
        // It speaks no more for what it does not tell any more.
        if let Some(supported) = &mut peer.supported {
            supported.addresses.retain(|address| theirs.contains(address));
        }
        peer.told = Some(told);
        // What is not wanted here any more goes to who asks for it.
        let handed_over = theirs.iter().filter(|one| self.claims.contains(*one) && !self.wanted.contains(*one));
        let handed_over = handed_over.copied().collect();
        let mut actions = self.drop_claims(&handed_over, now, now);
        actions.extend(self.review(now));
        if self.peers.get(&from).is_some_and(Peer::has_news) {
            let addresses = theirs.intersection(&self.taken(from)).copied().collect();
            actions.push(Action::Letter { to: from, letter: Letter::Refusal { version, addresses } });
        }
        actions
    }

    /// Addresses that a node cannot have, as others claim them that are supported, or this node.
    fn taken(&self, by_others_than: NodeId) -> BTreeSet<IpAddr> {
        self.supported(by_others_than).union(&self.claims).copied().collect()
    }

    /// Claims that are supported, but for those of a node.
    fn supported(&self, of_others_than: NodeId) -> BTreeSet<IpAddr> {
        let others = self.peers.iter().filter(|(id, _)| **id != of_others_than);
        let supported = others.filter_map(|(_, peer)| peer.supported.as_ref());
        supported.flat_map(|claims| &claims.addresses).copied().collect()
    }

    /// Withdraws support from the dead, whose leases have ended, and supports what is told and in nobody's way any more.
    fn review(&mut self, now: Time) -> Vec<Action> {
        for peer in self.peers.values_mut().filter(|peer| !peer.is_alive(self.times, now)) {
            (peer.supported, peer.told) = (None, None);
        }
        let news: Vec<NodeId> = self.peers.iter().filter(|(_, peer)| peer.has_news()).map(|(id, _)| *id).collect();
        let mut actions = Vec::new();
        for id in news {
            let taken = self.taken(id);
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            if peer.told.as_ref().is_some_and(|told| told.addresses.is_disjoint(&taken)) {
                peer.supported.clone_from(&peer.told);
                actions.extend(self.beat(id, now));
            }
        }
        actions
    }

    /// What is due. `kernel` is what the kernel holds now.
    pub fn tick(&mut self, kernel: &Kernel, now: Time) -> Vec<Action> {
        self.electorate.settle(now);
        self.peers.retain(|id, _| self.electorate.contains(*id, now));
        let mut actions = self.review(now);
        actions.extend(self.renew_claims(kernel, now));
        // This node's own vote is a grant like any other: not while it supports another that claims the same.
        let may_vote = self.claims.is_disjoint(&self.supported(self.id));
        if self.version > kernel.version() && may_vote && kernel.is_quorate(self.version, now) {
            actions.push(Action::Activate { version: self.version, claims: self.claims.clone() });
        }
        if now < self.next_beat {
            return actions;
        }
        self.next_beat = now.saturating_add(self.times.beat);
        for to in self.electorate.nodes(now) {
            if to == self.id {
                continue;
            }
            let peer = self.peers.entry(to).or_default();
            let (alive, known) = (peer.is_alive(self.times, now), peer.told.is_some());
            actions.extend(self.beat(to, now));
            if alive && !known {
                actions.push(Action::Letter { to, letter: Letter::Ask });
            }
            if alive && !kernel.is_granted(to, self.version) {
                actions.extend(self.told(to));
            }
        }
        actions
    }

    fn beat(&mut self, to: NodeId, now: Time) -> Option<Action> {
        self.seq += 1;
        let peer = self.peers.get(&to)?;
        // What an earlier agent of this node has granted is not known here: until it has run out, nothing is granted.
        let may = now >= self.started.saturating_add(self.times.silence) && peer.is_alive(self.times, now);
        let grant = peer.supported.as_ref().filter(|_| may).map(|supported| supported.version);
        let stamp = peer.heard.map(|(_, stamp, _)| stamp).unwrap_or_default();
        Some(Action::Beat(Beat { from: self.id, to, seq: self.seq, stamp, grant }))
    }

    fn told(&self, to: NodeId) -> Option<Action> {
        let (version, addresses, said) = (self.version, self.claims.clone(), self.said.clone()?);
        Some(Action::Letter { to, letter: Letter::Claims { version, addresses, said } })
    }

    fn tell_all(&self, now: Time) -> Vec<Action> {
        let others = self.electorate.nodes(now).into_iter().filter(|to| *to != self.id);
        others.filter_map(|to| self.told(to)).collect()
    }

    /// Claims what is wanted, and gives up what is not or what others do not let go.
    fn renew_claims(&mut self, kernel: &Kernel, now: Time) -> Vec<Action> {
        let (wanted, claims) = (&self.wanted, &self.claims);
        self.unwanted.retain(|address, _| claims.contains(address) && !wanted.contains(address));
        for address in claims.difference(wanted) {
            self.unwanted.entry(*address).or_insert(now);
        }
        let lingered = |address: &IpAddr, since: Time| {
            !kernel.claims().contains(address) || now >= since.saturating_add(self.times.linger)
        };
        let done = self.unwanted.iter().filter(|(address, since)| lingered(address, **since));
        let done: BTreeSet<IpAddr> = done.map(|(address, _)| *address).collect();
        let mut actions = self.drop_claims(&done, now, now);

        if self.version > kernel.version() && now >= self.claimed.saturating_add(self.times.patience) {
            let stuck = self.refused.difference(kernel.claims()).copied().collect();
            actions.extend(self.drop_claims(&stuck, now, now.saturating_add(self.times.patience)));
        }
        self.waiting.retain(|_, until| now < *until);
        // Who has an address gives it up when it is claimed: so nothing is claimed without a majority behind this node,
        // and what another has only when that majority has nothing else to agree to.
        let taken = self.supported(self.id);
        let (may_claim, may_take) = (kernel.is_quorate(kernel.version(), now), kernel.is_quorate(self.version, now));
        let may = |address: &&IpAddr| {
            !self.waiting.contains_key(*address) && (may_take || (may_claim && !taken.contains(*address)))
        };
        let fresh: BTreeSet<IpAddr> = self.wanted.difference(&self.claims).filter(may).copied().collect();
        if !fresh.is_empty() {
            self.claims.extend(fresh);
            self.renumber(now);
            actions.extend(self.tell_all(now));
        }
        actions
    }

    /// Gives addresses up, and claims them again only after a time.
    fn drop_claims(&mut self, addresses: &BTreeSet<IpAddr>, now: Time, again: Time) -> Vec<Action> {
        let given_up: BTreeSet<IpAddr> = self.claims.intersection(addresses).copied().collect();
        if given_up.is_empty() {
            return Vec::new();
        }
        self.claims.retain(|address| !given_up.contains(address));
        self.waiting.extend(given_up.iter().map(|address| (*address, again)));
        self.renumber(now);
        let mut actions = vec![Action::Retire(given_up)];
        actions.extend(self.tell_all(now));
        actions
    }

    fn renumber(&mut self, now: Time) {
        self.version += 1;
        self.claimed = now;
        self.refused.clear();
    }
}
