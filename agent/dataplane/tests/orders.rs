//! Whatever the order and batching of changes, whatever fails on the way, and wherever the agent is killed: in the end the maps mean
//! what the last plans say, and nothing is left over.

#![allow(clippy::unwrap_used)] // a test fails by panicking, its helpers too

mod support;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    time::Duration,
};

use culvert_abi::{MAGLEV_SIZES, address, audience, backend, frontend, verdict, view};
use culvert_api::plan::{
    Audience, BackendPlan, BackendState, ClientAddress, FrontendKind, FrontendPlan, Protocol, ServicePlan, Verdict,
};
use culvert_dataplane::{
    codec::{At, Family, FrontendAt, protocol_number},
    fake::{FakeStore, Fault, Sizes},
    ids::identity,
    maglev::{self, Member},
    reconcile::Reconciler,
    store::Store,
};
use proptest::{prelude::*, strategy::ValueTree};
use support::{Meaning, State, View, at, backend_plan, service, state, watched::Watched};

const SERVICES: usize = 4;

/// Small maps, for reading them whole takes most of the time.
const SIZES: Sizes = Sizes {
    addresses: 64,
    frontends: 128,
    backends: 1_024,
    ranges: 64,
    services: 256,
    flows: 64,
    tables: 512,
    slab_pages: 512,
};

// ===== plans =====

/// One frontend of a random plan.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools)] // independent choices
struct Front {
    address: usize,
    port: u16,
    protocol: Protocol,
    named: bool,
    split: bool,
    local: Vec<u8>,
    ranged: bool,
    affinity: bool,
    replaced: bool,
}

#[derive(Clone, Debug)]
struct Spec {
    fronts: Vec<Front>,
    backends: Vec<u8>,
    draining: Vec<u8>,
    terminating: bool,
    refuse: bool,
}

const ADDRESSES: [(&str, FrontendKind); 5] = [
    ("10.96.0.1", FrontendKind::ClusterIP),
    ("192.0.2.1", FrontendKind::NodePort),
    ("203.0.113.7", FrontendKind::LoadBalancer),
    ("2001:db8::1", FrontendKind::LoadBalancer),
    ("fd00::1", FrontendKind::ClusterIP),
];

fn front() -> impl Strategy<Value = Front> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let local = prop::collection::vec(1_u8..6, 0..3);
    (0..ADDRESSES.len(), 80_u16..83, protocol, flags, local).prop_map(|(address, port, protocol, flags, local)| {
        let (named, split, ranged, affinity, replaced) = flags;
        Front { address, port, protocol, named, split, local, ranged, affinity, replaced }
    })
}

fn spec() -> impl Strategy<Value = Option<Spec>> {
    let spec = (
        prop::collection::vec(front(), 0..4),
        prop::collection::vec(1_u8..16, 0..14),
        prop::collection::vec(1_u8..16, 0..4),
        any::<bool>(),
        any::<bool>(),
    );
    let spec = spec.prop_map(|(fronts, backends, draining, terminating, refuse)| Spec {
        fronts,
        backends,
        draining,
        terminating,
        refuse,
    });
    prop_oneof![1 => Just(None), 5 => spec.prop_map(Some)]
}

/// The plans of one moment: each key has one Service, the first that claims it.
type Moment = Vec<Option<ServicePlan>>;

fn moment() -> impl Strategy<Value = Moment> {
    prop::collection::vec(spec(), SERVICES).prop_map(|specs| {
        let mut taken = HashSet::new();
        let plans = specs.into_iter().enumerate();
        plans.map(|(index, spec)| spec.map(|spec| plan(index, &spec, &mut taken))).collect()
    })
}

