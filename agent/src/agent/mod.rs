//! `culvert agent`: the tasks and how they hang together. [`core`] is the main loop.

mod api;
mod beside;
mod conditions;
mod core;
mod differences;
mod gaps;
mod giver;
mod health;
mod ipam;
mod l2_statuses;
mod layer2;
mod metrics;
mod record;
mod samples;
mod service_health;
mod views;

use std::future::IntoFuture;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use aya_log::EbpfLogger;
use culvert_abi::{Event, Plain};
use culvert_announce::liveness::wire::Key;
use culvert_dataplane::kernel::KernelStore;
use culvert_dataplane::object::ToTracing;
use culvert_dataplane::reconcile::Reconciler;
use culvert_dataplane::{Dataplane, Options};
use culvert_source::events::{Events, Reporter};
use culvert_source::kube::{self, Access, Settings};
use jiff::Timestamp;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{broadcast, mpsc, watch};

use self::api::Api;
use self::core::{Batches, Core, Facts, Parts, Question, now};
use self::giver::Giver;
use self::health::Health;
use self::ipam::Ipam;
use self::l2_statuses::Owner;
use self::layer2::Desk;
use self::layer2::peers::{self, Way};
use self::metrics::Metrics;
use self::service_health::ServiceHealth;
use crate::cli::{AgentArgs, SocketModeArg, Source, WitnessArg};
use crate::election::Place;
use crate::metallb::{Lookout, Part, Presence};
use crate::output::Done;
use crate::scope::{self, Scope};
use crate::statuses::Statuses;
use crate::{http, logging, signals};

/// Questions that may wait for the main loop.
const QUESTIONS: usize = 16;
/// Samples that may wait for a slow reader.
const SAMPLES: usize = 1024;

/// Runs the agent until a signal ends it.
pub fn run(args: &AgentArgs) -> Result<Done> {
    logging::start(args.log_format, &args.log_level)?;
    let node = node_name(args)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node, "starting");
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().context("cannot start")?;
    // Signals are heard from the start: waiting for another agent to end can be ended too.
    let stopped = signals::stop(runtime.handle());
    let agent = agent(args, node);
    let done = runtime.block_on(async {
        tokio::select! {
            result = agent => result,
            signal = signals::wait(stopped) => {
                tracing::info!(signal, "ending; what is in the kernel stays");
                Ok(Done::Well)
            }
        }
    });
    runtime.shutdown_background();
    done
}

