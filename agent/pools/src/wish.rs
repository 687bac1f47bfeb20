//! A Service, digested: whose business it is, and which addresses it asks for.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use culvert_model::objects::{Service, ServiceSpec};
use culvert_model::{Family, ServiceKey, parse_address};
use jiff::Timestamp;

use crate::event::{Failure, Reason};

/// The prefixes of annotations; the first that is there counts.
const PREFIXES: [&str; 2] = ["metallb.io", "metallb.universe.tf"];
const ADDRESS_POOL: &str = "address-pool";
const ADDRESSES: &str = "loadBalancerIPs";
const SHARED: &str = "allow-shared-ip";

/// A Service's place in the queue: the oldest first, without a creation time last, then by namespace and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rank {
    pub created: Option<Timestamp>,
    pub key: ServiceKey,
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let time = |rank: &Self| (rank.created.is_none(), rank.created);
        time(self).cmp(&time(other)).then_with(|| self.key.cmp(&other.key))
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Whose business a Service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Ours.
    Ours,
    /// Nobody's: it is of another type, or it is being deleted.
    Idle,
    /// Another provider's, by `loadBalancerClass`.
    OfOthers,
}

/// The families in which a Service has addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Families {
    /// One.
    One(Family),
    /// Both, or nothing.
    Both,
    /// Both if one pool has both; else the first, else the other.
    Prefer(Family),
    /// One, whichever there is, IPv4 first: a manifest that says nothing at all.
    Either,
}

impl Families {
    /// Whether a set of families will do.
    pub(crate) fn admit(self, families: &[Family]) -> bool {
        match self {
            Self::One(family) => families == [family],
            Self::Both => families.len() == 2,
            Self::Prefer(_) => true,
            Self::Either => families.len() == 1,
        }
    }
}

/// A port that only one Service has at an address: protocol and number.
pub(crate) type Port = (Arc<str>, i32);

/// With whom an address may be shared: those of the same key. An empty one is nobody's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Share {
    /// The annotation's value.
    pub key: Arc<str>,
    /// What has to be the same besides: with traffic policy Local, the pods, for the address goes where they are.
    pub backends: Arc<str>,
}

/// What a Service asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub rank: Rank,
    pub role: Role,
    pub families: Result<Families, Failure>,
    /// Sorted, unique.
    pub ports: Vec<Port>,
    pub share: Share,
    /// The pool it names, and the field that does.
    pub pool: Option<(Arc<str>, String)>,
    /// The addresses it names, IPv4 first, and the field that does.
    pub addresses: Result<Option<(Vec<IpAddr>, String)>, Failure>,
    pub labels: BTreeMap<String, String>,
    /// Annotations of the old prefix.
    pub deprecated: Vec<String>,
}

impl Wish {
    /// Digests a Service. `class` is the `loadBalancerClass` that is ours.
    pub(crate) fn new(service: &Service, class: Option<&str>) -> Self {
        let annotations = &service.metadata.annotations;
        let deprecated = annotations.keys().filter(|key| key.split('/').next() == Some(PREFIXES[1]));
        let pool = annotation(annotations, ADDRESS_POOL).filter(|(_, pool)| !pool.is_empty());
        Self {
            rank: Rank { created: service.metadata.creation_timestamp, key: service.key() },
            role: role(service, class),
            families: families(&service.spec),
            ports: ports(&service.spec),
            share: share(service),
            pool: pool.map(|(key, pool)| (pool.into(), field(&key))),
            addresses: addresses(service),
            labels: service.metadata.labels.clone(),
            deprecated: deprecated.cloned().collect(),
        }
    }
}

/// The addresses that a Service's status lists, whoever wrote them; `None` for what is no address.
pub(crate) fn status(service: &Service) -> Vec<Option<IpAddr>> {
    let ingress = service.status.load_balancer.ingress.iter();
    ingress.filter(|one| !one.ip.is_empty()).map(|one| parse_address(&one.ip)).collect()
}

fn role(service: &Service, class: Option<&str>) -> Role {
    if service.spec.kind != "LoadBalancer" || service.metadata.deletion_timestamp.is_some() {
        return Role::Idle;
    }
    if service.spec.load_balancer_class.as_deref() == class { Role::Ours } else { Role::OfOthers }
}

