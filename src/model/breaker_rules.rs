//! When a breaker opens, and when it looks again.

use std::time::Duration;

/// When to open, and when to look again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerRules {
    /// Opens after so many failures in a row; 0 is never.
    pub failures: u32,
    /// Opens when this share of the window's attempts failed, 0 to 1; 0 is never.
    pub rate: f64,
    /// The window for `rate`.
    pub window: Duration,
    /// Attempts that the window must hold before `rate` counts.
    pub volume: u32,
    /// From opening to the first probe, before ±20 % jitter; it doubles with each probe that fails.
    pub probe: Duration,
    /// The longest time between probes.
    pub max_probe: Duration,
}

/// What a subscription says of its own breaker; what it does not say is the operator's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[allow(missing_docs, reason = "the fields are those of `BreakerRules`")]
pub struct BreakerOverrides {
    pub failures: Option<u32>,
    pub rate: Option<f64>,
    pub window: Option<Duration>,
    pub volume: Option<u32>,
    pub probe: Option<Duration>,
    pub max_probe: Option<Duration>,
}

impl BreakerRules {
    /// These rules where `own` says nothing.
    #[must_use]
    pub fn with(&self, own: &BreakerOverrides) -> Self {
        let probe = own.probe.unwrap_or(self.probe);
        Self {
            failures: own.failures.unwrap_or(self.failures),
            rate: own.rate.unwrap_or(self.rate),
            window: own.window.unwrap_or(self.window),
            volume: own.volume.unwrap_or(self.volume),
            probe,
            max_probe: own.max_probe.unwrap_or(self.max_probe).max(probe),
        }
    }
}
