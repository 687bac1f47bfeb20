//! One round of decisions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use culvert_model::{Family, ServiceKey};

use super::choice::{Refusal, Verdict, list};
use super::{Allocator, Assignment, Decision, Outcome, StatusIs};
use crate::config::Config;
use crate::event::{Event, Failure, Reason};
use crate::waiting::{Need, Place};
use crate::wish::{Port, Rank, Role, Share, Wish};

/// How a Service used an address before the round.
type Before = (Assignment, Vec<Port>, Share);

/// The state of a round.
pub(super) struct Round<'a> {
    allocator: &'a mut Allocator,
    config: &'a Config,
    before: BTreeMap<ServiceKey, Option<Before>>,
    events: BTreeMap<ServiceKey, Vec<Event>>,
    /// Services to be considered, besides those to whom something is offered.
    queue: BTreeSet<Rank>,
    /// Free addresses are offered to those who wait at these places, after the one who was asked last.
    offers: BTreeMap<Place, Option<Rank>>,
}

impl<'a> Round<'a> {
    /// Decides about all that changed, and about those whom that helps.
    pub(super) fn run(allocator: &'a mut Allocator, config: &'a Config) -> Vec<Decision> {
        let changed = std::mem::take(&mut allocator.changed);
        let mut ranks: Vec<Rank> = changed.iter().filter_map(|key| allocator.rank(key)).collect();
        ranks.sort_unstable();
        let (before, events) = (BTreeMap::new(), BTreeMap::new());
        let mut round = Self { allocator, config, before, events, queue: BTreeSet::new(), offers: BTreeMap::new() };
        for place in std::mem::take(&mut round.allocator.left) {
            round.offer(&place);
        }
        round.lift(&ranks);
        // Those that hold something come before those that only claim it.
        for rank in &ranks {
            round.keep(rank);
        }
        for rank in &ranks {
            round.claim(rank);
        }
        for rank in &ranks {
            round.release(rank);
        }
        for rank in &ranks {
            if round.entry(&rank.key).is_some_and(|entry| entry.wish.role == Role::Ours && !entry.foreign) {
                round.queue.insert(rank.clone());
            }
        }
        while let Some(rank) = round.next() {
            round.give(&rank);
        }
        round.decisions()
    }

    fn entry(&self, key: &ServiceKey) -> Option<&super::Entry> {
        self.allocator.services.get(key)
    }

    /// Lifts what changed out of the ledger, so that Services that change together do not stand in each other's way.
    fn lift(&mut self, ranks: &[Rank]) {
        for Rank { key, .. } in ranks {
            let held = self.entry(key).and_then(|entry| entry.held.clone());
            let before = held.map(|held| {
                let entry = held.addresses.first().and_then(|address| self.allocator.ledger.entry(*address, key));
                let (ports, share) = entry.map(|(ports, share)| (ports.to_vec(), share.clone())).unwrap_or_default();
                self.allocator.ledger.strike(key, &held.addresses);
                (held, ports, share)
            });
            self.before.insert(key.clone(), before);
        }
    }

    /// Lets a Service keep what it holds, if it may.
    fn keep(&mut self, rank: &Rank) {
        self.allocator.considered += 1;
        let declared = self.allocator.settings.status == StatusIs::Declared;
        let Some(entry) = self.allocator.services.get_mut(&rank.key) else { return };
        let Some(held) = entry.held.take() else { return };
        if declared && entry.claims && !entry.status.is_empty() {
            // What it declares now is what counts.
            return;
        }
        if entry.wish.role != Role::Ours {
            entry.failure = None;
            return;
        }
        let wish = entry.wish.clone();
        self.judge(&wish, &held.addresses);
    }

    /// Lets a Service have what its status claims, if it may.
    fn claim(&mut self, rank: &Rank) {
        let Some(entry) = self.allocator.services.get_mut(&rank.key) else { return };
        if entry.wish.role != Role::Ours {
            entry.failure = None;
            entry.foreign = false;
            return;
        }
        if !std::mem::take(&mut entry.claims) {
            return;
        }
        let (wish, status) = (entry.wish.clone(), entry.status.clone());
        let addresses: Option<Vec<IpAddr>> = status.iter().copied().collect();
        let declared = self.allocator.settings.status == StatusIs::Declared;
        let of_pools =
            |address: &Option<IpAddr>| address.is_some_and(|one| self.allocator.ledger.pool_of(one).is_some());
        let foreign = declared && !status.is_empty() && !status.iter().any(of_pools);
        let Some(entry) = self.allocator.services.get_mut(&rank.key) else { return };
        entry.foreign = foreign;
        if foreign {
            entry.failure = None;
            self.allocator.waiting.remove(&rank.key);
            return;
        }
        match addresses {
            Some(addresses) if addresses.is_empty() => self.claim_restored(&wish),
            Some(addresses) => {
                if self.entry(&rank.key).is_some_and(|entry| entry.held.is_none()) {
                    self.judge(&wish, &addresses);
                }
            }
            None => {
                let message = "the status lists something that is no address".to_owned();
                self.tell(&rank.key, Event { reason: Reason::NoAddressFamily, message });
            }
        }
    }

