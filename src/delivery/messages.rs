//! What the role's thread and its workers say to each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::outage::Health;
use super::partition::counts::AttemptCounts;
use super::partition::effect::Outcome;
use super::partition::event::{Incoming, LookAhead};
use crate::model::window::{Place, Snapshot, Window};

/// To a worker.
pub(super) enum Message {
    /// Own this partition.
    Open {
        partition: i32,
        place: Place,
        window: Window,
        load: Arc<Load>,
    },
    /// These records of it were read.
    Take(i32, Vec<Incoming>),
    /// Report the state of all partitions; outcomes that were reported are forgotten here.
    Snapshot(Sender<WorkerState>),
    /// What a partition asked for in this epoch.
    LookedAhead(i32, u64, LookAhead),
    /// Send nothing, during an egress outage.
    Pause,
    /// Send one command although paused.
    Probe,
    /// The outage is over; whether a response showed that.
    Resume(bool),
    /// Start nothing more in these partitions, and say so when nothing is in flight any more.
    Stop(Vec<i32>, Sender<()>),
    /// Forget these partitions, and cut what is still in flight.
    Close(Vec<i32>),
}

/// What a worker reports at one moment.
#[derive(Debug)]
pub(super) struct WorkerState {
    pub(super) partitions: Vec<PartitionState>,
    pub(super) health: Health,
    /// By subscriber, which may stand there several times, since the last report.
    pub(super) attempts: Vec<(Arc<str>, AttemptCounts)>,
}

/// A partition at one moment: with `outcomes` durable, `snapshot` may be committed.
#[derive(Debug)]
pub(super) struct PartitionState {
    pub(super) partition: i32,
    pub(super) snapshot: Snapshot,
    pub(super) outcomes: Vec<Outcome>,
    pub(super) span: u64,
    /// How long the partition's intake has been waiting for room.
    pub(super) stalled: Duration,
    /// The age of the oldest attempt in flight.
    pub(super) oldest: Duration,
    /// Queued commands that only the worker's shortage holds up.
    pub(super) runnable: usize,
}

/// What was handed over and is not done: how full a partition's part of memory is.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// What it may hold before it is paused, bytes.
    share: AtomicUsize,
    bytes: AtomicUsize,
    commands: AtomicUsize,
}

impl Load {
    /// One more command.
    pub(super) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.commands.fetch_add(1, Ordering::Relaxed);
    }

    /// So many commands are done, which took so many bytes together.
    pub(super) fn sub(&self, commands: usize, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.commands.fetch_sub(commands, Ordering::Relaxed);
    }

    pub(super) fn set_share(&self, bytes: usize) {
        self.share.store(bytes, Ordering::Relaxed);
    }

    /// Whether less than half of the share is held.
    pub(super) fn has_spare(&self) -> bool {
        self.bytes() < self.share.load(Ordering::Relaxed) / 2
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn commands(&self) -> usize {
        self.commands.load(Ordering::Relaxed)
    }
}
