//! What `culvert services`, `backends`, `flows` and `status` say of the fake kernel's maps, and how drift is found and repaired.

#![allow(clippy::unwrap_used)] // a test fails by panicking, its helpers too

mod support;

use std::collections::HashSet;

use culvert_abi::{Plain, ServiceCounters, address, flow as bits, idle, proto, role};
use culvert_api::{
    flows::{Flow, FlowState},
    plan::{Audience, FrontendKind, ServicePlan},
    services::Kind,
    status,
};
use culvert_dataplane::{
    codec::{self, At, Family, FlowRow, index_key},
    drift::Place,
    fake::FakeStore,
    flow::tick,
    reconcile::{Foreign, Reconciler},
    store::{Map, Store},
};
use support::{at, backends, frontend, service};

fn web() -> ServicePlan {
    let mut plan = service("web");
    plan.frontends = vec![
        frontend(FrontendKind::ClusterIP, "10.96.0.1", 80, &backends([1, 2])),
        frontend(FrontendKind::NodePort, "192.0.2.1", 30080, &backends([1, 2])),
    ];
    plan.refused = vec!["10.96.0.1".parse().unwrap()];
    plan
}

fn programmed() -> Reconciler<FakeStore> {
    let mut reconciler = Reconciler::restore(FakeStore::default(), at(0)).unwrap();
    reconciler.upsert(&web(), at(0)).unwrap();
    assert!(reconciler.prune(&HashSet::from([web().key()]), at(0)).is_empty());
    reconciler
}

fn place(text: &str) -> At {
    let socket: std::net::SocketAddr = text.parse().unwrap();
    At { address: socket.ip(), port: socket.port() }
}

/// The rows of a flow to the first backend, as the programs write them at `seconds`.
fn open_flow(reconciler: &mut Reconciler<FakeStore>, client: &str, flags: u32, seconds: u64) {
    write_flow(reconciler, client, flags, seconds, flags & bits::REPLIED != 0);
}

fn write_flow(reconciler: &mut Reconciler<FakeStore>, client: &str, flags: u32, seconds: u64, established: bool) {
    let backend = reconciler.view_backends(None, at(seconds)).unwrap()[0].clone();
    let service = reconciler.view_services(at(seconds)).unwrap()[0].ports[0].id;
    let (client, frontend) = (place(client), place("192.0.2.1:30080"));
    let origin = FlowRow {
        src: client,
        dst: frontend,
        proto: proto::TCP,
        role: role::ORIGIN,
        client,
        frontend,
        backend: place(&backend.address.to_string()),
        source: place("0.0.0.0:0"),
        packets: 3,
        bytes: 300,
        backend_id: backend.id,
        generation: backend.generation,
        service,
        seen: tick(at(seconds)),
        born: tick(at(seconds)),
        flags,
        established,
    };
    let path = FlowRow { src: origin.backend, dst: client, role: role::PATH, packets: 2, bytes: 2_000, ..origin };
    let map = if established { Map::FLOWS_V4 } else { Map::FLOWS_NEW_V4 };
    for row in [origin, path] {
        let (key, value) = codec::flow(&row);
        reconciler.store_mut().put(map, &key, &value).unwrap();
    }
}

fn flows(reconciler: &Reconciler<FakeStore>, seconds: u64) -> Vec<Flow> {
    let mut flows = vec![];
    reconciler.view_flows(at(seconds), &mut |flow| flows.push(flow)).unwrap();
    flows
}

#[test]
fn services_are_shown_as_the_kernel_has_them() {
    let mut reconciler = programmed();
    let id = reconciler.view_services(at(0)).unwrap()[0].ports[0].id;
    let one = ServiceCounters { connections: 5, dropped: 1, ..ServiceCounters::zeroed() };
    reconciler.store_mut().put(Map::SERVICE_COUNTERS, &index_key(id), one.bytes()).unwrap();

    let services = reconciler.view_services(at(0)).unwrap();
    assert_eq!(services.len(), 1);
    let web = &services[0];
    assert_eq!((web.namespace.as_str(), web.name.as_str(), web.ports.len()), ("default", "web", 1));
    assert!(web.failure.is_none() && web.drift.is_empty());
    let port = &web.ports[0];
    assert_eq!((port.family, port.backends, port.counters.connections, port.counters.dropped), (4, 2, 5, 1));
    let [cluster_ip, node_port] = port.frontends.as_slice() else { panic!("{port:?}") };
    assert_eq!((cluster_ip.kind, node_port.kind), (Kind::ClusterIP, Kind::NodePort));
    assert_eq!((cluster_ip.views[0].slots, node_port.views[0].slots), (0, 5_003));
    assert_eq!(node_port.views[0].audience, Audience::Any);
    assert_eq!(node_port.views[0].backends, ["10.0.0.1:8080".parse().unwrap(), "10.0.0.2:8080".parse().unwrap()]);
}

