//! `culvert services`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;

use anyhow::Result;
use culvert_api::plan::ServicePlan;
use culvert_api::reply::Services;
use culvert_api::services::{Counters, Service};

use super::{block_on, bytes, request, show};
use crate::cli::ServicesArgs;
use crate::output::{Done, lines, table};
use crate::plan;

/// Runs the command.
pub fn run(args: &ServicesArgs) -> Result<Done> {
    let query: Vec<_> = args.name.iter().map(|name| ("name", name)).collect();
    let services: Services = block_on(request::get(&args.api.api_socket, "/v1/services", &query))?;
    let one = args.name.is_some();
    show(&services, args.output.output, |services, wide| text(services, wide, one))?;
    Ok(if services.differences.is_empty() { Done::Well } else { Done::Unwell })
}

fn text(services: &Services, wide: bool, one: bool) -> String {
    let kernel: BTreeMap<(&str, &str), &Service> =
        services.kernel.iter().map(|service| ((service.namespace.as_str(), service.name.as_str()), service)).collect();
    let mut headings = vec!["SERVICE", "TYPE", "ADDRESSES", "PORTS", "BACKENDS", "CONNECTIONS", "STATE"];
    if wide {
        headings.splice(6..6, ["FROM CLIENTS", "TO CLIENTS", "REFUSED", "DROPPED"]);
    }
    let mut rows = table(headings);
    for plan in &services.services {
        let service = kernel.get(&(plan.namespace.as_str(), plan.name.as_str())).copied();
        let counters = counters(service);
        let mut row = vec![
            plan.key().to_string(),
            format!("{:?}", plan.kind),
            addresses(plan).join("\n"),
            ports(plan).join("\n"),
            backends(plan).to_string(),
            counters.connections.to_string(),
            state(services, plan),
        ];
        if wide {
            let traffic = [
                bytes(counters.bytes),
                bytes(counters.reply_bytes),
                counters.rejected.to_string(),
                counters.dropped.to_string(),
            ];
            row.splice(6..6, traffic);
        }
        rows.add_row(row);
    }
    let mut text = lines(&rows);
    if one {
        let _ = write!(text, "\n{}", plan::frontends(&services.services));
    }
    for (i, problem) in services.services.iter().flat_map(|service| &service.problems).enumerate() {
        let heading = if i == 0 { "\nProblems\n" } else { "" };
        let _ =
            writeln!(text, "{heading}  {}: {} {}: {}", problem.object, problem.reason, problem.field, problem.message);
    }
    for (i, difference) in services.differences.iter().enumerate() {
        let heading = if i == 0 { "\nThe kernel differs from what is wanted\n" } else { "" };
        let side = |side: &Option<String>| side.clone().unwrap_or_else(|| "nothing".to_owned());
        let (wanted, found) = (side(&difference.wanted), side(&difference.found));
        let _ =
            writeln!(text, "{heading}  {} {}: is {found}, should be {wanted}", difference.service, difference.subject);
    }
    text
}

/// Unique, in the order of the rows.
fn addresses(plan: &ServicePlan) -> Vec<String> {
    let mut addresses: Vec<String> = plan.frontends.iter().map(|row| row.address.to_string()).collect();
    addresses.dedup();
    addresses
}

fn ports(plan: &ServicePlan) -> Vec<String> {
    let mut ports: Vec<_> = plan.frontends.iter().map(|row| (row.port, row.protocol)).collect();
    ports.sort_unstable();
    ports.dedup();
    ports.iter().map(|(port, protocol)| format!("{port}/{}", format!("{protocol:?}").to_uppercase())).collect()
}

/// How many different backends anybody may get.
fn backends(plan: &ServicePlan) -> usize {
    let all = plan.frontends.iter().flat_map(|row| row.backends.iter());
    let mut all: Vec<_> = all.map(|backend| SocketAddr::new(backend.address, backend.port)).collect();
    all.sort_unstable();
    all.dedup();
    all.len()
}

fn counters(service: Option<&Service>) -> Counters {
    let mut sum = Counters::default();
    for port in service.iter().flat_map(|service| &service.ports) {
        let Counters { connections, packets, bytes, reply_packets, reply_bytes, rejected, dropped } = port.counters;
        sum.connections += connections;
        sum.packets += packets;
        sum.bytes += bytes;
        sum.reply_packets += reply_packets;
        sum.reply_bytes += reply_bytes;
        sum.rejected += rejected;
        sum.dropped += dropped;
    }
    sum
}

fn state(services: &Services, plan: &ServicePlan) -> String {
    let name = plan.key().to_string();
    let differs = services.differences.iter().any(|difference| difference.service == name);
    match &plan.skipped {
        _ if differs => "DIFFERS".to_owned(),
        Some(reason) => format!("skipped: {reason}"),
        None if !plan.problems.is_empty() => "problems".to_owned(),
        None => "ok".to_owned(),
    }
}
