//! The sample events: an order's three events, made from a number alone. Pure.

use std::time::Duration;

use serde_json::{Value, json};

/// One event in the life of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// Of the event.
    pub(super) id: String,
    /// Type of the event.
    pub(super) event: &'static str,
    /// The order's number, in the whole demo the same for its three events.
    pub(super) order: String,
    /// In whole euros.
    pub(super) total: u32,
}

impl Event {
    /// The event of number `number` in the run called `run`.
    pub(super) fn new(run: &str, number: u32) -> Self {
        const STEPS: [&str; 3] = ["order.created", "order.paid", "order.shipped"];
        let order = number / 3;
        Self {
            id: format!("{run}-{number}"),
            event: STEPS[(number % 3) as usize],
            order: format!("{run}-{order}"),
            // Looks like chance, and half of them reach 100.
            total: 5 + order.wrapping_mul(73) % 190,
        }
    }

    /// The plain envelope. `time`: RFC 3339.
    pub(super) fn envelope(&self, time: &str) -> Value {
        json!({
            "id": self.id,
            "type": self.event,
            "time": time,
            "subject": self.order,
            "data": {"order": self.order, "total": self.total, "currency": "EUR"},
        })
    }
}

/// How many orders, and how fast.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    pub(super) per_second: u32,
    pub(super) duration: Duration,
}

impl Flow {
    /// All orders.
    pub(super) fn events(self) -> u32 {
        self.due(self.duration).max(1)
    }

    /// Orders that are due after `elapsed`.
    pub(super) fn due(self, elapsed: Duration) -> u32 {
        let elapsed = elapsed.min(self.duration);
        (elapsed.as_secs_f64() * f64::from(self.per_second)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orders_events_have_its_total() {
        let totals: Vec<u32> = (3..6).map(|number| Event::new("r", number).total).collect();
        assert_eq!(totals, [totals[0]; 3]);
    }

    #[test]
    fn orders_flow_evenly_and_end() {
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
