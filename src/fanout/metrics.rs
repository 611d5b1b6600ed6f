//! The metrics of fan-out.

use std::sync::Arc;

use prometheus::IntCounter;

use crate::runtime::metrics::{Counters, Registry, labels};

labels!(
    /// What became of an event.
    EventResult {
        /// At least one subscription matched.
        FannedOut = "fanned_out",
        /// None matched.
        Unmatched = "unmatched",
        /// It could not be read.
        Invalid = "invalid",
    }
);

/// The metrics of fan-out; cheap to clone.
#[derive(Clone)]
pub struct FanoutMetrics(Arc<All>);

struct All {
    events: Counters,
}

impl std::fmt::Debug for FanoutMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FanoutMetrics")
    }
}

impl FanoutMetrics {
    /// Registers the family in `registry`, at zero.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        Self(Arc::new(All {
            events: registry.counters::<EventResult>(
                "hookstream_events_total",
                "Events read, by what became of them.",
                "result",
            ),
        }))
    }

    /// Events read.
    #[must_use]
    pub fn events(&self, result: EventResult) -> &IntCounter {
        self.0.events.of(result)
    }
}
