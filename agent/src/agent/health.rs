//! Whether the node serves, in kube-proxy's terms and words (`pkg/proxy/healthcheck/proxy_health.go`): `/healthz` and `/livez` for
//! load balancers, cluster autoscalers and kubelets. `/readyz` is Culvert's own: kube-proxy is healthy before it knows a single
//! Service; a rolling upgrade must wait until the kernel holds all of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use culvert_model::objects::Node;
use jiff::Timestamp;
use serde::Serialize;

use super::metrics::Metrics;

/// Changes that have waited for so long make the node unhealthy: twice kube-proxy's sync period.
const PATIENCE: Duration = Duration::from_mins(1);
/// What the cluster autoscaler puts on a Node that is about to go.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
/// The headers of every answer.
pub const HEADERS: [(HeaderName, &str); 2] =
    [(header::CONTENT_TYPE, "application/json"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];

/// What is known of the node's health. The main loop writes, the servers read.
#[derive(Debug)]
pub struct Health {
    state: Mutex<Progress>,
}

#[derive(Clone, Copy, Debug)]
struct Progress {
    /// When the oldest change came in that the kernel does not hold yet.
    pending: Option<Instant>,
    /// When the kernel last held everything.
    updated: Option<Timestamp>,
    /// The Node may have traffic from load balancers.
    eligible: bool,
    start: Start,
}

/// How far the agent has come since it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// The source has not delivered everything yet.
    Waiting,
    /// It has.
    Delivered,
    /// The kernel has held all of it, and every hook.
    Done,
}

/// The state at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Changes reach the kernel in time.
    pub healthy: bool,
    /// The Node may have traffic from load balancers.
    pub eligible: bool,
    /// Healthy, and since the agent started the kernel has held everything once.
    pub ready: bool,
    updated: Option<Timestamp>,
}

/// The JSON of `/healthz` and `/livez`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: Timestamp,
    current_time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    status: Families,
}

#[derive(Debug, Serialize)]
struct Families {
    #[serde(rename = "IPv4")]
    v4: Family,
    #[serde(rename = "IPv6")]
    v6: Family,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Family {
    last_updated: Timestamp,
    healthy: bool,
}

impl Health {
    /// Before the first change: healthy, and eligible until the Node says otherwise.
    pub fn new() -> Self {
        Self { state: Mutex::new(Progress { pending: None, updated: None, eligible: true, start: Start::Waiting }) }
    }

    /// A change came in, or something that must be there is not.
    pub fn pending(&self, now: Instant) {
        self.lock().pending.get_or_insert(now);
    }

    /// The source has delivered everything.
    pub fn delivered(&self) {
        let mut state = self.lock();
        if state.start == Start::Waiting {
            state.start = Start::Delivered;
        }
    }

    /// The kernel holds everything that came in.
    pub fn updated(&self, at: Timestamp) {
        let mut state = self.lock();
        state.pending = None;
        state.updated = Some(at);
        if state.start == Start::Delivered {
            state.start = Start::Done;
        }
    }

    /// Takes note of the agent's own Node; `None` if there is none.
    pub fn set_node(&self, node: Option<&Node>) {
        self.lock().eligible = node.is_some_and(|node| {
            let leaving = node.spec.taints.iter().any(|taint| taint.key == TO_BE_DELETED);
            node.metadata.deletion_timestamp.is_none() && !leaving
        });
    }

