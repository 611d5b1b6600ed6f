//! What a lane says about the way to its endpoint, from which an egress outage is seen.

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::model::subscription::Subscription;

/// Whom a lane stands for, as hashes: an egress outage is seen from distinct hosts and subscribers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sides {
    pub(super) host: u64,
    pub(super) subscriber: u64,
}

impl Sides {
    pub(super) fn of(subscription: &Subscription) -> Self {
        Self {
            host: hash(subscription.url.to_url().host_str().unwrap_or_default()),
            subscriber: hash(&subscription.subscriber),
        }
    }
}

/// The same in all partitions and workers.
fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// What a lane says about the way to its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Something came from its endpoint recently.
    Responds,
    /// Nothing came in its last attempts.
    Fails,
    /// Too little is known.
    Unclear,
}

/// The health of one lane with recent attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneHealth {
    /// Its endpoint's host, as a hash.
    pub host: u64,
    /// Its subscriber, as a hash.
    pub subscriber: u64,
    /// How it looks.
    pub look: Look,
}

/// A lane that is held.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Whether it may send one command.
    pub(super) may_probe: bool,
    /// Probes so far.
    pub(super) probes: u32,
}
