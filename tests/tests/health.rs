//! What others ask an agent: health of the node, health of a Service's local endpoints, metrics; and ports that are busy.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use culvert_tests::agent::{Agent, Options, SocketMode};
use culvert_tests::place::{Family, Place};
use culvert_tests::process::eventually;
use culvert_tests::stage::{Scenery, Stage, everywhere};
use culvert_tests::topology::PodLinks;
use culvert_tests::traffic::{Protocol, Server};
use serde_json::{Value, json};

const HEALTHZ: u16 = 10_256;
const METRICS: u16 = 10_249;
const HEALTH_CHECK: u16 = 31_999;
const LIMIT: Duration = Duration::from_secs(5);

/// `GET`: the status code, the head and the body.
fn get(from: &Place, to: &str, path: &str) -> Result<(u16, String, String)> {
    let output = from.sh(&format!("curl --silent --show-error --globoff --include --max-time 3 http://{to}{path}"))?;
    let (head, body) = output.split_once("\r\n\r\n").with_context(|| output.clone())?;
    let code = head.split_whitespace().nth(1).and_then(|code| code.parse().ok()).with_context(|| head.to_owned())?;
    Ok((code, head.to_ascii_lowercase(), body.to_owned()))
}

#[test]
fn a_health_check_counts_local_endpoints() -> Result<()> {
    let scenery = Scenery::new(PodLinks::Routed)?;
    let base = || everywhere("web", 1).external_local().with("healthCheckNodePort", json!(HEALTH_CHECK));
    let cast = scenery.cast.clone();
    let service = base().ready("n1", &cast.a);
    let mut stage = scenery.start(&Options::new(SocketMode::All)?, [&service])?;
    let check = |stage: &Stage, node: &Place, family: Family, want: (u16, u64)| {
        let to = node.socket(family, HEALTH_CHECK).to_string();
        eventually(&format!("{to} says {want:?}"), LIMIT, || {
            let (code, head, body) = get(&stage.cluster.lab.client, &to, "/any/path")?;
            let said: Value = serde_json::from_str(&body)?;
            let wanted = json!({
                "service": {"namespace": "default", "name": "web"}, "localEndpoints": want.1, "serviceProxyHealthy": true,
            });
            ensure!(said == wanted && code == want.0, "{code} {body}");
            ensure!(head.contains("content-type: application/json"), "{head}");
            ensure!(head.contains(&format!("x-load-balancing-endpoint-weight: {}", want.1)), "{head}");
            Ok(Some(()))
        })
    };
    for family in Family::BOTH {
        check(&stage, &cast.n1, family, (200, 1))?;
        check(&stage, &cast.n2, family, (503, 0))?;
    }
    // Terminating endpoints serve, and a balancer is told to stop.
    stage.cluster.apply([&base().terminating("n1", &cast.a).ready("n2", &cast.c)])?;
    check(&stage, &cast.n1, Family::V4, (503, 0))?;
    check(&stage, &cast.n2, Family::V4, (200, 1))?;
    Ok(())
}

#[test]
fn the_node_answers_on_the_ports_of_kube_proxy() -> Result<()> {
    let scenery = Scenery::new(PodLinks::Routed)?;
    let service = everywhere("web", 1).ready("n1", &scenery.cast.a);
    let stage = scenery.start(&Options::new(SocketMode::All)?, [&service])?;
    let (n1, client) = (&stage.cast.n1, &stage.cluster.lab.client);
    for (path, eligible) in [("/healthz", true), ("/livez", false), ("/readyz", false)] {
        let (code, _, body) = get(client, &n1.socket(Family::V4, HEALTHZ).to_string(), path)?;
        let said: Value = serde_json::from_str(&body)?;
        ensure!(code == 200 && said["healthy"] == true, "{path}: {code} {body}");
        ensure!(said["lastUpdated"].is_string() && said["currentTime"].is_string(), "{path}: {body}");
        ensure!(
            said["status"]["IPv4"]["healthy"] == true && said["status"]["IPv6"]["healthy"] == true,
            "{path}: {body}"
        );
        ensure!(said.get("nodeEligible").is_some() == eligible, "{path}: {body}");
    }
    let local = format!("127.0.0.1:{METRICS}");
    ensure!(get(n1, &local, "/proxyMode")?.0 == 200);
    let (code, _, metrics) = get(n1, &local, "/metrics")?;
    ensure!(code == 200);
    for name in [
        "kubeproxy_sync_proxy_rules_duration_seconds",
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total",
        "kubeproxy_sync_proxy_rules_service_changes_total",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
        "kubeproxy_network_programming_duration_seconds",
        "kubeproxy_proxy_healthz_total",
        "kubeproxy_proxy_livez_total",
    ] {
        ensure!(metrics.contains(name), "{name} is missing from\n{metrics}");
    }
    ensure!(metrics.contains("\nculvert_problems{} 0\n"), "{metrics}");
    // Whoever is told by metrics alone hears of what cannot be read.
    stage.cluster.lab.manifests.write("broken", "kind: Service\nbad: [\n")?;
    eventually("a fault of the source counts as a problem", LIMIT, || {
        Ok(get(n1, &local, "/metrics")?.2.contains("\nculvert_problems{} 1\n").then_some(()))
    })
}

#[test]
fn a_busy_port_is_tried_again() -> Result<()> {
    let scenery = Scenery::new(PodLinks::Routed)?;
    let n1 = scenery.cast.n1.clone();
    // kube-proxy has not gone yet.
    let busy = Server::start(&n1, &[(Protocol::Tcp, HEALTHZ)])?;
    scenery.lab.manifests.apply(&everywhere("web", 1).ready("n1", &scenery.cast.a))?;
    let mut agent = Agent::start(&scenery.lab, 0, &Options::new(SocketMode::All)?)?;
    agent.settle()?;
    drop(busy);
    let to = n1.socket(Family::V4, HEALTHZ).to_string();
    eventually("the port is taken once it is free", LIMIT, || {
        let (code, _, body) = get(&scenery.lab.client, &to, "/healthz")?;
        ensure!(code == 200, "{code} {body}");
        Ok(Some(()))
    })?;
    ensure!(agent.alive());
    Ok(())
}

#[test]
fn a_node_is_ready_once_the_kernel_holds_everything() -> Result<()> {
    let scenery = Scenery::new(PodLinks::Routed)?;
    let to = scenery.cast.n1.socket(Family::V4, HEALTHZ).to_string();
    let says = |path: &str, want: u16| {
        eventually(&format!("{path} says {want}"), LIMIT, || {
            Ok(get(&scenery.lab.client, &to, path).is_ok_and(|(code, ..)| code == want).then_some(()))
        })
    };
    scenery.lab.manifests.apply(&everywhere("web", 1).ready("n1", &scenery.cast.a))?;
    // Nobody knows what is in it: the source has not delivered everything.
    scenery.lab.manifests.write("broken", "kind: Service\nbad: [\n")?;
    let mut agent = Agent::start(&scenery.lab, 0, &Options::new(SocketMode::All)?)?;
    agent.ready()?;
    says("/livez", 200)?;
    says("/readyz", 503)?;
    scenery.lab.manifests.remove("broken")?;
    says("/readyz", 200)?;
    // Later faults are no reason to take the agent for one that has just begun.
    scenery.lab.manifests.write("broken", "kind: Service\nbad: [\n")?;
    eventually("the fault is known", LIMIT, || {
        Ok(agent.status()?["sources"][0]["errors"].to_string().contains("broken.yaml").then_some(()))
    })?;
    says("/readyz", 200)?;
    ensure!(agent.alive());
    Ok(())
}
