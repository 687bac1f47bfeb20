//! Events: what is wrong, told where users look for it, on the object (`kubectl describe`, `kubectl events`). A task of its own writes
//! them, with its own limit of rate. Whoever tells it of conditions never waits.

mod board;
mod write;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use culvert_model::ServiceKey;
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::kube::{Access, random};
use board::{Board, Outcome, Post};

/// How long an API server may take.
const ANSWER: Duration = Duration::from_secs(20);

/// Whose conditions are replaced together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// What is wrong with a Service and its slices.
    Plan(ServiceKey),
    /// Why a Service cannot be programmed.
    Kernel(ServiceKey),
    /// Why the health check of a Service cannot listen, at one address.
    HealthCheck(ServiceKey, std::net::SocketAddr),
    /// What is wrong with the source's objects.
    Source(String),
}

/// Who writes events.
#[derive(Clone, Debug)]
pub struct Reporter {
    /// `reportingController`.
    pub controller: &'static str,
    /// `reportingInstance`: a node's name, or a pod's.
    pub instance: String,
    /// How many may be written.
    pub rate: Rate,
}

/// How many events may be written.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// At once...
    pub burst: u32,
    /// ... and how long it takes until one more may be.
    pub refill: Duration,
}

impl Reporter {
    /// The agent of a node: there are many of them.
    pub fn agent(node: &str) -> Self {
        let rate = Rate { burst: 10, refill: Duration::from_secs(2) };
        Self { controller: "culvert.dev/agent", instance: node.to_owned(), rate }
    }

    /// The controller: there is one that leads.
    pub fn controller(instance: &str) -> Self {
        let rate = Rate { burst: 100, refill: Duration::from_millis(100) };
        Self { controller: "culvert.dev/controller", instance: instance.to_owned(), rate }
    }
}

/// The type of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Weight {
    /// Something happened.
    Normal,
    /// Something is wrong.
    #[default]
    Warning,
}

/// Something that is so, and is wrong; or that happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Condition {
    /// The object that shows it.
    pub object: Involved,
    /// Stable, in CamelCase.
    pub reason: String,
    /// What was being done, in CamelCase.
    pub action: &'static str,
    /// A sentence for people.
    pub note: String,
    /// Who sees it.
    pub scope: Scope,
    /// The event's type.
    pub weight: Weight,
}

/// Who sees a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Every node alike: one event is enough.
    Cluster,
    /// This node.
    Node,
}

/// The object of an event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Involved {
    /// `Service`, `EndpointSlice`, `Node`, or one of MetalLB's kinds.
    pub kind: String,
    /// Empty for a Node.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Involved {
    /// A Service.
    pub fn service(key: &ServiceKey) -> Self {
        Self { kind: "Service".into(), namespace: key.namespace.clone(), name: key.name.clone() }
    }

    /// From `Kind/namespace/name`, or `Kind/name` for an object without a namespace.
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once('/')?;
        let (namespace, name) = rest.split_once('/').unwrap_or(("", rest));
        Some(Self { kind: kind.into(), namespace: namespace.into(), name: name.into() })
    }
}

impl fmt::Display for Involved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind, self.namespace, self.name)
    }
}

/// Takes conditions. Cheap to clone; does nothing where there is no API server. With the last clone the writing ends.
#[derive(Clone, Debug, Default)]
pub struct Events(Option<Arc<Writer>>);

/// The task that writes, and what it shares.
#[derive(Debug)]
struct Writer {
    shared: Arc<Shared>,
    task: AbortHandle,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
struct Shared {
    board: Mutex<Board>,
    news: Notify,
}

impl Events {
    /// Starts the task that writes somebody's events, on the current runtime.
    pub fn start(access: Arc<Access>, reporter: Reporter) -> Self {
        let board = Board::new(reporter.rate, Instant::now());
        let shared = Arc::new(Shared { board: Mutex::new(board), news: Notify::new() });
        let task = tokio::spawn(run(Arc::clone(&shared), access, reporter)).abort_handle();
        Self(Some(Arc::new(Writer { shared, task })))
    }

    /// For a source without an API server.
    pub fn off() -> Self {
        Self(None)
    }

    /// Whether anybody listens.
    pub fn are_on(&self) -> bool {
        self.0.is_some()
    }

    /// Replaces all conditions of a topic.
    pub fn set(&self, topic: &Topic, conditions: Vec<Condition>) {
        let Some(Writer { shared, .. }) = self.0.as_deref() else { return };
        if shared.lock().set(topic, conditions, Instant::now(), random()) {
            shared.news.notify_one();
        }
    }

    /// Tells of something that happened, once. The same again within some minutes is told of as a series.
    pub fn tell(&self, happened: Condition) {
        let Some(Writer { shared, .. }) = self.0.as_deref() else { return };
        shared.lock().tell(happened, Instant::now());
        shared.news.notify_one();
    }
}

impl Shared {
    /// Held for moments, never across a request.
    fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn run(shared: Arc<Shared>, access: Arc<Access>, reporter: Reporter) {
    loop {
        let now = Instant::now();
        let taken = shared.lock().take(now);
        if let Some(post) = taken {
            let outcome = attempt(&access, &reporter, &post).await;
            shared.lock().done(&post, outcome, Instant::now());
            continue;
        }
        let next = shared.lock().next(now);
        let wait = async {
            match next {
                Some(next) => tokio::time::sleep_until(next.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wait => {}
            () = shared.news.notified() => {}
        }
    }
}

async fn attempt(access: &Access, reporter: &Reporter, post: &Post) -> Outcome {
    let (_, client) = match access.client().await {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!(%error, "no event can be written");
            return Outcome::Failed;
        }
    };
    match timeout(ANSWER, write::write(&client, reporter, post, Timestamp::now())).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => {
            tracing::debug!(object = %post.condition.object, %error, "an event could not be written");
            Outcome::Failed
        }
        Err(_) => Outcome::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_problems_are_found() {
        let found = Involved::parse("EndpointSlice/shop/web-1").unwrap();
        assert_eq!(
            (found.kind.as_str(), found.namespace.as_str(), found.name.as_str()),
            ("EndpointSlice", "shop", "web-1")
        );
        assert_eq!(Involved::parse("Node/n1").unwrap().name, "n1");
        assert!(Involved::parse("nonsense").is_none());
    }

    #[test]
    fn without_an_api_server_nothing_happens() {
        let events = Events::off();
        assert!(!events.are_on());
        events.set(&Topic::Source("x".into()), vec![]);
    }
}
