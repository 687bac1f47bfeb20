//! The choice of a source: the address and port that a backend on another node is to answer to.
//!
//! Each port can be given once for each backend. Free ones come first, then that of a flow which is over; what lives keeps its
//! own. `docs/DATAPATH.md` says why, and in which order.

use culvert_abi::{FlowKey, Link, Reason, V4, flow_hash, role};

use crate::{
    clock,
    flow::{Holder, Row, Slot, holder, insert, key_of, migrating, share_source, vacate},
    maps::{self, config},
    migrate,
    outcome::Outcome,
    packet::Packet,
    steps::Steps,
    words,
};

/// Ports that are tried for a translated source, and after how many that of a closed flow is taken.
const TRIES: u32 = 64;
const ROUND: u32 = 16;
/// The way from one to the next, in a sequence of all numbers (a linear congruential generator; Press and others, Numerical
/// Recipes, 7.1): flows that meet at one port part at the next.
const FACTOR: u32 = 1_664_525;
const SUMMAND: u32 = 1_013_904_223;
/// How often another CPU may be faster.
const ATTEMPTS: u32 = 2;

/// Chooses the source of a flow, and writes it to its rows.
#[inline(never)]
pub fn choose<const W: usize>(packet: &mut Packet<W>, path: &Row<W>, ifindex: u32) -> Outcome {
    packet.service = path.flow().service;
    if migrating()
        && let Some((addr, port)) = migrate::source(packet.turned(role::PATH))
    {
        path.set_source(&addr, port);
        return Outcome::TRANSLATE;
    }
    let Some(source) = address_of_link::<W>(ifindex) else { return Outcome::drop(Reason::NoSourceAddress) };
    let tuple = &packet.tuple;
    let hash = flow_hash(&tuple.src, &tuple.dst, tuple.sport, tuple.dport, tuple.proto);
    let mut search = Search { path, source: &source, proto: tuple.proto, next: hash, best: Holder::ALIVE, port: 0 };
    // The client's own port first, if it is in the range.
    let mut found = search.find_at(u16::from_be(tuple.sport));
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        if !found && !search.find() {
            break;
        }
        if search.take() {
            return Outcome::TRANSLATE;
        }
        found = false;
        attempt += 1;
    }
    Outcome::drop(Reason::PortsExhausted)
}

/// The address that the kernel would use as source on a link.
#[inline(always)]
fn address_of_link<const W: usize>(ifindex: u32) -> Option<[u32; W]> {
    // SAFETY: the words are copied at once; the agent replaces whole rows.
    let link: &Link = unsafe { maps::LINKS.get(ifindex) }?;
    let words = if W == V4 { [link.v4, 0, 0, 0] } else { link.v6 };
    let addr = words::narrow(&words);
    (addr != [0; W]).then_some(addr)
}

/// A search for a port.
struct Search<'a, const W: usize> {
    /// The PATH row of the flow that is to have it.
    path: &'a Row<W>,
    /// The address that it is one of.
    source: &'a [u32; W],
    proto: u8,
    /// Where to look next, as a fraction of the range.
    next: u32,
    /// The best port that was found, network order, and who has it.
    port: u16,
    best: Holder,
}

impl<const W: usize> Search<'_, W> {
    /// Finds a port that may be taken, among the next ones.
    #[inline(always)]
    fn find(&mut self) -> bool {
        self.best = Holder::ALIVE;
        self.run(TRIES);
        self.best != Holder::ALIVE
    }

    /// Whether a port (host order) is of the range, and free.
    #[inline(always)]
    fn find_at(&mut self, port: u16) -> bool {
        if port < config::port_low() || port > config::port_high() {
            return false;
        }
        self.look_at(port);
        self.best >= Holder::GONE
    }

    /// Looks at a port (host order).
    #[inline(always)]
    fn look_at(&mut self, port: u16) {
        let port = port.to_be();
        let Some(key) = self.key(port) else { return };
        let holder = holder(key, clock::now());
        if holder > self.best {
            (self.best, self.port) = (holder, port);
        }
    }

    /// The key of the RETURN row that the flow has with a port (network order).
    #[inline(always)]
    fn key(&self, port: u16) -> Option<&'static mut FlowKey<W>> {
        let key = key_of(self.path.flow(), self.proto, role::RETURN, Slot::Writer)?;
        words::copy(&mut key.dst, self.source);
        key.dport = port;
        Some(key)
    }

    /// Takes the best port, from whom it was seen with. It fails if another CPU was faster.
    #[inline(never)]
    fn take(&self) -> bool {
        let Some(key) = self.key(self.port) else { return false };
        if self.best != Holder::NOBODY && !vacate(key, clock::now()) {
            return false;
        }
        self.path.set_source(self.source, self.port);
        if !insert(key, self.path.flow(), self.path.established) {
            self.path.set_source(&[0; W], 0);
            return false;
        }
        share_source(self.path, self.proto);
        true
    }
}

impl<const W: usize> Steps for Search<'_, W> {
    /// Tries the next port.
    #[inline(always)]
    fn step(&mut self, n: u32) -> bool {
        let low = config::port_low() as u32;
        let size = (config::port_high() as u32).wrapping_sub(low) + 1;
        let offset = (self.next as u64 * size as u64) >> 32;
        self.next = self.next.wrapping_mul(FACTOR).wrapping_add(SUMMAND);
        self.look_at((low + offset as u32) as u16);
        let round_is_over = n % ROUND == ROUND - 1;
        self.best >= Holder::GONE || round_is_over && self.best != Holder::ALIVE
    }
}
