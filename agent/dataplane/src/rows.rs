//! What a Service's plan means in rows: backends, lists of them, and frontends with a view for each audience. Pure, and
//! without ids; those are the ledger's.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use culvert_abi::{audience, backend, frontend, verdict, view};
use culvert_api::plan::{
    Audience, BackendPlan, BackendState, ClientAddress, FrontendKind, FrontendPlan, Protocol, ServicePlan, Verdict,
};
use ipnet::IpNet;

use crate::{
    codec::{At, Family, FrontendAt, protocol_number},
    ids, maglev,
};

/// The rows of one Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceRows {
    /// Its ports, each in one family.
    pub ports: Vec<PortRows>,
    /// Addresses on which a port that nobody serves is refused.
    pub refused: Vec<IpAddr>,
}

/// The rows of one Service port in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRows {
    /// Hash of its name; see [`ids::identity`].
    pub identity: u64,
    /// Its name, "" if it has none.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its family.
    pub family: Family,
    /// All backends of all its frontends, sorted by address and port.
    pub backends: Vec<Endpoint>,
    /// The different lists of them that frontends use.
    pub tables: Vec<TableRows>,
    /// Its frontends, sorted.
    pub frontends: Vec<FrontendRows>,
}

/// A backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub at: At,
    /// Bits of [`culvert_abi::backend`].
    pub flags: u16,
}

/// A list of backends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TableRows {
    /// Size class of the Maglev slots; 0 = none, the choice is random.
    pub class: u8,
    /// Indexes into [`PortRows::backends`], ascending; never empty.
    pub members: Vec<u32>,
}

/// A frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendRows {
    /// Its key.
    pub at: FrontendAt,
    /// Bits of [`culvert_abi::frontend`].
    pub flags: u32,
    /// Session affinity in seconds, 0 without.
    pub affinity_seconds: u32,
    /// Allowed sources, sorted; empty = all.
    pub ranges: Vec<IpNet>,
    /// What each audience gets, indexed by [`culvert_abi::audience`].
    pub views: [ViewRows; 3],
}

/// What one audience gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewRows {
    /// Index into [`PortRows::tables`]; `None` unless the verdict is BALANCE.
    pub table: Option<usize>,
    /// One of [`culvert_abi::verdict`].
    pub verdict: u8,
    /// Bits of [`culvert_abi::view`].
    pub flags: u8,
}

/// Of a backend that gets nothing new.
const IN_NO_LIST: u16 = backend::NOT_IN_CLUSTER_LIST | backend::NOT_IN_LOCAL_LIST;

/// Bits that a backend has only where all lists with it agree.
const UNANIMOUS: u16 = backend::TERMINATING | IN_NO_LIST;

/// The view of an audience that the plan does not speak of.
const NOTHING: ViewRows = ViewRows { table: None, verdict: verdict::DROP, flags: 0 };

/// The rows of a plan. `own` are the addresses of this node: where a frontend has source ranges, the node's host
/// network is served if one of them is inside (kube-proxy's `allowFromNode`), for its sockets show no source yet.
pub fn rows(plan: &ServicePlan, own: &[IpAddr]) -> ServiceRows {
    let mut ports: BTreeMap<(&str, u8, Family), Vec<&FrontendPlan>> = BTreeMap::new();
    for frontend in &plan.frontends {
        let key = (frontend.port_name.as_str(), protocol_number(frontend.protocol), Family::of(frontend.address));
        ports.entry(key).or_default().push(frontend);
    }
    let ports = ports.into_values().filter_map(|frontends| port_rows(plan, &frontends, own)).collect();
    let mut refused = plan.refused.clone();
    refused.sort_unstable();
    refused.dedup();
    ServiceRows { ports, refused }
}

fn port_rows(plan: &ServicePlan, frontends: &[&FrontendPlan], own: &[IpAddr]) -> Option<PortRows> {
    let first = frontends.first()?;
    let family = Family::of(first.address);
    let mut tables = Tables::new(endpoints(frontends));
    let mut rows: BTreeMap<FrontendAt, FrontendRows> = BTreeMap::new();
    for plan in frontends {
        let at = FrontendAt { address: plan.address, port: plan.port, proto: protocol_number(plan.protocol) };
        let row = rows.entry(at).or_insert_with(|| FrontendRows {
            at,
            flags: kind_flags(plan.kind),
            affinity_seconds: plan.affinity_seconds.unwrap_or(0),
            ranges: plan.source_ranges.clone(),
            views: [NOTHING; 3],
        });
        let view = tables.view(plan);
        for audience in audiences(plan.audience) {
            row.views[*audience] = view;
        }
    }
    let mut frontends: Vec<FrontendRows> = rows.into_values().collect();
    for row in &mut frontends {
        let host_allowed = row.ranges.is_empty() || own.iter().any(|address| inside(&row.ranges, *address));
        if !host_allowed {
            row.views[audience::HOST] = NOTHING;
        }
    }
    Some(PortRows {
        identity: ids::identity(plan, &first.port_name, first.protocol, family),
        name: first.port_name.clone(),
        protocol: first.protocol,
        family,
        backends: tables.backends,
        tables: tables.lists,
        frontends,
    })
}

