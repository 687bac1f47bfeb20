//! An agent that gets its Services from a real API server, with the rights of docs/KUBERNETES.md and no more.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use culvert_tests::agent::{Agent, Options, SocketMode};
use culvert_tests::control_plane::{ControlPlane, User};
use culvert_tests::matrix::{PORT, TARGET};
use culvert_tests::place::Place;
use culvert_tests::process::{Process, eventually};
use culvert_tests::shell;
use culvert_tests::stage::{Cast, Scenery, answered};
use culvert_tests::topology::PodLinks;
use culvert_tests::traffic::Ask;
use serde_json::{Value, json};

const SERVICES: &str = "/api/v1/namespaces/shop/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices";
const LIMIT: Duration = Duration::from_mins(1);

/// The lab with an API server outside of the nodes, and an agent on n1.
struct Stage {
    agent: Agent,
    plane: ControlPlane,
    cast: Cast,
    _scenery: Scenery,
}

/// The rights that docs/KUBERNETES.md gives.
fn grant(plane: &ControlPlane) -> Result<()> {
    let text = include_str!("../../docs/KUBERNETES.md");
    let (_, rest) = text.split_once("```yaml\n").context("the rules in docs/KUBERNETES.md")?;
    let (rules, _) = rest.split_once("```").context("the end of the rules")?;
    let role: Value = serde_saphyr::from_str(rules)?;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    plane.create(&format!("{rbac}/clusterroles"), &role)?;
    let binding = json!({
        "metadata": {"name": "culvert-agent"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role["metadata"]["name"]},
        "subjects": [{"kind": "ServiceAccount", "name": "culvert", "namespace": "kube-system"}],
    });
    plane.create(&format!("{rbac}/clusterrolebindings"), &binding)?;
    Ok(())
}

impl Stage {
    fn new(prepare: impl FnOnce(&ControlPlane, &Cast) -> Result<()>) -> Result<Self> {
        let scenery = Scenery::new(PodLinks::Routed)?;
        let cast = scenery.cast.clone();
        let client = scenery.lab.client.clone();
        let plane = ControlPlane::start(&client, client.v4(), scenery.lab.dir(), &[])?;
        grant(&plane)?;
        plane.create("/api/v1/namespaces", &json!({"metadata": {"name": "shop"}}))?;
        plane.create("/api/v1/nodes", &json!({"metadata": {"name": "n1"}}))?;
        let address = json!({"status": {"addresses": [{"type": "InternalIP", "address": cast.n1.v4().to_string()}]}});
        plane.patch("/api/v1/nodes/n1/status", &address)?;
        prepare(&plane, &cast)?;
        let options = Options { kubeconfig: Some(plane.kubeconfig(User::Agent)?), ..Options::new(SocketMode::All)? };
        let agent = Agent::start(&scenery.lab, 0, &options)?;
        let mut stage = Self { agent, plane, cast, _scenery: scenery };
        stage.agent.ready()?;
        Ok(stage)
    }

    /// Waits until `culvert status` says so.
    fn healthy(&self) -> Result<()> {
        let healthy = eventually("the agent is healthy", LIMIT, || {
            let status = self.agent.status()?;
            if status["healthy"] != json!(true) {
                bail!("{status}");
            }
            Ok(Some(()))
        });
        healthy.with_context(|| format!("its log:\n{}", self.agent.log()))
    }

    /// Waits for an event of a reason, as `kubectl describe` looks for it.
    fn event(&self, object: &Value, reason: &str) -> Result<Value> {
        let uid = object["metadata"]["uid"].as_str().context("a uid")?;
        let event = self.plane.event(&format!("involvedObject.uid={uid}"), reason, LIMIT);
        event.with_context(|| format!("the agent's log:\n{}", self.agent.log()))
    }

