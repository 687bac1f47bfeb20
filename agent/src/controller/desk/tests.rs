//! [`Desk`], step by step.

use culvert_model::objects::ObjectMeta;
use culvert_pools::objects::{IpAddressPool, IpAddressPoolSpec};
use serde_json::json;

use super::*;

const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

fn pool(name: &str, range: &str) -> Change {
    let metadata =
        ObjectMeta { name: name.to_owned(), namespace: "metallb-system".to_owned(), ..ObjectMeta::default() };
    let spec = IpAddressPoolSpec { addresses: vec![range.to_owned()], ..IpAddressPoolSpec::default() };
    Change::Upsert(Object::Addresses(Resource::IpAddressPool(Arc::new(IpAddressPool { metadata, spec }))))
}

fn parse(value: Value) -> Arc<Service> {
    Arc::new(serde_json::from_value(value).unwrap())
}

fn object(name: &str, version: u32, address: Option<&str>) -> Value {
    let ingress: Vec<Value> = address.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
    let (annotations, finalizers) = match address {
        Some(_) => (json!({"metallb.io/ip-allocated-from-pool": "main"}), json!([FINALIZER])),
        None => (json!({}), json!([])),
    };
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": name, "resourceVersion": version.to_string(),
            "annotations": annotations, "finalizers": finalizers},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"]},
        "status": {"loadBalancer": {"ingress": ingress}},
    })
}

fn service(name: &str, version: u32, address: Option<&str>) -> Arc<Service> {
    parse(object(name, version, address))
}

fn upsert(service: Arc<Service>) -> Change {
    Change::Upsert(Object::Service(service))
}

fn desk() -> Desk {
    Desk::new(Scope { class: None, config_namespaces: BTreeSet::from(["metallb-system".to_owned()]) })
}

fn give(desk: &mut Desk, changes: impl IntoIterator<Item = Change>, complete: bool) -> Vec<String> {
    changes.into_iter().for_each(|change| desk.take(change));
    desk.decide(complete);
    words(desk)
}

/// What is written: `NAME@VERSION ADDRESS`, `NAME@VERSION -` for none, `NAME@VERSION` for metadata alone.
fn words(desk: &mut Desk) -> Vec<String> {
    let (mut words, mut written) = (Vec::new(), Vec::new());
    while let Some(Work { service, patch }) = desk.next() {
        let version = patch["metadata"]["resourceVersion"].as_str().unwrap();
        let status = match patch.pointer("/status/loadBalancer/ingress").and_then(Value::as_array) {
            None => String::new(),
            Some(none) if none.is_empty() => " -".to_owned(),
            Some(some) => format!(" {}", some[0]["ip"].as_str().unwrap()),
        };
        words.push(format!("{}@{version}{status}", service.name));
        written.push(service);
    }
    for service in &written {
        desk.answered(service);
    }
    words
}

fn reasons(desk: &mut Desk) -> Vec<&'static str> {
    desk.take_notices().iter().map(|notice| notice.reason).collect()
}

#[test]
fn nothing_is_written_before_everything_was_delivered() {
    let mut desk = desk();
    let main = pool("main", "192.0.2.1-192.0.2.9");
    assert!(give(&mut desk, [main, upsert(service("a", 1, None))], false).is_empty());
    // And this one holds what the other would have got.
    assert_eq!(give(&mut desk, [upsert(service("b", 2, Some("192.0.2.1")))], true), ["a@1 192.0.2.2"]);
    assert_eq!(reasons(&mut desk), ["IPAllocated"]);
}

#[test]
fn a_service_that_goes_is_let_go_even_before_anything_can_be_decided() {
    let mut desk = desk();
    let mut goes = object("a", 1, Some("192.0.2.1"));
    goes["metadata"]["deletionTimestamp"] = json!("2026-11-25T10:00:00Z");
    let mut cluster_ip = object("b", 1, None);
    cluster_ip["spec"]["type"] = json!("ClusterIP");
    // The finalizer is somebody else's: nothing says that it is ours.
    let mut of_others = object("c", 1, None);
    of_others["metadata"]["deletionTimestamp"] = json!("2026-11-25T10:00:00Z");
    of_others["metadata"]["finalizers"] = json!([FINALIZER]);
    let changes = [goes, cluster_ip, of_others].map(|object| upsert(parse(object)));
    assert_eq!(give(&mut desk, changes, false), ["a@1 -"]);
}

#[test]
fn a_service_whose_mark_another_controller_took_away_is_let_go() {
    let mut desk = desk();
    assert!(give(&mut desk, [upsert(service("a", 1, Some("192.0.2.1")))], false).is_empty());
    // MetalLB's takes back what it gives, and knows nothing of finalizers.
    let mut taken = object("a", 2, None);
    taken["metadata"]["finalizers"] = json!([FINALIZER]);
    assert!(give(&mut desk, [upsert(parse(taken.clone()))], false).is_empty());
    taken["metadata"]["resourceVersion"] = json!("3");
    taken["metadata"]["deletionTimestamp"] = json!("2026-11-25T10:00:00Z");
    assert_eq!(give(&mut desk, [upsert(parse(taken))], false), ["a@3"]);
}

