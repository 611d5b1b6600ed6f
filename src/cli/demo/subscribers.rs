//! Who takes part in the demo: the subscribers, what each wants, how its receiver behaves, and the sample orders.
//!
//! One table, so that the subscriptions written to Kafka, the receivers, what is expected of each and what the
//! view says cannot differ. Pure: an order follows from its number alone.

use std::time::Duration;

use serde_json::{Value, json};

use super::events::Event;

/// How a receiver answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behavior {
    /// 200 at once.
    Prompt,
    /// 200 after [`SLOWNESS`].
    Slow,
    /// Each webhook twice 5xx, then 200.
    Flaky,
    /// 400, until it is mended.
    Strict,
}

/// What the slow receiver takes for each request.
pub(super) const SLOWNESS: Duration = Duration::from_millis(400);

/// The attempt at which the flaky receiver accepts.
pub(super) const FLAKY_ACCEPTS: u32 = 3;

/// A subscriber with its one subscription, both of this name.
#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) name: &'static str,
    /// Type pattern of the events that it wants.
    pub(super) events: &'static str,
    /// It wants no smaller totals: a filter on content.
    pub(super) least_total: Option<u32>,
    pub(super) behavior: Behavior,
    /// What it does, for the table.
    pub(super) does: &'static str,
    /// What it does and why it is there, for the introduction.
    pub(super) part: &'static str,
}

/// All subscribers, in the order of the view.
pub(super) const SUBSCRIBERS: [Subscriber; 5] = [
    Subscriber {
        name: "good",
        events: "order.*",
        least_total: None,
        behavior: Behavior::Prompt,
        does: "answers at once",
        part: "wants every event; its receiver answers at once",
    },
    Subscriber {
        name: "large",
        events: "order.*",
        least_total: Some(100),
        behavior: Behavior::Prompt,
        does: "totals >= 100 only",
        part: "wants totals of 100 and more: a filter on content",
    },
    Subscriber {
        name: "slow",
        events: "order.paid",
        least_total: None,
        behavior: Behavior::Slow,
        does: "takes 400 ms",
        part: "wants order.paid; takes 400 ms for each, and delays nobody else",
    },
    Subscriber {
        name: "flaky",
        events: "order.shipped",
        least_total: None,
        behavior: Behavior::Flaky,
        does: "503, 500, then 200",
        part: "wants order.shipped; fails twice, gets each again after 1 s and 2 s",
    },
    Subscriber {
        name: "strict",
        events: "order.created",
        least_total: None,
        behavior: Behavior::Strict,
        does: "400 until mended",
        part: "wants order.created; refuses all: dead letters, mended, replayed",
    },
];

impl Subscriber {
    /// Whether the order's event is for it: said again here, so that the program's own matching is checked.
    pub(super) fn wants(&self, order: &Event) -> bool {
        let named = self.events == "order.*" || self.events == order.event;
        named && self.least_total.is_none_or(|least| order.total >= least)
    }

    /// Its subscription. `rate`: orders a second, of which a third is for the slow one.
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
            // It fails the first two attempts of each webhook: a breaker would stop what works at the third.
            document["breaker"] = json!({"failures": 0, "rate": 0});
        }
        if self.behavior == Behavior::Slow {
            // A slow receiver keeps up when enough requests are under way at a time: half as many again as it needs.
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
    fn the_filter_takes_some_orders_and_leaves_some() {
        let large = &SUBSCRIBERS[1];
        let taken = (0..300)
            .map(|number| Event::new("r", number))
            .filter(|order| large.wants(order))
            .count();
        assert!((100..=200).contains(&taken), "{taken} of 300");
    }
}
