//! Playing a script, to the kernel and to the oracle at once.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use culvert_abi::{Config, Reason, backend, proto};

use super::dice::Dice;
use super::frame::{self, Ip, Tcp};
use super::packet::{ETHERNET, Tuple, addresses, read};
use super::report::{Disagreement, Failure};
use super::scene::{LINK, PORTS, Scene};
use super::script::{Script, Step, Talk, family_of};
use super::{Hook, Judgement, Oracle, Seen, Verdict, rows};
use crate::world::{Kernel, World};

/// Room for what the kernel gives back.
const ROOM: usize = 4_096;

/// The kernel and the oracle, in the same state.
pub struct Player {
    kernel: Kernel,
    oracle: Oracle,
    world: World,
    room: Vec<u8>,
    /// Frames that were judged.
    pub packets: u64,
    /// Of these: changed, dropped, answered.
    pub verdicts: [u64; 3],
}

/// What is known of a conversation from the frames that went by.
#[derive(Clone, Copy, Debug, Default)]
struct Course {
    /// Who serves it.
    backend: Option<SocketAddr>,
    /// What the backend sees instead of the client.
    source: Option<SocketAddr>,
}

impl Player {
    /// Loads the programs and writes the scene.
    pub fn new(scene: &Scene) -> Result<Self> {
        let config = Config { port_low: PORTS.low, port_high: PORTS.high, ..Config::zeroed() };
        let mut kernel = Kernel::open(config, &[])?;
        for hook in [Hook::PodIngress, Hook::PodEgress, Hook::NodeIngress, Hook::NodeEgress] {
            let name = program(hook);
            let classifier: &mut SchedClassifier = kernel.object().program_mut(name).context(name)?.try_into()?;
            classifier.load().context(name)?;
        }
        kernel.write(&scene.world)?;
        let oracle = Oracle::new(scene.world.clone(), PORTS, LINK);
        Ok(Self { kernel, oracle, world: scene.world.clone(), room: vec![0; ROOM], packets: 0, verdicts: [0; 3] })
    }

    /// Plays a script from a clean state, to a clean state.
    pub fn play(&mut self, scene: &Scene, script: &Script) -> Result<(), Failure> {
        let mut courses = vec![Course::default(); script.talks.len()];
        for step in &script.steps {
            self.step(scene, script, step, &mut courses)?;
        }
        self.settle()?;
        Ok(())
    }

    /// Brings both back to a clean state after a failure.
    pub fn reset(&mut self) -> Result<()> {
        rows::clear(&mut self.kernel)?;
        self.oracle.forget();
        self.restore()
    }

    /// Compares the counters, which run through all scripts, and looks for rows that nobody knows of.
    pub fn audit(&mut self) -> Result<()> {
        for reason in Reason::ALL {
            let kernel = self.kernel.reason(reason)?;
            let oracle = self.oracle.reasons.get(&(reason as u8)).copied().unwrap_or(0);
            let unsure = match reason {
                Reason::FlowCollision | Reason::NoTable => self.oracle.unsure,
                _ => 0,
            };
            ensure!(kernel.abs_diff(oracle) <= unsure, "{reason:?}: counted {kernel}, not {oracle} (+- {unsure})");
        }
        for (id, wanted) in &self.oracle.services {
            let found = self.kernel.service(*id)?;
            ensure!(*id == 0 || found == *wanted, "Service {id} counted\n{found:?}, not\n{wanted:?}");
        }
        for (id, wanted) in &self.oracle.backends {
            let v4 = self.oracle.world.backends.get(id).is_none_or(|row| row.at.is_ipv4());
            let map = if v4 { "BACKEND_COUNTERS_V4" } else { "BACKEND_COUNTERS_V6" };
            let found = self.kernel.array::<culvert_abi::BackendCounters>(map)?.get(id, 0)?;
            ensure!(found == *wanted, "backend {id} counted\n{found:?}, not\n{wanted:?}");
        }
        let left = rows::clear(&mut self.kernel)?;
        ensure!(left == 0, "{left} rows were left that the oracle does not know of");
        Ok(())
    }

    /// How often a closed flow's source was taken over, and how often a connection began beside a closed flow.
    pub fn makes_room(&self) -> [u64; 2] {
        [self.oracle.taken_over, self.oracle.beside]
    }

