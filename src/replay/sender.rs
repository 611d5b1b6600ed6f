//! The second pass: sends or discards open dead letters, partition by partition, each under its lock.

use std::collections::{HashSet, VecDeque};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use rdkafka::message::{BorrowedMessage, Header, Message, OwnedHeaders};

use super::counts::DeadLetterCounts;
use super::plan::{MAX_BATCH_BYTES, PURPOSE, Plan, Progress, ReplayError, pause};
use super::records::{Undecoded, decode, place};
use super::survey::{Survey, Way};
use crate::config::{Guarantee, Settings};
use crate::edge::clock;
use crate::edge::kafka::cluster::ClusterId;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log_reader::{Log, Range, Reading};
use crate::edge::kafka::producer::{BatchError, Producer, Record};
use crate::edge::kafka::record::{header_pairs, text_headers};
use crate::edge::kafka::subscription_log::{Freshness, SubscriptionLog};
use crate::model::command::header;
use crate::model::dead_letter;
use crate::model::dead_letter::{DeadLetter, Identity, Settled, State};
use crate::model::units::EpochMs;

/// How old the subscriptions may be when a batch is sent.
const LOOK_UP: Duration = Duration::from_secs(1);

/// The first wait after another run has fenced this one on the only partition that is left; it doubles up to the last.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LAST_WAIT: Duration = Duration::from_secs(2);

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

/// Sends the open dead letters.
pub(super) struct Sender<'a> {
    settings: &'a Settings,
    log: &'a Log,
    cluster: ClusterId,
    commands: String,
    dead_letters: String,
    plan: &'a Plan,
    survey: Survey,
    subscriptions: SubscriptionLog,
    /// When the subscriptions were last read.
    looked: Instant,
    way: Way,
    replayed: &'a mut DeadLetterCounts,
    sent: u64,
    /// Whether the result of a commit has been looked up already.
    looked_up: bool,
}

/// How the work on a partition ended.
enum Step {
    /// All of it is done, or the limit is reached.
    Done,
    /// Another run has taken it over.
    Fenced,
    /// Stopped early.
    Stopped,
}

/// The work on a partition.
struct Part {
    producer: Producer,
    batch: Vec<Pending>,
    bytes: usize,
    /// What was sent or is in the batch: copies of a dead letter are sent once.
    taken: HashSet<Identity>,
}

impl<'a> Sender<'a> {
    pub(super) fn new(
        settings: &'a Settings,
        log: &'a Log,
        plan: &'a Plan,
        survey: Survey,
        subscriptions: SubscriptionLog,
        replayed: &'a mut DeadLetterCounts,
    ) -> Result<Self, Failure> {
        Ok(Self {
            settings,
            log,
            cluster: log.cluster()?,
            commands: settings.topics.commands(),
            dead_letters: settings.topics.dead_letters(),
            plan,
            way: Way::over(survey.parts.values()),
            survey,
            subscriptions,
            looked: clock::instant(),
            replayed,
            sent: 0,
            looked_up: false,
        })
    }

    pub(super) fn run(
        mut self,
        stop: &dyn Fn() -> bool,
        report: &mut dyn FnMut(Progress),
    ) -> Result<Reading, ReplayError> {
        self.look_up(Freshness::Latest, stop)?;
        let mut parts: VecDeque<Range> = self.survey.parts.values().copied().collect();
        let (mut wait, mut fenced) = (FIRST_WAIT, 0);
        while let Some(mut part) = parts.pop_front() {
            if stop() {
                return Ok(Reading::Stopped);
            }
            match self.part(&mut part, stop, report)? {
                Step::Done => fenced = 0,
                Step::Stopped => return Ok(Reading::Stopped),
                Step::Fenced => {
                    parts.push_back(part);
                    fenced += 1;
                    // The other run needs the time of a batch; both would fence each other again and again.
                    if fenced >= parts.len() {
                        pause(wait.mul_f64(0.5 + fastrand::f64()), stop);
                        wait = (wait * 2).min(LAST_WAIT);
                    }
                }
            }
            if self.plan.is_reached(self.replayed.letters()) {
                break;
            }
        }
        report(self.end());
        Ok(Reading::Complete)
    }

