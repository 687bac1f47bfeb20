//! `culvert controller`.

use std::net::SocketAddr;
use std::num::NonZeroU32;

use clap::builder::RangedU64ValueParser;
use clap::{Args, value_parser};

use super::{KubeArgs, LogFormat, ScopeArgs};

/// `culvert controller`.
#[derive(Debug, Args)]
pub struct ControllerArgs {
    /// Where the API server is.
    #[command(flatten)]
    pub kube: KubeArgs,
    /// Whose Services it serves.
    #[command(flatten)]
    pub scope: ScopeArgs,
    /// Services whose status is written in a second, at most
    #[arg(long, value_name = "NUMBER", default_value = "50")]
    pub kube_api_qps: NonZeroU32,
    /// ... and at once, after a pause
    #[arg(long, value_name = "NUMBER", default_value = "100")]
    pub kube_api_burst: NonZeroU32,
    /// The Lease of the one that writes
    #[arg(long, value_name = "NAME", default_value = "culvert-controller")]
    pub lease_name: String,
    /// The Lease's namespace; the controller's own by default
    #[arg(long, value_name = "NAME")]
    pub lease_namespace: Option<String>,
    /// Seconds after which another may take a Lease that is not renewed
    #[arg(long, value_name = "SECONDS", value_parser = seconds(), default_value_t = 15)]
    pub lease_duration: u64,
    /// Seconds without a renewal after which the holder stops writing; less than the duration
    #[arg(long, value_name = "SECONDS", value_parser = seconds(), default_value_t = 10)]
    pub lease_renew_deadline: u64,
    /// Seconds between renewals, and between attempts of the others; at most half of the deadline
    #[arg(long, value_name = "SECONDS", value_parser = seconds(), default_value_t = 2)]
    pub lease_retry_period: u64,
    /// The name under which this one holds the Lease, and no other one does; the host name (which is a pod's) and the process
    /// id by default
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub identity: Option<String>,
    /// Where /metrics, /livez and /readyz are served
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:7472")]
    pub bind_address: SocketAddr,
    /// The form of the log
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What is logged: error, warn, info, debug or trace, or directives such as `info,culvert_source=debug`
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "CULVERT_LOG")]
    pub log_level: String,
}

/// No longer than a day: sums of times stay sums.
fn seconds() -> RangedU64ValueParser {
    value_parser!(u64).range(1..=86_400)
}
