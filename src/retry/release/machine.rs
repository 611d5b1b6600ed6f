//! What release decides: which records it holds, when they move and where to, and when a partition is paused.
//!
//! A tier partition is in due order, so only its head decides. The records behind the head are kept in a bounded
//! buffer. A partition whose buffer is full is paused, since its records take a while to fall due, and resumed when
//! half of the buffer is free: memory is bounded whatever the backlog, and each record is fetched about once.
//!
//! A record moves to a partition that may refuse writes. A transaction with such a record aborts as a whole, so after a
//! failure each tier partition is moved up to the first record for a partition that refuses, and one such record at a
//! time probes it, apart from all others ([`Unwritable`]). So only what is behind such a record waits.
//!
//! A batch takes a portion from each partition with due records. It begins behind the last partition of the batch
//! before it, so that a full batch leaves no partition out twice in a row (**Isolated**).
//!
//! The broker refuses a record that is too large together with those that it gets in the same request. After a refusal,
//! batches of half the size are tried, down to a single record: when that is refused, it is set aside, whole or, when that
//! is refused too, ever less of it ([`Extent`]). A record of a newer program stops its partition, which is then read no
//! further.
//!
//! Pure: records come in as they were decoded, time is an argument, and what is to be done is returned.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::model::command::Command;
use crate::model::invalid_record::{Extent, InvalidRecord};
use crate::model::partitioner;
use crate::model::tiers::{Head, Tiers};
use crate::model::transaction_end::TransactionEnd;
use crate::model::units::{Offset, Position};
use crate::model::unwritable::{Target, Unwritable};

mod batch;

pub use batch::{
    Batch, Destination, Flow, HeldRecord, Limits, Move, Next, Now, Portion, Purpose, TierPartition,
};

/// The head of a tier partition, and the records behind it as far as they are known.
#[derive(Debug, Default)]
struct Buffer {
    records: VecDeque<HeldRecord>,
    bytes: usize,
    paused: bool,
    /// Whether some of its records are in a batch under way.
    busy: bool,
    /// A record of a newer program follows: nothing behind it is taken.
    stopped: bool,
}

impl Buffer {
    fn clear(&mut self) {
        self.records.clear();
        self.bytes = 0;
        self.busy = false;
        self.stopped = false;
    }
}

/// The search for a record that the broker refuses for its size.
#[derive(Clone, Copy, Debug)]
struct Search {
    /// Records of a batch.
    most: usize,
    /// Records to be moved until the search is over.
    left: usize,
}

/// The tier partitions that this process owns.
#[derive(Debug)]
pub struct Machine {
    tiers: Tiers,
    limits: Limits,
    owned: BTreeMap<TierPartition, Buffer>,
    /// Where the next batch begins.
    first: TierPartition,
    /// When it may begin.
    next_batch: Instant,
    unwritable: Unwritable,
    /// Partitions of each topic, where that is known.
    counts: HashMap<usize, i32>,
    search: Option<Search>,
}

impl Machine {
    /// Without partitions.
    #[must_use]
    pub fn new(tiers: Tiers, limits: Limits, now: Instant) -> Self {
        Self {
            tiers,
            limits,
            owned: BTreeMap::new(),
            first: TierPartition {
                tier: 0,
                partition: 0,
            },
            next_batch: now,
            unwritable: Unwritable::default(),
            counts: HashMap::new(),
            search: None,
        }
    }

    /// Takes over partitions, whose records are to be polled from the committed positions on.
    pub fn assigned(&mut self, partitions: impl Iterator<Item = TierPartition>) {
        for at in partitions {
            self.owned.insert(at, Buffer::default());
        }
    }

    /// Forgets partitions that were revoked or lost. Give up batches with records of them before.
    pub fn revoked(&mut self, partitions: impl Iterator<Item = TierPartition>) {
        for at in partitions {
            self.owned.remove(&at);
        }
    }

    /// Reading goes on at `to` instead of `from`. Behind deleted records, what is held moves as before. A topic that
    /// ends before what was read, at `end`, was truncated or made again: what is held is polled again, or is not in it any
    /// more. Returns how many records are lost that way. Give up a batch with records of it before.
    pub fn gap(&mut self, at: TierPartition, from: Position, to: Position, end: Position) -> u64 {
        let Some(buffer) = self.owned.get_mut(&at) else {
            return 0;
        };
        buffer.stopped = false;
        if to >= from {
            return 0;
        }
        let gone = |record: &&HeldRecord| record.offset.0 >= end.0;
        let lost = buffer.records.iter().filter(gone).count();
        buffer.clear();
        lost as u64
    }

