//! `culvert cleanup --kube-proxy`: when what kube-proxy left may go, and what is said of it. What goes is
//! [`culvert_takeover`]'s to know.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use culvert_api::status::Status;
use culvert_api::takeover::{Cleanup, Connections, Subsystem, Trace, TraceKind};
use culvert_dataplane::conntrack;
use culvert_takeover::Findings;

use crate::cli::CleanupArgs;
use crate::client::{block_on, request, show, span};
use crate::output::{Done, complain, explain};

/// The shortest time between two counts of connections...
const PAUSE: Duration = Duration::from_secs(1);
/// ... and how many times longer than the count itself it is: a node may track a million.
const SHARE: u32 = 10;
/// Frontends that are named while it waits.
const NAMED: usize = 3;

/// Runs the command.
pub fn run(args: &CleanupArgs) -> Result<Done> {
    let mut cleanup = look();
    cleanup.running = culvert_takeover::signs();
    cleanup.connections = connections()?;
    if args.dry_run {
        show(&cleanup, args.output.output, text)?;
        return Ok(if cleanup.errors.is_empty() { Done::Well } else { Done::Failed });
    }
    if cleanup.found.is_empty() {
        show(&cleanup, args.output.output, text)?;
        return Ok(verdict(&cleanup));
    }
    if !args.force {
        refuse(args, &cleanup)?;
    }
    if !args.now {
        wait(&mut cleanup, Duration::from_secs(args.timeout))?;
    }
    // While it waited kube-proxy may have changed its rules, or somebody may have started to use them.
    cleanup = Cleanup { running: cleanup.running, connections: cleanup.connections, ..look() };
    cleanup.errors.extend(culvert_takeover::remove());
    let Findings { found, kept, errors } = culvert_takeover::find();
    cleanup.removed = found.is_empty();
    (cleanup.left, cleanup.kept) = (found, kept);
    cleanup.errors.extend(errors);
    cleanup.errors.dedup();
    show(&cleanup, args.output.output, text)?;
    Ok(verdict(&cleanup))
}

fn look() -> Cleanup {
    let Findings { found, kept, errors } = culvert_takeover::find();
    Cleanup { found, kept, errors, ..Cleanup::default() }
}

fn verdict(cleanup: &Cleanup) -> Done {
    if !cleanup.errors.is_empty() {
        Done::Failed
    } else if cleanup.left.is_empty() && cleanup.kept.is_empty() {
        Done::Well
    } else {
        Done::Unwell
    }
}

/// Fails if Services would go unserved, or if kube-proxy would write its rules again.
fn refuse(args: &CleanupArgs, cleanup: &Cleanup) -> Result<()> {
    if !cleanup.running.is_empty() {
        bail!(
            "kube-proxy runs and would put its rules back ({}): remove it first, or go on with --force",
            cleanup.running.join("; ")
        );
    }
    let status = block_on(request::get::<Status>(&args.api.api_socket, "/v1/status", &()));
    match status {
        Ok(status) if status.healthy => Ok(()),
        Ok(_) => bail!("the agent is not healthy, see `culvert status`: Services would go unserved; --force goes on"),
        Err(error) => bail!("{}: Services would go unserved; --force goes on", explain(&error)),
    }
}

/// Waits until no connection is translated any more.
fn wait(cleanup: &mut Cleanup, limit: Duration) -> Result<()> {
    let end = Instant::now() + limit;
    let mut said = Vec::new();
    loop {
        let begin = Instant::now();
        cleanup.connections = connections()?;
        let took = begin.elapsed();
        if cleanup.connections.is_empty() {
            return Ok(());
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!(
                "{} did not end within {}; nothing was removed. --timeout waits longer, --now breaks them",
                summary(&cleanup.connections),
                span(limit.as_secs())
            );
        }
        if said != cleanup.connections {
            complain(format_args!("waiting for {}, {} left", summary(&cleanup.connections), span(left.as_secs())));
            said.clone_from(&cleanup.connections);
        }
        std::thread::sleep(PAUSE.max(took * SHARE).min(left));
    }
}

