//! A producer of batches that tracks acknowledgements.
//!
//! With transactions ([`Guarantee::ExactlyOnce`]) a batch and the offsets of its inputs become visible together. Without,
//! the caller commits offsets after [`Producer::finish`] has returned. After an abort the client is replaced: librdkafka
//! lacks KIP-890, so a delayed EndTxn could end a later transaction; the epoch bump of a new client fences it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseRecord, Producer as _};
use rdkafka::util::Timeout;

use super::watchdog::Link;
use crate::config::{Guarantee, Settings};
use crate::edge::clock;
use crate::edge::failpoint;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::member::{Commit, commit_list};
use crate::edge::kafka::wait::KeepWaiting;
use crate::edge::port::failure::{ClientError, ErrorKind};
use crate::edge::port::records;
use crate::edge::port::{ProducerKind, WRITE_DEADLINE};
use deliveries::Deliveries;
use polled_producer::PolledProducer;
use recipe::{IDS, OnStuck, Recipe};

mod deliveries;
mod polled_producer;
mod recipe;

pub use crate::edge::port::failure::{BatchError, Refused};
pub use deliveries::DeliveryContext;

/// One record to write.
pub type Record<'a> = records::Record<'a, OwnedHeaders>;

/// Writes batches, each visible as a whole or not at all where the guarantee is exactly-once.
pub struct Producer {
    recipe: Recipe,
    client: Arc<PolledProducer>,
    link: Link,
    deliveries: Arc<Deliveries>,
    begun: bool,
    /// When this producer was recently fenced.
    fenced: Vec<Instant>,
}

impl Producer {
    /// A producer for `purpose`. With transactions, a predecessor with the same `--instance` and the same kind is fenced
    /// and its open transaction aborted.
    ///
    /// # Errors
    /// [`Failure`] when the client cannot be created or the coordinator rejects it; of a probe also when transactions
    /// cannot be started at present. Any other waits while no broker is reachable, and calls `keep_waiting` meanwhile.
    pub fn of_kind(
        settings: &Settings,
        keep_waiting: &KeepWaiting,
        purpose: &'static str,
        kind: ProducerKind,
    ) -> Result<Self, Failure> {
        let id = kind.transactional_id(settings, purpose);
        let deadline = match kind {
            // None at all: see `recipe`.
            ProducerKind::Copier => None,
            ProducerKind::Writer | ProducerKind::Probe(_) => Some(WRITE_DEADLINE),
        };
        let on_stuck = match kind {
            ProducerKind::Writer | ProducerKind::Copier => OnStuck::NextId,
            ProducerKind::Probe(_) => OnStuck::Fail,
        };
        let guarantee = match kind {
            ProducerKind::Copier => Guarantee::AtLeastOnce,
            _ => settings.guarantee,
        };
        let id = (guarantee == Guarantee::ExactlyOnce).then_some(id);
        let is_copier = kind == ProducerKind::Copier;
        Self::with_id(
            settings,
            keep_waiting,
            purpose,
            id,
            is_copier,
            on_stuck,
            deadline,
        )
    }

    /// A new producer with the next alternative id, which does not wait for the end of this one's last transaction. Only
    /// for a batch that was given up before its offsets were sent: no later request can commit it.
    ///
    /// # Errors
    /// As [`Producer::of_kind`].
    pub fn successor(&mut self, keep_waiting: &KeepWaiting) -> Result<Self, Failure> {
        if self.is_fenced() {
            self.note_fencing()?;
        }
        let mut recipe = self.recipe.clone();
        recipe.keep_waiting = KeepWaiting::clone(keep_waiting);
        recipe.turn = (recipe.turn + 1) % IDS;
        let (client, link, deliveries) = recipe.make()?;
        Ok(Self {
            recipe,
            client,
            link,
            deliveries,
            begun: false,
            fenced: std::mem::take(&mut self.fenced),
        })
    }

    /// A producer for `purpose` that is unique across all processes, whatever their `--instance`: a new one fences any
    /// other and aborts its open transaction.
    ///
    /// # Errors
    /// [`Failure`] when the client cannot be created or the coordinator rejects it. Waits while no broker is reachable.
    pub fn sole(settings: &Settings, purpose: &'static str) -> Result<Self, Failure> {
        let id = format!("{}{purpose}", settings.group_prefix);
        Self::sole_with_id(settings, purpose, id)
    }

