//! etcd, controller manager and scheduler, in the hub. The API server is a static pod of the first node.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    config,
    node::Materials,
    parts::Program,
    places::{self, Daemon},
    plan::Place,
    wait::until,
};
use crate::process::tail;

/// How long the API server may take, from the start of its node.
const LIMIT: Duration = Duration::from_mins(3);

impl Materials<'_> {
    /// The administrator's kubeconfig, which works on this machine too.
    pub fn kubeconfig(&self) -> PathBuf {
        kubeconfig(self.files)
    }

    /// Writes the kubeconfigs of those who are no nodes.
    pub fn write_kubeconfigs(&self) -> Result<()> {
        for user in ["admin", "controller-manager", "scheduler"] {
            let value = config::kubeconfig(self.plan.name.as_str(), &self.plan.api_url(), &self.pki(), user);
            write_json(&self.files.join(format!("{user}.kubeconfig")), &value)?;
        }
        Ok(())
    }

    /// Starts etcd.
    pub fn start_etcd(&self) -> Result<()> {
        let data = places::directory(self.files, Place::Hub).join("etcd");
        self.hub(self.programs.path(Program::Etcd)?, config::control_plane::etcd(self.plan, &data))
    }

    /// Starts what works by the API server, once that is ready: the controller manager ends if it has to wait.
    pub fn start_controllers(&self) -> Result<()> {
        let kubeconfig = |user: &str| self.files.join(format!("{user}.kubeconfig"));
        let manager = config::control_plane::controller_manager(&self.pki(), &kubeconfig("controller-manager"));
        self.hub(self.programs.path(Program::KubeControllerManager)?, manager)?;
        let scheduler = config::control_plane::scheduler(&kubeconfig("scheduler"));
        self.hub(self.programs.path(Program::KubeScheduler)?, scheduler)
    }

    fn hub(&self, program: &Path, arguments: Vec<String>) -> Result<()> {
        Daemon { files: self.files, place: Place::Hub, program, arguments }.start(&[])
    }

    /// Waits until the API server has all that it needs.
    pub fn await_api_server(&self) -> Result<()> {
        let logs = places::directory(self.files, Place::Node(1)).join("log");
        let kubectl = self.kubectl()?;
        let ready =
            until("API server", LIMIT, &logs.join("kubelet.log"), || kubectl.run(&["get", "--raw=/readyz"]).is_ok());
        ready.map_err(|error| match last_words(&logs.join("pods")) {
            Some(words) => error.context(format!("the API server said: {words}")),
            None => error,
        })
    }
}

/// The end of the first log of a container below `pods`.
fn last_words(pods: &Path) -> Option<String> {
    let mut path = pods.to_owned();
    while path.is_dir() {
        path = fs::read_dir(&path).ok()?.flatten().map(|entry| entry.path()).max()?;
    }
    Some(tail(&path, 3))
}

/// The administrator's kubeconfig among a cluster's files.
pub fn kubeconfig(files: &Path) -> PathBuf {
    files.join("admin.kubeconfig")
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    fs::write(path, value.to_string()).with_context(|| path.display().to_string())
}
