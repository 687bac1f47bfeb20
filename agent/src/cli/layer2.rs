//! Announcing in layer 2.

use std::path::PathBuf;

use clap::Args;

/// How an agent announces in layer 2.
#[derive(Clone, Debug, Args)]
pub struct Layer2Args {
    /// Announce the addresses of Services in layer 2, by ARP and NDP; with a folder that is always so
    #[arg(long, env = "CULVERT_LAYER2")]
    pub layer2: bool,
    /// A file with the key that the nodes' agents share, 16 bytes or more
    #[arg(long, value_name = "PATH")]
    #[allow(dead_code, reason = "read where nodes hear one another")]
    pub layer2_key_file: Option<PathBuf>,
    /// The UDP port at which they hear one another
    #[arg(long, value_name = "PORT", default_value_t = 7473)]
    #[allow(dead_code, reason = "read where nodes hear one another")]
    pub layer2_port: u16,
    /// The agent's pod, which owns what it writes of what it announces
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub pod_name: Option<String>,
    /// The pod's uid
    #[arg(long, value_name = "UID", env = "POD_UID")]
    pub pod_uid: Option<String>,
    /// Whether addresses that are announced in layer 2 answer to ping
    #[arg(long, value_name = "true|false", default_value_t = true, action = clap::ArgAction::Set)]
    pub answer_ping: bool,
}
