//! What the socket programs add to `connect()`.
//!
//! A connect of a UDP socket sends nothing: its time is the call's own, and the program's. The TCP figure is a whole
//! connection over lo, from `socket()` to the reset that ends it.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use culvert_abi::socket_mode;
use socket2::{Domain, Socket, Type};

use crate::place::{Family, Place};
use crate::sockets::{Bench, server, vip};
use crate::traffic::Protocol;

/// The Service's port.
const PORT: u16 = 80;
/// The Service's number.
const NUMBER: u8 = 1;

/// One measured case.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What is called.
    pub call: &'static str,
    /// Where to, and with what attached.
    pub case: &'static str,
    /// IPv4 or IPv6.
    pub family: &'static str,
    /// Nanoseconds a call in each round, sorted.
    pub nanoseconds: Vec<u64>,
}

/// Measures `rounds` rounds of `calls` UDP connects and a hundredth as many TCP connections for each case.
pub fn run(rounds: usize, calls: u32) -> Result<Vec<Figure>> {
    let mut bench = Bench::new(socket_mode::ALL)?;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        bench.serve(NUMBER, PORT, protocol, 1);
    }
    bench.commit()?;
    let outside = bench.host.cgroup().parent().context("the cgroup's parent")?;
    let host = &bench.host;
    let outside = Place::new("outside", host.netns().to_owned(), outside, outside, host.v4(), host.v6());

    let mut figures = Vec::new();
    for family in Family::BOTH {
        let name = if family == Family::V4 { "IPv4" } else { "IPv6" };
        let (backend, frontend) = (server(family, 0), SocketAddr::from((vip(family, NUMBER), PORT)));
        let cases = [
            (&outside, backend, "a server, no programs"),
            (host, backend, "a server, programs attached"),
            (host, frontend, "a ClusterIP, translated"),
        ];
        for (call, work, calls) in
            [("UDP connect()", udp as fn(SocketAddr, u32) -> Result<u64>, calls), ("TCP connection", tcp, calls / 100)]
        {
            let mut of_call: Vec<Figure> =
                cases.map(|(.., case)| Figure { call, case, family: name, nanoseconds: Vec::new() }).into();
            for _ in 0..rounds {
                for ((place, to, _), figure) in cases.iter().zip(&mut of_call) {
                    figure.nanoseconds.push(place.run(|| work(*to, calls))?);
                }
            }
            figures.extend(of_call);
        }
    }
    for figure in &mut figures {
        figure.nanoseconds.sort_unstable();
    }
    Ok(figures)
}

/// Nanoseconds of one connect of a UDP socket.
fn udp(to: SocketAddr, calls: u32) -> Result<u64> {
    let socket = UdpSocket::bind(SocketAddr::new(unspecified(to), 0))?;
    time(calls, || Ok(socket.connect(to)?))
}

/// Nanoseconds of one TCP connection. It is reset, not closed, or the ports would all wait for their time soon.
fn tcp(to: SocketAddr, calls: u32) -> Result<u64> {
    time(calls, || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_linger(Some(Duration::ZERO))?;
        Ok(socket.connect(&to.into())?)
    })
}

fn time(calls: u32, mut call: impl FnMut() -> Result<()>) -> Result<u64> {
    for _ in 0..calls / 10 {
        call()?;
    }
    let start = Instant::now();
    for _ in 0..calls {
        call()?;
    }
    Ok((start.elapsed().as_nanos() / u128::from(calls.max(1))) as u64)
}

fn unspecified(to: SocketAddr) -> std::net::IpAddr {
    match to {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}
