//! Replays the events of a time range to chosen subscriptions: what fan-out would write for them now, with the same
//! webhook ids, so that receivers recognise what they have.
//!
//! The range is by the times of the events' records. A run keeps its position in each partition as committed offsets of a
//! group of its own, named after what it replays, in the transactions that write the commands. So a run that is repeated
//! goes on where the last one ended, and one that is complete sends nothing. A transactional id of the same name excludes
//! other runs of the same replay; different ones work at the same time. Kafka forgets such a group after seven days.
//!
//! Memory: one batch.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{BorrowedMessage, Message, OwnedHeaders};

use super::plan::{MAX_BATCH, MAX_BATCH_BYTES, Progress, ReplayError, pause};
use super::survey::Way;
use crate::config::{Guarantee, Settings};
use crate::edge::clock;
use crate::edge::kafka::client::consumer_config;
use crate::edge::kafka::credentials::give_once;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log::{LogContext, LoggedConsumer};
use crate::edge::kafka::log_reader::{ANSWER, Log, Range, Reading, positions_of};
use crate::edge::kafka::member::commit_list;
use crate::edge::kafka::producer::{BatchError, Producer, Record};
use crate::edge::kafka::record::{command_headers, each_header};
use crate::edge::port::records::{Commit, RecordView, TopicPartition};
use crate::edge::schema_values::{Schemas, Undecoded};
use crate::model::command::{Cause, Envelope};
use crate::model::event::{self, Event, RawEvent, record_time};
use crate::model::matching::Index;
use crate::model::subscription::{Subscription, TypePattern};
use crate::model::units::{EpochMs, Position};

const PURPOSE: &str = "replay-events";

/// How far behind the end of the range a record of it may lie: publishers write with clocks of their own.
const DISORDER: Duration = Duration::from_secs(3600);

/// Which events, for whom, and how fast.
#[derive(Clone, Debug)]
pub struct EventPlan {
    /// The first time of the range.
    pub from: EpochMs,
    /// The end of the range, exclusive.
    pub to: EpochMs,
    /// The subscriptions; each gets the events that match it.
    pub subscriptions: Vec<Arc<Subscription>>,
    /// Only events of this type.
    pub event_type: Option<TypePattern>,
    /// Only this event.
    pub event_id: Option<String>,
    /// Maximum number of commands.
    pub limit: Option<u64>,
    /// Time between two commands, averaged over a batch.
    pub pace: Option<Duration>,
    /// Begins again, whatever earlier runs have done.
    pub again: bool,
}

impl EventPlan {
    /// What tells this replay from others: the range, the subscriptions and the filters.
    #[must_use]
    pub fn name(&self) -> String {
        let mut ids: Vec<&str> = self.subscriptions.iter().map(|one| &*one.id).collect();
        ids.sort_unstable();
        let text = format!(
            "{} {} {ids:?} {:?} {:?}",
            self.from, self.to, self.event_type, self.event_id
        );
        // Two halves, since the checksum of 32 bits alone may repeat.
        let first = crc32fast::hash(text.as_bytes());
        let second = crc32fast::hash(format!("{text}#").as_bytes());
        format!("{first:08x}{second:08x}")
    }

    fn batch(&self) -> usize {
        let due = |pace: Duration| (1.0 / pace.as_secs_f64().max(1e-9)) as usize;
        self.pace
            .map_or(MAX_BATCH, |pace| due(pace).clamp(1, MAX_BATCH))
    }
}

/// What a run did, or a preview would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventCounts {
    /// Events of the range that were read.
    pub events: u64,
    /// Commands by subscription.
    pub commands: BTreeMap<String, u64>,
    /// Records that are not events: fan-out sets them aside.
    pub invalid: u64,
    /// Events that were read by earlier runs of the same replay, in offsets.
    pub done_before: u64,
    /// Commands that are too large to be written.
    pub too_large: u64,
    /// Values that could not be decoded.
    pub undecoded: Undecoded,
}

impl EventCounts {
    /// The number of commands.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.commands.values().sum()
    }
}

/// Replays events, or counts what would be replayed if `dry_run`. `stop` is checked between events; the current batch is
/// completed first.
pub fn replay_events(
    settings: &Settings,
    plan: &EventPlan,
    dry_run: bool,
    stop: &dyn Fn() -> bool,
    report: &mut dyn FnMut(Progress),
) -> (EventCounts, Result<Reading, ReplayError>) {
    let mut counts = EventCounts::default();
    let result = run(settings, plan, dry_run, stop, report, &mut counts);
    (counts, result)
}

