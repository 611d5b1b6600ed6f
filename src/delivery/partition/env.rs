//! The inputs of the state machine: time, subscriptions, and free memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::lane::Limits;
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
}

/// An endpoint as of the start of its attempt; its rules judge the attempt.
pub trait Endpoint: Clone {
    /// The subscription that the endpoint was built from.
    fn subscription(&self) -> &Arc<Subscription>;
    /// Delays after the first, second, … failed attempt, before jitter.
    fn schedule(&self) -> &[Duration];
}

/// Whether a subscription accepts commands now.
#[derive(Clone, Debug)]
pub enum Standing<E> {
    /// It accepts commands.
    Open(E),
    /// It is paused: its commands wait and do not expire.
    Waiting,
    /// It cannot be used, as for lack of a signing secret: its commands wait until they expire.
    Unusable,
    /// It is disabled: its commands become dead letters.
    Disabled,
    /// The egress rules deny its URL, for this reason.
    Denied(Box<str>),
}

/// The terms of a subscription.
#[derive(Clone, Debug)]
pub struct Terms<E> {
    /// Its subscriber.
    pub subscriber: Arc<str>,
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

/// Subscription lookups of the state machine.
pub trait Subscriptions {
    /// The endpoint type of attempts.
    type Endpoint: Endpoint;
    /// Changes whenever a subscription does.
    fn version(&self) -> u64;
    /// The current terms of a subscription; `None` when it does not exist.
    fn terms(&self, id: &str) -> Option<Terms<Self::Endpoint>>;
}

/// The environment of one event.
#[derive(Debug)]
pub struct Env<'a, S> {
    /// Monotonic time.
    pub now: Instant,
    /// Wall-clock time.
    pub wall: EpochMs,
    /// Whether the partition holds less than half of its share of memory.
    pub has_spare: bool,
    /// The subscriptions.
    pub subscriptions: &'a S,
}
