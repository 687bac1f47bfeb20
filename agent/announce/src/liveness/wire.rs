//! The messages as bytes, and their key.
//!
//! ```text
//!  0      2      3       4       6      14   22    30     38     46        54
//!  ┌──────┬──────┬───────┬───────┬──────┬────┬─────┬──────┬──────┬─────────┬───────────┬─────┐
//!  │ "CV" │ kind │ flags │ count │ from │ to │ seq │ time │ boot │ version │ addresses │ tag │
//!  └──────┴──────┴───────┴───────┴──────┴────┴─────┴──────┴──────┴─────────┴───────────┴─────┘
//! ```
//!
//! Numbers are in network order. `time` is in nanoseconds. There are `count` addresses of 16 bytes; the tag has 16. An IPv4 address is written as the IPv6 address that maps it.
//! Bytes that a kind does not use are zero.
//!
//! | kind | | uses |
//! |---|---|---|
//! | 1 | beat | flag 1: grants `version`; `time` and `boot` of the receiver's stamp |
//! | 2 | echo | flag 1: mute; `time` and `boot` of the sender's stamp |
//! | 3 | claims | `version`, addresses, and behind them what the node says |
//! | 4 | refusal | `version`, addresses |
//! | 5 | ask | |
//!
//! What a node says: a byte, 1 = drained; one bit for each of the addresses, the highest of a byte first, 1 = announced, filled up to whole
//! bytes; how many addresses its kernel does not hold (2 bytes), and these; how many links there are (1 byte), and for each the
//! length of its name (1), the name, a byte, 1 = up, the MAC (6), how many prefixes there are (1), and for each its address (16) and length (1). A
//! prefix of IPv4 is written as one of the IPv6 addresses that map it.
//!
//! The tag is the first half of an HMAC-SHA-256 (RFC 2104, 5: not less than half) over all that stands before it. A beat
//! or an echo has 54 bytes before its tag: with their padding one block of SHA-256. So the kernel program, which gets the
//! states after the key's blocks ([`Key::states`]), has two blocks to compute.
//!
//! A tag proves that a node of the cluster wrote a message, not which one: the key is the cluster's. Replays are refused by
//! `seq`, which [`Kernel`](super::Kernel), [`Agent`](super::Agent) and [`Inbox`] want to grow.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac as _};
use sha2::{Digest, Sha256, block_api::compress256};

use super::{Beat, Echo, Letter, Link, NodeId, Said, Stamp};
use crate::probe::packet::Mac;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Bytes before the addresses.
pub const HEADER: usize = 54;
/// Bytes of the tag.
pub const TAG: usize = 16;
/// The most addresses of a letter; with them it fits into a datagram.
pub const MAX_ADDRESSES: usize = 3500;
/// The most links and prefixes that a letter tells of; others are left out.
const MAX_LINKS: usize = 64;
const MAX_PREFIXES: usize = 8;

/// Where SHA-256 begins (FIPS 180-4 5.3.3).
const SHA256: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

const MAGIC: [u8; 2] = *b"CV";
const FLAG: u8 = 1;

/// The number of a node, from its name.
pub fn node_id(name: &str) -> NodeId {
    let digest = Sha256::digest(name.as_bytes());
    digest.iter().take(8).fold(0, |id, byte| id << 8 | u64::from(*byte))
}

/// What messages are signed with.
#[derive(Clone)]
pub struct Key {
    hmac: Hmac<Sha256>,
    states: [[u32; 8]; 2],
}

/// A key says nothing of itself in logs.
impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

/// A key that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Too short to be a secret.
    #[error("the Secret's key has {0} bytes, and 16 are the least")]
    Short(usize),
    /// HMAC refused it.
    #[error("the Secret's key is of no use for HMAC")]
    Unusable,
}

impl Key {
    /// The key that a Secret's bytes give. What else uses the same Secret gets another key of it.
    pub fn new(secret: &[u8]) -> Result<Self, KeyError> {
        if secret.len() < 16 {
            return Err(KeyError::Short(secret.len()));
        }
        let mut derive = Hmac::<Sha256>::new_from_slice(secret).map_err(|_| KeyError::Unusable)?;
        derive.update(b"culvert layer 2, 1");
        let key: [u8; 32] = derive.finalize().into_bytes().into();
        let hmac = Hmac::<Sha256>::new_from_slice(&key).map_err(|_| KeyError::Unusable)?;
        Ok(Self { hmac, states: [state(&key, 0x36), state(&key, 0x5c)] })
    }

