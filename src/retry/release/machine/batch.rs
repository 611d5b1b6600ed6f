//! What release moves: records, where they go, batches and their limits.

use std::time::{Duration, Instant};

use crate::model::command::{Cause, Command};
use crate::model::invalid_record::InvalidRecord;
use crate::model::partitioner::key_hash;
use crate::model::tiers::{Head, Tiers};
use crate::model::units::{EpochMs, Offset, Position};
use crate::model::unwritable::Target;

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
    pub(super) fn weight(&self) -> usize {
        match &self.content {
            Ok(command) => command.weight(),
            Err(record) => record.weight(),
        }
    }

    pub(super) fn head(&self, tier: usize, tiers: &Tiers, now: EpochMs) -> Head {
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
    pub(super) fn destination(
        &self,
        tier: usize,
        tiers: &Tiers,
        now: EpochMs,
    ) -> Option<Destination<'_>> {
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

impl Destination<'_> {
    /// The hash of its key. A record without a key goes to a partition by where it was read.
    pub(super) fn hash(&self) -> u32 {
        match self {
            Self::Commands(command) | Self::Tier(_, command) => {
                key_hash(command.subscriber.as_bytes())
            }
            Self::Invalid(record) => match &record.key {
                Some(key) => key_hash(key),
                None => key_hash(
                    format!("{} {}:{}", record.topic, record.partition, record.offset).as_bytes(),
                ),
            },
        }
    }
}

/// What a batch was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Records for partitions that are not known to refuse writes.
    Ordinary,
    /// One record, to see whether its partition takes it.
    Probe(Target),
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
    /// What for.
    pub purpose: Purpose,
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
}

impl Batch {
    pub(super) fn new(purpose: Purpose, now: EpochMs) -> Self {
        Self {
            purpose,
            now,
            portions: Vec::new(),
            records: 0,
            bytes: 0,
            hops: 0,
            released: [0; Cause::ALL.len()],
        }
    }

    pub(super) fn is_full(&self, limits: &Limits) -> bool {
        self.records >= limits.batch_records || self.bytes >= limits.batch_bytes
    }

    pub(super) fn add(&mut self, record: &HeldRecord, to: Destination<'_>) {
        self.records += 1;
        self.bytes += record.weight();
        match to {
            Destination::Commands(command) => {
                for (cause, count) in Cause::ALL.iter().zip(&mut self.released) {
                    *count += u64::from(*cause == command.cause);
                }
            }
            Destination::Tier(..) => self.hops += 1,
            Destination::Invalid(_) => {}
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

/// How often a record that is too large for where it goes is tried again.
pub const TOO_LARGE_AGAIN: Duration = Duration::from_secs(30);

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
    /// Renew the producer, and tell the committed positions of these partitions with [`super::Machine::committed`].
    Ask(Vec<TierPartition>),
    /// Nothing has moved, and nothing was committed: the records are tried again.
    TryAgain,
    /// The record at the head of this partition is too large for where it goes: it is tried again every
    /// [`TOO_LARGE_AGAIN`], until an operator raises that topic's limit.
    TooLarge(TierPartition),
    /// This process cannot write.
    Stop,
}
