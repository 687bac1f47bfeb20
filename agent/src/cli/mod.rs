//! The command line, from which help, manual pages and completions are made.
#![allow(clippy::doc_markdown)] // what clap prints is plain text

mod controller;
mod layer2;
mod node_setup;
mod parse;
mod scope;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use culvert_announce::choice::Settings;
use culvert_api::plan::Protocol;
use culvert_dataplane::SocketMode;
use culvert_dataplane::limits::Limits;
use culvert_dataplane::links::Patterns;
use culvert_model::{Config, NodePortAddresses};
use culvert_source::Rules;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use self::controller::ControllerArgs;
pub use self::layer2::{Layer2Args, WitnessArg};
pub use self::node_setup::{NodeSetupArgs, Step as SetupStep};
use self::parse::{limit, limit_field, node_port_addresses, port_range, protocol, source};
pub use self::scope::ScopeArgs;

const BPFFS: &str = "/sys/fs/bpf";

const EXIT_CODES: &str = "\
Exit codes: 0 all is well; 1 the command could not do its work; 2 the command line is wrong; \
3 the command did its work and the answer is not good (problems in a plan, an unhealthy agent).";

/// Balances Kubernetes Services in the kernel.
#[derive(Debug, Parser)]
#[command(name = "culvert", version, after_help = EXIT_CODES, max_term_width = 100)]
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
    /// the plan of one node or of every Node object. Services of type LoadBalancer get addresses out of the folder's pools
    /// (MetalLB's IPAddressPool). Needs no agent, no cluster and no privileges. The JSON's schema is docs/schema/plan.json.
    ///
    /// Exits with 1 if a file cannot be read, an object is invalid or the node is unknown, and with 3 if the plan names
    /// problems.
    Plan(PlanArgs),
    /// Look at a configuration of addresses
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Run the agent of a node
    ///
    /// Programs the kernel with what the API server or the manifests say, and keeps it so. Needs the capabilities NET_ADMIN, BPF, PERFMON and
    /// NET_RAW, and a bpf file system. Where the source is a folder, it gives Services of type LoadBalancer addresses out of the
    /// folder's pools. What it has programmed works on when it ends, however it ends; a second agent of a
    /// node waits until the first has ended.
    Agent(Box<AgentArgs>),
    /// Give addresses to a cluster's Services of type LoadBalancer
    ///
    /// Reads MetalLB's resources (IPAddressPool and those beside it) and the Services from the API server, and writes the addresses into
    /// the Services' status; docs/ADDRESSES.md has the rules. Needs no node and no privileges: it runs as a Deployment. Of several, one
    /// writes: the holder of a Lease. Agents whose source is a folder do without it.
    Controller(Box<ControllerArgs>),
    /// Say whether the agent and the node's dataplane are well
    ///
    /// Exits with 3 if not, and with 1 if there is no agent to ask.
    Status(StatusArgs),
    /// Show Services: what is wanted, what the kernel does, and where the two differ
    ///
    /// Exits with 3 if they differ, and with 1 if a Service was named that does not exist.
    Services(ServicesArgs),
    /// Show backends, with what they have served
    Backends(BackendsArgs),
    /// Show the flows that the kernel holds
    Flows(FlowsArgs),
    /// Show which addresses are announced in layer 2: by which node, why, and what was heard of them
    ///
    /// The JSON's schema is docs/schema/l2.json. Exits with 3 if nobody announces an address or another host claims one, and with
    /// 1 if the agent announces nothing in layer 2.
    L2(L2Args),
    /// Let other nodes announce the addresses in layer 2 that this node announces, before it is taken away
    ///
    /// Stays so until `culvert drain --undo`, also over restarts of agent and node. Connections that go through this node go on: it
    /// forwards what still comes to it. Where nodes do not hear each other (no --layer2-key-file), nobody takes over.
    Drain(DrainArgs),
    /// Watch packets being dropped or refused, and why
    Monitor(MonitorArgs),
    /// Detach every program and remove every map of this node, or remove what kube-proxy left: no trace stays
    ///
    /// Without --kube-proxy: connections through Services end. Fails if an agent runs. The agent's --state-dir stays.
    ///
    /// With --kube-proxy: removes kube-proxy's own tables, chains, sets, virtual services and link, and the jumps into its
    /// chains, wherever it has worked in: nftables, iptables (both kinds) or ipvs. Nobody else's are touched; docs/TAKEOVER.md
    /// has the lists. Needs root in the node's network namespace, and no tools. Refuses if kube-proxy runs or if no healthy
    /// agent serves in its place. Waits until the TCP connections have ended whose destination netfilter translates. The
    /// JSON's schema is docs/schema/cleanup.json.
    ///
    /// Exits with 1 if nothing was removed (refused, or connections had not ended in time) or not everything could be, and with
    /// 3 if something stays that others' rules use, or has come back.
    Cleanup(CleanupArgs),
    /// Prepare a node for the agent; for an init container, or once at boot
    ///
    /// Mounts the bpf file system if there is none, sets the limits and timeouts of netfilter's connections that kube-proxy
    /// would set (limits are only ever raised), and says whether the node forwards packets. Needs root and SYS_ADMIN, which
    /// the agent does not have. Running it again changes nothing.
    ///
    /// Exits with 1 if there is no bpf file system in the end. A parameter that cannot be set is a warning.
    NodeSetup(NodeSetupArgs),
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

