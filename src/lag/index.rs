//! Which commands wait for whom: the records of the commands topic and of the tiers, by offset, without their bodies.
//!
//! Pure. Nothing is counted up and down: a figure is what a walk over the rows finds that is not finished, so it is right
//! whatever came before (aborts, rebalances, retries, restarts). A row takes 12 bytes, 16 in a tier, and a walk over ten
//! million of them some tens of milliseconds.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::dead_letter::{Coordinates, Reason, Settled};
use crate::units::{EpochMs, Offset, Position};

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

/// One record, by its distance from the column's base. Seconds are enough for an age.
#[derive(Clone, Copy, Debug)]
struct Row {
    offset: u32,
    entry: u32,
    enqueued: u32,
}

/// The records of one partition from its position on, in the order of their offsets.
#[derive(Debug, Default)]
struct Column {
    base: i64,
    rows: VecDeque<Row>,
    /// Of each row, in a tier.
    due: VecDeque<u32>,
    /// Behind the last record read.
    next: i64,
}

impl Column {
    /// Drops what lies before `position`, and counts offsets from there.
    fn trim(&mut self, position: i64) {
        while let Some(row) = self.rows.front() {
            if self.base + i64::from(row.offset) >= position {
                break;
            }
            self.rows.pop_front();
            self.due.pop_front();
        }
        // Now and then, so that distances stay small and a long backlog is not walked at each commit.
        let Some(first) = self.rows.front().map(|row| row.offset) else {
            return;
        };
        if first > u32::MAX / 2 {
            for row in &mut self.rows {
                row.offset -= first;
            }
            self.base += i64::from(first);
        }
    }
}

/// What waits for one subscription, or for all of a subscriber.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// In the commands topic, in flight included.
    pub ready: u64,
    /// In the tiers.
    pub waiting: u64,
    /// When the first command of the oldest pending one was written, seconds since the epoch.
    pub oldest: Option<u32>,
    /// When the next in a tier is due, seconds since the epoch.
    pub next_due: Option<u32>,
    /// Dead letters that are neither replayed nor discarded.
    pub dead: BTreeMap<Reason, u64>,
}

impl Waiting {
    /// Whether there is nothing at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
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
        self.oldest = least(self.oldest, other.oldest);
        self.next_due = least(self.next_due, other.next_due);
        for (&reason, count) in &other.dead {
            *self.dead.entry(reason).or_default() += count;
        }
    }
}

