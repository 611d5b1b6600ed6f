//! Which commands of each source a partition of the commands has seen, so that copies are recognised.
//!
//! Fan-out writes the commands of a source in order, and each names the one before it ([`super::source`]). A record
//! says: between `previous` and this one there is nothing. So a source's commands are a set of intervals (previous,
//! this], normally a single one. What lies inside is a copy, and is not delivered. What lies beyond opens an interval:
//! behind a hole if `previous` is not covered, which means that a write was lost. The writer's successor writes what is
//! missing; it lies in the hole, so it is new. The first command of a writer has no previous one and covers all before
//! it: a writer begins at a committed position, below which everything was written.
//!
//! [`Coverage::ask`] is called once for each record, in the order of the log, before anything else is decided about it.
//! A record that is asked twice is its own copy, and lost.
//!
//! The commit says what is covered **as of its position**, the lowest unfinished offset: what a new owner reads again
//! from there must be asked again with the same result, or it is its own copy. So there are two covers, one of the
//! position and one of the last record asked, and a journal of what lies between them. Covers need room in the
//! commit's metadata: [`Coverage::reserve`] is what the cover takes at most, whatever position is committed next, so
//! finishing commands never makes the commit too long.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version |
//! | 1 | 1 if something was forgotten |
//! | varint | number of topics |
//! | 8, 16, varint | of each topic: hash of the cluster's id, the topic's id, number of its sources |
//! | varint, 4, varint | of each source: partition, epoch, four times the number of intervals, + 2 if its beginning is unknown, + 1 if it is covered from the start |
//! | varint, varint, 8 | of each end of an interval, ascending: leader epoch + 1, offset, subscription; the start has none |
//!
//! About 20 bytes for each source. From about 100 sources on, those that have not been seen for the longest time are
//! forgotten ([`Answer::forgotten`]): copies of their commands are delivered again, and nothing is lost. Pure.

use std::collections::{BTreeMap, VecDeque};

use crate::model::source::{Mark, Point, Source};
use crate::model::units::{Offset, Position};
use cover::{Change, Cover, HEAD, Interval, POINT, SOURCE, TOPIC};

pub use cover::Damaged;

mod cover;

/// What a cover may take in the commit's metadata, bytes; the rest is left to the window.
pub const MAX_BYTES: usize = 2_000;

/// The most by which [`Coverage::reserve`] grows with one record, bytes: a topic, and a source with both ends of an
/// interval, all numbers at their longest. A forgotten source does not reduce it at once.
pub const MAX_GROWTH: usize = TOPIC + SOURCE + 2 * POINT;

/// Intervals that are kept of one source: of more, the lowest ones are forgotten.
const MAX_INTERVALS: usize = 16;

/// Journal entries up to which merging them is not worth while.
const SHORT: usize = 1_024;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its command has not been seen.
    New,
    /// The same, and the one that its writer wrote before it has not been seen either: a write was lost.
    NewBehindHole,
    /// Its command has been seen: it is not delivered.
    Copy,
}

/// The result for one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What it is.
    pub kind: Kind,
    /// How many sources, or oldest intervals of this source, were forgotten because they did not fit. Copies of their
    /// commands are delivered again.
    pub forgotten: usize,
}

/// A change that the record at `offset` caused.
#[derive(Clone, Copy, Debug)]
struct Entry {
    offset: i64,
    source: Source,
    change: Change,
}

/// The coverage of one partition, from its assignment to its revocation.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// As of the last record asked.
    head: Cover,
    /// As of the position.
    base: Cover,
    position: Position,
    /// From `base` to `head`, ascending.
    journal: VecDeque<Entry>,
    /// The length of the journal at which it is merged next.
    merge_at: usize,
    /// Records at which the head took fewer bytes than before, and how many fewer; ascending. A cover before them may
    /// take that much more than the head.
    shrinks: VecDeque<(i64, usize)>,
    shrunk: usize,
    /// What the head may take.
    limit: usize,
    /// What was seen before may be unknown.
    is_forgetful: bool,
    /// Records asked.
    asked: u64,
}

impl Coverage {
    /// Nothing was seen before `position`.
    #[must_use]
    pub fn new(position: Position) -> Self {
        Self {
            position,
            limit: MAX_BYTES,
            ..Self::default()
        }
    }

    /// What was seen before `position` is unknown: nothing is taken for a copy, and the first command of each source
    /// is not taken for one behind a hole.
    #[must_use]
    pub fn unknown(position: Position) -> Self {
        Self {
            is_forgetful: true,
            ..Self::new(position)
        }
    }

