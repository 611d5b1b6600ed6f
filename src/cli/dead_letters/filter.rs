//! The filters of dead letters, and time ranges, as arguments.

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::cli::exit::{CliError, Exit};
use crate::edge::clock;
use crate::model::dead_letter::{Filter, Reason};
use crate::model::subscription::TypePattern;
use crate::model::units::{EpochMs, parse_duration};

/// Selects dead letters.
#[derive(Args, Clone, Debug, Default)]
pub struct FilterArgs {
    /// Only dead letters of this subscriber
    #[arg(long, value_name = "NAME")]
    pub subscriber: Option<String>,
    /// Only dead letters of this subscription
    #[arg(long, value_name = "ID")]
    pub subscription: Option<String>,
    /// Only events of this type; * matches one segment, ** any number
    #[arg(long, value_name = "PATTERN", value_parser = TypePattern::parse)]
    pub event_type: Option<TypePattern>,
    /// Only dead letters with this reason
    #[arg(long, value_name = "REASON", value_parser = reasons())]
    pub reason: Option<Reason>,
    /// Only dead letters with this last response status
    #[arg(long, value_name = "CODE", value_parser = clap::value_parser!(u16).range(100..=999))]
    pub status: Option<u16>,
    /// Only dead letters of this webhook
    #[arg(long, value_name = "ID")]
    pub webhook_id: Option<String>,
    /// Only dead letters of this event
    #[arg(long, value_name = "ID")]
    pub event_id: Option<String>,
    /// Only dead letters whose last error contains this text, in upper or lower case
    #[arg(long, value_name = "TEXT")]
    pub error_contains: Option<String>,
    /// Only last failures at or after this time: RFC 3339, or a duration before now such as 2h
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub since: Option<EpochMs>,
    /// Only last failures before this time: RFC 3339, or a duration before now such as 2h
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub until: Option<EpochMs>,
}

impl FilterArgs {
    /// Checks the arguments and returns the filter.
    ///
    /// # Errors
    /// [`CliError`]: the time range is empty.
    pub fn filter(&self) -> Result<Filter, CliError> {
        check_range(self.since, self.until)?;
        let Self {
            subscriber,
            subscription,
            event_type,
            reason,
            status,
            webhook_id,
            event_id,
            error_contains,
            since,
            until,
        } = self.clone();
        Ok(Filter {
            subscriber,
            subscription,
            event_type,
            reason,
            status,
            webhook_id,
            event_id,
            error_contains,
            since,
            until,
        })
    }
}

/// The reasons, which completions and help list.
fn reasons() -> impl TypedValueParser<Value = Reason> {
    PossibleValuesParser::new(Reason::ALL.map(Reason::as_str))
        .try_map(|text| text.parse::<Reason>())
}

/// Parses a time, or a duration before now.
///
/// # Errors
/// A sentence with the allowed forms.
pub fn parse_time(text: &str) -> Result<EpochMs, String> {
    time_at(text, clock::now())
}

/// Refuses an empty time range.
///
/// # Errors
/// [`CliError`] with both times.
pub fn check_range(since: Option<EpochMs>, until: Option<EpochMs>) -> Result<(), CliError> {
    range_at(since, until, clock::now()).map_err(|wrong| CliError::new(Exit::Usage, wrong))
}

fn range_at(since: Option<EpochMs>, until: Option<EpochMs>, now: EpochMs) -> Result<(), String> {
    match (since, until) {
        (Some(since), Some(until)) if until <= since => Err(format!(
            "--until ({}) must be later than --since ({})",
            until.rfc3339(),
            since.rfc3339()
        )),
        (Some(since), _) if since > now => Err(format!(
            "--since ({}) is in the future; the current time is {}",
            since.rfc3339(),
            now.rfc3339()
        )),
        _ => Ok(()),
    }
}

/// Parses a time, or a duration before `now`.
fn time_at(text: &str, now: EpochMs) -> Result<EpochMs, String> {
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(EpochMs(time.as_millisecond()));
    }
    parse_duration(text).map(|ago| now - ago).map_err(|_| {
        format!(
            "{text:?} is not a time such as 2026-05-01T12:00:00Z or a duration before now such as 2h"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_time_range_is_refused() {
        let range = |since: Option<i64>, until: Option<i64>| {
            range_at(since.map(EpochMs), until.map(EpochMs), EpochMs(3000))
        };
        for fine in [
            (None, None),
            (Some(3000), None),
            (None, Some(1)),
            (Some(1000), Some(2000)),
            (Some(1000), Some(9000)),
        ] {
            assert_eq!(range(fine.0, fine.1), Ok(()), "{fine:?}");
        }
        let error = range(Some(2000), Some(1000)).unwrap_err();
        assert!(
            error.contains("--until (1970-01-01T00:00:01Z)")
                && error.contains("--since (1970-01-01T00:00:02Z)"),
            "{error}"
        );
        assert!(range(Some(2000), Some(2000)).is_err());
        let error = range(Some(4000), Some(5000)).unwrap_err();
        assert!(error.contains("in the future"), "{error}");
    }

    #[test]
    fn a_time_is_a_timestamp_or_a_duration_before_now() {
        let now = EpochMs(1_700_000_000_000);
        assert_eq!(time_at("2023-11-14T22:13:20Z", EpochMs(0)), Ok(now));
        assert_eq!(time_at("2023-11-14T23:13:20+01:00", EpochMs(0)), Ok(now));
        assert_eq!(
            time_at("2h", now),
            Ok(EpochMs(1_700_000_000_000 - 7_200_000))
        );
        assert!(time_at("yesterday", now).unwrap_err().contains("2h"));
    }
}
