//! Services as the kernel has them: what `culvert services` prints.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    plan::{Audience, ClientAddress, Protocol, Verdict},
    status::{Drift, Failure},
};

/// One Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Why its latest plan is not programmed, or null. What is below is then the last good state.
    pub failure: Option<Failure>,
    /// Its ports, one element for each family.
    pub ports: Vec<ServicePort>,
    /// Where the kernel's rows differ from what was programmed; empty unless somebody else writes to the maps.
    pub drift: Vec<Drift>,
}

/// One Service port in one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Its name, "" if it has none.
    pub name: String,
    /// The protocol.
    pub protocol: Protocol,
    /// 4 or 6.
    pub family: u8,
    /// Its id in the kernel's maps.
    pub id: u32,
    /// What passed since the id was given out, summed over the CPUs.
    pub counters: Counters,
    /// Backends that are alive.
    pub backends: usize,
    /// Its frontends.
    pub frontends: Vec<Frontend>,
}

/// Counters of a Service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// New flows, and connections translated at the socket.
    pub connections: u64,
    /// Packets from clients; those translated at the socket are not seen.
    pub packets: u64,
    /// Bytes of them (IP length).
    pub bytes: u64,
    /// Packets to clients.
    pub reply_packets: u64,
    /// Bytes of them (IP length).
    pub reply_bytes: u64,
    /// Connections and packets that were refused.
    pub rejected: u64,
    /// Connections and packets that were dropped.
    pub dropped: u64,
}

/// One address, port and protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Frontend {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// What kind of address it is.
    pub kind: Kind,
    /// Session affinity by client address, in seconds, or null.
    pub affinity_seconds: Option<u32>,
    /// Allowed client prefixes; empty = unrestricted.
    #[schemars(with = "Vec<String>")]
    pub source_ranges: Vec<IpNet>,
    /// What each audience gets: one element `any`, or three.
    pub views: Vec<View>,
}

/// What kind of address a frontend has, as far as the kernel tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Kind {
    /// Cluster-internal.
    ClusterIP,
    /// A port of the node.
    NodePort,
    /// An external or LoadBalancer address.
    External,
}

/// What an audience gets at a frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// Whom it is for.
    pub audience: Audience,
    /// What happens to a new connection.
    pub verdict: Verdict,
    /// Whether a backend that is not local sees the client's address.
    pub client_address: ClientAddress,
    /// Slots of the Maglev table; 0 = the choice is random.
    pub slots: u32,
    /// The backends to choose from.
    pub backends: Vec<SocketAddr>,
}
