//! Which events are to be written when. Pure: conditions go in, posts come out, `now` is an argument.
//!
//! A condition is told of when it begins, once. One that comes again is told of as a series: the same event with a count. While it lasts
//! it is told of again after [`REMIND`], for API servers keep events for an hour. All of it passes a token bucket.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::{Condition, Rate, Scope, Topic};

/// Conditions that are kept in mind; more are not told of.
const CAPACITY: usize = 1_000;
/// Every node sees a condition of the cluster. Whoever comes later finds the event there.
const SPREAD: Duration = Duration::from_secs(8);
/// Recurrences are told of together, no more often than this.
const SERIES: Duration = Duration::from_mins(1);
/// A condition that ended is forgotten after this time; until then its return is a recurrence.
const FORGET: Duration = Duration::from_mins(10);
/// A condition that lasts is told of anew.
const REMIND: Duration = Duration::from_mins(65);
/// The pause after a failed attempt.
const RETRY: Duration = Duration::from_secs(10);

/// The conditions, and what has been written of each.
#[derive(Debug)]
pub struct Board {
    topics: HashMap<Topic, HashSet<Condition>>,
    posts: HashMap<Condition, State>,
    rate: Rate,
    tokens: f64,
    filled: Instant,
}

#[derive(Debug)]
struct State {
    /// Topics under which it is so at present.
    topics: usize,
    /// How often it began.
    count: u32,
    /// The count that was written; 0 = none was.
    written: u32,
    /// When to write what is not written.
    due: Instant,
    /// When it was written last.
    written_at: Instant,
    /// When it ended last.
    ended_at: Instant,
}

/// Something to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Post {
    /// What is so.
    pub condition: Condition,
    /// How often it began; a series from 2.
    pub count: u32,
}

/// What became of a post.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is there.
    Written,
    /// It will never be: the object is gone, or the server refuses it.
    Dropped,
    /// The server could not be asked.
    Failed,
}

