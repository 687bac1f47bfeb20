//! The datapath in plain Rust: what docs/DATAPATH.md says, on bytes in ordinary memory.
//!
//! ```text
//! script (seeded) ─► frames ─┬─► the tc programs (BPF_PROG_TEST_RUN) ─┬─► compare: verdict, bytes, rows, counters
//!                            └─► Oracle: world + flow table ──────────┘
//! ```
//!
//! It shares the words of the maps with the programs (`culvert_abi`), and no code: it reads frames with slices, keeps whole
//! flows in place of rows, and works checksums out from all the bytes that they cover. Where the kernel chooses at random,
//! the oracle says what may be chosen and goes on with what was.

mod answer;
pub mod dice;
pub mod flows;
pub mod frame;
pub mod packet;
pub mod play;
pub mod report;
mod rewrite;
pub mod rows;
pub mod scene;
pub mod script;
mod source;
mod sum;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use culvert_abi::{
    BackendCounters, Reason, ServiceCounters, address, affinity_hash, audience, backend, flow, flow_hash, link,
    maglev_size, proto, verdict,
};

use self::flows::{Direction, Flow, FlowId, Flows, Side};
use self::packet::{Kind, Packet, Tuple, Unread, addresses, read};
use self::rewrite::{End, rewrite};
use crate::world::{Frontend, View, World};

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// A pod's packet comes.
    PodIngress,
    /// A packet goes to a pod.
    PodEgress,
    /// A packet comes from elsewhere.
    NodeIngress,
    /// A packet goes elsewhere.
    NodeEgress,
}

/// What becomes of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on, as these bytes.
    Next(Vec<u8>),
    /// It dies.
    Drop,
    /// These bytes go back to where it came from.
    Answer(Vec<u8>),
}

/// What the oracle says of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// This is what becomes of it.
    Is(Verdict),
    /// The kernel chose, and could not have chosen so.
    Impossible(String),
}

/// What the kernel did; asked only where it chooses.
pub struct Seen<'a> {
    /// What became of the frame.
    pub verdict: &'a Verdict,
    /// The source that it gave to the flow whose replies look like this inside.
    pub source: &'a mut dyn FnMut(&Tuple) -> Option<SocketAddr>,
}

/// The source ports that may be given.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// First.
    pub low: u16,
    /// Last.
    pub high: u16,
}

/// Choices of a backend.
const CHOICES: usize = 5;

/// The oracle.
#[derive(Debug)]
pub struct Oracle {
    /// What the maps hold.
    pub world: World,
    /// The flows.
    pub flows: Flows,
    /// Last backend of each client and Service: id, generation, time.
    pub affinity: HashMap<(IpAddr, u32), (u32, u32, u64)>,
    /// Ports of fragmented datagrams.
    pub fragments: HashMap<(IpAddr, IpAddr, u8, u32), (u16, u16)>,
    /// Milliseconds.
    pub now: u64,
    /// How often each reason was met.
    pub reasons: BTreeMap<u8, u64>,
    /// How many of the flow collisions may have been missing tables instead.
    pub unsure: u64,
    /// How often a flow took the source of one that was closed.
    pub taken_over: u64,
    /// How often a connection showed that it is none of the closed flow that it looked like.
    pub beside: u64,
    /// How often a client's last backend was alive, and not in the list that the client asked.
    pub elsewhere: u64,
    /// Counters of Services.
    pub services: BTreeMap<u32, ServiceCounters>,
    /// Counters of backends.
    pub backends: BTreeMap<u32, BackendCounters>,
    ports: Ports,
    link: u32,
}

/// What is to happen to a packet.
enum Decision {
    Leave,
    Translate(End, SocketAddr),
    Drop(Reason),
    Reject(Reason),
    /// Dropped, because of a collision or because nobody lives (and the packet is none to answer): it depends on what the
    /// kernel drew.
    DropUnsure,
    Impossible(String),
}

/// What a table offers at one attempt.
enum Offer {
    /// This one, or nobody.
    One(Option<u32>),
    /// Any of these, by chance.
    AnyOf(Vec<Option<u32>>),
}

