//! What is measured: the agent, and kube-proxy in its two usual modes.

use std::fmt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use serde::{Serialize, Serializer};
use serde_json::json;

use super::cluster::Cluster;
use super::node::{self, Node};
use super::objects::PODS;
use crate::agent::{Agent, Options, SocketMode, binary};
use crate::kube_proxy::program::KubeProxy;
use crate::process::Process;
use crate::{programs, shell};

/// A proxy and its mode, by the names that `cargo xtask cluster up --proxy` has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Proxy {
    /// The agent, sockets of the host and of pods.
    #[value(name = "culvert")]
    Culvert,
    /// kube-proxy in its mode nftables.
    #[value(name = "kube-proxy:nftables")]
    Nftables,
    /// kube-proxy in its mode iptables, with this machine's iptables.
    #[value(name = "kube-proxy:iptables")]
    Iptables,
}

impl Proxy {
    /// All.
    pub const ALL: [Self; 3] = [Self::Culvert, Self::Nftables, Self::Iptables];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Culvert => "culvert",
            Self::Nftables => "kube-proxy:nftables",
            Self::Iptables => "kube-proxy:iptables",
        }
    }

    /// Starts it on a node; it asks a cluster's API server, as an administrator.
    pub fn start(self, node: &Node, cluster: &Cluster) -> Result<Running> {
        let mode = match self {
            Self::Culvert => {
                let kubeconfig = Some(cluster.kubeconfig().clone());
                let options = Options { kubeconfig, ..Options::new(SocketMode::All)? };
                let agent = Agent::start_at(&node.host, node::NAME, &node.bpffs, &node.dir, &options)?;
                return Ok(Running::Culvert(Box::new(agent)));
            }
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        };
        let proxy = KubeProxy { mode, iptables: None, cluster_cidr: PODS };
        Ok(Running::KubeProxy(proxy.start(&node.host, cluster.kubeconfig(), &node.dir)?))
    }

    /// Its version, and that of what it writes with.
    pub fn version(self) -> Result<String> {
        let of = |program| shell::run(Command::new(program).arg("--version")).map(|text| text.trim().to_owned());
        Ok(match self {
            Self::Culvert => of(binary()?)?,
            Self::Nftables => format!("{}, {}", of(programs::find("kube-proxy")?)?, of(programs::find("nft")?)?),
            Self::Iptables => format!("{}, {}", of(programs::find("kube-proxy")?)?, of(programs::find("iptables")?)?),
        })
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Proxy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A proxy at work. It ends with the guard.
#[derive(Debug)]
pub enum Running {
    /// The agent.
    Culvert(Box<Agent>),
    /// kube-proxy.
    KubeProxy(Process),
}

impl Running {
    /// Between a change that has been seen and the next one. kube-proxy's default `--iptables-min-sync-period` and
    /// `--nftables-min-sync-period` are a second, from the end of a sync to the next: no change is to wait for that.
    pub const fn pause(&self) -> Duration {
        match self {
            Self::Culvert(_) => Duration::from_millis(100),
            Self::KubeProxy(_) => Duration::from_millis(1_200),
        }
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        match self {
            Self::Culvert(agent) => agent.id(),
            Self::KubeProxy(process) => process.id(),
        }
    }

    /// Whether it runs still; the error is what it said.
    pub fn alive(&mut self) -> Result<()> {
        let (alive, log) = match self {
            Self::Culvert(agent) => (agent.alive(), agent.log()),
            Self::KubeProxy(process) => (process.alive(), process.output()),
        };
        ensure!(alive, "it has ended; its log:\n{log}");
        Ok(())
    }

    /// Checks what the agent says of itself; kube-proxy says nothing of the kind.
    pub fn check(&self) -> Result<()> {
        let Self::Culvert(agent) = self else { return Ok(()) };
        let status = agent.status()?;
        ensure!(status["healthy"] == json!(true), "the agent is not healthy: {status}");
        let differences = agent.cli_json("services")?["differences"].take();
        ensure!(differences == json!([]), "the kernel differs: {differences}");
        Ok(())
    }

    /// Seconds that it spent on bringing IPv4 into the kernel, by its own metric, which both have.
    pub fn syncing(&self, node: &Node) -> Result<f64> {
        let metric = "kubeproxy_sync_proxy_rules_duration_seconds_sum{ip_family=\"IPv4\"}";
        let text = node.host.sh("curl --silent --show-error --max-time 20 http://127.0.0.1:10249/metrics")?;
        let value = text.lines().find_map(|line| line.strip_prefix(metric)).with_context(|| format!("no {metric}"))?;
        value.trim().parse().with_context(|| format!("{metric}{value}"))
    }
}
