//! What a node tells the others beside its claims: what the choice of nodes depends on and they cannot see.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::probe::packet::Mac;

/// What a node says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Links on which it could answer, by name.
    pub links: BTreeMap<String, Link>,
    /// Addresses of Services that its kernel does not hold.
    pub unable: BTreeSet<IpAddr>,
    /// Addresses that it announces: whoever takes one over need not ask whether it is free.
    pub announced: BTreeSet<IpAddr>,
    /// It is to answer for nothing, by `culvert drain`.
    pub drained: bool,
}

/// A link of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// It is up and has carrier.
    pub up: bool,
    /// Its MAC.
    pub mac: Mac,
    /// Prefixes that are connected to it.
    pub prefixes: Vec<IpNet>,
}
