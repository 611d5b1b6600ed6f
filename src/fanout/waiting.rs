//! Partitions that wait for the schema of their next event. Pure.
//!
//! While a partition waits it is paused, and what the client still gives of it is dropped: all that was taken before is
//! committed, so that it is read on from the committed position, which is this event.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::history::EventPartition;
use crate::model::schema::SchemaId;
use crate::model::units::Offset;

/// How often the log repeats that a partition waits.
const REMIND: Duration = Duration::from_secs(60);

/// What a partition waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait {
    /// Its next event.
    pub(super) offset: Offset,
    /// The schema.
    pub(super) schema: SchemaId,
    since: Instant,
    logged: Option<Instant>,
}

impl Wait {
    /// For how long it has waited.
    pub(super) fn time(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }
}

/// Partitions that wait.
#[derive(Debug, Default)]
pub(super) struct Waiting(BTreeMap<EventPartition, Wait>);

impl Waiting {
    /// A partition waits from now on.
    pub(super) fn add(
        &mut self,
        at: EventPartition,
        offset: Offset,
        schema: SchemaId,
        now: Instant,
    ) {
        let wait = Wait {
            offset,
            schema,
            since: now,
            logged: None,
        };
        self.0.insert(at, wait);
    }

    /// Whether a partition waits.
    pub(super) fn contains(&self, at: EventPartition) -> bool {
        self.0.contains_key(&at)
    }

    /// Whether none does.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = (EventPartition, Wait)> {
        self.0.iter().map(|(&at, &wait)| (at, wait))
    }

    /// Whether to log now that a partition waits, because the registry does not say.
    pub(super) fn logs(&mut self, at: EventPartition, now: Instant) -> bool {
        let Some(wait) = self.0.get_mut(&at) else {
            return false;
        };
        let logs = wait
            .logged
            .is_none_or(|logged| now.saturating_duration_since(logged) >= REMIND);
        if logs {
            wait.logged = Some(now);
        }
        logs
    }

    /// A partition waits no longer: it is read again, or belongs to another process.
    pub(super) fn remove(&mut self, at: EventPartition) {
        self.0.remove(&at);
    }
}
