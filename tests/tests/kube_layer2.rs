//! Addresses that a cluster's controller gives and its agents announce, with a real API server, real links, and the rights that
//! `deploy/` gives and no more.

use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use culvert_tests::agent::{Agent, Options, SocketMode};
use culvert_tests::control_plane::{ControlPlane, User};
use culvert_tests::controllers::{LIMIT, PODS, POOLS, SERVICES};
use culvert_tests::deploy::chart::Chart;
use culvert_tests::deploy::objects::by_name;
use culvert_tests::deploy::repository;
use culvert_tests::matrix::{PORT, TARGET};
use culvert_tests::neighbors::pings;
use culvert_tests::place::{Family, Place};
use culvert_tests::process::{Process, eventually};
use culvert_tests::programs;
use culvert_tests::shell;
use culvert_tests::stage::{Scenery, answered};
use culvert_tests::topology::{Lab, PodLinks};
use culvert_tests::traffic::Ask;
use serde_json::{Value, json};

const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices";
const ADVERTISEMENTS: &str = "/apis/metallb.io/v1beta1/namespaces/metallb-system/l2advertisements";
const STATUSES: &str = "/apis/metallb.io/v1beta1/namespaces/kube-system/servicel2statuses";
/// The pod that the agent would be, by name and uid.
const POD: (&str, &str) = ("culvert-agent-x", "00000000-0000-0000-0000-000000000001");
/// Addresses of the nodes' own network.
const RANGES: [&str; 2] = ["198.51.100.200-198.51.100.209", "2001:db8:2::200-2001:db8:2::209"];
const V4: &str = "198.51.100.200";
const V6: &str = "2001:db8:2::200";

/// A lab with an API server outside of the nodes, a controller beside it, and an agent on n1 that announces.
struct Stage {
    agent: Agent,
    controller: Process,
    plane: ControlPlane,
    scenery: Scenery,
}

/// The rights of the chart's roles, for the user that stands for both service accounts.
fn grant(plane: &ControlPlane) -> Result<()> {
    let values = json!({"controller": {"enabled": true}, "layer2": {"enabled": true}});
    let subject = json!([{"kind": "ServiceAccount", "name": "culvert", "namespace": "kube-system"}]);
    for (name, mut object) in by_name(Chart::new().render(&values)?)? {
        let rbac = "/apis/rbac.authorization.k8s.io/v1";
        let path = match object["kind"].as_str() {
            Some("ClusterRole") => format!("{rbac}/clusterroles"),
            Some("ClusterRoleBinding") => format!("{rbac}/clusterrolebindings"),
            Some("Role") => format!("{rbac}/namespaces/kube-system/roles"),
            Some("RoleBinding") => format!("{rbac}/namespaces/kube-system/rolebindings"),
            Some("CustomResourceDefinition") => "/apis/apiextensions.k8s.io/v1/customresourcedefinitions".to_owned(),
            _ => continue,
        };
        if !object["subjects"].is_null() {
            object["subjects"] = subject.clone();
        }
        plane.create(&path, &object).context(name)?;
    }
    Ok(())
}

fn controller(plane: &ControlPlane, place: &Place) -> Result<Process> {
    let mut command = Command::new(culvert_tests::agent::binary()?);
    command.arg("controller").arg("--kubeconfig").arg(plane.kubeconfig(User::Agent)?);
    command.args(["--identity=one", "--namespace=kube-system", "--bind-address=127.0.0.1:7472"]);
    command.args(["--lease-duration=4", "--lease-renew-deadline=3", "--lease-retry-period=1"]);
    place.start(command)
}

/// How agents are started: as in a pod, with the key that all share.
fn options(lab: &Lab, plane: &ControlPlane) -> Result<Options> {
    let key = lab.dir().join("key");
    std::fs::write(&key, "a key that all nodes of the test share")?;
    let mut options = Options { kubeconfig: Some(plane.kubeconfig(User::Agent)?), ..Options::new(SocketMode::All)? };
    let (name, uid) = POD;
    options.flags.extend(["--layer2".to_owned(), format!("--pod-name={name}"), format!("--pod-uid={uid}")]);
    options.flags.push(format!("--layer2-key-file={}", key.display()));
    Ok(options)
}

