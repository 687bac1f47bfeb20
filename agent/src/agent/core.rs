//! The main loop: the one writer of the model and of the kernel's maps. Everything comes in as a value and is dealt with
//! to the end before the next.
//!
//! ```text
//! source ─ batches, more ─►┐                    ┌─► reconciler ─► kernel's maps
//! links  ─ report ────────►├─ Core: the model ──┤─► servers of health checks
//! clock  ─ deadline ──────►│  (Services touched)├─► announcer: orders for layer 2
//! API    ─ questions ─────►┘                    └─► health, metrics
//! ```

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use culvert_abi::proto;
use culvert_api::layer2::Drain;
use culvert_api::plan::ServiceKey;
use culvert_dataplane::codec::At;
use culvert_dataplane::conntrack::{self, Translated};
use culvert_dataplane::kernel::KernelStore;
use culvert_dataplane::links::task::Report;
use culvert_dataplane::reconcile::{Foreign, Reconciler};
use culvert_model::objects::{EndpointSlice, Node};
use culvert_model::{Model, NodePortAddresses};
use culvert_source::events::Events;
use culvert_source::{Batch, Change, Fault, Id, Kind, Object, Progress};
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};

use super::conditions;
use super::gaps::Gaps;
use super::health::Health;
use super::ipam::Ipam;
use super::layer2::Announcer;
use super::metrics::{IpFamily, Metrics};
use super::service_health::ServiceHealth;
use crate::announcements::Owner;
use crate::metallb::Presence;
use crate::output::explain;

/// How long the first objects wait for the first word about the node's links.
const FIRST_REPORT: Duration = Duration::from_secs(5);
/// How often all rows are compared with what they should be, and repaired.
const REPAIR: Duration = Duration::from_mins(10);
/// When the endpoints of a slice changed, as the slice's controller writes it.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// A question to the main loop.
pub type Question = Box<dyn FnOnce(&mut Core) + Send>;

/// Asks the main loop; `None` if it has ended.
pub async fn ask<T: Send + 'static>(
    questions: &mpsc::Sender<Question>,
    question: impl FnOnce(&mut Core) -> T + Send + 'static,
) -> Option<T> {
    let (sender, answer) = oneshot::channel();
    let question: Question = Box::new(move |core| {
        // Whoever asked may have gone.
        let _ = sender.send(question(core));
    });
    questions.send(question).await.ok()?;
    answer.await.ok()
}

/// The state of the agent.
pub struct Core {
    /// The model.
    pub model: Model,
    /// The kernel's maps.
    pub reconciler: Reconciler<KernelStore>,
    /// What the links task said last.
    pub report: watch::Receiver<Arc<Report>>,
    /// The node's name.
    pub node: String,
    /// What does not change while the agent runs.
    pub facts: Facts,
    /// What is wrong with the source's objects.
    pub faults: Vec<Fault>,
    /// What the source says of what is served, and of what announcing depends on besides.
    told: [Vec<Fault>; 2],
    /// The source has delivered everything once, and the kernel has nothing else.
    pub synced: bool,
    /// The agent's own Node object.
    pub own: Option<Arc<Node>>,
    /// What the source said has been programmed; before that, the kernel holds what the last agent left.
    begun: bool,
    events: Events,
    ipam: Ipam,
    /// Who says what is announced in layer 2, where that is on.
    announcer: Option<Announcer>,
    metallb: watch::Receiver<Presence>,
    node_addresses: watch::Sender<Option<BTreeSet<IpAddr>>>,
    node_ports: NodePortAddresses,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    checks: ServiceHealth,
    gaps: Gaps,
}

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The source's name.
    pub source: String,
    /// `all` or `host`.
    pub socket_mode: String,
    /// The cgroup of the socket programs, where it was named.
    pub cgroup: Option<String>,
    /// `tcx` or `clsact`.
    pub method: String,
    /// What on this node will hinder traffic.
    pub warnings: Vec<String>,
    /// What there is of kube-proxy on this node.
    pub beside: watch::Receiver<Vec<String>>,
    /// No agent ran here before: the kernel holds nothing that could be lost.
    pub first_start: bool,
    /// When the agent started.
    pub started: Instant,
    /// The same, by the wall clock.
    pub started_at: Timestamp,
}

