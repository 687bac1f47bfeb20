//! Addresses that a cluster's controller gives and its agents announce, with a real API server, real links, and the rights that
//! `deploy/` gives and no more.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use culvert_tests::agent::{Agent, Options, SocketMode};
use culvert_tests::control_plane::{ControlPlane, User};
use culvert_tests::controllers::{LIMIT, PODS, POOL, POOLS, SERVICES};
use culvert_tests::deploy::chart::Chart;
use culvert_tests::deploy::objects::by_name;
use culvert_tests::deploy::repository;
use culvert_tests::matrix::{PORT, TARGET};
use culvert_tests::metallb;
use culvert_tests::neighbors::pings;
use culvert_tests::place::{Family, Place};
use culvert_tests::process::{Process, eventually};
use culvert_tests::programs;
use culvert_tests::segment::Segment;
use culvert_tests::shell;
use culvert_tests::stage::{Scenery, answered};
use culvert_tests::topology::PodLinks;
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

/// How agents are started: as in a pod. The key that all share is missing.
fn options(plane: &ControlPlane) -> Result<Options> {
    let mut options = Options { kubeconfig: Some(plane.kubeconfig(User::Agent)?), ..Options::new(SocketMode::All)? };
    let (name, uid) = POD;
    options.flags.extend(["--layer2".to_owned(), format!("--pod-name={name}"), format!("--pod-uid={uid}")]);
    Ok(options)
}