    /// Whether records of the partition are taken. The client may still hold some of a partition that was given up, or that
    /// is read no further.
    #[must_use]
    pub fn takes(&self, at: TierPartition) -> bool {
        self.owned.get(&at).is_some_and(|buffer| !buffer.stopped)
    }

    /// The next record of the partition was written by a newer program: what is held moves as before, and no more is taken
    /// until the partition is read again.
    pub fn stop(&mut self, at: TierPartition) {
        if let Some(buffer) = self.owned.get_mut(&at) {
            buffer.stopped = true;
        }
    }

    /// How many partitions of a tier are read no further.
    #[must_use]
    pub fn stopped(&self, tier: usize) -> usize {
        let of_tier = self.owned.iter().filter(|(at, _)| at.tier == tier);
        of_tier.filter(|(_, buffer)| buffer.stopped).count()
    }

    /// Takes a polled record; drops it unless the partition is owned.
    pub fn take(&mut self, at: TierPartition, record: HeldRecord) {
        if let Some(buffer) = self.owned.get_mut(&at) {
            buffer.bytes += record.weight();
            buffer.records.push_back(record);
        }
    }

    /// How long to wait for records: until the next head is due, or the limit.
    #[must_use]
    pub fn wait(&self, now: Now) -> Duration {
        let until_due = self.heads(now).map(|head| match head {
            Head::Wait(until) => until.since(now.wall),
            Head::Due | Head::Hop(_) => Duration::ZERO,
        });
        let limit = self.limits.wait;
        let gather = self.next_batch.saturating_duration_since(now.steady);
        until_due.min().unwrap_or(limit).max(gather).min(limit)
    }

    /// Which partitions to pause and to resume; it counts as done.
    #[must_use]
    pub fn flow(&mut self) -> Vec<(TierPartition, Flow)> {
        let share = self.limits.buffer_bytes / self.owned.len().max(1);
        let share = share.max(self.limits.least_buffer);
        let mut changes = Vec::new();
        for (&at, buffer) in &mut self.owned {
            if !buffer.paused && (buffer.stopped || buffer.bytes > share) {
                buffer.paused = true;
                changes.push((at, Flow::Pause));
            } else if buffer.paused && !buffer.stopped && buffer.bytes < share / 2 {
                buffer.paused = false;
                changes.push((at, Flow::Resume));
            }
        }
        changes
    }

    /// The topic number of commands; tiers are numbered from 0.
    #[must_use]
    pub fn commands_topic(&self) -> usize {
        self.tiers.delays().len()
    }

    /// The topic number of invalid events.
    #[must_use]
    pub fn invalid_topic(&self) -> usize {
        self.commands_topic() + 1
    }

    /// Where a record is written; the partition is `None` while the topic's count is not known.
    #[must_use]
    pub fn target(&self, to: &Destination<'_>) -> Target {
        let topic = match to {
            Destination::Commands(_) => self.commands_topic(),
            Destination::Tier(tier, _) => *tier,
            Destination::Invalid(_) => self.invalid_topic(),
        };
        let count = self.counts.get(&topic);
        Target {
            topic,
            partition: count.and_then(|&count| partitioner::partition(to.hash(), count)),
        }
    }

    /// Whether the count of a topic's partitions is not known.
    #[must_use]
    pub fn needs_count(&self, topic: usize) -> bool {
        !self.counts.contains_key(&topic)
    }

    /// A topic has this many partitions.
    pub fn learn_count(&mut self, topic: usize, count: i32) {
        self.counts.insert(topic, count);
    }

    /// The failing partition that holds a record back.
    fn holds(&self, to: &Destination<'_>) -> Option<Target> {
        if self.unwritable.is_empty() {
            return None;
        }
        self.unwritable.holds(self.target(to))
    }

    /// The next batch, if a record is due and the last batch ended long enough ago. Tell with [`Machine::ended`],
    /// [`Machine::refused`] or [`Machine::gave_up`] how it ended; its partitions are in no other batch until then.
    #[must_use]
    pub fn next_batch(&mut self, now: Now) -> Option<Batch> {
        if now.steady < self.next_batch {
            return None;
        }
        let due = self
            .heads(now)
            .filter(|head| !matches!(head, Head::Wait(_)))
            .count();
        if due == 0 {
            return None;
        }
        let Limits {
            batch_records,
            batch_bytes,
            portion,
            least_portion,
            ..
        } = self.limits;
        let most = self.search.map_or(batch_records, |search| search.most);
        let portion = (batch_records / due).clamp(least_portion, portion);
        let mut batch = Batch::new(Purpose::Ordinary, now.wall);
        let from_first = self.owned.range(self.first..);
        for (&from, buffer) in from_first.chain(self.owned.range(..self.first)) {
            let mut records = 0;
            let mut position = None;
            if buffer.busy {
                continue;
            }
            for record in buffer.records.iter().take(portion) {
                if batch.records >= most || batch.bytes >= batch_bytes {
                    break;
                }
                let Some(to) = record.destination(from.tier, &self.tiers, now.wall) else {
                    break;
                };
                if self.holds(&to).is_some() {
                    break;
                }
                batch.add(record, from.tier, to);
                records += 1;
                position = Some(record.offset.next());
            }
            if let Some(position) = position {
                batch.portions.push(Portion {
                    from,
                    records,
                    position,
                });
            }
        }
        if batch.portions.is_empty() {
            return None;
        }
        self.under_way(&batch, true);
        Some(batch)
    }

