//! A time in which this one leads: the source and the API server on one side, [`Desk`] on the other.
//!
//! ```text
//! source ─ batches ──►┐                ┌─► patches of Services, a few at a time, at a bounded rate ─► answers ─┐
//!                     ├─ Desk: decides ┼─► Outbox: status of pools and of the configuration ───────► answers ─┤
//! answers ───────────►┘                └─► events, metrics                                                    │
//!    ▲                                                                                                        │
//!    └────────────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Everything that is under way belongs to the one future of [`Session::run`]: dropped, as the Lease is lost, nothing of it goes on.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_model::ServiceKey;
use culvert_model::objects::Service;
use culvert_source::events::{Condition, Events, Involved, Scope, Weight};
use culvert_source::kube::{self, Access, Ask, AskError};
use culvert_source::{Batch, Fault, Progress};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use serde_json::Value;

use super::desk::{Desk, Notice, Work};
use super::metrics::Metrics;
use super::outbox::Outbox;
use super::pace::{Pace, Rate};
use super::status;
use super::unanswered::Unanswered;
use crate::scope;

/// Writes that are under way at most.
const PARALLEL: usize = 8;
/// How long an answer may take.
pub const ANSWER: Duration = Duration::from_secs(10);
/// The pause after a write of which nobody knows what became of it.
const RETRY: Duration = Duration::from_secs(2);
/// The pause after a write that was refused for good, as it seems.
const REFUSED: Duration = Duration::from_mins(1);
/// A status of one of MetalLB's objects is written no more often than this.
const STATUS: Duration = Duration::from_secs(1);

type Task = Pin<Box<dyn Future<Output = Done> + Send>>;

/// What became of something.
enum Done {
    /// A Service was written, or read again; it is this.
    Heard(Box<Service>),
    /// It is not there any more; the source says so too.
    Gone(ServiceKey),
    /// It was not written, or nobody knows; it is tried again after a pause, or as soon as it changes.
    Failed(ServiceKey, Duration),
    /// A status of one of MetalLB's objects was written; or it was not, and is to be tried again after a pause.
    Status(status::Object, Result<(), (Value, Duration)>),
}

/// What a session does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// It gives addresses.
    Give,
    /// It only lets those go that leave, for nobody else takes our finalizer away.
    LetGo,
}

/// What sessions work with.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The way to the API server.
    pub access: Arc<Access>,
    /// The controller's own namespace.
    pub namespace: String,
    /// The controller's metrics.
    pub metrics: Arc<Metrics>,
    /// Services whose last write has no answer.
    pub unanswered: Unanswered,
    /// How fast Services are written.
    pub rate: Rate,
}

/// The parts of a session.
pub struct Session {
    tools: Tools,
    rule: Rule,
    desk: Desk,
    events: Events,
    tasks: FuturesUnordered<Task>,
    /// Writes of Services that are under way.
    writing: usize,
    /// Services that are tried again at a time.
    again: BTreeMap<ServiceKey, Instant>,
    pace: Pace,
    outbox: Outbox<status::Object, Value>,
    faults: Vec<Fault>,
    /// What was said of the configuration, if anything was.
    said: Option<Vec<String>>,
}

impl Session {
    /// Nothing is known, and nothing asked.
    pub fn new(tools: Tools, rule: Rule, scope: scope::Scope, events: Events) -> Self {
        let pace = Pace::new(tools.rate, Instant::now());
        Self {
            tools,
            rule,
            desk: Desk::new(scope),
            events,
            tasks: FuturesUnordered::new(),
            writing: 0,
            again: BTreeMap::new(),
            pace,
            outbox: Outbox::new(),
            faults: Vec::new(),
            said: None,
        }
    }

    /// Works for ever. The objects are read from now on: what an earlier leader wrote is among them.
    pub async fn run(mut self) {
        let mut batches = kube::watch_addresses(&self.tools.access);
        loop {
            let now = Instant::now();
            let next = self.begin(now);
            tokio::select! {
                batch = batches.recv() => match batch {
                    Some(batch) => self.take(batch),
                    None => return,
                },
                Some(done) = self.tasks.next(), if !self.tasks.is_empty() => self.finish(done),
                () = sleep_until(next) => {}
            }
        }
    }

    fn take(&mut self, Batch { changes, faults, progress }: Batch) {
        for fault in faults.iter().filter(|fault| !self.faults.contains(fault)) {
            tracing::warn!("{fault}");
        }
        self.faults = faults;
        for change in changes {
            self.desk.take(change);
        }
        self.decide(self.rule == Rule::Give && progress == Progress::Complete);
    }

    fn finish(&mut self, done: Done) {
        match done {
            Done::Heard(service) => {
                self.answered(&service.key());
                self.desk.heard(Arc::new(*service));
                self.decide(false);
            }
            Done::Gone(key) => self.answered(&key),
            Done::Failed(key, pause) => {
                self.answered(&key);
                self.again.insert(key, Instant::now() + pause);
            }
            Done::Status(object, written) => {
                let (again, pause) = written.err().unzip();
                self.outbox.done(&object, again, Instant::now() + pause.unwrap_or(STATUS));
            }
        }
    }

    fn answered(&mut self, key: &ServiceKey) {
        self.writing -= 1;
        self.desk.answered(key);
        self.again.remove(key);
    }

