//! Netlink: requests and dumps, answered at once by the kernel, and a stream of its notifications.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{AsyncSocket, AsyncSocketExt, Socket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};

/// Larger than any datagram that the kernel makes of a dump (at most 32 KiB).
const BUFFER: usize = 64 * 1024;
/// Bytes of notifications that may wait.
const ROOM: usize = 1 << 20;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The dump's objects changed while it ran.
const NLM_F_DUMP_INTR: u16 = 0x10;
/// How often a dump is begun again before its last answer is taken as it is.
const DUMPS: u32 = 5;

/// The kind of an attribute without its flag bits (nested, in network order).
const KIND: u16 = 0x3fff;

/// The attributes of a message, kind and value; ends at the first that does not fit.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let (kind, _) = rest.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes(*kind) & KIND, value))
    })
}

/// The value of the first attribute of a kind.
pub fn find(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// One message of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// What follows the header.
    pub payload: &'a [u8],
    /// Header and payload.
    pub whole: &'a [u8],
}

/// The messages of a datagram; ends at the first that does not fit.
pub fn frames(mut datagram: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    std::iter::from_fn(move || {
        let (length, rest) = datagram.split_first_chunk::<4>()?;
        let length = u32::from_ne_bytes(*length) as usize;
        let (kind, rest) = rest.split_first_chunk::<2>()?;
        let (flags, _) = rest.split_first_chunk::<2>()?;
        let whole = datagram.get(..length)?;
        let payload = whole.get(HEADER..)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Frame { kind: u16::from_ne_bytes(*kind), flags: u16::from_ne_bytes(*flags), payload, whole })
    })
}

/// A netlink socket for questions.
#[derive(Debug)]
pub struct Netlink(Socket);

impl Netlink {
    /// Opens a socket of a protocol such as [`NETLINK_ROUTE`].
    pub fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Opens a socket for links, addresses, routes and filters.
    pub fn route() -> io::Result<Self> {
        Self::open(NETLINK_ROUTE)
    }

    /// Sends one route message with further flags and waits for the kernel's yes or no; returns what it said before.
    pub fn request(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.0.send(&encode(message, NLM_F_REQUEST | NLM_F_ACK | flags), 0)?;
        let (mut answer, mut messages) = (Ok(()), Vec::new());
        self.receive(|frame| {
            let last = frame.kind == NLMSG_ERROR;
            if last {
                answer = error(frame.payload);
            } else {
                messages.extend(decode(frame));
            }
            !last
        })?;
        answer.map(|()| messages)
    }

