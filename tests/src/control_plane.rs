//! etcd and a kube-apiserver in a network namespace, for tests of what talks to an API server. [`programs`] says where they
//! come from; openssl and curl are the machine's.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _};
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Request;
use kube::{Client, Config};
use serde_json::Value;

use crate::place::Place;
use crate::process::{Process, eventually};
use crate::{programs, shell};

/// How long a program may take to be ready, on a busy machine.
const LIMIT: Duration = Duration::from_mins(2);
/// Users by their tokens: one that may do all, others that may do what their roles say.
const TOKENS: &str = "admin-token,admin,1,system:masters\nagent-token,system:serviceaccount:kube-system:culvert,2\n\
                      metallb-token,system:serviceaccount:metallb-system:controller,3\n";
/// Objects that are created at a time.
const AT_ONCE: usize = 16;
/// Where the API server listens, usually.
const PORT: u16 = 6443;

/// A place with a control plane in it.
#[derive(Debug)]
pub struct ControlPlane {
    etcd: Process,
    api_server: Option<Process>,
    options: Vec<String>,
    dir: PathBuf,
    address: Ipv4Addr,
    port: u16,
    place: Place,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// `system:masters`.
    Admin,
    /// The service account of the agent, with the rights that a test gives it.
    Agent,
    /// The service account of MetalLB's controller, likewise.
    MetalLb,
}

impl User {
    fn token(self) -> &'static str {
        match self {
            Self::Admin => "admin-token",
            Self::Agent => "agent-token",
            Self::MetalLb => "metallb-token",
        }
    }
}

impl ControlPlane {
    /// Starts one in `place`, with its files in `dir`. `options` are more of the API server's.
    pub fn start(place: &Place, address: Ipv4Addr, dir: &Path, options: &[&str]) -> Result<Self> {
        keys(dir, address)?;
        let mut etcd = Command::new(programs::find("etcd")?);
        etcd.arg("--data-dir").arg(dir.join("etcd"));
        etcd.args(["--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379"]);
        etcd.args(["--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380"]);
        etcd.args(["--initial-cluster=default=http://127.0.0.1:2380", "--unsafe-no-fsync"]);
        let etcd = place.start(etcd)?;
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let mut plane =
            Self { etcd, api_server: None, options, dir: dir.to_owned(), address, port: PORT, place: place.clone() };
        plane.start_api_server()?;
        Ok(plane)
    }

    /// Starts the API server, and waits until it is ready.
    pub fn start_api_server(&mut self) -> Result<()> {
        self.start_api_server_at(PORT)
    }

    /// Starts it at another port, where nobody looks for it but this guard.
    pub fn start_api_server_at(&mut self, port: u16) -> Result<()> {
        self.port = port;
        let file = |name: &str| self.dir.join(name).display().to_string();
        let mut command = Command::new(programs::find("kube-apiserver")?);
        command.args(["--etcd-servers=http://127.0.0.1:2379", "--service-cluster-ip-range=10.96.0.0/16,fd00:96::/112"]);
        command.arg(format!("--secure-port={port}")).arg(format!("--advertise-address={}", self.address));
        command.args(["--bind-address=0.0.0.0", "--authorization-mode=RBAC", "--allow-privileged"]);
        command
            .arg(format!("--tls-cert-file={}", file("server.crt")))
            .arg(format!("--tls-private-key-file={}", file("server.key")));
        command.arg(format!("--token-auth-file={}", file("tokens.csv")));
        command.arg("--service-account-issuer=https://kubernetes.default.svc");
        command.arg(format!("--service-account-key-file={}", file("ca.key")));
        command.arg(format!("--service-account-signing-key-file={}", file("ca.key")));
        command.args(&self.options);
        self.api_server = Some(self.place.start(command)?);
        self.ready()
    }