    fn claim_restored(&mut self, wish: &Wish) {
        let key = &wish.rank.key;
        if self.entry(key).is_some_and(|entry| entry.held.is_some()) {
            return;
        }
        let Some(restored) = self.allocator.restored.get(key).cloned() else { return };
        self.judge(wish, &restored.addresses);
    }

    fn judge(&mut self, wish: &Wish, addresses: &[IpAddr]) {
        let key = &wish.rank.key;
        match self.allocator.verdict(wish, addresses) {
            Verdict::Keeps(pool) => self.enter(wish, Assignment { addresses: addresses.to_vec(), pool }),
            Verdict::KeepsDespite(pool, failure) => {
                self.enter(wish, Assignment { addresses: addresses.to_vec(), pool });
                self.fail(key, failure);
            }
            Verdict::WantsOther => {}
            Verdict::MayNot(failure) => {
                let event = failure.event();
                self.tell(key, event);
            }
        }
    }

    /// Offers what a Service used before the round and does not any more, to those whom it helps.
    fn release(&mut self, rank: &Rank) {
        let Some(Some((held, ports, share))) = self.before.get(&rank.key).cloned() else { return };
        let entry = self.entry(&rank.key).filter(|entry| entry.held.as_ref() == Some(&held));
        if entry.is_some_and(|entry| entry.wish.ports == ports && entry.wish.share == share) {
            return;
        }
        for address in &held.addresses {
            self.offer(&Place::Address(*address));
        }
        let key = self.entry(&rank.key).map(|entry| Arc::clone(&entry.wish.share.key));
        for key in [Some(share.key), key].into_iter().flatten().filter(|key| !key.is_empty()) {
            self.offer(&Place::Key(key));
        }
    }

    /// Something changed at a place: those who wait there are considered again.
    fn offer(&mut self, place: &Place) {
        self.queue.extend(self.allocator.waiting.at(place).cloned());
        let Place::Address(address) = place else { return };
        if self.allocator.ledger.is_used(*address) {
            return;
        }
        let Some(pool) = self.allocator.ledger.pool_of(*address) else { return };
        for need in Need::helped_by(Family::of(*address)) {
            self.offers.insert(Place::Pool(Arc::clone(&pool.name), need), None);
        }
    }

    /// The next Service to consider: the oldest of those in the queue and of those to whom a free address is offered.
    fn next(&mut self) -> Option<Rank> {
        let ledger = &self.allocator.ledger;
        self.offers.retain(|place, _| match place {
            Place::Pool(pool, need) => need.met(|family| ledger.has_free(pool, family)),
            Place::Address(_) | Place::Key(_) => false,
        });
        let waiting = &self.allocator.waiting;
        let offered = self.offers.iter().filter_map(|(place, after)| waiting.next(place, after.as_ref()));
        let next = offered.chain(self.queue.first()).min().cloned()?;
        self.queue.remove(&next);
        for (place, after) in &mut self.offers {
            if waiting.next(place, after.as_ref()) == Some(&next) {
                *after = Some(next.clone());
            }
        }
        Some(next)
    }

    /// Gives a Service what it lacks, or lets it wait.
    fn give(&mut self, rank: &Rank) {
        self.allocator.considered += 1;
        let Some(entry) = self.entry(&rank.key) else { return };
        let (wish, held) = (entry.wish.clone(), entry.held.clone());
        if !self.before.contains_key(&rank.key) {
            let before = held.clone().map(|held| (held, wish.ports.clone(), wish.share.clone()));
            self.before.insert(rank.key.clone(), before);
        }
        match held {
            Some(held) => self.give_second(&wish, held),
            None => self.give_first(&wish),
        }
    }

