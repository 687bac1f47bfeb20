//! Is an address free, and does it stay so? Probes, announcements and defence, for one address on one link.
//!
//! ```text
//!            first in the cluster                    taken over from another node
//!                    │                                          │
//!                    ▼         nothing heard                    ▼
//!                 Probing ────────────────────────────────► Speaking: burst, then watch;
//!                  ▲   │                                    a rival is told once in 10 s whose it is
//!       after 60 s │   │ a rival is heard
//!                  │   ▼
//!                 Taken
//! ```
//!
//! IPv4 is probed as RFC 5227 says (2.1.1: three probes a second or two apart, then two seconds of patience), IPv6 as
//! RFC 4862 says (5.4: one solicitation, a second of patience). Unlike a host's own address, an address of the cluster cannot
//! be exchanged for another one: it is probed again once a minute (RFC 5227, `RATE_LIMIT_INTERVAL`), and defended without
//! end (2.4 (c)), but not more often than every 10 s.
//!
//! Packets of the cluster's own nodes are never a conflict: they say no more than that an address moves.
//!
//! [`packet`] has the bytes.

pub mod packet;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

pub use crate::hold::Time;
use packet::{Arp, Mac, Neighbor, Packet};

/// RFC 5227, 1.1: the longest time before the first probe.
const PROBE_WAIT: Duration = Duration::from_secs(1);
/// RFC 5227, 1.1: how many probes.
const PROBE_NUM: u32 = 3;
/// RFC 5227, 1.1: time between two probes at least, and what can be added (`PROBE_MAX` is 2 s).
const PROBE_MIN: Duration = Duration::from_secs(1);
const PROBE_SPREAD: Duration = Duration::from_secs(1);
/// RFC 5227, 1.1: patience after the last probe.
const ANNOUNCE_WAIT: Duration = Duration::from_secs(2);
/// RFC 5227, 1.1: from one defence to the next.
const DEFEND_INTERVAL: Duration = Duration::from_secs(10);
/// RFC 5227, 1.1: from one try to the next, once there were conflicts.
const RATE_LIMIT_INTERVAL: Duration = Duration::from_mins(1);
/// RFC 4862, 5.1 and RFC 4861, 10: `DupAddrDetectTransmits` and `RetransTimer`.
const DAD_TRANSMITS: u32 = 1;
const RETRANS_TIMER: Duration = Duration::from_secs(1);
/// As MetalLB bursts: some switches drop what repeats within a second (MetalLB's issue 172).
const BURST_INTERVAL: Duration = Duration::from_millis(1100);
const BURST: Duration = Duration::from_secs(5);

/// How an address begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The cluster announces it for the first time: is it free?
    Probe,
    /// Another node had it, and the clients wait.
    AtOnce,
}

/// Somebody who is no node of the cluster uses the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Who.
    pub mac: Mac,
    /// Whether the address is not announced for it; else it is, and defended.
    pub gives_way: bool,
}

/// How an address stands on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is asked whether it is free.
    Probing,
    /// Somebody else has it.
    Taken,
    /// The kernel may answer for it.
    Speaking,
}

/// How somebody claims an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It says that the address is its own.
    Uses,
    /// It asks whether anybody has the address, before it uses it.
    Asks,
}

/// An address on a link.
#[derive(Clone, Debug)]
pub struct Watch {
    address: IpAddr,
    mac: Mac,
    state: State,
    random: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many probes are sent; at `next` there is another one, or an end of the patience.
    Probing { sent: u32, next: Time },
    /// Somebody else has it.
    Taken { by: Mac, again: Time },
    /// It is announced again at `next`, not after `until`.
    Speaking { next: Option<Time>, until: Time, defended: Option<Time> },
}

impl Watch {
    /// An address on a link with a MAC; `seed` is random.
    pub fn new(address: IpAddr, mac: Mac, start: Start, seed: u64, now: Time) -> Self {
        let mut watch = Self { address, mac, state: speaking(now, None), random: seed };
        if start == Start::Probe {
            watch.state = watch.probing(now);
        }
        watch
    }

    /// Whether the kernel may answer for it.
    pub fn speaks(&self) -> bool {
        self.standing() == Standing::Speaking
    }

    /// How the address stands.
    pub fn standing(&self) -> Standing {
        match self.state {
            State::Probing { .. } => Standing::Probing,
            State::Taken { .. } => Standing::Taken,
            State::Speaking { .. } => Standing::Speaking,
        }
    }

    /// When [`Watch::tick`] is next due, if ever.
    pub fn next(&self) -> Option<Time> {
        match self.state {
            State::Probing { next, .. } | State::Taken { again: next, .. } => Some(next),
            State::Speaking { next, .. } => next,
        }
    }

    /// What is to be sent. Called late, it sends what is due once and does not catch up.
    pub fn tick(&mut self, now: Time) -> Vec<Packet> {
        if self.next().is_none_or(|next| now < next) {
            return Vec::new();
        }
        match self.state {
            State::Probing { sent, .. } if sent < self.probes() => {
                let sent = sent + 1;
                self.state = State::Probing { sent, next: now.saturating_add(self.patience(sent)) };
                vec![self.probe()]
            }
            State::Probing { .. } => {
                self.state = speaking(now, None);
                self.tick(now)
            }
            State::Taken { .. } => {
                self.state = self.probing(now);
                Vec::new()
            }
            State::Speaking { until, defended, .. } => {
                let next = Some(now.saturating_add(BURST_INTERVAL)).filter(|next| *next <= until);
                self.state = State::Speaking { next, until, defended };
                self.announcement()
            }
        }
    }

