//! [`Desk`] in a world of its own: an API server that does with Services what the real one does, users, and other writers; in any order, with
//! answers that are late or never come, and leaders that change.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use culvert_model::objects::{ObjectKey, ObjectMeta, Service};
use culvert_pools::Resource;
use culvert_pools::objects::{IpAddressPool, IpAddressPoolSpec};
use culvert_source::{Change, Id, Kind, Object};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::desk::{Desk, Work};
use crate::scope::Scope;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const MAIN: [&str; 2] = ["192.0.2.1-192.0.2.6", "192.0.2.4-192.0.2.9"];
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

/// Something that happens; Services by number.
#[derive(Clone, Debug)]
enum Happens {
    Create(usize),
    Delete(usize),
    Type(usize, bool),
    /// Asks for the address of this number, or for any.
    Ask(usize, Option<u8>),
    /// A label changes, and nothing of concern.
    Label(usize),
    /// Another pool takes the place of the first.
    Pool(usize),
    /// The source tells so many changes.
    Tell(usize),
    /// Something is written; the answer comes at once, later, or is lost.
    Write(Answer),
    /// A late answer comes.
    Answer,
    /// Another leads.
    Leader,
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    Now,
    Late,
    Lost,
}

fn happens() -> impl Strategy<Value = Happens> {
    let which = 0..NAMES.len();
    prop_oneof![
        2 => which.clone().prop_map(Happens::Create),
        1 => which.clone().prop_map(Happens::Delete),
        1 => (which.clone(), any::<bool>()).prop_map(|(one, balances)| Happens::Type(one, balances)),
        2 => (which.clone(), prop::option::of(1..7_u8)).prop_map(|(one, asks)| Happens::Ask(one, asks)),
        1 => which.prop_map(Happens::Label),
        1 => (0..MAIN.len()).prop_map(Happens::Pool),
        4 => (1..4_usize).prop_map(Happens::Tell),
        4 => prop_oneof![Just(Answer::Now), Just(Answer::Late), Just(Answer::Lost)].prop_map(Happens::Write),
        2 => Just(Happens::Answer),
        1 => Just(Happens::Leader),
    ]
}

struct World {
    objects: BTreeMap<String, Value>,
    version: u64,
    pool: usize,
    /// What the source has not told.
    changes: VecDeque<Change>,
    /// Answers that have not come.
    answers: VecDeque<(Work, Option<Value>)>,
    desk: Desk,
    writes: usize,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            objects: BTreeMap::new(),
            version: 0,
            pool: 0,
            changes: VecDeque::new(),
            answers: VecDeque::new(),
            desk: desk(),
            writes: 0,
        };
        world.lead();
        world
    }

    fn lead(&mut self) {
        self.desk = desk();
        self.answers.clear();
        self.changes.clear();
        self.desk.take(pool(self.pool));
        for object in self.objects.values() {
            self.desk.take(upsert(object));
        }
        self.desk.decide(true);
    }

    fn happen(&mut self, what: &Happens) {
        match what {
            Happens::Create(one) => self.create(NAMES[*one]),
            Happens::Delete(one) => self.change(NAMES[*one], |object| {
                object["metadata"]["deletionTimestamp"] = json!("2026-11-25T10:00:00Z");
            }),
            Happens::Type(one, balances) => self.change(NAMES[*one], |object| {
                object["spec"]["type"] = json!(if *balances { "LoadBalancer" } else { "ClusterIP" });
            }),
            Happens::Ask(one, asks) => self.change(NAMES[*one], |object| {
                object["spec"]["loadBalancerIP"] = asks.map_or(Value::Null, |last| json!(format!("192.0.2.{last}")));
            }),
            Happens::Label(one) => self.change(NAMES[*one], |object| {
                let label = object["metadata"]["labels"]["n"].as_str().unwrap_or_default();
                object["metadata"]["labels"] = json!({"n": format!("{label}x")});
            }),
            Happens::Pool(pool_of) => {
                self.pool = *pool_of;
                self.changes.push_back(pool(*pool_of));
            }
            Happens::Tell(count) => {
                for change in self.changes.drain(..(*count).min(self.changes.len())) {
                    self.desk.take(change);
                }
                self.desk.decide(true);
            }
            Happens::Write(answer) => self.write(*answer),
            Happens::Answer => {
                if let Some((work, answer)) = self.answers.pop_front() {
                    self.answer(&work, answer);
                }
            }
            Happens::Leader => self.lead(),
        }
    }

    fn create(&mut self, name: &str) {
        if self.objects.contains_key(name) {
            return;
        }
        self.version += 1;
        let object = json!({
            "metadata": {"name": name, "namespace": "shop", "uid": format!("{name}-{}", self.version), "labels": {}},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}]},
            "status": {"loadBalancer": {}},
        });
        self.store(name, object);
    }

    fn change(&mut self, name: &str, change: impl FnOnce(&mut Value)) {
        let Some(mut object) = self.objects.get(name).cloned() else { return };
        change(&mut object);
        self.store(name, object);
    }

    /// As the API server stores an object: an address belongs to a LoadBalancer, and what is deleted goes with its last finalizer.
    fn store(&mut self, name: &str, mut object: Value) {
        if object["spec"]["type"] != "LoadBalancer" {
            object["status"] = json!({"loadBalancer": {}});
        }
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let kept = object["metadata"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty());
        if object["metadata"].get("deletionTimestamp").is_some() && !kept {
            self.objects.remove(name);
            let key = ObjectKey::new("shop", name);
            self.changes.push_back(Change::Remove(Id { kind: Kind::Service, key }));
            return;
        }
        self.changes.push_back(upsert(&object));
        self.objects.insert(name.to_owned(), object);
    }

    fn write(&mut self, answer: Answer) {
        let Some(work) = self.desk.next() else { return };
        self.writes += 1;
        let name = work.service.name.clone();
        let version = work.patch["metadata"]["resourceVersion"].clone();
        let current =
            self.objects.get(&name).filter(|object| object["metadata"]["resourceVersion"] == version).cloned();
        let done = current.map(|mut object| {
            merge(&mut object, &work.patch);
            let now = object.clone();
            self.store(&name, object);
            self.objects.get(&name).cloned().unwrap_or(now)
        });
        match answer {
            Answer::Now => self.answer(&work, done),
            Answer::Late => self.answers.push_back((work, done)),
            Answer::Lost => {
                self.desk.answered(&work.service);
                self.desk.again(work.service);
            }
        }
    }

    /// An answer comes; after a conflict the object is read again.
    fn answer(&mut self, work: &Work, answer: Option<Value>) {
        self.desk.answered(&work.service);
        match answer {
            Some(object) => self.desk.heard(parse(&object)),
            None => {
                if let Some(object) = self.objects.get(&work.service.name) {
                    self.desk.heard(parse(object));
                }
            }
        }
        self.desk.decide(true);
    }

    /// Everything is told, written and answered.
    fn settle(&mut self) {
        for _ in 0..200 {
            self.happen(&Happens::Tell(100));
            self.happen(&Happens::Answer);
            let before = self.writes;
            self.happen(&Happens::Write(Answer::Now));
            if self.writes == before && self.changes.is_empty() && self.answers.is_empty() {
                return;
            }
        }
        panic!("it does not come to rest: {:#?}", self.objects);
    }

    fn addresses(&self) -> Vec<(String, IpAddr)> {
        let of = |(name, object): (&String, &Value)| {
            let ingress = object["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
            ingress.iter().map(|one| (name.clone(), one["ip"].as_str().unwrap().parse().unwrap())).collect::<Vec<_>>()
        };
        self.objects.iter().flat_map(of).collect()
    }
}

