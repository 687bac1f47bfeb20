//! The folder of Kubernetes YAML that the agents of a lab watch, and short builders for what tests put there.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use crate::place::{Family, Place};

/// The folder. A file appears there complete: it is written elsewhere and moved in.
#[derive(Debug)]
pub struct Manifests {
    dir: PathBuf,
    staging: PathBuf,
}

impl Manifests {
    /// A folder, and one beside it (same file system) where files are written.
    pub fn new(dir: PathBuf, staging: PathBuf) -> Self {
        Self { dir, staging }
    }

    /// The folder's path.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Puts text into `NAME.yaml`, replacing what was there.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let file = format!("{name}.yaml");
        let staged = self.staging.join(&file);
        fs::write(&staged, text).with_context(|| staged.display().to_string())?;
        let path = self.dir.join(&file);
        fs::rename(&staged, &path).with_context(|| path.display().to_string())
    }

    /// Puts a Service and its slices into `NAME.yaml`.
    pub fn apply(&self, service: &Service) -> Result<()> {
        self.write(&service.name, &yaml(&service.objects())?)
    }

    /// Puts many Services with their slices into one file, `NAME.yaml`.
    pub fn apply_all(&self, name: &str, services: &[Service]) -> Result<()> {
        let objects: Vec<Value> = services.iter().flat_map(Service::objects).collect();
        self.write(name, &yaml(&objects)?)
    }

    /// Removes `NAME.yaml`.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.dir.join(format!("{name}.yaml"));
        fs::remove_file(&path).with_context(|| path.display().to_string())
    }

    /// Puts a Node with its internal addresses into `node-NAME.yaml`.
    pub fn node(&self, name: &str, addresses: &[IpAddr]) -> Result<()> {
        let addresses: Vec<_> = addresses.iter().map(|a| json!({"type": "InternalIP", "address": a})).collect();
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": format!("zone-{name}")}},
            "status": {"addresses": addresses},
        });
        self.write(&format!("node-{name}"), &yaml(&[node])?)
    }
}

fn yaml(objects: &[Value]) -> Result<String> {
    let documents: Vec<_> =
        objects.iter().map(serde_saphyr::to_string).collect::<Result<_, _>>().context("cannot write YAML")?;
    Ok(documents.join("---\n"))
}

/// One endpoint of a Service.
#[derive(Clone, Debug)]
struct Endpoint {
    v4: IpAddr,
    v6: IpAddr,
    node: String,
    ready: bool,
    serving: bool,
    terminating: bool,
}

/// A Service with its EndpointSlices, dual stack, in the words of its specification.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    spec: Map<String, Value>,
    ports: Vec<Value>,
    targets: Vec<Value>,
    ingress: Vec<Value>,
    endpoints: Vec<Endpoint>,
}

impl Service {
    /// A ClusterIP Service with the lab's Nth ClusterIPs.
    pub fn new(name: &str, n: u8) -> Self {
        let ips = Family::BOTH.map(|family| crate::topology::cluster_ip(family, n).to_string());
        let mut spec = Map::new();
        spec.insert("type".into(), json!("ClusterIP"));
        spec.insert("clusterIP".into(), json!(ips[0]));
        spec.insert("clusterIPs".into(), json!(ips));
        spec.insert("ipFamilies".into(), json!(["IPv4", "IPv6"]));
        spec.insert("ipFamilyPolicy".into(), json!("RequireDualStack"));
        let name = name.to_owned();
        Self { name, spec, ports: Vec::new(), targets: Vec::new(), ingress: Vec::new(), endpoints: Vec::new() }
    }

    /// The file's and the Service's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds a port: `protocol` as YAML spells it.
    #[must_use]
    pub fn port(mut self, protocol: &str, port: u16, target: u16) -> Self {
        let name = format!("{}-{port}", protocol.to_lowercase());
        self.ports.push(json!({"name": name, "protocol": protocol, "port": port, "targetPort": target}));
        self.targets.push(json!({"name": name, "protocol": protocol, "port": target}));
        self
    }

