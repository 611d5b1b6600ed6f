//! Reads the subscriptions for operators' commands: once, or again for what has come since.

use std::ops::ControlFlow;

use super::error::Failure;
use super::log_reader::{Reading, Tail};
use super::subscription_cache::topic_record;
use crate::config::Settings;
use crate::model::subscription::{Change, Fold, TopicRecord};

/// How much a reader must see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// What a read-committed reader sees now.
    Visible,
    /// All that was committed before the call: waits for transactions that hide records.
    Latest,
}

/// The topic, read as far as the last call.
pub struct SubscriptionLog {
    topic: Tail,
    fold: Fold,
}

impl SubscriptionLog {
    /// Connects, and reads nothing yet.
    ///
    /// # Errors
    /// [`Failure`] when no broker responds, the topic is missing, or permission is denied.
    pub fn open(settings: &Settings, purpose: &'static str) -> Result<Self, Failure> {
        Ok(Self {
            topic: Tail::open(settings, settings.topics.subscriptions(), purpose)?,
            fold: Fold::new(settings.require_verification),
        })
    }

    /// Reads what has come since the last call; `visit` sees each record with what it changes.
    ///
    /// # Errors
    /// [`Failure`] when the topic cannot be read.
    pub fn catch_up(
        &mut self,
        freshness: Freshness,
        stop: &dyn Fn() -> bool,
        visit: &mut dyn FnMut(&TopicRecord<'_>, &Change),
    ) -> Result<Reading, Failure> {
        let ends = match freshness {
            Freshness::Visible => self.topic.log().stable_ends()?,
            Freshness::Latest => self.topic.log().high_watermarks(stop)?,
        };
        let fold = &mut self.fold;
        self.topic.read(&ends, stop, |message| {
            let record = topic_record(message);
            let change = fold.take(&record);
            visit(&record, &change);
            Ok(ControlFlow::Continue(()))
        })
    }

    /// The subscriptions as read so far.
    #[must_use]
    pub fn fold(&self) -> &Fold {
        &self.fold
    }

    /// The subscriptions, without the reader.
    #[must_use]
    pub fn into_fold(self) -> Fold {
        self.fold
    }
}
