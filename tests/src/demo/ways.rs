//! Every way in: each kind of address, asked from where it matters.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use super::request::{Answer, Request};
use super::servers::Servers;
use crate::agent::Cluster;
use crate::place::{Family, Place};
use crate::topology::{cluster_ip, external_ip};
use crate::traffic::Outcome;

/// Requests on each way.
const REQUESTS: u64 = 120;
/// Failures after which nobody needs to see more.
const ENOUGH: u64 = 10;

/// One way in, and what came of it.
#[derive(Debug)]
pub struct Way {
    /// The Service and how it is asked.
    pub service: &'static str,
    /// Who asks.
    pub from: String,
    /// The kind of address.
    pub kind: &'static str,
    /// The address.
    pub to: SocketAddr,
    /// Requests sent.
    pub sent: u64,
    /// Answers by server.
    pub answered: BTreeMap<String, u64>,
    /// Answers by the servers behind a proxy.
    pub behind: BTreeMap<String, u64>,
    /// What else the client saw.
    pub failures: BTreeMap<String, u64>,
    /// Those who had to answer.
    expected: &'static [&'static str],
}

impl Way {
    fn note(&mut self, result: Result<Answer, Outcome>) {
        match result {
            Ok(answer) => {
                *self.answered.entry(answer.server).or_default() += 1;
                if let Some(behind) = answer.behind {
                    *self.behind.entry(behind).or_default() += 1;
                }
            }
            Err(outcome) => *self.failures.entry(outcome.to_string()).or_default() += 1,
        }
    }

    /// Requests that were not answered.
    pub fn lost(&self) -> u64 {
        self.failures.values().sum()
    }

    /// All were answered, and by all who should.
    pub fn held(&self) -> bool {
        let everybody =
            |have: &BTreeMap<String, u64>, want: &[&str]| have.keys().map(String::as_str).eq(want.iter().copied());
        let proxied = self.behind.is_empty() || everybody(&self.behind, WEB);
        self.lost() == 0 && everybody(&self.answered, self.expected) && proxied
    }
}

const WEB: &[&str] = &["web-1", "web-2", "web-3"];
const EDGE: &[&str] = &["edge-1", "edge-2"];
const DNS: &[&str] = &["dns-1", "dns-2"];
const ETCD: &[&str] = &["etcd-1", "etcd-2", "etcd-3"];

/// What is asked, once for each family.
struct Question<'a> {
    service: &'static str,
    request: Request,
    from: &'a Place,
    to: Target<'a>,
    port: u16,
    expected: &'static [&'static str],
}

/// A kind of address.
enum Target<'a> {
    ClusterIp(u8),
    NodePort(&'a Place),
    External(u8),
    LoadBalancer(u8),
}

impl Target<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::ClusterIp(_) => "ClusterIP",
            Self::NodePort(_) => "NodePort",
            Self::External(_) => "external",
            Self::LoadBalancer(_) => "LoadBalancer",
        }
    }

    fn ip(&self, family: Family) -> IpAddr {
        match *self {
            Self::ClusterIp(n) => cluster_ip(family, n),
            Self::NodePort(node) => node.ip(family),
            Self::External(n) | Self::LoadBalancer(n) => external_ip(family, n),
        }
    }
}

/// Asks on every way, in both families.
pub fn every_way_in(cluster: &Cluster, servers: &Servers) -> Result<Vec<Way>> {
    use Request::{DnsTcp, DnsUdp, Etcd, Web};
    use Target::{ClusterIp, External, LoadBalancer, NodePort};
    let client = &cluster.lab.client;
    let [n1, n2] = [&cluster.lab.nodes[0].host, &cluster.lab.nodes[1].host];
    let [shell_1, shell_2] = [servers.pod("shell-1")?, servers.pod("shell-2")?];
    let questions = [
        ("web", Web, shell_1, ClusterIp(80), 80, WEB),
        ("web", Web, n2, ClusterIp(80), 80, WEB),
        ("web", Web, client, NodePort(n1), 30_080, WEB),
        ("web", Web, client, NodePort(n2), 30_080, WEB),
        ("edge", Web, client, LoadBalancer(80), 80, EDGE),
        ("edge", Web, client, External(81), 80, EDGE),
        ("edge", Web, shell_2, LoadBalancer(80), 80, EDGE),
        ("dns, UDP", DnsUdp, shell_1, ClusterIp(53), 53, DNS),
        ("dns, UDP", DnsUdp, client, LoadBalancer(53), 53, DNS),
        ("dns, TCP", DnsTcp, client, LoadBalancer(53), 53, DNS),
        ("etcd", Etcd, shell_2, ClusterIp(79), 2_379, ETCD),
        ("etcd", Etcd, client, NodePort(n1), 32_379, ETCD),
    ]
    .map(|(service, request, from, to, port, expected)| Question { service, request, from, to, port, expected });
    questions.iter().flat_map(|question| Family::BOTH.map(|family| question.ask(family))).collect()
}

impl Question<'_> {
    fn ask(&self, family: Family) -> Result<Way> {
        let mut way = Way {
            service: self.service,
            from: self.from.name().to_owned(),
            kind: self.to.name(),
            to: (self.to.ip(family), self.port).into(),
            sent: 0,
            answered: BTreeMap::new(),
            behind: BTreeMap::new(),
            failures: BTreeMap::new(),
            expected: self.expected,
        };
        let books = &mut way;
        self.from.block_on(move || async move {
            while books.sent < REQUESTS && books.lost() < ENOUGH {
                books.note(self.request.send(books.to, books.sent).await);
                books.sent += 1;
            }
            Ok(())
        })?;
        Ok(way)
    }
}
