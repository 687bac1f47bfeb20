//! Netlink messages of netfilter and of generic netlink, written.

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};

/// An attribute that holds others.
const NESTED: u16 = 0x8000;
/// Offset of the flags in `struct nlmsghdr`.
const FLAGS: usize = 6;

/// How a message is to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With all there are.
    Dump,
    /// With yes or no, and what was asked for.
    Acknowledge,
    /// With an error, if there is one.
    Quiet,
}

/// A message that is being written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message(Vec<u8>);

impl Message {
    /// Begins a message with what follows its header.
    pub fn new(kind: u16, answer: Answer, head: &[u8]) -> Self {
        let flags = NLM_F_REQUEST
            | match answer {
                Answer::Dump => NLM_F_DUMP,
                Answer::Acknowledge => NLM_F_ACK,
                Answer::Quiet => 0,
            };
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        // The sequence number is not looked at: answers come in order. The kernel fills in whose it is.
        bytes.extend(1_u32.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(head);
        Self(bytes)
    }

    /// A message to a subsystem of netfilter (`struct nfgenmsg`), about a family (`NFPROTO_*`).
    pub fn netfilter(subsystem: u16, kind: u16, answer: Answer, family: u8) -> Self {
        Self::new(subsystem << 8 | kind, answer, &[family, 0, 0, 0])
    }

    /// Adds an attribute.
    #[must_use]
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        push(&mut self.0, kind, value);
        self
    }

    /// Adds a text that ends with a zero.
    #[must_use]
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.with(kind, &bytes)
    }

    /// Adds an attribute made of attributes.
    #[must_use]
    pub fn nested(self, kind: u16, inside: &[(u16, &[u8])]) -> Self {
        let mut bytes = Vec::new();
        for (kind, value) in inside {
            push(&mut bytes, *kind, value);
        }
        self.with(kind | NESTED, &bytes)
    }

    /// Asks for an acknowledgement after all.
    pub fn acknowledge(&mut self) {
        if let Some(flags) = self.0.get_mut(FLAGS..).and_then(<[u8]>::first_chunk_mut::<2>) {
            *flags = (u16::from_ne_bytes(*flags) | NLM_F_ACK).to_ne_bytes();
        }
    }

    /// The message with its length.
    pub fn finish(mut self) -> Vec<u8> {
        let length = (self.0.len() as u32).to_ne_bytes();
        self.0.splice(..4, length);
        self.0
    }
}

fn push(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.extend(((value.len() + 4) as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A text without the zero at its end.
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

#[cfg(test)]
mod tests {
    use culvert_dataplane::netlink::{find, frames};

    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let mut message = Message::netfilter(10, 8, Answer::Quiet, 2)
            .text(1, "nat")
            .nested(2, &[(3, &7_u64.to_be_bytes()), (4, b"x")]);
        message.acknowledge();
        let bytes = message.finish();
        let frame = frames(&bytes).next().unwrap();
        assert_eq!((frame.kind, frame.flags), (10 << 8 | 8, NLM_F_REQUEST | NLM_F_ACK));
        let attributes = &frame.payload[4..];
        assert_eq!(text(find(attributes, 1).unwrap()), "nat");
        let inside = find(attributes, 2).unwrap();
        assert_eq!((find(inside, 3), find(inside, 4)), (Some(&7_u64.to_be_bytes()[..]), Some(&b"x"[..])));
        assert_eq!(frames(&bytes).count(), 1);
    }
}
