//! Messages between the role's thread and its workers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::outage::Health;
use super::partition::counts::AttemptCounts;
use super::partition::effect::Outcome;
use super::partition::env::{Amount, Memory};
use super::partition::event::{Incoming, LookAhead};
use crate::model::units::{Offset, Position};
use crate::model::window::{Place, Restored, Snapshot};

/// A message to a worker.
pub(super) enum Message {
    /// Take ownership of this partition.
    Open {
        partition: i32,
        place: Place,
        restored: Box<Restored>,
        load: Arc<Load>,
    },
    /// Records that were read from this partition.
    Take(i32, Vec<Incoming>),
    /// Report the state of all partitions. Reported outcomes are then forgotten here.
    Snapshot(oneshot::Sender<WorkerState>),
    /// Report what may be committed together with the outcomes of these offsets, for the partitions of this worker.
    SnapshotWith(
        BTreeMap<i32, Vec<Offset>>,
        oneshot::Sender<Vec<(i32, Snapshot)>>,
    ),
    /// The broker keeps at most this many characters with a position.
    Limit(usize),
    /// A partition has no more records before this position, to which it was read.
    Passed(i32, Position),
    /// The outcomes of these offsets of a partition are durable.
    Durable(i32, Vec<Offset>),
    /// The result of a look-ahead that a partition requested in this epoch.
    LookedAhead(i32, u64, LookAhead),
    /// A secret was read: lanes may wait for it.
    SecretRead,
    /// An egress outage has begun.
    OutageBegan,
    /// Let some of the lanes that it holds probe.
    Probe,
    /// The outage is over; the flag says whether an endpoint was heard.
    OutageEnded(bool),
    /// Start nothing more in these partitions, and report each of them when nothing of it is in flight.
    Stop(Vec<i32>, mpsc::UnboundedSender<i32>),
    /// Drop these partitions, and cut off what is still in flight.
    Close(Vec<i32>),
}

/// Tells a worker the result of a look-ahead that a partition requested in this epoch. If the worker has ended, nobody
/// needs it.
pub(super) fn answer(
    worker: &mpsc::WeakUnboundedSender<Message>,
    partition: i32,
    epoch: u64,
    found: LookAhead,
) {
    if let Some(worker) = worker.upgrade() {
        worker
            .send(Message::LookedAhead(partition, epoch, found))
            .ok();
    }
}

/// A worker's state at one moment.
#[derive(Debug)]
pub(super) struct WorkerState {
    pub(super) partitions: Vec<PartitionState>,
    pub(super) health: Health,
    /// Attempts by subscriber since the last report; a subscriber may occur several times.
    pub(super) attempts: Vec<(Arc<str>, AttemptCounts)>,
}

/// A partition's state at one moment.
#[derive(Debug)]
pub(super) struct PartitionState {
    pub(super) partition: i32,
    /// May be committed; the offsets of outcomes that are not durable are open in it.
    pub(super) snapshot: Snapshot,
    /// Outcomes since the last report.
    pub(super) outcomes: Vec<Decided>,
    pub(super) span: u64,
    /// How long the partition's intake has been waiting for room.
    pub(super) stalled: Duration,
    /// The age of the oldest attempt in flight.
    pub(super) oldest: Duration,
    /// Queued commands that wait only for requests of the worker.
    pub(super) runnable: usize,
    /// Offsets from the position on that a commit can describe.
    pub(super) reach: usize,
    /// Writes of fan-out that were lost and not written again yet.
    pub(super) holes: usize,
    /// Commands that are deferred.
    pub(super) deferred: usize,
}

/// An outcome to be written.
#[derive(Debug)]
pub(super) struct Decided {
    /// The offset of the command that it ends, if it ends one.
    pub(super) offset: Option<Offset>,
    /// Which of its partition's moves to a tier it is, counted from 0.
    pub(super) move_number: Option<u64>,
    pub(super) outcome: Outcome,
}

/// A partition's use of memory: commands handed over and not done; and which of its moves to a tier are durable.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// The bytes and the commands that it may hold before it is paused.
    share_bytes: AtomicUsize,
    share_commands: AtomicUsize,
    bytes: AtomicUsize,
    commands: AtomicUsize,
    /// Commands moved to a tier so far, and how many of these moves are durable without a gap.
    moves: AtomicU64,
    durable_moves: AtomicU64,
}

impl Load {
    /// Adds a command.
    pub(super) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.commands.fetch_add(1, Ordering::Relaxed);
    }

    /// Removes finished commands and the bytes that they held together.
    pub(super) fn sub(&self, commands: usize, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.commands.fetch_sub(commands, Ordering::Relaxed);
    }

    /// Counts a move to a tier that is to be written. Returns its number.
    pub(super) fn add_move(&self) -> u64 {
        self.moves.fetch_add(1, Ordering::Relaxed)
    }

    /// The first `count` moves are durable.
    pub(super) fn moves_are_durable(&self, count: u64) {
        self.durable_moves.store(count, Ordering::Release);
    }

    /// The number of moves to a tier so far.
    pub(super) fn moves(&self) -> u64 {
        self.moves.load(Ordering::Relaxed)
    }

    /// Whether the first `count` moves are durable.
    pub(super) fn are_moves_durable(&self, count: u64) -> bool {
        self.durable_moves.load(Ordering::Acquire) >= count
    }

    pub(super) fn set_share(&self, share: Amount) {
        self.share_bytes.store(share.bytes, Ordering::Relaxed);
        self.share_commands.store(share.commands, Ordering::Relaxed);
    }

    pub(super) fn share(&self) -> Amount {
        Amount {
            bytes: self.share_bytes.load(Ordering::Relaxed),
            commands: self.share_commands.load(Ordering::Relaxed),
        }
    }

    /// What is left of the share.
    pub(super) fn left(&self) -> Memory {
        Memory::left(self.held(), self.share())
    }

    pub(super) fn held(&self) -> Amount {
        Amount {
            bytes: self.bytes(),
            commands: self.commands(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn commands(&self) -> usize {
        self.commands.load(Ordering::Relaxed)
    }
}
