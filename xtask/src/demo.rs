//! `cargo xtask demo`: builds the agent and the demo, and runs the demo on this terminal.

use std::{
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;

use crate::{
    cargo::Artifacts,
    setup,
    step::alone,
    test,
    workspace::{Workspace, search_path},
};

/// Arguments of `demo`.
#[derive(Args)]
pub struct Arguments {
    /// Leave everything running, and say how to look around
    #[arg(long)]
    keep: bool,
    /// End what an earlier run was told to keep
    #[arg(long, conflicts_with = "keep")]
    remove: bool,
}

/// Time that one call of cargo may take.
const LIMIT: Duration = Duration::from_mins(25);

/// Runs the demo.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    setup::run(workspace)?;
    let artifacts = alone(workspace, "build", LIMIT, test::build_programs)?;
    let mut demo = command(workspace, &artifacts)?;
    for (chosen, argument) in [(arguments.keep, "--keep"), (arguments.remove, "--remove")] {
        if chosen {
            demo.arg(argument);
        }
    }
    let status = demo.status().context("cannot start the demo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The demo's program, of package `culvert-tests`.
pub fn command(workspace: &Workspace, artifacts: &Artifacts) -> Result<Command> {
    let mut demo = Command::new(artifacts.binary("culvert-demo")?);
    demo.current_dir(&workspace.root);
    demo.env("PATH", search_path()).env("CULVERT_BIN", artifacts.binary("culvert")?);
    Ok(demo)
}
