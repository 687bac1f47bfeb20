//! How fast is written. Pure: a token bucket with the time as an argument.

use std::time::{Duration, Instant};

/// How fast is written at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// So many at once...
    pub burst: u32,
    /// ... and how long it takes until one more may be.
    pub interval: Duration,
}

/// A token bucket.
#[derive(Debug)]
pub struct Pace {
    rate: Rate,
    /// When the bucket will be full.
    full: Instant,
}

impl Pace {
    /// A full bucket.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, full: now }
    }

    /// When the next may be done; not after `now` if that is at once.
    pub fn next(&self, now: Instant) -> Instant {
        let Rate { burst, interval } = self.rate;
        let missing = self.full.saturating_duration_since(now) + interval;
        now + missing.saturating_sub(interval * burst)
    }

    /// One is done.
    pub fn take(&mut self, now: Instant) {
        self.full = self.full.max(now) + self.rate.interval;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_one_by_one() {
        let start = Instant::now();
        let tenth = Duration::from_millis(100);
        let mut pace = Pace::new(Rate { burst: 3, interval: tenth }, start);
        for _ in 0..3 {
            assert!(pace.next(start) <= start);
            pace.take(start);
        }
        assert_eq!(pace.next(start), start + tenth);
        let later = start + tenth;
        assert!(pace.next(later) <= later);
        pace.take(later);
        assert_eq!(pace.next(later), later + tenth);
        // Full again after a while, and no fuller.
        let later = start + tenth * 100;
        for _ in 0..3 {
            assert!(pace.next(later) <= later);
            pace.take(later);
        }
        assert!(pace.next(later) > later);
    }
}
