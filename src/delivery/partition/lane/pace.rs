//! The pace of a lane: how many attempts end per second while there is demand.

use std::time::{Duration, Instant};

/// How long a lane's pace is measured: longer than a pause of the machine, and the longest that a lane can block its
/// partition before it counts as slow.
pub(super) const MEASURE: Duration = Duration::from_secs(1);
/// A lane with work of which no attempt has ended for this long counts as stalled.
pub(super) const SILENT: Duration = Duration::from_millis(600);

/// Attempts that end per second while something is queued: without demand, a lane's pace says nothing about its
/// endpoint.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The current span, and the attempts that ended in it.
    since: Option<Instant>,
    ends: u32,
    /// The rate of the previous span, per second.
    before: Option<f64>,
}

impl Pace {
    pub(super) fn begin(&mut self, now: Instant) {
        *self = Self {
            since: Some(now),
            ends: 0,
            before: None,
        };
    }

    pub(super) fn ended(&mut self, now: Instant) {
        let Some(since) = self.since else { return };
        if now.saturating_duration_since(since) >= MEASURE {
            self.before = self.rate(now);
            self.since = Some(now);
            self.ends = 0;
        }
        self.ends += 1;
    }

    /// `None` until a full span has been measured, or until most of one has passed without any attempt ending.
    pub(super) fn rate(&self, now: Instant) -> Option<f64> {
        let span = now.saturating_duration_since(self.since?);
        if span >= MEASURE {
            Some(f64::from(self.ends) / span.as_secs_f64())
        } else {
            let silent = self.ends == 0 && span >= SILENT;
            self.before.or_else(|| silent.then_some(0.0))
        }
    }
}
