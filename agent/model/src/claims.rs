//! Who holds what only one Service can have: an address with port and protocol, or a node port.
//!
//! The decision is the same on every node: it reads the Services, and of the Nodes only which addresses serve node
//! ports anywhere; never what is true of one node alone.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use culvert_api::plan::{Protocol, ServiceKey};
use jiff::Timestamp;

use crate::address;

/// Something that only one Service can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// A port of an address.
    Address(IpAddr, u16, Protocol),
    /// A port of every node.
    NodePort(u16, Protocol),
}

impl Claim {
    /// A port as messages write it.
    pub(crate) fn port(port: u16, protocol: Protocol) -> String {
        let protocol = match protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        };
        format!("{port}/{protocol}")
    }
}

/// A claimant, ordered by precedence: the oldest first, without a creation time last, then by namespace and name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Claimant {
    pub created: Option<Timestamp>,
    pub key: ServiceKey,
}

impl Ord for Claimant {
    fn cmp(&self, other: &Self) -> Ordering {
        let rank = |claimant: &Self| (claimant.created.is_none(), claimant.created);
        rank(self).cmp(&rank(other)).then_with(|| self.key.cmp(&other.key))
    }
}

impl PartialOrd for Claimant {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Claimants of one thing, sorted; the first one holds it. Nearly always one.
type Claimants = Vec<Arc<Claimant>>;

/// All claims of all Services.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    addresses: BTreeMap<(IpAddr, u16, Protocol), Claimants>,
    node_ports: BTreeMap<(u16, Protocol), Claimants>,
    /// Addresses on which some Node serves node ports, with the number of Nodes.
    nodes: HashMap<IpAddr, usize>,
    /// Keys of `addresses` whose address is in `nodes`, by port: where an address and a node port may meet.
    meetings: BTreeSet<(u16, Protocol, IpAddr)>,
}

impl Claims {
    /// Adds a claim. Other Services whose outcome may change go to `touched`: none, as long as the holder stays.
    pub(crate) fn insert(&mut self, claim: Claim, claimant: &Arc<Claimant>, touched: &mut BTreeSet<ServiceKey>) {
        let claimants = match claim {
            Claim::Address(address, port, protocol) => {
                if self.nodes.contains_key(&address) {
                    self.meetings.insert((port, protocol, address));
                }
                self.addresses.entry((address, port, protocol)).or_default()
            }
            Claim::NodePort(port, protocol) => self.node_ports.entry((port, protocol)).or_default(),
        };
        let Err(at) = claimants.binary_search(claimant) else { return };
        claimants.reserve_exact(1);
        claimants.insert(at, claimant.clone());
        if at == 0 {
            self.touch(claim, touched);
        }
    }

    /// Takes a claim back. Other Services whose outcome may change go to `touched`: none, as long as the holder stays.
    pub(crate) fn remove(&mut self, claim: Claim, claimant: &Claimant, touched: &mut BTreeSet<ServiceKey>) {
        let holder = match claim {
            Claim::Address(address, port, protocol) => self.addresses.get(&(address, port, protocol)),
            Claim::NodePort(port, protocol) => self.node_ports.get(&(port, protocol)),
        };
        if holder.and_then(|claimants| claimants.first()).is_some_and(|holder| **holder == *claimant) {
            self.touch(claim, touched);
        }
        match claim {
            Claim::Address(address, port, protocol) => {
                let key = (address, port, protocol);
                if remove_from(&mut self.addresses, &key, claimant) {
                    self.meetings.remove(&(port, protocol, address));
                }
            }
            Claim::NodePort(port, protocol) => {
                remove_from(&mut self.node_ports, &(port, protocol), claimant);
            }
        }
    }

    /// Who holds a port of an address: the first of those who ask for it, and of those with that node port if a Node
    /// serves node ports there.
    pub(crate) fn holder(&self, address: IpAddr, port: u16, protocol: Protocol) -> Option<&Claimant> {
        let claimant = self.addresses.get(&(address, port, protocol)).and_then(|claimants| claimants.first());
        let on_node = self.nodes.contains_key(&address).then(|| self.node_ports.get(&(port, protocol))).flatten();
        claimant.into_iter().chain(on_node.and_then(|claimants| claimants.first())).min().map(Arc::as_ref)
    }

    /// Who holds a node port.
    pub(crate) fn node_port_holder(&self, port: u16, protocol: Protocol) -> Option<&Claimant> {
        self.node_ports.get(&(port, protocol)).and_then(|claimants| claimants.first()).map(Arc::as_ref)
    }

    /// Services with any claim on an address.
    pub(crate) fn touch_address(&self, address: IpAddr, touched: &mut BTreeSet<ServiceKey>) {
        for (_, claimants) in self.of_address(address) {
            touched.extend(claimants.iter().map(|claimant| claimant.key.clone()));
        }
    }

    /// One more Node serves node ports on an address.
    pub(crate) fn add_node_address(&mut self, address: IpAddr, touched: &mut BTreeSet<ServiceKey>) {
        let count = self.nodes.entry(address).or_default();
        *count += 1;
        if *count == 1 {
            let ports: Vec<_> = self.of_address(address).map(|(&(_, port, protocol), _)| (port, protocol)).collect();
            for (port, protocol) in ports {
                self.meetings.insert((port, protocol, address));
                self.touch(Claim::Address(address, port, protocol), touched);
            }
        }
    }

    /// One Node less serves node ports on an address.
    pub(crate) fn remove_node_address(&mut self, address: IpAddr, touched: &mut BTreeSet<ServiceKey>) {
        let Some(count) = self.nodes.get_mut(&address) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        let ports: Vec<_> = self.of_address(address).map(|(&(_, port, protocol), _)| (port, protocol)).collect();
        for (port, protocol) in ports {
            self.touch(Claim::Address(address, port, protocol), touched);
            self.meetings.remove(&(port, protocol, address));
        }
        self.nodes.remove(&address);
    }

    fn of_address(&self, address: IpAddr) -> impl Iterator<Item = (&(IpAddr, u16, Protocol), &Claimants)> {
        self.addresses.range((address, 0, Protocol::Tcp)..=(address, u16::MAX, Protocol::Sctp))
    }

    /// Everybody whose outcome a claim can change: those who ask for the same, and those whom it meets on a Node.
    fn touch(&self, claim: Claim, touched: &mut BTreeSet<ServiceKey>) {
        let mut touch = |claimants: Option<&Claimants>| {
            for claimant in claimants.into_iter().flatten() {
                touched.insert(claimant.key.clone());
            }
        };
        match claim {
            Claim::Address(address, port, protocol) => {
                touch(self.addresses.get(&(address, port, protocol)));
                if self.nodes.contains_key(&address) {
                    touch(self.node_ports.get(&(port, protocol)));
                }
            }
            Claim::NodePort(port, protocol) => {
                touch(self.node_ports.get(&(port, protocol)));
                let first = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
                for (.., address) in self.meetings.range((port, protocol, first)..=(port, protocol, address::LAST)) {
                    touch(self.addresses.get(&(*address, port, protocol)));
                }
            }
        }
    }
}

/// Removes a claimant; true if nobody is left.
fn remove_from<K: Ord>(map: &mut BTreeMap<K, Claimants>, key: &K, claimant: &Claimant) -> bool {
    let Some(claimants) = map.get_mut(key) else { return true };
    claimants.retain(|other| **other != *claimant);
    let empty = claimants.is_empty();
    if empty {
        map.remove(key);
    }
    empty
}
