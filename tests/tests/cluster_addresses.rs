//! Addresses of Services on a real cluster while the pods behind them are replaced: each request is answered.
//!
//! Upstream's test of the same (`test/e2e/network/loadbalancer.go`, "should not have connectivity disruption during rolling
//! update") lets pods be ready before they listen, and is content with 95 %.

use std::io::Write as _;
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use culvert_tests::cluster::traffic::Told;
use culvert_tests::cluster::{Cluster, LIMIT, Namespace, objects};
use culvert_tests::process::eventually;
use serde_json::{Value, json};

const PORT: u16 = 80;
/// How often all pods are replaced.
const ROUNDS: u32 = 3;
/// Seconds for which a pod serves on after it was told to end.
const GRACE: u32 = 15;

/// Asks as often as it may on a connection of its own each, until its input ends; then says how often it got which answer:
/// the status (000: none within 5 s), and bytes of the body.
const ASK: &str = r#"
echo ready
stdbuf --output=L curl --silent --rate 50/s --max-time 5 --header 'Connection: close' --output /dev/null \
  --write-out '%{http_code} %{size_download}\n' "$0&number=[1-1000000]" | sort | uniq --count &
cat > /dev/null
kill $(jobs -p)
wait
"#;

fn daemon_set(image: &str) -> Value {
    let mut container = objects::container(image, &["/agnhost"]);
    container["command"] = Value::Null;
    container["args"] = json!(["netexec", format!("--http-port={PORT}"), format!("--delay-shutdown={GRACE}")]);
    container["readinessProbe"] = objects::http_probe(PORT, "/healthz");
    let labels = json!({"app": "web"});
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "web"},
        "spec": {
            "selector": {"matchLabels": labels},
            "updateStrategy": {"rollingUpdate": {"maxUnavailable": 1}},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "terminationGracePeriodSeconds": 2 * GRACE,
                    "automountServiceAccountToken": false,
                    "containers": [container],
                },
            },
        },
    })
}

fn service(policy: &str) -> Value {
    let mut service = objects::service("web", "web", PORT);
    service["spec"]["type"] = "LoadBalancer".into();
    service["spec"]["externalTrafficPolicy"] = policy.into();
    service
}

fn address(namespace: &Namespace) -> Result<IpAddr> {
    eventually("the Service has an address", LIMIT, || {
        let service = namespace.get(&["service", "web"])?;
        let given = &service["status"]["loadBalancer"]["ingress"][0]["ip"];
        Ok(given.as_str().map(str::parse).transpose()?)
    })
}

fn rolls(policy: &str) -> Result<()> {
    let cluster = Cluster::open()?;
    cluster.await_agents(&[])?;
    let namespace = cluster.namespace("rolling")?;
    namespace.apply(&[daemon_set(cluster.image("agnhost")?), service(policy)])?;
    namespace.await_rollout("daemonset/web")?;
    let to = address(&namespace)?;
    let client = cluster.site("client")?;
    // Brackets mean ranges to curl.
    let host = if to.is_ipv6() { format!(r"\[{to}\]") } else { to.to_string() };
    let url = format!("http://{host}/echo?msg=hello");
    eventually("the address answers", LIMIT, || {
        let said = client.sh(&format!("curl --silent --max-time 5 {url}"))?;
        Ok((said == "hello").then_some(()))
    })?;
    let mut ask = client.command("bash");
    ask.args(["-c", ASK, &url]);
    let mut ask = Told::start(ask)?;
    for round in 1..=ROUNDS {
        namespace.kubectl(&["set", "env", "daemonset/web", &format!("VERSION={round}")])?;
        namespace.await_rollout("daemonset/web")?;
    }
    let said = ask.end()?.0;
    // Past the capture of the test's output: these figures are wanted when all is well, too.
    writeln!(
        std::io::stderr(),
        "{ROUNDS} rolling updates, externalTrafficPolicy {policy}: answers by status and size: {said}"
    )?;
    let [count, status, size] = said.split_whitespace().collect::<Vec<_>>()[..] else {
        anyhow::bail!("not all answers are alike: {said}");
    };
    ensure!((status, size) == ("200", "5"), "no answer is right: {said}");
    ensure!(count.parse::<u64>().context("no count")? > 1_000, "too few requests: {said}");
    Ok(())
}

#[test]
fn rolling_updates_lose_no_request_where_all_nodes_serve() -> Result<()> {
    rolls("Cluster")
}

#[test]
fn rolling_updates_lose_no_request_where_an_address_is_with_its_pods() -> Result<()> {
    rolls("Local")
}
