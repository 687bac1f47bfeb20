//! What the kernel holds for a Service: the rows of its plan with their ids. Kept in memory, to be compared with the next plan.

use std::net::IpAddr;

use culvert_abi::{Frontend, Table};
use culvert_api::plan::Protocol;

use crate::codec::{At, Family, FrontendAt};

/// The rows of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Its ports, each in one family.
    pub ports: Vec<Port>,
    /// Addresses on which it wants other ports refused, sorted.
    pub refused: Vec<IpAddr>,
}

impl Held {
    /// The port of an identity.
    pub fn port(&self, identity: u64) -> Option<&Port> {
        self.ports.iter().find(|port| port.identity == identity)
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.refused.is_empty()
    }
}

/// The rows of a Service port in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Hash of its name.
    pub identity: u64,
    /// Its id.
    pub id: u32,
    /// Its family.
    pub family: Family,
    /// Its name; "" also where only its rows are known, after a restart.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its backends, sorted by address and port.
    pub backends: Vec<HeldBackend>,
    /// Its tables.
    pub tables: Vec<HeldTable>,
    /// Its frontends and their rows, sorted.
    pub frontends: Vec<(FrontendAt, Frontend)>,
}

impl Port {
    /// The backend at an address and port.
    pub fn backend(&self, at: At) -> Option<&HeldBackend> {
        let index = self.backends.binary_search_by_key(&at, |backend| backend.at).ok()?;
        self.backends.get(index)
    }

    /// The row of a frontend.
    pub fn frontend(&self, at: FrontendAt) -> Option<&Frontend> {
        let index = self.frontends.binary_search_by_key(&at, |(at, _)| *at).ok()?;
        self.frontends.get(index).map(|(_, row)| row)
    }
}

/// A backend and its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldBackend {
    /// Where it listens.
    pub at: At,
    /// Bits of [`culvert_abi::backend`].
    pub flags: u16,
    /// Its id.
    pub id: u32,
}

/// A table, its descriptor, and the list in its slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldTable {
    /// Index into `TABLES`.
    pub index: u32,
    /// What stands there.
    pub word: u64,
    /// Backend ids, in the order of the list.
    pub members: Box<[u32]>,
}

impl HeldTable {
    /// The list as it stands in the slab: two units an id, the low half first.
    pub fn list(&self) -> Vec<u16> {
        self.members.iter().flat_map(|id| [*id as u16, (*id >> 16) as u16]).collect()
    }

    /// Its size class.
    pub fn class(&self) -> u8 {
        Table::unpack(self.word).class
    }
}
