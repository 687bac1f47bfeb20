//! The state of an agent: what `culvert status` prints.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An agent and its node's dataplane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// The node's name.
    pub node: String,
    /// Seconds since the agent started.
    pub uptime_seconds: u64,
    /// Everything wanted is programmed and hooked, and the kernel's rows are as they should be.
    pub healthy: bool,
    /// Where objects come from.
    pub sources: Vec<Source>,
    /// How many Services there are.
    pub services: ServiceCount,
    /// Services whose latest plan is not programmed.
    pub failures: Vec<Failure>,
    /// How full the kernel's maps are.
    pub maps: Vec<MapUsage>,
    /// Packets dropped, refused or left to the stack, by reason, in the order of their numbers.
    pub reasons: Vec<ReasonCount>,
    /// Where the kernel's rows differ from what was programmed.
    pub drift: Vec<Drift>,
    /// Links with our programs.
    pub links: Vec<Link>,
    /// Socket programs on the node's cgroup.
    pub sockets: Sockets,
    /// What else is wrong, a sentence each.
    pub problems: Vec<String>,
    /// What on this node may hinder traffic, a sentence each.
    pub warnings: Vec<String>,
}

/// A source of objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// What it is, such as `dir:/etc/culvert/manifests`.
    pub name: String,
    /// Its first full list has been delivered.
    pub synced: bool,
    /// Objects that could not be taken; their last good state stays.
    pub errors: Vec<String>,
}

/// How many Services there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceCount {
    /// Services of the model, those without frontends included.
    pub total: usize,
    /// Services with rows in the kernel.
    pub programmed: usize,
    /// Services that wait to be tried again.
    pub failed: usize,
}

/// A Service whose latest plan is not programmed; its last good rows stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// The Service, `namespace/name`.
    pub service: String,
    /// Why.
    pub message: String,
    /// Tries so far.
    pub attempts: u32,
    /// Seconds until the next.
    pub retry_in_seconds: u64,
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MapUsage {
    /// The map's name; `SLAB` is counted in units of two bytes.
    pub map: String,
    /// Rows (ids, units) in use.
    pub used: u64,
    /// Rows that it can hold.
    pub capacity: u64,
}

/// How often something happened to a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReasonCount {
    /// The reason's name, as in metrics.
    pub reason: String,
    /// Packets, summed over the CPUs, since the maps were made.
    pub packets: u64,
}

/// A row of the kernel's maps that is not as it was programmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Drift {
    /// The Service, `namespace/name`; null for rows that are shared or nobody's.
    pub service: Option<String>,
    /// The map.
    pub map: String,
    /// The row.
    pub key: String,
    /// What it should say; null = it should not be there.
    pub expected: Option<String>,
    /// What it says; null = it is not there.
    pub found: Option<String>,
}

/// A link with our programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// `pod` or `node`.
    pub role: String,
    /// How the programs hang there: `tcx` or `clsact`.
    pub hook: String,
    /// Ids of the programs of others on the same hooks.
    pub others: Vec<u32>,
}

/// Socket programs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sockets {
    /// The cgroup that they are attached to; null: where cgroup2 is mounted.
    pub cgroup: Option<String>,
    /// `all` or `host`.
    pub mode: String,
    /// Names of the programs that are attached.
    pub programs: Vec<String>,
}