fn plan(index: usize, spec: &Spec, taken: &mut HashSet<(usize, u16, Protocol)>) -> ServicePlan {
    let mut plan = service(&format!("s{index}"));
    for front in &spec.fronts {
        if !taken.insert((front.address, front.port, front.protocol)) {
            continue;
        }
        let (address, kind) = ADDRESSES[front.address];
        let address: IpAddr = address.parse().unwrap();
        let all = backends(address, &spec.backends, spec.terminating);
        let local = backends(address, &front.local, spec.terminating);
        let range = if address.is_ipv4() { "198.51.100.0/24" } else { "2001:db8:1::/48" };
        let draining = |listed: &[BackendPlan]| {
            let all = self::backends(address, &spec.draining, spec.terminating).into_iter();
            all.filter(|backend| !listed.contains(backend)).collect()
        };
        let row = |audience, backends: &[BackendPlan]| FrontendPlan {
            protocol: front.protocol,
            audience,
            policy_local: audience == Audience::External,
            source_ranges: if front.ranged { vec![range.parse().unwrap()] } else { vec![] },
            affinity_seconds: front.affinity.then_some(10_800),
            client_address: if front.replaced { ClientAddress::Replaced } else { ClientAddress::Kept },
            draining: if backends.is_empty() { [].into() } else { draining(backends) },
            port_name: if front.named { format!("p{}", front.port) } else { String::new() },
            ..support::frontend(kind, &address.to_string(), front.port, backends)
        };
        if front.split {
            let rows = [row(Audience::Pods, &all), row(Audience::Host, &all), row(Audience::External, &local)];
            plan.frontends.extend(rows);
        } else {
            plan.frontends.push(row(Audience::Any, &all));
        }
        if spec.refuse {
            plan.refused.push(address);
        }
    }
    plan
}

fn backends(family_of: IpAddr, numbers: &[u8], terminating: bool) -> Vec<BackendPlan> {
    let address = |n: u8| -> IpAddr {
        if family_of.is_ipv4() { [10, 0, 0, n].into() } else { format!("2001:db8:2::{n:x}").parse().unwrap() }
    };
    let numbers: BTreeSet<u8> = numbers.iter().copied().collect();
    let numbers = numbers.into_iter();
    numbers
        .map(|n| BackendPlan {
            local: n % 2 == 0,
            state: if terminating && n % 3 == 0 { BackendState::Terminating } else { BackendState::Ready },
            ..backend_plan(address(n), 8080)
        })
        .collect()
}

// ===== what the plans mean, said once more =====

/// The lists of each Service port, by its identity and by traffic policy; those of its frontends are taken together.
type Lists = BTreeMap<(u64, bool), BTreeSet<At>>;

fn lists(plans: &Moment) -> Lists {
    let mut lists = Lists::new();
    for plan in plans.iter().flatten() {
        for row in plan.frontends.iter().filter(|row| !row.backends.is_empty()) {
            lists.entry((port(plan, row), row.policy_local)).or_default().extend(row.backends.iter().map(place));
        }
    }
    lists
}

fn port(plan: &ServicePlan, row: &FrontendPlan) -> u64 {
    identity(plan, &row.port_name, row.protocol, Family::of(row.address))
}

fn expected(plans: &Moment) -> State {
    let lists = lists(plans);
    let mut state = State::default();
    for plan in plans.iter().flatten() {
        for row in &plan.frontends {
            let at = FrontendAt { address: row.address, port: row.port, proto: protocol_number(row.protocol) };
            let flags = |backend: &BackendPlan| flags(backend, port(plan, row), &lists);
            let nothing = View { verdict: verdict::DROP, flags: 0, backends: vec![], slots: vec![] };
            let meaning = state.frontends.entry(at).or_insert_with(|| Meaning {
                flags: match row.kind {
                    FrontendKind::ClusterIP => frontend::CLUSTER_IP,
                    FrontendKind::NodePort => frontend::NODE_PORT,
                    _ => frontend::EXTERNAL,
                },
                affinity_seconds: row.affinity_seconds.unwrap_or(0),
                ranges: row.source_ranges.clone(),
                views: [nothing.clone(), nothing.clone(), nothing.clone()],
            });
            let audiences = match row.audience {
                Audience::Any => vec![audience::PODS, audience::HOST, audience::EXTERNAL],
                Audience::Pods => vec![audience::PODS],
                Audience::Host => vec![audience::HOST],
                Audience::External => vec![audience::EXTERNAL],
            };
            for audience in audiences {
                let refused_host = audience == audience::HOST && !row.source_ranges.is_empty();
                meaning.views[audience] = if refused_host { nothing.clone() } else { expected_view(row, flags) };
            }
            *state.addresses.entry(row.address).or_default() |= address::FRONTEND;
            for backend in row.backends.iter().chain(row.draining.iter()) {
                state.alive.insert((port(plan, row), place(backend), flags(backend)));
            }
        }
        for address in &plan.refused {
            *state.addresses.entry(*address).or_default() |= address::REFUSE;
        }
    }
    state
}

