//! The tasks of the workspace: `cargo xtask COMMAND`. `docs/DEVELOPING.md` says when to use which.
//!
//! One module for each command; what they share is below them:
//! ```text
//!  setup   lint   test   demo   bench   cluster   e2e   image   vm commands
//!            └──────┴── step ───┘          steps: limits, log files, outcomes, the table at the end
//!  cargo   kernel   oci                    calls of cargo; the compiler of the kernel programs; container images
//!  process   lanes   ui   workspace        child processes, some at once; the terminal, paths
//! ```

mod bench;
mod cargo;
mod cluster;
mod demo;
mod e2e;
mod image;
mod kernel;
mod lanes;
mod lint;
mod oci;
mod process;
mod setup;
mod step;
mod test;
mod ui;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use workspace::Workspace;

/// Tasks of the Culvert workspace.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building, testing and the demo need (Debian 12, as root); does nothing the second time
    Setup(setup::Arguments),
    /// Check format, lints, dependencies, licences and the kernel object
    Lint(lint::Arguments),
    /// Run every check and test, cheap ones first, and end with a table
    Test(test::Arguments),
    /// Show the main job: two nodes, real servers, a backend scaled away, an agent killed under load
    Demo(demo::Arguments),
    /// Measure what a packet, a connect and a connection cost
    Bench(bench::Arguments),
    /// Make, use and remove real Kubernetes clusters inside this machine
    Cluster(cluster::Arguments),
    /// Run Kubernetes' own tests of Services on a real cluster
    E2e(e2e::Arguments),
    /// Build the agent's container image, for `ctr images import`, `docker load` and the like
    Image(image::Arguments),
    /// Boot a Debian kernel under QEMU, with this machine's files as its root, and run a command there
    Vm(vm::Arguments),
}

fn main() -> ExitCode {
    let outcome = Workspace::find().and_then(|workspace| match Arguments::parse().task {
        Task::Setup(arguments) => setup::command(&workspace, &arguments),
        Task::Lint(arguments) => lint::run(&workspace, &arguments),
        Task::Test(arguments) => test::run(&workspace.with_image(image::Profile::Development), &arguments),
        Task::Demo(arguments) => demo::run(&workspace, &arguments),
        Task::Bench(arguments) => bench::run(&workspace, &arguments),
        Task::Cluster(arguments) => cluster::run(&workspace, &arguments),
        Task::E2e(arguments) => e2e::run(&workspace, &arguments),
        Task::Image(arguments) => image::run(&workspace, &arguments),
        Task::Vm(arguments) => vm::run(&workspace, &arguments),
    });
    outcome.unwrap_or_else(|error| {
        ui::say(&format!("error: {error:#}"));
        ExitCode::FAILURE
    })
}
