//! What kube-proxy left on a node: what `culvert cleanup --kube-proxy` prints.

use std::fmt;
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What was found of kube-proxy, and what became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cleanup {
    /// What shows that kube-proxy runs, a sentence each; empty if nothing does.
    pub running: Vec<String>,
    /// TCP connections whose destination netfilter translated when they were last counted, by what they asked for.
    pub connections: Vec<Connections>,
    /// What is kube-proxy's own and can go.
    pub found: Vec<Trace>,
    /// What is kube-proxy's own and stays, because somebody else's rules use it.
    pub kept: Vec<Kept>,
    /// What was found has been removed.
    pub removed: bool,
    /// What is there after the removal all the same: not removed, or put back since.
    pub left: Vec<Trace>,
    /// What could not be read or removed, and why.
    pub errors: Vec<String>,
}

/// Connections to one frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Connections {
    /// What they asked for.
    #[schemars(with = "String")]
    pub frontend: SocketAddr,
    /// How many there are.
    pub count: usize,
}

/// Where a trace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Subsystem {
    /// Tables of nftables.
    Nftables,
    /// Rules of iptables that are kept in nftables.
    IptablesNft,
    /// Rules of iptables in its own tables.
    IptablesLegacy,
    /// Sets of addresses and ports that rules of iptables refer to.
    Ipset,
    /// The kernel's load balancer.
    Ipvs,
    /// Network links.
    Link,
    /// Counters of netfilter with a name.
    Nfacct,
}

impl fmt::Display for Subsystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nftables => "nftables",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
            Self::Ipset => "ipset",
            Self::Ipvs => "ipvs",
            Self::Link => "link",
            Self::Nfacct => "nfacct",
        })
    }
}

/// What a trace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TraceKind {
    /// A whole table.
    Table,
    /// A chain with its rules.
    Chain,
    /// A rule of another chain that leads into one of kube-proxy's.
    Jump,
    /// A set.
    Set,
    /// A virtual service.
    Service,
    /// A link.
    Link,
    /// A counter.
    Counter,
}

/// One thing that is kube-proxy's own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Trace {
    /// Where it is.
    pub subsystem: Subsystem,
    /// `ip`, `ip6` or `inet`, and the table; null where there are no tables.
    pub table: Option<String>,
    /// What it is.
    pub kind: TraceKind,
    /// Its name; of a jump, its chain and the chain that it leads to.
    pub name: String,
}

/// A chain that stays.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Kept {
    /// Where it is.
    pub subsystem: Subsystem,
    /// `ip` or `ip6`, and the table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Why it stays.
    pub reason: String,
}