    /// Waits until the API server is ready.
    pub fn ready(&mut self) -> Result<()> {
        eventually("the API server is ready", LIMIT, || {
            let server = self.api_server.as_mut().context("no API server")?;
            if !server.alive() || !self.etcd.alive() {
                bail!("it ended");
            }
            let said = self.curl(User::Admin, "GET", "/readyz", None)?;
            ensure!(said == "ok", "{said}");
            Ok(Some(()))
        })
        .with_context(|| {
            let log = self.api_server.as_ref().map(Process::output).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            format!("its log ends with:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"))
        })
    }

    /// `kill -9`.
    pub fn kill_api_server(&mut self) -> Result<()> {
        self.api_server.take().context("no API server")?.kill()
    }

    /// Where it listens: `https://ADDRESS:PORT`.
    pub fn url(&self) -> String {
        format!("https://{}:{}", self.address, self.port)
    }

    /// Writes a kubeconfig, and says where.
    pub fn kubeconfig(&self, user: User) -> Result<PathBuf> {
        let path = self.dir.join(format!("kubeconfig-{}", user.token()));
        let (url, token) = (self.url(), user.token());
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: x\nclusters: [{{name: x, cluster: {{server: '{url}', \
             certificate-authority: ca.crt}}}}]\nusers: [{{name: x, user: {{token: {token}}}}}]\n\
             contexts: [{{name: x, context: {{cluster: x, user: x}}}}]\n"
        );
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// Asks the API server; whatever it answers, if it is JSON.
    pub fn ask(&self, user: User, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let said = self.curl(user, method, path, body)?;
        serde_json::from_str(&said).with_context(|| said)
    }

    /// Creates an object as an administrator.
    pub fn create(&self, path: &str, object: &Value) -> Result<Value> {
        let said = self.ask(User::Admin, "POST", path, Some(object))?;
        ensure!(said["kind"] != "Status", "{path}: {said}");
        Ok(said)
    }

    /// Creates many objects as an administrator, some at a time.
    pub fn create_all(&self, path: &str, objects: &[Value]) -> Result<()> {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig(User::Admin)?)?;
        self.place.block_on(|| async {
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            let client = Client::try_from(config)?;
            let created = futures_util::stream::iter(objects).map(|object| {
                let client = &client;
                async move {
                    let body = object.to_string().into_bytes();
                    let request = Request::new(path).create(&PostParams::default(), body)?;
                    client
                        .request_text(request)
                        .await
                        .with_context(|| format!("{path}: {}", object["metadata"]["name"]))
                }
            });
            created.buffer_unordered(AT_ONCE).try_for_each(|_| std::future::ready(Ok(()))).await
        })
    }

    /// Changes an object by a merge patch.
    pub fn patch(&self, path: &str, patch: &Value) -> Result<Value> {
        let said = self.ask(User::Admin, "PATCH", path, Some(patch))?;
        ensure!(said["kind"] != "Status", "{path}: {said}");
        Ok(said)
    }

    /// Deletes an object.
    pub fn delete(&self, path: &str) -> Result<()> {
        let said = self.ask(User::Admin, "DELETE", path, None)?;
        ensure!(said["status"] != "Failure", "{path}: {said}");
        Ok(())
    }

    /// Waits until the namespace `shop` has one event of a reason, and no other of it; `selector` says of which object.
    pub fn event(&self, selector: &str, reason: &str, limit: Duration) -> Result<Value> {
        let path = format!("/api/v1/namespaces/shop/events?fieldSelector={selector},reason={reason}");
        eventually(&format!("an event {reason}"), limit, || {
            let found = self.ask(User::Admin, "GET", &path, None)?;
            let items = found["items"].as_array().with_context(|| found.to_string())?;
            ensure!(items.len() == 1, "{} events", items.len());
            Ok(Some(items[0].clone()))
        })
    }

    /// Runs kubectl as an administrator.
    pub fn kubectl(&self, line: &str, input: &str) -> Result<String> {
        let mut command = Command::new(programs::find("kubectl")?);
        command.arg("--kubeconfig").arg(self.kubeconfig(User::Admin)?).args(line.split_whitespace());
        self.place.run(|| shell::feed(&mut command, input))
    }

    /// Forgets all history: versions older than now are too old for any watch.
    pub fn compact(&self) -> Result<()> {
        let status =
            self.place.sh("env ETCDCTL_API=3 etcdctl --endpoints=http://127.0.0.1:2379 endpoint status -w json")?;
        let status: Value = serde_json::from_str(&status)?;
        let revision = status[0]["Status"]["header"]["revision"].as_u64().with_context(|| status.to_string())?;
        self.place.sh(&format!(
            "env ETCDCTL_API=3 etcdctl --endpoints=http://127.0.0.1:2379 compact --physical=true {revision}"
        ))?;
        Ok(())
    }

    /// Watches a collection as an administrator, from a version of it on. Each line of the program's output is an event.
    pub fn watch(&self, path: &str, version: &str) -> Result<Process> {
        let mut command = self.request(User::Admin, &format!("{path}?watch=true&resourceVersion={version}"));
        command.arg("--no-buffer");
        self.place.start(command)
    }

    fn curl(&self, user: User, method: &str, path: &str, body: Option<&Value>) -> Result<String> {
        let content = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let mut command = self.request(user, path);
        command.args(["--max-time", "20", "--data-binary", "@-", "--request", method]);
        command.args(["--header", &format!("Content-Type: {content}")]);
        let body = body.map(ToString::to_string).unwrap_or_default();
        self.place.run(|| shell::feed(&mut command, &body))
    }

    fn request(&self, user: User, path: &str) -> Command {
        let mut command = shell::split("curl --silent --show-error");
        command.arg("--cacert").arg(self.dir.join("ca.crt"));
        command.args(["--header", &format!("Authorization: Bearer {}", user.token())]);
        command.arg(format!("{}{path}", self.url()));
        command
    }
}

/// An authority, and a certificate of it for the API server.
fn keys(dir: &Path, address: Ipv4Addr) -> Result<()> {
    let dir_text = dir.display();
    fs::write(dir.join("tokens.csv"), TOKENS)?;
    fs::write(
        dir.join("server.cnf"),
        format!("subjectAltName=IP:{address},IP:127.0.0.1,IP:10.96.0.1,DNS:kubernetes.default.svc\n"),
    )?;
    for line in [
        format!(
            "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout {dir_text}/ca.key -out {dir_text}/ca.crt"
        ),
        format!(
            "openssl req -newkey rsa:2048 -nodes -subj /CN=server -keyout {dir_text}/server.key -out {dir_text}/server.csr"
        ),
        format!(
            "openssl x509 -req -in {dir_text}/server.csr -CA {dir_text}/ca.crt -CAkey {dir_text}/ca.key -CAcreateserial -days 2 \
             -extfile {dir_text}/server.cnf -out {dir_text}/server.crt"
        ),
    ] {
        shell::sh(&line)?;
    }
    Ok(())
}
