//! Open-loop load: requests go out at their time whether or not the ones before were answered, and each is accounted
//! for by its number.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, anyhow};
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpStream, UdpSocket, tcp::OwnedWriteHalf};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::server::BUFFER;
use super::{Answer, Outcome, request};
use crate::place::Place;
use crate::process::slowness;

/// How often requests are sent: each tick sends what is due.
const TICK: Duration = Duration::from_millis(2);

/// Requests a second that tests of survival send: more than 5,000 on a real machine.
pub fn full_rate() -> u32 {
    5_200 / slowness()
}

/// Three kinds of traffic to one target at the same time.
#[derive(Clone, Debug)]
pub struct Load {
    /// Whom it asks.
    pub to: SocketAddr,
    /// Connections that stand all the time.
    pub streams: u32,
    /// Requests a second over all of them.
    pub stream_rate: u32,
    /// New TCP connections a second, with one request each.
    pub connect_rate: u32,
    /// UDP sockets; every other one is unconnected.
    pub sockets: u32,
    /// Datagrams a second over all of them.
    pub datagram_rate: u32,
    /// How long an answer may take before it counts as lost; longer than a TCP retransmission or two.
    pub patience: Duration,
}

impl Load {
    /// `rate` requests a second: six tenths over 20 streams, one as new connections, three as datagrams from 10 sockets.
    pub fn mixed(to: SocketAddr, rate: u32) -> Self {
        let tenth = rate / 10;
        Self {
            to,
            streams: 20,
            stream_rate: 6 * tenth,
            connect_rate: tenth,
            sockets: 10,
            datagram_rate: 3 * tenth,
            patience: Duration::from_secs(3) * slowness(),
        }
    }

    /// Starts in a place; returns once all streams stand.
    pub fn start(self, place: &Place) -> Result<Running> {
        let place = place.clone();
        self.begin(move || place.enter())
    }

    /// Starts where this process is.
    pub fn start_here(self) -> Result<Running> {
        self.begin(|| Ok(()))
    }

    fn begin(self, enter: impl FnOnce() -> Result<()> + Send + 'static) -> Result<Running> {
        let (stop, stopped) = watch::channel(false);
        let (ready, stands) = std::sync::mpsc::channel();
        let ledger = Ledger::default();
        let book = ledger.clone();
        let thread = std::thread::spawn(move || {
            let result = enter().and_then(|()| {
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?
                    .block_on(self.drive(book, stopped, &ready))
            });
            if let Err(error) = result {
                let _ = ready.send(Err(error));
            }
        });
        stands.recv().map_err(|_| anyhow!("the load's thread ended"))??;
        Ok(Running { stop, thread: Some(thread), ledger, since: Instant::now() })
    }

    async fn drive(
        self,
        ledger: Ledger,
        stopped: watch::Receiver<bool>,
        ready: &std::sync::mpsc::Sender<Result<()>>,
    ) -> Result<()> {
        let mut tasks = JoinSet::new();
        for index in 0..self.streams {
            let stream = timeout(self.patience, TcpStream::connect(self.to)).await??;
            stream.set_nodelay(true)?;
            let pace = Pace::share(self.stream_rate, self.streams, index, stopped.clone());
            tasks.spawn(stream_load(stream, pace, self.patience, ledger.clone()));
        }
        for index in 0..self.sockets {
            let socket = datagram_socket(self.to).await?;
            if index % 2 == 0 {
                socket.connect(self.to).await?;
            }
            let pace = Pace::share(self.datagram_rate, self.sockets, index, stopped.clone());
            tasks.spawn(datagram_load(socket, self.to, pace, self.patience, ledger.clone()));
        }
        let pace = Pace::share(self.connect_rate, 1, 0, stopped.clone());
        tasks.spawn(connect_load(self.to, pace, self.patience, ledger.clone()));
        let _ = ready.send(Ok(()));
        while tasks.join_next().await.is_some() {}
        Ok(())
    }
}

/// A load on its way.
#[derive(Debug)]
pub struct Running {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    ledger: Ledger,
    since: Instant,
}

impl Running {
    /// How many answers came in so far.
    pub fn answered(&self) -> u64 {
        let report = self.ledger.report();
        report.streams.answered + report.connects.answered + report.datagrams.answered
    }

    /// Stops sending, waits for the answers that are due, and reports.
    pub fn finish(mut self) -> Report {
        let seconds = self.since.elapsed();
        self.halt();
        Report { seconds, ..self.ledger.report() }
    }

    fn halt(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.halt();
    }
}

/// What became of one kind of traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Requests sent.
    pub sent: u64,
    /// Requests answered, in order where there is one.
    pub answered: u64,
    /// What else a client saw, by name.
    pub failures: BTreeMap<String, u64>,
    /// The longest time that any answer took.
    pub slowest: Duration,
    /// Answers by server.
    pub servers: BTreeMap<String, u64>,
}

