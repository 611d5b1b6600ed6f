//! What a partition wants done.

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::event::LaneId;
use super::lane::Permit;
use crate::model::command::Command;
use crate::model::dead_letter::DeadLetterInfo;
use crate::model::invalid_record::InvalidRecord;
use crate::model::outcome::{AttemptOutcome, Class, ParkReason};
use crate::model::subscription::Subscription;
use crate::model::units::{Offset, Position};

/// An attempt to be made.
#[derive(Debug)]
pub struct Attempt<E> {
    /// Whose it is.
    pub lane: LaneId,
    /// The command's offset.
    pub offset: Offset,
    /// What to send.
    pub command: Box<Command>,
    /// Where to.
    pub endpoint: E,
    /// How it begins.
    pub permit: Permit,
}

/// What must become durable before the position passes its command.
#[derive(Debug)]
pub enum Outcome {
    /// To the tier of this index.
    Tier(usize, Box<Command>),
    /// To the dead letters.
    DeadLetter(Box<Command>, Box<DeadLetterInfo>),
    /// To the invalid events.
    Invalid(Box<InvalidRecord>),
    /// Disable this subscription, unless it has changed since: its endpoint is gone.
    Disable(Arc<Subscription>),
}

impl Outcome {
    /// What it takes in memory, bytes; `None` when it does not stand for a command.
    #[must_use]
    pub fn weight(&self) -> Option<usize> {
        match self {
            Self::Tier(_, command) | Self::DeadLetter(command, _) => Some(command.weight()),
            Self::Invalid(record) => Some(record.weight()),
            Self::Disable(_) => None,
        }
    }
}

/// What an attempt came to.
#[derive(Debug)]
pub struct Concluded {
    /// For its command.
    pub outcome: AttemptOutcome,
    /// Of its response.
    pub class: Class,
    /// The command: whole when it is delivered; otherwise a copy without body, if one was wanted.
    pub command: Option<Box<Command>>,
    /// Why there was no response.
    pub error: Option<Box<str>>,
}

/// What to read ahead.
#[derive(Clone, Debug)]
pub enum Question {
    /// What is under way; in `webhook-commands`, all before this position is done.
    UnderWay(Position),
    /// The last command from this offset on that is for none of these subscriptions.
    Others(Offset, HashSet<Box<str>>),
}

/// What an operator wants to know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A breaker opened: the next probe is then.
    BreakerOpened {
        /// Its lane's subscription.
        subscription: Rc<str>,
        /// Its subscriber.
        subscriber: Arc<str>,
        /// Of the response that opened it.
        class: Class,
        /// The next probe.
        probe_at: Instant,
    },
    /// A breaker closed.
    BreakerClosed {
        /// Its lane's subscription.
        subscription: Rc<str>,
        /// Its subscriber.
        subscriber: Arc<str>,
    },
    /// The breaker is open, and its lane belongs to this subscriber now.
    BreakerMoved {
        /// Its lane's subscription.
        subscription: Rc<str>,
        /// Its subscriber.
        subscriber: Arc<str>,
    },
    /// The lane with an open breaker is gone, or belongs to another subscriber now.
    BreakerForgotten {
        /// Its lane's subscription.
        subscription: Rc<str>,
        /// Its subscriber until now.
        subscriber: Arc<str>,
    },
    /// A command that others wait behind is long overdue: the tiers are read again.
    Overdue(Rc<str>),
}

/// What a partition wants done.
#[derive(Debug)]
pub enum Effect<E> {
    /// The lane has something to send: give it a turn ([`super::event::Event::Turn`]), after those that asked before.
    Ready(LaneId),
    /// Start this attempt.
    Send(Attempt<E>),
    /// Write this with the next commit.
    Write(Outcome),
    /// A command was parked.
    Parked(ParkReason),
    /// An attempt came to this.
    Concluded(Concluded),
    /// Apply [`super::event::Event::Timer`] then.
    WakeAt(Instant),
    /// Read ahead.
    LookAhead(Question),
    /// For the log and the metrics.
    Notice(Notice),
    /// After [`super::event::Event::Stop`]: nothing is in flight.
    Drained,
}

/// The effects of events, in order.
#[derive(Debug)]
pub struct Effects<E> {
    /// What to do.
    pub list: Vec<Effect<E>>,
    /// Bytes of commands that are done and need nothing written.
    pub freed_bytes: usize,
    /// How many commands those are.
    pub freed_commands: usize,
}

impl<E> Default for Effects<E> {
    fn default() -> Self {
        Self {
            list: Vec::new(),
            freed_bytes: 0,
            freed_commands: 0,
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