    /// The state now.
    pub fn verdict(&self, now: Instant) -> Verdict {
        let state = *self.lock();
        let healthy = state.pending.is_none_or(|since| now.saturating_duration_since(since) < PATIENCE);
        let ready = healthy && state.start == Start::Done;
        Verdict { healthy, eligible: state.eligible, ready, updated: state.updated }
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        // Plain values, each valid alone: a panic elsewhere cannot have left half a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Verdict {
    /// When the kernel last held everything; now, if all is well.
    fn last_updated(&self, well: bool, now: Timestamp) -> Timestamp {
        if well { now } else { self.updated.unwrap_or(Timestamp::UNIX_EPOCH) }
    }

    fn body(&self, well: bool, node_eligible: Option<bool>, now: Timestamp) -> Body {
        let family = Family { last_updated: self.last_updated(self.healthy, now), healthy: self.healthy };
        Body {
            last_updated: self.last_updated(well, now),
            current_time: now,
            node_eligible,
            healthy: self.healthy,
            status: Families { v4: family, v6: family },
        }
    }
}

/// `/healthz`, `/livez` and `/readyz`.
pub fn router(health: Arc<Health>, metrics: Arc<Metrics>) -> Router {
    let routes =
        Router::new().route("/healthz", any(healthz)).route("/livez", any(livez)).route("/readyz", any(readyz));
    routes.with_state((health, metrics))
}

type Shared = State<(Arc<Health>, Arc<Metrics>)>;

async fn healthz(State((health, metrics)): Shared) -> Response {
    let verdict = health.verdict(Instant::now());
    let well = verdict.healthy && verdict.eligible;
    let code = code(well);
    metrics.healthz.count(code);
    (code, HEADERS, json(&verdict.body(well, Some(verdict.eligible), Timestamp::now()))).into_response()
}

async fn livez(State((health, metrics)): Shared) -> Response {
    let verdict = health.verdict(Instant::now());
    let code = code(verdict.healthy);
    metrics.livez.count(code);
    (code, HEADERS, json(&verdict.body(verdict.healthy, None, Timestamp::now()))).into_response()
}

async fn readyz(State((health, _)): Shared) -> Response {
    let verdict = health.verdict(Instant::now());
    (code(verdict.ready), HEADERS, json(&verdict.body(verdict.ready, None, Timestamp::now()))).into_response()
}

/// 200 or 503.
pub const fn code(well: bool) -> StatusCode {
    if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn json(body: &Body) -> String {
    serde_json::to_string(body).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use culvert_model::objects::{ObjectMeta, Taint};

    use super::*;

    #[test]
    fn changes_that_wait_too_long_are_unhealthy() {
        let health = Health::new();
        let start = Instant::now();
        assert!(health.verdict(start + PATIENCE * 2).healthy);
        health.pending(start);
        // The oldest counts.
        health.pending(start + Duration::from_secs(50));
        assert!(health.verdict(start + Duration::from_secs(59)).healthy);
        assert!(!health.verdict(start + Duration::from_mins(1)).healthy);
        health.updated(Timestamp::UNIX_EPOCH);
        assert!(health.verdict(start + PATIENCE * 2).healthy);
    }

    #[test]
    fn the_node_is_ready_when_the_kernel_holds_all_that_there_is() {
        let health = Health::new();
        let start = Instant::now();
        let ready = |after: Duration| health.verdict(start + after).ready;
        assert!(!ready(Duration::ZERO), "nothing is known yet");
        // A part of the objects is in the kernel.
        health.pending(start);
        health.updated(Timestamp::UNIX_EPOCH);
        assert!(!ready(Duration::ZERO));
        health.pending(start);
        health.delivered();
        assert!(!ready(Duration::ZERO), "delivered is not programmed");
        health.updated(Timestamp::UNIX_EPOCH);
        assert!(ready(Duration::ZERO));
        // From then on it is ready as long as it is healthy.
        health.pending(start);
        assert!(ready(Duration::from_secs(59)));
        assert!(!ready(PATIENCE));
    }

    #[test]
    fn the_node_decides_about_eligibility_alone() {
        let health = Health::new();
        let eligible = |node: Option<&Node>| {
            health.set_node(node);
            let verdict = health.verdict(Instant::now());
            assert!(verdict.healthy);
            verdict.eligible
        };
        assert!(health.verdict(Instant::now()).eligible);
        assert!(!eligible(None));
        let mut node = Node::default();
        assert!(eligible(Some(&node)));
        node.spec.taints.push(Taint { key: TO_BE_DELETED.into(), ..Taint::default() });
        assert!(!eligible(Some(&node)));
        let deleted = ObjectMeta { deletion_timestamp: Some(Timestamp::UNIX_EPOCH), ..ObjectMeta::default() };
        assert!(!eligible(Some(&Node { metadata: deleted, ..Node::default() })));
    }

    #[test]
    fn the_bodies_are_those_of_kube_proxy() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let verdict = Verdict { healthy: true, eligible: false, ready: true, updated: Some(at(1)) };
        let expected = "{\"lastUpdated\":\"1970-01-01T00:00:01Z\",\"currentTime\":\"1970-01-01T00:00:09Z\",\
                        \"nodeEligible\":false,\"healthy\":true,\"status\":{\
                        \"IPv4\":{\"lastUpdated\":\"1970-01-01T00:00:09Z\",\"healthy\":true},\
                        \"IPv6\":{\"lastUpdated\":\"1970-01-01T00:00:09Z\",\"healthy\":true}}}";
        assert_eq!(json(&verdict.body(false, Some(false), at(9))), expected);
        let body = json(&verdict.body(true, None, at(9)));
        assert!(body.starts_with(
            "{\"lastUpdated\":\"1970-01-01T00:00:09Z\",\"currentTime\":\"1970-01-01T00:00:09Z\",\"healthy\":true,"
        ));
    }
}
