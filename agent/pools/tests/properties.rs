//! What holds for any Services and pools: nobody gets what another has, nothing is given from outside a pool, nothing moves
//! without a cause, and the order of first arrival does not matter. And what the work costs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use culvert_model::ServiceKey;
use culvert_model::objects::{
    LoadBalancerIngress, LoadBalancerStatus, ObjectMeta, Service, ServicePort, ServiceSpec, ServiceStatus,
};
use culvert_pools::objects::{IpAddressPool, IpAddressPoolSpec, LabelSelector, ServiceAllocation};
use culvert_pools::{Allocator, Assignment, Change, Config, Outcome, Resource, Resources, Settings, StatusIs};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(500)
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Event {
    Service(Arc<Service>),
    Gone(ServiceKey),
    Pools(Arc<Config>),
}

impl Event {
    fn change(&self) -> Change {
        match self {
            Self::Service(service) => Change::Service(Arc::clone(service)),
            Self::Gone(key) => Change::ServiceGone(key.clone()),
            Self::Pools(config) => Change::Config(Arc::clone(config)),
        }
    }
}

/// Ranges that do not overlap, so that any choice of them makes a valid configuration.
const RANGES: [&str; 6] = [
    "192.0.2.0/31",
    "192.0.2.8-192.0.2.9",
    "198.51.100.255/32",
    "2001:db8::/127",
    "2001:db8::10/128",
    "203.0.113.254-203.0.114.1",
];

fn config() -> impl Strategy<Value = Arc<Config>> {
    let allocation = option::weighted(0.4, (0_i64..3, prop::bool::ANY, prop::bool::ANY)).prop_map(|allocation| {
        allocation.map(|(priority, of_one, of_web)| ServiceAllocation {
            priority,
            namespaces: if of_one { vec!["one".to_owned()] } else { vec![] },
            service_selectors: if of_web {
                let match_labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
                vec![LabelSelector { match_labels, match_expressions: vec![] }]
            } else {
                vec![]
            },
            ..ServiceAllocation::default()
        })
    });
    let settings = (option::of(any::<bool>()), any::<bool>(), allocation);
    // Each range goes to one of three pools, or to none.
    (vec(0_usize..4, RANGES.len()), vec(settings, 3)).prop_map(|(owners, settings)| {
        let pools = settings.into_iter().enumerate().filter_map(|(i, (auto_assign, avoid, service_allocation))| {
            let ranges = RANGES.iter().zip(&owners).filter(|(_, owner)| **owner == i).map(|(range, _)| *range);
            let addresses: Vec<String> = ranges.map(str::to_owned).collect();
            let spec = IpAddressPoolSpec { addresses, auto_assign, avoid_buggy_ips: avoid, service_allocation };
            let name = ["a", "b", "c"][i].to_owned();
            let metadata = ObjectMeta { name, namespace: "metallb-system".to_owned(), ..ObjectMeta::default() };
            (!spec.addresses.is_empty()).then(|| Resource::IpAddressPool(Arc::new(IpAddressPool { metadata, spec })))
        });
        Arc::new(Config::new(&pools.collect::<Resources>()).unwrap())
    })
}

const ADDRESSES: [&str; 6] = ["192.0.2.0", "192.0.2.9", "198.51.100.255", "2001:db8::", "2001:db8::10", "nonsense"];

const CLUSTER_IPS: [&[&str]; 5] =
    [&["10.0.0.1"], &["fd00::1"], &["10.0.0.1", "fd00::1"], &["fd00::1", "10.0.0.1"], &[]];

