//! `cargo xtask cluster`: real Kubernetes clusters inside this machine.

pub mod parts;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::workspace::Workspace;

/// Arguments of `cluster`.
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Build programs and images of clusters ahead of time
    Build(parts::Arguments),
}

/// Runs an action.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.action {
        Action::Build(arguments) => parts::run(workspace, arguments),
    }
}
