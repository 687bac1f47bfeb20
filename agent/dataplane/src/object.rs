//! The kernel object: what it holds, and loading it through aya.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{MapData, MapError, ProgramArray, RingBuf},
    programs::{Program, ProgramError, ProgramFd},
};
use aya_log::EbpfLogger;
use aya_obj::{Object as Elf, generated::bpf_map_type};
use culvert_abi::{Config, config, program};
use log::Log;

use crate::{
    Error,
    limits::{Limits, Memory, footprint},
    sys::{self, Shape},
};

/// The kernel object, as built with this crate.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/culvert.o"));

/// The programs of the packet hooks.
pub const PACKET_PROGRAMS: [&str; 6] =
    ["pod_ingress", "pod_egress", "node_ingress", "node_egress", "node_ingress_l3", "node_egress_l3"];

/// The programs of the cgroup hooks.
pub const SOCKET_PROGRAMS: [&str; 8] =
    ["connect4", "connect6", "sendmsg4", "sendmsg6", "recvmsg4", "recvmsg6", "getpeername4", "getpeername6"];

/// The programs that other programs go on with, and their rows in `PROGRAMS`.
pub const CONTINUATIONS: [(&str, u32); program::COUNT as usize] = [("node_beat", program::BEAT)];

/// The flow maps, whose rows the programs write and no other source can give back. Each has a twin with the prefix
/// `PREVIOUS_` in the object.
pub const FLOWS: [&str; 4] = ["FLOWS_NEW_V4", "FLOWS_NEW_V6", "FLOWS_V4", "FLOWS_V6"];

/// The other maps that outlive a load of the object. All others are the programs' own scratch.
const PINNED: [&str; 29] = [
    "ADDRESSES_V4",
    "ADDRESSES_V6",
    "FRONTENDS_V4",
    "FRONTENDS_V6",
    "BACKENDS_V4",
    "BACKENDS_V6",
    "RANGES_V4",
    "RANGES_V6",
    "TABLES",
    "SLAB",
    "AFFINITY",
    "BACKEND_FILTER",
    "FRAGMENTS_V4",
    "FRAGMENTS_V6",
    "LINKS",
    "SOCKETS",
    "DATAGRAMS",
    "SERVICE_COUNTERS",
    "BACKEND_COUNTERS_V4",
    "BACKEND_COUNTERS_V6",
    "REASONS",
    "ANNOUNCED",
    "ANNOUNCED_COUNTERS",
    "LIVENESS",
    "VOTERS",
    "GRANTS",
    "FLOOR",
    "BEATS",
    PROGRAMS,
];
/// Pinned because the kernel empties it when no process and no pin holds it any more, though programs do.
const PROGRAMS: &str = "PROGRAMS";
/// The ring buffers: of samples, and of hosts that use announced addresses.
const EVENTS: &str = "EVENTS";
const RIVALS: &str = "RIVALS";
const PREVIOUS: &str = "PREVIOUS_";
/// The packet programs that most nodes never hook: those of links without an Ethernet header.
const RARE: [&str; 2] = ["node_ingress_l3", "node_egress_l3"];
/// Programs that are loaded at the same time. The verifier takes tens of MiB for each, and some tenths of a second.
const LOADERS: usize = 2;

/// The programs, loaded or soon to be.
#[derive(Debug)]
pub struct Object {
    ebpf: Mutex<Ebpf>,
}

/// How the object is to be loaded.
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    /// Sizes of the maps.
    pub limits: &'a Limits,
    /// The programs' read-only configuration.
    pub config: Config,
    /// Directory of the pinned maps; what is missing there is created and pinned. Their shapes must have been compared.
    pub maps: &'a Path,
    /// Directory with the flow maps of another shape that are still in use.
    pub previous: Option<&'a Path>,
}

/// Shapes of the maps that are pinned, by name, as `limits` want them.
pub fn shapes(limits: &Limits) -> Result<BTreeMap<String, Shape>, Error> {
    let elf = Elf::parse(OBJECT).map_err(|error| Error::Object(Box::new(EbpfError::ParseError(error))))?;
    let cpus = cpus()?;
    let shape = |name: &&str| {
        let map = elf.maps.get(*name).ok_or_else(|| Error::NoMap((*name).to_owned()))?;
        let ring = map.map_type() == bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32;
        let shape = Shape {
            kind: map.map_type(),
            key: map.key_size(),
            value: if ring { 0 } else { map.value_size() },
            rows: limits.rows(name, cpus).unwrap_or(map.max_entries()),
            flags: map.map_flags(),
        };
        Ok(((*name).to_owned(), shape))
    };
    PINNED.iter().chain(&FLOWS).chain([&EVENTS, &RIVALS]).map(shape).collect()
}

/// What the maps will take of the kernel's memory with these limits.
pub fn memory(limits: &Limits) -> Result<Memory, Error> {
    let cpus = u64::from(cpus()?);
    let maps = shapes(limits)?.into_iter().map(|(name, shape)| (name, footprint(shape, cpus))).collect();
    Ok(Memory { maps })
}

