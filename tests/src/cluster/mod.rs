//! A real cluster, made by `cargo xtask cluster`: what a test does to it, and from where.
//!
//! `CULVERT_CLUSTER` names the file by which xtask describes a cluster that is up. Tests talk to its API server with
//! kubectl, and run programs at its [sites](Site): nodes, the client outside, pods.
//!
//! | Module | Idea |
//! |---|---|
//! | [`site`] | where a process runs: its namespaces and its cgroup |
//! | [`objects`] | pods, Services and their like as JSON |
//! | [`traffic`](mod@traffic) | echo servers and load at sites |
//! | [`agents`] | the DaemonSet: killed, upgraded, rolled back |

pub mod agents;
pub mod objects;
pub mod site;
pub mod traffic;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::process::eventually;
use crate::shell::{feed, run};
pub use site::Site;

/// How long anything may take in a cluster on a machine that has other work.
pub const LIMIT: Duration = Duration::from_mins(5);

/// The same as an option of kubectl's.
pub fn timeout() -> String {
    format!("--timeout={}s", LIMIT.as_secs())
}

/// What xtask says of a cluster (`xtask/src/cluster/description.rs`).
#[derive(Clone, Debug, Deserialize)]
pub struct Description {
    /// Its name.
    pub name: String,
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// `kubectl`.
    pub kubectl: PathBuf,
    /// `helm`.
    pub helm: PathBuf,
    /// `ctr`.
    pub ctr: PathBuf,
    /// The agent's chart.
    pub chart: PathBuf,
    /// Images by their short names: `agnhost`, `servers`, ...
    pub images: BTreeMap<String, String>,
    /// Programs that pods can mount, by their names: `caddy`, `grpc`, ...
    pub programs: BTreeMap<String, PathBuf>,
    /// Its places by their names: `n1`, `n2`, ..., `hub`, `client`.
    pub places: BTreeMap<String, PlaceDescription>,
}

/// A node, the hub or the client.
#[derive(Clone, Debug, Deserialize)]
pub struct PlaceDescription {
    /// The script that runs a command there.
    pub enter: PathBuf,
    /// The directory of cgroup2 that all its processes are below, pods' too.
    pub cgroup: PathBuf,
    /// Its addresses, the primary family's first.
    pub addresses: Vec<IpAddr>,
}

/// A cluster that is up.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// What it consists of.
    pub description: Description,
}

impl Cluster {
    /// The one that `CULVERT_CLUSTER` describes.
    pub fn open() -> Result<Self> {
        let path = std::env::var_os("CULVERT_CLUSTER").context(
            "CULVERT_CLUSTER names no description of a cluster; `cargo xtask test --only cluster` makes one",
        )?;
        let path = Path::new(&path);
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let description = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        Ok(Self { description })
    }

    fn place(&self, name: &str) -> Result<&PlaceDescription> {
        self.description.places.get(name).with_context(|| format!("the cluster has no place {name}"))
    }

    /// The names of its nodes: `n1`, `n2`, ...
    pub fn nodes(&self) -> Vec<String> {
        let names = self.description.places.keys();
        names.filter(|name| name.strip_prefix('n').is_some_and(|rest| rest.parse::<u8>().is_ok())).cloned().collect()
    }

    /// A node, the hub or the client as a site.
    pub fn site(&self, name: &str) -> Result<Site> {
        let place = self.place(name)?;
        Ok(Site::place(name, &place.enter, place.addresses.clone()))
    }

    /// The address of a node, or of another place.
    pub fn address(&self, name: &str) -> Result<IpAddr> {
        self.place(name)?.addresses.first().copied().with_context(|| format!("{name} has no address"))
    }

    /// The full name of an image.
    pub fn image(&self, name: &str) -> Result<&str> {
        self.description.images.get(name).map(String::as_str).with_context(|| format!("there is no image {name}"))
    }

    /// A static program for pods and nodes.
    pub fn program(&self, name: &str) -> Result<&Path> {
        self.description.programs.get(name).map(PathBuf::as_path).with_context(|| format!("there is no program {name}"))
    }