fn desk() -> Desk {
    Desk::new(Scope { class: None, config_namespaces: BTreeSet::from(["metallb-system".to_owned()]) })
}

fn pool(which: usize) -> Change {
    let metadata =
        ObjectMeta { name: "main".to_owned(), namespace: "metallb-system".to_owned(), ..ObjectMeta::default() };
    let spec = IpAddressPoolSpec { addresses: vec![MAIN[which].to_owned()], ..IpAddressPoolSpec::default() };
    Change::Upsert(Object::Addresses(Resource::IpAddressPool(Arc::new(IpAddressPool { metadata, spec }))))
}

fn parse(object: &Value) -> Arc<Service> {
    Arc::new(serde_json::from_value(object.clone()).unwrap())
}

fn upsert(object: &Value) -> Change {
    Change::Upsert(Object::Service(parse(object)))
}

/// A merge patch (RFC 7396).
pub fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let Some(object) = object.as_object_mut() else { return };
    for (name, value) in patch {
        if value.is_null() {
            object.remove(name);
        } else {
            merge(object.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nobody_has_anothers_address_and_everybody_has_his_in_the_end(
        story in prop::collection::vec(happens(), 0..60),
    ) {
        let mut world = World::new();
        for what in &story {
            world.happen(what);
            let addresses = world.addresses();
            let distinct: BTreeSet<IpAddr> = addresses.iter().map(|(_, address)| *address).collect();
            prop_assert_eq!(distinct.len(), addresses.len(), "{:?}", addresses);
        }
        world.settle();
        // Nobody else wrote anything, so nobody is left alone.
        let notices = world.desk.take_notices();
        prop_assert!(notices.iter().all(|notice| !notice.reason.starts_with("Status")), "{:?}", notices);
        for object in world.objects.values() {
            let metadata = &object["metadata"];
            let balances = object["spec"]["type"] == "LoadBalancer";
            let asks = object["spec"]["loadBalancerIP"].as_str();
            let has = object["status"]["loadBalancer"]["ingress"].as_array().is_some_and(|list| list.len() == 1);
            let marked = metadata["annotations"]["metallb.io/ip-allocated-from-pool"] == "main";
            let kept = metadata["finalizers"] == json!([FINALIZER]);
            prop_assert!(has == marked && has == kept, "{object}");
            prop_assert!(balances || !has, "{object}");
            prop_assert!(has || !balances || asks.is_some(), "{object}");
            prop_assert!(metadata.get("deletionTimestamp").is_none(), "{object}");
        }
        // A new leader finds everything as it should be.
        let before = (world.objects.clone(), world.writes);
        world.lead();
        world.settle();
        prop_assert_eq!(before, (world.objects, world.writes));
    }
}
