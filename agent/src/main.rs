//! Culvert: a node's Services in eBPF. One binary: the agent, and the commands that look at it.

mod cli;
mod output;
mod plan;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::output::{Done, complain};

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Plan(args) => plan::run(&args),
        Command::Completions { shell } => output::completions(shell),
        Command::Man { directory } => output::manual(&directory),
    };
    done.unwrap_or_else(|error| {
        complain(format_args!("culvert: {error:#}"));
        Done::Failed
    })
    .into()
}
