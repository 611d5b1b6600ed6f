//! The pending commands by subscription: the records of the commands topic and of the retry tiers, by offset, without
//! their bodies. Pure.
//!
//! There are no running counters: each figure is a scan over the unfinished rows, so that aborts, rebalances, retries and
//! restarts cannot make it drift. A row takes 10 bytes, 14 in a tier; a scan of ten million rows takes some tens of
//! milliseconds.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use crate::model::dead_letter::{Coordinates, DeadLetter, Identities, Identity, Reason, Settled};
use crate::model::units::{EpochMs, Offset, Position};

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// A subscription of a subscriber, as a number in an [`Index`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry(u32);

/// The partition of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// A partition of the commands topic: the command is ready.
    Commands(i32),
    /// A partition of the tier with this number: the command is waiting.
    Tier(usize, i32),
}

/// One record; the offset is relative to the chunk's base, the time in seconds. Packed, since alignment would add two
/// bytes to ten, and there may be ten million rows.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed(2))]
struct Row {
    offset: u16,
    entry: u32,
    enqueued: u32,
}

/// Rows of one chunk: few, to bound the memory of unfilled and of finished rows.
const CHUNK: usize = 4096;

/// Consecutive records. Unlike one long vector, chunks grow without a copy and without spare capacity.
#[derive(Debug)]
struct Chunk {
    base: i64,
    rows: Vec<Row>,
    /// The due time of each row, in a tier.
    due: Vec<u32>,
    /// Rows before this one are done.
    begin: usize,
}

/// A row, unpacked.
struct Seen {
    offset: Offset,
    entry: u32,
    enqueued: u32,
    due: Option<u32>,
}

impl Chunk {
    fn offset_of(&self, row: &Row) -> i64 {
        self.base + i64::from(row.offset)
    }

    /// The relative offset of `offset`, if the chunk has room for it.
    fn room_for(&self, offset: i64) -> Option<u16> {
        let distance = u16::try_from(offset - self.base).ok()?;
        (self.rows.len() < CHUNK).then_some(distance)
    }

    fn each(&self) -> impl Iterator<Item = Seen> {
        let rows = self.rows.iter().enumerate().skip(self.begin);
        rows.map(|(number, row)| Seen {
            offset: Offset(self.offset_of(row)),
            entry: row.entry,
            enqueued: row.enqueued,
            due: self.due.get(number).copied(),
        })
    }
}

/// The records of one partition from the committed offset on, in order.
#[derive(Debug, Default)]
struct Column {
    chunks: VecDeque<Chunk>,
    /// The offset after the last record read.
    next: i64,
}

impl Column {
    fn push(&mut self, offset: i64, entry: u32, enqueued: u32, due: Option<u32>) {
        let room = self.chunks.back().and_then(|last| last.room_for(offset));
        if room.is_none() {
            self.chunks.push_back(Chunk {
                base: offset,
                rows: Vec::new(),
                due: Vec::new(),
                begin: 0,
            });
        }
        if let Some(last) = self.chunks.back_mut() {
            last.rows.push(Row {
                offset: room.unwrap_or(0),
                entry,
                enqueued,
            });
            last.due.extend(due);
        }
        self.next = offset + 1;
    }

    /// Drops the records before `position`.
    fn trim(&mut self, position: i64) {
        while let Some(first) = self.chunks.front_mut() {
            let done = first
                .rows
                .partition_point(|row| first.base + i64::from(row.offset) < position);
            if done < first.rows.len() {
                // Records that retention has deleted stay dropped, even if the committed offset is before them.
                first.begin = first.begin.max(done);
                return;
            }
            self.chunks.pop_front();
        }
    }

    fn each(&self) -> impl Iterator<Item = Seen> {
        self.chunks.iter().flat_map(Chunk::each)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.each().count()
    }
}

