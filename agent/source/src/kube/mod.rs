//! The source `kube`: Services, EndpointSlices and the own Node from an API server, watched as kube-proxy watches them.
//!
//! ```text
//! access: credentials, servers ─► reflect (one task a kind) ─► decode ─► told: differences ─┐
//!    ▲ addresses of API servers                                                             ▼
//!    └──────────────────────────────────────────────────────── pending: the last change of each object ─► batches
//! ```
//!
//! - An API server that is away changes nothing: what was told stays, and the watches go on where they were.
//! - A batch is `Loading` until all three first lists have ended: a Service without its endpoints must not be programmed.
//! - While the agent is busy, changes wait in `pending`, where a later one takes the place of an earlier one.

mod access;
mod backoff;
mod decode;
mod pending;
mod reflect;
mod servers;
mod told;

use std::sync::Arc;

use tokio::sync::mpsc::{self, Receiver, Sender};

pub use access::{Access, AccessError, Settings};
pub(crate) use backoff::{random, spread};
pub use servers::Server;

use crate::batch::Batch;
use crate::object::Kind;
use pending::{News, Pending};
use reflect::{Reflector, Selection};

/// News that may wait to be taken into the queue.
const NEWS: usize = 64;

/// Watches an API server by tasks of the current runtime, which end with the receiver. Needs nothing to be there yet: what is wrong is
/// a fault in a batch, and is tried again.
pub fn watch(access: &Arc<Access>, node: &str) -> Receiver<Batch> {
    // One waits for the receiver; what comes meanwhile is put together.
    let (batches, receiver) = mpsc::channel(1);
    let (news, heard) = mpsc::channel(NEWS);
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
        let reflector = Reflector::new(Selection::of(kind, node), Arc::clone(access), news.clone());
        tokio::spawn(reflector.run());
    }
    tokio::spawn(deliver(heard, batches));
    receiver
}

/// Delivers news in batches.
async fn deliver(mut heard: Receiver<News>, batches: Sender<Batch>) {
    let mut pending = Pending::default();
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
