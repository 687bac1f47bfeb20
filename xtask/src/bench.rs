//! `cargo xtask bench`: builds the benchmarks and runs one on this terminal. They print figures and judge nothing.

use std::{
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};

use crate::{
    setup,
    step::alone,
    test,
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

/// Runs a benchmark.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let Bench::Path { only } = &arguments.bench;
    setup::run(workspace)?;
    let artifacts = alone(workspace, "build", LIMIT, test::build_programs)?;
    let object = artifacts.kernel_object()?;
    let mut bench = Command::new(artifacts.binary("culvert-bench")?);
    bench
        .current_dir(&workspace.root)
        .env("PATH", search_path())
        .env("CULVERT_BIN", artifacts.binary("culvert")?)
        .env("CULVERT_SHIM_OBJECT", object.with_file_name("shim.o"))
        .env("CULVERT_EBPF_OBJECT", object);
    bench.arg("path").args(only.iter().map(|part| part.name()));
    let status = bench.status().context("cannot start the benchmark")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
