//! The subscriptions as a fold of their topic, where each one has up to four records with keys of their own.
//!
//! | key | written by | contents |
//! |---|---|---|
//! | `ID` | `subscriptions apply` | the subscription as applied; a tombstone deletes it |
//! | `state/ID` | `subscriptions pause` and `resume` | what operators decided: [`Decision`] |
//! | `disabled/ID` | delivery, after a 410 | that the endpoint is gone: [`Decision`] |
//! | `verified/ID` | delivery | whether the endpoint consents: [`Verification`] |
//!
//! Keys that begin with `start/` are those of other records ([`start_marker`](crate::model::start_marker)), which are ignored.
//!
//! An id has no slash, so the keys cannot collide. Each kind of writer owns its record, so none overwrites what another
//! one decided. Kafka has no compare-and-set, so a decision names the [`Version`](super::Version) that it was made on, and is ignored
//! when that is no longer current: a 410 that arrives after an apply or a resume disables nothing.
//!
//! A version is a hash of bytes, not an offset: it survives compaction, and is the same on every replica and on a
//! mirrored cluster. Identical bytes are the same version, so a tool that writes all its records again does not undo a
//! pause. `subscriptions apply` adds a header that makes each of its records distinct.
//!
//! A verification is about the URL that was asked, so it holds while that is the same. An active subscription that needs
//! one, because its record or the operator's settings say so, is pending without it.
//!
//! The records of a subscription are in one partition, and the fold follows their order there. So it is the same
//! for a reader that has followed the topic and for one that reads it after compaction, with one exception: a reader
//! that saw a record knows the last valid one before it.

use std::collections::HashMap;
use std::sync::Arc;

use super::decision::{Decider, Decision};
use super::interned::Interned;
use super::model::{State, Subscription};
use super::record::SubscriptionError;
use super::topic_record::{Applied, Kept, Kind, ReadRecord, TopicRecord};
use super::version::{Version, digest};
use crate::model::maps::SafeMap;
use crate::model::source::subscription_hash;
use crate::model::subscription::verification::{self, Verification};
use crate::model::units::EpochMs;

/// The maximum length of an id, in bytes.
const MAX_ID: usize = 200;

/// What a record changes.
#[derive(Debug)]
pub enum Change {
    /// The subscription is now this one: the same [`Arc`] as before if nothing about it has changed.
    Updated(Arc<Subscription>),
    /// The subscription no longer exists.
    Removed(Box<str>),
    /// Nothing.
    Nothing,
    /// The record is invalid.
    Refused {
        /// Why.
        error: SubscriptionError,
        /// Whether an earlier record stays in force.
        in_force: bool,
        /// The subscription, if it changes nevertheless: it waits while a decision about it cannot be read.
        updated: Option<Arc<Subscription>>,
    },
}

/// The operator's latest decision.
#[derive(Debug, Default)]
enum Operator {
    #[default]
    None,
    /// A decision, with the hash of its record.
    Known(Box<Decision>, Box<str>),
    /// It cannot be read, and there is no earlier one: nothing is sent until it can.
    Unreadable,
}

/// The records of a subscription other than the applied one: decisions and its verification. Most subscriptions have none.
#[derive(Debug, Default)]
struct SideRecords {
    /// Whether the latest applied record is invalid.
    is_invalid: bool,
    operator: Operator,
    disabled: Option<Decision>,
    verification: Option<Verification>,
    /// When a record ended a pause, as far as this reader saw it.
    resumed_at: Option<EpochMs>,
}

impl SideRecords {
    const EMPTY: Self = Self {
        is_invalid: false,
        operator: Operator::None,
        disabled: None,
        verification: None,
        resumed_at: None,
    };

    fn is_empty(&self) -> bool {
        !self.is_invalid
            && matches!(self.operator, Operator::None)
            && self.disabled.is_none()
            && self.verification.is_none()
            && self.resumed_at.is_none()
    }
}

