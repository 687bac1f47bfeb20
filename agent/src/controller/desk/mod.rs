//! What is known, what was decided, and what is left to write. Pure.
//!
//! ```text
//! source's changes ─┬─► resources ─► configuration: the last valid one ─┐
//!                   └─► Services ── whose are they? ── ours ──► allocator ─► decisions ─► pending: Services to look at
//!                          ▲                                                                │
//!                          └── answers of the API server ◄── patches ◄── what is / what should be ──┘
//! ```
//!
//! - Nothing is decided before everything was delivered once: nobody gets what an object still to come may hold.
//! - A Service's status when it is first seen is what it holds. From then on every state that it takes must be one that was written
//!   here; another one is another writer's, and the Service is left alone until that has gone.
//! - An address is written only when no other Service's status lists it any more that does not share it: what gives up an address is
//!   written first.
//! - A Service that has an address of none of the pools, and no mark of a controller of addresses, is somebody else's from the start.

mod listing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;

use culvert_model::objects::{LoadBalancerIngress, Service};
use culvert_model::{ServiceKey, parse_address};
use culvert_pools::{Allocator, Config, Decision, Finding, PoolStatus, Resource, Settings, StatusIs};
use culvert_source::{Change, Id, Kind, Object};
use serde_json::Value;

use self::listing::Listing;
use super::patch::{self, Should, has_finalizer, ingress, ingress_of, is_marked, same};
use crate::configuration::Configuration;
use crate::objects::service_key;
use crate::scope::Scope;

/// A status that is emptied is filled again so often: the API server does that to a Service that is no LoadBalancer for a moment, which may
/// go by unseen. Whoever does it more often is another writer.
const EMPTIED: u32 = 10;

/// Something that its user is told of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Which Service.
    pub service: ServiceKey,
    /// The event's reason.
    pub reason: &'static str,
    /// Whether the event's type is `Warning`; else it is `Normal`.
    pub warning: bool,
    /// One sentence.
    pub message: String,
}

/// A patch of a Service's status.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// Which Service.
    pub service: ServiceKey,
    /// The merge patch.
    pub patch: Value,
}

/// The state of the controller while it leads.
#[derive(Debug)]
pub struct Desk {
    scope: Scope,
    configuration: Configuration,
    complete: bool,
    allocator: Allocator,
    services: BTreeMap<ServiceKey, Seen>,
    /// Services of which it is not decided whose they are.
    unsettled: BTreeSet<ServiceKey>,
    /// Services that may have to be written.
    pending: BTreeSet<ServiceKey>,
    /// Services that are being written.
    busy: BTreeSet<ServiceKey>,
    listing: Listing,
    /// Pools whose status is to be written, by namespace and name.
    pools: BTreeMap<(String, String), PoolStatus>,
    notices: Vec<Notice>,
}

/// A Service.
#[derive(Debug)]
struct Seen {
    service: Arc<Service>,
    stand: Stand,
    /// States that its status may have by our doing: the last one that was seen, and what is being written.
    known: Vec<Vec<LoadBalancerIngress>>,
    /// It was written, or had the marks of a controller of addresses: its finalizer may be ours, whoever takes the mark away.
    touched: bool,
    /// How often somebody emptied its status.
    emptied: u32,
}

/// What there is to do about a Service.
enum Step {
    /// To write it.
    Write(Value),
    /// To wait for another one.
    Wait,
    /// Nothing.
    Nothing,
}

/// Whose a Service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    /// It asks for no address of ours, or it is not decided.
    Open,
    /// Ours.
    Ours,
    /// Its status was somebody else's when it was first seen.
    Found,
    /// Another writer changed its status.
    Taken,
}

impl Desk {
    /// Nothing is known.
    pub fn new(scope: Scope) -> Self {
        let allocator = Allocator::new(Settings { class: scope.class.clone(), status: StatusIs::Record });
        Self {
            configuration: Configuration::of(scope.config_namespaces.clone()),
            scope,
            complete: false,
            allocator,
            services: BTreeMap::new(),
            unsettled: BTreeSet::new(),
            pending: BTreeSet::new(),
            busy: BTreeSet::new(),
            listing: Listing::default(),
            pools: BTreeMap::new(),
            notices: Vec::new(),
        }
    }