#[test]
fn a_new_leader_keeps_every_address() {
    let mut desk = desk();
    let services = [("a", "192.0.2.7"), ("b", "192.0.2.3"), ("c", "192.0.2.9")];
    let services = services.map(|(name, address)| upsert(service(name, 1, Some(address))));
    assert!(give(&mut desk, std::iter::once(pool("main", "192.0.2.1-192.0.2.9")).chain(services), true).is_empty());
    assert!(reasons(&mut desk).is_empty());
}

#[test]
fn what_was_written_is_known_whether_it_is_seen_before_its_answer_or_after() {
    let mut desk = desk();
    let changes = [pool("main", "192.0.2.1-192.0.2.9"), upsert(service("a", 1, None))];
    assert_eq!(give(&mut desk, changes, true), ["a@1 192.0.2.1"]);
    assert!(give(&mut desk, [upsert(service("a", 2, Some("192.0.2.1")))], true).is_empty());
    desk.heard(service("a", 2, Some("192.0.2.1")));
    // An old state that is told late is no other writer's.
    assert!(give(&mut desk, [upsert(service("a", 1, None))], true).is_empty());
    assert_eq!(reasons(&mut desk), ["IPAllocated"]);
}

#[test]
fn what_another_writer_changes_is_left_alone_until_it_is_back() {
    let mut desk = desk();
    let changes = [pool("main", "192.0.2.1-192.0.2.9"), upsert(service("a", 1, None))];
    assert_eq!(give(&mut desk, changes, true), ["a@1 192.0.2.1"]);
    desk.heard(service("a", 2, Some("192.0.2.1")));
    reasons(&mut desk);
    assert!(give(&mut desk, [upsert(service("a", 3, Some("203.0.113.1")))], true).is_empty());
    assert_eq!(reasons(&mut desk), ["StatusOverwritten"]);
    // Its address is not given to anybody else meanwhile, and it is told once.
    let changes = [upsert(service("a", 4, None)), upsert(service("b", 1, None))];
    assert_eq!(give(&mut desk, changes, true), ["b@1 192.0.2.2"]);
    assert_eq!(reasons(&mut desk), ["IPAllocated"]);
    let mut back = object("a", 5, Some("192.0.2.1"));
    back["metadata"]["finalizers"] = json!([]);
    assert_eq!(give(&mut desk, [upsert(parse(back))], true), ["a@5"]);
    // Deleted while it is another's: what is ours goes.
    give(&mut desk, [upsert(service("a", 6, Some("203.0.113.1")))], true);
    let mut goes = object("a", 7, Some("203.0.113.1"));
    goes["metadata"]["deletionTimestamp"] = json!("2026-11-25T10:00:00Z");
    assert_eq!(give(&mut desk, [upsert(parse(goes))], true), ["a@7 -"]);
}

#[test]
fn a_status_that_is_emptied_is_filled_again_but_not_for_ever() {
    let mut desk = desk();
    let changes = [pool("main", "192.0.2.1-192.0.2.9"), upsert(service("a", 1, None))];
    assert_eq!(give(&mut desk, changes, true), ["a@1 192.0.2.1"]);
    for round in 1..=EMPTIED {
        desk.heard(service("a", 2 * round, Some("192.0.2.1")));
        let version = 2 * round + 1;
        let written = give(&mut desk, [upsert(service("a", version, None))], true);
        assert_eq!(written, [format!("a@{version} 192.0.2.1")]);
    }
    reasons(&mut desk);
    desk.heard(service("a", 100, Some("192.0.2.1")));
    assert!(give(&mut desk, [upsert(service("a", 101, None))], true).is_empty());
    assert_eq!(reasons(&mut desk), ["StatusOverwritten"]);
}

#[test]
fn a_status_of_somebody_else_is_left_alone_and_keeps_no_address() {
    let mut desk = desk();
    let mut others = object("a", 1, Some("203.0.113.1"));
    others["metadata"]["annotations"] = json!({});
    others["metadata"]["finalizers"] = json!([]);
    let changes = [pool("main", "192.0.2.1/32"), upsert(parse(others.clone())), upsert(service("b", 1, None))];
    assert_eq!(give(&mut desk, changes, true), ["b@1 192.0.2.1"]);
    assert_eq!(reasons(&mut desk), ["StatusOfOthers", "IPAllocated"]);
    // Told once.
    others["metadata"]["resourceVersion"] = json!("2");
    assert!(give(&mut desk, [upsert(parse(others))], true).is_empty() && reasons(&mut desk).is_empty());
    // A pool comes that has its address, and it is ours.
    assert_eq!(give(&mut desk, [pool("more", "203.0.113.0/24")], true), ["a@2"]);
}

