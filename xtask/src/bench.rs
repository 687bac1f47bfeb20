//! `cargo xtask bench`: builds the benchmarks and runs one on this terminal. They print figures and judge nothing.

use std::{
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

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
    Path,
}

/// Time that one call of cargo may take.
const LIMIT: Duration = Duration::from_mins(25);

/// Runs a benchmark.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let Bench::Path = arguments.bench;
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
    let status = bench.arg("path").status().context("cannot start the benchmark")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
