//! The metrics of fan-out.

use std::sync::Arc;

use prometheus::{IntCounter, IntCounterVec, Opts};

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
    held: IntCounterVec,
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
            held: registry.add(IntCounterVec::new(
                Opts::new(
                    "hookstream_held_events_total",
                    "Events whose commands could not be committed although they were tried alone, by topic; each failure counts.",
                ),
                &["topic"],
            )),
        }))
    }

    /// Events of `topic` that failed alone.
    #[must_use]
    pub fn held(&self, topic: &str) -> IntCounter {
        self.0.held.with_label_values(&[topic])
    }

    /// Events read.
    #[must_use]
    pub fn events(&self, result: EventResult) -> &IntCounter {
        self.0.events.of(result)
    }
}
