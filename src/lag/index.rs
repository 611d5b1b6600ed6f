//! Which commands wait for whom: the records of the commands topic and of the tiers, by offset, without their bodies.
//!
//! Pure. Nothing is counted up and down: a figure is what a walk over the rows finds that is not finished, so it is right
//! whatever came before (aborts, rebalances, retries, restarts). A row takes 10 bytes, 14 in a tier, and a walk over ten
//! million of them some tens of milliseconds.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use crate::model::dead_letter::{Coordinates, DeadLetter, Identities, Identity, Reason, Settled};
use crate::model::units::{EpochMs, Offset, Position};

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// A subscription of a subscriber, by its number in an [`Index`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry(u32);

/// Where a command lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// In the commands topic: ready.
    Commands(i32),
    /// In the tier of that number: waiting.
    Tier(usize, i32),
}

/// One record, by its distance from the chunk's base. Seconds are enough for an age. Packed: two bytes in twelve would
/// only be there for alignment, and there may be ten million rows.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed(2))]
struct Row {
    offset: u16,
    entry: u32,
    enqueued: u32,
}

/// Rows of one chunk: so few that what is not yet filled, and what is done but not yet freed, is little.
const CHUNK: usize = 4096;

/// Some records that follow each other. Chunks instead of one long row: growing copies nothing and leaves no spare half.
#[derive(Debug)]
struct Chunk {
    base: i64,
    rows: Vec<Row>,
    /// Of each row, in a tier.
    due: Vec<u32>,
    /// Rows before this one are done.
    begin: usize,
}

/// A row as it is looked at.
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

    /// The distance of `offset`, if the chunk has room for it.
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

/// The records of one partition from its position on, in the order of their offsets.
#[derive(Debug, Default)]
struct Column {
    chunks: VecDeque<Chunk>,
    /// Behind the last record read.
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

