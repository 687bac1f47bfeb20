//! A node: its files, its containerd, its kubelet.

use std::{
    fs,
    os::unix::{fs::symlink, net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use super::{
    config,
    parts::{Image, Program, Programs},
    places::{self, Daemon},
    plan::{Place, Plan, zone},
    store::Store,
    wait::until,
};
use crate::workspace::find_program;

/// What all nodes are made from.
pub struct Materials<'a> {
    /// The cluster's plan.
    pub plan: &'a Plan,
    /// The cluster's files.
    pub files: &'a Path,
    /// The programs.
    pub programs: &'a Programs,
}

impl Materials<'_> {
    /// The directory of certificates.
    pub fn pki(&self) -> PathBuf {
        self.files.join("pki")
    }

    /// Writes a node's files, before its place is started.
    pub fn write_node(&self, node: u8, store: &Store) -> Result<()> {
        let directory = places::directory(self.files, Place::Node(node));
        store.clone_to(&directory.join("containerd")).context("images")?;
        let etc = directory.join("root/etc");
        fs::create_dir_all(etc.join("cni/net.d"))?;
        fs::create_dir_all(etc.join("kubernetes/manifests"))?;
        let runc = find_program("runc").context("no runc")?;
        fs::write(etc.join("containerd.toml"), config::node::containerd(&runc))?;
        let resolv_conf = etc.join("kubernetes/resolv.conf");
        // Nobody is asked for names outside of the cluster: there is no way out.
        fs::write(&resolv_conf, "options ndots:1\n")?;
        let kubelet =
            config::node::kubelet(self.plan, &self.pki().join("ca.crt"), Path::new("/etc/kubernetes/resolv.conf"));
        fs::write(etc.join("kubernetes/kubelet.json"), kubelet.to_string())?;
        let name = Place::Node(node).name();
        let kubeconfig = config::kubeconfig(self.plan.name.as_str(), &self.plan.api_url(), &self.pki(), &name);
        fs::write(etc.join("kubernetes/kubeconfig"), kubeconfig.to_string())?;
        if let Some((file, network)) = config::node::cni(self.plan, node) {
            fs::write(etc.join("cni/net.d").join(file), network.to_string())?;
        }
        if node == 1 {
            let pod = config::control_plane::api_server_pod(self.plan, Image::KubeApiserver.name(), &self.pki());
            fs::write(etc.join("kubernetes/manifests/kube-apiserver.json"), pod.to_string())?;
        }
        link_plugins(self.programs.path(Program::CniPlugins)?, &directory.join("root/opt/cni/bin"))
    }

    /// Starts containerd, and waits for its socket.
    pub fn start_runtime(&self, node: u8) -> Result<()> {
        let daemon = Daemon {
            files: self.files,
            place: Place::Node(node),
            program: self.programs.path(Program::Containerd)?,
            arguments: vec!["--config=/etc/containerd.toml".to_owned()],
        };
        let mut path =
            std::ffi::OsString::from(self.programs.path(Program::ContainerdShim)?.parent().unwrap_or(Path::new("/")));
        path.push(":");
        path.push(crate::workspace::search_path());
        daemon.start(&[("PATH", &path)])
    }

    /// Starts kubelet.
    pub fn start_kubelet(&self, node: u8) -> Result<()> {
        let name = Place::Node(node).name();
        let daemon = Daemon {
            files: self.files,
            place: Place::Node(node),
            program: self.programs.path(Program::Kubelet)?,
            arguments: vec![
                "--config=/etc/kubernetes/kubelet.json".to_owned(),
                "--kubeconfig=/etc/kubernetes/kubeconfig".to_owned(),
                format!("--hostname-override={name}"),
                format!("--node-ip={}", self.plan.node_ips(node)),
                format!("--node-labels=topology.kubernetes.io/zone={}", zone(node)),
                "--v=2".to_owned(),
            ],
        };
        daemon.start(&[("PATH", &crate::workspace::search_path())])
    }

    /// Waits until a node's containerd answers.
    pub fn await_runtime(&self, node: u8) -> Result<()> {
        let place = places::directory(self.files, Place::Node(node));
        let log = place.join("log/containerd.log");
        // The socket lies in the node's own /run.
        let pid = fs::read_to_string(place.join("pid"))?;
        let socket = PathBuf::from(format!("/proc/{}/root/run/containerd/containerd.sock", pid.trim()));
        until(&format!("containerd of n{node}"), Duration::from_mins(1), &log, || UnixStream::connect(&socket).is_ok())
    }
}

/// Plugins as links, so that flannel can put its own beside them.
fn link_plugins(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        symlink(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