impl Tally {
    /// Requests without an answer.
    pub fn lost(&self) -> u64 {
        self.sent - self.answered
    }

    /// Nothing was lost and nothing else was seen.
    pub fn clean(&self) -> bool {
        self.lost() == 0 && self.failures.is_empty()
    }

    /// Books an answer.
    pub fn answer(&mut self, server: &str, took: Duration) {
        self.answered += 1;
        self.slowest = self.slowest.max(took);
        *self.servers.entry(server.to_owned()).or_default() += 1;
    }

    /// Books something else that a client saw.
    pub fn failure(&mut self, what: impl fmt::Display) {
        *self.failures.entry(what.to_string()).or_default() += 1;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>6} sent, {} lost, slowest {:?}", self.sent, self.lost(), self.slowest)?;
        self.failures.iter().try_for_each(|(what, count)| write!(f, ", {count} x {what}"))
    }
}

/// What became of a load.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// How long requests were sent.
    pub seconds: Duration,
    /// Requests on standing connections.
    pub streams: Tally,
    /// New connections.
    pub connects: Tally,
    /// Datagrams.
    pub datagrams: Tally,
}

impl Report {
    /// Nothing was lost, refused, reset or late.
    pub fn clean(&self) -> bool {
        [&self.streams, &self.connects, &self.datagrams].into_iter().all(Tally::clean)
    }

    /// Requests sent.
    pub fn sent(&self) -> u64 {
        self.streams.sent + self.connects.sent + self.datagrams.sent
    }

    /// Requests without an answer.
    pub fn lost(&self) -> u64 {
        self.streams.lost() + self.connects.lost() + self.datagrams.lost()
    }

    /// Requests sent in one second, on average.
    pub fn rate(&self) -> u64 {
        self.sent() * 1_000 / (self.seconds.as_millis() as u64).max(1)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} requests/s for {:.1} s", self.rate(), self.seconds.as_secs_f64())?;
        writeln!(f, "  streams:         {}", self.streams)?;
        writeln!(f, "  new connections: {}", self.connects)?;
        write!(f, "  datagrams:       {}", self.datagrams)
    }
}

/// The books of a running load: written by its thread, read by the test.
#[derive(Clone, Debug, Default)]
struct Ledger(Arc<Mutex<Report>>);

