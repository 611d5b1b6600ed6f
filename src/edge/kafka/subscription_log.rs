//! Reads the subscriptions for operators' commands: once, or again for what has come since.

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::error::Failure;
use super::log_reader::{Log, Range, Reading};
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
    log: Log,
    fold: Fold,
    /// By partition: where the next read begins.
    read_to: HashMap<i32, i64>,
}

impl SubscriptionLog {
    /// Connects, and reads nothing yet.
    ///
    /// # Errors
    /// [`Failure`] when no broker responds, the topic is missing, or permission is denied.
    pub fn open(settings: &Settings, purpose: &'static str) -> Result<Self, Failure> {
        Ok(Self {
            log: Log::open(settings, settings.topics.subscriptions(), purpose)?,
            fold: Fold::default(),
            read_to: HashMap::new(),
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
            Freshness::Visible => self.log.stable_ends()?,
            Freshness::Latest => self.log.high_watermarks(stop)?,
        };
        let rest = |range: &Range| Range {
            low: self
                .read_to
                .get(&range.partition)
                .map_or(range.low, |read_to| range.low.max(*read_to)),
            ..*range
        };
        let ranges: Vec<Range> = ends.iter().map(rest).collect();
        let fold = &mut self.fold;
        let reading = self.log.read::<Failure>(&ranges, stop, |message| {
            let record = topic_record(message);
            let change = fold.take(&record);
            visit(&record, &change);
            Ok(ControlFlow::Continue(()))
        })?;
        if reading == Reading::Complete {
            self.read_to = ends
                .iter()
                .map(|range| (range.partition, range.end))
                .collect();
        }
        Ok(reading)
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
