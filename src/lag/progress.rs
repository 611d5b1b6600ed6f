//! How far a partition is read, and whether the end offset of a given time was reached. Pure.
//!
//! The client reports the end of a partition once, when it gets there, and nothing when its connection hangs or the leader
//! moves. Therefore another client queries the end offsets regularly ([`Progress::ask`]), and the figures are as of the
//! last query whose end offsets were all reached. An end offset cannot simply be compared with the last record read: the
//! last offsets of a partition may be transaction markers, which readers do not see. Nor does the client say which end
//! offset it reached, so that may be decided only at the next query.

/// One partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Records before it are done: never read, or dropped.
    pub floor: i64,
    /// The offset after the last record read.
    next: i64,
    /// The last stable offset at the last query; `None` before the first.
    end: Option<i64>,
    /// The client reported the end, and no record since.
    at_end: bool,
    /// The client reported a record or the end since the last query.
    heard: bool,
    view: View,
}

/// Whether `end` was reached, where the records alone do not show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum View {
    /// The client reached it.
    Reached,
    /// The client reached an end shortly before the query: this one, or an earlier one. In the latter case more records
    /// follow within milliseconds; so if none follow before the next query, it was this one.
    Unclear,
    /// It was not reached, as far as known.
    Behind,
}

/// The result of a query for the end offset of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The end offset of the previous query was reached.
    Reached,
    /// It was not, as far as known; or this is the first query.
    Behind,
    /// The end offset decreased: the partition was recreated or truncated, and must be read again.
    Recreated,
}

impl Progress {
    /// A partition read from `from` on.
    #[must_use]
    pub fn new(from: i64) -> Self {
        Self {
            floor: from,
            next: from,
            end: None,
            at_end: false,
            heard: false,
            view: View::Behind,
        }
    }

    /// The same partition read again from `from` on, with the same known end offset.
    #[must_use]
    pub fn again(self, from: i64) -> Self {
        Self {
            end: self.end,
            ..Self::new(from)
        }
    }

    /// A record was read.
    pub fn record(&mut self, offset: i64) {
        self.next = offset + 1;
        self.heard = true;
        self.at_end = false;
    }

    /// The client reported the end.
    pub fn end(&mut self) {
        self.heard = true;
        self.at_end = true;
        self.view = View::Reached;
    }

    /// Whether the end offset of the last query was reached.
    #[must_use]
    pub fn is_reached(&self) -> bool {
        self.end
            .is_some_and(|end| self.view == View::Reached || self.next >= end)
    }

    /// The end offset of the last query, or 0.
    #[must_use]
    pub fn known_end(&self) -> i64 {
        self.end.unwrap_or(0)
    }

    /// Whether the end offset of the last query is before `position`.
    #[must_use]
    pub fn is_before(&self, position: i64) -> bool {
        self.end.is_some_and(|end| end < position)
    }

    /// Takes the end offset that the brokers returned.
    pub fn ask(&mut self, end: i64) -> Asked {
        let reached = self.is_reached();
        let before = self.end.replace(end);
        if before.is_some_and(|before| end < before) {
            return Asked::Recreated;
        }
        let heard = std::mem::take(&mut self.heard);
        let moved = before != Some(end);
        self.view = match self.view {
            View::Unclear if self.at_end && !moved => View::Reached,
            view if self.at_end && !moved => view,
            // A client that reports nothing though the end moved hangs, or is about to report.
            _ if self.at_end && heard => View::Unclear,
            _ => View::Behind,
        };
        let settled = !moved && self.is_reached();
        if reached || settled {
            Asked::Reached
        } else {
            Asked::Behind
        }
    }

