//! Runs the demo: see `culvert_tests::demo`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use culvert_tests::demo;

/// Shows Culvert at work on real servers, in network namespaces of this machine.
#[derive(Debug, Parser)]
struct Arguments {
    /// Leave everything running, and say how to look around
    #[arg(long)]
    keep: bool,
    /// End what an earlier run was told to keep
    #[arg(long, conflicts_with = "keep")]
    remove: bool,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.remove {
        demo::remove()?;
        return Ok(ExitCode::SUCCESS);
    }
    let held = demo::run(arguments.keep)?;
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
