//! A producer for what may be lost: it never makes anybody wait, and counts what it could not write.
//!
//! Its records are no part of any guarantee, so it is idempotent and has no transactions, and a client of its own,
//! apart from the one that writes outcomes: whatever happens to it, delivery goes on.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::IntCounter;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{
    BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig,
};

use super::bootstrap;
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::client::producer_config;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log::LogContext;
use crate::model::throttle::Throttle;
use crate::model::units::EpochMs;

/// What the client holds that is not acknowledged, KiB: past it, [`Scribe::write`] gives records back.
const QUEUE_KIB: u32 = 16 * 1024;
/// A record that the broker has not acknowledged by then is dropped.
const GIVE_UP: Duration = Duration::from_secs(60);
/// How long a batch gathers: nobody waits for it, and large ones cost Kafka less.
const LINGER: Duration = Duration::from_millis(500);
/// But no longer than until it is so large, bytes: the batches of 64 partitions have room in [`QUEUE_KIB`], and the
/// client does not send earlier for want of it.
const BATCH_BYTES: usize = 256 * 1024;
/// After a client that cannot go on, until the next one.
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// What the client has to tell comes in portions: of so many records, or a line of its log. So many are taken at a time.
const PORTIONS: usize = 64;
/// What became of the records that are given up is told at once; no longer is waited for it.
const LAST_REPORTS: Duration = Duration::from_millis(500);
/// One log line in this time.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// One record to write.
#[derive(Clone, Copy)]
pub struct Note<'a> {
    /// Its partition is the key's.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a [u8],
    /// Its timestamp.
    pub at: EpochMs,
}

/// Counts what was not written. The client does not report what was, which would cost at each record.
struct Counts {
    log: LogContext,
    counters: RecordCounters,
    /// Of those that the client had taken.
    lost: AtomicU64,
    told: Mutex<Throttle>,
}

impl Counts {
    fn dropped(&self, error: &KafkaError) {
        self.counters.dropped.inc();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(untold) = told.pass(clock::instant()) {
            tracing::warn!(
                untold,
                "a record of the log of attempts was not written: {error}; delivery goes on"
            );
        }
    }
}

impl ClientContext for Counts {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.log.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.log.error(error, reason);
    }
}

impl ProducerContext for Counts {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.lost.fetch_add(1, Ordering::Relaxed);
            self.dropped(error);
        }
    }
}

/// What became of records.
#[derive(Clone, Debug)]
pub struct RecordCounters {
    /// The broker has them.
    pub written: IntCounter,
    /// There was no room for them, or the broker did not take them.
    pub dropped: IntCounter,
}

/// Writes to one topic.
pub struct Scribe {
    settings: Arc<Settings>,
    counters: RecordCounters,
    topic: String,
    client: Client,
    renewed: Instant,
}

/// A client, and what became of the records that it was given.
struct Client {
    producer: Arc<BaseProducer<Counts>>,
    taken: u64,
    /// Of those, counted.
    written: u64,
}

impl Scribe {
    /// For `topic`.
    ///
    /// # Errors
    /// [`Failure`] when the client cannot be made.
    pub fn new(
        settings: &Arc<Settings>,
        counters: &RecordCounters,
        topic: String,
    ) -> Result<Self, Failure> {
        Ok(Self {
            client: Client::new(settings, counters)?,
            settings: Arc::clone(settings),
            counters: counters.clone(),
            topic,
            renewed: clock::instant(),
        })
    }

    /// Hands one record to the client, which then has it or has counted it as dropped. Never waits. False: the client
    /// has no room; serve it, and try again.
    #[must_use]
    pub fn write(&mut self, note: Note<'_>) -> bool {
        let record = BaseRecord::to(&self.topic)
            .key(note.key)
            .payload(note.value)
            .timestamp(note.at.0);
        match self.client.producer.send(record) {
            Ok(()) => self.client.taken += 1,
            Err((error, _)) => {
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) {
                    return false;
                }
                self.client.producer.context().dropped(&error);
            }
        }
        true
    }

    /// Serves what the client has to tell; does not wait for any. A client that cannot go on is replaced.
    pub fn serve(&mut self) {
        for _ in 0..PORTIONS {
            // Given time, the binding would spin through the last millisecond of it.
            self.client.producer.poll(Duration::ZERO);
        }
        self.client.count(&self.counters, self.client.held());
        let now = clock::instant();
        if now - self.renewed < RENEW_EVERY {
            return;
        }
        if let Some((_, reason)) = self.client.producer.client().fatal_error() {
            self.renewed = now;
            tracing::warn!("the producer of the log of attempts is made anew: {reason}");
            match Client::new(&self.settings, &self.counters) {
                Ok(client) => {
                    std::mem::replace(&mut self.client, client)
                        .close(&self.counters, Duration::ZERO);
                }
                Err(failure) => tracing::warn!("the log of attempts: {failure}"),
            }
        }
    }

    /// Writes what is left, for at most `patience`.
    pub fn close(self, patience: Duration) {
        self.client.close(&self.counters, patience);
    }
}

