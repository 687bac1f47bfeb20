//! Beats, grants and majorities: every echo and every decision of the programs is that of `culvert-announce`'s
//! `liveness::Kernel`, which shares no code with them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{PerCpuArray, ProgramArray};
use culvert_abi::{BeatCounters, Config, Grant, Liveness, VOTERS, announced, program};
use culvert_announce::liveness::wire::{HEADER, Key, Message, TAG};
use culvert_announce::liveness::{Beat, Echo, Electorate, Kernel, Letter, NodeId, Stamp, Times};
use culvert_dataplane::codec::nanoseconds;
use culvert_tests::fixture::{Extension, Net, PORT_HIGH, PORT_LOW, Packet, Programs, Seen, nets, udp};

use super::announce::{ASKING_V4, ASKING_V6, LEFT, REDIRECTED, V4, V6, agrees, echo, questions, world};
use super::{DATA, at};

const PORT: u16 = 7_477;
const BOOT: u64 = 0x1122_3344_5566_7788;
const OWN: NodeId = 0xfedc_ba98_7654_3210;
const LEASE: Duration = Duration::from_secs(4);
const HOUR: Duration = Duration::from_hours(1);

/// The clock of stamps.
fn now() -> Result<Duration> {
    Ok(nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)?.into())
}

fn key(secret: &str) -> Result<Key> {
    Ok(Key::new(secret.as_bytes())?)
}

fn load(port: u16) -> Result<Programs> {
    let config = Config { port_low: PORT_LOW, port_high: PORT_HIGH, beat_port: port.to_be(), ..Config::zeroed() };
    Programs::with(config)
}

/// Pings of both addresses.
fn pings() -> [Vec<u8>; 2] {
    let ends: [(IpAddr, IpAddr, u8); 2] = [(ASKING_V4.into(), V4.into(), 8), (ASKING_V6.into(), V6.into(), 128)];
    ends.map(|(from, to, kind)| echo(from, to, kind).frame(false))
}

/// Whether all that is asked of the addresses is answered, and if it is, as ever. `None`: some of it is.
fn answers(programs: &mut Programs) -> Result<Option<bool>> {
    let mut answered = BTreeSet::new();
    for (about, frame) in questions() {
        let seen = programs.run("node_ingress", &frame)?;
        answered.insert(seen.verdict == REDIRECTED);
        if seen.verdict == REDIRECTED {
            agrees(programs, &frame, about)?;
        } else {
            ensure!(seen == Seen { verdict: LEFT, bytes: frame }, "{about}: {seen:?}");
        }
    }
    for ping in pings() {
        let seen = programs.run("node_ingress", &ping)?;
        ensure!(seen.verdict == REDIRECTED || seen == Seen { verdict: LEFT, bytes: ping }, "a ping: {seen:?}");
        answered.insert(seen.verdict == REDIRECTED);
    }
    Ok(answered.pop_first().filter(|_| answered.is_empty()))
}

/// What an agent says of its node.
#[derive(Clone)]
struct Said {
    version: u64,
    agent_until: Duration,
    witness_until: Duration,
    nodes: BTreeSet<NodeId>,
    /// Earlier sets, and how long they count; the oldest first.
    earlier: Vec<(Duration, BTreeSet<NodeId>)>,
}

impl Said {
    fn new(nodes: impl IntoIterator<Item = NodeId>) -> Result<Self> {
        let (nodes, agent_until) = (nodes.into_iter().collect(), now()? + HOUR);
        Ok(Self { version: 5, agent_until, witness_until: Duration::ZERO, nodes, earlier: Vec::new() })
    }

    fn electorate(&self) -> Electorate {
        let mut electorate = Electorate::default();
        let mut until = Duration::ZERO;
        for (ends, nodes) in &self.earlier {
            electorate.change(nodes.clone(), until);
            until = *ends;
        }
        electorate.change(self.nodes.clone(), until);
        electorate
    }

    fn sets(&self) -> Vec<(Duration, &BTreeSet<NodeId>)> {
        let earlier = self.earlier.iter().map(|(until, nodes)| (*until, nodes));
        std::iter::once((Duration::MAX, &self.nodes)).chain(earlier).collect()
    }

