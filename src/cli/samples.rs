//! Sample events: an order's three events, made from a number alone. Pure.

use serde_json::{Value, json};

/// Data that stands on the command line.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse_json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_events_of_an_order_have_its_total() {
        let totals: Vec<u32> = (3..6).map(|number| Event::new("r", number).total).collect();
        assert_eq!(totals, [totals[0]; 3]);
    }
}
