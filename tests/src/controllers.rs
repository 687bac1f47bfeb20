//! `culvert controller` beside a real API server, with the rights and the definitions that `deploy/` gives it and no more.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::agent::binary;
use crate::control_plane::{ControlPlane, User};
use crate::deploy::repository;
use crate::place::Place;
use crate::process::{Process, eventually};
use crate::scope::Scope;

/// Services of the tests.
pub const SERVICES: &str = "/api/v1/namespaces/shop/services";
/// Pools that count.
pub const POOLS: &str = "/apis/metallb.io/v1beta1/namespaces/metallb-system/ipaddresspools";
/// Pods beside them, where MetalLB's own controller would be.
pub const PODS: &str = "/api/v1/namespaces/metallb-system/pods";
/// The finalizer of a Service that has addresses.
pub const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// The annotation that names the pool.
pub const POOL: &str = "metallb.io/ip-allocated-from-pool";
/// How long anything may take.
pub const LIMIT: Duration = Duration::from_mins(1);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/culvert-controller";
const STATE: &str = "/apis/metallb.io/v1beta1/namespaces/kube-system/configurationstates/culvert-controller";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// An API server in a namespace of its own, and controllers beside it.
#[derive(Debug)]
pub struct Stage {
    /// By the name that each goes by; the first one's server listens on port 7472, the next one's on 7473.
    pub controllers: Vec<(String, Process)>,
    /// The API server.
    pub plane: ControlPlane,
    /// Where everything runs.
    pub place: Place,
    _scope: Scope,
}

fn file(name: &str) -> Result<Value> {
    let path = repository("deploy/kustomize/controller").join(name);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(serde_saphyr::from_str(&text)?)
}

impl Stage {
    /// One with the namespaces `shop` and `metallb-system`, and the controller's rights.
    pub fn new() -> Result<Self> {
        let scope = Scope::open()?;
        let cgroup = scope.cgroup("cp")?;
        let place = Place::new("cp", scope.netns("cp")?, &cgroup, scope.dir(), ADDRESS, "2001:db8::10".parse()?);
        place.ip_batch(&format!("link set lo up\naddress add {ADDRESS}/32 dev lo\n"))?;
        let plane = ControlPlane::start(&place, ADDRESS, scope.dir(), &[])?;
        for name in ["shop", "metallb-system"] {
            plane.create("/api/v1/namespaces", &json!({"metadata": {"name": name}}))?;
        }
        plane.create(&format!("{RBAC}/clusterroles"), &file("clusterrole.yaml")?)?;
        plane.create(&format!("{RBAC}/namespaces/kube-system/roles"), &file("role.yaml")?)?;
        // The user of the test takes the place of the service account.
        let subject = json!([{"kind": "ServiceAccount", "name": "culvert", "namespace": "kube-system"}]);
        for (path, name) in [
            ("clusterrolebindings", "clusterrolebinding.yaml"),
            ("namespaces/kube-system/rolebindings", "rolebinding.yaml"),
        ] {
            let mut binding = file(name)?;
            binding["subjects"] = subject.clone();
            plane.create(&format!("{RBAC}/{path}"), &binding)?;
        }
        Ok(Self { controllers: Vec::new(), plane, place, _scope: scope })
    }

    /// The definitions of `deploy/`.
    pub fn define(&self) -> Result<()> {
        let kustomization = file("kustomization.yaml")?;
        for name in kustomization["resources"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if name.starts_with("crd-") {
                let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
                self.plane.create(path, &file(name)?)?;
            }
        }
        self.defined()
    }

    /// Waits until pools are known.
    pub fn defined(&self) -> Result<()> {
        eventually("pools are known", LIMIT, || {
            let list = self.plane.ask(User::Admin, "GET", POOLS, None)?;
            ensure!(list["kind"] == "IPAddressPoolList", "{list}");
            Ok(Some(()))
        })
    }