    fn all(&self) -> BTreeSet<NodeId> {
        self.sets().into_iter().flat_map(|(_, nodes)| nodes).copied().collect()
    }

    fn row(&self, key: &Key) -> Liveness {
        let [inner, outer] = key.states();
        let mut row = Liveness { id: OWN, boot: BOOT, version: self.version, inner, outer, ..Liveness::zeroed() };
        (row.lease, row.agent_until) = (nanoseconds(LEASE), nanoseconds(self.agent_until));
        row.witness_until = nanoseconds(self.witness_until);
        for (electorate, (until, nodes)) in row.electorates.iter_mut().zip(self.sets()) {
            (electorate.until, electorate.size) = (nanoseconds(until), nodes.len() as u32);
        }
        let all = self.all();
        row.count = all.len() as u32;
        for (voter, id) in row.voters.iter_mut().zip(all) {
            voter.id = id;
            let sets = self.sets();
            let member = |set: &usize| sets.get(*set).is_some_and(|(_, nodes)| nodes.contains(&id));
            (0..sets.len()).filter(member).for_each(|set| voter.join(set));
        }
        row
    }
}

/// The programs and the model of one node.
struct Node {
    programs: Programs,
    model: Kernel,
    key: Key,
    known: BTreeSet<NodeId>,
    seq: u64,
}

impl Node {
    fn new(said: &Said) -> Result<Self> {
        let mut programs = load(PORT)?;
        programs.reset(&world(u64::MAX, announced::ANSWER | announced::ECHO | announced::QUORUM))?;
        let times = Times { lease: LEASE, agent: Duration::ZERO, ..Times::default() };
        let model = Kernel::new(OWN, BOOT, times);
        let mut node = Self { programs, model, key: key("a secret of the cluster")?, known: BTreeSet::new(), seq: 0 };
        node.say(said)?;
        Ok(node)
    }

    /// What the agent does at its node.
    fn say(&mut self, said: &Said) -> Result<()> {
        let kernel = &mut self.programs.kernel;
        let mut voters = kernel.hash::<u64, u64>("VOTERS")?;
        for id in std::mem::take(&mut self.known) {
            voters.remove(&id)?;
        }
        for id in said.all() {
            let until = said.sets().into_iter().filter(|(_, nodes)| nodes.contains(&id)).map(|(until, _)| until).max();
            voters.insert(id, nanoseconds(until.unwrap_or_default()), 0)?;
        }
        self.known = said.all();
        kernel.hash::<u32, Liveness>("LIVENESS")?.insert(0, said.row(&self.key), 0)?;
        self.model.activate(said.version, BTreeSet::from([V4.into(), V6.into()]));
        self.model.set_electorate(said.electorate());
        self.model.agent_lives(said.agent_until);
        self.model.set_witness(said.witness_until);
        Ok(())
    }

    /// A beat as it should be.
    fn beat(&mut self, from: NodeId) -> Result<Beat> {
        self.seq += 1;
        let stamp = Stamp { boot: BOOT, time: now()? };
        Ok(Beat { from, to: OWN, seq: self.seq, stamp, grant: Some(5) })
    }

    /// Gives a beat to the programs and to the model: both answer alike.
    fn hears(&mut self, net: &Net, beat: &Beat) -> Result<Option<Echo>> {
        let (peer, node) = ends(net);
        let packet = udp(peer, node, &Message::Beat(beat.clone()).encode(&self.key)?);
        let start = now()?;
        let seen = self.run(&packet)?;
        if seen.verdict != REDIRECTED {
            ensure!(seen == Seen { verdict: LEFT, bytes: packet.frame(false) }, "{beat:?} is half answered: {seen:?}");
            let (early, late) = (self.model.clone().beat(beat, start), self.model.clone().beat(beat, now()?));
            ensure!(early.is_none() || late.is_none(), "{beat:?} has no answer instead of {early:?}");
            return Ok(None);
        }
        let message = seen.bytes.get(seen.bytes.len() - HEADER - TAG..).context("too short")?;
        let Message::Echo(echo) = Message::decode(message, &self.key)? else { bail!("{beat:?} is no echo: {seen:?}") };
        ensure!(start <= echo.stamp.time && echo.stamp.time <= now()?, "{echo:?} was not stamped when it was made");
        let want = self.model.beat(beat, echo.stamp.time).with_context(|| format!("{beat:?} is answered: {echo:?}"))?;
        let want = udp(node, peer, &Message::Echo(want).encode(&self.key)?).ttl(64).frame(true);
        ensure!(seen.bytes == want, "{beat:?}\n  out  {:02x?}\n  want {want:02x?}", seen.bytes);
        Ok(Some(echo))
    }