fn expected_view(row: &FrontendPlan, flags: impl Fn(&BackendPlan) -> u16) -> View {
    let members: Vec<Member> =
        row.backends.iter().map(|b| Member { address: b.address, port: b.port, weight: 1 }).collect();
    let class = if row.kind == FrontendKind::ClusterIP { 0 } else { maglev::class(members.len()) };
    let slots = maglev::slots(&members, MAGLEV_SIZES[usize::from(class)]);
    let client = if row.client_address == ClientAddress::Replaced { view::REPLACE_CLIENT } else { 0 };
    let list = if row.policy_local { view::LOCAL_LIST } else { 0 };
    View {
        verdict: if row.verdict == Verdict::Balance { verdict::BALANCE } else { verdict::REJECT },
        flags: client | list,
        backends: row.backends.iter().map(|b| (place(b), flags(b))).collect(),
        slots: slots.into_iter().map(|slot| place(&row.backends[usize::from(slot)])).collect(),
    }
}

fn place(backend: &BackendPlan) -> At {
    At { address: backend.address, port: backend.port }
}

fn flags(plan: &BackendPlan, port: u64, lists: &Lists) -> u16 {
    let local = if plan.local { backend::LOCAL } else { 0 };
    let terminating = if plan.state == BackendState::Terminating { backend::TERMINATING } else { 0 };
    let list = |policy_local| lists.get(&(port, policy_local));
    let draining = ![false, true].into_iter().filter_map(list).any(|list| list.contains(&place(plan)));
    let absent = |policy_local, bit| match list(policy_local) {
        Some(list) if !list.contains(&place(plan)) => bit,
        None if draining => bit,
        _ => 0,
    };
    let absent = absent(false, backend::NOT_IN_CLUSTER_LIST) | absent(true, backend::NOT_IN_LOCAL_LIST);
    backend::ALIVE | local | terminating | absent
}

// ===== the run =====

/// What happens while one moment's plans replace the last one's.
#[derive(Clone, Debug)]
enum Mishap {
    None,
    /// A write fails after so many, and goes on failing until the next try.
    Fails(u64),
    /// One write fails; the Service is tried again later.
    FailsOnce(u64),
    /// The agent is killed after so many writes, and the next one takes over.
    Killed(u64),
}

fn mishap() -> impl Strategy<Value = Mishap> {
    prop_oneof![
        3 => Just(Mishap::None),
        1 => (0_u64..40).prop_map(Mishap::Fails),
        1 => (0_u64..40).prop_map(Mishap::FailsOnce),
        1 => (0_u64..40).prop_map(Mishap::Killed)
    ]
}

struct Run {
    reconciler: Reconciler<FakeStore>,
    plans: Moment,
    now: Duration,
}

impl Run {
    /// Brings in the plans that changed, in an order given by `order`.
    fn change(&mut self, next: &Moment, order: &[usize]) {
        let before = std::mem::replace(&mut self.plans, next.clone());
        for index in order {
            match (&before[*index], &next[*index]) {
                (before, Some(plan)) if before.as_ref() != Some(plan) => drop(self.reconciler.upsert(plan, self.now)),
                (Some(plan), None) => drop(self.reconciler.remove(&plan.key(), self.now)),
                _ => {}
            }
            self.now += Duration::from_millis(300);
            drop(self.reconciler.tick(self.now));
        }
    }

    /// A new agent finds the maps, and is told everything.
    fn restart(&mut self, order: &[usize]) {
        let mut store = std::mem::take(self.reconciler.store_mut());
        store.set_fault(None);
        self.reconciler = Reconciler::restore(store, self.now).unwrap();
        for plan in order.iter().filter_map(|index| self.plans[*index].as_ref()) {
            self.reconciler.upsert(plan, self.now).unwrap();
        }
        let wanted = self.plans.iter().flatten().map(ServicePlan::key).collect();
        assert!(self.reconciler.prune(&wanted, self.now).is_empty());
        assert!(self.reconciler.settled());
    }

    /// Waits until what failed is tried again.
    fn recover(&mut self) {
        self.reconciler.store_mut().set_fault(None);
        self.now += Duration::from_secs(100);
        for (key, result) in self.reconciler.retry(self.now) {
            assert!(result.is_ok(), "{key}: {result:?}");
        }
        self.reconciler.tick(self.now).unwrap();
        assert!(self.reconciler.settled());
    }