/// `culvert config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say what is wrong with a configuration of addresses, offline
    ///
    /// Reads MetalLB's resources (IPAddressPool, L2Advertisement, BGPAdvertisement, BGPPeer, BFDProfile, Community) and Nodes from
    /// files, and checks each object and all of them together, as the controller does before it puts them in force. Objects of
    /// other kinds are checked by themselves where they are known. Needs no cluster: the configuration of one is checked with
    /// `kubectl get ipaddresspools,l2advertisements -A -o yaml | culvert config check /dev/stdin`. The JSON's schema is
    /// docs/schema/config-check.json.
    ///
    /// Exits with 1 if a file cannot be read, and with 3 if anything is wrong in them. Warnings change nothing.
    Check(ConfigCheckArgs),
}

/// `culvert config check`.
#[derive(Debug, Args)]
pub struct ConfigCheckArgs {
    /// Files, or folders with their .yaml, .yml and .json files
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Namespaces whose objects make the configuration; all by default
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub config_namespaces: Vec<String>,
    /// The form of the output
    #[arg(short, long, value_enum, default_value_t = PlanOutput::Table)]
    pub output: PlanOutput,
}

/// Forms of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PlanOutput {
    /// For programs
    Json,
    /// For people
    Table,
}

/// `culvert agent`.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Where objects come from: `kube`, an API server, or a folder of manifests; `kube` by default if --kubeconfig or
    /// --api-server is given, and in a pod
    #[arg(long, value_name = "kube|dir:PATH", value_parser = source)]
    pub source: Option<Source>,
    /// Where the API server is.
    #[command(flatten)]
    pub kube: KubeArgs,
    /// Where the agent keeps what the next one is to know: API servers that were reached or heard of (api-servers), so that
    /// it can start without the Service `kubernetes`; and the addresses that a folder's Services hold (addresses.json)
    #[arg(long, value_name = "PATH", default_value = "/var/lib/culvert")]
    pub state_dir: PathBuf,
    /// The node's name, as in its Node object; the host name by default
    #[arg(long, value_name = "NAME", env = "NODE_NAME", visible_alias = "hostname-override")]
    pub node: Option<String>,
    /// What the model is told.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Whose connections are translated at the socket: the host's and the pods', or the host's alone; pods are then served
    /// by the packet hooks (for Istio, KubeVirt, Kata and gVisor)
    #[arg(long, value_enum, default_value_t = SocketModeArg::All)]
    pub socket_mode: SocketModeArg,
    /// The node's cgroup2; where cgroup2 is mounted by default
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// The node's bpf file system
    #[arg(long, value_name = "PATH", default_value = BPFFS)]
    pub bpffs: PathBuf,
    /// Links that are pods', by name: `*` and `?` match, `!` in front denies; the first match decides
    #[arg(long, value_name = "PATTERN,...", default_value = "")]
    pub pod_links: Patterns,
    /// Links to other machines, likewise
    #[arg(long, value_name = "PATTERN,...", default_value = "")]
    pub node_links: Patterns,
    /// Ports for translated source addresses; must not overlap net.ipv4.ip_local_port_range
    #[arg(long, value_name = "LOW-HIGH", default_value = "61000-65535", value_parser = port_range)]
    pub snat_ports: RangeInclusive<u16>,
    /// What it announces.
    #[command(flatten)]
    pub layer2: Layer2Args,
    /// In a cluster, whose Services it announces.
    #[command(flatten)]
    pub scope: ScopeArgs,
    /// Size of a kind of kernel map, such as `flows=262144` or `slab-bytes=67108864`
    #[arg(long = "limit", value_name = "NAME=COUNT", value_parser = limit, value_delimiter = ',')]
    pub limits: Vec<(String, u32)>,
    /// Where /healthz and /livez are served
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:10256")]
    pub healthz_bind_address: SocketAddr,
    /// Where /metrics is served
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10249")]
    pub metrics_bind_address: SocketAddr,
    /// Where the commands ask.
    #[command(flatten)]
    pub api: ApiArgs,
    /// The form of the log
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What is logged: error, warn, info, debug or trace, or directives such as `info,culvert_dataplane=debug`
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "CULVERT_LOG")]
    pub log_level: String,
    /// Log what the kernel programs do with each packet; for developers, and slow
    #[arg(long)]
    pub trace_datapath: bool,
}

