//! A partition as its worker holds it: window, what waits to be taken, what is in flight, and the outcomes that the
//! next commit has to write.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

use super::super::crowd::Crowd;
use super::super::scan::{Question, UnderWay};
use super::{LaneId, Map};
use crate::model::command::Command;
use crate::model::dead_letter::DeadLetterInfo;
use crate::model::invalid_record::InvalidRecord;
use crate::model::units::Offset;
use crate::model::window::{Place, Snapshot, Window};

/// What the Kafka thread has handed over and is not done: how full a partition's part of memory is.
#[derive(Debug, Default)]
pub(in crate::delivery) struct Load {
    /// What it may hold before it is paused, bytes.
    share: AtomicUsize,
    bytes: AtomicUsize,
    commands: AtomicUsize,
}

impl Load {
    pub(in crate::delivery) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.commands.fetch_add(1, Ordering::Relaxed);
    }

    pub(in crate::delivery) fn sub(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.commands.fetch_sub(1, Ordering::Relaxed);
    }

    pub(in crate::delivery) fn set_share(&self, bytes: usize) {
        self.share.store(bytes, Ordering::Relaxed);
    }

    /// Whether less than half of the share is held.
    pub(super) fn has_spare(&self) -> bool {
        self.bytes() < self.share.load(Ordering::Relaxed) / 2
    }

    pub(in crate::delivery) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(in crate::delivery) fn commands(&self) -> usize {
        self.commands.load(Ordering::Relaxed)
    }
}

/// A record on its way into a window.
#[derive(Debug)]
pub(in crate::delivery) struct Incoming {
    pub(in crate::delivery) offset: Offset,
    pub(in crate::delivery) content: Result<Box<Command>, Box<InvalidRecord>>,
}

impl Incoming {
    pub(in crate::delivery) fn weight(&self) -> usize {
        match &self.content {
            Ok(command) => command.weight(),
            Err(record) => record.weight(),
        }
    }
}

/// What must become durable before the position passes its command.
#[derive(Debug)]
pub(in crate::delivery) enum Outcome {
    /// To the tier of this index.
    Tier(usize, Box<Command>),
    DeadLetter(Box<Command>, Box<DeadLetterInfo>),
    Invalid(Box<InvalidRecord>),
    /// Disable this subscription: its endpoint is gone.
    Disable(Box<str>),
}

impl Outcome {
    /// What is held in memory for it; `None` when it does not stand for a command.
    pub(in crate::delivery) fn weight(&self) -> Option<usize> {
        match self {
            Self::Tier(_, command) | Self::DeadLetter(command, _) => Some(command.weight()),
            Self::Invalid(record) => Some(record.weight()),
            Self::Disable(_) => None,
        }
    }
}

/// A partition at one moment: with `outcomes` durable, `snapshot` may be committed.
#[derive(Debug)]
pub(in crate::delivery) struct PartitionState {
    pub(in crate::delivery) partition: i32,
    pub(in crate::delivery) snapshot: Snapshot,
    pub(in crate::delivery) outcomes: Vec<Outcome>,
    pub(in crate::delivery) span: u64,
    /// To be answered by reading ahead.
    pub(in crate::delivery) questions: Vec<Question>,
    /// How long the partition's intake has been waiting for room.
    pub(in crate::delivery) stalled: Duration,
    /// The age of the oldest attempt in flight.
    pub(in crate::delivery) oldest: Duration,
    /// Queued commands that only the worker's shortage holds up.
    pub(in crate::delivery) runnable: usize,
}

/// A command whose offset is in its partition's window.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) partition: i32,
    pub(super) offset: Offset,
    pub(super) command: Box<Command>,
}

pub(super) struct Flight {
    pub(super) lane: LaneId,
    pub(super) abort: AbortHandle,
    pub(super) started: Instant,
}

/// Whether a partition's commands are started.
pub(super) enum Intake {
    Open,
    /// No more; this is told when nothing is in flight.
    Stopping(Sender<()>),
    Stopped,
}

/// Whether it is known what is under way of a partition's ordered subscriptions.
pub(super) enum Scan {
    /// It may have none.
    Unasked,
    /// To be asked for with the next snapshot.
    Wanted,
    Running,
    /// What was found of subscriptions that have no lane yet.
    Done(UnderWay),
}

pub(super) struct Partition {
    /// Tells one ownership of the partition from the next (**Owner only**).
    pub(super) epoch: u64,
    pub(super) place: Place,
    pub(super) window: Window,
    pub(super) load: Arc<Load>,
    pub(super) pending: VecDeque<Incoming>,
    /// Whether the first of `pending` is in the window already.
    pub(super) first_is_taken: bool,
    pub(super) stalled_since: Option<Instant>,
    pub(super) lanes: Map<Rc<str>, LaneId>,
    pub(super) in_flight: BTreeMap<Offset, Flight>,
    pub(super) outcomes: Vec<Outcome>,
    pub(super) intake: Intake,
    pub(super) scan: Scan,
    /// When something overdue was last looked for.
    pub(super) looked_again: Option<Instant>,
    /// Whether its intake is held up, and by whom.
    pub(super) crowd: Crowd,
    pub(super) questions: Vec<Question>,
}

impl Partition {
    pub(super) fn finish(&mut self, offset: Offset) {
        let was_open = self.window.finish(offset);
        debug_assert!(was_open, "an offset ends once");
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.intake, Intake::Open)
    }

    pub(super) fn stopped_if_idle(&mut self) {
        if self.in_flight.is_empty()
            && let Intake::Stopping(done) = &self.intake
        {
            // The Kafka thread may have given up waiting; then nobody needs to know.
            done.send(()).ok();
            self.intake = Intake::Stopped;
        }
    }
}
