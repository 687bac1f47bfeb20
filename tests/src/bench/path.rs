//! Nanoseconds a packet, program by program, with `BPF_PROG_TEST_RUN`.
//!
//! A shim in front restores the packet that the run before has rewritten and varies its flow; its own cost, measured
//! with a target that does nothing, is subtracted. All cases take turns within each round, so that a machine that
//! slows down slows all of them; the figures are the median and the range over the rounds.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use aya::maps::{Array, ProgramArray};
use aya::programs::{ProgramFd, SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use culvert_abi::{Config, address, proto};

use super::packets::{Template, Varies, tcp};
use crate::world::{Backend, Frontend, Kernel, Link, Table, View, World};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds; each measures every case once.
    pub rounds: usize,
    /// Packets of a case in a round.
    pub packets: u32,
}

/// One measured case.
#[derive(Clone, Debug)]
pub struct Figure {
    /// The program.
    pub program: &'static str,
    /// What it is sent.
    pub case: &'static str,
    /// IPv4 or IPv6.
    pub family: &'static str,
    /// How many flows take turns.
    pub flows: u32,
    /// Nanoseconds a packet in each round, sorted, the shim's own subtracted.
    pub nanoseconds: Vec<i64>,
}

struct Case {
    program: &'static str,
    name: &'static str,
    template: Template,
    flows: u32,
    family: &'static str,
    /// Packets that must have passed through another program before, such as requests before replies.
    before: Option<(&'static str, Template)>,
}

/// The kernel's links that the cases name: `BPF_PROG_TEST_RUN` sends on lo.
const IFINDEX: u32 = 1;
const SERVICE: u32 = 1;
const TABLE: u32 = 1;
const REFUSED: u16 = 81;

/// Measures every case. `shim` is the object of `ebpf/src/shim.rs`.
pub fn run(effort: Effort, shim: &[u8], mut progress: impl FnMut(usize, usize)) -> Result<Vec<Figure>> {
    let config = Config { port_low: 61_000, port_high: 65_535, ..Config::zeroed() };
    let sizes = ["FLOWS_NEW_V4", "FLOWS_NEW_V6", "FLOWS_V4", "FLOWS_V6"].map(|map| (map, 2_097_152));
    let mut kernel = Kernel::open(config, &sizes)?;
    let (mut cases, world) = (Vec::new(), worlds()?);
    kernel.write(&world)?;
    for family in [Family::V4, Family::V6] {
        cases.extend(family.cases()?);
    }
    let mut targets = Targets::load(&mut kernel, shim)?;

    for case in &cases {
        if let Some((program, template)) = &case.before {
            targets.measure(program, template, case.flows * 2)?;
        }
        // The first packets of each flow, outside the measurement.
        targets.measure(case.program, &case.template, case.flows.max(1_000))?;
    }
    let mut figures: Vec<Figure> = cases
        .iter()
        .map(|case| Figure {
            program: case.program,
            case: case.name,
            family: case.family,
            flows: case.flows,
            nanoseconds: Vec::with_capacity(effort.rounds),
        })
        .collect();
    for round in 0..effort.rounds {
        for (index, (case, figure)) in cases.iter().zip(&mut figures).enumerate() {
            progress(round * cases.len() + index, effort.rounds * cases.len());
            let floor = targets.measure("stub", &case.template, effort.packets)?;
            let whole = targets.measure(case.program, &case.template, effort.packets)?;
            figure.nanoseconds.push(whole - floor);
        }
    }
    for figure in &mut figures {
        figure.nanoseconds.sort_unstable();
    }
    Ok(figures)
}

/// The programs that can stand behind the shim.
struct Targets {
    shim: Ebpf,
    programs: Vec<(&'static str, ProgramFd)>,
}

impl Targets {
    fn load(kernel: &mut Kernel, shim: &[u8]) -> Result<Self> {
        let mut programs = Vec::new();
        for name in ["pod_ingress", "pod_egress", "node_ingress", "node_egress"] {
            programs.push((name, load(kernel.object(), name)?));
        }
        let mut shim = EbpfLoader::new().load(shim).context("the shim's object")?;
        load(&mut shim, "shim")?;
        programs.push(("stub", load(&mut shim, "stub")?));
        Ok(Self { shim, programs })
    }