/// All subscriptions.
#[derive(Debug, Default)]
pub struct Fold {
    /// The latest valid applied record of each, folded, by the hash of its id. Fan-out writes the commands of an event in
    /// the order of these hashes, so no two may be the same.
    applied: SafeMap<u64, Arc<Subscription>>,
    /// By the id of their subscription.
    side_records: HashMap<Box<str>, SideRecords>,
    /// Whether every endpoint must consent.
    verify: bool,
    interned: Interned,
}

impl Fold {
    /// Without subscriptions; with `verify`, every endpoint must consent, whatever the record of its subscription says.
    #[must_use]
    pub fn new(verify: bool) -> Self {
        Self {
            verify,
            ..Self::default()
        }
    }

    /// Folds the records of a subscription again after one of them changed at `timestamp`.
    fn fold(&mut self, id: &str, was: Option<State>, timestamp: Option<EpochMs>) -> Change {
        let found = self.applied.get_mut(&subscription_hash(id));
        let Some(now) = found.filter(|found| *found.id == *id) else {
            return Change::Nothing;
        };
        let side = self.side_records.get(id).unwrap_or(&SideRecords::EMPTY);
        let source = &now.source;
        let mut terms = now.applied();
        let mut version = source.applied.clone();
        let mut resumed_at = side.resumed_at;
        match &side.operator {
            Operator::Known(decision, hash) => {
                resumed_at = resumed_at.max(decision.resumed_at);
                if decision.is_on(&version) {
                    terms.state = decision.state.decided();
                    version = version.with(hash);
                } else if decision.state != State::Active && terms.state == State::Active {
                    // The apply that made the decision void has ended the pause.
                    resumed_at = resumed_at.max(source.timestamp);
                }
            }
            Operator::Unreadable if terms.state == State::Active => terms.state = State::Paused,
            Operator::Unreadable | Operator::None => {}
        }
        if let Some(disabled) = &side.disabled
            && disabled.version == version
        {
            terms.state = disabled.state.decided();
        }
        if self.verify || now.verify {
            let verification = side.verification.as_ref();
            match verification.and_then(|verification| verification.consent(&now.url)) {
                Some(consent) => terms.rate_limit = consent.rate_limit(terms.rate_limit),
                None if terms.state == State::Active => terms.state = State::Pending,
                None => {}
            }
        }
        if terms.state == State::Active && was.is_some_and(|was| was != State::Active) {
            resumed_at = resumed_at.max(timestamp);
            if timestamp.is_some() {
                let side = self.side_records.entry(id.into()).or_default();
                side.resumed_at = side.resumed_at.max(timestamp);
            }
        }
        let is_in_force = now.terms() == terms
            && now.resumed_at() == resumed_at
            && *now.source.version() == version;
        if !is_in_force {
            Arc::make_mut(now).decide(terms, version, resumed_at);
        }
        Change::Updated(Arc::clone(now))
    }

    fn state(&self, id: &str) -> Option<State> {
        self.get(id).map(|folded| folded.state)
    }

    /// Notes that the latest applied record is valid.
    fn mark_valid(&mut self, id: &str) {
        if let Some(side) = self.side_records.get_mut(id) {
            side.is_invalid = false;
        }
        self.remove_if_empty(id);
    }

    fn remove_if_empty(&mut self, id: &str) {
        if self.side_records.get(id).is_some_and(SideRecords::is_empty) {
            self.side_records.remove(id);
        }
    }

    /// Takes the next record.
    pub fn take(&mut self, record: &TopicRecord<'_>) -> Change {
        self.take_read(record.read(Kept::Whole, self.verify))
    }

    /// Takes the next record, which has been read.
    pub fn take_read(&mut self, read: ReadRecord<'_>) -> Change {
        let record = &read.record;
        match read.kind {
            Kind::Applied(id) => self.take_applied(id, record, read.applied),
            Kind::Verification(id) => self.take_verification(id, record),
            Kind::Decision(by, id) => self.take_decision(id, by, record),
            Kind::StartMarker(_) => Change::Nothing,
        }
    }

