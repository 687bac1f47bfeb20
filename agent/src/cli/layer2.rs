//! Announcing in layer 2.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// How an agent announces in layer 2.
#[derive(Clone, Debug, Args)]
pub struct Layer2Args {
    /// Announce the addresses of Services in layer 2, by ARP and NDP; with a folder that is always so
    #[arg(long, env = "CULVERT_LAYER2")]
    pub layer2: bool,
    /// File with the key that the nodes' agents share, 16 bytes or more: with it nodes hear each other, and an address moves on
    /// when one fails. Without, each announces what it would if all were alive
    #[arg(long, value_name = "PATH", env = "CULVERT_LAYER2_KEY_FILE")]
    pub layer2_key_file: Option<PathBuf>,
    /// The UDP port at which nodes hear each other; the same on all of them
    #[arg(long, value_name = "PORT", default_value_t = 7473, value_parser = clap::value_parser!(u16).range(1..))]
    pub layer2_port: u16,
    /// Who decides between two halves of the nodes that do not hear each other. With a folder as source always the gateway
    #[arg(long, value_enum, default_value_t = WitnessArg::Lease)]
    pub layer2_witness: WitnessArg,
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

/// `--layer2-witness`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WitnessArg {
    /// A Lease at the API server, which one half gets
    Lease,
    /// The default gateway, if it answers to a ping
    Gateway,
}