impl Oracle {
    /// An oracle of a world, whose packets are all seen on one link.
    pub fn new(world: World, ports: Ports, link: u32) -> Self {
        Self {
            world,
            flows: Flows::default(),
            affinity: HashMap::new(),
            fragments: HashMap::new(),
            now: 0,
            reasons: BTreeMap::new(),
            unsure: 0,
            taken_over: 0,
            beside: 0,
            elsewhere: 0,
            services: BTreeMap::new(),
            backends: BTreeMap::new(),
            ports,
            link,
        }
    }

    /// Forgets flows, affinity and fragments; counters stay.
    pub fn forget(&mut self) {
        self.flows = Flows::default();
        self.affinity.clear();
        self.fragments.clear();
    }

    /// What becomes of a frame.
    pub fn judge(&mut self, hook: Hook, frame: &[u8], seen: &mut Seen<'_>) -> Judgement {
        let Some((_, dst)) = addresses(frame) else { return Judgement::Is(Verdict::Next(frame.to_vec())) };
        let ingress = matches!(hook, Hook::PodIngress | Hook::NodeIngress);
        let meaning = self.world.addresses.get(&dst).copied().unwrap_or(0);
        if ingress && meaning == 0 {
            let frame = if hook == Hook::PodIngress { self.hand_over(frame) } else { frame.to_vec() };
            return Judgement::Is(Verdict::Next(frame));
        }
        let ports = |src, dst, proto, id| self.fragments.get(&(src, dst, proto, id)).copied();
        let packet = match read(frame, ports) {
            Ok(packet) => packet,
            Err(unread) => return Judgement::Is(self.unread(unread, ingress.then_some(meaning), frame)),
        };
        let decision =
            if ingress { self.ingress(hook, meaning, &packet, seen.verdict) } else { self.egress(hook, &packet, seen) };
        self.conclude(decision, frame, &packet)
    }

    /// A packet without a tuple; `meaning` is that of its destination, at ingress.
    fn unread(&mut self, unread: Unread, meaning: Option<u32>, frame: &[u8]) -> Verdict {
        let mut count = |reason| *self.reasons.entry(reason as u8).or_default() += 1;
        match (unread, meaning) {
            (Unread::Malformed, Some(_)) => count(Reason::Malformed),
            (Unread::TooManyExtensions, Some(_)) => count(Reason::TooManyExtensions),
            (Unread::Later(_), Some(meaning))
                if meaning & (address::FRONTEND | address::LINGER) != 0 && meaning & address::SOURCE == 0 =>
            {
                count(Reason::FragmentUnknown);
                return Verdict::Drop;
            }
            _ => {}
        }
        Verdict::Next(frame.to_vec())
    }

    fn conclude(&mut self, decision: Decision, frame: &[u8], packet: &Packet) -> Judgement {
        let (reason, verdict) = match decision {
            Decision::Leave => return Judgement::Is(Verdict::Next(frame.to_vec())),
            Decision::Translate(end, to) => return Judgement::Is(Verdict::Next(rewrite(frame, packet, end, to))),
            Decision::Impossible(why) => return Judgement::Impossible(why),
            Decision::Drop(reason) => (reason, None),
            Decision::DropUnsure => {
                self.unsure += 1;
                (Reason::FlowCollision, None)
            }
            Decision::Reject(reason) => (reason, answer::answer(frame, packet, reason == Reason::PortNotServed)),
        };
        *self.reasons.entry(reason as u8).or_default() += 1;
        let service = self.service_of(packet);
        if let Some(counters) = service.map(|id| self.services.entry(id).or_insert(ServiceCounters::zeroed())) {
            if verdict.is_some() { counters.rejected += 1 } else { counters.dropped += 1 }
        }
        Judgement::Is(verdict.map_or(Verdict::Drop, Verdict::Answer))
    }

    /// The Service that a packet which is not served is counted at.
    fn service_of(&self, packet: &Packet) -> Option<u32> {
        let by_name =
            self.world.frontends.get(&(packet.tuple.dst, packet.tuple.proto)).map(|frontend| frontend.service);
        let by_flow =
            || self.flows.by_path(&packet.tuple.turned()).and_then(|id| self.flows.get(id)).map(|flow| flow.service);
        by_name.or_else(by_flow)
    }

