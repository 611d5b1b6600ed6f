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
    /// Exactly this webhook.
    pub webhook_id: Option<String>,
    /// Exactly this event.
    pub event_id: Option<String>,
    /// The last error contains this text, whatever the case of its ASCII letters.
    pub error_contains: Option<String>,
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
                .webhook_id
                .as_ref()
                .is_none_or(|wanted| *wanted == letter.webhook_id)
            && self
                .event_id
                .as_ref()
                .is_none_or(|wanted| *wanted == letter.event_id)
            && self
                .error_contains
                .as_ref()
                .is_none_or(|part| contains(&letter.info.error, part))
            && self
                .event_type
                .as_ref()
                .is_none_or(|pattern| pattern.matches(&letter.event_type))
    }
}

fn contains(text: &str, part: &str) -> bool {
    let (text, part) = (text.as_bytes(), part.as_bytes());
    let mut places = text.windows(part.len().max(1));
    part.is_empty() || places.any(|place| place.eq_ignore_ascii_case(part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::dead_letter::Coordinates;
    use crate::model::units::Offset;

    #[test]
    fn each_part_of_a_filter_selects() {
        let letter = DeadLetter {
            at: Coordinates {
                partition: 0,
                offset: Offset(1),
            },
            subscriber: "acme".to_owned(),
            subscription: "orders".to_owned(),
            webhook_id: "msg_1".to_owned(),
            event_id: "e1".to_owned(),
            event_type: "order.created".to_owned(),
            attempts: 1,
            enqueued: None,
            info: DeadLetterInfo {
                reason: Reason::AttemptsExhausted,
                status: None,
                error: "Connection refused (os error 111)".to_owned(),
                first_failure: EpochMs(1),
                last_failure: EpochMs(10),
            },
        };
        let text = |text: &str| Some(text.to_owned());
        let takes = |filter: Filter| filter.matches(&letter);
        let none = Filter::default;
        assert!(takes(none()));
        for (wanted, takes_it) in [("msg_1", true), ("msg", false), ("msg_12", false)] {
            assert_eq!(
                takes(Filter {
                    webhook_id: text(wanted),
                    ..none()
                }),
                takes_it
            );
        }
        for (wanted, takes_it) in [("e1", true), ("e", false)] {
            assert_eq!(
                takes(Filter {
                    event_id: text(wanted),
                    ..none()
                }),
                takes_it
            );
        }
        for (part, takes_it) in [
            ("connection REFUSED", true),
            ("111)", true),
            ("", true),
            ("timed out", false),
            ("Connection refused (os error 111) and more", false),
        ] {
            assert_eq!(
                takes(Filter {
                    error_contains: text(part),
                    ..none()
                }),
                takes_it,
                "{part}"
            );
        }
        let both = Filter {
            event_id: text("e1"),
            error_contains: text("timeout"),
            ..none()
        };
        assert!(!takes(both), "all parts must fit");
    }
}