impl Object {
    /// Creates the maps that are missing and loads the programs that every node hooks. Nothing is attached yet.
    pub fn load(load: Load<'_>) -> Result<Self, Error> {
        let names: Vec<String> = shapes(load.limits)?.into_keys().collect();
        let pins: Vec<_> = names.iter().map(|name| load.maps.join(name)).collect();
        let twins: Vec<String> = FLOWS.iter().map(|name| format!("{PREVIOUS}{name}")).collect();
        let previous: Vec<_> = FLOWS.iter().filter_map(|name| Some(load.previous?.join(name))).collect();
        let level: u8 = if load.config.flags & config::TRACE == 0 { 0 } else { u8::MAX };
        let cpus = cpus()?;

        let mut loader = EbpfLoader::new();
        loader.override_global("CONFIG", &load.config, true).override_global("AYA_LOG_LEVEL", &level, false);
        for (name, pin) in names.iter().zip(&pins) {
            loader.map_pin_path(name, pin.as_path());
            if let Some(rows) = load.limits.rows(name, cpus) {
                loader.map_max_entries(name, rows);
            }
        }
        for twin in &twins {
            // Nothing reads them but a program that migrates.
            loader.map_max_entries(twin, 1);
        }
        for (twin, pin) in twins.iter().zip(&previous) {
            loader.map_pin_path(twin, pin.as_path());
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| Error::Object(Box::new(error)))?;
        load_common(&mut ebpf)?;
        connect(&mut ebpf)?;
        Ok(Self { ebpf: Mutex::new(ebpf) })
    }

    /// The descriptor of a program, which is loaded if it is not yet.
    pub fn program(&self, name: &'static str) -> Result<ProgramFd, Error> {
        let mut ebpf = self.ebpf();
        let program = ebpf.program_mut(name).ok_or(Error::NoProgram(name))?;
        let failed = |source| Error::Program { name, source: Box::new(source) };
        if matches!(program.fd(), Err(ProgramError::NotLoaded)) {
            load(program).map_err(failed)?;
        }
        program.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(failed)
    }

    /// The kernel's ids of the loaded programs.
    pub fn ids(&self) -> BTreeSet<u32> {
        self.ebpf().programs().filter_map(|(_, program)| Some(program.info().ok()?.id())).collect()
    }

    fn ebpf(&self) -> MutexGuard<'_, Ebpf> {
        self.ebpf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The samples of dropped packets; `None` if they were taken before.
    pub fn take_events(&mut self) -> Option<RingBuf<MapData>> {
        self.ebpf().take_map(EVENTS)?.try_into().ok()
    }

    /// Word of hosts that use announced addresses; `None` if it was taken before.
    pub fn take_rivals(&mut self) -> Option<RingBuf<MapData>> {
        self.ebpf().take_map(RIVALS)?.try_into().ok()
    }

    /// Takes what the programs log, if they do; `None` if they cannot.
    pub fn take_log(&mut self) -> Option<EbpfLogger<ToTracing>> {
        EbpfLogger::init_with_logger(&mut self.ebpf(), ToTracing).ok()
    }
}

/// Hands what the programs log to `tracing`.
#[derive(Clone, Copy, Debug)]
pub struct ToTracing;

impl Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        tracing::info!(target: "culvert::datapath", program = record.target(), "{}", record.args());
    }

    fn flush(&self) {}
}

/// Loads all programs but the rare ones, [`LOADERS`] at a time.
fn load_common(ebpf: &mut Ebpf) -> Result<(), Error> {
    let hooked = PACKET_PROGRAMS.into_iter().chain(SOCKET_PROGRAMS);
    let all: Vec<&'static str> = hooked.chain(CONTINUATIONS.map(|(name, _)| name)).collect();
    let wanted = |name: &str| all.iter().copied().find(|program| *program == name);
    let programs = ebpf.programs_mut().filter_map(|(name, program)| Some((wanted(name)?, program)));
    let queue = Mutex::new(programs.filter(|(name, _)| !RARE.contains(name)));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some((name, program)) = next() {
            load(program).map_err(|source| Error::Program { name, source: Box::new(source) })?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let loaders: Vec<_> = (0..LOADERS).map(|_| scope.spawn(work)).collect();
        loaders.into_iter().try_for_each(|loader| loader.join().unwrap_or_else(|payload| panic::resume_unwind(payload)))
    })
}

/// Lets programs go on with [`CONTINUATIONS`], which are loaded. Those of an earlier agent do so too from here on.
pub fn connect(ebpf: &mut Ebpf) -> Result<(), Error> {
    for (name, row) in CONTINUATIONS {
        let program = ebpf.program(name).ok_or(Error::NoProgram(name))?;
        let failed = |source| Error::Program { name, source: Box::new(source) };
        let program = program.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(failed)?;
        let map = ebpf.map_mut(PROGRAMS).ok_or_else(|| Error::NoMap(PROGRAMS.to_owned()))?;
        let failed = |source: MapError| Error::Program { name, source: Box::new(source.into()) };
        let mut programs = ProgramArray::try_from(map).map_err(failed)?;
        programs.set(row, &program, 0).map_err(failed)?;
    }
    Ok(())
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn cpus() -> Result<u32, Error> {
    sys::cpus().map(|cpus| cpus as u32).map_err(Error::at(Path::new("/sys/devices/system/cpu/possible")))
}