    fn run(&mut self, packet: &Packet) -> Result<Seen> {
        self.programs.run("node_ingress", &packet.frame(false))
    }

    /// Whether the addresses are answered for, by ARP, NDP and ping: which is as the model says.
    fn speaks(&mut self) -> Result<bool> {
        loop {
            let before = self.model.speaks(V4.into(), now()?);
            let answered = answers(&mut self.programs);
            // Otherwise something ended meanwhile.
            if before == self.model.speaks(V6.into(), now()?) {
                let answered = answered?.context("some questions are answered, and some are not")?;
                ensure!(answered == before, "it is answered: {answered}, and the model says {before}");
                return Ok(answered);
            }
        }
    }

    fn counters(&mut self) -> Result<BeatCounters> {
        let map = self.programs.kernel.object().map("BEATS").context("BEATS")?;
        let map: PerCpuArray<_, BeatCounters> = map.try_into()?;
        let mut sum = BeatCounters::zeroed();
        for cpu in map.get(&0, 0)?.iter() {
            sum.echoed += cpu.echoed;
            sum.refused += cpu.refused;
            sum.ignored += cpu.ignored;
        }
        Ok(sum)
    }

    fn grants(&mut self) -> Result<usize> {
        Ok(self.programs.kernel.hash::<u64, Grant>("GRANTS")?.keys().count())
    }
}

fn ends(net: &Net) -> (SocketAddr, SocketAddr) {
    (at(net.client, 40_000), at(net.node, PORT))
}

#[test]
fn which_grants_count() -> Result<()> {
    type Change = fn(&mut Beat);
    let [net, _] = nets();
    let mut node = Node::new(&Said::new([OWN, 2, 3])?)?;
    let cases: [(&str, bool, bool, Change); 10] = [
        ("as it should be", true, true, |_| {}),
        ("a later version", true, true, |beat| beat.grant = Some(6)),
        ("an earlier version", true, false, |beat| beat.grant = Some(4)),
        ("none", true, false, |beat| beat.grant = None),
        ("an old stamp", true, false, |beat| beat.stamp.time -= LEASE),
        ("a stamp of the future", true, false, |beat| beat.stamp.time += HOUR),
        ("a stamp of an earlier boot", true, false, |beat| beat.stamp.boot ^= 1),
        ("a stranger's", false, false, |beat| beat.from = 9),
        ("its own", false, false, |beat| beat.from = OWN),
        ("for another", false, false, |beat| beat.to = 3),
    ];
    for (about, echoed, counts, change) in cases {
        let mut grants = node.programs.kernel.hash::<u64, Grant>("GRANTS")?;
        let _ = grants.remove(&2);
        node.model = Kernel::new(OWN, BOOT, Times { lease: LEASE, agent: Duration::ZERO, ..Times::default() });
        node.say(&Said::new([OWN, 2, 3])?)?;
        ensure!(!node.speaks()?, "{about}: before it came");
        let mut beat = node.beat(2)?;
        change(&mut beat);
        ensure!(node.hears(&net, &beat)?.is_some() == echoed, "{about}");
        ensure!(node.speaks()? == counts, "{about}");
    }
    Ok(())
}

