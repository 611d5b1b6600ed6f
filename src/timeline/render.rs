//! Steps as text, one phrase each. Pure.

use super::step::Detail;
use crate::model::command::Cause;
use crate::model::dead_letter::Settlement;
use crate::model::units::{EpochMs, counted};

impl Detail {
    /// One phrase; `time` formats timestamps.
    #[must_use]
    pub fn summary(&self, time: impl Fn(EpochMs) -> String) -> String {
        let until = |due: Option<EpochMs>| due.map_or_else(|| "now".to_owned(), &time);
        match self {
            Self::Event { event_type } => format!("event {event_type}"),
            Self::Invalid { error } => format!("not a valid event: {error}"),
            Self::Command {
                cause: Cause::New, ..
            } => "new command".to_owned(),
            Self::Command {
                cause: Cause::Replay,
                ..
            } => "new command from a replay".to_owned(),
            Self::Command {
                cause: Cause::Retry,
                attempts,
            } => format!("released for attempt {}", attempts.saturating_add(1)),
            Self::Command {
                cause: Cause::Parked,
                attempts,
            } => format!(
                "released from parking for attempt {}",
                attempts.saturating_add(1)
            ),
            Self::Waits {
                moved: true, due, ..
            } => format!("moved on in the retry topics, due {}", until(*due)),
            Self::Waits {
                cause: Cause::Parked,
                due,
                ..
            } => format!("parked until {}", until(*due)),
            Self::Waits { attempts, due, .. } => {
                format!("retry {attempts} due {}", until(*due))
            }
            Self::DeadLetter {
                reason,
                attempts,
                error,
                ..
            } => format!(
                "dead letter after {}, {reason}: {error}",
                counted(*attempts, "attempt")
            ),
            Self::Settled { letter, how } => match how {
                Settlement::Replayed => format!("dead letter {letter} replayed"),
                Settlement::Discarded => format!("dead letter {letter} discarded"),
            },
            Self::Attempt {
                number,
                status,
                outcome,
                duration_ms,
                error,
                ..
            } => {
                let outcome = outcome.replace('_', "-");
                match (status, error) {
                    (Some(status), _) => {
                        format!(
                            "attempt {number}: status {status} after {duration_ms:.0} ms, {outcome}"
                        )
                    }
                    (None, error) => format!(
                        "attempt {number}: no response after {duration_ms:.0} ms, {outcome}: {}",
                        error.as_deref().unwrap_or("unknown error")
                    ),
                }
            }
            Self::Unreadable { error } => format!("cannot be decoded: {error}"),
        }
    }
}
