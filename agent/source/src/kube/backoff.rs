//! Pauses before new attempts: longer each time, and never the same on two nodes.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The first pause, at most.
const FIRST: Duration = Duration::from_millis(400);
/// The longest pause, at most. client-go's is 30 s; traffic to new pods waits for as long after an outage.
const LONGEST: Duration = Duration::from_secs(15);
/// An attempt that lasted for so long was a success.
const STEADY: Duration = Duration::from_secs(30);

/// The pauses of one watch.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// An attempt failed after `lasted`. How long to wait before the next: between half of the limit and the limit, by `random`
    /// (any number), so that the nodes of a cluster do not come back together.
    pub fn failed(&mut self, lasted: Duration, random: u64) -> Duration {
        if lasted >= STEADY {
            self.failures = 0;
        }
        let limit = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let half = limit / 2;
        half + spread(half, random)
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// A duration below `limit`, by `random`.
pub fn spread(limit: Duration, random: u64) -> Duration {
    let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(random % nanos.max(1))
}

/// A random number, good enough for pauses.
pub fn random() -> u64 {
    RandomState::new().hash_one(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_have_an_end() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..12).map(|_| backoff.failed(Duration::ZERO, u64::MAX)).collect();
        assert!(pauses.is_sorted() || pauses.windows(2).all(|pair| pair[1] >= pair[0] / 2));
        for (pause, limit) in pauses.iter().zip([400, 800, 1600, 3200, 6400, 12_800, 15_000, 15_000]) {
            let limit = Duration::from_millis(limit);
            assert!(*pause >= limit / 2 && *pause < limit, "{pause:?} of {limit:?}");
        }
        assert_eq!(backoff.failures(), 12);
    }

    #[test]
    fn an_attempt_that_lasted_starts_anew() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.failed(Duration::ZERO, 1);
        }
        assert!(backoff.failed(STEADY, 1) < FIRST);
        assert_eq!(backoff.failures(), 1);
    }

    #[test]
    fn pauses_are_spread() {
        let pauses: Vec<_> = (0..64).map(|_| Backoff::default().failed(Duration::ZERO, random())).collect();
        assert!(pauses.windows(2).any(|pair| pair[0] != pair[1]));
        assert_eq!(spread(Duration::ZERO, 7), Duration::ZERO);
    }
}
