//! kube-proxy itself, and the API server that it asks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{FAMILIES, Iptables};
use crate::place::Place;
use crate::process::{Process, eventually};
use crate::shell;

/// How long an API server or a kube-proxy may take to begin its work.
const LIMIT: Duration = Duration::from_mins(2);
/// A bearer token that may do everything.
const TOKEN: &str = "all-is-allowed";

/// An API server with its etcd, on loopback.
#[derive(Debug)]
pub struct ApiServer {
    /// Dropped in this order.
    _server: Process,
    _etcd: Process,
    host: Place,
    kubeconfig: PathBuf,
}

/// A program of Kubernetes: in one of the directories of `$CULVERT_KUBERNETES`, which is a list like `$PATH`.
pub fn program(name: &str) -> Result<PathBuf> {
    let variable = "CULVERT_KUBERNETES";
    let list = std::env::var_os(variable);
    let list = list
        .with_context(|| format!("{variable} must name the directories of kube-apiserver, kubectl and kube-proxy"))?;
    let mut paths = std::env::split_paths(&list).map(|dir| dir.join(name));
    paths.find(|path| path.is_file()).with_context(|| format!("{variable} has no {name}"))
}

impl ApiServer {
    /// Starts both; their files are kept in `dir`.
    pub fn start(host: &Place, dir: &Path) -> Result<Self> {
        let file = |name: &str| dir.join(name);
        let mut etcd = Command::new("etcd");
        etcd.arg("--data-dir").arg(file("etcd"));
        etcd.args([
            "--listen-client-urls",
            "http://127.0.0.1:2379",
            "--advertise-client-urls",
            "http://127.0.0.1:2379",
        ]);
        etcd.args(["--listen-peer-urls", "http://127.0.0.1:2380"]);
        let etcd = host.start(etcd)?;
        shell::run(Command::new("openssl").args(["genrsa", "-out"]).arg(file("key")).arg("2048"))?;
        fs::write(file("tokens"), format!("{TOKEN},test,1,system:masters\n"))?;
        let kubeconfig = file("kubeconfig");
        fs::write(&kubeconfig, kubeconfig_text())?;
        let mut server = Command::new(program("kube-apiserver")?);
        server.args(["--etcd-servers=http://127.0.0.1:2379", "--service-cluster-ip-range=10.96.0.0/16,fd00:96::/112"]);
        server.args(["--bind-address=127.0.0.1", "--secure-port=6443", "--authorization-mode=RBAC"]);
        server.arg(format!("--advertise-address={}", host.v4()));
        server.args([
            "--service-account-issuer=https://kubernetes.default",
            "--disable-admission-plugins=ServiceAccount",
        ]);
        for (flag, name) in [
            ("--cert-dir", "certificates"),
            ("--service-account-key-file", "key"),
            ("--service-account-signing-key-file", "key"),
            ("--token-auth-file", "tokens"),
        ] {
            server.arg(flag).arg(file(name));
        }
        let server = host.start(server)?;
        let api = Self { _server: server, _etcd: etcd, host: host.clone(), kubeconfig };
        eventually("the API server is ready", LIMIT, || api.kubectl("get --raw /readyz", "").map(Some))?;
        Ok(api)
    }

    /// Runs kubectl.
    pub fn kubectl(&self, line: &str, input: &str) -> Result<String> {
        let mut command = Command::new(program("kubectl")?);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(line.split_whitespace());
        self.host.run(|| shell::feed(&mut command, input))
    }

    /// Starts a kube-proxy and waits until its rules are there. Its iptables are of one kind.
    pub fn kube_proxy(&self, dir: &Path, mode: &str, kind: Iptables) -> Result<Process> {
        let programs = dir.join(format!("programs-{mode}-{kind:?}"));
        fs::create_dir_all(&programs)?;
        for family in FAMILIES {
            for what in ["", "-save", "-restore"] {
                let program = format!("/usr/sbin/{}", kind.program(family, what));
                std::os::unix::fs::symlink(program, programs.join(format!("{family}{what}")))?;
            }
        }
        let mut command = Command::new(program("kube-proxy")?);
        command.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", programs.display()));
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--proxy-mode").arg(mode);
        command.args([
            "--hostname-override=n1",
            "--cluster-cidr=10.244.0.0/16,fd00:244::/32",
            "--conntrack-max-per-core=0",
        ]);
        let mut process = self.host.start(command)?;
        eventually("kube-proxy is healthy", LIMIT, || {
            if !process.alive() {
                bail!("it ended: {}", process.output());
            }
            self.host.sh("curl -sf http://127.0.0.1:10256/healthz").map(Some)
        })?;
        Ok(process)
    }
}

fn kubeconfig_text() -> String {
    format!(
        "apiVersion: v1\n\
         kind: Config\n\
         current-context: c\n\
         clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:6443', insecure-skip-tls-verify: true}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         users: [{{name: u, user: {{token: {TOKEN}}}}}]\n"
    )
}
