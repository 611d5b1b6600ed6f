//! The pace at which a partition grows, from which follows how much is expected behind a command that waits in it. Pure.

use std::time::{Duration, Instant};

use crate::model::units::Position;

/// How often the pace of a partition is measured. What was parked comes back in bursts, which are no pace.
const MEASURED: Duration = Duration::from_secs(20);
/// The weight of a measurement beside all before it.
const WEIGHT: f64 = 0.125;

/// The pace at which a partition grows.
#[derive(Debug, Default)]
pub(super) struct Growth {
    /// The last measurement: when, and the end of the partition.
    last: Option<(Instant, Position)>,
    per_second: Option<f64>,
}

impl Growth {
    /// What was taken ends at `end`. A moving average of the last minutes.
    pub(super) fn tick(&mut self, end: Position, now: Instant) {
        let (since, before) = *self.last.get_or_insert((now, end));
        let time = now.saturating_duration_since(since);
        if time < MEASURED {
            return;
        }
        let measured = (end.0 - before.0) as f64 / time.as_secs_f64();
        let before = self.per_second.unwrap_or(measured);
        self.per_second = Some(before + WEIGHT * (measured - before));
        self.last = Some((now, end));
    }

    /// How many offsets are expected within this time; `None` while the pace is unknown.
    pub(super) fn within(&self, time: Duration) -> Option<i64> {
        Some((self.per_second? * time.as_secs_f64()) as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_no_pace_and_one_that_lasts_is() {
        let mut now = crate::edge::clock::instant();
        let mut growth = Growth::default();
        let (mut end, minute) = (0, Duration::from_secs(60));
        let mut second = |growth: &mut Growth, more| {
            growth.tick(Position(end), now);
            (now, end) = (now + Duration::from_secs(1), end + more);
        };
        assert_eq!(growth.within(minute), None);
        for _ in 0..61 {
            second(&mut growth, 10);
        }
        assert_eq!(growth.within(minute), Some(600));
        second(&mut growth, 2_000);
        for _ in 0..59 {
            second(&mut growth, 10);
        }
        let soon = growth.within(minute).unwrap();
        assert!((600..1_500).contains(&soon), "{soon}");
        for _ in 0..600 {
            second(&mut growth, 1_000);
        }
        let lasting = growth.within(minute).unwrap();
        assert!((55_000..=60_000).contains(&lasting), "{lasting}");
    }
}
