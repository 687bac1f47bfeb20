//! Which endpoints a Service port has on one node (kube-proxy's `CategorizeEndpoints`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use culvert_api::plan::{BackendPlan, BackendState, Protocol, Topology};

use crate::address::Family;
use crate::slice::{EndpointInfo, EndpointState, SliceInfo};

/// The slices of a Service by name.
pub(crate) type Slices = BTreeMap<Box<str>, SliceInfo>;

/// Which endpoints to look for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub family: Family,
    pub port_name: &'a str,
    pub protocol: Protocol,
}

/// Where to look from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub node: &'a str,
    pub zone: Option<&'a str>,
}

/// The endpoints of a Service port as one node uses them.
#[derive(Clone, Debug)]
pub(crate) struct Endpoints {
    /// For traffic policy Cluster: ready ones that topology admits, else terminating ones that serve.
    pub cluster: List,
    /// The topology mode that chose `cluster`.
    pub topology: Topology,
    /// For traffic policy Local: ready ones of this node, else its terminating ones that serve.
    pub local: List,
    /// Some endpoint anywhere may get traffic. If so, `cluster` is not empty.
    pub any: bool,
}

/// What one traffic policy gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct List {
    /// For new connections.
    pub backends: Arc<[BackendPlan]>,
    /// Others, that end and serve until then the connections that they have (kube-proxy's `CleanStaleEntries`).
    pub draining: Arc<[BackendPlan]>,
}

/// An endpoint with the port that its slice gives it.
struct Candidate<'a> {
    address: IpAddr,
    port: u16,
    local: bool,
    endpoint: &'a EndpointInfo,
}

impl Candidate<'_> {
    fn ready(&self) -> bool {
        self.endpoint.state == EndpointState::Ready
    }

    fn backend(&self) -> BackendPlan {
        BackendPlan {
            address: self.address,
            port: self.port,
            node: self.endpoint.node.clone(),
            state: if self.ready() { BackendState::Ready } else { BackendState::Terminating },
            local: self.local,
        }
    }
}

impl Endpoints {
    /// Looks through the slices; the local list is left empty unless it is wanted.
    pub(crate) fn new(slices: &Slices, wanted: Wanted, place: Place, with_local: bool) -> Self {
        let candidates = candidates(slices, wanted, place.node);
        let topology = topology(&candidates, place);
        let cluster = prefer_ready(candidates.iter(), |candidate| match topology {
            Topology::Node => has(&candidate.endpoint.node_hints, Some(place.node)),
            Topology::Zone => has(&candidate.endpoint.zone_hints, place.zone),
            Topology::None => true,
        });
        let of_this_node = candidates.iter().filter(|candidate| candidate.local);
        let local = if with_local { prefer_ready(of_this_node, |_| true) } else { List::default() };
        Self { cluster, topology, local, any: !candidates.is_empty() }
    }
}

/// All endpoints of the port that may get traffic, unique and sorted by address and port. Of an address in two slices the
/// better state wins, then local over not, then the first slice by name.
fn candidates<'a>(slices: &'a Slices, wanted: Wanted, node: &str) -> Vec<Candidate<'a>> {
    let mut candidates = Vec::new();
    for slice in slices.values().filter(|slice| slice.family == wanted.family) {
        let ports =
            slice.ports.iter().filter(|port| *port.name == *wanted.port_name && port.protocol == wanted.protocol);
        for port in ports {
            candidates.extend(slice.endpoints.iter().map(|endpoint| Candidate {
                address: endpoint.address,
                port: port.port,
                local: endpoint.node.as_deref() == Some(node),
                endpoint,
            }));
        }
    }
    candidates.sort_by_key(|candidate| (candidate.address, candidate.port, candidate.endpoint.state, !candidate.local));
    candidates.dedup_by_key(|candidate| (candidate.address, candidate.port));
    candidates.retain(|candidate| candidate.endpoint.state != EndpointState::NotReady);
    candidates
}

/// The mode in force: node hints, else zone hints; each only if every ready endpoint has one and one of them is for
/// this place.
fn topology(candidates: &[Candidate], place: Place) -> Topology {
    let applies = |hints: fn(&EndpointInfo) -> &[Arc<str>], name: Option<&str>| {
        let mut ready = candidates.iter().filter(|candidate| candidate.ready()).map(|c| hints(c.endpoint));
        ready.clone().all(|hints| !hints.is_empty()) && ready.any(|hints| has(hints, name))
    };
    if applies(|endpoint| &endpoint.node_hints, Some(place.node)) {
        return Topology::Node;
    }
    if applies(|endpoint| &endpoint.zone_hints, place.zone) {
        return Topology::Zone;
    }
    Topology::None
}

fn has(hints: &[Arc<str>], name: Option<&str>) -> bool {
    name.is_some_and(|name| hints.iter().any(|hint| **hint == *name))
}

/// The ready ones that are admitted; without any, the terminating ones. (Topology has no say in those: a mode is in force
/// only if it admits a ready one, and who is about to end may have got connections before there was any.)
fn prefer_ready<'a>(
    candidates: impl Iterator<Item = &'a Candidate<'a>> + Clone,
    admits: impl Fn(&Candidate) -> bool,
) -> List {
    let ready = candidates.clone().filter(|candidate| candidate.ready() && admits(candidate));
    let ready: Arc<[_]> = ready.map(Candidate::backend).collect();
    let terminating: Arc<[_]> = candidates.filter(|candidate| !candidate.ready()).map(Candidate::backend).collect();
    if ready.is_empty() {
        return List { backends: terminating, draining: Arc::default() };
    }
    List { backends: ready, draining: terminating }
}

/// Ready endpoints on a node, counted by address, for the health check server. kube-proxy counts each family on its
/// own and answers on each with its count; the larger one is the number of pods of a dual-stack Service.
pub(crate) fn local_ready(slices: &Slices, families: &[Family], node: &str) -> usize {
    let count = |family: &Family| {
        let slices = slices.values().filter(|slice| slice.family == *family && !slice.ports.is_empty());
        let endpoints = slices.flat_map(|slice| slice.endpoints.iter());
        let local = endpoints.filter(|endpoint| endpoint.node.as_deref() == Some(node));
        let mut addresses: Vec<_> =
            local.filter(|endpoint| endpoint.state == EndpointState::Ready).map(|endpoint| endpoint.address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses.len()
    };
    families.iter().map(count).max().unwrap_or(0)
}

/// Whether some endpoint may get traffic, whatever its port.
pub(crate) fn any(slices: &Slices) -> bool {
    usable(slices).next().is_some()
}

/// The nodes of endpoints that may get traffic, and those of them where none is ready, for all are about to end.
pub(crate) fn nodes(slices: &Slices) -> (BTreeSet<Arc<str>>, BTreeSet<Arc<str>>) {
    let of = |endpoint: &EndpointInfo| endpoint.node.clone();
    let nodes: BTreeSet<_> = usable(slices).filter_map(of).collect();
    let ready = usable(slices).filter(|endpoint| endpoint.state == EndpointState::Ready);
    let ready: BTreeSet<_> = ready.filter_map(of).collect();
    let ending = nodes.difference(&ready).cloned().collect();
    (nodes, ending)
}

/// Endpoints that may get traffic; with some that an address of a better state stands for, which is of the same Service.
fn usable(slices: &Slices) -> impl Iterator<Item = &EndpointInfo> {
    let slices = slices.values().filter(|slice| !slice.ports.is_empty());
    slices.flat_map(|slice| &slice.endpoints).filter(|endpoint| endpoint.state != EndpointState::NotReady)
}
