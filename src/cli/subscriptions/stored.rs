//! The subscriptions as they are stored: reads and writes the topic.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use rdkafka::message::{Header, OwnedHeaders};
use serde_json::Value;

use super::listed::Listed;
use crate::cli::exit::{CliError, Exit};
use crate::cli::print;
use crate::config::{Guarantee, Settings};
use crate::edge::clock;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::producer::{BatchError, Producer, Record};
use crate::edge::kafka::status_log::Statuses;
use crate::edge::kafka::subscription_log::{Freshness, SubscriptionLog};
use crate::model::standing::{Decided, Standing};
use crate::model::start_marker;
use crate::model::subscription::verification::Verification;
use crate::model::subscription::{
    self, APPLIED, Change, Decider, Decision, Fold, State, Subscription, TopicRecord,
};

pub(super) const PURPOSE: &str = "subscriptions";

/// A record that is not used.
pub(super) struct Invalid {
    pub(super) reasons: String,
    pub(super) in_force: bool,
}

/// The effective subscriptions, as in fan-out and delivery, with what the topic holds.
#[derive(Default)]
pub(super) struct Stored {
    pub(super) fold: Fold,
    /// The JSON of the applied record in force, by id.
    documents: BTreeMap<String, Vec<u8>>,
    /// By key: those whose latest record is invalid.
    pub(super) invalid: BTreeMap<Vec<u8>, Invalid>,
    /// By key: the partitions that hold its records. More than one after partitions were added.
    places: BTreeMap<Vec<u8>, BTreeSet<i32>>,
}

impl Stored {
    /// Reads the topic, and reports invalid records.
    pub(super) fn read(settings: &Settings, freshness: Freshness) -> Result<Self, CliError> {
        let mut stored = Self::default();
        let mut visit = |record: &TopicRecord<'_>, change: &Change| stored.take(record, change);
        stored.fold = SubscriptionLog::open(settings, PURPOSE)
            .and_then(|mut log| {
                log.catch_up(freshness, &|| false, &mut visit)?;
                Ok(log.into_fold())
            })
            .map_err(|failure| print::failed(&failure))?;
        for (key, invalid) in &stored.invalid {
            let key = String::from_utf8_lossy(key);
            let effect = if invalid.in_force {
                "the previous one stays in effect".to_owned()
            } else {
                format!(
                    "there is no valid one; apply one, or `hookstream subscriptions delete {key}`"
                )
            };
            let reasons = &invalid.reasons;
            print::note(&format!(
                "the latest record of {key:?} is invalid, {effect}: {reasons}"
            ));
        }
        Ok(stored)
    }

    pub(super) fn take(&mut self, record: &TopicRecord<'_>, change: &Change) {
        let key = record.key.unwrap_or_default();
        if start_marker::is_key(key) {
            return;
        }
        let places = self.places.entry(key.to_vec()).or_default();
        places.extend(record.partition);
        self.invalid.remove(key);
        let id = String::from_utf8_lossy(key);
        match change {
            Change::Updated(_) | Change::Nothing => {}
            Change::Removed(id) => drop(self.documents.remove(&**id)),
            Change::Refused {
                error, in_force, ..
            } => {
                let invalid = Invalid {
                    reasons: error.problems().join("; "),
                    in_force: *in_force,
                };
                self.invalid.insert(key.to_vec(), invalid);
            }
        }
        if let (Change::Updated(subscription), Some(value)) = (change, record.value)
            && *subscription.id == *id
        {
            self.documents.insert(id.into_owned(), value.to_vec());
        }
    }

    /// The JSON of the applied record of a subscription.
    pub(super) fn document(&self, id: &str) -> Option<&[u8]> {
        self.documents.get(id).map(Vec::as_slice)
    }

    /// The ids of the valid subscriptions, in order.
    pub(super) fn ids(&self) -> impl Iterator<Item = &str> {
        self.documents.keys().map(String::as_str)
    }

    /// A subscription as `list` and `show` print it: redacted, and in the state that it is in.
    pub(super) fn redacted(&self, id: &str) -> Result<Option<Value>, CliError> {
        let (Some(document), Some(folded)) = (self.document(id), self.fold.get(id)) else {
            return Ok(None);
        };
        let mut value = subscription::redacted(document)
            .map_err(|error| CliError::new(Exit::Failure, error.problems().join("; ")))?;
        // What is not said is not added, unless it differs.
        if let Some(record) = value.as_object_mut()
            && (record.contains_key("state") || folded.state != State::Active)
        {
            record.insert("state".to_owned(), Value::from(folded.state.as_str()));
        }
        Ok(Some(value))
    }

    /// The same, with how it stands.
    pub(super) fn listed(&self, id: &str, statuses: &Statuses) -> Result<Option<Listed>, CliError> {
        let (Some(mut document), Some(folded)) = (self.redacted(id)?, self.fold.get(id)) else {
            return Ok(None);
        };
        if let Some(record) = document.as_object_mut() {
            record.remove("state");
        }
        let decided = Decided::of(&self.fold, folded);
        let status = statuses.get(id).map(|status| &**status);
        let standing = Standing::new(id, Some(&decided), status, clock::now());
        Ok(Some(Listed { document, standing }))
    }

