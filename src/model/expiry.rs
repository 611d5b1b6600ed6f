//! The age at which a command is given up: every command ends, whatever its endpoint does.
//!
//! A command expires when it is older than its subscription's `max_age`, counted from when it was enqueued or last
//! replayed. After a pause it has some time left, so that a resume does not expire what waited. Pure.

use std::time::Duration;

use crate::model::backoff::JITTER;
use crate::model::command::Command;
use crate::model::units::EpochMs;

/// The shortest allowed maximum age.
pub const MIN_MAX_AGE: Duration = Duration::from_secs(1);
/// The longest allowed maximum age, 30 days.
pub const MAX_MAX_AGE: Duration = Duration::from_secs(30 * 86_400);
/// The least default maximum age.
const LEAST_DEFAULT: Duration = Duration::from_secs(86_400);
/// Nothing expires for this long after a resume, or for the maximum age if that is shorter.
const AFTER_RESUME: Duration = Duration::from_secs(3600);
/// A retry may be late by this or by a tenth of its delay, whichever is longer.
const LATENESS: Duration = Duration::from_secs(5);

/// The maximum age where neither the subscription nor the operator sets one: long enough for every attempt of
/// `schedule`, with the longest jitter and permitted lateness, and a `timeout` each.
#[must_use]
pub fn default_max_age(
    schedule: &[Duration],
    timeout: Duration,
    shortest_tier: Duration,
) -> Duration {
    let attempts = timeout.saturating_mul(u32::try_from(schedule.len()).unwrap_or(u32::MAX) + 1);
    let waits = schedule.iter().map(|delay| {
        let longest = delay.mul_f64(1.0 + JITTER);
        longest + (longest / 10).max(LATENESS).max(shortest_tier)
    });
    (waits.sum::<Duration>() + attempts).max(LEAST_DEFAULT)
}

/// When the commands of a subscription expire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// The maximum age.
    pub max_age: Duration,
    /// When the subscription was last resumed after a pause.
    pub resumed_at: Option<EpochMs>,
}

impl Expiry {
    /// When a command expires that waits since `since` ([`Command::waits_since`]).
    #[must_use]
    pub fn at(&self, since: EpochMs) -> EpochMs {
        let end = since + self.max_age;
        self.resumed_at
            .map_or(end, |resumed| end.max(resumed + self.grace()))
    }

    /// How long nothing expires after a resume.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.max_age.min(AFTER_RESUME)
    }
}

/// The error of an expired command's dead letter: its age, the limit, and the last failure.
#[must_use]
pub fn explain(command: &Command, limit: Duration, now: EpochMs) -> String {
    let age = rounded(now.since(command.waits_since()));
    let (age, limit) = (
        humantime::format_duration(age),
        humantime::format_duration(limit),
    );
    let past = match (&command.last_failure, command.attempt) {
        (None, 0) => "no attempt was made".to_owned(),
        (None, attempts) => format!("attempts made: {attempts}"),
        (Some(last), 0) => format!(
            "the endpoint throttles, which spends no attempt; last at {}: {}",
            last.at.rfc3339(),
            last.error
        ),
        (Some(last), attempts) => format!(
            "attempts made: {attempts}; the last request failed at {}: {}",
            last.at.rfc3339(),
            last.error
        ),
    };
    format!("the command is {age} old, the limit (max_age) is {limit}; {past}")
}

/// Whole seconds, except for short times.
fn rounded(age: Duration) -> Duration {
    if age < Duration::from_secs(10) {
        return age;
    }
    Duration::from_secs(age.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::command::{LastFailure, tests::sample};

    const HOUR: Duration = Duration::from_secs(3600);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_default_is_as_long_as_the_schedule_can_last_and_a_day_at_least() {
        let seconds = |all: &[u64]| -> Vec<Duration> {
            all.iter().copied().map(Duration::from_secs).collect()
        };
        let default = seconds(&[5, 300, 1800, 7200, 18_000, 36_000, 36_000]);
        let age = default_max_age(&default, 15 * SECOND, 5 * SECOND);
        // 99,305 s with 20 % jitter, 10 % or 5 s late each, and eight attempts of 15 s.
        let late = 5.0 + 99_300.0 * 1.2 * 0.1;
        let expected = 99_305.0 * 1.2 + late + 120.0;
        assert!((age.as_secs_f64() - expected).abs() < 0.01, "{age:?}");
        assert_eq!(default_max_age(&[], 15 * SECOND, 5 * SECOND), 24 * HOUR);
        let short = default_max_age(&seconds(&[5]), 15 * SECOND, 5 * SECOND);
        assert_eq!(short, 24 * HOUR);
        let coarse = default_max_age(&seconds(&[86_400]), SECOND, 24 * HOUR);
        assert_eq!(
            coarse,
            Duration::from_secs(103_680 + 86_400 + 2),
            "a tier of a day"
        );
    }

    #[test]
    fn a_command_expires_at_its_maximum_age_and_not_within_an_hour_after_a_resume() {
        let expiry = |max_age, resumed_at| Expiry {
            max_age,
            resumed_at,
        };
        let since = EpochMs(1_000_000);
        assert_eq!(expiry(HOUR * 2, None).at(since), since + HOUR * 2);
        let resumed = since + HOUR * 100;
        assert_eq!(expiry(HOUR * 2, Some(resumed)).at(since), resumed + HOUR);
        let short = expiry(60 * SECOND, Some(resumed));
        assert_eq!(short.at(since), resumed + 60 * SECOND, "max_age is shorter");
        assert_eq!(short.at(resumed + HOUR), resumed + HOUR + 60 * SECOND);
        let early = expiry(HOUR * 2, Some(since));
        assert_eq!(early.at(since), since + HOUR * 2, "a resume only extends");
        assert_eq!(
            expiry(MAX_MAX_AGE, None).at(EpochMs(i64::MAX)),
            EpochMs(i64::MAX)
        );
    }

    #[test]
    fn the_error_names_age_limit_and_last_failure() {
        let mut command = sample();
        let now = command.enqueued + Duration::from_millis(86_403_700);
        let told = |command: &Command| explain(command, 24 * HOUR, now);
        assert_eq!(
            told(&command),
            "the command is 1day 3s old, the limit (max_age) is 1day; no attempt was made"
        );
        command.attempt = 3;
        assert!(
            told(&command).ends_with("; attempts made: 3"),
            "of hookstream 0.1.0"
        );
        let failed = EpochMs(1_700_000_000_000);
        command.last_failure = Some(Box::new(LastFailure::new(failed, Some(503), "busy")));
        assert!(
            told(&command)
                .ends_with("made: 3; the last request failed at 2023-11-14T22:13:20Z: busy")
        );
        command.attempt = 0;
        assert!(told(&command).ends_with(
            "; the endpoint throttles, which spends no attempt; last at 2023-11-14T22:13:20Z: busy"
        ));
        command.replayed = Some(now - 2 * SECOND);
        assert!(
            told(&command).starts_with("the command is 2s old"),
            "since its replay"
        );
    }
}
