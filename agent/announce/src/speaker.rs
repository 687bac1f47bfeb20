//! What a node says of the addresses that it may speak for: on which links the kernel answers, and which packets go out
//! when.
//!
//! ```text
//! wanted: addresses, links ──►┐              ┌──► rows: the kernel answers, or watches only
//! somebody's claim ──────────►├─ a Watch for ┤
//! time ──────────────────────►┘  each place  └──► packets; conflicts
//! ```
//!
//! The first time that an address is wanted, it is probed before the kernel answers for it. From then on, until no Service has it
//! any more, it is the cluster's: on a link that is new, or comes back, or on another node, it is spoken for at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::probe::packet::{Mac, Packet};
use crate::probe::{Claim, Conflict, Standing, Start, Time, Watch};

/// An address on a link, by the link's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The address.
    pub address: IpAddr,
    /// The link.
    pub link: u32,
}

/// A link that can carry packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its MAC.
    pub mac: Mac,
    /// Another number than before: it was away for a moment.
    pub since: u32,
}

/// What a node is to speak for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The links, by number.
    pub links: BTreeMap<u32, Link>,
    /// The links for each address.
    pub addresses: BTreeMap<IpAddr, BTreeSet<u32>>,
    /// Addresses that Services have: what the cluster announced of them once needs no question any more.
    pub used: BTreeSet<IpAddr>,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The kernel is to have a row.
    Put {
        /// Where.
        place: Place,
        /// It answers; else it only tells who claims the address.
        answers: bool,
    },
    /// The kernel is to have no row.
    Remove(Place),
    /// A packet is to go out.
    Send {
        /// For which place.
        place: Place,
        /// It.
        packet: Packet,
    },
    /// Somebody is to be told of a conflict.
    Tell {
        /// Where it is.
        place: Place,
        /// What it is.
        conflict: Conflict,
    },
}

/// The state of a node.
#[derive(Debug)]
pub struct Speaker {
    watches: BTreeMap<Place, Watched>,
    /// What an earlier agent left, as long as nothing is known of what is wanted: with whether the kernel answers.
    left: BTreeMap<Place, bool>,
    /// Addresses that are the cluster's.
    ours: BTreeSet<IpAddr>,
    random: u64,
}

#[derive(Debug)]
struct Watched {
    link: Link,
    watch: Watch,
    /// When it began to stand as it does.
    since: Time,
}

impl Speaker {
    /// Begins with the rows that the kernel has and that are in force, and whether it answers there. `seed` is random.
    pub fn new(left: BTreeMap<Place, bool>, seed: u64) -> Self {
        let ours = left.iter().filter(|(_, answers)| **answers).map(|(place, _)| place.address).collect();
        Self { watches: BTreeMap::new(), left, ours, random: seed }
    }

    /// All rows that the kernel is to have, with whether it answers.
    pub fn rows(&self) -> BTreeMap<Place, bool> {
        let watched = self.watches.iter().map(|(place, watched)| (*place, watched.watch.speaks()));
        self.left.iter().map(|(place, answers)| (*place, *answers)).chain(watched).collect()
    }

    /// When [`Speaker::tick`] is next due, if ever.
    pub fn next(&self) -> Option<Time> {
        self.watches.values().filter_map(|watched| watched.watch.next()).min()
    }

    /// Other nodes of the cluster announce these addresses.
    pub fn announced_by_others(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.ours.extend(addresses);
    }

    /// Addresses that are announced somewhere.
    pub fn speaks_for(&self) -> BTreeSet<IpAddr> {
        self.watches.iter().filter(|(_, watched)| watched.watch.speaks()).map(|(place, _)| place.address).collect()
    }

    /// Of what an earlier agent left, only these addresses are still to be spoken for.
    pub fn give_up_all_but(&mut self, addresses: &BTreeSet<IpAddr>) -> Vec<Action> {
        let gone: Vec<Place> = self.left.keys().filter(|place| !addresses.contains(&place.address)).copied().collect();
        self.left.retain(|place, _| addresses.contains(&place.address));
        gone.into_iter().map(Action::Remove).collect()
    }

