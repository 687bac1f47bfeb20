//! Between a folder's objects and the model: which addresses do Services of type `LoadBalancer` get out of the folder's pools?
//! Pure.
//!
//! ```text
//! source's changes ─┬─► resources ─► configuration: the last valid one ─► allocator ─► grants ─► model's changes
//!                   ├─► Services of type LoadBalancer ────────────────────────┘          ▲
//!                   │                └────────────────────────────────────────────────────┘
//!                   └─► all others ──────────────────────────────────────────────────────────► model's changes
//! ```
//!
//! Before the source has delivered everything once nothing is decided: what is held from before stays, and nobody gets
//! anything that an object still to come may hold.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;

use culvert_model::objects::Service;
use culvert_model::{Change, Failure, Grant, Granted, ServiceKey};
use culvert_pools::{Allocator, Assignment, Config, Resource, Resources, Settings, StatusIs};
use culvert_source::{Change as Told, Id, Kind, Object};

use crate::objects::{remove, service_key, upsert};

/// The addresses of a folder's Services.
pub struct Addresses {
    resources: Resources,
    /// The resources are other ones than those that were compiled last.
    configured: bool,
    /// There is a pool in the configuration that is in force.
    pools: bool,
    /// The source has delivered everything once.
    complete: bool,
    allocator: Allocator,
    /// Those of type `LoadBalancer`.
    services: BTreeMap<ServiceKey, Arc<Service>>,
    /// Those among them of which the model is to be told.
    pending: BTreeSet<ServiceKey>,
}

impl Addresses {
    /// Nothing is known but what was held before.
    pub fn new(held: impl IntoIterator<Item = (ServiceKey, Assignment)>) -> Self {
        let mut allocator = Allocator::new(Settings { class: None, status: StatusIs::Declared });
        allocator.restore(held);
        Self {
            resources: Resources::default(),
            configured: true,
            pools: false,
            complete: false,
            allocator,
            services: BTreeMap::new(),
            pending: BTreeSet::new(),
        }
    }

    /// Takes a change. The answer is what it is to the model at once; what depends on pools is told by [`Addresses::decide`].
    pub fn take(&mut self, change: &Told) -> Option<Change> {
        match change {
            Told::Upsert(Object::Service(service)) if service.spec.kind == "LoadBalancer" => {
                let key = service.key();
                self.services.insert(key.clone(), Arc::clone(service));
                self.pending.insert(key);
                self.allocator.absorb(culvert_pools::Change::Service(Arc::clone(service)));
                return None;
            }
            Told::Upsert(Object::Service(service)) => self.forget(&service.key()),
            Told::Remove(Id { kind: Kind::Service, key }) => self.forget(&service_key(key)),
            Told::Upsert(Object::Node(node)) => self.configured |= self.resources.upsert_node(node),
            Told::Remove(Id { kind: Kind::Node, key }) => self.configured |= self.resources.remove_node(&key.name),
            Told::Upsert(Object::Addresses(Resource::Namespace(namespace))) => {
                self.allocator.absorb(culvert_pools::Change::Namespace(Arc::clone(namespace)));
            }
            Told::Remove(Id { kind: Kind::Addresses(culvert_pools::Kind::Namespace), key }) => {
                self.allocator.absorb(culvert_pools::Change::NamespaceGone(key.name.to_string()));
            }
            Told::Upsert(Object::Addresses(resource)) => self.configured |= self.resources.upsert(resource.clone()),
            Told::Remove(Id { kind: Kind::Addresses(kind), key }) => {
                self.configured |= self.resources.remove(&culvert_pools::Id { kind: *kind, key: key.clone() });
            }
            Told::Upsert(Object::EndpointSlice(_)) | Told::Remove(Id { kind: Kind::EndpointSlice, .. }) => {}
        }
        match change {
            Told::Upsert(object) => upsert(object.clone()),
            Told::Remove(id) => remove(id),
        }
    }

    /// Decides about everything that was taken, and says what the model is to be told. `complete`: the source has delivered
    /// everything.
    pub fn decide(&mut self, complete: bool) -> Vec<Change> {
        self.complete |= complete;
        if self.complete {
            self.configure();
            let decisions = self.allocator.settle().decisions;
            self.pending.extend(decisions.into_iter().map(|decision| decision.service));
        }
        let pending = mem::take(&mut self.pending);
        let granted = |key: &ServiceKey| Some(Change::Granted(Arc::clone(self.services.get(key)?), self.grant(key)));
        pending.iter().filter_map(granted).collect()
    }

    /// Puts the resources in force, if they are valid together; what is wrong with them the source has told.
    fn configure(&mut self) {
        if !mem::take(&mut self.configured) {
            return;
        }
        let Ok(config) = Config::new(&self.resources) else { return };
        self.pools = !config.pools.is_empty();
        self.allocator.absorb(culvert_pools::Change::Config(Arc::new(config)));
        self.pending.extend(self.services.keys().cloned());
    }

    fn forget(&mut self, key: &ServiceKey) {
        if self.services.remove(key).is_some() {
            self.pending.remove(key);
            self.allocator.absorb(culvert_pools::Change::ServiceGone(key.clone()));
        }
    }

    /// What the model is told of a Service. Where there is no pool at all, nobody is expected to give it an address.
    fn grant(&self, key: &ServiceKey) -> Grant {
        let given = self
            .allocator
            .assignment(key)
            .map(|held| Granted { addresses: held.addresses.clone(), pool: Arc::clone(&held.pool) });
        let failure = self.allocator.failure(key).filter(|_| self.pools && self.allocator.is_ours(key));
        let failure = failure.map(|failure| Failure { field: failure.field.clone(), message: failure.message.clone() });
        Grant { given, failure }
    }
}
