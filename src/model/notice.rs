//! Notices: what operators and subscribers may want to hear of an endpoint, as CloudEvents on `webhook-notices`. Pure.
//!
//! Delivery writes them with its outcomes, fan-out reads them like events, and an ordinary subscription has them
//! delivered. They match only patterns whose first segment is `hookstream` (never `**`), and a subscription gets only those
//! of its own subscriber, unless its subscriber is the operator's ([`is_for`]). Notices never cause notices ([`is_notice`]).

use serde_json::{Map, Value, json};

use super::status::{Failing, Failure};
use super::subscription::{DisabledBecause, Segment, Subscription, TypePattern};
use super::units::EpochMs;

/// The first segment of the types of all notices.
pub const NAMESPACE: &str = "hookstream";
/// The CloudEvents source of notices.
const SOURCE: &str = "/hookstream";

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The endpoint has failed for a while.
    Failing(Failing),
    /// It works again after a notice that it failed.
    Recovered(Failing),
    /// hookstream has disabled the subscription, for this reason.
    Disabled(DisabledBecause),
    /// The first dead letter of a series, with its reason.
    DeadLettersBegun(&'static str),
    /// A secret cannot be read or used: commands wait.
    SecretUnreadable,
    /// The egress rules deny the endpoint.
    EgressDenied,
}

impl Kind {
    /// The type of the event.
    #[must_use]
    pub fn event_type(&self) -> &'static str {
        match self {
            Self::Failing(_) => "hookstream.endpoint.failing",
            Self::Recovered(_) => "hookstream.endpoint.recovered",
            Self::Disabled(_) => "hookstream.endpoint.disabled",
            Self::DeadLettersBegun(_) => "hookstream.dead_letters.begun",
            Self::SecretUnreadable => "hookstream.secret.unreadable",
            Self::EgressDenied => "hookstream.egress.denied",
        }
    }
}

/// A notice about a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// What happened.
    pub kind: Kind,
    /// The subscription's id.
    pub subscription: Box<str>,
    /// Its subscriber, and the key of the record.
    pub subscriber: Box<str>,
    /// When.
    pub at: EpochMs,
    /// The last failure of its endpoint.
    pub last_failure: Option<Failure>,
    /// What there is to say beyond that, in one sentence.
    pub detail: Option<Box<str>>,
}

impl Notice {
    /// Its id: the same when the same notice is written twice, so that receivers deduplicate.
    #[must_use]
    pub fn id(&self) -> String {
        let since = match self.kind {
            Kind::Failing(failing) | Kind::Recovered(failing) => failing.since,
            _ => self.at,
        };
        let name = self.kind.event_type();
        format!("{name}/{}/{since}", self.subscription)
    }

    /// The CloudEvent, in structured mode.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let mut data = Map::new();
        let mut add = |name: &str, value: Value| drop(data.insert(name.to_owned(), value));
        add("subscriber", json!(self.subscriber));
        add("subscription", json!(self.subscription));
        match &self.kind {
            Kind::Failing(failing) | Kind::Recovered(failing) => {
                add("failing_since", json!(failing.since.rfc3339()));
            }
            Kind::Disabled(because) => add("reason", json!(because.as_str())),
            Kind::DeadLettersBegun(reason) => add("reason", json!(reason)),
            Kind::SecretUnreadable | Kind::EgressDenied => {}
        }
        if let Some(detail) = &self.detail {
            add("detail", json!(detail));
        }
        if let Some(failure) = &self.last_failure {
            let webhook_id = Some(&failure.webhook_id).filter(|id| !id.is_empty());
            add(
                "last_failure",
                json!({
                    "at": failure.at.rfc3339(), "class": failure.class, "status": failure.status,
                    "error": failure.error, "webhook_id": webhook_id,
                }),
            );
        }
        let event = json!({
            "specversion": "1.0",
            "id": self.id(),
            "source": SOURCE,
            "type": self.kind.event_type(),
            "subject": self.subscription,
            "time": self.at.rfc3339(),
            "datacontenttype": "application/json",
            "subscriber": self.subscriber,
            "data": data,
        });
        event.to_string().into_bytes()
    }
}

