//! The time of a record, which is the timestamp of an event that states none.

use std::borrow::Cow;

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

/// A time as a record states it: a number is one of seconds, milliseconds, microseconds or nanoseconds since the epoch,
/// by its size, and becomes RFC 3339 in UTC. Anything else stays as it is.
pub(super) fn stated_time(text: Cow<'_, str>) -> Cow<'_, str> {
    match of_number(&text) {
        Some(time) => Cow::Owned(time),
        None => text,
    }
}

fn of_number(text: &str) -> Option<String> {
    /// Nanoseconds in a unit, and the first number that is one of the next smaller unit: seconds up to the year 5138.
    const UNITS: [(i128, i128); 4] = [
        (1_000_000_000, 100_000_000_000),
        (1_000_000, 100_000_000_000_000),
        (1_000, 100_000_000_000_000_000),
        (1, 100_000_000_000_000_000_000),
    ];
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let number: i128 = whole.parse().ok()?;
    let &(unit, _) = UNITS.iter().find(|(_, end)| number < *end)?;
    let fraction: i128 = format!("{fraction:0<9}").parse().ok()?;
    let nanoseconds = number * unit + fraction * unit / 1_000_000_000;
    let time = jiff::Timestamp::from_nanosecond(nanoseconds).ok()?;
    Some(time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_a_time_by_its_size() {
        for (number, expected) in [
            ("1782907200", "2026-07-01T12:00:00Z"),
            ("1782907200.250000000", "2026-07-01T12:00:00.25Z"),
            ("1782907200250", "2026-07-01T12:00:00.25Z"),
            ("1782907200250.5", "2026-07-01T12:00:00.2505Z"),
            ("1782907200250001", "2026-07-01T12:00:00.250001Z"),
            ("1782907200250001002", "2026-07-01T12:00:00.250001002Z"),
            ("0", "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(stated_time(number.into()), expected);
        }
        for other in [
            "2026-07-01T12:00:00Z",
            "",
            "-5",
            "1e9",
            ".5",
            "1.0000000001",
            "99999999999999999999999",
        ] {
            assert_eq!(stated_time(other.into()), other);
        }
    }

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