    // ===== ingress =====

    fn ingress(&mut self, hook: Hook, meaning: u32, packet: &Packet, seen: &Verdict) -> Decision {
        self.remember_fragment(packet);
        let tuple = packet.tuple;
        let reserved = (self.ports.low..=self.ports.high).contains(&tuple.dst.port());
        if meaning & address::SOURCE != 0
            && reserved
            && let Some(flow) = self.flows.by_back(&tuple).and_then(|id| self.flows.get(id))
        {
            return Decision::Translate(End::Destination, flow.client);
        }
        if meaning & (address::FRONTEND | address::REFUSE | address::LINGER) == 0 {
            return Decision::Leave;
        }
        if let Some(id) = self.flows.by_origin(&tuple)
            && let Some(decision) = self.go_on(id, packet)
        {
            return decision;
        }
        if matches!(packet.kind, Kind::Error { .. }) {
            return Decision::Leave;
        }
        let Some(frontend) = self.world.frontends.get(&(tuple.dst, tuple.proto)).cloned() else {
            return if meaning & address::REFUSE != 0 {
                Decision::Reject(Reason::PortNotServed)
            } else {
                Decision::Leave
            };
        };
        let client = tuple.src.ip();
        if answer::martian(client) {
            return Decision::Drop(Reason::Martian);
        }
        if frontend.ranges != 0 && !self.in_ranges(frontend.ranges, client) {
            return Decision::Drop(Reason::SourceRange);
        }
        let from_pod = hook == Hook::PodIngress;
        let view = frontend.views[if from_pod { audience::PODS } else { audience::EXTERNAL }];
        match view.verdict {
            verdict::BALANCE => self.balance(packet, &frontend, view, from_pod, seen),
            verdict::REJECT => Decision::Reject(Reason::NoEndpoints),
            _ => Decision::Drop(Reason::NoLocalEndpoints),
        }
    }

    /// A pod's frame whose destination is not ours: if it is a reply of a flow, it is for the bridge that routes here.
    fn hand_over(&mut self, frame: &[u8]) -> Vec<u8> {
        let mut frame = frame.to_vec();
        let ports = |src, dst, proto, id| self.fragments.get(&(src, dst, proto, id)).copied();
        let Ok(packet) = read(&frame, ports) else { return frame };
        let flow = self.flows.by_path(&packet.tuple).and_then(|id| self.flows.get(id));
        let speaks = addresses(&frame).is_some_and(|(src, _)| src == packet.tuple.src.ip());
        if !speaks || flow.is_none_or(|flow| flow.is(flow::FOREIGN)) {
            return frame;
        }
        let routes = if packet.tuple.src.is_ipv4() { link::BRIDGE_V4 } else { link::BRIDGE_V6 };
        if let Some(link) = self.world.links.get(&self.link).filter(|link| link.flags & routes != 0)
            && frame[..6] != link.bridge
        {
            frame[..6].copy_from_slice(&link.bridge);
            self.remember_fragment(&packet);
        }
        frame
    }

    fn in_ranges(&self, ranges: u32, client: IpAddr) -> bool {
        self.world.ranges.get(&ranges).is_some_and(|nets| nets.iter().any(|net| net.contains(&client)))
    }

    /// The next packet of a flow; `None` ends it.
    fn go_on(&mut self, id: FlowId, packet: &Packet) -> Option<Decision> {
        let flow = self.flows.get(id)?;
        let lives = self.lives(flow.id, flow.service, Some(flow.generation));
        let usable = if packet.says.open { !flow.closed() && lives } else { flow.proto != proto::UDP || lives };
        if !usable || flow.expired(self.now) {
            self.end(id);
            return None;
        }
        let now = self.now;
        let flow = self.flows.get_mut(id)?;
        if !matches!(packet.kind, Kind::Error { .. }) {
            let bytes = ip_length(packet);
            flow.pass(Side::Client, packet.says, bytes, now);
            if flow.is(flow::REPLIED) && !packet.says.open && !flow.closed() {
                flow.established = true;
            }
            let counters = self.services.entry(flow.service).or_insert(ServiceCounters::zeroed());
            counters.packets += 1;
            counters.bytes += bytes;
        }
        let foreign = flow.is(flow::FOREIGN);
        Some(if foreign { Decision::Leave } else { Decision::Translate(End::Destination, flow.backend) })
    }

