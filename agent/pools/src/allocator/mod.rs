//! The decisions: who gets which address, who keeps his, who waits.
//!
//! Changes are absorbed at no cost to speak of; [`Allocator::settle`] then decides, in two steps:
//! 1. Those that changed keep what they hold if they may: first what this allocator gave them, then what their status claims.
//! 2. Those that have nothing get something, the oldest first, and with them those that wait for what came free.
//!
//! So a newcomer never displaces a holder, and of several changes that are absorbed together the order does not matter.

mod choice;
mod round;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use culvert_model::objects::Service;
use culvert_model::{Family, ServiceKey};

use self::round::Round;
use crate::config::{Candidate, Config};
use crate::event::{Event, Failure};
use crate::ledger::Ledger;
use crate::objects::Namespace;
use crate::waiting::{Place, Waiting};
use crate::wish::{self, Rank, Role, Wish};

/// The label that the API server sets on every Namespace.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// What the allocator is told besides the objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The `loadBalancerClass` that is ours; `None` = Services without one.
    pub class: Option<String>,
    /// How a Service's status is read.
    pub status: StatusIs,
}

/// What the addresses in a Service's status are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StatusIs {
    /// A record of what was given before, read when the Service is first seen: an API server's objects. What it may not
    /// keep is replaced.
    #[default]
    Record,
    /// The author's own word, read whenever it changes: a manifest. An address that is of no pool is somebody else's
    /// business, and the Service with it.
    Declared,
}

/// One change of what the allocator knows.
#[derive(Clone, Debug)]
pub enum Change {
    /// Another configuration is in force.
    Config(Arc<Config>),
    /// A Service is new or changed.
    Service(Arc<Service>),
    /// A Service is gone.
    ServiceGone(ServiceKey),
    /// A Namespace is new or changed.
    Namespace(Arc<Namespace>),
    /// A Namespace is gone.
    NamespaceGone(String),
}

/// Addresses that a Service holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// One, or one of each family.
    pub addresses: Vec<IpAddr>,
    /// The pool that they are all from.
    pub pool: Arc<str>,
}

/// What became of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It holds these: its status is to say so.
    Holds(Assignment),
    /// It holds nothing: its status is to be empty.
    Nothing,
    /// It is not ours: its status is not to be touched.
    NotOurs,
}

/// A decision about one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Which one.
    pub service: ServiceKey,
    /// What became of it.
    pub outcome: Outcome,
    /// What its user is told.
    pub events: Vec<Event>,
}

/// How full a pool is (`status` of an `IPAddressPool`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStatus {
    /// IPv4 addresses in use.
    pub assigned_ipv4: i64,
    /// IPv6 addresses in use.
    pub assigned_ipv6: i64,
    /// Free IPv4 addresses.
    pub available_ipv4: i64,
    /// Free IPv6 addresses; from 2^62 on, `i64::MAX` less those in use.
    pub available_ipv6: i64,
}

/// What [`Allocator::settle`] decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Services whose outcome is another one, or about which there is something to tell; sorted.
    pub decisions: Vec<Decision>,
    /// Pools whose status is another one; `None` for those that are gone.
    pub pools: BTreeMap<Arc<str>, Option<PoolStatus>>,
}

/// What the work was, so that its cost can be watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Services considered, each time.
    pub services: u64,
    /// Ranges and addresses looked at in search of one.
    pub addresses: u64,
}

/// Which addresses does each Service hold?
#[derive(Debug, Default)]
pub struct Allocator {
    settings: Settings,
    config: Option<Arc<Config>>,
    /// Labels of Namespaces.
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    services: BTreeMap<ServiceKey, Entry>,
    ledger: Ledger,
    waiting: Waiting,
    /// What was held before, of Services that have not been seen.
    restored: BTreeMap<ServiceKey, Assignment>,
    /// Services that changed since the last decision.
    changed: BTreeSet<ServiceKey>,
    /// What Services that are gone left since then.
    left: Vec<Place>,
    /// Services that are gone and held something.
    gone: BTreeSet<ServiceKey>,
    /// What was said of the pools last.
    told: BTreeMap<Arc<str>, PoolStatus>,
    considered: u64,
}