    /// Drops what lies before `position`.
    fn trim(&mut self, position: i64) {
        while let Some(first) = self.chunks.front_mut() {
            let done = first
                .rows
                .partition_point(|row| first.base + i64::from(row.offset) < position);
            if done < first.rows.len() {
                // What retention has deleted stays dropped, though the group's position lies before it.
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

/// What waits for one subscription, or for all of a subscriber.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// In the commands topic, in flight included.
    pub ready: u64,
    /// In the tiers.
    pub waiting: u64,
    /// The same by the tier's number; none of those that have nothing.
    pub tiers: BTreeMap<usize, u64>,
    /// When the first command of the oldest pending one was written, seconds since the epoch.
    pub oldest: Option<u32>,
    /// When the next in a tier is due, seconds since the epoch.
    pub next_due: Option<u32>,
    /// Dead letters that are neither replayed nor discarded.
    pub dead: BTreeMap<Reason, u64>,
    /// Commands that were read and are not pending in the commands topic any more, except those that were deleted there:
    /// whatever came of them, delivery has finished them.
    pub finished: u64,
}

impl Waiting {
    /// Whether nothing is pending or dead.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending() == 0 && self.dead.is_empty()
    }

    /// Ready and waiting.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.ready + self.waiting
    }

    /// Adds another's.
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

/// What one walk over an [`Index`] has found.
#[derive(Debug)]
pub struct Counts {
    /// Of each subscription of which something was read.
    pub subscriptions: Vec<(Entry, Waiting)>,
    /// How many commands are pending in each partition of the commands topic.
    pub partitions: BTreeMap<i32, u64>,
}

/// All that is pending, as far as it was read.
#[derive(Debug, Default)]
pub struct Index {
    /// Subscriber and subscription of each entry.
    names: Vec<(Box<str>, Box<str>)>,
    /// By subscriber, then by subscription: looked up without a copy.
    known: Map<Box<str>, Map<Box<str>, Entry>>,
    /// How many records of the commands topic were read for each entry, without those that were deleted unfinished.
    read: Vec<u64>,
    columns: Map<Place, Column>,
    letters: Letters,
}

/// The open letters of the dead-letter topic.
#[derive(Debug, Default)]
struct Letters {
    identities: Identities,
    open: Map<Coordinates, Open>,
    /// The open ones again: a fact settles those of its identity that lie before it.
    by_identity: BTreeSet<(Identity, Offset)>,
}

#[derive(Debug)]
struct Open {
    entry: Entry,
    reason: Reason,
    identity: Identity,
    webhook: u64,
}

impl Letters {
    fn add(&mut self, letter: &DeadLetter, entry: Entry) {
        let identity = self.identities.of_letter(letter);
        let open = Open {
            entry,
            reason: letter.info.reason,
            identity,
            webhook: self
                .identities
                .webhook(&letter.webhook_id, &letter.subscription),
        };
        self.open.insert(letter.at, open);
        self.by_identity.insert((identity, letter.at.offset));
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
    /// The entry of a subscription; known from then on.
    pub fn entry(&mut self, subscriber: &str, subscription: &str) -> Entry {
        let known = self.known.get(subscriber);
        if let Some(&entry) = known.and_then(|known| known.get(subscription)) {
            return entry;
        }
        let entry = Entry(u32::try_from(self.names.len()).unwrap_or(u32::MAX));
        self.names.push((subscriber.into(), subscription.into()));
        self.read.push(0);
        let known = self.known.entry(subscriber.into()).or_default();
        known.insert(subscription.into(), entry);
        entry
    }

    /// Subscriber and subscription.
    #[must_use]
    pub fn names(&self, entry: Entry) -> (&str, &str) {
        self.names
            .get(entry.0 as usize)
            .map_or(("", ""), |(subscriber, subscription)| {
                (subscriber, subscription)
            })
    }

    /// Takes a record. One that lies before the last one read is read again, after the partition was made anew: what
    /// was known of the partition is dropped.
    pub fn add(
        &mut self,
        place: Place,
        offset: Offset,
        entry: Entry,
        enqueued: EpochMs,
        due: Option<EpochMs>,
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
        if due.is_none()
            && let Some(read) = self.read.get_mut(entry.0 as usize)
        {
            *read += 1;
        }
    }

    /// Drops all of a partition: it is about to be read again.
    pub fn forget(&mut self, place: Place) {
        let Some(column) = self.columns.remove(&place) else {
            return;
        };
        if matches!(place, Place::Commands(_)) {
            for row in column.each() {
                if let Some(read) = self.read.get_mut(row.entry as usize) {
                    *read -= 1;
                }
            }
        }
    }

    /// What lies before `position` is done: the group has committed it.
    pub fn trim(&mut self, place: Place, position: Position) {
        if let Some(column) = self.columns.get_mut(&place) {
            column.trim(position.0);
        }
    }

    /// What lies before `start` is gone: retention, or an operator, has deleted it. Of the commands among it, those that
    /// `is_done` tells of were finished; nobody will ever finish the others, so they count as never read.
    pub fn delete(&mut self, place: Place, start: Offset, is_done: impl Fn(Offset) -> bool) {
        let Some(column) = self.columns.get_mut(&place) else {
            return;
        };
        if matches!(place, Place::Commands(_)) {
            let gone = column.each().take_while(|row| row.offset < start);
            for row in gone.filter(|row| !is_done(row.offset)) {
                if let Some(read) = self.read.get_mut(row.entry as usize) {
                    *read -= 1;
                }
            }
        }
        column.trim(start.0);
    }

    /// A command was given up.
    pub fn dead_lettered(&mut self, letter: &DeadLetter, entry: Entry) {
        self.letters.add(letter, entry);
    }

    /// A letter was replayed or discarded, as the fact at `place` states.
    pub fn settled(&mut self, fact: &Settled, place: Coordinates) {
        self.letters.settle(fact, place);
    }

    /// Letters of a partition before `start` are gone: retention has deleted them.
    pub fn forget_letters(&mut self, partition: i32, start: Offset) {
        self.letters.forget(partition, start);
    }

    #[cfg(test)]
    fn rows(&self) -> usize {
        self.columns.values().map(Column::len).sum()
    }

    /// What is pending for each subscription of which something was read, and in each partition; `done_in` gives for a
    /// partition of the commands topic what tells whether an offset is finished though the position has not passed it.
    #[must_use]
    pub fn tally<D: Fn(Offset) -> bool>(&self, done_in: impl Fn(i32) -> D) -> Counts {
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
        for &Open { entry, reason, .. } in self.letters.open.values() {
            if let Some(waiting) = all.get_mut(entry.0 as usize) {
                *waiting.dead.entry(reason).or_default() += 1;
            }
        }
        for (waiting, read) in all.iter_mut().zip(&self.read) {
            waiting.finished = read.saturating_sub(waiting.ready);
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
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::model::dead_letter::{DeadLetterInfo, Settlement};

    const SUBSCRIBERS: [&str; 3] = ["a", "b", "c"];

    /// One step of a life: what a run of the system does to a topic and its position.
    #[derive(Clone, Debug)]
    enum Step {
        /// A record for a subscriber, behind a gap of so many offsets (markers, aborted records).
        Produce(bool, usize, i64, i64),
        /// An open offset is finished out of order.
        Finish(usize),
        /// The position is committed past everything finished.
        Commit,
        /// The head of the tier is released.
        Release,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (any::<bool>(), 0..3_usize, prop_oneof![9 => 0..3_i64, 1 => Just(70_000)], 1..1000_i64).prop_map(|(tier, who, gap, time)| Step::Produce(tier, who, gap, time)),
            2 => (0..20_usize).prop_map(Step::Finish),
            1 => Just(Step::Commit),
            1 => Just(Step::Release),
        ]
    }

    proptest! {
        #[test]
        fn what_it_finds_is_what_a_naive_count_finds(steps in prop::collection::vec(step(), 0..200)) {
            let mut index = Index::default();
            let mut next = [0_i64; 2];
            // Naive: every record that is not finished.
            let mut open: BTreeMap<i64, (usize, i64)> = BTreeMap::new();
            let mut tier: BTreeMap<i64, (usize, i64)> = BTreeMap::new();
            let mut finished: BTreeSet<i64> = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Produce(in_tier, who, gap, time) => {
                        let at = usize::from(in_tier);
                        let offset = next[at] + gap;
                        next[at] = offset + 1;
                        let place = if in_tier { Place::Tier(0, 1) } else { Place::Commands(1) };
                        let entry = index.entry(SUBSCRIBERS[who], "s");
                        let enqueued = EpochMs(time * 1000);
                        index.add(place, Offset(offset), entry, enqueued, in_tier.then(|| EpochMs((time + 5) * 1000)));
                        if in_tier { &mut tier } else { &mut open }.insert(offset, (who, time));
                    }
                    Step::Finish(nth) => {
                        let found = open.keys().nth(nth).copied();
                        if let Some(offset) = found {
                            open.remove(&offset);
                            finished.insert(offset);
                        }
                    }
                    Step::Commit => {
                        let position = open.keys().next().copied().unwrap_or(next[0]);
                        index.trim(Place::Commands(1), Position(position));
                    }
                    Step::Release => {
                        if let Some((offset, _)) = tier.pop_first() {
                            index.trim(Place::Tier(0, 1), Position(offset + 1));
                        }
                    }
                }
            }
            let done = |partition| { let finished = &finished; move |offset: Offset| partition == 1 && finished.contains(&offset.0) };
            let counts = index.tally(done);
            prop_assert_eq!(counts.partitions.get(&1).copied().unwrap_or(0), open.len() as u64);
            let told = counts.subscriptions;
            let mut by_name: BTreeMap<&str, Waiting> = BTreeMap::new();
            for (entry, waiting) in told {
                by_name.insert(index.names(entry).0, waiting);
            }
            for (who, name) in SUBSCRIBERS.into_iter().enumerate() {
                let mine = |all: &BTreeMap<i64, (usize, i64)>| all.values().filter(|one| one.0 == who).map(|one| one.1).collect::<Vec<_>>();
                let (ready, waiting) = (mine(&open), mine(&tier));
                let found = by_name.remove(name).unwrap_or_default();
                prop_assert_eq!(found.ready, ready.len() as u64);
                prop_assert_eq!(found.waiting, waiting.len() as u64);
                let oldest = ready.iter().chain(&waiting).min().map(|&time| u32::try_from(time).unwrap());
                prop_assert_eq!(found.oldest, oldest);
                let due = waiting.iter().min().map(|&time| u32::try_from(time + 5).unwrap());
                prop_assert_eq!(found.next_due, due);
            }
        }
    }

    #[test]
    fn a_command_takes_ten_bytes_and_a_chunk_frees_what_is_done() {
        assert_eq!(size_of::<Row>(), 10);
        let mut index = Index::default();
        let entry = index.entry("acme", "orders");
        let place = Place::Commands(0);
        for offset in 0..100_000 {
            index.add(place, Offset(offset), entry, EpochMs(1000), None);
        }
        let held = |index: &Index| {
            let chunks = &index.columns[&place].chunks;
            let each = chunks
                .iter()
                .map(|chunk| chunk.rows.capacity() * size_of::<Row>());
            each.sum::<usize>()
        };
        assert!(held(&index) <= 11 * 100_000, "{} bytes", held(&index));
        index.trim(place, Position(99_000));
        index.trim(place, Position(98_000));
        assert_eq!(index.rows(), 1000, "what was dropped does not come back");
        assert!(held(&index) <= 100_000, "{} bytes", held(&index));
    }

    #[test]
    fn what_delivery_has_finished_is_what_was_read_and_is_not_ready() {
        let mut index = Index::default();
        let (acme, beta) = (index.entry("acme", "orders"), index.entry("beta", "orders"));
        for offset in 0..6 {
            let entry = if offset < 4 { acme } else { beta };
            index.add(Place::Commands(0), Offset(offset), entry, EpochMs(0), None);
        }
        index.add(Place::Tier(0, 0), Offset(9), acme, EpochMs(0), None);
        index.trim(Place::Commands(0), Position(2));
        let finished = |index: &Index| {
            let told = index
                .tally(|_| |offset: Offset| offset.0 == 3)
                .subscriptions
                .into_iter();
            told.map(|(_, waiting)| waiting.finished)
                .collect::<Vec<_>>()
        };
        assert_eq!(finished(&index), [3, 0]);
        // Read again from 1, as after an operator's reset: nothing is counted twice.
        index.add(Place::Commands(0), Offset(1), acme, EpochMs(0), None);
        assert_eq!(finished(&index), [2]);
    }

    #[test]
    fn what_was_deleted_before_it_was_finished_is_neither_pending_nor_finished() {
        let mut index = Index::default();
        let entry = index.entry("acme", "orders");
        for place in [Place::Commands(0), Place::Tier(0, 0)] {
            for offset in 0..10 {
                index.add(place, Offset(offset), entry, EpochMs(0), None);
            }
        }
        index.trim(Place::Commands(0), Position(2));
        // Of those before 6, 4 is finished, and 2, 3 and 5 are not.
        let is_done = |offset: Offset| offset.0 == 4 || offset.0 == 8;
        let told = |index: &Index| {
            let waiting = &index.tally(|_| is_done).subscriptions[0].1;
            [waiting.ready, waiting.finished, waiting.waiting]
        };
        assert_eq!(told(&index), [6, 4, 10]);
        index.delete(Place::Commands(0), Offset(6), is_done);
        assert_eq!(told(&index), [3, 4, 10]);
        index.delete(Place::Commands(0), Offset(6), is_done);
        index.trim(Place::Commands(0), Position(6));
        assert_eq!(told(&index), [3, 4, 10], "they are gone once");
        index.delete(Place::Tier(0, 0), Offset(3), |_| false);
        assert_eq!(told(&index), [3, 4, 7]);
    }

    fn letter(partition: i32, offset: i64, webhook_id: &str, last_failure: i64) -> DeadLetter {
        DeadLetter {
            at: Coordinates {
                partition,
                offset: Offset(offset),
            },
            subscriber: "acme".to_owned(),
            subscription: "orders".to_owned(),
            webhook_id: webhook_id.to_owned(),
            event_id: "e1".to_owned(),
            event_type: "order.created".to_owned(),
            attempts: 1,
            enqueued: None,
            info: DeadLetterInfo {
                reason: Reason::Gone,
                status: Some(410),
                error: String::new(),
                first_failure: EpochMs(1),
                last_failure: EpochMs(last_failure),
            },
        }
    }

    fn replayed(letter: &DeadLetter) -> Settled {
        Settled::new(letter, Settlement::Replayed, EpochMs(9), "cluster-a")
    }

    fn open_letters(index: &Index) -> u64 {
        let told = index.tally(|_| |_| false).subscriptions;
        told.iter()
            .filter_map(|(_, waiting)| waiting.dead.get(&Reason::Gone))
            .sum()
    }

    #[test]
    fn letters_that_retention_has_deleted_are_not_open() {
        let mut index = Index::default();
        let entry = index.entry("acme", "orders");
        for (partition, offset) in [(0, 1), (0, 5), (1, 1)] {
            index.dead_lettered(&letter(partition, offset, "msg_1", offset), entry);
        }
        index.forget_letters(0, Offset(5));
        assert_eq!(open_letters(&index), 2);
        index.forget_letters(0, Offset(i64::MAX));
        assert_eq!(open_letters(&index), 1);
        assert_eq!(index.letters.by_identity.len(), 1);
    }

    #[test]
    fn letters_are_open_until_they_are_settled() {
        let mut index = Index::default();
        let entry = index.entry("acme", "orders");
        let [first, second] = [letter(0, 1, "msg_1", 10), letter(0, 2, "msg_1", 20)];
        index.dead_lettered(&first, entry);
        index.dead_lettered(&second, entry);
        let fact_at = letter(0, 3, "", 0).at;
        index.settled(&replayed(&first), fact_at);
        assert_eq!(open_letters(&index), 1);
        assert!(index.letters.open.contains_key(&second.at));
        let mut of_0_1_0 = replayed(&second);
        (of_0_1_0.cluster, of_0_1_0.moment) = (None, None);
        index.settled(&of_0_1_0, fact_at);
        assert_eq!(open_letters(&index), 0);
    }

    #[test]
    fn a_fact_that_a_mirror_copied_settles_its_letter_wherever_that_lies() {
        let mut index = Index::default();
        let entry = index.entry("acme", "orders");
        let on_source = letter(0, 900, "msg_1", 10);
        // The mirror holds it at 4, and another letter at the place that the fact names.
        index.dead_lettered(&letter(0, 4, "msg_1", 10), entry);
        index.dead_lettered(&letter(0, 900, "msg_2", 10), entry);
        let mut of_0_1_0 = replayed(&on_source);
        (of_0_1_0.cluster, of_0_1_0.moment) = (None, None);
        index.settled(&of_0_1_0, letter(0, 901, "", 0).at);
        assert_eq!(open_letters(&index), 2, "it names a wrong letter");
        index.settled(&replayed(&on_source), letter(0, 902, "", 0).at);
        assert_eq!(open_letters(&index), 1);
        let left = letter(0, 900, "msg_2", 10);
        assert!(index.letters.open.contains_key(&left.at));
    }

    #[test]
    fn a_partition_that_was_made_anew_is_counted_anew() {
        let mut index = Index::default();
        let entry = index.entry("acme", "orders");
        for offset in [5, 6, 7] {
            index.add(
                Place::Commands(0),
                Offset(offset),
                entry,
                EpochMs(1000),
                None,
            );
        }
        index.add(Place::Commands(0), Offset(0), entry, EpochMs(1000), None);
        assert_eq!(index.tally(|_| |_| false).subscriptions[0].1.ready, 1);
    }
}