    /// Ends a flow; what it counted is its backend's, if that is still the one.
    fn end(&mut self, id: FlowId) {
        let Some(flow) = self.flows.remove(id) else { return };
        let same = self.world.backends.get(&flow.id).is_some_and(|backend| backend.generation == flow.generation);
        if same {
            let counters = self.backends.entry(flow.id).or_insert(BackendCounters::zeroed());
            counters.packets += flow.directions.iter().map(|direction| direction.packets).sum::<u64>();
            counters.bytes += flow.directions.iter().map(|direction| direction.bytes).sum::<u64>();
        }
    }

    fn lives(&self, id: u32, service: u32, generation: Option<u32>) -> bool {
        self.world.backends.get(&id).is_some_and(|backend| {
            backend.alive()
                && backend.service == service
                && generation.is_none_or(|wanted| wanted == backend.generation)
        })
    }

    fn remember_fragment(&mut self, packet: &Packet) {
        if let Kind::First(id) = packet.kind {
            let Tuple { src, dst, proto } = packet.tuple;
            self.fragments.insert((src.ip(), dst.ip(), proto, id), (src.port(), dst.port()));
        }
    }

    // ===== a new flow =====

    fn balance(&mut self, packet: &Packet, frontend: &Frontend, view: View, pod: bool, seen: &Verdict) -> Decision {
        for attempt in 0..CHOICES {
            match self.offer(packet, frontend, view, attempt) {
                Offer::One(None) => return Decision::Reject(Reason::NoTable),
                Offer::One(Some(id)) => {
                    self.stick(packet, frontend, id);
                    if let Some(decision) = self.open(packet, frontend, view, pod, id) {
                        return decision;
                    }
                }
                Offer::AnyOf(ids) => return self.adopt(packet, frontend, view, pod, &ids, seen),
            }
        }
        Decision::Drop(Reason::FlowCollision)
    }

    /// Goes on with what the kernel drew.
    fn adopt(
        &mut self,
        packet: &Packet,
        frontend: &Frontend,
        view: View,
        pod: bool,
        ids: &[Option<u32>],
        seen: &Verdict,
    ) -> Decision {
        let taken = ids.iter().flatten().any(|id| self.taken(packet, *id));
        let nobody = ids.contains(&None);
        match seen {
            Verdict::Drop if taken && nobody => Decision::DropUnsure,
            Verdict::Drop if taken => Decision::Drop(Reason::FlowCollision),
            Verdict::Drop | Verdict::Answer(_) if nobody => Decision::Reject(Reason::NoTable),
            Verdict::Next(bytes) => {
                let Ok(translated) = read(bytes, |_, _, _, _| Some((packet.tuple.src.port(), 0))) else {
                    return Decision::Impossible("the kernel's packet cannot be read".to_owned());
                };
                let later = matches!(packet.kind, Kind::Later(_));
                let at = translated.tuple.dst;
                let found = ids.iter().flatten().copied().find(|id| {
                    self.world.backends.get(id).is_some_and(|b| if later { b.at.ip() == at.ip() } else { b.at == at })
                });
                let Some(id) = found.filter(|id| !self.taken(packet, *id)) else {
                    return Decision::Impossible(format!("{at} is none of the backends that could be chosen: {ids:?}"));
                };
                self.stick(packet, frontend, id);
                let opened = self.open(packet, frontend, view, pod, id);
                opened.unwrap_or_else(|| Decision::Impossible(format!("backend {id} was taken")))
            }
            _ => Decision::Impossible(format!("one of {ids:?} had to be chosen")),
        }
    }

