//! A gRPC service whose clients keep their connections while it rolls.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use culvert_tests::cluster::traffic::Told;
use culvert_tests::cluster::{objects, timeout};
use serde::Deserialize;
use serde_json::json;

use super::Stage;

const PORT: u16 = 9090;
const NODE_PORT: u16 = 31760;
const REPLICAS: u32 = 6;
/// Connections of each client.
const CONNECTIONS: &str = "6";

/// What a client says at its end (`tests/cluster/grpc/main.go`).
#[derive(Deserialize, Debug)]
struct Report {
    calls: u64,
    streamed: u64,
    servers: BTreeMap<String, u64>,
    failures: BTreeMap<String, u64>,
}

pub fn rolls(stage: &Stage) -> Result<()> {
    let address = format!(":{PORT}");
    let mut container = objects::container(stage.cluster.image("busybox")?, &["/programs/grpc", "serve", &address]);
    container["readinessProbe"] = json!({"grpc": {"port": PORT}, "periodSeconds": 1, "timeoutSeconds": 10});
    // What every service needs that is to be rolled without an error: other nodes hear of the end before the server ends.
    container["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 5}}});
    let mut deployment = objects::deployment("echo", REPLICAS, &container);
    stage.mount(&mut deployment, "grpc")?;
    deployment["spec"]["strategy"] = json!({"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 2}});
    let pods = &mut deployment["spec"]["template"]["spec"];
    pods["terminationGracePeriodSeconds"] = 90.into();
    pods["topologySpreadConstraints"][0]["whenUnsatisfiable"] = "ScheduleAnyway".into();
    let namespace = &stage.namespace;
    namespace.apply(&[deployment, objects::node_port_service("echo", "echo", PORT, NODE_PORT)])?;
    stage.client()?;
    namespace.await_rollout("deployment/echo")?;

    let program = stage.cluster.program("grpc")?;
    let outside = (stage.cluster.address("n2")?, NODE_PORT).into();
    let clients = [(namespace.pod("client")?, namespace.front("echo")?), (stage.cluster.site("client")?, outside)];
    let mut calls = clients
        .iter()
        .map(|(site, to)| {
            let mut command = site.command(program);
            command.args(["call", &to.to_string(), CONNECTIONS]);
            Told::start(command)
        })
        .collect::<Result<Vec<_>>>()?;
    for _ in 0..2 {
        let old = namespace.kubectl(&["get", "pods", "-lapp=echo", "--output=name"])?;
        namespace.kubectl(&["rollout", "restart", "deployment/echo"])?;
        namespace.await_rollout("deployment/echo")?;
        // Only then has every connection moved on.
        let gone = ["wait", "--for=delete", &timeout()];
        namespace.kubectl(&gone.into_iter().chain(old.lines()).collect::<Vec<_>>())?;
    }
    for ((site, _), calls) in clients.iter().zip(&mut calls) {
        let (said, status) = calls.end()?;
        let report: Report =
            serde_json::from_str(&said).with_context(|| format!("{}: {status}: {said}", site.name()))?;
        ensure!(report.failures.is_empty(), "{}: {report:?}", site.name());
        ensure!(report.calls > 100 && report.streamed > 100, "{}: {report:?}", site.name());
        // A pod's name ends with its generation and its own mark.
        let generations = report.servers.keys().filter_map(|name| name.rsplit('-').nth(1)).collect::<BTreeSet<_>>();
        ensure!(generations.len() == 3, "{}: {report:?}", site.name());
    }
    Ok(())
}