async fn agent(args: &AgentArgs, node: String) -> Result<Done> {
    let source = args.source()?;
    let facts = (Instant::now(), Timestamp::now());
    let key = args.layer2.layer2_key_file.as_deref().map(layer2_key).transpose()?;
    let beat_port = key.is_some().then_some(args.layer2.layer2_port);
    let options = options(args, beat_port);
    // It may wait for another agent, and loads programs: not on this thread, which must hear of signals.
    let dataplane = tokio::task::spawn_blocking(move || Dataplane::open(options)).await.context("cannot start")??;
    let Dataplane {
        store,
        links,
        report,
        node_addresses,
        events,
        rivals,
        log,
        first_start,
        memory,
        warnings,
        method,
        lock,
    } = dataplane;
    // Held to the end.
    let _lock = lock;
    let total = memory.total();
    tracing::info!(
        first_start,
        ?method,
        kernel_memory_now = total.empty,
        kernel_memory_full = total.full,
        "the kernel programs are loaded and hooked"
    );
    for warning in &warnings {
        tracing::warn!("{warning}");
    }

    let health = Arc::new(Health::new());
    let metrics = Arc::new(Metrics::new());
    let Sources { batches, events: object_events, ipam, metallb, told, access } = start_source(args, &source, &node)?;
    let checks = ServiceHealth::new(Handle::current(), Arc::clone(&health), object_events.clone(), &node);
    let layer2 = if matches!(ipam, Ipam::Anybody) {
        None
    } else {
        let (spoken, announced) = watch::channel(None);
        if let Some((access, owner)) = told {
            l2_statuses::write(access, owner, announced, object_events.clone());
        }
        layer2::start(store.clone(), rivals, layer2(args, &node, key, access), spoken)
    };
    let (announcer, desk) = layer2.unzip();
    let reconciler = Reconciler::restore(store.clone(), now()).context("the kernel's maps cannot be read")?;
    let parts = Parts {
        reconciler,
        report,
        node_addresses,
        health: Arc::clone(&health),
        metrics: Arc::clone(&metrics),
        checks,
        events: object_events,
        ipam,
        announcer,
        metallb,
    };
    let facts = Facts {
        source: source.to_string(),
        socket_mode: if args.socket_mode == SocketModeArg::All { "all" } else { "host" }.to_owned(),
        cgroup: args.cgroup.as_ref().map(|path| path.display().to_string()),
        method: format!("{method:?}").to_lowercase(),
        warnings,
        beside: beside::watch(),
        first_start,
        started: facts.0,
        started_at: facts.1,
    };
    let mut core = Core::new(args.model.config(&node), facts, parts);

    let (questions, asked) = mpsc::channel::<Question>(QUESTIONS);
    let (samples, _) = broadcast::channel(SAMPLES);
    tokio::spawn(http::serve(
        "health".into(),
        args.healthz_bind_address,
        health::router(Arc::clone(&health), Arc::clone(&metrics)),
    ));
    tokio::spawn(http::serve(
        "metrics".into(),
        args.metrics_bind_address,
        metrics_router(Scraped { metrics, questions: questions.clone(), store: store.clone(), layer2: desk.clone() }),
    ));
    if let Some(events) = events {
        let batches = samples::read("samples", events, Event::from_prefix).context("cannot start a thread")?;
        tokio::spawn(samples::pass_on(batches, samples.clone(), questions.clone()));
    }
    log.map(trace).transpose().context("cannot start a thread")?;
    // It goes before the lock does: whose it is then is another agent.
    let (listener, _socket) = api::listen(&args.api.api_socket)
        .with_context(|| format!("cannot listen on {}", args.api.api_socket.display()))?;
    tokio::spawn(axum::serve(listener, api::router(Api { questions, store, layer2: desk, samples })).into_future());

    tokio::select! {
        result = core.run(batches, asked) => result?,
        ended = tokio::spawn(links.run()) => ended.context("the links task has ended")??,
    }
    bail!("a task has ended")
}

/// What comes from where objects come from, and what is told there.
struct Sources {
    batches: Batches,
    events: Events,
    ipam: Ipam,
    metallb: watch::Receiver<Presence>,
    /// Where what is announced is told of, and as whose.
    told: Option<(Arc<Access>, Owner)>,
    /// The API server, if there is one.
    access: Option<Arc<Access>>,
}

/// Starts the source, and all that goes with it.
fn start_source(args: &AgentArgs, source: &Source, node: &str) -> Result<Sources> {
    // Nothing more comes, where nobody sends.
    let (_, nothing) = mpsc::channel(1);
    let (_, away) = watch::channel(Presence::Away);
    match source {
        Source::Dir(path) => {
            let served =
                culvert_source::watch(path.clone(), args.model.rules()).context("the source cannot be watched")?;
            Ok(Sources {
                batches: Batches { served, announced: nothing },
                events: Events::off(),
                ipam: Ipam::Folder(Box::new(Giver::open(&args.state_dir))),
                metallb: away,
                told: None,
                access: None,
            })
        }
        Source::Kube => {
            let settings = Settings {
                servers: args.kube.api_server.clone(),
                kubeconfig: args.kube.kubeconfig.clone(),
                state: Some(args.state_dir.clone()),
            };
            let access = Arc::new(Access::new(settings));
            let events = Events::start(Arc::clone(&access), Reporter::agent(node));
            let served = kube::watch(&access, node);
            if !args.layer2.layer2 {
                let batches = Batches { served, announced: nothing };
                return Ok(Sources {
                    batches,
                    events,
                    ipam: Ipam::Anybody,
                    metallb: away,
                    told: None,
                    access: Some(access),
                });
            }
            let namespace = scope::namespace(&args.scope);
            let scope = Scope::new(&args.scope, &namespace);
            let pod = args.layer2.pod_name.clone().zip(args.layer2.pod_uid.clone());
            let owner = Owner { node: node.to_owned(), namespace, pod };
            Ok(Sources {
                batches: Batches { served, announced: kube::watch_layer2(&access) },
                events,
                ipam: Ipam::Cluster(Box::new(Statuses::new(scope.clone()))),
                metallb: Lookout::new(Arc::clone(&access), scope, Part::Any).watch(),
                told: Some((Arc::clone(&access), owner)),
                access: Some(access),
            })
        }
    }
}

