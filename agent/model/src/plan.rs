//! The plan of one Service on one node, from its digest and what is true of the node.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use culvert_api::plan::{FrontendKind, FrontendPlan, HealthCheck, Problem, Protocol, ServiceKey, ServicePlan};

use crate::address::{self, Family};
use crate::claims::{Claim, Claimant, Claims};
use crate::endpoints::{self, Endpoints, Place, Slices, Wanted};
use crate::node::NodeInfo;
use crate::problem::{self, Reason};
use crate::ranges::Ranges;
use crate::rows::{self, Frontend, Gate};
use crate::service::{PortInfo, ServiceAddress, ServiceInfo};

/// What a plan depends on besides its Service.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub name: &'a str,
    pub node: Option<&'a NodeInfo>,
    /// Addresses that a link of the node carries.
    pub links: &'a HashSet<IpAddr>,
    /// Addresses that any Node lists.
    pub listed: &'a HashMap<IpAddr, usize>,
    pub claims: &'a Claims,
}

/// Plans one Service.
pub(crate) fn plan(key: &ServiceKey, info: &ServiceInfo, slices: &Slices, view: View) -> ServicePlan {
    let mut planner = Planner {
        key,
        info,
        slices,
        view,
        frontends: Vec::new(),
        problems: info.problems.clone(),
        left_to_link: false,
    };
    let mut skipped = info.skipped;
    let health_check = planner.health_check();
    if skipped.is_none() {
        planner.serve();
        planner.problems.extend(slices.values().flat_map(|slice| slice.problems.iter().cloned()));
        if planner.left_to_link && planner.frontends.is_empty() {
            skipped = Some("clusterIPOnLink");
        }
    }
    let Planner { mut frontends, problems, .. } = planner;
    frontends.sort_by_key(|row| (row.address, row.port, row.protocol, row.audience));
    ServicePlan {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        kind: info.kind,
        addresses: addresses_of(&frontends, FrontendKind::LoadBalancer),
        pool: info.pool.as_deref().map(str::to_owned),
        skipped: skipped.map(str::to_owned),
        problems,
        health_check,
        refused: refused(info, &frontends, view),
        frontends,
    }
}

/// Addresses of one kind that have rows; sorted, unique.
fn addresses_of(frontends: &[FrontendPlan], kind: FrontendKind) -> Vec<IpAddr> {
    let mut addresses: Vec<_> = frontends.iter().filter(|row| row.kind == kind).map(|row| row.address).collect();
    addresses.dedup();
    addresses
}

/// Addresses that belong to Services alone, so that a port nobody serves can be refused on them: ClusterIPs and addresses
/// of our own pools, but none that is a node's as well, whatever its Service says.
fn refused(info: &ServiceInfo, frontends: &[FrontendPlan], view: View) -> Vec<IpAddr> {
    let mut addresses = addresses_of(frontends, FrontendKind::ClusterIP);
    if info.pool.is_some() {
        addresses.extend(addresses_of(frontends, FrontendKind::LoadBalancer));
    }
    addresses.retain(|address| !view.links.contains(address) && !view.listed.contains_key(address));
    addresses
}

/// The work of planning.
struct Planner<'a> {
    key: &'a ServiceKey,
    info: &'a ServiceInfo,
    slices: &'a Slices,
    view: View<'a>,
    frontends: Vec<FrontendPlan>,
    problems: Vec<Problem>,
    /// Some ClusterIP is served by whoever put it on a link.
    left_to_link: bool,
}

impl<'a> Planner<'a> {
    fn serve(&mut self) {
        let node_ports: Vec<_> = self.info.ports.iter().map(|port| self.holds_node_port(port)).collect();
        for family in &self.info.families {
            let gate = self.gate(*family);
            for (port, with_node_port) in self.info.ports.iter().zip(&node_ports) {
                self.serve_port(port, *family, &gate, *with_node_port);
            }
        }
    }

    fn serve_port(&mut self, port: &'a PortInfo, family: Family, gate: &Gate, with_node_port: bool) {
        let info = self.info;
        let wanted = Wanted { family, port_name: &port.name, protocol: port.protocol };
        let place = Place { node: self.view.name, zone: self.view.node.and_then(|node| node.zone.as_deref()) };
        let endpoints = Endpoints::new(self.slices, wanted, place, info.internal_local || info.external_local);
        for address in info.addresses.iter().filter(|address| Family::of(address.address) == family) {
            if !self.holds_address(address, port) {
                continue;
            }
            if self.is_on_link(address) {
                self.left_to_link = true;
                continue;
            }
            self.push(port, address.address, port.port, address.kind, gate, &endpoints);
        }
        let Some(node_port) = port.node_port.filter(|_| with_node_port) else { return };
        let addresses = self.view.node.map_or(&[][..], |node| &node.node_port_addresses);
        for address in addresses.iter().filter(|address| Family::of(**address) == family) {
            if self.holds_node_port_at(*address, port, node_port) {
                self.push(port, *address, node_port, FrontendKind::NodePort, gate, &endpoints);
            }
        }
    }