fn service() -> impl Strategy<Value = Arc<Service>> {
    let names = (select(&["one", "two"][..]), select(&["a", "b", "c", "d"][..]), option::of(0_i64..3));
    let annotation = prop_oneof![
        6 => Just(None),
        1 => select(&["a", "b", "nowhere"][..]).prop_map(|pool| Some(("address-pool", pool))),
        1 => select(&ADDRESSES[..]).prop_map(|address| Some(("loadBalancerIPs", address))),
    ];
    let share = option::weighted(0.5, select(&["k", "l", ""][..]));
    let kind = prop_oneof![8 => Just("LoadBalancer"), 1 => Just("ClusterIP")];
    let families = select(&CLUSTER_IPS[..]);
    let policy = option::of(select(&["SingleStack", "PreferDualStack", "RequireDualStack"][..]));
    let ports = vec(select(&[80, 443, 53][..]), 1..3);
    let status = option::weighted(0.2, vec(select(&ADDRESSES[..]), 1..3));
    let rest = (any::<bool>(), any::<bool>(), status);
    (names, annotation, share, kind, families, policy, ports, rest).prop_map(
        |((namespace, name, created), annotation, share, kind, families, policy, ports, (web, local, status))| {
            let annotations = annotation.into_iter().chain(share.map(|key| ("allow-shared-ip", key)));
            let metadata = ObjectMeta {
                name: name.to_owned(),
                namespace: namespace.to_owned(),
                creation_timestamp: created.map(|second| jiff::Timestamp::from_second(second).unwrap()),
                labels: if web { [("app".to_owned(), "web".to_owned())].into() } else { BTreeMap::new() },
                annotations: annotations.map(|(key, value)| (format!("metallb.io/{key}"), value.to_owned())).collect(),
                ..ObjectMeta::default()
            };
            let spec = ServiceSpec {
                kind: kind.to_owned(),
                cluster_ips: families.iter().map(|&ip| ip.to_owned()).collect(),
                ip_family_policy: policy.map(str::to_owned),
                external_traffic_policy: if local { "Local" } else { "Cluster" }.to_owned(),
                selector: if web { [("app".to_owned(), "web".to_owned())].into() } else { BTreeMap::new() },
                ports: ports.into_iter().map(|port| ServicePort { port, ..ServicePort::default() }).collect(),
                ..ServiceSpec::default()
            };
            let ingress = status.into_iter().flatten();
            let ingress = ingress.map(|ip| LoadBalancerIngress { ip: ip.to_owned(), ..LoadBalancerIngress::default() });
            let status = ServiceStatus { load_balancer: LoadBalancerStatus { ingress: ingress.collect() } };
            Arc::new(Service { metadata, spec, status })
        },
    )
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        8 => service().prop_map(Event::Service),
        2 => service().prop_map(|service| Event::Gone(service.key())),
        1 => config().prop_map(Event::Pools),
    ];
    vec(event, 1..60)
}

fn settings() -> impl Strategy<Value = Settings> {
    let status = select(&[StatusIs::Record, StatusIs::Declared][..]);
    status.prop_map(|status| Settings { class: None, status })
}

/// What is true at every moment.
fn check(
    allocator: &Allocator,
    config: &Config,
    services: &BTreeMap<ServiceKey, Arc<Service>>,
) -> Result<(), TestCaseError> {
    let mut users: HashMap<IpAddr, Vec<&Service>> = HashMap::new();
    let mut assigned: BTreeMap<&str, BTreeSet<IpAddr>> = BTreeMap::new();
    for (key, held) in allocator.assignments() {
        let service = services.get(key);
        prop_assert!(service.is_some_and(|service| service.spec.kind == "LoadBalancer"), "{key} is no LoadBalancer");
        let pool = config.pools.get(&held.pool).ok_or_else(|| TestCaseError::fail(format!("no pool {}", held.pool)))?;
        for address in &held.addresses {
            prop_assert!(pool.contains(*address), "{address} of {key} is not in pool {}", held.pool);
            users.entry(*address).or_default().extend(service.map(|service| &**service));
            assigned.entry(&held.pool).or_default().insert(*address);
        }
        prop_assert!(held.addresses.len() == 1 || held.addresses[0].is_ipv4() != held.addresses[1].is_ipv4());
    }
    for (address, users) in users {
        let key = |service: &Service| service.metadata.annotations.get("metallb.io/allow-shared-ip").cloned();
        let mut ports = BTreeSet::new();
        for user in &users {
            prop_assert!(users.len() == 1 || key(user).is_some_and(|key| !key.is_empty()), "{address} has no key");
            prop_assert_eq!(key(user), key(users[0]));
            prop_assert_eq!(&user.spec.external_traffic_policy, &users[0].spec.external_traffic_policy);
            let of_user: BTreeSet<i32> = user.spec.ports.iter().map(|port| port.port).collect();
            prop_assert!(of_user.into_iter().all(|port| ports.insert(port)), "{address} has a port twice");
        }
    }
    for (name, status) in allocator.pools() {
        let none = BTreeSet::new();
        let held = assigned.get(&*name).unwrap_or(&none);
        let count = |v4: bool| held.iter().filter(|address| address.is_ipv4() == v4).count().try_into().unwrap();
        prop_assert_eq!((status.assigned_ipv4, status.assigned_ipv6), (count(true), count(false)));
        prop_assert!(status.available_ipv4 >= 0 && status.available_ipv6 >= 0);
    }
    Ok(())
}

