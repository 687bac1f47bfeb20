//! The state, and what a change of it touches.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use culvert_api::plan::{NodePlan, ServiceKey, ServicePlan};

use crate::Config;
use crate::claims::{Claimant, Claims};
use crate::endpoints::{self, Slices};
use crate::grant::Grant;
use crate::intern::Interner;
use crate::node::NodeInfo;
use crate::objects::{EndpointSlice, Node, ObjectKey, Service};
use crate::plan::{self, View};
use crate::ranges::Ranges;
use crate::service::ServiceInfo;
use crate::slice::SliceInfo;

/// One change of the cluster's objects.
#[derive(Clone, Debug)]
pub enum Change {
    /// A Service is new or changed, and our own pools have no say in it.
    Service(Arc<Service>),
    /// A Service is new or changed, or our own pools have another word about it.
    Granted(Arc<Service>, Grant),
    /// A Service is gone.
    ServiceGone(ServiceKey),
    /// An EndpointSlice is new or changed.
    EndpointSlice(Arc<EndpointSlice>),
    /// An EndpointSlice is gone.
    EndpointSliceGone(ObjectKey),
    /// A Node is new or changed.
    Node(Arc<Node>),
    /// A Node is gone.
    NodeGone(String),
}

/// Where a Service can be served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Some endpoint anywhere may get traffic.
    pub endpoints: bool,
    /// `externalTrafficPolicy: Local`.
    pub local: bool,
    /// With that policy, the nodes of such endpoints; else empty.
    pub nodes: BTreeSet<Arc<str>>,
    /// Those of `nodes` where all such endpoints are about to end.
    pub ending: BTreeSet<Arc<str>>,
}

/// What one node should do with the cluster's Services.
///
/// It digests each object once and keeps the digest; plans are made when they are asked for. All but the node's own
/// name, addresses, zone and links is the same on every node, so that [`Model::node_plan_of`] can answer for any of them.
#[derive(Debug)]
pub struct Model {
    config: Config,
    services: BTreeMap<ServiceKey, Entry>,
    /// The Service of each slice.
    owners: HashMap<ObjectKey, ServiceKey>,
    nodes: BTreeMap<String, NodeInfo>,
    /// Addresses that Nodes list, with the number of Nodes.
    listed: HashMap<IpAddr, usize>,
    links: HashSet<IpAddr>,
    no_links: HashSet<IpAddr>,
    claims: Claims,
    names: Interner,
}

/// A Service and its slices, in whatever order they come.
#[derive(Debug, Default)]
struct Entry {
    service: Option<Registered>,
    slices: Slices,
}

#[derive(Debug)]
struct Registered {
    info: ServiceInfo,
    claimant: Arc<Claimant>,
}