    /// Takes what is wanted from now on.
    pub fn want(&mut self, wanted: &Wanted, now: Time) -> Vec<Action> {
        let places: BTreeMap<Place, Link> = wanted.places().collect();
        self.ours.retain(|address| wanted.used.contains(address));
        let left = std::mem::take(&mut self.left);
        let gone = self.watches.keys().chain(left.keys()).filter(|place| !places.contains_key(place));
        let mut actions: Vec<Action> = gone.map(|place| Action::Remove(*place)).collect();
        self.watches.retain(|place, _| places.contains_key(place));
        for (place, link) in places {
            match self.watches.get_mut(&place) {
                Some(known) if known.link.mac == link.mac => {
                    if known.link.since != link.since {
                        known.watch.announce_again(now);
                    }
                    known.link = link;
                }
                _ => actions.push(self.begin(place, link, now)),
            }
        }
        actions.extend(self.tick(now));
        actions
    }

    /// Does what is due. Called late, it does what is due once.
    pub fn tick(&mut self, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        for (place, watched) in &mut self.watches {
            let place = *place;
            let spoke = watched.watch.speaks();
            let packets = watched.change(now, |watch| watch.tick(now));
            if watched.watch.speaks() && !spoke {
                self.ours.insert(place.address);
                actions.push(Action::Put { place, answers: true });
            }
            actions.extend(packets.into_iter().map(|packet| Action::Send { place, packet }));
        }
        actions
    }

    /// Somebody claims an address on a link. `ours` are the MACs of all nodes of the cluster.
    pub fn claimed(&mut self, place: Place, mac: Mac, claim: Claim, ours: &BTreeSet<Mac>, now: Time) -> Vec<Action> {
        let Some(watched) = self.watches.get_mut(&place) else { return Vec::new() };
        let Some((conflict, packets)) = watched.change(now, |watch| watch.claimed(mac, claim, ours, now)) else {
            return Vec::new();
        };
        let defence = packets.into_iter().map(|packet| Action::Send { place, packet });
        defence.chain([Action::Tell { place, conflict }]).collect()
    }

    /// These are the MACs of all nodes of the cluster, more of them than before.
    pub fn meet(&mut self, ours: &BTreeSet<Mac>, now: Time) {
        for watched in self.watches.values_mut() {
            watched.change(now, |watch| watch.meet(ours, now));
        }
    }

    /// How each place stands, and since when.
    pub fn standings(&self) -> impl Iterator<Item = (Place, Standing, Time)> {
        self.watches.iter().map(|(place, watched)| (*place, watched.watch.standing(), watched.since))
    }

    fn begin(&mut self, place: Place, link: Link, now: Time) -> Action {
        let start = if self.ours.contains(&place.address) { Start::AtOnce } else { Start::Probe };
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let watch = Watch::new(place.address, link.mac, start, self.random, now);
        let answers = watch.speaks();
        self.watches.insert(place, Watched { link, watch, since: now });
        Action::Put { place, answers }
    }
}

impl Watched {
    /// Does something to the watch, and notes when it stands otherwise.
    fn change<T>(&mut self, now: Time, change: impl FnOnce(&mut Watch) -> T) -> T {
        let before = self.watch.standing();
        let result = change(&mut self.watch);
        if self.watch.standing() != before {
            self.since = now;
        }
        result
    }
}

impl Wanted {
    /// Every address on each of its links that is there.
    fn places(&self) -> impl Iterator<Item = (Place, Link)> {
        self.addresses.iter().flat_map(|(address, links)| {
            let there = links.iter().filter_map(|link| Some((*link, *self.links.get(link)?)));
            there.map(|(link, properties)| (Place { address: *address, link }, properties))
        })
    }
}
