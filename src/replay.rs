//! Replay: open dead letters become commands again, each exactly once; or they are discarded, under the same lock.
//!
//! The new command and the record `replayed` of a dead letter are written in one transaction, so a killed replay leaves
//! each dead letter either open or replayed, and the next run takes the open ones. Concurrent replays are excluded by a
//! shared transactional id and by the order of the first steps, which must not change:
//!
//! 1. initialise transactions: this fences a running replay; its open transaction is aborted, or its commit completed,
//!    before the call returns;
//! 2. query the end offsets, and wait until they are stable ([`Log::high_watermarks`]): from here on all records of earlier
//!    replays are visible, and no more can follow;
//! 3. read the settling records and the subscriptions, then send the dead letters that are open and whose subscription
//!    takes them; the others stay open ([`Why`]).
//!
//! A run ends after a failure instead of creating a new producer: another replay may have started meanwhile, and the
//! settled state of this one would be out of date. In `at_least_once` there are no transactions: the commands are
//! acknowledged before their settling records are written, so a kill in between sends up to one batch twice.
//!
//! Memory: the identities of settled dead letters, and one batch.

mod counts;
mod records;
mod withheld;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use rdkafka::message::{BorrowedMessage, Header, Message, OwnedHeaders};
use thiserror::Error;

use crate::config::{Guarantee, Settings};
use crate::edge::clock;
use crate::edge::kafka::cluster::ClusterId;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log_reader::{Log, Range, Reading};
use crate::edge::kafka::producer::{BatchError, Producer, Record};
use crate::edge::kafka::record::{header_pairs, with_header};
use crate::edge::kafka::subscription_log::{Freshness, SubscriptionLog};
use crate::edge::port::failure::ClientError;
use crate::model::dead_letter;
use crate::model::dead_letter::{
    Coordinates, DeadLetter, Filter, OpenLetters, Settled, Settlement,
};
use crate::model::subscription::Fold;
use crate::model::units::EpochMs;

pub use counts::{Count, DeadLetterCounts};
pub use records::{Newer, NewerFacts, Undecoded, decode, place};
pub use withheld::{Why, WithheldGroup};

/// Dead letters in one transaction.
pub const MAX_BATCH: usize = 200;

/// Bytes of bodies in one transaction; a batch ends with the dead letter that reaches it.
const MAX_BATCH_BYTES: usize = 4 * 1024 * 1024;

/// How old the subscriptions may be when a batch is sent.
const LOOK_UP: Duration = Duration::from_secs(1);

const PURPOSE: &str = "replay";

/// What to replay, and how fast.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Selects dead letters.
    pub filter: Filter,
    /// Discards them instead of sending them again.
    pub discards: bool,
    /// Maximum number of dead letters.
    pub limit: Option<u64>,
    /// Time between two dead letters, averaged over a batch.
    pub pace: Option<Duration>,
    /// Dead letters replayed on another cluster at or after this time count as open.
    pub again_since: Option<EpochMs>,
}

impl Plan {
    /// Whether a record settles its dead letter.
    ///
    /// A mirror that lost its source may have the settling record without the command. The records of this cluster always
    /// settle, so that a run can be repeated.
    fn accepts(&self, fact: &Settled, cluster: &str) -> bool {
        let elsewhere = fact
            .cluster
            .as_deref()
            .is_some_and(|other| other != cluster);
        let recent = self.again_since.is_some_and(|since| fact.at >= since);
        !(elsewhere && recent && fact.how == Settlement::Replayed)
    }

    /// Why a dead letter stays open. Any can be discarded.
    fn withholds(&self, letter: &DeadLetter, subscriptions: &Fold) -> Option<Why> {
        if self.discards {
            None
        } else {
            Why::of(letter, subscriptions)
        }
    }

    fn settlement(&self) -> Settlement {
        if self.discards {
            Settlement::Discarded
        } else {
            Settlement::Replayed
        }
    }

    fn is_reached(&self, letters: u64) -> bool {
        self.limit.is_some_and(|limit| letters >= limit)
    }

    /// With a pace, a batch covers one second, for an even rate.
    fn batch(&self) -> usize {
        let due = |pace: Duration| (1.0 / pace.as_secs_f64().max(1e-9)) as usize;
        self.pace
            .map_or(MAX_BATCH, |pace| due(pace).clamp(1, MAX_BATCH))
    }
}

/// The progress of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Whether the settling records are read and dead letters are being sent.
    pub sending: bool,
    /// Offsets read in this pass.
    pub read: u64,
    /// Offsets to read in this pass.
    pub of: u64,
    /// Dead letters durably replayed or discarded.
    pub replayed: u64,
    /// Whether a transaction is being committed.
    pub committing: bool,
}

