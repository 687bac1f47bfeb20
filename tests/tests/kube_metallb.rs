//! A cluster's way from MetalLB's own controller to `culvert controller`, and back, as docs/METALLB.md says it: with the definitions
//! and the webhooks that MetalLB installs, and with ours. MetalLB's controller is built from its Go module.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use culvert_tests::control_plane::User;
use culvert_tests::controllers::{FINALIZER, LIMIT, PODS, POOL, POOLS, SERVICES, Stage, service};
use culvert_tests::deploy::{chart, repository};
use culvert_tests::process::{Process, eventually};
use culvert_tests::{metallb, programs, shell};
use serde_json::{Value, json};

const PEERS: &str = "/apis/metallb.io/v1beta1/namespaces/metallb-system/bgppeers";
/// Pools of every kind, and who announces them.
const CONFIGURATION: &str = r#"
{apiVersion: metallb.io/v1beta1, kind: IPAddressPool, metadata: {name: main}, spec: {addresses: [192.0.2.0/28, "2001:db8::/120"]}}
---
{apiVersion: metallb.io/v1beta1, kind: IPAddressPool, metadata: {name: more}, spec: {addresses: [203.0.113.0/28]}}
---
{apiVersion: metallb.io/v1beta1, kind: IPAddressPool, metadata: {name: extra}, spec: {addresses: [198.51.100.128/28], autoAssign: false}}
---
{apiVersion: metallb.io/v1beta1, kind: IPAddressPool, metadata: {name: own}, spec: {addresses: [198.51.100.192/28], serviceAllocation: {serviceSelectors: [{matchLabels: {app: own}}]}}}
---
{apiVersion: metallb.io/v1beta1, kind: L2Advertisement, metadata: {name: all}}
---
{apiVersion: metallb.io/v1beta2, kind: BGPPeer, metadata: {name: router}, spec: {myASN: 64512, peerASN: 64513, peerAddress: 192.0.2.254}}
---
{apiVersion: metallb.io/v1beta1, kind: BGPAdvertisement, metadata: {name: more}, spec: {ipAddressPools: [more]}}
"#;
/// Services of every kind. `first` is deleted again, and leaves a gap that no new Service would leave; `waits` asks for what `asks` has.
const ASKING: &str = r#"
{apiVersion: v1, kind: Service, metadata: {name: first}, spec: {type: LoadBalancer, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: LoadBalancer, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: six}, spec: {type: LoadBalancer, ipFamilies: [IPv6], ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: both}, spec: {type: LoadBalancer, ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: rather-both}, spec: {type: LoadBalancer, ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: asks, annotations: {metallb.io/loadBalancerIPs: 192.0.2.9}}, spec: {type: LoadBalancer, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: asks-for-both, annotations: {metallb.io/loadBalancerIPs: "192.0.2.12,2001:db8::c"}}, spec: {type: LoadBalancer, ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: asks-in-spec}, spec: {type: LoadBalancer, loadBalancerIP: 192.0.2.11, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: names, annotations: {metallb.universe.tf/address-pool: extra}}, spec: {type: LoadBalancer, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: own, labels: {app: own}}, spec: {type: LoadBalancer, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: shares, annotations: {metallb.io/allow-shared-ip: dns, metallb.io/loadBalancerIPs: 192.0.2.10}}, spec: {type: LoadBalancer, ports: [{port: 53, protocol: TCP}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: shares-too, annotations: {metallb.io/allow-shared-ip: dns, metallb.io/loadBalancerIPs: 192.0.2.10}}, spec: {type: LoadBalancer, ports: [{port: 53, protocol: UDP}]}}
"#;
/// What MetalLB gives, where that is no matter of chance.
const GIVEN: [(&str, &[&str]); 7] = [
    ("asks", &["192.0.2.9"]),
    ("asks-for-both", &["192.0.2.12", "2001:db8::c"]),
    ("asks-in-spec", &["192.0.2.11"]),
    ("names", &["198.51.100.128"]),
    ("own", &["198.51.100.192"]),
    ("shares", &["192.0.2.10"]),
    ("shares-too", &["192.0.2.10"]),
];

/// Whose definitions the cluster has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Definitions {
    MetalLb,
    Ours,
}

/// What Services hold: their addresses, and the pool's name.
type Held = BTreeMap<String, (Vec<String>, String)>;

#[test]
fn from_metallb_and_back_with_its_own_definitions() -> Result<()> {
    there_and_back(Definitions::MetalLb)
}

#[test]
fn from_metallb_and_back_with_our_definitions() -> Result<()> {
    there_and_back(Definitions::Ours)
}