    fn get(&self, path: &str) -> Result<(u16, String)> {
        let line =
            format!("curl --silent --max-time 3 --write-out %{{stderr}}%{{http_code}} http://127.0.0.1:10256{path}");
        let mut command = shell::split(&line);
        let output = self.cast.n1.run(|| Ok(command.output()?))?;
        let code = String::from_utf8_lossy(&output.stderr).trim().parse().context("a status code")?;
        Ok((code, String::from_utf8_lossy(&output.stdout).into_owned()))
    }
}

fn service(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"ports": [{"port": PORT}]}})
}

fn slice(name: &str, service: &str, address: IpAddr, node: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "", "port": TARGET}],
        "endpoints": [{"addresses": [address.to_string()], "nodeName": node}],
    })
}

fn address_of(service: &Value) -> Result<SocketAddr> {
    let address: IpAddr = service["spec"]["clusterIP"].as_str().context("a ClusterIP")?.parse()?;
    Ok((address, PORT).into())
}

fn served_by(from: &Place, to: SocketAddr, server: &str) -> Result<()> {
    eventually(&format!("{server} answers at {to}"), LIMIT, || {
        let found = answered(&from.ask(&Ask::tcp(to))?)?;
        ensure!(found == server, "{found} answers");
        Ok(Some(()))
    })
}

#[test]
fn services_of_an_api_server_are_served_also_while_it_is_away() -> Result<()> {
    let mut made = Value::Null;
    let mut stage = Stage::new(|plane, cast| {
        made = plane.create(SERVICES, &service("web"))?;
        plane.create(SLICES, &slice("web-1", "web", cast.c.v4().into(), "n2"))?;
        Ok(())
    })?;
    stage.healthy()?;
    let web = address_of(&made)?;
    let (n1, p) = (stage.cast.n1.clone(), stage.cast.p.clone());
    for place in [&n1, &p] {
        served_by(place, web, "c")?;
    }
    // A change gets there, and is measured.
    let now = stage.cast.n1.sh("date -u +%Y-%m-%dT%H:%M:%S.%NZ")?;
    let trigger = "endpoints.kubernetes.io/last-change-trigger-time";
    let mut other = slice("web-1", "web", stage.cast.a.v4().into(), "n1");
    other["metadata"]["annotations"] = json!({trigger: now.trim()});
    stage.plane.patch(&format!("{SLICES}/web-1"), &other)?;
    served_by(&n1, web, "a")?;
    let metrics = n1.sh("curl --silent http://127.0.0.1:10249/metrics")?;
    let count = "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} 1";
    ensure!(metrics.contains(count), "{metrics}");

    // The API server is away, then the agent too: traffic goes on all the time.
    stage.plane.kill_api_server()?;
    served_by(&n1, web, "a")?;
    stage.agent.kill()?;
    served_by(&n1, web, "a")?;
    stage.agent.restart(None)?;
    stage.agent.ready()?;
    let told = eventually("the agent says what is wrong", LIMIT, || {
        let status = stage.agent.status()?;
        let errors = status["sources"][0]["errors"].to_string();
        ensure!(errors.contains("cannot be watched") && status["sources"][0]["synced"] == json!(false), "{status}");
        Ok(Some(()))
    });
    told?;
    for place in [&n1, &p] {
        served_by(place, web, "a")?;
    }
    ensure!(stage.get("/livez")?.0 == 200, "{:?}", stage.get("/livez")?);
    // It is back.
    stage.plane.start_api_server()?;
    stage.healthy()?;
    stage.plane.patch(&format!("{SLICES}/web-1"), &slice("web-1", "web", stage.cast.c.v4().into(), "n2"))?;
    served_by(&n1, web, "c")?;
    stage.plane.delete(&format!("{SERVICES}/web"))?;
    eventually("the Service is gone", LIMIT, || {
        let services = stage.agent.cli_json("services")?;
        ensure!(!services["kernel"].to_string().contains("\"web\""), "{services}");
        Ok(Some(()))
    })
}

