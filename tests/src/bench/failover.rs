//! How long an address is without an answer when the node that announces it fails, how many connections break, and whether two
//! nodes ever answer at the same time.
//!
//! A client behind a router asks over UDP every 5 ms and keeps 20 TCP connections busy; the router's neighbour cache is an
//! ordinary one. A host on the nodes' network asks for the address by ARP every 5 ms, and every answer and announcement is captured
//! at the bridge. After each run the node is made whole, and the next one begins with whoever announces the address then.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use clap::ValueEnum;
use culvert_announce::probe::packet::{Arp, Mac, Packet};
use culvert_dataplane::Frames;
use serde::Serialize;
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use crate::agent::{Agent, Options, SocketMode};
use crate::manifests::Service;
use crate::matrix::PORT;
use crate::neighbors::mac;
use crate::place::{Family, Place};
use crate::process::eventually;
use crate::segment::Segment;

/// Where the server listens.
const TARGET: u16 = 9_000;
/// From one request to the next.
const INTERVAL: Duration = Duration::from_millis(5);
/// Connections, and from one request on each to the next.
const CONNECTIONS: usize = 20;
const PAUSE: Duration = Duration::from_millis(100);
/// How long a connection may be without an answer: it is broken then.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long is measured before and after.
const BEFORE: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_secs(4);
/// How long the nodes may take to be whole again.
const SOON: Duration = Duration::from_mins(2);

/// What happens to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Case {
    /// Everything to and from it is dropped at the bridge, which leaves its link the carrier; then its agent is killed.
    NodeOff,
    /// Its agent is killed, and started again after two seconds.
    AgentKilled,
    /// Its link loses the carrier.
    LinkDown,
    /// `culvert drain`.
    Drain,
}

impl Case {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::NodeOff, Self::AgentKilled, Self::LinkDown, Self::Drain];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::NodeOff => "node off",
            Self::AgentKilled => "agent killed and restarted",
            Self::LinkDown => "link down",
            Self::Drain => "drain",
        }
    }
}

/// What was measured in one run.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// The longest time from a request that was not answered to the next one that was, milliseconds.
    pub silence_ms: u64,
    /// Requests that were not answered.
    pub lost: usize,
    /// Connections that broke.
    pub broken: usize,
    /// How long two nodes answered or announced, milliseconds: from the new node's first packet to the old one's last.
    pub overlap_ms: u64,
    /// Whether another node announces the address after it.
    pub moved: bool,
}

/// A case and its runs.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// The case.
    pub case: Case,
    /// Its runs.
    pub runs: Vec<Run>,
}

impl Figure {
    /// Median and maximum of a number of the runs.
    pub fn median_and_maximum(&self, pick: impl Fn(&Run) -> u64) -> (u64, u64) {
        let mut all: Vec<u64> = self.runs.iter().map(pick).collect();
        all.sort_unstable();
        let median = all.get(all.len() / 2).copied().unwrap_or_default();
        (median, all.last().copied().unwrap_or_default())
    }
}

/// Measures all cases on `nodes` nodes.
pub fn run(nodes: u8, rounds: usize, cases: &[Case], tell: &mut dyn FnMut(&str)) -> Result<Vec<Figure>> {
    let segment = Segment::new(nodes)?;
    serve(&segment.server)?;
    let service = Service::new("web", 1).with("type", json!("LoadBalancer"));
    let service = service.port("TCP", PORT, TARGET).port("UDP", PORT, TARGET).ready("elsewhere", &segment.server);
    segment.manifests.apply(&service)?;
    let mut stage = Stage { agents: segment.start_all(&Options::new(SocketMode::All)?)?, segment };
    let mut figures: Vec<Figure> = Vec::new();
    for &case in cases {
        let mut runs = Vec::new();
        for round in 0..rounds {
            stage.whole()?;
            let run = stage.measure(case).with_context(|| stage.logs())?;
            tell(&format!("{} {}/{rounds}: {run:?}", case.name(), round + 1));
            runs.push(run);
        }
        figures.push(Figure { case, runs });
    }
    Ok(figures)
}

struct Stage {
    agents: Vec<Agent>,
    segment: Segment,
}

/// The address: the pool's first.
fn address() -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, 100)
}

impl Stage {
    /// Waits until all nodes hear each other and the address answers.
    fn whole(&mut self) -> Result<()> {
        for agent in &mut self.agents {
            if !agent.alive() {
                agent.restart(None)?;
            }
            agent.ready()?;
        }
        for agent in &self.agents {
            agent.cli_json("drain --undo")?;
            eventually("all nodes hear each other", SOON, || {
                let said = agent.cli_json("l2")?;
                let alive = said["nodes"].as_array().context("nodes")?.iter().all(|node| node["alive"] == true);
                Ok((said["quorum"] == true && alive).then_some(()))
            })?;
        }
        eventually("the address answers", SOON, || Ok(self.segment.owner(address().into())?.map(drop)))
    }

