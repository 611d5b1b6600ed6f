//! Trace: finds every record about one event or webhook, and tells its life in order.
//!
//! It joins no group and changes nothing. The topics are read from the first record of the time asked for to the end
//! seen at the start, some at a time: first those that carry both ids; then the dead letters, whose settling facts carry
//! a webhook's id only; then the event topics, for an event's id is all that they have. By then the one is known from the
//! other. Memory: what is found.

pub mod story;

use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::message::{BorrowedMessage, Message};

use crate::config::Settings;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log_reader::{Log, Range, Reading, header_pairs};
use crate::edge::kafka::record::each_header;
use crate::model::units::EpochMs;
use story::{Kind, Raw, Step, Wanted, attempt, carries, holds, is_about, place, tell};

/// Topics read at the same time.
const AT_ONCE: usize = 4;
/// Writers' clocks differ: of the records behind the last time asked for, so much is read.
const SKEW: std::time::Duration = std::time::Duration::from_secs(60);

const PURPOSE: &str = "trace";

/// What is looked for.
#[derive(Clone, Debug)]
pub struct Search {
    /// An event's id, or a webhook's.
    pub id: String,
    /// Records of this time or later.
    pub since: EpochMs,
    /// Records before this time; `None` is up to the end.
    pub until: Option<EpochMs>,
}

/// How far a search is.
#[derive(Debug, Default)]
pub struct Progress {
    /// Offsets to pass, as far as is known.
    pub of: AtomicU64,
    /// Records passed.
    pub read: AtomicU64,
    /// Records found.
    pub found: AtomicU64,
}

/// What was found.
#[derive(Debug)]
pub struct Life {
    /// In order.
    pub steps: Vec<Step>,
    /// Whether everything was read.
    pub reading: Reading,
}

/// Searches.
///
/// # Errors
/// [`Failure`] when a topic cannot be read.
pub fn run(
    settings: &Settings,
    search: &Search,
    stop: &(dyn Fn() -> bool + Sync),
    progress: &Progress,
) -> Result<Life, Failure> {
    let topics = &settings.topics;
    let mut own = vec![(topics.commands(), Kind::Commands)];
    let tiers = settings.tiers.delays().iter();
    own.extend(tiers.map(|&delay| (topics.retry(delay), Kind::Tier)));
    own.push((topics.attempts(), Kind::Attempts));
    let letters = [(topics.dead_letters(), Kind::DeadLetters)];
    let mut events: Vec<_> = topics
        .events
        .iter()
        .map(|topic| (topic.clone(), Kind::Events))
        .collect();
    events.push((topics.invalid_events(), Kind::Invalid));
    let round = Round {
        settings,
        search,
        quoted: serde_json::Value::from(search.id.as_str()).to_string(),
        stop,
        progress,
        failed: AtomicBool::new(false),
    };
    let (mut steps, mut reading) = (Vec::new(), Reading::Complete);
    for topics in [&own[..], &letters, &events] {
        let wanted = Wanted::of(&search.id, &steps);
        let (found, ended) = round.read(topics, &wanted)?;
        steps.extend(found);
        reading = ended;
        if reading == Reading::Stopped {
            break;
        }
    }
    Ok(Life {
        steps: tell(steps),
        reading,
    })
}

struct Round<'a> {
    settings: &'a Settings,
    search: &'a Search,
    /// The id as JSON writes it.
    quoted: String,
    stop: &'a (dyn Fn() -> bool + Sync),
    progress: &'a Progress,
    failed: AtomicBool,
}

impl Round<'_> {
    fn read(
        &self,
        topics: &[(String, Kind)],
        wanted: &Wanted,
    ) -> Result<(Vec<Step>, Reading), Failure> {
        let left = Mutex::new(topics.iter());
        let work = || {
            let mut found = Vec::new();
            loop {
                let next = left.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((topic, kind)) = next else {
                    return Ok((found, Reading::Complete));
                };
                match self.read_topic(topic, *kind, wanted, &mut found) {
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
            let panicked = || Failure::Internal("a thread of the search has panicked".to_owned());
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
        kind: Kind,
        wanted: &Wanted,
        found: &mut Vec<Step>,
    ) -> Result<Reading, Failure> {
        let known = RefCell::new(wanted.webhooks());
        let log = match Log::open(self.settings, topic.to_owned(), PURPOSE) {
            // There is one where it was turned on.
            Err(Failure::TopicMissing(_)) if kind == Kind::Attempts => {
                return Ok(Reading::Complete);
            }
            opened => opened?,
        };
        let ranges = self.ranges(&log)?;
        let name: Arc<str> = Arc::from(topic);
        let stop = || (self.stop)() || self.failed.load(Ordering::Relaxed);
        log.read::<Failure>(&ranges, &stop, |message| {
            self.progress.read.fetch_add(1, Ordering::Relaxed);
            if let Some(step) = self.look(kind, &name, message, wanted, &known) {
                // A letter comes before the facts about it, in their partition.
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
        kind: Kind,
        topic: &Arc<str>,
        message: &BorrowedMessage<'_>,
        wanted: &Wanted,
        known: &RefCell<HashSet<String>>,
    ) -> Option<Step> {
        let id = &self.search.id;
        let headers = || each_header(message);
        let may_be = match kind {
            Kind::Events | Kind::Invalid => true,
            Kind::Attempts => holds(&self.quoted, message.payload()),
            Kind::Commands | Kind::Tier => carries(id, headers()),
            Kind::DeadLetters => carries(id, headers()) || is_about(&known.borrow(), headers()),
        };
        if !may_be {
            return None;
        }
        let time = EpochMs(message.timestamp().to_millis().unwrap_or_default());
        if time < self.search.since || self.search.until.is_some_and(|until| time >= until) {
            return None;
        }
        let headers = header_pairs(message);
        let raw = Raw {
            topic,
            at: place(message.partition(), message.offset()),
            time,
            key: message.key(),
            headers: &headers,
            value: message.payload(),
        };
        match kind {
            Kind::Events if wanted.may_be(raw.value, &headers) => wanted.event(&raw),
            Kind::Events => None,
            Kind::Invalid => wanted.invalid(&raw),
            Kind::Attempts => attempt(id, &raw),
            Kind::Commands | Kind::Tier | Kind::DeadLetters => Some(story::read(kind, &raw)),
        }
    }
}