/// What the main loop is made of, besides its own state.
pub struct Parts {
    /// The kernel's maps.
    pub reconciler: Reconciler<KernelStore>,
    /// What the links task says.
    pub report: watch::Receiver<Arc<Report>>,
    /// To tell the links task the node's addresses.
    pub node_addresses: watch::Sender<Option<BTreeSet<IpAddr>>>,
    /// Health.
    pub health: Arc<Health>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// The servers of health checks.
    pub checks: ServiceHealth,
    /// Where users are told what is wrong.
    pub events: Events,
    /// Who gives addresses.
    pub ipam: Ipam,
    /// Who says what is announced in layer 2, where that is on.
    pub announcer: Option<Announcer>,
    /// Whether MetalLB announces instead.
    pub metallb: watch::Receiver<Presence>,
}

/// What comes from the source.
pub struct Batches {
    /// What is served.
    pub served: mpsc::Receiver<Batch>,
    /// In a cluster, what announcing depends on besides; elsewhere it has ended.
    pub announced: mpsc::Receiver<Batch>,
}

impl Core {
    /// Nothing is known yet.
    pub fn new(config: culvert_model::Config, facts: Facts, parts: Parts) -> Self {
        let Parts { reconciler, report, node_addresses, health, metrics, checks, events, ipam, announcer, metallb } =
            parts;
        Self {
            node: config.node.clone(),
            node_ports: config.node_port_addresses.clone(),
            model: Model::new(config),
            reconciler,
            report,
            facts,
            faults: Vec::new(),
            told: Default::default(),
            synced: false,
            own: None,
            begun: false,
            events,
            ipam,
            announcer,
            metallb,
            node_addresses,
            health,
            metrics,
            checks,
            gaps: Gaps::default(),
        }
    }

    /// Runs until the source ends.
    pub async fn run(&mut self, mut batches: Batches, mut questions: mpsc::Receiver<Question>) -> Result<()> {
        let mut repair = tokio::time::interval_at(tokio::time::Instant::now() + REPAIR, REPAIR);
        loop {
            let due = self.due();
            tokio::select! {
                batch = batches.served.recv() => match batch {
                    Some(batch) => self.take(&batch).await,
                    None => bail!("the source has ended"),
                },
                Some(batch) = batches.announced.recv() => self.configure(&batch),
                Ok(()) = self.metallb.changed() => self.announce(),
                Ok(()) = self.report.changed() => self.links_changed(),
                () = hears(&mut self.announcer) => self.announce(),
                Some(question) = questions.recv() => question(self),
                () = tokio::time::sleep_until(due) => self.tick(),
                _ = repair.tick(), if self.synced => self.prune(),
            }
        }
    }

    /// Takes a batch. A part of a first list goes into the model alone.
    async fn take(&mut self, batch: &Batch) {
        if batch.progress == Progress::Loading {
            self.absorb(batch);
            return;
        }
        let start = self.incoming();
        let (touched, slices) = self.absorb(batch);
        if self.begun {
            self.program(&touched);
        } else {
            self.begin(touched).await;
        }
        self.complete(batch);
        self.announce();
        self.outgoing(start, &slices);
    }