    /// Nanoseconds a packet, the shim's own included.
    fn measure(&mut self, program: &str, template: &Template, packets: u32) -> Result<i64> {
        let (_, fd) = self.programs.iter().find(|(name, _)| *name == program).context("no such program")?;
        let mut target: ProgramArray<_> = self.shim.map_mut("TARGET").context("TARGET")?.try_into()?;
        target.set(0, fd, 0)?;
        let mut map: Array<_, Template> = self.shim.map_mut("TEMPLATE").context("TEMPLATE")?.try_into()?;
        map.set(0, *template, 0)?;
        let shim: &SchedClassifier = self.shim.program("shim").context("shim")?.try_into()?;
        let options = TestRunOptions { data_in: Some(template.bytes()), repeat: packets, ..TestRunOptions::new() };
        Ok(shim.test_run(options)?.duration.as_nanos() as i64)
    }
}

fn load(object: &mut Ebpf, name: &str) -> Result<ProgramFd> {
    let program: &mut SchedClassifier = object.program_mut(name).with_context(|| name.to_owned())?.try_into()?;
    program.load().with_context(|| name.to_owned())?;
    Ok(program.fd()?.try_clone()?)
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn socket(self, v4: &str, v6: &str, port: u16) -> Result<SocketAddr> {
        let address = match self {
            Self::V4 => v4,
            Self::V6 => v6,
        };
        Ok(SocketAddr::new(address.parse()?, port))
    }

    fn client(self) -> Result<SocketAddr> {
        self.socket("10.9.0.0", "fd09::", 1024)
    }

    fn frontend(self) -> Result<SocketAddr> {
        self.socket("10.96.0.10", "fd96::10", 80)
    }

    fn backend(self) -> Result<SocketAddr> {
        self.socket("10.1.0.5", "fd01::5", 8080)
    }

    fn stranger(self) -> Result<SocketAddr> {
        self.socket("10.77.0.1", "fd77::1", 80)
    }

    fn cases(self) -> Result<Vec<Case>> {
        let (client, frontend, backend) = (self.client()?, self.frontend()?, self.backend()?);
        let to =
            |destination, flags, flows| Template::new(client, destination, proto::TCP, flags, flows, Varies::Source);
        let from = |source, flows| Template::new(source, client, proto::TCP, tcp::ACK, flows, Varies::Destination);
        let refused = SocketAddr::new(frontend.ip(), REFUSED);
        let case = |program, name, template, flows, before| Case {
            program,
            name,
            template,
            flows,
            family: self.name(),
            before,
        };
        let mut cases = vec![
            case("node_ingress", "not ours", to(self.stranger()?, tcp::ACK, 1_000)?, 1_000, None),
            case("node_egress", "not ours", from(self.stranger()?, 1_000)?, 1_000, None),
            case("pod_ingress", "not ours", to(self.stranger()?, tcp::ACK, 1_000)?, 1_000, None),
        ];
        for flows in [1, 1_000, 100_000] {
            let request = ("node_ingress", to(frontend, tcp::SYN, flows)?);
            cases.push(case("node_egress", "reply, flow hit", from(backend, flows)?, flows, Some(request)));
            cases.push(case("node_ingress", "request, flow hit", to(frontend, tcp::ACK, flows)?, flows, None));
        }
        cases.push(case("node_ingress", "new flows (SYN)", to(frontend, tcp::SYN, 4_000_000)?, 4_000_000, None));
        cases.push(case("node_ingress", "refused port (RST)", to(refused, tcp::SYN, 1_000)?, 1_000, None));
        Ok(cases)
    }
}

fn worlds() -> Result<World> {
    let mut world = World::default();
    let view = View::table(TABLE);
    for (id, family) in [(1, Family::V4), (2, Family::V6)] {
        let (service, table) = (SERVICE + id, TABLE + id);
        world.addresses.insert(family.frontend()?.ip(), address::FRONTEND | address::REFUSE);
        world.backends.insert(id, Backend::new(family.backend()?, service));
        world.tables.insert(table, Table::maglev(&[id], 1));
        world.frontends.insert((family.frontend()?, proto::TCP), Frontend::new(service, View { table, ..view }));
    }
    let link = Link { v4: "10.0.0.1".parse()?, v6: "fd00::1".parse()?, flags: 0, bridge: [0; 6], mac: [0; 6] };
    world.links.insert(IFINDEX, link);
    Ok(world)
}
