//! Outcomes as records: which topic each goes to, its key and its headers.

use std::sync::Arc;

use super::partition::effect::Outcome;
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::record::{command_headers, copied, with_header};
use crate::edge::kafka::subscription_cache::{Known, SubscriptionCache};
use crate::edge::port::Producer;
use crate::edge::port::failure::BatchError;
use crate::edge::port::records::{Headers, Record};
use crate::model::command::{Command, Envelope};
use crate::model::invalid_record::InvalidRecord;
use crate::model::notice::Notice;
use crate::model::partitioner::key_hash;
use crate::model::status::Status;
use crate::model::subscription::verification::Verification;
use crate::model::subscription::{Decider, Decision, DisabledBecause, Subscription};

/// The topics that outcomes are written to, numbered: the tiers, dead letters, invalid events, subscriptions, statuses, notices.
pub(super) struct OutcomeTopics(Vec<Arc<str>>);

/// How many of them are not tiers.
const OTHERS: usize = 5;

impl OutcomeTopics {
    pub(super) fn new(settings: &Settings) -> Self {
        let mut all = settings.retry_topics();
        let topics = &settings.topics;
        all.extend([
            topics.dead_letters(),
            topics.invalid_events(),
            topics.subscriptions(),
            topics.status(),
            topics.notices(),
        ]);
        Self(all.into_iter().map(Arc::from).collect())
    }

    pub(super) fn name(&self, topic: usize) -> &Arc<str> {
        &self.0[topic]
    }

    fn status(&self) -> &str {
        &self.0[self.0.len() - 2]
    }

    fn notices(&self) -> &str {
        &self.0[self.0.len() - 1]
    }

    /// The number of an outcome's topic, and the hash of its key there.
    pub(super) fn of(&self, outcome: &Outcome) -> (usize, u32) {
        let dead_letters = self.0.len() - OTHERS;
        let command_hash = |command: &Command| key_hash(command.subscriber.as_bytes());
        match outcome {
            Outcome::Tier(tier, command) => (*tier, command_hash(command)),
            Outcome::DeadLetter(command, _) => (dead_letters, command_hash(command)),
            Outcome::Invalid(record) => (dead_letters + 1, invalid_hash(record)),
            Outcome::Disable(subscription, ..) | Outcome::Verification(subscription, _) => {
                (dead_letters + 2, key_hash(subscription.id.as_bytes()))
            }
            Outcome::Notice(notice, _) => {
                (dead_letters + 4, key_hash(notice.subscriber.as_bytes()))
            }
            Outcome::Status(status) => (dead_letters + 3, key_hash(status.subscription.as_bytes())),
        }
    }
}

/// A record without a key goes to a partition by where it was read.
fn invalid_hash(record: &InvalidRecord) -> u32 {
    let place = || format!("{} {}:{}", record.topic, record.partition, record.offset);
    match &record.key {
        Some(key) => key_hash(key),
        None => key_hash(place().as_bytes()),
    }
}

/// Where a record goes.
pub(super) struct Destination<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: Option<i32>,
    pub(super) tag: usize,
}

/// Sends the record of an outcome.
pub(super) async fn write(
    producer: &mut impl Producer,
    outcome: &Outcome,
    to: Destination<'_>,
    topics: &OutcomeTopics,
    table: &SubscriptionCache,
) -> Result<(), BatchError> {
    match outcome {
        Outcome::Tier(_, command) => {
            let headers = command_headers(&command.envelope());
            write_command(producer, command, headers, to).await
        }
        Outcome::DeadLetter(command, info) => {
            let headers = info
                .headers()
                .iter()
                .fold(dead_letter_headers(command), |headers, (name, value)| {
                    with_header(headers, name, value)
                });
            write_command(producer, command, headers, to).await
        }
        Outcome::Invalid(record) => match record.copy() {
            Some(copy) => {
                let record = Record {
                    partition: to.partition,
                    ..copied(&copy, to.topic, to.tag)
                };
                producer.send(record).await
            }
            None => Ok(()),
        },
        Outcome::Status(status) => write_status(producer, status, to).await,
        Outcome::Verification(asked, verification) => {
            write_verification(producer, asked, verification, to, table).await
        }
        Outcome::Notice(notice, status) => {
            let tag = to.tag;
            write_notice(producer, notice, to).await?;
            let to = Destination {
                topic: topics.status(),
                partition: None,
                tag,
            };
            write_status(producer, status, to).await
        }
        Outcome::Disable(decided_on, because, notice) => {
            let tag = to.tag;
            let is_written = write_disabled(producer, decided_on, *because, to, table).await?;
            match notice {
                Some(notice) if is_written => {
                    let to = Destination {
                        topic: topics.notices(),
                        partition: None,
                        tag,
                    };
                    write_notice(producer, notice, to).await
                }
                _ => Ok(()),
            }
        }
    }
}

