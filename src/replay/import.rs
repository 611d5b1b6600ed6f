//! Import: exported dead letters become records of the topic again, each at most once. Nothing is sent.
//!
//! A dead letter that the topic has, open or settled, is not written again; neither is one whose settling fact is there
//! still, although the dead letter has expired. One of which the topic cannot show that any more, or that is of another
//! cluster, where it may be replayed as well, is only written on request.
//!
//! A shared transactional id excludes other imports, in the order of a replay's first steps: initialise, query the stable
//! ends, read all of the topic. Replays need no exclusion: what they settle is in the topic, and known.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::ops::ControlFlow;

use rdkafka::message::OwnedHeaders;

use super::plan::{MAX_BATCH, MAX_BATCH_BYTES, ReplayError};
use super::records::NewerFacts;
use super::records::{Undecoded, decode, place};
use crate::config::{Guarantee, Settings};
use crate::edge::kafka::log_reader::{Log, Range};
use crate::edge::kafka::producer::{BatchError, Producer, Record};
use crate::edge::kafka::record::text_headers;
use crate::edge::port::records::Headers as _;
use crate::model::dead_letter::{Coordinates, Importable, Moment};
use crate::model::partitioner;
use crate::model::units::Offset;

const PURPOSE: &str = "replay-import";

/// What is imported besides the dead letters that are certainly not there, nor anywhere else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Permit {
    /// Those of other clusters, where they may be replayed as well.
    pub other_clusters: bool,
    /// Those of which this cluster no longer shows whether they were replayed.
    pub expired: bool,
    /// Nothing is written.
    pub dry_run: bool,
}

/// What became of the lines of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Open dead letters written.
    pub open: u64,
    /// Dead letters written that had been replayed or discarded before their export, with that fact.
    pub settled: u64,
    /// Not written: the topic has them, or has the fact that they were replayed or discarded.
    pub known: u64,
    /// Not written: exported from another cluster. The clusters.
    pub other_clusters: HashMap<String, u64>,
    /// Not written: whether they were replayed since their export has expired.
    pub expired: u64,
}

/// What the topic has, or had, by what dead letters say of themselves. Seeded at random: nobody can choose ids that collide.
struct Known {
    seed: RandomState,
    moments: HashSet<u64>,
    /// Facts of hookstream 0.1.0, which name a place.
    places: HashSet<u64>,
}

impl Known {
    fn moment(&self, webhook_id: &str, subscription: &str, moment: Moment) -> u64 {
        self.seed.hash_one((webhook_id, subscription, moment))
    }

    fn place(&self, webhook_id: &str, subscription: &str, at: Coordinates) -> u64 {
        self.seed.hash_one((webhook_id, subscription, at))
    }