#[test]
fn flows_have_both_directions_and_end_when_both_are_idle() {
    let mut reconciler = programmed();
    open_flow(&mut reconciler, "198.51.100.7:40000", bits::REPLIED | bits::FROM_POD, 10);
    open_flow(&mut reconciler, "198.51.100.8:40000", 0, 10);
    let shown = flows(&reconciler, 40);
    assert_eq!(shown.len(), 2);
    let flow = shown.iter().find(|flow| flow.state == FlowState::Established).unwrap();
    assert_eq!(flow.service.as_deref(), Some("default/web"));
    assert_eq!(flow.client, "198.51.100.7:40000".parse().unwrap());
    assert_eq!(flow.frontend, "192.0.2.1:30080".parse().unwrap());
    assert_eq!(flow.backend, Some("10.0.0.1:8080".parse().unwrap()));
    assert_eq!((flow.source, flow.backend_alive, flow.from_pod), (None, true, true));
    assert_eq!((flow.packets, flow.bytes, flow.reply_packets, flow.reply_bytes), (3, 300, 2, 2_000));
    assert!((29..=30).contains(&flow.age_seconds) && (29..=30).contains(&flow.idle_seconds), "{flow:?}");
    assert_eq!(flow.idle_limit_seconds, u64::from(idle::ESTABLISHED));

    let later = flows(&reconciler, 10 + u64::from(idle::OPENING) + 2);
    assert_eq!(later.len(), 1, "the one without a reply is over");
    let backend = &reconciler.view_backends(None, at(40)).unwrap()[0];
    assert_eq!((backend.flows, backend.packets, backend.bytes), (2, 10, 4_600));

    // A flow to a backend that went says so.
    let mut smaller = web();
    for frontend in &mut smaller.frontends {
        frontend.backends = backends([2]).into();
    }
    reconciler.upsert(&smaller, at(40)).unwrap();
    assert!(flows(&reconciler, 40).iter().all(|flow| !flow.backend_alive));
}

#[test]
fn a_reply_that_the_client_did_not_answer_makes_no_flow_last() {
    let mut reconciler = programmed();
    write_flow(&mut reconciler, "198.51.100.7:40000", bits::REPLIED, 10, false);
    let shown = flows(&reconciler, 20);
    assert_eq!((shown[0].state, shown[0].idle_limit_seconds), (FlowState::New, idle::OPENING.into()));
    assert!(flows(&reconciler, 10 + u64::from(idle::OPENING) + 2).is_empty());
}

#[test]
fn an_address_lingers_while_flows_to_it_live() {
    let mut reconciler = programmed();
    open_flow(&mut reconciler, "198.51.100.7:40000", bits::REPLIED | bits::CLIENT_FIN, 10);
    reconciler.remove(&web().key(), at(20)).unwrap();
    let flags = |reconciler: &Reconciler<FakeStore>, address: &str| {
        let key = codec::address_key(address.parse().unwrap());
        reconciler.store().get(Map::ADDRESSES_V4, &key).unwrap().map(|value| codec::decode_word(&value))
    };
    assert_eq!(flags(&reconciler, "192.0.2.1"), Some(address::LINGER));
    assert_eq!(flags(&reconciler, "10.96.0.1"), Some(address::LINGER));
    let run = |reconciler: &mut Reconciler<FakeStore>, from: u64, to: u64| {
        let mut now = at(from);
        while let Some(due) = reconciler.deadline().filter(|due| *due <= at(to)) {
            now = due.max(now);
            reconciler.tick(now).unwrap();
        }
    };
    run(&mut reconciler, 20, 60);
    assert_eq!(flags(&reconciler, "10.96.0.1"), None, "nobody uses it");
    assert_eq!(flags(&reconciler, "192.0.2.1"), Some(address::LINGER));

    // Also after a restart, and until the flow is over.
    let mut reconciler = Reconciler::restore(reconciler.into_store(), at(60)).unwrap();
    assert!(reconciler.prune(&HashSet::new(), at(60)).is_empty());
    run(&mut reconciler, 60, 3_000);
    assert_eq!(flags(&reconciler, "192.0.2.1"), Some(address::LINGER));
    run(&mut reconciler, 3_000, 10 + u64::from(idle::CLOSING) + 30);
    assert_eq!(flags(&reconciler, "192.0.2.1"), None);
    assert_eq!(reconciler.deadline(), None, "nothing left to do");
}