/// All backends of the frontends: each once, sorted. It is terminating only where every list says so. Those that drain are in no
/// list: they are there for the connections that they have.
fn endpoints(frontends: &[&FrontendPlan]) -> Vec<Endpoint> {
    let mut lists: Vec<&FrontendPlan> = frontends.iter().copied().filter(|plan| !plan.backends.is_empty()).collect();
    // Most frontends of a port share one list.
    lists.sort_unstable_by_key(|plan| (Arc::as_ptr(&plan.backends).addr(), plan.policy_local));
    lists.dedup_by_key(|plan| (Arc::as_ptr(&plan.backends).addr(), plan.policy_local));
    // Without a second list nobody needs to know who is not in it. While the last view of a list goes over to the other
    // one, all backends count for both.
    let both = [true, false].iter().all(|local| lists.iter().any(|plan| plan.policy_local == *local));
    let endpoints = lists.into_iter().flat_map(|list| {
        let absent = match (both, list.policy_local) {
            (false, _) => 0,
            (true, true) => backend::NOT_IN_CLUSTER_LIST,
            (true, false) => backend::NOT_IN_LOCAL_LIST,
        };
        let draining = list.draining.iter().map(|plan| endpoint(plan, IN_NO_LIST));
        list.backends.iter().map(move |plan| endpoint(plan, absent)).chain(draining)
    });
    let mut all: Vec<Endpoint> = endpoints.collect();
    all.sort_unstable_by_key(|endpoint| endpoint.at);
    all.dedup_by(|next, kept| {
        let same = next.at == kept.at;
        if same {
            let agreed = next.flags & kept.flags & UNANIMOUS;
            kept.flags = (next.flags | kept.flags) & !UNANIMOUS | agreed;
        }
        same
    });
    all
}

/// A backend of a list; `absent` are the lists that it is not in, as far as this one knows.
fn endpoint(plan: &BackendPlan, absent: u16) -> Endpoint {
    let local = if plan.local { backend::LOCAL } else { 0 };
    let terminating = if plan.state == BackendState::Terminating { backend::TERMINATING } else { 0 };
    let flags = backend::ALIVE | local | terminating | absent;
    Endpoint { at: At { address: plan.address, port: plan.port }, flags }
}

/// The different lists of a port, while its frontends are read.
struct Tables {
    backends: Vec<Endpoint>,
    lists: Vec<TableRows>,
    known: HashMap<TableRows, usize>,
    /// Plans' lists that were read already, with or without slots.
    read: HashMap<(*const BackendPlan, bool), usize>,
}

impl Tables {
    fn new(backends: Vec<Endpoint>) -> Self {
        Self { backends, lists: Vec::new(), known: HashMap::new(), read: HashMap::new() }
    }

    fn view(&mut self, plan: &FrontendPlan) -> ViewRows {
        let verdict = match plan.verdict {
            Verdict::Balance if !plan.backends.is_empty() => verdict::BALANCE,
            Verdict::Balance | Verdict::Reject => verdict::REJECT,
            Verdict::Drop => verdict::DROP,
        };
        let client = match plan.client_address {
            ClientAddress::Kept => 0,
            ClientAddress::Replaced => view::REPLACE_CLIENT,
        };
        let list = if plan.policy_local { view::LOCAL_LIST } else { 0 };
        let table = (verdict == verdict::BALANCE).then(|| self.list(plan));
        ViewRows { table, verdict, flags: client | list }
    }

    fn list(&mut self, plan: &FrontendPlan) -> usize {
        // Only where another node must choose alike are slots worth their memory.
        let agreed = match plan.kind {
            FrontendKind::ClusterIP => false,
            FrontendKind::NodePort | FrontendKind::ExternalIP | FrontendKind::LoadBalancer => true,
        };
        let key = (plan.backends.as_ptr(), agreed);
        if let Some(index) = self.read.get(&key) {
            return *index;
        }
        let members = self.members(&plan.backends);
        let class = if agreed { maglev::class(members.len()) } else { 0 };
        let table = TableRows { class, members };
        let index = self.known.get(&table).copied().unwrap_or_else(|| {
            self.lists.push(table.clone());
            self.known.insert(table, self.lists.len() - 1);
            self.lists.len() - 1
        });
        self.read.insert(key, index);
        index
    }

    fn members(&self, backends: &[BackendPlan]) -> Vec<u32> {
        let index = |backend: &BackendPlan| {
            let at = At { address: backend.address, port: backend.port };
            self.backends.binary_search_by_key(&at, |endpoint| endpoint.at).ok()
        };
        let mut members: Vec<u32> = backends.iter().filter_map(index).map(|index| index as u32).collect();
        members.sort_unstable();
        members.dedup();
        members
    }
}

fn kind_flags(kind: FrontendKind) -> u32 {
    match kind {
        FrontendKind::ClusterIP => frontend::CLUSTER_IP,
        FrontendKind::NodePort => frontend::NODE_PORT,
        FrontendKind::ExternalIP | FrontendKind::LoadBalancer => frontend::EXTERNAL,
    }
}

fn audiences(audience: Audience) -> &'static [usize] {
    match audience {
        Audience::Any => &[audience::PODS, audience::HOST, audience::EXTERNAL],
        Audience::Pods => &[audience::PODS],
        Audience::Host => &[audience::HOST],
        Audience::External => &[audience::EXTERNAL],
    }
}

fn inside(ranges: &[IpNet], address: IpAddr) -> bool {
    ranges.iter().any(|range| range.contains(&address))
}