/// Why a run failed.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// Another replay started.
    #[error("another replay took over; this one stopped and aborted its open transaction")]
    TakenOver,
    /// The command of a dead letter is too large.
    #[error(
        "dead letter {0} exceeds the size limit of the commands topic; raise its max.message.bytes (see `hookstream topics check`)"
    )]
    TooLarge(Coordinates),
    /// The batch was not committed, or the result is unknown.
    #[error("a batch of dead letters was not committed")]
    NotCommitted(#[source] ClientError),
    /// Any other failure.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// How a run ended.
#[derive(Debug)]
pub enum End {
    /// All matching dead letters that were open at the start are replayed, or the limit is reached.
    Complete,
    /// It was stopped.
    Stopped,
    /// It failed.
    Failed(ReplayError),
}

/// The result of a run.
#[derive(Debug)]
pub struct Report {
    /// Dead letters durably replayed or discarded.
    pub replayed: DeadLetterCounts,
    /// How it ended.
    pub end: End,
}

/// DeadLetterCounts what a replay would send, without sending it.
///
/// # Errors
/// [`Failure`] when the dead-letter topic cannot be read.
pub fn preview(
    settings: &Settings,
    plan: &Plan,
    stop: &dyn Fn() -> bool,
) -> Result<(DeadLetterCounts, Reading), Failure> {
    let log = Log::open(settings, settings.topics.dead_letters(), PURPOSE)?;
    let mut subscriptions = SubscriptionLog::open(settings, PURPOSE)?;
    subscriptions.catch_up(Freshness::Visible, stop, &mut |_, _| {})?;
    let ends = log.stable_ends()?;
    let (open, newer, _) = read_settled(&log, plan, &ends, stop, &mut |_| {})?;
    let mut counts = DeadLetterCounts {
        newer,
        ..DeadLetterCounts::default()
    };
    let reading = log.read::<Failure>(&ends, stop, |message| {
        match decode(message) {
            Ok(Some(letter)) if counts.newer.stops(letter.at.partition) => {}
            Ok(Some(letter)) if open.is_open(&letter) && plan.filter.matches(&letter) => {
                match plan.withholds(&letter, subscriptions.fold()) {
                    Some(why) => counts.withhold(&letter, why),
                    None => counts.add(&letter, message.payload_len()),
                }
            }
            Ok(_) | Err(Undecoded::Newer(_)) => {}
            Err(Undecoded::Unreadable(_)) => counts.unreadable += 1,
        }
        Ok(if plan.is_reached(counts.letters()) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    })?;
    // Stopping at the limit is a complete preview.
    let reading = if plan.is_reached(counts.letters()) {
        Reading::Complete
    } else {
        reading
    };
    Ok((counts, reading))
}

/// Replays. `stop` is checked between dead letters; the current batch is completed first.
pub fn run(
    settings: &Settings,
    plan: &Plan,
    stop: &dyn Fn() -> bool,
    report: &mut dyn FnMut(Progress),
) -> Report {
    let mut replayed = DeadLetterCounts::default();
    let end = match replay(settings, plan, stop, report, &mut replayed) {
        Ok(Reading::Complete) => End::Complete,
        Ok(Reading::Stopped) => End::Stopped,
        Err(error) => End::Failed(error),
    };
    Report { replayed, end }
}

fn replay(
    settings: &Settings,
    plan: &Plan,
    stop: &dyn Fn() -> bool,
    report: &mut dyn FnMut(Progress),
    replayed: &mut DeadLetterCounts,
) -> Result<Reading, ReplayError> {
    // Before the producer, which would wait for brokers and topics instead of failing.
    let log = Log::open(settings, settings.topics.dead_letters(), PURPOSE)?;
    drop(Log::open(settings, settings.topics.commands(), PURPOSE)?);
    let subscriptions = SubscriptionLog::open(settings, PURPOSE)?;
    let producer = Producer::sole(settings, PURPOSE)?;
    let cluster = log.cluster()?;
    let mut sender = Sender::new(settings, cluster, plan, producer, subscriptions, replayed);
    let result = sender.run(&log, stop, report);
    if result.is_err() {
        sender.producer.abandon();
    }
    result
}

/// The first pass: reads the settling records.
fn read_settled(
    log: &Log,
    plan: &Plan,
    ends: &[Range],
    stop: &dyn Fn() -> bool,
    read: &mut dyn FnMut(u64),
) -> Result<(OpenLetters, NewerFacts, Reading), Failure> {
    let cluster = log.cluster()?;
    let mut open = OpenLetters::default();
    let mut newer = NewerFacts::of(log.topic());
    let mut count = 0;
    let reading = log.read::<Failure>(ends, stop, |message| {
        count += 1;
        read(count);
        if let Some(settled) = newer.settled(message)
            && plan.accepts(&settled, cluster.as_str())
        {
            open.settle(&settled, place(message));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok((open, newer, reading))
}

/// A dead letter to send, with its record.
struct Pending {
    letter: Box<DeadLetter>,
    key: Option<Vec<u8>>,
    body: Option<Vec<u8>>,
    headers: Vec<(String, Vec<u8>)>,
}

impl Pending {
    fn new(letter: Box<DeadLetter>, message: &BorrowedMessage<'_>) -> Self {
        let headers = header_pairs(message).into_iter();
        Self {
            letter,
            key: message.key().map(<[u8]>::to_vec),
            body: message.payload().map(<[u8]>::to_vec),
            headers: headers
                .map(|(name, value)| (name.to_owned(), value.to_vec()))
                .collect(),
        }
    }
}

/// The second pass: sends the open dead letters.
struct Sender<'a> {
    guarantee: Guarantee,
    cluster: ClusterId,
    commands: String,
    dead_letters: String,
    plan: &'a Plan,
    producer: Producer,
    subscriptions: SubscriptionLog,
    /// When the subscriptions were last read.
    looked: Instant,
    batch: Vec<Pending>,
    bytes: usize,
    replayed: &'a mut DeadLetterCounts,
}

impl<'a> Sender<'a> {
    fn new(
        settings: &Settings,
        cluster: ClusterId,
        plan: &'a Plan,
        producer: Producer,
        subscriptions: SubscriptionLog,
        replayed: &'a mut DeadLetterCounts,
    ) -> Self {
        Self {
            guarantee: settings.guarantee,
            cluster,
            commands: settings.topics.commands(),
            dead_letters: settings.topics.dead_letters(),
            plan,
            producer,
            subscriptions,
            looked: clock::instant(),
            batch: Vec::new(),
            bytes: 0,
            replayed,
        }
    }

    fn run(
        &mut self,
        log: &Log,
        stop: &dyn Fn() -> bool,
        report: &mut dyn FnMut(Progress),
    ) -> Result<Reading, ReplayError> {
        let ends = log.high_watermarks(stop)?;
        let mut progress = Progress {
            of: ends
                .iter()
                .map(|range| u64::try_from(range.end - range.low).unwrap_or(0))
                .sum(),
            ..Progress::default()
        };
        let (open, newer, first_pass) = read_settled(log, self.plan, &ends, stop, &mut |read| {
            report(Progress { read, ..progress })
        })?;
        self.replayed.newer = newer;
        // After an incomplete first pass, replayed dead letters would seem open.
        if first_pass == Reading::Stopped || stop() {
            return Ok(Reading::Stopped);
        }
        self.look_up(Freshness::Latest, stop)?;
        if stop() {
            return Ok(Reading::Stopped);
        }
        progress.sending = true;
        let reading = log.read::<ReplayError>(&ends, stop, |message| {
            progress.read += 1;
            report(progress);
            self.take(message, &open);
            if self.is_full() {
                self.flush(&mut progress, stop, report)?;
            }
            let reached = self
                .plan
                .is_reached(self.replayed.letters() + self.batch.len() as u64);
            Ok(if reached {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        })?;
        if stop() {
            return Ok(Reading::Stopped);
        }
        self.flush(&mut progress, stop, report)?;
        let reached = self.plan.is_reached(self.replayed.letters());
        Ok(if reached { Reading::Complete } else { reading })
    }

    fn take(&mut self, message: &BorrowedMessage<'_>, open: &OpenLetters) {
        match decode(message) {
            Ok(Some(letter)) if self.replayed.newer.stops(letter.at.partition) => {}
            Ok(Some(letter)) if open.is_open(&letter) && self.plan.filter.matches(&letter) => {
                if let Some(why) = self.plan.withholds(&letter, self.subscriptions.fold()) {
                    return self.replayed.withhold(&letter, why);
                }
                self.bytes += message.payload_len();
                self.batch.push(Pending::new(letter, message));
            }
            Ok(_) | Err(Undecoded::Newer(_)) => {}
            Err(Undecoded::Unreadable(error)) => {
                tracing::warn!(record = %place(message), "unreadable record in the dead-letter topic: {error}");
                self.replayed.unreadable += 1;
            }
        }
    }

    fn is_full(&self) -> bool {
        self.batch.len() >= self.plan.batch() || self.bytes >= MAX_BATCH_BYTES
    }

    /// Writes the batch; on success its dead letters are durably replayed.
    fn flush(
        &mut self,
        progress: &mut Progress,
        stop: &dyn Fn() -> bool,
        report: &mut dyn FnMut(Progress),
    ) -> Result<(), ReplayError> {
        self.withhold_again(stop)?;
        let mut batch = std::mem::take(&mut self.batch);
        self.bytes = 0;
        if batch.is_empty() {
            return Ok(());
        }
        report(Progress {
            committing: true,
            ..*progress
        });
        self.write(&mut batch)
            .map_err(|error| self.explain(error, &batch))?;
        for letter in &batch {
            let body = letter.body.as_ref();
            self.replayed.add(&letter.letter, body.map_or(0, Vec::len));
        }
        progress.replayed += batch.len() as u64;
        report(*progress);
        if let Some(pace) = self.plan.pace {
            pause(
                pace.saturating_mul(u32::try_from(batch.len()).unwrap_or(u32::MAX)),
                stop,
            );
        }
        Ok(())
    }

    fn look_up(&mut self, freshness: Freshness, stop: &dyn Fn() -> bool) -> Result<(), Failure> {
        self.subscriptions
            .catch_up(freshness, stop, &mut |_, _| {})?;
        self.looked = clock::instant();
        Ok(())
    }

    /// A long replay may disable its subscription itself, when the endpoint is still gone: the rest stays open.
    fn withhold_again(&mut self, stop: &dyn Fn() -> bool) -> Result<(), Failure> {
        if self.batch.is_empty() || self.looked.elapsed() < LOOK_UP {
            return Ok(());
        }
        self.look_up(Freshness::Visible, stop)?;
        let (fold, replayed, plan) = (self.subscriptions.fold(), &mut *self.replayed, self.plan);
        self.batch.retain(|pending| {
            let why = plan.withholds(&pending.letter, fold);
            if let Some(why) = why {
                replayed.withhold(&pending.letter, why);
            }
            why.is_none()
        });
        Ok(())
    }

    /// Writes the batch, and removes from it what the client refuses to write for its size.
    fn write(&mut self, batch: &mut Vec<Pending>) -> Result<(), BatchError> {
        if self.plan.discards {
            return self.write_facts(batch);
        }
        let now = clock::now();
        let mut tag = 0;
        while let Some(letter) = batch.get(tag) {
            let pairs: Vec<_> = letter
                .headers
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_slice()))
                .collect();
            let headers = dead_letter::replay_headers(&pairs, now);
            let headers = headers
                .iter()
                .fold(OwnedHeaders::new(), |all, (key, value)| {
                    all.insert(Header {
                        key,
                        value: Some(value.as_ref()),
                    })
                });
            let sent = self.producer.send(Record {
                topic: &self.commands,
                partition: None,
                key: letter.key.as_deref(),
                value: letter.body.as_deref(),
                headers,
                tag,
            });
            match sent {
                Ok(()) => tag += 1,
                Err(BatchError::TooLarge { at_once: true, .. }) => {
                    tracing::warn!(record = %letter.letter.at, "dead letter too large to be replayed; it stays open");
                    self.replayed.too_large += 1;
                    batch.remove(tag);
                }
                Err(error) => return Err(error),
            }
        }
        if self.guarantee == Guarantee::AtLeastOnce {
            // A settling record without its command would lose the dead letter; the reverse only repeats it.
            self.producer.acknowledged()?;
        }
        self.write_facts(batch)
    }

    /// Writes that the dead letters of a batch are settled, and commits.
    fn write_facts(&mut self, batch: &[Pending]) -> Result<(), BatchError> {
        let now = clock::now();
        for (tag, letter) in batch.iter().enumerate() {
            let cluster = self.cluster.as_str();
            let fact = Settled::new(&letter.letter, self.plan.settlement(), now, cluster).headers();
            let headers = fact.iter().fold(OwnedHeaders::new(), |all, (key, value)| {
                with_header(all, key, value)
            });
            self.producer.send(Record {
                topic: &self.dead_letters,
                partition: Some(letter.letter.at.partition),
                key: letter.key.as_deref(),
                // Empty, not absent: a tombstone would delete records if the topic were compacted by mistake.
                value: Some(&[]),
                headers,
                tag,
            })?;
        }
        self.producer.finish(&[], None)
    }

    fn explain(&self, error: BatchError, batch: &[Pending]) -> ReplayError {
        match error {
            _ if self.producer.is_fenced() => ReplayError::TakenOver,
            BatchError::Failed(Failure::Fenced { .. }) => ReplayError::TakenOver,
            BatchError::Failed(failure) => failure.into(),
            BatchError::Aborted(error) => ReplayError::NotCommitted(error),
            BatchError::TooLarge { tag, .. } => match batch.get(tag) {
                Some(letter) => ReplayError::TooLarge(letter.letter.at),
                None => Failure::Internal(format!("record {tag} of the batch is too large")).into(),
            },
        }
    }
}

/// Sleeps until `time` has passed or `stop` is set.
fn pause(time: Duration, stop: &dyn Fn() -> bool) {
    /// How often `stop` is checked.
    const CHECK: Duration = Duration::from_millis(50);
    let begun = clock::instant();
    while !stop() && begun.elapsed() < time {
        std::thread::sleep(CHECK.min(time.saturating_sub(begun.elapsed())));
    }
}

#[cfg(test)]
mod tests;
