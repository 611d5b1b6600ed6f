//! Forwards the client library's log to this program's log.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::cause;
use super::error::{Failure, is_refused, is_unreachable};

/// Why a connection failed.
#[derive(Clone, Debug)]
pub(super) struct Cause {
    /// Whether authentication failed.
    pub(super) is_refusal: bool,
    /// One line.
    pub(super) text: String,
}

/// Forwards librdkafka's log to `tracing`, with the client's purpose.
pub struct LogContext {
    pub(super) purpose: &'static str,
    /// When an unreachable broker was last logged, seconds since the epoch.
    logged: AtomicI64,
    /// Why the last connection failed.
    cause: Mutex<Option<Cause>>,
}

impl LogContext {
    /// The context of a client for `purpose`.
    #[must_use]
    pub fn new(purpose: &'static str) -> Self {
        Self {
            purpose,
            logged: AtomicI64::new(0),
            cause: Mutex::default(),
        }
    }

    /// Why the last connection failed. The client reports it once, not per attempt.
    pub(super) fn cause(&self) -> Option<Cause> {
        let cause = self.cause.lock().unwrap_or_else(PoisonError::into_inner);
        cause.clone()
    }

    fn note(&self, error: &KafkaError, text: &str) {
        let mut cause = self.cause.lock().unwrap_or_else(PoisonError::into_inner);
        // That all brokers are down follows from what was reported before.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *cause = is_unreachable(error).then(|| Cause {
                is_refusal: is_refused(error),
                text: text.to_owned(),
            });
        }
    }

    /// Notes a connection that the broker has closed: only a line of the log reports it, and only with
    /// `log.connection.close`. It says less than an authentication error before it.
    fn note_disconnect(&self, line: &str) {
        let mut cause = self.cause.lock().unwrap_or_else(PoisonError::into_inner);
        if !cause.as_ref().is_some_and(|cause| cause.is_refusal) {
            *cause = Some(Cause {
                is_refusal: false,
                text: cause::of(line),
            });
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
        if facility == "FAIL" {
            self.note_disconnect(message);
        }
        log_client(self.purpose, level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let client = self.purpose;
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF) {
            // Requested, and returned to the reader as an event.
            return;
        }
        let reason = cause::of(reason);
        self.note(&error, &reason);
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

/// Classifies an error of `client`. Any failure to connect surfaces as an unreachable broker, so its cause is added.
pub(crate) fn explain<C: rdkafka::consumer::ConsumerContext>(
    client: &BaseConsumer<C>,
    log: &LogContext,
    what: impl Into<String>,
    error: KafkaError,
) -> Failure {
    if is_unreachable(&error) {
        serve(client);
        match log.cause() {
            Some(Cause { is_refusal, text }) if is_refusal => {
                let what = what.into();
                return Failure::Refused { what, reason: text };
            }
            Some(Cause { text, .. }) => {
                let what = what.into();
                return Failure::Unreachable { what, cause: text };
            }
            None => {}
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
