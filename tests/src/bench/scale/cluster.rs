//! etcd and an API server that holds the objects of a size.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _};
use kube::api::{Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Request;
use kube::{Client, Config};
use serde_json::{Value, json};

use super::node;
use super::objects::{self, NAMESPACE, Probe, Size};
use crate::control_plane::{ControlPlane, User};
use crate::place::Place;
use crate::scope::Scope;

/// Where the API server is.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// Objects that are written at a time.
const AT_ONCE: usize = 16;

/// An API server with all objects. Ends before its namespace.
#[derive(Debug)]
pub struct Cluster {
    /// What it holds.
    pub size: Size,
    /// Its namespace.
    pub place: Place,
    kubeconfig: PathBuf,
    _plane: ControlPlane,
    _scope: Scope,
}

impl Cluster {
    /// Starts etcd and API server, and creates the objects.
    pub fn start(size: Size) -> Result<Self> {
        let scope = Scope::open()?;
        let cgroup = scope.cgroup("cluster")?;
        let v6 = "2001:db8::10".parse()?;
        let place = Place::new("cluster", scope.netns("cluster")?, &cgroup, scope.dir(), ADDRESS, v6);
        // What a node does not translate arrives here, and is refused at once: nobody listens on a Service's port.
        place.ip_batch(&format!(
            "link set lo up\naddress add {ADDRESS}/32 dev lo\nroute add local 10.96.0.0/16 dev lo\n"
        ))?;
        let plane = ControlPlane::start(&place, ADDRESS, scope.dir(), &[])?;
        let cluster = Self { size, place, kubeconfig: plane.kubeconfig(User::Admin)?, _plane: plane, _scope: scope };
        cluster.place.block_on(|| cluster.create())?;
        Ok(cluster)
    }

    /// An administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &PathBuf {
        &self.kubeconfig
    }

    async fn create(&self) -> Result<()> {
        let api = Api::new(self).await?;
        api.create("/api/v1/namespaces", &json!({"metadata": {"name": NAMESPACE}})).await?;
        api.create("/api/v1/nodes", &objects::node(node::NAME, node::ADDRESS)).await?;
        // The probe comes last, and its Service after its slice.
        let all = futures_util::stream::iter(self.size.all());
        let both = all.map(|service| {
            let api = &api;
            async move {
                api.create(&slices(), &service.slice()).await?;
                api.create(&services(), &service.object()).await
            }
        });
        both.buffer_unordered(AT_ONCE).try_collect::<Vec<()>>().await?;
        api.create(&slices(), &Probe.slice(0)).await?;
        api.create(&services(), &Probe.object()).await
    }
}

fn services() -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/services")
}

fn slices() -> String {
    format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices")
}

/// A client of the API server. Its connections are of the namespace that it is used in.
pub struct Api(Client);

impl Api {
    /// An administrator's.
    pub async fn new(cluster: &Cluster) -> Result<Self> {
        let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig())?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Self(Client::try_from(config)?))
    }

    /// Moves the probe's endpoint to where it is after so many moves; returns once the API server has answered.
    pub async fn move_probe(&self, moves: usize) -> Result<()> {
        let slice = Probe.slice(moves);
        let change = Patch::Merge(json!({"endpoints": slice["endpoints"]}));
        let request = Request::new(slices()).patch(&Probe.slice_name(), &PatchParams::default(), &change)?;
        self.0.request_text(request).await.map(drop).context("the probe's endpoint cannot be moved")
    }

    async fn create(&self, path: &str, object: &Value) -> Result<()> {
        let request = Request::new(path).create(&PostParams::default(), object.to_string().into_bytes())?;
        self.0.request_text(request).await.map(drop).with_context(|| format!("{path}: {}", object["metadata"]["name"]))
    }
}
