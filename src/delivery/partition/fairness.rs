//! Fairness inside a partition: a subscriber with a large backlog may hold its partition's intake up, but nobody who
//! waits behind it for long.
//!
//! A partition is read in order, so a backlog of a healthy endpoint that is longer than memory stands before all that
//! comes behind it. To park the overflow would cost two appends a command, and for nothing if nobody is behind. So after
//! [`PATIENCE`] the log is read ahead, once each record, to see whether anybody is. If so, the overflow up to there is
//! parked, each command until its turn; if not, the backlog is sent as fast as its endpoint takes it.
//!
//! Pure: reading ahead is done elsewhere.

use std::time::{Duration, Instant};

use crate::model::units::{Offset, Position};

/// How long a backlog may hold its partition up before it is looked who waits behind it.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// What is known of who waits in a partition.
#[derive(Debug, Default)]
pub struct Fairness {
    /// Since when a backlog has been holding intake up.
    held_since: Option<Instant>,
    asking: bool,
    /// Up to where has been looked.
    seen_to: i64,
    /// Up to there somebody else waits.
    others_to: i64,
}

impl Fairness {
    /// A command that its quick lane has no room for waits if `true`; else it is to be parked.
    pub fn waits(&mut self, offset: Offset, now: Instant) -> bool {
        if offset.0 < self.others_to {
            return false;
        }
        self.held_since.get_or_insert(now);
        true
    }

    /// All that had come in has been taken.
    pub fn no_longer_held(&mut self) {
        self.held_since = None;
    }

    /// From where to look ahead now, if intake is held up at `first`.
    pub fn ask(&mut self, first: Offset, now: Instant) -> Option<Offset> {
        let long = self
            .held_since
            .is_some_and(|since| now.saturating_duration_since(since) >= PATIENCE);
        if !long || self.asking {
            return None;
        }
        self.asking = true;
        // The next look is after another while.
        self.held_since = Some(now);
        Some(Offset(self.seen_to.max(first.0)))
    }

    /// The last command of somebody else, and up to where has been looked.
    pub fn learn(&mut self, last: Option<Offset>, seen_to: Position) {
        self.asking = false;
        self.seen_to = self.seen_to.max(seen_to.0);
        if let Some(last) = last {
            self.others_to = self.others_to.max(last.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_is_parked_only_as_far_as_somebody_waits_behind_it() {
        let mut now = crate::edge::clock::instant();
        let mut fairness = Fairness::default();
        assert!(fairness.waits(Offset(10), now));
        assert_eq!(
            fairness.ask(Offset(10), now),
            None,
            "it may hold for a while"
        );
        now += PATIENCE;
        assert_eq!(fairness.ask(Offset(10), now), Some(Offset(10)));
        assert_eq!(fairness.ask(Offset(10), now), None, "one look at a time");
        fairness.learn(Some(Offset(500)), Position(1000));
        assert!(!fairness.waits(Offset(499), now));
        assert!(fairness.waits(Offset(501), now));
        now += PATIENCE;
        assert_eq!(
            fairness.ask(Offset(501), now),
            Some(Offset(1000)),
            "each record is looked at once"
        );
        fairness.learn(None, Position(2000));
        assert!(fairness.waits(Offset(1999), now));
    }

    #[test]
    fn a_partition_that_keeps_up_is_never_looked_into() {
        let mut now = crate::edge::clock::instant();
        let mut fairness = Fairness::default();
        for offset in 0..100 {
            assert!(fairness.waits(Offset(offset), now));
            now += PATIENCE / 2;
            assert_eq!(fairness.ask(Offset(offset), now), None);
            fairness.no_longer_held();
        }
    }
}