    /// Takes a change of the source.
    pub fn take(&mut self, change: Change) {
        match change {
            Change::Upsert(Object::Service(service)) => self.see(service),
            Change::Remove(Id { kind: Kind::Service, key }) => self.forget(&service_key(&key)),
            Change::Upsert(Object::Addresses(Resource::Namespace(namespace))) => {
                self.allocator.absorb(culvert_pools::Change::Namespace(namespace));
            }
            Change::Remove(Id { kind: Kind::Addresses(culvert_pools::Kind::Namespace), key }) => {
                self.allocator.absorb(culvert_pools::Change::NamespaceGone(key.name.to_string()));
            }
            change => self.configuration.take(&change),
        }
    }

    /// Takes a Service as the answer to a write has it, or to a question after it; nothing is under way then. One that the source does not
    /// know, or not any more, is nothing to go by.
    pub fn heard(&mut self, service: Arc<Service>) {
        if !self.is_known(&service) {
            return;
        }
        let key = service.key();
        self.see(service);
        // It may be older than what was seen meanwhile.
        if let Some(seen) = self.services.get(&key)
            && seen.stand == Stand::Ours
        {
            let now = ingress(&seen.service);
            self.set_known(&key, vec![now]);
        }
    }

    /// Takes a Service as the source has it.
    fn see(&mut self, service: Arc<Service>) {
        let key = service.key();
        if self.services.get(&key).is_some_and(|seen| seen.service.metadata.uid != service.metadata.uid) {
            // Another one of the same name.
            self.forget(&key);
        }
        let ours = self.asks_us(&service);
        let now = ingress(&service);
        let touched = is_marked(&service) && has_finalizer(&service);
        self.pending.insert(key.clone());
        let Some(seen) = self.services.get_mut(&key) else {
            let seen = Seen { service, stand: Stand::Open, known: Vec::new(), touched, emptied: 0 };
            self.services.insert(key.clone(), seen);
            self.set_known(&key, vec![now]);
            if ours {
                self.unsettled.insert(key);
            }
            return;
        };
        if !is_newer(&service, &seen.service) {
            return;
        }
        seen.service = Arc::clone(&service);
        seen.touched |= touched;
        if !ours {
            let stand = mem::replace(&mut seen.stand, Stand::Open);
            self.set_known(&key, vec![now]);
            self.unsettled.remove(&key);
            if matches!(stand, Stand::Ours | Stand::Taken) {
                self.allocator.absorb(culvert_pools::Change::Service(service));
            }
            return;
        }
        let mut known = seen.known.iter().any(|known| same(known, &now));
        if !known && now.is_empty() && seen.stand == Stand::Ours && seen.emptied < EMPTIED {
            seen.emptied += 1;
            seen.known.push(now.clone());
            known = true;
        }
        match seen.stand {
            Stand::Ours | Stand::Taken => {
                self.allocator.absorb(culvert_pools::Change::Service(service));
                let before = mem::replace(&mut seen.stand, if known { Stand::Ours } else { Stand::Taken });
                if known && !self.busy.contains(&key) {
                    self.set_known(&key, vec![now]);
                } else if before == Stand::Ours && !known {
                    let message =
                        "another writer changed the addresses in its status: it is left alone until they are back";
                    self.notices.push(warning(key, "StatusOverwritten", message));
                }
            }
            Stand::Open | Stand::Found => {
                self.set_known(&key, vec![now]);
                self.unsettled.insert(key);
            }
        }
    }

    /// A Service is not there any more.
    pub fn forget(&mut self, key: &ServiceKey) {
        self.set_known(key, Vec::new());
        if self.services.remove(key).is_some() {
            self.pending.remove(key);
            self.unsettled.remove(key);
            self.allocator.absorb(culvert_pools::Change::ServiceGone(key.clone()));
        }
    }

