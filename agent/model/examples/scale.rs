//! What the model costs: `cargo run --release -p culvert-model --example scale`.
//!
//! Fills models of several sizes, then changes one endpoint at a time. The cost of a change must not depend on the size.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement for a developer's terminal")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_model::objects::{EndpointSlice, Service};
use culvert_model::{Change, Config, Model};
use serde_json::json;

const SIZES: [(usize, usize); 4] = [(100, 10), (1_000, 10), (10_000, 10), (5_000, 50)];
const CHANGES: usize = 2_000;

fn main() {
    println!(
        "{:>9} {:>10} {:>12} {:>12} {:>12} {:>14} {:>14} {:>14}",
        "Services", "endpoints", "fill", "fill a row", "plan all", "change p50", "change p99", "resident"
    );
    for (services, endpoints) in SIZES {
        measure(services, endpoints);
    }
}

fn measure(services: usize, endpoints: usize) {
    let node = json!({"metadata": {"name": "node-0"}, "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.1"}]}});
    let changes: Vec<Change> = (0..services)
        .flat_map(|i| [Change::Service(Arc::new(service(i))), Change::EndpointSlice(Arc::new(slice(i, endpoints, 0)))])
        .collect();
    let before = resident();
    let mut model = Model::new(Config { node: "node-0".to_owned(), ..Config::default() });
    model.apply(Change::Node(Arc::new(serde_json::from_value(node).unwrap())));
    let start = Instant::now();
    for change in changes.iter().cloned() {
        model.apply(change);
    }
    let fill = start.elapsed();
    let memory = resident().saturating_sub(before);
    let start = Instant::now();
    let rows: usize = model.node_plan().services.iter().map(|service| service.frontends.len()).sum();
    let plan_all = start.elapsed();

    let mut times: Vec<Duration> =
        (0..CHANGES).map(|n| change_one(&mut model, n * 7919 % services, endpoints, n)).collect();
    times.sort_unstable();
    println!(
        "{services:>9} {:>10} {fill:>12.1?} {:>12.1?} {plan_all:>12.1?} {:>14.1?} {:>14.1?} {:>10} KiB   ({rows} rows)",
        services * endpoints,
        fill / (services * 2) as u32,
        times[CHANGES / 2],
        times[CHANGES * 99 / 100],
        memory,
    );
}

/// Takes one endpoint out of readiness: digest, touch, plan of what was touched.
fn change_one(model: &mut Model, i: usize, endpoints: usize, n: usize) -> Duration {
    let change = Change::EndpointSlice(Arc::new(slice(i, endpoints, n % endpoints + 1)));
    let start = Instant::now();
    let touched = model.apply(change);
    let plans: Vec<_> = touched.iter().filter_map(|key| model.plan(key)).collect();
    let elapsed = start.elapsed();
    assert!(plans.len() <= 1);
    elapsed
}

fn service(i: usize) -> Service {
    serde_json::from_value(json!({
        "metadata": {"name": format!("service-{i}"), "namespace": "bench", "creationTimestamp": "2024-01-01T00:00:00Z"},
        "spec": {
            "type": "NodePort",
            "clusterIP": format!("10.96.{}.{}", i / 250, i % 250 + 1),
            "ports": [{"name": "http", "port": 80, "nodePort": 30_000 + i}],
        },
    }))
    .unwrap()
}

/// A slice whose endpoint number `not_ready` (from 1; 0 = none) is not ready.
fn slice(i: usize, endpoints: usize, not_ready: usize) -> EndpointSlice {
    let endpoint = |n: usize| {
        let id = i * endpoints + n;
        json!({
            "addresses": [format!("10.{}.{}.{}", 128 + id / 62_500, id / 250 % 250, id % 250 + 1)],
            "conditions": {"ready": n + 1 != not_ready},
            "nodeName": format!("node-{}", id % 100),
        })
    };
    serde_json::from_value(json!({
        "metadata": {
            "name": format!("service-{i}-abcde"),
            "namespace": "bench",
            "labels": {"kubernetes.io/service-name": format!("service-{i}")},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
    }))
    .unwrap()
}

/// Anonymous resident memory of this process in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
