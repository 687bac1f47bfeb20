//! Why nodes do not answer, as a user reads it.

use std::fmt;

use culvert_model::ServiceKey;

use super::candidate::Rank;

/// Why a node answers for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Out {
    /// Its label [`EXCLUDE_LABEL`](super::EXCLUDE_LABEL).
    Label,
    /// Its condition `NetworkUnavailable`.
    NetworkUnavailable,
    /// `culvert drain`.
    Drained,
    /// Its object is being deleted.
    Deleted,
    /// A taint with this key.
    Taint(&'static str),
    /// Its peers do not hear it.
    Dead,
}

impl fmt::Display for Out {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label => write!(f, "excluded by its label {}", super::EXCLUDE_LABEL),
            Self::NetworkUnavailable => f.write_str("its condition NetworkUnavailable is True"),
            Self::Drained => f.write_str("drained by culvert drain"),
            Self::Deleted => f.write_str("its Node is being deleted"),
            Self::Taint(key) => write!(f, "its taint {key}"),
            Self::Dead => f.write_str("the other nodes do not hear it"),
        }
    }
}

/// Why a node does not answer for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Silence {
    /// It answers for nothing.
    Out(Out),
    /// No advertisement of this Service selects it.
    NotSelected(ServiceKey),
    /// Its agent has said nothing yet.
    NoReport,
    /// Its kernel does not hold this Service.
    NotProgrammed(ServiceKey),
    /// Traffic policy Local, and this Service has no endpoint there that may get traffic.
    NoLocalEndpoint(ServiceKey),
    /// It has no link at all.
    NoLink,
    /// None of its links is one that the advertisements name.
    NoSuchLink,
    /// These links could answer, and are down.
    LinkDown(Vec<String>),
    /// Traffic policy Local, and the endpoints there are about to end; those on the node that answers are not.
    Ending(String),
    /// The node that answers is steady, this one waits.
    HeldDown(String),
    /// The node that answers has a connected prefix that holds the address, this one has not.
    NotConnected(String),
    /// The node that answers is preferred by the advertisements.
    LessPreferred {
        /// The node that answers.
        node: String,
        /// Its weight.
        weight: u32,
        /// That of this one.
        own: u32,
    },
    /// Another node as good answers.
    Other(String),
}

impl Silence {
    /// Why a node stands back behind the one that answers.
    pub(super) fn other(node: &str, best: Rank, own: Rank) -> Self {
        let node = node.to_owned();
        if own.lasting != best.lasting {
            return Self::Ending(node);
        }
        if own.steady != best.steady {
            return Self::HeldDown(node);
        }
        if own.connected != best.connected {
            return Self::NotConnected(node);
        }
        if own.weight != best.weight {
            return Self::LessPreferred { node, weight: best.weight, own: own.weight };
        }
        Self::Other(node)
    }
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Out(out) => out.fmt(f),
            Self::NotSelected(service) => write!(f, "no L2Advertisement for Service {service} selects the node"),
            Self::NoReport => f.write_str("its agent has not reported"),
            Self::NotProgrammed(service) => write!(f, "its kernel does not hold Service {service}"),
            Self::NoLocalEndpoint(service) => write!(f, "no ready local endpoint of Service {service}"),
            Self::NoLink => f.write_str("it has no link to answer on"),
            Self::NoSuchLink => f.write_str("it has none of the interfaces that the L2Advertisements name"),
            Self::LinkDown(links) => write!(f, "down: {}", links.join(", ")),
            Self::Ending(node) => write!(f, "its local endpoints are about to end; node {node} answers"),
            Self::HeldDown(node) => write!(f, "held down after it came back; node {node} answers"),
            Self::NotConnected(node) => {
                write!(f, "no connected prefix holds the address; on node {node}, which answers, one does")
            }
            Self::LessPreferred { node, weight, own } => {
                write!(f, "preferred with weight {own}; node {node}, which answers, with {weight}")
            }
            Self::Other(node) => write!(f, "node {node} answers"),
        }
    }
}

/// Why nobody answers for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nobody {
    /// The pool of this Service is not in the configuration.
    NoPool(ServiceKey),
    /// No advertisement is for this Service and its pool.
    NotAdvertised(ServiceKey),
    /// No Service at the address has a ready endpoint anywhere.
    NoEndpoints,
    /// No node can; each has its reason.
    NoNode,
}

impl fmt::Display for Nobody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPool(service) => write!(f, "the pool of Service {service} is not there"),
            Self::NotAdvertised(service) => write!(f, "no L2Advertisement is for Service {service}"),
            Self::NoEndpoints => f.write_str("no ready endpoint on any node"),
            Self::NoNode => f.write_str("no node can answer"),
        }
    }
}
