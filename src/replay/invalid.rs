//! Records that were set aside: read, and written to their topics again, each once.
//!
//! The record and the fact that its copy was replayed are written in one transaction. As in a replay of dead letters, a
//! shared transactional id excludes other runs, and the topic is read after it was taken.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use rdkafka::message::{BorrowedMessage, Message, OwnedHeaders};

use super::plan::{MAX_BATCH, MAX_BATCH_BYTES, ReplayError};
use super::records::place;
use crate::config::{Guarantee, Settings};
use crate::edge::clock;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log_reader::{Log, Range, Reading};
use crate::edge::kafka::producer::{BatchError, Producer, Record};
use crate::edge::kafka::record::{header_pairs, text_headers};
use crate::edge::port::records::{Headers as _, RecordView};
use crate::model::dead_letter::Coordinates;
use crate::model::set_aside::{Origin, SetAside, original_headers, replayed_headers};
use crate::model::units::EpochMs;

const PURPOSE: &str = "replay-invalid";

/// A record that was set aside.
#[derive(Clone, Debug)]
pub struct InvalidCopy {
    /// Where its copy is, in `webhook-invalid-events`.
    pub at: Coordinates,
    /// When it was set aside.
    pub time: EpochMs,
    /// Where it is from, and why it was set aside.
    pub origin: Origin,
    /// When it was replayed, if it was.
    pub replayed: Option<EpochMs>,
    /// The record: the original, or its head.
    pub raw: RawRecord,
}

/// Key, headers and value of a record. Names of headers that are not UTF-8 are replaced where the copy was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawRecord {
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The headers.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// The value.
    pub value: Option<Vec<u8>>,
}

impl RawRecord {
    fn of(message: &BorrowedMessage<'_>) -> Self {
        let headers = RecordView::headers(message);
        let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        Self {
            key: Message::key(message).map(<[u8]>::to_vec),
            headers: headers
                .map(|(name, value)| (text(name), value.map(<[u8]>::to_vec)))
                .collect(),
            value: Message::payload(message).map(<[u8]>::to_vec),
        }
    }

    fn bytes(&self) -> usize {
        self.value.as_ref().map_or(0, Vec::len)
    }
}

/// Which of them.
#[derive(Clone, Debug, Default)]
pub struct InvalidFilter {
    /// Of this topic.
    pub topic: Option<String>,
    /// Whose error contains this text, whatever the case of its ASCII letters.
    pub error_contains: Option<String>,
    /// Set aside at this time or later.
    pub since: Option<EpochMs>,
    /// Set aside before this time.
    pub until: Option<EpochMs>,
    /// At one of these places; any, if there is none.
    pub places: Vec<Coordinates>,
}

impl InvalidFilter {
    /// Whether it takes this one.
    #[must_use]
    pub fn matches(&self, copy: &InvalidCopy) -> bool {
        let error = copy.origin.error.to_ascii_lowercase();
        let part = self.error_contains.as_ref();
        self.topic
            .as_ref()
            .is_none_or(|topic| *topic == copy.origin.topic)
            && part.is_none_or(|part| error.contains(&part.to_ascii_lowercase()))
            && self.since.is_none_or(|since| copy.time >= since)
            && self.until.is_none_or(|until| copy.time < until)
            && (self.places.is_empty() || self.places.contains(&copy.at))
    }
}

/// The topic of records that were set aside.
pub struct InvalidLog {
    log: Log,
    ends: Vec<Range>,
    replayed: HashMap<Coordinates, EpochMs>,
}

impl InvalidLog {
    /// Opens it, and reads which copies were replayed.
    ///
    /// # Errors
    /// [`Failure`] when the topic cannot be read.
    pub fn open(settings: &Settings) -> Result<Self, Failure> {
        let log = Log::open(settings, settings.topics.invalid_events(), PURPOSE)?;
        let ends = log.stable_ends()?;
        Self::of(log, ends)
    }

