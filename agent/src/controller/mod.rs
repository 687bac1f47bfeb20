//! `culvert controller`: gives addresses to a cluster's Services. The tasks and how they hang together.
//!
//! ```text
//! lease (pure) ◄─► election ─ until when this one leads ─► reign ─┬─ metallb: does MetalLB's own controller run?
//!                                                                 └─ session ◄─► desk (pure): who gets which address
//!                                                                       │           └─ patch (pure): what is / what should be
//!                                                                       └─► API server: status, events (outbox, status)
//! ```
//!
//! Who does not lead reads nothing but the Lease. Who begins to lead reads everything anew: the API server has it all, what the last leader
//! wrote included.

mod desk;
pub mod metrics;
mod outbox;
mod pace;
mod patch;
mod session;
mod status;
#[cfg(test)]
mod tests;
mod unanswered;
#[cfg(test)]
mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use culvert_source::events::{Events, Reporter};
use culvert_source::kube::{Access, Settings};
use tokio::runtime::Builder;
use tokio::sync::{oneshot, watch};

use self::metrics::Metrics;
use self::pace::Rate;
use self::session::{ANSWER, Rule, Session, Tools};
use self::unanswered::Unanswered;
use crate::cli::ControllerArgs;
use crate::election::lease::{Candidate, Terms};
use crate::election::{self, Election, Place, Term};
use crate::metallb::{Lookout, Part};
use crate::output::Done;
use crate::scope::{self, Scope};
use crate::{http, logging, signals};

/// Runs the controller until a signal ends it.
pub fn run(args: &ControllerArgs) -> Result<Done> {
    logging::start(args.log_format, &args.log_level)?;
    let identity = identity(args)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), identity, "starting");
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().context("cannot start")?;
    let stopped = signals::stop(runtime.handle());
    let done = runtime.block_on(controller(args, &identity, signals::wait(stopped)));
    runtime.shutdown_background();
    done
}

async fn controller(args: &ControllerArgs, identity: &str, stop: impl Future<Output = &'static str>) -> Result<Done> {
    let terms = terms(args)?;
    let namespace = scope::namespace(&args.scope);
    let settings =
        Settings { servers: args.kube.api_server.clone(), kubeconfig: args.kube.kubeconfig.clone(), state: None };
    let access = Arc::new(Access::new(settings));
    let metrics = Arc::new(Metrics::new());
    let candidate = Candidate::new(identity.to_owned(), terms, Instant::now());
    let place = Place {
        namespace: args.lease_namespace.clone().unwrap_or_else(|| namespace.clone()),
        name: args.lease_name.clone(),
    };
    let election = Election::new(Arc::clone(&access), place, candidate, terms.attempt());
    let term = election.term();
    let router = router(Arc::clone(&metrics), election.term());
    tokio::spawn(http::serve("health and metrics".into(), args.bind_address, router));
    let (end, ended) = oneshot::channel();
    let election = tokio::spawn(election.run(ended));
    let scope = Scope::new(&args.scope, &namespace);
    let rate = Rate { burst: args.kube_api_burst.get(), interval: Duration::from_secs(1) / args.kube_api_qps.get() };
    let unanswered = Unanswered::default();
    let tools = Tools { access, namespace, metrics, unanswered: unanswered.clone(), rate };
    let metallb = Lookout::new(Arc::clone(&tools.access), scope.clone(), Part::Controller);
    let reign = Reign { tools, scope, metallb, reporter: Reporter::controller(identity) };
    tokio::select! {
        () = reign.forever(term) => bail!("the election has ended"),
        signal = stop => tracing::info!(signal, "ending; every address stays"),
    }
    // Nothing is asked any more. Another may begin at once if nothing is carried out any more either; else after the Lease's duration.
    if unanswered.is_empty() {
        drop(end);
        election.await.context("the election has ended")?;
    } else {
        election.abort();
    }
    Ok(Done::Well)
}

/// What there is to do while one leads.
struct Reign {
    tools: Tools,
    scope: Scope,
    metallb: Lookout,
    reporter: Reporter,
}

impl Reign {
    /// Leads, whenever it is this one's turn. Ends with the election.
    async fn forever(&self, mut term: watch::Receiver<Term>) {
        let metrics = &self.tools.metrics;
        while election::leads(&mut term).await {
            tracing::info!("holds the Lease: leads");
            metrics.leads(true);
            tokio::select! {
                biased;
                () = election::lost(&mut term) => tracing::warn!("has lost the Lease: writes nothing any more"),
                () = self.lead() => {}
            }
            metrics.leads(false);
            metrics.waits_for_metallb(false);
        }
    }

    /// Works as MetalLB's own controller lets it.
    async fn lead(&self) {
        // They are this term's: with it, their writing ends.
        let events = Events::start(Arc::clone(&self.tools.access), self.reporter.clone());
        let mut metallb = self.metallb.find("nothing is written").await;
        loop {
            self.tools.metrics.waits_for_metallb(metallb.is_some());
            self.tools.metrics.configured(false, false);
            let rule = match &metallb {
                None => Rule::Give,
                Some(pod) => {
                    tracing::warn!(
                        pod,
                        "MetalLB's own controller runs: the Services are its own, and get nothing here"
                    );
                    Rule::LetGo
                }
            };
            self.wait_for_answers().await;
            let session = Session::new(self.tools.clone(), rule, self.scope.clone(), events.clone());
            tokio::select! {
                biased;
                changed = self.metallb.changes(metallb.is_some()) => metallb = changed,
                () = session.run() => {}
            }
        }
    }

    /// What an earlier session asked for, and was not answered, may be carried out after all: the API server is given its time.
    async fn wait_for_answers(&self) {
        let unanswered = &self.tools.unanswered;
        if unanswered.is_empty() {
            return;
        }
        tokio::time::sleep(ANSWER).await;
        unanswered.clear();
    }
}

fn terms(args: &ControllerArgs) -> Result<Terms> {
    let seconds = Duration::from_secs;
    let terms = Terms {
        duration: seconds(args.lease_duration),
        deadline: seconds(args.lease_renew_deadline),
        retry: seconds(args.lease_retry_period),
    };
    match terms.check() {
        Ok(()) => Ok(terms),
        Err(wrong) => bail!("--lease-duration, --lease-renew-deadline, --lease-retry-period: {wrong}"),
    }
}

fn identity(args: &ControllerArgs) -> Result<String> {
    if let Some(identity) = args.identity.clone().filter(|identity| !identity.is_empty()) {
        return Ok(identity);
    }
    let path = "/proc/sys/kernel/hostname";
    let host = std::fs::read_to_string(path).with_context(|| format!("--identity is needed: {path}"))?;
    Ok(format!("{}_{}", host.trim(), std::process::id()))
}

// ===== health and metrics =====

type Shared = State<(Arc<Metrics>, watch::Receiver<Term>)>;

fn router(metrics: Arc<Metrics>, term: watch::Receiver<Term>) -> Router {
    Router::new()
        .route("/metrics", get(scrape))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state((metrics, term))
}

async fn scrape(State((metrics, _)): Shared) -> Response {
    match metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, http::OPEN_METRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// The election goes on: it is the heart of everything.
async fn livez(State((_, term)): Shared) -> Response {
    answer(term.has_changed().is_ok())
}

/// The API server answers, and there is a leader: this one or another.
async fn readyz(State((_, term)): Shared) -> Response {
    let known = term.borrow().holder.is_some();
    answer(known && term.has_changed().is_ok())
}

fn answer(well: bool) -> Response {
    if well { "ok".into_response() } else { (StatusCode::SERVICE_UNAVAILABLE, "not ok").into_response() }
}
