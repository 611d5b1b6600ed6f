//! The client library's own log, written to this program's.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::error::{Failure, is_refused, is_unreachable};

/// Hands librdkafka's own log to `tracing`, with the client's purpose.
pub struct LogContext {
    pub(super) purpose: &'static str,
    /// When it was last told that no broker answers, seconds since the epoch.
    told: AtomicI64,
    /// What a broker said last, where it does not accept this client.
    refusal: Mutex<Option<String>>,
}

impl LogContext {
    /// For the client that is used for `purpose`.
    #[must_use]
    pub fn new(purpose: &'static str) -> Self {
        Self {
            purpose,
            told: AtomicI64::new(0),
            refusal: Mutex::default(),
        }
    }

    /// Why a broker does not accept this client, if that was what it did last. The client says so once, not each time.
    pub(super) fn refusal(&self) -> Option<String> {
        let refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        refusal.clone()
    }

    fn note(&self, error: &KafkaError, reason: &str) {
        let mut refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        if is_refused(error) {
            *refusal = Some(reason.to_owned());
        } else if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            // It got no further than to connect, or failed at something else.
            *refusal = None;
        }
    }

    /// A broker that is away makes every connection complain several times a second: one line says it all.
    fn may_tell(&self) -> bool {
        const SECONDS_BETWEEN: i64 = 10;
        let now = crate::edge::clock::now().seconds();
        let told = self.told.load(Ordering::Relaxed);
        now - told >= SECONDS_BETWEEN
            && self
                .told
                .compare_exchange(told, now, Ordering::Relaxed, Ordering::Relaxed)
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
            // Asked for, and told to the reader as an event of its own.
            return;
        }
        self.note(&error, reason);
        if is_refused(&error) {
            if self.may_tell() {
                tracing::warn!(client, "connection not authenticated: {reason}");
            }
        } else if !is_unreachable(&error) {
            tracing::warn!(client, "{error}: {reason}");
        } else if self.may_tell() {
            tracing::warn!(client, "a broker does not answer: {reason}");
        } else {
            tracing::debug!(client, "a broker does not answer: {reason}");
        }
    }
}

pub(crate) fn log_client(purpose: &str, level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error => {
            // The same trouble reaches the role as an error, which is logged with what it means.
            tracing::debug!(target: "librdkafka", client = purpose, facility, "{message}");
        }
        // The client tries again by itself; and a property of `-X` goes to producers and consumers alike.
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

/// Serves the log and error events of a client that nobody polls.
pub(super) fn serve<C: rdkafka::consumer::ConsumerContext>(client: &BaseConsumer<C>) {
    /// Each call serves one; more than these are not worth the time.
    const EVENTS: usize = 100;
    for _ in 0..EVENTS {
        drop(client.poll(Duration::ZERO));
    }
}

/// What the error of `client` means, with what a broker said that does not accept it: a call ends with no more than that
/// no broker answers.
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
