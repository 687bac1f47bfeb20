//! Runs the table tests of `tests/cases`; `tests/cases/README.md` says how they are written.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use culvert_api::plan::{
    Audience, BackendPlan, BackendState, ClientAddress, FrontendPlan, NodePlan, Problem, Protocol, ServicePlan,
    Topology, Verdict,
};
use culvert_model::objects::Service;
use culvert_model::{Change, Config, Failure, Grant, Granted, Model, NodePortAddresses};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    base: Vec<Value>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[allow(dead_code, reason = "for the reader")]
    about: String,
    #[serde(default)]
    config: CaseConfig,
    /// What our own pools say of Services.
    #[serde(default)]
    pools: BTreeMap<String, String>,
    objects: Vec<Value>,
    on: BTreeMap<String, BTreeMap<String, Expected>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct CaseConfig {
    node_port_addresses: Option<Vec<IpNet>>,
    #[serde(rename = "allowExternalIPs")]
    allow_external_ips: Vec<IpNet>,
    links: HashSet<IpAddr>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Expected {
    #[serde(default)]
    rows: Vec<String>,
    #[serde(default)]
    addresses: Vec<IpAddr>,
    pool: Option<String>,
    refused: Option<Vec<IpAddr>>,
    skipped: Option<String>,
    health_check: Option<String>,
    #[serde(default)]
    problems: Vec<String>,
}

#[test]
fn tables() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut files: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    let (mut count, mut failures) = (0, String::new());
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let file: File = serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for case in &file.cases {
            count += 1;
            for failure in run(&file.base, case) {
                writeln!(failures, "{}: {}: {failure}", path.file_name().unwrap().display(), case.name).unwrap();
            }
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
    assert!(count >= 40, "only {count} cases were found");
}

fn run(base: &[Value], case: &Case) -> Vec<String> {
    let forward: Vec<Change> = base.iter().chain(&case.objects).map(|object| change(object, &case.pools)).collect();
    let model = model(case, forward.iter());
    let backward = self::model(case, forward.iter().rev());
    let mut failures = Vec::new();
    for (node, expected) in &case.on {
        let plan = model.node_plan_of(node);
        if backward.node_plan_of(node) != plan {
            failures.push(format!("on {node}: the order of the objects matters"));
        }
        compare(node, &plan, expected, &mut failures);
    }
    failures
}

fn model<'a>(case: &Case, changes: impl Iterator<Item = &'a Change>) -> Model {
    let mut model = Model::new(Config {
        node: "alpha".to_owned(),
        node_port_addresses: match &case.config.node_port_addresses {
            None => NodePortAddresses::Primary,
            Some(prefixes) => NodePortAddresses::Prefixes(prefixes.clone()),
        },
        allow_external_ips: case.config.allow_external_ips.clone(),
    });
    for change in changes {
        model.apply(change.clone());
    }
    model.set_link_addresses(case.config.links.clone());
    model
}

fn change(object: &Value, pools: &BTreeMap<String, String>) -> Change {
    let mut object = object.clone();
    let kind = object["kind"].as_str().unwrap().to_owned();
    let metadata = object["metadata"].as_object_mut().unwrap();
    if kind != "Node" {
        metadata.entry("namespace").or_insert("default".into());
    }
    match kind.as_str() {
        "Service" => {
            let service: Arc<Service> = Arc::new(serde_json::from_value(object).unwrap());
            match pools.get(&service.key().to_string()) {
                Some(word) => Change::Granted(service, grant(word)),
                None => Change::Service(service),
            }
        }
        "EndpointSlice" => Change::EndpointSlice(Arc::new(serde_json::from_value(object).unwrap())),
        "Node" => Change::Node(Arc::new(serde_json::from_value(object).unwrap())),
        other => panic!("kind {other}"),
    }
}

