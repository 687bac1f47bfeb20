//! kube-proxy and what it leaves: its rules as files, the program itself with the API server that it asks, and what the kernel
//! holds, as text that can be compared.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::place::Place;
use crate::process::{Process, eventually};
use crate::shell;

/// How long an API server or a kube-proxy may take to begin its work.
const LIMIT: Duration = Duration::from_mins(2);
/// A bearer token that may do everything.
const TOKEN: &str = "all-is-allowed";

/// Where iptables keeps its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iptables {
    /// In its own tables.
    Legacy,
    /// In nftables.
    Nft,
}

impl Iptables {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Legacy, Self::Nft];

    /// The name of one of its programs: `iptables-legacy-restore` for `("iptables", "-restore")`.
    pub fn program(self, family: &str, what: &str) -> String {
        let kind = if self == Self::Legacy { "legacy" } else { "nft" };
        format!("{family}-{kind}{what}")
    }

    /// Restores rules beside those that are there.
    pub fn restore(self, host: &Place, family: &str, rules: &str) -> Result<()> {
        let program = self.program(family, "-restore");
        // Counters are restored as well.
        let mut command = shell::split(&format!("{program} -w -c --noflush"));
        host.run(|| shell::feed(&mut command, rules)).map(drop)
    }

    /// All rules with their counters.
    pub fn save(self, host: &Place) -> Result<String> {
        let mut text = String::new();
        for family in ["iptables", "ip6tables"] {
            let saved = host.sh(&format!("{} -c", self.program(family, "-save")))?;
            text.extend(saved.lines().filter(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]));
        }
        Ok(text)
    }
}

/// One of the files in `tests/fixtures/kube-proxy`.
pub fn fixture(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/kube-proxy").join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// All that the kernel holds where kube-proxy works: iptables of both kinds, nftables, sets, links.
pub fn everything(host: &Place) -> Result<String> {
    let mut text = String::new();
    for kind in Iptables::BOTH {
        text += &kind.save(host)?;
    }
    // What iptables keeps there is in the text already, and in a form that does not depend on the age of the program.
    for table in host.sh("nft list tables")?.lines().filter(|table| !kept_by_iptables(table)) {
        text += &host.sh(&format!("nft -s list {table}"))?;
    }
    Ok(text)
}

fn kept_by_iptables(table: &str) -> bool {
    let mut words = table.split_whitespace().skip(1);
    let (family, name) = (words.next(), words.next());
    matches!(family, Some("ip" | "ip6")) && matches!(name, Some("nat" | "filter" | "mangle" | "raw" | "security"))
}

/// Runs `culvert cleanup --kube-proxy -o json` with more arguments; its exit code, its answer, and what it says besides.
pub fn cleanup(host: &Place, arguments: &[&str]) -> Result<(i32, Option<Value>, String)> {
    let mut command = Command::new(crate::agent::binary()?);
    command.args(["cleanup", "--kube-proxy", "-o", "json"]).args(arguments);
    let Output { status, stdout, stderr } = host.run(|| Ok(command.output()?))?;
    let code = status.code().context("killed")?;
    Ok((code, serde_json::from_slice(&stdout).ok(), String::from_utf8_lossy(&stderr).into_owned()))
}

/// An API server with its etcd, on loopback.
#[derive(Debug)]
pub struct ApiServer {
    /// Dropped in this order.
    _server: Process,
    _etcd: Process,
    host: Place,
    kubeconfig: PathBuf,
}

/// A program of Kubernetes: built by `cargo xtask`, which says where.
pub fn program(name: &str) -> Result<PathBuf> {
    let variable = "CULVERT_KUBERNETES";
    let dir = std::env::var_os(variable).with_context(|| {
        format!("{variable} must name a directory with kube-apiserver and kube-proxy; cargo xtask test sets it")
    })?;
    let path = Path::new(&dir).join(name);
    ensure!(path.is_file(), "{} is missing", path.display());
    Ok(path)
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
        for family in ["iptables", "ip6tables"] {
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
