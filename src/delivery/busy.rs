//! How busy delivery's threads are: the mean over all threads and the last seconds.
//!
//! The mean, because operators scale replicas by it. A partition uses one thread and cannot be split. When one large
//! subscriber keeps a thread busy, the maximum is 1 whatever the number of replicas, and asks for more of them in vain.
//! When the mean is high, several partitions are busy, and another replica takes over some of them.
//!
//! Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The length of the sliding window.
const SPAN: Duration = Duration::from_secs(10);
/// How often a sample is taken.
const EVERY: Duration = Duration::from_secs(1);

/// Samples of the threads' total busy time, oldest first.
#[derive(Debug, Default)]
pub(super) struct Busy(VecDeque<(Instant, Duration)>);

impl Busy {
    /// Records that all `threads` together have been busy for `total` since they began. Returns the busy share of the
    /// last [`SPAN`], about once per second.
    pub(super) fn observe(&mut self, total: Duration, threads: usize, now: Instant) -> Option<f64> {
        let since = |at: Instant| now.saturating_duration_since(at);
        if self.0.back().is_some_and(|(at, _)| since(*at) < EVERY) {
            return None;
        }
        // Keep one sample that is at least as old as the window.
        while self.0.get(1).is_some_and(|(at, _)| since(*at) >= SPAN) {
            self.0.pop_front();
        }
        let first = self.0.front().copied();
        self.0.push_back((now, total));
        let (at, before) = first?;
        let possible = since(at).as_secs_f64() * threads.max(1) as f64;
        Some((total.saturating_sub(before).as_secs_f64() / possible).min(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_the_mean_of_the_threads_over_the_last_ten_seconds() {
        let mut now = crate::edge::clock::instant();
        let mut busy = Busy::default();
        let mut total = Duration::from_secs(3);
        assert_eq!(busy.observe(total, 2, now), None, "nothing to compare with");
        let mut step = |time: Duration, worked: Duration| {
            now += time;
            total += worked;
            busy.observe(total, 2, now)
        };
        assert_eq!(step(EVERY / 10, Duration::ZERO), None);
        let ratio = step(EVERY * 9 / 10, EVERY).unwrap();
        assert!((ratio - 0.5).abs() < 1e-9, "{ratio}: one of two threads");
        for _ in 0..30 {
            step(EVERY, EVERY * 2);
        }
        let ratio = step(EVERY, EVERY * 2).unwrap();
        assert!((ratio - 1.0).abs() < 1e-9, "{ratio}");
        for second in 1..=10 {
            let ratio = step(EVERY, Duration::ZERO).unwrap();
            let expected = 1.0 - f64::from(second) / 10.0;
            assert!((ratio - expected).abs() < 1e-9, "{ratio} after {second} s");
        }
        assert!(busy.0.len() <= 12, "{}", busy.0.len());
    }
}
