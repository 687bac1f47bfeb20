//! What is to be written of objects that nobody else writes. Pure: time is an argument.
//!
//! Of each object the newest value is written, one write at a time, so that no older one can come after it; and no more often than
//! its pauses let it.

use std::collections::BTreeMap;
use std::time::Instant;

/// Values that wait for being written, by object.
#[derive(Debug)]
pub struct Outbox<K, V>(BTreeMap<K, Entry<V>>);

#[derive(Debug)]
struct Entry<V> {
    /// What waits.
    value: Option<V>,
    /// A write is under way.
    busy: bool,
    /// No write begins before this time.
    due: Instant,
}

impl<K: Ord + Clone, V> Outbox<K, V> {
    /// Nothing waits.
    pub fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// A value is to be written, and none before it any more.
    pub fn put(&mut self, key: K, value: V, now: Instant) {
        let entry = self.0.entry(key).or_insert(Entry { value: None, busy: false, due: now });
        entry.value = Some(value);
    }

    /// What may be written now; each is to be followed by [`Outbox::done`].
    pub fn take(&mut self, now: Instant) -> Vec<(K, V)> {
        let ready = self.0.iter_mut().filter(|(_, entry)| !entry.busy && entry.due <= now);
        let begin = |(key, entry): (&K, &mut Entry<V>)| {
            let value = entry.value.take()?;
            entry.busy = true;
            Some((key.clone(), value))
        };
        ready.filter_map(begin).collect()
    }

    /// A write has ended; the object's next one begins at `due` at the earliest. `again` is what was not written, and is to be, unless
    /// there is something newer.
    pub fn done(&mut self, key: &K, again: Option<V>, due: Instant) {
        let Some(entry) = self.0.get_mut(key) else { return };
        entry.busy = false;
        entry.due = due;
        entry.value = entry.value.take().or(again);
    }

    /// When something may be written next, if that is a matter of time.
    pub fn next(&self) -> Option<Instant> {
        self.0.values().filter(|entry| !entry.busy && entry.value.is_some()).map(|entry| entry.due).min()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_newest_is_written_one_at_a_time_and_not_too_often() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut outbox = Outbox::new();
        outbox.put("a", 1, start);
        outbox.put("b", 1, start);
        outbox.put("a", 2, start);
        assert_eq!(outbox.next(), Some(start));
        assert_eq!(outbox.take(start), [("a", 2), ("b", 1)]);
        // While one is under way the next one waits, and only the last of them.
        outbox.put("a", 3, start);
        outbox.put("a", 4, start);
        assert!(outbox.take(start + second).is_empty() && outbox.next().is_none());
        outbox.done(&"a", None, start + second);
        outbox.done(&"b", None, start + second);
        assert!(outbox.take(start).is_empty());
        assert_eq!(outbox.next(), Some(start + second));
        assert_eq!(outbox.take(start + second), [("a", 4)]);
    }

    #[test]
    fn what_could_not_be_written_is_written_later_unless_there_is_something_newer() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut outbox = Outbox::new();
        for newer in [None, Some(2)] {
            outbox.put("a", 1, start);
            assert_eq!(outbox.take(start), [("a", 1)]);
            if let Some(newer) = newer {
                outbox.put("a", newer, start);
            }
            outbox.done(&"a", Some(1), start + second);
            assert!(outbox.take(start).is_empty());
            assert_eq!(outbox.take(start + second), [("a", newer.unwrap_or(1))]);
            outbox.done(&"a", None, start);
        }
    }
}
