//! The attempt log: workers hand entries to a separate thread, which writes them.
//!
//! A worker never waits for the log. Unwritten entries are bounded by [`MAX_HELD_BYTES`]; past that, they are dropped
//! and counted, as are those that the broker rejects. Nothing else depends on the log. A crash loses the most recent
//! entries. An attempt that is cut off is not logged: by a kill, or by the drain deadline when the process ends or its
//! partition moves to another replica.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;

use super::metrics::{AttemptRecord, DeliveryMetrics};
use crate::edge::kafka::best_effort::{BestEffortProducer, Note};
use crate::edge::kafka::error::Failure;
use crate::model::attempt::{Attempt, Excerpt, Facts};
use crate::model::command::Command;
use crate::model::outcome::AttemptOutcome;
use crate::model::units::EpochMs;
use crate::runtime::context::RoleContext;

use crate::model::outcome::Class;

/// The most bytes of entries that a replica's workers have noted and the client has not accepted; past it, entries are
/// dropped.
const MAX_HELD_BYTES: usize = 16 * 1024 * 1024;
/// A worker hands over this many entries at once, or what it has each time it reports its state.
const BATCH: usize = 256;
/// How long the thread waits for more entries before it serves its client.
const TURN: Duration = Duration::from_millis(50);
/// The delay between two tries while the client has no room.
const FULL: Duration = Duration::from_millis(1);
/// The time limit for the remaining entries at the end; after that, the rest is dropped and counted.
const LAST: Duration = Duration::from_secs(2);

/// An attempt that has ended.
#[derive(Debug)]
pub(super) struct Entry {
    /// Without its body.
    command: Box<Command>,
    facts: AttemptFacts,
    outcome: AttemptOutcome,
    error: Option<Box<str>>,
    pub(super) excerpt: Option<Excerpt>,
}

/// What is known at the end of an attempt, before its outcome.
#[derive(Debug)]
pub(super) struct AttemptFacts {
    pub(super) number: u32,
    pub(super) began: EpochMs,
    pub(super) took: Duration,
    pub(super) url: Arc<str>,
    pub(super) status: Option<u16>,
    pub(super) class: Class,
}

impl Entry {
    pub(super) fn new(
        facts: AttemptFacts,
        mut command: Box<Command>,
        outcome: AttemptOutcome,
        error: Option<Box<str>>,
    ) -> Self {
        command.body = Bytes::new();
        Self {
            command,
            facts,
            outcome,
            error,
            excerpt: None,
        }
    }

    /// The size of its texts plus the fixed overhead of a command.
    fn weight(&self) -> usize {
        let command = &self.command;
        let texts = [
            &command.subscriber,
            &command.webhook_id,
            &command.subscription,
            &command.event_id,
            &command.event_type,
        ];
        let others = [
            &command.event_time,
            &command.subject,
            &command.traceparent,
            &self.error,
        ];
        let others = others.into_iter().flatten();
        let excerpt = self.excerpt.as_ref().map(|excerpt| &excerpt.text);
        let texts = texts.into_iter().chain(others).chain(excerpt);
        command.weight() + texts.map(|text| text.len()).sum::<usize>()
    }

    fn attempt(&self) -> Attempt<'_> {
        let facts = &self.facts;
        Attempt::new(
            &self.command,
            Facts {
                number: facts.number,
                began: facts.began,
                took: facts.took,
                url: &facts.url,
                status: facts.status,
                class: facts.class.as_str(),
                outcome: self.outcome.as_str(),
                error: self.error.as_deref(),
                excerpt: self.excerpt.as_ref(),
            },
        )
    }
}

/// A worker's handle to the log.
pub(super) struct Notes {
    batch: Vec<Entry>,
    to: Sender<Vec<Entry>>,
    held: Arc<AtomicUsize>,
    metrics: DeliveryMetrics,
}

impl Notes {
    pub(super) fn add(&mut self, entry: Entry) {
        let weight = entry.weight();
        if self.held.load(Ordering::Relaxed) + weight > MAX_HELD_BYTES {
            self.metrics.attempt_records(AttemptRecord::Dropped).inc();
            return;
        }
        self.held.fetch_add(weight, Ordering::Relaxed);
        self.batch.push(entry);
        if self.batch.len() >= BATCH {
            self.hand_over();
        }
    }

    pub(super) fn hand_over(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
        if let Err(refused) = self.to.send(batch) {
            // The log's thread has panicked: nothing is held any more, and nothing will be written.
            let count = refused.0.len() as u64;
            self.held.store(0, Ordering::Relaxed);
            self.metrics
                .attempt_records(AttemptRecord::Dropped)
                .inc_by(count);
        }
    }
}

