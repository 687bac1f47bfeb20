//! What holds for any objects in any order: the state does not depend on the way, changes name all that they touch,
//! plans are well formed, and nothing panics.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod world;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use culvert_api::plan::{Audience, BackendPlan, BackendState, FrontendPlan, NodePlan, Protocol, ServicePlan, Verdict};
use culvert_model::{Model, Reason, ServiceKey};
use proptest::prelude::*;
use world::{Event, NODES, Object};

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(1000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    /// Every change names each Service whose plan it changed.
    #[test]
    fn touched_is_complete(config in world::config(), events in world::events(40)) {
        let mut model = Model::new(config);
        let mut before = plans(&model);
        for event in events {
            let touched = apply(&mut model, event.clone());
            let after = plans(&model);
            for key in before.keys().chain(after.keys()) {
                prop_assert!(
                    before.get(key) == after.get(key) || touched.contains(key),
                    "{event:?} changed {key} without naming it\nbefore: {:#?}\nafter: {:#?}",
                    before.get(key),
                    after.get(key),
                );
            }
            before = after;
        }
    }

    /// The state is that of a fresh model which sees the final objects alone, in any order.
    #[test]
    fn the_way_does_not_matter(
        config in world::config(),
        events in world::events(60),
        order in any::<u64>(),
    ) {
        let mut model = Model::new(config.clone());
        for event in events.clone() {
            apply(&mut model, event);
        }
        let mut last: Vec<Event> = last_of_each(&events);
        last.sort_by_key(|event| event.rank(order));
        let mut fresh = Model::new(config);
        for event in last {
            apply(&mut fresh, event);
        }
        for node in NODES {
            prop_assert_eq!(model.node_plan_of(node), fresh.node_plan_of(node));
        }
    }

    /// Batches that keep only the last change of each object lead to the same state.
    #[test]
    fn batches_do_not_matter(config in world::config(), events in world::events(60), size in 1_usize..20) {
        let (mut one_by_one, mut batched) = (Model::new(config.clone()), Model::new(config));
        for batch in events.chunks(size) {
            for event in batch {
                apply(&mut one_by_one, event.clone());
            }
            for event in last_of_each(batch) {
                apply(&mut batched, event);
            }
            prop_assert_eq!(one_by_one.node_plan(), batched.node_plan());
        }
    }

    /// A model that everything is taken from again is empty, and applying an object twice touches nothing.
    #[test]
    fn everything_goes_again(config in world::config(), events in world::events(40)) {
        let mut model = Model::new(config.clone());
        for event in events.clone() {
            apply(&mut model, event.clone());
            prop_assert_eq!(apply(&mut model, event), BTreeSet::new());
        }
        for event in last_of_each(&events) {
            apply(&mut model, event.gone());
        }
        prop_assert_eq!(state(&model), state(&Model::new(config)));
    }

    /// What every reader of a plan may rely on.
    #[test]
    fn plans_are_well_formed(config in world::config(), events in world::events(40)) {
        let mut model = Model::new(config);
        for event in events {
            apply(&mut model, event);
        }
        for node in NODES {
            check_node(&model.node_plan_of(node))?;
        }
        check_holders(&model)?;
    }

    /// Arbitrary text and numbers in every field.
    #[test]
    fn nonsense_does_not_panic(config in world::config(), changes in proptest::collection::vec(world::nonsense(), 1..20)) {
        let mut model = Model::new(config);
        for change in changes {
            model.apply(change);
        }
        for node in NODES {
            check_node(&model.node_plan_of(node))?;
        }
    }
}

fn apply(model: &mut Model, event: Event) -> BTreeSet<ServiceKey> {
    match event {
        Event::Change(_, change) => model.apply(change),
        Event::Links(addresses) => model.set_link_addresses(addresses),
    }
}

fn plans(model: &Model) -> BTreeMap<ServiceKey, ServicePlan> {
    let keys: Vec<_> = model.services().cloned().collect();
    keys.into_iter().map(|key| (key.clone(), model.plan(&key).unwrap())).collect()
}

fn last_of_each(events: &[Event]) -> Vec<Event> {
    let last: HashMap<Object, usize> = events.iter().enumerate().map(|(i, event)| (event.object(), i)).collect();
    let mut indices: Vec<_> = last.into_values().collect();
    indices.sort_unstable();
    indices.into_iter().map(|i| events[i].clone()).collect()
}

/// All that a model holds, but for the names that it remembers: those may outlive their use.
fn state(model: &Model) -> String {
    let text = format!("{model:?}");
    text[..text.find("names: ").unwrap()].to_owned()
}