impl Client {
    fn new(settings: &Arc<Settings>, counters: &RecordCounters) -> Result<Self, Failure> {
        const PURPOSE: &str = "attempts";
        let context = Counts {
            log: LogContext::new(PURPOSE),
            counters: counters.clone(),
            lost: AtomicU64::new(0),
            told: Mutex::new(Throttle::new(TELL_EVERY)),
        };
        let mut config = producer_config(settings, PURPOSE);
        config
            .set("linger.ms", LINGER.as_millis().to_string())
            .set("batch.size", BATCH_BYTES.to_string())
            .set("queue.buffering.max.kbytes", QUEUE_KIB.to_string())
            .set("message.timeout.ms", GIVE_UP.as_millis().to_string())
            .set("delivery.report.only.error", "true");
        let producer: BaseProducer<Counts> =
            config.create_with_context(context).map_err(|error| {
                Failure::from_client("creating the producer of the log of attempts", error)
            })?;
        let producer = Arc::new(producer);
        bootstrap::keep(settings, &producer, |producer| producer.client())?;
        Ok(Self {
            producer,
            taken: 0,
            written: 0,
        })
    }

    /// How many records the client may hold: what it has to tell counts too.
    fn held(&self) -> u64 {
        u64::try_from(self.producer.in_flight_count()).unwrap_or(0)
    }

    fn count(&mut self, counters: &RecordCounters, held: u64) {
        let lost = self.producer.context().lost.load(Ordering::Relaxed);
        let written = written(self.taken, lost, held).max(self.written);
        counters.written.inc_by(written - self.written);
        self.written = written;
    }

    /// Writes what is left, for at most `patience`; the rest is dropped and counted.
    fn close(mut self, counters: &RecordCounters, patience: Duration) {
        // It fails when time is up.
        self.producer.flush(patience).ok();
        self.producer
            .purge(PurgeConfig::default().queue().inflight());
        // What was given up is told by now, or when the client is dropped.
        let held = match self.producer.flush(LAST_REPORTS) {
            Ok(()) => 0,
            Err(_) => self.held(),
        };
        self.count(counters, held);
    }
}

/// What was taken, is not lost and is not held any more. Too small for a moment where more counts as held than is.
fn written(taken: u64, lost: u64, held: u64) -> u64 {
    taken.saturating_sub(lost).saturating_sub(held)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Layers, Machine, Source};

    #[test]
    fn what_is_neither_lost_nor_held_was_written() {
        assert_eq!(written(0, 0, 0), 0);
        assert_eq!(written(10, 0, 10), 0);
        assert_eq!(written(10, 3, 2), 5);
        assert_eq!(written(10, 10, 3), 0, "a line of the log counts as held");
    }

    #[test]
    fn without_a_broker_each_record_is_dropped_at_the_end_and_none_is_written() {
        let mut layers = Layers::new();
        layers.give("brokers", Source::Flag, "127.0.0.1:1");
        let machine = Machine {
            host_name: "replica-0".to_owned(),
            cores: 2,
        };
        let settings = Arc::new(Settings::check(&layers, &machine).unwrap());
        let counter = |name| IntCounter::new(name, "of a test").unwrap();
        let counters = RecordCounters {
            written: counter("written"),
            dropped: counter("dropped"),
        };
        let topic = settings.topics.attempts();
        let mut scribe = Scribe::new(&settings, &counters, topic).unwrap();
        let note = Note {
            key: b"acme",
            value: b"{}",
            at: EpochMs(1),
        };
        for _ in 0..7 {
            assert!(scribe.write(note));
        }
        scribe.serve();
        assert_eq!(counters.dropped.get(), 0, "they are held");
        scribe.close(Duration::ZERO);
        assert_eq!(counters.dropped.get(), 7);
        assert_eq!(counters.written.get(), 0);
    }
}