fn advertisement() -> Value {
    json!({"apiVersion": "metallb.io/v1beta1", "kind": "L2Advertisement", "metadata": {"name": "main"}, "spec": {}})
}

fn pool(name: &str, ranges: &[&str]) -> Value {
    json!({"apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool", "metadata": {"name": name}, "spec": {"addresses": ranges}})
}

impl Stage {
    /// One that has everything but what `prepare` makes.
    fn new(prepare: impl FnOnce(&ControlPlane) -> Result<()>) -> Result<Self> {
        let scenery = Scenery::new(PodLinks::Routed)?;
        let (lab, cast) = (&scenery.lab, &scenery.cast);
        let plane = ControlPlane::start(&lab.client, lab.client.v4(), lab.dir(), &[])?;
        grant(&plane)?;
        for name in ["shop", "metallb-system"] {
            plane.create("/api/v1/namespaces", &json!({"metadata": {"name": name}}))?;
        }
        plane.create("/api/v1/nodes", &json!({"metadata": {"name": "n1"}}))?;
        let address = |family| json!({"type": "InternalIP", "address": cast.n1.ip(family).to_string()});
        let addresses = json!({"status": {"addresses": Family::BOTH.map(address)}});
        plane.patch("/api/v1/nodes/n1/status", &addresses)?;
        let web = json!({"metadata": {"name": "web"}, "spec": {"type": "LoadBalancer", "ports": [{"port": PORT}],
            "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"]}});
        plane.create(SERVICES, &web)?;
        for family in Family::BOTH {
            plane.create(SLICES, &slice(family, &cast.a))?;
        }
        prepare(&plane)?;
        let controller = controller(&plane, &lab.client)?;
        let agent = Agent::start(lab, 0, &options(lab, &plane)?)?;
        let mut stage = Self { agent, controller, plane, scenery };
        stage.agent.ready()?;
        Ok(stage)
    }

    /// The same with a pool that is advertised.
    fn advertised(prepare: impl FnOnce(&ControlPlane) -> Result<()>) -> Result<Self> {
        Self::new(|plane| {
            configure(plane)?;
            prepare(plane)
        })
    }

    /// Puts what everybody said beside an error.
    fn told<T>(&self, result: Result<T>) -> Result<T> {
        result.with_context(|| {
            format!("the agent's log:\n{}\nthe controller's:\n{}", self.agent.log(), self.controller.output())
        })
    }

    /// Waits until the address is answered for, or not.
    fn answers(&self, to: &str, wanted: bool) -> Result<()> {
        let (router, to): (_, IpAddr) = (&self.scenery.lab.router, to.parse()?);
        let what = format!("{to} {}", if wanted { "answers" } else { "is silent" });
        self.told(eventually(&what, LIMIT, || {
            router.sh(&format!("ip neigh flush to {to} dev eth0"))?;
            Ok((pings(router, to)? == wanted).then_some(()))
        }))
    }

    /// Waits until `culvert l2` says something of an address.
    fn says(&self, to: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        self.told(eventually(&format!("culvert l2 of {to}"), LIMIT, || {
            let all = self.agent.cli_json("l2")?;
            let found = all["addresses"].as_array().into_iter().flatten().find(|one| one["address"] == to);
            let found = found.with_context(|| format!("{to} is not in {all}"))?;
            ensure!(wanted(found), "{found}");
            Ok(Some(found.clone()))
        }))
    }

    /// Waits until the `ServiceL2Status`es are such.
    fn status(&self, wanted: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
        self.told(eventually("ServiceL2Statuses", LIMIT, || {
            let mut list = self.plane.ask(User::Admin, "GET", STATUSES, None)?;
            let items: Vec<Value> = serde_json::from_value(list["items"].take()).with_context(|| list.to_string())?;
            ensure!(wanted(&items) && items.iter().all(|item| item["status"]["node"].is_string()), "{items:?}");
            Ok(Some(items))
        }))
    }

    fn pod_of_metallb(&self, phase: &str) -> Result<()> {
        let status = json!({"status": {"phase": phase}});
        self.plane.patch(&format!("{PODS}/speaker-1/status"), &status).map(drop)
    }
}