#[test]
fn a_beat_counts_once() -> Result<()> {
    for net in nets() {
        let mut node = Node::new(&Said::new([OWN, 2, 3])?)?;
        let (first, second) = (node.beat(2)?, node.beat(2)?);
        ensure!(node.hears(&net, &second)?.is_some(), "a beat is not answered");
        for late in [&second, &first, &second] {
            ensure!(node.hears(&net, late)?.is_none(), "{late:?} counts twice");
        }
        let other = node.beat(3)?;
        ensure!(node.hears(&net, &other)?.is_some(), "another node's beat is not answered");
        let counted = node.counters()?;
        ensure!(counted == BeatCounters { echoed: 2, refused: 0, ignored: 3 }, "{counted:?}");
    }
    Ok(())
}

/// Whatever is changed, cut off or added, it has no answer and no effect.
#[test]
fn nothing_but_the_beat_itself() -> Result<()> {
    for net in nets() {
        let mut node = Node::new(&Said::new([OWN, 2, 3])?)?;
        let (peer, own) = ends(&net);
        let beat = node.beat(2)?;
        let bytes = Message::Beat(beat.clone()).encode(&node.key)?;
        let mut refuse = |packet: &Packet, about: &str| -> Result<()> {
            let seen = node.run(packet)?;
            ensure!(seen == Seen { verdict: LEFT, bytes: packet.frame(false) }, "{about}: {seen:02x?}");
            Ok(())
        };
        for bit in 0..8 * bytes.len() {
            let mut other = bytes.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            refuse(&udp(peer, own, &other), &format!("bit {bit}"))?;
        }
        for length in 0..bytes.len() {
            refuse(&udp(peer, own, &bytes[..length]), &format!("{length} bytes"))?;
        }
        for tail in 1..40 {
            refuse(&udp(peer, own, &[&bytes[..], &vec![0; tail]].concat()), &format!("{tail} bytes more"))?;
        }
        let other = Message::Beat(beat.clone()).encode(&key("another cluster's secret")?)?;
        refuse(&udp(peer, own, &other), "another key")?;
        let (from, to, seq) = (2, OWN, 9);
        let ask = Message::Letter { from, to, seq, letter: Letter::Ask }.encode(&key("a secret of the cluster")?)?;
        refuse(&udp(peer, own, &ask), "a letter")?;
        let good = udp(peer, own, &bytes);
        refuse(&udp(peer, at(net.node, PORT + 1), &bytes), "another port")?;
        if net.node.is_ipv4() {
            refuse(&good.clone().options(&[1, 1, 1, 0]), "with options")?;
        } else {
            refuse(&good.clone().extended(&[Extension::padding(60)]), "with options")?;
        }
        for piece in good.fragments(40, 9) {
            refuse(&piece, "a fragment")?;
        }
        let frame = good.frame(false);
        for program in ["pod_ingress", "pod_egress", "node_egress"] {
            let seen = node.programs.run(program, &frame)?;
            ensure!(seen.verdict == LEFT && seen.bytes == frame, "{program}: {seen:?}");
        }
        // Link address, EtherType, version, lengths, fragment, protocol and port: addresses and the like are not signed.
        let changes = if net.node.is_ipv4() {
            [12, 13, 14, 16, 17, 20, 21, 23, 36, 37, 38, 39].map(|byte| (byte, 2)).to_vec()
        } else {
            [12, 13, 18, 19, 20, 56, 57, 58, 59].map(|byte| (byte, 2)).into_iter().chain([(14, 0x20)]).collect()
        };
        for (byte, bit) in (0..6).map(|byte| (byte, 2)).chain(changes) {
            let mut other = frame.clone();
            other[byte] ^= bit;
            let seen = node.programs.run("node_ingress", &other);
            // The kernel itself refuses to run a program on some of them.
            ensure!(seen.is_err() || seen? == Seen { verdict: LEFT, bytes: other }, "byte {byte}");
        }
        let counted = node.counters()?;
        ensure!(counted.echoed == 0 && counted.refused >= 8 * TAG as u64 && counted.ignored > 0, "{counted:?}");
        ensure!(node.grants()? == 0 && !node.speaks()?, "it had an effect");
        let in_time = Beat { stamp: node.beat(2)?.stamp, ..beat };
        ensure!(node.hears(&net, &in_time)?.is_some() && node.speaks()?, "the beat itself is not taken");
    }
    Ok(())
}

