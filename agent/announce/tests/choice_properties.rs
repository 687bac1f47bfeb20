//! What holds for any cluster: nobody answers who cannot, evenly, and nothing moves without a cause.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use culvert_announce::choice::{Choice, Inputs, Link, Node, Out, Report, Service};
use culvert_model::ServiceKey;
use culvert_pools::{Config, Kind, Resource, Resources};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use serde_json::json;

fn config() -> Arc<Config> {
    let metadata = json!({"name": "p", "namespace": "metallb-system"});
    let pool = json!({"metadata": metadata, "spec": {"addresses": ["192.0.0.0/16", "2001:db8::/64"]}});
    let advertisement = json!({"metadata": metadata});
    let resources: Resources = [
        Resource::deserialize(Kind::IpAddressPool, pool).unwrap(),
        Resource::deserialize(Kind::L2Advertisement, advertisement).unwrap(),
    ]
    .into_iter()
    .collect();
    Arc::new(Config::new(&resources).unwrap())
}

fn key(i: usize) -> ServiceKey {
    ServiceKey { namespace: "default".to_owned(), name: format!("s{i}") }
}

fn address(i: usize) -> IpAddr {
    IpAddr::from([192, 0, (i >> 8) as u8, i as u8])
}

/// `nodes` nodes that can all serve `addresses` addresses.
fn equal(nodes: impl IntoIterator<Item = usize>, addresses: impl IntoIterator<Item = usize>) -> Inputs {
    let addresses: Vec<usize> = addresses.into_iter().collect();
    let programmed: BTreeSet<_> = addresses.iter().map(|i| key(*i)).collect();
    let link = Link { up: true, prefixes: vec!["192.0.0.0/16".parse().unwrap()] };
    let links = BTreeMap::from([("eth0".to_owned(), link)]);
    let report = Report { links, programmed, local: BTreeSet::new(), ending: BTreeSet::new() };
    let node = Node { report: Some(report), ..Node::default() };
    let service = |i: usize| Service {
        labels: BTreeMap::new(),
        pool: "p".into(),
        addresses: vec![address(i)],
        local: false,
        endpoints: true,
    };
    Inputs {
        config: config(),
        nodes: nodes.into_iter().map(|i| (format!("n{i}"), node.clone())).collect(),
        services: addresses.into_iter().map(|i| (key(i), service(i))).collect(),
        holders: BTreeMap::new(),
    }
}

type Answers = BTreeMap<IpAddr, String>;

fn answers(choices: &BTreeMap<IpAddr, Choice>) -> Answers {
    let answers = choices.iter().filter_map(|(address, one)| Some((*address, one.answer.as_ref().ok()?.node.clone())));
    answers.collect()
}

fn choose(inputs: &Inputs) -> Answers {
    answers(&inputs.choose())
}

fn loads(inputs: &Inputs, answers: &Answers) -> BTreeMap<String, usize> {
    let mut loads: BTreeMap<String, usize> = inputs.nodes.keys().map(|name| (name.clone(), 0)).collect();
    for node in answers.values() {
        *loads.get_mut(node).unwrap() += 1;
    }
    loads
}

fn spread(inputs: &Inputs, answers: &Answers) -> usize {
    let loads = loads(inputs, answers);
    loads.values().max().unwrap_or(&0) - loads.values().min().unwrap_or(&0)
}

fn moved(before: &Answers, after: &Answers) -> BTreeSet<IpAddr> {
    after
        .iter()
        .filter(|(address, node)| before.get(*address).is_some_and(|was| was != *node))
        .map(|(a, _)| *a)
        .collect()
}

/// A cluster of unequal nodes: some out, some held down, with and without the network, Services of either policy.
fn any_cluster() -> impl Strategy<Value = Inputs> {
    let node = (0_u8..8, any::<bool>(), 0_u8..4, vec(0_u8..3, 12), vec(0_u8..5, 12));
    let services = vec((any::<bool>(), 0_usize..12, 0_u8..6), 12);
    (vec(node, 1..6), services, btree_map(0_usize..12, 0_usize..7, 0..12)).prop_map(|(nodes, services, holders)| {
        let mut inputs = equal(0..nodes.len(), 0..12);
        for ((out, held_down, links, local, lacks), node) in nodes.into_iter().zip(inputs.nodes.values_mut()) {
            node.out = (out == 0).then_some(Out::Drained);
            node.held_down = held_down && out < 4;
            let report = node.report.as_mut().unwrap();
            match links {
                0 => drop(report.links.insert("eth1".to_owned(), Link { up: true, prefixes: vec![] })),
                1 => report.links.get_mut("eth0").unwrap().prefixes.clear(),
                2 => report.links.get_mut("eth0").unwrap().up = out > 5,
                _ => {}
            }
            report.local = (0..12).filter(|i| local[*i] > 0).map(key).collect();
            report.ending = (0..12).filter(|i| local[*i] > 1).map(key).collect();
            report.programmed.retain(|key| lacks[key.name[1..].parse::<usize>().unwrap()] != 0);
        }
        for ((local, address_of, endpoints), service) in services.into_iter().zip(inputs.services.values_mut()) {
            service.local = local;
            service.addresses = vec![address(address_of)];
            service.endpoints = endpoints != 0;
        }
        inputs.holders = holders.into_iter().map(|(i, node)| (address(i), format!("n{node}"))).collect();
        inputs
    })
}

/// Whether a node could serve everything at an address, by the text of the issue and not by the code.
fn able(inputs: &Inputs, name: &str, address: IpAddr) -> bool {
    let node = &inputs.nodes[name];
    let report = node.report.as_ref().unwrap();
    let users = inputs.services.iter().filter(|(_, one)| one.addresses.contains(&address) && one.endpoints);
    let users: Vec<_> = users.collect();
    let serves =
        |key: &ServiceKey, one: &Service| report.programmed.contains(key) && (!one.local || report.local.contains(key));
    node.out.is_none()
        && report.links.values().any(|link| link.up)
        && !users.is_empty()
        && users.iter().all(|(key, one)| serves(key, one))
}