#[test]
fn an_address_that_no_pool_has_any_more_is_replaced() {
    let mut desk = desk();
    let changes = [pool("main", "192.0.2.1-192.0.2.9"), upsert(service("a", 1, Some("203.0.113.1")))];
    assert_eq!(give(&mut desk, changes, true), ["a@1 192.0.2.1"]);
    assert_eq!(reasons(&mut desk), ["ClearAssignment", "IPAllocated"]);
}

#[test]
fn a_type_that_changes_gives_the_address_up_and_gets_one_again() {
    let mut desk = desk();
    let changes = [pool("main", "192.0.2.1/32"), upsert(service("a", 1, None)), upsert(service("b", 1, None))];
    assert_eq!(give(&mut desk, changes, true), ["a@1 192.0.2.1"]);
    desk.heard(service("a", 2, Some("192.0.2.1")));
    let mut other = object("a", 3, None);
    other["spec"]["type"] = json!("ClusterIP");
    other["metadata"]["finalizers"] = json!([FINALIZER]);
    assert_eq!(give(&mut desk, [upsert(parse(other))], true), ["a@3", "b@1 192.0.2.1"]);
    assert!(give(&mut desk, [upsert(service("a", 4, None))], true).is_empty());
}

/// Asks for an address of its own.
fn asking(name: &str, version: u32, address: Option<&str>, asks: &str) -> Change {
    let mut object = object(name, version, address);
    object["spec"]["loadBalancerIP"] = json!(asks);
    upsert(parse(object))
}

#[test]
fn an_address_is_written_once_nobody_else_lists_it_any_more() {
    let mut desk = desk();
    let (one, two) = ("192.0.2.1", "192.0.2.2");
    let services = [asking("a", 1, Some(one), one), asking("b", 1, Some(two), two)];
    let main = pool("main", "192.0.2.1-192.0.2.3");
    assert!(give(&mut desk, std::iter::once(main).chain(services), true).is_empty());
    // One moves away, another comes, whose name is first.
    desk.take(asking("b", 2, Some(two), "192.0.2.3"));
    desk.take(asking("a", 2, Some(one), two));
    desk.decide(true);
    assert_eq!(words(&mut desk), ["a@2 -", "b@2 192.0.2.3"]);
    desk.heard(service("a", 3, None));
    assert!(words(&mut desk).is_empty());
    let Change::Upsert(Object::Service(moved)) = asking("b", 3, Some("192.0.2.3"), "192.0.2.3") else { unreachable!() };
    desk.heard(moved);
    desk.take(asking("a", 4, None, two));
    assert_eq!(give(&mut desk, [], true), ["a@4 192.0.2.2"]);
}

#[test]
fn two_that_change_places_do_not_wait_for_each_other() {
    let mut desk = desk();
    let (one, two) = ("192.0.2.1", "192.0.2.2");
    let services = [asking("a", 1, Some(one), one), asking("b", 1, Some(two), two)];
    let main = pool("main", "192.0.2.1-192.0.2.2");
    assert!(give(&mut desk, std::iter::once(main).chain(services), true).is_empty());
    let changes = [asking("a", 2, Some(one), two), asking("b", 2, Some(two), one)];
    assert_eq!(give(&mut desk, changes, true), ["a@2 -", "b@2 -"]);
    for (name, asks) in [("a", two), ("b", one)] {
        let Change::Upsert(Object::Service(empty)) = asking(name, 3, None, asks) else { unreachable!() };
        desk.heard(empty);
    }
    assert_eq!(words(&mut desk), ["a@3 192.0.2.2", "b@3 192.0.2.1"]);
}

#[test]
fn other_classes_and_namespaces_are_none_of_our_business() {
    let mut desk = desk();
    let mut class = object("a", 1, Some("192.0.2.1"));
    class["spec"]["loadBalancerClass"] = json!("example.com/other");
    let mut elsewhere = pool("elsewhere", "198.51.100.1/32");
    if let Change::Upsert(Object::Addresses(resource)) = &mut elsewhere {
        resource.metadata_mut().namespace = "shop".to_owned();
    }
    let changes = [elsewhere, upsert(parse(class)), upsert(service("b", 1, None))];
    assert!(give(&mut desk, changes, true).is_empty());
    assert_eq!(reasons(&mut desk), ["AllocationFailed"]);
    assert_eq!(give(&mut desk, [pool("main", "192.0.2.1/32")], true), ["b@1 192.0.2.1"]);
    assert_eq!(desk.take_pools().keys().map(|(_, name)| name.as_str()).collect::<Vec<_>>(), ["main"]);
}

#[test]
fn a_configuration_that_is_not_valid_leaves_the_last_one_in_force() {
    let mut desk = desk();
    give(&mut desk, [pool("main", "192.0.2.1-192.0.2.9")], true);
    assert!(desk.is_configured() && desk.findings().is_empty());
    let changes = [pool("other", "192.0.2.9/32"), upsert(service("a", 1, None))];
    assert_eq!(give(&mut desk, changes, true), ["a@1 192.0.2.1"]);
    assert_eq!(desk.findings().len(), 1);
}
