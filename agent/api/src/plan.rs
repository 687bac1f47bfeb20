//! What one node should do, Service by Service: the output of the model, the input of the dataplane, and the
//! JSON of `culvert plan`. The schema is `docs/schema/plan.json`.

use std::{fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The plan of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NodePlan {
    /// The node's name.
    pub node: String,
    /// Services, sorted by namespace and name.
    pub services: Vec<ServicePlan>,
    /// Announcements that this node makes, sorted by address; all nodes are taken to be alive.
    pub announcements: Vec<Announcement>,
}

/// The plans of all nodes (`culvert plan` without `--node`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Plans {
    /// One plan for each Node object, sorted by name.
    pub nodes: Vec<NodePlan>,
}

/// One announced address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Announcement {
    /// The announced address.
    pub address: IpAddr,
    /// `layer2` or `bgp`.
    pub protocol: String,
    /// The interface, where the advertisement names one; else null: those that fit are known on the node alone.
    pub interface: Option<String>,
    /// Why this node announces it.
    pub reason: String,
}

/// Which Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct ServiceKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl ServicePlan {
    /// Which Service the plan is for.
    pub fn key(&self) -> ServiceKey {
        ServiceKey { namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

/// What a node does for one Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServicePlan {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// `spec.type`.
    #[serde(rename = "type")]
    pub kind: ServiceKind,
    /// LoadBalancer addresses in force, sorted.
    pub addresses: Vec<IpAddr>,
    /// Our own pool that they come from, or null.
    pub pool: Option<String>,
    /// Why the Service has no frontends at all, or null: `headless`, `externalName`, `serviceProxyName`, `clusterIPOnLink`,
    /// `noClusterIP` (docs/SEMANTICS.md).
    pub skipped: Option<String>,
    /// What is wrong with the Service or its endpoints.
    pub problems: Vec<Problem>,
    /// The health check server of `externalTrafficPolicy: Local`, or null.
    pub health_check: Option<HealthCheck>,
    /// Rows, sorted by address, port, protocol, audience.
    pub frontends: Vec<FrontendPlan>,
    /// Addresses of this Service on which a port that nobody serves is refused. Not part of the JSON.
    #[serde(skip)]
    pub refused: Vec<IpAddr>,
}

/// `spec.type` of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum ServiceKind {
    /// Cluster-internal address.
    ClusterIP,
    /// And a port on each node.
    NodePort,
    /// And external addresses.
    LoadBalancer,
    /// A DNS alias; nothing to balance.
    ExternalName,
}

/// A problem of an object, in words a user can act on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// Stable CamelCase identifier, as in an Event's reason.
    pub reason: String,
    /// One sentence; names the holder in a conflict.
    pub message: String,
    /// Path of the field, such as `spec.externalIPs[0]`.
    pub field: String,
    /// The object it is about: `Kind/namespace/name`.
    pub object: String,
}

/// The healthCheckNodePort server of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    /// TCP port it listens on.
    pub port: u16,
    /// Ready endpoints on this node, counted by address.
    pub local_endpoints: usize,
}

/// One row: what one audience gets at one address, port and protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FrontendPlan {
    /// The address asked for.
    pub address: IpAddr,
    /// The port asked for.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// What kind of address it is.
    pub kind: FrontendKind,
    /// Whom the row is for.
    pub audience: Audience,
    /// Allowed client prefixes of the row's family, sorted; empty = unrestricted.
    #[schemars(with = "Vec<String>")]
    pub source_ranges: Vec<IpNet>,
    /// Session affinity by client address, in seconds, or null.
    pub affinity_seconds: Option<u32>,
    /// The topology mode in force.
    pub topology: Topology,
    /// Whether a backend sees the client's address.
    pub client_address: ClientAddress,
    /// What happens to a new connection.
    pub verdict: Verdict,
    /// The backends, unique, sorted by address and port; empty unless the verdict is `balance`. Rows with the same
    /// backends share one list.
    pub backends: Arc<[BackendPlan]>,
    /// Name of the Service port ("" if it has none). Not part of the JSON.
    #[serde(skip)]
    pub port_name: String,
    /// Endpoints that terminate and get nothing new, for others are ready, but go on serving what they have; like `backends`, and
    /// none of those. Not part of the JSON.
    #[serde(skip)]
    pub draining: Arc<[BackendPlan]>,
    /// The backends are the list of traffic policy Local, and that of policy Cluster is another one. Not part of the JSON.
    #[serde(skip)]
    pub policy_local: bool,
}

/// Layer-4 protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

/// What kind of address a row is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIP,
    /// `spec.ports[].nodePort` on an address of the node.
    NodePort,
    /// `spec.externalIPs`.
    ExternalIP,
    /// `status.loadBalancer.ingress`.
    LoadBalancer,
}

/// Whom a row is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Audience {
    /// All three below alike.
    Any,
    /// Pods of this node.
    Pods,
    /// The node's host network.
    Host,
    /// Everything else.
    External,
}

/// Topology mode (pkg/proxy/topology.go).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Topology {
    /// Hints are not in force.
    None,
    /// Endpoints hinted for this zone.
    Zone,
    /// Endpoints hinted for this node.
    Node,
}

/// Whether the backend sees the client's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientAddress {
    /// It does.
    Kept,
    /// It may see the node's instead.
    Replaced,
}

/// What happens to a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Goes to one of the backends.
    Balance,
    /// Refused at once.
    Reject,
    /// Dropped without an answer.
    Drop,
}

/// One backend of a row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct BackendPlan {
    /// Endpoint address.
    pub address: IpAddr,
    /// Endpoint port.
    pub port: u16,
    /// The node it runs on, where the slice says so.
    pub node: Option<Arc<str>>,
    /// Ready or terminating.
    pub state: BackendState,
    /// Runs on this node.
    pub local: bool,
}

/// State of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// Ready.
    Ready,
    /// Terminating, and serving still.
    Terminating,
}
