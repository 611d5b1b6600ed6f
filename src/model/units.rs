//! The small vocabulary of positions and times that every other module speaks.
//!
//! A record's offset is not the next offset to commit, and a time is not a number: each has a type,
//! and the `+ 1` between an offset and the position behind it exists once, in [`Offset::next`].
//! Pure: no clock here (see `clock.rs`).

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch, UTC.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct EpochMs(pub i64);

impl EpochMs {
    /// The time that has passed from `earlier` to `self`; zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The time as RFC 3339, UTC; as a number where the calendar ends.
    #[must_use]
    pub fn rfc3339(self) -> String {
        jiff::Timestamp::from_millisecond(self.0)
            .map_or_else(|_| self.to_string(), |time| time.to_string())
    }

    /// Whole seconds since the Unix epoch, rounded down.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }
}

impl Add<Duration> for EpochMs {
    type Output = Self;
    fn add(self, rhs: Duration) -> Self {
        Self(
            self.0
                .saturating_add(i64::try_from(rhs.as_millis()).unwrap_or(i64::MAX)),
        )
    }
}

impl Sub<Duration> for EpochMs {
    type Output = Self;
    fn sub(self, rhs: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(i64::try_from(rhs.as_millis()).unwrap_or(i64::MAX)),
        )
    }
}

impl fmt::Display for EpochMs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The offset of one record in its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(pub i64);

impl Offset {
    /// The position of a reader that has read this record: the offset that Kafka wants committed.
    #[must_use]
    pub fn next(self) -> Position {
        Position(self.0 + 1)
    }

    /// The position of a reader that reads this record next.
    #[must_use]
    pub fn position(self) -> Position {
        Position(self.0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a reader stands in a partition: the offset of the next record that it would read.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Position(pub i64);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Reads a duration such as `500ms`, `5s`, `2m`, `1h30m`; a bare number has no unit and is refused.
///
/// # Errors
/// A sentence that names what was typed and the form wanted.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text.trim()).map_err(|_| {
        format!("{text:?} is not a duration; write a number and a unit, as in 500ms, 5s, 2m or 1h")
    })
}

/// Writes a duration in the shortest exact form with one unit, as topic names and tables show it: `5s`, `2m`, `90s`.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    match ms {
        0 => "0s".to_owned(),
        _ if ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        _ if ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        _ if ms.is_multiple_of(1000) => format!("{}s", ms / 1000),
        _ => format!("{ms}ms"),
    }
}

/// Things as text, the first twenty of them: `1, 2, 3 and 40 more`.
#[must_use]
pub fn first_of(all: &[impl ToString]) -> String {
    const SHOWN: usize = 20;
    let shown: Vec<String> = all.iter().take(SHOWN).map(ToString::to_string).collect();
    match all.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// A number of things, as people read it: `1 dead letter`, `2 dead letters`.
#[must_use]
pub fn counted(count: impl Into<u64>, one: &str) -> String {
    match count.into() {
        1 => format!("1 {one}"),
        count => format!("{count} {one}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_written_in_its_shortest_exact_unit() {
        for text in ["250ms", "5s", "90s", "2m", "10m", "1h", "6h"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
        assert_eq!(format_duration(parse_duration("1h30m").unwrap()), "90m");
        assert!(
            parse_duration("5").unwrap_err().contains("unit"),
            "a bare number must be refused"
        );
    }

    #[test]
    fn one_thing_is_told_in_the_singular() {
        assert_eq!(counted(0_u32, "attempt"), "0 attempts");
        assert_eq!(counted(1_u32, "attempt"), "1 attempt");
        assert_eq!(counted(12_u64, "dead letter"), "12 dead letters");
    }

    #[test]
    fn the_position_behind_a_record_is_one_more_than_its_offset() {
        assert_eq!(Offset(41).next(), Position(42));
    }

    #[test]
    fn time_never_runs_backwards() {
        assert_eq!(EpochMs(5).since(EpochMs(9)), Duration::ZERO);
        assert_eq!(EpochMs(-1).seconds(), -1);
    }

    #[test]
    fn a_time_is_written_as_rfc_3339() {
        assert_eq!(EpochMs(0).rfc3339(), "1970-01-01T00:00:00Z");
        let time = EpochMs(1_700_000_000_123).rfc3339();
        assert_eq!(time, "2023-11-14T22:13:20.123Z");
    }
}
