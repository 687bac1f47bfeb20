//! Metrics: those that kube-proxy has in all its modes, by its names, so that dashboards and alerts go on (pkg/proxy/metrics),
//! and Culvert's own.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use culvert_api::layer2::{Address, Layer2, Link, State};
use culvert_api::status::Status;
use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// The address family of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum IpFamily {
    /// IPv4.
    #[allow(missing_docs)]
    IPv4,
    /// IPv6.
    IPv6,
}

/// The label of most of kube-proxy's metrics.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfFamily {
    ip_family: IpFamily,
}

/// Which traffic policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Policy {
    /// `internalTrafficPolicy`.
    #[allow(non_camel_case_types)]
    internal,
    /// `externalTrafficPolicy`.
    #[allow(non_camel_case_types)]
    external,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPolicy {
    traffic_policy: Policy,
    ip_family: IpFamily,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCode {
    code: u16,
}

type Seconds = Gauge<f64, AtomicU64>;

/// Answers of a health server, by status code.
#[derive(Clone, Debug, Default)]
pub struct Answers(Family<OfCode, Counter>);

impl Answers {
    /// Counts one.
    pub fn count(&self, code: StatusCode) {
        self.0.get_or_create(&OfCode { code: code.as_u16() }).inc();
    }
}

/// All metrics. Cheap to write from anywhere.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Answers of `/healthz`.
    pub healthz: Answers,
    /// Answers of `/livez`.
    pub livez: Answers,
    /// Changes of Services that were taken.
    pub service_changes: Counter,
    /// Changes of slices that were taken.
    pub endpoint_changes: Counter,
    /// Services whose plan could not be programmed, each time.
    pub programming_errors: Counter,
    sync_seconds: Family<OfFamily, Histogram, fn() -> Histogram>,
    queued: Family<OfFamily, Seconds>,
    synced: Family<OfFamily, Seconds>,
    programming_seconds: Family<OfFamily, Histogram, fn() -> Histogram>,
    no_local_endpoints: Family<OfPolicy, Gauge>,
    kernel: Arc<Kernel>,
    announced: Arc<Announced>,
}

const FAMILIES: [OfFamily; 2] = [OfFamily { ip_family: IpFamily::IPv4 }, OfFamily { ip_family: IpFamily::IPv6 }];