    /// Programs for the first time. Before that the addresses on the node's links must be known: a ClusterIP that a link
    /// carries is not to be touched, not for a moment.
    async fn begin(&mut self, touched: BTreeSet<ServiceKey>) {
        let known = self.report.wait_for(|report| **report != Report::default());
        if tokio::time::timeout(FIRST_REPORT, known).await.is_err() {
            tracing::warn!("nothing is known of the node's links yet; going on without");
        }
        self.take_report();
        // What kube-proxy has begun goes on where it goes. Read once more when Services are in force: what began in between.
        self.leave_alone();
        self.begun = true;
        // All of them, for what the links carry concerns any.
        let all: BTreeSet<ServiceKey> = self.model.services().cloned().chain(touched).collect();
        self.program(&all);
        self.leave_alone();
    }

    /// At the first start, leaves the connections alone that netfilter translates.
    fn leave_alone(&mut self) {
        if !self.facts.first_start {
            return;
        }
        let foreign =
            |found: Translated| Foreign { client: at(found.client), frontend: at(found.frontend), proto: proto::TCP };
        let found = conntrack::translated().map(|found| found.into_iter().map(foreign).collect::<Vec<_>>());
        let imported = found
            .map_err(anyhow::Error::from)
            .and_then(|found| self.reconciler.import_foreign(found, now()).map_err(Into::into));
        match imported {
            Ok(0) => {}
            Ok(connections) => tracing::info!(connections, "connections that netfilter translates are left alone"),
            Err(error) => tracing::error!("connections that netfilter translates may break: {}", explain(&error)),
        }
    }

    /// Takes the changes into the model: the Services that they touch, and the slices among them.
    fn absorb(&mut self, batch: &Batch) -> (BTreeSet<ServiceKey>, Vec<Arc<EndpointSlice>>) {
        let mut touched = BTreeSet::new();
        let mut slices = Vec::new();
        for change in &batch.changes {
            match change {
                Change::Upsert(Object::EndpointSlice(slice)) => slices.push(Arc::clone(slice)),
                Change::Upsert(Object::Node(node)) if node.metadata.name == self.node => {
                    self.own = Some(Arc::clone(node));
                }
                Change::Remove(Id { kind: Kind::Node, key }) if *key.name == *self.node => self.own = None,
                _ => {}
            }
            // In a cluster only the own Node is among what is served.
            if let (Some(announcer), Ipam::Folder(_)) = (&mut self.announcer, &self.ipam) {
                announcer.take(change);
            }
            match kind(change) {
                Kind::Service => drop(self.metrics.service_changes.inc()),
                Kind::EndpointSlice => drop(self.metrics.endpoint_changes.inc()),
                Kind::Node | Kind::Addresses(_) => {}
            }
            let change = self.ipam.take(change);
            touched.extend(change.into_iter().flat_map(|change| self.model.apply(change)));
        }
        let changes = self.ipam.decide(batch.progress == Progress::Complete);
        touched.extend(changes.into_iter().flat_map(|change| self.model.apply(change)));
        self.told[0].clone_from(&batch.faults);
        self.note_faults();
        self.note_node(match batch.progress {
            Progress::Loading => false,
            Progress::Partial => self.facts.first_start,
            Progress::Complete => true,
        });
        (touched, slices)
    }

    /// Takes a batch of what announcing depends on. What is served has not to wait for it.
    fn configure(&mut self, batch: &Batch) {
        let Ipam::Cluster(statuses) = &mut self.ipam else { return };
        if let Some(announcer) = &mut self.announcer {
            batch.changes.iter().for_each(|change| announcer.take(change));
        }
        statuses.configure(&batch.changes, batch.progress == Progress::Complete);
        let changes = statuses.decide();
        let touched = changes.into_iter().flat_map(|change| self.model.apply(change)).collect();
        self.told[1].clone_from(&batch.faults);
        self.note_faults();
        if self.begun {
            self.program(&touched);
            self.announce();
            self.settle();
        }
    }

