//! `culvert-bench path`: what a packet and a connect cost. Called by `cargo xtask bench`, which builds the objects.

use std::io::{IsTerminal as _, Write as _};

use anyhow::{Context as _, Result};
use culvert_tests::bench::{
    connect, connections,
    path::{self, Effort},
};

type Part = fn() -> Result<()>;

/// `culvert-bench path [PART...]`: all parts, or those that are named.
fn main() -> Result<()> {
    let parts: [(&str, Part); 3] = [("packets", packets), ("connects", connects), ("rates", rates)];
    let wanted: Vec<String> = std::env::args().skip(2).collect();
    for (name, part) in parts {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            part()?;
        }
    }
    Ok(())
}

/// Nanoseconds a packet.
fn packets() -> Result<()> {
    let shim = std::env::var_os("CULVERT_SHIM_OBJECT").context("CULVERT_SHIM_OBJECT")?;
    let shim = std::fs::read(&shim).with_context(|| shim.display().to_string())?;
    let Effort { rounds, packets } = Effort { rounds: 7, packets: 1_000_000 };
    let figures = path::run(Effort { rounds, packets }, &shim, progress)?;
    progress(0, 0);
    let mut table = Table::new(["program", "packet", "family", "flows"])?;
    for figure in &figures {
        let flows = figure.flows.to_string();
        table.row([figure.program, figure.case, figure.family, &flows], &figure.nanoseconds)?;
    }
    table.note(&format!(
        "Nanoseconds a packet, net of the shim; {rounds} rounds of {packets} packets of 128 bytes, all cases in turn; \
         BPF_PROG_TEST_RUN."
    ))
}

/// Nanoseconds a connect.
fn connects() -> Result<()> {
    let (rounds, calls) = (7, 200_000);
    let figures = connect::run(rounds, calls)?;
    let mut table = Table::new(["call", "to", "family", ""])?;
    for figure in &figures {
        table.row([figure.call, figure.case, figure.family, ""], &figure.nanoseconds)?;
    }
    table.note(&format!(
        "Nanoseconds a call; {rounds} rounds of {calls} connects (TCP: a hundredth), all cases in turn."
    ))
}

/// Connections a second and throughput.
fn rates() -> Result<()> {
    let rounds = 5;
    let figures = connections::run(rounds, progress)?;
    progress(0, 0);
    let mut table = Table::new(["", "case", "", ""])?;
    for figure in &figures {
        for (what, sorted) in [
            ("connections/s", &figure.connections),
            ("µs CPU each", &figure.microseconds),
            ("Mbit/s", &figure.megabits),
        ] {
            table.row([what, &figure.case, "", ""], sorted)?;
        }
    }
    table.note(&format!(
        "TCP over IPv4 and veth, one thread asking and one answering; {rounds} rounds of a second, the cases of a mode in \
         turn."
    ))
}

/// A table of figures, a line a case.
struct Table(std::io::StdoutLock<'static>);

impl Table {
    fn new(head: [&str; 4]) -> Result<Self> {
        let mut table = Self(std::io::stdout().lock());
        let [a, b, c, d] = head;
        writeln!(table.0, "{a:<16}{b:<34}{c:<6}{d:>9}{:>10}{:>10}{:>10}", "min", "median", "max")?;
        Ok(table)
    }

    /// A case and its sorted figures.
    fn row(&mut self, case: [&str; 4], sorted: &[impl std::fmt::Display]) -> Result<()> {
        let [a, b, c, d] = case;
        let (Some(min), Some(median), Some(max)) = (sorted.first(), sorted.get(sorted.len() / 2), sorted.last()) else {
            return Ok(());
        };
        Ok(writeln!(self.0, "{a:<16}{b:<34}{c:<6}{d:>9}{min:>10}{median:>10}{max:>10}")?)
    }

    /// How it was measured.
    fn note(mut self, text: &str) -> Result<()> {
        Ok(writeln!(self.0, "{text}\n")?)
    }
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
