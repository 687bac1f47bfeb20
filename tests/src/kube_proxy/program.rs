//! kube-proxy itself.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use super::{FAMILIES, Iptables};
use crate::place::Place;
use crate::process::{Process, eventually};
use crate::programs;

/// How long a kube-proxy may take to begin its work.
const LIMIT: Duration = Duration::from_mins(2);

/// How a kube-proxy is started; what is not said here is as it is by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KubeProxy<'a> {
    /// `--proxy-mode`.
    pub mode: &'a str,
    /// The iptables that it finds; `None` for this machine's own.
    pub iptables: Option<Iptables>,
    /// `--cluster-cidr`.
    pub cluster_cidr: &'a str,
}

impl KubeProxy<'_> {
    /// Starts it as that of node `n1`. A directory of `dir` is its search path.
    pub fn start(&self, host: &Place, kubeconfig: &Path, dir: &Path) -> Result<Process> {
        let mut command = Command::new(programs::find("kube-proxy")?);
        if let Some(kind) = self.iptables {
            command.env("PATH", search_path(&dir.join(format!("programs-{kind:?}")), kind)?);
        }
        command.arg("--kubeconfig").arg(kubeconfig).args(["--proxy-mode", self.mode]);
        command.args(["--cluster-cidr", self.cluster_cidr, "--hostname-override=n1"]);
        // The machine's own limit is not this namespace's to change.
        command.arg("--conntrack-max-per-core=0");
        host.start(command)
    }

    /// Starts it and waits until it says that its rules are there.
    pub fn start_healthy(&self, host: &Place, kubeconfig: &Path, dir: &Path) -> Result<Process> {
        let mut process = self.start(host, kubeconfig, dir)?;
        eventually("kube-proxy is healthy", LIMIT, || {
            if !process.alive() {
                bail!("it ended: {}", process.output());
            }
            host.sh("curl -sf http://127.0.0.1:10256/healthz").map(Some)
        })?;
        Ok(process)
    }
}

/// A search path where `iptables` and its like are of one kind.
fn search_path(programs: &Path, kind: Iptables) -> Result<OsString> {
    if !programs.exists() {
        fs::create_dir_all(programs)?;
        for family in FAMILIES {
            for what in ["", "-save", "-restore"] {
                let program = format!("/usr/sbin/{}", kind.program(family, what));
                std::os::unix::fs::symlink(program, programs.join(format!("{family}{what}")))?;
            }
        }
    }
    Ok(format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", programs.display()).into())
}