/// Whether an event type is that of a notice.
#[must_use]
pub fn is_notice(event_type: &str) -> bool {
    let rest = event_type.strip_prefix(NAMESPACE);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Whether a pattern is about notices: its first segment is literally `hookstream`.
fn names_notices(pattern: &TypePattern) -> bool {
    match pattern {
        TypePattern::Exact(text) => is_notice(text),
        TypePattern::Wildcard(segments) => {
            matches!(segments.first(), Some(Segment::Literal(first)) if **first == *NAMESPACE)
        }
    }
}

/// Whether a subscription gets nothing but notices: there are none about it.
#[must_use]
pub fn is_about_notices(subscription: &Subscription) -> bool {
    subscription.events.iter().all(names_notices)
}

/// Whether a subscription that matches a notice by its filter gets it: a notice about `subscriber`, where `operator` is the
/// subscriber that sees everybody's.
#[must_use]
pub fn is_for(
    subscription: &Subscription,
    event_type: &str,
    subscriber: &str,
    operator: Option<&str>,
) -> bool {
    let owner = &*subscription.subscriber;
    let mut patterns = subscription.events.iter();
    (owner == subscriber || operator == Some(owner))
        && patterns.any(|pattern| names_notices(pattern) && pattern.matches(event_type))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::outcome::Class;
    use crate::model::subscription::parse;

    fn subscription(subscriber: &str, events: &[&str]) -> Subscription {
        let record = json!({
            "id": "s", "subscriber": subscriber, "url": "https://a.example/", "events": events,
        });
        parse(None, record.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn notices_match_only_patterns_that_name_them() {
        let failing = "hookstream.endpoint.failing";
        for (pattern, gets) in [
            ("hookstream.**", true),
            ("hookstream.endpoint.*", true),
            ("hookstream.endpoint.failing", true),
            ("hookstream.*.failing", true),
            ("hookstream.dead_letters.*", false),
            ("**", false),
            ("*.endpoint.failing", false),
            ("**.failing", false),
            ("hookstreams.**", false),
        ] {
            let one = subscription("acme", &["order.created", pattern]);
            assert_eq!(is_for(&one, failing, "acme", None), gets, "{pattern}");
        }
    }

    #[test]
    fn a_subscriber_sees_its_own_notices_and_the_operator_sees_all() {
        let one = |subscriber| subscription(subscriber, &["hookstream.**"]);
        let sees = |subscriber, operator| {
            is_for(
                &one(subscriber),
                "hookstream.egress.denied",
                "acme",
                operator,
            )
        };
        assert!(sees("acme", None) && sees("acme", Some("ops")));
        assert!(!sees("beta", None) && !sees("beta", Some("ops")));
        assert!(sees("ops", Some("ops")) && !sees("ops", None));
    }

    #[test]
    fn a_subscription_that_gets_only_notices_causes_none() {
        assert!(is_about_notices(&subscription(
            "a",
            &["hookstream.**", "hookstream.endpoint.failing"]
        )));
        assert!(!is_about_notices(&subscription(
            "a",
            &["hookstream.**", "order.*"]
        )));
        assert!(!is_about_notices(&subscription("a", &["**"])));
        assert!(is_notice("hookstream.endpoint.failing") && is_notice("hookstream"));
        assert!(!is_notice("hookstreams.x") && !is_notice("order.hookstream"));
    }

    #[test]
    fn a_notice_is_a_cloud_event_with_an_id_that_stays_the_same() {
        let failing = Failing {
            since: EpochMs(1_700_000_000_000),
            noticed: None,
        };
        let at = EpochMs(1_700_000_300_000);
        let mut notice = Notice {
            kind: Kind::Failing(failing),
            subscription: "acme-orders".into(),
            subscriber: "acme".into(),
            at,
            last_failure: Some(Failure::new(
                at,
                Class::ServerError,
                Some(503),
                "down",
                "msg_1",
            )),
            detail: None,
        };
        let event: Value = serde_json::from_slice(&notice.to_json()).unwrap();
        assert_eq!(
            event,
            json!({
                "specversion": "1.0", "id": "hookstream.endpoint.failing/acme-orders/1700000000000",
                "source": "/hookstream", "type": "hookstream.endpoint.failing", "subject": "acme-orders",
                "time": "2023-11-14T22:18:20Z", "datacontenttype": "application/json", "subscriber": "acme",
                "data": {
                    "subscriber": "acme", "subscription": "acme-orders", "failing_since": "2023-11-14T22:13:20Z",
                    "last_failure": {
                        "at": "2023-11-14T22:18:20Z", "class": "5xx", "status": 503, "error": "down",
                        "webhook_id": "msg_1",
                    },
                },
            })
        );
        let id = notice.id();
        notice.at = notice.at + std::time::Duration::from_secs(1);
        assert_eq!(notice.id(), id);
        notice.kind = Kind::Recovered(failing);
        assert_ne!(notice.id(), id);
        for kind in [
            Kind::Disabled(DisabledBecause::Failing),
            Kind::DeadLettersBegun("gone"),
            Kind::SecretUnreadable,
            Kind::EgressDenied,
        ] {
            assert!(is_notice(kind.event_type()));
        }
    }
}
