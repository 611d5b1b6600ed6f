//! The sample events: an order's three events, made from a number alone. Pure.

use std::time::Duration;

use serde_json::{Value, json};

/// One event of a sample order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// The event id.
    pub(super) id: String,
    /// The event type.
    pub(super) event_type: &'static str,
    /// The order number, shared by its three events.
    pub(super) order: String,
    /// In whole euros.
    pub(super) total: u32,
}

impl Event {
    /// Event `number` of the run named `run`.
    pub(super) fn new(run: &str, number: u32) -> Self {
        const TYPES: [&str; 3] = ["order.created", "order.paid", "order.shipped"];
        let order = number / 3;
        Self {
            id: format!("{run}-{number}"),
            event_type: TYPES[(number % 3) as usize],
            order: format!("{run}-{order}"),
            // Looks random; half of them reach 100.
            total: 5 + order.wrapping_mul(73) % 190,
        }
    }

    /// The plain envelope. `time` is RFC 3339.
    pub(super) fn envelope(&self, time: &str) -> Value {
        json!({
            "id": self.id,
            "type": self.event_type,
            "time": time,
            "subject": self.order,
            "data": {"order": self.order, "total": self.total, "currency": "EUR"},
        })
    }
}

/// The number and rate of events.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    pub(super) per_second: u32,
    pub(super) duration: Duration,
}

impl Flow {
    /// The number of events.
    pub(super) fn events(self) -> u32 {
        self.due(self.duration).max(1)
    }

    /// Events due after `elapsed`.
    pub(super) fn due(self, elapsed: Duration) -> u32 {
        let elapsed = elapsed.min(self.duration);
        (elapsed.as_secs_f64() * f64::from(self.per_second)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_events_of_an_order_have_its_total() {
        let totals: Vec<u32> = (3..6).map(|number| Event::new("r", number).total).collect();
        assert_eq!(totals, [totals[0]; 3]);
    }

    #[test]
    fn events_are_due_evenly_until_the_end() {
        let flow = Flow {
            per_second: 20,
            duration: Duration::from_secs(8),
        };
        let due = |ms| flow.due(Duration::from_millis(ms));
        assert_eq!(
            [due(0), due(50), due(1000), due(8000), due(90_000)],
            [0, 1, 20, 160, 160]
        );
    }
}
