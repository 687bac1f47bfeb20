//! What the main loop knows, made into orders for the task.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use culvert_announce::choice::{self, Settings};
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

use crate::announcements::{Announced, Announcements, Own, Owner};

/// What the task is to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// What is to be announced.
    pub wanted: Wanted,
    /// Names of all links that could carry announcements, by ifindex.
    pub names: BTreeMap<u32, String>,
    /// The Services of each address that is to be announced.
    pub services: BTreeMap<IpAddr, BTreeSet<ServiceKey>>,
}

/// The main loop's part: it keeps what the choice depends on, and gives orders when they change.
pub struct Announcer {
    announcements: Announcements,
    /// Why nothing at all is announced, if so.
    hushed: Option<String>,
    /// Something changed since the last decision.
    changed: bool,
    /// The last decision.
    own: BTreeMap<IpAddr, Own>,
    orders: watch::Sender<Option<Arc<Orders>>>,
}

impl Announcer {
    /// Nothing is known yet, and nothing is ordered.
    pub fn new(settings: Settings, orders: watch::Sender<Option<Arc<Orders>>>) -> Self {
        let announcements = Announcements::new(settings);
        Self { announcements, hushed: None, changed: true, own: BTreeMap::new(), orders }
    }

    /// Who announces each address, seen from the node `name`.
    pub fn explain(&self, name: &str) -> BTreeMap<IpAddr, Owner> {
        self.announcements.explain(name, &self.own)
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

    /// Nothing at all is announced for a reason, or for none any more.
    pub fn hush(&mut self, reason: Option<String>) {
        self.changed |= self.hushed != reason;
        self.hushed = reason;
    }

    /// Gives orders, if something changed. `held` is what the kernel holds.
    pub fn decide(&mut self, node: &str, config: &Arc<Config>, report: &Report, held: &BTreeMap<ServiceKey, Held>) {
        self.changed |= self.announcements.configure(config);
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let segments = segments(report);
        let links = segments.values().map(|(name, segment)| ((*name).to_owned(), of_choice(segment))).collect();
        let own = match &self.hushed {
            Some(reason) => self.announcements.none(reason),
            None => self.announcements.own(node, links, |key, addresses| {
                held.get(key).is_some_and(|held| addresses.iter().all(|address| has(held, *address)))
            }),
        };
        let orders = Orders { services: self.announcements.services(&own), ..orders(&segments, &own) };
        self.own = own;
        self.orders.send_if_modified(|last| {
            let changed = last.as_deref() != Some(&orders);
            if changed {
                *last = Some(Arc::new(orders));
            }
            changed
        });
    }
}

/// Links that addresses can be announced on, with their names, by ifindex: those that have our program, which answers.
fn segments(report: &Report) -> BTreeMap<u32, (&str, &Segment)> {
    let hooked = report.links.iter().filter(|link| link.ingress.iter().any(|id| report.own.contains(id)));
    hooked.filter_map(|link| Some((link.index, (link.wanted.name.as_str(), link.wanted.segment.as_ref()?)))).collect()
}

fn of_choice(segment: &Segment) -> choice::Link {
    choice::Link { up: segment.running, prefixes: segment.prefixes.iter().copied().collect() }
}

/// Whether the kernel serves an address.
fn has(held: &Held, address: IpAddr) -> bool {
    held.ports.iter().flat_map(|port| &port.frontends).any(|(at, _)| at.address == address)
}

fn orders(segments: &BTreeMap<u32, (&str, &Segment)>, own: &BTreeMap<IpAddr, Own>) -> Orders {
    let numbers = |names: &BTreeSet<String>| {
        let called = segments.iter().filter(|(_, (name, _))| names.contains(*name));
        called.map(|(index, _)| *index).collect()
    };
    let addresses = own.iter().map(|(address, own)| match own {
        Own::On(names) => (*address, numbers(names)),
        Own::Silent(_) => (*address, BTreeSet::new()),
    });
    let running = segments.iter().filter(|(_, (_, segment))| segment.running);
    let links =
        running.map(|(index, (_, segment))| (*index, Link { mac: Mac(segment.mac), since: segment.carrier_ups }));
    let wanted = Wanted { links: links.collect(), addresses: addresses.collect() };
    let names = segments.iter().map(|(index, (name, _))| (*index, (*name).to_owned())).collect();
    Orders { wanted, names, services: BTreeMap::new() }
}

#[cfg(test)]
mod tests {
    use culvert_dataplane::links::classify::Source;
    use culvert_dataplane::links::task::Hooked;
    use culvert_dataplane::links::{Role, Wanted as Hook};

    use super::*;

    fn link(index: u32, running: bool, program: u32) -> Hooked {
        let mac = [2, 0, 0, 0, 0, index as u8];
        let segment = Segment { mac, running, carrier_ups: 4, prefixes: BTreeSet::new() };
        let wanted = Hook {
            name: format!("eth{index}"),
            role: Role::Node,
            source: Source::default(),
            bridge: None,
            up: true,
            segment: Some(segment),
        };
        Hooked { index, wanted, ingress: vec![99, program], egress: Vec::new() }
    }

    fn own(address: &str, links: &[&str]) -> (IpAddr, Own) {
        (address.parse().unwrap(), Own::On(links.iter().map(|name| (*name).to_owned()).collect()))
    }

    #[test]
    fn orders_name_links_by_number_and_leave_out_those_that_carry_nothing() {
        let links = vec![link(1, true, 7), link(2, false, 7), link(3, true, 8)];
        let report = Report { links, own: BTreeSet::from([7]), ..Report::default() };
        let segments = segments(&report);
        // The third has a program that is not ours: the kernel would not answer there.
        assert_eq!(segments.keys().collect::<Vec<_>>(), [&1, &2]);
        let silent = ("192.0.2.3".parse().unwrap(), Own::Silent("no ready endpoint on any node".to_owned()));
        let decided = [own("192.0.2.1", &["eth1", "eth2"]), own("192.0.2.2", &["eth3"]), silent];
        let Orders { wanted, names, .. } = orders(&segments, &decided.into());
        assert_eq!(wanted.links, BTreeMap::from([(1, Link { mac: Mac([2, 0, 0, 0, 0, 1]), since: 4 })]));
        let addresses: Vec<_> =
            wanted.addresses.values().map(|links| links.iter().copied().collect::<Vec<_>>()).collect();
        assert_eq!(addresses, [vec![1, 2], vec![], vec![]]);
        assert_eq!(names, BTreeMap::from([(1, "eth1".to_owned()), (2, "eth2".to_owned())]));
    }
}
