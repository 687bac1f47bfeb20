//! `culvert node-setup`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::BPFFS;

/// `culvert node-setup`.
#[derive(Debug, Args)]
pub struct NodeSetupArgs {
    /// Where the bpf file system is mounted if there is none yet
    #[arg(long, value_name = "PATH", default_value = BPFFS)]
    pub bpffs: PathBuf,
    /// Refuse to mount where the host would not see it: for a container, whose volume needs mountPropagation Bidirectional
    #[arg(long)]
    pub shared: bool,
    /// Steps to leave out
    #[arg(long, value_enum, value_name = "STEP,...", value_delimiter = ',')]
    pub skip: Vec<Step>,
    /// Connections that netfilter may track, for each core; at most 1048576 in all. 0 leaves the limit as it is
    #[arg(long, value_name = "COUNT", default_value_t = 32_768)]
    pub conntrack_max_per_core: u64,
    /// Connections that netfilter may track, however few cores there are
    #[arg(long, value_name = "COUNT", default_value_t = 131_072)]
    pub conntrack_min: u64,
    /// Seconds after which netfilter forgets an idle established TCP connection; 0 leaves it as it is
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
    pub conntrack_tcp_timeout_established: u64,
    /// Seconds after which netfilter forgets a TCP connection of which one side has closed; 0 leaves it as it is
    #[arg(long, value_name = "SECONDS", default_value_t = 3_600)]
    pub conntrack_tcp_timeout_close_wait: u64,
}

/// The steps, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Step {
    /// Mount the bpf file system
    Bpffs,
    /// Set netfilter's limits and timeouts of connections
    Conntrack,
    /// Say whether the node forwards packets
    Forwarding,
}