    /// The same for the work on one partition: a new one for it fences any other.
    ///
    /// # Errors
    /// As [`Producer::sole`].
    pub fn of_partition(
        settings: &Settings,
        purpose: &'static str,
        partition: i32,
    ) -> Result<Self, Failure> {
        let id = format!("{}{purpose}-{partition}", settings.group_prefix);
        Self::sole_with_id(settings, purpose, id)
    }

    /// As [`Producer::sole`], with this transactional id.
    ///
    /// # Errors
    /// As [`Producer::sole`].
    pub fn sole_with_id(
        settings: &Settings,
        purpose: &'static str,
        id: String,
    ) -> Result<Self, Failure> {
        let keep_waiting: KeepWaiting = Arc::new(|| true);
        let id = (settings.guarantee == Guarantee::ExactlyOnce).then_some(id);
        Self::with_id(
            settings,
            &keep_waiting,
            purpose,
            id,
            false,
            OnStuck::Wait,
            None,
        )
    }

    /// A producer with a transactional id that replicas share: a new one fences any other and aborts its open
    /// transaction. Without transactions, nothing excludes another.
    ///
    /// # Errors
    /// As [`Producer::of_kind`].
    pub fn shared(
        settings: &Settings,
        keep_waiting: &KeepWaiting,
        purpose: &'static str,
        id: String,
    ) -> Result<Self, Failure> {
        let deadline = Some(WRITE_DEADLINE);
        let id = (settings.guarantee == Guarantee::ExactlyOnce).then_some(id);
        Self::with_id(
            settings,
            keep_waiting,
            purpose,
            id,
            false,
            OnStuck::Wait,
            deadline,
        )
    }

    fn with_id(
        settings: &Settings,
        keep_waiting: &KeepWaiting,
        purpose: &'static str,
        transactional_id: Option<String>,
        is_copier: bool,
        on_stuck: OnStuck,
        deadline: Option<Duration>,
    ) -> Result<Self, Failure> {
        let mut recipe = Recipe {
            settings: settings.clone(),
            keep_waiting: KeepWaiting::clone(keep_waiting),
            purpose,
            transactional_id,
            is_copier,
            turn: 0,
            on_stuck,
            deadline,
        };
        let (client, link, deliveries) = recipe.make()?;
        Ok(Self {
            recipe,
            client,
            link,
            deliveries,
            begun: false,
            fenced: Vec::new(),
        })
    }

    /// A record that a broker has stamped, acknowledged since the last call.
    #[must_use]
    pub fn stamp(&self) -> Option<records::Stamp> {
        self.deliveries.take_stamp()
    }