    /// Whom the n-th attempt may yield.
    fn offer(&mut self, packet: &Packet, frontend: &Frontend, view: View, attempt: usize) -> Offer {
        let Tuple { src, dst, proto } = packet.tuple;
        let table = self.world.tables.get(&view.table).filter(|table| !table.list.is_empty());
        let mut by_client = frontend.affinity != 0;
        if attempt == 0
            && by_client
            && let Some((id, generation, seen)) = self.affinity.get(&(src.ip(), frontend.service)).copied()
        {
            by_client = self.now - seen < u64::from(frontend.affinity) * 1000;
            if by_client && self.lives(id, frontend.service, Some(generation)) {
                if table.is_some_and(|table| table.list.contains(&id)) {
                    return Offer::One(Some(id));
                }
                self.elsewhere += 1;
            }
        }
        let Some(table) = table else { return Offer::One(None) };
        let count = table.list.len();
        let at = |index: usize| {
            let pair = [table.list[(index + attempt) % count], table.list[(index + attempt + 1) % count]];
            pair.into_iter().find(|id| self.lives(*id, frontend.service, None))
        };
        let slots = maglev_size(table.class);
        if slots == 0 {
            let mut all: Vec<_> = (0..count).map(at).collect();
            all.sort_unstable();
            all.dedup();
            return if all.len() == 1 { Offer::One(all[0]) } else { Offer::AnyOf(all) };
        }
        let hash = if by_client { hash_of_client(src.ip()) } else { hash_of(src, dst, proto) };
        let slot = (u64::from(hash) * u64::from(slots)) >> 32;
        Offer::One(at(usize::from(table.slots[slot as usize])))
    }

    /// Remembers a choice for the client.
    fn stick(&mut self, packet: &Packet, frontend: &Frontend, id: u32) {
        if frontend.affinity != 0
            && let Some(backend) = self.world.backends.get(&id)
        {
            self.affinity.insert((packet.tuple.src.ip(), frontend.service), (id, backend.generation, self.now));
        }
    }

    /// Whether a backend has this client already, by another frontend.
    fn taken(&self, packet: &Packet, id: u32) -> bool {
        let Some(backend) = self.world.backends.get(&id) else { return false };
        let path = Tuple { src: backend.at, dst: packet.tuple.src, proto: packet.tuple.proto };
        let other = self.flows.by_path(&path).and_then(|id| self.flows.get(id));
        other.is_some_and(|flow| flow.frontend != packet.tuple.dst && !flow.closed() && !flow.expired(self.now))
    }

    /// Begins a flow with a backend, unless that has this client already.
    fn open(&mut self, packet: &Packet, frontend: &Frontend, view: View, pod: bool, id: u32) -> Option<Decision> {
        if self.taken(packet, id) {
            return None;
        }
        let chosen = *self.world.backends.get(&id)?;
        let Tuple { src: client, dst, proto } = packet.tuple;
        if let Some(old) = self.flows.by_path(&Tuple { src: chosen.at, dst: client, proto }) {
            self.end(old);
        }
        let local = chosen.flags & backend::LOCAL != 0;
        let mut flags = 0;
        if (view.replace && !local) || client.ip() == chosen.at.ip() {
            flags |= flow::REPLACE_CLIENT;
        }
        if local {
            flags |= flow::LOCAL;
        }
        if pod {
            flags |= flow::FROM_POD;
        }
        let none = Direction { packets: 0, bytes: 0, seen: self.now };
        self.flows.add(Flow {
            proto,
            client,
            frontend: dst,
            backend: chosen.at,
            source: None,
            id,
            generation: chosen.generation,
            service: frontend.service,
            flags,
            directions: [Direction { packets: 1, bytes: ip_length(packet), ..none }, none],
            established: false,
        });
        let counters = self.services.entry(frontend.service).or_insert(ServiceCounters::zeroed());
        counters.connections += 1;
        counters.packets += 1;
        counters.bytes += ip_length(packet);
        self.backends.entry(id).or_insert(BackendCounters::zeroed()).connections += 1;
        Some(Decision::Translate(End::Destination, chosen.at))
    }

    // ===== egress =====