    /// About how many offsets are known to be unread; 0 while unclear, since they may be the markers of transactions.
    #[must_use]
    pub fn behind(&self) -> u64 {
        if self.view != View::Behind {
            return 0;
        }
        let behind = self.end.unwrap_or(self.next) - self.next;
        u64::try_from(behind).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_reached_when_its_last_record_was_read() {
        let mut progress = Progress::new(5);
        assert!(!progress.is_reached(), "its end is unknown");
        progress.ask(8);
        assert_eq!((progress.is_reached(), progress.behind()), (false, 3));
        progress.record(6);
        progress.record(7);
        assert!(progress.is_reached());
        progress.record(8);
        assert!(progress.is_reached(), "that end was reached");
        assert_eq!(progress.behind(), 0);
    }

    #[test]
    fn markers_at_the_end_are_passed_when_the_client_reports_the_end() {
        let mut progress = Progress::new(0);
        progress.ask(3);
        progress.record(1);
        assert!(!progress.is_reached());
        progress.end();
        assert!(progress.is_reached());
        progress.ask(3);
        assert!(progress.is_reached(), "an unchanged end is reported once");
    }

    #[test]
    fn a_silent_client_is_behind_when_the_end_moves() {
        let mut progress = Progress::new(0);
        progress.ask(0);
        progress.end();
        progress.ask(0);
        assert!(progress.is_reached());
        progress.ask(10);
        assert_eq!((progress.is_reached(), progress.behind()), (false, 10));
        progress.ask(20);
        assert_eq!((progress.is_reached(), progress.behind()), (false, 20));
        progress.end();
        assert!(progress.is_reached());
    }

    #[test]
    fn under_load_the_end_of_the_last_query_is_reached_though_the_current_one_is_not() {
        let mut progress = Progress::new(0);
        for round in 1..10 {
            progress.ask(round * 100);
            assert!(!progress.is_reached());
            progress.record(round * 100 + 20);
            assert!(progress.is_reached());
        }
    }

    #[test]
    fn a_client_at_one_end_has_not_reached_the_next() {
        let mut progress = Progress::new(0);
        progress.ask(2);
        progress.record(0);
        progress.record(1);
        progress.end();
        assert_eq!(progress.ask(5), Asked::Reached, "the end before");
        assert!(!progress.is_reached());
        // The last one is a marker.
        progress.record(2);
        progress.record(3);
        assert!(!progress.is_reached());
        progress.end();
        assert!(progress.is_reached());
        assert_eq!(progress.ask(5), Asked::Reached);
        assert!(progress.is_reached());
    }

    #[test]
    fn an_end_reported_before_the_query_was_reached_if_nothing_follows() {
        let mut progress = Progress::new(0);
        progress.ask(0);
        progress.record(0);
        // A marker follows the record: the client reports nothing more.
        progress.end();
        progress.ask(2);
        assert!(!progress.is_reached(), "it may have been an earlier end");
        assert_eq!(progress.behind(), 0, "or this one");
        assert_eq!(progress.ask(2), Asked::Reached);
        assert!(progress.is_reached());
    }

    #[test]
    fn occasional_transactions_do_not_keep_a_query_from_being_reached() {
        let mut progress = Progress::new(0);
        progress.ask(0);
        for (round, moves) in (0..100).zip([true, false, false, true, true].iter().cycle()) {
            let (record, end) = (progress.next + 1, progress.next + 3);
            if *moves {
                progress.record(record);
                progress.end();
            }
            let end = if *moves { end } else { progress.end.unwrap() };
            assert_eq!(progress.ask(end), Asked::Reached, "round {round}");
        }
    }

    #[test]
    fn a_hanging_client_stays_behind_when_the_end_does_not_move() {
        let mut progress = Progress::new(0);
        progress.ask(0);
        progress.end();
        progress.ask(0);
        progress.ask(10);
        for _ in 0..3 {
            assert_eq!(progress.ask(10), Asked::Behind);
            assert_eq!((progress.is_reached(), progress.behind()), (false, 10));
        }
    }

    #[test]
    fn a_partition_read_again_is_behind_up_to_its_known_end() {
        let mut progress = Progress::new(0);
        progress.ask(10);
        progress.record(9);
        let mut again = progress.again(4);
        assert_eq!((again.is_reached(), again.behind()), (false, 6));
        assert_eq!(again.floor, 4);
        again.record(9);
        assert!(again.is_reached());
    }

    #[test]
    fn a_partition_whose_end_decreases_was_recreated() {
        let mut progress = Progress::new(0);
        assert_eq!(progress.ask(10), Asked::Behind, "the first query");
        assert_eq!(progress.ask(3), Asked::Recreated);
    }
}