    /// Whether another producer has taken over the transactional id, so that this one can no longer write.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        let fatal = self.client.client().fatal_error();
        fatal.is_some_and(|(code, _)| {
            ClientError::from(KafkaError::Global(code)).kind() == ErrorKind::Fenced
        })
    }

    /// Abandons the current batch and the producer.
    pub fn abandon(self) {
        if self.recipe.transactional_id.is_some() && self.begun && !self.is_fenced() {
            // Only saves readers the wait for the transaction timeout.
            self.abort();
        }
    }

    fn abort(&self) {
        const PATIENCE: Duration = Duration::from_secs(5);
        let abort = || self.client.abort_transaction(PATIENCE);
        if let Err(error) = self.link.bounded("aborting a transaction", abort) {
            tracing::debug!(client = self.recipe.purpose, "abort failed: {error}");
        }
    }

    /// Adds a record to the batch. Waits while the client's queue is full, which has a limit of its own
    /// ([`super::client::PRODUCER_QUEUE_KIB`]): so nothing is sent faster than the brokers take it.
    ///
    /// # Errors
    /// [`BatchError`]; the batch must then be abandoned with [`Producer::renew`], except after a rejection at once.
    pub fn send(&mut self, record: Record<'_>) -> Result<(), BatchError> {
        /// Delay between tries while the queue is full.
        const BACK_PRESSURE: Duration = Duration::from_millis(2);
        self.begin()?;
        let tag = record.tag;
        let mut next = BaseRecord::with_opaque_to(record.topic, tag).headers(record.headers);
        next.partition = record.partition;
        next.key = record.key;
        next.payload = record.value;
        self.deliveries.outstanding.fetch_add(1, Ordering::AcqRel);
        loop {
            let Err((error, refused)) = self.client.send(next) else {
                return Ok(());
            };
            if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                self.deliveries.outstanding.fetch_sub(1, Ordering::AcqRel);
                return Err(match self.sort(tag, error) {
                    BatchError::TooLarge { tag, .. } => BatchError::TooLarge { tag, at_once: true },
                    error => error,
                });
            }
            next = refused;
            // Ends: what is queued is acknowledged, or rejected after its timeout.
            (self.recipe.keep_waiting)();
            std::thread::sleep(BACK_PRESSURE);
        }
    }

    /// The same without waiting: returns the record when the client's queue is full.
    ///
    /// # Errors
    /// [`BatchError`]; the client must then be replaced with [`Producer::renew`], except after a rejection at once.
    pub fn offer<'a>(&mut self, record: Record<'a>) -> Result<Option<Record<'a>>, BatchError> {
        let (topic, tag) = (record.topic, record.tag);
        let mut next = BaseRecord::with_opaque_to(topic, tag).headers(record.headers);
        next.partition = record.partition;
        next.key = record.key;
        next.payload = record.value;
        self.deliveries.outstanding.fetch_add(1, Ordering::AcqRel);
        let Err((error, refused)) = self.client.send(next) else {
            return Ok(None);
        };
        self.deliveries.outstanding.fetch_sub(1, Ordering::AcqRel);
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) {
            return Ok(Some(Record {
                topic,
                partition: refused.partition,
                key: refused.key,
                value: refused.payload,
                headers: refused.headers.unwrap_or_default(),
                tag,
            }));
        }
        Err(match self.sort(tag, error) {
            BatchError::TooLarge { tag, .. } => BatchError::TooLarge { tag, at_once: true },
            error => error,
        })
    }

    /// How many records of each tag were acknowledged since the last call; a tag may stand there several times. Of a
    /// copier.
    ///
    /// # Errors
    /// [`BatchError`] for the first record that was refused; the client must then be replaced with [`Producer::renew`].
    pub fn reports(&self) -> Result<Vec<(usize, u32)>, BatchError> {
        let reports = self.deliveries.take();
        reports.map_err(|(tag, error)| self.sort(tag, error))
    }

    fn begin(&mut self) -> Result<(), BatchError> {
        if self.recipe.transactional_id.is_some() && !self.begun {
            self.client
                .begin_transaction()
                .map_err(|error| self.sort(0, error))?;
        }
        self.begun = true;
        Ok(())
    }

    /// Waits until the whole batch is acknowledged.
    ///
    /// # Errors
    /// [`BatchError`]; the batch must then be abandoned with [`Producer::renew`].
    pub fn acknowledged(&self) -> Result<(), BatchError> {
        let wait = || {
            failpoint::point("acknowledged.before");
            self.deliveries.wait()
        };
        self.link
            .bounded("waiting for acknowledgements", wait)
            .map_err(|(tag, error)| self.sort(tag, error))
    }

    /// Waits until the whole batch is acknowledged or refused, for at most `time`. Returns the records that were refused;
    /// `None` while some are neither.
    #[must_use]
    pub fn acknowledged_within(&self, time: Duration) -> Option<Vec<Refused>> {
        self.deliveries.wait_for(time)
    }

    /// The number of partitions of a topic, as far as a broker tells at once.
    #[must_use]
    pub fn partitions(&self, topic: &str) -> Option<i32> {
        const ANSWER: Duration = Duration::from_secs(2);
        let client = self.client.client();
        let metadata = client.fetch_metadata(Some(topic), ANSWER).ok()?;
        let found = metadata.topics().first()?.partitions().len();
        i32::try_from(found).ok().filter(|&count| count > 0)
    }

    /// Ends the batch. With transactions, `commits` become visible with it, in `generation` of the group; without, the
    /// caller commits them.
    ///
    /// # Errors
    /// [`BatchError`]; the batch must then be abandoned with [`Producer::renew`].
    pub fn finish(
        &mut self,
        commits: &[Commit],
        generation: Option<&ConsumerGroupMetadata>,
    ) -> Result<(), BatchError> {
        /// The client may ignore this timeout (librdkafka 5456, 5511); the watchdog then ends the process.
        const OFFSETS: Duration = Duration::from_secs(10);
        if self.recipe.transactional_id.is_none() {
            self.acknowledged()?;
            self.begun = false;
            return Ok(());
        }
        self.begin()?;
        self.acknowledged()?;
        failpoint::point("acknowledged.after");
        if !commits.is_empty() {
            // Otherwise the batch would become visible and its inputs would be read again.
            let Some(generation) = generation else {
                return Err(Failure::Internal(
                    "offsets to commit without a consumer group".to_owned(),
                )
                .into());
            };
            let offsets = commit_list(commits).map_err(|error| self.sort(0, error))?;
            let send = || {
                failpoint::point("offsets-sent.before");
                self.client
                    .send_offsets_to_transaction(&offsets, generation, OFFSETS)
            };
            self.link
                .bounded("sending offsets to the transaction", send)
                .map_err(|error| self.sort(0, error))?;
            failpoint::point("offsets-sent.after");
        }
        let commit = || {
            failpoint::point("end-txn.before");
            // Any timeout "risk[s] internal state desynchronization" (librdkafka's manual).
            self.client.commit_transaction(Timeout::Never)
        };
        self.link
            .bounded("committing a transaction", commit)
            .map_err(|error| self.sort(0, error))?;
        failpoint::point("end-txn.after");
        self.begun = false;
        Ok(())
    }

    /// Abandons the current batch and replaces the client. On return, the outcome of the last transaction is final at the
    /// broker, and the committed offsets show it.
    ///
    /// # Errors
    /// [`Failure`] when a new client cannot be created.
    pub fn renew(&mut self) -> Result<(), Failure> {
        if self.is_fenced() {
            self.note_fencing()?;
        }
        if self.recipe.transactional_id.is_some() && self.begun {
            // Saves readers the wait for the transaction timeout; the new client's epoch guarantees the abort.
            self.abort();
        }
        let (client, link, deliveries) = self.recipe.make()?;
        self.client = client;
        self.link = link;
        self.deliveries = deliveries;
        self.begun = false;
        Ok(())
    }

    /// A process that was suspended for a while is fenced once, and a new client fixes that. Repeated fencing means that
    /// two processes fence each other; the one with the lower limit exits.
    fn note_fencing(&mut self) -> Result<(), Failure> {
        const RECENT: Duration = Duration::from_secs(60);
        let now = clock::instant();
        self.fenced.retain(|&before| now - before < RECENT);
        self.fenced.push(now);
        if self.fenced.len() < fencing_limit() {
            tracing::warn!(
                client = self.recipe.purpose,
                "producer fenced and replaced: another process runs with the same --instance, or this one was suspended for longer than the transaction timeout"
            );
            return Ok(());
        }
        let what = format!("the producer of {}", self.recipe.purpose);
        let source = KafkaError::Global(RDKafkaErrorCode::Fenced);
        Err(Failure::from_client(what, source))
    }

    /// The cause of a batch that was aborted: where the broker does not add a partition to the transaction, as when the
    /// topic is denied, its records are only reported as purged.
    #[must_use]
    pub fn explained(&self, error: BatchError) -> BatchError {
        let is_open = self.recipe.transactional_id.is_some() && self.begun;
        if !is_open || !matches!(error, BatchError::Aborted(_)) {
            return error;
        }
        // Begins nothing while one is open: a failed one responds with what it failed for, any other with its state.
        match self.client.begin_transaction() {
            Err(cause) if cause.rdkafka_error_code() != Some(RDKafkaErrorCode::State) => {
                self.sort(0, cause)
            }
            _ => error,
        }
    }

    fn sort(&self, tag: usize, error: impl Into<ClientError>) -> BatchError {
        BatchError::of_record(self.recipe.purpose, tag, error.into())
    }
}

