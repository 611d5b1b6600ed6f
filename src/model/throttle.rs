//! Rate limit of log lines: frequent events must not flood the log, but the number of suppressed lines is reported.

use std::time::{Duration, Instant};

/// Lets one line through per interval, and counts the suppressed ones.
#[derive(Debug)]
pub struct Throttle {
    between: Duration,
    last: Option<Instant>,
    suppressed: u64,
}

impl Throttle {
    /// At most one line per `between`.
    #[must_use]
    pub fn new(between: Duration) -> Self {
        Self {
            between,
            last: None,
            suppressed: 0,
        }
    }

    /// Whether to log at `now`: `Some` with the number of lines suppressed since the last one.
    pub fn pass(&mut self, now: Instant) -> Option<u64> {
        if self
            .last
            .is_some_and(|last| now.saturating_duration_since(last) < self.between)
        {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_a_while_is_told_with_the_count_of_the_others() {
        let start = crate::edge::clock::instant();
        let mut throttle = Throttle::new(Duration::from_secs(1));
        let told: Vec<_> = [0, 1, 500, 999, 1000, 1001, 3000]
            .into_iter()
            .filter_map(|ms| {
                throttle
                    .pass(start + Duration::from_millis(ms))
                    .map(|suppressed| (ms, suppressed))
            })
            .collect();
        assert_eq!(told, [(0, 0), (1000, 3), (3000, 1)]);
    }
}