#[test]
fn an_address_that_is_served_again_does_not_linger() {
    let mut reconciler = programmed();
    reconciler.remove(&web().key(), at(1)).unwrap();
    reconciler.upsert(&web(), at(2)).unwrap();
    for seconds in 3..40 {
        reconciler.tick(at(seconds)).unwrap();
    }
    assert_eq!(support::state(reconciler.store()).frontends.len(), 2);
}

#[test]
fn foreign_connections_are_left_alone_and_shown() {
    let mut reconciler = programmed();
    let (client, frontend) = (place("198.51.100.7:40000"), place("192.0.2.1:30080"));
    let foreign = Foreign { client, frontend, proto: proto::TCP };
    assert_eq!(reconciler.import_foreign([foreign, foreign], at(5)).unwrap(), 1);
    let shown = flows(&reconciler, 6);
    assert_eq!(shown.len(), 1);
    assert_eq!((shown[0].state, shown[0].backend, shown[0].service.as_ref()), (FlowState::Foreign, None, None));
}

#[test]
fn drift_is_named_and_repaired() {
    let mut reconciler = programmed();
    assert_eq!(reconciler.drift().unwrap(), vec![]);
    let before = support::state(reconciler.store());
    let frontend_key = {
        let at = before.frontends.keys().next().unwrap();
        codec::frontend_key(*at)
    };
    let node_port_table = 2;
    let word = reconciler.store().table(node_port_table);
    let store = reconciler.store_mut();
    store.delete(Map::FRONTENDS_V4, &frontend_key).unwrap();
    store.put(Map::ADDRESSES_V4, &[192, 0, 2, 1], &0_u32.to_ne_bytes()).unwrap();
    store.put(Map::ADDRESSES_V4, &[192, 0, 2, 99], &address::FRONTEND.to_ne_bytes()).unwrap();
    store.put(Map::BACKENDS_V4, &index_key(1), &[0; 16]).unwrap();
    store.publish_table(1, 0);
    store.write_slab(word as u32 + 100, &[7; 3]).unwrap();

    let drift: Vec<status::Drift> = reconciler.drift().unwrap().iter().map(Into::into).collect();
    let named = |map: &str, key: &str| drift.iter().find(|drift| drift.map == map && drift.key == key).unwrap();
    assert_eq!(named("FRONTENDS_V4", "10.96.0.1:80 protocol 6").found, None);
    assert_eq!(named("FRONTENDS_V4", "10.96.0.1:80 protocol 6").service.as_deref(), Some("default/web"));
    assert_eq!(named("ADDRESSES_V4", "192.0.2.1").expected.as_deref(), Some("FRONTEND"));
    assert_eq!(named("ADDRESSES_V4", "192.0.2.99").expected, None);
    assert!(named("BACKENDS_V4", "1").expected.as_deref().unwrap().starts_with("10.0.0.1:8080, flags 1"));
    assert!(named("TABLES", "1").found.as_deref().unwrap().contains("0 backends"));
    assert_eq!(drift.iter().filter(|drift| drift.map == "SLAB").count(), 1);
    assert_eq!(drift.len(), 6);
    assert_eq!(reconciler.view_services(at(1)).unwrap()[0].drift.len(), 3);

    assert!(reconciler.prune(&HashSet::from([web().key()]), at(1)).is_empty());
    let left = reconciler.drift().unwrap();
    assert!(left.len() == 1 && left[0].place == Place::Slice(word as u32 + 4), "{left:?}");
    reconciler.repair().unwrap();
    assert_eq!(reconciler.drift().unwrap(), vec![]);
    assert_eq!(support::state(reconciler.store()), before);
}

#[test]
fn usage_and_reasons_are_counted() {
    let mut reconciler = programmed();
    reconciler.store_mut().put(Map::REASONS, &index_key(3), &7_u64.to_ne_bytes()).unwrap();
    let reasons = reconciler.view_reasons().unwrap();
    assert_eq!((reasons.len(), reasons[3].reason.as_str(), reasons[3].packets), (14, "source_range", 7));
    let usage = reconciler.view_usage();
    let used = |map: &str| usage.iter().find(|usage| usage.map == map).unwrap().used;
    assert_eq!((used("ADDRESSES_V4"), used("FRONTENDS_V4"), used("BACKENDS_V4")), (2, 2, 2));
    assert_eq!((used("TABLES"), used("SLAB")), (2, 4 + 5_008));
    assert_eq!(used("BACKENDS_V6"), 0);
    open_flow(&mut reconciler, "198.51.100.7:40000", bits::REPLIED, 10);
    let flows = reconciler.view_flow_usage().unwrap();
    assert_eq!(flows.iter().map(|usage| usage.used).sum::<u64>(), 2);
    assert_eq!(Family::ALL.len() * 2, flows.len());
}
