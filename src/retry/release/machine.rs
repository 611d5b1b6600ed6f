//! What release decides: which records it holds, when they move and where to, and when a partition is paused.
//!
//! A tier partition is in due order, so only its head decides. The records behind the head are kept in a bounded
//! buffer. A partition whose buffer is full is paused, since its records take a while to fall due, and resumed when
//! half of the buffer is free: memory is bounded whatever the backlog, and each record is fetched about once.
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

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use crate::model::command::{Cause, Command};
use crate::model::invalid_record::{Extent, InvalidRecord};
use crate::model::tiers::{Head, Tiers};
use crate::model::transaction_end::TransactionEnd;
use crate::model::units::{EpochMs, Offset, Position};

/// One partition of one tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TierPartition {
    /// The tier's index: 0 is the shortest.
    pub tier: usize,
    /// The partition's number.
    pub partition: i32,
}

/// The time, by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// What due times are compared with.
    pub wall: EpochMs,
    /// What pauses of this process are measured with.
    pub steady: Instant,
}

/// A record of a tier.
#[derive(Debug)]
pub struct HeldRecord {
    /// Its offset.
    pub offset: Offset,
    /// When it was appended to the tier.
    pub appended: EpochMs,
    /// The command, or a record that is none.
    pub content: Result<Box<Command>, Box<InvalidRecord>>,
}

impl HeldRecord {
    fn weight(&self) -> usize {
        match &self.content {
            Ok(command) => command.weight(),
            Err(record) => record.weight(),
        }
    }

    fn head(&self, tier: usize, tiers: &Tiers, now: EpochMs) -> Head {
        match &self.content {
            Ok(command) => {
                let due = command.due.unwrap_or(self.appended);
                tiers.at_head(tier, self.appended, due, now)
            }
            // Not a command: there is nothing to wait for.
            Err(_) => Head::Due,
        }
    }

    /// `None` while it must wait.
    fn destination(&self, tier: usize, tiers: &Tiers, now: EpochMs) -> Option<Destination<'_>> {
        let head = self.head(tier, tiers, now);
        Some(match (&self.content, head) {
            (_, Head::Wait(_)) => return None,
            (Ok(command), Head::Due) => Destination::Commands(command),
            (Ok(command), Head::Hop(tier)) => Destination::Tier(tier, command),
            (Err(record), _) => Destination::Invalid(record),
        })
    }
}

/// Where a record moves.
#[derive(Clone, Copy, Debug)]
pub enum Destination<'a> {
    /// To `webhook-commands`: it is due.
    Commands(&'a Command),
    /// To the tier of this index: that is where the rest of its wait is.
    Tier(usize, &'a Command),
    /// To `webhook-invalid-events`: it is not a command.
    Invalid(&'a InvalidRecord),
}

/// One record of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Move<'a> {
    /// The partition that it leaves.
    pub from: TierPartition,
    /// Its offset there.
    pub offset: Offset,
    /// When it was appended there.
    pub appended: EpochMs,
    /// Where it goes.
    pub to: Destination<'a>,
}

/// What a batch takes from one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Portion {
    /// The partition.
    pub from: TierPartition,
    /// How many records, from its head on.
    pub records: usize,
    /// The position to commit with the batch.
    pub position: Position,
}

/// Records to move in one transaction.
#[derive(Debug)]
pub struct Batch {
    /// When it was decided on.
    pub now: EpochMs,
    /// One for each partition that it takes records from.
    pub portions: Vec<Portion>,
    /// Records, in total.
    pub records: usize,
    /// Their weight.
    pub bytes: usize,
    /// Commands that move to another tier.
    pub hops: u64,
    /// Commands that move to `webhook-commands`, in the order of [`Cause::ALL`].
    pub released: [u64; Cause::ALL.len()],
    /// Records that are set aside, by the tier that they leave.
    pub set_aside: BTreeMap<usize, u64>,
}

impl Batch {
    fn new(now: EpochMs) -> Self {
        Self {
            now,
            portions: Vec::new(),
            records: 0,
            bytes: 0,
            hops: 0,
            released: [0; Cause::ALL.len()],
            set_aside: BTreeMap::new(),
        }
    }

    fn add(&mut self, record: &HeldRecord, tier: usize, to: Destination<'_>) {
        self.records += 1;
        self.bytes += record.weight();
        match to {
            Destination::Commands(command) => {
                for (cause, count) in Cause::ALL.iter().zip(&mut self.released) {
                    *count += u64::from(*cause == command.cause);
                }
            }
            Destination::Tier(..) => self.hops += 1,
            Destination::Invalid(_) => *self.set_aside.entry(tier).or_default() += 1,
        }
    }
}