    fn measure(&mut self, case: Case) -> Result<Run> {
        let owner = self.segment.owner(address().into())?.context("nobody answers")?;
        let capture = Capture::start(&self.segment)?;
        let datagrams = Datagrams::start(&self.segment.client)?;
        let streams = Streams::start(&self.segment.client)?;
        std::thread::sleep(BEFORE);
        self.fail(case, owner)?;
        std::thread::sleep(AFTER);
        let (silence, lost) = datagrams.finish()?;
        let broken = streams.finish()?;
        let seen = capture.finish()?;
        self.mend(case, owner)?;
        let own = link_address(&self.segment.nodes.get(owner).context("the owner")?.host)?;
        let old = seen.get(&own).map(|(_, last)| *last);
        let new = seen.iter().filter(|(mac, _)| **mac != own).map(|(_, (first, _))| *first).min();
        let overlap = old.zip(new).map(|(last, first)| last.saturating_duration_since(first)).unwrap_or_default();
        let ms = |time: Duration| time.as_millis() as u64;
        Ok(Run { silence_ms: ms(silence), lost, broken, overlap_ms: ms(overlap), moved: new.is_some() })
    }

    fn fail(&mut self, case: Case, owner: usize) -> Result<()> {
        let Self { agents, segment } = self;
        let agent = agents.get_mut(owner).context("the owner")?;
        match case {
            Case::NodeOff => {
                segment.cut(owner, true)?;
                agent.kill()
            }
            Case::AgentKilled => {
                agent.kill()?;
                std::thread::sleep(Duration::from_secs(2));
                agent.restart(None)
            }
            Case::LinkDown => segment.fabric.ip_batch(&format!("link set n{} down\n", owner + 1)),
            Case::Drain => agent.cli_json("drain").map(drop),
        }
    }

    fn mend(&mut self, case: Case, owner: usize) -> Result<()> {
        match case {
            Case::NodeOff => self.segment.cut(owner, false),
            Case::LinkDown => self.segment.fabric.ip_batch(&format!("link set n{} up\n", owner + 1)),
            // What is left is done when everything is to be whole.
            Case::AgentKilled | Case::Drain => Ok(()),
        }
    }

    fn logs(&self) -> String {
        self.agents.iter().map(|agent| format!("{}:\n{}", agent.node(), agent.log())).collect::<Vec<_>>().join("\n")
    }
}

/// Gives back every datagram and every byte of a connection.
fn serve(place: &Place) -> Result<()> {
    let address = place.socket(Family::V4, TARGET);
    let (datagrams, listener) = place.run(|| Ok((UdpSocket::bind(address)?, TcpListener::bind(address)?)))?;
    std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok((length, from)) = datagrams.recv_from(&mut bytes) {
            let _ = datagrams.send_to(bytes.get(..length).unwrap_or_default(), from);
        }
    });
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut bytes = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut bytes) {
                    if stream.write_all(bytes.get(..length).unwrap_or_default()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(())
}

/// Threads that work until they are told to end.
struct Work<T> {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<T>>,
}

impl<T: Send + 'static> Work<T> {
    /// `work` is told whether it is to end.
    fn start(place: &Place, work: impl FnOnce(&AtomicBool) -> Result<T> + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (place, told) = (place.clone(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            place.enter()?;
            work(&told)
        });
        Self { stop, thread }
    }

    fn finish(self) -> Result<T> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("a thread panicked"))?
    }
}

/// Requests over UDP: when each was sent, and whether it was answered.
struct Datagrams(Work<(Duration, usize)>);

impl Datagrams {
    fn start(client: &Place) -> Result<Self> {
        let to = SocketAddr::from((address(), PORT));
        let socket = client.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(to)?;
            Ok(socket)
        })?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        let asked: Arc<Mutex<Vec<(Instant, bool)>>> = Arc::default();
        let (reader, book) = (socket.try_clone()?, Arc::clone(&asked));
        let work = Work::start(client, move |stop| {
            let listener = std::thread::spawn({
                let book = Arc::clone(&book);
                move || listen(&reader, &book)
            });
            let mut next = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                let number = {
                    let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
                    book.push((Instant::now(), false));
                    book.len() as u64 - 1
                };
                // Fails when the router says that nobody answers: one more that is lost.
                let _ = socket.send(&number.to_be_bytes());
                next += INTERVAL;
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            // The last answers; then nothing comes for the time of a read.
            listener.join().map_err(|_| anyhow!("a thread panicked"))?;
            let book = book.lock().unwrap_or_else(PoisonError::into_inner);
            Ok((silence(&book), book.iter().filter(|(_, answered)| !answered).count()))
        });
        Ok(Self(work))
    }

    fn finish(self) -> Result<(Duration, usize)> {
        self.0.finish()
    }
}