/// The same with the key, which is kept in `dir`.
fn keyed(plane: &ControlPlane, dir: &Path) -> Result<Options> {
    let key = dir.join("key");
    std::fs::write(&key, "a key that all nodes of the test share")?;
    let mut options = options(plane)?;
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
        node(&plane, "n1", &cast.n1)?;
        web(&plane, &cast.a, Some("n1"))?;
        prepare(&plane)?;
        let controller = controller(&plane, &lab.client)?;
        let agent = Agent::start(lab, 0, &keyed(&plane, lab.dir())?)?;
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
        self.told(answers(&self.scenery.lab.router, to.parse()?, wanted))
    }

    /// Waits until `culvert l2` says something of an address.
    fn says(&self, to: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        self.told(eventually(&format!("culvert l2 of {to}"), LIMIT, || {
            let found = self.agent.layer2(to.parse()?)?;
            ensure!(wanted(&found), "{found}");
            Ok(Some(found))
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

/// Waits until the resources can be made.
fn defined(plane: &ControlPlane) -> Result<()> {
    eventually("the definitions are in force", LIMIT, || {
        for path in [POOLS, ADVERTISEMENTS] {
            let list = plane.ask(User::Admin, "GET", path, None)?;
            ensure!(list["items"].is_array(), "{list}");
        }
        Ok(Some(()))
    })
}

/// Adds a pool that is advertised.
fn configure(plane: &ControlPlane) -> Result<()> {
    defined(plane)?;
    plane.create(POOLS, &pool("main", &RANGES))?;
    plane.create(ADVERTISEMENTS, &advertisement()).map(drop)
}

/// Adds a node with its addresses.
fn node(plane: &ControlPlane, name: &str, host: &Place) -> Result<()> {
    plane.create("/api/v1/nodes", &json!({"metadata": {"name": name}}))?;
    let address = |family| json!({"type": "InternalIP", "address": host.ip(family).to_string()});
    let addresses = json!({"status": {"addresses": Family::BOTH.map(address)}});
    plane.patch(&format!("/api/v1/nodes/{name}/status"), &addresses).map(drop)
}

/// Adds the namespaces, and a Service that wants an address of each family, with one endpoint.
fn web(plane: &ControlPlane, endpoint: &Place, node: Option<&str>) -> Result<()> {
    for name in ["shop", "metallb-system"] {
        plane.create("/api/v1/namespaces", &json!({"metadata": {"name": name}}))?;
    }
    let web = json!({"metadata": {"name": "web"}, "spec": {"type": "LoadBalancer", "ports": [{"port": PORT}],
        "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"]}});
    plane.create(SERVICES, &web)?;
    for family in Family::BOTH {
        plane.create(SLICES, &slice("web", family, endpoint, node))?;
    }
    Ok(())
}

/// Waits until a neighbour that knows nothing of an address gets an answer from there, or none.
fn answers(neighbor: &Place, to: IpAddr, wanted: bool) -> Result<()> {
    eventually(&format!("{to} {}", if wanted { "answers" } else { "is silent" }), LIMIT, || {
        neighbor.sh(&format!("ip neigh flush to {to} dev eth0"))?;
        Ok((pings(neighbor, to)? == wanted).then_some(()))
    })
}

fn slice(service: &str, family: Family, pod: &Place, node: Option<&str>) -> Value {
    let address = pod.ip(family).to_string();
    json!({
        "metadata": {"name": format!("{service}-{family:?}").to_lowercase(), "labels": {"kubernetes.io/service-name": service}},
        "addressType": if family == Family::V4 { "IPv4" } else { "IPv6" }, "ports": [{"name": "", "port": TARGET}],
        "endpoints": [{"addresses": [address], "nodeName": node, "conditions": {"ready": true}}],
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
    node(&stage.plane, "n2", &stage.scenery.cast.n2)?;
    let mut second = Agent::start(lab, 1, &keyed(&stage.plane, lab.dir())?)?;
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
fn an_address_moves_while_there_is_no_api_server() -> Result<()> {
    let segment = Segment::new(3)?;
    let mut plane = ControlPlane::start(&segment.client, segment.client.v4(), segment.dir(), &[])?;
    grant(&plane)?;
    for one in &segment.nodes {
        node(&plane, one.name(), &one.host)?;
    }
    web(&plane, &segment.server, None)?;
    configure(&plane)?;
    let controller = controller(&plane, &segment.client)?;
    let options = options(&plane)?;
    let mut agents = (0..3).map(|node| segment.start(node, &options)).collect::<Result<Vec<_>>>()?;
    agents.iter_mut().try_for_each(Agent::ready)?;
    let logs = || {
        let logs = agents.iter().map(|agent| format!("{}:\n{}", agent.node(), agent.log()));
        logs.chain([controller.output()]).collect::<Vec<_>>().join("\n")
    };
    let addresses = [V4, V6].map(str::parse::<IpAddr>);
    for to in addresses.clone() {
        answers(&segment.router, to?, true).with_context(logs)?;
    }
    plane.kill_api_server()?;
    for to in addresses {
        let to = to?;
        let owner = segment.owner(to)?.context("no owner")?;
        segment.cut(owner, true)?;
        answers(&segment.router, to, true).with_context(logs)?;
        ensure!(segment.owner(to)?.is_some_and(|now| now != owner), "{to} has not moved");
        answered(&segment.router.ask(&Ask::tcp((to, PORT)))?).with_context(logs)?;
        // One at a time: of three, two are a majority.
        segment.cut(owner, false)?;
        segment.heard(owner, &agents).with_context(logs)?;
    }
    // Who answers now is written down as soon as there is somewhere to write.
    plane.start_api_server()?;
    eventually("the ServiceL2Statuses name those that answer", LIMIT, || {
        let list = plane.ask(User::Admin, "GET", STATUSES, None)?;
        let items = list["items"].as_array().with_context(|| list.to_string())?;
        let mut said: Vec<_> = items.iter().filter_map(|item| item["status"]["node"].as_str()).collect();
        let owners = [V4, V6].map(|to| anyhow::Ok(segment.owner(to.parse()?)?.context("nobody answers")?));
        let owners = owners.into_iter().collect::<Result<BTreeSet<_>>>()?;
        let names: Vec<_> = owners.into_iter().map(|owner| segment.nodes[owner].name()).collect();
        said.sort_unstable();
        ensure!(said == names, "{list} instead of {names:?}");
        Ok(Some(()))
    })
    .with_context(logs)
}

/// Every sample of MetalLB's that is for layer 2, as it is, with what it leaves to its reader.
#[test]
fn samples_of_metallb_serve() -> Result<()> {
    let stage = Stage::new(|plane| {
        defined(plane)?;
        plane.delete(&format!("{SERVICES}/web")).map(drop)
    })?;
    let mut served = Vec::new();
    for path in metallb::files("configsamples")? {
        let objects = metallb::objects(&path)?;
        let has =
            |kind: &str| objects.iter().any(|object| object["kind"].as_str().is_some_and(|one| one.starts_with(kind)));
        if has("BGP") || !(has("IPAddressPool") || has("L2Advertisement")) {
            continue;
        }
        sample(&stage, objects).with_context(|| path.display().to_string())?;
        served.push(path);
    }
    ensure!(served.len() >= 6, "only {served:?}");
    Ok(())
}

/// Puts a sample into force, and waits until a Service is served at an address of its pool; then all is as before.
fn sample(stage: &Stage, mut objects: Vec<Value>) -> Result<()> {
    let Stage { plane, scenery, .. } = stage;
    // There is no kubelet: what runs in the Deployment's pods is the pod that serves all Services here.
    objects.retain(|object| object["kind"] != "Deployment");
    let find = |kind: &str| objects.iter().find(|object| object["kind"] == kind).cloned();
    let first = |list: &Value| list[0].as_str().map(str::to_owned);
    let advertises = find("L2Advertisement").unwrap_or_else(advertisement);
    let named = first(&advertises["spec"]["ipAddressPools"]).unwrap_or_else(|| "any".to_owned());
    let gives = find("IPAddressPool").unwrap_or_else(|| pool(&named, &RANGES));
    let nodes = &advertises["spec"]["nodeSelectors"][0]["matchLabels"];
    plane.patch("/api/v1/nodes/n1", &json!({"metadata": {"labels": nodes}}))?;
    let allocation = &gives["spec"]["serviceAllocation"];
    let namespace = first(&allocation["namespaces"]).unwrap_or_else(|| "default".to_owned());
    let wanted = &allocation["serviceSelectors"][0]["matchExpressions"][0];
    let labels = wanted["key"].as_str().map(|key| json!({key: wanted["values"][0]}));
    let service = find("Service").unwrap_or_else(|| {
        json!({"metadata": {"name": "plain", "labels": labels},
            "spec": {"type": "LoadBalancer", "ports": [{"name": "http", "port": PORT, "targetPort": 80}]}})
    });
    if namespace != "default" {
        plane.create("/api/v1/namespaces", &json!({"metadata": {"name": namespace}}))?;
    }
    let name = service["metadata"]["name"].as_str().context("no name")?;
    let services = format!("/api/v1/namespaces/{namespace}/services");
    let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
    let mut endpoints = slice(name, Family::V4, &scenery.cast.a, Some("n1"));
    endpoints["ports"][0]["name"] = service["spec"]["ports"][0]["name"].clone();
    let made = [(POOLS, &gives), (ADVERTISEMENTS, &advertises), (&services, &service), (&slices, &endpoints)];
    for (path, object) in made {
        plane.create(path, object)?;
    }
    let to = stage.told(eventually("the Service has an address", LIMIT, || {
        let given = plane.ask(User::Admin, "GET", &format!("{services}/{name}"), None)?;
        let address =
            given["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().with_context(|| given.to_string())?;
        ensure!(given["metadata"]["annotations"][POOL] == gives["metadata"]["name"], "{given}");
        Ok(Some(address.parse::<IpAddr>()?))
    }))?;
    let router = &scenery.lab.router;
    router.sh(&format!("ip route replace {to}/32 dev eth0"))?;
    stage.told(answers(router, to, true))?;
    let port = service["spec"]["ports"][0]["port"].as_u64().context("no port")?;
    answered(&router.ask(&Ask::tcp((to, u16::try_from(port)?)))?).with_context(|| to.to_string())?;
    for (path, object) in made.into_iter().rev() {
        plane.delete(&format!("{path}/{}", object["metadata"]["name"].as_str().context("no name")?))?;
    }
    stage.told(answers(router, to, false))
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
