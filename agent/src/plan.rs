//! `culvert plan`.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Result, anyhow};
use culvert_api::plan::{
    Announcement, Audience, BackendState, ClientAddress, FrontendPlan, NodePlan, Plans, Protocol, ServicePlan, Verdict,
};
use culvert_model::Model;
use culvert_model::objects::Node;
use culvert_source::{Change, Fault, Object};

use crate::addresses::Addresses;
use crate::announcements;
use crate::cli::{PlanArgs, PlanOutput};
use crate::output::{Done, complain, lines, print, print_json, table};

/// Runs the command.
pub fn run(args: &PlanArgs) -> Result<Done> {
    let (objects, faults) =
        culvert_source::load(&args.manifests, &args.model.rules()).map_err(|fault| anyhow!("{fault}"))?;
    faults.iter().for_each(complain);
    if faults.iter().any(Fault::is_error) {
        return Ok(Done::Failed);
    }
    let mut model = Model::new(args.model.config(args.node.as_deref().unwrap_or_default()));
    let mut addresses = Addresses::new([]);
    let named =
        objects.iter().filter_map(|object| if let Object::Node(node) = object { Some(Arc::clone(node)) } else { None });
    let node_objects: Vec<Arc<Node>> = named.collect();
    let changes: Vec<_> = objects.into_iter().filter_map(|object| addresses.take(&Change::Upsert(object))).collect();
    for change in changes.into_iter().chain(addresses.decide(true).changes) {
        model.apply(change);
    }
    let names = match &args.node {
        Some(node) if !model.nodes().any(|name| name == node) => {
            let known = model.nodes().collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() { "none".to_owned() } else { known };
            return Err(anyhow!("there is no Node {node:?} in {} (Nodes: {known})", args.manifests.display()));
        }
        Some(node) => vec![node.as_str()],
        None => model.nodes().collect(),
    };
    let announcements = announcements::of_folder(
        args.model.layer2(),
        &model,
        node_objects.iter().map(|node| &**node),
        addresses.config(),
        |key| addresses.service(key),
    );
    let plan = |name| NodePlan { announcements: announcements.plan(name), ..model.node_plan_of(name) };
    let mut nodes: Vec<NodePlan> = names.into_iter().map(plan).collect();
    let problems = nodes.iter().flat_map(|node| &node.services).any(|service| !service.problems.is_empty());
    match (args.output, &args.node) {
        (PlanOutput::Table, _) => print(&nodes.iter().map(text).collect::<Vec<_>>().join("\n"))?,
        (PlanOutput::Json, Some(_)) => print_json(&nodes.remove(0))?,
        (PlanOutput::Json, None) => print_json(&Plans { nodes })?,
    }
    Ok(if problems { Done::Unwell } else { Done::Well })
}

/// A node's plan for people.
fn text(plan: &NodePlan) -> String {
    let mut text = format!("Node {}\n\n", plan.node);
    text += &frontends(&plan.services);
    text += &announced(&plan.announcements);
    let problems = plan.services.iter().flat_map(|service: &ServicePlan| &service.problems);
    for (i, problem) in problems.enumerate() {
        let heading = if i == 0 { "\nProblems\n" } else { "" };
        let _ =
            writeln!(text, "{heading} {}: {} {}: {}", problem.object, problem.reason, problem.field, problem.message);
    }
    text
}

/// What the node announces, as a table; empty if it is nothing.
fn announced(announcements: &[Announcement]) -> String {
    if announcements.is_empty() {
        return String::new();
    }
    let mut rows = table(["ANNOUNCES", "BY", "ON", "WHY"]);
    for Announcement { address, protocol, interface, reason } in announcements {
        let on = interface.as_deref().unwrap_or("any link that fits");
        rows.add_row([&address.to_string(), protocol.as_str(), on, reason.as_str()]);
    }
    format!("\n{}", lines(&rows))
}

/// The frontends of Services, as a table; empty without any.
pub fn frontends(services: &[ServicePlan]) -> String {
    let mut rows = table(["SERVICE", "KIND", "ADDRESS", "FOR", "CLIENT", "BACKENDS"]);
    for service in services {
        let mut name = service.key().to_string();
        if let Some(reason) = &service.skipped {
            rows.add_row([&name, &format!("{:?}", service.kind), "", "", "", &format!("none: {reason}")]);
        }
        for frontend in service.frontends.chunk_by(|a, b| place(a) == place(b)) {
            let mut place = [format!("{:?}", frontend[0].kind), address(&frontend[0])];
            for (audiences, client, answer) in views(frontend) {
                let [kind, address] = std::mem::take(&mut place);
                // What does not change from row to row is said once.
                rows.add_row([std::mem::take(&mut name), kind, address, audiences, client.to_owned(), answer]);
            }
        }
    }
    if rows.is_empty() { String::new() } else { lines(&rows) }
}

/// What tells frontends apart.
fn place(row: &FrontendPlan) -> (IpAddr, u16, Protocol) {
    (row.address, row.port, row.protocol)
}

/// The rows of one frontend: audiences that get the same are one.
fn views(rows: &[FrontendPlan]) -> Vec<(String, &'static str, String)> {
    let mut views: Vec<(String, &'static str, String)> = Vec::new();
    for row in rows {
        let client = if row.client_address == ClientAddress::Kept { "kept" } else { "replaced" };
        let answer = answer(row);
        match views.iter_mut().find(|view| (view.1, &view.2) == (client, &answer)) {
            Some((audiences, ..)) => audiences.extend([", ", audience(row.audience)]),
            None => views.push((audience(row.audience).to_owned(), client, answer)),
        }
    }
    views
}

fn address(row: &FrontendPlan) -> String {
    format!("{}/{}", SocketAddr::new(row.address, row.port), format!("{:?}", row.protocol).to_uppercase())
}

fn audience(audience: Audience) -> &'static str {
    match audience {
        Audience::Any => "all",
        Audience::Pods => "pods",
        Audience::Host => "host",
        Audience::External => "external",
    }
}

/// What a row answers: the backends, in as few words as tell them apart, and the conditions.
fn answer(row: &FrontendPlan) -> String {
    let mut parts = Vec::new();
    match row.verdict {
        Verdict::Reject => parts.push("refused".to_owned()),
        Verdict::Drop => parts.push("dropped".to_owned()),
        Verdict::Balance => parts.extend(row.backends.iter().map(|backend| {
            let socket = SocketAddr::new(backend.address, backend.port);
            let state = if backend.state == BackendState::Terminating { " (terminating)" } else { "" };
            let local = if backend.local { " (local)" } else { "" };
            format!("{socket}{local}{state}")
        })),
    }
    if !row.source_ranges.is_empty() {
        let ranges: Vec<_> = row.source_ranges.iter().map(ToString::to_string).collect();
        parts.push(format!("only from {}", ranges.join(", ")));
    }
    if let Some(seconds) = row.affinity_seconds {
        parts.push(format!("affinity {seconds} s"));
    }
    parts.join("\n")
}
