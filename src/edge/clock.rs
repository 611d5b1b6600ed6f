//! The only place that reads a clock.
//!
//! Pure modules take the time as an argument; clippy bans `now()` everywhere else, so that a test can
//! drive every decision with made-up times. With the feature `simulation`, `simulated` replaces both clocks.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::model::units::EpochMs;

/// Wall-clock time. A clock before 1970 reads as 1970.
#[must_use]
pub fn now() -> EpochMs {
    let elapsed = wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    EpochMs(i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX))
}

/// Wall-clock time as fine as the machine has it, for spans, which other machines' spans stand beside.
#[must_use]
#[allow(clippy::disallowed_methods)]
pub fn wall() -> SystemTime {
    #[cfg(feature = "simulation")]
    if let Some(simulated) = simulated::wall() {
        return simulated;
    }
    SystemTime::now()
}

/// Monotonic time, for deadlines and durations within this process.
#[must_use]
#[allow(clippy::disallowed_methods)]
pub fn instant() -> Instant {
    #[cfg(feature = "simulation")]
    return tokio::time::Instant::now().into_std();
    #[cfg(not(feature = "simulation"))]
    Instant::now()
}

#[cfg(feature = "simulation")]
pub mod simulated {
    //! Virtual time: that of tokio's runtime on this thread, whose clock is paused, and a wall clock that each simulated
    //! machine may see with an offset of its own. Without [`begin`], and without such a runtime, the clocks are real.

    use std::cell::Cell;
    use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

    use crate::model::units::EpochMs;

    thread_local! {
        static BEGUN: Cell<Option<(Instant, EpochMs)>> = const { Cell::new(None) };
        static OFFSET: Cell<i64> = const { Cell::new(0) };
    }

    /// From now on the wall clock of this thread shows `at` plus the time that passes. Call it within the runtime.
    pub fn begin(at: EpochMs) {
        BEGUN.set(Some((super::instant(), at)));
        OFFSET.set(0);
    }

    /// Sets how far the wall clock of this thread is ahead, in milliseconds, and returns how far it was: before a task of a
    /// machine is polled, and back after it.
    pub fn set_offset(ahead: i64) -> i64 {
        OFFSET.replace(ahead)
    }

    pub(super) fn wall() -> Option<SystemTime> {
        let (begun, at) = BEGUN.get()?;
        let passed = super::instant().saturating_duration_since(begun);
        let ms = u64::try_from(at.0.saturating_add(OFFSET.get())).unwrap_or(0);
        Some(UNIX_EPOCH + Duration::from_millis(ms) + passed)
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use crate::edge::clock;

        #[tokio::test(start_paused = true)]
        async fn both_clocks_follow_virtual_time_and_the_wall_clock_its_offset() {
            begin(EpochMs(1_000));
            let steady = clock::instant();
            tokio::time::sleep(Duration::from_secs(3600)).await;
            assert_eq!(clock::instant() - steady, Duration::from_secs(3600));
            assert_eq!(clock::now(), EpochMs(3_601_000));
            assert_eq!(set_offset(-500), 0);
            assert_eq!(clock::now(), EpochMs(3_600_500));
            assert_eq!(set_offset(0), -500);
            BEGUN.set(None);
        }
    }
}
