//! Backends as the kernel has them: what `culvert backends` prints.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::plan::{BackendState, Protocol};

/// One backend of one Service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// The Service, `namespace/name`.
    pub service: String,
    /// Name of the Service port, "" if it has none.
    pub port: String,
    /// The protocol.
    pub protocol: Protocol,
    /// Where it listens.
    pub address: SocketAddr,
    /// Ready or terminating.
    pub state: BackendState,
    /// Runs on this node.
    pub local: bool,
    /// Its id in the kernel's maps.
    pub id: u32,
    /// Changes when the id is given to another endpoint.
    pub generation: u32,
    /// New flows, and connections translated at the socket, since the id was given out.
    pub connections: u64,
    /// Packets in both directions, of ended flows and of live ones; those translated at the socket are not seen.
    pub packets: u64,
    /// Bytes of them (IP length).
    pub bytes: u64,
    /// Live flows.
    pub flows: u64,
}