    /// A call of kubectl.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.description.kubectl);
        command.arg("--kubeconfig").arg(&self.description.kubeconfig).args(arguments);
        command
    }

    /// Runs kubectl to its end, and returns what it says.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        run(&mut self.kubectl_command(arguments))
    }

    /// An object, or a list of them.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).with_context(|| format!("kubectl get {arguments:?}"))
    }

    /// Makes objects be as given.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let mut command = self.kubectl_command(&["apply", "--server-side", "--force-conflicts", "-f", "-"]);
        feed(&mut command, &list.to_string()).map(drop)
    }

    /// Waits until the API server has all that it needs.
    pub fn await_api_server(&self) -> Result<()> {
        eventually("the API server is ready", LIMIT, || {
            let said = self.kubectl(&["get", "--raw=/readyz", "--request-timeout=5s"])?;
            ensure!(said.trim() == "ok", "{said}");
            Ok(Some(()))
        })
    }

    /// Waits until all replicas of a Deployment or pods of a DaemonSet are of its newest kind and ready.
    pub fn await_rollout(&self, namespace: &str, object: &str) -> Result<()> {
        self.kubectl(&["-n", namespace, "rollout", "status", object, &timeout()]).map(drop)
    }

    /// A namespace that goes with its guard.
    pub fn namespace(&self, name: &str) -> Result<Namespace> {
        // What a killed run left.
        self.kubectl(&["delete", "namespace", name, "--ignore-not-found", "--wait"])?;
        self.apply(&[json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})])?;
        Ok(Namespace { cluster: self.clone(), name: name.to_owned() })
    }

    fn pod_site(&self, pod: &Value) -> Result<Site> {
        let text = |value: &Value, what: &str| value.as_str().map(str::to_owned).with_context(|| what.to_owned());
        let name = text(&pod["metadata"]["name"], "a pod without a name")?;
        let node = text(&pod["spec"]["nodeName"], "a pod on no node").with_context(|| name.clone())?;
        let id = text(&pod["status"]["containerStatuses"][0]["containerID"], "a pod without a container")?;
        let id = id.rsplit('/').next().unwrap_or_default();
        let addresses = pod["status"]["podIPs"].as_array().into_iter().flatten();
        let addresses = addresses.filter_map(|entry| entry["ip"].as_str()?.parse().ok()).collect();
        Site::container(&name, &self.place(&node)?.cgroup, id, addresses)
    }
}

/// A namespace of a test; it is deleted with its guard.
#[derive(Debug)]
pub struct Namespace {
    cluster: Cluster,
    name: String,
}

impl Namespace {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes objects be as given, in this namespace.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        let mut objects = objects.to_vec();
        for object in &mut objects {
            object["metadata"]["namespace"] = self.name.as_str().into();
        }
        self.cluster.apply(&objects)
    }

    /// Runs kubectl in this namespace.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.cluster.kubectl(&[&["-n", &self.name], arguments].concat())
    }

    /// An object of this namespace, or a list of them.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        self.cluster.get(&[&["-n", &self.name], arguments].concat())
    }

    /// Waits until pods are ready, those of that name or label (`pod/x`, `-lapp=x`).
    pub fn await_pods(&self, which: &[&str]) -> Result<()> {
        let kind: &[&str] = if which.iter().any(|word| word.starts_with("pod/")) { &[] } else { &["pod"] };
        eventually("the pods exist", LIMIT, || {
            let said = self.kubectl(&[&["get", "-o", "name"], kind, which].concat())?;
            Ok((!said.trim().is_empty()).then_some(()))
        })?;
        self.kubectl(&[&["wait", "--for=condition=Ready", &timeout()], kind, which].concat()).map(drop)
    }

    /// Waits until all replicas are of the newest kind and ready.
    pub fn await_rollout(&self, object: &str) -> Result<()> {
        self.cluster.await_rollout(&self.name, object)
    }

    /// Where the first container of a pod runs.
    pub fn pod(&self, name: &str) -> Result<Site> {
        self.cluster.pod_site(&self.get(&["pod", name])?)
    }

    /// The ClusterIP of a Service.
    pub fn cluster_ip(&self, service: &str) -> Result<IpAddr> {
        Ok(self.front(service)?.ip())
    }

    /// The ClusterIP of a Service with its first port.
    pub fn front(&self, service: &str) -> Result<SocketAddr> {
        let object = self.get(&["service", service])?;
        let address = object["spec"]["clusterIP"].as_str().context("no ClusterIP")?;
        let address: IpAddr = address.parse().with_context(|| format!("clusterIP: {address}"))?;
        let port = &object["spec"]["ports"][0]["port"];
        match port.as_u64().map(u16::try_from) {
            Some(Ok(port)) => Ok((address, port).into()),
            _ => bail!("service {service}: port is {port}"),
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = self.cluster.kubectl(&["delete", "namespace", &self.name, "--wait=false"]) {
            eprintln!("{error:#}");
        }
    }
}