/// The key that the nodes share.
fn layer2_key(path: &Path) -> Result<Key> {
    let bytes = std::fs::read(path).with_context(|| format!("--layer2-key-file {}", path.display()))?;
    Key::new(&bytes).with_context(|| format!("--layer2-key-file {}", path.display()))
}

/// How addresses are announced in layer 2.
fn layer2(args: &AgentArgs, node: &str, key: Option<Key>, access: Option<Arc<Access>>) -> layer2::Settings {
    let access = access.filter(|_| args.layer2.layer2_witness == WitnessArg::Lease);
    let way = access.map_or(Way::Gateway, |access| {
        let namespace = scope::namespace(&args.scope);
        let place = Place { namespace, name: "culvert-layer2".to_owned() };
        Way::Lease { access, place, identity: node.to_owned() }
    });
    layer2::Settings {
        node: node.to_owned(),
        choice: args.model.layer2(),
        echo: args.layer2.answer_ping,
        peers: key.map(|key| (peers::Settings { key, port: args.layer2.layer2_port }, way)),
        state: args.state_dir.clone(),
    }
}

fn options(args: &AgentArgs, beat_port: Option<u16>) -> Options {
    Options {
        beat_port,
        bpffs: args.bpffs.clone(),
        cgroup: args.cgroup.clone(),
        socket_mode: args.socket_mode.into(),
        limits: args.limits(),
        ports: args.snat_ports.clone(),
        trace: args.trace_datapath,
        pod_links: args.pod_links.clone(),
        node_links: args.node_links.clone(),
        method: None,
    }
}

/// The name of the node: the option, or the host's in lower case, as the kubelet takes it.
fn node_name(args: &AgentArgs) -> Result<String> {
    if let Some(node) = &args.node {
        return Ok(node.clone());
    }
    let path = "/proc/sys/kernel/hostname";
    let name = std::fs::read_to_string(path).with_context(|| format!("--node is needed: {path}"))?;
    Ok(name.trim().to_lowercase())
}

/// Passes on what the kernel programs log, on a thread of its own.
fn trace(mut log: EbpfLogger<ToTracing>) -> std::io::Result<()> {
    let run = move || {
        while samples::readable(&log).is_ok() {
            log.flush();
        }
    };
    std::thread::Builder::new().name("trace".into()).spawn(run).map(drop)
}

// ===== metrics and what kube-proxy has beside them =====

fn metrics_router(sources: Scraped) -> Router {
    const TEXT: [(header::HeaderName, &str); 2] =
        [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    Router::new()
        .route("/metrics", get(scrape))
        .route("/healthz", any(|| async { (TEXT, "ok") }))
        .route("/proxyMode", any(|| async { (TEXT, "culvert") }))
        .with_state(sources)
}

/// Whoever knows what a scrape asks for.
#[derive(Clone)]
struct Scraped {
    metrics: Arc<Metrics>,
    questions: mpsc::Sender<Question>,
    store: KernelStore,
    layer2: Option<Desk>,
}

async fn scrape(State(Scraped { metrics, questions, store, layer2 }): State<Scraped>) -> Response {
    let failed = |error: &views::Error| tracing::warn!(%error, "metrics");
    let status = views::whole_status(&questions, &store, false).await;
    let status = status.and_then(|status| status.inspect_err(failed).ok());
    let announced = if layer2.is_some() { layer2::view(&questions, layer2.as_ref()).await } else { None };
    let announced = announced.and_then(|announced| announced.inspect_err(failed).ok());
    match metrics.text(status, announced) {
        Ok(text) => ([(header::CONTENT_TYPE, http::OPEN_METRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