    fn push(
        &mut self,
        port: &PortInfo,
        address: IpAddr,
        number: u16,
        kind: FrontendKind,
        gate: &Gate,
        endpoints: &Endpoints,
    ) {
        let outcomes = match kind {
            FrontendKind::ClusterIP => rows::internal(endpoints, self.info.internal_local),
            _ => rows::external(endpoints, self.info.external_local),
        };
        let frontend = Frontend {
            address,
            port: number,
            protocol: port.protocol,
            kind,
            port_name: &port.name,
            affinity_seconds: self.info.affinity_seconds,
        };
        // Source ranges are for LoadBalancer addresses alone: kube-proxy never filtered node ports and external
        // addresses by them, and says that it cannot start to.
        let open = Gate::Sources(Vec::new());
        let gate = if kind == FrontendKind::LoadBalancer { gate } else { &open };
        self.frontends.extend(rows::rows(frontend, gate, outcomes));
    }

    /// A ClusterIP that a link of this node carries is served by whoever put it there (as `NodeLocal` DNS caches do).
    fn is_on_link(&self, address: &ServiceAddress) -> bool {
        address.kind == FrontendKind::ClusterIP && self.view.links.contains(&address.address)
    }

    /// Who may reach the LoadBalancer addresses of a family. If the node itself is among them, so are those addresses:
    /// where a link carries one, the node's own traffic to it has it as the source (as in kube-proxy).
    fn gate(&self, family: Family) -> Gate {
        let mut sources = match self.info.ranges.of(family) {
            Ranges::Unrestricted => return Gate::Sources(Vec::new()),
            Ranges::Nobody => return Gate::Shut,
            Ranges::Only(prefixes) => prefixes.clone(),
        };
        let node = self.view.node.and_then(|node| node.primary(family));
        if node.is_some_and(|node| sources.iter().any(|prefix| prefix.contains(&node))) {
            let addresses = self.info.addresses_of(FrontendKind::LoadBalancer);
            sources.extend(addresses.filter(|address| Family::of(*address) == family).map(address::host_prefix));
            sources.sort_unstable();
            sources.dedup();
        }
        Gate::Sources(sources)
    }

    /// Whether the Service holds a port of its address; if not, that is a problem.
    fn holds_address(&mut self, address: &ServiceAddress, port: &PortInfo) -> bool {
        let holder = self.view.claims.holder(address.address, port.port, port.protocol);
        let Some(holder) = self.other(holder) else { return true };
        let what = format!("{} port {}", address.address, Claim::port(port.port, port.protocol));
        self.conflict(Reason::ConflictAddress, address.field.to_string(), &what, holder);
        false
    }

    /// Whether the Service holds its node port; if not, that is a problem.
    fn holds_node_port(&mut self, port: &PortInfo) -> bool {
        let Some(node_port) = port.node_port else { return false };
        let holder = self.view.claims.node_port_holder(node_port, port.protocol);
        let Some(holder) = self.other(holder) else { return true };
        let what = format!("node port {}", Claim::port(node_port, port.protocol));
        self.conflict(Reason::ConflictNodePort, format!("spec.ports[{}].nodePort", port.index), &what, holder);
        false
    }

    /// Whether the Service's node port is free at an address of the node: some Service may have claimed that port as one
    /// of its addresses. If it is this Service itself, it needs no second row.
    fn holds_node_port_at(&mut self, address: IpAddr, port: &PortInfo, node_port: u16) -> bool {
        let holder = self.view.claims.holder(address, node_port, port.protocol);
        if let Some(holder) = self.other(holder) {
            let what = format!("{address} port {}", Claim::port(node_port, port.protocol));
            self.conflict(Reason::ConflictNodePort, format!("spec.ports[{}].nodePort", port.index), &what, holder);
            return false;
        }
        let mut own = self.info.addresses.iter().filter(|own| own.address == address);
        let same_port = |other: &PortInfo| other.port == node_port && other.protocol == port.protocol;
        !own.any(|_| self.info.ports.iter().any(same_port))
    }

    fn health_check(&mut self) -> Option<HealthCheck> {
        let port = self.info.health_check_port?;
        if let Some(holder) = self.other(self.view.claims.node_port_holder(port, Protocol::Tcp)) {
            let field = "spec.healthCheckNodePort".to_owned();
            self.conflict(Reason::ConflictHealthCheckNodePort, field, &format!("node port {port}/TCP"), holder);
            return None;
        }
        let local_endpoints = endpoints::local_ready(self.slices, &self.info.families, self.view.name);
        Some(HealthCheck { port, local_endpoints })
    }

    /// The holder, unless it is this Service.
    fn other(&self, holder: Option<&'a Claimant>) -> Option<&'a ServiceKey> {
        holder.map(|holder| &holder.key).filter(|holder| *holder != self.key)
    }

    fn conflict(&mut self, reason: Reason, field: String, what: &str, holder: &ServiceKey) {
        let message = format!("{what} is held by Service {holder}");
        self.problems.push(problem::of_service(reason, self.key, field, message));
    }
}