    /// The next record that probes a partition which refuses writes, if it is time for one. How it ended is told as with
    /// [`Machine::next_batch`].
    #[must_use]
    pub fn next_probe(&mut self, now: Now) -> Option<Batch> {
        let due: Vec<Target> = self.unwritable.due(now.steady).collect();
        for target in due {
            let heads = self.owned.iter().filter_map(|(&from, buffer)| {
                let record = buffer.records.front().filter(|_| !buffer.busy)?;
                let to = record.destination(from.tier, &self.tiers, now.wall)?;
                (self.holds(&to) == Some(target)).then_some((from, record, to))
            });
            if let Some((from, record, to)) = heads.into_iter().next() {
                let mut batch = Batch::new(Purpose::Probe(target), now.wall);
                batch.add(record, from.tier, to);
                batch.portions.push(Portion {
                    from,
                    records: 1,
                    position: record.offset.next(),
                });
                self.under_way(&batch, true);
                return Some(batch);
            }
            // What was for it has gone to another owner.
            if !self.owned.values().any(|buffer| buffer.busy) {
                self.unwritable.forget(target);
            }
        }
        None
    }

    fn under_way(&mut self, batch: &Batch, busy: bool) {
        for portion in &batch.portions {
            if let Some(buffer) = self.owned.get_mut(&portion.from) {
                buffer.busy = busy;
            }
        }
    }

    /// The records of a batch, in order.
    pub fn moves<'m>(&'m self, batch: &'m Batch) -> impl Iterator<Item = Move<'m>> {
        batch.portions.iter().flat_map(move |portion| {
            let from = portion.from;
            let buffer = self.owned.get(&from);
            let records = buffer.into_iter().flat_map(|buffer| &buffer.records);
            records.take(portion.records).filter_map(move |record| {
                Some(Move {
                    from,
                    offset: record.offset,
                    appended: record.appended,
                    to: record.destination(from.tier, &self.tiers, batch.now)?,
                })
            })
        })
    }

    /// Takes note of how a batch ended.
    #[must_use]
    pub fn ended(&mut self, batch: &Batch, end: TransactionEnd, now: Instant) -> Next {
        self.next_batch = now + self.limits.gather;
        match end {
            TransactionEnd::Committed => {
                self.under_way(batch, false);
                self.found_nothing(batch, now);
                for portion in &batch.portions {
                    if let Some(buffer) = self.owned.get_mut(&portion.from) {
                        for record in buffer.records.drain(..portion.records) {
                            buffer.bytes -= record.weight();
                        }
                    }
                    self.first = TierPartition {
                        partition: portion.from.partition.saturating_add(1),
                        ..portion.from
                    };
                }
                Next::Continue
            }
            // Once the producer is renewed, the committed positions tell what became of it.
            TransactionEnd::Aborted | TransactionEnd::Fenced | TransactionEnd::Ambiguous => {
                Next::Ask(batch.portions.iter().map(|portion| portion.from).collect())
            }
            TransactionEnd::TooLarge { .. } => {
                self.gave_up(batch);
                self.too_large(batch, now)
            }
            TransactionEnd::Fatal => Next::Stop,
        }
    }

    /// The broker refuses a record together with those that it gets in the same request, so of many any may be too large.
    fn too_large(&mut self, batch: &Batch, now: Instant) -> Next {
        self.next_batch = now;
        let (most, left) = ((batch.records / 2).max(1), batch.records);
        self.search = Some(Search { most, left });
        // Refused by a broker that answers.
        if let Purpose::Probe(target) = batch.purpose {
            self.unwritable.probe_now(target, now);
        }
        match batch.portions.as_slice() {
            [portion] if batch.records == 1 => Next::SetAside(portion.from),
            _ => Next::WriteLess,
        }
    }

