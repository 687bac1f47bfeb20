//! Which addresses of a folder's Services are announced in layer 2, by which node, and on which of its links? Pure.
//!
//! ```text
//! Nodes, Services, configuration ─► owners: one node for each address, as if all nodes were alive ─► culvert plan
//!                                     │
//!             this node's own links ──┴─► own: what it announces, and where
//! ```
//!
//! Every node must come to the same owners from the same folder, so they depend on nothing that only one of them knows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use culvert_announce::choice::{self, Choice, Inputs, Link, Report, Settings, Silence};
use culvert_api::plan::{Announcement, ServiceKey, ServicePlan};
use culvert_model::objects::{Node, Service};
use culvert_model::{Model, Reach};
use culvert_pools::Config;

/// The name of a link that stands for all those that no advertisement names. No link can be called so.
const ANY: &str = "";

/// Why a node announces that is alone.
const ALONE: &str = "the only node";
/// Why nobody announces before the first decision.
const UNDECIDED: &str = "not everything was delivered yet";

/// What the choice of nodes depends on.
#[derive(Debug, Default)]
pub struct Announcements {
    settings: Settings,
    config: Arc<Config>,
    nodes: BTreeMap<String, choice::Node>,
    services: BTreeMap<ServiceKey, Announced>,
}

/// A Service that has addresses of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    service: choice::Service,
    /// With traffic policy Local, the nodes that serve it.
    nodes: BTreeSet<Arc<str>>,
}

/// What becomes on a node of an address that it owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Own {
    /// It is announced on these links.
    On(BTreeSet<String>),
    /// It is announced nowhere, for this reason.
    Silent(String),
}

impl Announced {
    /// A Service as it is announced; `None` if it has no address of a pool.
    pub fn new(service: &Service, plan: &ServicePlan, reach: Reach) -> Option<Self> {
        let pool = plan.pool.as_deref().filter(|_| !plan.addresses.is_empty())?;
        let Reach { endpoints, local, nodes } = reach;
        let service = choice::Service {
            labels: service.metadata.labels.clone(),
            pool: pool.into(),
            addresses: plan.addresses.clone(),
            local,
            endpoints,
        };
        Some(Self { service, nodes })
    }
}

/// Who announces an address, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its Services.
    pub services: Vec<ServiceKey>,
    /// The node; `None` = nobody.
    pub node: Option<String>,
    /// Why this node, or why nobody.
    pub reason: String,
}

impl Announcements {
    /// Nothing is known yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// Takes the configuration in force; whether it is another one.
    pub fn configure(&mut self, config: &Arc<Config>) -> bool {
        let changed = !Arc::ptr_eq(&self.config, config) && self.config != *config;
        self.config = Arc::clone(config);
        changed
    }

    /// Takes a Node; whether anything changed.
    pub fn set_node(&mut self, node: &Node) -> bool {
        let out = choice::out(node, self.settings);
        let new = choice::Node { labels: node.metadata.labels.clone(), out, ..choice::Node::default() };
        self.nodes.insert(node.metadata.name.clone(), new.clone()) != Some(new)
    }

    /// Forgets a Node; whether it was known.
    pub fn remove_node(&mut self, name: &str) -> bool {
        self.nodes.remove(name).is_some()
    }

    /// Takes a Service, or that it has no address of a pool; whether anything changed.
    pub fn set_service(&mut self, key: &ServiceKey, service: Option<Announced>) -> bool {
        let changed = self.services.get(key) != service.as_ref();
        match service {
            Some(service) => drop(self.services.insert(key.clone(), service)),
            None => drop(self.services.remove(key)),
        }
        changed
    }

    /// Whether a Service has addresses of a pool.
    pub fn knows(&self, key: &ServiceKey) -> bool {
        self.services.contains_key(key)
    }

    /// Who announces each address, if every node is alive and has every link that an advertisement names.
    pub fn owners(&self) -> BTreeMap<IpAddr, Choice> {
        let nodes = self.nodes.iter().map(|(name, node)| (name.clone(), self.assumed(name, node)));
        self.inputs(nodes.collect(), |_| true).choose()
    }

    /// What a node with these links announces of what it owns. `holds` says whether its kernel holds a Service at all of these
    /// addresses. Where there is no Node at all, the node is the only one.
    pub fn own(
        &self,
        name: &str,
        links: BTreeMap<String, Link>,
        holds: impl Fn(&ServiceKey, &[IpAddr]) -> bool,
    ) -> BTreeMap<IpAddr, Own> {
        let alone = self.nodes.is_empty();
        let owners = if alone { BTreeMap::new() } else { self.owners() };
        // What nobody announces, for want of endpoints say, stays with who announced it before.
        let owns = |address: &IpAddr| match owners.get(address).map(|choice| &choice.answer) {
            Some(Ok(answer)) => answer.node == name,
            Some(Err(_)) => true,
            None => alone,
        };
        let mut node = self.nodes.get(name).cloned().unwrap_or_default();
        let held = self.services.iter().filter(|(key, announced)| holds(key, &announced.service.addresses));
        let programmed = held.map(|(key, _)| key.clone()).collect();
        node.report = Some(Report { links, programmed, local: self.local(name) });
        let choices = self.inputs(BTreeMap::from([(name.to_owned(), node)]), owns).choose();
        choices.into_iter().map(|(address, choice)| (address, Own::of(name, choice))).collect()
    }

