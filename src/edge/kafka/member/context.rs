//! Receives the client's callbacks: its log, its statistics and rebalances.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;

use super::health::ClientHealth;
use super::partition::{TopicPartition, list};
use crate::edge::kafka::error::is_unreachable;
use crate::edge::kafka::log::LogContext;
use crate::edge::port::gap::Gap;

pub(super) enum Event {
    Assign(Vec<TopicPartition>),
    Revoke {
        partitions: Vec<TopicPartition>,
        lost: bool,
    },
    Gap(Gap),
}

/// Queues rebalances and gaps for the poll loop.
pub(super) struct MemberContext {
    pub(super) log: LogContext,
    pub(super) events: Mutex<VecDeque<Event>>,
    pub(super) closing: AtomicBool,
    pub(super) health: ClientHealth,
    /// Partitions whose commit the broker has refused, while it may have taken others of the same request: then the
    /// commit itself reports no error.
    pub(super) refused: Mutex<Vec<(TopicPartition, KafkaError)>>,
    /// Set when the client has something to be polled, or may have.
    pub(super) ready: Arc<AtomicBool>,
    /// Set by each callback that a poll runs, that of a log line too: there may be more behind it, as the end of the
    /// membership behind the line that reports it.
    pub(super) called_back: AtomicBool,
}

impl MemberContext {
    pub(super) fn new(purpose: &'static str, health: ClientHealth) -> Self {
        Self {
            log: LogContext::new(purpose),
            events: Mutex::default(),
            closing: AtomicBool::new(false),
            health,
            refused: Mutex::default(),
            ready: Arc::new(AtomicBool::new(true)),
            called_back: AtomicBool::new(false),
        }
    }

    pub(super) fn next_event(&self) -> Option<Event> {
        self.events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }

    pub(super) fn take_refused(&self) -> Vec<(TopicPartition, KafkaError)> {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *refused)
    }

    pub(super) fn push_event(&self, event: Event) {
        self.events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(event);
    }
}

impl ClientContext for MemberContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.called_back.store(true, Ordering::Relaxed);
        self.log.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.called_back.store(true, Ordering::Relaxed);
        if is_unreachable(&error) {
            self.health.disturb();
        }
        self.log.error(error, reason);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        self.called_back.store(true, Ordering::Relaxed);
        self.health.read(statistics);
    }
}

impl ConsumerContext for MemberContext {
    fn commit_callback(&self, _: Result<(), KafkaError>, offsets: &TopicPartitionList) {
        self.called_back.store(true, Ordering::Relaxed);
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        for element in offsets.elements() {
            if let Err(error) = element.error() {
                let at = TopicPartition {
                    topic: Arc::from(element.topic()),
                    partition: element.partition(),
                };
                refused.push((at, error));
            }
        }
    }

    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        code: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        self.called_back.store(true, Ordering::Relaxed);
        let assigning = code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.closing.load(Ordering::Relaxed) {
            // The final commit is done; only the assignment remains to be released.
            if !assigning && let Err(error) = unassign(consumer, partitions) {
                tracing::debug!(
                    client = self.log.purpose,
                    "unassigning partitions on close failed: {error}"
                );
            }
            return;
        }
        let listed = list(partitions);
        let event = if assigning {
            Event::Assign(listed)
        } else {
            Event::Revoke {
                partitions: listed,
                lost: consumer.assignment_lost(),
            }
        };
        self.push_event(event);
    }
}

pub(super) fn unassign(
    consumer: &BaseConsumer<MemberContext>,
    partitions: &TopicPartitionList,
) -> Result<(), KafkaError> {
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_unassign(partitions),
        _ => consumer.unassign(),
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::error::RDKafkaErrorCode;

    use super::*;

    #[test]
    fn each_callback_of_a_poll_says_that_there_may_be_more_behind_it() {
        let context = MemberContext::new("deliver", ClientHealth::new(12_000));
        let unreachable = || KafkaError::Global(RDKafkaErrorCode::AllBrokersDown);
        let callbacks: [(&str, &dyn Fn()); 4] = [
            ("a log line", &|| {
                context.log(RDKafkaLogLevel::Warning, "SESSTMOUT", "session timed out");
            }),
            ("an error", &|| {
                context.error(unreachable(), "all brokers are down")
            }),
            ("statistics", &|| context.stats_raw(b"{}")),
            ("a commit", &|| {
                context.commit_callback(Ok(()), &TopicPartitionList::new());
            }),
        ];
        for (what, call) in callbacks {
            context.called_back.store(false, Ordering::Relaxed);
            call();
            assert!(context.called_back.load(Ordering::Relaxed), "{what}");
        }
    }
}
