//! What clients see of Services: every kind of frontend, audience, policy, family and protocol, in both socket modes, with routed
//! and with bridged pods. The nodes filter strictly by reverse path, and in half of the clusters another project's
//! firewall is between.

use anyhow::{Context as _, Result, anyhow};
use culvert_tests::agent::{Cluster, Options, SocketMode};
use culvert_tests::manifests::Service;
use culvert_tests::matrix::{PORT, TARGET, check, node_port, protocols};
use culvert_tests::place::Place;
use culvert_tests::topology::{Lab, PodLinks};
use culvert_tests::traffic::Server;
use serde_json::json;

/// The pods: a and p on n1, c and q on n2. a and c serve, so do the hosts n1 and n2; p and q only ask.
struct Cast {
    a: Place,
    c: Place,
    p: Place,
    q: Place,
    n1: Place,
    n2: Place,
}

struct Case {
    /// The Service's name.
    name: &'static str,
    /// Policies and endpoints, added to a Service that has every kind of frontend.
    shape: fn(Service, &Cast) -> Service,
    /// Who asks what, and what comes of it: see [`culvert_tests::matrix`].
    table: &'static str,
}

const CASES: &[Case] = &[
    Case {
        name: "cluster-policy",
        shape: |service, cast| service.ready("n1", &cast.a).ready("n2", &cast.c),
        table: "
            client  external     a:client  c:n1
            client  lb           a:client  c:n1
            client  nodeport@n1  a:client  c:n1
            client  nodeport@n2  a:n2      c:client
            client  cluster      a:client  c:n1
            n2      nodeport@n1  a:n2      c:n1
            p       cluster      a:p       c:p
            p       lb           a:p       c:p/n1
            p       external     a:p       c:p/n1
            p       nodeport@n1  a:p       c:p/n1
            p       nodeport@n2  a:n2      c:p
            q       cluster      a:q       c:q
            n1      cluster      a:n1      c:n1
            n1      lb           a:n1      c:n1
            n1      external     a:n1      c:n1
            n1      nodeport@n1  a:n1      c:n1
            n2      cluster      a:n2      c:n2
        ",
    },
    Case {
        name: "external-local",
        shape: |service, cast| service.external_local().ready("n1", &cast.a),
        table: "
            client  lb           a:client
            client  external     a:client
            client  nodeport@n1  a:client
            client  nodeport@n2  silence
            client  cluster      a:client
            p       lb           a:p
            q       lb           a:q
            q       cluster      a:q
            n1      lb           a:n1
            n2      lb           a:n2
            n2      external     a:n2
        ",
    },
    Case {
        name: "external-local-elsewhere",
        shape: |service, cast| service.external_local().ready("n2", &cast.c),
        table: "
            client  lb           silence
            client  external     silence
            client  nodeport@n1  silence
            client  nodeport@n2  c:client
            client  cluster      c:n1
            p       lb           c:p
            n1      lb           c:n1
            n1      nodeport@n1  c:n1
        ",
    },
    Case {
        name: "internal-local",
        shape: |service, cast| service.internal_local().ready("n2", &cast.c),
        table: "
            p       cluster      silence
            n1      cluster      silence
            q       cluster      c:q
            n2      cluster      c:n2
            client  lb           c:n1
            client  nodeport@n1  c:n1
            p       lb           c:p/n1
        ",
    },
    Case {
        name: "no-endpoints",
        shape: |service, _| service,
        table: "
            client  lb           refused
            client  external     refused
            client  nodeport@n1  refused
            client  cluster      refused
            p       cluster      refused
            p       lb           refused
            p       nodeport@n1  refused
            n1      cluster      refused
            n1      lb           refused
            n1      nodeport@n1  refused
            n2      nodeport@n1  refused
        ",
    },
    Case {
        name: "wrong-port",
        shape: |service, cast| service.ready("n1", &cast.a),
        table: "
            p       cluster:81   refused
            n1      cluster:81   refused
            client  cluster:81   refused
            q       cluster:8080 refused
        ",
    },
    Case {
        name: "host-network",
        shape: |service, cast| service.ready("n1", &cast.n1).ready("n2", &cast.n2),
        table: "
            client  lb           n1:client  n2:n1
            client  nodeport@n2  n1:n2      n2:client
            client  cluster      n1:client  n2:n1
            p       cluster      n1:p       n2:p
            q       cluster      n1:q       n2:q
            n1      cluster      n1:n1      n2:n1
            n1      nodeport@n1  n1:n1      n2:n1
            n2      lb           n1:n2      n2:n2
        ",
    },
    Case {
        name: "hairpin",
        shape: |service, cast| service.ready("n1", &cast.a),
        table: "
            a       cluster      a:a/n1
            a       lb           a:a/n1
            a       nodeport@n1  a:a/n1
        ",
    },
    Case {
        name: "source-ranges",
        shape: |service, cast| {
            service
                .with(
                    "loadBalancerSourceRanges",
                    json!(["192.0.2.10/32", "2001:db8:1::10/128", " 10.244.2.0/24", "fd00:244:2::/64"]),
                )
                .ready("n1", &cast.a)
        },
        table: "
            client  lb           a:client
            client2 lb           silence
            p       lb           silence
            q       lb           a:q/n2
            client2 external     a:client2
            client2 nodeport@n1  a:client2
            p       cluster      a:p
        ",
    },
    Case {
        name: "terminating",
        shape: |service, cast| service.terminating("n1", &cast.a).ready("n2", &cast.c),
        table: "
            client  lb           c:n1
            p       cluster      c:p
            n1      nodeport@n1  c:n1
        ",
    },
    Case {
        name: "only-terminating",
        shape: |service, cast| service.terminating("n1", &cast.a).terminating("n2", &cast.c),
        table: "
            client  lb           a:client c:n1
            p       cluster      a:p      c:p
            n2      cluster      a:n2     c:n2
        ",
    },
];

