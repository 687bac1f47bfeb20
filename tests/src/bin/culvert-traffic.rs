//! Echo servers and load of [`culvert_tests::traffic`] as a program, for pods and nodes of a real cluster: what moves
//! there is a process with its namespaces and its cgroup, not a thread of a test.
//!
//! It says `ready` once it listens or all its streams stand, and ends when its standard input does.

use std::io::{Read as _, Write as _, stdin, stdout};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use culvert_tests::traffic::{Load, Protocol, Server};

#[derive(Parser)]
#[command(about)]
struct Arguments {
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    /// Answers requests over TCP and UDP
    Serve {
        /// The name that answers give
        name: String,
        port: u16,
        #[arg(required = true)]
        addresses: Vec<IpAddr>,
    },
    /// Sends mixed requests, and reports what became of each as JSON
    Load {
        to: SocketAddr,
        /// Requests a second
        rate: u32,
        /// Seconds after which an answer counts as lost
        patience: u64,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().part {
        Part::Serve { name, port, addresses } => {
            let ports = [(Protocol::Tcp, port), (Protocol::Udp, port)];
            let server = Server::start_here(&name, &addresses, &ports)?;
            until_told()?;
            drop(server);
        }
        Part::Load { to, rate, patience } => {
            let patience = Duration::from_secs(patience);
            let load = Load { patience, ..Load::mixed(to, rate) }.start_here()?;
            until_told()?;
            serde_json::to_writer(stdout(), &load.finish())?;
        }
    }
    Ok(())
}

/// Says that all is there, and waits for the end of the input.
fn until_told() -> Result<()> {
    writeln!(stdout(), "ready")?;
    stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