/// The longest time from the first request that was not answered to the next that was.
fn silence(book: &[(Instant, bool)]) -> Duration {
    let (mut longest, mut since) = (Duration::ZERO, None);
    for (sent, answered) in book {
        let begun = *since.get_or_insert(*sent);
        longest = longest.max(*sent - begun);
        if *answered {
            since = None;
        }
    }
    longest
}

/// Notes answers until none has come for longer than any failover should take.
fn listen(socket: &UdpSocket, book: &Mutex<Vec<(Instant, bool)>>) {
    let mut bytes = [0; 64];
    let mut last = Instant::now();
    while last.elapsed() < AFTER {
        match socket.recv(&mut bytes) {
            Ok(8) => {
                last = Instant::now();
                let number = u64::from_be_bytes(bytes.first_chunk().copied().unwrap_or_default());
                if let Some(entry) = book.lock().unwrap_or_else(PoisonError::into_inner).get_mut(number as usize) {
                    entry.1 = true;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                let ended = book.lock().unwrap_or_else(PoisonError::into_inner).last().map(|(sent, _)| sent.elapsed());
                if ended.is_some_and(|ended| ended > INTERVAL * 20) {
                    return;
                }
            }
            _ => {}
        }
    }
}

/// Connections that stand before.
struct Streams(Vec<Work<bool>>);

impl Streams {
    fn start(client: &Place) -> Result<Self> {
        let connect = || {
            let stream = client.run(|| Ok(TcpStream::connect(SocketAddr::from((address(), PORT)))?))?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(Work::start(client, move |stop| Ok(keep_busy(stream, stop))))
        };
        (0..CONNECTIONS).map(|_| connect()).collect::<Result<_>>().map(Self)
    }

    /// How many broke.
    fn finish(self) -> Result<usize> {
        for work in &self.0 {
            work.stop.store(true, Ordering::Relaxed);
        }
        let held = self.0.into_iter().map(Work::finish).collect::<Result<Vec<_>>>()?;
        Ok(held.into_iter().filter(|held| !held).count())
    }
}

/// Whether every request was answered.
fn keep_busy(mut stream: TcpStream, stop: &AtomicBool) -> bool {
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let mut answer = [0; 8];
        if stream.write_all(&number.to_be_bytes()).is_err() || stream.read_exact(&mut answer).is_err() {
            return false;
        }
        if answer != number.to_be_bytes() {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
    true
}

/// When each MAC was first and last seen to answer or announce the address.
type Seen = BTreeMap<Mac, (Instant, Instant)>;

/// The bridge, and a host that asks.
struct Capture {
    asking: Work<()>,
    looking: Work<Seen>,
}

impl Capture {
    fn start(segment: &Segment) -> Result<Self> {
        let (sender_mac, sender) = (link_address(&segment.server)?, segment.server.v4());
        let request = Arp { sender, ..Arp::announcement(sender_mac, address()) };
        let asking = Work::start(&segment.server, move |stop| ask(request, stop));
        let socket = segment.fabric.run(|| {
            // The protocol of a packet socket is in network order.
            let protocol = Protocol::from(i32::from(ARP.to_be()));
            Ok(Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?)
        })?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let looking = Work::start(&segment.fabric, move |stop| Ok(look(socket, stop)));
        Ok(Self { asking, looking })
    }

    fn finish(self) -> Result<Seen> {
        self.asking.finish()?;
        self.looking.finish()
    }
}

/// The Ethernet type of ARP.
const ARP: u16 = 0x0806;

/// The link address of a place.
fn link_address(place: &Place) -> Result<Mac> {
    let text = mac(place, "eth0")?;
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>()?;
    Ok(Mac(bytes.try_into().map_err(|_| anyhow!("{text} is no link address"))?))
}

/// Asks everybody for the address.
fn ask(request: Arp, stop: &AtomicBool) -> Result<()> {
    let frame = Packet::Arp(request).encode();
    let link = nix::net::if_::if_nametoindex("eth0")?;
    let frames = Frames::open()?;
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        frames.send(link, &frame)?;
        next += INTERVAL;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

fn look(mut socket: Socket, stop: &AtomicBool) -> Seen {
    let mut seen = Seen::new();
    let mut bytes = [0; 128];
    while !stop.load(Ordering::Relaxed) {
        let Ok(length) = socket.read(&mut bytes) else { continue };
        let now = Instant::now();
        let packet = Packet::decode(bytes.get(..length).unwrap_or_default());
        let Some(Packet::Arp(Arp { sender_mac, sender, .. })) = packet else { continue };
        if sender == address() {
            seen.entry(sender_mac).and_modify(|(_, last)| *last = now).or_insert((now, now));
        }
    }
    seen
}
