//! The command line, from which help, manual pages and completions are made.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use culvert_model::{Config, NodePortAddresses};
use culvert_source::Rules;
use ipnet::IpNet;

const EXIT_CODES: &str = "\
Exit codes: 0 all is well; 1 the command could not do its work; 2 the command line is wrong; \
3 the command did its work and the answer is not good (problems in a plan, an unhealthy agent).";

/// Balances Kubernetes Services in the kernel.
#[derive(Debug, Parser)]
#[command(name = "culvert", version, after_help = EXIT_CODES, max_term_width = 120)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say what the nodes would do with a folder of manifests, offline
    ///
    /// Reads Services, EndpointSlices and Nodes, fills in the API server's defaults, validates them as it would, and prints
    /// the plan of one node or of every Node object. Needs no agent, no cluster and no privileges. The JSON's schema is
    /// docs/schema/plan.json.
    ///
    /// Exits with 1 if a file cannot be read, an object is invalid or the node is unknown, and with 3 if the plan names
    /// problems.
    Plan(PlanArgs),
    /// Print completions for a shell
    #[command(hide = true)]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages
    #[command(hide = true)]
    Man {
        /// Where to.
        directory: PathBuf,
    },
}

/// `culvert plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The folder: its .yaml, .yml and .json files
    #[arg(long, value_name = "DIR")]
    pub manifests: PathBuf,
    /// The node to plan for; without it, every Node object
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// The form of the output
    #[arg(short, long, value_enum, default_value_t = PlanOutput::Table)]
    pub output: PlanOutput,
    /// What the model is told.
    #[command(flatten)]
    pub model: ModelArgs,
}

/// Forms of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PlanOutput {
    /// For programs
    Json,
    /// For people
    Table,
}

/// What the model is told besides the objects; the same for the agent and for `plan`.
#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// Where node ports are served: `primary` (the first InternalIP of each family, else ExternalIP), or prefixes that
    /// admit addresses of the Node
    #[arg(long, value_name = "primary|CIDR,...", default_value = "primary", value_parser = node_port_addresses)]
    pub nodeport_addresses: NodePortAddresses,
    /// Prefixes inside which spec.externalIPs are served; none by default, for whoever may write a Service could take
    /// any address
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',')]
    pub allow_external_ips: Vec<IpNet>,
    /// Ports that nodePort may have, as of the API server
    #[arg(long, value_name = "LOW-HIGH", default_value = "30000-32767", value_parser = port_range)]
    pub service_node_port_range: RangeInclusive<u16>,
}

impl ModelArgs {
    /// The model's configuration on a node.
    pub fn config(&self, node: &str) -> Config {
        Config {
            node: node.to_owned(),
            node_port_addresses: self.nodeport_addresses.clone(),
            allow_external_ips: self.allow_external_ips.clone(),
        }
    }

    /// What validation depends on.
    pub fn rules(&self) -> Rules {
        Rules { node_ports: self.service_node_port_range.clone() }
    }
}

fn node_port_addresses(text: &str) -> Result<NodePortAddresses, String> {
    if text == "primary" {
        return Ok(NodePortAddresses::Primary);
    }
    let prefix = |part: &str| part.trim().parse().map_err(|_| format!("{part:?} is neither a prefix nor `primary`"));
    text.split(',').map(prefix).collect::<Result<_, _>>().map(NodePortAddresses::Prefixes)
}

/// `LOW-HIGH`, inclusive.
pub fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let wrong = || format!("{text:?} is not a range of ports such as 30000-32767");
    let (low, high) = text.split_once('-').ok_or_else(wrong)?;
    let port = |part: &str| part.trim().parse::<u16>().ok().filter(|&port| port > 0);
    let range = port(low).ok_or_else(wrong)?..=port(high).ok_or_else(wrong)?;
    if range.is_empty() { Err(wrong()) } else { Ok(range) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn ranges_and_prefixes() {
        assert_eq!(port_range("1-65535"), Ok(1..=65535));
        for wrong in ["", "80", "0-1", "2-1", "1-65536", "a-b"] {
            assert!(port_range(wrong).is_err(), "{wrong}");
        }
        assert_eq!(node_port_addresses("primary"), Ok(NodePortAddresses::Primary));
        let prefixes = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        assert_eq!(node_port_addresses("10.0.0.0/8, fd00::/8"), Ok(NodePortAddresses::Prefixes(prefixes)));
        assert!(node_port_addresses("10.0.0.0").is_err());
    }
}