impl Ledger {
    fn note(&self, entry: impl FnOnce(&mut Report)) {
        entry(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn report(&self) -> Report {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Says how many requests are due.
pub(crate) struct Pace {
    rate: u32,
    parts: u32,
    sent: u64,
    since: Instant,
    ticks: tokio::time::Interval,
    stopped: watch::Receiver<bool>,
}

impl Pace {
    /// The share of one of `parts` equal senders in a rate. Their ticks are spread over the tick's length.
    pub(crate) fn share(rate: u32, parts: u32, index: u32, stopped: watch::Receiver<bool>) -> Self {
        let offset = TICK * index / parts;
        let mut ticks = tokio::time::interval_at(Instant::now() + offset, TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { rate, parts, sent: 0, since: Instant::now(), ticks, stopped }
    }

    /// Waits for a tick; the numbers of the requests that are due then, `None` at the end.
    pub(crate) async fn due(&mut self) -> Option<std::ops::Range<u64>> {
        tokio::select! {
            biased;
            _ = self.stopped.wait_for(|stopped| *stopped) => None,
            now = self.ticks.tick() => {
                let micros = now.duration_since(self.since).as_micros() as u64;
                let due = micros * u64::from(self.rate) / (u64::from(self.parts) * 1_000_000);
                let range = self.sent..due.max(self.sent);
                self.sent = range.end;
                Some(range)
            }
        }
    }
}

type Times = Arc<Mutex<BTreeMap<u64, Instant>>>;

fn remember(times: &Times, seq: u64) {
    times.lock().unwrap_or_else(PoisonError::into_inner).insert(seq, Instant::now());
}

/// When a request went out, once.
fn recall(times: &Times, seq: u64) -> Option<Duration> {
    times.lock().unwrap_or_else(PoisonError::into_inner).remove(&seq).map(|sent| sent.elapsed())
}

fn open(times: &Times) -> usize {
    times.lock().unwrap_or_else(PoisonError::into_inner).len()
}

/// Requests on one standing connection. Answers must come in the order of the requests.
async fn stream_load(stream: TcpStream, mut pace: Pace, patience: Duration, ledger: Ledger) {
    let (reader, mut writer) = stream.into_split();
    let times = Times::default();
    let receiver = tokio::spawn(stream_answers(BufReader::new(reader), times.clone(), ledger.clone()));
    while let Some(due) = pace.due().await {
        for seq in due {
            remember(&times, seq);
            ledger.note(|report| report.streams.sent += 1);
            if let Err(error) = writer.write_all(&request(seq, 0, 0)).await {
                ledger.note(|report| report.streams.failure(Outcome::from_error(&error)));
                return;
            }
        }
    }
    drain(&times, patience).await;
    close(writer).await;
    let _ = timeout(patience, receiver).await;
}

async fn close(mut writer: OwnedWriteHalf) {
    let _ = writer.shutdown().await;
}

async fn stream_answers(mut reader: BufReader<tokio::net::tcp::OwnedReadHalf>, times: Times, ledger: Ledger) {
    let mut line = Vec::new();
    for seq in 0.. {
        line.clear();
        match reader.read_until(b'\n', &mut line).await {
            Ok(0) if open(&times) == 0 => return,
            Ok(0) => return ledger.note(|report| report.streams.failure(Outcome::Closed)),
            Ok(_) => {}
            Err(error) => return ledger.note(|report| report.streams.failure(Outcome::from_error(&error))),
        }
        match Answer::parse(&line) {
            Some(answer) if answer.seq == seq => {
                let took = recall(&times, seq).unwrap_or_default();
                ledger.note(|report| report.streams.answer(&answer.server, took));
            }
            _ => ledger.note(|report| report.streams.failure("out of order")),
        }
    }
}

/// Waits until all requests are answered, or for as long as an answer may take.
async fn drain(times: &Times, patience: Duration) {
    let mut ticks = interval(TICK);
    let deadline = Instant::now() + patience;
    while open(times) > 0 && Instant::now() < deadline {
        ticks.tick().await;
    }
}

async fn connect_load(to: SocketAddr, mut pace: Pace, patience: Duration, ledger: Ledger) {
    let mut tasks = JoinSet::new();
    while let Some(due) = pace.due().await {
        for seq in due {
            ledger.note(|report| report.connects.sent += 1);
            let ledger = ledger.clone();
            tasks.spawn(async move {
                let start = Instant::now();
                let outcome = timeout(patience, one_connection(to, seq)).await;
                ledger.note(|report| match outcome {
                    Ok(Ok(Some(answer))) if answer.seq == seq => {
                        report.connects.answer(&answer.server, start.elapsed());
                    }
                    Ok(Ok(_)) => report.connects.failure(Outcome::Closed),
                    Ok(Err(error)) => report.connects.failure(Outcome::from_error(&error)),
                    Err(_) => report.connects.failure(Outcome::Silence),
                });
            });
        }
        while tasks.try_join_next().is_some() {}
    }
    while tasks.join_next().await.is_some() {}
}

async fn one_connection(to: SocketAddr, seq: u64) -> std::io::Result<Option<Answer>> {
    let mut stream = BufReader::new(TcpStream::connect(to).await?);
    stream.write_all(&request(seq, 0, 0)).await?;
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line).await?;
    Ok(Answer::parse(&line))
}

async fn datagram_socket(to: SocketAddr) -> Result<UdpSocket> {
    let any: SocketAddr =
        if to.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    Ok(socket)
}

async fn datagram_load(socket: UdpSocket, to: SocketAddr, mut pace: Pace, patience: Duration, ledger: Ledger) {
    let socket = Arc::new(socket);
    let times = Times::default();
    let receiver = tokio::spawn(datagram_answers(socket.clone(), to, times.clone(), ledger.clone()));
    let connected = socket.peer_addr().is_ok();
    while let Some(due) = pace.due().await {
        for seq in due {
            remember(&times, seq);
            let message = request(seq, 0, 0);
            let sent = if connected { socket.send(&message).await } else { socket.send_to(&message, to).await };
            ledger.note(|report| {
                report.datagrams.sent += 1;
                if let Err(error) = sent {
                    report.datagrams.failure(Outcome::from_error(&error));
                }
            });
        }
    }
    drain(&times, patience).await;
    receiver.abort();
}

async fn datagram_answers(socket: Arc<UdpSocket>, to: SocketAddr, times: Times, ledger: Ledger) {
    let mut buffer = vec![0; 65_535];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((_, from)) if from != to => ledger.note(|report| report.datagrams.failure(Outcome::Stranger(from))),
            Ok((length, _)) => {
                let answer = Answer::parse(&buffer[..length]);
                let matched = answer.and_then(|answer| recall(&times, answer.seq).map(|took| (answer, took)));
                ledger.note(|report| match matched {
                    Some((answer, took)) => report.datagrams.answer(&answer.server, took),
                    None => report.datagrams.failure("answered twice"),
                });
            }
            Err(error) => ledger.note(|report| report.datagrams.failure(Outcome::from_error(&error))),
        }
    }
}