    /// Works on a partition, from `part.low` on; what is done is taken off it.
    fn part(
        &mut self,
        part: &mut Range,
        stop: &dyn Fn() -> bool,
        report: &mut dyn FnMut(Progress),
    ) -> Result<Step, ReplayError> {
        report(Progress {
            committing: true,
            ..self.progress()
        });
        let producer = match Producer::of_partition(self.settings, PURPOSE, part.partition) {
            Err(Failure::Fenced { .. }) => return Ok(Step::Fenced),
            producer => producer?,
        };
        report(self.progress());
        self.catch_up(part.partition, stop)?;
        let mut work = Part {
            producer,
            batch: Vec::new(),
            bytes: 0,
            taken: HashSet::new(),
        };
        let result = self.send(&mut work, part, stop, report);
        let result = match result {
            // A broker that loses the response of a commit, or another run that begins meanwhile: the next producer of the
            // partition ends the transaction, and what it has done can be read then. Once, or an error would be repeated.
            Err(ReplayError::NotCommitted(error)) if !self.looked_up => {
                self.looked_up = true;
                tracing::debug!(partition = part.partition, "read again: {error}");
                Err(ReplayError::TakenOver)
            }
            result => result,
        };
        match result {
            Err(ReplayError::TakenOver) => {
                // Either this run has committed its last batch, or the other one sees its dead letters as open.
                let unsent = work.batch.first().map(|first| first.letter.at.offset.0);
                let next = unsent.or_else(|| self.way.next(part.partition));
                part.low = next.unwrap_or(part.low).max(part.low);
                Ok(Step::Fenced)
            }
            Err(error) => {
                work.producer.abandon();
                Err(error)
            }
            step => step,
        }
    }