    /// Reads the whole topic. The records of a newer program may be anything: an import then writes nothing.
    fn read(
        log: &Log,
        ends: &[Range],
        stop: &dyn Fn() -> bool,
    ) -> Result<(Self, NewerFacts), ReplayError> {
        let mut known = Self {
            seed: RandomState::new(),
            moments: HashSet::new(),
            places: HashSet::new(),
        };
        let mut newer = NewerFacts::of(log.topic());
        log.read::<ReplayError>(ends, stop, |message| {
            if let Some(fact) = newer.settled(message) {
                let (webhook, subscription) = (&fact.webhook_id, &fact.subscription);
                if let Some(moment) = fact.moment {
                    known.moments.insert(known.moment(webhook, subscription, moment));
                } else {
                    known.places.insert(known.place(webhook, subscription, fact.letter));
                }
                return Ok(ControlFlow::Continue(()));
            }
            match decode(message) {
                Ok(Some(letter)) => {
                    let moment = letter.moment();
                    let key = known.moment(&letter.webhook_id, &letter.subscription, moment);
                    known.moments.insert(key);
                }
                Ok(None) | Err(Undecoded::Newer(_)) => {}
                Err(Undecoded::Unreadable(error)) => {
                    tracing::warn!(record = %place(message), "unreadable record in the dead-letter topic: {error}");
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok((known, newer))
    }

    /// Whether it is there, or was; it is from now on.
    fn has(&mut self, one: &Importable) -> bool {
        let letter = &one.letter;
        let (webhook, subscription) = (&letter.webhook_id, &letter.subscription);
        let at_place = self.place(webhook, subscription, letter.at);
        let moment = self.moment(webhook, subscription, letter.moment());
        self.places.contains(&at_place) || !self.moments.insert(moment)
    }
}

/// Imports what `next` returns, until it returns `None`. `stop` is checked between batches.
///
/// # Errors
/// [`ReplayError`]; what was counted before is written, and another run skips it.
pub fn import(
    settings: &Settings,
    permit: Permit,
    stop: &dyn Fn() -> bool,
    next: &mut dyn FnMut() -> Option<Importable>,
) -> (Imported, Result<NewerFacts, ReplayError>) {
    let mut imported = Imported::default();
    let result = run(settings, permit, stop, next, &mut imported);
    (imported, result)
}

fn run(
    settings: &Settings,
    permit: Permit,
    stop: &dyn Fn() -> bool,
    next: &mut dyn FnMut() -> Option<Importable>,
    imported: &mut Imported,
) -> Result<NewerFacts, ReplayError> {
    let log = Log::open(settings, settings.topics.dead_letters(), PURPOSE)?;
    let producer = (!permit.dry_run).then(|| Producer::sole(settings, PURPOSE));
    let producer = producer.transpose()?;
    let ends = log.high_watermarks(stop)?;
    let (known, newer) = Known::read(&log, &ends, stop)?;
    if !newer.is_empty() || stop() {
        return Ok(newer);
    }
    let mut writer = Writer {
        guarantee: settings.guarantee,
        topic: log.topic().to_owned(),
        cluster: log.cluster()?.as_str().to_owned(),
        ends,
        known,
        permit,
        producer,
        batch: Vec::new(),
        bytes: 0,
    };
    while !stop() {
        let Some(one) = next() else {
            writer.flush(imported)?;
            break;
        };
        writer.take(one, imported);
        if writer.batch.len() >= MAX_BATCH || writer.bytes >= MAX_BATCH_BYTES {
            writer.flush(imported)?;
        }
    }
    Ok(newer)
}

struct Writer {
    guarantee: Guarantee,
    topic: String,
    cluster: String,
    ends: Vec<Range>,
    known: Known,
    permit: Permit,
    producer: Option<Producer>,
    batch: Vec<Importable>,
    bytes: usize,
}

impl Writer {
    fn take(&mut self, one: Importable, imported: &mut Imported) {
        let partition = one.letter.at.partition;
        let low = self.ends.iter().find(|range| range.partition == partition);
        let low = low.map(|range| Offset(range.low));
        if self.known.has(&one) {
            imported.known += 1;
        } else if one.cluster != self.cluster && !self.permit.other_clusters {
            *imported.other_clusters.entry(one.cluster).or_default() += 1;
        } else if one.cluster == self.cluster
            && !one.is_traceable(&self.cluster, low)
            && !self.permit.expired
        {
            imported.expired += 1;
        } else {
            self.bytes += one.body.as_ref().map_or(0, Vec::len);
            self.batch.push(one);
        }
    }

    fn flush(&mut self, imported: &mut Imported) -> Result<(), ReplayError> {
        let batch = std::mem::take(&mut self.batch);
        self.bytes = 0;
        if let Some(producer) = &mut self.producer
            && !batch.is_empty()
        {
            let count = i32::try_from(self.ends.len()).unwrap_or(i32::MAX);
            let written = write(producer, self.guarantee, &self.topic, count, &batch);
            written.map_err(|error| explain(producer, error, &batch))?;
        }
        let settled = batch.iter().filter(|one| one.settling().is_some()).count() as u64;
        imported.settled += settled;
        imported.open += batch.len() as u64 - settled;
        Ok(())
    }
}

/// Writes the dead letters of a batch, each with the fact that settled it, in the partition of its subscriber.
fn write(
    producer: &mut Producer,
    guarantee: Guarantee,
    topic: &str,
    partitions: i32,
    batch: &[Importable],
) -> Result<(), BatchError> {
    let of = |one: &Importable| {
        let key = one.letter.subscriber.as_bytes();
        partitioner::partition(partitioner::key_hash(key), partitions)
    };
    for (tag, one) in batch.iter().enumerate() {
        let none = OwnedHeaders::new_with_capacity(one.headers.len());
        let all = one.headers.iter();
        let headers = all.fold(none, |all, (name, value)| all.and(name, Some(value)));
        producer.send(Record {
            topic,
            partition: of(one),
            key: Some(one.letter.subscriber.as_bytes()),
            value: one.body.as_deref(),
            headers,
            tag,
        })?;
    }
    if guarantee == Guarantee::AtLeastOnce {
        // A fact settles the dead letters before it.
        producer.acknowledged()?;
    }
    for (tag, one) in batch.iter().enumerate() {
        let Some(fact) = one.settling() else { continue };
        let headers = text_headers(fact.headers());
        producer.send(Record {
            topic,
            partition: of(one),
            key: Some(one.letter.subscriber.as_bytes()),
            // Empty, not absent: a tombstone would delete records if the topic were compacted by mistake.
            value: Some(&[]),
            headers,
            tag,
        })?;
    }
    producer.finish(&[], None)
}

fn explain(producer: &Producer, error: BatchError, batch: &[Importable]) -> ReplayError {
    ReplayError::of_batch(producer, error, |tag| {
        Some(ReplayError::TooLarge(batch.get(tag)?.letter.at))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::dead_letter::{DeadLetter, DeadLetterInfo, Reason, State};
    use crate::model::units::EpochMs;

    fn one(webhook: &str, last_failure: i64, cluster: &str) -> Importable {
        Importable {
            letter: DeadLetter {
                at: Coordinates {
                    partition: 0,
                    offset: Offset(3),
                },
                subscriber: "acme".to_owned(),
                subscription: "orders".to_owned(),
                webhook_id: webhook.to_owned(),
                event_id: "e".to_owned(),
                event_type: "t".to_owned(),
                attempts: 1,
                enqueued: None,
                info: DeadLetterInfo {
                    reason: Reason::Gone,
                    status: None,
                    error: String::new(),
                    first_failure: EpochMs(1),
                    last_failure: EpochMs(last_failure),
                },
            },
            cluster: cluster.to_owned(),
            read_to: 10,
            state: State::Open,
            headers: Vec::new(),
            body: None,
        }
    }

    fn writer(permit: Permit, low: i64) -> Writer {
        Writer {
            guarantee: Guarantee::ExactlyOnce,
            topic: "dead".to_owned(),
            cluster: "here".to_owned(),
            ends: vec![Range {
                partition: 0,
                low,
                end: 100,
            }],
            known: Known {
                seed: RandomState::new(),
                moments: HashSet::new(),
                places: HashSet::new(),
            },
            permit,
            producer: None,
            batch: Vec::new(),
            bytes: 0,
        }
    }

    #[test]
    fn nothing_is_imported_that_may_be_sent_twice() {
        let mut counts = Imported::default();
        let mut strict = writer(Permit::default(), 0);
        for letter in [
            one("msg_1", 5, "here"),
            one("msg_1", 5, "here"),
            one("msg_1", 6, "here"),
            one("msg_2", 5, "elsewhere"),
        ] {
            strict.take(letter, &mut counts);
        }
        strict.flush(&mut counts).unwrap();
        assert_eq!((counts.open, counts.known), (2, 1), "each failure once");
        assert_eq!(counts.other_clusters["elsewhere"], 1);

        let mut late = writer(Permit::default(), 11);
        late.take(one("msg_1", 5, "here"), &mut counts);
        assert_eq!(counts.expired, 1, "what settled it may have expired");
        let all = Permit {
            other_clusters: true,
            expired: true,
            dry_run: false,
        };
        let mut lenient = writer(all, 11);
        lenient.take(one("msg_1", 5, "here"), &mut counts);
        lenient.take(one("msg_2", 5, "elsewhere"), &mut counts);
        assert_eq!(lenient.batch.len(), 2);
    }

    #[test]
    fn a_fact_of_the_first_version_is_known_by_its_place() {
        let mut strict = writer(Permit::default(), 0);
        let at = one("msg_1", 5, "here").letter.at;
        let key = strict.known.place("msg_1", "orders", at);
        strict.known.places.insert(key);
        let mut counts = Imported::default();
        strict.take(one("msg_1", 5, "here"), &mut counts);
        assert_eq!(counts.known, 1);
    }
}