/// Where the API server is.
#[derive(Clone, Debug, Args)]
pub struct KubeArgs {
    /// API servers, tried in this order, such as https://10.0.0.1:6443; by default the kubeconfig's, or the one that
    /// KUBERNETES_SERVICE_HOST names
    #[arg(long, value_name = "URL,...", value_delimiter = ',')]
    pub api_server: Vec<String>,
    /// Credentials, and the API server if none is named; by default the pod's service account
    #[arg(long, value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,
}

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder of manifests.
    Dir(PathBuf),
    /// An API server.
    Kube,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(path) => write!(f, "dir:{}", path.display()),
            Self::Kube => f.write_str("kube"),
        }
    }
}

impl AgentArgs {
    /// The source: as named, else `kube` where there is an API server to ask.
    pub fn source(&self) -> Result<Source> {
        let asks = self.kube.kubeconfig.is_some() || !self.kube.api_server.is_empty();
        match &self.source {
            Some(Source::Dir(_)) if asks => bail!("--api-server and --kubeconfig are for --source kube"),
            Some(source) => Ok(source.clone()),
            None if asks || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => Ok(Source::Kube),
            None => bail!("--source is needed outside a pod: kube, with --kubeconfig, or dir:PATH"),
        }
    }

    /// Sizes of the maps.
    pub fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        for (name, count) in &self.limits {
            if let Some(field) = limit_field(&mut limits, name) {
                *field = *count;
            }
        }
        limits
    }
}

/// Where the agent's socket is.
#[derive(Clone, Debug, Args)]
pub struct ApiArgs {
    /// The agent's Unix socket
    #[arg(long, value_name = "PATH", default_value = "/run/culvert/agent.sock", env = "CULVERT_API_SOCKET")]
    pub api_socket: PathBuf,
}

/// How a command prints.
#[derive(Clone, Copy, Debug, Args)]
pub struct OutputArgs {
    /// The form of the output; a table by default
    #[arg(short, long, value_enum)]
    pub output: Option<Output>,
}

/// Forms of output besides the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table with more columns
    Wide,
    /// For programs
    Json,
    /// For programs and people
    Yaml,
}

/// `culvert status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Where to ask.
    #[command(flatten)]
    pub api: ApiArgs,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
    /// Wait until all is well
    #[arg(long)]
    pub wait: bool,
    /// Seconds to wait for at most
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "wait")]
    pub timeout: u64,
}