    /// The link came back, with or without carrier before: everybody is told again.
    pub fn announce_again(&mut self, now: Time) {
        if let State::Speaking { defended, .. } = self.state {
            self.state = speaking(now, defended);
        }
    }

    /// These are the MACs of all nodes of the cluster. What one of them had, before it was known as one, is asked for anew.
    pub fn meet(&mut self, ours: &BTreeSet<Mac>, now: Time) {
        if matches!(self.state, State::Taken { by, .. } if ours.contains(&by)) {
            self.state = self.probing(now);
        }
    }

    /// Takes a packet that came in on the link; as [`Watch::claimed`].
    pub fn heard(&mut self, packet: &Packet, ours: &BTreeSet<Mac>, now: Time) -> Option<(Conflict, Vec<Packet>)> {
        let (mac, claim) = claim(self.address, packet)?;
        self.claimed(mac, claim, ours, now)
    }

    /// Somebody on the link claims the address. `ours` are the MACs of all nodes of the cluster. What another asks before it
    /// uses an address is a conflict only while this side asks too; later it gets an answer, and gives way.
    ///
    /// # Returns
    /// A conflict, if it is one, and what is to be sent against it.
    pub fn claimed(
        &mut self,
        mac: Mac,
        claim: Claim,
        ours: &BTreeSet<Mac>,
        now: Time,
    ) -> Option<(Conflict, Vec<Packet>)> {
        let probing = matches!(self.state, State::Probing { .. });
        if mac == self.mac || ours.contains(&mac) || (claim == Claim::Asks && !probing) {
            return None;
        }
        match self.state {
            State::Probing { .. } => {
                self.state = State::Taken { by: mac, again: now.saturating_add(RATE_LIMIT_INTERVAL) };
                Some((Conflict { mac, gives_way: true }, Vec::new()))
            }
            State::Taken { .. } => None,
            State::Speaking { next, until, defended } => {
                let may = defended.is_none_or(|last| now >= last.saturating_add(DEFEND_INTERVAL));
                let packets = if may { self.announcement().into_iter().take(1).collect() } else { Vec::new() };
                let defended = if may { Some(now) } else { defended };
                self.state = State::Speaking { next, until, defended };
                Some((Conflict { mac, gives_way: false }, packets))
            }
        }
    }

    fn probes(&self) -> u32 {
        if self.address.is_ipv4() { PROBE_NUM } else { DAD_TRANSMITS }
    }

    fn patience(&mut self, sent: u32) -> Duration {
        if self.address.is_ipv6() {
            return RETRANS_TIMER;
        }
        if sent < PROBE_NUM { PROBE_MIN + self.up_to(PROBE_SPREAD) } else { ANNOUNCE_WAIT }
    }

    /// Nodes that start together do not ask together: up to a second passes first, in IPv6 too (RFC 4862, 5.4.2).
    fn probing(&mut self, now: Time) -> State {
        State::Probing { sent: 0, next: now.saturating_add(self.up_to(PROBE_WAIT)) }
    }

    fn probe(&self) -> Packet {
        match self.address {
            IpAddr::V4(address) => Packet::Arp(Arp::probe(self.mac, address)),
            IpAddr::V6(address) => Packet::Neighbor(Neighbor::probe(self.mac, address)),
        }
    }

    /// In IPv4 a request and a reply, as some hosts heed only one of them.
    fn announcement(&self) -> Vec<Packet> {
        match self.address {
            IpAddr::V4(address) => {
                let request = Arp::announcement(self.mac, address);
                vec![Packet::Arp(request), Packet::Arp(Arp { is_reply: true, ..request })]
            }
            IpAddr::V6(address) => vec![Packet::Neighbor(Neighbor::unsolicited(self.mac, address))],
        }
    }

    /// A random time (`SplitMix64`, in the public domain), in whole milliseconds.
    fn up_to(&mut self, limit: Duration) -> Duration {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let limit = limit.as_millis() as u64 + 1;
        Duration::from_millis((mixed ^ (mixed >> 31)) % limit)
    }
}

/// Who claims an address by a packet, if anybody does.
fn claim(address: IpAddr, packet: &Packet) -> Option<(Mac, Claim)> {
    match (packet, address) {
        (Packet::Arp(arp), IpAddr::V4(address)) if arp.sender == address => Some((arp.sender_mac, Claim::Uses)),
        (Packet::Arp(arp), IpAddr::V4(address)) => {
            (arp.is_probe() && arp.target == address).then_some((arp.sender_mac, Claim::Asks))
        }
        (Packet::Neighbor(neighbor), IpAddr::V6(address)) => match *neighbor {
            Neighbor::Advertisement { target, link, from, .. } => {
                (target == address).then_some((link.unwrap_or(from), Claim::Uses))
            }
            Neighbor::Solicitation { target, source, from, .. } => {
                (target == address && source.is_unspecified()).then_some((from, Claim::Asks))
            }
        },
        _ => None,
    }
}

fn speaking(now: Time, defended: Option<Time>) -> State {
    State::Speaking { next: Some(now), until: now.saturating_add(BURST), defended }
}
