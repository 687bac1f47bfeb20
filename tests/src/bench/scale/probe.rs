//! Connections to Services, and who answers.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use socket2::{Domain, SockRef, Socket, Type};

use super::objects::{PORT, TARGET};
use crate::place::Place;

/// How long one connection may take. Nothing is far away here.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pauses between two looks are a hundredth of the time that has passed, within these bounds: that much is the error of a figure,
/// and the looks take no CPU time that the proxy could use.
const PAUSES: [Duration; 2] = [Duration::from_micros(50), Duration::from_millis(10)];

/// Which endpoint answers at a Service.
///
/// # Errors
/// If none does, for whatever reason.
pub fn ask(service: Ipv4Addr) -> io::Result<Ipv4Addr> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // It is reset when it is closed, or the ports would all wait for their time.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect_timeout(&SocketAddr::from((service, PORT)).into(), PATIENCE)?;
    let mut octets = [0; 4];
    TcpStream::from(socket).read_exact(&mut octets)?;
    Ok(Ipv4Addr::from(octets))
}

/// Looks until it is so; the time since `start`, or `None` if the limit was over first.
pub fn wait(start: Instant, limit: Duration, mut look: impl FnMut() -> bool) -> Option<Duration> {
    loop {
        if look() {
            return Some(start.elapsed());
        }
        let waited = start.elapsed();
        if waited > limit {
            return None;
        }
        let [least, most] = PAUSES;
        std::thread::sleep((waited / 100).clamp(least, most));
    }
}

/// A server at every address of its namespace, on a thread that ends with the guard. It answers with the address that was asked.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens; what its namespace takes for its own addresses is the place's affair.
    pub fn start(place: &Place) -> Result<Self> {
        let listener =
            place.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, TARGET)).context("the endpoints' server"))?;
        let accepting = listener.try_clone()?;
        let thread = std::thread::spawn(move || {
            for stream in accepting.incoming() {
                // What `drop` does to the listener; or all descriptors are taken, and the client waits in vain.
                let Ok(stream) = stream else { return };
                // A client that is gone already is not missed.
                let _ = answer(stream);
            }
        });
        Ok(Self { listener, thread: Some(thread) })
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    let IpAddr::V4(own) = stream.local_addr()?.ip() else { return Ok(()) };
    stream.write_all(&own.octets())
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