    /// Takes note of a batch without a record that is refused for its size.
    fn found_nothing(&mut self, batch: &Batch, now: Instant) {
        if batch.purpose != Purpose::Ordinary {
            return;
        }
        if let Some(search) = &mut self.search {
            search.left = search.left.saturating_sub(batch.records);
            self.next_batch = now;
            if search.left == 0 {
                self.search = None;
            }
        }
    }

    /// The committed position of a partition after a batch that may have been committed: what is before it has moved. All
    /// else is held as before and not read again, since its records may be deleted from the tier by now.
    pub fn committed(&mut self, at: TierPartition, position: Position) {
        if let Some(buffer) = self.owned.get_mut(&at) {
            buffer.busy = false;
            while let Some(first) = buffer.records.front()
                && first.offset.0 < position.0
            {
                buffer.bytes -= first.weight();
                buffer.records.pop_front();
            }
        }
    }

    /// A batch is committed: the partition that it has probed takes records again. Returns for how long it did not.
    pub fn recovered(&mut self, batch: &Batch, now: Instant) -> Option<(Target, Duration)> {
        let Purpose::Probe(target) = batch.purpose else {
            return None;
        };
        let after = self.unwritable.written(target, now)?;
        Some((target, after))
    }

    /// A batch was given up before its positions were sent: these partitions have refused records of it. Its records are
    /// tried again, those for other partitions at once.
    pub fn refused(&mut self, batch: &Batch, by: &BTreeSet<Target>, now: Instant) {
        self.gave_up(batch);
        for &target in by {
            self.unwritable.failed(target, now);
        }
        if let Purpose::Probe(target) = batch.purpose
            && !by.contains(&target)
        {
            self.unwritable.failed(target, now);
        }
    }

    /// A batch was given up before its positions were sent.
    pub fn gave_up(&mut self, batch: &Batch) {
        self.under_way(batch, false);
    }

    /// Whether all polled records of a partition have moved, so that a position behind the ends of transactions may be
    /// committed. Not of a partition that is stopped, since the client has read past the record that stops it.
    #[must_use]
    pub fn is_empty(&self, at: TierPartition) -> bool {
        let buffer = self.owned.get(&at);
        buffer.is_some_and(|buffer| buffer.records.is_empty() && !buffer.busy && !buffer.stopped)
    }

    /// Whether records of the partition are in a batch under way.
    #[must_use]
    pub fn is_busy(&self, at: TierPartition) -> bool {
        self.owned.get(&at).is_some_and(|buffer| buffer.busy)
    }

    /// The partitions that refuse writes, and since when.
    pub fn failing(&self) -> impl Iterator<Item = (Target, Instant)> {
        self.unwritable.all()
    }

    /// Sets aside the first record of a partition, whose topic is `topic`, because it was refused for its size; or less of
    /// it than was refused.
    pub fn set_aside(&mut self, at: TierPartition, topic: &str) {
        let Some(buffer) = self.owned.get_mut(&at) else {
            return;
        };
        let Some(first) = buffer.records.front_mut() else {
            return;
        };
        let before = first.weight();
        match &mut first.content {
            Ok(command) => {
                let record = refused(command, topic, at.partition, first.offset);
                first.content = Err(Box::new(record));
            }
            Err(record) => record.extent = record.extent.smaller(),
        }
        buffer.bytes = buffer.bytes + first.weight() - before;
    }

    /// The heads of the partitions that may move: those in no batch and not held back.
    fn heads(&self, now: Now) -> impl Iterator<Item = Head> + '_ {
        self.owned.iter().filter_map(move |(at, buffer)| {
            if buffer.busy {
                return None;
            }
            let record = buffer.records.front()?;
            let to = record.destination(at.tier, &self.tiers, now.wall);
            if to.is_some_and(|to| self.holds(&to).is_some()) {
                return None;
            }
            Some(record.head(at.tier, &self.tiers, now.wall))
        })
    }
}

/// A command that cannot move, as a record to be set aside.
fn refused(command: &Command, topic: &str, partition: i32, offset: Offset) -> InvalidRecord {
    let mut headers = Vec::new();
    command.envelope().each_header(|name, value| {
        headers.push((name.to_owned(), Some(value.as_bytes().to_vec())));
    });
    InvalidRecord {
        key: Some(command.subscriber.as_bytes().to_vec()),
        value: Some(command.body.to_vec()),
        headers,
        error: "the command is larger than max.message.bytes of the topic that it moves to"
            .to_owned(),
        topic: topic.to_owned(),
        partition,
        offset,
        extent: Extent::Whole,
    }
}

#[cfg(test)]
mod tests;
