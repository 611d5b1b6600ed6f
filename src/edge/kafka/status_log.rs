//! Reads the statuses of endpoints for people: once, or again for what has come since.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use rdkafka::message::Message as _;

use super::error::Failure;
use super::log_reader::{Log, Range, Reading};
use super::status_cache::read;
use crate::config::Settings;
use crate::model::status::Status;

/// The latest status by subscription.
pub type Statuses = HashMap<Box<str>, Arc<Status>>;

/// The topic, read as far as the last call.
pub struct StatusLog {
    log: Log,
    statuses: Statuses,
    /// By partition: where the next read begins.
    read_to: HashMap<i32, i64>,
}

impl StatusLog {
    /// Connects, and reads nothing yet.
    ///
    /// # Errors
    /// [`Failure`] when no broker responds, the topic is missing, or permission is denied.
    pub fn open(settings: &Settings, purpose: &'static str) -> Result<Self, Failure> {
        Ok(Self {
            log: Log::open(settings, settings.topics.status(), purpose)?,
            statuses: Statuses::new(),
            read_to: HashMap::new(),
        })
    }

    /// Reads what has come since the last call; returns whether there was anything. Records that cannot be read are
    /// ignored: delivery counts and logs them.
    ///
    /// # Errors
    /// [`Failure`] when the topic cannot be read.
    pub fn catch_up(&mut self, stop: &dyn Fn() -> bool) -> Result<bool, Failure> {
        let ends = self.log.stable_ends()?;
        let rest = |range: &Range| Range {
            low: self
                .read_to
                .get(&range.partition)
                .map_or(range.low, |read_to| range.low.max(*read_to)),
            ..*range
        };
        let ranges: Vec<Range> = ends.iter().map(rest).collect();
        let statuses = &mut self.statuses;
        let mut any = false;
        let reading = self.log.read::<Failure>(&ranges, stop, |message| {
            match read(message.key(), message.payload()) {
                Ok((id, Some(status))) => drop(statuses.insert(id.into(), Arc::new(status))),
                Ok((id, None)) => drop(statuses.remove(id)),
                Err(error) => {
                    tracing::debug!(offset = message.offset(), "unreadable status: {error}")
                }
            }
            any = true;
            Ok(ControlFlow::Continue(()))
        })?;
        if reading == Reading::Complete {
            let ends = ends.iter().map(|range| (range.partition, range.end));
            self.read_to = ends.collect();
        }
        Ok(any)
    }

    /// The statuses as read so far.
    #[must_use]
    pub fn statuses(&self) -> &Statuses {
        &self.statuses
    }
}
