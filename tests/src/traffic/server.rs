//! Echo servers that say who they are and whom they saw.

use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::oneshot;

use super::{Protocol, answer};
use crate::place::{Family, Place};

/// Room for datagrams while this process waits for a CPU, in bytes.
pub(super) const BUFFER: usize = 4 << 20;

/// A server on a thread of its own; its sockets close with the guard.
#[derive(Debug)]
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at the place's address of each family on each of the ports; returns once it does.
    pub fn start(place: &Place, ports: &[(Protocol, u16)]) -> Result<Self> {
        Self::start_at(place, &Family::BOTH.map(|family| place.ip(family)), ports)
    }

    /// Listens at the given addresses. Never at the wildcard one: a UDP server there would answer from the address that the route
    /// back suggests, not from the one that was asked.
    pub fn start_at(place: &Place, addresses: &[IpAddr], ports: &[(Protocol, u16)]) -> Result<Self> {
        let here = place.clone();
        Self::begin(place.name(), move || here.enter(), addresses, ports)
    }

    /// The same where this process is, under a name.
    pub fn start_here(name: &str, addresses: &[IpAddr], ports: &[(Protocol, u16)]) -> Result<Self> {
        Self::begin(name, || Ok(()), addresses, ports)
    }

    fn begin(
        name: &str,
        enter: impl FnOnce() -> Result<()> + Send + 'static,
        addresses: &[IpAddr],
        ports: &[(Protocol, u16)],
    ) -> Result<Self> {
        let (ready, listens) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let sockets =
            ports.iter().flat_map(|&(protocol, port)| addresses.iter().map(move |&ip| (protocol, (ip, port).into())));
        let (name, sockets) = (name.to_owned(), sockets.collect::<Vec<(Protocol, SocketAddr)>>());
        let thread = std::thread::spawn(move || {
            let started =
                enter().and_then(|()| Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?));
            let runtime = match started {
                Ok(runtime) => runtime,
                Err(error) => return drop(ready.send(Err(error))),
            };
            runtime.block_on(async {
                let opened = sockets.iter().try_for_each(|&(protocol, address)| open(&name, protocol, address));
                let listens = opened.is_ok();
                let _ = ready.send(opened);
                if listens {
                    let _ = stopped.await;
                }
            });
        });
        listens.recv().map_err(|_| anyhow!("the server's thread ended"))??;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }

    /// TCP and UDP on one port.
    pub fn echo(place: &Place, port: u16) -> Result<Self> {
        Self::start(place, &[(Protocol::Tcp, port), (Protocol::Udp, port)])
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Opens one socket and serves it on the current runtime.
fn open(name: &str, protocol: Protocol, address: SocketAddr) -> Result<()> {
    let name = name.to_owned();
    let what = || format!("{name}: {protocol:?} {address}");
    match protocol {
        Protocol::Udp => {
            let socket = bound(Type::DGRAM, None, address).with_context(what)?;
            setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
            let socket = UdpSocket::from_std(socket.into())?;
            tokio::spawn(datagrams(socket, name));
        }
        Protocol::Tcp | Protocol::Sctp => {
            let number = (protocol == Protocol::Sctp).then_some(socket2::Protocol::SCTP);
            let socket = bound(Type::STREAM, number, address).with_context(what)?;
            socket.listen(4096).with_context(what)?;
            let listener = TcpListener::from_std(socket.into())?;
            tokio::spawn(connections(listener, name));
        }
    }
    Ok(())
}

fn bound(kind: Type, protocol: Option<socket2::Protocol>, address: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, protocol)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

async fn datagrams(socket: UdpSocket, name: String) {
    let mut buffer = vec![0; 65_535];
    loop {
        // An ICMP error for an earlier answer is reported here: the next datagram is none the worse for it.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        if let Some(message) = answer(&buffer[..length], &name, peer) {
            let _ = socket.send_to(&message, peer).await;
        }
    }
}

async fn connections(listener: TcpListener, name: String) {
    loop {
        if let Ok((stream, peer)) = listener.accept().await {
            tokio::spawn(connection(stream, peer, name.clone()));
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, name: String) -> std::io::Result<()> {
    let _ = stream.set_nodelay(true);
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    while stream.read_until(b'\n', &mut line).await? > 0 {
        if let Some(message) = answer(&line, &name, peer) {
            stream.write_all(&message).await?;
        }
        line.clear();
    }
    Ok(())
}