/// The backlog of one subscription, or of all of a subscriber.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Commands in the commands topic, including those in flight.
    pub ready: u64,
    /// Commands in the retry tiers.
    pub waiting: u64,
    /// The same by the number of the tier, without empty ones.
    pub tiers: BTreeMap<usize, u64>,
    /// When the oldest pending command was first written, seconds since the epoch.
    pub oldest: Option<u32>,
    /// When the next retry is due, seconds since the epoch.
    pub next_due: Option<u32>,
    /// Open dead letters by reason.
    pub dead: BTreeMap<Reason, u64>,
    /// Commands that have reached an end (delivered, dead-lettered or discarded) since the first record was read. A command
    /// that waits in a tier has not. While records are read that move meanwhile, it may be off by those.
    pub finished: u64,
}

impl Waiting {
    /// Whether there are neither pending commands nor open dead letters.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending() == 0 && self.dead.is_empty()
    }

    /// Ready and waiting commands.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.ready + self.waiting
    }

    /// Adds another backlog.
    pub fn add(&mut self, other: &Self) {
        let least = |a: Option<u32>, b: Option<u32>| a.into_iter().chain(b).min();
        self.ready += other.ready;
        self.waiting += other.waiting;
        self.finished += other.finished;
        for (&tier, count) in &other.tiers {
            *self.tiers.entry(tier).or_default() += count;
        }
        self.oldest = least(self.oldest, other.oldest);
        self.next_due = least(self.next_due, other.next_due);
        for (&reason, count) in &other.dead {
            *self.dead.entry(reason).or_default() += count;
        }
    }
}

/// The result of one scan of an [`Index`].
#[derive(Debug)]
pub struct Counts {
    /// The backlog of each subscription that is not empty.
    pub subscriptions: Vec<(Entry, Waiting)>,
    /// Pending commands by partition of the commands topic.
    pub partitions: BTreeMap<i32, u64>,
}

/// All pending commands and open dead letters read so far.
#[derive(Debug, Default)]
pub struct Index {
    /// The subscriber and subscription of each entry.
    names: Vec<(Box<str>, Box<str>)>,
    /// By subscriber, then by subscription, for a lookup without allocation.
    known: Map<Box<str>, Map<Box<str>, Entry>>,
    /// The distinct commands seen for each entry, without those deleted unfinished: each counts once, however often it
    /// goes through the tiers. Those that are not pending any more have ended.
    seen: Vec<i64>,
    /// For each partition, the end offset when reading it began. Commands before it count as seen wherever they are found;
    /// from there on only those that are new or replayed, since the others were seen before they moved.
    first_ends: Map<Place, i64>,
    columns: Map<Place, Column>,
    dead_letters: DeadLetters,
}

/// The open dead letters.
#[derive(Debug, Default)]
struct DeadLetters {
    identities: Identities,
    open: Map<Coordinates, Open>,
    /// The open ones by identity: a settling record settles those of its identity before it.
    by_identity: BTreeSet<(Identity, Offset)>,
}

#[derive(Debug)]
struct Open {
    entry: Entry,
    reason: Reason,
    identity: Identity,
    webhook: u64,
}

impl DeadLetters {
    fn add(&mut self, dead_letter: &DeadLetter, entry: Entry) {
        let identity = self.identities.of_letter(dead_letter);
        let open = Open {
            entry,
            reason: dead_letter.info.reason,
            identity,
            webhook: self
                .identities
                .webhook(&dead_letter.webhook_id, &dead_letter.subscription),
        };
        self.open.insert(dead_letter.at, open);
        self.by_identity.insert((identity, dead_letter.at.offset));
    }

    fn settle(&mut self, fact: &Settled, place: Coordinates) {
        let (webhook_id, subscription) = (&fact.webhook_id, &fact.subscription);
        let Some(moment) = fact.moment else {
            let webhook = self.identities.webhook(webhook_id, subscription);
            let open = self.open.get(&fact.letter);
            if open.is_some_and(|open| open.webhook == webhook) {
                self.remove(fact.letter);
            }
            return;
        };
        let partition = place.partition;
        let identity = self
            .identities
            .of(partition, webhook_id, subscription, moment);
        let before = (identity, Offset(i64::MIN))..(identity, place.offset);
        let settled: Vec<Offset> = self
            .by_identity
            .range(before)
            .map(|(_, offset)| *offset)
            .collect();
        for offset in settled {
            self.remove(Coordinates { partition, offset });
        }
    }

