//! Hold-down: what fails counts at once, what comes back counts after a while, and later each time it fails again. So a
//! node whose cable is loose does not take its addresses with it, back and forth.
//!
//! ```text
//!             bad                       good
//!   Good ───────────► Bad ───────────────────────► Held until t
//!    ▲                 ▲          bad                │
//!    │                 └─────────────────────────────┤
//!    └───────────────────────────────────────────────┘ t has come
//! ```
//!
//! What is seen for the first time counts as it is: a cluster that starts waits for nothing.

use std::collections::BTreeMap;
use std::time::Duration;

/// A time on a clock that never goes back, since any origin that stays the same.
pub type Time = Duration;

/// How long is waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// After the first failure.
    pub first: Duration,
    /// At most; each failure doubles the wait.
    pub longest: Duration,
    /// After as long a good time, failures are forgotten.
    pub forget: Duration,
}

impl Default for Times {
    /// 10 s, 20 s, 40 s, up to 5 minutes; ten good minutes make up for everything.
    fn default() -> Self {
        Self { first: Duration::from_secs(10), longest: Duration::from_mins(5), forget: Duration::from_mins(10) }
    }
}

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may be used.
    Good,
    /// It is good, and waits until this time.
    Held(Time),
    /// It may not be used.
    Bad,
}

/// How things stand that come and go, such as nodes or links.
#[derive(Clone, Debug)]
pub struct Hold<K> {
    times: Times,
    things: BTreeMap<K, Thing>,
}

#[derive(Clone, Copy, Debug)]
struct Thing {
    good: bool,
    /// When it became so.
    since: Time,
    failures: u32,
}

impl<K: Ord> Hold<K> {
    /// Nothing is known yet.
    pub fn new(times: Times) -> Self {
        Self { times, things: BTreeMap::new() }
    }

    /// Takes an observation. One that says what the last one said changes nothing, also if it comes late.
    pub fn observe(&mut self, key: K, good: bool, now: Time) {
        let times = self.times;
        let Some(thing) = self.things.get_mut(&key) else {
            self.things.insert(key, Thing { good, since: now, failures: 0 });
            return;
        };
        if thing.good == good {
            return;
        }
        if !good {
            let steady = now.saturating_sub(times.wait(thing.failures) + thing.since) >= times.forget;
            thing.failures = if steady { 1 } else { thing.failures.saturating_add(1) };
        }
        (thing.good, thing.since) = (good, now);
    }

    /// Forgets something that is no more, such as a node that was deleted. If it comes again, it is new.
    pub fn remove(&mut self, key: &K) {
        self.things.remove(key);
    }

    /// How something stands. What was never seen is bad.
    pub fn standing(&self, key: &K, now: Time) -> Standing {
        let Some(thing) = self.things.get(key).filter(|thing| thing.good) else { return Standing::Bad };
        let until = self.until(thing);
        if now < until { Standing::Held(until) } else { Standing::Good }
    }

    /// When something will stand otherwise without an observation, if ever.
    pub fn next_change(&self, now: Time) -> Option<Time> {
        let good = self.things.values().filter(|thing| thing.good);
        good.map(|thing| self.until(thing)).filter(|until| *until > now).min()
    }

    fn until(&self, thing: &Thing) -> Time {
        thing.since.saturating_add(self.times.wait(thing.failures))
    }
}

impl Times {
    /// The wait after so many failures.
    fn wait(&self, failures: u32) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
        let factor = 1_u32.checked_shl(doublings.min(31)).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.longest)
    }
}
