//! Selects dead letters, for listing and replay.

use super::fact::{DeadLetter, DeadLetterInfo};
use super::reason::Reason;
use crate::model::subscription::TypePattern;
use crate::model::units::EpochMs;

/// Which letters an operator means; an absent part matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Exactly this subscriber.
    pub subscriber: Option<String>,
    /// Exactly this subscription.
    pub subscription: Option<String>,
    /// This event type, or a pattern as in a subscription: `*` one segment, `**` any number.
    pub event_type: Option<TypePattern>,
    /// Given up for this reason.
    pub reason: Option<Reason>,
    /// The last response had this status.
    pub status: Option<u16>,
    /// The last failure was at this time or later.
    pub since: Option<EpochMs>,
    /// The last failure was before this time.
    pub until: Option<EpochMs>,
}

impl Filter {
    /// Whether the filter takes this letter.
    #[must_use]
    pub fn matches(&self, letter: &DeadLetter) -> bool {
        let DeadLetterInfo {
            reason,
            status,
            last_failure,
            ..
        } = &letter.info;
        self.subscriber
            .as_ref()
            .is_none_or(|wanted| *wanted == letter.subscriber)
            && self
                .subscription
                .as_ref()
                .is_none_or(|wanted| *wanted == letter.subscription)
            && self.reason.is_none_or(|wanted| wanted == *reason)
            && self.status.is_none_or(|wanted| Some(wanted) == *status)
            && self.since.is_none_or(|since| *last_failure >= since)
            && self.until.is_none_or(|until| *last_failure < until)
            && self
                .event_type
                .as_ref()
                .is_none_or(|pattern| pattern.matches(&letter.event_type))
    }
}
