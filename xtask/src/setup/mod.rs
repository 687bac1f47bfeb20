//! `cargo xtask setup`: what building, testing and the demo need, on Debian 12.
//!
//! Nothing is remembered between runs: each need is looked for on the machine, and only what is missing is installed.
//! That makes a second run a matter of a second, and right even after somebody removed a package.

mod go;
mod needs;
mod packages;
mod tools;

use std::{
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Args;
pub use go::Go;

use crate::{
    kernel::{NIGHTLY, Toolchain},
    step::{alone, attempt},
    ui::say,
    workspace::{Workspace, find_program},
};
use needs::Need;

/// Arguments of `setup`.
#[derive(Args)]
pub struct Arguments {
    /// What test clusters and the agent's image need, too; commands that use them install it themselves
    #[arg(long)]
    cluster: bool,
}

/// `cargo xtask setup`.
pub fn command(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    run(workspace)?;
    if arguments.cluster {
        cluster(workspace)?;
        image(workspace)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Installs what test clusters need beside what everything needs.
pub fn cluster(workspace: &Workspace) -> Result<()> {
    install_packages(workspace, needs::CLUSTER)?;
    if Go::find(workspace).is_some() {
        return Ok(());
    }
    install_packages(workspace, needs::GO)?;
    alone(workspace, "setup: Go", tools::LIMIT, Go::fetch)?;
    Go::find(workspace).map(|_| ()).context("Go was fetched but does not run")
}

/// Installs what building the agent's image needs beside what everything needs.
pub fn image(workspace: &Workspace) -> Result<()> {
    install_packages(workspace, needs::IMAGE)
}

/// Installs software that tests on a cluster try with Services, beside what everything needs.
pub fn software(workspace: &Workspace) -> Result<()> {
    install_packages(workspace, needs::SOFTWARE)
}

/// Installs what clippy for aarch64 needs beside what everything needs.
pub fn aarch64(workspace: &Workspace) -> Result<()> {
    install_packages(workspace, needs::AARCH64)
}

/// Installs what is missing.
pub fn run(workspace: &Workspace) -> Result<()> {
    install_packages(workspace, needs::COMMON)?;
    let toolchain = install_toolchain(workspace)?;
    for tool in tools::TOOLS.iter().filter(|tool| !tool.present()) {
        step(workspace, tool.name, tools::LIMIT, tool.install())?;
        if !tool.present() {
            bail!("{} {} was installed but does not run", tool.name, tool.version);
        }
    }
    say(&format!("      set up; kernel programs are built with {toolchain}"));
    Ok(())
}

fn step(workspace: &Workspace, name: &str, limit: Duration, command: Command) -> Result<()> {
    alone(workspace, &format!("setup: {name}"), limit, |job| job.run(command))
}

fn install_packages(workspace: &Workspace, needs: &'static [Need]) -> Result<()> {
    let missing = needs::missing(needs);
    if missing.is_empty() {
        return Ok(());
    }
    packages::check(&missing)?;
    let _services = packages::HeldServices::hold()?;
    step(workspace, "package lists", packages::LIMIT, packages::update())?;
    step(workspace, "packages", packages::LIMIT, packages::install(&missing))?;
    match needs::missing(needs).first() {
        Some(need) => bail!("package {} was installed, but {} is not there", need.package, need.probe),
        None => Ok(()),
    }
}

/// The compiler of the kernel programs: what is there, else rustup's nightly, else Debian's.
fn install_toolchain(workspace: &Workspace) -> Result<Toolchain> {
    if let Some(toolchain) = Toolchain::find() {
        return Ok(toolchain);
    }
    if find_program("rustup").is_some() {
        let (name, command) = match Toolchain::nightly_without_core() {
            Some(nightly) => ("rust-src", tools::core_source(nightly)),
            None => (NIGHTLY, tools::nightly()),
        };
        // Where rustup's servers are out of reach this fails soon, and Debian's compiler serves.
        attempt(workspace, &format!("setup: {name}"), tools::LIMIT, command)?;
    }
    if let Some(toolchain) = Toolchain::find() {
        return Ok(toolchain);
    }
    install_packages(workspace, needs::COMPILER)?;
    Toolchain::find().context("no compiler for the kernel programs: neither rustup's nightly nor Debian's")
}
