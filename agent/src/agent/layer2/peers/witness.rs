//! Who decides between two halves: a Lease at the API server, which one side gets, or the gateway's answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_announce::liveness::{Time, Times};
use culvert_source::kube::Access;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::clock;
use super::gateway;
use crate::election::lease::{Candidate, Terms};
use crate::election::{Election, Place, Term};

/// What is asked.
#[derive(Clone)]
pub enum Way {
    /// A Lease.
    Lease {
        /// The API server.
        access: Arc<Access>,
        /// Where the Lease is.
        place: Place,
        /// This node's name.
        identity: String,
    },
    /// The default gateway.
    Gateway,
}

/// A witness, who is asked only while it is needed.
pub struct Witness {
    way: Way,
    until: watch::Sender<Time>,
    told: watch::Receiver<Time>,
    /// Dropped, the asking ends.
    end: Option<oneshot::Sender<()>>,
    /// Whoever asks, or asked last.
    asking: Option<JoinHandle<()>>,
}

impl Witness {
    /// Nobody is asked yet.
    pub fn new(way: Way) -> Self {
        let (until, told) = watch::channel(Time::ZERO);
        Self { way, until, told, end: None, asking: None }
    }

    /// Until when it stands with this node.
    pub fn until(&mut self) -> Time {
        *self.told.borrow_and_update()
    }

    /// Waits until that is another time.
    pub async fn changed(&mut self) {
        if self.told.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether it may stand with both sides.
    pub fn is_weak(&self) -> bool {
        matches!(self.way, Way::Gateway)
    }

    /// Whether it is being asked.
    pub fn is_asked(&self) -> bool {
        self.end.is_some()
    }

    /// Begins to ask, or ends.
    pub fn ask(&mut self, needed: bool) {
        if needed == self.is_asked() {
            return;
        }
        if !needed {
            self.end = None;
            self.until.send_replace(Time::ZERO);
            return;
        }
        let (end, ended) = oneshot::channel();
        self.end = Some(end);
        // Of its own: what an earlier one says late is not heard.
        let (until, told) = watch::channel(Time::ZERO);
        (self.until, self.told) = (until.clone(), told);
        let before = self.asking.take();
        self.asking = Some(match self.way.clone() {
            Way::Gateway => tokio::spawn(gateway::ask(until, ended, Times::default().lease)),
            Way::Lease { access, place, identity } => tokio::spawn(async move {
                // What the last one gives back late would be taken from this one, for they have one name.
                if let Some(before) = before {
                    let _ = before.await;
                }
                let candidate = Candidate::new(identity, TERMS, Instant::now());
                let election = Election::new(access, place, candidate, TERMS.attempt());
                tokio::spawn(pass_on(election.term(), until));
                election.run(ended).await;
            }),
        });
    }
}

/// Short, for somebody waits for an answer; and it is asked for only while nodes are missing.
const TERMS: Terms = Terms {
    duration: Duration::from_secs(2),
    deadline: Duration::from_millis(1500),
    retry: Duration::from_millis(300),
};

/// Says on the boot clock until when the Lease is held.
async fn pass_on(mut term: watch::Receiver<Term>, until: watch::Sender<Time>) {
    while term.changed().await.is_ok() {
        let held = term.borrow_and_update().until;
        // Late by what lies between the two clocks' readings would be too long: the boot clock first.
        let now = clock();
        let left = held.map_or(Time::ZERO, |held| held.saturating_duration_since(Instant::now()));
        until.send_replace(if left.is_zero() { Time::ZERO } else { now + left });
    }
}
