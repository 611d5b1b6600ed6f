//! What the machine asks: the time, the subscriptions, and whether there is memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::lane::Limits;
use crate::model::subscription::{Order, Subscription};
use crate::model::tiers::Tiers;
use crate::model::units::EpochMs;

/// The settings that the machine goes by.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Id of the cluster whose offsets are the sequences of ordered commands.
    pub cluster: Box<str>,
    /// The retry tiers.
    pub tiers: Tiers,
}

/// An endpoint as it was when its attempt began: the attempt is judged by its rules.
pub trait Endpoint: Clone {
    /// The subscription that it was made from.
    fn subscription(&self) -> &Arc<Subscription>;
    /// Delays after the first, second, … failed attempt, before jitter.
    fn schedule(&self) -> &[Duration];
}

/// Whether a subscription accepts commands now.
#[derive(Clone, Debug)]
pub enum Standing<E> {
    /// It does.
    Open(E),
    /// It is paused, or cannot be signed for: its commands wait.
    Waiting,
    /// It is disabled: its commands become dead letters.
    Disabled,
    /// The egress rules forbid its URL, for this reason.
    Denied(Box<str>),
}

/// What a subscription says.
#[derive(Clone, Debug)]
pub struct Terms<E> {
    /// Its subscriber.
    pub subscriber: Arc<str>,
    /// Whether it accepts commands.
    pub standing: Standing<E>,
    /// What its endpoint may get.
    pub limits: Limits,
    /// Whether its commands are delivered in order.
    pub order: Order,
    /// How long this holds although the subscription does not change: a secret may appear in a file, or be replaced there.
    pub valid_for: Option<Duration>,
}

/// The subscriptions, as the machine looks them up.
pub trait Subscriptions {
    /// What attempts are made with.
    type Endpoint: Endpoint;
    /// Changes whenever a subscription does.
    fn version(&self) -> u64;
    /// What a subscription says now; `None` when it does not exist.
    fn terms(&self, id: &str) -> Option<Terms<Self::Endpoint>>;
}

/// The surroundings of one event.
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