    /// Tells everybody of the agent's own Node. That there is none is known once everything was delivered.
    fn note_node(&mut self, complete: bool) {
        if self.own.is_none() && !complete {
            return;
        }
        self.health.set_node(self.own.as_deref());
        let addresses: BTreeSet<IpAddr> = self.own.iter().flat_map(|node| addresses(node)).collect();
        if let NodePortAddresses::Prefixes(prefixes) = &self.node_ports {
            let admitted = addresses.iter().filter(|address| prefixes.iter().any(|prefix| prefix.contains(*address)));
            self.checks.listen_on(admitted.copied().collect());
        }
        self.node_addresses.send_if_modified(|known| {
            let changed = known.as_ref() != Some(&addresses);
            *known = Some(addresses);
            changed
        });
    }

    fn note_faults(&mut self) {
        let faults: Vec<Fault> = self.told.iter().flatten().cloned().chain(self.ipam.faults()).collect();
        for fault in faults.iter().filter(|fault| !self.faults.contains(fault)) {
            if fault.is_error() { tracing::error!("{fault}") } else { tracing::warn!("{fault}") }
        }
        for fault in self.faults.iter().filter(|fault| !faults.contains(fault)) {
            tracing::info!("no longer so: {fault}");
        }
        conditions::of_source(&self.events, &self.faults, &faults);
        self.faults = faults;
    }

    fn program(&mut self, services: &BTreeSet<ServiceKey>) {
        for key in services {
            let plan = self.model.plan(key);
            let result = match &plan {
                Some(plan) => self.reconciler.upsert(plan, now()),
                None => self.reconciler.remove(key, now()),
            };
            self.note(result);
            conditions::of_kernel(&self.events, key, self.reconciler.failed().get(key).map(|failed| &*failed.message));
            conditions::of_plan(&self.events, key, plan.as_ref());
            // Load balancers are told after the kernel.
            if let Some(announcer) = &mut self.announcer {
                let service = self.ipam.service(key);
                announcer.programmed(key, service.zip(plan.as_ref()).zip(self.model.reach(key)));
            }
            self.gaps.set(key, plan.as_ref());
            self.checks.set(key, plan.as_ref().and_then(|plan| plan.health_check));
        }
        self.gaps.publish(&self.metrics);
    }

    /// The first time that everything was delivered: what is not among it goes.
    fn complete(&mut self, batch: &Batch) {
        let complete = batch.progress == Progress::Complete;
        if complete {
            self.health.delivered();
        }
        if (complete || self.facts.first_start) && !self.synced {
            self.synced = true;
            self.prune();
            tracing::info!(services = self.model.services().count(), "everything was delivered and is in the kernel");
        }
    }

    fn prune(&mut self) {
        let wanted: HashSet<ServiceKey> = self.model.services().cloned().collect();
        for error in self.reconciler.prune(&wanted, now()) {
            self.note(Err(error));
        }
    }

    fn links_changed(&mut self) {
        let touched = self.take_report();
        if let Some(announcer) = &mut self.announcer {
            announcer.links_changed();
        }
        if self.begun {
            self.program(&touched);
            self.announce();
            self.settle();
        }
    }

    /// Who announces each address.
    pub fn announcements(&self) -> BTreeMap<IpAddr, Owner> {
        self.announcer.as_ref().map(Announcer::explain).unwrap_or_default()
    }

    /// Whether the node is to announce nothing in layer 2; `None`: it never does.
    pub fn drained(&self) -> Option<Drain> {
        self.announcer.as_ref().map(|announcer| Drain { drained: announcer.is_drained() })
    }

    /// The node is to announce nothing in layer 2, or may again; `None`: it never announces.
    pub fn drain(&mut self, drained: bool) -> Option<std::io::Result<()>> {
        let result = self.announcer.as_mut()?.drain(drained);
        self.announce();
        Some(result)
    }