fn sync_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// kube-proxy's buckets: half a second's quarters, a minute's seconds, two minutes' fives, five minutes' thirties.
fn programming_histogram() -> Histogram {
    let steps = |start: f64, step: f64, count: u32| (0..count).map(move |i| start + step * f64::from(i));
    let buckets = steps(0.25, 0.25, 2).chain(steps(1.0, 1.0, 59)).chain(steps(60.0, 5.0, 12));
    Histogram::new(buckets.chain(steps(120.0, 30.0, 7)))
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            healthz: Answers::default(),
            livez: Answers::default(),
            service_changes: Counter::default(),
            endpoint_changes: Counter::default(),
            programming_errors: Counter::default(),
            sync_seconds: Family::new_with_constructor(sync_histogram),
            queued: Family::default(),
            synced: Family::default(),
            programming_seconds: Family::new_with_constructor(programming_histogram),
            no_local_endpoints: Family::default(),
            kernel: Arc::default(),
            announced: Arc::default(),
        };
        let registry = &mut metrics.registry;
        let proxy = registry.sub_registry_with_prefix("kubeproxy");
        proxy.register(
            "sync_proxy_rules_duration_seconds",
            "How long it took to bring a batch of changes into the kernel",
            metrics.sync_seconds.clone(),
        );
        proxy.register(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "When a change last came in",
            metrics.queued.clone(),
        );
        proxy.register(
            "sync_proxy_rules_last_timestamp_seconds",
            "When the kernel last held everything",
            metrics.synced.clone(),
        );
        proxy.register(
            "sync_proxy_rules_endpoint_changes_pending",
            "Changes of endpoints that are not in the kernel yet; they are taken as they come",
            ConstGauge::new(0i64),
        );
        proxy.register(
            "sync_proxy_rules_endpoint_changes",
            "Changes of endpoints that were taken",
            metrics.endpoint_changes.clone(),
        );
        proxy.register(
            "sync_proxy_rules_service_changes_pending",
            "Changes of Services that are not in the kernel yet; they are taken as they come",
            ConstGauge::new(0i64),
        );
        proxy.register(
            "sync_proxy_rules_service_changes",
            "Changes of Services that were taken",
            metrics.service_changes.clone(),
        );
        proxy.register("proxy_healthz", "Answers of /healthz by status code", metrics.healthz.0.clone());
        proxy.register("proxy_livez", "Answers of /livez by status code", metrics.livez.0.clone());
        proxy.register(
            "network_programming_duration_seconds",
            "From the change of a pod or Service to its being in the kernel",
            metrics.programming_seconds.clone(),
        );
        proxy.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "Services with a Local traffic policy and no endpoint on this node",
            metrics.no_local_endpoints.clone(),
        );
        let own = registry.sub_registry_with_prefix("culvert");
        own.register(
            "programming_errors",
            "Plans of Services that could not be brought into the kernel; each is tried again",
            metrics.programming_errors.clone(),
        );
        own.register_collector(Box::new(Arc::clone(&metrics.kernel)));
        registry.register_collector(Box::new(Arc::clone(&metrics.announced)));
        // So that they are there from the first scrape.
        for family in &FAMILIES {
            drop(metrics.sync_seconds.get_or_create(family));
            drop(metrics.programming_seconds.get_or_create(family));
            for traffic_policy in [Policy::internal, Policy::external] {
                let labels = OfPolicy { traffic_policy, ip_family: family.ip_family };
                drop(metrics.no_local_endpoints.get_or_create(&labels));
            }
        }
        metrics
    }

    /// Changes came in.
    pub fn queued(&self, at: Timestamp) {
        for family in &FAMILIES {
            self.queued.get_or_create(family).set(seconds(at));
        }
    }

    /// Changes are in the kernel; it took so long.
    pub fn synced(&self, at: Timestamp, took: Duration) {
        for family in &FAMILIES {
            self.synced.get_or_create(family).set(seconds(at));
            self.sync_seconds.get_or_create(family).observe(took.as_secs_f64());
        }
    }

    /// Endpoints of a family are in the kernel so long after they changed.
    pub fn programmed(&self, ip_family: IpFamily, after: Duration) {
        self.programming_seconds.get_or_create(&OfFamily { ip_family }).observe(after.as_secs_f64());
    }

    /// So many Services have no endpoint here for a Local policy.
    pub fn set_no_local_endpoints(&self, traffic_policy: Policy, ip_family: IpFamily, services: usize) {
        let services = i64::try_from(services).unwrap_or(i64::MAX);
        self.no_local_endpoints.get_or_create(&OfPolicy { traffic_policy, ip_family }).set(services);
    }

    /// The text for a scrape; `status` is what the kernel says just now, if it could be asked, and `announced` what is
    /// announced in layer 2, where that is on.
    pub fn text(&self, status: Option<Status>, announced: Option<Layer2>) -> Result<String, fmt::Error> {
        self.kernel.set(status);
        self.announced.set(announced);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

fn seconds(at: Timestamp) -> f64 {
    at.as_duration().as_secs_f64()
}

/// What the kernel's maps say, as metrics.
#[derive(Debug, Default)]
struct Kernel(Mutex<Option<Status>>);

impl Kernel {
    fn set(&self, status: Option<Status>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

impl Collector for Kernel {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(status) = status.as_ref() else { return Ok(()) };
        let mut gauges = |name: &str, help: &str, rows: Vec<(Vec<(&str, String)>, i64)>| {
            let gauge = ConstGauge::new(0i64);
            let mut family = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            rows.into_iter()
                .try_for_each(|(labels, value)| ConstGauge::new(value).encode(family.encode_family(&labels)?))
        };
        let count = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        let services = [
            ("total", status.services.total),
            ("programmed", status.services.programmed),
            ("failed", status.services.failed),
        ];
        let services = services.map(|(state, value)| (vec![("state", state.to_owned())], count(value)));
        gauges(
            "services",
            "Services that are known, that are in the kernel, and that could not be brought there",
            services.into(),
        )?;
        let map = |name: &String, rows: u64| (vec![("map", name.clone())], i64::try_from(rows).unwrap_or(i64::MAX));
        let used = status.maps.iter().map(|usage| map(&usage.map, usage.used)).collect();
        gauges("map_rows", "Rows of the kernel's maps that are in use", used)?;
        let capacity = status.maps.iter().map(|usage| map(&usage.map, usage.capacity)).collect();
        gauges("map_capacity_rows", "Rows that the kernel's maps can hold", capacity)?;
        let hooked = vec![(vec![], count(status.links.len()))];
        gauges("links", "Links that have the programs", hooked)?;
        let of_sources = status.sources.iter().map(|source| source.errors.len()).sum::<usize>();
        let problems = vec![(vec![], count(status.problems.len() + of_sources))];
        gauges("problems", "What is wrong with hooks, sources or the Node; `culvert status` says what", problems)?;

        let kind = ConstCounter::new(0u64).metric_type();
        let help = "Packets dropped, refused or left to the stack, by reason";
        let mut packets = encoder.encode_descriptor("packets", help, None, kind)?;
        status.reasons.iter().try_for_each(|count| {
            let labels = [("reason", count.reason.clone())];
            ConstCounter::new(count.packets).encode(packets.encode_family(&labels)?)
        })
    }
}

/// What is announced in layer 2, as metrics: MetalLB's by its names, and Culvert's own.
#[derive(Debug, Default)]
struct Announced(Mutex<Option<Layer2>>);

impl Announced {
    fn set(&self, announced: Option<Layer2>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = announced;
    }
}

/// A count of an announced address: its name, what it says, and where it stands.
type Count = (&'static str, &'static str, fn(&Link) -> u64);

/// MetalLB's, whose names have no `_total`, and so are no counters to this library.
const METALLB: [Count; 3] = [
    ("metallb_layer2_requests_received", "ARP requests and neighbour solicitations for the address", |link| {
        link.requests
    }),
    ("metallb_layer2_responses_sent", "Those that were answered", |link| link.answers),
    ("metallb_layer2_gratuitous_sent", "Announcements of the address that were sent unasked", |link| link.gratuitous),
];
const OWN: [Count; 3] = [
    ("culvert_layer2_refusals", "Requests for the address that came when it might not be answered for", |link| {
        link.refusals
    }),
    ("culvert_layer2_echoes", "Pings of the address that were answered", |link| link.echoes),
    ("culvert_layer2_conflicts", "Packets in which another host claimed the address", |link| link.conflicts),
];

impl Collector for Announced {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let announced = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Layer2 { node, addresses, quorum, nodes }) = announced.as_ref() else { return Ok(()) };
        let sum = |address: &Address, pick: fn(&Link) -> u64| address.links.iter().map(pick).sum::<u64>();
        let here = || addresses.iter().filter(|address| !address.links.is_empty());
        let kind = ConstGauge::new(0i64).metric_type();
        for (name, help, pick) in METALLB {
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for address in here() {
                let labels = [("ip", address.address.to_string())];
                let value = i64::try_from(sum(address, pick)).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        let (name, help) = ("metallb_speaker_announced", "Services whose address this node announces");
        let mut family = encoder.encode_descriptor(name, help, None, kind)?;
        let speaks = |address: &&Address| address.links.iter().any(|link| link.state == State::Announced);
        for address in here().filter(speaks) {
            for service in &address.services {
                let labels = [
                    ("service", service.clone()),
                    ("protocol", "layer2".to_owned()),
                    ("node", node.clone()),
                    ("ip", address.address.to_string()),
                ];
                ConstGauge::new(1i64).encode(family.encode_family(&labels)?)?;
            }
        }
        if let Some(quorum) = quorum {
            let (name, help) = ("culvert_layer2_quorum", "Whether a majority of the nodes stands behind this one");
            let gauge = ConstGauge::new(i64::from(*quorum));
            gauge.encode(encoder.encode_descriptor(name, help, None, kind)?)?;
            let (name, help) = ("culvert_layer2_node_alive", "Whether another node is heard");
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for peer in nodes {
                let labels = [("peer", peer.name.clone())];
                ConstGauge::new(i64::from(peer.alive)).encode(family.encode_family(&labels)?)?;
            }
        }
        let kind = ConstCounter::new(0u64).metric_type();
        for (name, help, pick) in OWN {
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for address in here() {
                let labels = [("ip", address.address.to_string())];
                ConstCounter::new(sum(address, pick)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use culvert_abi::Reason;
    use culvert_api::status::{MapUsage, ReasonCount};

    use super::*;

    #[test]
    fn the_names_of_kube_proxy_are_there_from_the_start() {
        let text = Metrics::new().text(None, None).unwrap();
        for name in [
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.001\",ip_family=\"IPv4\"} 0",
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 0",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 0",
            "kubeproxy_sync_proxy_rules_service_changes_pending 0",
            "kubeproxy_sync_proxy_rules_service_changes_total 0",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"300.0\",ip_family=\"IPv4\"} 0",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"internal\",ip_family=\"IPv4\"} 0",
            "culvert_programming_errors_total 0",
        ] {
            assert!(text.contains(name), "{name} is missing in\n{text}");
        }
    }

    #[test]
    fn what_happened_is_counted() {
        let metrics = Metrics::new();
        metrics.healthz.count(StatusCode::SERVICE_UNAVAILABLE);
        metrics.queued(Timestamp::from_second(7).unwrap());
        metrics.synced(Timestamp::from_second(8).unwrap(), Duration::from_millis(3));
        metrics.programmed(IpFamily::IPv6, Duration::from_millis(300));
        let text = metrics.text(None, None).unwrap();
        for line in [
            "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv4\"} 7.0",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv6\"} 8.0",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.004\",ip_family=\"IPv4\"} 1",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"0.5\",ip_family=\"IPv6\"} 1",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn announced_addresses_have_the_names_of_metallb() {
        let link = |state, count| Link {
            interface: "eth0".to_owned(),
            state,
            since_seconds: 0,
            requests: count,
            answers: count,
            refusals: count,
            echoes: count,
            gratuitous: count,
            conflicts: count,
            rival: None,
        };
        let address = |address: &str, links| Address {
            address: address.parse().unwrap(),
            services: vec!["shop/web".to_owned()],
            node: Some("n1".to_owned()),
            reason: String::new(),
            links,
        };
        let addresses = vec![
            address("192.0.2.1", vec![link(State::Announced, 3), link(State::Taken, 4)]),
            address("192.0.2.2", vec![link(State::Probing, 0)]),
            address("192.0.2.3", Vec::new()),
        ];
        let peer = culvert_api::layer2::Node {
            name: "n2".to_owned(),
            alive: true,
            heard_milliseconds_ago: Some(90),
            held_down: false,
            drained: false,
            addresses: 1,
        };
        let answer = Layer2 { node: "n1".to_owned(), quorum: Some(false), nodes: vec![peer], addresses };
        let text = Metrics::new().text(None, Some(answer)).unwrap();
        for line in [
            "metallb_layer2_requests_received{ip=\"192.0.2.1\"} 7",
            "metallb_layer2_responses_sent{ip=\"192.0.2.2\"} 0",
            "metallb_layer2_gratuitous_sent{ip=\"192.0.2.1\"} 7",
            "metallb_speaker_announced{service=\"shop/web\",protocol=\"layer2\",node=\"n1\",ip=\"192.0.2.1\"} 1",
            "culvert_layer2_conflicts_total{ip=\"192.0.2.1\"} 7",
            "culvert_layer2_refusals_total{ip=\"192.0.2.1\"} 7",
            "culvert_layer2_quorum 0",
            "culvert_layer2_node_alive{peer=\"n2\"} 1",
            "culvert_layer2_echoes_total{ip=\"192.0.2.1\"} 7",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("192.0.2.3") && text.matches("speaker_announced{").count() == 1, "{text}");
    }

    /// All there are, once the kernel has been asked.
    fn names() -> BTreeSet<String> {
        let status = Status {
            maps: vec![MapUsage { map: "FLOWS_V4".into(), used: 1, capacity: 2 }],
            reasons: vec![ReasonCount { reason: "no_endpoints".into(), packets: 3 }],
            ..Status::default()
        };
        let metrics = Metrics::new();
        metrics.livez.count(StatusCode::OK);
        metrics.healthz.count(StatusCode::OK);
        metrics.queued(Timestamp::UNIX_EPOCH);
        metrics.synced(Timestamp::UNIX_EPOCH, Duration::ZERO);
        let text = metrics.text(Some(status), None).unwrap();
        let controller = crate::controller::metrics::Metrics::new();
        controller.set_pools([("main".into(), culvert_pools::PoolStatus::default())].into());
        let text = text + &controller.text().unwrap();
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples.filter_map(|line| line.split(['{', ' ']).next()).map(str::to_owned).collect()
    }

    /// The metrics that a text of expressions names.
    fn named(text: &str) -> BTreeSet<String> {
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        let ours = |word: &&str| ["culvert_", "kubeproxy_", "metallb_"].iter().any(|prefix| word.starts_with(prefix));
        words.filter(ours).map(str::to_owned).collect()
    }

    #[test]
    fn alerts_and_dashboard_name_metrics_that_there_are() {
        let names = names();
        let alerts = include_str!("../../../deploy/helm/culvert/files/alerts.yaml");
        let dashboard = include_str!("../../../deploy/grafana/culvert.json");
        for (what, text) in [("the alerts", alerts), ("the dashboard", dashboard)] {
            let named = named(text);
            assert!(named.len() > 5, "{what} name few metrics: {named:?}");
            let unknown: Vec<_> = named.difference(&names).collect();
            assert!(unknown.is_empty(), "{what} name {unknown:?}; there are {names:?}");
        }
    }

    #[test]
    fn alerts_name_reasons_that_there_are() {
        let alerts = include_str!("../../../deploy/helm/culvert/files/alerts.yaml");
        let reasons = alerts.split("reason=\"").skip(1).filter_map(|rest| rest.split('"').next());
        let unknown: Vec<_> = reasons.filter(|name| Reason::ALL.iter().all(|reason| reason.name() != *name)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
}