#[test]
fn what_is_wrong_is_an_event_on_its_object() -> Result<()> {
    let check = 31_998;
    let mut objects = Vec::new();
    let mut busy: Option<Process> = None;
    let mut stage = Stage::new(|plane, cast| {
        let mut taken = service("taken");
        taken["spec"]["externalIPs"] = json!(["192.0.2.200"]);
        objects.push(plane.create(SERVICES, &taken)?);
        objects.push(plane.create(SLICES, &slice("taken-1", "taken", "239.1.2.3".parse()?, "n2"))?);
        let mut local = service("local");
        local["spec"]["type"] = json!("LoadBalancer");
        local["spec"]["externalTrafficPolicy"] = json!("Local");
        local["spec"]["healthCheckNodePort"] = json!(check);
        objects.push(plane.create(SERVICES, &local)?);
        busy = Some(cast.n1.start(shell::split(&format!("nc -l -k 0.0.0.0 {check}")))?);
        Ok(())
    })?;
    let refused = stage.event(&objects[0], "ExternalIPNotAllowed")?;
    ensure!(refused["message"].as_str().is_some_and(|note| note.starts_with("spec.externalIPs[0]: ")), "{refused}");
    ensure!(refused["type"] == "Warning" && refused["reportingComponent"] == "culvert.dev/agent", "{refused}");
    stage.event(&objects[1], "EndpointAddressRefused")?;
    let busy_port = stage.event(&objects[2], "FailedToStartServiceHealthcheck")?;
    let note = busy_port["message"].as_str().context("a note")?;
    ensure!(note.starts_with("node n1 failed to start healthcheck \"shop/local\" on port 31998: "), "{note}");

    // An agent that starts anew says nothing twice; one that sees it end and come again counts.
    stage.agent.kill()?;
    stage.agent.restart(None)?;
    stage.healthy()?;
    drop(busy);
    eventually("the port is free, and listened on", LIMIT, || {
        stage.cast.n1.sh(&format!("curl --silent --max-time 3 http://127.0.0.1:{check}/")).map(Some)
    })?;
    stage.event(&objects[2], "FailedToStartServiceHealthcheck")?;
    stage.event(&objects[0], "ExternalIPNotAllowed")?;
    Ok(())
}

#[test]
fn the_node_object_decides_about_eligibility() -> Result<()> {
    let stage = Stage::new(|_, _| Ok(()))?;
    stage.healthy()?;
    let says = |code: u16, eligible: bool| {
        eventually(&format!("/healthz says {code}"), LIMIT, || {
            let (found, body) = stage.get("/healthz")?;
            let body: Value = serde_json::from_str(&body)?;
            ensure!(found == code && body["nodeEligible"] == json!(eligible), "{found} {body}");
            ensure!(stage.get("/livez")?.0 == 200, "/livez");
            Ok(Some(()))
        })
    };
    says(200, true)?;
    let taint = json!({"spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}});
    stage.plane.patch("/api/v1/nodes/n1", &taint)?;
    says(503, false)?;
    stage.plane.patch("/api/v1/nodes/n1", &json!({"spec": {"taints": []}}))?;
    says(200, true)?;
    stage.plane.patch("/api/v1/nodes/n1", &json!({"metadata": {"finalizers": ["example.com/x"]}}))?;
    stage.plane.delete("/api/v1/nodes/n1")?;
    says(503, false)?;
    stage.plane.patch("/api/v1/nodes/n1", &json!({"metadata": {"finalizers": null}}))?;
    eventually("the agent sees that its Node is gone", LIMIT, || {
        let status = stage.agent.status()?;
        ensure!(status["problems"].to_string().contains("there is no Node"), "{status}");
        Ok(Some(()))
    })?;
    says(503, false)?;
    stage.plane.create("/api/v1/nodes", &json!({"metadata": {"name": "n1"}}))?;
    says(200, true)
}