fn run(
    settings: &Settings,
    plan: &EventPlan,
    dry_run: bool,
    stop: &dyn Fn() -> bool,
    report: &mut dyn FnMut(Progress),
    counts: &mut EventCounts,
) -> Result<Reading, ReplayError> {
    let group = format!("{}{PURPOSE}-{}", settings.group_prefix, plan.name());
    // Before a producer, which would wait for brokers and topics instead of failing.
    let mut topics = Vec::new();
    for topic in &settings.topics.events {
        topics.push(Log::open(settings, topic.clone(), PURPOSE)?);
    }
    drop(Log::open(settings, settings.topics.commands(), PURPOSE)?);
    let writer = if dry_run {
        None
    } else {
        Some(Writer::new(settings, &group)?)
    };
    let mut replay = Replay {
        settings,
        plan,
        schemas: Schemas::start(settings),
        index: Index::new(),
        counts,
        writer,
        batch: Vec::new(),
        bytes: 0,
        positions: BTreeMap::new(),
        way: Way::over([]),
    };
    for subscription in &plan.subscriptions {
        replay.index.insert(Arc::clone(subscription));
    }
    let mut reading = Reading::Complete;
    for log in &topics {
        let ranges = replay.ranges(log, &group)?;
        reading = replay.read(log, &ranges, stop, report)?;
        if reading == Reading::Stopped || replay.is_reached() {
            break;
        }
    }
    if !stop() {
        replay.flush(stop)?;
        report(replay.progress());
    }
    let reached = replay.is_reached();
    replay.counts.undecoded = replay.schemas.into_undecoded();
    Ok(if reached { Reading::Complete } else { reading })
}

/// A command to write.
struct Pending {
    subscriber: String,
    subscription: String,
    headers: OwnedHeaders,
    body: Vec<u8>,
}

struct Replay<'a> {
    settings: &'a Settings,
    plan: &'a EventPlan,
    schemas: Schemas,
    index: Index,
    counts: &'a mut EventCounts,
    /// None in a preview.
    writer: Option<Writer>,
    batch: Vec<Pending>,
    bytes: usize,
    /// Behind the last event of the batch, by partition.
    positions: BTreeMap<(String, i32), i64>,
    way: Way,
}

