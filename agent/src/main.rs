//! Culvert: a node's Services in eBPF. One binary: the agent, and the commands that look at it.

mod addresses;
mod agent;
mod announcements;
mod cli;
mod client;
mod config_check;
mod configuration;
mod controller;
mod election;
mod http;
mod logging;
mod metallb;
mod node_setup;
mod objects;
mod output;
mod plan;
mod scope;
mod signals;
mod statuses;
mod takeover;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command, ConfigCommand};
use crate::output::{Done, complain, explain};

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Plan(args) => plan::run(&args),
        Command::Config(ConfigCommand::Check(args)) => config_check::run(&args),
        Command::Agent(args) => agent::run(&args),
        Command::Controller(args) => controller::run(&args),
        Command::Status(args) => client::status(&args),
        Command::Services(args) => client::services(&args),
        Command::Backends(args) => client::backends(&args),
        Command::Flows(args) => client::flows(&args),
        Command::L2(args) => client::l2(&args),
        Command::Drain(args) => client::drain(&args),
        Command::Monitor(args) => client::monitor(&args),
        Command::Cleanup(args) if args.kube_proxy => takeover::run(&args),
        Command::Cleanup(args) => client::cleanup(&args),
        Command::NodeSetup(args) => node_setup::run(&args),
        Command::Completions { shell } => output::completions(shell),
        Command::Man { directory } => output::manual(&directory),
    };
    done.unwrap_or_else(|error| {
        complain(format_args!("culvert: {}", explain(&error)));
        Done::Failed
    })
    .into()
}
