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
use culvert_pools::{Allocator, Assignment, Config, Decision, Resource, Settings, StatusIs};
use culvert_source::{Change as Told, Id, Kind, Object};

use crate::configuration::Configuration;
use crate::objects::{remove, service_key, upsert};

/// The addresses of a folder's Services.
pub struct Addresses {
    configuration: Configuration,
    /// The source has delivered everything once.
    complete: bool,
    allocator: Allocator,
    /// Those of type `LoadBalancer`.
    services: BTreeMap<ServiceKey, Arc<Service>>,
    /// Those among them of which the model is to be told.
    pending: BTreeSet<ServiceKey>,
}

/// What was decided.
#[derive(Debug, Default)]
pub struct Decided {
    /// What the model is to be told.
    pub changes: Vec<Change>,
    /// What became of Services, with what their users are to be told.
    pub decisions: Vec<Decision>,
    /// What is held may be other than what was.
    pub moved: bool,
}

impl Addresses {
    /// Nothing is known but what was held before.
    pub fn new(held: impl IntoIterator<Item = (ServiceKey, Assignment)>) -> Self {
        let mut allocator = Allocator::new(Settings { class: None, status: StatusIs::Declared });
        allocator.restore(held);
        Self {
            configuration: Configuration::default(),
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
            Told::Upsert(Object::Addresses(Resource::Namespace(namespace))) => {
                self.allocator.absorb(culvert_pools::Change::Namespace(Arc::clone(namespace)));
            }
            Told::Remove(Id { kind: Kind::Addresses(culvert_pools::Kind::Namespace), key }) => {
                self.allocator.absorb(culvert_pools::Change::NamespaceGone(key.name.to_string()));
            }
            _ => self.configuration.take(change),
        }
        match change {
            Told::Upsert(object) => upsert(object.clone()),
            Told::Remove(id) => remove(id),
        }
    }

    /// Decides about everything that was taken. `complete`: the source has delivered everything.
    pub fn decide(&mut self, complete: bool) -> Decided {
        // With the first decision, those go who are not there any more.
        let first = complete && !self.complete;
        self.complete |= complete;
        let mut decisions = Vec::new();
        if self.complete {
            self.configure();
            decisions = self.allocator.settle().decisions;
            self.pending.extend(decisions.iter().map(|decision| decision.service.clone()));
        }
        let pending = mem::take(&mut self.pending);
        let granted = |key: &ServiceKey| Some(Change::Granted(Arc::clone(self.services.get(key)?), self.grant(key)));
        let changes = pending.iter().filter_map(granted).collect();
        let moved = first || !decisions.is_empty();
        Decided { changes, decisions, moved }
    }

    /// Everything that is held.
    pub fn held(&self) -> impl Iterator<Item = (&ServiceKey, &Assignment)> {
        self.allocator.assignments()
    }

    /// The configuration in force; `None` before there was a valid one.
    pub fn config(&self) -> Option<&Arc<Config>> {
        self.configuration.config()
    }

