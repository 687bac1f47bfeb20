//! What the main loop knows, made into orders for the task.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use culvert_announce::choice;
use culvert_announce::probe::packet::Mac;
use culvert_announce::speaker::{Link, Wanted};
use culvert_api::plan::{ServiceKey, ServicePlan};
use culvert_dataplane::links::classify::Segment;
use culvert_dataplane::links::task::Report;
use culvert_dataplane::reconcile::Held;
use culvert_model::Reach;
use culvert_model::objects::Service;
use culvert_pools::Config;
use culvert_source::{Change, Id, Kind, Object};
use tokio::sync::watch;

use crate::announcements::{Announced, Announcements, Own};

/// What the task is to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// What is to be announced.
    pub wanted: Wanted,
    /// Names of all links that could carry announcements, by ifindex.
    pub names: BTreeMap<u32, String>,
}

/// The main loop's part: it keeps what the choice depends on, and gives orders when they change.
pub struct Announcer {
    announcements: Announcements,
    /// Something changed since the last decision.
    changed: bool,
    orders: watch::Sender<Option<Arc<Orders>>>,
}

impl Announcer {
    /// Nothing is known yet, and nothing is ordered.
    pub fn new(orders: watch::Sender<Option<Arc<Orders>>>) -> Self {
        Self { announcements: Announcements::default(), changed: true, orders }
    }

    /// Takes a change of an object. Services are taken when they are programmed.
    pub fn take(&mut self, change: &Change) {
        self.changed |= match change {
            Change::Upsert(Object::Node(node)) => self.announcements.set_node(node),
            Change::Remove(Id { kind: Kind::Node, key }) => self.announcements.remove_node(&key.name),
            _ => false,
        };
    }

    /// A Service has been programmed, or could not be: what it is, if it is of type `LoadBalancer`.
    pub fn programmed(&mut self, key: &ServiceKey, service: Option<((&Service, &ServicePlan), Reach)>) {
        let service = service.and_then(|((service, plan), reach)| Announced::new(service, plan, reach));
        self.changed |= self.announcements.set_service(key, service);
    }

    /// A Service was tried once more.
    pub fn tried(&mut self, key: &ServiceKey) {
        self.changed |= self.announcements.knows(key);
    }

    /// Links are other ones, or stand otherwise.
    pub fn links_changed(&mut self) {
        self.changed = true;
    }

    /// Gives orders, if something changed. `held` is what the kernel holds.
    pub fn decide(&mut self, node: &str, config: &Arc<Config>, report: &Report, held: &BTreeMap<ServiceKey, Held>) {
        self.changed |= self.announcements.configure(config);
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let segments = segments(report);
        let links = segments.values().map(|(name, segment)| ((*name).to_owned(), of_choice(segment))).collect();
        let own = self.announcements.own(node, links, |key, addresses| {
            held.get(key).is_some_and(|held| addresses.iter().all(|address| has(held, *address)))
        });
        let orders = orders(&segments, own);
        self.orders.send_if_modified(|last| {
            let changed = last.as_deref() != Some(&orders);
            if changed {
                *last = Some(Arc::new(orders));
            }
            changed
        });
    }
}

/// Links that addresses can be announced on, with their names, by ifindex.
fn segments(report: &Report) -> BTreeMap<u32, (&str, &Segment)> {
    let links = report.links.iter();
    links.filter_map(|link| Some((link.index, (link.wanted.name.as_str(), link.wanted.segment.as_ref()?)))).collect()
}

fn of_choice(segment: &Segment) -> choice::Link {
    choice::Link { up: segment.running, prefixes: segment.prefixes.iter().copied().collect() }
}

/// Whether the kernel serves an address.
fn has(held: &Held, address: IpAddr) -> bool {
    held.ports.iter().flat_map(|port| &port.frontends).any(|(at, _)| at.address == address)
}

fn orders(segments: &BTreeMap<u32, (&str, &Segment)>, own: BTreeMap<IpAddr, Own>) -> Orders {
    let numbers = |names: &BTreeSet<String>| {
        let called = segments.iter().filter(|(_, (name, _))| names.contains(*name));
        called.map(|(index, _)| *index).collect()
    };
    let addresses = own.into_iter().map(|(address, own)| match own {
        Own::On(names) => (address, numbers(&names)),
        Own::Silent(_) => (address, BTreeSet::new()),
    });
    let running = segments.iter().filter(|(_, (_, segment))| segment.running);
    let links =
        running.map(|(index, (_, segment))| (*index, Link { mac: Mac(segment.mac), since: segment.carrier_ups }));
    let wanted = Wanted { links: links.collect(), addresses: addresses.collect() };
    Orders { wanted, names: segments.iter().map(|(index, (name, _))| (*index, (*name).to_owned())).collect() }
}
