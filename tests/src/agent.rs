//! Agents on the nodes of a lab, started as the DaemonSet starts them: in the node's network namespace and cgroup, with four
//! capabilities and no more.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::manifests::Manifests;
use crate::place::Place;
use crate::process::{Process, eventually};
use crate::shell;
use crate::topology::{EXTERNAL, Lab, Node};

/// How long an agent may take to get ready, or to do what the manifests say, on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);
/// How long an agent may take to end when asked to.
pub const END: Duration = Duration::from_secs(10);

/// Which sockets are translated (`--socket-mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketMode {
    /// Those of the host and of pods.
    All,
    /// Those of the host network namespace; pods are served by the packet hooks.
    Host,
}

/// How agents are started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `culvert` binary.
    pub binary: PathBuf,
    /// `--socket-mode`.
    pub socket_mode: SocketMode,
    /// The API server's kubeconfig; without one, the source is the lab's folder of manifests.
    pub kubeconfig: Option<PathBuf>,
    /// More arguments, for the agent and for `culvert plan`.
    pub arguments: Vec<String>,
    /// More arguments, for the agent alone.
    pub flags: Vec<String>,
}

impl Options {
    /// The binary that was built beside this one, or `$CULVERT_BIN`.
    pub fn new(socket_mode: SocketMode) -> Result<Self> {
        Ok(Self { binary: binary()?, socket_mode, kubeconfig: None, arguments: Vec::new(), flags: Vec::new() })
    }
}

/// The `culvert` binary to test: `$CULVERT_BIN`, else the one in the target directory that this program is in.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("CULVERT_BIN") {
        return Ok(path.into());
    }
    let program = std::env::current_exe()?;
    program
        .ancestors()
        .skip(1)
        .map(|dir| dir.join("culvert"))
        .find(|path| path.is_file())
        .with_context(|| format!("no culvert binary beside {}: cargo build -p culvert", program.display()))
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    host: Place,
    node: String,
    options: Options,
    paths: Paths,
}

#[derive(Clone, Debug)]
struct Paths {
    manifests: PathBuf,
    bpffs: PathBuf,
    socket: PathBuf,
}

impl Paths {
    /// The state directory, beside the socket.
    fn state(&self) -> PathBuf {
        self.socket.with_extension("state")
    }
}

impl Agent {
    /// Starts an agent on node 0 or 1 of a lab. It is not ready yet.
    pub fn start(lab: &Lab, node: usize, options: &Options) -> Result<Self> {
        Self::start_named(lab, node, options, "api")
    }

    /// Starts an agent that listens on `NAME.sock`, beside others on the same node.
    pub fn start_named(lab: &Lab, node: usize, options: &Options, name: &str) -> Result<Self> {
        let node = lab.nodes.get(node).context("no such node")?;
        Self::start_on(node, &lab.manifests, options, name)
    }

    /// Starts an agent on a node of any lab.
    pub fn start_on(node: &Node, manifests: &Manifests, options: &Options, name: &str) -> Result<Self> {
        let paths = Paths {
            manifests: manifests.dir().to_owned(),
            bpffs: node.bpffs.clone(),
            socket: node.run.join(format!("{name}.sock")),
        };
        Self::launch(&node.host, node.name(), paths, options)
    }

    /// Starts an agent of a node by itself, which asks an API server. Its socket and its state are in `run`.
    pub fn start_at(host: &Place, node: &str, bpffs: &Path, run: &Path, options: &Options) -> Result<Self> {
        let (bpffs, socket) = (bpffs.to_owned(), run.join("api.sock"));
        Self::launch(host, node, Paths { manifests: PathBuf::new(), bpffs, socket }, options)
    }

    fn launch(host: &Place, node: &str, paths: Paths, options: &Options) -> Result<Self> {
        let process = launch(host, node, &paths, options)?;
        Ok(Self { process, host: host.clone(), node: node.to_owned(), options: options.clone(), paths })
    }

    /// The node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// The binary that runs.
    pub fn binary(&self) -> &Path {
        &self.options.binary
    }

    /// The directory with what survives it.
    pub fn state(&self) -> PathBuf {
        self.paths.state()
    }

    /// The agent's process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What the agents of this node wrote so far.
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// Whether it runs still.
    pub fn alive(&mut self) -> bool {
        self.process.alive()
    }

    /// Leaves it running when this guard is dropped.
    pub fn keep(&mut self) {
        self.process.keep();
    }

    /// Waits until the agent says that it is ready.
    pub fn ready(&mut self) -> Result<()> {
        let what = format!("agent of {} is ready", self.node);
        let ready = eventually(&what, LIMIT, || {
            if !self.process.alive() {
                bail!("it ended");
            }
            self.status().map(Some)
        });
        ready.map(drop).with_context(|| format!("its log:\n{}", self.log()))
    }

    /// `culvert status -o json`; an error while the agent is not ready.
    pub fn status(&self) -> Result<Value> {
        self.cli_json("status")
    }