/// A Service.
#[derive(Debug)]
struct Entry {
    wish: Wish,
    /// Addresses in its status.
    status: Vec<Option<IpAddr>>,
    /// The status has not been considered.
    claims: bool,
    held: Option<Assignment>,
    failure: Option<Failure>,
    /// Why it has no second address, as it was told.
    single: Option<String>,
    /// Its status lists addresses that are none of our business.
    foreign: bool,
}

impl Allocator {
    /// Nothing is known yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// Tells what was held before, from a record beside the objects. It counts where a Service's status says nothing, and is
    /// forgotten with the first decision if there is no such Service.
    pub fn restore(&mut self, held: impl IntoIterator<Item = (ServiceKey, Assignment)>) {
        self.restored.extend(held);
    }

    /// Takes changes and decides.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Settled {
        changes.into_iter().for_each(|change| self.absorb(change));
        self.settle()
    }

    /// Takes a change. Nothing is decided before [`Allocator::settle`]: of a first list that comes in parts, the last part is to
    /// be waited for, or the order of the parts would matter.
    pub fn absorb(&mut self, change: Change) {
        match change {
            Change::Config(config) => self.set_config(config),
            Change::Service(service) => self.set_service(&service),
            Change::ServiceGone(key) => self.remove_service(&key),
            Change::Namespace(namespace) => {
                let metadata = &namespace.metadata;
                self.set_namespace(&metadata.name, Some(metadata.labels.clone()));
            }
            Change::NamespaceGone(name) => self.set_namespace(&name, None),
        }
    }

    /// Decides. Without a configuration nothing is decided: what is held stays, for the one that comes may allow it.
    pub fn settle(&mut self) -> Settled {
        let Some(config) = self.config.clone() else { return Settled::default() };
        let decisions = Round::run(self, &config);
        self.restored.clear();
        Settled { decisions, pools: self.pool_changes(&config) }
    }

    /// What a Service holds; before the first decision, what it held before.
    pub fn assignment(&self, service: &ServiceKey) -> Option<&Assignment> {
        let held = self.services.get(service).and_then(|entry| entry.held.as_ref());
        held.or_else(|| self.restored.get(service))
    }

    /// Everything that is held, sorted by Service; before the first decision, what was held before.
    pub fn assignments(&self) -> impl Iterator<Item = (&ServiceKey, &Assignment)> {
        let held = self.services.iter().filter_map(|(key, entry)| Some((key, entry.held.as_ref()?)));
        let all: BTreeMap<_, _> = self.restored.iter().chain(held).collect();
        all.into_iter()
    }

    /// Why a Service has not what it asks for, if so.
    pub fn failure(&self, service: &ServiceKey) -> Option<&Failure> {
        self.services.get(service)?.failure.as_ref()
    }

    /// Whether a Service is ours to give addresses to.
    pub fn is_ours(&self, service: &ServiceKey) -> bool {
        self.services.get(service).is_some_and(|entry| entry.wish.role == Role::Ours && !entry.foreign)
    }

    /// How full the pools are.
    pub fn pools(&self) -> BTreeMap<Arc<str>, PoolStatus> {
        let pools = self.config.iter().flat_map(|config| &config.pools);
        pools.map(|(name, pool)| (Arc::clone(name), self.pool_status(pool))).collect()
    }

    /// What all the work was so far.
    pub fn work(&self) -> Work {
        Work { services: self.considered, addresses: self.ledger.looked_at }
    }

    fn set_config(&mut self, config: Arc<Config>) {
        if self.config.as_ref().is_some_and(|old| old.pools == config.pools) {
            self.config = Some(config);
            return;
        }
        self.ledger.set_pools(&config);
        self.config = Some(config);
        // Whether an address is of a pool has to be asked again.
        let declared = self.settings.status == StatusIs::Declared;
        for entry in self.services.values_mut().filter(|entry| declared && !entry.status.is_empty()) {
            entry.claims = true;
        }
        self.changed.extend(self.services.keys().cloned());
    }

    fn set_service(&mut self, service: &Service) {
        let key = service.key();
        let wish = Wish::new(service, self.settings.class.as_deref());
        let status = wish::status(service);
        let Some(entry) = self.services.get_mut(&key) else {
            let (held, failure, single) = (None, None, None);
            let entry = Entry { wish, status, claims: true, held, failure, single, foreign: false };
            self.services.insert(key.clone(), entry);
            self.changed.insert(key);
            return;
        };
        let becomes_ours = entry.wish.role != Role::Ours && wish.role == Role::Ours;
        let declares = self.settings.status == StatusIs::Declared && entry.status != status;
        if entry.wish == wish && !declares {
            return;
        }
        if entry.wish != wish {
            self.waiting.remove(&key);
        }
        entry.claims |= becomes_ours || declares;
        entry.wish = wish;
        entry.status = status;
        self.changed.insert(key);
    }

    fn remove_service(&mut self, key: &ServiceKey) {
        self.changed.remove(key);
        self.waiting.remove(key);
        let Some(entry) = self.services.remove(key) else { return };
        let Some(held) = entry.held else { return };
        self.gone.insert(key.clone());
        let left = self.strike(key, &held.addresses);
        self.left.extend(left);
    }

    fn set_namespace(&mut self, name: &str, labels: Option<BTreeMap<String, String>>) {
        let known = self.namespaces.get(name);
        if known == labels.as_ref() {
            return;
        }
        match labels {
            Some(labels) => drop(self.namespaces.insert(name.to_owned(), labels)),
            None => drop(self.namespaces.remove(name)),
        }
        let first = ServiceKey { namespace: name.to_owned(), name: String::new() };
        let of_namespace = self.services.range(first..).take_while(|(key, _)| key.namespace == name);
        self.changed.extend(of_namespace.map(|(key, _)| key.clone()));
    }

    /// Strikes a Service out, and says whom that may help.
    fn strike(&mut self, service: &ServiceKey, addresses: &[IpAddr]) -> Vec<Place> {
        let share = addresses.first().and_then(|address| self.ledger.entry(*address, service));
        let key = share.map(|(_, share)| Arc::clone(&share.key)).filter(|key| !key.is_empty());
        self.ledger.strike(service, addresses);
        let addresses = addresses.iter().map(|address| Place::Address(*address));
        addresses.chain(key.map(Place::Key)).collect()
    }

    /// What pools read of a Service. A Namespace that is not known has the label that every one has.
    fn admits(&self, pool: &crate::config::Pool, wish: &Wish) -> bool {
        if pool.allocation.is_none() {
            return true;
        }
        let namespace = wish.rank.key.namespace.as_str();
        let unknown = BTreeMap::from([(NAMESPACE_NAME.to_owned(), namespace.to_owned())]);
        let namespace_labels = self.namespaces.get(namespace).unwrap_or(&unknown);
        pool.admits(Candidate { namespace, namespace_labels, labels: &wish.labels })
    }

    fn rank(&self, key: &ServiceKey) -> Option<Rank> {
        Some(self.services.get(key)?.wish.rank.clone())
    }

    fn pool_status(&self, pool: &crate::config::Pool) -> PoolStatus {
        let of = |family| {
            let assigned = self.ledger.assigned(&pool.name, family);
            (assigned, pool.capacity(family) - assigned)
        };
        let ((assigned_ipv4, available_ipv4), (assigned_ipv6, available_ipv6)) = (of(Family::V4), of(Family::V6));
        PoolStatus { assigned_ipv4, assigned_ipv6, available_ipv4, available_ipv6 }
    }

    fn pool_changes(&mut self, config: &Config) -> BTreeMap<Arc<str>, Option<PoolStatus>> {
        let now: BTreeMap<Arc<str>, PoolStatus> =
            config.pools.iter().map(|(name, pool)| (Arc::clone(name), self.pool_status(pool))).collect();
        let gone = self.told.keys().filter(|name| !now.contains_key(*name)).map(|name| (Arc::clone(name), None));
        let other = now.iter().filter(|(name, status)| self.told.get(*name) != Some(status));
        let changes = gone.chain(other.map(|(name, status)| (Arc::clone(name), Some(*status)))).collect();
        self.told = now;
        changes
    }
}
