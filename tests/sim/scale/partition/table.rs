//! Commands, and subscriptions as the state machine looks them up.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use hookstream::delivery::partition::env::{Endpoint, Standing, Subscriptions, Terms, Unavailable};
use hookstream::delivery::partition::lane::Limits;
use hookstream::model::command::{Cause, Command, ContentType};
use hookstream::model::subscription::{Order, Subscription, parse};
use hookstream::model::units::EpochMs;

use crate::scale::memory::{Kind, live, within};

/// A command outside the memory of delivery: in a topic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub(super) subscription: u32,
    pub(super) number: u32,
    pub(super) attempt: u32,
    pub(super) cause: Cause,
    pub(super) due: Option<EpochMs>,
    pub(super) enqueued: EpochMs,
    pub(super) first_failure: Option<EpochMs>,
}

#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) subscription: Arc<Subscription>,
    pub(super) schedule: Arc<[Duration]>,
}

impl Endpoint for Peer {
    fn subscription(&self) -> &Arc<Subscription> {
        &self.subscription
    }

    fn schedule(&self) -> &[Duration] {
        &self.schedule
    }

    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.subscription, &other.subscription)
    }
}

pub(super) struct Table {
    pub(super) all: Vec<Arc<Subscription>>,
    pub(super) limits: Vec<Limits>,
    pub(super) schedule: Arc<[Duration]>,
    pub(super) max_age: Duration,
}

/// Ids are `s` and the number.
pub(super) fn number(id: &str) -> Option<usize> {
    id.get(1..)?.parse().ok()
}

impl Subscriptions for Table {
    type Endpoint = Peer;

    fn version(&self) -> u64 {
        1
    }

    fn get(&self, id: &str, _: &str) -> Result<Arc<Subscription>, Unavailable> {
        let found = number(id).and_then(|number| self.all.get(number));
        found.map(Arc::clone).ok_or(Unavailable::Missing)
    }

    fn terms(&self, subscription: &Arc<Subscription>, _: Option<&Peer>) -> Terms<Peer> {
        let number = number(&subscription.id).unwrap_or(0);
        Terms {
            standing: Standing::Open(Peer {
                subscription: Arc::clone(subscription),
                schedule: Arc::clone(&self.schedule),
            }),
            limits: self.limits[number],
            order: Order::None,
            max_age: self.max_age,
            resumed_at: None,
            valid_for: None,
        }
    }
}

/// A subscription as its record is parsed.
pub fn subscription(number: usize, max_in_flight: Option<u32>) -> Subscription {
    let id = format!("s{number}");
    let mut record = serde_json::json!({
        "id": id,
        "subscriber": format!("subscriber-{number}"),
        "events": ["order.*"],
        "url": format!("https://receiver-{number}.example.com/webhooks/orders"),
        "secrets": ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    });
    if let Some(most) = max_in_flight {
        record["max_in_flight"] = most.into();
    }
    parse(Some(id.as_bytes()), record.to_string().as_bytes()).unwrap()
}

pub(super) fn command(record: &Record, body: usize) -> Command {
    let number = record.number;
    Command {
        subscriber: format!("subscriber-{}", record.subscription).into(),
        webhook_id: format!("msg_{number:027}").into(),
        subscription: format!("s{}", record.subscription).into(),
        event_id: format!("event-{number}").into(),
        event_type: "order.created".into(),
        event_time: Some("2026-01-01T00:00:00Z".into()),
        subject: Some(format!("order-{number}").into()),
        content_type: ContentType::Json,
        attempt: record.attempt,
        due: record.due,
        enqueued: record.enqueued,
        recorded: None,
        cause: record.cause,
        traceparent: None,
        first_failure: record.first_failure,
        last_failure: None,
        replayed: None,
        sequence: None,
        cluster: None,
        body: vec![b'x'; body].into(),
    }
}

pub(super) fn record(command: &Command) -> Record {
    Record {
        subscription: u32::try_from(number(&command.subscription).unwrap_or(0)).unwrap_or(0),
        number: command.webhook_id[4..].parse().unwrap_or(0),
        attempt: command.attempt,
        cause: command.cause,
        due: command.due,
        enqueued: command.enqueued,
        first_failure: command.first_failure,
    }
}

thread_local! {
    /// Keeps the optimiser from dropping what is only measured.
    static KEPT: Cell<usize> = const { Cell::new(0) };
}

/// Bytes of one subscription in the cache of a replica: the product's cache, with `count` of them.
pub fn cache(count: usize) -> f64 {
    use hookstream::edge::kafka::subscription_cache::SubscriptionCache;
    use hookstream::model::subscription::TopicRecord;
    let before = live(Kind::Subscriptions);
    let table = within(Kind::Subscriptions, || {
        let table = SubscriptionCache::default();
        for number in 0..count {
            let id = format!("s{number}");
            let value = serde_json::json!({
                "id": id,
                "subscriber": format!("subscriber-{number}"),
                "events": ["order.*"],
                "url": format!("https://receiver-{number}.example.com/webhooks/orders"),
                "secrets": ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
            });
            let value = value.to_string();
            let record = TopicRecord {
                key: Some(id.as_bytes()),
                value: Some(value.as_bytes()),
                applied: None,
                partition: None,
                timestamp: None,
            };
            table.apply(&record).map_err(|_| ()).unwrap();
        }
        table
    });
    let bytes = live(Kind::Subscriptions).saturating_sub(before);
    KEPT.set(table.len());
    bytes as f64 / count as f64
}