fn configure(plane: &ControlPlane) -> Result<()> {
    eventually("the definitions are in force", LIMIT, || {
        for path in [POOLS, ADVERTISEMENTS] {
            let list = plane.ask(User::Admin, "GET", path, None)?;
            ensure!(list["items"].is_array(), "{list}");
        }
        Ok(Some(()))
    })?;
    plane.create(POOLS, &pool("main", &RANGES))?;
    plane.create(ADVERTISEMENTS, &advertisement()).map(drop)
}

fn slice(family: Family, pod: &Place) -> Value {
    let address = pod.ip(family).to_string();
    json!({
        "metadata": {"name": format!("web-{family:?}").to_lowercase(), "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": if family == Family::V4 { "IPv4" } else { "IPv6" }, "ports": [{"name": "", "port": TARGET}],
        "endpoints": [{"addresses": [address], "nodeName": "n1", "conditions": {"ready": true}}],
    })
}

#[test]
fn what_the_controller_gives_an_agent_announces() -> Result<()> {
    let mut stage = Stage::advertised(|_| Ok(()))?;
    let lab = &stage.scenery.lab;
    for to in [V4, V6] {
        stage.answers(to, true)?;
        let told = stage.says(to, |one| one["links"][0]["state"] == "announced")?;
        ensure!(told["node"] == "n1" && told["services"] == json!(["shop/web"]), "{told}");
        // A client behind the router, and the router itself, which knows the address by ARP and NDP alone.
        let to: IpAddr = to.parse()?;
        for place in [&lab.client, &lab.router] {
            answered(&place.ask(&Ask::tcp((to, PORT)))?).with_context(|| format!("{to} from {}", place.name()))?;
        }
        ensure!(!stage.scenery.cast.n1.sh("ip addr")?.contains(&to.to_string()), "a link carries {to}");
    }
    let status = stage.status(|items| items.len() == 1)?.remove(0);
    let wanted =
        json!({"node": "n1", "serviceName": "web", "serviceNamespace": "shop", "interfaces": [{"name": "eth0"}]});
    ensure!(status["status"] == wanted, "{status}");
    let metadata = &status["metadata"];
    let labels =
        json!({"metallb.io/node": "n1", "metallb.io/service-name": "web", "metallb.io/service-namespace": "shop"});
    ensure!(metadata["labels"] == labels && metadata["generateName"] == "l2-", "{metadata}");
    ensure!(metadata["ownerReferences"][0]["uid"] == POD.1, "{metadata}");
    let event = stage.told(stage.plane.event("involvedObject.name=web", "nodeAssigned", LIMIT))?;
    ensure!(event["message"] == "announcing from node \"n1\" with protocol \"layer2\"", "{event}");
    ensure!(event["type"] == "Normal", "{event}");
    // An agent that is started anew finds what is written, and says nothing twice.
    stage.agent.kill()?;
    stage.agent.restart(None)?;
    stage.agent.ready()?;
    stage.says(V4, |one| one["links"][0]["state"] == "announced")?;
    let again = stage.status(|items| items.len() == 1)?.remove(0);
    ensure!(again["metadata"]["uid"] == metadata["uid"], "{again}");
    let services = stage.agent.cli_json("services web")?;
    ensure!(services["services"][0]["pool"] == "main", "{services}");

    // A configuration that is not valid: the last good one stays in force, and is told of.
    stage.plane.create(POOLS, &pool("overlaps", &["198.51.100.209/32"]))?;
    stage.told(eventually("the agent says what is wrong", LIMIT, || {
        let errors = stage.agent.status()?["sources"][0]["errors"].to_string();
        ensure!(errors.contains("overlaps with"), "{errors}");
        Ok(Some(()))
    }))?;
    stage.answers(V4, true)?;
    stage.plane.delete(&format!("{POOLS}/overlaps"))?;

    // Without an advertisement nobody answers, and it is said why.
    stage.plane.delete(&format!("{ADVERTISEMENTS}/main"))?;
    for to in [V4, V6] {
        stage.answers(to, false)?;
        stage.says(to, |one| one["node"].is_null())?;
    }
    stage.status(<[_]>::is_empty)?;
    stage.plane.create(ADVERTISEMENTS, &advertisement())?;
    stage.answers(V4, true)?;
    // Nor for a Service of another class, or an address of no pool.
    let other = json!({"metadata": {"name": "other"}, "spec": {"type": "LoadBalancer", "ports": [{"port": PORT}],
        "loadBalancerClass": "example.com/other"}});
    stage.plane.create(SERVICES, &other)?;
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.205"}]}}});
    stage.plane.patch(&format!("{SERVICES}/other/status"), &status)?;
    stage.plane.delete(&format!("{SERVICES}/web"))?;
    stage.answers(V4, false)?;
    let all = stage.agent.cli_json("l2")?;
    ensure!(all["addresses"] == json!([]), "{all}");
    Ok(())
}

#[test]
fn services_are_served_before_anything_is_known_of_pools() -> Result<()> {
    // Pools cannot be read: their definition is gone, so that nobody gives addresses either.
    let stage = Stage::new(|plane| {
        plane.delete("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/ipaddresspools.metallb.io")
    })?;
    let web = stage.plane.ask(User::Admin, "GET", &format!("{SERVICES}/web"), None)?;
    let cluster: IpAddr = web["spec"]["clusterIP"].as_str().context("a ClusterIP")?.parse()?;
    stage.told(eventually("the ClusterIP is served", LIMIT, || {
        answered(&stage.scenery.cast.p.ask(&Ask::tcp((cluster, PORT)))?).map(Some)
    }))?;
    stage.told(eventually("the agent says that pools cannot be watched", LIMIT, || {
        let errors = stage.agent.status()?["sources"][0]["errors"].to_string();
        ensure!(errors.contains("IPAddressPools cannot be watched"), "{errors}");
        Ok(Some(()))
    }))?;
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": V4}]}}});
    stage.plane.patch(&format!("{SERVICES}/web/status"), &status)?;
    stage.answers(V4, false)?;
    // The definition comes back, with a pool.
    let objects = by_name(Chart::new().render(&json!({"layer2": {"enabled": true}}))?)?;
    let definition = &objects["CustomResourceDefinition ipaddresspools.metallb.io"];
    stage.plane.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)?;
    configure(&stage.plane)?;
    stage.answers(V4, true)
}

