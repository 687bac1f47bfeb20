//! What the maps hold, in plain types: written into the kernel for a test, and read by the oracle.
//!
//! A test that is about the programs says here what the agent would have written, and nothing else is in the way.

mod kernel;
mod slab;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

pub use self::kernel::{Kernel, words};

/// Address and port, and the protocol's number: what a frontend is found by.
pub type FrontendName = (SocketAddr, u8);

/// What the maps hold that user space writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// Bits of `culvert_abi::address`.
    pub addresses: BTreeMap<IpAddr, u32>,
    /// Frontends.
    pub frontends: BTreeMap<FrontendName, Frontend>,
    /// Tables by index, from 1.
    pub tables: BTreeMap<u32, Table>,
    /// Backends by id, from 1. An id is used in one family only.
    pub backends: BTreeMap<u32, Backend>,
    /// Sets of source ranges by id, from 1.
    pub ranges: BTreeMap<u32, Vec<IpNet>>,
    /// Source addresses of links, by ifindex.
    pub links: BTreeMap<u32, Link>,
    /// Addresses that are announced, by link.
    pub announced: BTreeMap<(IpAddr, u32), Announced>,
}

/// An address that is announced on a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// Nanoseconds of the monotonic clock.
    pub until: u64,
    /// Bits of `culvert_abi::announced`.
    pub flags: u32,
    /// The node that had the address before.
    pub before: [u8; 6],
    /// Until then connections go there.
    pub before_until: u64,
}

/// A frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// The Service port's id.
    pub service: u32,
    /// Seconds, 0 = none.
    pub affinity: u32,
    /// Id of its source ranges, 0 = unrestricted.
    pub ranges: u32,
    /// What pods, host and everything else get.
    pub views: [View; 3],
}

/// What an audience gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// One of `culvert_abi::verdict`.
    pub verdict: u8,
    /// Index of the table.
    pub table: u32,
    /// The client's address is replaced if the backend is not local.
    pub replace: bool,
    /// The table is the list of traffic policy Local.
    pub local_list: bool,
}

/// A backend list and its slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Ids.
    pub list: Vec<u32>,
    /// Size class; 0 = no slots.
    pub class: u8,
    /// Indices into the list, as many as the class has slots.
    pub slots: Vec<u16>,
}

/// A backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Where it listens.
    pub at: SocketAddr,
    /// Bits of `culvert_abi::backend`.
    pub flags: u16,
    /// Changes with each use of the id.
    pub generation: u32,
    /// The Service port's id.
    pub service: u32,
}

/// The addresses that translated sources get on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// IPv4 address, unspecified = none.
    pub v4: std::net::Ipv4Addr,
    /// IPv6 address, unspecified = none.
    pub v6: std::net::Ipv6Addr,
    /// Bits of `culvert_abi::link`.
    pub flags: u32,
    /// The link address of its bridge, zero = none.
    pub bridge: [u8; 6],
    /// Its own link address, zero = none.
    pub mac: [u8; 6],
}

impl View {
    /// Balances over a table.
    pub fn table(table: u32) -> Self {
        Self { verdict: culvert_abi::verdict::BALANCE, table, replace: false, local_list: false }
    }

    /// Refuses.
    pub const REJECT: Self =
        Self { verdict: culvert_abi::verdict::REJECT, table: 0, replace: false, local_list: false };

    /// Drops.
    pub const DROP: Self = Self { verdict: culvert_abi::verdict::DROP, ..Self::REJECT };
}

impl Frontend {
    /// The same for everyone, without affinity or ranges.
    pub fn new(service: u32, view: View) -> Self {
        Self { service, affinity: 0, ranges: 0, views: [view; 3] }
    }
}

impl Backend {
    /// A live backend on this node, of the first generation.
    pub fn new(at: SocketAddr, service: u32) -> Self {
        Self { at, flags: culvert_abi::backend::ALIVE | culvert_abi::backend::LOCAL, generation: 1, service }
    }

    /// Whether it may get new flows.
    pub fn alive(&self) -> bool {
        self.flags & culvert_abi::backend::ALIVE != 0
    }
}

impl Table {
    /// A list without slots.
    pub fn list(ids: &[u32]) -> Self {
        Self { list: ids.to_vec(), class: 0, slots: Vec::new() }
    }

    /// A list with slots of a class. They are dealt in a fixed disorder, so that a wrong index is noticed; spread and
    /// stability are the agent's concern and tested there.
    pub fn maglev(ids: &[u32], class: u8) -> Self {
        let count = ids.len() as u64;
        let slot =
            |i: u32| (u64::from(i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33).checked_rem(count).unwrap_or(0) as u16;
        Self { list: ids.to_vec(), class, slots: (0..culvert_abi::maglev_size(class)).map(slot).collect() }
    }
}