    /// Nothing is kept that nobody needs.
    fn assert_no_leak(&mut self) {
        for plan in std::mem::take(&mut self.plans).iter().flatten() {
            self.reconciler.remove(&plan.key(), self.now).unwrap();
        }
        for _ in 0..20 {
            self.now += Duration::from_secs(6);
            self.reconciler.tick(self.now).unwrap();
        }
        for usage in self.reconciler.view_usage() {
            assert_eq!(usage.used, 0, "{usage:?}");
        }
        let store = self.reconciler.store();
        for map in Family::ALL.iter().flat_map(|family| [family.addresses(), family.frontends(), family.ranges()]) {
            assert!(store.is_empty(map), "{map:?}");
        }
        assert!((0..store.table_capacity()).all(|index| store.table(index) == 0));
        assert_eq!(self.reconciler.deadline(), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_last_plans_hold(
        moments in prop::collection::vec((moment(), Just((0..SERVICES).collect::<Vec<_>>()).prop_shuffle(), mishap()), 1..6),
    ) {
        let reconciler = Reconciler::restore(FakeStore::new(SIZES), at(0)).unwrap();
        let mut run = Run { reconciler, plans: vec![None; SERVICES], now: at(0) };
        assert!(run.reconciler.prune(&HashSet::new(), at(0)).is_empty());
        for (plans, order, mishap) in &moments {
            match mishap {
                Mishap::None => run.change(plans, order),
                Mishap::Fails(after) => {
                    run.reconciler.store_mut().set_fault(Some(Fault::Fails(*after)));
                    run.change(plans, order);
                    run.recover();
                }
                Mishap::FailsOnce(after) => {
                    run.reconciler.store_mut().set_fault(Some(Fault::FailsOnce(*after)));
                    run.change(plans, order);
                    run.recover();
                }
                Mishap::Killed(after) => {
                    run.reconciler.store_mut().set_fault(Some(Fault::Killed(*after)));
                    run.change(plans, order);
                    run.restart(order);
                }
            }
            prop_assert_eq!(state(run.reconciler.store()), expected(plans));
            prop_assert_eq!(run.reconciler.drift().unwrap(), vec![]);
        }
        // A restart without a change writes nothing.
        let writes = run.reconciler.store().writes();
        let order: Vec<usize> = (0..SERVICES).collect();
        run.restart(&order);
        prop_assert_eq!(run.reconciler.store().writes(), writes);
        run.assert_no_leak();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// Between any two writes, also where one fails and all before it are undone, every packet that is served leads to a live
    /// backend.
    #[test]
    fn traffic_in_flight_is_served_at_every_step(
        moments in prop::collection::vec((moment(), prop::option::of(0_u64..40)), 2..5),
    ) {
        let mut reconciler = Reconciler::restore(Watched(FakeStore::new(SIZES)), at(0)).unwrap();
        let mut now = at(0);
        for (plans, fails) in &moments {
            reconciler.store_mut().0.set_fault(fails.map(Fault::FailsOnce));
            for (index, plan) in plans.iter().enumerate() {
                now += Duration::from_millis(400);
                let result = match plan {
                    Some(plan) => reconciler.upsert(plan, now),
                    None => reconciler.remove(&service(&format!("s{index}")).key(), now),
                };
                prop_assert!(result.is_ok() || fails.is_some());
                drop(reconciler.tick(now));
            }
        }
    }
}

/// A check of the test itself: that the plans above are of every kind.
#[test]
fn the_plans_are_of_every_kind() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for _ in 0..200 {
        let moment = moment().new_tree(&mut runner).unwrap().current();
        for row in moment.iter().flatten().flat_map(|plan| &plan.frontends) {
            *kinds.entry(if row.backends.is_empty() { "empty" } else { "balanced" }).or_default() += 1;
            *kinds.entry(if row.address.is_ipv4() { "v4" } else { "v6" }).or_default() += 1;
            *kinds.entry(if row.source_ranges.is_empty() { "open" } else { "ranged" }).or_default() += 1;
            *kinds.entry(if row.audience == Audience::Any { "any" } else { "split" }).or_default() += 1;
        }
    }
    assert!(kinds.len() == 8 && kinds.values().all(|count| *count > 50), "{kinds:?}");
}
