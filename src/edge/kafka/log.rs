//! Forwards the client library's log to this program's log.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::error::{Failure, is_refused, is_unreachable};

/// Forwards librdkafka's log to `tracing`, with the client's purpose.
pub struct LogContext {
    pub(super) purpose: &'static str,
    /// When an unreachable broker was last logged, seconds since the epoch.
    logged: AtomicI64,
    /// The last authentication error, if authentication failed last.
    refusal: Mutex<Option<String>>,
}

impl LogContext {
    /// The context of a client for `purpose`.
    #[must_use]
    pub fn new(purpose: &'static str) -> Self {
        Self {
            purpose,
            logged: AtomicI64::new(0),
            refusal: Mutex::default(),
        }
    }

    /// Why authentication failed, if it failed last. The client reports it once, not per attempt.
    pub(super) fn refusal(&self) -> Option<String> {
        let refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        refusal.clone()
    }

    fn note(&self, error: &KafkaError, reason: &str) {
        let mut refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        if is_refused(error) {
            *refusal = Some(reason.to_owned());
        } else if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            // It failed earlier, while connecting, or for another reason.
            *refusal = None;
        }
    }

    /// Rate limit: with an unreachable broker, every connection reports an error several times a second.
    fn may_log(&self) -> bool {
        const SECONDS_BETWEEN: i64 = 10;
        let now = crate::edge::clock::now().seconds();
        let logged = self.logged.load(Ordering::Relaxed);
        now - logged >= SECONDS_BETWEEN
            && self
                .logged
                .compare_exchange(logged, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

impl ClientContext for LogContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_client(self.purpose, level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let client = self.purpose;
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF) {
            // Requested, and returned to the reader as an event.
            return;
        }
        self.note(&error, reason);
        if is_refused(&error) {
            if self.may_log() {
                tracing::warn!(client, "connection not authenticated: {reason}");
            }
        } else if !is_unreachable(&error) {
            tracing::warn!(client, "{error}: {reason}");
        } else if self.may_log() {
            tracing::warn!(client, "broker unreachable: {reason}");
        } else {
            tracing::debug!(client, "broker unreachable: {reason}");
        }
    }
}

pub(crate) fn log_client(purpose: &str, level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error => {
            // The role receives the same problem as an error, and logs it with its meaning.
            tracing::debug!(target: "librdkafka", client = purpose, facility, "{message}");
        }
        // The client retries by itself; and a property from `-X` is passed to producers and consumers alike.
        RDKafkaLogLevel::Warning if matches!(facility, "GETPID" | "CONFWARN") => {
            tracing::debug!(target: "librdkafka", client = purpose, facility, "{message}");
        }
        RDKafkaLogLevel::Warning => {
            tracing::warn!(target: "librdkafka", client = purpose, facility, "{message}")
        }
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
            tracing::debug!(target: "librdkafka", client = purpose, facility, "{message}");
        }
        RDKafkaLogLevel::Debug => {
            tracing::trace!(target: "librdkafka", client = purpose, facility, "{message}")
        }
    }
}

/// Serves the log and error events of a client that is not polled otherwise.
pub(super) fn serve<C: rdkafka::consumer::ConsumerContext>(client: &BaseConsumer<C>) {
    /// Each call serves one event; this bounds the time.
    const EVENTS: usize = 100;
    for _ in 0..EVENTS {
        drop(client.poll(Duration::ZERO));
    }
}

/// Classifies an error of `client`. An authentication failure surfaces as an unreachable broker, so its reason is added.
pub(crate) fn explain<C: rdkafka::consumer::ConsumerContext>(
    client: &BaseConsumer<C>,
    log: &LogContext,
    what: impl Into<String>,
    error: KafkaError,
) -> Failure {
    if is_unreachable(&error) {
        serve(client);
        if let Some(reason) = log.refusal() {
            let what = what.into();
            return Failure::Refused { what, reason };
        }
    }
    Failure::from_client(what, error)
}

/// A consumer context that only logs.
pub struct LoggedConsumer(pub LogContext);

impl ClientContext for LoggedConsumer {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(error, reason);
    }
}

impl rdkafka::consumer::ConsumerContext for LoggedConsumer {}