    /// TCP and UDP on one port.
    #[must_use]
    pub fn tcp_udp(self, port: u16, target: u16) -> Self {
        self.port("TCP", port, target).port("UDP", port, target)
    }

    /// Sets a field of `spec`.
    #[must_use]
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.spec.insert(field.into(), value);
        self
    }

    /// A NodePort for every port, which makes it a NodePort Service at least.
    #[must_use]
    pub fn node_port(mut self, node_port: u16) -> Self {
        for port in &mut self.ports {
            port["nodePort"] = json!(node_port);
        }
        if self.spec["type"] == "ClusterIP" {
            self.spec.insert("type".into(), json!("NodePort"));
        }
        self
    }

    /// The lab's Nth external addresses in `externalIPs`.
    #[must_use]
    pub fn external_ips(self, n: u8) -> Self {
        let ips = Family::BOTH.map(|family| crate::topology::external_ip(family, n));
        self.with("externalIPs", json!(ips))
    }

    /// The lab's Nth external addresses in the status of a LoadBalancer.
    #[must_use]
    pub fn load_balancer(self, n: u8) -> Self {
        Family::BOTH.into_iter().fold(self, |service, f| service.ingress(crate::topology::external_ip(f, n)))
    }

    /// One more address in the status of a LoadBalancer.
    #[must_use]
    pub fn ingress(mut self, address: IpAddr) -> Self {
        self.spec.insert("type".into(), json!("LoadBalancer"));
        self.ingress.push(json!({"ip": address}));
        self
    }

    /// `externalTrafficPolicy: Local`.
    #[must_use]
    pub fn external_local(self) -> Self {
        self.with("externalTrafficPolicy", json!("Local"))
    }

    /// `internalTrafficPolicy: Local`.
    #[must_use]
    pub fn internal_local(self) -> Self {
        self.with("internalTrafficPolicy", json!("Local"))
    }

    /// Affinity by client address.
    #[must_use]
    pub fn affinity(self, seconds: u32) -> Self {
        self.with("sessionAffinity", json!("ClientIP"))
            .with("sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": seconds}}))
    }

    /// A ready endpoint on a node.
    #[must_use]
    pub fn ready(self, node: &str, pod: &Place) -> Self {
        self.endpoint(node, pod, (true, true, false))
    }

    /// A terminating endpoint that serves still.
    #[must_use]
    pub fn terminating(self, node: &str, pod: &Place) -> Self {
        self.endpoint(node, pod, (false, true, true))
    }

    /// Without any endpoint (again).
    #[must_use]
    pub fn no_endpoints(mut self) -> Self {
        self.endpoints.clear();
        self
    }

    fn endpoint(mut self, node: &str, pod: &Place, (ready, serving, terminating): (bool, bool, bool)) -> Self {
        let (v4, v6, node) = (pod.v4().into(), pod.v6().into(), node.to_owned());
        self.endpoints.push(Endpoint { v4, v6, node, ready, serving, terminating });
        self
    }

    /// The objects: the Service, and a slice of each family.
    pub fn objects(&self) -> Vec<Value> {
        let mut spec = self.spec.clone();
        spec.insert("ports".into(), json!(self.ports));
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": self.name, "namespace": "default"},
            "spec": spec, "status": {"loadBalancer": {"ingress": self.ingress}},
        });
        let slices = Family::BOTH.map(|family| self.slice(family));
        std::iter::once(service).chain(slices).collect()
    }

    fn slice(&self, family: Family) -> Value {
        let (kind, suffix) = match family {
            Family::V4 => ("IPv4", "v4"),
            Family::V6 => ("IPv6", "v6"),
        };
        let endpoint = |e: &Endpoint| {
            let address = if family == Family::V4 { e.v4 } else { e.v6 };
            json!({
                "addresses": [address], "nodeName": e.node,
                "conditions": {"ready": e.ready, "serving": e.serving, "terminating": e.terminating},
            })
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-{suffix}", self.name), "namespace": "default",
                "labels": {"kubernetes.io/service-name": self.name},
            },
            "addressType": kind, "ports": self.targets,
            "endpoints": self.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        })
    }
}