    fn take_applied(
        &mut self,
        id: &str,
        record: &TopicRecord<'_>,
        read: Option<Box<Applied>>,
    ) -> Change {
        let Some(applied) = read else {
            // Decisions end with their subscription: one that is created again begins anew.
            let had_side_records = self.side_records.remove(id).is_some();
            let was_applied = self.get(id).is_some();
            if was_applied {
                self.applied.remove(&subscription_hash(id));
            }
            return match was_applied || had_side_records {
                true => Change::Removed(id.into()),
                false => Change::Nothing,
            };
        };
        let before = self.get(id);
        if before.is_some_and(|before| is_outdated(before, record)) {
            return Change::Nothing;
        }
        let was = before.map(|before| before.state);
        let Applied { version, parsed } = *applied;
        if before.is_some_and(|before| is_same(before, &version, record)) {
            // Its timestamp stays: a tool that writes all records again and again must not move the end of a pause.
            self.mark_valid(id);
            return self.fold(id, was, record.timestamp);
        }
        let known = self.applied.get(&subscription_hash(id));
        let parsed = parsed.and_then(|parsed| match known {
            Some(other) if *other.id != *id => {
                Err(SubscriptionError::SameHash(other.id.as_str().into()))
            }
            Some(before) if before.subscriber != parsed.subscriber => {
                Err(SubscriptionError::SubscriberChanged {
                    from: before.subscriber.as_str().into(),
                    to: parsed.subscriber.as_str().into(),
                })
            }
            _ => Ok(parsed),
        });
        let subscription = match parsed {
            Ok(subscription) => self.interned.share(subscription),
            Err(error) => {
                if is_id(id) {
                    self.side_records.entry(id.into()).or_default().is_invalid = true;
                }
                return refused(error, was.is_some());
            }
        };
        self.mark_valid(id);
        self.applied.insert(subscription_hash(id), subscription);
        self.fold(id, was, record.timestamp)
    }

    fn take_verification(&mut self, id: &str, record: &TopicRecord<'_>) -> Change {
        if !is_id(id) {
            return not_about_any(id, record);
        }
        let read = record.value.map(|value| Verification::read(id, value));
        let was = self.state(id);
        let side = self.side_records.entry(id.into()).or_default();
        let problem = match read {
            None => {
                side.verification = None;
                None
            }
            Some(Ok(verification)) => {
                side.verification = Some(verification);
                None
            }
            // Without an earlier one, the endpoint has not consented.
            Some(Err(error)) => Some((error, side.verification.is_some())),
        };
        let change = self.fold(id, was, record.timestamp);
        self.settle(id, problem, change)
    }

    fn take_decision(&mut self, id: &str, by: Decider, record: &TopicRecord<'_>) -> Change {
        if !is_id(id) {
            return not_about_any(id, record);
        }
        let read = record.value.map(|value| Decision::read(id, value));
        let was = self.state(id);
        let side = self.side_records.entry(id.into()).or_default();
        let mut problem = None;
        match (by, read) {
            (Decider::Operator, None) => side.operator = Operator::None,
            (Decider::Operator, Some(Ok(decision))) => {
                let hash = digest(record.value.unwrap_or_default(), None);
                side.operator = Operator::Known(Box::new(decision), hash.into());
            }
            (Decider::Operator, Some(Err(error))) => {
                let in_force = matches!(side.operator, Operator::Known(..));
                if !in_force {
                    side.operator = Operator::Unreadable;
                }
                problem = Some((error, in_force));
            }
            (Decider::Hookstream, None) => side.disabled = None,
            (Decider::Hookstream, Some(Ok(decision))) => side.disabled = Some(decision),
            (Decider::Hookstream, Some(Err(error))) => {
                problem = Some((error, side.disabled.is_some()));
            }
        }
        let change = self.fold(id, was, record.timestamp);
        self.settle(id, problem, change)
    }

    /// What a record beside the applied one changes; `problem` is why it cannot be read, and whether an earlier one stays
    /// in force.
    fn settle(
        &mut self,
        id: &str,
        problem: Option<(SubscriptionError, bool)>,
        change: Change,
    ) -> Change {
        self.remove_if_empty(id);
        match (problem, change) {
            (None, change) => change,
            (Some((error, in_force)), Change::Updated(updated)) => Change::Refused {
                error,
                in_force,
                updated: Some(updated),
            },
            (Some((error, in_force)), _) => refused(error, in_force),
        }
    }