    /// Reads what [`Coverage::encode`] wrote for this position. `Ok(None)` when a newer program wrote it.
    ///
    /// # Errors
    /// [`Damaged`] if it is not an encoding.
    pub fn decode(position: Position, bytes: &[u8]) -> Result<Option<Self>, Damaged> {
        let Some((base, is_forgetful)) = Cover::read(bytes)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            head: base.clone(),
            base,
            is_forgetful,
            ..Self::new(position)
        }))
    }

    /// Sets what the cover may take in the metadata, bytes. More than that is forgotten with the next records.
    pub fn set_limit(&mut self, bytes: usize) {
        self.limit = bytes.min(MAX_BYTES);
    }

    /// Whether there is nothing to commit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.head.sources.is_empty() && self.base.sources.is_empty()
    }

    /// The bytes that [`Coverage::encode`] takes at most, whatever position between the last one and the last record
    /// asked it is called for.
    #[must_use]
    pub fn reserve(&self) -> usize {
        if self.is_empty() {
            return 0;
        }
        HEAD + self.head.bytes + self.shrunk
    }

    /// How many holes there are: writes that were lost and that nobody has written again yet.
    #[must_use]
    pub fn holes(&self) -> usize {
        self.head.holes
    }

    /// What the next record is, whose header is `mark`. It counts as seen from now on.
    pub fn ask(&mut self, offset: Offset, mark: &Mark) -> Answer {
        self.asked += 1;
        let interval = Interval {
            after: mark.previous,
            to: mark.at,
        };
        let mut kind = Kind::New;
        if let Some(covered) = self.head.sources.get_mut(&mark.source) {
            covered.seen = self.asked;
            if covered.intervals.iter().any(|one| one.contains(mark.at)) {
                kind = Kind::Copy;
            }
        }
        let holes = self.head.holes;
        let change = Change::Add {
            interval,
            is_begin_unknown: self.is_forgetful,
            seen: self.asked,
        };
        let before = self.head.bytes;
        let forgotten = if self.head.apply(mark.source, change) {
            self.journal.push_back(Entry {
                offset: offset.0,
                source: mark.source,
                change,
            });
            self.make_fit(offset, mark.source)
        } else {
            0
        };
        self.note_shrink(offset, before);
        if kind == Kind::New && forgotten == 0 && self.head.holes > holes {
            kind = Kind::NewBehindHole;
        }
        Answer { kind, forgotten }
    }

    /// Everything below `position` is finished: what was covered before it need not be kept apart. `open` are the
    /// unfinished offsets from there on, ascending; no other position below the last record asked comes next.
    pub fn pass(&mut self, position: Position, open: impl Iterator<Item = i64>) {
        if position > self.position {
            self.position = position;
            while let Some(entry) = self.journal.pop_front_if(|first| first.offset < position.0) {
                self.base.apply(entry.source, entry.change);
            }
            while let Some((_, bytes)) = self.shrinks.pop_front_if(|first| first.0 < position.0) {
                self.shrunk -= bytes;
            }
        }
        if self.journal.len() > self.merge_at.max(SHORT) {
            self.merge(open);
            self.merge_at = self.journal.len() * 2;
        }
    }

    /// What a commit of `position` says; empty when there is nothing to say.
    #[must_use]
    pub fn encode(&self, position: Position) -> Vec<u8> {
        debug_assert!(position >= self.position, "positions do not move back");
        let until = self
            .journal
            .partition_point(|entry| entry.offset < position.0);
        if until == 0 {
            return self.base.encode(self.is_forgetful);
        }
        let mut cover = self.base.clone();
        for entry in self.journal.range(..until) {
            cover.apply(entry.source, entry.change);
        }
        cover.encode(self.is_forgetful)
    }

    /// Forgets what does not fit: intervals of this source, then sources that have not been seen for the longest time.
    fn make_fit(&mut self, offset: Offset, source: Source) -> usize {
        let mut forgotten = 0;
        if let Some(covered) = self.head.sources.get(&source)
            && covered.intervals.len() > MAX_INTERVALS
        {
            let lowest = covered.intervals[0].to;
            self.forget(offset, source, Some(lowest));
            forgotten += 1;
        }
        while HEAD + self.head.bytes > self.limit {
            let others = self.head.sources.iter().filter(|(one, _)| **one != source);
            let Some((&oldest, _)) = others.min_by_key(|(_, covered)| covered.seen) else {
                break;
            };
            self.forget(offset, oldest, None);
            forgotten += 1;
        }
        forgotten
    }

    fn forget(&mut self, offset: Offset, source: Source, up_to: Option<Point>) {
        self.is_forgetful = true;
        let change = Change::Forget(up_to);
        self.head.apply(source, change);
        self.journal.push_back(Entry {
            offset: offset.0,
            source,
            change,
        });
    }

    fn note_shrink(&mut self, offset: Offset, before: usize) {
        let less = before.saturating_sub(self.head.bytes);
        if less > 0 {
            self.shrinks.push_back((offset.0, less));
            self.shrunk += less;
        }
    }

    /// Merges entries between which no position can come to lie: the journal is then as long as there are unfinished
    /// offsets times sources, however much lies between them.
    fn merge(&mut self, open: impl Iterator<Item = i64>) {
        let mut open = open.peekable();
        let mut merged: VecDeque<Entry> = VecDeque::new();
        // Of the sources since the last boundary: where their last entry is.
        let mut last: BTreeMap<Source, usize> = BTreeMap::new();
        for entry in self.journal.drain(..) {
            let mut is_boundary = false;
            // A position p keeps entries before it apart from those at or behind it.
            while open.next_if(|&at| at <= entry.offset).is_some() {
                is_boundary = true;
            }
            if is_boundary {
                last.clear();
            }
            let before = last.get(&entry.source).map(|&at| &mut merged[at].change);
            if let (
                Some(Change::Add { interval, seen, .. }),
                Change::Add {
                    interval: new,
                    seen: now,
                    ..
                },
            ) = (before, entry.change)
                && new.after <= Some(interval.to)
                && interval.after <= Some(new.to)
            {
                interval.after = interval.after.min(new.after);
                interval.to = interval.to.max(new.to);
                *seen = now;
                continue;
            }
            last.insert(entry.source, merged.len());
            merged.push_back(entry);
        }
        self.journal = merged;
    }
}

#[cfg(test)]
mod tests;
