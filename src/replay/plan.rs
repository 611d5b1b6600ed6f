//! What a replay sends and how fast, how far it is, and why it failed.

use std::time::Duration;

use thiserror::Error;

use super::withheld::Why;
use crate::edge::clock;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::producer::{BatchError, Producer};
use crate::edge::port::failure::ClientError;
use crate::model::dead_letter::{Coordinates, DeadLetter, Filter, Settled, Settlement};
use crate::model::subscription::Fold;
use crate::model::units::EpochMs;

/// Dead letters in one transaction.
pub const MAX_BATCH: usize = 200;

/// Bytes of bodies in one transaction; a batch ends with the dead letter that reaches it.
pub(super) const MAX_BATCH_BYTES: usize = 4 * 1024 * 1024;

pub(super) const PURPOSE: &str = "replay";

/// What to replay, and how fast.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Selects dead letters.
    pub filter: Filter,
    /// Discards them instead of sending them again.
    pub discards: bool,
    /// Maximum number of dead letters.
    pub limit: Option<u64>,
    /// Time between two dead letters, averaged over a batch.
    pub pace: Option<Duration>,
    /// Dead letters replayed on another cluster at or after this time count as open.
    pub again_since: Option<EpochMs>,
    /// The subscription that the commands are for, instead of the one of their dead letters.
    pub to_subscription: Option<String>,
}

impl Plan {
    /// Whether a record settles its dead letter.
    ///
    /// A mirror that lost its source may have the settling record without the command. The records of this cluster always
    /// settle, so that a run can be repeated.
    pub(super) fn accepts(&self, fact: &Settled, cluster: &str) -> bool {
        let elsewhere = fact
            .cluster
            .as_deref()
            .is_some_and(|other| other != cluster);
        let recent = self.again_since.is_some_and(|since| fact.at >= since);
        !(elsewhere && recent && fact.how == Settlement::Replayed)
    }

    /// Why a dead letter stays open. Any can be discarded.
    pub(super) fn withholds(&self, letter: &DeadLetter, subscriptions: &Fold) -> Option<Why> {
        match &self.to_subscription {
            _ if self.discards => None,
            Some(id) => Why::of_subscription(id, &letter.subscriber, subscriptions),
            None => Why::of(letter, subscriptions),
        }
    }

    pub(super) fn settlement(&self) -> Settlement {
        if self.discards {
            Settlement::Discarded
        } else {
            Settlement::Replayed
        }
    }

    pub(super) fn is_reached(&self, letters: u64) -> bool {
        self.limit.is_some_and(|limit| letters >= limit)
    }

    /// With a pace, a batch covers one second, for an even rate.
    pub(super) fn batch(&self) -> usize {
        let due = |pace: Duration| (1.0 / pace.as_secs_f64().max(1e-9)) as usize;
        self.pace
            .map_or(MAX_BATCH, |pace| due(pace).clamp(1, MAX_BATCH))
    }
}

/// The progress of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Whether the topic has been read once, and dead letters are being sent.
    pub sending: bool,
    /// Offsets passed in this phase; all of them at its end.
    pub read: u64,
    /// Offsets of this phase.
    pub of: u64,
    /// Dead letters durably replayed or discarded.
    pub replayed: u64,
    /// Whether a transaction is being committed.
    pub committing: bool,
}

/// Why a run failed.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// Another run took over, and its kind cannot go on beside it.
    #[error("another run took over; this one stopped and aborted its open transaction")]
    TakenOver,
    /// The command of a dead letter is too large.
    #[error(
        "dead letter {0} exceeds the size limit of the commands topic; raise its max.message.bytes (see `hookstream topics check`)"
    )]
    TooLarge(Coordinates),
    /// A record that was set aside is too large for its topic.
    #[error("record {0} exceeds the size limit of {1}; raise its max.message.bytes")]
    InvalidTooLarge(Coordinates, String),
    /// The batch was not committed, or the result is unknown.
    #[error("a batch was not committed")]
    NotCommitted(#[source] ClientError),
    /// Any other failure.
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl ReplayError {
    /// Why `producer` has not written a batch; `too_large` is the error of a record that exceeds a limit, by its number in
    /// the batch.
    pub(super) fn of_batch(
        producer: &Producer,
        error: BatchError,
        too_large: impl FnOnce(usize) -> Option<Self>,
    ) -> Self {
        match error {
            _ if producer.is_fenced() => Self::TakenOver,
            BatchError::Failed(Failure::Fenced { .. }) => Self::TakenOver,
            BatchError::Failed(failure) => failure.into(),
            BatchError::Aborted(error) => Self::NotCommitted(error),
            BatchError::TooLarge { tag, .. } => too_large(tag).unwrap_or_else(|| {
                Failure::Internal(format!("record {tag} of the batch is too large")).into()
            }),
        }
    }
}

/// Sleeps until `time` has passed or `stop` is set.
pub(super) fn pause(time: Duration, stop: &dyn Fn() -> bool) {
    /// How often `stop` is checked.
    const CHECK: Duration = Duration::from_millis(50);
    let begun = clock::instant();
    while !stop() && begun.elapsed() < time {
        std::thread::sleep(CHECK.min(time.saturating_sub(begun.elapsed())));
    }
}