/// All that is pending, as far as it was read.
#[derive(Debug, Default)]
pub struct Index {
    /// Subscriber and subscription of each entry.
    names: Vec<(Box<str>, Box<str>)>,
    /// By subscriber, then by subscription: looked up without a copy.
    known: HashMap<Box<str>, HashMap<Box<str>, Entry>>,
    columns: BTreeMap<Place, Column>,
    letters: HashMap<Coordinates, (Entry, Reason)>,
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
        let column = self.columns.entry(place).or_default();
        if offset.0 < column.next {
            *column = Column::default();
        }
        if column.rows.is_empty() {
            column.base = offset.0;
        }
        column.next = offset.0 + 1;
        let enqueued = seconds(enqueued);
        column.rows.push_back(Row {
            offset: u32::try_from(offset.0 - column.base).unwrap_or(u32::MAX),
            entry: entry.0,
            enqueued,
        });
        if matches!(place, Place::Tier(..)) {
            column.due.push_back(due.map_or(enqueued, seconds));
        }
    }

    /// What lies before `position` is done: the group has committed it.
    pub fn trim(&mut self, place: Place, position: Position) {
        if let Some(column) = self.columns.get_mut(&place) {
            column.trim(position.0);
        }
    }

    /// A command was given up.
    pub fn dead_lettered(&mut self, at: Coordinates, entry: Entry, reason: Reason) {
        self.letters.insert(at, (entry, reason));
    }

    /// A letter was replayed or discarded.
    pub fn settled(&mut self, settled: &Settled) {
        self.letters.remove(&settled.letter);
    }

    /// How many records are held.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.columns.values().map(|column| column.rows.len()).sum()
    }

    /// How many commands are pending in each partition of the commands topic.
    #[must_use]
    pub fn pending_by_partition(
        &self,
        is_done: &dyn Fn(i32, Offset) -> bool,
    ) -> BTreeMap<i32, u64> {
        let mut counts = BTreeMap::new();
        for (place, column) in &self.columns {
            if let Place::Commands(partition) = place {
                let open = column.rows.iter().filter(|row| {
                    !is_done(*partition, Offset(column.base + i64::from(row.offset)))
                });
                counts.insert(*partition, open.count() as u64);
            }
        }
        counts
    }

    /// What is pending for each subscription of which something is; `is_done` tells whether an offset of the commands
    /// topic is finished though the position has not passed it.
    #[must_use]
    pub fn tally(&self, is_done: &dyn Fn(i32, Offset) -> bool) -> Vec<(Entry, Waiting)> {
        let mut all = vec![Waiting::default(); self.names.len()];
        for (place, column) in &self.columns {
            match place {
                Place::Commands(partition) => {
                    for row in &column.rows {
                        let offset = Offset(column.base + i64::from(row.offset));
                        if !is_done(*partition, offset)
                            && let Some(waiting) = all.get_mut(row.entry as usize)
                        {
                            waiting.ready += 1;
                            note(&mut waiting.oldest, row.enqueued);
                        }
                    }
                }
                Place::Tier(..) => {
                    for (row, &due) in column.rows.iter().zip(&column.due) {
                        if let Some(waiting) = all.get_mut(row.entry as usize) {
                            waiting.waiting += 1;
                            note(&mut waiting.oldest, row.enqueued);
                            note(&mut waiting.next_due, due);
                        }
                    }
                }
            }
        }
        for &(entry, reason) in self.letters.values() {
            if let Some(waiting) = all.get_mut(entry.0 as usize) {
                *waiting.dead.entry(reason).or_default() += 1;
            }
        }
        let each = (0..).map(Entry).zip(all);
        each.filter(|(_, waiting)| !waiting.is_empty()).collect()
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

    const SUBSCRIBERS: [&str; 3] = ["a", "b", "c"];

    /// One step of a life: what a run of the system does to a topic and its position.
    #[derive(Clone, Debug)]
    enum Step {
        /// A record for a subscriber, behind a gap of so many offsets (markers, aborted records).
        Produce(bool, usize, u8, i64),
        /// An open offset is finished out of order.
        Finish(usize),
        /// The position is committed past everything finished.
        Commit,
        /// The head of the tier is released.
        Release,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (any::<bool>(), 0..3_usize, 0..3_u8, 1..1000_i64).prop_map(|(tier, who, gap, time)| Step::Produce(tier, who, gap, time)),
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
                        let offset = next[at] + i64::from(gap);
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
            let told = index.tally(&|partition, offset| partition == 1 && finished.contains(&offset.0));
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
    fn a_row_takes_no_more_than_twelve_bytes() {
        assert_eq!(size_of::<Row>(), 12);
    }

    #[test]
    fn letters_are_open_until_they_are_settled() {
        let mut index = Index::default();
        let entry = index.entry("acme", "orders");
        let at = |offset| Coordinates {
            partition: 0,
            offset: Offset(offset),
        };
        index.dead_lettered(at(1), entry, Reason::Gone);
        index.dead_lettered(at(2), entry, Reason::Gone);
        index.settled(&Settled {
            letter: at(1),
            how: crate::dead_letter::Settlement::Replayed,
            at: EpochMs(0),
            webhook_id: String::new(),
            subscription: String::new(),
        });
        let told = index.tally(&|_, _| false);
        assert_eq!(told[0].1.dead, BTreeMap::from([(Reason::Gone, 1)]));
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
        assert_eq!(index.tally(&|_, _| false)[0].1.ready, 1);
    }
}
