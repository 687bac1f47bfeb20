//! `cargo xtask test`: every check and test, cheap ones first.
//!
//! Everything is built once, for all steps, and test programs are run directly: the same ones run here and in virtual
//! machines.

mod ahead;
mod cluster;
mod conformance;
mod kit;
mod kubernetes;
mod suite;
mod virtual_machine;

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use clap::Args;

use crate::{
    cargo::{Artifacts, WORKSPACE, cargo},
    lint, setup,
    step::{Job, Step, Verdict, run_all},
    ui::say,
    vm::Kernel,
    workspace::Workspace,
};
use ahead::Ahead;
use kit::Kit;
use suite::Suite;
use virtual_machine::Part;

/// Arguments of `test`.
#[derive(Args)]
pub struct Arguments {
    /// Run only the steps whose name begins so; may be given several times
    #[arg(long, value_name = "STEP")]
    only: Vec<String>,
    /// Name the steps and run none
    #[arg(long)]
    list: bool,
}

const fn minutes(minutes: u64) -> Duration {
    Duration::from_mins(minutes)
}

/// What follows on the checks of `lint`.
const STEPS: &[Step] = &[
    Step {
        name: "build",
        about: "everything, for all steps that follow",
        limit: minutes(25),
        required: true,
        run: |job| Kit::build(job).map(|_| Verdict::Passed),
    },
    Step {
        name: "unit",
        about: "tests beside the code",
        limit: minutes(15),
        required: true,
        run: |job| Suite::Unit.run(job),
    },
    Step {
        name: "packets",
        about: "kernel programs on prepared packets, by BPF_PROG_TEST_RUN",
        limit: minutes(10),
        required: true,
        run: |job| Suite::Packets.run(job),
    },
    Step {
        name: "oracle",
        about: "kernel programs against the oracle on 2,000,000 generated packets",
        limit: minutes(20),
        required: true,
        run: |job| Suite::Oracle.run(job),
    },
    Step {
        name: "namespaces",
        about: "agents and real traffic in network namespaces",
        limit: minutes(25),
        required: true,
        run: |job| Suite::Namespaces.run(job),
    },
    Step { name: "demo", about: "the demo of `cargo xtask demo`", limit: minutes(10), required: true, run: demo },
    Step {
        name: "vm-6.1",
        about: "programs, hooks and virtual servers on the oldest supported kernel, and a part of all else, another one for each commit",
        limit: minutes(30),
        required: true,
        run: |job| virtual_machine::run(job, Kernel::V6_1, Part::Few),
    },
    Step {
        name: "vm-6.12",
        about: "programs and hooks on Linux 6.12",
        limit: minutes(30),
        required: true,
        run: |job| virtual_machine::run(job, Kernel::V6_12, Part::Hooks),
    },
];

/// What needs parts of test clusters: it comes last, for those are built meanwhile.
const WITH_PARTS: &[Step] = &[
    Step {
        name: "kubernetes",
        about: "the agent, kube-proxy and what users install, with a real API server",
        limit: minutes(35),
        required: true,
        run: |job| Suite::Kubernetes.run(job),
    },
    Step {
        name: "conformance",
        about: "upstream's core specs of Services on a real cluster, some in each other family, CNI and socket mode, and some of LoadBalancers",
        limit: minutes(40),
        required: true,
        run: conformance::run,
    },
];

/// What takes longer than every change has time for: these run only if they are named.
const ON_DEMAND: &[Step] = &[
    Step {
        name: "whole-6.1",
        about: "programs, namespaces and SCTP on the oldest supported kernel: all that a machine runs",
        limit: minutes(40),
        required: true,
        run: |job| virtual_machine::run(job, Kernel::V6_1, Part::Whole),
    },
    Step {
        name: "cluster",
        about: "agents as a DaemonSet on a real cluster: killed, upgraded, rolled back, rebooted",
        limit: minutes(90),
        required: true,
        run: cluster::run,
    },
];

/// Runs the steps.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let chosen = |step: &&Step| {
        arguments.only.is_empty() || arguments.only.iter().any(|only| step.name.starts_with(only.as_str()))
    };
    let named = !arguments.only.is_empty() || arguments.list;
    let on_demand = ON_DEMAND.iter().filter(|_| named);
    let steps: Vec<&Step> = lint::STEPS.iter().chain(STEPS).chain(WITH_PARTS).chain(on_demand).filter(chosen).collect();
    if steps.is_empty() {
        anyhow::bail!("no step begins with {}; --list names them", arguments.only.join(" or "));
    }
    if arguments.list {
        for step in steps {
            let on_demand = ON_DEMAND.iter().any(|one| one.name == step.name);
            let note = if on_demand {
                " (only if named)"
            } else if step.required {
                ""
            } else {
                " (optional)"
            };
            say(&format!("{:<18} {}{note}", step.name, step.about));
        }
        return Ok(ExitCode::SUCCESS);
    }
    setup::run(workspace)?;
    let needs_parts = |step: &&Step| WITH_PARTS.iter().any(|one| one.name == step.name);
    // Beside steps that do without them.
    let others_first = steps.iter().position(needs_parts).is_some_and(|first| first > 0);
    let _ahead = others_first.then(|| Ahead::begin(workspace)).transpose()?;
    run_all(workspace, steps)
}

/// Builds every program and test harness of the workspace; after the first time this takes a second.
pub fn build(job: &mut Job) -> Result<Artifacts> {
    build_targets(job, &["--all-targets"])
}

/// Builds every program, but no test.
pub fn build_programs(job: &mut Job) -> Result<Artifacts> {
    build_targets(job, &["--bins"])
}

fn build_targets(job: &mut Job, targets: &[&str]) -> Result<Artifacts> {
    let mut artifacts = Artifacts::default();
    let targets = targets.iter().copied();
    let flags = ["--message-format", "json-render-diagnostics"];
    let build = cargo(job.workspace, ["build"].into_iter().chain(WORKSPACE).chain(targets).chain(flags));
    job.listen(build, |line| artifacts.take(line))?;
    Ok(artifacts)
}

fn demo(job: &mut Job) -> Result<Verdict> {
    let artifacts = build(job)?;
    job.run(crate::demo::command(job.workspace, &artifacts)?)?;
    Ok(Verdict::Passed)
}