impl Replay<'_> {
    /// The part of each partition that is to be read: the time range, behind what earlier runs have done.
    fn ranges(&mut self, log: &Log, group: &str) -> Result<Vec<Range>, Failure> {
        let ends = log.stable_ends()?;
        let from = log.since(&ends, self.plan.from)?;
        let late = EpochMs(self.plan.to.0.saturating_add(DISORDER.as_millis() as i64));
        let to = log.since(&ends, late)?;
        let partitions: Vec<TopicPartition> = ends
            .iter()
            .map(|range| TopicPartition {
                topic: log.topic().into(),
                partition: range.partition,
            })
            .collect();
        let done = if self.plan.again {
            vec![None; partitions.len()]
        } else {
            positions_of(self.settings, group, PURPOSE, &partitions, ANSWER)?
        };
        let ranges: Vec<Range> = from
            .iter()
            .zip(&to)
            .zip(done)
            .map(|((from, to), done)| {
                let end = to.low.max(from.low);
                let low = done.map_or(from.low, |done| done.0.clamp(from.low, end));
                self.counts.done_before += u64::try_from(low - from.low).unwrap_or(0);
                Range {
                    low,
                    end,
                    partition: from.partition,
                }
            })
            .collect();
        self.way = Way::over(&ranges);
        Ok(ranges)
    }

    fn progress(&self) -> Progress {
        Progress {
            replayed: self.counts.total(),
            ..self.way.progress(true)
        }
    }

    fn is_reached(&self) -> bool {
        let taken = self.counts.total() + self.batch.len() as u64;
        self.plan.limit.is_some_and(|limit| taken >= limit)
    }

    fn read(
        &mut self,
        log: &Log,
        ranges: &[Range],
        stop: &dyn Fn() -> bool,
        report: &mut dyn FnMut(Progress),
    ) -> Result<Reading, ReplayError> {
        report(self.progress());
        let reading = log.read::<ReplayError>(ranges, stop, |message| {
            self.way
                .pass(Message::partition(message), Message::offset(message));
            self.take(message, stop);
            let at = (
                Message::topic(message).to_owned(),
                Message::partition(message),
            );
            self.positions.insert(at, Message::offset(message) + 1);
            if self.batch.len() >= self.plan.batch() || self.bytes >= MAX_BATCH_BYTES {
                report(Progress {
                    committing: true,
                    ..self.progress()
                });
                self.flush(stop)?;
            }
            report(self.progress());
            Ok(if self.is_reached() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        })?;
        if reading == Reading::Complete {
            // Also behind the ends of transactions, so that a complete replay is known as such.
            for range in ranges.iter().filter(|range| range.low < range.end) {
                self.positions
                    .insert((log.topic().to_owned(), range.partition), range.end);
            }
            self.way.end(true);
        }
        Ok(reading)
    }

    /// Takes the commands of an event to the batch.
    fn take(&mut self, message: &BorrowedMessage<'_>, stop: &dyn Fn() -> bool) {
        let stated = RecordView::timestamp(message).map(|at| at.0);
        let (time, _) = record_time(stated, clock::now());
        if time < self.plan.from || time >= self.plan.to {
            return;
        }
        let mut headers: Vec<(&str, &[u8])> = each_header(message)
            .filter_map(|(name, value)| Some((name, value?)))
            .collect();
        let payload = Message::payload(message);
        let json = self.schemas.json(payload, &mut headers, true, stop);
        let raw = RawEvent {
            topic: Message::topic(message),
            key: Message::key(message),
            payload: json.as_deref().or(payload),
            headers: &headers,
            timestamp: time,
        };
        let mapping = self.settings.event_mappings.get(Message::topic(message));
        if raw.is_skipped(mapping) {
            return;
        }
        let limit = self.settings.max_event_bytes;
        let event = match mapping {
            None => event::read(&raw, limit),
            Some(mapping) => event::read_mapped(&raw, mapping, limit),
        };
        let Ok(event) = event else {
            self.counts.invalid += 1;
            return;
        };
        self.counts.events += 1;
        let (event_type, event_id) = (&self.plan.event_type, &self.plan.event_id);
        if event_type
            .as_ref()
            .is_some_and(|pattern| !pattern.matches(event.event_type()))
            || event_id.as_ref().is_some_and(|id| id != event.id())
        {
            return;
        }
        let mut matching = Vec::new();
        self.index.matching(&event, &mut matching);
        for subscription in &matching {
            let pending = pending(&event, subscription, clock::now());
            self.bytes += pending.body.len();
            self.batch.push(pending);
        }
    }

    fn flush(&mut self, stop: &dyn Fn() -> bool) -> Result<(), ReplayError> {
        let mut batch = std::mem::take(&mut self.batch);
        let positions = std::mem::take(&mut self.positions);
        self.bytes = 0;
        if let Some(writer) = &mut self.writer {
            self.counts.too_large += writer.write(&mut batch, positions)?;
        }
        let written = batch.len();
        for pending in batch {
            *self
                .counts
                .commands
                .entry(pending.subscription)
                .or_default() += 1;
        }
        if let Some(pace) = self.plan.pace
            && self.writer.is_some()
        {
            pause(
                pace.saturating_mul(u32::try_from(written).unwrap_or(u32::MAX)),
                stop,
            );
        }
        Ok(())
    }
}

/// The command of an event for a subscription, as fan-out makes it, but of cause `replay`.
fn pending(event: &Event<'_>, subscription: &Subscription, now: EpochMs) -> Pending {
    let webhook_id = event.webhook_id(&subscription.id);
    let envelope = Envelope {
        webhook_id: &webhook_id,
        subscription: &subscription.id,
        event_id: event.id(),
        event_type: event.event_type(),
        event_time: event.time(),
        subject: event.subject(),
        content_type: subscription.format.content_type(),
        attempt: 0,
        due: None,
        enqueued: now,
        recorded: Some(event.received()),
        cause: Cause::Replay,
        first_failure: None,
        last_failure: None,
        replayed: Some(now),
        sequence: None,
        cluster: None,
        traceparent: event.traceparent(),
    };
    Pending {
        subscriber: subscription.subscriber.to_string(),
        subscription: subscription.id.to_string(),
        headers: command_headers(&envelope),
        body: event.body(subscription.format),
    }
}

/// Writes commands, and how far the events were read.
struct Writer {
    guarantee: Guarantee,
    commands: String,
    producer: Producer,
    /// A client of the group, which it never joins.
    client: BaseConsumer<LoggedConsumer>,
    group: String,
}

impl Writer {
    fn new(settings: &Settings, group: &str) -> Result<Self, Failure> {
        let client: BaseConsumer<LoggedConsumer> = consumer_config(settings, PURPOSE, group)
            .create_with_context(LoggedConsumer(LogContext::new(PURPOSE)))
            .map_err(|error| Failure::from_client("creating a client", error))?;
        give_once(&settings.credentials, client.client());
        Ok(Self {
            guarantee: settings.guarantee,
            commands: settings.topics.commands(),
            producer: Producer::sole_with_id(settings, PURPOSE, group.to_owned())?,
            client,
            group: group.to_owned(),
        })
    }