#[test]
fn without_a_checksum() -> Result<()> {
    let [net, _] = nets();
    let mut node = Node::new(&Said::new([OWN, 2, 3])?)?;
    let (peer, own) = ends(&net);
    let beat = node.beat(2)?;
    let seen = node.run(&udp(peer, own, &Message::Beat(beat).encode(&node.key)?).bare())?;
    let message = seen.bytes.get(seen.bytes.len() - HEADER - TAG..).context("too short")?;
    let want = udp(own, peer, message).bare().ttl(64).frame(true);
    ensure!(seen == Seen { verdict: REDIRECTED, bytes: want }, "{seen:02x?}");
    Ok(())
}

/// Numbers that look random, the same in each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn nodes(&mut self) -> BTreeSet<NodeId> {
        let others = (2..8).filter(|_| self.roll(2) == 0).collect::<Vec<_>>();
        let own = (self.roll(8) != 0).then_some(OWN);
        others.into_iter().chain(own).collect()
    }

    /// Times around now.
    fn time(&mut self) -> Result<Duration> {
        let (back, ahead) = ([LEASE * 2, LEASE / 2, LEASE / 8], [Duration::ZERO, LEASE / 8, HOUR]);
        let now = now()?;
        Ok(match self.roll(6) {
            roll @ 0..3 => now.saturating_sub(back[roll as usize]),
            roll => now + ahead[roll as usize - 3],
        })
    }

    fn said(&mut self) -> Result<Said> {
        let mut said = Said::new(self.nodes())?;
        said.version = 4 + self.roll(3);
        if self.roll(4) == 0 {
            said.agent_until = self.time()?;
        }
        if self.roll(3) == 0 {
            said.witness_until = self.time()?;
        }
        let mut next = said.nodes.clone();
        for _ in 0..self.roll(8) {
            let nodes = self.nodes();
            if !nodes.is_empty() && nodes != next && self.roll(3) == 0 {
                next.clone_from(&nodes);
                said.earlier.insert(0, (self.time()?, nodes));
            }
        }
        Ok(said)
    }

    fn beat(&mut self, node: &mut Node) -> Result<Beat> {
        let mut beat = node.beat(2 + self.roll(6))?;
        match self.roll(8) {
            0 => beat.stamp.time = self.time()?,
            1 => beat.seq = beat.seq.saturating_sub(self.roll(20)),
            2 => beat.grant = None,
            3 => beat.stamp.boot ^= self.roll(2),
            4 => beat.from = OWN,
            _ => {}
        }
        beat.grant = beat.grant.map(|_| 4 + self.roll(3));
        Ok(beat)
    }
}

#[test]
fn any_beats_in_any_order() -> Result<()> {
    const STEPS: usize = 6_000;
    let mut dice = Dice(1);
    let mut node = Node::new(&dice.said()?)?;
    let (mut echoes, mut mute, mut spoken) = (0, 0, 0);
    for step in 0..STEPS {
        if dice.roll(12) == 0 {
            node.say(&dice.said()?)?;
        }
        let beat = dice.beat(&mut node)?;
        let net = nets()[dice.roll(2) as usize];
        let echo = node.hears(&net, &beat).with_context(|| format!("step {step}"))?;
        echoes += usize::from(echo.is_some());
        mute += usize::from(echo.is_some_and(|echo| echo.mute));
        spoken += usize::from(node.speaks().with_context(|| format!("step {step}, {beat:?}"))?);
    }
    // All of it happens often enough to mean something.
    let often = [echoes, mute, spoken, STEPS - echoes, STEPS - spoken].into_iter().all(|count| count > STEPS / 40);
    ensure!(often, "{echoes} echoes, {mute} of them mute, {spoken} times spoken");
    let (counted, want) = (node.counters()?, (echoes as u64, 0, (STEPS - echoes) as u64));
    ensure!((counted.echoed, counted.refused, counted.ignored) == want, "{counted:?}, {want:?}");
    Ok(())
}