    /// How often a client's last backend was not in the list that the client asked.
    pub fn elsewhere(&self) -> u64 {
        self.oracle.elsewhere
    }

    /// How often each reason was met.
    pub fn reasons(&self) -> Vec<(Reason, u64)> {
        let count = |reason: Reason| self.oracle.reasons.get(&(reason as u8)).copied().unwrap_or(0);
        Reason::ALL.map(|reason| (reason, count(reason))).to_vec()
    }

    fn step(&mut self, scene: &Scene, script: &Script, step: &Step, courses: &mut [Course]) -> Result<(), Failure> {
        match step {
            Step::Ask(talk, seed) => {
                let frame = request(&script.talks[*talk], &mut Dice::new(*seed));
                self.ask(&script.talks[*talk], &mut courses[*talk], &frame, *seed)
            }
            Step::Reply(talk, seed) => {
                let (talk, course) = (&script.talks[*talk], &courses[*talk]);
                let frame = reply(scene, talk, course, &mut Dice::new(*seed));
                self.reply(talk, course, &frame)
            }
            Step::AskInPieces(talk, seed) => {
                let mut dice = Dice::new(*seed);
                let Talk { client, frontend, .. } = script.talks[*talk];
                for piece in pieces(client, frontend, script.talks[*talk].proto, &mut dice) {
                    self.ask(&script.talks[*talk], &mut courses[*talk], &piece, *seed)?;
                }
                Ok(())
            }
            Step::ReplyInPieces(talk, seed) => {
                let mut dice = Dice::new(*seed);
                let (talk, course) = (&script.talks[*talk], &courses[*talk]);
                let (from, to) = ends(scene, talk, course, &mut dice);
                for piece in pieces(from, to, talk.proto, &mut dice) {
                    self.reply(talk, course, &piece)?;
                }
                Ok(())
            }
            Step::ErrorToClient(talk, seed) => {
                let (talk, course) = (&script.talks[*talk], &courses[*talk]);
                let mut dice = Dice::new(*seed);
                let (from, to) = ends(scene, talk, course, &mut dice);
                let frame = error(to, from, talk.proto, &mut dice);
                self.reply(talk, course, &frame)
            }
            Step::ErrorToBackend(talk, seed) => {
                let Talk { client, frontend, proto, .. } = script.talks[*talk];
                let frame = error(frontend, client, proto, &mut Dice::new(*seed));
                self.ask(&script.talks[*talk], &mut courses[*talk], &frame, *seed)
            }
            Step::Beside(talk, seed) => self.beside(scene, &script.talks[*talk], &courses[*talk], *seed),
            Step::Damaged(talk, seed) => self.damaged(scene, &script.talks[*talk], &courses[*talk], *seed),
            Step::Foreign(talk, seed) => self.foreign(scene, &script.talks[*talk], *seed),
            Step::Wait(milliseconds) => Ok(self.wait(*milliseconds)?),
            Step::Kill(id) => Ok(self.change(*id, |row| row.flags &= !backend::ALIVE)?),
            Step::Revive(id) => Ok(self.change(*id, |row| {
                row.flags |= backend::ALIVE;
                row.generation += 1;
            })?),
            Step::Addressed(present) => {
                let links = &mut self.oracle.world.links;
                links.clone_from(&self.world.links);
                if !present {
                    links.clear();
                }
                self.kernel.put_links(links)?;
                Ok(())
            }
        }
    }

    // ===== frames on their way =====

    /// A frame of the client, which goes on to the backend if it may.
    fn ask(&mut self, talk: &Talk, course: &mut Course, frame: &[u8], seed: u64) -> Result<(), Failure> {
        let mut dice = Dice::new(seed ^ 1);
        let Verdict::Next(inside) = self.judge(talk.ingress(), frame)? else { return Ok(()) };
        let ports = self.oracle.fragments.clone();
        let tuple = |frame: &[u8]| read(frame, |s, d, p, i| ports.get(&(s, d, p, i)).copied()).ok().map(|p| p.tuple);
        if inside != frame
            && let Some(tuple) = tuple(&inside)
        {
            course.backend = Some(tuple.dst);
        }
        if dice.percent(20) {
            return Ok(());
        }
        let hook = if dice.percent(50) { Hook::NodeEgress } else { Hook::PodEgress };
        let Verdict::Next(outside) = self.judge(hook, &inside)? else { return Ok(()) };
        if outside != inside
            && let Some(tuple) = tuple(&outside)
        {
            course.source = Some(tuple.src);
        }
        Ok(())
    }

