//! `cargo xtask lint`: what can be said about the source without running it.

mod licences;
mod object;
mod size;

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{
    cargo::{WORKSPACE, cargo, kernel_clippy, standard_library},
    setup,
    step::{Job, Step, Verdict, alone, run_all},
    test::build_programs,
    workspace::Workspace,
};

/// Arguments of `lint`.
#[derive(Args)]
pub struct Arguments {
    /// Format the source and apply what clippy can mend by itself, then check
    #[arg(long)]
    fix: bool,
}

const LIMIT: Duration = Duration::from_mins(15);

/// The checks, cheap ones first.
pub const STEPS: &[Step] = &[
    Step { name: "lint-size", about: "no file too long to be read", limit: LIMIT, required: true, run: size::check },
    Step {
        name: "lint-licences",
        about: "licence texts and fields",
        limit: LIMIT,
        required: true,
        run: licences::check,
    },
    Step { name: "lint-format", about: "rustfmt, kernel programs too", limit: LIMIT, required: true, run: format },
    Step {
        name: "lint-dependencies",
        about: "licences, bans and origins of dependencies (cargo-deny)",
        limit: LIMIT,
        required: true,
        run: dependencies,
    },
    Step {
        name: "lint-advisories",
        about: "known faults of dependencies, where the database is to be had",
        limit: LIMIT,
        required: false,
        run: advisories,
    },
    Step {
        name: "lint-clippy",
        about: "clippy, warnings denied, for the other architecture where its target is to be had: it shows that that one compiles, too",
        limit: LIMIT,
        required: true,
        run: clippy,
    },
    Step {
        name: "lint-kernel",
        about: "clippy over the kernel programs, with their compiler and target",
        limit: LIMIT,
        required: true,
        run: clippy_kernel,
    },
    Step {
        name: "lint-object",
        about: "no way to a panic in the kernel object, and no loop over bytes to copy an address",
        limit: LIMIT,
        required: true,
        run: kernel_object,
    },
];

/// Runs the checks.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    setup::run(workspace)?;
    if arguments.fix {
        alone(workspace, "lint-fix", LIMIT, fix)?;
    }
    run_all(workspace, STEPS)
}

fn fix(job: &mut Job) -> Result<()> {
    job.run(cargo(job.workspace, ["fmt", "--all"]))?;
    let what = ["clippy", "--fix", "--allow-dirty", "--allow-staged", "--all-targets"];
    job.run(cargo(job.workspace, what.into_iter().chain(WORKSPACE)))
}

fn format(job: &mut Job) -> Result<Verdict> {
    job.run(cargo(job.workspace, ["fmt", "--all", "--check", "--", "--color", "never"]))?;
    Ok(Verdict::Passed)
}

/// The architecture that nothing is built for here.
const OTHER: &str = "aarch64-unknown-linux-gnu";

fn clippy(job: &mut Job) -> Result<Verdict> {
    let other = other_architecture(job)
        .inspect_err(|error| job.report(&format!("for this machine's architecture only: {error:#}")))
        .is_ok();
    let target = other.then_some(["--target", OTHER]).into_iter().flatten();
    let what = ["clippy"].into_iter().chain(WORKSPACE).chain(["--all-targets"]).chain(target);
    job.run(cargo(job.workspace, what.chain(["--", "-D", "warnings"])))?;
    Ok(Verdict::Passed)
}

/// Fetches the standard library, and what compiles the C parts of dependencies.
fn other_architecture(job: &mut Job) -> Result<()> {
    ensure!(standard_library(job, OTHER), "no standard library for {OTHER} is to be had");
    setup::aarch64(job.workspace)
}

fn clippy_kernel(job: &mut Job) -> Result<Verdict> {
    let toolchain = job.workspace.toolchain().context("no compiler for the kernel programs")?;
    let Some(clippy) = toolchain.clippy() else {
        return Ok(Verdict::NotRun(format!("{toolchain} has no clippy")));
    };
    job.run(kernel_clippy(job.workspace, toolchain, &clippy))?;
    Ok(Verdict::Passed)
}

fn kernel_object(job: &mut Job) -> Result<Verdict> {
    let programs = object::check(&build_programs(job)?)?;
    job.note(&format!("{programs} programs"));
    Ok(Verdict::Passed)
}

fn dependencies(job: &mut Job) -> Result<Verdict> {
    job.run(cargo(job.workspace, ["deny", "check", "--hide-inclusion-graph", "licenses", "bans", "sources"]))?;
    Ok(Verdict::Passed)
}

fn advisories(job: &mut Job) -> Result<Verdict> {
    if job.run(cargo(job.workspace, ["deny", "fetch", "db"])).is_err() {
        return Ok(Verdict::NotRun("the advisory database is out of reach".to_owned()));
    }
    job.run(cargo(job.workspace, ["deny", "--offline", "check", "advisories"]))?;
    Ok(Verdict::Passed)
}
