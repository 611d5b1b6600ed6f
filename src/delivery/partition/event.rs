//! What happens to a partition.

use std::collections::HashMap;

use super::lane::Permit;
use crate::model::command::Command;
use crate::model::invalid_record::InvalidRecord;
use crate::model::outcome::Response;
use crate::model::units::{EpochMs, Offset, Position};

/// Tells the lanes of one partition apart, over the time of one ownership.
pub type LaneId = u64;

/// A record that was read, on its way into the window.
#[derive(Debug)]
pub struct Incoming {
    /// Its offset.
    pub offset: Offset,
    /// The command, or what is set aside.
    pub content: Result<Box<Command>, Box<InvalidRecord>>,
}

impl Incoming {
    /// What it takes in memory, bytes.
    #[must_use]
    pub fn weight(&self) -> usize {
        match &self.content {
            Ok(command) => command.weight(),
            Err(record) => record.weight(),
        }
    }
}

/// The end of an attempt.
#[derive(Debug)]
pub struct AttemptEnd<E> {
    /// Whose it was.
    pub lane: LaneId,
    /// The command's offset.
    pub offset: Offset,
    /// The command, as it was sent.
    pub command: Box<Command>,
    /// As it was when the attempt began.
    pub endpoint: E,
    /// How it was begun.
    pub permit: Permit,
    /// What came of it.
    pub response: Response,
    /// Why there was no response.
    pub error: Option<Box<str>>,
    /// Whether the response's body is still being read: then an [`Event::SlotFreed`] follows.
    pub slot_follows: bool,
    /// Whether a copy of a command that failed is wanted, for the attempt log.
    pub keep_copy: bool,
}

/// A command with a sequence that is not done, as far as its record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The subject of its event.
    pub subject: Box<str>,
    /// Its place among the commands of its subject.
    pub sequence: i64,
    /// Attempts made.
    pub attempt: u32,
    /// When it is due.
    pub due: EpochMs,
    /// Where it is in `webhook-commands`; `None` is in a tier.
    pub released: Option<Offset>,
}

/// Commands under way, by subscription.
pub type UnderWay = HashMap<Box<str>, Vec<Found>>;

/// What a look-ahead found.
#[derive(Debug)]
pub enum LookAhead {
    /// What is under way of ordered subscriptions.
    UnderWay(UnderWay),
    /// The last command of another subscription, and the position up to which the log was read.
    Others(Option<Offset>, Position),
}

/// What happens to a partition.
#[derive(Debug)]
pub enum Event<E> {
    /// Records were read, in ascending order of their offsets.
    Taken(Vec<Incoming>),
    /// A lane that asked for it ([`super::effect::Effect::Ready`]) may start a request, if it has one: the replica may
    /// start `spare` more.
    Turn {
        /// The lane.
        lane: LaneId,
        /// Requests, at least 1.
        spare: usize,
    },
    /// An attempt ended.
    Ended(AttemptEnd<E>),
    /// A response's body has ended: the lane may send again.
    SlotFreed(LaneId),
    /// A time that was asked for ([`super::effect::Effect::WakeAt`]) has come.
    Timer,
    /// A tenth of a second has passed: what depends on time alone is looked at.
    Tick,
    /// What was asked for ([`super::effect::Effect::LookAhead`]) has been read.
    LookedAhead(LookAhead),
    /// An egress outage is over; whether a response showed that.
    Resumed {
        /// Then what it did to breakers does not count.
        responded: bool,
    },
    /// Nothing more is to be started; [`super::effect::Effect::Drained`] follows when nothing is in flight.
    Stop,
}
