//! Reads the topics for every record about one event or webhook.
//!
//! It joins no group and writes nothing. Topics are read from the start of the time range to the end offsets at the start
//! of the search, in three groups: first the topics whose records carry both ids; then the dead letters, whose settling
//! records carry only a webhook id; then the event topics, whose records carry only an event id. Each group supplies the
//! ids for the next. Memory grows with the records found.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::message::{BorrowedMessage, Message};

use super::copies::Copies;
use super::decode::{attempt, carries, holds, is_about, read};
use super::event::EventMatcher;
use super::step::{RecordView, Step, TopicKind, coordinates, in_order};
use crate::config::Settings;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log_reader::{Log, Range, Reading};
use crate::edge::kafka::record::{each_header, header_pairs};
use crate::edge::schema_values::{Schemas, Undecoded};
use crate::model::units::EpochMs;

/// Topics read in parallel.
const AT_ONCE: usize = 4;
/// How far to read past the end of the time range: the clocks of producers differ.
const SKEW: std::time::Duration = std::time::Duration::from_secs(60);

const PURPOSE: &str = "trace";

/// What to search for.
#[derive(Clone, Debug)]
pub struct Search {
    /// An event id or a webhook id.
    pub id: String,
    /// Start of the time range, inclusive.
    pub since: EpochMs,
    /// End of the time range, exclusive; `None` is the end of the topics.
    pub until: Option<EpochMs>,
}

/// The progress of a search.
#[derive(Debug, Default)]
pub struct SearchProgress {
    /// Offsets to read, as far as known.
    pub of: AtomicU64,
    /// Records read.
    pub read: AtomicU64,
    /// Records found.
    pub found: AtomicU64,
}

/// The records found.
#[derive(Debug)]
pub struct Timeline {
    /// In order.
    pub steps: Vec<Step>,
    /// Whether the search read everything.
    pub reading: Reading,
    /// Values of events that it could not look into.
    pub undecoded: Undecoded,
}

/// Runs a search.
///
/// # Errors
/// [`Failure`] when a topic cannot be read.
pub fn run(
    settings: &Settings,
    search: &Search,
    stop: &(dyn Fn() -> bool + Sync),
    progress: &SearchProgress,
) -> Result<Timeline, Failure> {
    let topics = &settings.topics;
    let mut own = vec![(topics.commands(), TopicKind::Commands)];
    let tiers = settings.tiers.delays().iter();
    own.extend(tiers.map(|&delay| (topics.retry(delay), TopicKind::Tier)));
    own.push((topics.attempts(), TopicKind::Attempts));
    let dead_letters = [(topics.dead_letters(), TopicKind::DeadLetters)];
    let mut events: Vec<_> = topics
        .events
        .iter()
        .map(|topic| (topic.clone(), TopicKind::Events))
        .collect();
    events.push((topics.invalid_events(), TopicKind::Invalid));
    let scan = Scan {
        settings,
        search,
        quoted: serde_json::Value::from(search.id.as_str()).to_string(),
        stop,
        progress,
        failed: AtomicBool::new(false),
        schemas: Schemas::start(settings),
    };
    let (mut steps, mut reading) = (Vec::new(), Reading::Complete);
    for topics in [&own[..], &dead_letters, &events] {
        let matcher = EventMatcher::of(&search.id, &steps);
        let (found, ended) = scan.read(topics, &matcher)?;
        steps.extend(found);
        reading = ended;
        if reading == Reading::Stopped {
            break;
        }
    }
    Ok(Timeline {
        steps: in_order(steps),
        reading,
        undecoded: scan.schemas.into_undecoded(),
    })
}

struct Scan<'a> {
    settings: &'a Settings,
    search: &'a Search,
    /// The id as a JSON string.
    quoted: String,
    stop: &'a (dyn Fn() -> bool + Sync),
    progress: &'a SearchProgress,
    failed: AtomicBool,
    schemas: Schemas,
}

