//! Replay: open dead letters become commands again, each exactly once.
//!
//! A letter's new command and the fact `replayed` are one transaction, so a replay that is killed leaves each
//! letter either open or replayed, and the next run takes the open ones. Two replays at once are kept apart by
//! one transactional id for all of them, and by the order of the first steps, which must not change:
//!
//! 1. initialise transactions: this fences a running replay, and its open transaction is aborted (or, if it
//!    was being committed, is committed) before the call returns;
//! 2. take the ends, and wait until nothing that was committed before is hidden ([`Log::settled_ends`]): from
//!    here on every fact of an earlier replay is visible, and none can come;
//! 3. fold the facts, then send what is open.
//!
//! After a failure the run ends instead of making a new producer: another replay may have begun meanwhile, and
//! then this one's fold would be out of date. In `at_least_once` there are no transactions: the commands are
//! acknowledged before their facts are written, so a kill between sends up to one batch twice.
//!
//! Memory: the identities of settled letters, and one batch.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use rdkafka::message::{BorrowedMessage, Header, Message, OwnedHeaders, OwnedMessage};
use thiserror::Error;

use crate::config::{Guarantee, Settings};
use crate::edge::clock;
use crate::edge::kafka::cluster::ClusterId;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log_reader::{Log, Range, Reading, header_pairs};
use crate::edge::kafka::producer::{BatchError, Producer, Record};
use crate::edge::kafka::record::with_header;
use crate::model::dead_letter;
use crate::model::dead_letter::{
    Coordinates, DeadLetter, Fact, FactError, Filter, Kind, OpenLetters, Reason, Settled,
    Settlement,
};
use crate::model::units::{EpochMs, Offset};

/// Letters in one transaction.
pub const MAX_BATCH: usize = 200;

/// Bodies in one transaction, bytes; a batch ends with the letter that reaches it.
const MAX_BATCH_BYTES: usize = 4 * 1024 * 1024;

const PURPOSE: &str = "replay";

/// What is to be replayed, and how fast.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Which letters.
    pub filter: Filter,
    /// At most so many letters.
    pub limit: Option<u64>,
    /// Time from one letter to the next, on average over a batch.
    pub pace: Option<Duration>,
    /// Letters that were replayed on another cluster at this time or later count as open.
    pub again_since: Option<EpochMs>,
}

impl Plan {
    /// Whether a fact settles its letter.
    ///
    /// A mirror that lost its source may have copied the fact and not the command. Facts of this cluster always count,
    /// so that a run can be repeated.
    fn believes(&self, fact: &Settled, cluster: &str) -> bool {
        let elsewhere = fact
            .cluster
            .as_deref()
            .is_some_and(|other| other != cluster);
        let lately = self.again_since.is_some_and(|since| fact.at >= since);
        !(elsewhere && lately && fact.how == Settlement::Replayed)
    }

    fn is_reached(&self, letters: u64) -> bool {
        self.limit.is_some_and(|limit| letters >= limit)
    }

    /// With a pace, a batch is what is due within a second, so that letters flow evenly.
    fn batch(&self) -> usize {
        let due = |pace: Duration| (1.0 / pace.as_secs_f64().max(1e-9)) as usize;
        self.pace
            .map_or(MAX_BATCH, |pace| due(pace).clamp(1, MAX_BATCH))
    }
}

/// Letters counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// How many.
    pub letters: u64,
    /// Size of their bodies.
    pub bytes: u64,
}

/// Letters counted by subscriber and reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// By subscriber and reason.
    pub groups: BTreeMap<(String, Reason), Count>,
    /// Records that are no facts, and were left alone.
    pub unreadable: u64,
}

impl Tally {
    /// All letters.
    #[must_use]
    pub fn letters(&self) -> u64 {
        self.groups.values().map(|count| count.letters).sum()
    }

    fn add(&mut self, letter: &DeadLetter, bytes: usize) {
        let count = self
            .groups
            .entry((letter.subscriber.clone(), letter.info.reason))
            .or_default();
        count.letters += 1;
        count.bytes += bytes as u64;
    }
}

