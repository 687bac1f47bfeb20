//! What is announced in layer 2: the answers to `culvert l2` and `culvert drain`.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `culvert drain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    /// The node announces nothing in layer 2; other nodes do.
    pub drained: bool,
}

/// `culvert l2`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Layer2 {
    /// The node's name.
    pub node: String,
    /// Whether a majority of the nodes stands behind this one; without it the node is silent. Null where nodes do not hear each other.
    pub quorum: Option<bool>,
    /// The other nodes that count, sorted by name. Empty where nodes do not hear each other.
    pub nodes: Vec<Node>,
    /// Addresses of pools that Services have, sorted.
    pub addresses: Vec<Address>,
}

/// Another node, as this one hears it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its kernel answers.
    pub alive: bool,
    /// Milliseconds since its last answer; null = never.
    pub heard_milliseconds_ago: Option<u64>,
    /// It came back a short time ago, and is given no address that another node can have.
    pub held_down: bool,
    /// `culvert drain` was said to it.
    pub drained: bool,
    /// How many addresses it claims.
    pub addresses: u64,
}

/// An address, and who announces it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// Its Services, `namespace/name`.
    pub services: Vec<String>,
    /// The node that announces it; null = nobody does.
    pub node: Option<String>,
    /// Why this node, or why nobody.
    pub reason: String,
    /// How it stands on the links of the node that was asked.
    pub links: Vec<Link>,
}

/// An address on a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// The link's name.
    pub interface: String,
    /// How it stands.
    pub state: State,
    /// Seconds since it began to, as far as the agent that runs has seen it.
    pub since_seconds: u64,
    /// ARP requests and neighbour solicitations that came.
    pub requests: u64,
    /// Those that were answered.
    pub answers: u64,
    /// Those that were not, for want of the right to.
    pub refusals: u64,
    /// Pings that were answered.
    pub echoes: u64,
    /// Announcements that were sent unasked.
    pub gratuitous: u64,
    /// Packets in which another host claimed it.
    pub conflicts: u64,
    /// The host that did so last, if it is known.
    pub rival: Option<Rival>,
}

/// How an address stands on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is asked whether it is free.
    Probing,
    /// Another host has it; it is not announced.
    Taken,
    /// It is announced.
    Announced,
}

/// Another host that claims an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rival {
    /// Its link-layer address.
    pub mac: String,
    /// Seconds since the agent was last told of it.
    pub seconds_ago: u64,
}
