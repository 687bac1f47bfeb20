//! What has been told of one kind, so that only differences are told: by events, and by lists that come again.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};

use culvert_model::objects::ObjectKey;

use super::decode::Item;
use crate::fault::Fault;
use crate::object::{Change, Id, Kind, Object};

/// The keys of a kind's objects with a hash of each, and what is wrong with those that cannot be read. The objects themselves are
/// not kept: at 10,000 Services they would be most of the agent's memory.
#[derive(Debug)]
pub struct Told {
    kind: Kind,
    objects: HashMap<ObjectKey, Known>,
    unreadable: BTreeMap<ObjectKey, (Fault, u32)>,
    /// Counts lists.
    list: u32,
    /// Keyed anew at each start: whoever writes objects cannot make two of them equal.
    hasher: RandomState,
}

#[derive(Debug)]
struct Known {
    hash: u64,
    /// The last list that it was in.
    list: u32,
}

impl Told {
    /// Nothing has been told.
    pub fn new(kind: Kind) -> Self {
        Self { kind, objects: HashMap::new(), unreadable: BTreeMap::new(), list: 0, hasher: RandomState::new() }
    }

    /// A list begins: what is not in it is gone, once it has ended.
    pub fn begin(&mut self) {
        self.list = self.list.wrapping_add(1);
    }

    /// An object exists. The change, if it is one. One that cannot be read stays as it was.
    pub fn upsert(&mut self, item: Item) -> Option<Change> {
        let Item { key, version: _, object } = item;
        let list = self.list;
        let object = match object {
            Ok(object) => object,
            Err(fault) => {
                if let Some(known) = self.objects.get_mut(&key) {
                    known.list = list;
                }
                self.unreadable.insert(key, (*fault, list));
                return None;
            }
        };
        self.unreadable.remove(&key);
        let hash = self.hash(&object);
        let known = self.objects.insert(key, Known { hash, list });
        known.is_none_or(|known| known.hash != hash).then_some(Change::Upsert(object))
    }

    /// An object is gone.
    pub fn remove(&mut self, key: ObjectKey) -> Option<Change> {
        self.unreadable.remove(&key);
        self.objects.remove(&key)?;
        Some(Change::Remove(Id { kind: self.kind, key }))
    }

    /// The list has ended: what was not in it is gone.
    pub fn end(&mut self) -> Vec<Change> {
        let list = self.list;
        self.unreadable.retain(|_, (_, seen)| *seen == list);
        let gone = self.objects.extract_if(|_, known| known.list != list);
        gone.map(|(key, _)| Change::Remove(Id { kind: self.kind, key })).collect()
    }

    /// What is wrong with objects that exist.
    pub fn faults(&self) -> Vec<Fault> {
        self.unreadable.values().map(|(fault, _)| fault.clone()).collect()
    }

    fn hash(&self, object: &Object) -> u64 {
        match object {
            Object::Service(service) => self.hasher.hash_one(&**service),
            Object::EndpointSlice(slice) => self.hasher.hash_one(&**slice),
            Object::Node(node) => self.hasher.hash_one(&**node),
            Object::Addresses(resource) => self.hasher.hash_one(resource),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use culvert_model::objects::{ObjectMeta, Service};

    use super::*;

    fn item(name: &str, cluster_ip: &str) -> Item {
        let metadata = ObjectMeta { name: name.into(), namespace: "shop".into(), ..ObjectMeta::default() };
        let mut service = Service { metadata, ..Service::default() };
        service.spec.cluster_ip = cluster_ip.into();
        let key = service.metadata.key();
        Item { key, version: "1".into(), object: Ok(Object::Service(Arc::new(service))) }
    }

    fn broken(name: &str) -> Item {
        let key = ObjectKey::new("shop", name);
        Item { key, version: "1".into(), object: Err(Box::new(Fault::new("broken").of_object(name))) }
    }

    fn told(changes: impl IntoIterator<Item = Change>) -> Vec<String> {
        let word = |change| match change {
            Change::Upsert(object) => object.metadata().name.clone(),
            Change::Remove(id) => format!("-{}", id.key.name),
        };
        let mut words: Vec<_> = changes.into_iter().map(word).collect();
        words.sort();
        words
    }

    #[test]
    fn a_list_that_comes_again_tells_only_differences() {
        let mut state = Told::new(Kind::Service);
        state.begin();
        assert_eq!(told(["a", "b", "c"].into_iter().filter_map(|name| state.upsert(item(name, "1")))), ["a", "b", "c"]);
        assert!(state.end().is_empty());
        // Events between the lists.
        assert!(state.upsert(item("a", "1")).is_none());
        assert!(state.upsert(item("a", "2")).is_some());
        assert!(state.remove(ObjectKey::new("shop", "b")).is_some());
        assert!(state.remove(ObjectKey::new("shop", "b")).is_none());
        state.begin();
        let list = [item("a", "2"), item("d", "1")];
        assert_eq!(told(list.into_iter().filter_map(|item| state.upsert(item))), ["d"]);
        assert_eq!(told(state.end()), ["-c"]);
    }

    #[test]
    fn a_list_that_breaks_off_removes_nothing() {
        let mut state = Told::new(Kind::Service);
        state.begin();
        for name in ["a", "b"] {
            state.upsert(item(name, "1"));
        }
        state.end();
        state.begin();
        state.upsert(item("a", "1"));
        // Anew, from the start.
        state.begin();
        assert!(state.upsert(item("a", "1")).is_none() && state.upsert(item("b", "1")).is_none());
        assert!(state.end().is_empty());
    }

    #[test]
    fn what_cannot_be_read_stays_as_it_was() {
        let mut state = Told::new(Kind::Service);
        state.begin();
        state.upsert(item("a", "1"));
        assert!(state.upsert(broken("a")).is_none() && state.upsert(broken("b")).is_none());
        assert!(state.end().is_empty());
        assert_eq!(state.faults().len(), 2);
        // Read again: the same object is no news, and the fault is gone.
        assert!(state.upsert(item("a", "1")).is_none());
        assert_eq!(state.faults().len(), 1);
        state.begin();
        assert_eq!(told(state.end()), ["-a"]);
        assert!(state.faults().is_empty());
    }
}