/// How far a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Whether the facts are folded and letters are being sent.
    pub sending: bool,
    /// Offsets passed in this reading.
    pub read: u64,
    /// Offsets to pass in this reading.
    pub of: u64,
    /// Letters replayed, durably.
    pub replayed: u64,
    /// A transaction is being committed.
    pub committing: bool,
}

/// Why a run ended before its end.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// Another process began to replay.
    #[error("another replay took over; this one stopped and undid its open transaction")]
    TakenOver,
    /// One letter's command is refused for its size.
    #[error(
        "the dead letter {0} is larger than the broker's limit for commands; raise max.message.bytes of the commands topic (see `hookstream topics check`)"
    )]
    TooLarge(Coordinates),
    /// The batch was not committed, or it is not known whether it was.
    #[error("a batch of letters was not committed")]
    NotCommitted(#[source] rdkafka::error::KafkaError),
    /// Something else.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// How a run ended.
#[derive(Debug)]
pub enum End {
    /// All letters that were open at the start and match were taken, or the limit was reached.
    Complete,
    /// It was told to stop.
    Stopped,
    /// It could not go on.
    Failed(ReplayError),
}

/// What a run did.
#[derive(Debug)]
pub struct Report {
    /// Letters that are replayed, durably.
    pub replayed: Tally,
    /// How it ended.
    pub end: End,
}

/// Counts what a replay would take, and touches nothing.
///
/// # Errors
/// [`Failure`] when the log cannot be read.
pub fn preview(
    settings: &Settings,
    plan: &Plan,
    stop: &dyn Fn() -> bool,
) -> Result<(Tally, Reading), Failure> {
    let log = Log::open(settings, settings.topics.dead_letters(), PURPOSE)?;
    let ends = log.stable_ends()?;
    let (open, _) = fold(&log, plan, &ends, stop, &mut |_| {})?;
    let mut tally = Tally::default();
    let reading = log.read::<Failure>(&ends, stop, |message| {
        match decode(message) {
            Ok(Some(letter)) if open.is_open(&letter) && plan.filter.matches(&letter) => {
                tally.add(&letter, message.payload_len());
            }
            Ok(_) => {}
            Err(_) => tally.unreadable += 1,
        }
        Ok(if plan.is_reached(tally.letters()) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    })?;
    // Reaching the limit stops the reading, but not short of what was asked.
    let reading = if plan.is_reached(tally.letters()) {
        Reading::Complete
    } else {
        reading
    };
    Ok((tally, reading))
}

/// Replays. `stop` is looked at between letters: the batch that is being written is finished first.
pub fn run(
    settings: &Settings,
    plan: &Plan,
    stop: &dyn Fn() -> bool,
    tell: &mut dyn FnMut(Progress),
) -> Report {
    let mut replayed = Tally::default();
    let end = match replay(settings, plan, stop, tell, &mut replayed) {
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
    tell: &mut dyn FnMut(Progress),
    replayed: &mut Tally,
) -> Result<Reading, ReplayError> {
    // Before the producer, which waits for brokers and topics instead of naming what is wrong.
    let log = Log::open(settings, settings.topics.dead_letters(), PURPOSE)?;
    drop(Log::open(settings, settings.topics.commands(), PURPOSE)?);
    let producer = Producer::sole(settings, PURPOSE)?;
    let mut sender = Sender::new(settings, log.cluster()?, plan, producer, replayed);
    let result = sender.run(&log, stop, tell);
    if result.is_err() {
        sender.producer.abandon();
    }
    result
}

/// The first pass: what is settled.
fn fold(
    log: &Log,
    plan: &Plan,
    ends: &[Range],
    stop: &dyn Fn() -> bool,
    read: &mut dyn FnMut(u64),
) -> Result<(OpenLetters, Reading), Failure> {
    let cluster = log.cluster()?;
    let mut open = OpenLetters::default();
    let mut count = 0;
    let reading = log.read::<Failure>(ends, stop, |message| {
        count += 1;
        read(count);
        if let Some(settled) = settled(message)?
            && plan.believes(&settled, cluster.as_str())
        {
            open.settle(&settled, place(message));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok((open, reading))
}

/// The settling fact that the record states, if it does.
///
/// # Errors
/// [`Failure::Newer`] for a fact of a later program: skipped, it might be a letter that is sent a second time.
pub fn settled(message: &BorrowedMessage<'_>) -> Result<Option<Settled>, Failure> {
    let headers = header_pairs(message);
    if Kind::of(&headers).is_ok_and(|kind| kind == Kind::DeadLettered) {
        return Ok(None);
    }
    Ok(
        match Fact::decode(place(message), message.key(), &headers) {
            Ok(Fact::Settled(settled)) => Some(settled),
            Ok(Fact::DeadLettered(_)) => None,
            Err(FactError::Newer(version)) => {
                return Err(Failure::Newer {
                    place: format!("the dead letters' record {}", place(message)),
                    version,
                    known: crate::model::command::VERSION,
                });
            }
            Err(error) => {
                tracing::warn!(
                    "the record {} of the dead letters is no fact: {error}",
                    place(message)
                );
                None
            }
        },
    )
}

/// The letter that the record states, if it does.
///
/// # Errors
/// The record is no fact.
pub fn decode<M: Message>(message: &M) -> Result<Option<Box<DeadLetter>>, FactError> {
    let headers = header_pairs(message);
    if Kind::of(&headers)? != Kind::DeadLettered {
        return Ok(None);
    }
    match Fact::decode(place(message), message.key(), &headers)? {
        Fact::DeadLettered(letter) => Ok(Some(letter)),
        Fact::Settled(_) => Ok(None),
    }
}

/// Where a record lies.
#[must_use]
pub fn place<M: Message>(message: &M) -> Coordinates {
    Coordinates {
        partition: message.partition(),
        offset: Offset(message.offset()),
    }
}

/// A letter that is to be sent, with its record.
struct Letter {
    letter: Box<DeadLetter>,
    record: OwnedMessage,
}

/// The second pass: sends what is open.
struct Sender<'a> {
    guarantee: Guarantee,
    cluster: ClusterId,
    commands: String,
    dead_letters: String,
    plan: &'a Plan,
    producer: Producer,
    batch: Vec<Letter>,
    bytes: usize,
    replayed: &'a mut Tally,
}

impl<'a> Sender<'a> {
    fn new(
        settings: &Settings,
        cluster: ClusterId,
        plan: &'a Plan,
        producer: Producer,
        replayed: &'a mut Tally,
    ) -> Self {
        Self {
            guarantee: settings.guarantee,
            cluster,
            commands: settings.topics.commands(),
            dead_letters: settings.topics.dead_letters(),
            plan,
            producer,
            batch: Vec::new(),
            bytes: 0,
            replayed,
        }
    }

    fn run(
        &mut self,
        log: &Log,
        stop: &dyn Fn() -> bool,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<Reading, ReplayError> {
        let ends = log.settled_ends(stop)?;
        let mut progress = Progress {
            of: ends
                .iter()
                .map(|range| u64::try_from(range.end - range.low).unwrap_or(0))
                .sum(),
            ..Progress::default()
        };
        let (open, folded) = fold(log, self.plan, &ends, stop, &mut |read| {
            tell(Progress { read, ..progress })
        })?;
        // A fold that was cut short would show replayed letters as open.
        if folded == Reading::Stopped || stop() {
            return Ok(Reading::Stopped);
        }
        progress.sending = true;
        let reading = log.read::<ReplayError>(&ends, stop, |message| {
            progress.read += 1;
            tell(progress);
            self.take(message, &open);
            if self.is_full() {
                self.flush(&mut progress, stop, tell)?;
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
        self.flush(&mut progress, stop, tell)?;
        let reached = self.plan.is_reached(self.replayed.letters());
        Ok(if reached { Reading::Complete } else { reading })
    }

    fn take(&mut self, message: &BorrowedMessage<'_>, open: &OpenLetters) {
        match decode(message) {
            Ok(Some(letter)) if open.is_open(&letter) && self.plan.filter.matches(&letter) => {
                self.bytes += message.payload_len();
                self.batch.push(Letter {
                    letter,
                    record: message.detach(),
                });
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(
                    "the record {} of the dead letters is no fact: {error}",
                    place(message)
                );
                self.replayed.unreadable += 1;
            }
        }
    }

    fn is_full(&self) -> bool {
        self.batch.len() >= self.plan.batch() || self.bytes >= MAX_BATCH_BYTES
    }

    /// Writes the batch; when it returns, the letters in it are replayed durably.
    fn flush(
        &mut self,
        progress: &mut Progress,
        stop: &dyn Fn() -> bool,
        tell: &mut dyn FnMut(Progress),
    ) -> Result<(), ReplayError> {
        let batch = std::mem::take(&mut self.batch);
        self.bytes = 0;
        if batch.is_empty() {
            return Ok(());
        }
        tell(Progress {
            committing: true,
            ..*progress
        });
        self.write(&batch)
            .map_err(|error| self.explain(error, &batch))?;
        for letter in &batch {
            self.replayed.add(
                &letter.letter,
                letter.record.payload().map_or(0, <[u8]>::len),
            );
        }
        progress.replayed += batch.len() as u64;
        tell(*progress);
        if let Some(pace) = self.plan.pace {
            rest(
                pace.saturating_mul(u32::try_from(batch.len()).unwrap_or(u32::MAX)),
                stop,
            );
        }
        Ok(())
    }

    fn write(&mut self, batch: &[Letter]) -> Result<(), BatchError> {
        for (tag, letter) in batch.iter().enumerate() {
            let pairs = header_pairs(&letter.record);
            let headers = dead_letter::replay_headers(&pairs);
            let headers = headers
                .iter()
                .fold(OwnedHeaders::new(), |all, (key, value)| {
                    all.insert(Header {
                        key,
                        value: Some(value.as_ref()),
                    })
                });
            let (key, value) = (letter.record.key(), letter.record.payload());
            self.producer.send(Record {
                topic: &self.commands,
                partition: None,
                key,
                value,
                headers,
                tag,
            })?;
        }
        if self.guarantee == Guarantee::AtLeastOnce {
            // A fact without its command would lose the letter; a command without its fact only repeats it.
            self.producer.acknowledged()?;
        }
        let now = clock::now();
        for (tag, letter) in batch.iter().enumerate() {
            let cluster = self.cluster.as_str();
            let fact = Settled::new(&letter.letter, Settlement::Replayed, now, cluster).headers();
            let headers = fact.iter().fold(OwnedHeaders::new(), |all, (key, value)| {
                with_header(all, key, value)
            });
            self.producer.send(Record {
                topic: &self.dead_letters,
                partition: Some(letter.letter.at.partition),
                key: letter.record.key(),
                // Empty, not absent: the topic must survive being compacted by mistake.
                value: Some(&[]),
                headers,
                tag,
            })?;
        }
        self.producer.finish(&[], None)
    }

    fn explain(&self, error: BatchError, batch: &[Letter]) -> ReplayError {
        match error {
            _ if self.producer.is_fenced() => ReplayError::TakenOver,
            BatchError::Failed(Failure::Fenced { .. }) => ReplayError::TakenOver,
            BatchError::Failed(failure) => failure.into(),
            BatchError::Aborted(error) => ReplayError::NotCommitted(error),
            BatchError::TooLarge { tag } => match batch.get(tag) {
                Some(letter) => ReplayError::TooLarge(letter.letter.at),
                None => {
                    Failure::Internal(format!("a record was refused for its size, numbered {tag}"))
                        .into()
                }
            },
        }
    }
}

/// Waits, but not longer than `stop` allows.
fn rest(time: Duration, stop: &dyn Fn() -> bool) {
    /// Between two looks at `stop`.
    const LOOK: Duration = Duration::from_millis(50);
    let begun = clock::instant();
    while !stop() && begun.elapsed() < time {
        std::thread::sleep(LOOK.min(time.saturating_sub(begun.elapsed())));
    }
}

#[cfg(test)]
mod tests;