    fn remove(&mut self, at: Coordinates) {
        if let Some(open) = self.open.remove(&at) {
            self.by_identity.remove(&(open.identity, at.offset));
        }
    }

    fn forget(&mut self, partition: i32, start: Offset) {
        let is_gone = |at: &Coordinates| at.partition == partition && at.offset < start;
        let gone: Vec<_> = self.open.keys().copied().filter(is_gone).collect();
        gone.into_iter().for_each(|at| self.remove(at));
    }
}

fn seconds(time: EpochMs) -> u32 {
    u32::try_from(time.seconds().max(0)).unwrap_or(u32::MAX)
}

impl Index {
    /// The entry of a subscription, added if new.
    pub fn entry(&mut self, subscriber: &str, subscription: &str) -> Entry {
        let known = self.known.get(subscriber);
        if let Some(&entry) = known.and_then(|known| known.get(subscription)) {
            return entry;
        }
        let entry = Entry(u32::try_from(self.names.len()).unwrap_or(u32::MAX));
        self.names.push((subscriber.into(), subscription.into()));
        self.seen.push(0);
        let known = self.known.entry(subscriber.into()).or_default();
        known.insert(subscription.into(), entry);
        entry
    }

    /// The subscriber and subscription of an entry.
    #[must_use]
    pub fn names(&self, entry: Entry) -> (&str, &str) {
        self.names
            .get(entry.0 as usize)
            .map_or(("", ""), |(subscriber, subscription)| {
                (subscriber, subscription)
            })
    }

    /// The first record of a partition that is not done. The groups' committed offsets are before or at it, and nothing
    /// between them and it is unfinished.
    #[must_use]
    pub fn first(&self, place: Place) -> Option<Offset> {
        let mut all = self.columns.get(&place)?.each();
        all.next().map(|seen| seen.offset)
    }

    /// Reading a partition begins, or begins again, when its end offset is `end`.
    pub fn begin(&mut self, place: Place, end: Offset) {
        self.first_ends.insert(place, end.0);
    }

    /// Adds a record; `enters` says whether it is the first of a new or a replayed command. If its offset is before the
    /// last one read, the partition was recreated: its earlier records are dropped.
    pub fn add(
        &mut self,
        place: Place,
        offset: Offset,
        entry: Entry,
        enqueued: EpochMs,
        due: Option<EpochMs>,
        enters: bool,
    ) {
        if self
            .columns
            .get(&place)
            .is_some_and(|known| offset.0 < known.next)
        {
            self.forget(place);
        }
        let column = self.columns.entry(place).or_default();
        let enqueued = seconds(enqueued);
        let due = matches!(place, Place::Tier(..)).then(|| due.map_or(enqueued, seconds));
        column.push(offset.0, entry.0, enqueued, due);
        let was_there = self
            .first_ends
            .get(&place)
            .is_some_and(|end| offset.0 < *end);
        if (enters || was_there)
            && let Some(seen) = self.seen.get_mut(entry.0 as usize)
        {
            *seen += 1;
        }
    }

    /// Drops all records of a partition, which is about to be read again.
    pub fn forget(&mut self, place: Place) {
        let Some(column) = self.columns.remove(&place) else {
            return;
        };
        for row in column.each() {
            if let Some(seen) = self.seen.get_mut(row.entry as usize) {
                *seen -= 1;
            }
        }
    }

    /// Drops the records before `position`, which the group has committed.
    pub fn trim(&mut self, place: Place, position: Position) {
        if let Some(column) = self.columns.get_mut(&place) {
            column.trim(position.0);
        }
    }