    /// A subscription.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Arc<Subscription>> {
        let found = self.applied.get(&subscription_hash(id));
        found.filter(|found| *found.id == *id)
    }

    /// The number of subscriptions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.applied.len()
    }

    /// Whether there are no subscriptions.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.applied.is_empty()
    }

    /// All subscriptions, in arbitrary order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Subscription>> {
        self.applied.values()
    }

    /// Whether the latest record of a subscription is invalid and no earlier one is known: the subscription exists, but
    /// is not known, so its commands wait.
    #[must_use]
    pub fn is_unknown(&self, id: &str) -> bool {
        let side = self.side_records.get(id);
        side.is_some_and(|side| side.is_invalid) && self.get(id).is_none()
    }

    /// The keys of the records beside the applied one of a subscription.
    #[must_use]
    pub fn decisions(&self, id: &str) -> Vec<String> {
        let Some(side) = self.side_records.get(id) else {
            return Vec::new();
        };
        let by_operator = !matches!(side.operator, Operator::None);
        let deciders = [
            (by_operator, Decider::Operator),
            (side.disabled.is_some(), Decider::Hookstream),
        ];
        let there = deciders.into_iter().filter(|(there, _)| *there);
        let decisions = there.map(|(_, by)| by.key(id));
        let verification = side.verification.as_ref();
        decisions
            .chain(verification.map(|_| Verification::key(id)))
            .collect()
    }

    /// Who put a subscription into its state, and when; `None` when that is the state in its applied record.
    #[must_use]
    pub fn decided_by(&self, id: &str) -> Option<(Decider, EpochMs)> {
        let source = &self.get(id)?.source;
        let side = self.side_records.get(id)?;
        if let Some(decision) = &side.disabled
            && decision.version == *source.version()
        {
            return Some((Decider::Hookstream, decision.at));
        }
        match &side.operator {
            Operator::Known(decision, _) if decision.is_on(&source.applied) => {
                Some((Decider::Operator, decision.at))
            }
            _ => None,
        }
    }
}

impl Fold {
    /// Why hookstream disabled a subscription that is disabled by it: `gone` or `failing`.
    #[must_use]
    pub fn disabled_because(&self, id: &str) -> Option<&str> {
        let disabled = self.side_records.get(id)?.disabled.as_ref()?;
        Some(disabled.reason.as_deref().unwrap_or("gone"))
    }

    /// What became of the last try to get the consent of a subscription's endpoint, if it needs one and was asked.
    #[must_use]
    pub fn verification(&self, id: &str) -> Option<&Verification> {
        let folded = self.get(id)?;
        let needed = self.verify || folded.verify;
        let side = self.side_records.get(id).filter(|_| needed)?;
        let last = side.verification.as_ref()?;
        (last.endpoint == verification::endpoint(&folded.url)).then_some(last)
    }
}

/// A record beside the applied one whose key names no subscription.
fn not_about_any(id: &str, record: &TopicRecord<'_>) -> Change {
    let problem = format!("key: {id:?} is not the id of a subscription");
    match record.value {
        None => Change::Nothing,
        Some(_) => refused(SubscriptionError::Invalid(vec![problem]), false),
    }
}

fn refused(error: SubscriptionError, in_force: bool) -> Change {
    Change::Refused {
        error,
        in_force,
        updated: None,
    }
}

/// Whether `record` is the same version in the same partition.
fn is_same(before: &Subscription, version: &Version, record: &TopicRecord<'_>) -> bool {
    let source = &before.source;
    source.applied == *version && source.partition == record.partition
}

/// Whether `record` is older than one of another partition: after partitions were added, a key may have records in two,
/// which are read in any order.
fn is_outdated(before: &Subscription, record: &TopicRecord<'_>) -> bool {
    let times = record.timestamp.zip(before.source.timestamp);
    before.source.partition != record.partition && times.is_some_and(|(time, before)| time < before)
}

/// Whether a text may be the id of a subscription.
#[must_use]
pub fn is_id(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    (1..=MAX_ID).contains(&text.len()) && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests;