fn check_node(plan: &NodePlan) -> Result<(), TestCaseError> {
    prop_assert!(plan.services.is_sorted_by_key(|service| (&service.namespace, &service.name)));
    let mut holders: HashMap<(IpAddr, u16, Protocol), (String, Vec<Audience>)> = HashMap::new();
    for service in &plan.services {
        let name = format!("{}/{}", service.namespace, service.name);
        if service.skipped.is_some() {
            prop_assert!(service.frontends.is_empty() && service.refused.is_empty() && service.addresses.is_empty());
        }
        prop_assert!(service.addresses.is_sorted_by(|a, b| a < b));
        let key = |row: &FrontendPlan| (row.address, row.port, row.protocol, row.audience);
        prop_assert!(service.frontends.is_sorted_by(|a, b| key(a) < key(b)));
        for row in &service.frontends {
            check_row(row, &plan.node)?;
            let holder = holders.entry((row.address, row.port, row.protocol)).or_insert_with(|| (name.clone(), vec![]));
            prop_assert_eq!(&holder.0, &name, "two Services have {}:{}", row.address, row.port);
            holder.1.push(row.audience);
        }
    }
    for (_, audiences) in holders.into_values() {
        let three = [Audience::Pods, Audience::Host, Audience::External];
        prop_assert!(audiences == [Audience::Any] || audiences == three, "{audiences:?}");
    }
    Ok(())
}

fn check_row(row: &FrontendPlan, node: &str) -> Result<(), TestCaseError> {
    prop_assert_eq!(row.verdict == Verdict::Balance, !row.backends.is_empty());
    if row.policy_local {
        prop_assert_eq!(row.verdict, Verdict::Balance);
        prop_assert!(row.backends.iter().chain(row.draining.iter()).all(|backend| backend.local));
    }
    if !row.draining.is_empty() {
        prop_assert!(row.backends.iter().all(|backend| backend.state == BackendState::Ready));
        prop_assert!(row.draining.iter().all(|backend| backend.state == BackendState::Terminating));
    }
    prop_assert!(row.port != 0 && !row.address.is_loopback() && !row.address.is_unspecified());
    prop_assert!(row.source_ranges.is_sorted_by(|a, b| a < b));
    for range in &row.source_ranges {
        prop_assert_eq!(range.addr().is_ipv4(), row.address.is_ipv4());
        prop_assert_eq!(range.trunc(), *range);
    }
    let key = |backend: &BackendPlan| (backend.address, backend.port);
    prop_assert!(row.backends.is_sorted_by(|a, b| key(a) < key(b)));
    prop_assert!(row.draining.is_sorted_by(|a, b| key(a) < key(b)));
    for backend in row.backends.iter().chain(row.draining.iter()) {
        prop_assert_eq!(backend.address.is_ipv4(), row.address.is_ipv4());
        prop_assert_eq!(backend.local, backend.node.as_deref() == Some(node));
        prop_assert!(backend.port != 0 && !backend.address.is_loopback() && !backend.address.is_unspecified());
    }
    Ok(())
}

/// Who serves an address and port is the same on all nodes that serve it (but node ports, whose addresses differ).
fn check_holders(model: &Model) -> Result<(), TestCaseError> {
    let mut holders: HashMap<(IpAddr, u16, Protocol), String> = HashMap::new();
    for node in NODES {
        for service in model.node_plan_of(node).services {
            let name = format!("{}/{}", service.namespace, service.name);
            for row in service.frontends {
                let known = holders.entry((row.address, row.port, row.protocol)).or_insert_with(|| name.clone());
                prop_assert_eq!(&*known, &name);
            }
        }
    }
    Ok(())
}

/// The worlds hold what the properties are about: every kind of row, and an object for each problem.
#[test]
fn the_world_is_varied() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut verdicts, mut problems, mut kinds) = (HashSet::new(), HashSet::new(), HashSet::new());
    for _ in 0..1000 {
        let config = world::config().new_tree(&mut runner).unwrap().current();
        let mut model = Model::new(config);
        for event in world::events(40).new_tree(&mut runner).unwrap().current() {
            apply(&mut model, event);
        }
        for service in model.node_plan().services {
            problems.extend(service.problems.into_iter().map(|problem| problem.reason));
            for row in service.frontends {
                kinds.insert(row.kind);
                verdicts.insert(format!("{:?} {:?} {:?}", row.verdict, row.topology, row.audience));
            }
        }
    }
    assert_eq!(kinds.len(), 4);
    assert!(verdicts.len() >= 12, "{verdicts:?}");
    for reason in Reason::ALL {
        assert!(problems.contains(&reason.name()), "no object of the tests has the problem {reason:?}");
    }
}
