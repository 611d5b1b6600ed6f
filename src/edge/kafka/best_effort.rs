//! A best-effort producer: it never blocks, and counts the records that it could not write.
//!
//! Its records are not part of any guarantee, so it uses no transactions, and has a client separate from the one that
//! writes outcomes: whatever happens to it, delivery continues.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::IntCounter;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
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

/// Limit of unacknowledged records in the client, KiB: beyond it, [`BestEffortProducer::write`] refuses records.
const QUEUE_KIB: u32 = 16 * 1024;
/// A record that is not acknowledged within this time is dropped.
const GIVE_UP: Duration = Duration::from_secs(60);
/// How long a batch accumulates: nothing waits for it, and large batches are cheaper for Kafka.
const LINGER: Duration = Duration::from_millis(500);
/// Limit of a batch, bytes: the batches of 64 partitions fit [`QUEUE_KIB`], so that the client does not send early for
/// lack of room.
const BATCH_BYTES: usize = 256 * 1024;
/// Minimum time between replacements of a failed client.
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// Events served per call; each is a batch of delivery reports or a log line.
const EVENTS: usize = 64;
/// Limit of the wait for the delivery reports of purged records, which arrive at once.
const LAST_REPORTS: Duration = Duration::from_millis(500);
/// Minimum time between log lines.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// One record to write.
#[derive(Clone, Copy)]
pub struct Note<'a> {
    /// The key, which determines the partition.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a [u8],
    /// Its timestamp.
    pub at: EpochMs,
}

/// Counts records that were not written. Reports of written records are disabled, since each would cost CPU.
struct Counts {
    log: LogContext,
    topic: String,
    counters: RecordCounters,
    /// Records that the client accepted and then dropped.
    lost: AtomicU64,
    throttle: Mutex<Throttle>,
}

impl Counts {
    /// Counts a dropped record. Its partition is not known if the client has not taken it.
    fn dropped(&self, partition: Option<i32>, error: &KafkaError) {
        self.counters.dropped.inc();
        let mut throttle = self.throttle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(suppressed) = throttle.pass(clock::instant()) {
            tracing::warn!(
                topic = self.topic,
                partition,
                suppressed,
                "attempt log record dropped, delivery continues: {error}"
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
        if let Err((error, record)) = result {
            self.lost.fetch_add(1, Ordering::Relaxed);
            // Below 0 before the client has chosen one, which it cannot without a broker.
            let partition = Some(record.partition()).filter(|&partition| partition >= 0);
            self.dropped(partition, error);
        }
    }
}

/// Counts records by outcome.
#[derive(Clone, Debug)]
pub struct RecordCounters {
    /// Acknowledged by the broker.
    pub written: IntCounter,
    /// Not written, for lack of room or because the broker did not accept them.
    pub dropped: IntCounter,
}

/// A best-effort producer for one topic.
pub struct BestEffortProducer {
    settings: Arc<Settings>,
    counters: RecordCounters,
    topic: String,
    client: Client,
    renewed: Instant,
}

/// A client, with counts of the records that it was given.
struct Client {
    producer: Arc<BaseProducer<Counts>>,
    taken: u64,
    /// Of those, counted as written.
    written: u64,
}

impl BestEffortProducer {
    /// A producer for `topic`.
    ///
    /// # Errors
    /// [`Failure`] when the client cannot be created.
    pub fn new(
        settings: &Arc<Settings>,
        counters: &RecordCounters,
        topic: String,
    ) -> Result<Self, Failure> {
        Ok(Self {
            client: Client::new(settings, counters, &topic)?,
            settings: Arc::clone(settings),
            counters: counters.clone(),
            topic,
            renewed: clock::instant(),
        })
    }

    /// Passes one record to the client, which queues it or counts it as dropped. Never blocks. Returns `false` if the
    /// client has no room: serve it and try again.
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
                self.client.producer.context().dropped(None, &error);
            }
        }
        true
    }

    /// Serves the client's events without waiting, and replaces a failed client.
    pub fn serve(&mut self) {
        for _ in 0..EVENTS {
            // With a timeout, the binding would busy-loop through its last millisecond.
            self.client.producer.poll(Duration::ZERO);
        }
        self.client.count(&self.counters, self.client.held());
        let now = clock::instant();
        if now - self.renewed < RENEW_EVERY {
            return;
        }
        if let Some((_, reason)) = self.client.producer.client().fatal_error() {
            self.renewed = now;
            let topic = &*self.topic;
            tracing::warn!(
                topic,
                "attempt log producer failed, creating a new one: {reason}"
            );
            match Client::new(&self.settings, &self.counters, topic) {
                Ok(client) => {
                    std::mem::replace(&mut self.client, client)
                        .close(&self.counters, Duration::ZERO);
                }
                Err(failure) => {
                    tracing::warn!(topic, "creating the attempt log producer failed: {failure}")
                }
            }
        }
    }

    /// Writes the remaining records for at most `patience`.
    pub fn close(self, patience: Duration) {
        self.client.close(&self.counters, patience);
    }
}