/// As many nodes as there can be: one less than half of the others is not enough.
#[test]
fn a_majority_of_many() -> Result<()> {
    let [net, _] = nets();
    let others = VOTERS as u64 - 1;
    let mut node = Node::new(&Said::new((1..=others).chain([OWN]))?)?;
    for from in 1..=VOTERS as u64 / 2 {
        ensure!(!node.speaks()?, "{from} of {VOTERS} are a majority");
        let beat = node.beat(from)?;
        ensure!(node.hears(&net, &beat)?.is_some(), "{from} is not answered");
    }
    ensure!(node.speaks()?, "a majority is none");
    Ok(())
}

#[test]
fn silent_unless_told_otherwise() -> Result<()> {
    let flags = announced::ANSWER | announced::ECHO;
    let (wants, free) = (world(u64::MAX, flags | announced::QUORUM), world(u64::MAX, flags));
    for (about, port, wanted, answered) in [
        ("no agent has said anything", PORT, &wants, false),
        ("beats are switched off", 0, &wants, false),
        ("no majority is wanted", PORT, &free, true),
        ("no majority is wanted, and beats are switched off", 0, &free, true),
    ] {
        let mut programs = load(port)?;
        programs.reset(wanted)?;
        ensure!(answers(&mut programs)? == Some(answered), "{about}");
    }
    Ok(())
}

/// As while an agent of before beats takes over hooks of a later one.
#[test]
fn without_its_program_a_beat_is_a_datagram() -> Result<()> {
    for net in nets() {
        let mut node = Node::new(&Said::new([OWN, 2, 3])?)?;
        let map = node.programs.kernel.object().map_mut("PROGRAMS").context("PROGRAMS")?;
        ProgramArray::try_from(map)?.clear_index(&program::BEAT)?;
        let beat = node.beat(2)?;
        let (peer, own) = ends(&net);
        let frame = udp(peer, own, &Message::Beat(beat.clone()).encode(&node.key)?).frame(false);
        let seen = node.programs.run("node_ingress", &frame)?;
        ensure!(seen == Seen { verdict: LEFT, bytes: frame }, "a beat is answered: {seen:?}");
        culvert_dataplane::object::connect(node.programs.kernel.object())?;
        ensure!(node.hears(&net, &beat)?.is_some(), "a beat is not answered");
    }
    Ok(())
}

/// Where a Service has the port of beats, it loses nothing but what looks like one.
#[test]
fn a_service_at_the_port_of_beats() -> Result<()> {
    const HTTP: u16 = 80;
    for net in nets() {
        let mut programs = load(HTTP)?;
        let beat = Beat { from: 2, to: OWN, seq: 1, stamp: Stamp::default(), grant: None };
        let beat = Message::Beat(beat).encode(&key("a secret of the cluster")?)?;
        let mut other = beat.clone();
        other[0] ^= 1;
        let (from, to) = (at(net.client, 40_000), at(net.vip, HTTP));
        for (about, data, served) in [
            ("data", DATA, true),
            ("nothing", &[], true),
            ("as long as a beat", &other, true),
            ("a beat", &beat, false),
        ] {
            programs.reset(&net.world())?;
            let seen = programs.run("node_ingress", &udp(from, to, data).frame(false))?;
            let to = if served { at(net.local, 8080) } else { to };
            let want = Seen { verdict: LEFT, bytes: udp(from, to, data).frame(false) };
            ensure!(seen == want, "{about}\n  out  {seen:02x?}\n  want {want:02x?}");
        }
    }
    Ok(())
}

/// The verifier's work is bounded: it costs time and memory at each start of an agent.
#[test]
fn what_the_verifier_walks() -> Result<()> {
    for (name, port, most) in
        [("node_ingress", 0, 400_000), ("node_ingress", PORT, 450_000), ("node_beat", PORT, 150_000)]
    {
        let mut programs = load(port)?;
        let walked = programs.program(name)?.info()?;
        let walked = walked.verified_instruction_count().context("this kernel does not tell")?;
        println!("{name}, beats at port {port}: {walked} instructions");
        ensure!(walked < most, "{name}: {walked}");
    }
    Ok(())
}
