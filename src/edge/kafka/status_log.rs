//! Reads the statuses of endpoints for people: once, or again for what has come since.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use rdkafka::message::Message as _;

use super::error::Failure;
use super::log_reader::Tail;
use super::status_cache::read;
use crate::config::Settings;
use crate::model::status::Status;

/// The latest status by subscription.
pub type Statuses = HashMap<Box<str>, Arc<Status>>;

/// The topic, read as far as the last call.
pub struct StatusLog {
    topic: Tail,
    statuses: Statuses,
}

impl StatusLog {
    /// Connects, and reads nothing yet.
    ///
    /// # Errors
    /// [`Failure`] when no broker responds, the topic is missing, or permission is denied.
    pub fn open(settings: &Settings, purpose: &'static str) -> Result<Self, Failure> {
        Ok(Self {
            topic: Tail::open(settings, settings.topics.status(), purpose)?,
            statuses: Statuses::new(),
        })
    }

    /// Reads what has come since the last call; returns whether there was anything. Records that cannot be read are
    /// ignored: delivery counts and logs them.
    ///
    /// # Errors
    /// [`Failure`] when the topic cannot be read.
    pub fn catch_up(&mut self, stop: &dyn Fn() -> bool) -> Result<bool, Failure> {
        let ends = self.topic.log().stable_ends()?;
        let statuses = &mut self.statuses;
        let mut any = false;
        self.topic.read::<Failure>(&ends, stop, |message| {
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
        Ok(any)
    }

    /// The statuses as read so far.
    #[must_use]
    pub fn statuses(&self) -> &Statuses {
        &self.statuses
    }
}
