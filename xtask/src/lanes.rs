//! Work that waits more than it computes, some of it at the same time.

use std::{
    sync::{Mutex, PoisonError},
    thread,
};

/// Does `work` to each of `items`, `count` of them at once, the first ones first. The results are in the items' order; one is missing if
/// the work panicked.
pub fn lanes<T: Sync, R: Send>(items: &[T], count: usize, work: impl Fn(&T) -> R + Sync) -> Vec<Option<R>> {
    let queue = Mutex::new(items.iter().enumerate());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let lane = || {
        let mut done = Vec::new();
        while let Some((number, item)) = next() {
            done.push((number, work(item)));
        }
        done
    };
    let mut results: Vec<Option<R>> = items.iter().map(|_| None).collect();
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..count).map(|_| scope.spawn(lane)).collect();
        for (number, result) in lanes.into_iter().filter_map(|lane| lane.join().ok()).flatten() {
            results[number] = Some(result);
        }
    });
    results
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::lanes;

    #[test]
    fn results_are_in_order_whoever_is_first() {
        // Nobody is through before two are at it.
        let both = Barrier::new(2);
        let results = lanes(&[3, 1, 4, 1], 2, |item| {
            both.wait();
            item * 2
        });
        assert_eq!(results, [Some(6), Some(2), Some(8), Some(2)]);
    }

    #[test]
    fn nothing_is_done_to_nothing() {
        assert!(lanes(&[] as &[u8], 2, |_| ()).is_empty());
    }
}
