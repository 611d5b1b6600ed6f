//! One step of a timeline: what one record says about an event, and the order of the steps. Pure.
//!
//! Times are the timestamps of the records: set by the clock of the producer, in the retry tiers by the broker. Where two
//! are equal, the cause comes before the effect.

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::command::Cause;
use crate::model::dead_letter::{Coordinates, Reason, Settlement};
use crate::model::units::{EpochMs, Offset};

/// What a topic contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TopicKind {
    /// Events from their producers.
    Events,
    /// Records that could not be read as events.
    Invalid,
    /// Commands.
    Commands,
    /// A retry tier.
    Tier,
    /// Dead letters and the records that settle them.
    DeadLetters,
    /// The attempt log.
    Attempts,
}

/// A borrowed record.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordView<'a> {
    /// Its topic.
    pub topic: &'a Arc<str>,
    /// Its partition and offset.
    pub at: Coordinates,
    /// Its timestamp.
    pub time: EpochMs,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its headers, in order.
    pub headers: &'a [(&'a str, &'a [u8])],
    /// Its value.
    pub value: Option<&'a [u8]>,
}

/// One record of a timeline.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Its topic.
    pub topic: Arc<str>,
    /// Its partition and offset.
    pub at: Coordinates,
    /// Its timestamp.
    pub time: EpochMs,
    /// The webhook; `None` for an event.
    pub webhook: Option<Webhook>,
    /// The event's id.
    pub event_id: String,
    /// What the record says.
    pub detail: Detail,
}

/// One event for one subscription.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Webhook {
    /// Its id.
    pub id: String,
    /// The subscription's id.
    pub subscription: String,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq)]
pub enum Detail {
    /// The event itself.
    Event {
        /// Its type.
        event_type: String,
    },
    /// A record that could not be read as an event.
    Invalid {
        /// Why.
        error: String,
    },
    /// A command to send.
    Command {
        /// Why this copy was written.
        cause: Cause,
        /// Attempts made so far.
        attempts: u32,
    },
    /// A command that waits in a retry tier.
    Waits {
        /// Retried or parked.
        cause: Cause,
        /// Attempts made so far.
        attempts: u32,
        /// When it is due.
        due: Option<EpochMs>,
        /// It came from a longer tier, with the same attempt and due time.
        moved: bool,
    },
    /// A dead letter.
    DeadLetter {
        /// Why.
        reason: Reason,
        /// Attempts made.
        attempts: u32,
        /// The status of the last response.
        status: Option<u16>,
        /// The last error.
        error: String,
    },
    /// An operator settled a dead letter.
    Settled {
        /// Which one.
        letter: Coordinates,
        /// How.
        how: Settlement,
    },
    /// One HTTP request.
    Attempt {
        /// Counted from 1.
        number: u32,
        /// The status of the response.
        status: Option<u16>,
        /// The class of the response or failure.
        class: String,
        /// `delivered`, `retry`, `dead_lettered` or `throttled`.
        outcome: String,
        /// Time until the response headers.
        duration_ms: f64,
        /// Why there was no response.
        error: Option<String>,
    },
    /// A record that carries the id but cannot be decoded.
    Unreadable {
        /// Why.
        error: String,
    },
}

impl Detail {
    /// One word, for JSON output.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Event { .. } => "event",
            Self::Invalid { .. } => "invalid",
            Self::Command { cause, .. } => match cause {
                Cause::New => "new",
                Cause::Replay => "replay",
                Cause::Retry | Cause::Parked => "released",
            },
            Self::Waits { moved: true, .. } => "moved",
            Self::Waits { cause, .. } => match cause {
                Cause::Parked => "parked",
                Cause::New | Cause::Retry | Cause::Replay => "retry",
            },
            Self::DeadLetter { .. } => "dead-lettered",
            Self::Settled { how, .. } => match how {
                Settlement::Replayed => "replayed",
                Settlement::Discarded => "discarded",
            },
            Self::Attempt { .. } => "attempt",
            Self::Unreadable { .. } => "unreadable",
        }
    }

    /// Sorts records with equal timestamps: causes before effects.
    fn rank(&self) -> u8 {
        match self {
            Self::Event { .. } | Self::Invalid { .. } => 0,
            Self::Settled { .. } => 1,
            Self::Command { .. } => 2,
            Self::Attempt { .. } => 3,
            Self::Waits { .. } => 4,
            Self::DeadLetter { .. } => 5,
            Self::Unreadable { .. } => 6,
        }
    }
}

/// Sorts the steps by time, causes before effects. Fills in the event id of settling records, which do not carry it, and
/// marks commands that only moved to another tier.
#[must_use]
pub(super) fn in_order(mut steps: Vec<Step>) -> Vec<Step> {
    steps.sort_by(|a, b| {
        let key = |step: &Step| (step.time, step.detail.rank());
        key(a)
            .cmp(&key(b))
            .then_with(|| a.topic.cmp(&b.topic))
            .then_with(|| a.at.cmp(&b.at))
    });
    let events: HashMap<String, String> = steps
        .iter()
        .filter(|step| !step.event_id.is_empty())
        .filter_map(|step| Some((step.webhook.as_ref()?.id.clone(), step.event_id.clone())))
        .collect();
    let mut waits: HashMap<String, (Cause, u32, Option<EpochMs>)> = HashMap::new();
    for step in &mut steps {
        let Some(webhook) = step.webhook.as_ref().map(|webhook| webhook.id.clone()) else {
            continue;
        };
        if step.event_id.is_empty()
            && let Some(event) = events.get(&webhook)
        {
            step.event_id.clone_from(event);
        }
        match &mut step.detail {
            Detail::Waits {
                cause,
                attempts,
                due,
                moved,
            } => {
                let wait = (*cause, *attempts, *due);
                *moved = waits.insert(webhook, wait) == Some(wait);
            }
            Detail::Command { .. } => drop(waits.remove(&webhook)),
            _ => {}
        }
    }
    steps
}

/// The coordinates of a record.
#[must_use]
pub(super) fn coordinates(partition: i32, offset: i64) -> Coordinates {
    Coordinates {
        partition,
        offset: Offset(offset),
    }
}