    fn of(log: Log, ends: Vec<Range>) -> Result<Self, Failure> {
        let mut replayed = HashMap::new();
        log.read::<Failure>(&ends, &|| false, |message| {
            if let Ok(SetAside::Replayed { copy, at }) = SetAside::read(&header_pairs(message)) {
                replayed.entry(copy).or_insert(at);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(Self {
            log,
            ends,
            replayed,
        })
    }

    /// Visits the copies that the filter takes, and returns how many records are none.
    ///
    /// # Errors
    /// The error of `visit`; a [`Failure`] when the topic cannot be read.
    pub fn read<E: From<Failure>>(
        &self,
        filter: &InvalidFilter,
        stop: &dyn Fn() -> bool,
        mut visit: impl FnMut(InvalidCopy) -> Result<ControlFlow<()>, E>,
    ) -> Result<(u64, Reading), E> {
        let mut unreadable = 0;
        let reading = self.log.read::<E>(&self.ends, stop, |message| {
            let origin = match SetAside::read(&header_pairs(message)) {
                Ok(SetAside::Copy(origin)) => origin,
                Ok(SetAside::Replayed { .. }) => return Ok(ControlFlow::Continue(())),
                Err(error) => {
                    tracing::warn!(record = %place(message), "unreadable record in the topic of invalid events: {error}");
                    unreadable += 1;
                    return Ok(ControlFlow::Continue(()));
                }
            };
            let at = place(message);
            let copy = InvalidCopy {
                at,
                time: RecordView::timestamp(message).unwrap_or(EpochMs(0)),
                origin,
                replayed: self.replayed.get(&at).copied(),
                raw: RawRecord::of(message),
            };
            if filter.matches(&copy) {
                visit(copy)
            } else {
                Ok(ControlFlow::Continue(()))
            }
        })?;
        Ok((unreadable, reading))
    }
}

/// What became of the records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InvalidReplay {
    /// Written again, by topic.
    pub replayed: BTreeMap<String, u64>,
    /// Left: the copy is not whole, and the original has expired.
    pub expired: Vec<Coordinates>,
    /// Left: the topic is none that hookstream reads, by its name.
    pub foreign: BTreeMap<String, u64>,
    /// Left: too large for the topic or the client.
    pub too_large: Vec<Coordinates>,
}

impl InvalidReplay {
    /// How many were written.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.replayed.values().sum()
    }
}

/// Writes the open records that `filter` takes to their topics again, at most `limit`.
///
/// # Errors
/// [`ReplayError`]; what is counted is durably replayed.
pub fn replay_invalid(
    settings: &Settings,
    filter: &InvalidFilter,
    limit: Option<u64>,
    dry_run: bool,
    stop: &dyn Fn() -> bool,
) -> (InvalidReplay, Result<Reading, ReplayError>) {
    let mut done = InvalidReplay::default();
    let result = run(settings, filter, limit, dry_run, stop, &mut done);
    (done, result)
}

fn run(
    settings: &Settings,
    filter: &InvalidFilter,
    limit: Option<u64>,
    dry_run: bool,
    stop: &dyn Fn() -> bool,
    done: &mut InvalidReplay,
) -> Result<Reading, ReplayError> {
    let log = Log::open(settings, settings.topics.invalid_events(), PURPOSE)?;
    let producer = (!dry_run)
        .then(|| Producer::sole(settings, PURPOSE))
        .transpose()?;
    let ends = log.high_watermarks(stop)?;
    let topic = log.topic().to_owned();
    let log = InvalidLog::of(log, ends)?;
    let mut writer = Writer {
        settings,
        topic,
        producer,
        originals: HashMap::new(),
        batch: Vec::new(),
        bytes: 0,
    };
    let (_, reading) = log.read::<ReplayError>(filter, stop, |copy| {
        let taken = done.count() + writer.batch.len() as u64;
        if limit.is_some_and(|limit| taken >= limit) {
            return Ok(ControlFlow::Break(()));
        }
        if copy.replayed.is_none() {
            writer.take(copy, done)?;
            if writer.batch.len() >= MAX_BATCH || writer.bytes >= MAX_BATCH_BYTES {
                writer.flush(done)?;
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if stop() {
        return Ok(Reading::Stopped);
    }
    writer.flush(done)?;
    let reached = limit.is_some_and(|limit| done.count() >= limit);
    Ok(if reached { Reading::Complete } else { reading })
}

struct Writer<'a> {
    settings: &'a Settings,
    topic: String,
    producer: Option<Producer>,
    /// Readers of the topics of originals whose copies are not whole.
    originals: HashMap<String, Log>,
    batch: Vec<(InvalidCopy, RawRecord)>,
    bytes: usize,
}

impl Writer<'_> {
    fn take(&mut self, copy: InvalidCopy, done: &mut InvalidReplay) -> Result<(), Failure> {
        let topic = &copy.origin.topic;
        // The header is data: it must not lead to any topic.
        if !self.settings.topics.events.contains(topic) && !is_own(self.settings, topic) {
            *done.foreign.entry(topic.clone()).or_default() += 1;
            return Ok(());
        }
        let original = if copy.origin.truncated.is_some() {
            self.original(&copy.origin)?
        } else {
            let names: Vec<&String> = copy.raw.headers.iter().map(|(name, _)| name).collect();
            let mut record = copy.raw.clone();
            record.headers.truncate(original_headers(&names));
            Some(record)
        };
        let Some(record) = original else {
            done.expired.push(copy.at);
            return Ok(());
        };
        self.bytes += record.bytes();
        self.batch.push((copy, record));
        Ok(())
    }

    /// Reads a record by its coordinates; `None` if it has expired.
    fn original(&mut self, origin: &Origin) -> Result<Option<RawRecord>, Failure> {
        if !self.originals.contains_key(&origin.topic) {
            let log = Log::open(self.settings, origin.topic.clone(), PURPOSE)?;
            self.originals.insert(origin.topic.clone(), log);
        }
        let Some(log) = self.originals.get(&origin.topic) else {
            return Ok(None);
        };
        let at = origin.offset.0;
        let all = log.stable_ends()?;
        let holds = |range: &&Range| {
            range.partition == origin.partition && range.low <= at && at < range.end
        };
        let Some(range) = all.iter().find(holds) else {
            return Ok(None);
        };
        let one = Range {
            low: at,
            end: at + 1,
            ..*range
        };
        let mut found = None;
        log.read::<Failure>(&[one], &|| false, |message| {
            if Message::offset(message) == at {
                found = Some(RawRecord::of(message));
            }
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }

    fn flush(&mut self, done: &mut InvalidReplay) -> Result<(), ReplayError> {
        let mut batch = std::mem::take(&mut self.batch);
        self.bytes = 0;
        if batch.is_empty() {
            return Ok(());
        }
        if let Some(producer) = &mut self.producer {
            let result = write(
                producer,
                self.settings.guarantee,
                &self.topic,
                &mut batch,
                done,
            );
            result.map_err(|error| explain(producer, error, &batch))?;
        }
        for (copy, _) in batch {
            *done.replayed.entry(copy.origin.topic).or_default() += 1;
        }
        Ok(())
    }
}

/// Whether hookstream sets records of this topic of its own aside, and reads it again.
fn is_own(settings: &Settings, topic: &str) -> bool {
    let tiers = settings.tiers.delays().iter();
    let mut own = tiers.map(|&delay| settings.topics.retry(delay));
    topic == settings.topics.commands() || own.any(|name| name == topic)
}

fn write(
    producer: &mut Producer,
    guarantee: Guarantee,
    topic: &str,
    batch: &mut Vec<(InvalidCopy, RawRecord)>,
    done: &mut InvalidReplay,
) -> Result<(), BatchError> {
    let mut tag = 0;
    while let Some((copy, record)) = batch.get(tag) {
        let none = OwnedHeaders::new_with_capacity(record.headers.len());
        let all = record.headers.iter();
        let headers = all.fold(none, |all, (name, value)| all.and(name, value.as_deref()));
        let sent = producer.send(Record {
            topic: &copy.origin.topic,
            partition: Some(copy.origin.partition),
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers,
            tag,
        });
        match sent {
            Ok(()) => tag += 1,
            Err(BatchError::TooLarge { at_once: true, .. }) => {
                done.too_large.push(copy.at);
                batch.remove(tag);
            }
            Err(error) => return Err(error),
        }
    }
    if guarantee == Guarantee::AtLeastOnce {
        // A fact without its record would lose it; the reverse only repeats it.
        producer.acknowledged()?;
    }
    let now = clock::now();
    for (tag, (copy, _)) in batch.iter().enumerate() {
        let headers = text_headers(replayed_headers(copy.at, now));
        producer.send(Record {
            topic,
            partition: Some(copy.at.partition),
            key: copy.raw.key.as_deref(),
            value: Some(&[]),
            headers,
            tag,
        })?;
    }
    producer.finish(&[], None)
}

fn explain(
    producer: &Producer,
    error: BatchError,
    batch: &[(InvalidCopy, RawRecord)],
) -> ReplayError {
    ReplayError::of_batch(producer, error, |tag| {
        let (copy, _) = batch.get(tag)?;
        Some(ReplayError::InvalidTooLarge(
            copy.at,
            copy.origin.topic.clone(),
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::units::Offset;

    #[test]
    fn each_part_of_a_filter_selects() {
        let copy = InvalidCopy {
            at: "0:7".parse().unwrap(),
            time: EpochMs(10),
            origin: Origin {
                topic: "order-events".to_owned(),
                partition: 0,
                offset: Offset(1),
                error: "The id is missing".to_owned(),
                truncated: None,
            },
            replayed: None,
            raw: RawRecord::default(),
        };
        let none = InvalidFilter::default;
        assert!(none().matches(&copy));
        let text = |text: &str| Some(text.to_owned());
        for (filter, takes) in [
            (
                InvalidFilter {
                    topic: text("order-events"),
                    ..none()
                },
                true,
            ),
            (
                InvalidFilter {
                    topic: text("order"),
                    ..none()
                },
                false,
            ),
            (
                InvalidFilter {
                    error_contains: text("the ID"),
                    ..none()
                },
                true,
            ),
            (
                InvalidFilter {
                    error_contains: text("type"),
                    ..none()
                },
                false,
            ),
            (
                InvalidFilter {
                    since: Some(EpochMs(10)),
                    ..none()
                },
                true,
            ),
            (
                InvalidFilter {
                    until: Some(EpochMs(10)),
                    ..none()
                },
                false,
            ),
            (
                InvalidFilter {
                    places: vec!["0:7".parse().unwrap()],
                    ..none()
                },
                true,
            ),
            (
                InvalidFilter {
                    places: vec!["1:7".parse().unwrap()],
                    ..none()
                },
                false,
            ),
        ] {
            assert_eq!(filter.matches(&copy), takes, "{filter:?}");
        }
    }
}
