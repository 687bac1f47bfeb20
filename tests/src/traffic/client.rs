//! One client's request, and all that can come of it.

use std::fmt;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::Result;
use socket2::{Domain, SockAddr, Socket, Type};

use super::{Answer, Protocol, request};
use crate::place::Place;
use crate::process::slowness;

/// What a client is to do.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Whom it asks.
    pub to: SocketAddr,
    /// By which protocol.
    pub protocol: Protocol,
    connected: bool,
    mapped: bool,
    from: Option<SocketAddr>,
    request: usize,
    answer: usize,
    patience: Duration,
    reset: bool,
}

impl Ask {
    /// A short request; an answer is waited for up to three seconds, on a real machine.
    pub fn new(protocol: Protocol, to: impl Into<SocketAddr>) -> Self {
        Self {
            to: to.into(),
            protocol,
            connected: true,
            mapped: false,
            from: None,
            request: 0,
            answer: 0,
            patience: Duration::from_secs(3) * slowness(),
            reset: false,
        }
    }

    /// Over TCP.
    pub fn tcp(to: impl Into<SocketAddr>) -> Self {
        Self::new(Protocol::Tcp, to)
    }

    /// Over a connected UDP socket.
    pub fn udp(to: impl Into<SocketAddr>) -> Self {
        Self::new(Protocol::Udp, to)
    }

    /// By `sendto` and `recvfrom` instead of `connect`.
    #[must_use]
    pub fn unconnected(mut self) -> Self {
        self.connected = false;
        self
    }

    /// From an IPv6 socket to `::ffff:a.b.c.d`, as Go and Java do.
    #[must_use]
    pub fn mapped(mut self) -> Self {
        self.mapped = true;
        self
    }

    /// From an address and port of the client's (port 0: any).
    #[must_use]
    pub fn from(mut self, address: impl Into<SocketAddr>) -> Self {
        self.from = Some(address.into());
        self
    }

    /// With a request and an answer of these sizes, in bytes.
    #[must_use]
    pub fn sizes(mut self, request: usize, answer: usize) -> Self {
        (self.request, self.answer) = (request, answer);
        self
    }

    /// With another limit for the connection and for each answer.
    #[must_use]
    pub fn patience(mut self, limit: Duration) -> Self {
        self.patience = limit * slowness();
        self
    }

    /// On a connection that ends with a reset (TCP).
    #[must_use]
    pub fn reset(mut self) -> Self {
        self.reset = true;
        self
    }

    fn disguised(&self, address: SocketAddr) -> SocketAddr {
        match address.ip() {
            IpAddr::V4(ip) if self.mapped => (ip.to_ipv6_mapped(), address.port()).into(),
            _ => address,
        }
    }
}

impl Place {
    /// Asks once, on a socket of its own.
    pub fn ask(&self, ask: &Ask) -> Result<Outcome> {
        Ok(match Session::open(self, ask)? {
            Ok(mut session) => session.exchange(),
            Err(outcome) => outcome,
        })
    }
}

/// What came of a request, as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server's answer.
    Answer(Answer),
    /// `ECONNREFUSED`: a reset instead of a connection, or ICMP port unreachable.
    Refused,
    /// `ECONNRESET` or `EPIPE` on a connection that stood.
    Reset,
    /// The other side closed the connection.
    Closed,
    /// Nothing within the client's patience.
    Silence,
    /// `EHOSTUNREACH`, `ENETUNREACH` or `EACCES`.
    Unreachable,
    /// A datagram from an address that was not asked, or `getpeername` of one.
    Stranger(SocketAddr),
    /// Another error, or an answer that is none.
    Other(String),
}

impl Outcome {
    /// The answer, if it is one.
    pub fn answer(&self) -> Option<&Answer> {
        match self {
            Self::Answer(answer) => Some(answer),
            _ => None,
        }
    }

    /// The name of the server that answered.
    pub fn server(&self) -> Option<&str> {
        self.answer().map(|answer| answer.server.as_str())
    }

