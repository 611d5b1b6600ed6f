//! Forwards the client library's log to this program's log.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::cause;
use super::error::{Failure, is_denied, is_refused, is_unreachable};
use crate::edge::port::failure::ClientError;

/// Why requests of a client get no response.
#[derive(Clone, Debug)]
pub(super) struct Cause {
    /// Whether authentication failed.
    pub(super) is_refusal: bool,
    /// The broker's error if it denies permission: the client goes on asking for a group's coordinator, and its requests
    /// time out.
    denial: Option<ClientError>,
    /// One line.
    pub(super) text: String,
}

/// Forwards librdkafka's log to `tracing`, with the client's purpose.
pub struct LogContext {
    pub(super) purpose: &'static str,
    /// When an unreachable broker was last logged, seconds since the epoch.
    logged: AtomicI64,
    /// Why the last connection failed, or what was denied since then.
    cause: Mutex<Option<Cause>>,
    /// Whether nobody uses the client any more.
    ended: AtomicBool,
}

impl LogContext {
    /// The context of a client for `purpose`.
    #[must_use]
    pub fn new(purpose: &'static str) -> Self {
        Self {
            purpose,
            logged: AtomicI64::new(0),
            cause: Mutex::default(),
            ended: AtomicBool::new(false),
        }
    }

    /// What happens to the client from now on is no problem: it is not used any more, but may take a second to end.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Why the last connection failed, or what was denied since then. The client reports it once, not per attempt.
    pub(super) fn cause(&self) -> Option<Cause> {
        let cause = self.cause.lock().unwrap_or_else(PoisonError::into_inner);
        cause.clone()
    }

    fn note(&self, error: &KafkaError, text: &str) {
        let mut cause = self.cause.lock().unwrap_or_else(PoisonError::into_inner);
        // That all brokers are down follows from what was reported before.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            let denial = is_denied(error).then(|| ClientError::from(error.clone()));
            *cause = (is_unreachable(error) || denial.is_some()).then(|| Cause {
                is_refusal: is_refused(error),
                denial,
                text: text.to_owned(),
            });
        }
    }

    /// Notes a connection that the broker has closed: only a line of the log reports it, and only with
    /// `log.connection.close`. It says less than an authentication error or a denial before it.
    fn note_disconnect(&self, line: &str) {
        let mut cause = self.cause.lock().unwrap_or_else(PoisonError::into_inner);
        let says_more = |cause: &Cause| cause.is_refusal || cause.denial.is_some();
        if !cause.as_ref().is_some_and(says_more) {
            *cause = Some(Cause {
                is_refusal: false,
                denial: None,
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
        if self.ended.load(Ordering::Relaxed) {
            tracing::debug!(client, "client no longer in use: {error}: {reason}");
        } else if is_refused(&error) {
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

/// Classifies an error of `client`. Any failure to connect, and a denied group, surface as an unreachable broker, so the
/// cause is added.
pub(crate) fn explain<C: rdkafka::consumer::ConsumerContext>(
    client: &BaseConsumer<C>,
    log: &LogContext,
    what: impl Into<String>,
    error: KafkaError,
) -> Failure {
    if is_unreachable(&error) {
        serve(client);
        let what = what.into();
        return match log.cause() {
            Some(Cause {
                denial: Some(source),
                ..
            }) => Failure::Denied { what, source },
            Some(Cause {
                is_refusal: true,
                text,
                ..
            }) => Failure::Refused { what, reason: text },
            Some(Cause { text, .. }) => Failure::Unreachable { what, cause: text },
            None => Failure::from_client(what, error),
        };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::port::failure::ErrorKind;

    #[test]
    fn a_denial_is_the_cause_until_a_connection_fails() {
        let log = LogContext::new("test");
        let denied = KafkaError::Global(RDKafkaErrorCode::GroupAuthorizationFailed);
        log.error(denied, "FindCoordinator response error");
        let denial = |log: &LogContext| log.cause().and_then(|cause| cause.denial);
        assert_eq!(denial(&log).unwrap().kind(), ErrorKind::Denied);
        for follows in [
            RDKafkaErrorCode::AllBrokersDown,
            RDKafkaErrorCode::PartitionEOF,
        ] {
            log.error(KafkaError::Global(follows), "");
            assert!(denial(&log).is_some(), "{follows:?}");
        }
        log.log(RDKafkaLogLevel::Info, "FAIL", "Disconnected");
        assert!(denial(&log).is_some());
        let down = KafkaError::Global(RDKafkaErrorCode::BrokerTransportFailure);
        log.error(down, "Connection refused");
        let cause = log.cause().unwrap();
        assert!(cause.denial.is_none() && !cause.is_refusal, "{cause:?}");
    }
}