    /// Drops the records before `start`, which retention or an operator has deleted. Deleted commands count as finished if
    /// `is_done`, else as never seen.
    pub fn delete(&mut self, place: Place, start: Offset, is_done: impl Fn(Offset) -> bool) {
        let Some(column) = self.columns.get_mut(&place) else {
            return;
        };
        let is_done = |offset| matches!(place, Place::Commands(_)) && is_done(offset);
        let gone = column.each().take_while(|row| row.offset < start);
        for row in gone.filter(|row| !is_done(row.offset)) {
            if let Some(seen) = self.seen.get_mut(row.entry as usize) {
                *seen -= 1;
            }
        }
        column.trim(start.0);
    }

    /// Adds a dead letter.
    pub fn dead_lettered(&mut self, dead_letter: &DeadLetter, entry: Entry) {
        self.dead_letters.add(dead_letter, entry);
    }

    /// Settles the dead letter that the record at `place` names.
    pub fn settled(&mut self, fact: &Settled, place: Coordinates) {
        self.dead_letters.settle(fact, place);
    }

    /// Drops the dead letters of a partition before `start`, which retention has deleted.
    pub fn forget_dead_letters(&mut self, partition: i32, start: Offset) {
        self.dead_letters.forget(partition, start);
    }

    #[cfg(test)]
    fn rows(&self) -> usize {
        self.columns.values().map(Column::len).sum()
    }

    /// Scans all rows. `done_in` returns, for a partition of the commands topic, a predicate for offsets that are finished
    /// though not yet committed.
    #[must_use]
    pub fn count<D: Fn(Offset) -> bool>(&self, done_in: impl Fn(i32) -> D) -> Counts {
        let mut all = vec![Waiting::default(); self.names.len()];
        let mut tiers: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        let mut partitions = BTreeMap::new();
        for (place, column) in &self.columns {
            match place {
                Place::Commands(partition) => {
                    let is_done = done_in(*partition);
                    let pending: &mut u64 = partitions.entry(*partition).or_default();
                    for row in column.each().filter(|row| !is_done(row.offset)) {
                        *pending += 1;
                        if let Some(waiting) = all.get_mut(row.entry as usize) {
                            waiting.ready += 1;
                            note(&mut waiting.oldest, row.enqueued);
                        }
                    }
                }
                Place::Tier(tier, _) => {
                    let counts = tiers.entry(*tier);
                    let counts = counts.or_insert_with(|| vec![0; self.names.len()]);
                    for row in column.each() {
                        let entry = row.entry as usize;
                        if let (Some(waiting), Some(count)) =
                            (all.get_mut(entry), counts.get_mut(entry))
                        {
                            waiting.waiting += 1;
                            *count += 1;
                            note(&mut waiting.oldest, row.enqueued);
                            note(&mut waiting.next_due, row.due.unwrap_or(row.enqueued));
                        }
                    }
                }
            }
        }
        for (tier, counts) in tiers {
            for (waiting, count) in all.iter_mut().zip(counts).filter(|(_, count)| *count > 0) {
                waiting.tiers.insert(tier, count);
            }
        }
        for &Open { entry, reason, .. } in self.dead_letters.open.values() {
            if let Some(waiting) = all.get_mut(entry.0 as usize) {
                *waiting.dead.entry(reason).or_default() += 1;
            }
        }
        for (waiting, &seen) in all.iter_mut().zip(&self.seen) {
            let seen = u64::try_from(seen).unwrap_or(0);
            waiting.finished = seen.saturating_sub(waiting.pending());
        }
        let each = (0..).map(Entry).zip(all);
        let each = each.filter(|(_, waiting)| *waiting != Waiting::default());
        Counts {
            subscriptions: each.collect(),
            partitions,
        }
    }
}

fn note(least: &mut Option<u32>, time: u32) {
    *least = Some(least.map_or(time, |known| known.min(time)));
}

#[cfg(test)]
mod tests;