    fn egress(&mut self, hook: Hook, packet: &Packet, seen: &mut Seen<'_>) -> Decision {
        let error = matches!(packet.kind, Kind::Error { .. });
        if let Some(id) = self.flows.by_path(&packet.tuple) {
            return self.reply(id, packet, error);
        }
        if let Some(id) = self.flows.by_path(&packet.tuple.turned()) {
            return self.request(id, packet, error, seen);
        }
        // BPF_PROG_TEST_RUN gives every packet a socket: at a node link all of them are the host's own.
        let dst = packet.tuple.dst;
        let ours = self.world.addresses.get(&dst.ip()).is_some_and(|flags| flags & address::FRONTEND != 0);
        let frontend = self.world.frontends.get(&(dst, packet.tuple.proto)).filter(|_| ours && !error);
        match frontend {
            Some(frontend) if hook == Hook::NodeEgress && frontend.views[audience::HOST].verdict == verdict::DROP => {
                Decision::Drop(Reason::NoLocalEndpoints)
            }
            _ => Decision::Leave,
        }
    }

    fn reply(&mut self, id: FlowId, packet: &Packet, error: bool) -> Decision {
        if packet.says.accept && self.is_closed(id) {
            return self.part(id);
        }
        self.remember_fragment(packet);
        let now = self.now;
        let Some(flow) = self.flows.get_mut(id) else { return Decision::Leave };
        if !error {
            let bytes = ip_length(packet);
            flow.pass(Side::Backend, packet.says, bytes, now);
            let counters = self.services.entry(flow.service).or_insert(ServiceCounters::zeroed());
            counters.reply_packets += 1;
            counters.reply_bytes += bytes;
        }
        if flow.is(flow::FOREIGN) { Decision::Leave } else { Decision::Translate(End::Source, flow.frontend) }
    }

    fn request(&mut self, id: FlowId, packet: &Packet, error: bool, seen: &mut Seen<'_>) -> Decision {
        if packet.says.open && self.is_closed(id) {
            return self.part(id);
        }
        let now = self.now;
        let Some(flow) = self.flows.get_mut(id) else { return Decision::Leave };
        if flow.is(flow::FOREIGN) || !flow.is(flow::REPLACE_CLIENT) {
            return Decision::Leave;
        }
        if !error {
            flow.renew(Side::Backend, now);
        }
        let source = flow.source;
        self.remember_fragment(packet);
        match source {
            Some(source) => Decision::Translate(End::Source, source),
            None if error => Decision::Leave,
            None => self.choose_source(id, packet, seen),
        }
    }

    fn is_closed(&self, id: FlowId) -> bool {
        self.flows.get(id).is_some_and(Flow::closed)
    }

    /// A connection that begins beside a closed flow: the flow makes room.
    fn part(&mut self, id: FlowId) -> Decision {
        self.beside += 1;
        self.end(id);
        Decision::Leave
    }
}

/// Bytes of the IP packet.
fn ip_length(packet: &Packet) -> u64 {
    (packet.end - packet::ETHERNET) as u64
}

/// The shared hash of a tuple.
fn hash_of(src: SocketAddr, dst: SocketAddr, proto: u8) -> u32 {
    let (sport, dport) = (src.port().to_be(), dst.port().to_be());
    match (src.ip(), dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            flow_hash(&[u32::from_ne_bytes(src.octets())], &[u32::from_ne_bytes(dst.octets())], sport, dport, proto)
        }
        (src, dst) => flow_hash(&words(src), &words(dst), sport, dport, proto),
    }
}

/// The shared hash of a client.
fn hash_of_client(client: IpAddr) -> u32 {
    match client {
        IpAddr::V4(ip) => affinity_hash(&[u32::from_ne_bytes(ip.octets())]),
        IpAddr::V6(_) => affinity_hash(&words(client)),
    }
}

/// An IPv6 address as it is loaded from a packet.
fn words(ip: IpAddr) -> [u32; 4] {
    let octets = match ip {
        IpAddr::V6(ip) => ip.octets(),
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
    };
    let (words, _) = octets.as_chunks::<4>();
    std::array::from_fn(|i| u32::from_ne_bytes(words[i]))
}