/// Sends a record without headers.
async fn write_value<P: Producer>(
    producer: &mut P,
    key: &str,
    value: &[u8],
    to: Destination<'_>,
) -> Result<(), BatchError> {
    let record = Record {
        topic: to.topic,
        partition: to.partition,
        key: Some(key.as_bytes()),
        value: Some(value),
        headers: P::Headers::default(),
        tag: to.tag,
    };
    producer.send(record).await
}

async fn write_notice(
    producer: &mut impl Producer,
    notice: &Notice,
    to: Destination<'_>,
) -> Result<(), BatchError> {
    write_value(producer, &notice.subscriber, &notice.to_json(), to).await
}

async fn write_status(
    producer: &mut impl Producer,
    status: &Status,
    to: Destination<'_>,
) -> Result<(), BatchError> {
    write_value(producer, &status.subscription, &status.to_json(), to).await
}

async fn write_command<P: Producer>(
    producer: &mut P,
    command: &Command,
    headers: P::Headers,
    to: Destination<'_>,
) -> Result<(), BatchError> {
    let record = Record {
        topic: to.topic,
        partition: to.partition,
        key: Some(command.subscriber.as_bytes()),
        value: Some(&command.body),
        headers,
        tag: to.tag,
    };
    producer.send(record).await
}

/// Writes the decision to disable a subscription. It names what it was made on, so an apply or a resume that comes first,
/// or at the same time, prevails, whatever this replica has read of it. Returns whether it was written.
async fn write_disabled(
    producer: &mut impl Producer,
    decided_on: &Arc<Subscription>,
    because: DisabledBecause,
    to: Destination<'_>,
    table: &SubscriptionCache,
) -> Result<bool, BatchError> {
    let id = &*decided_on.id;
    let now = table.get(id);
    if !matches!(now, Known::Valid(now) if now.source.is_same(&decided_on.source)) {
        tracing::info!(
            subscription = id,
            "not disabled: the subscription has changed"
        );
        return Ok(false);
    }
    let key = Decider::Hookstream.key(id);
    let value = Decision::disabled(decided_on, because, clock::now()).to_json();
    let to = Destination {
        partition: decided_on.source.partition,
        ..to
    };
    write_value(producer, &key, &value, to).await?;
    Ok(true)
}

/// Writes whether an endpoint consents. The record names the URL that was asked: readers that know another one ignore it.
async fn write_verification(
    producer: &mut impl Producer,
    asked: &Subscription,
    verification: &Verification,
    to: Destination<'_>,
    table: &SubscriptionCache,
) -> Result<(), BatchError> {
    let now = table.get(&asked.id);
    if !matches!(now, Known::Valid(now) if now.url == asked.url) {
        return Ok(());
    }
    let to = Destination {
        partition: asked.source.partition,
        ..to
    };
    let key = Verification::key(&asked.id);
    write_value(producer, &key, &verification.to_json(), to).await
}

fn dead_letter_headers<H: Headers>(command: &Command) -> H {
    // The dead letter's own first-failure header replaces the command's, and a replay gets a new sequence.
    command_headers(&Envelope {
        first_failure: None,
        sequence: None,
        cluster: None,
        ..command.envelope()
    })
}
