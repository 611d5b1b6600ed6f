//! How far a partition was read, and whether that was to its end at a given moment.
//!
//! Pure. The client tells the end of a partition once, when its reader comes there, and says nothing when its connection
//! hangs or its leader has moved. So the brokers are asked for the ends now and then ([`Progress::ask`]), by another
//! client, and the figures are as of the moment of the last asking whose ends were all reached. Ends cannot simply be
//! compared with positions: the last offsets of a partition may be markers of transactions, which no reader is shown.
//! Nor is it known which end the client has told: so whether one was reached is said at the next asking, if not before.

/// One partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What lies before it was never read, or is dropped: it is done.
    pub floor: i64,
    /// Behind the last record read.
    next: i64,
    /// The last stable offset as it was last told; `None` before the first time.
    end: Option<i64>,
    /// The client has told the end, and nothing has come since.
    at_end: bool,
    /// The client has told anything since the ends were last asked for.
    heard: bool,
    view: View,
}

/// What is known of the way to `end`, where the records do not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum View {
    /// The client was there.
    Reached,
    /// The client came to an end shortly before this one was asked for: to this one, or to one before. In the second case
    /// it tells more within milliseconds; so if it is silent until the next asking, it was this one.
    Unclear,
    /// It was not read to there, as far as is known.
    Wanted,
}

/// What an answer about a partition's end says of the partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The end that was asked for before was reached.
    Reached,
    /// It was not, as far as is known; or there was no asking before.
    Behind,
    /// It ends earlier than it did: it was made anew or cut, and is to be read again.
    MadeAnew,
}

impl Progress {
    /// A partition that is read from `from` on.
    #[must_use]
    pub fn new(from: i64) -> Self {
        Self {
            floor: from,
            next: from,
            end: None,
            at_end: false,
            heard: false,
            view: View::Wanted,
        }
    }

    /// The same partition, read again from `from` on: to the end that was told last, as far as one was.
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

    /// The client has come to the end.
    pub fn end(&mut self) {
        self.heard = true;
        self.at_end = true;
        self.view = View::Reached;
    }

    /// Whether the end that was told last was reached.
    #[must_use]
    pub fn is_reached(&self) -> bool {
        self.end
            .is_some_and(|end| self.view == View::Reached || self.next >= end)
    }

    /// Whether the end that was told last lies before `position`.
    #[must_use]
    pub fn is_before(&self, position: i64) -> bool {
        self.end.is_some_and(|end| end < position)
    }

    /// The brokers were asked: the partition ends at `end`.
    pub fn ask(&mut self, end: i64) -> Asked {
        let reached = self.is_reached();
        let before = self.end.replace(end);
        if before.is_some_and(|before| end < before) {
            return Asked::MadeAnew;
        }
        let heard = std::mem::take(&mut self.heard);
        let moved = before != Some(end);
        self.view = match self.view {
            View::Unclear if self.at_end && !moved => View::Reached,
            view if self.at_end && !moved => view,
            // One that says nothing though the end has moved hangs, or is about to speak.
            _ if self.at_end && heard => View::Unclear,
            _ => View::Wanted,
        };
        let settled = !moved && self.is_reached();
        if reached || settled {
            Asked::Reached
        } else {
            Asked::Behind
        }
    }

    /// How many offsets are known to lie between what was read and the end, near enough. What is unclear is not known: it
    /// may be a marker, one of which there is behind each transaction.
    #[must_use]
    pub fn behind(&self) -> u64 {
        if self.view != View::Wanted {
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
        assert!(!progress.is_reached(), "nothing is known of its end");
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
    fn markers_at_the_end_are_passed_when_the_client_says_so() {
        let mut progress = Progress::new(0);
        progress.ask(3);
        progress.record(1);
        assert!(!progress.is_reached());
        progress.end();
        assert!(progress.is_reached());
        progress.ask(3);
        assert!(progress.is_reached(), "an end that stays is told once");
    }

    #[test]
    fn a_reader_that_says_nothing_while_the_end_moves_is_behind() {
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
    fn a_reader_under_load_reaches_the_end_of_the_last_asking_without_coming_to_the_present_one() {
        let mut progress = Progress::new(0);
        for round in 1..10 {
            progress.ask(round * 100);
            assert!(!progress.is_reached());
            progress.record(round * 100 + 20);
            assert!(progress.is_reached());
        }
    }

    #[test]
    fn one_that_came_to_an_end_has_not_reached_the_next_before_it_reads_on() {
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
    fn an_end_that_was_told_before_it_was_asked_for_was_reached_if_nothing_follows() {
        let mut progress = Progress::new(0);
        progress.ask(0);
        progress.record(0);
        // Behind the record there is a marker: nothing more will be told.
        progress.end();
        progress.ask(2);
        assert!(!progress.is_reached(), "it may have been an earlier end");
        assert_eq!(progress.behind(), 0, "or this one");
        assert_eq!(progress.ask(2), Asked::Reached);
        assert!(progress.is_reached());
    }

    #[test]
    fn transactions_now_and_then_keep_no_asking_from_being_reached() {
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
    fn one_that_hangs_stays_behind_when_the_end_stays_too() {
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
    fn what_is_read_again_is_behind_up_to_the_end_that_is_known() {
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
    fn a_partition_that_ends_earlier_than_before_was_made_anew() {
        let mut progress = Progress::new(0);
        assert_eq!(progress.ask(10), Asked::Behind, "nothing was asked before");
        assert_eq!(progress.ask(3), Asked::MadeAnew);
    }
}