    /// Decides about everything that was taken. `complete`: the source has delivered everything.
    pub fn decide(&mut self, complete: bool) {
        self.complete |= complete;
        if !self.complete {
            return;
        }
        self.configure();
        let Some(config) = self.configuration.config().cloned() else { return };
        for key in mem::take(&mut self.unsettled) {
            self.settle(key, &config);
        }
        let settled = self.allocator.settle();
        for Decision { service, events, .. } in settled.decisions {
            for event in events {
                let (reason, warning) = (event.reason.name(), event.reason.is_warning());
                self.notices.push(Notice { service: service.clone(), reason, warning, message: event.message });
            }
            self.pending.insert(service);
        }
        for (name, status) in settled.pools {
            let (Some(status), Some(pool)) = (status, config.pools.get(&name)) else { continue };
            self.pools.insert((pool.namespace.to_string(), name.to_string()), status);
        }
    }

    /// The next Service to write. Until its answer is in, nothing more of it is written.
    pub fn next(&mut self) -> Option<Work> {
        loop {
            let key = self.pending.difference(&self.busy).next()?.clone();
            self.pending.remove(&key);
            match self.step(&key) {
                Step::Write(patch) => {
                    self.busy.insert(key.clone());
                    return Some(Work { service: key, patch });
                }
                Step::Wait => {}
                // Whoever waits for it may wait in vain.
                Step::Nothing => self.release(&key),
            }
        }
    }

    /// The answer to a write is in.
    pub fn answered(&mut self, key: &ServiceKey) {
        self.busy.remove(key);
    }

    /// A Service is to be looked at again.
    pub fn again(&mut self, key: ServiceKey) {
        self.pending.insert(key);
    }

    /// Pools whose status is to be written.
    pub fn take_pools(&mut self) -> BTreeMap<(String, String), PoolStatus> {
        mem::take(&mut self.pools)
    }

