//! What one node should do with its cluster's Services: a pure function of the objects, kept up incrementally.
//! No I/O, no clock.
//!
//! ```text
//! objects (as decoded) ─► digests: service, slice, node ─► claims: who holds which address and port
//!                                    │                        │
//!                                    └────► plan: endpoints ─► rows ◄┘   (one Service, on demand)
//! ```
//!
//! - [`objects`]: the Kubernetes objects with the fields that are read.
//! - `service`, `ranges`, `slice`, `node`: an object's digest; the same on every node, and where most problems are found.
//! - `claims`: conflicts, decided alike on every node.
//! - `endpoints`: which endpoints a port has from one node's point of view; `rows`: what each audience gets.
//! - [`Model`]: the state. A change costs what it changes, and names the Services that it touches.
//!
//! The rules are those of kube-proxy 1.36 (`pkg/proxy`); where they differ, `docs/SEMANTICS.md` says so. The table tests
//! in `tests/cases` are the rules in examples.

mod address;
mod claims;
mod endpoints;
mod grant;
mod intern;
mod model;
mod node;
pub mod objects;
mod plan;
mod problem;
mod ranges;
mod rows;
mod service;
mod slice;

use ipnet::IpNet;

pub use address::{Family, parse as parse_address};
pub use culvert_api::plan::ServiceKey;
pub use grant::{Failure, Grant, Granted};
pub use model::{Change, Model, Reach};
pub use problem::Reason;

/// What the model is told besides the objects. All but `node` must be the same on every node: conflicts are decided by it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Name of this node.
    pub node: String,
    /// Where node ports are served (`--nodeport-addresses`).
    pub node_port_addresses: NodePortAddresses,
    /// Prefixes inside which `spec.externalIPs` are served (`--allow-external-ips`); empty = none
    /// (CVE-2020-8554: whoever may write a Service could take any address).
    pub allow_external_ips: Vec<IpNet>,
}

/// On which of its Node's addresses a node serves node ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The first `InternalIP` of each family, else the first `ExternalIP`.
    #[default]
    Primary,
    /// Every `InternalIP` and `ExternalIP` inside these prefixes.
    Prefixes(Vec<IpNet>),
}
