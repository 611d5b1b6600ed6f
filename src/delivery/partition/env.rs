//! The inputs of the state machine: time, subscriptions, and free memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::lane::Limits;
use crate::model::status::Status;
use crate::model::subscription::{Order, Subscription};
use crate::model::tiers::Tiers;
use crate::model::units::EpochMs;

/// The memory for the order of a partition's unfinished commands, bytes: about 200,000 commands with short subjects.
pub const ORDER_BYTES: usize = 32 * 1024 * 1024;

/// The settings of the state machine.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The id of the cluster whose offsets are the sequences of ordered commands.
    pub cluster: Box<str>,
    /// The retry tiers.
    pub tiers: Tiers,
    /// The memory for the order of unfinished commands, bytes, roughly.
    pub order_bytes: usize,
    /// When notices are written.
    pub notices: NoticeRules,
    /// Whether commands may be deferred, which only the newest form of the window describes.
    pub defers: bool,
}

/// When notices about an endpoint that fails are written.
#[derive(Clone, Copy, Debug)]
pub struct NoticeRules {
    /// It must have failed for so long.
    pub after: Duration,
    /// After so long its subscription is disabled, if set.
    pub disable_after: Option<Duration>,
}

/// An endpoint as of the start of its attempt; its rules judge the attempt.
pub trait Endpoint: Clone {
    /// The subscription that the endpoint was built from.
    fn subscription(&self) -> &Arc<Subscription>;
    /// Delays after the first, second, … failed attempt, before jitter.
    fn schedule(&self) -> &[Duration];
    /// Whether both are the same: made from the same subscription, with the same secrets.
    fn is_same(&self, other: &Self) -> bool;
}

/// Whether a subscription accepts commands now.
#[derive(Clone, Debug)]
pub enum Standing<E> {
    /// It accepts commands.
    Open(E),
    /// It accepts commands, which wait in their lane while its signing secrets are read.
    Loading,
    /// It is paused: its commands wait and do not expire.
    Waiting,
    /// It cannot be used, as for lack of a signing secret, for this reason: its commands wait until they expire.
    Unusable(Box<str>),
    /// It is disabled: its commands become dead letters.
    Disabled,
    /// The egress rules deny its URL, for this reason.
    Denied(Box<str>),
}

impl<E> Standing<E> {
    /// The endpoint that commands are sent to, if they are.
    pub fn endpoint(&self) -> Option<&E> {
        match self {
            Self::Open(endpoint) => Some(endpoint),
            _ => None,
        }
    }

    /// Whether commands enter the lane.
    #[must_use]
    pub fn accepts(&self) -> bool {
        matches!(self, Self::Open(_) | Self::Loading)
    }
}

/// The terms of a subscription.
#[derive(Clone, Debug)]
pub struct Terms<E> {
    /// Whether it accepts commands.
    pub standing: Standing<E>,
    /// The limits of its lane.
    pub limits: Limits,
    /// Whether its commands are delivered in order.
    pub order: Order,
    /// The maximum age of its commands.
    pub max_age: Duration,
    /// When it was last resumed after a pause.
    pub resumed_at: Option<EpochMs>,
    /// How long these terms are valid even if the subscription does not change: a secret file may appear or be
    /// replaced.
    pub valid_for: Option<Duration>,
}

/// Why there is no subscription for a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// It does not exist.
    Missing,
    /// It belongs to this subscriber, not to the command's: it was deleted and created again.
    Foreign(Box<str>),
    /// It exists, but its only record is invalid: its commands wait.
    Invalid,
}

/// Subscription lookups of the state machine.
pub trait Subscriptions {
    /// The endpoint type of attempts.
    type Endpoint: Endpoint;
    /// Changes whenever a subscription does.
    fn version(&self) -> u64;
    /// A subscription, for the commands of a subscriber. Another [`Arc`] whenever the subscription changes, and only then:
    /// the terms of lanes whose subscription is the same are not asked for again.
    ///
    /// # Errors
    /// Why there is none.
    fn get(&self, id: &str, subscriber: &str) -> Result<Arc<Subscription>, Unavailable>;
    /// What a former owner wrote about the endpoint of a subscription, if it did.
    fn status(&self, _id: &str, _subscriber: &str) -> Option<Arc<Status>> {
        None
    }
    /// Changes whenever such a record does.
    fn statuses_version(&self) -> u64 {
        0
    }
    /// The current terms of a subscription; `before` is the endpoint in its former terms.
    fn terms(
        &self,
        subscription: &Arc<Subscription>,
        before: Option<&Self::Endpoint>,
    ) -> Terms<Self::Endpoint>;
}

/// Commands, and what they weigh together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Bytes.
    pub bytes: usize,
    /// The number of commands.
    pub commands: usize,
}

impl Amount {
    /// What a pass over deferred commands may take of this share.
    #[must_use]
    pub fn of_a_pass(self) -> Self {
        Self {
            bytes: self.bytes / 8,
            commands: self.commands / 8,
        }
    }
}

/// How much of its share of memory a partition has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// More than three quarters: deferred commands may be read again. With what a pass takes, less than half is held then,
    /// and intake goes on if it was paused.
    Plenty,
    /// More than half: a lane may queue more than a few commands.
    Spare,
    /// Half or less.
    Short,
}

impl Memory {
    /// What is left when so much of a share is held.
    #[must_use]
    pub fn left(held: Amount, share: Amount) -> Self {
        let is_below =
            |part: usize| held.bytes < share.bytes / part && held.commands < share.commands / part;
        match () {
            () if is_below(4) => Self::Plenty,
            () if is_below(2) => Self::Spare,
            () => Self::Short,
        }
    }
}

/// The environment of one event.
#[derive(Debug)]
pub struct Env<'a, S> {
    /// Monotonic time.
    pub now: Instant,
    /// Wall-clock time.
    pub wall: EpochMs,
    /// How much of its share of memory the partition has left.
    pub memory: Memory,
    /// The subscriptions.
    pub subscriptions: &'a S,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_a_pass_takes_keeps_no_paused_intake_waiting(
            bytes in 64_usize..1 << 30,
            commands in 64_usize..1 << 20,
            part in 0.0..1.0_f64,
        ) {
            let share = Amount { bytes, commands };
            let of = |all: usize| (all as f64 * part) as usize;
            let mut held = Amount { bytes: of(bytes), commands: of(commands) };
            let left = Memory::left(held, share);
            if left == Memory::Plenty {
                let more = share.of_a_pass();
                held.bytes += more.bytes;
                held.commands += more.commands;
                prop_assert_ne!(Memory::left(held, share), Memory::Short);
            }
        }
    }
}
