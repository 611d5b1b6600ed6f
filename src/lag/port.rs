//! What the reader of the backlog needs of Kafka. Unlike the roles on [`crate::edge::port`] it joins no group and writes
//! nothing, and it reads all partitions without an end. `super::clients` has the product's side, in which each future is
//! ready at once; the other is in `tests/sim`, in virtual time.

use std::time::Duration;

use crate::edge::kafka::cluster::ClusterId;
use crate::edge::port::failure::Failure;
use crate::edge::port::records::{RecordView, TopicPartition};

/// An end of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// The first offset that the broker still has.
    First,
    /// The last stable offset.
    Stable,
    /// The high watermark.
    High,
}

/// A group whose positions count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// That of delivery.
    Deliver,
    /// That of release.
    Release,
}

/// The outside of one reader.
pub trait Kafka {
    /// A topic that is read.
    type Feed: Feed;

    /// Handles what the clients have to say. Called about once a second.
    fn serve(&self);

    /// The cluster's id.
    ///
    /// # Errors
    /// [`Failure`] when no broker responds in time.
    fn cluster(&self) -> impl Future<Output = Result<ClusterId, Failure>>;

    /// The partitions of a topic; none if it does not exist.
    ///
    /// # Errors
    /// [`Failure`] when no broker responds in time.
    fn partitions(&self, topic: &str) -> impl Future<Output = Result<Vec<i32>, Failure>>;

    /// An end of each of these partitions, where it is known.
    ///
    /// # Errors
    /// [`Failure`] when a broker does not respond in time, or a partition cannot be asked for.
    fn offsets(
        &self,
        of: &[TopicPartition],
        which: Bound,
    ) -> impl Future<Output = Result<Vec<Option<i64>>, Failure>>;

    /// The committed offset of each of these partitions with its metadata, as it is at this moment: an open transaction is
    /// not waited for.
    ///
    /// # Errors
    /// [`Failure`] when the coordinator does not respond in time, or refuses.
    fn committed(
        &self,
        group: Group,
        of: &[TopicPartition],
    ) -> impl Future<Output = Result<Vec<Option<(i64, String)>>, Failure>>;

    /// Opens a topic, of which nothing is read yet.
    ///
    /// # Errors
    /// [`Failure`] when a client cannot be created.
    fn feed(&self, topic: &str) -> Result<Self::Feed, Failure>;
}

/// What comes from a topic.
pub enum Fed<R> {
    /// A committed record.
    Record(R),
    /// The last stable offset of a partition is reached.
    End(i32),
    /// Nothing within the time allowed.
    Idle,
}

/// One topic, read as far as its last stable offsets and on.
pub trait Feed {
    /// A record.
    type Record<'a>: RecordView
    where
        Self: 'a;

    /// Reads a partition from this offset on, or from its first one, also if it is read already.
    ///
    /// # Errors
    /// [`Failure`] when the client fails.
    fn read_from(&self, partition: i32, from: Option<i64>) -> Result<(), Failure>;

    /// What comes next, within `patience`.
    ///
    /// # Errors
    /// [`Failure`] for what waiting does not fix.
    fn poll(
        &self,
        patience: Duration,
    ) -> impl Future<Output = Result<Fed<Self::Record<'_>>, Failure>>;
}