    /// Sends one message (with `NLM_F_ACK`), or several that end with such a one, and hands over what the kernel says before
    /// it acknowledges the last; the first error ends it.
    pub fn request_raw(&self, request: &[u8], mut message: impl FnMut(Frame<'_>)) -> io::Result<()> {
        // A datagram must fit into the send buffer. Without the right to enlarge it the kernel will say so.
        let _ = setsockopt(&self.0, sockopt::SndBufForce, &(request.len() + BUFFER));
        self.0.send(request, 0)?;
        let mut answer = Ok(());
        self.receive(|frame| {
            let last = frame.kind == NLMSG_ERROR;
            if last {
                answer = error(frame.payload);
            } else {
                message(frame);
            }
            !last
        })?;
        answer
    }

    /// Dumps what a route message asks for. Messages that cannot be decoded are left out.
    pub fn dump(&self, message: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let request = encode(message.clone(), NLM_F_REQUEST | NLM_F_DUMP);
        let mut messages = Vec::new();
        for _ in 0..DUMPS {
            messages.clear();
            if self.dump_raw(&request, |frame| messages.extend(decode(frame)))? {
                break;
            }
        }
        Ok(messages)
    }

    /// Sends a dump request and hands over each message of the answer; `false` if something changed meanwhile.
    pub fn dump_raw(&self, request: &[u8], mut message: impl FnMut(Frame<'_>)) -> io::Result<bool> {
        self.0.send(request, 0)?;
        let (mut answer, mut consistent) = (Ok(()), true);
        self.receive(|frame| {
            consistent &= frame.flags & NLM_F_DUMP_INTR == 0;
            match frame.kind {
                NLMSG_ERROR | NLMSG_DONE => answer = error(frame.payload),
                _ => message(frame),
            }
            !matches!(frame.kind, NLMSG_ERROR | NLMSG_DONE)
        })?;
        answer.map(|()| consistent)
    }

    /// Receives datagrams until `more` says that a message was the last one.
    fn receive(&self, mut more: impl FnMut(Frame<'_>) -> bool) -> io::Result<()> {
        let mut datagram = Vec::with_capacity(BUFFER);
        loop {
            datagram.clear();
            match self.0.recv(&mut datagram, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            };
            if !frames(&datagram).all(&mut more) {
                return Ok(());
            }
        }
    }
}

/// The kernel's notifications.
pub struct Monitor(TokioSocket);

/// What a [`Monitor`] saw.
#[derive(Debug)]
pub enum Change {
    /// These messages.
    Messages(Vec<RouteNetlinkMessage>),
    /// Messages were lost: everything must be read again.
    Overrun,
}

impl Monitor {
    /// Joins groups (`RTNLGRP_*`). Must be called within a tokio runtime.
    pub fn join(groups: &[u32]) -> io::Result<Self> {
        let mut monitor = TokioSocket::new(NETLINK_ROUTE)?;
        let socket = monitor.socket_mut();
        // Room for a burst of a few thousand messages; more than that is an overrun. Without NET_ADMIN over the machine's
        // first user namespace, net.core.rmem_max is the most that there is.
        if setsockopt(&*socket, sockopt::RcvBufForce, &ROOM).is_err() {
            socket.set_rx_buf_sz(ROOM as u32)?;
        }
        socket.bind_auto()?;
        for group in groups {
            socket.add_membership(*group)?;
        }
        Ok(Self(monitor))
    }

    /// Waits for the next notifications. May be dropped at any time without loss.
    pub async fn next(&self) -> io::Result<Change> {
        let mut datagram = Vec::with_capacity(BUFFER);
        match self.0.recv(&mut datagram).await {
            Ok(()) => Ok(Change::Messages(frames(&datagram).filter_map(decode).collect())),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(Change::Overrun),
            Err(error) => Err(error),
        }
    }
}

fn encode(message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = 1;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn decode(frame: Frame<'_>) -> Option<RouteNetlinkMessage> {
    match NetlinkMessage::deserialize(frame.whole) {
        Ok(message) => match message.payload {
            NetlinkPayload::InnerMessage(message) => Some(message),
            _ => None,
        },
        Err(error) => {
            tracing::debug!(kind = frame.kind, %error, "a netlink message cannot be decoded");
            None
        }
    }
}

/// The result in an error or done message: zero, or a negated errno.
fn error(payload: &[u8]) -> io::Result<()> {
    let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, length: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_datagram_is_cut_at_its_headers() {
        let mut datagram = message(16, 19, b"abc");
        datagram.extend(message(17, 20, b"defg"));
        let seen: Vec<_> = frames(&datagram).map(|frame| (frame.kind, frame.payload)).collect();
        assert_eq!(seen, [(16, &b"abc"[..]), (17, &b"defg"[..])]);
    }

    #[test]
    fn lengths_that_lie_end_the_datagram() {
        for length in [0, 15, 21, u32::MAX] {
            assert_eq!(frames(&message(16, length, b"abcd")).count(), 0, "{length}");
        }
        assert_eq!(frames(&[1, 2, 3]).count(), 0);
    }

    #[test]
    fn an_error_message_carries_an_errno() {
        assert_eq!(error(&(-libc::EPERM).to_ne_bytes()).unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert!(error(&0_i32.to_ne_bytes()).is_ok());
        assert!(error(&[]).is_ok());
    }
}
