//! When the records of a partition were written, roughly: one time for each [`STEP`] that holds any, so that the oldest
//! unfinished record can be compared with the retention of its topic. Pure.

use std::collections::VecDeque;

use crate::model::units::{EpochMs, Offset};

/// Seconds between two remembered times; a time may be too old by that. Retention is a matter of days.
const STEP: u32 = 600;

/// The times of one partition, from its first unfinished record on.
#[derive(Debug, Default)]
pub(super) struct Times(VecDeque<(i64, u32)>);

impl Times {
    /// A record was read, after those before it.
    pub(super) fn record(&mut self, offset: Offset, written: EpochMs) {
        let written = u32::try_from(written.seconds().max(0)).unwrap_or(u32::MAX);
        let last = self.0.back();
        if last.is_none_or(|(_, last)| written >= last.saturating_add(STEP)) {
            self.0.push_back((offset.0, written));
        }
    }

    /// About when the record at `offset` was written, seconds since the epoch: at that time, or up to [`STEP`] later. What is
    /// before it is forgotten.
    pub(super) fn of(&mut self, offset: Offset) -> Option<u32> {
        while self.0.get(1).is_some_and(|(next, _)| *next <= offset.0) {
            self.0.pop_front();
        }
        let (first, written) = self.0.front()?;
        (*first <= offset.0).then_some(*written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_the_time_of_its_step_or_of_one_that_is_up_to_ten_minutes_older() {
        let mut times = Times::default();
        for number in 0..10_000_i64 {
            times.record(Offset(number), EpochMs(1_000_000 + number * 7_000));
        }
        assert!(times.0.len() < 130, "{} steps in 19 hours", times.0.len());
        for number in [0, 1, 85, 86, 4_321, 9_999] {
            let written = u32::try_from(1_000 + number * 7).unwrap();
            let found = times.of(Offset(number)).unwrap();
            assert!(
                found <= written && written - found <= STEP,
                "{number}: {found}, not {written}"
            );
        }
        assert_eq!(times.0.len(), 1, "what is before it is forgotten");
        assert_eq!(
            times.of(Offset(3)),
            None,
            "of what is forgotten nothing is said"
        );
    }

    #[test]
    fn a_producer_whose_clock_is_behind_makes_no_record_older() {
        let mut times = Times::default();
        assert_eq!(times.of(Offset(0)), None);
        times.record(Offset(5), EpochMs(10_000_000));
        times.record(Offset(6), EpochMs(1_000));
        assert_eq!(times.of(Offset(6)), Some(10_000));
    }
}
