//! A producer for what may be lost: it never makes anybody wait, and counts what it could not write.
//!
//! Its records are no part of any guarantee, so it is idempotent and has no transactions, and a client of its own,
//! apart from the one that writes outcomes: whatever happens to it, delivery goes on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};

use super::{Failure, LogContext, bootstrap, producer_config};
use crate::clock;
use crate::config::Settings;
use crate::metrics::{AttemptRecord, Metrics};
use crate::throttle::Throttle;
use crate::units::EpochMs;

/// What the client holds that is not acknowledged, KiB: past it, [`Scribe::write`] gives records back.
const QUEUE_KIB: u32 = 16 * 1024;
/// A record that the broker has not acknowledged by then is dropped.
const GIVE_UP: Duration = Duration::from_secs(60);
/// How long a batch gathers: nobody waits for it.
const LINGER: Duration = Duration::from_millis(100);
/// After a client that cannot go on, until the next one.
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// One log line in this time.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// One record to write.
pub struct Note<'a> {
    /// Its partition is the key's.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a [u8],
    /// In order.
    pub headers: OwnedHeaders,
    /// Its timestamp.
    pub at: EpochMs,
}

/// Counts what was written and what was not.
struct Counts {
    log: LogContext,
    metrics: Metrics,
    told: Mutex<Throttle>,
}

impl Counts {
    fn dropped(&self, error: &KafkaError) {
        self.metrics.attempt_records(AttemptRecord::Dropped).inc();
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
        match result {
            Ok(_) => self.metrics.attempt_records(AttemptRecord::Written).inc(),
            Err((error, _)) => self.dropped(error),
        }
    }
}

/// Writes to one topic.
pub struct Scribe {
    settings: Arc<Settings>,
    metrics: Metrics,
    topic: String,
    client: Arc<BaseProducer<Counts>>,
    renewed: Instant,
}

impl Scribe {
    /// For `topic`.
    ///
    /// # Errors
    /// [`Failure`] when the client cannot be made.
    pub fn new(
        settings: &Arc<Settings>,
        metrics: &Metrics,
        topic: String,
    ) -> Result<Self, Failure> {
        Ok(Self {
            client: connect(settings, metrics)?,
            settings: Arc::clone(settings),
            metrics: metrics.clone(),
            topic,
            renewed: clock::instant(),
        })
    }

    /// Hands one record to the client, which then has it or has counted it as dropped. Never waits.
    ///
    /// # Errors
    /// The record, when the client has no room: serve it, and try again.
    pub fn write<'a>(&self, note: Note<'a>) -> Result<(), Note<'a>> {
        let Note {
            key,
            value,
            headers,
            at,
        } = note;
        let record = BaseRecord::to(&self.topic)
            .key(key)
            .payload(value)
            .headers(headers)
            .timestamp(at.0);
        match self.client.send(record) {
            Ok(()) => Ok(()),
            Err((error, refused))
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) =>
            {
                Err(Note {
                    key,
                    value,
                    headers: refused.headers.unwrap_or_default(),
                    at,
                })
            }
            Err((error, _)) => {
                self.client.context().dropped(&error);
                Ok(())
            }
        }
    }

    /// Serves what the client has to tell, for at most `wait`. One that cannot go on is replaced.
    pub fn serve(&mut self, wait: Duration) {
        self.client.poll(wait);
        let now = clock::instant();
        if now - self.renewed < RENEW_EVERY {
            return;
        }
        if let Some((_, reason)) = self.client.client().fatal_error() {
            self.renewed = now;
            tracing::warn!("the producer of the log of attempts is made anew: {reason}");
            match connect(&self.settings, &self.metrics) {
                Ok(client) => self.client = client,
                Err(failure) => tracing::warn!("the log of attempts: {failure}"),
            }
        }
    }

    /// Writes what is left, for at most `patience`.
    pub fn close(self, patience: Duration) {
        // What is left counts as dropped when the client is.
        self.client.flush(patience).ok();
    }
}

fn connect(
    settings: &Arc<Settings>,
    metrics: &Metrics,
) -> Result<Arc<BaseProducer<Counts>>, Failure> {
    const PURPOSE: &str = "attempts";
    let context = Counts {
        log: LogContext::new(PURPOSE),
        metrics: metrics.clone(),
        told: Mutex::new(Throttle::new(TELL_EVERY)),
    };
    let mut config = producer_config(settings, PURPOSE);
    config
        .set("linger.ms", LINGER.as_millis().to_string())
        .set("queue.buffering.max.kbytes", QUEUE_KIB.to_string())
        .set("message.timeout.ms", GIVE_UP.as_millis().to_string());
    let client: BaseProducer<Counts> = config.create_with_context(context).map_err(|error| {
        Failure::from_client("creating the producer of the log of attempts", error)
    })?;
    let client = Arc::new(client);
    bootstrap::keep(settings, &client, |client| client.client())?;
    Ok(client)
}