    /// Reads what has settled dead letters of the partition since it was last read.
    fn catch_up(&mut self, partition: i32, stop: &dyn Fn() -> bool) -> Result<(), Failure> {
        let end = self.log.settled_end(partition, stop)?;
        let read_to = self.survey.read_to.entry(partition).or_insert(end.low);
        let rest = Range {
            low: (*read_to).max(end.low),
            ..end
        };
        let (open, newer) = (&mut self.survey.open, &mut self.survey.newer);
        let (plan, cluster) = (self.plan, self.cluster.as_str());
        let reading = self.log.read::<Failure>(&[rest], stop, |message| {
            if let Some(settled) = newer.settled(message)
                && plan.accepts(&settled, cluster)
            {
                open.settle(&settled, place(message));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if reading == Reading::Complete {
            *read_to = rest.end.max(*read_to);
        }
        self.replayed.newer = self.survey.newer.clone();
        Ok(())
    }

    fn send(
        &mut self,
        work: &mut Part,
        part: &Range,
        stop: &dyn Fn() -> bool,
        report: &mut dyn FnMut(Progress),
    ) -> Result<Step, ReplayError> {
        if stop() {
            return Ok(Step::Stopped);
        }
        let log = self.log;
        log.read::<ReplayError>(&[*part], stop, |message| {
            let is_new = self.way.pass(message.partition(), message.offset());
            report(self.progress());
            self.take(work, message, is_new);
            if work.batch.len() >= self.plan.batch() || work.bytes >= MAX_BATCH_BYTES {
                self.flush(work, stop, report)?;
            }
            let taken = self.replayed.letters() + work.batch.len() as u64;
            Ok(if self.plan.is_reached(taken) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        })?;
        if stop() {
            return Ok(Step::Stopped);
        }
        self.flush(work, stop, report)?;
        Ok(Step::Done)
    }

    fn progress(&self) -> Progress {
        Progress {
            replayed: self.sent,
            ..self.way.progress(true)
        }
    }

    fn end(&mut self) -> Progress {
        Progress {
            replayed: self.sent,
            ..self.way.end(true)
        }
    }

    /// Takes a record to the batch if it is to be sent. What stays is counted when it is read for the first time.
    fn take(&mut self, work: &mut Part, message: &BorrowedMessage<'_>, is_new: bool) {
        let letter = match decode(message) {
            Ok(Some(letter)) => letter,
            Ok(None) | Err(Undecoded::Newer(_)) => return,
            Err(Undecoded::Unreadable(error)) => {
                tracing::warn!(record = %place(message), "unreadable record in the dead-letter topic: {error}");
                self.replayed.unreadable += u64::from(is_new);
                return;
            }
        };
        let is_taken = !self.replayed.newer.stops(letter.at.partition)
            && self.survey.open.is_open(&letter)
            && self.plan.filter.matches(&letter)
            && work.taken.insert(self.survey.open.identity(&letter));
        if !is_taken {
            return;
        }
        if let Some(why) = self.plan.withholds(&letter, self.subscriptions.fold()) {
            if is_new {
                self.replayed.withhold(&letter, why);
            }
            return;
        }
        work.bytes += message.payload_len();
        work.batch.push(Pending::new(letter, message));
    }

    /// Writes the batch; on success its dead letters are durably replayed. After a failure the batch is as it was.
    fn flush(
        &mut self,
        work: &mut Part,
        stop: &dyn Fn() -> bool,
        report: &mut dyn FnMut(Progress),
    ) -> Result<(), ReplayError> {
        self.withhold_again(work, stop)?;
        if work.batch.is_empty() {
            return Ok(());
        }
        report(Progress {
            committing: true,
            ..self.progress()
        });
        let now = clock::now();
        if let Err(error) = self.write(work, now) {
            let error = explain(error, work);
            if matches!(error, ReplayError::TakenOver) {
                self.count_committed(work, now, stop)?;
            }
            return Err(error);
        }
        let batch = std::mem::take(&mut work.batch);
        work.bytes = 0;
        self.count(&batch);
        report(self.progress());
        if let Some(pace) = self.plan.pace {
            let all = u32::try_from(batch.len()).unwrap_or(u32::MAX);
            pause(pace.saturating_mul(all), stop);
        }
        Ok(())
    }

    fn count(&mut self, batch: &[Pending]) {
        for letter in batch {
            let body = letter.body.as_ref();
            self.replayed.add(&letter.letter, body.map_or(0, Vec::len));
        }
        self.sent += batch.len() as u64;
    }

    /// Another run has fenced this one while it committed. The commit is final now: if the facts of `now` are there, it
    /// was completed.
    fn count_committed(
        &mut self,
        work: &mut Part,
        now: EpochMs,
        stop: &dyn Fn() -> bool,
    ) -> Result<(), ReplayError> {
        let Some(partition) = work.batch.first().map(|first| first.letter.at.partition) else {
            return Ok(());
        };
        self.catch_up(partition, stop)?;
        let how = self.plan.settlement();
        let open = &self.survey.open;
        let is_ours = |pending: &Pending| open.state(&pending.letter) == State::Settled(how, now);
        if work.batch.iter().all(is_ours) {
            let batch = std::mem::take(&mut work.batch);
            self.count(&batch);
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
    fn withhold_again(&mut self, work: &mut Part, stop: &dyn Fn() -> bool) -> Result<(), Failure> {
        if work.batch.is_empty() || self.looked.elapsed() < LOOK_UP {
            return Ok(());
        }
        self.look_up(Freshness::Visible, stop)?;
        let (fold, replayed, plan) = (self.subscriptions.fold(), &mut *self.replayed, self.plan);
        work.batch.retain(|pending| {
            let why = plan.withholds(&pending.letter, fold);
            if let Some(why) = why {
                replayed.withhold(&pending.letter, why);
            }
            why.is_none()
        });
        Ok(())
    }

    /// Writes the batch, and removes from it what the client refuses to write for its size.
    fn write(&mut self, work: &mut Part, now: EpochMs) -> Result<(), BatchError> {
        if self.plan.discards {
            return self.write_facts(work, now);
        }
        let mut tag = 0;
        while let Some(letter) = work.batch.get(tag) {
            let pairs: Vec<_> = letter
                .headers
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_slice()))
                .collect();
            let mut headers = dead_letter::replay_headers(&pairs, now);
            if let Some(to) = &self.plan.to_subscription {
                headers.retain(|(name, _)| *name != header::SUBSCRIPTION);
                headers.push((header::SUBSCRIPTION, to.as_bytes().into()));
            }
            let headers = headers
                .iter()
                .fold(OwnedHeaders::new(), |all, (key, value)| {
                    all.insert(Header {
                        key,
                        value: Some(value.as_ref()),
                    })
                });
            let sent = work.producer.send(Record {
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
                    work.batch.remove(tag);
                }
                Err(error) => return Err(error),
            }
        }
        if self.settings.guarantee == Guarantee::AtLeastOnce {
            // A settling record without its command would lose the dead letter; the reverse only repeats it.
            work.producer.acknowledged()?;
        }
        self.write_facts(work, now)
    }

    /// Writes that the dead letters of a batch are settled, and commits.
    fn write_facts(&self, work: &mut Part, now: EpochMs) -> Result<(), BatchError> {
        for (tag, letter) in work.batch.iter().enumerate() {
            let cluster = self.cluster.as_str();
            let fact = Settled::new(&letter.letter, self.plan.settlement(), now, cluster);
            let headers = text_headers(fact.headers());
            work.producer.send(Record {
                topic: &self.dead_letters,
                partition: Some(letter.letter.at.partition),
                key: letter.key.as_deref(),
                // Empty, not absent: a tombstone would delete records if the topic were compacted by mistake.
                value: Some(&[]),
                headers,
                tag,
            })?;
        }
        work.producer.finish(&[], None)
    }
}

fn explain(error: BatchError, work: &Part) -> ReplayError {
    ReplayError::of_batch(&work.producer, error, |tag| {
        Some(ReplayError::TooLarge(work.batch.get(tag)?.letter.at))
    })
}