impl Board {
    /// Nothing is so.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { topics: HashMap::new(), posts: HashMap::new(), rate, tokens: f64::from(rate.burst), filled: now }
    }

    /// Replaces all conditions of a topic. `random` is any number. `true` if there may be something to write.
    pub fn set(&mut self, topic: &Topic, conditions: Vec<Condition>, now: Instant, random: u64) -> bool {
        if conditions.is_empty() && !self.topics.contains_key(topic) {
            return false;
        }
        let conditions: HashSet<Condition> = conditions.into_iter().collect();
        let before = self.topics.remove(topic).unwrap_or_default();
        for condition in before.difference(&conditions) {
            self.end(condition, now);
        }
        let mut news = false;
        for condition in conditions.difference(&before) {
            news |= self.begin(condition, now, random);
        }
        if !conditions.is_empty() {
            self.topics.insert(topic.clone(), conditions);
        }
        news
    }

    /// Takes note of something that happened, which does not last.
    pub fn tell(&mut self, happened: Condition, now: Instant) {
        self.sweep(now);
        if let Some(state) = self.posts.get_mut(&happened) {
            state.count = state.count.saturating_add(1);
            state.ended_at = now;
            // What has not been told of yet waits no longer for that.
            if state.written > 0 {
                state.due = now.max(state.written_at + SERIES);
            }
        } else if self.posts.len() < CAPACITY {
            let state = State { topics: 0, count: 1, written: 0, due: now, written_at: now, ended_at: now };
            self.posts.insert(happened, state);
        } else {
            tracing::debug!(reason = happened.reason, note = happened.note, "too many at once: no event");
        }
    }

    fn sweep(&mut self, now: Instant) {
        self.posts.retain(|_, state| state.topics > 0 || now < state.ended_at + FORGET);
    }

    fn begin(&mut self, condition: &Condition, now: Instant, random: u64) -> bool {
        self.sweep(now);
        if let Some(state) = self.posts.get_mut(condition) {
            state.topics += 1;
            if state.topics == 1 {
                state.count = state.count.saturating_add(1);
                state.due = now.max(state.written_at + SERIES);
            }
            return true;
        }
        if self.posts.len() >= CAPACITY {
            tracing::debug!(reason = condition.reason, note = condition.note, "too many conditions: no event");
            return false;
        }
        let wait = match condition.scope {
            Scope::Cluster => crate::kube::spread(SPREAD, random),
            Scope::Node => Duration::ZERO,
        };
        let state = State { topics: 1, count: 1, written: 0, due: now + wait, written_at: now, ended_at: now };
        self.posts.insert(condition.clone(), state);
        true
    }

    fn end(&mut self, condition: &Condition, now: Instant) {
        let Some(state) = self.posts.get_mut(condition) else { return };
        state.topics = state.topics.saturating_sub(1);
        if state.topics == 0 && state.written == 0 {
            // It was over before anybody heard of it.
            self.posts.remove(condition);
        } else if state.topics == 0 {
            state.ended_at = now;
        }
    }

    /// What to write now, if anything; it is to be followed by [`Board::done`].
    pub fn take(&mut self, now: Instant) -> Option<Post> {
        let filled = now.saturating_duration_since(self.filled).as_secs_f64() / self.rate.refill.as_secs_f64();
        self.tokens = (self.tokens + filled).min(f64::from(self.rate.burst));
        self.filled = now;
        if self.tokens < 1.0 {
            return None;
        }
        let (condition, state) =
            self.waiting().min_by_key(|(_, state)| state.due).filter(|(_, state)| state.due <= now)?;
        let post = Post { condition: condition.clone(), count: state.count };
        self.tokens -= 1.0;
        Some(post)
    }

    /// When there is something to write next.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        let due = self.waiting().map(|(_, state)| state.due).min()?;
        let token = if self.tokens < 1.0 { self.filled + self.rate.refill } else { now };
        Some(due.max(token))
    }

    /// Takes note of what became of a post.
    pub fn done(&mut self, post: &Post, outcome: Outcome, now: Instant) {
        let Some(state) = self.posts.get_mut(&post.condition) else { return };
        match outcome {
            Outcome::Written | Outcome::Dropped => {
                state.written = post.count;
                state.written_at = now;
                // What came meanwhile waits for its turn, all else for the reminder.
                state.due = now + if state.count > post.count { SERIES } else { REMIND };
            }
            Outcome::Failed => state.due = now + RETRY,
        }
    }

    /// What lasts, and is written or to be written again. What was written and has ended is not.
    fn waiting(&self) -> impl Iterator<Item = (&Condition, &State)> {
        self.posts.iter().filter(|(_, state)| state.topics > 0 || state.count > state.written)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Involved, Reporter, Weight};
    use super::*;

    fn condition(note: &str, scope: Scope) -> Condition {
        let object = Involved { kind: "Service".into(), namespace: "shop".into(), name: "web".into() };
        Condition {
            object,
            reason: "Reason".into(),
            action: "Program",
            note: note.into(),
            scope,
            weight: Weight::Warning,
        }
    }

    fn topic(name: &str) -> Topic {
        Topic::Source(name.to_owned())
    }

    struct Run {
        board: Board,
        start: Instant,
    }

    impl Run {
        fn new() -> Self {
            let start = Instant::now();
            Self { board: Board::new(Reporter::agent("n1").rate, start), start }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        fn set(&mut self, notes: &[&str], seconds: u64) {
            let conditions = notes.iter().map(|note| condition(note, Scope::Node)).collect();
            let now = self.at(seconds);
            self.board.set(&topic("t"), conditions, now, 0);
        }

        /// What is written at a time, with counts.
        fn written(&mut self, seconds: u64) -> Vec<(String, u32)> {
            let now = self.at(seconds);
            let mut posts = Vec::new();
            while let Some(post) = self.board.take(now) {
                self.board.done(&post, Outcome::Written, now);
                posts.push((post.condition.note, post.count));
            }
            posts.sort();
            posts
        }
    }

    fn once(note: &str) -> Vec<(String, u32)> {
        vec![(note.to_owned(), 1)]
    }

    #[test]
    fn a_condition_is_told_of_once_while_it_lasts() {
        let mut run = Run::new();
        run.set(&["a"], 0);
        assert_eq!(run.written(0), once("a"));
        run.set(&["a"], 1);
        assert!(run.written(600).is_empty());
        run.set(&["a", "b"], 601);
        assert_eq!(run.written(601), once("b"));
        // Events do not live for ever, the condition does.
        assert_eq!(run.written(65 * 60), once("a"));
    }

    #[test]
    fn what_comes_again_is_a_series() {
        let mut run = Run::new();
        run.set(&["a"], 0);
        assert_eq!(run.written(0), once("a"));
        for i in 1..20 {
            run.set(&[], i);
            run.set(&["a"], i);
            assert!(run.written(i).is_empty());
        }
        assert_eq!(run.board.next(run.at(20)), Some(run.at(60)));
        assert_eq!(run.written(60), [("a".to_owned(), 20)]);
        // Long after it ended it is a new one.
        run.set(&[], 61);
        run.set(&["a"], 61 + 600);
        assert_eq!(run.written(61 + 600), once("a"));
    }

    #[test]
    fn what_was_over_before_it_was_told_is_not_told() {
        let mut run = Run::new();
        run.set(&["a"], 0);
        run.set(&[], 0);
        assert!(run.written(0).is_empty());
        assert_eq!(run.board.next(run.at(0)), None);
    }

    #[test]
    fn what_happened_is_told_of_once_and_what_happens_again_as_a_series() {
        let mut run = Run::new();
        let tell = |run: &mut Run, seconds| {
            let now = run.at(seconds);
            run.board.tell(condition("a", Scope::Node), now);
        };
        tell(&mut run, 0);
        assert_eq!(run.written(0), once("a"));
        assert!(run.written(65 * 60).is_empty());
        for seconds in [5000, 5001, 5002] {
            tell(&mut run, seconds);
        }
        // Long ago it was the last time; now it is a new one.
        assert_eq!(run.written(5002), [("a".to_owned(), 3)]);
        tell(&mut run, 5010);
        assert!(run.written(5011).is_empty());
        assert_eq!(run.written(5062), [("a".to_owned(), 4)]);
        assert_eq!(run.board.next(run.at(5062)), None);
    }

    #[test]
    fn a_flood_passes_slowly_and_has_an_end() {
        let mut run = Run::new();
        let notes: Vec<String> = (0..2_000).map(|i| format!("{i:04}")).collect();
        run.set(&notes.iter().map(String::as_str).collect::<Vec<_>>(), 0);
        assert_eq!(run.board.posts.len(), CAPACITY);
        assert_eq!(run.written(0).len(), 10);
        assert_eq!(run.board.next(run.at(0)), Some(run.at(2)));
        assert_eq!(run.written(2).len(), 1);
        assert_eq!(run.written(1_000).len(), 10);
    }

    #[test]
    fn the_same_condition_under_two_topics_is_one() {
        let mut run = Run::new();
        for name in ["one", "two"] {
            run.board.set(&topic(name), vec![condition("a", Scope::Node)], run.start, 0);
        }
        assert_eq!(run.written(0), once("a"));
        run.board.set(&topic("one"), vec![], run.start, 0);
        run.board.set(&topic("one"), vec![condition("a", Scope::Node)], run.start, 0);
        assert!(run.written(120).is_empty());
    }

    #[test]
    fn conditions_of_the_cluster_wait_for_a_moment_and_failures_for_another() {
        let mut run = Run::new();
        let random = Duration::from_secs(5).as_nanos() as u64;
        run.board.set(&topic("t"), vec![condition("a", Scope::Cluster)], run.start, random);
        assert_eq!(run.board.next(run.start), Some(run.at(5)));
        let post = run.board.take(run.at(5)).unwrap();
        run.board.done(&post, Outcome::Failed, run.at(5));
        assert!(run.written(14).is_empty());
        assert_eq!(run.written(15), once("a"));
    }
}
