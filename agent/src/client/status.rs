//! `culvert status`.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::Result;
use culvert_api::status::{MapUsage, Status};

use super::{block_on, request, show, span};
use crate::cli::StatusArgs;
use crate::output::{Done, lines, table};

/// How often a waiting command asks.
const PAUSE: Duration = Duration::from_millis(200);

/// Runs the command.
pub fn run(args: &StatusArgs) -> Result<Done> {
    let status = block_on(async {
        let end = Instant::now() + Duration::from_secs(args.timeout);
        loop {
            let status = request::get::<Status>(&args.api.api_socket, "/v1/status", &()).await;
            let well = status.as_ref().is_ok_and(|status| status.healthy);
            if well || !args.wait || Instant::now() >= end {
                return status;
            }
            tokio::time::sleep(PAUSE).await;
        }
    })?;
    show(&status, args.output.output, text)?;
    Ok(if status.healthy { Done::Well } else { Done::Unwell })
}

fn text(status: &Status, wide: bool) -> String {
    let mut text = String::new();
    let Status { version, node, uptime_seconds, services, sockets, .. } = status;
    let health = if status.healthy { "healthy" } else { "NOT HEALTHY" };
    let _ = writeln!(text, "Node {node}: {health} (culvert {version}, up {})\n", span(*uptime_seconds));
    for source in &status.sources {
        let synced = if source.synced { "delivered" } else { "not all delivered yet" };
        let _ = writeln!(text, "Source    {}: {synced}", source.name);
    }
    let failed = if services.failed == 0 { String::new() } else { format!(", {} FAILED", services.failed) };
    let _ = writeln!(text, "Services  {}, {} in the kernel{failed}", services.total, services.programmed);
    let cgroup = sockets.cgroup.as_deref().unwrap_or("the node's cgroup");
    let _ = writeln!(text, "Sockets   {} programs at {cgroup}, mode {}", sockets.programs.len(), sockets.mode);
    let count = |role: &str| status.links.iter().filter(|link| link.role == role).count();
    let _ = writeln!(text, "Links     {} to other machines, {} of pods", count("node"), count("pod"));

    section(&mut text, "Problems", &problems(status));
    section(&mut text, "Warnings", &status.warnings);
    links(&mut text, status, wide);
    maps(&mut text, &status.maps, wide);
    reasons(&mut text, status);
    text
}

/// Everything that is wrong, a line each.
fn problems(status: &Status) -> Vec<String> {
    let errors = status.sources.iter().flat_map(|source| source.errors.iter().cloned());
    let failures = status.failures.iter().map(|failure| {
        let next = span(failure.retry_in_seconds);
        format!("Service {}: not programmed, tried again in {next}: {}", failure.service, failure.message)
    });
    let drift = status.drift.iter().map(|drift| {
        let side = |side: &Option<String>| side.clone().unwrap_or_else(|| "nothing".to_owned());
        format!("map {} {}: is {}, should be {}", drift.map, drift.key, side(&drift.found), side(&drift.expected))
    });
    status.problems.iter().cloned().chain(errors).chain(failures).chain(drift).collect()
}

fn section(text: &mut String, heading: &str, items: &[String]) {
    if items.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{heading}");
    for line in items {
        let _ = writeln!(text, "  {line}");
    }
}

fn links(text: &mut String, status: &Status, wide: bool) {
    let shown = status.links.iter().filter(|link| wide || link.role == "node" || !link.others.is_empty());
    let mut rows = table(["LINK", "ROLE", "HOOK", "OTHERS' PROGRAMS"]);
    for link in shown {
        let others: Vec<_> = link.others.iter().map(ToString::to_string).collect();
        rows.add_row([&link.name, &link.role, &link.hook, &others.join(", ")]);
    }
    if !rows.is_empty() {
        let _ = write!(text, "\n{}", lines(&rows));
    }
}

/// The maps that are in use; all of them if `wide`.
fn maps(text: &mut String, maps: &[MapUsage], wide: bool) {
    let mut rows = table(["MAP", "USED", "OF", ""]);
    for usage in maps.iter().filter(|usage| wide || usage.used > 0) {
        let (used, capacity) = (usage.used, usage.capacity.max(1));
        let mille = used.saturating_mul(1000) / capacity;
        let bar = "#".repeat(used.saturating_mul(20).div_ceil(capacity) as usize);
        let share = format!("{:3}.{} % {bar}", mille / 10, mille % 10);
        rows.add_row([&usage.map, &used.to_string(), &usage.capacity.to_string(), &share]);
    }
    if !rows.is_empty() {
        let _ = write!(text, "\n{}", lines(&rows));
    }
}

fn reasons(text: &mut String, status: &Status) {
    let mut rows = table(["PACKETS", "NOT SERVED BECAUSE"]);
    for count in &status.reasons {
        rows.add_row([&count.packets.to_string(), &count.reason]);
    }
    if !rows.is_empty() {
        let _ = write!(text, "\n{}", lines(&rows));
    }
}