fn there_and_back(definitions: Definitions) -> Result<()> {
    let mut stage = Stage::new()?;
    install(&stage, definitions)?;
    let metallb = start_metallb(&stage)?;
    let before = metallb_gives(&stage, &metallb)?;
    let list = stage.plane.ask(User::Admin, "GET", SERVICES, None)?;
    let version = list["metadata"]["resourceVersion"].as_str().with_context(|| list.to_string())?;
    let watch = stage.plane.watch(SERVICES, version)?;

    beside_metallb_nothing_is_written(&mut stage, &before)?;
    stop_metallb(&stage, metallb)?;
    kept(&stage, &before, &[FINALIZER])?;
    pools_count(&stage)?;
    if definitions == Definitions::MetalLb {
        webhooks_go(&stage)?;
    }
    stage.plane.create(SERVICES, &service("late"))?;
    let late = holds(&stage, "late", &[FINALIZER])?;
    let taken = before.values().any(|(addresses, _)| addresses.iter().any(|address| late.0.contains(address)));
    ensure!(!taken, "late has {late:?} of {before:?}");
    ensure!(!held(&stage)?.contains_key("waits"), "what somebody has is given to another");

    // And back.
    let (_, mut culvert) = stage.controllers.remove(0);
    let status = culvert.terminate(LIMIT)?;
    ensure!(status.success(), "{status}");
    let metallb = start_metallb(&stage)?;
    stage.plane.create(SERVICES, &service("back"))?;
    holds(&stage, "back", &[]).with_context(|| metallb.output())?;
    let mut all = before.clone();
    all.insert("late".to_owned(), late);
    kept(&stage, &all, &[FINALIZER])?;
    pools_count(&stage)?;
    // MetalLB takes no finalizer away.
    run_guide(&stage, "metadata/finalizers")?;
    kept(&stage, &all, &[])?;
    stage.plane.delete(&format!("{SERVICES}/late"))?;
    stage.gone("late")?;
    unbroken(&stage, &watch, &before)
}

// ===== MetalLB =====

fn manifest() -> Result<Vec<Value>> {
    metallb::objects(&metallb::source()?.join("config/manifests/metallb-native.yaml"))
}

fn apply(stage: &Stage, options: &str, objects: &[Value]) -> Result<()> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    stage.plane.kubectl(&format!("apply {options} --filename -"), &list.to_string()).map(drop)
}

/// All that MetalLB's manifest installs, but what refuses objects while no webhook answers; and the configuration.
fn install(stage: &Stage, definitions: Definitions) -> Result<()> {
    let mut objects = manifest()?;
    objects.retain(|object| match object["kind"].as_str() {
        Some("CustomResourceDefinition") => definitions == Definitions::MetalLb,
        kind => kind != Some("ValidatingWebhookConfiguration"),
    });
    apply(stage, "", &objects)?;
    match definitions {
        Definitions::MetalLb => stage.defined()?,
        Definitions::Ours => stage.define()?,
    }
    apply(stage, "--namespace metallb-system", &chart::documents(CONFIGURATION)?)
}

/// Starts MetalLB's controller, and the pod that it would be.
fn start_metallb(stage: &Stage) -> Result<Process> {
    let objects = manifest()?;
    let controller = |object: &&Value| object["kind"] == "Deployment" && object["metadata"]["name"] == "controller";
    let template = &objects.iter().find(controller).context("no Deployment")?["spec"]["template"];
    let mut spec = template["spec"].clone();
    spec["nodeName"] = json!("n1");
    let labels = &template["metadata"]["labels"];
    stage.plane.create(PODS, &json!({"metadata": {"name": "controller-0", "labels": labels}, "spec": spec}))?;
    stage.plane.patch(&format!("{PODS}/controller-0/status"), &json!({"status": {"phase": "Running"}}))?;
    let mut command = Command::new(programs::find("metallb-controller")?);
    command.env("KUBECONFIG", stage.plane.kubeconfig(User::MetalLb)?);
    command.args(["--namespace=metallb-system", "--pod-name=controller-0", "--port=0", "--webhook-mode=disabled"]);
    stage.place.start(command)
}

fn stop_metallb(stage: &Stage, mut metallb: Process) -> Result<()> {
    metallb.terminate(LIMIT)?;
    stage.plane.delete(&format!("{PODS}/controller-0?gracePeriodSeconds=0"))
}