    /// The states of SHA-256 behind the inner and the outer block of the key (RFC 2104, 2 and 4), for the kernel program.
    pub fn states(&self) -> [[u32; 8]; 2] {
        self.states
    }

    fn sign(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        let mut mac = self.hmac.clone();
        mac.update(&bytes);
        bytes.extend(mac.finalize().into_bytes().iter().take(TAG));
        bytes
    }

    /// What stands before a right tag. Takes the same time whichever byte of the tag is wrong.
    fn open<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8], Refused> {
        let (body, tag) = bytes.split_at_checked(bytes.len().saturating_sub(TAG)).ok_or(Refused::Length)?;
        if body.len() < HEADER {
            return Err(Refused::Length);
        }
        let mut mac = self.hmac.clone();
        mac.update(body);
        mac.verify_truncated_left(tag).map_err(|_| Refused::Key)?;
        Ok(body)
    }
}

/// SHA-256 of one block: a key of 32 bytes, padded, every byte with this one.
fn state(key: &[u8; 32], with: u8) -> [u32; 8] {
    let mut block = [with; 64];
    for (byte, key) in block.iter_mut().zip(key) {
        *byte ^= key;
    }
    let mut state = SHA256;
    compress256(&mut state, &[block]);
    state
}

/// A message of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// From an agent to a kernel.
    Beat(Beat),
    /// From a kernel to an agent.
    Echo(Echo),
    /// From agent to agent.
    Letter {
        /// Who writes.
        from: NodeId,
        /// To whom.
        to: NodeId,
        /// Grows with every message of the sender.
        seq: u64,
        /// What.
        letter: Letter,
    },
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Too short, or not as long as it says.
    #[error("it has a wrong length")]
    Length,
    /// The tag is wrong.
    #[error("it was made with another key, or changed on its way")]
    Key,
    /// It begins otherwise, or is of a kind that is not known: of another program or version.
    #[error("it is no message that is known")]
    Unknown,
    /// Too many addresses to be written.
    #[error("it would have {0} addresses, and 3500 are the most")]
    TooMany(usize),
}

#[derive(Default)]
struct Fields<'a> {
    kind: u8,
    flag: bool,
    from: NodeId,
    to: NodeId,
    seq: u64,
    stamp: Stamp,
    version: u64,
    addresses: Option<&'a BTreeSet<IpAddr>>,
    said: Option<&'a Said>,
}

impl Message {
    /// Its bytes, with the tag.
    ///
    /// # Errors
    /// [`Refused::TooMany`] addresses.
    pub fn encode(&self, key: &Key) -> Result<Vec<u8>, Refused> {
        let fields = match self {
            Self::Beat(Beat { from, to, seq, stamp, grant }) => {
                let version = grant.unwrap_or_default();
                let (from, to, seq, stamp) = (*from, *to, *seq, *stamp);
                Fields { kind: 1, flag: grant.is_some(), from, to, seq, stamp, version, ..Fields::default() }
            }
            Self::Echo(Echo { from, to, seq, stamp, mute }) => {
                let (from, to, seq, stamp) = (*from, *to, *seq, *stamp);
                Fields { kind: 2, flag: *mute, from, to, seq, stamp, ..Fields::default() }
            }
            Self::Letter { from, to, seq, letter } => {
                let (kind, version, addresses, said) = match letter {
                    Letter::Claims { version, addresses, said } => (3, *version, Some(addresses), Some(said)),
                    Letter::Refusal { version, addresses } => (4, *version, Some(addresses), None),
                    Letter::Ask => (5, 0, None, None),
                };
                let (from, to, seq) = (*from, *to, *seq);
                Fields { kind, from, to, seq, version, addresses, said, ..Fields::default() }
            }
        };
        fields.encode(key)
    }

