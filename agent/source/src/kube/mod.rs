//! The source `kube`: objects of an API server. An agent watches Services, EndpointSlices and its own Node, as kube-proxy does;
//! whoever gives out addresses watches Services and what pools are configured with, and whoever announces them all Nodes besides.
//!
//! ```text
//! access: credentials, servers ─► reflect (one task a kind) ─► decode ─► told: differences ─┐
//!    ▲ addresses of API servers                                                             ▼
//!    └──────────────────────────────────────────────────────── pending: the last change of each object ─► batches
//! ```
//!
//! - An API server that is away changes nothing: what was told stays, and the watches go on where they were.
//! - A batch is `Loading` until the first lists of all kinds have ended: a Service without its endpoints must not be programmed.
//! - While the agent is busy, changes wait in `pending`, where a later one takes the place of an earlier one.

mod access;
mod ask;
mod backoff;
mod decode;
mod pending;
mod reflect;
mod servers;
mod told;

use std::sync::Arc;

use tokio::sync::mpsc::{self, Receiver, Sender};

pub use access::{Access, AccessError, Settings};
pub use ask::{Ask, AskError};
pub(crate) use backoff::{random, spread};
pub use servers::Server;

use crate::batch::Batch;
use pending::{News, Pending};
use reflect::{Reflector, Selection};

/// News that may wait to be taken into the queue.
const NEWS: usize = 64;

/// Watches an API server for the agent of a node, by tasks of the current runtime, which end with the receiver. Needs nothing to be
/// there yet: what is wrong is a fault in a batch, and is tried again.
pub fn watch(access: &Arc<Access>, node: &str) -> Receiver<Batch> {
    start(access, Selection::of_node(node))
}

/// The same for whoever gives addresses to Services: all Services, with their versions and finalizers, for their status is to be
/// written; Namespaces; and MetalLB's resources of all namespaces. A kind whose definition is not installed has no objects, and is
/// asked for again; that there are no pools because their definition is missing is never said, for it would take away every address.
pub fn watch_addresses(access: &Arc<Access>) -> Receiver<Batch> {
    start(access, Selection::of_addresses())
}

/// The same for agents that announce in layer 2: all Nodes, pools, advertisements and communities, of all namespaces. It is watched apart
/// from what an agent serves, which has not to wait for any of it.
pub fn watch_layer2(access: &Arc<Access>) -> Receiver<Batch> {
    start(access, Selection::of_layer2())
}

fn start(access: &Arc<Access>, selections: Vec<Selection>) -> Receiver<Batch> {
    // One waits for the receiver; what comes meanwhile is put together.
    let (batches, receiver) = mpsc::channel(1);
    let (news, heard) = mpsc::channel(NEWS);
    let pending = Pending::new(selections.iter().map(Selection::kind));
    for selection in selections {
        tokio::spawn(Reflector::new(selection, Arc::clone(access), news.clone()).run());
    }
    tokio::spawn(deliver(pending, heard, batches));
    receiver
}

/// Delivers news in batches.
async fn deliver(mut pending: Pending, mut heard: Receiver<News>, batches: Sender<Batch>) {
    loop {
        tokio::select! {
            biased;
            news = heard.recv(), if !pending.full() => match news {
                Some(news) => pending.take(news),
                None => return,
            },
            permit = batches.reserve(), if pending.due() => match permit {
                Ok(permit) => permit.send(pending.batch()),
                Err(_) => return,
            },
            () = batches.closed() => return,
        }
    }
}
