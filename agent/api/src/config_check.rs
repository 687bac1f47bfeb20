//! The JSON of `culvert config check`. The schema is `docs/schema/config-check.json`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What some files are worth as a configuration of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigCheck {
    /// Whether it would be in force.
    pub valid: bool,
    /// What is wrong; nothing of the configuration is in force then, and the one before stays.
    pub errors: Vec<Remark>,
    /// What is allowed and hardly meant.
    pub warnings: Vec<Remark>,
    /// The pools, sorted by name; empty unless the configuration is valid.
    pub pools: Vec<PoolSummary>,
}

/// Something about a file or an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Remark {
    /// The file.
    pub file: Option<PathBuf>,
    /// Line in it, from 1.
    pub line: Option<u64>,
    /// The object: `Kind/namespace/name`, or `Kind/name` where there is no namespace.
    pub object: Option<String>,
    /// Path of the field, such as `spec.addresses[0]`.
    pub field: Option<String>,
    /// What is to be said.
    pub message: String,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolSummary {
    /// Its name.
    pub name: String,
    /// Namespace of its object.
    pub namespace: String,
    /// Its addresses, in the order in which they are given out: CIDRs, or ranges `FIRST-LAST`.
    pub addresses: Vec<String>,
    /// Whether a Service gets an address without naming the pool.
    pub auto_assign: bool,
    /// IPv4 addresses that can be given out.
    pub ipv4: i64,
    /// IPv6 addresses that can be given out; 2^63 - 1 stands for 2^62 and more.
    pub ipv6: i64,
    /// The advertisements that are for it: `Kind/namespace/name`.
    pub advertisements: Vec<String>,
}