#[test]
fn while_metallb_runs_nothing_is_announced() -> Result<()> {
    let stage = Stage::advertised(|plane| {
        plane.create("/api/v1/namespaces/metallb-system/serviceaccounts", &json!({"metadata": {"name": "default"}}))?;
        let speaker = json!({
            "metadata": {"name": "speaker-1", "labels": {"app": "metallb", "component": "speaker"}},
            "spec": {"nodeName": "n1", "automountServiceAccountToken": false,
                "containers": [{"name": "speaker", "image": "metallb", "args": ["--port=7472"]}]},
        });
        plane.create(PODS, &speaker)?;
        plane.patch(&format!("{PODS}/speaker-1/status"), &json!({"status": {"phase": "Running"}})).map(drop)
    })?;
    // Its speaker is no controller: addresses are given here.
    let said = stage.says(V4, |one| one["reason"].as_str().is_some_and(|reason| reason.contains("MetalLB runs")))?;
    ensure!(said["node"].is_null() && said["links"] == json!([]), "{said}");
    ensure!(said["reason"].to_string().contains("metallb-system/speaker-1"), "{said}");
    for to in [V4, V6] {
        stage.answers(to, false)?;
    }
    stage.pod_of_metallb("Succeeded")?;
    for to in [V4, V6] {
        stage.answers(to, true)?;
    }
    Ok(())
}

