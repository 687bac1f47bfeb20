//! The real servers of the demo, each a pod of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::place::{Family, Place};
use crate::process::{Process, eventually};
use crate::topology::Lab;
use crate::traffic::client::reaches;

/// Configurations and manifests, in the repository.
pub const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo");

/// What a pod runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Nginx,
    Haproxy,
    Dnsmasq,
    Etcd,
    /// Nothing: somebody who asks.
    Shell,
}

impl Program {
    /// The port that says that it is up.
    fn port(self) -> Option<u16> {
        match self {
            Self::Nginx | Self::Haproxy => Some(8080),
            Self::Dnsmasq => Some(53),
            Self::Etcd => Some(2379),
            Self::Shell => None,
        }
    }
}

/// The pods of each node. The order gives them the addresses that the manifests name.
const PODS: [&[(&str, Program)]; 2] = [
    &[
        ("web-1", Program::Nginx),
        ("web-2", Program::Nginx),
        ("edge-1", Program::Haproxy),
        ("dns-1", Program::Dnsmasq),
        ("etcd-1", Program::Etcd),
        ("shell-1", Program::Shell),
    ],
    &[
        ("web-3", Program::Nginx),
        ("edge-2", Program::Haproxy),
        ("dns-2", Program::Dnsmasq),
        ("etcd-2", Program::Etcd),
        ("etcd-3", Program::Etcd),
        ("shell-2", Program::Shell),
    ],
];

/// The pods, and the programs that run in them.
#[derive(Debug)]
pub struct Servers {
    /// Everything that runs.
    pub processes: Vec<Process>,
    pods: Vec<Place>,
}

impl Servers {
    /// Makes the pods and starts their programs. HAProxy knows its servers by their ClusterIPs, which nobody serves yet.
    pub fn start(lab: &mut Lab) -> Result<Self> {
        let mut pods = Vec::new();
        for (node, names) in PODS.iter().enumerate() {
            for (name, program) in *names {
                pods.push((lab.pod(node, name)?, *program));
            }
        }
        let members: Vec<_> =
            pods.iter().filter(|(_, program)| *program == Program::Etcd).map(|(pod, _)| pod).collect();
        let mut processes = Vec::new();
        for (pod, program) in &pods {
            let dir = lab.dir().join(pod.name());
            std::fs::create_dir(&dir)?;
            if let Some(command) = command(*program, pod, &dir, &members) {
                processes.push(pod.start(command)?);
            }
        }
        for (pod, port) in pods.iter().filter_map(|(pod, program)| program.port().map(|port| (pod, port))) {
            eventually(&format!("{} is up", pod.name()), Duration::from_secs(30), || {
                Ok(reaches(pod, (pod.ip(Family::V4), port).into())?.then_some(()))
            })?;
        }
        let servers = Self { processes, pods: pods.into_iter().map(|(pod, _)| pod).collect() };
        servers.matches_manifests()?;
        Ok(servers)
    }

    /// A pod by its name.
    pub fn pod(&self, name: &str) -> Result<&Place> {
        self.pods.iter().find(|pod| pod.name() == name).with_context(|| format!("no pod {name}"))
    }

    /// The manifests say for each endpoint whose address it is: they must be right.
    fn matches_manifests(&self) -> Result<()> {
        for file in std::fs::read_dir(manifests())? {
            let path = file?.path();
            let text = std::fs::read_to_string(&path)?;
            for (line, name) in
                text.lines().filter(|line| line.contains("addresses: [")).filter_map(|line| line.split_once("# "))
            {
                let pod = self.pod(name)?;
                let right = Family::BOTH.into_iter().any(|family| line.contains(&format!("\"{}\"", pod.ip(family))));
                ensure!(right, "{}: {line}# {name}: not its address", path.display());
            }
        }
        Ok(())
    }
}

/// The folder of manifests.
pub fn manifests() -> PathBuf {
    Path::new(FILES).join("manifests")
}

fn command(program: Program, pod: &Place, dir: &Path, members: &[&Place]) -> Option<Command> {
    let (v4, name) = (pod.v4(), pod.name());
    let mut command;
    match program {
        Program::Shell => return None,
        Program::Nginx => {
            command = Command::new("nginx");
            command.arg("-p").arg(dir).args(["-e", "stderr", "-c", &format!("{FILES}/nginx.conf")]);
            command.args(["-g", &format!("pid {0}/pid; lock_file {0}/lock;", dir.display())]);
        }
        Program::Haproxy => {
            command = Command::new("haproxy");
            command.args(["-db", "-f", &format!("{FILES}/haproxy.cfg")]);
        }
        Program::Dnsmasq => {
            command = Command::new("dnsmasq");
            command.arg(format!("--conf-file={FILES}/dnsmasq.conf"));
            command.arg(format!("--txt-record=whoami.culvert.test,{name}"));
        }
        Program::Etcd => {
            let cluster: Vec<_> = members.iter().map(|m| format!("{}=http://{}:2380", m.name(), m.v4())).collect();
            command = Command::new("etcd");
            command
                .args(["--name", name, "--logger", "zap", "--log-level", "error", "--data-dir"])
                .arg(dir.join("data"));
            command.args(["--listen-client-urls", "http://[::]:2379", "--listen-peer-urls", "http://[::]:2380"]);
            command.args(["--advertise-client-urls", &format!("http://{v4}:2379")]);
            command.args(["--initial-advertise-peer-urls", &format!("http://{v4}:2380")]);
            command.args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", "new"]);
        }
    }
    Some(command)
}

#[cfg(test)]
mod tests {
    use super::super::request::Request;
    use super::*;
    use crate::topology::PodLinks;

    #[test]
    fn each_server_tells_its_own_name() {
        let mut lab = Lab::new(PodLinks::Routed).unwrap();
        let servers = Servers::start(&mut lab).unwrap();
        for (name, request, port) in [
            ("web-1", Request::Web, 8080),
            ("web-3", Request::Web, 8080),
            ("dns-1", Request::DnsUdp, 53),
            ("dns-2", Request::DnsTcp, 53),
            ("etcd-1", Request::Etcd, 2379),
            ("etcd-3", Request::Etcd, 2379),
        ] {
            for family in Family::BOTH {
                let to = servers.pod(name).unwrap().socket(family, port);
                let answer = lab.client.block_on(|| async move { Ok(request.send(to, 0).await) }).unwrap();
                assert_eq!(answer.map(|answer| answer.server), Ok(name.to_owned()), "{to}");
            }
        }
        drop(servers);
    }
}