    /// Waits until the agent is ready and the kernel does what the manifests say now.
    pub fn settle(&mut self) -> Result<()> {
        self.ready()?;
        let want = self.plan()?;
        let what = format!("agent of {} did what the manifests say", self.node);
        let settled = eventually(&what, LIMIT, || {
            let have = self.cli_json("services")?;
            if have["services"] != want["services"] {
                bail!("want {}\nhave {}", want["services"], have["services"]);
            }
            if have["differences"] != json!([]) {
                bail!("the kernel differs: {}", have["differences"]);
            }
            let status = self.status()?;
            if status["healthy"] != json!(true) {
                bail!("not healthy: {status}");
            }
            Ok(Some(()))
        });
        settled.with_context(|| format!("its log:\n{}", self.log()))
    }

    /// `culvert plan` of the manifests as they are now, for this node.
    pub fn plan(&self) -> Result<Value> {
        let mut command = Command::new(&self.options.binary);
        command.args(["plan", "-o", "json", "--node", &self.node, "--allow-external-ips", EXTERNAL]);
        command.args(&self.options.arguments).arg("--manifests").arg(&self.paths.manifests);
        json_of(&mut command)
    }

    /// Runs `culvert WORDS -o json --api-socket ...` in the node's namespace. An exit code of 3 (the answer is not good) is no error.
    pub fn cli_json(&self, words: &str) -> Result<Value> {
        let mut command = Command::new(&self.options.binary);
        command.args(words.split_whitespace()).args(["-o", "json", "--api-socket"]).arg(&self.paths.socket);
        self.host.run(|| json_of(&mut command))
    }

    /// What `culvert l2` says of an address.
    pub fn layer2(&self, to: IpAddr) -> Result<Value> {
        let all = self.cli_json("l2")?;
        let addresses = all["addresses"].as_array().context("addresses")?;
        let found = addresses.iter().find(|one| one["address"] == json!(to)).cloned();
        found.with_context(|| format!("{to} is not in {all}"))
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// SIGTERM, and its end.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.process.terminate(END)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Starts it again after its end, maybe as another binary.
    pub fn restart(&mut self, binary: Option<&Path>) -> Result<()> {
        if let Some(binary) = binary {
            binary.clone_into(&mut self.options.binary);
        }
        self.process = launch(&self.host, &self.node, &self.paths, &self.options)?;
        Ok(())
    }

    /// `culvert cleanup` on this node.
    pub fn cleanup(&self) -> Result<String> {
        let mut command = privileged(&self.options.binary);
        command.arg("cleanup").arg("--cgroup").arg(self.host.cgroup()).arg("--bpffs").arg(&self.paths.bpffs);
        self.host.run(|| shell::run(&mut command))
    }
}

/// Starts an agent in a node's namespace and cgroup.
fn launch(host: &Place, node: &str, paths: &Paths, options: &Options) -> Result<Process> {
    let mut command = privileged(&options.binary);
    command.arg("agent").arg("--node").arg(node);
    if let Some(path) = &options.kubeconfig {
        command.args(["--source", "kube"]).arg("--kubeconfig").arg(path);
    } else {
        let mut source = std::ffi::OsString::from("dir:");
        source.push(&paths.manifests);
        command.arg("--source").arg(source);
    }
    command.arg("--cgroup").arg(host.cgroup()).arg("--bpffs").arg(&paths.bpffs);
    command.arg("--state-dir").arg(paths.state());
    command.arg("--api-socket").arg(&paths.socket).args(["--allow-external-ips", EXTERNAL]);
    command.arg("--socket-mode").arg(match options.socket_mode {
        SocketMode::All => "all",
        SocketMode::Host => "host",
    });
    command.args(&options.arguments).args(&options.flags);
    host.start(command)
}

/// A command for `binary` as root with `NET_ADMIN`, `BPF`, `PERFMON` and `NET_RAW`, and no way to more.
fn privileged(binary: &Path) -> Command {
    let mut command =
        shell::split("setpriv --no-new-privs --inh-caps -all --bounding-set -all,+net_admin,+bpf,+perfmon,+net_raw --");
    command.arg(binary);
    command
}

/// What a command prints with `-o json`. Exit code 3 says that the answer is not good; it is an answer.
fn json_of(command: &mut Command) -> Result<Value> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !matches!(output.status.code(), Some(0 | 3)) {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("{command:?}"))
}

/// A lab with an agent on each node.
#[derive(Debug)]
pub struct Cluster {
    /// The agents of n1 and n2.
    pub agents: [Agent; 2],
    /// The lab. Dropped after the agents.
    pub lab: Lab,
}

impl Cluster {
    /// Starts both agents and waits until they did what the manifests say.
    pub fn start(lab: Lab, options: &Options) -> Result<Self> {
        let agents = [Agent::start(&lab, 0, options)?, Agent::start(&lab, 1, options)?];
        let mut cluster = Self { agents, lab };
        cluster.settle()?;
        Ok(cluster)
    }

    /// Waits until both agents did what the manifests say.
    pub fn settle(&mut self) -> Result<()> {
        self.agents.iter_mut().try_for_each(Agent::settle)
    }

    /// Puts Services into force.
    pub fn apply<'a>(&mut self, services: impl IntoIterator<Item = &'a crate::manifests::Service>) -> Result<()> {
        for service in services {
            self.lab.manifests.apply(service)?;
        }
        self.settle()
    }
}
