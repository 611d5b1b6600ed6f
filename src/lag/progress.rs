//! How far a partition was read, and whether that was to its end at a given moment.
//!
//! Pure. The client tells the end of a partition once, when its reader comes there, and says nothing when its connection
//! hangs or its leader has moved. So the brokers are asked for the ends now and then ([`Progress::ask`]), by another
//! client, and the figures are as of the moment of the last asking whose ends were all reached. Ends cannot simply be
//! compared with positions: the last offsets of a partition may be markers of transactions, which no reader is shown.

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
    /// It was not read to `end`, as far as is known.
    wanted: bool,
}

/// What an answer about a partition's end says of the partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is what it was.
    Same,
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
            wanted: true,
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
        self.wanted = false;
    }

    /// Whether the end that was told last was reached.
    #[must_use]
    pub fn is_reached(&self) -> bool {
        self.end.is_some_and(|end| !self.wanted || self.next >= end)
    }

    /// The brokers were asked: the partition ends at `end`.
    pub fn ask(&mut self, end: i64) -> Told {
        let before = self.end.replace(end);
        if before.is_some_and(|before| end < before) {
            return Told::MadeAnew;
        }
        // A client that was heard of and came to an end meanwhile works, and is at this end or will tell of it within
        // milliseconds. One that says nothing though the end has moved hangs, or is about to speak.
        let stays = self.at_end && (self.heard || before == Some(end));
        self.wanted = !stays && self.next < end;
        self.heard = false;
        Told::Same
    }

    /// How many offsets lie between what was read and the end, near enough.
    #[must_use]
    pub fn behind(&self) -> u64 {
        if self.is_reached() {
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
    fn a_partition_that_ends_earlier_than_before_was_made_anew() {
        let mut progress = Progress::new(0);
        assert_eq!(progress.ask(10), Told::Same);
        assert_eq!(progress.ask(3), Told::MadeAnew);
    }
}
