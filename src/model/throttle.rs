//! Rate limit of log lines: frequent events must not flood the log, but the number of suppressed lines is reported.

use std::time::{Duration, Instant};

/// Lets some lines through per interval, and counts the suppressed ones.
#[derive(Debug)]
pub struct Throttle {
    most: u32,
    between: Duration,
    /// When the interval began, and how many lines it had.
    last: Option<(Instant, u32)>,
    suppressed: u64,
}

impl Throttle {
    /// At most one line per `between`.
    #[must_use]
    pub fn new(between: Duration) -> Self {
        Self::burst(1, between)
    }

    /// At most `most` lines per `between`.
    #[must_use]
    pub fn burst(most: u32, between: Duration) -> Self {
        Self {
            most,
            between,
            last: None,
            suppressed: 0,
        }
    }

    /// Whether to log at `now`: `Some` with the number of lines suppressed since the last one.
    pub fn pass(&mut self, now: Instant) -> Option<u64> {
        match &mut self.last {
            Some((began, lines)) if now.saturating_duration_since(*began) < self.between => {
                if *lines >= self.most {
                    self.suppressed += 1;
                    return None;
                }
                *lines += 1;
            }
            last => *last = Some((now, 1)),
        }
        Some(std::mem::take(&mut self.suppressed))
    }

    /// The number of suppressed lines, once their interval is over and no line has reported it; it is then reported.
    pub fn flush(&mut self, now: Instant) -> Option<u64> {
        let (began, _) = self.last?;
        if self.suppressed == 0 || now.saturating_duration_since(began) < self.between {
            return None;
        }
        // The summary is a line of the next interval.
        self.last = Some((now, 1));
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

    #[test]
    fn a_burst_passes_and_the_rest_is_summed_up_when_it_is_over() {
        let start = crate::edge::clock::instant();
        let at = |ms| start + Duration::from_millis(ms);
        let mut throttle = Throttle::burst(3, Duration::from_secs(10));
        let passed: Vec<_> = (0..1_483).filter_map(|ms| throttle.pass(at(ms))).collect();
        assert_eq!(passed, [0, 0, 0]);
        assert_eq!(throttle.flush(at(9_999)), None);
        assert_eq!(throttle.flush(at(10_000)), Some(1_480));
        assert_eq!(throttle.flush(at(10_001)), None);
        let later: Vec<_> = (11_000..11_010)
            .filter_map(|ms| throttle.pass(at(ms)))
            .collect();
        assert_eq!(later, [0, 0], "the summary was a line of this interval");
        assert_eq!(throttle.pass(at(20_000)), Some(8));
    }
}
