//! The subscribers of the demo: their subscriptions and the behavior of their receivers. Pure.
//!
//! The subscriptions written to Kafka, the receivers, the expected webhooks and the texts all come from one table.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::samples::Event;

/// How a receiver responds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behavior {
    /// 200 immediately.
    Prompt,
    /// 200 after [`SLOW_RESPONSE`].
    Slow,
    /// 5xx twice for each webhook, then 200.
    Flaky,
    /// 400 until it is fixed.
    Strict,
}

/// The response time of the slow receiver.
pub(super) const SLOW_RESPONSE: Duration = Duration::from_millis(400);

/// The attempt at which the flaky receiver accepts.
pub(super) const FLAKY_ACCEPTS: u32 = 3;

/// A subscriber with one subscription of the same name.
#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) name: &'static str,
    /// The type pattern of its subscription.
    pub(super) events: &'static str,
    /// The least order total, as a content filter.
    pub(super) least_total: Option<u32>,
    pub(super) behavior: Behavior,
    /// Its behavior, for the table.
    pub(super) summary: &'static str,
    /// Its subscription and behavior, for the introduction.
    pub(super) introduction: &'static str,
}

/// All subscribers, in the order of the view.
pub(super) const SUBSCRIBERS: [Subscriber; 5] = [
    Subscriber {
        name: "good",
        events: "order.*",
        least_total: None,
        behavior: Behavior::Prompt,
        summary: "responds immediately",
        introduction: "gets every event; its receiver responds immediately",
    },
    Subscriber {
        name: "large",
        events: "order.*",
        least_total: Some(100),
        behavior: Behavior::Prompt,
        summary: "totals >= 100 only",
        introduction: "gets totals of 100 and more: a content filter",
    },
    Subscriber {
        name: "slow",
        events: "order.paid",
        least_total: None,
        behavior: Behavior::Slow,
        summary: "takes 400 ms",
        introduction: "gets order.paid; takes 400 ms for each, and delays no other",
    },
    Subscriber {
        name: "flaky",
        events: "order.shipped",
        least_total: None,
        behavior: Behavior::Flaky,
        summary: "503, 500, then 200",
        introduction: "gets order.shipped; fails twice, retried after 1 s and 2 s",
    },
    Subscriber {
        name: "strict",
        events: "order.created",
        least_total: None,
        behavior: Behavior::Strict,
        summary: "400 until fixed",
        introduction: "gets order.created; refuses all: dead letters, fixed, replayed",
    },
];

impl Subscriber {
    /// Whether the event is for it; independent of the program's matching, which this verifies.
    pub(super) fn matches(&self, event: &Event) -> bool {
        let named = self.events == "order.*" || self.events == event.event_type;
        named && self.least_total.is_none_or(|least| event.total >= least)
    }

    /// Its subscription. `rate`: events per second, of which a third is for the slow one.
    pub(super) fn subscription(&self, url: &str, secret: &str, rate: u32) -> Value {
        let mut document = json!({
            "id": self.name,
            "subscriber": self.name,
            "url": url,
            "events": [self.events],
            "secrets": [secret],
        });
        if let Some(least) = self.least_total {
            document["filter"] = json!({"data.total": [{"numeric": [">=", least]}]});
        }
        if self.behavior == Behavior::Flaky {
            // No breaker: it would open on the failures of the first two attempts.
            document["breaker"] = json!({"failures": 0, "rate": 0});
        }
        if self.behavior == Behavior::Slow {
            // Concurrency for the rate at this response time, and half as much again.
            document["max_in_flight"] = json!((rate / 5).clamp(4, 64));
        }
        document
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subscription_is_valid() {
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        for subscriber in &SUBSCRIBERS {
            for rate in [1, 20, 200] {
                let document = subscriber.subscription("http://127.0.0.1:8080/", secret, rate);
                let bytes = serde_json::to_vec(&document).unwrap();
                crate::model::subscription::parse(Some(subscriber.name.as_bytes()), &bytes)
                    .unwrap();
            }
        }
    }

    #[test]
    fn the_filter_matches_some_events_and_not_others() {
        let large = &SUBSCRIBERS[1];
        let matched = (0..300)
            .map(|number| Event::new("r", number))
            .filter(|event| large.matches(event))
            .count();
        assert!((100..=200).contains(&matched), "{matched} of 300");
    }
}