    /// The Services of each address that a node announces; `own` is what [`Announcements::own`] said.
    pub fn services(&self, own: &BTreeMap<IpAddr, Own>) -> BTreeMap<IpAddr, BTreeSet<ServiceKey>> {
        let mut services: BTreeMap<IpAddr, BTreeSet<ServiceKey>> = BTreeMap::new();
        for (key, announced) in &self.services {
            for address in announced.service.addresses.iter().filter(|one| matches!(own.get(one), Some(Own::On(_)))) {
                services.entry(*address).or_default().insert(key.clone());
            }
        }
        services
    }

    /// That a node announces none of the addresses, for a reason.
    pub fn none(&self, reason: &str) -> BTreeMap<IpAddr, Own> {
        let addresses = self.services.values().flat_map(|announced| &announced.service.addresses);
        addresses.map(|address| (*address, Own::Silent(reason.to_owned()))).collect()
    }

    /// Who announces each address, for `culvert l2`; `own` is what [`Announcements::own`] said of the node `name`.
    pub fn explain(&self, name: &str, own: &BTreeMap<IpAddr, Own>) -> BTreeMap<IpAddr, Owner> {
        let mut owners: BTreeMap<IpAddr, Owner> = BTreeMap::new();
        let mut choices = if self.nodes.is_empty() { BTreeMap::new() } else { self.owners() };
        for (key, announced) in &self.services {
            for address in &announced.service.addresses {
                let owner = owners.entry(*address).or_insert_with(|| {
                    let (node, reason) = match (own.get(address), choices.remove(address)) {
                        (Some(Own::Silent(reason)), _) => (None, reason.clone()),
                        (Some(Own::On(_)), None) => (Some(name.to_owned()), ALONE.to_owned()),
                        (_, Some(choice)) => match &choice.answer {
                            Ok(answer) => (Some(answer.node.clone()), why(&choice)),
                            Err(nobody) => (None, nobody.to_string()),
                        },
                        (None, None) => (None, UNDECIDED.to_owned()),
                    };
                    Owner { services: Vec::new(), node, reason }
                });
                owner.services.push(key.clone());
            }
        }
        owners
    }

    /// What a node announces, for `culvert plan`.
    pub fn plan(&self, node: &str) -> Vec<Announcement> {
        let mut announcements = Vec::new();
        for (address, choice) in self.owners() {
            let Ok(answer) = &choice.answer else { continue };
            if answer.node != node {
                continue;
            }
            let reason = why(&choice);
            let any = answer.links.contains(ANY);
            let links = answer.links.iter().filter(|_| !any).map(|link| Some(link.clone()));
            for interface in links.chain(any.then_some(None)) {
                let (protocol, reason) = ("layer2".to_owned(), reason.clone());
                announcements.push(Announcement { address, protocol, interface, reason });
            }
        }
        announcements
    }

    /// The inputs, with the addresses that count.
    fn inputs(&self, nodes: BTreeMap<String, choice::Node>, counts: impl Fn(&IpAddr) -> bool) -> Inputs {
        let services = self.services.iter().map(|(key, announced)| {
            let mut service = announced.service.clone();
            service.addresses.retain(&counts);
            (key.clone(), service)
        });
        let config = Arc::clone(&self.config);
        Inputs { config, nodes, services: services.collect(), holders: BTreeMap::new() }
    }

    /// A node as all nodes imagine it.
    fn assumed(&self, name: &str, node: &choice::Node) -> choice::Node {
        let named = self.config.layer2.iter().flat_map(|advertisement| &advertisement.interfaces);
        let links = named.map(String::as_str).chain([ANY]);
        let links = links.map(|link| (link.to_owned(), Link { up: true, prefixes: Vec::new() }));
        let programmed = self.services.keys().cloned().collect();
        let report = Some(Report { links: links.collect(), programmed, local: self.local(name) });
        choice::Node { report, ..node.clone() }
    }

    /// Services with an endpoint on a node.
    fn local(&self, node: &str) -> BTreeSet<ServiceKey> {
        let local = self.services.iter().filter(|(_, announced)| announced.nodes.contains(node));
        local.map(|(key, _)| key.clone()).collect()
    }
}

impl Own {
    /// Of a choice with this node alone.
    fn of(name: &str, mut choice: Choice) -> Self {
        match choice.answer {
            Ok(answer) => Self::On(answer.links),
            Err(nobody) => {
                let own = choice.silent.remove(name).map(|silence| silence.to_string());
                Self::Silent(own.unwrap_or_else(|| nobody.to_string()))
            }
        }
    }
}

/// A folder's announcements, from its model and configuration.
pub fn of_folder<'a>(
    settings: Settings,
    model: &Model,
    nodes: impl IntoIterator<Item = &'a Node>,
    config: Option<&Arc<Config>>,
    service: impl Fn(&ServiceKey) -> Option<&'a Service>,
) -> Announcements {
    let mut announcements = Announcements::new(settings);
    for node in nodes {
        announcements.set_node(node);
    }
    if let Some(config) = config {
        announcements.configure(config);
    }
    for key in model.services() {
        let announced = service(key).and_then(|service| {
            let (plan, reach) = (model.plan(key)?, model.reach(key)?);
            Announced::new(service, &plan, reach)
        });
        announcements.set_service(key, announced);
    }
    announcements
}

/// Why the node that was chosen was, in words.
fn why(choice: &Choice) -> String {
    let equal = choice.silent.values().filter(|silence| matches!(silence, Silence::Other(_))).count();
    let less = choice.silent.values().any(|silence| matches!(silence, Silence::LessPreferred { .. }));
    match (choice.silent.len(), equal, less) {
        (0, ..) => ALONE.to_owned(),
        (_, 0, true) => "preferred to all other nodes".to_owned(),
        (_, 0, false) => "no other node can".to_owned(),
        (_, equal, _) => format!("one of {} nodes that are equally good", equal + 1),
    }
}

#[cfg(test)]
mod tests;
