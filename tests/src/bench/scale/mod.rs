//! How a proxy scales with Services and endpoints, with a real API server: how long from lists to a kernel that holds everything,
//! how long from a write to the kernel, what memory and CPU time that takes.
//!
//! ```text
//!  namespace `cluster`, for each size          for each start of a proxy
//!                                     ┌─ namespace `n1` ──────────────┐   ┌─ namespace `pods` ───────────────┐
//!  etcd, API server ◄─────────────────┤ the proxy, a client ──────────┼──►│ a server at every endpoint, which│
//!  refuses what nobody translates ◄───┤   of Services and API server  │   │ says at which one it was asked   │
//!                                     └───────────────────────────────┘   └──────────────────────────────────┘
//! ```
//!
//! | Module | Idea |
//! |---|---|
//! | [`objects`] | sizes, and the Services and slices of one (pure) |
//! | [`cluster`] | etcd and an API server that holds them |
//! | [`node`] | the two namespaces |
//! | [`proxy`] | what is measured |
//! | [`probe`] | connections to Services, and who answers |
//! | [`usage`] | memory and CPU time of a process, how busy the machine is |
//! | [`figures`], [`machine`] | what comes out, and on what it was measured |
//!
//! Nothing is asked of a proxy itself: a Service is in the kernel when a connection to it reaches one of its endpoints. What is
//! not so within a limit is a result too.

pub mod cluster;
pub mod figures;
pub mod machine;
pub mod node;
pub mod objects;
pub mod probe;
pub mod proxy;
pub mod usage;

mod phases;

use std::time::Duration;

use anyhow::{Context as _, Result};

use cluster::Cluster;
use figures::Case;
use node::Node;
use objects::Size;
use proxy::Proxy;

/// What is measured, and how often.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In turn, in every round.
    pub proxies: Vec<Proxy>,
    /// How often each proxy is started with the lists waiting.
    pub rounds: usize,
    /// Changes of one endpoint, after the last start.
    pub changes: usize,
    /// How long a start may take until the kernel holds everything.
    pub start_limit: Duration,
    /// How long all changes of a proxy may take.
    pub change_limit: Duration,
}

/// Measures one size with every proxy. `tell` hears what is going on.
pub fn run(plan: &Plan, size: Size, tell: &mut dyn FnMut(&str)) -> Result<Vec<Case>> {
    tell(&format!("{size}: creating the objects"));
    let cluster = Cluster::start(size)?;
    measure(plan, &cluster, tell).with_context(|| size.to_string())
}

fn measure(plan: &Plan, cluster: &Cluster, tell: &mut dyn FnMut(&str)) -> Result<Vec<Case>> {
    let size = cluster.size;
    let mut cases: Vec<Case> = plan.proxies.iter().map(|&proxy| Case::new(size, proxy)).collect();
    for round in 1..=plan.rounds {
        for case in &mut cases {
            // Once too slow is enough.
            if case.loads.iter().any(|load| load.seconds.is_none()) {
                continue;
            }
            let last = round == plan.rounds;
            let what = format!("{size}, {}, round {round} of {}", case.proxy, plan.rounds);
            one(plan, cluster, case, last, &mut |words| tell(&format!("{what}: {words}"))).context(what.clone())?;
        }
    }
    Ok(cases)
}

/// One start of a proxy and, in the last round, changes.
fn one(plan: &Plan, cluster: &Cluster, case: &mut Case, last: bool, tell: &mut dyn FnMut(&str)) -> Result<()> {
    let node = Node::new(cluster)?;
    let (mut running, load) = phases::load(plan, &node, cluster, case.proxy)?;
    tell(&load.to_string());
    let loaded = load.seconds.is_some();
    case.loads.push(load);
    if last && loaded && plan.changes > 0 {
        let changes = phases::change(plan, &node, cluster, &mut running)?;
        tell(&changes.to_string());
        case.changes = Some(changes);
    }
    Ok(())
}
