//! What the main loop knows, and what is heard of other nodes, made into orders for the task.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use culvert_announce::choice::{self, Settings};
use culvert_announce::liveness::{self, Said};
use culvert_announce::probe::packet::Mac;
use culvert_announce::speaker::{Link, Wanted};
use culvert_api::plan::{ServiceKey, ServicePlan};
use culvert_dataplane::links::classify::Segment;
use culvert_dataplane::links::task::Report;
use culvert_dataplane::reconcile::Held;
use culvert_model::Reach;
use culvert_model::objects::{Node, Service};
use culvert_pools::Config;
use culvert_source::{Change, Id, Kind, Object};
use tokio::sync::watch;

use super::drain::Mark;
use crate::announcements::{Announced, Announcements, Decision, Heard, Me, Own, Owner};

/// What the task is to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// What is to be announced; `None`: it is not known yet what other nodes announce.
    pub wanted: Option<Wanted>,
    /// Names of all links that could carry announcements, by ifindex.
    pub names: BTreeMap<u32, String>,
    /// What other nodes are to know of this one.
    pub said: Said,
    /// The nodes that count, with their addresses. Empty: there are no Nodes, and this one is alone.
    pub eligible: BTreeMap<String, Vec<IpAddr>>,
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
    /// Addresses of the nodes.
    nodes: BTreeMap<String, Vec<IpAddr>>,
    /// Whether this node is drained.
    drained: Mark,
    /// What is heard of other nodes; `None`: they do not hear each other.
    hearing: Option<watch::Receiver<Option<Arc<Heard>>>>,
    /// The last decision.
    decision: Decision,
    orders: watch::Sender<Option<Arc<Orders>>>,
}

impl Announcer {
    /// Nothing is known yet, and nothing is ordered.
    pub fn new(
        settings: Settings,
        orders: watch::Sender<Option<Arc<Orders>>>,
        hearing: Option<watch::Receiver<Option<Arc<Heard>>>>,
        drained: Mark,
    ) -> Self {
        let announcements = Announcements::new(settings);
        let (nodes, decision) = (BTreeMap::new(), Decision::default());
        Self { announcements, hushed: None, changed: true, nodes, drained, hearing, decision, orders }
    }

    /// Waits until something else is heard of other nodes.
    pub async fn hears(&mut self) {
        let Some(hearing) = &mut self.hearing else { return std::future::pending().await };
        if hearing.changed().await.is_err() {
            return std::future::pending().await;
        }
        if let Some(heard) = hearing.borrow_and_update().clone() {
            self.changed |= self.announcements.set_heard(heard);
        }
    }

    /// The node is to announce nothing, or may again.
    pub fn drain(&mut self, drained: bool) -> io::Result<()> {
        self.changed |= self.drained.is_set() != drained;
        self.drained.set(drained)
    }

    /// Whether it is to announce nothing.
    pub fn is_drained(&self) -> bool {
        self.drained.is_set()
    }

    /// Who announces each address, by the last decision.
    pub fn explain(&self) -> BTreeMap<IpAddr, Owner> {
        self.announcements.explain(&self.decision)
    }

    /// Takes a change of an object. Services are taken when they are programmed.
    pub fn take(&mut self, change: &Change) {
        self.changed |= match change {
            Change::Upsert(Object::Node(node)) => {
                let addresses: Vec<IpAddr> = internal_addresses(node).collect();
                let moved = self.nodes.insert(node.metadata.name.clone(), addresses.clone()) != Some(addresses);
                self.announcements.set_node(node) || moved
            }
            Change::Remove(Id { kind: Kind::Node, key }) => {
                self.nodes.remove(&*key.name);
                self.announcements.remove_node(&key.name)
            }
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
        let me = Me { links, drained: self.drained.is_set() };
        let holds = |key: &ServiceKey, addresses: &[IpAddr]| {
            held.get(key).is_some_and(|held| addresses.iter().all(|address| has(held, *address)))
        };
        self.decision = match &self.hushed {
            Some(reason) => self.announcements.none(reason),
            None => self.announcements.decide(node, me, holds),
        };
        let eligible = self.announcements.eligible().map(|name| {
            let addresses = self.nodes.get(name).cloned().unwrap_or_default();
            (name.to_owned(), addresses)
        });
        let eligible = eligible.collect();
        let said = Said {
            links: segments.values().map(|(name, segment)| ((*name).to_owned(), of_said(segment))).collect(),
            unable: self.announcements.unable(holds),
            announced: BTreeSet::new(),
            drained: self.drained.is_set() || self.hushed.is_some(),
        };
        let used = self.announcements.addresses();
        let services = self.announcements.services(&self.decision.own);
        let mut orders = Orders { said, eligible, services, ..orders(&segments, &self.decision.own, used) };
        if self.hearing.is_some() && !self.announcements.hears() {
            orders.wanted = None;
        }
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

fn of_said(segment: &Segment) -> liveness::Link {
    let prefixes = segment.prefixes.iter().copied().collect();
    liveness::Link { up: segment.running, mac: Mac(segment.mac), prefixes }
}

fn internal_addresses(node: &Node) -> impl Iterator<Item = IpAddr> {
    let internal = node.status.addresses.iter().filter(|address| address.kind == "InternalIP");
    internal.filter_map(|address| address.address.parse().ok())
}

/// Whether the kernel serves an address.
fn has(held: &Held, address: IpAddr) -> bool {
    held.ports.iter().flat_map(|port| &port.frontends).any(|(at, _)| at.address == address)
}

fn orders(segments: &BTreeMap<u32, (&str, &Segment)>, own: &BTreeMap<IpAddr, Own>, used: BTreeSet<IpAddr>) -> Orders {
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
    let wanted = Some(Wanted { links: links.collect(), addresses: addresses.collect(), used });
    let names = segments.iter().map(|(index, (name, _))| (*index, (*name).to_owned())).collect();
    Orders { wanted, names, ..Orders::default() }
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
        let Orders { wanted, names, .. } = orders(&segments, &decided.into(), BTreeSet::new());
        let wanted = wanted.unwrap();
        assert_eq!(wanted.links, BTreeMap::from([(1, Link { mac: Mac([2, 0, 0, 0, 0, 1]), since: 4 })]));
        let addresses: Vec<_> =
            wanted.addresses.values().map(|links| links.iter().copied().collect::<Vec<_>>()).collect();
        assert_eq!(addresses, [vec![1, 2], vec![], vec![]]);
        assert_eq!(names, BTreeMap::from([(1, "eth1".to_owned()), (2, "eth2".to_owned())]));
    }
}
