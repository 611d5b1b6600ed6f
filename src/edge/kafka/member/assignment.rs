//! Partitions that were assigned, while their committed offsets are read.
//!
//! A transaction that their last owner has left open hides these for up to its timeout, and some more until a broker
//! notices. So they are read on a thread of their own: what the member has goes on.

use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread::{Builder, Thread};

use super::committed::{Committed, CommittedReader};
use super::partition::TopicPartition;
use crate::edge::kafka::error::Failure;

/// Assigned partitions that the role does not know of yet.
pub(super) struct Assignment {
    pub(super) partitions: Vec<TopicPartition>,
    found: Receiver<Result<Vec<Committed>, Failure>>,
}

impl Assignment {
    /// Begins to read their offsets; wakes `thread` at the end.
    pub(super) fn begin(
        partitions: Vec<TopicPartition>,
        reader: CommittedReader,
        thread: Thread,
    ) -> Result<Self, Failure> {
        let (done, found) = channel();
        let asked = partitions.clone();
        let read = move || {
            // The member may be closed by now.
            done.send(reader.read(&asked)).ok();
            // Its client is released before the member looks.
            drop(reader);
            thread.unpark();
        };
        let begun = Builder::new().name("committed".to_owned()).spawn(read);
        begun.map_err(|error| Failure::Internal(format!("cannot start a thread: {error}")))?;
        Ok(Self { partitions, found })
    }

    /// The offsets, when they have been read.
    pub(super) fn found(&self) -> Option<Result<Vec<Committed>, Failure>> {
        match self.found.try_recv() {
            Ok(found) => Some(found),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(Failure::Internal(
                "reading committed offsets panicked, see the log above".to_owned(),
            ))),
        }
    }
}

/// The failure of an assignment with a partition without a position.
pub(super) fn no_position(group: &str, at: &TopicPartition) -> Failure {
    let (topic, partition) = (&at.topic, at.partition);
    Failure::NoPosition {
        group: group.to_owned(),
        partition: format!("{topic} partition {partition}"),
    }
}