    /// Returns how many commands are too large for the client; they are taken out of the batch.
    fn write(
        &mut self,
        batch: &mut Vec<Pending>,
        positions: BTreeMap<(String, i32), i64>,
    ) -> Result<u64, ReplayError> {
        let commits: Vec<Commit> = positions
            .into_iter()
            .map(|((topic, partition), position)| Commit {
                at: TopicPartition {
                    topic: topic.into(),
                    partition,
                },
                position: Position(position),
                metadata: String::new(),
            })
            .collect();
        if commits.is_empty() {
            return Ok(0);
        }
        let result = self.send(batch, &commits);
        result.map_err(|error| self.explain(error))
    }

    fn send(&mut self, batch: &mut Vec<Pending>, commits: &[Commit]) -> Result<u64, BatchError> {
        let (mut tag, mut too_large) = (0, 0);
        while let Some(pending) = batch.get(tag) {
            let sent = self.producer.send(Record {
                topic: &self.commands,
                partition: None,
                key: Some(pending.subscriber.as_bytes()),
                value: Some(&pending.body),
                headers: pending.headers.clone(),
                tag,
            });
            match sent {
                Ok(()) => tag += 1,
                Err(BatchError::TooLarge { at_once: true, .. }) => {
                    too_large += 1;
                    batch.remove(tag);
                }
                Err(error) => return Err(error),
            }
        }
        // Of no generation: a broker accepts that in a transaction.
        let group = self.client.group_metadata();
        self.producer.finish(commits, group.as_ref())?;
        if self.guarantee == Guarantee::AtLeastOnce {
            let failed = |error| {
                Failure::from_client(format!("committing offsets of {}", self.group), error)
            };
            let list = commit_list(commits).map_err(failed)?;
            self.client
                .commit(&list, CommitMode::Sync)
                .map_err(failed)?;
        }
        Ok(too_large)
    }

    fn explain(&self, error: BatchError) -> ReplayError {
        ReplayError::of_batch(&self.producer, error, |_| {
            let text = format!(
                "a command exceeds the size limit of {}; raise its max.message.bytes (see `hookstream topics check`)",
                self.commands
            );
            Some(Failure::Internal(text).into())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::subscription::parse;

    /// Headers as texts.
    fn pairs(headers: &OwnedHeaders) -> Vec<(String, String)> {
        use rdkafka::message::Headers as _;
        let text =
            |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
        let each = headers.iter();
        each.map(|header| (header.key.to_owned(), text(header.value)))
            .collect()
    }

    fn plan(ids: &[&str]) -> EventPlan {
        let one = |id: &&str| {
            let json = format!(
                r#"{{"id":"{id}","subscriber":"s","url":"https://a.example/","events":["**"]}}"#
            );
            Arc::new(parse(None, json.as_bytes()).unwrap())
        };
        EventPlan {
            from: EpochMs(1),
            to: EpochMs(2),
            subscriptions: ids.iter().map(one).collect(),
            event_type: None,
            event_id: None,
            limit: None,
            pace: None,
            again: false,
        }
    }

    #[test]
    fn a_replay_is_known_by_what_it_sends_and_not_by_how_fast() {
        let name = plan(&["a", "b"]).name();
        assert_eq!(plan(&["b", "a"]).name(), name);
        let slow = EventPlan {
            pace: Some(Duration::from_secs(1)),
            limit: Some(3),
            ..plan(&["a", "b"])
        };
        assert_eq!(slow.name(), name);
        assert_ne!(plan(&["a"]).name(), name);
        let longer = EventPlan {
            to: EpochMs(3),
            ..plan(&["a", "b"])
        };
        assert_ne!(longer.name(), name);
    }

    #[test]
    fn a_replayed_command_has_the_webhook_id_and_body_of_the_first_one() {
        let raw = RawEvent {
            topic: "order-events",
            key: None,
            payload: Some(br#"{"id":"1","type":"a","data":1}"#),
            headers: &[],
            timestamp: EpochMs(5),
        };
        let event = event::read(&raw, 1000).unwrap();
        let plan = plan(&["a"]);
        let pending = pending(&event, &plan.subscriptions[0], EpochMs(9));
        assert_eq!(pending.body, event.body(plan.subscriptions[0].format));
        let headers = pairs(&pending.headers);
        let value = |name: &str| {
            headers
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.as_str())
        };
        assert_eq!(value("webhook-id"), Some(event.webhook_id("a").as_str()));
        assert_eq!(value("hs-cause"), Some("replay"));
        assert_eq!(
            (value("hs-replayed"), value("hs-recorded")),
            (Some("9"), Some("5"))
        );
    }
}
