//! New connections a second, and throughput, through a `ClusterIP` and a `NodePort`, beside the same without a Service.
//!
//! Agents run as in the tests. One thread asks and one answers, both of this process, so that its CPU time is that of
//! both ends and of the kernel between them. Connections end with a reset, or the ports would all wait for their time.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use socket2::{Domain, Socket, Type};

use crate::agent::{Options, SocketMode};
use crate::manifests::Service;
use crate::matrix::{PORT, node_port};
use crate::place::{Family, Place};
use crate::stage::{Scenery, Stage};
use crate::topology::{PodLinks, cluster_ip};

/// Where the backends of this benchmark listen.
const TARGET: u16 = 9_000;
/// Where they listen for those who ask without a Service: a flow and a connection beside it may not have the same
/// addresses and ports, see docs/DATAPATH.md, "Beside a flow".
const DIRECT: u16 = 9_001;
/// How long one measurement of one case takes.
const TIME: Duration = Duration::from_secs(1);

/// One measured case.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Who asks whom, and how.
    pub case: String,
    /// New connections a second, each with a byte there and a byte back, in each round, sorted.
    pub connections: Vec<u64>,
    /// CPU time of a connection in microseconds, both ends, sorted.
    pub microseconds: Vec<u64>,
    /// Throughput of one stream in Mbit/s, sorted.
    pub megabits: Vec<u64>,
}

/// Measures every case in `rounds` rounds, all cases of a socket mode in turn.
pub fn run(rounds: usize, mut progress: impl FnMut(usize, usize)) -> Result<Vec<Figure>> {
    let modes = [(SocketMode::All, "all"), (SocketMode::Host, "host")];
    let mut figures = Vec::new();
    for (number, (mode, name)) in modes.into_iter().enumerate() {
        let stage = stage(mode)?;
        let cases = cases(&stage, name);
        let mut of_mode: Vec<Figure> = cases
            .iter()
            .map(|(case, ..)| Figure {
                case: case.clone(),
                connections: Vec::new(),
                microseconds: Vec::new(),
                megabits: Vec::new(),
            })
            .collect();
        for round in 0..rounds {
            progress(number * rounds + round, modes.len() * rounds);
            for ((_, client, to), figure) in cases.iter().zip(&mut of_mode) {
                let (connections, microseconds) = client.run(|| connect(*to))?;
                figure.connections.push(connections);
                figure.microseconds.push(microseconds);
                figure.megabits.push(client.run(|| stream(*to))?);
            }
        }
        figures.extend(of_mode);
    }
    for Figure { connections, microseconds, megabits, .. } in &mut figures {
        connections.sort_unstable();
        microseconds.sort_unstable();
        megabits.sort_unstable();
    }
    Ok(figures)
}

/// Service 1 has its backend on n1, Service 2 on n2.
fn stage(mode: SocketMode) -> Result<Stage> {
    let scenery = Scenery::new(PodLinks::Routed)?;
    let service = |name, n, node, pod: &Place| {
        Service::new(name, n).port("TCP", PORT, TARGET).node_port(node_port(n)).ready(node, pod)
    };
    let services = [service("near", 1, "n1", &scenery.cast.a), service("far", 2, "n2", &scenery.cast.c)];
    for pod in [&scenery.cast.a, &scenery.cast.c] {
        serve(pod, TARGET)?;
        serve(pod, DIRECT)?;
    }
    scenery.start(&Options::new(mode)?, &services)
}

fn cases(stage: &Stage, mode: &str) -> Vec<(String, Place, SocketAddr)> {
    let (cast, client) = (&stage.cast, &stage.cluster.lab.client);
    let cluster = |n| SocketAddr::from((cluster_ip(Family::V4, n), PORT));
    let node = |n| cast.n1.socket(Family::V4, node_port(n));
    let mut cases = vec![(format!("pod to ClusterIP, sockets {mode}"), cast.p.clone(), cluster(1))];
    if mode == "all" {
        cases.push(("pod to pod, no Service".to_owned(), cast.p.clone(), cast.a.socket(Family::V4, DIRECT)));
        return cases;
    }
    cases.push(("client to pod, no Service".to_owned(), client.clone(), cast.a.socket(Family::V4, DIRECT)));
    cases.push(("client to NodePort, backend here".to_owned(), client.clone(), node(1)));
    cases.push(("client to NodePort, backend there".to_owned(), client.clone(), node(2)));
    cases
}

/// Serves on a thread that ends with the process: a byte is answered with a byte, whatever comes after is swallowed.
fn serve(place: &Place, port: u16) -> Result<()> {
    let address = place.socket(Family::V4, port);
    let listener = place.run(|| TcpListener::bind(address).with_context(|| address.to_string()))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = answer(stream);
        }
    });
    Ok(())
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)?;
    let mut rest = vec![0; 256 << 10];
    while stream.read(&mut rest)? > 0 {}
    Ok(())
}

/// Connections a second, and the CPU time of each in microseconds.
fn connect(to: SocketAddr) -> Result<(u64, u64)> {
    let (start, before) = (Instant::now(), cpu()?);
    let mut connections = 0_u64;
    while start.elapsed() < TIME {
        open(to)?;
        connections += 1;
    }
    let (elapsed, spent) = (start.elapsed(), cpu()?.saturating_sub(before));
    Ok((per_second(connections, elapsed), (spent.as_micros() / u128::from(connections.max(1))) as u64))
}

/// A connection with a byte there and a byte back, that is reset when it is dropped.
fn open(to: SocketAddr) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_tcp_nodelay(true)?;
    socket.connect(&to.into()).with_context(|| to.to_string())?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(&[1])?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// Mbit/s of one stream.
fn stream(to: SocketAddr) -> Result<u64> {
    let mut stream = open(to)?;
    let data = vec![0; 256 << 10];
    let start = Instant::now();
    let mut bytes = 0;
    while start.elapsed() < TIME {
        bytes += stream.write(&data)?;
    }
    Ok(per_second(bytes as u64 * 8, start.elapsed()) / 1_000_000)
}

/// What `count` in a time makes in a second.
fn per_second(count: u64, time: Duration) -> u64 {
    (u128::from(count) * 1_000_000 / time.as_micros().max(1)) as u64
}

/// CPU time of this process so far.
fn cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(micros.unsigned_abs()))
}