fn held(allocator: &Allocator) -> BTreeMap<ServiceKey, Assignment> {
    allocator.assignments().map(|(key, held)| (key.clone(), held.clone())).collect()
}

fn shuffle(events: &mut [Event], seed: u64) {
    events.sort_by_key(|event| {
        let mut hasher = DefaultHasher::new();
        (seed, format!("{event:?}")).hash(&mut hasher);
        hasher.finish()
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    /// No address twice unless shared, none from outside its pool; decisions name every change; what did not change does not
    /// move, but for those who had nothing.
    #[test]
    fn always(settings in settings(), first in config(), events in events(), sizes in vec(1_usize..6, 60)) {
        let mut allocator = Allocator::new(settings);
        let (mut config, mut services) = (Arc::clone(&first), BTreeMap::new());
        allocator.apply([Change::Config(first)]);
        let mut rest = &events[..];
        for size in sizes {
            let (batch, after) = rest.split_at(size.min(rest.len()));
            rest = after;
            let (mut touched, mut pools_changed) = (BTreeSet::new(), false);
            for event in batch {
                match event {
                    Event::Service(service) => {
                        touched.insert(service.key());
                        services.insert(service.key(), Arc::clone(service));
                    }
                    Event::Gone(key) => {
                        touched.insert(key.clone());
                        services.remove(key);
                    }
                    Event::Pools(other) => {
                        pools_changed = true;
                        config = Arc::clone(other);
                    }
                }
            }
            let before = held(&allocator);
            let settled = allocator.apply(batch.iter().map(Event::change));
            check(&allocator, &config, &services)?;
            let now = held(&allocator);
            let told: BTreeMap<_, _> = settled.decisions.into_iter().map(|one| (one.service, one.outcome)).collect();
            for key in before.keys().chain(now.keys()) {
                let (old, new) = (before.get(key), now.get(key));
                if old != new {
                    let outcome = told.get(key);
                    prop_assert!(outcome.is_some(), "{key} changed and nobody was told");
                    let told_held = match outcome { Some(Outcome::Holds(held)) => Some(held), _ => None };
                    prop_assert_eq!(told_held, new);
                }
                if let (Some(old), false, false) = (old, touched.contains(key), pools_changed) {
                    let kept = new.is_some_and(|new| new.addresses.starts_with(&old.addresses));
                    prop_assert!(kept, "{key} moved from {old:?} to {new:?} without a cause");
                }
            }
        }
    }

    /// The order and the parts in which a first list comes do not matter.
    #[test]
    fn first_arrival(settings in settings(), config in config(), services in vec(service(), 1..12), seed in any::<u64>()) {
        let unique: BTreeMap<ServiceKey, Arc<Service>> =
            services.into_iter().map(|service| (service.key(), service)).collect();
        let mut events: Vec<Event> = unique.into_values().map(Event::Service).collect();
        events.push(Event::Pools(config));
        let mut one = Allocator::new(settings.clone());
        one.apply(events.iter().map(Event::change));
        shuffle(&mut events, seed);
        let mut other = Allocator::new(settings);
        for event in &events {
            other.absorb(event.change());
        }
        other.settle();
        prop_assert_eq!(held(&one), held(&other));
    }

    /// A restart with what was written into the statuses changes nothing, and neither does one with the record beside them.
    #[test]
    fn restart(first in config(), events in events()) {
        let mut allocator = Allocator::new(Settings::default());
        let (mut config, mut services) = (Arc::clone(&first), BTreeMap::new());
        allocator.apply([Change::Config(first)]);
        for event in &events {
            match event {
                Event::Service(service) => drop(services.insert(service.key(), Arc::clone(service))),
                Event::Gone(key) => drop(services.remove(key)),
                Event::Pools(other) => config = Arc::clone(other),
            }
            allocator.apply([event.change()]);
        }
        let before = held(&allocator);
        let written = |service: &Arc<Service>, with: bool| {
            let mut service = Service::clone(service);
            let addresses = before.get(&service.key()).filter(|_| with).map(|held| held.addresses.clone());
            let ingress = addresses.into_iter().flatten();
            let ingress = ingress.map(|ip| LoadBalancerIngress { ip: ip.to_string(), ..LoadBalancerIngress::default() });
            service.status.load_balancer.ingress = ingress.collect();
            Change::Service(Arc::new(service))
        };
        let keeps = |now: &BTreeMap<ServiceKey, Assignment>| {
            before.iter().all(|(key, old)| now.get(key).is_some_and(|new| new.addresses.starts_with(&old.addresses)))
        };
        let mut by_status = Allocator::new(Settings::default());
        by_status.apply(services.values().map(|service| written(service, true)).chain([Change::Config(Arc::clone(&config))]));
        prop_assert!(keeps(&held(&by_status)), "{before:?} became {:?}", held(&by_status));
        let mut by_record = Allocator::new(Settings::default());
        by_record.restore(before.clone());
        by_record.apply(services.values().map(|service| written(service, false)).chain([Change::Config(config)]));
        prop_assert!(keeps(&held(&by_record)), "{before:?} became {:?}", held(&by_record));
    }
}

fn pool(name: &str, addresses: &[&str]) -> Resource {
    let metadata =
        ObjectMeta { name: name.to_owned(), namespace: "metallb-system".to_owned(), ..ObjectMeta::default() };
    let addresses = addresses.iter().map(|&text| text.to_owned()).collect();
    let spec = IpAddressPoolSpec { addresses, avoid_buggy_ips: true, ..IpAddressPoolSpec::default() };
    Resource::IpAddressPool(Arc::new(IpAddressPool { metadata, spec }))
}

fn plain(i: usize, port: i32) -> Change {
    let metadata = ObjectMeta { name: format!("s{i:05}"), namespace: "default".to_owned(), ..ObjectMeta::default() };
    let spec = ServiceSpec {
        kind: "LoadBalancer".to_owned(),
        cluster_ips: vec!["10.0.0.1".to_owned(), "fd00::1".to_owned()],
        ip_family_policy: Some("RequireDualStack".to_owned()),
        ports: vec![ServicePort { port, ..ServicePort::default() }],
        ..ServiceSpec::default()
    };
    Change::Service(Arc::new(Service { metadata, spec, ..Service::default() }))
}

fn key(i: usize) -> ServiceKey {
    ServiceKey { namespace: "default".to_owned(), name: format!("s{i:05}") }
}

/// 10,000 Services out of a /8 and a /64: the work is in proportion to them, and a change later costs one.
#[test]
fn the_work_is_in_proportion() {
    const MANY: usize = 10_000;
    let resources: Resources = [pool("p", &["10.0.0.0/8", "2001:db8::/64"])].into_iter().collect();
    let mut allocator = Allocator::new(Settings::default());
    let start = Instant::now();
    allocator.absorb(Change::Config(Arc::new(Config::new(&resources).unwrap())));
    let settled = allocator.apply((0..MANY).map(|i| plain(i, 80)));
    eprintln!("{MANY} Services have their addresses after {:?}", start.elapsed());
    assert_eq!(settled.decisions.len(), MANY);
    assert_eq!(allocator.assignments().count(), MANY);
    let work = allocator.work();
    assert!(work.services <= 2 * MANY as u64, "{work:?}");
    assert!(work.addresses <= 4 * MANY as u64, "{work:?}");

    // One that changes, one that goes, one that comes.
    let changes = [plain(77, 443), Change::ServiceGone(key(78)), plain(MANY, 80)];
    let settled = allocator.apply(changes);
    let moved: Vec<_> = settled.decisions.iter().map(|decision| decision.service.name.as_str()).collect();
    assert_eq!(moved, ["s00078", "s10000"]);
    let after = allocator.work();
    assert!(after.services - work.services <= 6, "{work:?} {after:?}");
    assert!(after.addresses - work.addresses <= 6, "{work:?} {after:?}");
}

/// A full pool with many who wait: an address that comes free is offered to one of them.
#[test]
fn many_who_wait_cost_nothing() {
    const MANY: usize = 5_000;
    let resources: Resources = [pool("p", &["10.0.0.0/24", "2001:db8::/64"])].into_iter().collect();
    let mut allocator = Allocator::new(Settings::default());
    allocator.absorb(Change::Config(Arc::new(Config::new(&resources).unwrap())));
    allocator.apply((0..MANY).map(|i| plain(i, 80)));
    assert_eq!(allocator.assignments().count(), 254);
    let before = allocator.work();
    let settled = allocator.apply([Change::ServiceGone(key(0))]);
    let moved: Vec<_> = settled.decisions.iter().map(|decision| decision.service.name.as_str()).collect();
    assert_eq!(moved, ["s00000", "s00254"]);
    let after = allocator.work();
    assert!(after.services - before.services <= 2, "{before:?} {after:?}");
    assert!(after.addresses - before.addresses <= 4, "{before:?} {after:?}");
}
