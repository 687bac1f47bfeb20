//! Small worlds of objects that get in each other's way.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use culvert_model::objects::{
    ClientIpConfig, Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, HintTarget,
    LoadBalancerIngress, LoadBalancerStatus, Node, NodeAddress, NodeStatus, ObjectKey, ObjectMeta, Service,
    ServicePort, ServiceSpec, ServiceStatus, SessionAffinityConfig,
};
use culvert_model::{Change, Config, Failure, Grant, Granted, NodePortAddresses, ServiceKey};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

/// Node names; the model is that of the first. The last never has an object.
pub const NODES: [&str; 4] = ["alpha", "beta", "gamma", "ghost"];

/// Which object an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Object {
    Service(ServiceKey),
    Slice(ObjectKey),
    Node(String),
    Links,
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Event {
    Change(Object, Change),
    Links(HashSet<IpAddr>),
}

impl Event {
    /// What it is about.
    pub fn object(&self) -> Object {
        match self {
            Self::Change(object, _) => object.clone(),
            Self::Links(_) => Object::Links,
        }
    }

    /// Its place in one of 2^64 random orders of objects.
    pub fn rank(&self, order: u64) -> u64 {
        let mut hasher = DefaultHasher::new();
        (order, self.object()).hash(&mut hasher);
        hasher.finish()
    }

    /// The end of the same object.
    pub fn gone(&self) -> Self {
        let object = self.object();
        let change = match &object {
            Object::Service(key) => Change::ServiceGone(key.clone()),
            Object::Slice(key) => Change::EndpointSliceGone(key.clone()),
            Object::Node(name) => Change::NodeGone(name.clone()),
            Object::Links => return Self::Links(HashSet::new()),
        };
        Self::Change(object, change)
    }
}

pub fn config() -> impl Strategy<Value = Config> {
    let prefixes = |all: &'static [&'static str]| vec(select(all).prop_map(|text| text.parse().unwrap()), 0..3);
    let addresses = prop_oneof![
        Just(NodePortAddresses::Primary),
        prefixes(&["192.168.1.0/24", "0.0.0.0/0", "::/0"]).prop_map(NodePortAddresses::Prefixes),
    ];
    (addresses, prefixes(&["192.168.1.0/31", "203.0.113.0/24", "0.0.0.0/0", "::/0"])).prop_map(
        |(addresses, allowed)| Config {
            node: NODES[0].to_owned(),
            node_port_addresses: addresses,
            allow_external_ips: allowed,
        },
    )
}

pub fn events(most: usize) -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => service().prop_map(|service| {
            Event::Change(Object::Service(service.key()), Change::Service(Arc::new(service)))
        }),
        2 => (service(), grant()).prop_map(|(service, grant)| {
            Event::Change(Object::Service(service.key()), Change::Granted(Arc::new(service), grant))
        }),
        6 => slice().prop_map(|slice| {
            Event::Change(Object::Slice(slice.key()), Change::EndpointSlice(Arc::new(slice)))
        }),
        2 => node().prop_map(|node| {
            Event::Change(Object::Node(node.metadata.name.clone()), Change::Node(Arc::new(node)))
        }),
        1 => vec(select(ADDRESSES).prop_filter_map("an address", |text| text.parse().ok()), 0..3)
            .prop_map(|addresses| Event::Links(addresses.into_iter().collect())),
    ];
    vec((event, prop::bool::weighted(0.2)).prop_map(|(event, gone)| if gone { event.gone() } else { event }), 1..most)
}

const ADDRESSES: &[&str] = &[
    "10.96.0.1",
    "10.96.0.2",
    "203.0.113.1",
    "203.0.113.2",
    "192.168.1.1",
    "192.168.1.2",
    "192.168.1.3",
    "fd00:96::1",
    "fd00:96::2",
    "2001:db8::1",
    "127.0.0.1",
    "::1",
    "",
    "None",
    "nonsense",
];
const ENDPOINTS: &[&str] =
    &["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4", "fd00:1::1", "fd00:1::2", "127.0.0.1", "169.254.0.1", "x"];
const ZONES: &[&str] = &["east", "west"];
const PROTOCOLS: &[&str] = &["TCP", "UDP", "", "ICMP"];
const PORTS: &[i32] = &[80, 443, 30080, 30081, 31000, 0, -1, 70000];
const POLICIES: &[&str] = &["Cluster", "Local", ""];

fn text(of: &'static [&'static str]) -> impl Strategy<Value = String> {
    // The first half of each list is the sensible one; it comes more often.
    prop_oneof![4 => select(&of[..of.len().div_ceil(2)]), 1 => select(of)].prop_map(str::to_owned)
}

fn number(of: &'static [i32]) -> impl Strategy<Value = i32> {
    prop_oneof![6 => select(&of[..=of.len().div_ceil(2)]), 1 => select(of)]
}

fn labels(of: &'static [&'static str]) -> impl Strategy<Value = BTreeMap<String, String>> {
    prop_oneof![8 => Just(BTreeMap::new()), 1 => btree_map(select(of).prop_map(str::to_owned), Just(String::new()), 1)]
}