    /// Reads bytes.
    pub fn decode(bytes: &[u8], key: &Key) -> Result<Self, Refused> {
        let mut rest = key.open(bytes)?;
        let (magic, kind, flags) = (take::<2>(&mut rest)?, take::<1>(&mut rest)?, take::<1>(&mut rest)?);
        let count = u16::from_be_bytes(take(&mut rest)?);
        let [from, to, seq, time, boot, version] = numbers(&mut rest)?;
        if magic != MAGIC || flags[0] & !FLAG != 0 {
            return Err(Refused::Unknown);
        }
        let flag = flags[0] & FLAG != 0;
        let stamp = Stamp { boot, time: Duration::from_nanos(time) };
        let addresses = addresses(&mut rest, count)?;
        let said = if kind[0] == 3 { said(&mut rest, &addresses)? } else { Said::default() };
        if !rest.is_empty() {
            return Err(Refused::Length);
        }
        let letter = match kind[0] {
            1 => return Ok(Self::Beat(Beat { from, to, seq, stamp, grant: flag.then_some(version) })),
            2 => return Ok(Self::Echo(Echo { from, to, seq, stamp, mute: flag })),
            3 => Letter::Claims { version, addresses, said },
            4 => Letter::Refusal { version, addresses },
            5 => Letter::Ask,
            _ => return Err(Refused::Unknown),
        };
        Ok(Self::Letter { from, to, seq, letter })
    }
}

impl Fields<'_> {
    fn encode(&self, key: &Key) -> Result<Vec<u8>, Refused> {
        let addresses = self.addresses.map_or(0, BTreeSet::len);
        let all = addresses + self.said.map_or(0, |said| said.unable.len());
        if all > MAX_ADDRESSES {
            return Err(Refused::TooMany(all));
        }
        let mut bytes = Vec::with_capacity(HEADER + 16 * addresses + TAG);
        bytes.extend(MAGIC);
        bytes.extend([self.kind, if self.flag { FLAG } else { 0 }]);
        bytes.extend((addresses as u16).to_be_bytes());
        let time = u64::try_from(self.stamp.time.as_nanos()).unwrap_or(u64::MAX);
        for number in [self.from, self.to, self.seq, time, self.stamp.boot, self.version] {
            bytes.extend(number.to_be_bytes());
        }
        bytes.extend(self.addresses.into_iter().flatten().flat_map(octets));
        if let (Some(said), Some(addresses)) = (self.said, self.addresses) {
            write_said(&mut bytes, said, addresses);
        }
        Ok(key.sign(bytes))
    }
}

