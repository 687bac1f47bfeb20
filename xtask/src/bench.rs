//! `cargo xtask bench`: builds the benchmarks and runs one on this terminal. They print figures and judge nothing.

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};

use crate::{
    cargo::Artifacts,
    cluster::parts::{self, Program},
    image, setup,
    step::alone,
    test,
    ui::leave_output,
    workspace::{Workspace, search_path},
};

/// Arguments of `bench`.
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Nanoseconds a packet, program by program; `connect()` with and without the socket programs; connections/s and
    /// throughput through a `ClusterIP` and a `NodePort`
    Path {
        /// Measure only these parts
        #[arg(long, value_name = "PART", value_enum, value_delimiter = ',')]
        only: Vec<Part>,
    },
    /// Lists to kernel, change to kernel, memory and CPU time of the agent and of kube-proxy, with a real API server;
    /// docs/BENCHMARKS.md
    Scale(Scale),
    /// Time without an answer, broken connections and double answers when the node fails that announces an address: node
    /// off, agent killed, link down, drain; docs/BENCHMARKS.md
    Failover(Failover),
}

/// Options of `bench failover`, handed on.
#[derive(Args)]
struct Failover {
    /// What happens to the node: node-off, agent-killed, link-down, drain [default: all of them]
    #[arg(long, value_name = "CASE,...")]
    cases: Option<String>,
    /// Runs of each case [default: 20]
    #[arg(long, value_name = "N")]
    rounds: Option<String>,
    /// Nodes, up to 9 [default: 3]
    #[arg(long, value_name = "N")]
    nodes: Option<String>,
    /// How to print the figures; with `json`, each single run, and nothing else on standard output
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// Options of `bench scale`, handed on; the benchmark knows what they may be.
#[derive(Args)]
struct Scale {
    /// Services, or Services and the endpoints of each [default: 1,100,1000,10000,5000x50]
    #[arg(long, value_name = "SERVICES[xENDPOINTS]")]
    sizes: Option<String>,
    /// What is measured [default: culvert,kube-proxy:nftables,kube-proxy:iptables]
    #[arg(long, value_name = "PROXY")]
    proxies: Option<String>,
    /// How often each proxy is started [default: 3]
    #[arg(long, value_name = "N")]
    rounds: Option<String>,
    /// Changes of one endpoint after the last start [default: 200]
    #[arg(long, value_name = "N")]
    changes: Option<String>,
    /// Minutes that a start may take [default: 5]
    #[arg(long, value_name = "MINUTES")]
    start_limit: Option<String>,
    /// Minutes that all changes of a proxy may take [default: 20]
    #[arg(long, value_name = "MINUTES")]
    change_limit: Option<String>,
    /// How to print the figures; with `json`, each single one, and nothing else on standard output
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
    /// The agent to measure [default: that of `cargo xtask image`]
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

/// How figures are printed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

impl Output {
    /// Its name on the benchmark's command line.
    fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// Parts of `bench path`.
#[derive(Clone, Copy, ValueEnum)]
enum Part {
    /// Nanoseconds a packet
    Packets,
    /// Nanoseconds a `connect()`
    Connects,
    /// Connections a second, and throughput
    Rates,
}

impl Part {
    /// Its name on the benchmark's command line.
    fn name(self) -> &'static str {
        match self {
            Self::Packets => "packets",
            Self::Connects => "connects",
            Self::Rates => "rates",
        }
    }
}

/// Time that one call of cargo may take.
const LIMIT: Duration = Duration::from_mins(25);

/// What `bench scale` runs besides.
const PROGRAMS: &[Program] = &[Program::Etcd, Program::KubeApiserver, Program::KubeProxy];

/// Runs a benchmark.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let output = match &arguments.bench {
        Bench::Path { .. } => Output::Text,
        Bench::Scale(options) => options.output,
        Bench::Failover(options) => options.output,
    };
    if output == Output::Json {
        leave_output();
    }
    setup::run(workspace)?;
    let artifacts = alone(workspace, "build", LIMIT, test::build_programs)?;
    let mut bench = Command::new(artifacts.binary("culvert-bench")?);
    bench.current_dir(&workspace.root).env("PATH", search_path());
    match &arguments.bench {
        Bench::Path { only } => path(&mut bench, &artifacts, only)?,
        Bench::Scale(options) => scale(&mut bench, workspace, options)?,
        Bench::Failover(options) => failover(&mut bench, &artifacts, options)?,
    }
    let status = bench.status().context("cannot start the benchmark")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn path(bench: &mut Command, artifacts: &Artifacts, only: &[Part]) -> Result<()> {
    let object = artifacts.kernel_object()?;
    bench
        .env("CULVERT_BIN", artifacts.binary("culvert")?)
        .env("CULVERT_SHIM_OBJECT", object.with_file_name("shim.o"))
        .env("CULVERT_EBPF_OBJECT", object);
    bench.arg("path").args(only.iter().map(|part| part.name()));
    Ok(())
}

fn failover(bench: &mut Command, artifacts: &Artifacts, options: &Failover) -> Result<()> {
    bench.env("CULVERT_BIN", artifacts.binary("culvert")?);
    let Failover { cases, rounds, nodes, output } = options;
    bench.args(["failover", "--output", output.name()]);
    for (name, value) in [("--cases", cases), ("--rounds", rounds), ("--nodes", nodes)] {
        if let Some(value) = value {
            bench.args([name, value]);
        }
    }
    Ok(())
}

/// The agent as users get it: from the image.
fn agent(workspace: &Workspace) -> Result<PathBuf> {
    setup::image(workspace)?;
    alone(workspace, "agent", image::LIMIT, |job| image::agent(job, &[]))
}

fn scale(bench: &mut Command, workspace: &Workspace, options: &Scale) -> Result<()> {
    setup::cluster(workspace)?;
    let programs = alone(workspace, "programs", parts::LIMIT, |job| parts::programs(job, PROGRAMS))?;
    let agent = options.agent.clone().map_or_else(|| agent(workspace), Ok)?;
    bench.env("CULVERT_BIN", agent).env("CULVERT_KUBERNETES", programs.search_path()?);
    bench.args(["scale", "--output", options.output.name()]);
    let Scale { sizes, proxies, rounds, changes, start_limit, change_limit, output: _, agent: _ } = options;
    for (name, value) in [
        ("--sizes", sizes),
        ("--proxies", proxies),
        ("--rounds", rounds),
        ("--changes", changes),
        ("--start-limit", start_limit),
        ("--change-limit", change_limit),
    ] {
        if let Some(value) = value {
            bench.args([name, value]);
        }
    }
    Ok(())
}
