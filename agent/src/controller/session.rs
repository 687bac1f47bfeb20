//! A time in which this one leads: the source and the API server on one side, [`Desk`] on the other.
//!
//! ```text
//! source ─ batches ──►┐                ┌─► patches of Services, a few at a time, at a bounded rate ─► answers ─┐
//!                     ├─ Desk: decides ┼─► status of pools                                                    │
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
use culvert_pools::PoolStatus;
use culvert_source::events::{Condition, Events, Involved, Scope, Weight};
use culvert_source::kube::{self, Access, Ask, AskError};
use culvert_source::{Batch, Fault, Progress};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};

use super::desk::{self, Desk, Notice, Work};
use super::metrics::Metrics;
use super::pace::Pace;

/// Writes that are under way at most.
const PARALLEL: usize = 8;
/// Writes at once...
const BURST: u32 = 100;
/// ... and how long it takes until one more may be.
const INTERVAL: Duration = Duration::from_millis(20);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// The pause after a write of which nobody knows what became of it.
const RETRY: Duration = Duration::from_secs(2);
/// The pause after a write that was refused for good, as it seems.
const REFUSED: Duration = Duration::from_mins(1);
/// The status of pools is written no more often than this.
const POOLS: Duration = Duration::from_secs(1);

/// The name of the controller's `ConfigurationState`.
const STATE: &str = "culvert-controller";

type Task = Pin<Box<dyn Future<Output = Done> + Send>>;

/// What became of something.
enum Done {
    /// A Service was written, or read again; it is this.
    Heard(Box<Service>),
    /// It is not there any more; the source says so too.
    Gone(ServiceKey),
    /// It is to be tried again.
    Again(ServiceKey),
    /// A status was written that nothing waits for.
    Other,
}

/// What a session does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// It gives addresses.
    Give,
    /// It only lets those go that leave, for nobody else takes our finalizer away.
    LetGo,
}

/// The parts of a session.
pub struct Session {
    access: Arc<Access>,
    rule: Rule,
    desk: Desk,
    events: Events,
    metrics: Arc<Metrics>,
    tasks: FuturesUnordered<Task>,
    writing: usize,
    pace: Pace,
    pools: BTreeMap<(String, String), PoolStatus>,
    pools_due: Instant,
    faults: Vec<Fault>,
    /// The controller's own namespace.
    namespace: String,
    /// What was said of the configuration, if anything was.
    said: Option<Vec<String>>,
}

impl Session {
    /// Nothing is known, and nothing asked.
    pub fn new(
        access: Arc<Access>,
        namespace: &str,
        rule: Rule,
        scope: desk::Scope,
        events: Events,
        metrics: Arc<Metrics>,
    ) -> Self {
        let now = Instant::now();
        Self {
            access,
            rule,
            desk: Desk::new(scope),
            events,
            metrics,
            tasks: FuturesUnordered::new(),
            writing: 0,
            pace: Pace::new(BURST, INTERVAL, now),
            pools: BTreeMap::new(),
            pools_due: now,
            faults: Vec::new(),
            namespace: namespace.to_owned(),
            said: None,
        }
    }

    /// Works for ever. The objects are read from now on: what an earlier leader wrote is among them.
    pub async fn run(mut self) {
        let mut batches = kube::watch_addresses(&self.access);
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
            }
            Done::Gone(key) => self.answered(&key),
            Done::Again(key) => {
                self.answered(&key);
                self.desk.again(key);
            }
            Done::Other => return,
        }
        self.decide(false);
    }

    fn answered(&mut self, key: &ServiceKey) {
        self.writing -= 1;
        self.desk.answered(key);
    }

    fn decide(&mut self, complete: bool) {
        self.desk.decide(complete);
        self.pools.extend(self.desk.take_pools());
        for notice in self.desk.take_notices() {
            self.tell(notice);
        }
        if self.desk.is_checked() {
            self.tell_validity();
        }
        self.metrics.set_pools(self.desk.usage());
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
        self.metrics.configured(self.desk.is_configured(), !words.is_empty());
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
        self.tasks.push(Box::pin(write_state(Arc::clone(&self.access), self.namespace.clone(), words.clone())));
        self.said = Some(words);
    }

    /// Begins what may begin. When there is more to begin, if that is a matter of time.
    fn begin(&mut self, now: Instant) -> Option<Instant> {
        if !self.pools.is_empty() && now >= self.pools_due {
            self.pools_due = now + POOLS;
            for ((namespace, name), status) in std::mem::take(&mut self.pools) {
                self.tasks.push(Box::pin(write_pool(Arc::clone(&self.access), namespace, name, status)));
            }
        }
        let pools = (!self.pools.is_empty()).then_some(self.pools_due);
        while self.writing < PARALLEL {
            let next = self.pace.next(now);
            if next > now {
                return Some(pools.map_or(next, |pools| pools.min(next)));
            }
            let Some(work) = self.desk.next() else { break };
            self.pace.take(now);
            self.writing += 1;
            self.tasks.push(Box::pin(write(Arc::clone(&self.access), work, Arc::clone(&self.metrics))));
        }
        pools
    }
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}

