//! The metrics of release.

use std::sync::Arc;

use prometheus::IntCounter;

use crate::runtime::metrics::{Counters, Registry, labels};

labels!(
    /// Where release moved a record.
    Released {
        /// To `webhook-commands`: it was due.
        Commands = "commands",
        /// To another tier, for the rest of its wait.
        Tier = "tier",
    }
);

/// The metrics of release; cheap to clone.
#[derive(Clone)]
pub struct ReleaseMetrics(Arc<All>);

struct All {
    released: Counters,
}

impl std::fmt::Debug for ReleaseMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReleaseMetrics")
    }
}

impl ReleaseMetrics {
    /// Registers the family in `registry`, at zero.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        Self(Arc::new(All {
            released: registry.counters::<Released>(
                "hookstream_released_total",
                "Records moved out of a tier, by where they went.",
                "to",
            ),
        }))
    }

    /// Records moved out of a tier.
    #[must_use]
    pub fn released(&self, to: Released) -> &IntCounter {
        self.0.released.of(to)
    }
}
