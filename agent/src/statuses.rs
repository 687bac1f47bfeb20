//! Between a cluster's objects and the model: of which pool are the addresses in a Service's status? The controller writes them there;
//! whoever announces them goes by what is written. Pure.
//!
//! ```text
//! pools, advertisements, Nodes ─► configuration: the last valid one ─┐
//! Services of type LoadBalancer: their class, their status ──────────┴─► a pool for each ─► model's changes
//! all others ────────────────────────────────────────────────────────────────────────────► model's changes
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;

use culvert_model::objects::{LoadBalancerIngress, Service};
use culvert_model::{Change, Grant, ServiceKey, parse_address};
use culvert_pools::{Config, Finding};
use culvert_source::{Change as Told, Id, Kind, Object};

use crate::configuration::Configuration;
use crate::objects::{remove, service_key, upsert};
use crate::scope::Scope;

/// The pools of addresses in the status of Services.
pub struct Statuses {
    scope: Scope,
    configuration: Configuration,
    /// Everything that makes the configuration has been delivered once.
    complete: bool,
    /// Those of type `LoadBalancer`.
    services: BTreeMap<ServiceKey, Arc<Service>>,
    /// Those among them of which the model is to be told.
    pending: BTreeSet<ServiceKey>,
}

impl Statuses {
    /// Nothing is known.
    pub fn new(scope: Scope) -> Self {
        let configuration = Configuration::of(scope.config_namespaces.clone());
        Self { scope, configuration, complete: false, services: BTreeMap::new(), pending: BTreeSet::new() }
    }

    /// Takes a change of what is served. The answer is what it is to the model at once; what depends on pools is told by
    /// [`Statuses::decide`].
    pub fn take(&mut self, change: &Told) -> Option<Change> {
        match change {
            Told::Upsert(Object::Service(service)) if service.spec.kind == "LoadBalancer" => {
                self.pending.insert(service.key());
                self.services.insert(service.key(), Arc::clone(service));
                return None;
            }
            Told::Upsert(Object::Service(service)) => self.forget(&service.key()),
            Told::Remove(Id { kind: Kind::Service, key }) => self.forget(&service_key(key)),
            _ => {}
        }
        match change {
            Told::Upsert(object) => upsert(object.clone()),
            Told::Remove(id) => remove(id),
        }
    }

    /// Takes changes of what makes the configuration. `complete`: everything has been delivered.
    pub fn configure(&mut self, changes: &[Told], complete: bool) {
        for change in changes {
            self.configuration.take(change);
        }
        self.complete |= complete;
        if self.complete && self.configuration.settle() {
            self.pending.extend(self.services.keys().cloned());
        }
    }

    /// What the model is told of the Services that were taken, or whose pool may be another one.
    pub fn decide(&mut self) -> Vec<Change> {
        let pending = mem::take(&mut self.pending);
        let services = pending.iter().filter_map(|key| self.services.get(key));
        services.map(|service| Change::Granted(Arc::clone(service), self.grant(service))).collect()
    }

    /// The configuration in force; `None` before there was a valid one.
    pub fn config(&self) -> Option<&Arc<Config>> {
        self.configuration.config()
    }

    /// What is wrong with the configuration; the last one that was valid is in force.
    pub fn findings(&self) -> &[Finding] {
        self.configuration.findings()
    }

    /// A Service of type `LoadBalancer`.
    pub fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.services.get(key).map(|service| &**service)
    }

    fn forget(&mut self, key: &ServiceKey) {
        if self.services.remove(key).is_some() {
            self.pending.remove(key);
        }
    }

    /// The pool, if all addresses are of one. What a status lists beside them is another writer's.
    fn grant(&self, service: &Service) -> Grant {
        let ingress = &service.status.load_balancer.ingress;
        let config = self.config().filter(|_| self.scope.covers(service));
        let of = |one: &LoadBalancerIngress| {
            let address = parse_address(&one.ip).filter(|_| one.ip_mode.as_deref() != Some("Proxy"))?;
            config?.pool_of(address).map(|pool| &pool.name)
        };
        let pool = ingress.first().and_then(of).filter(|pool| ingress.iter().all(|one| of(one) == Some(pool)));
        Grant { pool: pool.cloned(), ..Grant::default() }
    }
}

#[cfg(test)]
mod tests {
    use culvert_pools::Resource;
    use serde_json::json;

    use super::*;

