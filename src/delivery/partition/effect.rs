//! The actions that a partition requests.

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::deferral::Pass;
use super::event::LaneId;
use super::lane::Permit;
use crate::model::command::Command;
use crate::model::dead_letter::DeadLetterInfo;
use crate::model::invalid_record::InvalidRecord;
use crate::model::notice;
use crate::model::outcome::{AttemptOutcome, Class, ParkReason};
use crate::model::source::Mark;
use crate::model::status::Status;
use crate::model::subscription::verification::Verification;
use crate::model::subscription::{DisabledBecause, Subscription};
use crate::model::units::Offset;
use crate::model::window::Window;

/// An attempt to make.
#[derive(Debug)]
pub struct Attempt<E> {
    /// The lane of the command.
    pub lane: LaneId,
    /// The command's offset.
    pub offset: Offset,
    /// What to send.
    pub command: Box<Command>,
    /// The endpoint to send it to.
    pub endpoint: E,
    /// The lane's permission to send it.
    pub permit: Permit,
}

/// What must be durable before the position passes the command.
#[derive(Debug)]
pub enum Outcome {
    /// Write to the tier with this index.
    Tier(usize, Box<Command>),
    /// Write to the dead letters.
    DeadLetter(Box<Command>, Box<DeadLetterInfo>),
    /// Write to the invalid events.
    Invalid(Box<InvalidRecord>),
    /// Write what is known about an endpoint.
    Status(Box<Status>),
    /// Decide that this subscription is disabled, as it was in the attempt. A no-op for readers if
    /// it has changed since. With a notice, if one is to be written.
    Disable(
        Arc<Subscription>,
        DisabledBecause,
        Option<Box<notice::Notice>>,
    ),
    /// Write whether the endpoint of this subscription consents, unless it has another URL by then.
    Verification(Arc<Subscription>, Box<Verification>),
    /// Write a notice, and the status that says so.
    Notice(Box<notice::Notice>, Box<Status>),
}

impl Outcome {
    /// The memory that it takes, in bytes; `None` when it does not stand for a command.
    #[must_use]
    pub fn weight(&self) -> Option<usize> {
        match self {
            Self::Tier(_, command) | Self::DeadLetter(command, _) => Some(command.weight()),
            Self::Invalid(record) => Some(record.weight()),
            Self::Disable(..) | Self::Status(_) | Self::Notice(..) | Self::Verification(..) => None,
        }
    }
}

/// The result of an attempt.
#[derive(Debug)]
pub struct Concluded {
    /// The outcome of its command.
    pub outcome: AttemptOutcome,
    /// The class of its response.
    pub class: Class,
    /// The command: complete when delivered; otherwise a copy without the body, if requested.
    pub command: Option<Box<Command>>,
    /// Why there was no response.
    pub error: Option<Box<str>>,
}

/// What to read ahead.
#[derive(Clone, Debug)]
pub enum Question {
    /// Unfinished commands; in `webhook-commands`, from the position of this window on, those that it has not finished.
    UnderWay(Box<Window>),
    /// Commands from this offset on that belong to none of these subscriptions: [`super::fairness::Search`].
    Others(Offset, HashSet<Box<str>>),
}

/// An event for the log and the metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A breaker opened.
    BreakerOpened {
        /// The lane's subscription.
        subscription: Rc<str>,
        /// The lane's subscriber.
        subscriber: Arc<str>,
        /// The class of the response that opened it.
        class: Class,
        /// When the next probe is due.
        probe_at: Instant,
    },
    /// A breaker closed.
    BreakerClosed {
        /// The lane's subscription.
        subscription: Rc<str>,
        /// The lane's subscriber.
        subscriber: Arc<str>,
    },
    /// The lane of an open breaker is gone.
    BreakerForgotten {
        /// The lane's subscription.
        subscription: Rc<str>,
        /// The lane's subscriber.
        subscriber: Arc<str>,
    },
    /// A command that blocks others is long overdue: the tiers are read again.
    Overdue(Rc<str>),
    /// The command that the writer of this one wrote before it is missing: a write was lost. The writer's successor
    /// writes it again.
    Hole(Offset, Box<Mark>),
    /// This many deferred commands were deleted from their topic before they were read again: they are lost.
    DeferredGone(usize),
    /// This many sources did not fit into the commit metadata: copies of their commands may be delivered again.
    SourcesForgotten(usize),
}

/// An action that a partition requests.
#[derive(Debug)]
pub enum Effect<E> {
    /// The lane has something to send: give it a turn ([`super::event::Event::Turn`]), after the lanes that asked
    /// before.
    Ready(LaneId),
    /// Start this attempt.
    Send(Attempt<E>),
    /// Write this, and report [`super::event::Event::Durable`] with the offset, if there is one, once it is durable.
    Write(Option<Offset>, Outcome),
    /// A command was parked.
    Parked(ParkReason),
    /// An attempt ended with this result.
    Concluded(Concluded),
    /// Apply [`super::event::Event::Timer`] at this time.
    WakeAt(Instant),
    /// Read ahead.
    LookAhead(Question),
    /// Read deferred commands again; [`super::event::LookAhead::Again`] answers.
    ReadAgain(Box<Pass>),
    /// Log this and update the metrics.
    Notice(Notice),
    /// After [`super::event::Event::Stop`]: nothing is in flight.
    Drained,
}

/// The effects of one or more events, in order.
#[derive(Debug)]
pub struct Effects<E> {
    /// The effects.
    pub list: Vec<Effect<E>>,
    /// Bytes of commands that are done and write nothing.
    pub freed_bytes: usize,
    /// The number of those commands.
    pub freed_commands: usize,
    /// The number of those that are copies of commands seen before.
    pub copies: usize,
    /// The number of those that were deferred.
    pub deferred: usize,
}

impl<E> Default for Effects<E> {
    fn default() -> Self {
        Self {
            list: Vec::new(),
            freed_bytes: 0,
            freed_commands: 0,
            copies: 0,
            deferred: 0,
        }
    }
}

impl<E> Effects<E> {
    pub(super) fn push(&mut self, effect: Effect<E>) {
        self.list.push(effect);
    }

    pub(super) fn free(&mut self, bytes: usize) {
        self.freed_bytes += bytes;
        self.freed_commands += 1;
    }
}
