//! The events that a partition handles.

use super::deferral::Found;
use super::fairness::Others;
use super::lane::Permit;
use super::under_way::UnderWay;
use crate::model::command::Command;
use crate::model::invalid_record::InvalidRecord;
use crate::model::outcome::Response;
use crate::model::source::Mark;
use crate::model::units::{Offset, Position};

/// Identifies a lane within one ownership of a partition.
pub type LaneId = u64;

/// A record that was read but is not in the window yet.
#[derive(Debug)]
pub struct Incoming {
    /// Its offset.
    pub offset: Offset,
    /// The command, or the invalid record.
    pub content: Result<Box<Command>, Box<InvalidRecord>>,
    /// What its header `hs-source` says, if fan-out wrote one. `None` once the coverage was asked.
    pub mark: Option<Mark>,
}

impl Incoming {
    /// The memory that it takes, in bytes.
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
    /// The lane of the command.
    pub lane: LaneId,
    /// The command's offset.
    pub offset: Offset,
    /// The command, as it was sent.
    pub command: Box<Command>,
    /// The endpoint as of the start of the attempt.
    pub endpoint: E,
    /// The permit that the attempt started with.
    pub permit: Permit,
    /// The response.
    pub response: Response,
    /// Why there was no response.
    pub error: Option<Box<str>>,
    /// Whether any bytes of the endpoint came, also without a valid response.
    pub heard: bool,
    /// Whether the response body is still being read; an [`Event::SlotFreed`] follows then.
    pub slot_follows: bool,
    /// Whether the attempt log needs a copy of a failed command.
    pub keep_copy: bool,
}

/// The result of a look-ahead.
#[derive(Debug)]
pub enum LookAhead {
    /// The unfinished commands of ordered subscriptions.
    UnderWay(UnderWay),
    /// Commands of other subscriptions.
    Others(Others),
    /// Deferred commands.
    Again(Box<Found>),
}

/// An event of a partition.
#[derive(Debug)]
pub enum Event<E> {
    /// Records were read, in ascending order of their offsets.
    Taken(Vec<Incoming>),
    /// A lane that asked for a turn ([`super::effect::Effect::Ready`]) may start a request, if it has one. The replica
    /// may start `spare` more.
    Turn {
        /// The lane.
        lane: LaneId,
        /// Requests, at least 1.
        spare: usize,
    },
    /// An attempt ended.
    Ended(AttemptEnd<E>),
    /// A response body has ended: its slot is free.
    SlotFreed(LaneId),
    /// The response to an attempt of the command at this offset, which was not delivered, began with this line.
    Responded(LaneId, Offset, Box<str>),
    /// A requested time ([`super::effect::Effect::WakeAt`]) has come.
    Timer,
    /// 100 ms have passed; handles changes that depend on time alone.
    Tick,
    /// The result of a requested look-ahead ([`super::effect::Effect::LookAhead`]).
    LookedAhead(LookAhead),
    /// The outcomes of these offsets ([`super::effect::Effect::Write`]) are durable.
    Durable(Vec<Offset>),
    /// There are no more records before this position, to which the log was read.
    Passed(Position),
    /// An egress outage has begun: lanes without a response are held.
    OutageBegan,
    /// A held lane may send one command.
    Probe(LaneId),
    /// The egress outage has ended: no lane is held.
    OutageEnded {
        /// Whether a held lane heard from its endpoint; then failures during the outage do not count against breakers.
        heard: bool,
    },
    /// Start nothing more; [`super::effect::Effect::Drained`] follows when nothing is in flight.
    Stop,
}