    fn decide(&mut self, complete: bool) {
        self.desk.decide(complete);
        let now = Instant::now();
        for ((namespace, name), status) in self.desk.take_pools() {
            self.outbox.put(status::Object::Pool(namespace, name), status::of_pool(status), now);
        }
        for notice in self.desk.take_notices() {
            self.tell(notice);
        }
        if self.desk.is_checked() {
            self.tell_validity();
        }
        self.tools.metrics.set_pools(self.desk.usage());
    }

    fn tell(&self, Notice { service, reason, warning, message }: Notice) {
        if warning {
            tracing::warn!(%service, reason, "{message}");
        } else {
            tracing::info!(%service, reason, "{message}");
        }
        self.events.tell(Condition {
            object: Involved::service(&service),
            reason: reason.to_owned(),
            action: "Allocate",
            note: message,
            scope: Scope::Cluster,
            weight: if warning { Weight::Warning } else { Weight::Normal },
        });
    }

    fn tell_validity(&mut self) {
        let findings = self.desk.findings();
        let words: Vec<String> = findings.iter().map(ToString::to_string).collect();
        self.tools.metrics.configured(self.desk.is_configured(), !words.is_empty());
        if self.said.as_ref() == Some(&words) {
            return;
        }
        if words.is_empty() {
            tracing::info!("the configuration is valid, and in force");
        }
        for finding in findings {
            tracing::warn!("the configuration is not valid, and the last one that was stays in force: {finding}");
            let Some(object) = Involved::parse(&finding.object.to_string()) else { continue };
            self.events.tell(Condition {
                object,
                reason: "InvalidConfiguration".to_owned(),
                action: "Configure",
                note: format!("the last valid configuration stays in force: {}: {}", finding.field, finding.message),
                scope: Scope::Cluster,
                weight: Weight::Warning,
            });
        }
        let state = status::Object::Configuration(self.tools.namespace.clone());
        self.outbox.put(state, status::of_configuration(&words, Timestamp::now()), Instant::now());
        self.said = Some(words);
    }

    /// Begins what may begin. When there is more to begin, if that is a matter of time.
    fn begin(&mut self, now: Instant) -> Option<Instant> {
        for (object, status) in self.outbox.take(now) {
            self.tasks.push(Box::pin(write_status(Arc::clone(&self.tools.access), object, status)));
        }
        for (key, _) in self.again.extract_if(.., |_, at| *at <= now) {
            self.desk.again(key);
        }
        let later = [self.outbox.next(), self.again.values().min().copied()].into_iter().flatten().min();
        while self.writing < PARALLEL {
            let next = self.pace.next(now);
            if next > now {
                return Some(later.map_or(next, |later| later.min(next)));
            }
            let Some(work) = self.desk.next() else { break };
            self.pace.take(now);
            self.writing += 1;
            self.tasks.push(Box::pin(write(self.tools.clone(), work)));
        }
        later
    }
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}

/// Writes a Service. Where it has changed meanwhile, it is read again.
async fn write(tools: Tools, work: Work) -> Done {
    let Work { service: key, patch } = work;
    let collection = format!("/api/v1/namespaces/{}/services", key.namespace);
    tools.unanswered.begin(&key);
    let written = ask(&tools.access, &collection, Ask::PatchStatus(&key.name, &patch)).await;
    tools.metrics.wrote(written.is_ok());
    if matches!(written, Ok(_) | Err(AskError::Refused { .. })) {
        tools.unanswered.answered(&key);
    }
    let error = match written {
        Ok(service) => return Done::Heard(Box::new(service)),
        Err(error) => error,
    };
    if error.is(404) {
        return Done::Gone(key);
    }
    if error.is(409) {
        match ask(&tools.access, &collection, Ask::Get(&key.name)).await {
            Ok(service) => return Done::Heard(Box::new(service)),
            Err(error) if error.is(404) => return Done::Gone(key),
            Err(error) => tracing::debug!(service = %key, %error, "it cannot be read"),
        }
    } else {
        tracing::warn!(service = %key, %error, "its status could not be written; it is tried again");
    }
    Done::Failed(key, pause_after(&error))
}

async fn ask(access: &Access, collection: &str, ask: Ask<'_>) -> Result<Service, AskError> {
    let text = access.ask(collection, ask, ANSWER).await?;
    serde_json::from_str(&text).map_err(|error| AskError::Unreachable(format!("an answer that is no Service: {error}")))
}

/// Writes a status of one of MetalLB's objects. A pool that is gone has none; a definition that is not installed may come.
async fn write_status(access: Arc<Access>, object: status::Object, status: Value) -> Done {
    let written = match status::write(&access, &object, &status, ANSWER).await {
        Ok(()) => Ok(()),
        Err(error) if error.is(404) && matches!(object, status::Object::Pool(..)) => Ok(()),
        Err(error) => {
            tracing::debug!(?object, %error, "a status could not be written; it is tried again");
            Err((status, pause_after(&error)))
        }
    };
    Done::Status(object, written)
}

/// The pause after a write that failed. What was refused is most likely refused again, but for a conflict and for too many requests.
fn pause_after(error: &AskError) -> Duration {
    match error {
        AskError::Refused { code: 409 | 429, .. } | AskError::Unreachable(_) => RETRY,
        AskError::Refused { .. } => REFUSED,
    }
}