impl Model {
    /// An empty model.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            services: BTreeMap::new(),
            owners: HashMap::new(),
            nodes: BTreeMap::new(),
            listed: HashMap::new(),
            links: HashSet::new(),
            no_links: HashSet::new(),
            claims: Claims::default(),
            names: Interner::default(),
        }
    }

    /// Applies one change. The answer names every Service whose plan may be another one now, gone ones included; the
    /// plans of all others are as they were.
    pub fn apply(&mut self, change: Change) -> BTreeSet<ServiceKey> {
        let mut touched = BTreeSet::new();
        match change {
            Change::Service(service) => self.digest(&service, &Grant::default(), &mut touched),
            Change::Granted(service, grant) => self.digest(&service, &grant, &mut touched),
            Change::ServiceGone(key) => self.set_service(key, None, &mut touched),
            Change::EndpointSlice(slice) => {
                let owner = slice.service_name();
                let owner =
                    owner.map(|name| ServiceKey { namespace: slice.metadata.namespace.clone(), name: name.into() });
                let digest = owner.and_then(|owner| Some((owner, SliceInfo::new(&slice, &mut self.names)?)));
                self.set_slice(slice.key(), digest, &mut touched);
            }
            Change::EndpointSliceGone(key) => self.set_slice(key, None, &mut touched),
            Change::Node(node) => {
                let info = NodeInfo::new(&node, &self.config);
                self.set_node(node.metadata.name.clone(), Some(info), &mut touched);
            }
            Change::NodeGone(name) => self.set_node(name, None, &mut touched),
        }
        touched
    }

    /// Replaces the set of addresses that links of this node carry; answers as [`Model::apply`].
    pub fn set_link_addresses(&mut self, addresses: HashSet<IpAddr>) -> BTreeSet<ServiceKey> {
        let mut touched = BTreeSet::new();
        for address in self.links.symmetric_difference(&addresses) {
            self.claims.touch_address(*address, &mut touched);
        }
        self.links = addresses;
        touched
    }

    /// The plan of one Service on this node; `None` if there is no such Service.
    pub fn plan(&self, key: &ServiceKey) -> Option<ServicePlan> {
        let Entry { service, slices } = self.services.get(key)?;
        Some(plan::plan(key, &service.as_ref()?.info, slices, self.view(&self.config.node)))
    }

    /// The plans of all Services on this node.
    pub fn node_plan(&self) -> NodePlan {
        self.node_plan_of(&self.config.node)
    }

    /// The plans of all Services on any node, with the configuration of this one. What links carry is known of this
    /// node alone.
    pub fn node_plan_of(&self, node: &str) -> NodePlan {
        let view = self.view(node);
        let plans = self.services.iter().filter_map(|(key, entry)| {
            let service = entry.service.as_ref()?;
            Some(plan::plan(key, &service.info, &entry.slices, view))
        });
        NodePlan { node: node.to_owned(), services: plans.collect(), announcements: Vec::new() }
    }

    /// Where a Service can be served; `None` if there is no such Service.
    pub fn reach(&self, key: &ServiceKey) -> Option<Reach> {
        let Entry { service, slices } = self.services.get(key)?;
        let local = service.as_ref()?.info.external_local;
        let (nodes, ending) = if local { endpoints::nodes(slices) } else { (BTreeSet::new(), BTreeSet::new()) };
        Some(Reach { endpoints: endpoints::any(slices), local, nodes, ending })
    }

    /// All Services, sorted.
    pub fn services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.services.iter().filter(|(_, entry)| entry.service.is_some()).map(|(key, _)| key)
    }

    /// Names of all Nodes, sorted.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    fn view<'a>(&'a self, name: &'a str) -> View<'a> {
        let links = if name == self.config.node { &self.links } else { &self.no_links };
        View { name, node: self.nodes.get(name), links, listed: &self.listed, claims: &self.claims }
    }

    fn digest(&mut self, service: &Service, grant: &Grant, touched: &mut BTreeSet<ServiceKey>) {
        let info = ServiceInfo::new(service, grant, &self.config);
        self.set_service(service.key(), Some(info), touched);
    }

    fn set_service(&mut self, key: ServiceKey, info: Option<ServiceInfo>, touched: &mut BTreeSet<ServiceKey>) {
        let entry = self.services.entry(key.clone()).or_default();
        let known = entry.service.as_ref().map(|known| &known.info);
        if known == info.as_ref() {
            self.forget_if_empty(&key);
            return;
        }
        if let Some(old) = entry.service.take() {
            for claim in old.info.claims() {
                self.claims.remove(claim, &old.claimant, touched);
            }
        }
        touched.insert(key.clone());
        let Some(info) = info else {
            self.forget_if_empty(&key);
            return;
        };
        let claimant = Arc::new(Claimant { created: info.created, key });
        for claim in info.claims() {
            self.claims.insert(claim, &claimant, touched);
        }
        entry.service = Some(Registered { info, claimant });
    }

    fn set_slice(
        &mut self,
        key: ObjectKey,
        digest: Option<(ServiceKey, SliceInfo)>,
        touched: &mut BTreeSet<ServiceKey>,
    ) {
        let old_owner = self.owners.get(&key);
        if let Some(owner) = old_owner.filter(|owner| digest.as_ref().is_none_or(|(new, _)| new != *owner)).cloned() {
            self.owners.remove(&key);
            if let Some(entry) = self.services.get_mut(&owner) {
                entry.slices.remove(&*key.name);
                if entry.service.is_some() {
                    touched.insert(owner.clone());
                }
            }
            self.forget_if_empty(&owner);
        }
        let Some((owner, info)) = digest else { return };
        let entry = self.services.entry(owner.clone()).or_default();
        if entry.slices.get(&*key.name) == Some(&info) {
            return;
        }
        entry.slices.insert((*key.name).into(), info);
        if entry.service.is_some() {
            touched.insert(owner.clone());
        }
        self.owners.insert(key, owner);
    }

    fn forget_if_empty(&mut self, key: &ServiceKey) {
        if self.services.get(key).is_some_and(|entry| entry.service.is_none() && entry.slices.is_empty()) {
            self.services.remove(key);
        }
    }

    fn set_node(&mut self, name: String, info: Option<NodeInfo>, touched: &mut BTreeSet<ServiceKey>) {
        let nothing = NodeInfo::default();
        let old = self.nodes.get(&name).unwrap_or(&nothing);
        let new = info.as_ref().unwrap_or(&nothing);
        if old != new {
            // Added before removed, so that an address that stays never counts as gone.
            for address in &new.listed {
                let count = self.listed.entry(*address).or_default();
                *count += 1;
                if *count == 1 {
                    self.claims.touch_address(*address, touched);
                }
            }
            for address in &old.listed {
                if let Some(count) = self.listed.get_mut(address) {
                    *count -= 1;
                    if *count == 0 {
                        self.listed.remove(address);
                        self.claims.touch_address(*address, touched);
                    }
                }
            }
            for address in &new.node_port_addresses {
                self.claims.add_node_address(*address, touched);
            }
            for address in &old.node_port_addresses {
                self.claims.remove_node_address(*address, touched);
            }
            if name == self.config.node {
                touched.extend(
                    self.services.iter().filter(|(_, entry)| entry.minds(old, new)).map(|(key, _)| key.clone()),
                );
            }
        }
        match info {
            Some(info) => self.nodes.insert(name, info),
            None => self.nodes.remove(&name),
        };
    }
}

impl Entry {
    /// Whether the plan depends on what changed of the own Node.
    fn minds(&self, old: &NodeInfo, new: &NodeInfo) -> bool {
        let Some(Registered { info, .. }) = &self.service else { return false };
        let has_node_ports = || info.ports.iter().any(|port| port.node_port.is_some());
        let has_ranges = || info.families.iter().any(|family| matches!(info.ranges.of(*family), Ranges::Only(_)));
        let has_zone_hints = || self.slices.values().any(SliceInfo::has_zone_hints);
        (old.node_port_addresses != new.node_port_addresses && has_node_ports())
            || (old.primary != new.primary && has_ranges())
            || (old.zone != new.zone && has_zone_hints())
    }
}
