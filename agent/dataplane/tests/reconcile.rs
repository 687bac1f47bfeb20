//! The reconciler on the fake kernel, case by case.

#![allow(clippy::unwrap_used)] // a test fails by panicking, its helpers too

mod support;

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
};

use culvert_abi::{address, audience, backend, verdict, view};
use culvert_api::plan::{Audience, BackendPlan, BackendState, FrontendKind, ServicePlan, Verdict};
use culvert_dataplane::{
    codec::{self, Family},
    fake::{FakeStore, Sizes},
    ledger::Cause,
    reconcile::Reconciler,
    store::Store,
};
use support::{at, backends, frontend, rows, service, state};

fn fresh() -> Reconciler<FakeStore> {
    Reconciler::restore(FakeStore::default(), at(0)).unwrap()
}

/// A Service with a ClusterIP and a NodePort.
fn web(numbers: impl IntoIterator<Item = u8>) -> ServicePlan {
    let backends = backends(numbers);
    let mut plan = service("web");
    plan.frontends = vec![
        frontend(FrontendKind::ClusterIP, "10.96.0.1", 80, &backends),
        frontend(FrontendKind::NodePort, "192.0.2.1", 30080, &backends),
    ];
    plan.refused = vec!["10.96.0.1".parse().unwrap()];
    plan
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn addresses(view: &support::View) -> Vec<String> {
    view.backends.iter().map(|(at, _)| at.address.to_string()).collect()
}

#[test]
fn a_service_is_programmed_and_removed() {
    let mut reconciler = fresh();
    reconciler.upsert(&web(1..=3), at(0)).unwrap();
    let programmed = state(reconciler.store());
    assert_eq!(programmed.frontends.len(), 2);
    let (cluster_ip, node_port) =
        (&programmed.frontends.values().next().unwrap(), programmed.frontends.values().last());
    assert_eq!(addresses(&cluster_ip.views[audience::PODS]), ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    assert!(cluster_ip.views[audience::PODS].slots.is_empty(), "a ClusterIP needs no slots");
    assert_eq!(node_port.unwrap().views[audience::EXTERNAL].slots.len(), 5_003);
    assert_eq!(programmed.addresses[&ip("10.96.0.1")], address::FRONTEND | address::REFUSE);

    reconciler.remove(&web([]).key(), at(1)).unwrap();
    assert_eq!(state(reconciler.store()), support::State::default());
    reconciler.remove(&web([]).key(), at(1)).unwrap();
}

#[test]
fn nothing_changed_nothing_written() {
    let mut reconciler = fresh();
    reconciler.upsert(&web(1..=3), at(0)).unwrap();
    let writes = reconciler.store().writes();
    reconciler.upsert(&web(1..=3), at(1)).unwrap();
    assert_eq!(reconciler.store().writes(), writes);
}

#[test]
fn an_endpoint_that_leaves_costs_its_row_and_the_tables() {
    let mut reconciler = fresh();
    reconciler.upsert(&web(1..=3), at(0)).unwrap();
    let frontends = reconciler.store().len(Family::V4.frontends());
    let writes = reconciler.store().writes();
    reconciler.upsert(&web([1, 3]), at(1)).unwrap();
    // Two slices, two descriptors, one backend.
    assert_eq!(reconciler.store().writes() - writes, 5);
    assert_eq!(reconciler.store().len(Family::V4.frontends()), frontends);
}

#[test]
fn a_backend_that_comes_back_is_another_one() {
    let mut reconciler = fresh();
    let find = |store: &FakeStore| {
        let mut found = vec![];
        let read = &mut |_: &[u8], value: &[u8]| {
            let row = codec::decode_backend(Family::V4, value);
            if row.flags != 0 && row.address.to_string() == "10.0.0.2" {
                found.push(row);
            }
        };
        store.for_each(Family::V4.backends(), read).unwrap();
        found
    };
    reconciler.upsert(&web([1, 2]), at(0)).unwrap();
    assert_eq!(find(reconciler.store()).len(), 1);
    reconciler.upsert(&web([1]), at(1)).unwrap();
    assert_eq!(find(reconciler.store()), []);
    reconciler.upsert(&web([1, 2]), at(2)).unwrap();
    assert_eq!(find(reconciler.store()).len(), 1);
}

#[test]
fn the_last_endpoint_leaves_a_reject() {
    let mut reconciler = fresh();
    reconciler.upsert(&web([1]), at(0)).unwrap();
    reconciler.upsert(&web([]), at(1)).unwrap();
    let state = state(reconciler.store());
    assert!(state.alive.is_empty());
    assert!(state.frontends.values().all(|row| row.views.iter().all(|view| view.verdict == verdict::REJECT)));
}

#[test]
fn three_audiences_three_views() {
    let mut reconciler = fresh();
    let mut plan = service("local");
    for audience in [Audience::Pods, Audience::Host, Audience::External] {
        let local = backends(if audience == Audience::External { 1..=1 } else { 1..=4 });
        let mut row = frontend(FrontendKind::LoadBalancer, "203.0.113.7", 443, &local);
        row.audience = audience;
        plan.frontends.push(row);
    }
    plan.frontends[2].verdict = Verdict::Drop;
    plan.frontends[2].backends = vec![].into();
    reconciler.upsert(&plan, at(0)).unwrap();
    let state = state(reconciler.store());
    let views = &state.frontends.values().next().unwrap().views;
    assert_eq!(addresses(&views[audience::PODS]).len(), 4);
    assert_eq!(views[audience::PODS], views[audience::HOST]);
    assert_eq!(views[audience::EXTERNAL].verdict, verdict::DROP);
}

/// A Service whose ClusterIP has the cluster list, and its LoadBalancer address the local list.
fn two_lists(cluster: &[u8], local: &[u8]) -> ServicePlan {
    let list = |numbers: &[u8]| backends(numbers.iter().copied());
    let mut plan = service("local");
    plan.frontends = vec![
        frontend(FrontendKind::ClusterIP, "10.96.0.1", 80, &list(cluster)),
        frontend(FrontendKind::LoadBalancer, "203.0.113.7", 80, &list(local)),
    ];
    plan.frontends[1].policy_local = true;
    plan
}

/// What the rows of all backends say beside that they are alive, by address.
fn absent(reconciler: &Reconciler<FakeStore>) -> Vec<u16> {
    state(reconciler.store()).alive.iter().map(|(_, _, flags)| flags & !backend::ALIVE).collect()
}

#[test]
fn a_backend_says_in_which_list_it_is_not() {
    const CLUSTER: u16 = backend::NOT_IN_CLUSTER_LIST;
    const LOCAL: u16 = backend::NOT_IN_LOCAL_LIST;
    let mut reconciler = fresh();
    let cases: [(&[u8], &[u8], &[u16]); 6] = [
        (&[1, 2], &[2, 3], &[LOCAL, 0, CLUSTER]),
        // It leaves one list, stays in the other, and comes back.
        (&[1, 2], &[3], &[LOCAL, LOCAL, CLUSTER]),
        (&[1, 2], &[2, 3], &[LOCAL, 0, CLUSTER]),
        // With one list there is nothing to say.
        (&[1, 2], &[], &[0, 0]),
        (&[], &[2, 3], &[0, 0]),
        (&[1, 2], &[1, 2], &[0, 0]),
    ];
    for (cluster, local, wanted) in cases {
        reconciler.upsert(&two_lists(cluster, local), at(0)).unwrap();
        assert_eq!(absent(&reconciler), wanted, "{cluster:?} {local:?}");
        assert_eq!(reconciler.drift().unwrap(), vec![], "{cluster:?} {local:?}");
    }
    let state = state(reconciler.store());
    let lists = state.frontends.values().map(|row| row.views[audience::EXTERNAL].flags & view::LOCAL_LIST);
    assert_eq!(lists.collect::<Vec<u8>>(), [0, view::LOCAL_LIST]);
}

#[test]
fn a_backend_that_drains_is_alive_and_in_no_list() {
    const IN_NO_LIST: u16 = backend::NOT_IN_CLUSTER_LIST | backend::NOT_IN_LOCAL_LIST;
    let mut reconciler = fresh();
    let plan = |listed: &[u8], draining: &[u8]| {
        let list = backends(listed.iter().copied());
        let mut plan = service("ends");
        let drain = backends(draining.iter().copied()).into_iter();
        plan.frontends = vec![frontend(FrontendKind::ClusterIP, "10.96.0.1", 80, &list)];
        plan.frontends[0].draining =
            drain.map(|backend| BackendPlan { state: BackendState::Terminating, ..backend }).collect();
        plan
    };
    let ids = |reconciler: &Reconciler<FakeStore>| {
        let views = reconciler.view_backends(None, at(0)).unwrap();
        views
            .into_iter()
            .map(|backend| (backend.address.to_string(), backend.id, backend.generation))
            .collect::<Vec<_>>()
    };
    reconciler.upsert(&plan(&[1, 2], &[]), at(0)).unwrap();
    let before = ids(&reconciler);
    reconciler.upsert(&plan(&[2], &[1]), at(0)).unwrap();
    // The same row, for flows name it; and nobody is sent there any more.
    assert_eq!(ids(&reconciler), before);
    assert_eq!(absent(&reconciler), [IN_NO_LIST | backend::TERMINATING, 0]);
    assert_eq!(reconciler.drift().unwrap(), vec![]);
    let state = state(reconciler.store());
    let listed = addresses(&state.frontends.values().next().unwrap().views[audience::PODS]);
    assert_eq!(listed.len(), 1);
    reconciler.upsert(&plan(&[2], &[]), at(0)).unwrap();
    assert_eq!(ids(&reconciler), before[1..]);
}

#[test]
fn rows_of_an_agent_that_did_not_know_the_lists_are_written_anew() {
    let plan = two_lists(&[1, 2], &[2, 3]);
    let mut first = fresh();
    first.upsert(&plan, at(0)).unwrap();
    let wanted = absent(&first);
    let mut store = first.into_store();
    for (map, key, value) in rows(&store) {
        if map == Family::V4.backends() {
            let row = codec::decode_backend(Family::V4, &value);
            let flags = row.flags & !(backend::NOT_IN_CLUSTER_LIST | backend::NOT_IN_LOCAL_LIST);
            store.put(map, &key, &codec::backend_value(codec::BackendRow { flags, ..row })).unwrap();
        }
    }
    let mut second = Reconciler::restore(store, at(10)).unwrap();
    assert_eq!(absent(&second), [0, 0, 0]);
    second.upsert(&plan, at(10)).unwrap();
    assert_eq!(absent(&second), wanted);
}

#[test]
fn source_ranges_admit_the_host_if_an_address_of_the_node_is_inside() {
    let mut reconciler = fresh();
    let mut plan = service("ranged");
    plan.frontends = vec![frontend(FrontendKind::LoadBalancer, "203.0.113.7", 443, &backends([1]))];
    plan.frontends[0].source_ranges = vec!["198.51.100.0/24".parse().unwrap()];
    reconciler.upsert(&plan, at(0)).unwrap();
    let host = |reconciler: &Reconciler<FakeStore>| {
        let state = state(reconciler.store());
        let row = state.frontends.values().next().unwrap();
        assert_eq!(row.ranges, ["198.51.100.0/24".parse().unwrap()]);
        assert_eq!(row.views[audience::EXTERNAL].verdict, verdict::BALANCE);
        row.views[audience::HOST].verdict
    };
    assert_eq!(host(&reconciler), verdict::DROP);
    let node = |address: &str| BTreeSet::from([address.parse().unwrap(), "127.0.0.1".parse().unwrap()]);
    assert!(reconciler.set_node_addresses(&node("198.51.100.9"), at(1)).is_empty());
    assert_eq!(host(&reconciler), verdict::BALANCE);
    assert_eq!(state(reconciler.store()).addresses[&ip("198.51.100.9")], address::SOURCE);
    assert!(reconciler.set_node_addresses(&node("192.0.2.1"), at(2)).is_empty());
    assert_eq!(host(&reconciler), verdict::DROP);
    assert!(!state(reconciler.store()).addresses.contains_key(&ip("198.51.100.9")));

    reconciler.remove(&plan.key(), at(3)).unwrap();
    assert_eq!(reconciler.store().len(Family::V4.ranges()), 1, "a program may be reading it");
    reconciler.tick(at(5)).unwrap();
    assert_eq!(reconciler.store().len(Family::V4.ranges()), 0);
}

#[test]
fn a_frontend_may_move_to_another_service_in_any_order() {
    for new_first in [true, false] {
        let mut reconciler = fresh();
        reconciler.upsert(&web([1]), at(0)).unwrap();
        let mut heir = web([7]);
        heir.name = "heir".into();
        let loser = service("web");
        let changes = if new_first { [&heir, &loser] } else { [&loser, &heir] };
        for plan in changes {
            reconciler.upsert(plan, at(1)).unwrap();
        }
        let state = state(reconciler.store());
        assert_eq!(state.frontends.len(), 2);
        assert!(state.frontends.values().all(|row| addresses(&row.views[0]) == ["10.0.0.7"]));
        assert_eq!(state.alive.len(), 1);
    }
}

#[test]
fn what_was_given_up_rests() {
    let mut reconciler = fresh();
    reconciler.upsert(&web([1, 2]), at(0)).unwrap();
    let table = |reconciler: &Reconciler<FakeStore>| reconciler.store().table(1);
    assert_ne!(table(&reconciler), 0);
    reconciler.remove(&web([]).key(), at(1)).unwrap();
    assert_ne!(table(&reconciler), 0, "a program may be reading it");
    assert_eq!(reconciler.deadline(), Some(at(2)));
    reconciler.tick(at(2)).unwrap();
    assert_eq!(table(&reconciler), 0);
}

#[test]
fn a_full_map_is_an_error_of_one_service_and_costs_it_nothing() {
    let sizes = Sizes { frontends: 3, ..Sizes::default() };
    let mut reconciler = Reconciler::restore(FakeStore::new(sizes), at(0)).unwrap();
    reconciler.upsert(&web([1, 2]), at(0)).unwrap();
    let mut other = web([3]);
    other.name = "other".into();
    other.frontends[0].address = "10.96.0.2".parse().unwrap();
    other.frontends[1].port = 30081;
    other.refused.clear();
    let before = state(reconciler.store());
    let error = reconciler.upsert(&other, at(0)).unwrap_err();
    assert!(matches!(error.cause, Cause::Full { capacity: 3, .. }), "{error:?}");
    assert_eq!(error.to_string(), "Service default/other: not programmed");
    assert_eq!(state(reconciler.store()), before);
    assert!(!reconciler.settled());

    // It keeps what it had, and gets the rest when there is room.
    let mut smaller = other.clone();
    smaller.frontends.truncate(1);
    reconciler.upsert(&smaller, at(1)).unwrap();
    reconciler.upsert(&other, at(1)).unwrap_err();
    assert_eq!(state(reconciler.store()).frontends.len(), 3);
    reconciler.remove(&web([]).key(), at(1)).unwrap();
    assert!(reconciler.retry(at(1)).is_empty(), "not before its time");
    let tried = reconciler.retry(at(3));
    assert!(tried.len() == 1 && tried[0].1.is_ok(), "{tried:?}");
    assert_eq!(state(reconciler.store()).frontends.len(), 2);
}

#[test]
fn a_list_whose_members_no_slot_can_name_is_an_error() {
    let mut reconciler =
        Reconciler::restore(FakeStore::new(Sizes { backends: 131_072, ..Sizes::default() }), at(0)).unwrap();
    for count in [65_536_u32, 65_537] {
        let address = |n: u32| IpAddr::from((0x0a00_0000 + n).to_be_bytes());
        let backends: Vec<_> = (0..count).map(|n| support::backend_plan(address(n), 8080)).collect();
        let mut plan = service("web");
        plan.frontends = vec![frontend(FrontendKind::NodePort, "192.0.2.1", 30080, &backends)];
        let error = reconciler.upsert(&plan, at(0)).unwrap_err();
        assert!(matches!(error.cause, Cause::List { count: found } if found == count as usize), "{error:?}");
    }
}

#[test]
fn a_restart_changes_nothing_and_ids_stay() {
    let mut first = fresh();
    first.upsert(&web([1, 2, 3]), at(0)).unwrap();
    first.upsert(&web([1, 3, 4]), at(1)).unwrap();
    let mut gone = web([9]);
    gone.name = "gone".into();
    gone.frontends.truncate(1);
    gone.frontends[0].address = "10.96.0.9".parse().unwrap();
    gone.refused.clear();
    first.upsert(&gone, at(1)).unwrap();

    let store = first.into_store();
    let (before, writes) = (rows(&store), store.writes());
    let mut second = Reconciler::restore(store, at(10)).unwrap();
    second.upsert(&web([1, 3, 4]), at(10)).unwrap();
    assert_eq!(second.store().writes(), writes);
    assert_eq!(rows(second.store()), before);

    // The Service that went while nobody looked goes with the first full list.
    assert!(second.prune(&HashSet::from([web([]).key()]), at(11)).is_empty());
    assert!(second.settled());
    let state = state(second.store());
    assert_eq!((state.frontends.len(), state.alive.len()), (2, 3));
}