impl Client {
    fn new(
        settings: &Arc<Settings>,
        counters: &RecordCounters,
        topic: &str,
    ) -> Result<Self, Failure> {
        const PURPOSE: &str = "attempts";
        let context = Counts {
            log: LogContext::new(PURPOSE),
            topic: topic.to_owned(),
            counters: counters.clone(),
            lost: AtomicU64::new(0),
            throttle: Mutex::new(Throttle::new(LOG_EVERY)),
        };
        let mut config = producer_config(settings, PURPOSE);
        config
            .set("linger.ms", LINGER.as_millis().to_string())
            .set("batch.size", BATCH_BYTES.to_string())
            .set("queue.buffering.max.kbytes", QUEUE_KIB.to_string())
            .set("message.timeout.ms", GIVE_UP.as_millis().to_string())
            .set("delivery.report.only.error", "true");
        let producer: BaseProducer<Counts> = config
            .create_with_context(context)
            .map_err(|error| Failure::from_client("creating the attempt log producer", error))?;
        let producer = Arc::new(producer);
        bootstrap::keep(settings, &producer, |producer| producer.client(), PURPOSE)?;
        Ok(Self {
            producer,
            taken: 0,
            written: 0,
        })
    }

    /// The number of records in the client; pending events count too.
    fn held(&self) -> u64 {
        u64::try_from(self.producer.in_flight_count()).unwrap_or(0)
    }

    fn count(&mut self, counters: &RecordCounters, held: u64) {
        let lost = self.producer.context().lost.load(Ordering::Relaxed);
        let written = written(self.taken, lost, held).max(self.written);
        counters.written.inc_by(written - self.written);
        self.written = written;
    }

    /// Writes the remaining records for at most `patience`, then drops and counts the rest.
    fn close(mut self, counters: &RecordCounters, patience: Duration) {
        // Fails on timeout.
        self.producer.flush(patience).ok();
        self.producer
            .purge(PurgeConfig::default().queue().inflight());
        // Purged records are reported by now, or when the client is dropped.
        let held = match self.producer.flush(LAST_REPORTS) {
            Ok(()) => 0,
            Err(_) => self.held(),
        };
        self.count(counters, held);
    }
}

/// Records accepted, not lost and no longer held. Briefly too low, since `held` may count events too.
fn written(taken: u64, lost: u64, held: u64) -> u64 {
    taken.saturating_sub(lost).saturating_sub(held)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Layers, Machine, Source};

    #[test]
    fn records_neither_lost_nor_held_count_as_written() {
        assert_eq!(written(0, 0, 0), 0);
        assert_eq!(written(10, 0, 10), 0);
        assert_eq!(written(10, 3, 2), 5);
        assert_eq!(written(10, 10, 3), 0, "a log event counts as held");
    }

    #[test]
    fn without_a_broker_all_records_are_dropped_on_close() {
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
        let mut producer = BestEffortProducer::new(&settings, &counters, topic).unwrap();
        let note = Note {
            key: b"acme",
            value: b"{}",
            at: EpochMs(1),
        };
        for _ in 0..7 {
            assert!(producer.write(note));
        }
        producer.serve();
        assert_eq!(counters.dropped.get(), 0, "they are held");
        producer.close(Duration::ZERO);
        assert_eq!(counters.dropped.get(), 7);
        assert_eq!(counters.written.get(), 0);
    }
}
