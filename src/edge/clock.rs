//! The only place that reads a clock.
//!
//! Pure modules take the time as an argument; clippy bans `now()` everywhere else, so that a test can
//! drive every decision with made-up times.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::model::units::EpochMs;

/// Wall-clock time. A clock before 1970 reads as 1970.
#[must_use]
#[allow(clippy::disallowed_methods)]
pub fn now() -> EpochMs {
    let elapsed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    EpochMs(i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX))
}

/// Wall-clock time as fine as the machine has it, for spans, which other machines' spans stand beside.
#[must_use]
#[allow(clippy::disallowed_methods)]
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// Monotonic time, for deadlines and durations within this process.
#[must_use]
#[allow(clippy::disallowed_methods)]
pub fn instant() -> Instant {
    Instant::now()
}
