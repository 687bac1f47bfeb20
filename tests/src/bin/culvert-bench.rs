//! `culvert-bench path`: what the packet programs cost. Called by `cargo xtask bench`, which builds both objects.

use std::io::{IsTerminal as _, Write as _};

use anyhow::{Context as _, Result};
use culvert_tests::bench::path::{self, Effort, Figure};

fn main() -> Result<()> {
    let shim = std::env::var_os("CULVERT_SHIM_OBJECT").context("CULVERT_SHIM_OBJECT")?;
    let shim = std::fs::read(&shim).with_context(|| shim.display().to_string())?;
    let effort = Effort { rounds: 7, packets: 1_000_000 };
    let figures = path::run(effort, &shim, progress)?;
    progress(0, 0);
    print(&figures, effort)
}

/// Shows how far it is, on a terminal; nothing of nothing clears the line.
fn progress(done: usize, all: usize) {
    let mut err = std::io::stderr();
    if !err.is_terminal() {
        return;
    }
    let line = if all == 0 { String::new() } else { format!("measuring {done}/{all}") };
    let _ = write!(err, "\r{line:<24}\r");
}

fn print(figures: &[Figure], effort: Effort) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{:<14}{:<20}{:<8}{:>10}{:>10}{:>10}{:>10}",
        "program", "packet", "family", "flows", "min ns", "median", "max"
    )?;
    for figure in figures {
        let ns = &figure.nanoseconds;
        let (Some(min), Some(max), Some(median)) = (ns.first(), ns.last(), ns.get(ns.len() / 2)) else { continue };
        writeln!(
            out,
            "{:<14}{:<20}{:<8}{:>10}{min:>10}{median:>10}{max:>10}",
            figure.program, figure.case, figure.family, figure.flows
        )?;
    }
    let Effort { rounds, packets } = effort;
    writeln!(
        out,
        "\nnet of the shim; {rounds} rounds of {packets} packets, all cases in turn; BPF_PROG_TEST_RUN, 128-byte packets"
    )?;
    Ok(())
}
