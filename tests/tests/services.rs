//! What clients see of Services: every kind of frontend, audience, policy, family and protocol, in both socket modes, with routed
//! and with bridged pods. The nodes filter strictly by reverse path, and in half of the clusters another project's
//! firewall is between.

use anyhow::{Context as _, Result, anyhow};
use culvert_tests::agent::{Options, SocketMode};
use culvert_tests::manifests::Service;
use culvert_tests::stage::{Cast, Scenery, everywhere, targeting};
use culvert_tests::topology::PodLinks;
use serde_json::json;

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
            p       lb           a:p       c:p
            p       external     a:p       c:p
            p       nodeport@n1  a:p       c:p
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
            p       lb           c:p
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
            q       lb           a:q
            n1      lb           silence
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

const NOBODY: u8 = 90;

/// Endpoints that are ready, and a port that no program listens on: the refusal is the pod's own, translated back.
const NOBODY_LISTENS: (u8, &str, &str) = (
    NOBODY,
    "nobody-listens",
    "
        client  lb           refused
        client  nodeport@n1  refused
        p       cluster      refused
        n1      cluster      refused
    ",
);

/// What another project has put between.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Between {
    Nothing,
    Firewall,
    /// A firewall that netfilter tells nothing of what only crosses a bridge.
    FirewallBesideBridges,
}

fn run(links: PodLinks, mode: SocketMode, between: Between) -> Result<()> {
    let scenery = Scenery::new(links)?;
    if between != Between::Nothing {
        scenery.lab.firewall()?;
    }
    if between == Between::FirewallBesideBridges {
        scenery.lab.bridges_without_netfilter()?;
    }
    let service = |(n, case): (u8, &Case)| (case.shape)(everywhere(case.name, n), &scenery.cast);
    let mut services: Vec<_> = (1..).zip(CASES).map(service).collect();
    services.push(targeting("nobody-listens", NOBODY, 9).ready("n1", &scenery.cast.a).ready("n2", &scenery.cast.c));
    let stage = scenery.start(&Options::new(mode)?, &services)?;
    let mut failures = Vec::new();
    for (n, name, table) in (1..).zip(CASES).map(|(n, case)| (n, case.name, case.table)).chain([NOBODY_LISTENS]) {
        if let Err(error) = stage.check(n, table) {
            failures.push(format!("{name}:\n{error}"));
        }
    }
    if failures.is_empty() {
        return Ok(());
    }
    Err(anyhow!("{}", failures.join("\n"))).with_context(|| format!("{links:?} pods, socket mode {mode:?}"))
}

#[test]
fn routed_pods_all_sockets() -> Result<()> {
    run(PodLinks::Routed, SocketMode::All, Between::Nothing)
}

#[test]
fn routed_pods_host_sockets_behind_a_firewall() -> Result<()> {
    run(PodLinks::Routed, SocketMode::Host, Between::Firewall)
}

#[test]
fn bridged_pods_all_sockets_behind_a_firewall() -> Result<()> {
    run(PodLinks::Bridged, SocketMode::All, Between::Firewall)
}

#[test]
fn bridged_pods_host_sockets_behind_a_firewall_beside_the_bridge() -> Result<()> {
    run(PodLinks::Bridged, SocketMode::Host, Between::FirewallBesideBridges)
}