    fn give_first(&mut self, wish: &Wish) {
        let key = &wish.rank.key;
        match self.allocator.choose(wish, self.config) {
            Ok(assignment) => {
                self.allocator.waiting.remove(key);
                self.tell(key, allocated("got", &assignment));
                self.enter(wish, assignment.clone());
                self.invite(wish);
                // It may have got one address and prefer two.
                self.give_second(wish, assignment);
            }
            Err(Refusal { failure, waits_for }) => {
                self.allocator.waiting.set(&wish.rank, waits_for);
                self.fail(key, failure);
            }
        }
    }

    fn give_second(&mut self, wish: &Wish, held: Assignment) {
        let key = &wish.rank.key;
        match self.allocator.second(wish, &held) {
            None => {
                self.allocator.waiting.remove(key);
                self.single(key, None);
            }
            Some(Ok(address)) => {
                let Assignment { mut addresses, pool } = held;
                addresses.push(address);
                self.allocator.waiting.remove(key);
                self.tell(
                    key,
                    Event { reason: Reason::Allocated, message: format!("got a second address, {address}") },
                );
                self.enter(wish, Assignment { addresses, pool });
                self.single(key, None);
                self.invite(wish);
            }
            Some(Err(Refusal { failure, waits_for })) => {
                self.allocator.waiting.set(&wish.rank, waits_for);
                if self.single(key, Some(failure.message.clone())) {
                    self.tell(key, failure.event());
                }
            }
        }
    }

    /// An address has a new user who shares: those of the same key who were refused may join.
    fn invite(&mut self, wish: &Wish) {
        if !wish.share.key.is_empty() {
            self.offer(&Place::Key(Arc::clone(&wish.share.key)));
        }
    }

    fn enter(&mut self, wish: &Wish, assignment: Assignment) {
        self.allocator.ledger.enter(wish, &assignment.addresses);
        let Some(entry) = self.allocator.services.get_mut(&wish.rank.key) else { return };
        entry.held = Some(assignment);
        entry.failure = None;
    }

    /// Notes why a Service has not what it asks for; it is told once.
    fn fail(&mut self, key: &ServiceKey, failure: Failure) {
        let Some(entry) = self.allocator.services.get_mut(key) else { return };
        if entry.failure.as_ref() == Some(&failure) {
            return;
        }
        let event = failure.event();
        entry.failure = Some(failure);
        self.tell(key, event);
    }

    /// Notes why a Service has one address only; `true` if that is new.
    fn single(&mut self, key: &ServiceKey, why: Option<String>) -> bool {
        let Some(entry) = self.allocator.services.get_mut(key) else { return false };
        let new = entry.single != why;
        entry.single = why;
        new
    }

    fn tell(&mut self, key: &ServiceKey, event: Event) {
        let events = self.events.entry(key.clone()).or_default();
        if !events.contains(&event) {
            events.push(event);
        }
    }

    fn decisions(mut self) -> Vec<Decision> {
        let gone = std::mem::take(&mut self.allocator.gone);
        // For good: others have come back.
        let for_good = gone.iter().filter(|key| !self.allocator.services.contains_key(key));
        let nothing =
            |key: &ServiceKey| Decision { service: key.clone(), outcome: Outcome::Nothing, events: Vec::new() };
        let mut decisions: BTreeMap<ServiceKey, Decision> = for_good.map(|key| (key.clone(), nothing(key))).collect();
        for (key, before) in std::mem::take(&mut self.before) {
            let Some(entry) = self.allocator.services.get(&key) else { continue };
            let mut events = self.events.remove(&key).unwrap_or_default();
            let before = before.map(|(held, ..)| held);
            let moved = entry.held != before || gone.contains(&key);
            let outcome = match &entry.held {
                Some(held) => Outcome::Holds(held.clone()),
                None if entry.foreign || entry.wish.role == Role::OfOthers => Outcome::NotOurs,
                None => Outcome::Nothing,
            };
            if !events.is_empty() && moved {
                events.extend(entry.wish.deprecated.iter().map(|annotation| deprecated(annotation)));
            }
            if moved || !events.is_empty() {
                decisions.insert(key.clone(), Decision { service: key, outcome, events });
            }
        }
        decisions.into_values().collect()
    }
}

fn allocated(verb: &str, assignment: &Assignment) -> Event {
    let message = format!("{verb} {} of pool {}", list(&assignment.addresses), assignment.pool);
    Event { reason: Reason::Allocated, message }
}

fn deprecated(annotation: &str) -> Event {
    let message = format!("the annotation {annotation} has a prefix that is going away: metallb.io/ takes its place");
    Event { reason: Reason::DeprecatedAnnotation, message }
}