fn octets(address: &IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Bits of the length of an IPv6 prefix that maps those of IPv4.
const MAPPED: u8 = 96;

fn write_said(bytes: &mut Vec<u8>, said: &Said, addresses: &BTreeSet<IpAddr>) {
    bytes.push(u8::from(said.drained));
    let bits: Vec<bool> = addresses.iter().map(|address| said.announced.contains(address)).collect();
    bytes.extend(
        bits.chunks(8)
            .map(|bits| bits.iter().enumerate().fold(0, |byte, (i, bit)| byte | if *bit { 0x80 >> i } else { 0 })),
    );
    bytes.extend((said.unable.len() as u16).to_be_bytes());
    bytes.extend(said.unable.iter().flat_map(octets));
    bytes.push(said.links.len().min(MAX_LINKS) as u8);
    for (name, link) in said.links.iter().take(MAX_LINKS) {
        // The kernel's names have 15 bytes at most.
        let name: Vec<u8> = name.bytes().take(u8::MAX.into()).collect();
        bytes.push(name.len() as u8);
        bytes.extend(name);
        bytes.push(u8::from(link.up));
        bytes.extend(link.mac.0);
        bytes.push(link.prefixes.len().min(MAX_PREFIXES) as u8);
        for prefix in link.prefixes.iter().take(MAX_PREFIXES) {
            bytes.extend(octets(&prefix.addr()));
            bytes.push(if prefix.addr().is_ipv4() { MAPPED } else { 0 } + prefix.prefix_len());
        }
    }
}

fn addresses(rest: &mut &[u8], count: u16) -> Result<BTreeSet<IpAddr>, Refused> {
    (0..count).map(|_| Ok(IpAddr::from(Ipv6Addr::from(take::<16>(rest)?)).to_canonical())).collect()
}

fn said(rest: &mut &[u8], claims: &BTreeSet<IpAddr>) -> Result<Said, Refused> {
    let [drained] = take(rest)?;
    let (bits, left) = rest.split_at_checked(claims.len().div_ceil(8)).ok_or(Refused::Length)?;
    *rest = left;
    let announced = |i: usize| bits.get(i / 8).is_some_and(|byte| byte & 0x80 >> (i % 8) != 0);
    let announced = claims.iter().enumerate().filter(|(i, _)| announced(*i)).map(|(_, address)| *address).collect();
    let count = u16::from_be_bytes(take(rest)?);
    let unable = addresses(rest, count)?;
    let [count] = take(rest)?;
    let mut links = BTreeMap::new();
    for _ in 0..count {
        let [length] = take(rest)?;
        let (name, left) = rest.split_at_checked(length.into()).ok_or(Refused::Length)?;
        *rest = left;
        let name = std::str::from_utf8(name).map_err(|_| Refused::Unknown)?.to_owned();
        let ([up], mac, [count]) = (take(rest)?, Mac(take(rest)?), take(rest)?);
        let prefixes = (0..count).map(|_| prefix(rest)).collect::<Result<_, _>>()?;
        links.insert(name, Link { up: up & 1 != 0, mac, prefixes });
    }
    Ok(Said { links, unable, announced, drained: drained & 1 != 0 })
}

fn prefix(rest: &mut &[u8]) -> Result<IpNet, Refused> {
    let (address, [length]) = (Ipv6Addr::from(take::<16>(rest)?), take(rest)?);
    let prefix = match (address.to_ipv4_mapped(), length.checked_sub(MAPPED)) {
        (Some(v4), Some(length)) => Ipv4Net::new(v4, length).map(IpNet::from),
        _ => Ipv6Net::new(address, length).map(IpNet::from),
    };
    prefix.map_err(|_| Refused::Unknown)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Refused> {
    let (taken, left) = rest.split_first_chunk::<N>().ok_or(Refused::Length)?;
    *rest = left;
    Ok(*taken)
}

fn numbers<const N: usize>(rest: &mut &[u8]) -> Result<[u64; N], Refused> {
    let mut numbers = [0; N];
    for number in &mut numbers {
        *number = u64::from_be_bytes(take(rest)?);
    }
    Ok(numbers)
}

/// Refuses letters that came before.
#[derive(Clone, Debug, Default)]
pub struct Inbox(BTreeMap<NodeId, u64>);

impl Inbox {
    /// Whether a number is greater than all that the sender used before; it counts as used then.
    pub fn accept(&mut self, from: NodeId, seq: u64) -> bool {
        let last = self.0.get(&from).copied();
        let is_new = last.is_none_or(|last| last < seq);
        if is_new {
            self.0.insert(from, seq);
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    fn key(secret: &str) -> Key {
        Key::new(secret.as_bytes()).unwrap()
    }

    fn message() -> impl Strategy<Value = Message> {
        let address = prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)];
        let address = address.prop_map(|address| address.to_canonical());
        let numbers = any::<(u64, u64, u64, u64, u64, u64)>();
        (0..5, numbers, any::<bool>(), btree_set(address, 0..9)).prop_map(|(kind, numbers, flag, addresses)| {
            let (from, to, seq, time, boot, version) = numbers;
            let stamp = Stamp { boot, time: Duration::from_nanos(time) };
            let letter = match kind {
                0 => return Message::Beat(Beat { from, to, seq, stamp, grant: flag.then_some(version) }),
                1 => return Message::Echo(Echo { from, to, seq, stamp, mute: flag }),
                2 => {
                    let said = said(&addresses, seq, flag);
                    Letter::Claims { version, addresses, said }
                }
                3 => Letter::Refusal { version, addresses },
                _ => Letter::Ask,
            };
            Message::Letter { from, to, seq, letter }
        })
    }

    /// Something to say, with a bit of everything.
    fn said(addresses: &BTreeSet<IpAddr>, number: u64, drained: bool) -> Said {
        let some = |n: u64| addresses.iter().copied().filter(|_| number & n != 0).collect();
        let prefixes = ["198.51.100.0/24", "2001:db8::/64"].map(|prefix| prefix.parse().unwrap()).to_vec();
        let link = |n: u8| Link { up: number & 4 != 0, mac: Mac([n; 6]), prefixes: prefixes.clone() };
        let links = (0..(number % 3) as u8).map(|n| (format!("eth{n}"), link(n))).collect();
        Said { links, unable: some(1), announced: some(2), drained }
    }

    /// RFC 4231 test case 2 would be a test of the library; this pins the layout, which the kernel program shares.
    #[test]
    fn the_layout_of_a_beat() {
        let stamp = Stamp { boot: 5, time: Duration::from_nanos(4) };
        let beat = Message::Beat(Beat { from: 1, to: 2, seq: 3, stamp, grant: Some(6) });
        let bytes = beat.encode(&key("0123456789abcdef")).unwrap();
        assert_eq!(bytes.len(), HEADER + TAG);
        let mut want = b"CV\x01\x01\0\0".to_vec();
        for number in 1_u64..=6 {
            want.extend(number.to_be_bytes());
        }
        assert_eq!(bytes[..HEADER], want);
    }

    #[test]
    fn keys() {
        assert_eq!(Key::new(b"short").unwrap_err().to_string(), "the Secret's key has 5 bytes, and 16 are the least");
        let ask = Message::Letter { from: 1, to: 2, seq: 3, letter: Letter::Ask };
        let bytes = ask.encode(&key("0123456789abcdef")).unwrap();
        assert_eq!(Message::decode(&bytes, &key("0123456789abcdef")), Ok(ask));
        assert_eq!(Message::decode(&bytes, &key("0123456789abcdeg")), Err(Refused::Key));
        assert_eq!(format!("{:?}", key("0123456789abcdef")), "Key");
    }

    /// What the kernel program does with the states is HMAC.
    #[test]
    fn a_tag_of_two_blocks() {
        let key = key("0123456789abcdef");
        let body = [7; HEADER];
        let [mut inner, mut outer] = key.states();
        let block = |bytes: &[u8]| {
            let mut block = [0; 64];
            block[..bytes.len()].copy_from_slice(bytes);
            block[bytes.len()] = 0x80;
            block[62..].copy_from_slice(&(8 * (64 + bytes.len()) as u16).to_be_bytes());
            block
        };
        compress256(&mut inner, &[block(&body)]);
        compress256(&mut outer, &[block(inner.map(u32::to_be_bytes).as_flattened())]);
        let signed = key.sign(body.to_vec());
        assert_eq!(signed[HEADER..], outer.map(u32::to_be_bytes).as_flattened()[..TAG]);
    }

    #[test]
    fn a_letter_is_read_once() {
        let mut inbox = Inbox::default();
        let got = [(1, 5), (1, 5), (1, 4), (2, 4), (1, 6)].map(|(from, seq)| inbox.accept(from, seq));
        assert_eq!(got, [true, false, false, true, true]);
    }

    proptest! {
        #[test]
        fn there_and_back(message in message()) {
            let key = key("a secret of the cluster");
            let bytes = message.encode(&key).unwrap();
            prop_assert_eq!(Message::decode(&bytes, &key), Ok(message));
        }

        /// Whatever is changed, cut off or added, it is refused.
        #[test]
        fn changed(message in message(), at in any::<prop::sample::Index>(), bit in 0..8, tail in vec(any::<u8>(), 1..40)) {
            let key = key("a secret of the cluster");
            let bytes = message.encode(&key).unwrap();
            let mut other = bytes.clone();
            other[at.index(bytes.len())] ^= 1_u8 << bit;
            prop_assert_eq!(Message::decode(&other, &key), Err(Refused::Key));
            prop_assert!(Message::decode(&bytes[..at.index(bytes.len())], &key).is_err());
            prop_assert!(Message::decode(&[bytes, tail].concat(), &key).is_err());
        }

        /// Nothing panics, also with the right key over any bytes.
        #[test]
        fn any_bytes(bytes in vec(any::<u8>(), 0..200), count in 0_u16..12) {
            let key = key("a secret of the cluster");
            let _ = Message::decode(&bytes, &key);
            let mut body = bytes;
            if body.len() >= 6 {
                body[..2].copy_from_slice(&MAGIC);
                body[4..6].copy_from_slice(&count.to_be_bytes());
            }
            let _ = Message::decode(&key.sign(body), &key);
        }
    }
}
