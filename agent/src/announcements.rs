//! Which addresses of a folder's Services are announced in layer 2, by which node, and on which of its links? Pure.
//!
//! ```text
//! Nodes, Services, configuration ─► owners: one node for each address, as if all nodes were alive ─► culvert plan
//!    │
//!    │      what the other nodes say ─┐
//!    └────────────────────────────────┴─► decide: one node for each address; what this one announces, and where
//!                this node's own links ─┘
//! ```
//!
//! Where nodes do not hear each other, every node must come to the same owners from the same folder: then they depend on nothing
//! that only one of them knows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use culvert_announce::choice::{self, Choice, Inputs, Link, Out, Report, Settings, Silence};
use culvert_announce::liveness::Said;
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
    /// `None`: the nodes do not hear each other.
    heard: Option<Arc<Heard>>,
}

/// What a node hears of the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Those that are alive, by name.
    pub nodes: BTreeMap<String, Peer>,
    /// Who has which address now.
    pub holders: BTreeMap<IpAddr, String>,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// It came back a short time ago, and waits.
    pub held_down: bool,
    /// What it says of itself.
    pub said: Arc<Said>,
}

/// What a node knows of itself, beside what its kernel holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Me {
    /// Its links.
    pub links: BTreeMap<String, Link>,
    /// It is to announce nothing.
    pub drained: bool,
}

/// Who announces what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// For each address.
    pub choices: BTreeMap<IpAddr, Choice>,
    /// What becomes of addresses on this node.
    pub own: BTreeMap<IpAddr, Own>,
}

