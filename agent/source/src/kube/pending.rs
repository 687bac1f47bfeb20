//! What waits to be delivered: changes of all kinds, the last one of each object, and what is wrong.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::batch::{Batch, Progress};
use crate::fault::Fault;
use crate::object::{Change, Id, Kind};

/// So many changes are delivered together at most. While first lists arrive this bounds the memory that they take.
const FULL: usize = 512;

/// What the watch of one kind says.
#[derive(Debug)]
pub enum News {
    /// Something changed.
    Change(Change),
    /// The first list has been told to its end.
    Listed(Kind),
    /// Objects of a kind that cannot be read at present.
    Unreadable(Kind, Vec<Fault>),
    /// Why a kind cannot be watched at present; `None` once it can.
    Trouble(Kind, Option<Fault>),
}

/// The queue.
#[derive(Debug)]
pub struct Pending {
    /// The kinds whose first lists make the whole.
    kinds: BTreeSet<Kind>,
    changes: Vec<Change>,
    /// Where each object's change is.
    places: HashMap<Id, usize>,
    listed: BTreeSet<Kind>,
    unreadable: BTreeMap<Kind, Vec<Fault>>,
    trouble: BTreeMap<Kind, Fault>,
    complete: bool,
    /// What was said last, besides changes.
    said: Option<(Vec<Fault>, Progress)>,
}

impl Pending {
    /// Nothing waits. `kinds` are those whose first lists make the whole.
    pub fn new(kinds: impl IntoIterator<Item = Kind>) -> Self {
        Self {
            kinds: kinds.into_iter().collect(),
            changes: Vec::new(),
            places: HashMap::new(),
            listed: BTreeSet::new(),
            unreadable: BTreeMap::new(),
            trouble: BTreeMap::new(),
            complete: false,
            said: None,
        }
    }

    /// Takes news. A later change of an object takes the place of an earlier one.
    pub fn take(&mut self, news: News) {
        match news {
            News::Change(change) => {
                let id = match &change {
                    Change::Upsert(object) => object.id(),
                    Change::Remove(id) => id.clone(),
                };
                if let Some(&place) = self.places.get(&id) {
                    self.changes[place] = change;
                } else {
                    self.places.insert(id, self.changes.len());
                    self.changes.push(change);
                }
            }
            News::Listed(kind) => {
                self.listed.insert(kind);
            }
            News::Unreadable(kind, faults) => {
                self.unreadable.insert(kind, faults);
            }
            News::Trouble(kind, Some(fault)) => {
                self.trouble.insert(kind, fault);
            }
            News::Trouble(kind, None) => {
                self.trouble.remove(&kind);
            }
        }
    }

    /// Whether news must wait until something has been delivered.
    pub fn full(&self) -> bool {
        self.changes.len() >= FULL
    }

    /// Whether there is anything to deliver.
    pub fn due(&self) -> bool {
        !self.changes.is_empty() || self.said.as_ref() != Some(&(self.faults(), self.progress()))
    }

    /// All that waits.
    pub fn batch(&mut self) -> Batch {
        let (faults, progress) = (self.faults(), self.progress());
        self.complete |= progress == Progress::Complete;
        self.said = Some((faults.clone(), progress));
        self.places.clear();
        Batch { changes: std::mem::take(&mut self.changes), faults, progress }
    }

    fn faults(&self) -> Vec<Fault> {
        let mut faults: Vec<Fault> = self.trouble.values().chain(self.unreadable.values().flatten()).cloned().collect();
        faults.sort();
        faults.dedup();
        faults
    }

    fn progress(&self) -> Progress {
        if self.complete {
            Progress::Complete
        } else if !self.kinds.is_subset(&self.listed) {
            Progress::Loading
        } else if self.unreadable.values().any(|faults| !faults.is_empty()) {
            // What the kernel holds for an object that cannot be read is its last good state.
            Progress::Partial
        } else {
            Progress::Complete
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use culvert_model::objects::{ObjectKey, ObjectMeta, Service};

    use super::*;
    use crate::object::Object;

    const KINDS: [Kind; 3] = [Kind::Service, Kind::EndpointSlice, Kind::Node];

    fn upsert(name: &str, cluster_ip: &str) -> News {
        let metadata = ObjectMeta { name: name.into(), namespace: "shop".into(), ..ObjectMeta::default() };
        let mut service = Service { metadata, ..Service::default() };
        service.spec.cluster_ip = cluster_ip.into();
        News::Change(Change::Upsert(Object::Service(Arc::new(service))))
    }

    fn remove(name: &str) -> News {
        News::Change(Change::Remove(Id { kind: Kind::Service, key: ObjectKey::new("shop", name) }))
    }

    fn words(batch: &Batch) -> Vec<String> {
        let word = |change: &Change| match change {
            Change::Upsert(Object::Service(service)) => {
                format!("{}={}", service.metadata.name, service.spec.cluster_ip)
            }
            Change::Upsert(other) => panic!("{other:?}"),
            Change::Remove(id) => format!("-{}", id.key.name),
        };
        batch.changes.iter().map(word).collect()
    }

    #[test]
    fn of_several_changes_of_an_object_the_last_is_delivered() {
        let mut pending = Pending::new(KINDS);
        for news in [upsert("a", "1"), upsert("b", "1"), upsert("a", "2"), remove("b"), upsert("c", "1")] {
            pending.take(news);
        }
        assert_eq!(words(&pending.batch()), ["a=2", "-b", "c=1"]);
        assert!(!pending.due());
        pending.take(upsert("b", "3"));
        assert_eq!(words(&pending.batch()), ["b=3"]);
    }

    #[test]
    fn it_is_complete_after_the_first_lists_of_all_kinds() {
        let mut pending = Pending::new(KINDS);
        assert_eq!(pending.batch().progress, Progress::Loading);
        pending.take(News::Listed(Kind::Service));
        pending.take(News::Listed(Kind::Node));
        assert!(!pending.due());
        pending.take(News::Listed(Kind::EndpointSlice));
        assert!(pending.due());
        assert_eq!(pending.batch().progress, Progress::Complete);
        // And stays so, whatever comes.
        pending.take(News::Unreadable(Kind::Service, vec![Fault::new("broken")]));
        pending.take(News::Trouble(Kind::Node, Some(Fault::warning("away"))));
        let batch = pending.batch();
        assert_eq!((batch.progress, batch.faults.len()), (Progress::Complete, 2));
        pending.take(News::Trouble(Kind::Node, None));
        assert_eq!(pending.batch().faults.len(), 1);
    }

    #[test]
    fn an_object_that_could_never_be_read_holds_back_completeness() {
        let mut pending = Pending::new(KINDS);
        pending.take(News::Unreadable(Kind::Service, vec![Fault::new("broken")]));
        for kind in KINDS {
            pending.take(News::Listed(kind));
        }
        assert_eq!(pending.batch().progress, Progress::Partial);
        pending.take(News::Unreadable(Kind::Service, vec![]));
        assert_eq!(pending.batch().progress, Progress::Complete);
    }
}
