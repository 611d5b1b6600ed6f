//! Receives the callbacks of the client that reads: its log and its statistics.

use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;

use super::known_ends::KnownEnds;
use crate::edge::kafka::log::LogContext;

/// Receives the callbacks of the client that reads.
pub(super) struct ReaderContext {
    log: LogContext,
    /// The ends of partitions, as far as known.
    pub(super) ends: KnownEnds,
    /// The member is leaving.
    pub(super) closing: AtomicBool,
    /// Set by each callback that a poll runs: there may be more behind it.
    pub(super) called_back: AtomicBool,
}

impl ReaderContext {
    pub(super) fn new(purpose: &'static str) -> Self {
        Self {
            log: LogContext::new(purpose),
            ends: KnownEnds::default(),
            closing: AtomicBool::new(false),
            called_back: AtomicBool::new(false),
        }
    }
}

impl ClientContext for ReaderContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.called_back.store(true, Ordering::Relaxed);
        self.log.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.called_back.store(true, Ordering::Relaxed);
        self.log.error(error, reason);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.called_back.store(true, Ordering::Relaxed);
        self.ends.read(statistics);
    }
}

impl ConsumerContext for ReaderContext {}

#[cfg(test)]
mod tests {
    use rdkafka::error::RDKafkaErrorCode;

    use super::*;

    #[test]
    fn each_callback_of_a_poll_says_that_there_may_be_more_behind_it() {
        let context = ReaderContext::new("deliver");
        let unreachable = || KafkaError::Global(RDKafkaErrorCode::AllBrokersDown);
        let callbacks: [(&str, &dyn Fn()); 3] = [
            ("a log line", &|| {
                context.log(RDKafkaLogLevel::Warning, "FAIL", "connection closed")
            }),
            ("an error", &|| {
                context.error(unreachable(), "all brokers are down")
            }),
            ("statistics", &|| context.stats_raw(b"{}")),
        ];
        for (what, call) in callbacks {
            context.called_back.store(false, Ordering::Relaxed);
            call();
            assert!(context.called_back.load(Ordering::Relaxed), "{what}");
        }
    }
}
