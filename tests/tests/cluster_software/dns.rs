//! Names, and a cache for them on each node.

use anyhow::{Context as _, Result, ensure};
use culvert_tests::cluster::{Cluster, LIMIT, Site, objects};
use culvert_tests::process::eventually;
use serde_json::{Value, json};

use super::Stage;

const PORT: u16 = 53;
const NODE_PORT: u16 = 31740;
/// What the caches answer themselves, so that one can tell who answered.
const MARK: &str = "192.0.2.53";

/// How many questions are asked in one go.
const QUESTIONS: usize = 50;

/// Asks a server for a name many times; all answers must be `expected`.
fn ask(from: &Site, server: &str, name: &str, expected: &str) -> Result<()> {
    for way in ["+notcp", "+tcp"] {
        let ask = format!("dig {server} +short +tries=1 +time=10 {way} -f -");
        let said = from.script(&format!("yes {name} | head -n {QUESTIONS} | {ask}"))?;
        let answers: Vec<&str> = said.lines().collect();
        ensure!(
            answers.len() == QUESTIONS && answers.iter().all(|answer| *answer == expected),
            "{server} {way}: {said}"
        );
    }
    Ok(())
}

/// The ClusterIP of the cluster's DNS.
fn kube_dns(cluster: &Cluster) -> Result<String> {
    let service = cluster.get(&["-n", "kube-system", "service", "kube-dns"])?;
    Ok(service["spec"]["clusterIP"].as_str().context("no ClusterIP")?.to_owned())
}

/// The name that every cluster has, and its address.
fn known(cluster: &Cluster) -> Result<(&'static str, String)> {
    let service = cluster.get(&["-n", "default", "service", "kubernetes"])?;
    let address = service["spec"]["clusterIP"].as_str().context("no ClusterIP")?;
    Ok(("kubernetes.default.svc.cluster.local", address.to_owned()))
}

/// CoreDNS with a configuration, ready once it answers on port 8181.
fn server(stage: &Stage, corefile: &str) -> Result<Value> {
    stage.namespace.apply(&[json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "dns"},
        "data": {"Corefile": corefile},
    })])?;
    let mut container = objects::container(stage.cluster.image("coredns")?, &["/coredns", "-conf", "/dns/Corefile"]);
    container["volumeMounts"] = json!([{"name": "dns", "mountPath": "/dns"}]);
    container["readinessProbe"] = objects::http_probe(8181, "/ready");
    Ok(container)
}

fn with_configuration(mut workload: Value) -> Value {
    workload["spec"]["template"]["spec"]["volumes"] = json!([{"name": "dns", "configMap": {"name": "dns"}}]);
    workload
}

pub fn coredns(stage: &Stage) -> Result<()> {
    let cluster = &stage.cluster;
    let (dns, (name, address)) = (kube_dns(cluster)?, known(cluster)?);
    stage.client()?;
    for from in [stage.namespace.pod("client")?, cluster.site("n2")?] {
        ask(&from, &format!("@{dns}"), name, &address)?;
    }
    let forwarder = server(stage, &format!(".:53 {{\n errors\n ready\n forward . {dns}\n}}\n"))?;
    stage.namespace.apply(&[
        with_configuration(objects::deployment("dns", 2, &forwarder)),
        objects::node_port_service("dns", "dns", PORT, NODE_PORT),
    ])?;
    stage.namespace.await_rollout("deployment/dns")?;
    let outside = cluster.site("client")?;
    for node in cluster.nodes() {
        ask(&outside, &format!("@{} -p {NODE_PORT}", cluster.address(&node)?), name, &address)?;
    }
    let front = stage.namespace.cluster_ip("dns")?;
    ask(&stage.namespace.pod("client")?, &format!("@{front}"), name, &address)
}

/// What the cache's installation does to nodes and to kube-system; undone with its guard.
struct Caches<'a> {
    cluster: &'a Cluster,
    dns: String,
}

impl<'a> Caches<'a> {
    fn new(cluster: &'a Cluster) -> Result<Self> {
        let caches = Self { cluster, dns: kube_dns(cluster)? };
        // What a killed run left.
        caches.undo()?;
        // The caches' own way to the cluster's DNS, which is not the address that they take.
        let mut upstream = objects::service("kube-dns-upstream", "", PORT);
        upstream["metadata"]["namespace"] = "kube-system".into();
        upstream["spec"]["selector"] = json!({"k8s-app": "kube-dns"});
        cluster.apply(&[upstream])?;
        for node in cluster.nodes() {
            let site = cluster.site(&node)?;
            // Not every kernel has dummy links.
            site.script("ip link add nodelocaldns type dummy || ip link add nodelocaldns type bridge")?;
            site.sh("ip link set nodelocaldns up")?;
            site.sh("ip address add 169.254.20.10/32 dev nodelocaldns")?;
            site.sh(&format!("ip address add {}/32 dev nodelocaldns", caches.dns))?;
        }
        Ok(caches)
    }

    fn undo(&self) -> Result<()> {
        for node in self.cluster.nodes() {
            self.cluster.site(&node)?.script("ip link delete nodelocaldns 2> /dev/null || true")?;
        }
        self.cluster.kubectl(&["-n", "kube-system", "delete", "service", "kube-dns-upstream", "--ignore-not-found"])?;
        Ok(())
    }
}

impl Drop for Caches<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            eprintln!("{error:#}");
        }
    }
}

pub fn node_local(stage: &Stage) -> Result<()> {
    let cluster = &stage.cluster;
    let (name, address) = known(cluster)?;
    stage.client()?;
    let pod = stage.namespace.pod("client")?;
    let caches = Caches::new(cluster)?;
    let dns = caches.dns.clone();
    let upstream = cluster.get(&["-n", "kube-system", "service", "kube-dns-upstream"])?;
    let upstream = upstream["spec"]["clusterIP"].as_str().context("no ClusterIP")?;
    let corefile = format!(
        ".:53 {{\n errors\n ready\n bind 169.254.20.10 {dns}\n hosts {{\n  {MARK} cache.test\n  fallthrough\n }}\n \
         cache 30\n forward . {upstream} {{\n  force_tcp\n }}\n}}\n"
    );
    let server = server(stage, &corefile)?;
    let mut set = with_configuration(objects::deployment("cache", 1, &server));
    set["kind"] = "DaemonSet".into();
    if let Some(spec) = set["spec"].as_object_mut() {
        spec.remove("replicas");
    }
    let pods = &mut set["spec"]["template"]["spec"];
    pods["hostNetwork"] = true.into();
    pods["topologySpreadConstraints"] = Value::Null;
    stage.namespace.apply(&[set])?;
    stage.namespace.await_rollout("daemonset/cache")?;
    for from in [&pod, &cluster.site("n2")?] {
        eventually(&format!("the cache answers {} at {dns}", from.name()), LIMIT, || {
            ask(from, &format!("@{dns}"), "cache.test", MARK).map(Some)
        })?;
        ask(from, &format!("@{dns}"), name, &address)?;
        ask(from, "@169.254.20.10", name, &address)?;
    }
    // Without the caches the cluster's DNS answers at its address again.
    stage.namespace.kubectl(&["delete", "daemonset", "cache"])?;
    drop(caches);
    for from in [&pod, &cluster.site("n2")?] {
        eventually(&format!("kube-dns answers {} again", from.name()), LIMIT, || {
            ask(from, &format!("@{dns}"), name, &address).map(Some)
        })?;
    }
    Ok(())
}