    /// The tombstones that delete everything about `id`; empty when there is nothing. Also deletes an invalid record by
    /// its key.
    pub(super) fn tombstones(&self, id: &str) -> Vec<Write> {
        let of_id = [
            id.to_owned(),
            Decider::Operator.key(id),
            Decider::Hookstream.key(id),
            Verification::key(id),
        ];
        let mut keys: BTreeSet<Vec<u8>> = BTreeSet::new();
        if self.fold.get(id).is_some() {
            keys.insert(id.as_bytes().to_vec());
        }
        keys.extend(self.fold.decisions(id).into_iter().map(String::into_bytes));
        let named = |key: &[u8]| {
            let text = String::from_utf8_lossy(key);
            of_id.iter().any(|of_id| **of_id == text)
        };
        keys.extend(self.invalid.keys().filter(|key| named(key)).cloned());
        // Decisions alone are not a subscription.
        let is_beside =
            |key: &str| Decider::of_key(key).is_some() || Verification::id_of_key(key).is_some();
        if keys
            .iter()
            .all(|key| !self.invalid.contains_key(key) && is_beside(&String::from_utf8_lossy(key)))
        {
            return Vec::new();
        }
        let each = |key: Vec<u8>| {
            let places = self.places.get(&key).cloned().unwrap_or_default();
            places.into_iter().map(move |partition| Write {
                key: key.clone(),
                value: None,
                applied: None,
                partition: Some(partition),
            })
        };
        keys.into_iter().flat_map(each).collect()
    }

    /// Why a subscription is in its state, for people; `None` when the applied record says so.
    pub(super) fn why(&self, id: &str) -> Option<String> {
        let folded = self.fold.get(id)?;
        let (by, at) = self.fold.decided_by(id)?;
        let by = match by {
            Decider::Operator => "by an operator",
            Decider::Hookstream if self.fold.disabled_because(id) == Some("failing") => {
                "by hookstream, since its endpoint failed for as long as --disable-after"
            }
            Decider::Hookstream => "by hookstream, since its endpoint responded 410",
        };
        Some(format!("{} {by}, at {}", folded.state, at.rfc3339()))
    }
}

/// A record to write.
#[derive(PartialEq, Eq)]
pub(super) struct Write {
    pub(super) key: Vec<u8>,
    /// `None` is a tombstone.
    pub(super) value: Option<Vec<u8>>,
    /// The [`APPLIED`] header.
    pub(super) applied: Option<String>,
    /// By the key's hash when `None`.
    pub(super) partition: Option<i32>,
}

/// Without the value, which may hold literal secrets.
impl fmt::Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.value.as_ref().map(Vec::len);
        let key = String::from_utf8_lossy(&self.key);
        write!(
            f,
            "Write({key}, bytes: {bytes:?}, applied: {:?})",
            self.applied
        )
    }
}

impl Write {
    /// An operator's decision about a subscription.
    pub(super) fn decision(subscription: &Subscription, decision: &Decision) -> Self {
        Self {
            key: Decider::Operator.key(&subscription.id).into_bytes(),
            value: Some(decision.to_json()),
            applied: None,
            partition: subscription.source.partition,
        }
    }
}

/// Writes records; returns when all in-sync replicas have acknowledged them.
pub(super) fn write(settings: &Settings, writes: &[Write]) -> Result<(), CliError> {
    if writes.is_empty() {
        return Ok(());
    }
    let topic = settings.topics.subscriptions();
    // The records are independent: a transaction would only need a transactional id and its ACL.
    let plain = Settings {
        guarantee: Guarantee::AtLeastOnce,
        ..settings.clone()
    };
    let mut producer =
        Producer::sole(&plain, PURPOSE).map_err(|failure| print::failed(&failure))?;
    for (tag, write) in writes.iter().enumerate() {
        let headers = write
            .applied
            .as_deref()
            .map_or_else(OwnedHeaders::new, |applied| {
                OwnedHeaders::new().insert(Header {
                    key: APPLIED,
                    value: Some(applied),
                })
            });
        let record = Record {
            topic: &topic,
            partition: write.partition,
            key: Some(&write.key),
            value: write.value.as_deref(),
            headers,
            tag,
        };
        producer
            .send(record)
            .map_err(|error| refused(error, writes))?;
    }
    producer
        .finish(&[], None)
        .map_err(|error| refused(error, writes))
}

/// Converts a failed write to an error. Running the command again is safe.
fn refused(error: BatchError, writes: &[Write]) -> CliError {
    match error {
        BatchError::TooLarge { tag, .. } => {
            let key = writes
                .get(tag)
                .map(|write| String::from_utf8_lossy(&write.key));
            let message = format!(
                "subscription {:?} exceeds the broker's size limit; others may have been written",
                key.as_deref().unwrap_or("?")
            );
            CliError::new(Exit::Partial, message)
        }
        BatchError::Aborted(error) => {
            let failure = Failure::from_client(
                "writing subscriptions (some may have been written; run again)",
                error,
            );
            print::failed(&failure)
        }
        BatchError::Failed(failure) => print::failed(&failure),
    }
}
