use culvert_announce::choice::EXCLUDE_LABEL;
use culvert_announce::liveness;
use culvert_announce::probe::packet::Mac;
use culvert_model::objects::ObjectMeta;
use culvert_pools::objects::{IpAddressPool, IpAddressPoolSpec, L2Advertisement, L2AdvertisementSpec};
use culvert_pools::{Resource, Resources};

use super::*;

const ADDRESS: &str = "192.0.2.10";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: name.to_owned(), namespace: "metallb-system".to_owned(), ..ObjectMeta::default() }
}

/// A pool `main`, and an advertisement for each list of interfaces.
fn config(advertisements: &[&[&str]]) -> Arc<Config> {
    let mut resources = Resources::default();
    let spec = IpAddressPoolSpec { addresses: vec!["192.0.2.0/24".to_owned()], ..IpAddressPoolSpec::default() };
    resources.upsert(Resource::IpAddressPool(Arc::new(IpAddressPool { metadata: named("main"), spec })));
    for (i, interfaces) in advertisements.iter().enumerate() {
        let interfaces = interfaces.iter().map(|name| (*name).to_owned()).collect();
        let spec = L2AdvertisementSpec { interfaces, ..L2AdvertisementSpec::default() };
        let metadata = named(&format!("a{i}"));
        resources.upsert(Resource::L2Advertisement(Arc::new(L2Advertisement { metadata, spec })));
    }
    Arc::new(Config::new(&resources).unwrap())
}

fn key(name: &str) -> ServiceKey {
    ServiceKey { namespace: "default".to_owned(), name: name.to_owned() }
}

/// A Service of pool `main` with an address.
fn service(address: &str, reach: Reach) -> Announced {
    let Reach { endpoints, local, nodes, ending } = reach;
    let addresses = vec![ip(address)];
    let service = choice::Service { labels: BTreeMap::new(), pool: "main".into(), addresses, local, endpoints };
    Announced { service, nodes, ending }
}

fn anywhere() -> Reach {
    Reach { endpoints: true, ..Reach::default() }
}

/// Nodes, and one Service at [`ADDRESS`].
fn announcements(advertisements: &[&[&str]], nodes: &[&str]) -> Announcements {
    let mut announcements = Announcements::default();
    announcements.configure(&config(advertisements));
    for node in nodes {
        announcements.set_node(&Node { metadata: named(node), ..Node::default() });
    }
    announcements.set_service(&key("web"), Some(service(ADDRESS, anywhere())));
    announcements
}

fn link(up: bool, prefix: &str) -> Link {
    Link { up, prefixes: vec![prefix.parse().unwrap()] }
}

/// What becomes of [`ADDRESS`] on a node with links whose prefix holds it, or not.
fn own(announcements: &Announcements, node: &str, links: &[(&str, bool)]) -> Option<Own> {
    let prefix = |near: &bool| if *near { "192.0.2.0/24" } else { "198.51.100.0/24" };
    let links = links.iter().map(|(name, near)| ((*name).to_owned(), link(true, prefix(near)))).collect();
    decided(announcements, node, links).remove(&ip(ADDRESS))
}

fn decided(announcements: &Announcements, node: &str, links: BTreeMap<String, Link>) -> BTreeMap<IpAddr, Own> {
    announcements.decide(node, Me { links, drained: false }, |_, _| true).own
}

fn on(links: &[&str]) -> Own {
    Own::On(links.iter().map(|link| (*link).to_owned()).collect())
}

#[test]
fn links_whose_prefix_holds_the_address_go_before_all_others() {
    let announcements = announcements(&[&[]], &["n1"]);
    assert_eq!(own(&announcements, "n1", &[("eth0", false), ("eth1", true)]), Some(on(&["eth1"])));
    assert_eq!(own(&announcements, "n1", &[("eth0", false), ("eth1", false)]), Some(on(&["eth0", "eth1"])));
    let none = own(&announcements, "n1", &[]);
    assert_eq!(none, Some(Own::Silent("it has no link to answer on".to_owned())));
}

#[test]
fn an_advertisement_may_name_the_links() {
    let announcements = announcements(&[&["eth0"]], &["n1"]);
    assert_eq!(own(&announcements, "n1", &[("eth0", false), ("eth1", true)]), Some(on(&["eth0"])));
    assert!(matches!(own(&announcements, "n1", &[("eth1", true)]), Some(Own::Silent(_))));
    let [only] = announcements.plan("n1").try_into().unwrap();
    assert_eq!((only.interface.as_deref(), only.reason.as_str()), (Some("eth0"), "the only node"));
}

#[test]
fn without_nodes_the_agent_is_alone() {
    let announcements = announcements(&[&[]], &[]);
    assert_eq!(own(&announcements, "box", &[("eth0", true)]), Some(on(&["eth0"])));
}

#[test]
fn what_the_kernel_does_not_hold_is_not_announced() {
    let announcements = announcements(&[&[]], &["n1"]);
    let links = BTreeMap::from([("eth0".to_owned(), link(true, "192.0.2.0/24"))]);
    let own = announcements.decide("n1", Me { links, drained: false }, |_, addresses| {
        assert_eq!(addresses, [ip(ADDRESS)]);
        false
    });
    let own = own.own;
    let silent = Own::Silent("its kernel does not hold Service default/web".to_owned());
    assert_eq!(own, BTreeMap::from([(ip(ADDRESS), silent)]));
}

