//! What the agent answers over its socket, and what the commands print with `-o json` and `-o yaml`. `culvert status` prints a
//! [`Status`](crate::status::Status).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{backends::Backend, flows::Flow, plan::ServicePlan, services::Service};

/// `culvert services`: what is wanted, and what the kernel does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Services {
    /// The node's name.
    pub node: String,
    /// What the model wants, as in `culvert plan`; sorted by namespace and name.
    pub services: Vec<ServicePlan>,
    /// What the kernel's maps say; Services without frontends are not in them.
    pub kernel: Vec<Service>,
    /// Where the two differ; empty on a healthy node.
    pub differences: Vec<Difference>,
}

/// A difference between what is wanted and what the kernel does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// The Service, `namespace/name`.
    pub service: String,
    /// The frontend, `address:port/PROTOCOL`, and the audience where it is one audience's; else what is compared.
    pub subject: String,
    /// What is wanted; null = nothing.
    pub wanted: Option<String>,
    /// What the kernel has; null = nothing.
    pub found: Option<String>,
}

/// `culvert backends`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Backends {
    /// The node's name.
    pub node: String,
    /// The backends, sorted by Service and address.
    pub backends: Vec<Backend>,
}

/// `culvert flows`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Flows {
    /// The node's name.
    pub node: String,
    /// The flows that were asked for, the youngest first.
    pub flows: Vec<Flow>,
    /// There are more: the answer is cut at the limit.
    pub truncated: bool,
}

/// `culvert monitor -o json`, one object a line: a packet that was dropped, refused or left to the stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// Why; the names are those of the metrics.
    pub reason: String,
    /// `pod_ingress`, `pod_egress`, `node_ingress`, `node_egress` or `socket`.
    pub hook: String,
    /// Index of the link; 0 at the socket.
    pub interface: u32,
    /// Name of the link, where it is known.
    pub link: Option<String>,
    /// IP protocol: `TCP`, `UDP`, `SCTP`, or the number.
    pub protocol: String,
    /// Where the packet came from.
    pub source: std::net::SocketAddr,
    /// Where it went.
    pub destination: std::net::SocketAddr,
    /// The Service, `namespace/name`, where it is known.
    pub service: Option<String>,
}