    /// Says what is to be announced, if it may be another thing now: not before everything was delivered, for until then
    /// what an earlier agent announced goes on.
    fn announce(&mut self) {
        let (Some(announcer), Some(config)) = (&mut self.announcer, self.ipam.config()) else { return };
        let (report, metallb) = (self.report.borrow(), self.metallb.borrow());
        // Of links that are not known it would be said that they are gone.
        let ready = self.synced && **report != Report::default() && *metallb != Presence::Unknown;
        if ready {
            announcer.hush(metallb.silence());
            announcer.decide(&self.node, config, &report, self.reconciler.services());
        }
    }

    fn take_report(&mut self) -> BTreeSet<ServiceKey> {
        let report = Arc::clone(&self.report.borrow_and_update());
        for error in self.reconciler.set_node_addresses(&report.addresses, now()) {
            self.note(Err(error));
        }
        self.model.set_link_addresses(report.addresses.iter().copied().collect())
    }

    fn due(&self) -> tokio::time::Instant {
        let wait = self.reconciler.deadline().map_or(REPAIR, |deadline| deadline.saturating_sub(now()));
        tokio::time::Instant::now() + wait
    }

    fn tick(&mut self) {
        let result = self.reconciler.tick(now());
        self.note(result);
        for (service, result) in self.reconciler.retry(now()) {
            if result.is_ok() {
                tracing::info!(%service, "is in the kernel now");
            }
            let failed = self.reconciler.failed().get(&service);
            conditions::of_kernel(&self.events, &service, failed.map(|failed| &*failed.message));
            self.note(result);
            if let Some(announcer) = &mut self.announcer {
                announcer.tried(&service);
            }
        }
        self.announce();
    }

    fn note(&self, result: Result<(), culvert_dataplane::reconcile::Error>) {
        if let Err(error) = result {
            self.metrics.programming_errors.inc();
            tracing::error!("{}", explain(&error.into()));
        }
    }

    fn incoming(&self) -> Instant {
        let start = Instant::now();
        self.health.pending(start);
        self.metrics.queued(Timestamp::now());
        start
    }

    fn outgoing(&self, start: Instant, slices: &[Arc<EndpointSlice>]) {
        self.metrics.synced(Timestamp::now(), start.elapsed());
        for slice in slices {
            self.measure(slice);
        }
        self.settle();
    }

    /// Hooks that are missing keep the node unhealthy, whatever the maps hold. A Service that cannot be programmed does
    /// not: the others are served, and it is named in metrics, log and status.
    fn settle(&self) {
        if self.report.borrow().problems.is_empty() {
            self.health.updated(Timestamp::now());
        } else {
            self.health.pending(Instant::now());
        }
    }

    /// Measures from the change of endpoints to now, if they changed since the agent started.
    fn measure(&self, slice: &EndpointSlice) {
        let Some(changed) = slice.metadata.annotations.get(TRIGGER_TIME) else { return };
        let Ok(changed) = changed.parse::<Timestamp>() else { return };
        let family = if slice.address_type == "IPv6" { IpFamily::IPv6 } else { IpFamily::IPv4 };
        if changed > self.facts.started_at
            && let Ok(after) = Duration::try_from(Timestamp::now().duration_since(changed))
        {
            self.metrics.programmed(family, after);
        }
    }
}

async fn hears(announcer: &mut Option<Announcer>) {
    match announcer {
        Some(announcer) => announcer.hears().await,
        None => std::future::pending().await,
    }
}

fn kind(change: &Change) -> Kind {
    match change {
        Change::Upsert(object) => object.kind(),
        Change::Remove(id) => id.kind,
    }
}

fn addresses(node: &Node) -> impl Iterator<Item = IpAddr> {
    let addresses = node.status.addresses.iter();
    let of_host = addresses.filter(|address| matches!(address.kind.as_str(), "InternalIP" | "ExternalIP"));
    of_host.filter_map(|address| address.address.parse().ok())
}

fn at(socket: SocketAddr) -> At {
    At { address: socket.ip(), port: socket.port() }
}

/// The monotonic clock, as the kernel programs see it.
pub fn now() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}