/// Whether endpoints at an address are about to end on a node, and with traffic policy Local that counts.
fn ending(inputs: &Inputs, name: &str, address: IpAddr) -> bool {
    let report = inputs.nodes[name].report.as_ref().unwrap();
    let users = inputs.services.iter().filter(|(_, one)| one.addresses.contains(&address) && one.endpoints);
    users.into_iter().any(|(key, one)| one.local && report.ending.contains(key))
}

proptest! {
    /// Somebody answers if anybody can, nobody who cannot; every node that does not has a reason; and having chosen is no
    /// reason to choose otherwise.
    #[test]
    fn who_can(inputs in any_cluster()) {
        let choices = inputs.choose();
        for (address, choice) in &choices {
            match &choice.answer {
                Ok(answer) => {
                    prop_assert!(able(&inputs, &answer.node, *address), "{address} on {answer:?}");
                    prop_assert!(!answer.links.is_empty());
                    let others: BTreeSet<_> = inputs.nodes.keys().filter(|name| **name != answer.node).collect();
                    prop_assert_eq!(choice.silent.keys().collect::<BTreeSet<_>>(), others);
                    // Nobody's endpoints are about to end, and nobody is held down, while another waits in vain.
                    let lasts = |name: &&String| able(&inputs, name, *address) && !ending(&inputs, name, *address);
                    let ends = ending(&inputs, &answer.node, *address);
                    prop_assert!(!ends || !inputs.nodes.keys().any(|name| lasts(&name)));
                    let steady = |name: &&String| {
                        !inputs.nodes[*name].held_down
                            && able(&inputs, name, *address)
                            && ending(&inputs, name, *address) == ends
                    };
                    prop_assert!(!inputs.nodes[&answer.node].held_down || !inputs.nodes.keys().any(|name| steady(&name)));
                }
                Err(_) => prop_assert!(!inputs.nodes.keys().any(|name| able(&inputs, name, *address)), "{address}"),
            }
        }
        let first = answers(&choices);
        let again = Inputs { holders: first.clone(), ..inputs };
        prop_assert_eq!(choose(&again), first);
    }

    /// The largest load is at most one more than the smallest, whoever held what before.
    #[test]
    fn even(nodes in 1_usize..12, addresses in 0_usize..80, holders in btree_map(0_usize..80, 0_usize..14, 0..80)) {
        let mut inputs = equal(0..nodes, 0..addresses);
        inputs.holders = holders.into_iter().map(|(i, node)| (address(i), format!("n{node}"))).collect();
        let answers = choose(&inputs);
        prop_assert_eq!(answers.len(), addresses);
        prop_assert!(spread(&inputs, &answers) <= 1, "{:?}", loads(&inputs, &answers));
    }

    /// One of n nodes goes: its addresses move and no other does. It comes back: it gets its share, and no other address moves.
    #[test]
    fn a_node_goes_and_comes(nodes in 2_usize..12, addresses in 0_usize..80, which in any::<prop::sample::Index>()) {
        let mut inputs = equal(0..nodes, 0..addresses);
        let before = choose(&inputs);
        let gone = format!("n{}", which.index(nodes));
        let back = inputs.nodes.remove(&gone).unwrap();
        inputs.holders = before.clone();
        let without = choose(&inputs);
        let its: BTreeSet<_> = before.iter().filter(|(_, node)| **node == gone).map(|(address, _)| *address).collect();
        prop_assert_eq!(moved(&before, &without), its);

        inputs.nodes.insert(gone.clone(), back);
        inputs.holders = without.clone();
        let again = choose(&inputs);
        let moved = moved(&without, &again);
        prop_assert_eq!(moved.len(), addresses / nodes);
        prop_assert!(moved.iter().all(|address| again[address] == gone));
    }

    /// What was taken over so far does not change the rest.
    #[test]
    fn half_way(nodes in 1_usize..10, addresses in 0_usize..60, taken in btree_set(0_usize..60, 0..60)) {
        let mut inputs = equal(0..nodes, 0..addresses);
        let whole = choose(&inputs);
        let taken = taken.into_iter().filter_map(|i| Some((address(i), whole.get(&address(i))?.clone())));
        inputs.holders = taken.collect();
        prop_assert_eq!(choose(&inputs), whole);
    }

    /// A Service comes or goes: at most one address of another moves, to stay even.
    #[test]
    fn a_service_comes_and_goes(nodes in 1_usize..12, addresses in 1_usize..60, which in any::<prop::sample::Index>()) {
        let all = equal(0..nodes, 0..addresses);
        let before = choose(&all);
        let gone = which.index(addresses);
        let without = Inputs { holders: before.clone(), ..equal(0..nodes, (0..addresses).filter(|i| *i != gone)) };
        let after = choose(&without);
        prop_assert!(moved(&before, &after).len() <= 1);
        let again = choose(&Inputs { holders: after.clone(), ..all });
        prop_assert!(moved(&after, &again).is_empty());
    }
}

/// A thousand addresses on a hundred nodes, in a moment; the work grows with both, not with a power of them.
#[test]
fn many() {
    let mut inputs = equal(0..100, 0..1000);
    let start = std::time::Instant::now();
    let before = choose(&inputs);
    eprintln!("1000 addresses on 100 nodes after {:?}", start.elapsed());
    inputs.nodes.remove("n7");
    inputs.holders = before.clone();
    assert_eq!(moved(&before, &choose(&inputs)).len(), 10);
}