/// Has MetalLB give addresses to Services that ask for them in every way. What they hold then.
fn metallb_gives(stage: &Stage, metallb: &Process) -> Result<Held> {
    let asking = chart::documents(ASKING)?;
    for object in &asking {
        stage.plane.create(SERVICES, object)?;
    }
    let all = eventually("MetalLB has given addresses", LIMIT, || {
        let held = held(stage)?;
        ensure!(held.len() == asking.len(), "only {:?} have addresses", held.keys());
        Ok(Some(held))
    });
    let mut before = all.with_context(|| format!("MetalLB says:\n{}", metallb.output()))?;
    for (name, addresses) in GIVEN {
        ensure!(before[name].0 == addresses, "{name} has {:?}", before[name]);
    }
    ensure!(before["both"].0.len() == 2 && before["rather-both"].0.len() == 2, "{before:?}");
    stage.plane.delete(&format!("{SERVICES}/first"))?;
    stage.gone("first")?;
    before.remove("first");
    let mut waits = service("waits");
    waits["metadata"]["annotations"] = json!({"metallb.io/loadBalancerIPs": "192.0.2.9"});
    stage.plane.create(SERVICES, &waits)?;
    stage.event("waits", "AllocationFailed")?;
    Ok(before)
}

// ===== the way over =====

fn beside_metallb_nothing_is_written(stage: &mut Stage, before: &Held) -> Result<()> {
    let versions = versions(stage, before)?;
    stage.start("one", &[])?;
    stage.leader(|holder| holder == "one")?;
    let waits = eventually("it waits for MetalLB", LIMIT, || {
        ensure!(stage.ask(7472, "/metrics")?.contains("culvert_controller_waits_for_metallb 1"), "it does not");
        Ok(Some(()))
    });
    stage.with_log(waits)?;
    let log = stage.log();
    ensure!(log.contains("MetalLB's own controller runs") && log.contains("metallb-system/controller-0"), "{log}");
    // A new Service is MetalLB's too. One that only our finalizer keeps is let go: all Services have been seen by then.
    stage.plane.create(SERVICES, &service("leaves"))?;
    holds(stage, "leaves", &[])?;
    stage.plane.patch(&format!("{SERVICES}/leaves/status"), &json!({"metadata": {"finalizers": [FINALIZER]}}))?;
    stage.plane.delete(&format!("{SERVICES}/leaves"))?;
    stage.gone("leaves")?;
    let now = self::versions(stage, before)?;
    ensure!(now == versions, "written beside MetalLB: {versions:?} {now:?}");
    Ok(())
}

/// MetalLB's webhooks answer no more: its resources can be written once the guide's commands have been run.
fn webhooks_go(stage: &Stage) -> Result<()> {
    let mut hooks = manifest()?;
    hooks.retain(|object| object["kind"] == "ValidatingWebhookConfiguration");
    ensure!(!hooks.is_empty(), "MetalLB has no webhooks");
    apply(stage, "", &hooks)?;
    let pool = json!({"apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool", "metadata": {"name": "new"},
        "spec": {"addresses": ["198.51.100.224/28"]}});
    let peer = json!({"apiVersion": "metallb.io/v1beta1", "kind": "BGPPeer", "metadata": {"name": "new"},
        "spec": {"myASN": 64512, "peerASN": 64514, "peerAddress": "192.0.2.253"}});
    let attempts = [(POOLS, &pool), (PEERS, &peer)];
    let refused =
        |path: &str, object: &Value| stage.plane.ask(User::Admin, "POST", &format!("{path}?dryRun=All"), Some(object));
    eventually("the webhooks refuse", LIMIT, || {
        for (path, object) in attempts {
            let said = refused(path, object)?;
            ensure!(said["message"].as_str().is_some_and(|message| message.contains("webhook")), "{said}");
        }
        Ok(Some(()))
    })?;
    run_guide(stage, "metallb-webhook-configuration")?;
    eventually("they refuse no more", LIMIT, || {
        for (path, object) in attempts {
            let said = refused(path, object)?;
            ensure!(said["kind"] == object["kind"], "{said}");
        }
        Ok(Some(()))
    })?;
    for (path, object) in attempts {
        stage.plane.create(path, object)?;
    }
    Ok(())
}

/// Runs the block of the guide's commands that has a word in it, as its reader would.
fn run_guide(stage: &Stage, word: &str) -> Result<()> {
    let guide = std::fs::read_to_string(repository("docs/METALLB.md"))?;
    let mut blocks = guide.split("```").skip(1).step_by(2).filter(|block| block.contains(word));
    let block = blocks.next().with_context(|| format!("docs/METALLB.md has no commands with {word}"))?;
    let kubectl = programs::find("kubectl")?;
    let path = std::env::var("PATH")?;
    let mut command = Command::new("sh");
    command.args(["-e", "-c", block.trim_start_matches("sh\n")]);
    command.env("PATH", format!("{}:{path}", kubectl.parent().unwrap_or(Path::new("/")).display()));
    command.env("KUBECONFIG", stage.plane.kubeconfig(User::Admin)?);
    stage.place.run(|| shell::run(&mut command)).map(drop)
}

