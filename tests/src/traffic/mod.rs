//! Traffic: echo servers, clients and load, over real sockets.
//!
//! A request names its number and the size of the answer it wants; the answer names the server, the peer address that
//! the server saw, and how much arrived. Over TCP and SCTP a message is a line, over UDP a datagram.

use std::net::SocketAddr;

pub mod client;
pub mod load;
pub mod server;

pub use client::{Ask, Outcome, Session};
pub use culvert_api::plan::Protocol;
pub use load::{Load, Report};
pub use server::Server;

/// A request message: number `seq`, padded to `size` bytes, asks for an answer of `answer` bytes (0: as short as it can be).
fn request(seq: u64, size: usize, answer: usize) -> Vec<u8> {
    padded(format!("Q {seq} {answer} "), size)
}

/// A server's answer to a request, `None` if it is not one.
fn answer(request: &[u8], server: &str, peer: SocketAddr) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(request).ok()?;
    let mut words = text.split(' ');
    let (Some("Q"), Some(seq), Some(size)) = (words.next(), words.next(), words.next()) else { return None };
    Some(padded(format!("A {seq} {server} {peer} {} ", request.len()), size.parse().ok()?))
}

fn padded(text: String, size: usize) -> Vec<u8> {
    let mut message = text.into_bytes();
    message.resize(size.saturating_sub(1).max(message.len()), b'x');
    message.push(b'\n');
    message
}

/// What a server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The number of the request.
    pub seq: u64,
    /// The server's name: that of its place.
    pub server: String,
    /// The client as the server saw it.
    pub peer: SocketAddr,
    /// Bytes of the request that arrived.
    pub received: usize,
    /// Bytes of the answer.
    pub size: usize,
}

impl Answer {
    /// Reads an answer, `None` if the bytes are not one.
    fn parse(message: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(message).ok()?;
        let mut words = text.split(' ');
        let (Some("A"), Some(seq), Some(server), Some(peer), Some(received)) =
            (words.next(), words.next(), words.next(), words.next(), words.next())
        else {
            return None;
        };
        Some(Self {
            seq: seq.parse().ok()?,
            server: server.to_owned(),
            peer: peer.parse().ok()?,
            received: received.parse().ok()?,
            size: message.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_the_size_that_was_asked_for() {
        let peer = "192.0.2.10:4000".parse().unwrap();
        for (size, wanted) in [(0, 0), (10, 3000), (3000, 10), (1400, 1400)] {
            let request = request(7, size, wanted);
            assert!(request.len() >= size.max(1));
            let message = answer(&request, "a", peer).unwrap();
            let answer = Answer::parse(&message).unwrap();
            assert_eq!((answer.seq, answer.server.as_str(), answer.peer), (7, "a", peer));
            assert_eq!(answer.received, request.len());
            assert_eq!(answer.size, message.len());
            assert!(wanted < 40 || answer.size == wanted, "{wanted}: {}", answer.size);
        }
        assert_eq!(answer(b"hello\n", "a", peer), None);
    }
}