    /// A frame towards the client, from what the backend saw.
    fn reply(&mut self, talk: &Talk, course: &Course, frame: &[u8]) -> Result<(), Failure> {
        let hook = if course.source.is_some() { Hook::NodeIngress } else { Hook::PodIngress };
        let Verdict::Next(inside) = self.judge(hook, frame)? else { return Ok(()) };
        self.judge(talk.egress(), &inside)?;
        Ok(())
    }

    /// A frame of the client to the backend itself, or of the backend from there.
    fn beside(&mut self, scene: &Scene, talk: &Talk, course: &Course, seed: u64) -> Result<(), Failure> {
        let mut dice = Dice::new(seed);
        let (backend, _) = ends(scene, talk, course, &mut dice);
        let hook = dice.pick(&[Hook::NodeEgress, Hook::PodEgress]);
        let frame = if dice.percent(50) {
            whole(talk.client, backend, talk.proto, &mut dice)
        } else {
            whole(backend, talk.client, talk.proto, &mut dice)
        };
        self.judge(hook, &frame)?;
        Ok(())
    }

    fn damaged(&mut self, scene: &Scene, talk: &Talk, course: &Course, seed: u64) -> Result<(), Failure> {
        let mut dice = Dice::new(seed);
        let frame = if dice.percent(60) { request(talk, &mut dice) } else { reply(scene, talk, course, &mut dice) };
        let frame = damage(frame, &mut dice);
        let hook = dice.pick(&[talk.ingress(), talk.egress(), Hook::NodeIngress, Hook::NodeEgress, Hook::PodEgress]);
        self.judge(hook, &frame)?;
        Ok(())
    }

    /// Has a frame judged by both; what became of it, if they agree.
    fn judge(&mut self, hook: Hook, frame: &[u8]) -> Result<Verdict, Failure> {
        let kernel = self.run(hook, frame)?;
        let programs = &mut self.kernel;
        let mut source = |path: &Tuple| rows::source_of(programs, path).ok();
        let oracle = self.oracle.judge(hook, frame, &mut Seen { verdict: &kernel, source: &mut source });
        self.packets += 1;
        if oracle != Judgement::Is(kernel.clone()) {
            let frame = frame.to_vec();
            return Err(Failure::Frame(Box::new(Disagreement { hook, frame, kernel, oracle })));
        }
        match &kernel {
            Verdict::Next(bytes) if *bytes != frame => self.verdicts[0] += 1,
            Verdict::Next(_) => {}
            Verdict::Drop => self.verdicts[1] += 1,
            Verdict::Answer(_) => self.verdicts[2] += 1,
        }
        Ok(kernel)
    }