/// `ADDRESS, ADDRESS of POOL`, `FIELD: MESSAGE`, or both with `despite` between; or `status of POOL`.
fn grant(text: &str) -> Grant {
    if let Some(pool) = text.strip_prefix("status of ") {
        return Grant { pool: Some(pool.into()), ..Grant::default() };
    }
    let (given, failure) = match text.split_once(" despite ") {
        Some((given, failure)) => (Some(given), Some(failure)),
        None if text.contains(" of ") => (Some(text), None),
        None => (None, Some(text)),
    };
    let given = given.map(|given| {
        let (addresses, pool) = given.split_once(" of ").unwrap();
        let addresses = addresses.split(", ").map(|address| address.parse().unwrap());
        Granted { addresses: addresses.collect(), pool: pool.into() }
    });
    let failure = failure.map(|failure| {
        let (field, message) = failure.split_once(": ").unwrap();
        Failure { field: field.to_owned(), message: message.to_owned() }
    });
    Grant { given, failure, ..Grant::default() }
}

fn compare(node: &str, plan: &NodePlan, expected: &BTreeMap<String, Expected>, failures: &mut Vec<String>) {
    let name = |plan: &ServicePlan| format!("{}/{}", plan.namespace, plan.name);
    let names: Vec<String> = plan.services.iter().map(name).collect();
    if !names.iter().eq(expected.keys()) {
        failures.push(format!("on {node}: Services are {names:?}"));
        return;
    }
    for (service, expected) in plan.services.iter().zip(expected.values()) {
        let mut differs = |what: &str, got: String, want: String| {
            if got != want {
                failures.push(format!("on {node}: {} {what}\n  want: {want}\n  got:  {got}", name(service)));
            }
        };
        let lines = |lines: Vec<String>| lines.join("\n        ");
        differs("rows", lines(service.frontends.iter().map(row).collect()), lines(expected.rows.clone()));
        differs("problems", lines(service.problems.iter().map(problem).collect()), lines(expected.problems.clone()));
        differs("addresses", format!("{:?}", service.addresses), format!("{:?}", expected.addresses));
        differs("pool", format!("{:?}", service.pool), format!("{:?}", expected.pool));
        differs("skipped", format!("{:?}", service.skipped), format!("{:?}", expected.skipped));
        let health_check = service.health_check.map(|check| format!("{} {}", check.port, check.local_endpoints));
        differs("healthCheck", format!("{health_check:?}"), format!("{:?}", expected.health_check));
        if let Some(refused) = &expected.refused {
            differs("refused", format!("{:?}", service.refused), format!("{refused:?}"));
        }
    }
}

fn problem(problem: &Problem) -> String {
    format!("{} {} {}: {}", problem.reason, problem.object, problem.field, problem.message)
}

fn row(row: &FrontendPlan) -> String {
    let mut text = format!("{}/{} {:?}", port(row.address, row.port), protocol(row.protocol), row.kind);
    text += match row.audience {
        Audience::Any => " any",
        Audience::Pods => " pods",
        Audience::Host => " host",
        Audience::External => " external",
    };
    if row.verdict == Verdict::Balance {
        text += match row.client_address {
            ClientAddress::Kept => " kept",
            ClientAddress::Replaced => " replaced",
        };
    }
    text += match row.topology {
        Topology::None => "",
        Topology::Zone => " zone",
        Topology::Node => " node",
    };
    if let Some(seconds) = row.affinity_seconds {
        write!(text, " affinity={seconds}").unwrap();
    }
    if !row.source_ranges.is_empty() {
        let ranges: Vec<_> = row.source_ranges.iter().map(ToString::to_string).collect();
        write!(text, " from={}", ranges.join(",")).unwrap();
    }
    text += ": ";
    text += &match row.verdict {
        Verdict::Reject => "reject".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::Balance => row.backends.iter().map(backend).collect::<Vec<_>>().join(", "),
    };
    if !row.draining.is_empty() {
        text += "; draining ";
        text += &row.draining.iter().map(draining).collect::<Vec<_>>().join(", ");
    }
    if row.verdict != Verdict::Balance {
        assert!(row.backends.is_empty() && row.draining.is_empty(), "{text}: backends without balance");
        assert_eq!(row.client_address, ClientAddress::Kept, "{text}");
    }
    text
}

fn backend(backend: &BackendPlan) -> String {
    let state = if backend.state == BackendState::Terminating { " terminating" } else { "" };
    place(backend) + state
}

fn draining(backend: &BackendPlan) -> String {
    assert_eq!(backend.state, BackendState::Terminating);
    place(backend)
}

fn place(backend: &BackendPlan) -> String {
    let local = if backend.local { " local" } else { "" };
    port(backend.address, backend.port) + local
}

fn port(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}