/// The log's thread.
pub(super) struct AttemptLog {
    to: Sender<Vec<Entry>>,
    held: Arc<AtomicUsize>,
    metrics: DeliveryMetrics,
    ending: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl AttemptLog {
    pub(super) fn start(context: &RoleContext, metrics: &DeliveryMetrics) -> Result<Self, Failure> {
        let topic = context.settings.topics.attempts();
        let producer =
            BestEffortProducer::new(&context.settings, &metrics.record_counters(), topic)?;
        let (to, inbox) = channel();
        let held = Arc::new(AtomicUsize::new(0));
        let ending = Arc::new(AtomicBool::new(false));
        let mut writer = Writer {
            producer,
            held: Arc::clone(&held),
            ending: Arc::clone(&ending),
            metrics: metrics.clone(),
            value: Vec::new(),
        };
        let thread = std::thread::Builder::new()
            .name("attempts".to_owned())
            .spawn(move || {
                writer.work(&inbox);
                writer.producer.close(LAST);
            })
            .map_err(|error| {
                Failure::Internal(format!(
                    "starting the thread of the log of attempts: {error}"
                ))
            })?;
        Ok(Self {
            to,
            held,
            metrics: metrics.clone(),
            ending,
            thread,
        })
    }

    pub(super) fn notes(&self) -> Notes {
        Notes {
            batch: Vec::with_capacity(BATCH),
            to: self.to.clone(),
            held: Arc::clone(&self.held),
            metrics: self.metrics.clone(),
        }
    }

    /// Writes the remaining entries, once every worker has ended.
    pub(super) fn end(self) {
        self.ending.store(true, Ordering::Relaxed);
        drop(self.to);
        if self.thread.join().is_err() {
            tracing::error!("the thread of the log of attempts has panicked");
        }
    }
}

struct Writer {
    producer: BestEffortProducer,
    held: Arc<AtomicUsize>,
    ending: Arc<AtomicBool>,
    metrics: DeliveryMetrics,
    /// Reusable buffer for a record's value.
    value: Vec<u8>,
}

impl Writer {
    fn work(&mut self, inbox: &Receiver<Vec<Entry>>) {
        loop {
            match inbox.recv_timeout(TURN) {
                Ok(batch) => {
                    for entry in batch {
                        self.write(&entry);
                        self.held.fetch_sub(entry.weight(), Ordering::Relaxed);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.producer.serve();
        }
    }

    fn write(&mut self, entry: &Entry) {
        self.value.clear();
        // Text and numbers always serialize to JSON, and writes to memory do not fail.
        if serde_json::to_writer(&mut self.value, &entry.attempt()).is_err() {
            return;
        }
        let note = Note {
            key: entry.command.subscriber.as_bytes(),
            value: &self.value,
            at: entry.facts.began,
        };
        while !self.producer.write(note) {
            if self.ending.load(Ordering::Relaxed) {
                self.metrics.attempt_records(AttemptRecord::Dropped).inc();
                return;
            }
            std::thread::sleep(FULL);
            self.producer.serve();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::command::{Cause, ContentType};
    use crate::runtime::metrics::Registry;

    fn entry(body: &'static str) -> Entry {
        let command = Command {
            subscriber: "acme".into(),
            webhook_id: "msg_1".into(),
            subscription: "s".into(),
            event_id: "e".into(),
            event_type: "t".into(),
            event_time: None,
            subject: None,
            content_type: ContentType::Json,
            attempt: 0,
            due: None,
            enqueued: EpochMs(0),
            cause: Cause::New,
            traceparent: None,
            first_failure: None,
            last_failure: None,
            replayed: None,
            sequence: None,
            recorded: None,
            cluster: None,
            body: Bytes::from_static(body.as_bytes()),
        };
        let facts = AttemptFacts {
            number: 1,
            began: EpochMs(0),
            took: Duration::from_micros(1500),
            url: "https://a.example/".into(),
            status: Some(200),
            class: Class::Success,
        };
        Entry::new(facts, Box::new(command), AttemptOutcome::Delivered, None)
    }

    fn notes() -> (Notes, Receiver<Vec<Entry>>) {
        let (to, inbox) = channel();
        let notes = Notes {
            batch: Vec::new(),
            to,
            held: Arc::new(AtomicUsize::new(0)),
            metrics: DeliveryMetrics::register(&Registry::new()),
        };
        (notes, inbox)
    }

    fn dropped(notes: &Notes) -> u64 {
        notes.metrics.attempt_records(AttemptRecord::Dropped).get()
    }

    #[test]
    fn a_note_does_not_hold_the_body_that_was_sent() {
        assert!(entry("a body").command.body.is_empty());
    }

    #[test]
    fn notes_are_handed_over_in_batches_or_when_told() {
        let (mut notes, inbox) = notes();
        (0..BATCH + 1).for_each(|_| notes.add(entry("")));
        assert_eq!(inbox.try_recv().unwrap().len(), BATCH);
        assert!(inbox.try_recv().is_err(), "the last one still gathers");
        notes.hand_over();
        notes.hand_over();
        assert_eq!(inbox.try_recv().unwrap().len(), 1);
        assert!(inbox.try_recv().is_err(), "nothing is handed over twice");
    }

    #[test]
    fn when_too_much_is_held_records_are_dropped_and_counted() {
        let (mut notes, inbox) = notes();
        let fit = MAX_HELD_BYTES / entry("").weight();
        (0..fit + 7).for_each(|_| notes.add(entry("")));
        notes.hand_over();
        assert_eq!(
            inbox.try_iter().map(|batch| batch.len()).sum::<usize>(),
            fit
        );
        assert_eq!(dropped(&notes), 7);
    }

    #[test]
    fn an_entry_weighs_what_its_texts_do() {
        let mut entry = entry("");
        let before = entry.weight();
        let long: Box<str> = "x".repeat(1000).into();
        entry.command.event_id = long.clone();
        entry.command.subject = Some(long.clone());
        entry.error = Some(long.clone());
        let truncated = false;
        entry.excerpt = Some(Excerpt {
            text: long,
            truncated,
        });
        assert_eq!(entry.weight(), before + 4000 - "e".len());
    }

    #[test]
    fn when_the_logs_thread_is_gone_a_worker_goes_on() {
        let (mut notes, inbox) = notes();
        drop(inbox);
        (0..BATCH * 2).for_each(|_| notes.add(entry("")));
        assert_eq!(dropped(&notes), BATCH as u64 * 2);
    }

    #[test]
    fn an_entry_tells_what_was_answered_and_how_fast() {
        let entry = entry("");
        let told = entry.attempt();
        assert_eq!(
            (told.attempt, told.status, told.duration_ms),
            (1, Some(200), 1.5)
        );
        assert_eq!((&*told.class, &*told.outcome), ("2xx", "delivered"));
    }
}