fn metadata(names: &'static [&'static str]) -> impl Strategy<Value = ObjectMeta> {
    let created = option::of((0_i64..3).prop_map(|second| jiff::Timestamp::from_second(second).unwrap()));
    (select(&["one", "two"][..]), select(names), created).prop_map(|(namespace, name, created)| ObjectMeta {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        creation_timestamp: created,
        ..ObjectMeta::default()
    })
}

fn service_port() -> impl Strategy<Value = ServicePort> {
    (text(&["a", "b"]), text(PROTOCOLS), number(PORTS), prop_oneof![Just(0), number(PORTS)]).prop_map(
        |(name, protocol, port, node_port)| ServicePort { name, protocol, port, node_port, ..ServicePort::default() },
    )
}

fn ingress() -> impl Strategy<Value = LoadBalancerIngress> {
    (text(ADDRESSES), option::weighted(0.2, text(&["VIP", "Proxy"]))).prop_map(|(ip, ip_mode)| LoadBalancerIngress {
        ip,
        ip_mode,
        ..LoadBalancerIngress::default()
    })
}

fn grant() -> impl Strategy<Value = Grant> {
    let address = select(ADDRESSES).prop_filter_map("an address", |text| text.parse().ok());
    let given = vec(address, 1..3).prop_map(|addresses| Granted { addresses, pool: "main".into() });
    let failure = Failure { field: "spec".to_owned(), message: "no".to_owned() };
    let pool = option::of(Just("main".into()));
    (option::of(given), pool, option::of(Just(failure))).prop_map(|(given, pool, failure)| Grant {
        given,
        pool,
        failure,
    })
}

fn affinity() -> impl Strategy<Value = Option<SessionAffinityConfig>> {
    option::of(option::of(select(&[1, 600, 0, 100_000][..]))).prop_map(|config| {
        config.map(|timeout_seconds| SessionAffinityConfig { client_ip: Some(ClientIpConfig { timeout_seconds }) })
    })
}

fn service() -> impl Strategy<Value = Service> {
    let ranges = text(&["10.0.0.0/8", "192.168.1.0/24", "2001:db8::/32", "0.0.0.0/0", "::/0", "x"]);
    let first = (
        metadata(&["a", "b", "c"]),
        labels(&["service.kubernetes.io/service-proxy-name"]),
        text(&["LoadBalancer", "NodePort", "ClusterIP", "ExternalName", "Other"]),
        vec(service_port(), 0..4),
        vec(text(ADDRESSES), 0..3),
        vec(text(ADDRESSES), 0..3),
        vec(ranges, 0..3),
    );
    let second = (
        vec(ingress(), 0..3),
        text(POLICIES),
        option::of(text(POLICIES)),
        text(&["None", "ClientIP"]),
        affinity(),
        prop_oneof![Just(0), number(PORTS)],
    );
    (first, second).prop_map(
        |(
            (mut metadata, labels, kind, ports, cluster_ips, external_ips, ranges),
            (ingress, external_policy, internal_policy, affinity, affinity_config, health_check_node_port),
        )| {
            metadata.labels = labels;
            let spec = ServiceSpec {
                kind,
                ports,
                cluster_ip: cluster_ips.first().cloned().unwrap_or_default(),
                cluster_ips,
                external_ips,
                load_balancer_source_ranges: ranges,
                session_affinity: affinity,
                session_affinity_config: affinity_config,
                external_traffic_policy: external_policy,
                internal_traffic_policy: internal_policy,
                health_check_node_port,
                ..ServiceSpec::default()
            };
            Service { metadata, spec, status: ServiceStatus { load_balancer: LoadBalancerStatus { ingress } } }
        },
    )
}

fn hints() -> impl Strategy<Value = Option<EndpointHints>> {
    let targets = |of: &'static [&'static str], least: usize| {
        vec(select(of).prop_map(|name| HintTarget { name: name.to_owned() }), least..3)
    };
    // Mostly as controllers write them: for zones, and then perhaps for nodes, on every endpoint.
    prop_oneof![
        5 => targets(ZONES, 1).prop_map(|for_zones| Some(EndpointHints { for_zones, for_nodes: vec![] })),
        5 => (targets(ZONES, 1), targets(&NODES, 1))
            .prop_map(|(for_zones, for_nodes)| Some(EndpointHints { for_zones, for_nodes })),
        1 => Just(None),
    ]
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let flag = || option::of(any::<bool>());
    let node = option::weighted(0.9, text(&NODES));
    (vec(text(ENDPOINTS), 1..2), flag(), flag(), flag(), node, hints()).prop_map(
        |(addresses, ready, serving, terminating, node_name, hints)| Endpoint {
            addresses,
            conditions: EndpointConditions { ready, serving, terminating },
            node_name,
            hints,
            ..Endpoint::default()
        },
    )
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let port = (option::of(text(&["a", "b"])), option::of(text(PROTOCOLS)), option::weighted(0.9, number(PORTS)));
    let port = port.prop_map(|(name, protocol, port)| EndpointPort { name, protocol, port, app_protocol: None });
    let owner = option::weighted(0.9, text(&["a", "b", "c", ""]));
    let family = text(&["IPv4", "IPv6", "IPv4", "FQDN", "IPX"]);
    let labels = labels(&["service.kubernetes.io/headless"]);
    (metadata(&["a-1", "a-2", "b-1"]), labels, owner, family, vec(port, 0..3), vec(endpoint(), 0..5)).prop_map(
        |(mut metadata, labels, owner, address_type, ports, endpoints)| {
            metadata.labels = labels;
            metadata.labels.extend(owner.map(|owner| ("kubernetes.io/service-name".to_owned(), owner)));
            EndpointSlice { metadata, address_type, endpoints, ports }
        },
    )
}

