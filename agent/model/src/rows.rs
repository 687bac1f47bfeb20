//! What each audience gets at a frontend: the traffic policies with their short-circuits.

use std::net::IpAddr;

use culvert_api::plan::{Audience, ClientAddress, FrontendKind, FrontendPlan, Protocol, Topology, Verdict};
use ipnet::IpNet;

use crate::endpoints::{Endpoints, List};

/// The frontend that rows are made for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frontend<'a> {
    pub address: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
    pub kind: FrontendKind,
    pub port_name: &'a str,
    pub affinity_seconds: Option<u32>,
}

/// Who may come in.
#[derive(Clone, Debug)]
pub(crate) enum Gate {
    /// Clients inside these prefixes; empty = everybody.
    Sources(Vec<IpNet>),
    /// Nobody.
    Shut,
}

/// What one audience gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    verdict: Verdict,
    topology: Topology,
    client_address: ClientAddress,
    list: List,
    policy_local: bool,
}

impl Outcome {
    fn refuse(verdict: Verdict) -> Self {
        let list = List::default();
        Self { verdict, topology: Topology::None, client_address: ClientAddress::Kept, list, policy_local: false }
    }

    fn cluster(endpoints: &Endpoints, client_address: ClientAddress) -> Self {
        let (topology, list) = (endpoints.topology, endpoints.cluster.clone());
        Self { verdict: Verdict::Balance, topology, client_address, list, policy_local: false }
    }

    fn local(endpoints: &Endpoints, client_address: ClientAddress) -> Self {
        if endpoints.local.backends.is_empty() {
            return Self::refuse(Verdict::Drop);
        }
        // Where both policies have the same list, it is one: audiences that get the same share a row.
        let policy_local = endpoints.local.backends != endpoints.cluster.backends;
        let list = if policy_local { endpoints.local.clone() } else { endpoints.cluster.clone() };
        Self { verdict: Verdict::Balance, topology: Topology::None, client_address, list, policy_local }
    }
}

/// What pods, host and everything else get at a ClusterIP. Clients from outside the cluster have no route back but
/// through this node: their address is replaced.
pub(crate) fn internal(endpoints: &Endpoints, policy_local: bool) -> [Outcome; 3] {
    use ClientAddress::{Kept, Replaced};
    let list = if policy_local { Outcome::local } else { Outcome::cluster };
    if endpoints.any { [Kept, Kept, Replaced].map(|client| list(endpoints, client)) } else { rejected() }
}

/// What pods, host and everything else get at a node port, external or LoadBalancer address. With policy Local the
/// node's own traffic takes the cluster's endpoints all the same: it stands for a way out to the balancer and back in.
pub(crate) fn external(endpoints: &Endpoints, policy_local: bool) -> [Outcome; 3] {
    use ClientAddress::{Kept, Replaced};
    if !endpoints.any {
        return rejected();
    }
    let own = Outcome::cluster(endpoints, Kept);
    let others = if policy_local { Outcome::local(endpoints, Kept) } else { Outcome::cluster(endpoints, Replaced) };
    [own.clone(), own, others]
}

fn rejected() -> [Outcome; 3] {
    [(); 3].map(|()| Outcome::refuse(Verdict::Reject))
}

/// The rows of a frontend: one for all if all get the same, else three.
pub(crate) fn rows(frontend: Frontend, gate: &Gate, outcomes: [Outcome; 3]) -> impl Iterator<Item = FrontendPlan> {
    let (sources, outcomes) = match gate {
        Gate::Sources(sources) => (sources.clone(), outcomes),
        Gate::Shut => (Vec::new(), [(); 3].map(|()| Outcome::refuse(Verdict::Drop))),
    };
    let alike = outcomes[0] == outcomes[1] && outcomes[1] == outcomes[2];
    let (audiences, count) =
        if alike { ([Audience::Any; 3], 1) } else { ([Audience::Pods, Audience::Host, Audience::External], 3) };
    audiences.into_iter().zip(outcomes).take(count).map(move |(audience, outcome)| FrontendPlan {
        address: frontend.address,
        port: frontend.port,
        protocol: frontend.protocol,
        kind: frontend.kind,
        audience,
        source_ranges: sources.clone(),
        affinity_seconds: frontend.affinity_seconds,
        topology: outcome.topology,
        client_address: outcome.client_address,
        verdict: outcome.verdict,
        backends: outcome.list.backends,
        draining: outcome.list.draining,
        port_name: frontend.port_name.to_owned(),
        policy_local: outcome.policy_local,
    })
}
