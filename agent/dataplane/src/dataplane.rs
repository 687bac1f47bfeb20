//! The kernel's half of the agent: opened once, handed out in parts.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use culvert_abi::{Config, config, socket_mode};
use tokio::sync::watch;

use crate::{
    Error, announced,
    kernel::KernelStore,
    limits::{Limits, Memory},
    links::{
        Hooks, Links, Patterns,
        hooks::{self, Method},
        task::Report,
    },
    migrate, netns,
    object::{self, ToTracing},
    pins::{Lock, Pins},
    sockets::{self, Sockets},
    store::{Map, Store},
};

/// How the node's dataplane is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// A bpf file system, or a directory of one, of this node alone.
    pub bpffs: PathBuf,
    /// The node's cgroup2; `None`: where cgroup2 is mounted.
    pub cgroup: Option<PathBuf>,
    /// Whose sockets are translated.
    pub socket_mode: SocketMode,
    /// Sizes of the maps.
    pub limits: Limits,
    /// Ports for translated sources.
    pub ports: RangeInclusive<u16>,
    /// The programs log what they do.
    pub trace: bool,
    /// `--pod-links`.
    pub pod_links: Patterns,
    /// `--node-links`.
    pub node_links: Patterns,
    /// The UDP port where beats of other nodes are answered; `None`: nowhere.
    pub beat_port: Option<u16>,
    /// How links are hooked; `None`: the best that the kernel has.
    pub method: Option<Method>,
}

/// Whose sockets are translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SocketMode {
    /// The host's and the pods'.
    #[default]
    All,
    /// The host's; pods are served by the packet hooks.
    Host,
}

/// What [`Dataplane::open`] gives.
pub struct Dataplane {
    /// The maps.
    pub store: KernelStore,
    /// The task that keeps the hooks; to be run.
    pub links: Links,
    /// What that task knows: local addresses, hooked links, problems.
    pub report: watch::Receiver<Arc<Report>>,
    /// To be told the addresses of this node's Node object, as soon as and whenever they are known.
    pub node_addresses: watch::Sender<Option<BTreeSet<IpAddr>>>,
    /// Samples of dropped packets.
    pub events: Option<RingBuf<MapData>>,
    /// Word of hosts that use announced addresses.
    pub rivals: Option<RingBuf<MapData>>,
    /// What the programs log, if they do; to be flushed when its descriptor is readable.
    pub log: Option<EbpfLogger<ToTracing>>,
    /// No agent has programmed a Service on this node since it booted (or since `culvert cleanup`).
    pub first_start: bool,
    /// What the maps take of the kernel's memory.
    pub memory: Memory,
    /// What on this node will hinder traffic.
    pub warnings: Vec<String>,
    /// How links are hooked.
    pub method: Method,
    /// To be held as long as the agent runs.
    pub lock: Lock,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bpffs: "/sys/fs/bpf".into(),
            cgroup: None,
            socket_mode: SocketMode::All,
            limits: Limits::default(),
            // Above the kernel's ephemeral range, 32768-60999.
            ports: 61_000..=65_535,
            trace: false,
            pod_links: Patterns::default(),
            node_links: Patterns::default(),
            beat_port: None,
            method: None,
        }
    }
}

impl Dataplane {
    /// Waits until no other agent uses the pins, then takes over what is pinned or makes it anew. When it returns, every hook
    /// that an earlier agent left and all socket hooks run this agent's programs, on the rows that the maps have.
    pub fn open(options: Options) -> Result<Self, Error> {
        netns::ensure_bpffs(&options.bpffs)?;
        let pins = Pins::new(&options.bpffs);
        let lock = pins.lock(|path| {
            tracing::warn!(path = %path.display(), "another agent runs on this node; waiting for its end");
        })?;
        pins.create()?;
        let sockets = Sockets::open(options.cgroup.as_deref())?;
        let method = options.method.unwrap_or_else(Method::probe);
        let mut hooks = Hooks::new(pins.clone(), method)?;
        let config = Config {
            host_netns: netns::cookie()?,
            socket_mode: match options.socket_mode {
                SocketMode::All => socket_mode::ALL,
                SocketMode::Host => socket_mode::HOST,
            },
            port_low: *options.ports.start(),
            port_high: *options.ports.end(),
            flags: if options.trace { config::TRACE } else { 0 },
            beat_port: options.beat_port.unwrap_or(0).to_be(),
            zero: 0,
        };
        let mut roles = BTreeMap::new();
        let mut object = migrate::bring_up(&pins, &options.limits, config, |object, store| {
            roles = hooks.take_over(object, store)?;
            sockets.attach(object, &pins).map(drop)
        })?;
        let (events, rivals) = (object.take_events(), object.take_rivals());
        let log = if options.trace { object.take_log() } else { None };
        let store = KernelStore::open(&pins.maps())?;
        let first_start = !serves(&store)?;
        let (report_sender, report) = watch::channel(Arc::default());
        let (node_addresses, node_addresses_receiver) = watch::channel(None);
        Ok(Self {
            store: store.clone(),
            links: Links {
                object: Arc::new(object),
                store,
                pins,
                hooks,
                sockets,
                pods: options.pod_links,
                nodes: options.node_links,
                roles,
                node_addresses: node_addresses_receiver,
                report: report_sender,
            },
            report,
            node_addresses,
            events,
            rivals,
            log,
            first_start,
            memory: object::memory(&options.limits)?,
            warnings: netns::warnings(&options.ports),
            method,
            lock,
        })
    }
}

/// Detaches everything that is Culvert's and removes every pin, of every layout. Fails if an agent runs.
pub fn cleanup(bpffs: &Path) -> Result<(), Error> {
    let base = bpffs.join("culvert");
    if !base.exists() {
        return Ok(());
    }
    let pins = Pins::new(bpffs);
    let Some(_lock) = pins.try_lock()? else { return Err(Error::Busy(base)) };
    hooks::detach_all(&pins)?;
    announced::leave_groups(&pins.maps());
    sockets::detach(&pins)?;
    remove_tree(&base)
}

/// Removes a directory of pins with all below.
fn remove_tree(directory: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(directory).map_err(Error::at(directory))? {
        let entry = entry.map_err(Error::at(directory))?;
        let path = entry.path();
        if entry.file_type().map_err(Error::at(&path))?.is_dir() {
            remove_tree(&path)?;
        } else {
            fs::remove_file(&path).map_err(Error::at(&path))?;
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::at(directory)(error)),
        _ => Ok(()),
    }
}

/// Whether an agent has programmed Services here. One that ended before it did has left maps, and no more.
fn serves(store: &KernelStore) -> Result<bool, Error> {
    let mut any = false;
    for (map, name) in [(Map::FRONTENDS_V4, "FRONTENDS_V4"), (Map::FRONTENDS_V6, "FRONTENDS_V6")] {
        store.for_each(map, &mut |_, _| any = true).map_err(Error::map(name))?;
    }
    Ok(any)
}