    /// What is to be told.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        mem::take(&mut self.notices)
    }

    /// How full the pools are.
    pub fn usage(&self) -> BTreeMap<Arc<str>, PoolStatus> {
        self.allocator.pools()
    }

    /// What is wrong with the configuration; the last good one is in force.
    pub fn findings(&self) -> &[Finding] {
        self.configuration.findings()
    }

    /// Whether anything can be said of the configuration.
    pub fn is_checked(&self) -> bool {
        self.complete
    }

    /// Whether a configuration is in force.
    pub fn is_configured(&self) -> bool {
        self.configuration.config().is_some()
    }

    fn step(&mut self, key: &ServiceKey) -> Step {
        let Some(mut should) = self.should(key) else { return Step::Nothing };
        if let Should::Hold(held) = &should
            && let Some(other) = self.in_the_way(key, &held.addresses)
        {
            self.listing.wait(key.clone(), other);
            if !self.lists_more_than(key, &held.addresses) {
                return Step::Wait;
            }
            // The other one may wait for this one.
            should = Should::Nothing;
        }
        let Some(seen) = self.services.get_mut(key) else { return Step::Nothing };
        let Some(patch) = patch::patch(&seen.service, &should) else { return Step::Nothing };
        seen.touched = true;
        // It may be seen before its answer is.
        let becomes = ingress_of(&should);
        if !seen.known.iter().any(|known| same(known, &becomes)) {
            let known = seen.known.iter().cloned().chain([becomes]).collect();
            self.set_known(key, known);
        }
        Step::Write(patch)
    }

    /// Another Service whose status may list one of these addresses, and should not.
    fn in_the_way(&self, key: &ServiceKey, addresses: &[IpAddr]) -> Option<ServiceKey> {
        let keeps = |other: &ServiceKey, address: &IpAddr| match self.should(other) {
            Some(Should::Hold(held)) => held.addresses.contains(address),
            Some(Should::Nothing) => false,
            // Nothing is written there, so that nothing can be waited for.
            None => true,
        };
        let mut others = self.listing.others(key, addresses);
        others.find(|(address, other)| !keeps(other, address)).map(|(_, other)| other.clone())
    }

    /// Whether a Service's status may list what it does not hold.
    fn lists_more_than(&self, key: &ServiceKey, addresses: &[IpAddr]) -> bool {
        self.services.get(key).is_some_and(|seen| listed(&seen.known).iter().any(|one| !addresses.contains(one)))
    }

    /// Whoever waits for a Service looks again.
    fn release(&mut self, key: &ServiceKey) {
        self.pending.extend(self.listing.release(key));
    }

    /// The states that a Service's status may have are other ones.
    fn set_known(&mut self, key: &ServiceKey, known: Vec<Vec<LoadBalancerIngress>>) {
        let Some(seen) = self.services.get_mut(key) else { return };
        let before = listed(&mem::replace(&mut seen.known, known));
        let now = listed(&seen.known);
        self.listing.change(key, &before, &now);
        self.release(key);
    }

    /// What a Service's status should be; `None` if it is to be left alone.
    fn should(&self, key: &ServiceKey) -> Option<Should> {
        let seen = self.services.get(key)?;
        let leaves = seen.service.spec.kind != "LoadBalancer" || seen.service.metadata.deletion_timestamp.is_some();
        if leaves {
            return seen.touched.then_some(Should::Nothing);
        }
        if seen.stand != Stand::Ours {
            return None;
        }
        Some(self.allocator.assignment(key).map_or(Should::Nothing, |held| Should::Hold(held.clone())))
    }

    fn is_known(&self, service: &Service) -> bool {
        let seen = self.services.get(&service.key());
        seen.is_some_and(|seen| seen.service.metadata.uid == service.metadata.uid)
    }

    fn asks_us(&self, service: &Service) -> bool {
        self.scope.covers(service) && service.metadata.deletion_timestamp.is_none()
    }

    /// Decides whose a Service is that asks us.
    fn settle(&mut self, key: ServiceKey, config: &Config) {
        let Some(seen) = self.services.get_mut(&key) else { return };
        let status = ingress(&seen.service);
        let of_pools =
            |one: &LoadBalancerIngress| parse_address(&one.ip).is_some_and(|address| config.pool_of(address).is_some());
        if status.is_empty() || is_marked(&seen.service) || status.iter().any(of_pools) {
            seen.stand = Stand::Ours;
            self.allocator.absorb(culvert_pools::Change::Service(Arc::clone(&seen.service)));
            self.pending.insert(key);
        } else if mem::replace(&mut seen.stand, Stand::Found) != Stand::Found {
            let message =
                "its status lists what is of no pool, and another writer's: it is left alone until that has gone";
            self.notices.push(warning(key, "StatusOfOthers", message));
        }
    }

    /// Puts the resources in force, if they are valid together.
    fn configure(&mut self) {
        if !self.configuration.settle() {
            return;
        }
        if let Some(config) = self.configuration.config() {
            self.allocator.absorb(culvert_pools::Change::Config(Arc::clone(config)));
            // Their addresses may be of a pool now.
            let found = self.services.iter().filter(|(_, seen)| seen.stand == Stand::Found);
            self.unsettled.extend(found.map(|(key, _)| key.clone()));
        }
    }
}

/// The addresses that any of these states lists.
fn listed(states: &[Vec<LoadBalancerIngress>]) -> BTreeSet<IpAddr> {
    states.iter().flatten().filter_map(|one| parse_address(&one.ip)).collect()
}

fn warning(service: ServiceKey, reason: &'static str, message: &str) -> Notice {
    Notice { service, reason, warning: true, message: message.to_owned() }
}

/// Whether a state came after another. Versions of one object grow (KEP-5504); of what has none, the last that comes is the newest.
fn is_newer(one: &Service, other: &Service) -> bool {
    let version = |service: &Service| service.metadata.resource_version.parse::<u128>().ok();
    version(one).zip(version(other)).is_none_or(|(one, other)| one > other)
}
