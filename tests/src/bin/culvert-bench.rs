//! `culvert-bench`: the benchmarks. Called by `cargo xtask bench`, which builds what they need.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, ValueEnum};
use culvert_tests::bench::{
    connect, connections, failover,
    path::{self, Effort},
    scale::{self, Plan, figures, objects::Size, proxy::Proxy},
};
use serde_json::json;

/// Benchmarks
#[derive(Parser)]
enum Bench {
    /// What a packet, a connect and a connection cost
    Path {
        /// Measure only these parts
        #[arg(value_enum)]
        parts: Vec<Part>,
    },
    /// How proxies scale with Services and endpoints
    Scale(Scale),
    /// How addresses move when nodes fail
    Failover(Failover),
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Packets,
    Connects,
    Rates,
}

#[derive(Args)]
struct Scale {
    /// Services, and endpoints of each
    #[arg(long, value_delimiter = ',', default_value = "1,100,1000,10000,5000x50")]
    sizes: Vec<Size>,
    /// What is measured
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Proxy::ALL)]
    proxies: Vec<Proxy>,
    /// Starts of each proxy
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Changes of one endpoint
    #[arg(long, default_value_t = 200)]
    changes: usize,
    /// Minutes that a start may take
    #[arg(long, default_value_t = 5)]
    start_limit: u64,
    /// Minutes that all changes of a proxy may take
    #[arg(long, default_value_t = 20)]
    change_limit: u64,
    /// How to print the figures
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Args)]
struct Failover {
    /// What happens to the node
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = failover::Case::ALL)]
    cases: Vec<failover::Case>,
    /// Runs of each case
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    /// How to print the figures
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

fn main() -> Result<()> {
    match Bench::parse() {
        Bench::Path { parts } => {
            type Measure = fn() -> Result<()>;
            let all: [(Part, Measure); 3] =
                [(Part::Packets, packets), (Part::Connects, connects), (Part::Rates, rates)];
            let wanted = |part| parts.is_empty() || parts.contains(&part);
            all.into_iter().filter(|(part, _)| wanted(*part)).try_for_each(|(_, measure)| measure())
        }
        Bench::Scale(arguments) => scale(&arguments),
        Bench::Failover(arguments) => failover(&arguments),
    }
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

/// Time without an answer, broken connections, and two answers at once.
fn failover(arguments: &Failover) -> Result<()> {
    let Failover { cases, rounds, nodes, output } = arguments;
    let figures = failover::run(*nodes, *rounds, cases, &mut |words| {
        let _ = writeln!(std::io::stderr(), "{words}");
    })?;
    let mut out = std::io::stdout();
    if matches!(output, Output::Json) {
        serde_json::to_writer_pretty(&mut out, &json!({"nodes": nodes, "interval_ms": 5, "cases": figures}))?;
        return Ok(writeln!(out)?);
    }
    writeln!(
        out,
        "{:<30}{:>6}{:>10}{:>10}{:>9}{:>9}{:>11}",
        "case", "runs", "p50 ms", "max ms", "lost", "broken", "overlap ms"
    )?;
    for figure in &figures {
        let (median, maximum) = figure.median_and_maximum(|run| run.silence_ms);
        let (_, overlap) = figure.median_and_maximum(|run| run.overlap_ms);
        let (lost, broken): (usize, usize) =
            figure.runs.iter().fold((0, 0), |(lost, broken), run| (lost + run.lost, broken + run.broken));
        writeln!(
            out,
            "{:<30}{:>6}{median:>10}{maximum:>10}{lost:>9}{broken:>9}{overlap:>11}",
            figure.case.name(),
            figure.runs.len()
        )?;
    }
    Ok(writeln!(
        out,
        "{nodes} nodes. Time without an answer to a UDP request every 5 ms from a client behind a router; requests lost; of 20 \
         TCP connections in each run, those that broke; the longest time in which two nodes answered or announced."
    )?)
}

/// Lists to kernel, change to kernel, memory and CPU time.
fn scale(arguments: &Scale) -> Result<()> {
    let Scale { sizes, proxies, rounds, changes, start_limit, change_limit, output } = arguments;
    let plan = Plan {
        proxies: proxies.clone(),
        rounds: (*rounds).max(1),
        changes: *changes,
        start_limit: Duration::from_mins(*start_limit),
        change_limit: Duration::from_mins(*change_limit),
    };
    let machine = scale::machine::describe(proxies)?;
    let text = matches!(output, Output::Text);
    let mut out = std::io::stdout();
    if text {
        for (what, value) in &machine {
            writeln!(out, "{what:<24}{value}")?;
        }
        writeln!(out)?;
    }
    let mut cases = Vec::new();
    for &size in sizes {
        let of_size = scale::run(&plan, size, &mut |words| {
            let _ = writeln!(std::io::stderr(), "{words}");
        })?;
        if text {
            write!(out, "{}", figures::table(&of_size))?;
        }
        cases.extend(of_size);
    }
    if text {
        writeln!(
            out,
            "Real API server; proxies in turn, {} starts of each, median (and range), {start_limit} minutes at most; {changes} \
             changes of one endpoint after the last start, {change_limit} minutes at most. See docs/BENCHMARKS.md.",
            plan.rounds
        )?;
    } else {
        serde_json::to_writer_pretty(&mut out, &json!({"machine": machine, "cases": cases}))?;
    }
    Ok(writeln!(out)?)
}
