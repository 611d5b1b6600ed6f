//! The delivery reports of a batch: how many records are outstanding, and which were refused.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message as _, Timestamp};
use rdkafka::producer::{DeliveryResult, ProducerContext};

use crate::edge::clock;
use crate::edge::kafka::log::LogContext;
use crate::edge::port::failure::{ClientError, Refused};
use crate::edge::port::records::{Stamp, TopicPartition};
use crate::model::units::EpochMs;

/// The delivery reports of the current batch.
pub(super) struct Deliveries {
    pub(super) outstanding: AtomicUsize,
    /// How many records of each tag were acknowledged, in order; kept if somebody takes them.
    acknowledged: Option<Mutex<Vec<(usize, u32)>>>,
    failed: Mutex<Vec<Refused>>,
    none_left: Condvar,
    /// The first record since the last look that a broker has stamped.
    stamp: Mutex<Option<Stamp>>,
}

impl Deliveries {
    /// None yet. With `keeps`, what is acknowledged is kept until [`Deliveries::take`].
    pub(super) fn new(keeps: bool) -> Self {
        Self {
            outstanding: AtomicUsize::new(0),
            acknowledged: keeps.then(Mutex::default),
            failed: Mutex::default(),
            none_left: Condvar::new(),
            stamp: Mutex::default(),
        }
    }

    fn report(&self, tag: usize, result: Result<(), Refused>) {
        match result {
            Ok(()) => self.acknowledge(tag),
            Err(refused) => self
                .failed
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(refused),
        }
        if self.outstanding.fetch_sub(1, Ordering::AcqRel) == 1 {
            // Under the lock, so that a waiter cannot miss the notification between its check and its wait.
            drop(self.failed.lock().unwrap_or_else(PoisonError::into_inner));
            self.none_left.notify_all();
        }
    }

    /// Takes note of the time that a broker gave to a record, if it did.
    fn stamped(&self, message: &BorrowedMessage<'_>) {
        let Timestamp::LogAppendTime(at) = message.timestamp() else {
            return;
        };
        let mut stamp = self.stamp.lock().unwrap_or_else(PoisonError::into_inner);
        stamp.get_or_insert_with(|| Stamp {
            at: TopicPartition {
                topic: message.topic().into(),
                partition: message.partition(),
            },
            stamped: EpochMs(at),
            seen: clock::now(),
        });
    }

    /// A record that a broker has stamped since the last call.
    pub(super) fn take_stamp(&self) -> Option<Stamp> {
        let mut stamp = self.stamp.lock().unwrap_or_else(PoisonError::into_inner);
        stamp.take()
    }

    fn acknowledge(&self, tag: usize) {
        let Some(acknowledged) = &self.acknowledged else {
            return;
        };
        let mut all = acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        match all.last_mut() {
            Some((last, count)) if *last == tag => *count += 1,
            _ => all.push((tag, 1)),
        }
    }

    /// What was acknowledged since the last call; the first one of the records that were refused instead, if any.
    pub(super) fn take(&self) -> Result<Vec<(usize, u32)>, (usize, ClientError)> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = std::mem::take(&mut *failed).into_iter().next() {
            return Err((first.tag, first.error));
        }
        drop(failed);
        let Some(acknowledged) = &self.acknowledged else {
            return Ok(Vec::new());
        };
        let mut all = acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::take(&mut *all))
    }

    /// Waits until every record is acknowledged or rejected. Terminates because `message.timeout.ms` bounds how long a
    /// record is neither.
    pub(super) fn wait(&self) -> Result<(), (usize, ClientError)> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        while self.outstanding.load(Ordering::Acquire) > 0 {
            failed = self
                .none_left
                .wait(failed)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let first = std::mem::take(&mut *failed).into_iter().next();
        first.map_or(Ok(()), |refused| Err((refused.tag, refused.error)))
    }

    /// The same for at most `time`: the records that were not written, or `None` while some are neither.
    pub(super) fn wait_for(&self, time: Duration) -> Option<Vec<Refused>> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut failed, _) = self
            .none_left
            .wait_timeout_while(failed, time, |_| {
                self.outstanding.load(Ordering::Acquire) > 0
            })
            .unwrap_or_else(PoisonError::into_inner);
        let done = self.outstanding.load(Ordering::Acquire) == 0;
        done.then(|| std::mem::take(&mut *failed))
    }
}

/// Counts delivery reports.
pub struct DeliveryContext {
    pub(super) log: LogContext,
    pub(super) deliveries: Arc<Deliveries>,
}

impl ClientContext for DeliveryContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.log.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.log.error(error, reason);
    }
}

impl ProducerContext for DeliveryContext {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, tag: usize) {
        if let Ok(message) = result
            && self.deliveries.acknowledged.is_none()
        {
            self.deliveries.stamped(message);
        }
        let result = result.as_ref().map(|_| ()).map_err(|(error, message)| {
            let partition = message.partition();
            Refused {
                tag,
                partition: (partition >= 0).then_some(partition),
                error: error.clone().into(),
            }
        });
        self.deliveries.report(tag, result);
    }
}