    /// What an error means to a client.
    pub fn from_error(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => Self::Reset,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::Silence,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::PermissionDenied => {
                Self::Unreachable
            }
            _ => Self::Other(error.to_string()),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(answer) => write!(f, "answered by {} (saw {})", answer.server, answer.peer),
            Self::Refused => f.write_str("refused"),
            Self::Reset => f.write_str("reset"),
            Self::Closed => f.write_str("closed"),
            Self::Silence => f.write_str("no answer"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Stranger(from) => write!(f, "a datagram from {from}"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

/// A socket in use: several exchanges, one after the other.
#[derive(Debug)]
pub struct Session {
    socket: Socket,
    ask: Ask,
    seq: u64,
}

/// Binds to a port that no request had before. The kernel's choice, at random, may fall on the port of an earlier one,
/// which a server or a node still knows by another name.
fn bind_afresh(socket: &Socket, ask: &Ask, ip: IpAddr) -> io::Result<()> {
    /// Linux's own range of ports.
    const PORTS: u16 = 28_232;
    const FIRST: u16 = 32_768;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let port = FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS;
        match socket.bind(&ask.disguised(SocketAddr::new(ip, port)).into()) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            result => return result,
        }
    }
}

impl Session {
    /// Opens the socket in a place and connects it, unless the request is an unconnected one. `Ok(Err(outcome))`: the
    /// connection did not come about.
    pub fn open(place: &Place, ask: &Ask) -> Result<Result<Self, Outcome>> {
        let socket = place.run(|| Ok(Self::socket(ask)?))?;
        let session = Self { socket, ask: ask.clone(), seq: 0 };
        if !ask.connected {
            return Ok(Ok(session));
        }
        let target = SockAddr::from(ask.disguised(ask.to));
        if let Err(error) = session.socket.connect_timeout(&target, ask.patience) {
            return Ok(Err(Outcome::from_error(&error)));
        }
        // Whatever translates in between, a program must see the address that it asked for.
        Ok(match session.peer() {
            Ok(peer) if peer != ask.disguised(ask.to) => Err(Outcome::Stranger(peer)),
            _ => Ok(session),
        })
    }

    fn socket(ask: &Ask) -> io::Result<Socket> {
        let domain = if ask.mapped { Domain::IPV6 } else { Domain::for_address(ask.to) };
        let socket = match ask.protocol {
            Protocol::Tcp => Socket::new(domain, Type::STREAM, None)?,
            Protocol::Udp => Socket::new(domain, Type::DGRAM, None)?,
            Protocol::Sctp => Socket::new(domain, Type::STREAM, Some(socket2::Protocol::SCTP))?,
        };
        if domain == Domain::IPV6 {
            socket.set_only_v6(!ask.mapped)?;
        }
        match ask.from {
            Some(from) if from.port() != 0 || ask.protocol != Protocol::Udp => {
                socket.set_reuse_address(true)?;
                socket.bind(&ask.disguised(from).into())?;
            }
            from if ask.protocol == Protocol::Udp => {
                let any = if ask.to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
                bind_afresh(&socket, ask, from.map_or(any, |from| from.ip()))?;
            }
            _ => {}
        }
        if ask.reset {
            socket.set_linger(Some(Duration::ZERO))?;
        }
        socket.set_read_timeout(Some(ask.patience))?;
        Ok(socket)
    }

    /// What `getpeername` says.
    pub fn peer(&self) -> io::Result<SocketAddr> {
        self.socket.peer_addr()?.as_socket().ok_or_else(|| ErrorKind::Unsupported.into())
    }

    /// What `getsockname` says.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()?.as_socket().ok_or_else(|| ErrorKind::Unsupported.into())
    }

    /// Says that no more requests come, and waits until the server has ended the connection as well.
    pub fn finish(mut self) -> io::Result<()> {
        self.socket.shutdown(Shutdown::Write)?;
        while self.socket.read(&mut [0; 1024])? > 0 {}
        Ok(())
    }

    /// Sends a request and waits for its answer.
    pub fn exchange(&mut self) -> Outcome {
        self.seq += 1;
        match self.attempt() {
            Ok(outcome) => outcome,
            Err(error) => Outcome::from_error(&error),
        }
    }

    fn attempt(&mut self) -> io::Result<Outcome> {
        let message = request(self.seq, self.ask.request, self.ask.answer);
        if self.ask.connected {
            self.socket.write_all(&message)?;
        } else {
            self.socket.send_to(&message, &self.ask.disguised(self.ask.to).into())?;
        }
        let message = match self.ask.protocol {
            Protocol::Udp => match self.datagram()? {
                Ok(message) => message,
                Err(stranger) => return Ok(Outcome::Stranger(stranger)),
            },
            Protocol::Tcp | Protocol::Sctp => self.line()?,
        };
        if message.is_empty() {
            return Ok(Outcome::Closed);
        }
        Ok(match Answer::parse(&message) {
            Some(answer) if answer.seq == self.seq => Outcome::Answer(answer),
            _ => Outcome::Other(format!("not the answer to {}: {}", self.seq, String::from_utf8_lossy(&message))),
        })
    }

    /// Receives a datagram; one from somebody who was not asked is told apart.
    fn datagram(&self) -> io::Result<Result<Vec<u8>, SocketAddr>> {
        let socket = UdpSocket::from(self.socket.try_clone()?);
        let mut buffer = vec![0; 65_535];
        let (length, from) = socket.recv_from(&mut buffer)?;
        buffer.truncate(length);
        Ok(if from == self.ask.disguised(self.ask.to) { Ok(buffer) } else { Err(from) })
    }

    fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut message = Vec::new();
        let mut buffer = [0; 16_384];
        loop {
            let length = self.socket.read(&mut buffer)?;
            message.extend_from_slice(&buffer[..length]);
            if length == 0 || message.ends_with(b"\n") {
                return Ok(message);
            }
        }
    }
}

/// Whether something accepts TCP connections at an address, as seen from a place.
pub fn reaches(place: &Place, address: SocketAddr) -> Result<bool> {
    let ask = Ask::tcp(address).patience(Duration::from_secs(1));
    Ok(Session::open(place, &ask)?.is_ok())
}
