//! Works with: real software behind and in front of Services of a real cluster, in both socket modes. `docs/COMPATIBILITY.md`
//! says the same for users, with versions.

mod dns;
mod etcd;
mod grpc;
mod hostports;
mod mesh;
mod multicluster;
mod proxies;
mod zookeeper;

use std::io::Write as _;
use std::time::Instant;

use anyhow::{Result, ensure};
use culvert_tests::cluster::{Cluster, Namespace, objects};
use serde_json::json;

/// Whose sockets the agents translate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    /// Those of nodes and pods.
    All,
    /// Those of nodes; pods are served at their links.
    Host,
}

impl Mode {
    const BOTH: [Self; 2] = [Self::All, Self::Host];

    fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Host => "host",
        }
    }
}

/// What a case has: the cluster, and a namespace of its own.
struct Stage {
    cluster: Cluster,
    namespace: Namespace,
}

/// Something that must work.
struct Case {
    /// Its namespace, too.
    name: &'static str,
    /// What is tried.
    what: &'static str,
    /// The socket modes in which it must.
    modes: &'static [Mode],
    run: fn(&Stage) -> Result<()>,
}

const BOTH: &[Mode] = &Mode::BOTH;

const CASES: &[Case] = &[
    Case {
        name: "coredns",
        what: "CoreDNS behind kube-dns, and one that forwards to it behind a node port; UDP and TCP",
        modes: BOTH,
        run: dns::coredns,
    },
    Case {
        name: "nodelocaldns",
        what: "NodeLocal DNSCache: CoreDNS on each node at the ClusterIP of kube-dns, on a local link",
        modes: BOTH,
        run: dns::node_local,
    },
    Case {
        name: "nginx",
        what: "NGINX behind a Service, and as a proxy to it behind a node port, under wrk",
        modes: BOTH,
        run: proxies::nginx,
    },
    Case {
        name: "haproxy",
        what: "HAProxy with health checks of a Service, behind a node port, under wrk",
        modes: BOTH,
        run: proxies::haproxy,
    },
    Case {
        name: "caddy",
        what: "Caddy behind a Service over HTTP/3 (QUIC), and as a proxy to it behind a node port, under wrk",
        modes: BOTH,
        run: proxies::caddy,
    },
    Case {
        name: "etcd",
        what: "three members of etcd that know each other by Services; clients over gRPC; a member dies",
        modes: BOTH,
        run: etcd::etcd,
    },
    Case {
        name: "zookeeper",
        what: "an ensemble of ZooKeeper that knows itself by Services; a server dies under a session",
        modes: BOTH,
        run: zookeeper::zookeeper,
    },
    Case {
        name: "grpc",
        what: "a gRPC service of six pods rolled twice under long connections and streams: no call fails",
        modes: BOTH,
        run: grpc::rolls,
    },
    Case {
        name: "hostports",
        what: "hostPorts of the portmap plugin, from outside, from nodes and from pods, TCP and UDP",
        modes: BOTH,
        run: hostports::portmap,
    },
    Case {
        name: "multicluster",
        what: "an imported Service of the multi-cluster API: a derived Service with another cluster's endpoints",
        modes: BOTH,
        run: multicluster::import,
    },
    Case {
        name: "mesh",
        what: "a mesh's sidecar (HAProxy by iptables REDIRECT) reads the Service's address from SO_ORIGINAL_DST",
        modes: &[Mode::Host],
        run: mesh::sidecar,
    },
];

#[test]
fn software_works_with_services() -> Result<()> {
    let only = std::env::var("CULVERT_CASE").unwrap_or_default();
    let cluster = Cluster::open()?;
    cluster.await_agents(&[])?;
    let mut failed = Vec::new();
    for mode in Mode::BOTH {
        cluster.upgrade(&[&format!("socketMode={}", mode.name())])?;
        for case in CASES.iter().filter(|case| case.modes.contains(&mode) && case.name.contains(&only)) {
            let started = Instant::now();
            let outcome = Stage::new(&cluster, case.name).and_then(|stage| (case.run)(&stage));
            let seconds = started.elapsed().as_secs();
            // Past the capture of the test's output: what was tried is of interest when all is well, too.
            let mut stderr = std::io::stderr().lock();
            let mark = if outcome.is_ok() { "works" } else { "FAILS" };
            writeln!(stderr, "{mark}  sockets {:<4}  {:<13} {seconds:>3} s  {}", mode.name(), case.name, case.what)?;
            if let Err(error) = outcome {
                writeln!(stderr, "       {error:#}")?;
                failed.push(format!("{} (socket mode {}): {error:#}", case.name, mode.name()));
            }
        }
    }
    cluster.upgrade(&["socketMode=all"])?;
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

impl Stage {
    fn new(cluster: &Cluster, name: &str) -> Result<Self> {
        Ok(Self { cluster: cluster.clone(), namespace: cluster.namespace(name)? })
    }

    /// The name of a Service of this case, in full.
    fn name(&self, service: &str) -> String {
        format!("{service}.{}.svc.cluster.local", self.namespace.name())
    }

    /// Gives pods a program of xtask's, at `/programs/NAME`.
    fn mount(&self, deployment: &mut serde_json::Value, program: &str) -> Result<()> {
        let path = self.cluster.program(program)?;
        let spec = &mut deployment["spec"]["template"]["spec"];
        spec["volumes"] = json!([{"name": "programs", "hostPath": {"path": path.parent(), "type": "Directory"}}]);
        spec["containers"][0]["volumeMounts"] =
            json!([{"name": "programs", "mountPath": "/programs", "readOnly": true}]);
        Ok(())
    }

    /// Runs a script of the shell's in a container of a pod or of a Deployment's first pod, with its files and its DNS.
    fn exec(&self, object: &str, script: &str) -> Result<String> {
        self.namespace.kubectl(&["exec", object, "--", "sh", "-ec", script])
    }

    /// A pod with every client, named `client`.
    fn client(&self) -> Result<()> {
        let image = self.cluster.image("servers")?;
        self.namespace.apply(&[objects::pod("client", "client", "n1", image)])?;
        self.namespace.await_pods(&["pod/client"])
    }
}