    /// Creates a pool of one range.
    pub fn pool(&self, name: &str, range: &str) -> Result<Value> {
        let object = json!({
            "apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool", "metadata": {"name": name},
            "spec": {"addresses": [range]},
        });
        self.plane.create(POOLS, &object)
    }

    /// Starts a controller.
    pub fn start(&mut self, name: &str, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(binary()?);
        command.arg("controller").arg("--kubeconfig").arg(self.plane.kubeconfig(User::Agent)?);
        command.args(["--identity", name, "--namespace=kube-system", "--log-level=debug"]);
        command.args(["--lease-duration=4", "--lease-renew-deadline=3", "--lease-retry-period=1"]);
        command.arg(format!("--bind-address=127.0.0.1:{}", 7472 + self.controllers.len())).args(arguments);
        self.controllers.push((name.to_owned(), self.place.start(command)?));
        Ok(())
    }

    /// What the controllers have said.
    pub fn log(&self) -> String {
        self.controllers.first().map(|(_, process)| process.output()).unwrap_or_default()
    }

    /// Puts that beside an error.
    pub fn with_log<T>(&self, result: Result<T>) -> Result<T> {
        result.with_context(|| format!("the controllers' log:\n{}", self.log()))
    }

    /// Waits until somebody holds the Lease, and says who.
    pub fn leader(&self, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let found = eventually("somebody leads", LIMIT, || {
            let lease = self.plane.ask(User::Admin, "GET", LEASE, None)?;
            let holder = lease["spec"]["holderIdentity"].as_str().with_context(|| lease.to_string())?;
            ensure!(wanted(holder), "{holder} leads");
            Ok(Some(holder.to_owned()))
        });
        self.with_log(found)
    }

    /// A Service.
    pub fn get(&self, name: &str) -> Result<Value> {
        self.plane.ask(User::Admin, "GET", &format!("{SERVICES}/{name}"), None)
    }

    /// Waits until a Service has an address, with all that belongs to it.
    pub fn has(&self, name: &str, address: &str, pool: &str) -> Result<Value> {
        let found = eventually(&format!("{name} has {address}"), LIMIT, || {
            let service = self.get(name)?;
            let ingress = &service["status"]["loadBalancer"]["ingress"];
            ensure!(*ingress == json!([{"ip": address, "ipMode": "VIP"}]), "{ingress}");
            let metadata = &service["metadata"];
            ensure!(metadata["annotations"][POOL] == pool, "{metadata}");
            ensure!(metadata["finalizers"] == json!([FINALIZER]), "{metadata}");
            Ok(Some(service))
        });
        self.with_log(found)
    }

    /// Waits until a Service that was deleted is not there any more.
    pub fn gone(&self, name: &str) -> Result<()> {
        let gone = eventually(&format!("{name} is gone"), LIMIT, || {
            let service = self.get(name)?;
            ensure!(service["reason"] == "NotFound", "{service}");
            Ok(Some(()))
        });
        self.with_log(gone)
    }

    /// Waits for an event of a reason.
    pub fn event(&self, name: &str, reason: &str) -> Result<Value> {
        self.with_log(self.plane.event(&format!("involvedObject.name={name}"), reason, LIMIT))
    }

    /// Waits until the configuration's state says so.
    pub fn state(&self, result: &str, status: &str, reason: &str) -> Result<Value> {
        let found = eventually("the configuration's state", LIMIT, || {
            let state = self.plane.ask(User::Admin, "GET", STATE, None)?;
            let condition = &state["status"]["conditions"][0];
            ensure!(state["status"]["result"] == result, "{state}");
            ensure!(condition["type"] == "poolReconcilerValid", "{state}");
            ensure!(condition["status"] == status && condition["reason"] == reason, "{state}");
            Ok(Some(state))
        });
        self.with_log(found)
    }

    /// What a server of a controller says.
    pub fn ask(&self, port: u16, path: &str) -> Result<String> {
        self.place.sh(&format!("curl --silent --fail --max-time 3 http://127.0.0.1:{port}{path}"))
    }
}

/// A Service of type LoadBalancer with port 80.
pub fn service(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}})
}
