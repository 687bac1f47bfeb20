//! How fast is written. Pure: a token bucket with the time as an argument.

use std::time::{Duration, Instant};

/// A token bucket.
#[derive(Debug)]
pub struct Pace {
    burst: u32,
    interval: Duration,
    /// When the bucket will be full.
    full: Instant,
}

impl Pace {
    /// A full bucket: `burst` at once, and one more each `interval`.
    pub fn new(burst: u32, interval: Duration, now: Instant) -> Self {
        Self { burst, interval, full: now }
    }

    /// When the next may be done; not after `now` if that is at once.
    pub fn next(&self, now: Instant) -> Instant {
        let missing = self.full.saturating_duration_since(now) + self.interval;
        let capacity = self.interval * self.burst;
        now + missing.saturating_sub(capacity)
    }

    /// One is done.
    pub fn take(&mut self, now: Instant) {
        self.full = self.full.max(now) + self.interval;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_one_by_one() {
        let start = Instant::now();
        let tenth = Duration::from_millis(100);
        let mut pace = Pace::new(3, tenth, start);
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
