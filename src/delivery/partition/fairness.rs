//! Fairness between the subscribers of a partition: a large backlog may block intake, but not for long while another
//! subscriber has commands behind it.
//!
//! A partition is read in order, so a backlog larger than memory precedes everything behind it, even if its endpoint is
//! healthy. Parking the overflow costs two appends per command, and gains nothing if no other subscriber has commands
//! behind it. So after [`PATIENCE`] the log is read ahead, each record once, to find commands of other subscribers. If
//! there are any, the overflow before them is parked, each command until its turn. If not, the backlog is sent as fast
//! as its endpoint accepts it.
//!
//! Pure: the caller performs the look-ahead.

use std::time::{Duration, Instant};

use crate::model::units::{Offset, Position};

/// How long a backlog may block intake before a look-ahead.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Commands without one of another subscriber after which none is expected soon: a neighbour with a command in two
/// seconds is seen among those of a whale with 8,000 per second.
const SEEN_WITHIN: u64 = 16_384;

/// What look-aheads found in a partition.
#[derive(Debug, Default)]
pub struct Fairness {
    /// When a backlog began to block intake.
    held_since: Option<Instant>,
    asking: bool,
    /// The look-ahead has read up to here.
    seen_to: i64,
    /// Other subscribers have commands up to here.
    others_to: i64,
    /// Commands routed, and how many there were when the last one was for a lane without a backlog.
    routed: u64,
    other_at: Option<u64>,
}

impl Fairness {
    /// Whether a command for which its quick lane has no room waits; if not, it is to be parked.
    pub fn waits(&mut self, offset: Offset, now: Instant) -> bool {
        if offset.0 < self.others_to {
            return false;
        }
        self.held_since.get_or_insert(now);
        true
    }

    /// A command was routed; `is_other` if its lane has no backlog.
    pub fn routed(&mut self, is_other: bool) {
        self.routed += 1;
        if is_other {
            self.other_at = Some(self.routed);
        }
    }

    /// Whether subscribers without a backlog have had commands recently: more of them are likely behind a backlog.
    #[must_use]
    pub fn saw_others(&self) -> bool {
        self.other_at
            .is_some_and(|at| self.routed - at < SEEN_WITHIN)
    }

    /// All pending records were admitted.
    pub fn no_longer_held(&mut self) {
        self.held_since = None;
    }

    /// Where to start the look-ahead now, if intake is blocked at `first`.
    pub fn ask(&mut self, first: Offset, now: Instant) -> Option<Offset> {
        let long = self
            .held_since
            .is_some_and(|since| now.saturating_duration_since(since) >= PATIENCE);
        if !long || self.asking {
            return None;
        }
        self.asking = true;
        // Wait for [`PATIENCE`] before the next look-ahead.
        self.held_since = Some(now);
        Some(Offset(self.seen_to.max(first.0)))
    }

    /// Records the last command of another subscriber, and the position up to which the log was read.
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
