//! Records, partitions and positions, as the roles see them.

use std::sync::Arc;

use crate::model::units::{EpochMs, Position};

/// One partition of one topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's number.
    pub partition: i32,
}

/// The time that a broker gave to a record when it appended it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Where the record is: all of a partition are stamped by its leader.
    pub at: TopicPartition,
    /// By the broker's clock.
    pub stamped: EpochMs,
    /// When the acknowledgement came, by this machine's clock: later by as long as that took, at most
    /// [`super::WRITE_DEADLINE`].
    pub seen: EpochMs,
}

impl Stamp {
    /// What tells the broker that stamped it from others, as long as leaders stay: the partition.
    #[must_use]
    pub fn leader(&self) -> String {
        format!("{}/{}", self.at.topic, self.at.partition)
    }

    /// By how many seconds this machine's clock is ahead of the broker's at most.
    #[must_use]
    pub fn ahead(&self) -> f64 {
        (self.seen.0 - self.stamped.0) as f64 / 1000.0
    }
}

/// A position to commit, with its metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The partition.
    pub at: TopicPartition,
    /// The next record to read after a restart.
    pub position: Position,
    /// At most 4,096 characters; empty where the position suffices.
    pub metadata: String,
}

/// The committed offset of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The partition.
    pub at: TopicPartition,
    /// `None` when the group has no committed offset.
    pub position: Option<Position>,
    /// The commit metadata.
    pub metadata: String,
}

/// How far to read one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The partition.
    pub partition: i32,
    /// The first offset that the broker still has.
    pub low: i64,
    /// One past the last offset to read.
    pub end: i64,
}

/// Which records a reader sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Those of committed transactions and of none, up to the last stable offset.
    Committed,
    /// All, also those of transactions that are open or were aborted, up to the high watermark.
    Uncommitted,
}

/// A record that was read. Nothing is copied out of the client's buffer.
pub trait RecordView {
    /// The topic's name.
    fn topic(&self) -> &str;
    /// The partition's number.
    fn partition(&self) -> i32;
    /// The record's offset.
    fn offset(&self) -> i64;
    /// The epoch of the leader that appended the record; -1 where it is not known.
    fn leader_epoch(&self) -> i32 {
        -1
    }
    /// The producer's time or the broker's, as the topic is configured; `None` if the record has none.
    fn timestamp(&self) -> Option<EpochMs>;
    /// The key, if there is one.
    fn key(&self) -> Option<&[u8]>;
    /// The value; `None` is a tombstone.
    fn payload(&self) -> Option<&[u8]>;
    /// All headers, in order. A name need not be UTF-8.
    fn headers(&self) -> impl Iterator<Item = RawHeader<'_>>;
}

/// One header: its name and its value.
pub type RawHeader<'a> = (&'a [u8], Option<&'a [u8]>);

/// The headers of a record to write, in the client's own form, so that they are built once.
pub trait Headers: Default {
    /// None yet, with room for `count`.
    #[must_use]
    fn with_capacity(count: usize) -> Self;

    /// These and one more at the end.
    #[must_use]
    fn and(self, name: &str, value: Option<&[u8]>) -> Self;
}

/// One record to write.
pub struct Record<'a, H> {
    /// The topic.
    pub topic: &'a str,
    /// The partition; by the key's hash when `None`.
    pub partition: Option<i32>,
    /// The key, if the record has one.
    pub key: Option<&'a [u8]>,
    /// The value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Headers, in order.
    pub headers: H,
    /// The input of the batch that this record comes from; reported when the record is rejected.
    pub tag: usize,
}