/// `culvert services`.
#[derive(Debug, Args)]
pub struct ServicesArgs {
    /// One Service: NAME (of any namespace) or NAMESPACE/NAME
    #[arg(value_name = "[NAMESPACE/]NAME")]
    pub name: Option<String>,
    /// Where to ask.
    #[command(flatten)]
    pub api: ApiArgs,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `culvert backends`.
#[derive(Debug, Args)]
pub struct BackendsArgs {
    /// Of one Service: NAME (of any namespace) or NAMESPACE/NAME
    #[arg(value_name = "[NAMESPACE/]SERVICE")]
    pub name: Option<String>,
    /// Where to ask.
    #[command(flatten)]
    pub api: ApiArgs,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `culvert flows`.
#[derive(Debug, Args)]
pub struct FlowsArgs {
    /// Which flows.
    #[command(flatten)]
    pub filter: FlowFilter,
    /// Where to ask.
    #[command(flatten)]
    pub api: ApiArgs,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `culvert drain`.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// The node may announce addresses again
    #[arg(long)]
    pub undo: bool,
    /// Say whether the node is drained, and change nothing
    #[arg(long, conflicts_with = "undo")]
    pub show: bool,
    /// Where to ask.
    #[command(flatten)]
    pub api: ApiArgs,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `culvert l2`.
#[derive(Debug, Args)]
pub struct L2Args {
    /// Where to ask.
    #[command(flatten)]
    pub api: ApiArgs,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Which flows are shown: those that meet all conditions.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
pub struct FlowFilter {
    /// Of one Service: NAME (of any namespace) or NAMESPACE/NAME
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    pub service: Option<String>,
    /// Whose client has this address
    #[arg(long, value_name = "ADDRESS")]
    pub client: Option<IpAddr>,
    /// That asked for this address
    #[arg(long, value_name = "ADDRESS")]
    pub frontend: Option<IpAddr>,
    /// Whose backend has this address
    #[arg(long, value_name = "ADDRESS")]
    pub backend: Option<IpAddr>,
    /// Of one protocol
    #[arg(long, value_name = "tcp|udp|sctp", value_parser = protocol)]
    pub protocol: Option<Protocol>,
    /// At most so many, the youngest
    #[arg(long, value_name = "COUNT", default_value_t = 1000)]
    pub limit: usize,
}

/// `culvert monitor`.
#[derive(Debug, Args)]
pub struct MonitorArgs {
    /// Where to ask.
    #[command(flatten)]
    pub api: ApiArgs,
    /// The form of the output: a line of text by default
    #[arg(short, long, value_enum)]
    pub output: Option<MonitorOutput>,
}

/// Forms of samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MonitorOutput {
    /// One object a line
    Json,
}

/// `culvert cleanup`.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)] // each is a switch
pub struct CleanupArgs {
    /// The node's bpf file system
    #[arg(long, value_name = "PATH", default_value = BPFFS)]
    pub bpffs: PathBuf,
    /// As of the agent; what is attached there is found without it
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// Where the agent is asked whether it serves; without --kube-proxy, its socket is removed too.
    #[command(flatten)]
    pub api: ApiArgs,
    /// Remove what kube-proxy left, and leave the agent's alone
    #[arg(long, conflicts_with_all = ["bpffs", "cgroup"])]
    pub kube_proxy: bool,
    /// Say what would be removed, and remove nothing
    #[arg(long, requires = "kube_proxy")]
    pub dry_run: bool,
    /// Do not wait for connections; those that netfilter translates may break
    #[arg(long, requires = "kube_proxy")]
    pub now: bool,
    /// Go on though kube-proxy runs or no healthy agent serves: Services may go unserved, or kube-proxy may put its rules back
    #[arg(long, requires = "kube_proxy")]
    pub force: bool,
    /// Seconds to wait for connections to end
    #[arg(long, value_name = "SECONDS", default_value_t = 600, requires = "kube_proxy", conflicts_with = "now")]
    pub timeout: u64,
    /// How to print what was found.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Forms of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One object a line
    Json,
}

/// `--socket-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SocketModeArg {
    /// The host's and the pods'
    All,
    /// The host's
    Host,
}

impl From<SocketModeArg> for SocketMode {
    fn from(mode: SocketModeArg) -> Self {
        match mode {
            SocketModeArg::All => Self::All,
            SocketModeArg::Host => Self::Host,
        }
    }
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
    /// Let nodes announce addresses that have the label node.kubernetes.io/exclude-from-external-load-balancers
    #[arg(long)]
    pub ignore_exclude_lb: bool,
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

    /// What the choice of nodes in layer 2 depends on.
    pub fn layer2(&self) -> Settings {
        Settings { ignore_exclude_label: self.ignore_exclude_lb }
    }

    /// What validation depends on.
    pub fn rules(&self) -> Rules {
        Rules { node_ports: self.service_node_port_range.clone() }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Adds the help of every command below one; of those that have commands of their own, theirs.
    fn describe(above: &clap::Command, name: &str, text: &mut String) {
        let below = |command: &&clap::Command| !command.is_hide_set() && command.get_name() != "help";
        for command in above.get_subcommands().filter(below) {
            let name = format!("{name} {}", command.get_name());
            if command.has_subcommands() {
                describe(command, &name, text);
                continue;
            }
            let help = command.clone().mut_args(|arg| arg.hide_env_values(true)).render_long_help().to_string();
            let help: Vec<_> = help.trim_end().lines().map(str::trim_end).collect();
            text.extend(["\n## ", &name, "\n\n```text\n", &help.join("\n"), "\n```\n"]);
        }
    }

    /// `docs/CLI.md` is what the commands say of themselves. `CULVERT_WRITE_DOCS=1 cargo test -p culvert` writes it anew.
    #[test]
    fn the_documentation_is_in_step() {
        let mut text = include_str!("cli.md").to_owned();
        let mut command = Cli::command().term_width(100).mut_args(|arg| arg.hide_env_values(true));
        command.build();
        describe(&command, "culvert", &mut text);
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/CLI.md");
        if std::env::var_os("CULVERT_WRITE_DOCS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(written == text, "docs/CLI.md is out of step: run CULVERT_WRITE_DOCS=1 cargo test -p culvert");
    }
}