    /// A Service of type `LoadBalancer`.
    pub fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.services.get(key).map(|service| &**service)
    }

    /// Puts the resources in force, if they are valid together; what is wrong with them the source has told.
    fn configure(&mut self) {
        if !self.configuration.settle() {
            return;
        }
        if let Some(config) = self.configuration.config() {
            self.allocator.absorb(culvert_pools::Change::Config(Arc::clone(config)));
            self.pending.extend(self.services.keys().cloned());
        }
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
        let pools = self.configuration.config().is_some_and(|config| !config.pools.is_empty());
        let failure = self.allocator.failure(key).filter(|_| pools && self.allocator.is_ours(key));
        let failure = failure.map(|failure| Failure { field: failure.field.clone(), message: failure.message.clone() });
        Grant { given, pool: None, failure }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use culvert_model::objects::{ObjectMeta, ServiceSpec};
    use culvert_pools::objects::{IpAddressPool, IpAddressPoolSpec};

    use super::*;

    fn pool(name: &str, range: &str) -> Told {
        let metadata =
            ObjectMeta { name: name.to_owned(), namespace: "metallb-system".to_owned(), ..ObjectMeta::default() };
        let spec = IpAddressPoolSpec { addresses: vec![range.to_owned()], ..IpAddressPoolSpec::default() };
        Told::Upsert(Object::Addresses(Resource::IpAddressPool(Arc::new(IpAddressPool { metadata, spec }))))
    }

    fn service(name: &str, kind: &str) -> Told {
        let metadata = ObjectMeta { name: name.to_owned(), namespace: "default".to_owned(), ..ObjectMeta::default() };
        let spec = ServiceSpec { kind: kind.to_owned(), ..ServiceSpec::default() };
        Told::Upsert(Object::Service(Arc::new(Service { metadata, spec, ..Service::default() })))
    }

    fn gone(change: &Told) -> Told {
        let Told::Upsert(object) = change else { unreachable!() };
        Told::Remove(object.id())
    }

    fn held(name: &str, address: &str) -> (ServiceKey, Assignment) {
        let key = ServiceKey { namespace: "default".to_owned(), name: name.to_owned() };
        (key, Assignment { addresses: vec![address.parse().unwrap()], pool: "main".into() })
    }

    /// What the model is told: `NAME ADDRESS`, `NAME nothing`, or `NAME: why it has nothing`.
    fn told(decided: &Decided) -> Vec<String> {
        let word = |change: &Change| {
            let Change::Granted(service, Grant { given, pool: _, failure }) = change else { unreachable!() };
            let name = &service.metadata.name;
            match (given, failure) {
                (Some(given), _) => {
                    let addresses: Vec<String> = given.addresses.iter().map(IpAddr::to_string).collect();
                    format!("{name} {}", addresses.join(","))
                }
                (None, Some(failure)) => format!("{name}: {}", failure.message),
                (None, None) => format!("{name} nothing"),
            }
        };
        decided.changes.iter().map(word).collect()
    }

    fn give(addresses: &mut Addresses, changes: &[Told], complete: bool) -> Decided {
        for change in changes {
            addresses.take(change);
        }
        addresses.decide(complete)
    }

    #[test]
    fn nothing_is_decided_before_everything_was_delivered() {
        let mut addresses = Addresses::new([held("b", "192.0.2.0"), held("gone", "192.0.2.1")]);
        // A file with the pool, say, cannot be read yet.
        let decided = give(&mut addresses, &[service("a", "LoadBalancer"), service("b", "LoadBalancer")], false);
        assert_eq!(told(&decided), ["a nothing", "b 192.0.2.0"]);
        assert!(!decided.moved && decided.decisions.is_empty());
        let decided = give(&mut addresses, &[pool("main", "192.0.2.0/30")], true);
        assert_eq!(told(&decided), ["a 192.0.2.1", "b 192.0.2.0"]);
        assert!(decided.moved);
        assert_eq!(addresses.held().count(), 2);
    }

    #[test]
    fn what_is_not_there_any_more_is_not_held() {
        let mut addresses = Addresses::new([held("gone", "192.0.2.0")]);
        let decided = give(&mut addresses, &[pool("main", "192.0.2.0/30")], true);
        assert!(decided.moved && decided.decisions.is_empty());
        assert_eq!(addresses.held().count(), 0);
        assert!(!give(&mut addresses, &[], true).moved);
    }

    #[test]
    fn a_service_that_is_no_load_balancer_any_more_makes_room() {
        let mut addresses = Addresses::new([]);
        let (a, b) = (service("a", "LoadBalancer"), service("b", "LoadBalancer"));
        let decided = give(&mut addresses, &[pool("main", "192.0.2.7/32"), a, b.clone()], true);
        let waits = "b: no free address that the Service may use in any of the pools main";
        assert_eq!(told(&decided), ["a 192.0.2.7", waits]);
        // The model hears of it at once, as of any other Service.
        assert!(matches!(addresses.take(&service("a", "ClusterIP")), Some(Change::Service(_))));
        assert_eq!(told(&addresses.decide(true)), ["b 192.0.2.7"]);
        assert!(matches!(addresses.take(&gone(&b)), Some(Change::ServiceGone(_))));
        assert!(addresses.decide(true).moved);
        assert_eq!(addresses.held().count(), 0);
    }

    #[test]
    fn a_configuration_that_is_not_valid_changes_nothing() {
        let mut addresses = Addresses::new([]);
        let (main, a) = (pool("main", "192.0.2.0/30"), service("a", "LoadBalancer"));
        assert_eq!(told(&give(&mut addresses, &[main.clone(), a], true)), ["a 192.0.2.0"]);
        let overlapping = pool("other", "192.0.2.1-192.0.2.9");
        assert_eq!(
            told(&give(&mut addresses, &[gone(&main), overlapping.clone(), pool("third", "192.0.2.9/32")], true)).len(),
            0
        );
        // Those that come meanwhile are served by the last one that was valid.
        assert_eq!(told(&give(&mut addresses, &[service("b", "LoadBalancer")], true)), ["b 192.0.2.1"]);
        // And now that it is valid again, all may have to move.
        let decided = give(&mut addresses, &[gone(&pool("third", "192.0.2.9/32"))], true);
        assert_eq!(told(&decided), ["a 192.0.2.2", "b 192.0.2.1"]);
        let reasons: Vec<&str> = decided.decisions[0].events.iter().map(|event| event.reason.name()).collect();
        assert_eq!(reasons, ["ClearAssignment", "IPAllocated"]);
    }

    #[test]
    fn without_pools_nobody_is_expected_to_give_anything() {
        let mut addresses = Addresses::new([]);
        let main = pool("main", "192.0.2.7/32");
        let (a, b) = (service("a", "LoadBalancer"), service("b", "LoadBalancer"));
        assert_eq!(told(&give(&mut addresses, &[a, b], true)), ["a nothing", "b nothing"]);
        assert_eq!(told(&give(&mut addresses, std::slice::from_ref(&main), true)).len(), 2);
        assert_eq!(told(&give(&mut addresses, &[gone(&main)], true)), ["a nothing", "b nothing"]);
    }
}