/// The annotation of either prefix: its full name, and the value.
fn annotation<'a>(annotations: &'a BTreeMap<String, String>, name: &str) -> Option<(String, &'a str)> {
    PREFIXES.iter().find_map(|prefix| {
        let key = format!("{prefix}/{name}");
        annotations.get(&key).map(|value| (key, value.as_str()))
    })
}

fn field(annotation: &str) -> String {
    format!("metadata.annotations[{annotation}]")
}

/// ClusterIPs say which families a Service has. Where no API server gave it any, its families and its policy do.
fn families(spec: &ServiceSpec) -> Result<Families, Failure> {
    let policy = spec.ip_family_policy.as_deref().unwrap_or_default();
    let first = spec.ip_families.first().and_then(|name| Family::named(name));
    let single;
    let cluster_ips = match spec.cluster_ips.as_slice() {
        [] if spec.cluster_ip.is_empty() => return Ok(without_cluster_ips(spec, policy, first)),
        [] => {
            single = [spec.cluster_ip.clone()];
            &single[..]
        }
        listed => listed,
    };
    let unclear = || {
        let message = format!("the ClusterIPs {cluster_ips:?} are not one address of a family, or one of each");
        Failure::new(Reason::NoClusterIpFamily, "spec.clusterIPs", message)
    };
    if policy == "RequireDualStack" && cluster_ips.len() < 2 {
        let message = format!("two families are required, and there is one ClusterIP: {cluster_ips:?}");
        return Err(Failure::new(Reason::NotEnoughClusterIps, "spec.clusterIPs", message));
    }
    let parsed: Option<Vec<Family>> = cluster_ips.iter().map(|ip| Some(Family::of(parse_address(ip)?))).collect();
    match parsed.as_deref() {
        Some(&[family]) => Ok(Families::One(family)),
        Some(&[one, other]) if one != other => Ok(match policy {
            "PreferDualStack" => Families::Prefer(first.unwrap_or(Family::V4)),
            _ => Families::Both,
        }),
        _ => Err(unclear()),
    }
}

fn without_cluster_ips(spec: &ServiceSpec, policy: &str, first: Option<Family>) -> Families {
    match (policy, spec.ip_families.len(), first) {
        ("PreferDualStack", ..) => Families::Prefer(first.unwrap_or(Family::V4)),
        ("RequireDualStack", ..) | (_, 2.., _) => Families::Both,
        (_, _, Some(family)) => Families::One(family),
        _ => Families::Either,
    }
}

fn ports(spec: &ServiceSpec) -> Vec<Port> {
    let protocol = |name: &str| Arc::from(if name.is_empty() { "TCP" } else { name });
    let mut ports: Vec<Port> = spec.ports.iter().map(|port| (protocol(&port.protocol), port.port)).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn share(service: &Service) -> Share {
    let key = annotation(&service.metadata.annotations, SHARED).map_or("", |(_, key)| key);
    let backends = if service.spec.external_traffic_policy == "Local" {
        let selector = service.spec.selector.iter().map(|(key, value)| format!("{key}={value}"));
        // Pods that are not selected are not those of policy Cluster either.
        format!("Local:{}", selector.collect::<Vec<_>>().join(","))
    } else {
        String::new()
    };
    Share { key: key.into(), backends: backends.into() }
}

fn addresses(service: &Service) -> Result<Option<(Vec<IpAddr>, String)>, Failure> {
    let named = annotation(&service.metadata.annotations, ADDRESSES).filter(|(_, text)| !text.is_empty());
    let of_spec = service.spec.load_balancer_ip.as_str();
    let fail = |field: String, message: String| Err(Failure::new(Reason::LoadBalancerFailed, field, message));
    let (field, text) = match (named, of_spec) {
        (None, "") => return Ok(None),
        (None, text) => ("spec.loadBalancerIP".to_owned(), text),
        (Some((key, text)), "") => (field(&key), text),
        (Some((key, _)), _) => {
            return fail(field(&key), "addresses are asked for here and in spec.loadBalancerIP".to_owned());
        }
    };
    let mut addresses = Vec::new();
    for text in text.split(',').map(str::trim) {
        let Some(address) = parse_address(text) else {
            return fail(field, format!("{text:?} is no IP address"));
        };
        addresses.push(address);
    }
    addresses.sort_by_key(|address| Family::of(*address));
    if addresses.len() > 2 || (addresses.len() == 2 && Family::of(addresses[0]) == Family::of(addresses[1])) {
        return fail(field, format!("{text:?} is not one address of a family, or one of each"));
    }
    Ok(Some((addresses, field)))
}