fn node() -> impl Strategy<Value = Node> {
    let address = (
        text(&["InternalIP", "ExternalIP", "Hostname"]),
        text(&["192.168.1.1", "192.168.1.2", "2001:db8::1", "10.96.0.1", "127.0.0.1", "name"]),
    );
    let address = address.prop_map(|(kind, address)| NodeAddress { kind, address });
    let zone = option::of(select(ZONES).prop_map(str::to_owned));
    (select(&NODES[..3]), zone, vec(address, 0..4)).prop_map(|(name, zone, addresses)| {
        let labels = zone.map(|zone| ("topology.kubernetes.io/zone".to_owned(), zone)).into_iter().collect();
        let metadata = ObjectMeta { name: name.to_owned(), labels, ..ObjectMeta::default() };
        Node { metadata, status: NodeStatus { addresses, ..NodeStatus::default() }, ..Node::default() }
    })
}

/// Objects with arbitrary text and numbers, decoded as a source would: what does not decode is no change.
pub fn nonsense() -> impl Strategy<Value = Change> {
    let word = || prop_oneof![any::<String>(), "[0-9a-fA-F:./%, ]{0,24}", text(ADDRESSES), text(POLICIES)];
    let any_port = || any::<i32>();
    let service = (
        word(),
        word(),
        vec(word(), 0..4),
        vec(word(), 0..4),
        vec(word(), 0..4),
        vec((word(), word(), any_port(), any_port()), 0..4),
        any_port(),
    );
    let service = service.prop_map(|(name, kind, ips, external, ranges, ports, number)| {
        let port = |(name, protocol, port, node_port)| ServicePort {
            name,
            protocol,
            port,
            node_port,
            ..ServicePort::default()
        };
        let spec = ServiceSpec {
            cluster_ip: ips.first().cloned().unwrap_or_default(),
            ip_families: ips.clone(),
            cluster_ips: ips,
            external_ips: external.clone(),
            load_balancer_source_ranges: ranges,
            ports: ports.into_iter().map(port).collect(),
            kind: if number % 2 == 0 { "LoadBalancer".to_owned() } else { kind },
            health_check_node_port: number,
            session_affinity: "ClientIP".to_owned(),
            session_affinity_config: Some(SessionAffinityConfig {
                client_ip: Some(ClientIpConfig { timeout_seconds: Some(number) }),
            }),
            ..ServiceSpec::default()
        };
        let ingress = external.into_iter().map(|ip| LoadBalancerIngress { ip, ..LoadBalancerIngress::default() });
        let status = ServiceStatus { load_balancer: LoadBalancerStatus { ingress: ingress.collect() } };
        let metadata = ObjectMeta { name, ..ObjectMeta::default() };
        Change::Service(Arc::new(Service { metadata, spec, status }))
    });
    let endpoint = (vec(word(), 0..3), word(), word()).prop_map(|(addresses, node, zone)| Endpoint {
        addresses,
        node_name: Some(node),
        hints: Some(EndpointHints { for_zones: vec![HintTarget { name: zone }], for_nodes: vec![] }),
        ..Endpoint::default()
    });
    let slice = (word(), word(), text(&["IPv4", "IPv6"]), vec((word(), any_port()), 0..3), vec(endpoint, 0..4));
    let slice = slice.prop_map(|(name, owner, address_type, ports, endpoints)| {
        let labels = [("kubernetes.io/service-name".to_owned(), owner)].into();
        let port = |(name, port)| EndpointPort { name: Some(name), port: Some(port), ..EndpointPort::default() };
        let ports = ports.into_iter().map(port).collect();
        let metadata = ObjectMeta { name, labels, ..ObjectMeta::default() };
        Change::EndpointSlice(Arc::new(EndpointSlice { metadata, address_type, endpoints, ports }))
    });
    let node = (text(&NODES), word(), vec((text(&["InternalIP", "ExternalIP"]), word()), 0..4));
    let node = node.prop_map(|(name, zone, addresses)| {
        let labels = [("topology.kubernetes.io/zone".to_owned(), zone)].into();
        let addresses = addresses.into_iter().map(|(kind, address)| NodeAddress { kind, address }).collect();
        let metadata = ObjectMeta { name, labels, ..ObjectMeta::default() };
        Change::Node(Arc::new(Node {
            metadata,
            status: NodeStatus { addresses, ..NodeStatus::default() },
            ..Node::default()
        }))
    });
    prop_oneof![3 => service, 3 => slice, 1 => node]
}