    fn run(&mut self, hook: Hook, frame: &[u8]) -> Result<Verdict> {
        const NEXT: u32 = u32::MAX;
        const DROP: u32 = 2;
        const REDIRECT: u32 = 7;
        let name = program(hook);
        let classifier: &SchedClassifier = self.kernel.object().program(name).context(name)?.try_into()?;
        let result = classifier.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut self.room),
            ..TestRunOptions::default()
        })?;
        let bytes = || self.room.iter().take(result.data_size_out as usize).copied().collect();
        match result.return_value {
            NEXT => Ok(Verdict::Next(bytes())),
            DROP => Ok(Verdict::Drop),
            REDIRECT => Ok(Verdict::Answer(bytes())),
            other => anyhow::bail!("{name} returned {other}"),
        }
    }

    // ===== events =====

    fn wait(&mut self, milliseconds: u64) -> Result<()> {
        self.oracle.now += milliseconds;
        for flow in self.oracle.flows.all() {
            rows::age_flow(&mut self.kernel, flow, milliseconds)?;
        }
        for client in self.oracle.affinity.keys() {
            rows::age_affinity(&mut self.kernel, client, milliseconds)?;
        }
        Ok(())
    }

    fn change(&mut self, id: u32, change: impl FnOnce(&mut crate::world::Backend)) -> Result<()> {
        let row = self.oracle.world.backends.get_mut(&id).context("a backend of the scene")?;
        change(row);
        let row = *row;
        self.kernel.put_backend(id, &row)
    }

    fn foreign(&mut self, scene: &Scene, talk: &Talk, seed: u64) -> Result<(), Failure> {
        let backend = Dice::new(seed).pick(&scene.backends[family_of(talk.client.ip())]);
        let flow = rows::foreign(talk.proto, talk.client, talk.frontend, backend, self.oracle.now);
        let flows = &mut self.oracle.flows;
        if flows.by_origin(&flow.origin()).is_some() || flows.by_path(&flow.path()).is_some() {
            return Ok(());
        }
        rows::plant_flow(&mut self.kernel, &flow)?;
        flows.add(flow);
        Ok(())
    }

    /// Compares what is left in the maps with what ought to be, and takes it away.
    fn settle(&mut self) -> Result<()> {
        for flow in self.oracle.flows.all() {
            rows::settle_flow(&mut self.kernel, flow, self.oracle.flows.owns_source(flow))?;
        }
        for (client, (id, generation, _)) in &self.oracle.affinity {
            rows::settle_affinity(&mut self.kernel, client, *id, *generation)?;
        }
        for (datagram, ports) in &self.oracle.fragments {
            rows::settle_fragment(&mut self.kernel, datagram, *ports)?;
        }
        self.oracle.forget();
        self.restore()
    }

    /// Gives the scene back what the script changed.
    fn restore(&mut self) -> Result<()> {
        let changed: Vec<u32> = self
            .world
            .backends
            .iter()
            .filter(|(id, row)| self.oracle.world.backends.get(id) != Some(row))
            .map(|(id, _)| *id)
            .collect();
        for id in changed {
            let row = self.world.backends[&id];
            self.oracle.world.backends.insert(id, row);
            self.kernel.put_backend(id, &row)?;
        }
        if self.oracle.world.links != self.world.links {
            self.oracle.world.links.clone_from(&self.world.links);
            self.kernel.put_links(&self.world.links)?;
        }
        self.oracle.now = 0;
        Ok(())
    }
}

/// The program of a hook.
fn program(hook: Hook) -> &'static str {
    match hook {
        Hook::PodIngress => "pod_ingress",
        Hook::PodEgress => "pod_egress",
        Hook::NodeIngress => "node_ingress",
        Hook::NodeEgress => "node_egress",
    }
}

// ===== frames =====

/// What the client sends.
fn request(talk: &Talk, dice: &mut Dice) -> Vec<u8> {
    whole(talk.client, talk.frontend, talk.proto, dice)
}

/// What the backend sends.
fn reply(scene: &Scene, talk: &Talk, course: &Course, dice: &mut Dice) -> Vec<u8> {
    let (from, to) = ends(scene, talk, course, dice);
    whole(from, to, talk.proto, dice)
}

/// The backend, and what it sees of the client.
fn ends(scene: &Scene, talk: &Talk, course: &Course, dice: &mut Dice) -> (SocketAddr, SocketAddr) {
    let backend = course.backend.unwrap_or_else(|| dice.pick(&scene.backends[family_of(talk.client.ip())]));
    (backend, course.source.unwrap_or(talk.client))
}

fn whole(from: SocketAddr, to: SocketAddr, proto: u8, dice: &mut Dice) -> Vec<u8> {
    let payload = segment(from, to, proto, dice);
    let mut frame = frame::ip(from.ip(), to.ip(), proto, &header(from.is_ipv4(), dice), &payload);
    // Ethernet pads to 60 bytes.
    if dice.percent(30) && frame.len() < 60 {
        frame.resize(60, 0);
    }
    frame
}

fn header(v4: bool, dice: &mut Dice) -> Ip {
    let mut ip = Ip { ttl: 1 + dice.below(255) as u8, id: dice.number() as u32, ..Ip::default() };
    if dice.percent(10) {
        let count = dice.below(if v4 { 11 } else { 8 });
        ip.extras = (0..count).map(|_| dice.pick(&[0, 43, 51, 60])).collect();
    }
    ip
}