/// A Service that has addresses of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    service: choice::Service,
    /// With traffic policy Local, the nodes that serve it.
    nodes: BTreeSet<Arc<str>>,
    /// Those of them whose endpoints are about to end.
    ending: BTreeSet<Arc<str>>,
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
        let Reach { endpoints, local, nodes, ending } = reach;
        let service = choice::Service {
            labels: service.metadata.labels.clone(),
            pool: pool.into(),
            addresses: plan.addresses.clone(),
            local,
            endpoints,
        };
        Some(Self { service, nodes, ending })
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

    /// Takes what is heard of the other nodes; whether it is another thing.
    pub fn set_heard(&mut self, heard: Arc<Heard>) -> bool {
        let changed = self.heard.as_ref() != Some(&heard);
        self.heard = Some(heard);
        changed
    }

    /// Whether anything was heard of other nodes.
    pub fn hears(&self) -> bool {
        self.heard.is_some()
    }

    /// Decides who announces each address, as the node `name` sees it. `holds` says whether its kernel holds a Service at
    /// all of these addresses. Where there is no Node at all, it is the only one.
    pub fn decide(&self, name: &str, me: Me, holds: impl Fn(&ServiceKey, &[IpAddr]) -> bool) -> Decision {
        let held = self.services.iter().filter(|(key, announced)| holds(key, &announced.service.addresses));
        let programmed = held.map(|(key, _)| key.clone()).collect();
        let mut node = self.nodes.get(name).cloned().unwrap_or_default();
        node.report = Some(self.report(name, me.links, programmed));
        if me.drained {
            node.out.get_or_insert(Out::Drained);
        }
        let alone = self.nodes.keys().all(|other| other == name);
        match &self.heard {
            None if !alone => self.decide_deaf(name, node),
            heard => self.decide_hearing(name, node, heard.as_deref().unwrap_or(&Heard::default())),
        }
    }

    /// With what the nodes say of themselves.
    fn decide_hearing(&self, name: &str, own: choice::Node, heard: &Heard) -> Decision {
        let others = self.nodes.iter().map(|(other, node)| (other.clone(), self.heard_of(other, node, heard)));
        let mut nodes: BTreeMap<String, choice::Node> = others.collect();
        if nodes.is_empty() || nodes.contains_key(name) {
            nodes.insert(name.to_owned(), own);
        }
        let choices = Inputs { holders: heard.holders.clone(), ..self.inputs(nodes, |_| true) }.choose();
        let own = choices.iter().filter_map(|(address, choice)| match &choice.answer {
            Ok(answer) if answer.node == name => Some((*address, Own::On(answer.links.clone()))),
            Ok(_) => None,
            Err(_) => Some((*address, Own::of(name, choice.clone()))),
        });
        Decision { own: own.collect(), choices }
    }

    /// Each node decides as if all others were alive and able, and announces what it owns then if it is able.
    fn decide_deaf(&self, name: &str, own: choice::Node) -> Decision {
        let choices = self.owners();
        // Of what nobody announces it is said why.
        let owns = |address: &IpAddr| match choices.get(address).map(|choice| &choice.answer) {
            Some(Ok(answer)) => answer.node == name,
            Some(Err(_)) => true,
            None => false,
        };
        let own = self.inputs(BTreeMap::from([(name.to_owned(), own)]), owns).choose();
        let own = own.into_iter().map(|(address, choice)| (address, Own::of(name, choice))).collect();
        Decision { choices, own }
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
    pub fn none(&self, reason: &str) -> Decision {
        let own = self.addresses().into_iter().map(|address| (address, Own::Silent(reason.to_owned())));
        Decision { own: own.collect(), ..Decision::default() }
    }

    /// Who announces each address, for `culvert l2`.
    pub fn explain(&self, decision: &Decision) -> BTreeMap<IpAddr, Owner> {
        let mut owners: BTreeMap<IpAddr, Owner> = BTreeMap::new();
        for (key, announced) in &self.services {
            for address in &announced.service.addresses {
                let owner = owners.entry(*address).or_insert_with(|| {
                    let (node, reason) = match (decision.own.get(address), decision.choices.get(address)) {
                        (Some(Own::Silent(reason)), _) => (None, reason.clone()),
                        (_, Some(choice)) => match &choice.answer {
                            Ok(answer) => (Some(answer.node.clone()), why(choice)),
                            Err(nobody) => (None, nobody.to_string()),
                        },
                        (_, None) => (None, UNDECIDED.to_owned()),
                    };
                    Owner { services: Vec::new(), node, reason }
                });
                owner.services.push(key.clone());
            }
        }
        owners
    }

    /// All addresses that are to be announced, by whom ever.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.services.values().flat_map(|announced| &announced.service.addresses).copied().collect()
    }

    /// Addresses of the Services that a kernel does not hold.
    pub fn unable(&self, holds: impl Fn(&ServiceKey, &[IpAddr]) -> bool) -> BTreeSet<IpAddr> {
        let missing = self.services.iter().filter(|(key, announced)| !holds(key, &announced.service.addresses));
        missing.flat_map(|(_, announced)| &announced.service.addresses).copied().collect()
    }

    /// Nodes that may answer for addresses, as far as their objects say: these count. Empty: there are no objects.
    pub fn eligible(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().filter(|(_, node)| node.out.is_none()).map(|(name, _)| name.as_str())
    }

    /// Another node, as it is heard.
    fn heard_of(&self, name: &str, node: &choice::Node, heard: &Heard) -> choice::Node {
        let Some(Peer { held_down, said }) = heard.nodes.get(name) else {
            return choice::Node { out: node.out.clone().or(Some(Out::Dead)), ..node.clone() };
        };
        let links = said.links.iter().map(|(name, link)| {
            let prefixes = link.prefixes.clone();
            (name.clone(), Link { up: link.up, prefixes })
        });
        let able = self
            .services
            .iter()
            .filter(|(_, announced)| !announced.service.addresses.iter().any(|address| said.unable.contains(address)));
        let programmed = able.map(|(key, _)| key.clone()).collect();
        let report = Some(self.report(name, links.collect(), programmed));
        let out = node.out.clone().or(said.drained.then_some(Out::Drained));
        choice::Node { out, held_down: *held_down, report, ..node.clone() }
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
        let report = Some(self.report(name, links.collect(), programmed));
        choice::Node { report, ..node.clone() }
    }

    /// What a node would report, with these links and Services in its kernel.
    fn report(&self, node: &str, links: BTreeMap<String, Link>, programmed: BTreeSet<ServiceKey>) -> Report {
        let local = self.services.iter().filter(|(_, announced)| announced.nodes.contains(node));
        let ending = local.clone().filter(|(_, announced)| announced.ending.contains(node));
        Report {
            links,
            programmed,
            local: local.map(|(key, _)| key.clone()).collect(),
            ending: ending.map(|(key, _)| key.clone()).collect(),
        }
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