/// How often this process tolerates fencing within a minute. Two processes that fence each other are fenced equally
/// often; with equal limits, both would exit.
fn fencing_limit() -> usize {
    static LIMIT: OnceLock<usize> = OnceLock::new();
    *LIMIT.get_or_init(|| 3 + 2 * fastrand::usize(0..4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::transaction_end::TransactionEnd;

    #[test]
    fn how_a_transaction_ended_follows_from_the_error() {
        let aborted = |error: KafkaError| BatchError::Aborted(error.into()).end();
        let fenced = KafkaError::Global(RDKafkaErrorCode::Fenced);
        assert_eq!(aborted(fenced), TransactionEnd::Fenced);
        assert_eq!(aborted(KafkaError::Canceled), TransactionEnd::Aborted);
        let undelivered = KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut);
        assert_eq!(aborted(undelivered), TransactionEnd::Aborted);
        let unanswered = KafkaError::ConsumerCommit(RDKafkaErrorCode::RequestTimedOut);
        assert_eq!(aborted(unanswered), TransactionEnd::Ambiguous);
        let refused = BatchError::TooLarge {
            tag: 7,
            at_once: false,
        };
        assert_eq!(refused.end(), TransactionEnd::TooLarge { tag: 7 });
        let failed = BatchError::from(Failure::Internal(String::new()));
        assert_eq!(failed.end(), TransactionEnd::Fatal);
    }
}