/// The TCP connections whose destination netfilter translates, those first that are most.
fn connections() -> Result<Vec<Connections>> {
    let mut counts = BTreeMap::new();
    for connection in conntrack::translated()? {
        *counts.entry(connection.frontend).or_insert(0_usize) += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().map(|(frontend, count)| Connections { frontend, count }).collect();
    counts.sort_by_key(|connections| std::cmp::Reverse(connections.count));
    Ok(counts)
}

/// `12 connections that netfilter translates (to 10.96.0.1:443: 8, ...)`
fn summary(connections: &[Connections]) -> String {
    let total: usize = connections.iter().map(|connections| connections.count).sum();
    let named = connections.iter().take(NAMED);
    let mut named: Vec<_> = named.map(|Connections { frontend, count }| format!("{frontend}: {count}")).collect();
    if connections.len() > NAMED {
        named.push("...".to_owned());
    }
    let noun = if total == 1 { "connection" } else { "connections" };
    format!("{total} {noun} that netfilter translates (to {})", named.join(", "))
}

// ===== what is printed =====

fn text(cleanup: &Cleanup, wide: bool) -> String {
    let mut text = String::new();
    for sign in &cleanup.running {
        let _ = writeln!(text, "kube-proxy runs: {sign}");
    }
    if !cleanup.connections.is_empty() {
        let _ = writeln!(text, "There are {}", summary(&cleanup.connections));
    }
    let heading = if cleanup.removed { "Removed:" } else { "Found of kube-proxy:" };
    if cleanup.found.is_empty() && cleanup.left.is_empty() {
        text.push_str("Nothing of kube-proxy is here that could be removed.\n");
    } else {
        traces(&mut text, heading, &cleanup.found, wide);
    }
    traces(&mut text, "Still there, or there again:", &cleanup.left, wide);
    if !cleanup.kept.is_empty() {
        text.push_str("Kept:\n");
    }
    for kept in &cleanup.kept {
        let _ = writeln!(text, "  {:<16} {}: chain {}, for {}", kept.subsystem, kept.table, kept.name, kept.reason);
    }
    for error in &cleanup.errors {
        let _ = writeln!(text, "Failed: {error}");
    }
    text
}

/// Traces by name if `wide`; else chains and jumps, of which there are many, by number.
fn traces(text: &mut String, heading: &str, traces: &[Trace], wide: bool) {
    if traces.is_empty() {
        return;
    }
    let _ = writeln!(text, "{heading}");
    let mut lines: BTreeMap<(Subsystem, &str), BTreeMap<TraceKind, Vec<&str>>> = BTreeMap::new();
    for trace in traces {
        let place = (trace.subsystem, trace.table.as_deref().unwrap_or_default());
        lines.entry(place).or_default().entry(trace.kind).or_default().push(&trace.name);
    }
    for ((subsystem, table), kinds) in lines {
        let table = if table.is_empty() { String::new() } else { format!("{table}: ") };
        if wide {
            for (kind, names) in kinds {
                for name in names {
                    let _ = writeln!(text, "  {subsystem:<16} {table}{} {name}", noun(kind, 1));
                }
            }
            continue;
        }
        let kinds: Vec<_> = kinds
            .into_iter()
            .map(|(kind, names)| match names[..] {
                [name] => format!("{} {name}", noun(kind, 1)),
                _ => format!("{} {}", names.len(), noun(kind, names.len())),
            })
            .collect();
        let _ = writeln!(text, "  {subsystem:<16} {table}{}", kinds.join(", "));
    }
}

fn noun(kind: TraceKind, count: usize) -> &'static str {
    match (kind, count) {
        (TraceKind::Table, 1) => "table",
        (TraceKind::Table, _) => "tables",
        (TraceKind::Chain, 1) => "chain",
        (TraceKind::Chain, _) => "chains",
        (TraceKind::Jump, 1) => "rule",
        (TraceKind::Jump, _) => "rules that lead there",
        (TraceKind::Set, 1) => "set",
        (TraceKind::Set, _) => "sets",
        (TraceKind::Service, 1) => "virtual service",
        (TraceKind::Service, _) => "virtual services",
        (TraceKind::Link, 1) => "link",
        (TraceKind::Link, _) => "links",
        (TraceKind::Counter, 1) => "counter",
        (TraceKind::Counter, _) => "counters",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(subsystem: Subsystem, table: &str, kind: TraceKind, name: &str) -> Trace {
        let table = (!table.is_empty()).then(|| table.to_owned());
        Trace { subsystem, table, kind, name: name.to_owned() }
    }

    #[test]
    fn what_is_found_is_short() {
        let connections = ["10.96.0.1:443", "10.96.0.10:53", "[fd00:96::1]:80", "192.0.2.1:30080"];
        let connections = connections.into_iter().zip([8, 2, 1, 1]);
        let cleanup = Cleanup {
            running: vec!["process 7 is kube-proxy".to_owned()],
            connections: connections
                .map(|(frontend, count)| Connections { frontend: frontend.parse().unwrap(), count })
                .collect(),
            found: vec![
                trace(Subsystem::Nftables, "ip", TraceKind::Table, "kube-proxy"),
                trace(Subsystem::IptablesLegacy, "ip nat", TraceKind::Chain, "KUBE-SERVICES"),
                trace(Subsystem::IptablesLegacy, "ip nat", TraceKind::Chain, "KUBE-NODEPORTS"),
                trace(Subsystem::IptablesLegacy, "ip nat", TraceKind::Jump, "OUTPUT -> KUBE-SERVICES"),
                trace(Subsystem::Link, "", TraceKind::Link, "kube-ipvs0"),
            ],
            ..Cleanup::default()
        };
        assert_eq!(
            text(&cleanup, false),
            "\
kube-proxy runs: process 7 is kube-proxy
There are 12 connections that netfilter translates (to 10.96.0.1:443: 8, 10.96.0.10:53: 2, [fd00:96::1]:80: 1, ...)
Found of kube-proxy:
  nftables         ip: table kube-proxy
  iptables-legacy  ip nat: 2 chains, rule OUTPUT -> KUBE-SERVICES
  link             link kube-ipvs0
"
        );
        assert!(text(&cleanup, true).contains("  iptables-legacy  ip nat: chain KUBE-NODEPORTS\n"));
    }
}