fn run(links: PodLinks, mode: SocketMode, firewall: bool) -> Result<()> {
    let mut lab = Lab::new(links)?;
    let cast = Cast {
        a: lab.pod(0, "a")?,
        c: lab.pod(1, "c")?,
        p: lab.pod(0, "p")?,
        q: lab.pod(1, "q")?,
        n1: lab.nodes[0].host.clone(),
        n2: lab.nodes[1].host.clone(),
    };
    if firewall {
        lab.firewall()?;
    }
    let ports: Vec<_> = protocols().into_iter().map(|protocol| (protocol, TARGET)).collect();
    let servers = [&cast.a, &cast.c, &cast.n1, &cast.n2].map(|place| Server::start(place, &ports));
    let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    for (n, case) in (1..).zip(CASES) {
        lab.manifests.apply(&(case.shape)(everywhere(case.name, n), &cast))?;
    }
    let cluster = Cluster::start(lab, &Options::new(mode)?)?;
    let places = [&cast.a, &cast.c, &cast.p, &cast.q];
    let mut failures = Vec::new();
    for (n, case) in (1..).zip(CASES) {
        if let Err(error) = check(&cluster.lab, &places, n, case.table) {
            failures.push(format!("{}:\n{error}", case.name));
        }
    }
    drop(servers);
    if failures.is_empty() {
        return Ok(());
    }
    Err(anyhow!("{}", failures.join("\n"))).with_context(|| format!("{links:?} pods, socket mode {mode:?}"))
}

/// A Service of every protocol with every kind of frontend, its number N in each address.
fn everywhere(name: &str, n: u8) -> Service {
    let service = Service::new(name, n);
    let service = protocols()
        .into_iter()
        .fold(service, |service, protocol| service.port(&format!("{protocol:?}").to_uppercase(), PORT, TARGET));
    service.node_port(node_port(n)).external_ips(n).load_balancer(100 + n)
}

#[test]
fn routed_pods_all_sockets() -> Result<()> {
    run(PodLinks::Routed, SocketMode::All, false)
}

#[test]
fn routed_pods_host_sockets_behind_a_firewall() -> Result<()> {
    run(PodLinks::Routed, SocketMode::Host, true)
}

#[test]
fn bridged_pods_all_sockets_behind_a_firewall() -> Result<()> {
    run(PodLinks::Bridged, SocketMode::All, true)
}

#[test]
fn bridged_pods_host_sockets() -> Result<()> {
    run(PodLinks::Bridged, SocketMode::Host, false)
}