/// What keeps memory, batches and waits bounded.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of all buffers, except that each holds at least one record.
    pub buffer_bytes: usize,
    /// Bytes of one buffer, at least: a smaller one saves no fetches.
    pub least_buffer: usize,
    /// Records of a batch.
    pub batch_records: usize,
    /// Bytes of a batch, except that one record always fits.
    pub batch_bytes: usize,
    /// Records of one partition in a batch: what falls due all at once, as after an outage, comes back among the new
    /// commands of its partition, and not before them all.
    pub portion: usize,
    /// Records of one partition in a batch that many partitions share.
    pub least_portion: usize,
    /// From the end of one batch to the next, so that a steady trickle is moved in batches.
    pub gather: Duration,
    /// One wait for records.
    pub wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            buffer_bytes: 64 * 1024 * 1024,
            least_buffer: 128 * 1024,
            batch_records: 2000,
            batch_bytes: 4 * 1024 * 1024,
            portion: 500,
            least_portion: 20,
            gather: Duration::from_millis(20),
            wait: Duration::from_millis(100),
        }
    }
}

/// Whether a partition is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Its buffer is full.
    Pause,
    /// Half of its buffer is free.
    Resume,
}

/// What follows the end of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Its records have moved.
    Continue,
    /// Renew the producer, and read these partitions again from their committed positions.
    ReadAgain(Vec<TierPartition>),
    /// Renew the producer: nothing was written, and the next batch is smaller.
    WriteLess,
    /// The same, after [`Machine::set_aside`]: the first record of this partition was refused alone.
    SetAside(TierPartition),
    /// This process cannot write.
    Stop,
}

/// The head of a tier partition, and the records behind it as far as they are known.
#[derive(Debug, Default)]
struct Buffer {
    records: VecDeque<HeldRecord>,
    bytes: usize,
    paused: bool,
    /// A record of a newer program follows: nothing behind it is taken.
    stopped: bool,
}

impl Buffer {
    fn clear(&mut self) {
        self.records.clear();
        self.bytes = 0;
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
            search: None,
        }
    }

    /// Takes over partitions, whose records are to be polled from the committed positions on.
    pub fn assigned(&mut self, partitions: impl Iterator<Item = TierPartition>) {
        for at in partitions {
            self.owned.insert(at, Buffer::default());
        }
    }

    /// Forgets partitions that were revoked or lost. No batch is open between two polls, so nothing of them is under way.
    pub fn revoked(&mut self, partitions: impl Iterator<Item = TierPartition>) {
        for at in partitions {
            self.owned.remove(&at);
        }
    }

    /// Reading goes on at `to` instead of `from`. Behind deleted records, what is held moves as before. A topic that
    /// ends before what was read was truncated or made again: what is held is not in it, or is polled again.
    pub fn gap(&mut self, at: TierPartition, from: Position, to: Position) {
        if let Some(buffer) = self.owned.get_mut(&at) {
            buffer.stopped = false;
            if to < from {
                buffer.clear();
            }
        }
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
        let until_due = self.heads(now.wall).map(|head| match head {
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

    /// The next batch, if a record is due and the last batch ended long enough ago. Tell with [`Machine::ended`] how it
    /// ended before anything else is polled.
    #[must_use]
    pub fn next_batch(&self, now: Now) -> Option<Batch> {
        if now.steady < self.next_batch {
            return None;
        }
        let due = self
            .heads(now.wall)
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
        let mut batch = Batch::new(now.wall);
        let from_first = self.owned.range(self.first..);
        for (&from, buffer) in from_first.chain(self.owned.range(..self.first)) {
            let mut records = 0;
            let mut position = None;
            for record in buffer.records.iter().take(portion) {
                if batch.records >= most || batch.bytes >= batch_bytes {
                    break;
                }
                let Some(to) = record.destination(from.tier, &self.tiers, now.wall) else {
                    break;
                };
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
        Some(batch)
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
                self.found_nothing(batch.records, now);
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
                self.owned.values_mut().for_each(Buffer::clear);
                Next::ReadAgain(self.owned.keys().copied().collect())
            }
            TransactionEnd::TooLarge { .. } => {
                self.next_batch = now;
                let (most, left) = ((batch.records / 2).max(1), batch.records);
                self.search = Some(Search { most, left });
                match batch.portions.as_slice() {
                    [portion] if batch.records == 1 => Next::SetAside(portion.from),
                    _ => Next::WriteLess,
                }
            }
            TransactionEnd::Fatal => Next::Stop,
        }
    }

    /// Takes note of a batch without a record that is refused.
    fn found_nothing(&mut self, records: usize, now: Instant) {
        if let Some(search) = &mut self.search {
            search.left = search.left.saturating_sub(records);
            self.next_batch = now;
            if search.left == 0 {
                self.search = None;
            }
        }
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

    fn heads(&self, now: EpochMs) -> impl Iterator<Item = Head> + '_ {
        self.owned.iter().filter_map(move |(at, buffer)| {
            let head = buffer.records.front()?;
            Some(head.head(at.tier, &self.tiers, now))
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
