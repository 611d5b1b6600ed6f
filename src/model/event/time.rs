//! The time of a record, which is the timestamp of an event that states none.

use crate::model::units::EpochMs;

/// Between these a timestamp is one in seconds, not in milliseconds: 1973 to 5138 as seconds, 1970 as milliseconds.
const SECONDS: std::ops::Range<i64> = 100_000_000..100_000_000_000;
/// Beyond this no receiver can parse it: the year 10000.
const END: i64 = 253_402_300_800_000;

/// The time of a record whose timestamp is `stated`, milliseconds since the epoch, and whether `stated` is unusable:
/// then it is `now`. Some producers write seconds; these are recognised.
#[must_use]
pub fn record_time(stated: Option<i64>, now: EpochMs) -> (EpochMs, bool) {
    match stated {
        Some(seconds) if SECONDS.contains(&seconds) => (EpochMs(seconds * 1000), false),
        Some(time) if (SECONDS.end..END).contains(&time) => (EpochMs(time), false),
        _ => (now, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_or_absurd_record_time_is_now_and_seconds_are_recognised() {
        const NOW: EpochMs = EpochMs(1_795_000_000_000);
        for (stated, expected) in [
            (Some(1_795_000_000_123), (EpochMs(1_795_000_000_123), false)),
            (Some(1_795_000_000), (EpochMs(1_795_000_000_000), false)),
            (Some(SECONDS.end), (EpochMs(SECONDS.end), false)),
            (Some(SECONDS.start), (EpochMs(100_000_000_000), false)),
            (None, (NOW, true)),
            (Some(-1), (NOW, true)),
            (Some(0), (NOW, true)),
            (Some(SECONDS.start - 1), (NOW, true)),
            // Microseconds.
            (Some(1_795_000_000_123_456), (NOW, true)),
            (Some(i64::MAX), (NOW, true)),
            (Some(i64::MIN), (NOW, true)),
        ] {
            assert_eq!(record_time(stated, NOW), expected, "{stated:?}");
        }
    }
}