// ===== what is seen =====

fn items(stage: &Stage, path: &str) -> Result<Vec<Value>> {
    let mut list = stage.plane.ask(User::Admin, "GET", path, None)?;
    serde_json::from_value(list["items"].take()).context("no list")
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

/// The addresses in a Service's status.
fn addresses(service: &Value) -> Vec<String> {
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array();
    ingress.into_iter().flatten().filter_map(|one| one["ip"].as_str()).map(str::to_owned).collect()
}

/// What each Service holds that holds anything.
fn held(stage: &Stage) -> Result<Held> {
    let of = |service: &Value| {
        let pool = service["metadata"]["annotations"][POOL].as_str().unwrap_or_default().to_owned();
        (name(service), (addresses(service), pool))
    };
    Ok(items(stage, SERVICES)?.iter().map(of).filter(|(_, (addresses, _))| !addresses.is_empty()).collect())
}

fn versions(stage: &Stage, of: &Held) -> Result<BTreeMap<String, Value>> {
    let services = items(stage, SERVICES)?.into_iter().map(|service| (name(&service), service));
    let known = services.filter(|(name, _)| of.contains_key(name));
    Ok(known.map(|(name, service)| (name, service["metadata"]["resourceVersion"].clone())).collect())
}

/// Waits until a Service holds anything, with these finalizers. What it holds.
fn holds(stage: &Stage, name: &str, finalizers: &[&str]) -> Result<(Vec<String>, String)> {
    let found = eventually(&format!("{name} has an address"), LIMIT, || {
        let found = held(stage)?.remove(name).context("none")?;
        let service = stage.get(name)?;
        ensure!(has(&service, finalizers), "{}", service["metadata"]);
        Ok(Some(found))
    });
    stage.with_log(found)
}

fn has(service: &Value, finalizers: &[&str]) -> bool {
    let found = service["metadata"]["finalizers"].as_array().into_iter().flatten();
    found.eq(finalizers.iter().copied())
}

/// Waits until Services that hold all that they have held bear these finalizers.
fn kept(stage: &Stage, before: &Held, finalizers: &[&str]) -> Result<()> {
    let kept = eventually("every address is kept", LIMIT, || {
        let now = held(stage)?;
        for (name, before) in before {
            let now = now.get(name).with_context(|| format!("{name} has no address"))?;
            ensure!(now == before, "{name} has {now:?}, and had {before:?}");
        }
        for service in items(stage, SERVICES)?.iter().filter(|service| before.contains_key(&name(service))) {
            ensure!(has(service, finalizers), "{}", service["metadata"]);
            let ingress = service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
            ensure!(ingress.clone().all(|one| one["ipMode"] == "VIP"), "{}", service["status"]);
        }
        Ok(Some(()))
    });
    stage.with_log(kept)
}

/// Waits until the status of each pool counts what Services hold of it.
fn pools_count(stage: &Stage) -> Result<()> {
    let counted = eventually("the status of the pools", LIMIT, || {
        let held = held(stage)?;
        for pool in items(stage, POOLS)? {
            let of_pool = held.values().filter(|(_, of)| *of == name(&pool)).flat_map(|(addresses, _)| addresses);
            let (v6, v4): (BTreeSet<_>, BTreeSet<_>) = of_pool.partition(|address| address.contains(':'));
            let status = &pool["status"];
            ensure!(status["assignedIPv4"] == v4.len() && status["assignedIPv6"] == v6.len(), "{pool} {held:?}");
        }
        Ok(Some(()))
    });
    stage.with_log(counted)
}

/// Every state that the Services had since the watch began: never another address, and never none.
fn unbroken(stage: &Stage, watch: &Process, before: &Held) -> Result<()> {
    stage.plane.create(SERVICES, &service("the-end"))?;
    let log = eventually("the watch has told everything", LIMIT, || {
        let log = watch.output();
        Ok(log.contains("the-end").then_some(log))
    })?;
    let mut seen = BTreeSet::new();
    for line in log.lines().filter(|line| !line.contains("the-end")) {
        let event: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let service = name(&event["object"]);
        let Some((held, _)) = before.get(&service) else { continue };
        ensure!(event["type"] == "MODIFIED" && addresses(&event["object"]) == *held, "{event}");
        seen.insert(service);
    }
    ensure!(seen.len() == before.len(), "the watch has only told of {seen:?}");
    Ok(())
}