    fn resource(kind: culvert_pools::Kind, namespace: &str, name: &str, spec: &serde_json::Value) -> Told {
        let object = json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec});
        Told::Upsert(Object::Addresses(Resource::deserialize(kind, object).unwrap()))
    }

    fn pool(name: &str, range: &str) -> Told {
        resource(culvert_pools::Kind::IpAddressPool, "metallb-system", name, &json!({"addresses": [range]}))
    }

    fn gone(change: &Told) -> Told {
        let Told::Upsert(object) = change else { unreachable!() };
        Told::Remove(object.id())
    }

    /// A Service with a class and these entries in its status.
    fn service(name: &str, class: Option<&str>, ingress: &serde_json::Value) -> Told {
        let service = json!({
            "metadata": {"name": name, "namespace": "shop"}, "spec": {"type": "LoadBalancer", "loadBalancerClass": class},
            "status": {"loadBalancer": {"ingress": ingress}},
        });
        Told::Upsert(Object::Service(Arc::new(serde_json::from_value(service).unwrap())))
    }

    fn with(name: &str, address: &str) -> Told {
        service(name, None, &json!([{"ip": address, "ipMode": "VIP"}]))
    }

    fn statuses() -> Statuses {
        Statuses::new(Scope { class: None, config_namespaces: BTreeSet::from(["metallb-system".to_owned()]) })
    }

    /// What the model is told: `NAME POOL`, or `NAME -`.
    fn told(statuses: &mut Statuses) -> Vec<String> {
        let word = |change: Change| {
            let Change::Granted(service, Grant { given: None, pool, failure: None }) = change else { unreachable!() };
            format!("{} {}", service.metadata.name, pool.as_deref().unwrap_or("-"))
        };
        statuses.decide().into_iter().map(word).collect()
    }

    #[test]
    fn the_pool_is_that_of_all_addresses_in_the_status() {
        let mut statuses = statuses();
        statuses.configure(&[pool("main", "192.0.2.0/28"), pool("six", "2001:db8::/120")], true);
        let one = json!({"ip": "192.0.2.1", "ipMode": "VIP"});
        for (ingress, wanted) in [
            (json!([one]), "main"),
            (json!([{"ip": "192.0.2.1"}]), "main"),
            (json!([{"ip": "2001:db8::1"}]), "six"),
            (json!([]), "-"),
            (json!([{"ip": "203.0.113.1"}]), "-"),
            (json!([one, {"ip": "203.0.113.1"}]), "-"),
            (json!([one, {"ip": "2001:db8::1"}]), "-"),
            (json!([one, {"hostname": "lb.example.com"}]), "-"),
            (json!([{"ip": "192.0.2.1", "ipMode": "Proxy"}]), "-"),
        ] {
            assert!(statuses.take(&service("web", None, &ingress)).is_none());
            assert_eq!(told(&mut statuses), [format!("web {wanted}")], "{ingress}");
        }
        statuses.take(&service("web", Some("example.com/other"), &json!([one])));
        assert_eq!(told(&mut statuses), ["web -"]);
    }

    #[test]
    fn nothing_is_of_a_pool_before_everything_was_delivered() {
        let mut statuses = statuses();
        statuses.take(&with("web", "192.0.2.1"));
        statuses.configure(&[pool("main", "192.0.2.0/28")], false);
        assert_eq!(told(&mut statuses), ["web -"]);
        assert!(statuses.config().is_none());
        statuses.configure(&[], true);
        assert_eq!(told(&mut statuses), ["web main"]);
        assert_eq!(told(&mut statuses).len(), 0);
    }

    #[test]
    fn a_configuration_that_is_not_valid_changes_nothing() {
        let mut statuses = statuses();
        let (main, overlaps) = (pool("main", "192.0.2.0/28"), pool("overlaps", "192.0.2.4-192.0.2.20"));
        statuses.take(&with("web", "192.0.2.1"));
        statuses.configure(std::slice::from_ref(&main), true);
        assert_eq!(told(&mut statuses), ["web main"]);
        statuses.configure(std::slice::from_ref(&overlaps), true);
        assert_eq!((told(&mut statuses).len(), statuses.findings().len()), (0, 1));
        statuses.take(&with("api", "192.0.2.16"));
        assert_eq!(told(&mut statuses), ["api -"]);
        statuses.configure(&[gone(&main)], true);
        assert_eq!(told(&mut statuses), ["api overlaps", "web -"]);
        assert_eq!(statuses.findings().len(), 0);
    }

    #[test]
    fn resources_of_other_namespaces_do_not_count() {
        let mut statuses = statuses();
        let elsewhere =
            resource(culvert_pools::Kind::IpAddressPool, "shop", "main", &json!({"addresses": ["192.0.2.0/28"]}));
        statuses.take(&with("web", "192.0.2.1"));
        statuses.configure(&[elsewhere], true);
        assert_eq!(told(&mut statuses), ["web -"]);
    }

    #[test]
    fn a_service_of_another_type_is_the_models_at_once() {
        let mut statuses = statuses();
        statuses.configure(&[pool("main", "192.0.2.0/28")], true);
        statuses.take(&with("web", "192.0.2.1"));
        let Told::Upsert(Object::Service(service)) = with("web", "192.0.2.1") else { unreachable!() };
        let mut other = (*service).clone();
        other.spec.kind = "ClusterIP".to_owned();
        let change = statuses.take(&Told::Upsert(Object::Service(Arc::new(other))));
        assert!(matches!(change, Some(Change::Service(_))));
        assert_eq!(told(&mut statuses).len(), 0);
        assert!(matches!(statuses.take(&gone(&with("web", "192.0.2.1"))), Some(Change::ServiceGone(_))));
    }
}
