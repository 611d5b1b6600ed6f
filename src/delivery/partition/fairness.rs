//! Fairness between the subscribers of a partition: a large backlog may block intake, but not for long while another
//! subscriber has commands behind it.
//!
//! A partition is read in order, so a backlog larger than memory precedes everything behind it, even if its endpoint is
//! healthy. Parking the overflow costs two appends per command, and gains nothing if no other subscriber has commands
//! behind it. So after [`PATIENCE`] the log is read ahead, each record once, to find commands of other subscribers. If
//! there are any, the overflow before them is parked, each command until its turn. If not, the backlog is sent as fast
//! as its endpoint accepts it.
//!
//! Reading ends with the first `PART` that holds such a command, so that the answer does not wait for the rest of the
//! partition. It goes on from there when all before it is parked.
//!
//! Pure: the caller performs the look-ahead.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::model::units::{Offset, Position};

/// How long a backlog may block intake before a look-ahead.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Records of which a look-ahead reads all before it answers that somebody else waits: far more than are parked while the
/// next one reads as many.
const PART: u64 = 65_536;

/// Commands without one of another subscriber after which none is expected soon: a neighbour with a command in two
/// seconds is seen among those of a whale with 8,000 per second.
const SEEN_WITHIN: u64 = 16_384;

/// A look-ahead: takes the records in order, and ends early when it has an answer.
#[derive(Debug)]
pub struct Search {
    except: HashSet<Box<str>>,
    read: u64,
    found: Others,
}

/// The answer of a look-ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Others {
    /// The last command of another subscription.
    pub last: Option<Offset>,
    /// The log was read up to here.
    pub seen_to: Position,
    /// Whether there may be more behind it.
    pub more: bool,
}

impl Search {
    /// Looks from this offset on for commands of subscriptions that are none of these.
    #[must_use]
    pub fn new(from: Offset, except: HashSet<Box<str>>) -> Self {
        Self {
            except,
            read: 0,
            found: Others {
                last: None,
                seen_to: Position(from.0),
                more: false,
            },
        }
    }

    /// A record, and its subscription.
    pub fn visit(&mut self, offset: Offset, subscription: Option<&str>) {
        if self.found.more {
            return;
        }
        self.read += 1;
        self.found.seen_to = offset.next();
        if !subscription.is_some_and(|subscription| self.except.contains(subscription)) {
            self.found.last = Some(offset);
        }
        self.found.more = self.found.last.is_some() && self.read.is_multiple_of(PART);
    }

    /// Whether no more records are needed.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.found.more
    }

    /// The answer so far.
    #[must_use]
    pub fn found(&self) -> Others {
        self.found
    }
}

/// What look-aheads found in a partition.
#[derive(Debug, Default)]
pub struct Fairness {
    /// When a backlog began to block intake.
    held_since: Option<Instant>,
    asking: bool,
    /// The look-ahead has read up to here.
    seen_to: i64,
    /// It has left something unread.
    more: bool,
    /// Other subscribers have commands up to here.
    others_to: i64,
    /// Commands routed, and how many there were when the last one was for a lane that keeps up.
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

    /// A command was routed; `keeps_up` if its lane has had no backlog for a while.
    pub fn routed(&mut self, keeps_up: bool) {
        self.routed += 1;
        if keeps_up {
            self.other_at = Some(self.routed);
        }
    }

    /// Whether subscribers that keep up have had commands recently: more of them are likely behind a backlog. While every
    /// lane has a backlog, none of them gains when the commands of another are put off.
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
        // What an unfinished look-ahead left unread holds no surprise: its neighbours need not be patient again.
        let long = self
            .held_since
            .is_some_and(|since| self.more || now.saturating_duration_since(since) >= PATIENCE);
        if !long || self.asking {
            return None;
        }
        self.asking = true;
        // Wait for [`PATIENCE`] before the next look-ahead.
        self.held_since = Some(now);
        Some(Offset(self.seen_to.max(first.0)))
    }

    /// Records the answer of a look-ahead.
    pub fn learn(&mut self, found: Others) {
        self.asking = false;
        self.seen_to = self.seen_to.max(found.seen_to.0);
        self.more = found.more;
        if let Some(last) = found.last {
            self.others_to = self.others_to.max(last.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(last: Option<i64>, seen_to: i64, more: bool) -> Others {
        Others {
            last: last.map(Offset),
            seen_to: Position(seen_to),
            more,
        }
    }

    /// Looks into a log in which everything belongs to one subscription but these offsets.
    fn look(from: i64, end: i64, others: &[i64]) -> Others {
        let mut search = Search::new(Offset(from), HashSet::from([Box::from("whale")]));
        for offset in from..end {
            let other = others.binary_search(&offset).is_ok();
            search.visit(Offset(offset), Some(if other { "other" } else { "whale" }));
            if search.is_done() {
                break;
            }
        }
        search.found()
    }

    #[test]
    fn a_neighbour_near_by_is_found_without_reading_the_rest_of_ten_million() {
        let part = PART as i64;
        assert_eq!(
            look(7, 10_000_000, &[100, 9_999_999]),
            found(Some(100), 7 + part, true)
        );
        assert_eq!(
            look(0, 2 * part - 1, &[part + 1]),
            found(Some(part + 1), 2 * part - 1, false)
        );
        assert_eq!(look(0, 1000, &[]), found(None, 1000, false));
    }

    #[test]
    fn what_was_left_unread_is_looked_at_as_soon_as_intake_gets_there() {
        let now = crate::edge::clock::instant();
        let mut fairness = Fairness::default();
        fairness.waits(Offset(0), now);
        fairness.ask(Offset(0), now + PATIENCE).unwrap();
        fairness.learn(found(Some(500), 1000, true));
        fairness.no_longer_held();
        assert_eq!(fairness.ask(Offset(400), now), None, "nothing is held");
        assert!(!fairness.waits(Offset(400), now));
        assert!(fairness.waits(Offset(501), now));
        assert_eq!(fairness.ask(Offset(501), now), Some(Offset(1000)));
        fairness.learn(found(None, 2000, false));
        assert_eq!(fairness.ask(Offset(501), now), None, "nobody is behind it");
    }

    proptest! {
        #[test]
        fn looks_that_end_early_find_in_the_end_what_one_that_reads_all_finds(
            others in proptest::collection::btree_set(0..400_000_i64, 0..20),
            end in 0..400_000_i64,
        ) {
            let others: Vec<i64> = others.into_iter().filter(|&one| one < end).collect();
            let (mut from, mut last) = (0, None);
            loop {
                let seen = look(from, end, &others);
                last = seen.last.map(|offset| offset.0).or(last);
                prop_assert!(!seen.more || seen.last.is_some());
                from = seen.seen_to.0;
                if !seen.more {
                    break;
                }
            }
            prop_assert_eq!((last, from), (others.last().copied(), end));
        }
    }

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
        fairness.learn(found(Some(500), 1000, false));
        assert!(!fairness.waits(Offset(499), now));
        assert!(fairness.waits(Offset(501), now));
        now += PATIENCE;
        assert_eq!(
            fairness.ask(Offset(501), now),
            Some(Offset(1000)),
            "each record is looked at once"
        );
        fairness.learn(found(None, 2000, false));
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