impl Scan<'_> {
    fn read(
        &self,
        topics: &[(String, TopicKind)],
        matcher: &EventMatcher,
    ) -> Result<(Vec<Step>, Reading), Failure> {
        let left = Mutex::new(topics.iter());
        let work = || {
            let mut found = Vec::new();
            loop {
                let next = left.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((topic, kind)) = next else {
                    return Ok((found, Reading::Complete));
                };
                match self.read_topic(topic, *kind, matcher, &mut found) {
                    Ok(Reading::Complete) => {}
                    Ok(Reading::Stopped) => return Ok((found, Reading::Stopped)),
                    Err(failure) => {
                        self.failed.store(true, Ordering::Relaxed);
                        return Err(failure);
                    }
                }
            }
        };
        let results: Vec<Result<(Vec<Step>, Reading), Failure>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..AT_ONCE.min(topics.len()))
                .map(|_| scope.spawn(work))
                .collect();
            let panicked = || Failure::Internal("a search thread panicked".to_owned());
            let ended = threads.into_iter().map(|thread| thread.join());
            ended
                .map(|result| result.unwrap_or_else(|_| Err(panicked())))
                .collect()
        });
        let (mut steps, mut reading) = (Vec::new(), Reading::Complete);
        for result in results {
            let (found, ended) = result?;
            steps.extend(found);
            if ended == Reading::Stopped {
                reading = ended;
            }
        }
        Ok((steps, reading))
    }

    fn read_topic(
        &self,
        topic: &str,
        kind: TopicKind,
        matcher: &EventMatcher,
        found: &mut Vec<Step>,
    ) -> Result<Reading, Failure> {
        let known = RefCell::new(matcher.webhooks());
        let mut copies = Copies::default();
        let log = match Log::open(self.settings, topic.to_owned(), PURPOSE) {
            // The attempt log is optional.
            Err(Failure::TopicMissing(_)) if kind == TopicKind::Attempts => {
                return Ok(Reading::Complete);
            }
            opened => opened?,
        };
        let ranges = self.ranges(&log)?;
        let name: Arc<str> = Arc::from(topic);
        let stop = || (self.stop)() || self.failed.load(Ordering::Relaxed);
        log.read::<Failure>(&ranges, &stop, |message| {
            self.progress.read.fetch_add(1, Ordering::Relaxed);
            let step = self.look(kind, &name, message, matcher, &known);
            if let Some(step) = step.filter(|_| !copies.has_seen(kind, each_header(message))) {
                // A dead letter precedes the records that settle it, in the same partition.
                known
                    .borrow_mut()
                    .extend(step.webhook.as_ref().map(|webhook| webhook.id.clone()));
                self.progress.found.fetch_add(1, Ordering::Relaxed);
                found.push(step);
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    fn ranges(&self, log: &Log) -> Result<Vec<Range>, Failure> {
        let mut ranges = log.since(&log.stable_ends()?, self.search.since)?;
        if let Some(until) = self.search.until {
            let behind = log.since(&ranges, until + SKEW)?;
            for (range, behind) in ranges.iter_mut().zip(behind) {
                range.end = behind.low;
            }
        }
        let offsets = ranges.iter().map(|range| range.end - range.low);
        let all: i64 = offsets.filter(|&count| count > 0).sum();
        let all = u64::try_from(all).unwrap_or(0);
        self.progress.of.fetch_add(all, Ordering::Relaxed);
        Ok(ranges)
    }

    fn look(
        &self,
        kind: TopicKind,
        topic: &Arc<str>,
        message: &BorrowedMessage<'_>,
        matcher: &EventMatcher,
        known: &RefCell<HashSet<String>>,
    ) -> Option<Step> {
        let id = &self.search.id;
        let headers = || each_header(message);
        let may_be = match kind {
            TopicKind::Events | TopicKind::Invalid => true,
            TopicKind::Attempts => holds(&self.quoted, message.payload()),
            TopicKind::Commands | TopicKind::Tier => carries(id, headers()),
            TopicKind::DeadLetters => {
                carries(id, headers()) || is_about(&known.borrow(), headers())
            }
        };
        if !may_be {
            return None;
        }
        let time = EpochMs(message.timestamp().to_millis().unwrap_or_default());
        if time < self.search.since || self.search.until.is_some_and(|until| time >= until) {
            return None;
        }
        let mut headers = header_pairs(message);
        let json = match kind {
            TopicKind::Events | TopicKind::Invalid => {
                let counts = kind == TopicKind::Events;
                let stop = || (self.stop)();
                self.schemas
                    .json(message.payload(), &mut headers, counts, &stop)
            }
            _ => None,
        };
        let raw = RecordView {
            topic,
            at: coordinates(message.partition(), message.offset()),
            time,
            key: message.key(),
            headers: &headers,
            value: json.as_deref().or_else(|| message.payload()),
        };
        let mapping = self.settings.event_mappings.get(&**topic);
        match kind {
            TopicKind::Events if matcher.may_be(&raw, mapping) => matcher.event(&raw, mapping),
            TopicKind::Events => None,
            TopicKind::Invalid => matcher.invalid(&raw),
            TopicKind::Attempts => attempt(id, &raw),
            TopicKind::Commands | TopicKind::Tier | TopicKind::DeadLetters => {
                Some(read(kind, &raw))
            }
        }
    }
}