#[test]
fn an_address_without_endpoints_stays_the_nodes() {
    let mut announcements = announcements(&[&[]], &["n1"]);
    announcements.set_service(&key("web"), Some(service(ADDRESS, Reach::default())));
    let silent = Own::Silent("no ready endpoint on any node".to_owned());
    assert_eq!(own(&announcements, "n1", &[("eth0", true)]), Some(silent));
    announcements.set_service(&key("web"), None);
    assert_eq!(own(&announcements, "n1", &[("eth0", true)]), None);
}

#[test]
fn each_address_has_one_node_and_all_nodes_agree() {
    let mut announcements = announcements(&[&[]], &["n1", "n2", "n3"]);
    for i in 0..9 {
        let address = format!("192.0.2.{}", 100 + i);
        announcements.set_service(&key(&format!("s{i}")), Some(service(&address, anywhere())));
    }
    let nodes = ["n1", "n2", "n3"];
    let links = || BTreeMap::from([("eth0".to_owned(), link(true, "192.0.2.0/24"))]);
    let owned: Vec<usize> = nodes.iter().map(|node| decided(&announcements, node, links()).len()).collect();
    assert_eq!(owned.iter().sum::<usize>(), 10);
    assert!(owned.iter().all(|count| (3..=4).contains(count)), "{owned:?}");
    for node in nodes {
        let planned: BTreeSet<IpAddr> = announcements.plan(node).into_iter().map(|one| one.address).collect();
        let own = decided(&announcements, node, links()).into_keys().collect();
        assert_eq!(planned, own);
    }
    assert_eq!(decided(&announcements, "n4", links()), BTreeMap::new(), "a node that has no object");
    let reasons: BTreeSet<String> = announcements.plan("n1").into_iter().map(|one| one.reason).collect();
    assert_eq!(reasons, BTreeSet::from(["one of 3 nodes that are equally good".to_owned()]));
}

#[test]
fn nodes_that_may_not_and_services_that_are_elsewhere() {
    let mut announcements = announcements(&[&[]], &["n1"]);
    let mut excluded = Node { metadata: named("n2"), ..Node::default() };
    excluded.metadata.labels.insert(EXCLUDE_LABEL.to_owned(), String::new());
    assert!(announcements.set_node(&excluded));
    assert!(!announcements.set_node(&excluded));
    assert_eq!(announcements.plan("n1")[0].reason, "no other node can");
    let local = Reach { endpoints: true, local: true, nodes: BTreeSet::from(["n2".into()]), ending: BTreeSet::new() };
    announcements.set_service(&key("web"), Some(service(ADDRESS, local)));
    assert_eq!(announcements.plan("n1"), []);
    assert!(announcements.remove_node("n2") && !announcements.remove_node("n2"));
}

#[test]
fn what_is_not_advertised_is_not_announced() {
    let announcements = announcements(&[], &["n1"]);
    assert_eq!(announcements.plan("n1"), []);
}

/// What a node says that has a link there, near the address or not.
fn says(near: bool) -> Said {
    let prefixes = vec![if near { "192.0.2.0/24" } else { "198.51.100.0/24" }.parse().unwrap()];
    let link = liveness::Link { up: true, mac: Mac([2, 0, 0, 0, 0, 1]), prefixes };
    Said { links: BTreeMap::from([("eth0".to_owned(), link)]), ..Said::default() }
}

/// Which node answers for [`ADDRESS`], as n1 sees it, which has a link there and hears n2 say this; n3 is never heard.
fn answering(announcements: &mut Announcements, n2: Option<(Said, bool)>, drained: bool) -> Option<String> {
    let peer = |(said, held_down)| ("n2".to_owned(), Peer { held_down, said: Arc::new(said) });
    let heard = Heard { nodes: n2.map(peer).into_iter().collect(), holders: BTreeMap::new() };
    announcements.set_heard(Arc::new(heard));
    let links = BTreeMap::from([("eth0".to_owned(), link(true, "192.0.2.0/24"))]);
    let decision = announcements.decide("n1", Me { links, drained }, |_, _| true);
    announcements.explain(&decision).remove(&ip(ADDRESS)).unwrap().node
}

#[test]
fn what_is_heard_of_the_other_nodes_decides() {
    let mut announcements = announcements(&[&[]], &["n1", "n2", "n3"]);
    let (n1, n2) = (Some("n1".to_owned()), Some("n2".to_owned()));
    assert_eq!(answering(&mut announcements, None, false), n1, "no other is heard");
    assert_eq!(answering(&mut announcements, Some((says(false), false)), false), n1, "not connected");
    let address = BTreeSet::from([ip(ADDRESS)]);
    let unable = Said { unable: address.clone(), ..says(true) };
    assert_eq!(answering(&mut announcements, Some((unable, false)), false), n1, "its kernel lacks the Service");
    let drained = Said { drained: true, ..says(true) };
    assert_eq!(answering(&mut announcements, Some((drained, false)), false), n1, "drained");
    assert_eq!(answering(&mut announcements, Some((says(true), true)), false), n1, "held down");
    assert_eq!(answering(&mut announcements, Some((Said::default(), false)), false), n1, "no link");
    assert_eq!(answering(&mut announcements, Some((says(true), true)), true), n2, "this one is drained");
    assert_eq!(answering(&mut announcements, None, true), None);
}