fn segment(from: SocketAddr, to: SocketAddr, proto: u8, dice: &mut Dice) -> Vec<u8> {
    let length = if dice.percent(10) { dice.below(1_200) } else { dice.below(40) };
    let data: Vec<u8> = (0..length).map(|_| dice.number() as u8).collect();
    match proto {
        proto::TCP => {
            const SYN: u8 = 0x02;
            const FLAGS: [u8; 12] = [SYN, SYN, 0x10, 0x10, 0x18, 0x18, 0x18, 0x12, 0x11, 0x04, 0x14, 0x01];
            let flags = if dice.percent(5) { dice.number() as u8 } else { dice.pick(&FLAGS) };
            let (seq, ack) = (dice.number() as u32, dice.number() as u32);
            let options = if dice.percent(20) { dice.below(11) as u8 } else { 0 };
            frame::tcp(from, to, &Tcp { flags, seq, ack, window: 512, options, data })
        }
        proto::UDP => frame::udp(from, to, &data, dice.percent(85)),
        _ => frame::sctp(from, to, dice.pick(&[0, 0, 1, 2, 3, 6, 7, 8, 14]), &data, dice.percent(85)),
    }
}

/// A datagram in two or three fragments, most of the time in their order.
fn pieces(from: SocketAddr, to: SocketAddr, proto: u8, dice: &mut Dice) -> Vec<Vec<u8>> {
    let whole = segment(from, to, proto, dice);
    let id = dice.below(3) as u32 | 0x1234_0000;
    let size = (8 + dice.below(8) * 8).max(if dice.percent(90) { 24 } else { 8 });
    let count = whole.chunks(size).count().min(3);
    let mut frames: Vec<Vec<u8>> = Vec::new();
    for (i, chunk) in whole.chunks(size).take(count).enumerate() {
        let fragment = Some(((i * size) as u16, i + 1 < count));
        let ip = Ip { id, fragment, ..header(from.is_ipv4(), dice) };
        frames.push(frame::ip(from.ip(), to.ip(), proto, &ip, chunk));
    }
    if dice.percent(20) {
        frames.reverse();
    }
    frames
}

/// An ICMP error about a packet from `from` to `to`, sent to `from` by the end point or by a router.
fn error(from: SocketAddr, to: SocketAddr, proto: u8, dice: &mut Dice) -> Vec<u8> {
    let quoted = whole(from, to, proto, dice);
    let packet = &quoted[ETHERNET..];
    let least = if from.is_ipv4() { 28 } else { 48 };
    let length = match dice.below(4) {
        0 => least,
        1 => least + dice.below(100),
        2 => packet.len(),
        _ => packet.len().min(128),
    };
    let quote = &packet[..length.min(packet.len())];
    let router = match to.ip() {
        std::net::IpAddr::V4(_) => "10.200.0.1".parse(),
        std::net::IpAddr::V6(_) => "fd00:200::1".parse(),
    };
    let teller = if dice.percent(50) { to.ip() } else { router.unwrap_or(to.ip()) };
    let (number, kind) = if from.is_ipv4() {
        (proto::ICMP, dice.pick(&[3, 3, 11, 12, 5, 8, 0]))
    } else {
        (proto::ICMPV6, dice.pick(&[1, 2, 3, 4, 128, 136]))
    };
    let payload = frame::icmp(teller, from.ip(), kind, dice.below(6) as u8, quote);
    frame::ip(teller, from.ip(), number, &header(from.is_ipv4(), dice), &payload)
}

/// Does something to a frame that no honest sender would.
fn damage(mut frame: Vec<u8>, dice: &mut Dice) -> Vec<u8> {
    let v4 = addresses(&frame).is_some_and(|(_, dst)| dst.is_ipv4());
    // BPF_PROG_TEST_RUN takes no less than an IP header.
    let least = ETHERNET + if v4 { 20 } else { 40 };
    match dice.below(8) {
        0 => frame.truncate(least + dice.below(frame.len() - least + 1)),
        1 => frame.extend(std::iter::repeat_n(0xaa, dice.below(64))),
        2 => {
            // A tag.
            frame.splice(12..12, [0x81, 0x00, 0x00, 0x64]);
        }
        3 => {
            let at = ETHERNET + dice.below(8);
            frame[at] = dice.number() as u8;
        }
        4 => {
            let number = dice.pick(&[0, 1, 2, 6, 17, 41, 43, 44, 47, 50, 51, 58, 59, 60, 132, 136]);
            let at = if v4 { 9 } else { 6 };
            frame[ETHERNET + at] = number;
        }
        _ => {
            for _ in 0..=dice.below(4) {
                let at = ETHERNET + dice.below((frame.len() - ETHERNET).min(90));
                frame[at] ^= 1 << dice.below(8);
            }
        }
    }
    frame
}