#[test]
fn of_two_nodes_the_one_that_gets_the_lease_answers() -> Result<()> {
    let mut stage = Stage::advertised(|_| Ok(()))?;
    let lab = &stage.scenery.lab;
    stage.answers(V4, true)?;
    stage.plane.create("/api/v1/nodes", &json!({"metadata": {"name": "n2"}}))?;
    let address = |family| json!({"type": "InternalIP", "address": stage.scenery.cast.n2.ip(family).to_string()});
    let addresses = json!({"status": {"addresses": Family::BOTH.map(address)}});
    stage.plane.patch("/api/v1/nodes/n2/status", &addresses)?;
    let mut second = Agent::start(lab, 1, &options(lab, &stage.plane)?)?;
    second.ready()?;
    for agent in [&stage.agent, &second] {
        stage.told(eventually("the nodes hear each other", LIMIT, || {
            let said = agent.cli_json("l2")?;
            ensure!(said["quorum"] == true && said["nodes"][0]["alive"] == true, "{said}");
            Ok(Some(()))
        }))?;
    }
    // Without an API server, nothing changes as long as they hear each other: for longer than any grant lasts.
    stage.plane.kill_api_server()?;
    for to in [V4, V6].into_iter().cycle().take(6) {
        stage.answers(to, true)?;
    }
    stage.plane.start_api_server()?;
    stage.plane.ready()?;
    // The node that has the address is cut off.
    let owner = stage.says(V4, |one| one["node"].is_string())?["node"].clone();
    let (port, other) = if owner == "n1" { ("n1", "n2") } else { ("n2", "n1") };
    lab.fabric.sh(&format!("bridge link set dev {port} state 0"))?;
    stage.answers(V4, true)?;
    stage.answers(V6, true)?;
    let path = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/culvert-layer2";
    let lease = stage.plane.ask(User::Admin, "GET", path, None)?;
    ensure!(lease["spec"]["holderIdentity"] == other, "{lease}");
    // It is given back when the other one is heard again.
    lab.fabric.sh(&format!("bridge link set dev {port} state 3"))?;
    stage
        .told(eventually("the Lease is given back", LIMIT, || {
            let lease = stage.plane.ask(User::Admin, "GET", path, None)?;
            ensure!(lease["spec"]["holderIdentity"].as_str().is_none_or(str::is_empty), "{lease}");
            Ok(Some(()))
        }))
        .with_context(|| second.log())
}

#[test]
fn an_upgrade_of_the_chart_keeps_the_key() -> Result<()> {
    let scenery = Scenery::new(PodLinks::Routed)?;
    let lab = &scenery.lab;
    let plane = ControlPlane::start(&lab.client, lab.client.v4(), lab.dir(), &[])?;
    let render = || -> Result<Option<Value>> {
        let mut command = Command::new(programs::find("helm")?);
        command.args(["template", "culvert"]).arg(repository("deploy/helm/culvert"));
        command.args(["--namespace=kube-system", "--set=layer2.enabled=true", "--dry-run=server", "--kubeconfig"]);
        command.arg(plane.kubeconfig(User::Admin)?);
        let text = lab.client.run(|| shell::run(&mut command))?;
        Ok(by_name(culvert_tests::deploy::chart::documents(&text)?)?.remove("Secret culvert-layer2"))
    };
    let first = render()?.context("no Secret")?;
    let second = render()?.context("no Secret")?;
    ensure!(first["data"]["key"] != second["data"]["key"], "the key is not random");
    let secrets = "/api/v1/namespaces/kube-system/secrets";
    // As Helm installs it.
    let mut installed = first.clone();
    let release = json!({"meta.helm.sh/release-name": "culvert", "meta.helm.sh/release-namespace": "kube-system"});
    installed["metadata"]["annotations"] = release;
    installed["metadata"]["labels"]["app.kubernetes.io/managed-by"] = json!("Helm");
    plane.create(secrets, &installed)?;
    let third = render()?.context("no Secret")?;
    ensure!(first["data"] == third["data"], "{first} {third}");
    // Somebody else's stays as it is.
    plane.delete(&format!("{secrets}/culvert-layer2"))?;
    installed["metadata"]["annotations"] = json!({});
    plane.create(secrets, &installed)?;
    ensure!(render()?.is_none(), "another one's Secret is taken");
    Ok(())
}
