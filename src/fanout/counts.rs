//! What an event is counted as. Pure.

use super::metrics::EventResult;

/// What an event is counted as once it is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EventCounts {
    /// What became of it.
    pub(super) result: EventResult,
    /// Commands.
    pub(super) commands: u32,
    /// Its record has no usable timestamp.
    pub(super) is_time_replaced: bool,
    /// Attributes that CloudEvents does not allow.
    pub(super) left_out: u32,
    /// It has the webhook ids of another one.
    pub(super) collides: bool,
}

impl EventCounts {
    /// An event without commands.
    pub(super) fn of(result: EventResult) -> Self {
        Self {
            result,
            commands: 0,
            is_time_replaced: false,
            left_out: 0,
            collides: false,
        }
    }
}
