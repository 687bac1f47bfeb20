//! Flows: what `culvert flows` prints. One element for each flow that the kernel's flow maps hold. Connections that start on this
//! node and are translated at the socket have no flow.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::plan::Protocol;

/// One flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    /// The Service, `namespace/name`; null if no Service of now has the flow (deleted, or left alone).
    pub service: Option<String>,
    /// Name of the Service port; null if it has none or the Service is unknown.
    pub port: Option<String>,
    /// The protocol.
    pub protocol: Protocol,
    /// The client as it sent.
    pub client: SocketAddr,
    /// The address and port that it asked for.
    pub frontend: SocketAddr,
    /// The backend that serves it; null for a flow that is left alone.
    pub backend: Option<SocketAddr>,
    /// What the backend sees instead of the client; null where it sees the client, or nothing was chosen yet.
    pub source: Option<SocketAddr>,
    /// The state.
    pub state: FlowState,
    /// Whether its backend is still one of the Service (alive, with the generation that the flow saw).
    pub backend_alive: bool,
    /// The client is a pod of this node.
    pub from_pod: bool,
    /// The backend runs on this node.
    pub local: bool,
    /// Seconds since the first packet.
    pub age_seconds: u64,
    /// Seconds since the last packet; the kernel notes it at most once a second.
    pub idle_seconds: u64,
    /// Seconds that it may be idle before it counts as ended.
    pub idle_limit_seconds: u64,
    /// Packets from the client.
    pub packets: u64,
    /// Bytes of them (IP length).
    pub bytes: u64,
    /// Packets to the client.
    pub reply_packets: u64,
    /// Bytes of them (IP length).
    pub reply_bytes: u64,
}

/// The state of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FlowState {
    /// No reply yet, or one that the client has not answered to.
    New,
    /// The client has answered to a reply.
    Established,
    /// One side has finished.
    Closing,
    /// Both have, or one has reset.
    Closed,
    /// Netfilter translates it since before the agent came: left alone.
    Foreign,
}