/// Writes a Service. Where it has changed meanwhile, it is read again.
async fn write(access: Arc<Access>, work: Work, metrics: Arc<Metrics>) -> Done {
    let Work { service: key, patch } = work;
    let collection = format!("/api/v1/namespaces/{}/services", key.namespace);
    let written = ask(&access, &collection, Ask::PatchStatus(&key.name, &patch)).await;
    metrics.wrote(written.is_ok());
    let error = match written {
        Ok(service) => return Done::Heard(Box::new(service)),
        Err(error) => error,
    };
    if error.is(404) {
        return Done::Gone(key);
    }
    if error.is(409) {
        match ask(&access, &collection, Ask::Get(&key.name)).await {
            Ok(service) => return Done::Heard(Box::new(service)),
            Err(error) if error.is(404) => return Done::Gone(key),
            Err(error) => tracing::debug!(service = %key, %error, "it cannot be read"),
        }
    } else {
        tracing::warn!(service = %key, %error, "its status could not be written; it is tried again");
    }
    let refused = matches!(error, AskError::Refused { code, .. } if code != 409 && code != 429);
    tokio::time::sleep(if refused { REFUSED } else { RETRY }).await;
    Done::Again(key)
}

async fn ask(access: &Access, collection: &str, ask: Ask<'_>) -> Result<Service, AskError> {
    let text = access.ask(collection, ask, ANSWER).await?;
    serde_json::from_str(&text).map_err(|error| AskError::Unreachable(format!("an answer that is no Service: {error}")))
}

/// Writes the status of a pool. Should it fail, it is right again with the next change.
async fn write_pool(access: Arc<Access>, namespace: String, name: String, status: PoolStatus) -> Done {
    let collection = format!("/apis/metallb.io/v1beta1/namespaces/{namespace}/ipaddresspools");
    if let Err(error) = access.ask(&collection, Ask::PatchStatus(&name, &pool_status(status)), ANSWER).await {
        tracing::debug!(namespace, name, %error, "the status of a pool could not be written");
    }
    Done::Other
}

fn pool_status(status: PoolStatus) -> Value {
    let PoolStatus { assigned_ipv4, assigned_ipv6, available_ipv4, available_ipv6 } = status;
    json!({"status": {
        "assignedIPv4": assigned_ipv4, "assignedIPv6": assigned_ipv6,
        "availableIPv4": available_ipv4, "availableIPv6": available_ipv6,
    }})
}

/// Writes what is said of the configuration where MetalLB's users look for it. Where its definition is not installed, nobody does.
async fn write_state(access: Arc<Access>, namespace: String, words: Vec<String>) -> Done {
    let collection = format!("/apis/metallb.io/v1beta1/namespaces/{namespace}/configurationstates");
    let status = configuration_state(&words);
    let mut written = access.ask(&collection, Ask::PatchStatus(STATE, &status), ANSWER).await;
    if written.as_ref().is_err_and(|error| error.is(404)) {
        let object = json!({
            "apiVersion": "metallb.io/v1beta1", "kind": "ConfigurationState",
            "metadata": {"name": STATE, "labels": {"metallb.io/component-type": "controller"}},
        });
        written = access.ask(&collection, Ask::Create(&object), ANSWER).await;
        if written.is_ok() {
            written = access.ask(&collection, Ask::PatchStatus(STATE, &status), ANSWER).await;
        }
    }
    if let Err(error) = written {
        tracing::debug!(%error, "the ConfigurationState could not be written");
    }
    Done::Other
}

fn configuration_state(words: &[String]) -> Value {
    let result = if words.is_empty() { "Valid" } else { "Invalid" };
    json!({"status": {"result": result, "errorSummary": words.join("; ")}})
}
