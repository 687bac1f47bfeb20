//! The agents of a cluster: pods of a DaemonSet that a Helm release owns.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::site::{find, processes};
use super::{Cluster, LIMIT};
use crate::process::eventually;
use crate::shell::run;

const NAMESPACE: &str = "kube-system";
const RELEASE: &str = "culvert";
const DAEMON_SET: &str = "daemonset/culvert-agent";

/// The agent of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// Its pod.
    pub pod: String,
    /// Its node.
    pub node: String,
    /// Its image, as the pod names it.
    pub image: String,
    /// The id of its container, a new one after each restart.
    pub container: String,
    /// Whether the kernel holds all that it knows.
    pub ready: bool,
}

impl Cluster {
    /// The agents, in the order of their nodes.
    pub fn agents(&self) -> Result<Vec<Agent>> {
        let pods =
            self.get(&["-n", NAMESPACE, "pod", "-lapp.kubernetes.io/name=culvert,app.kubernetes.io/component=agent"])?;
        let pods = pods["items"].as_array().context("no list of pods")?;
        let mut agents: Vec<Agent> = pods.iter().filter_map(agent).collect();
        agents.sort_by(|a, b| a.node.cmp(&b.node));
        Ok(agents)
    }

    /// Ends agents by `kill -9`, all at the same time. kubelet starts them again. The API server is not asked.
    pub fn kill_agents(&self, agents: &[Agent]) -> Result<()> {
        for agent in agents {
            let node = &self.place(&agent.node)?.cgroup;
            let cgroup = find(node, &agent.container).with_context(|| format!("{} does not run", agent.pod))?;
            for process in processes(&cgroup)? {
                kill(Pid::from_raw(process.cast_signed()), Signal::SIGKILL).context("kill")?;
            }
        }
        Ok(())
    }

    /// Waits until each node has a ready agent, none of which is among `before`.
    pub fn await_agents(&self, before: &[Agent]) -> Result<()> {
        let nodes = self.nodes().len();
        eventually("every node has a new agent", LIMIT, || {
            let agents = self.agents()?;
            let new = |agent: &&Agent| agent.ready && before.iter().all(|old| old.container != agent.container);
            ensure!(agents.len() == nodes && agents.iter().filter(new).count() == nodes, "{agents:?}");
            Ok(Some(()))
        })
    }

    /// `helm upgrade` with other values, each `name=value`, and the wait until all nodes have it.
    pub fn upgrade(&self, values: &[&str]) -> Result<()> {
        let mut helm = self.helm("upgrade");
        helm.arg(RELEASE).arg(&self.description.chart).arg("--reuse-values");
        for value in values {
            helm.args(["--set", value]);
        }
        run(&mut helm)?;
        self.await_rollout(NAMESPACE, DAEMON_SET)
    }

    /// `helm rollback` to what was before the last upgrade, and the wait until all nodes have it.
    pub fn rollback(&self) -> Result<()> {
        run(self.helm("rollback").arg(RELEASE))?;
        self.await_rollout(NAMESPACE, DAEMON_SET)
    }

    fn helm(&self, verb: &str) -> Command {
        let mut helm = Command::new(&self.description.helm);
        helm.arg(verb).arg("--kubeconfig").arg(&self.description.kubeconfig).args(["--namespace", NAMESPACE]);
        helm
    }

    /// What `culvert status` says on a node; it needs no API server.
    pub fn status(&self, node: &str) -> Result<Value> {
        let culvert = std::env::var_os("CULVERT_BIN").context("CULVERT_BIN names no agent")?;
        let mut command = self.site(node)?.command(culvert);
        command.args(["status", "--output", "json"]);
        // An unhealthy agent gives exit code 3 and the same answer.
        let output = command.output().with_context(|| format!("{command:?}"))?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("culvert status on {node}: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Waits until every agent says that all is well.
    pub fn await_health(&self) -> Result<()> {
        for node in self.nodes() {
            eventually(&format!("the agent of {node} is healthy"), LIMIT, || {
                let status = self.status(&node)?;
                ensure!(status["healthy"] == Value::Bool(true), "{status}");
                Ok(Some(()))
            })?;
        }
        Ok(())
    }

    /// Imports an image of a docker-archive into every node's containerd.
    pub fn import(&self, archive: &Path) -> Result<()> {
        for node in self.nodes() {
            let mut ctr = self.site(&node)?.command(&self.description.ctr);
            ctr.args(["-n", "k8s.io", "images", "import", "--local"]).arg(archive);
            run(&mut ctr)?;
        }
        Ok(())
    }
}

/// An agent's pod; none if it is on its way out or has no container yet.
fn agent(pod: &Value) -> Option<Agent> {
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        return None;
    }
    let status = &pod["status"]["containerStatuses"][0];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Some(Agent {
        pod: text(&pod["metadata"]["name"])?,
        node: text(&pod["spec"]["nodeName"])?,
        image: text(&pod["spec"]["containers"][0]["image"])?,
        container: status["containerID"].as_str()?.rsplit('/').next()?.to_owned(),
        ready: status["ready"].as_bool()?,
    })
}
