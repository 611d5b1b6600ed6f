//! An idempotent producer, with or without transactions.
//!
//! Records wait in one queue per partition; a task per partition sends what waits, a batch at a time, and repeats a batch
//! until it is acknowledged, refused, or older than `message.timeout.ms`. Sequence numbers make repetitions harmless. In a
//! transaction, a refusal makes the transaction fail ([`Class::Abort`]), and a newer epoch makes the producer fail
//! ([`Class::Fatal`]), as in librdkafka.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{BACKOFF, Class, Link, Trouble, is_lost, is_moving};
use crate::kafka::cluster::{Cluster, Kind, Membership, Offset};
use crate::kafka::log::{self, Record};
use crate::kafka::net::{Api, Net, lock};
use crate::kafka::{Code, Tp};
use sender::Sender;

mod sender;

/// A producer's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// `transactional.id`.
    pub id: Option<Arc<str>>,
    /// `transaction.timeout.ms`.
    pub transaction_timeout: Duration,
    /// `message.timeout.ms`.
    pub message_timeout: Duration,
    /// `message.max.bytes`: larger records are refused at once.
    pub largest: usize,
    /// `batch.size`.
    pub batch: usize,
    /// `linger.ms`.
    pub linger: Duration,
    /// `queue.buffering.max.kbytes`, in bytes.
    pub queue: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            id: None,
            transaction_timeout: Duration::from_secs(12),
            message_timeout: Duration::from_secs(300),
            largest: 1_000_000,
            batch: 1_000_000,
            linger: Duration::from_millis(1),
            queue: 32 << 20,
        }
    }
}

/// What became of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// As given with the record.
    pub tag: usize,
    /// Its partition.
    pub tp: Tp,
    /// Its offset, or why it was not written.
    pub result: Result<i64, Code>,
}

struct Queued {
    record: Arc<Record>,
    tag: usize,
    since: Instant,
}

#[derive(Default)]
struct State {
    producer: Option<log::Producer>,
    queues: BTreeMap<Tp, VecDeque<Queued>>,
    sequences: BTreeMap<Tp, i32>,
    /// Partitions with a task that sends.
    sending: BTreeSet<Tp>,
    /// Partitions of the open transaction.
    added: BTreeSet<Tp>,
    /// The coordinator knows of the open transaction, or may.
    registered: bool,
    begun: bool,
    outstanding: usize,
    bytes: usize,
    reports: Vec<Report>,
    failed: Option<Trouble>,
    fatal: Option<Trouble>,
    closed: bool,
    /// The next transaction needs a new epoch.
    bump: bool,
}

/// A producer. Dropping it leaves its transaction open, as a crash does.
pub struct Producer {
    link: Link,
    config: Config,
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

impl Drop for Producer {
    fn drop(&mut self) {
        lock(&self.state).closed = true;
    }
}

impl Producer {
    /// A producer of this name.
    pub fn new(net: &Net, name: &str, config: Config) -> Self {
        Self {
            link: Link::new(net, name),
            config,
            state: Arc::default(),
            changed: Arc::new(Notify::new()),
        }
    }

    /// Gets a producer id; with a transactional id, fences the predecessor and ends its transaction.
    ///
    /// # Errors
    /// [`Class::Retry`] after `timeout`, [`Class::Fatal`] when the coordinator refuses.
    pub async fn init(&self, timeout: Duration) -> Result<(), Trouble> {
        let until = Instant::now() + timeout;
        loop {
            let code = match self.init_once().await {
                Ok(producer) => {
                    lock(&self.state).producer = Some(producer);
                    return Ok(());
                }
                Err(code) => code,
            };
            if !is_moving(code) && code != Code::ConcurrentTransactions {
                return Err(self.fail(Class::Fatal, code));
            }
            if Instant::now() + BACKOFF >= until {
                tokio::time::sleep_until(until).await;
                let code = if is_lost(code) {
                    Code::OperationTimedOut
                } else {
                    code
                };
                return Err(Trouble::new(Class::Retry, code));
            }
            tokio::time::sleep(BACKOFF).await;
        }
    }

    async fn init_once(&self) -> Result<log::Producer, Code> {
        let timeout = self.config.transaction_timeout.as_millis();
        let timeout = i64::try_from(timeout).unwrap_or(i64::MAX);
        let Some(id) = &self.config.id else {
            let init = |cluster: &mut Cluster, now| cluster.init_producer(now, 0, None, 0);
            return self.link.ask(init).await?;
        };
        let name = Arc::clone(id);
        let init = move |cluster: &mut Cluster, now, node| {
            cluster.init_producer(now, node, Some(&name), timeout)
        };
        let kind = Kind::Transaction;
        self.link
            .coordinated(kind, id, Api::InitProducer, init)
            .await
    }

    fn fail(&self, class: Class, code: Code) -> Trouble {
        fail(&mut lock(&self.state), class, code)
    }

    /// The error that has made this producer useless.
    pub fn fatal(&self) -> Option<Trouble> {
        lock(&self.state).fatal
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// The fatal error of the producer; `STATE` when one is open.
    pub fn begin(&self) -> Result<(), Trouble> {
        let mut state = lock(&self.state);
        if let Some(fatal) = state.fatal {
            return Err(fatal);
        }
        if state.begun || state.producer.is_none() {
            return Err(Trouble::new(Class::Plain, Code::State));
        }
        state.begun = true;
        state.registered = false;
        Ok(())
    }

    /// Queues a record. Waits while the queue is full.
    ///
    /// # Errors
    /// `MSG_SIZE_TOO_LARGE` for a record that is too large for this client; `STATE` outside a transaction, or in one that
    /// has failed; the fatal error.
    pub async fn send(&self, tp: Tp, record: Record, tag: usize) -> Result<(), Trouble> {
        let size = record.size();
        if size > self.config.largest {
            return Err(Trouble::new(Class::Plain, Code::MessageSizeTooLarge));
        }
        loop {
            let changed = self.changed.notified();
            {
                let mut state = lock(&self.state);
                if let Some(fatal) = state.fatal {
                    return Err(Trouble {
                        code: Code::Fatal,
                        ..fatal
                    });
                }
                let open = state.begun && state.failed.is_none();
                if self.config.id.is_some() && !open {
                    return Err(Trouble::new(Class::Plain, Code::State));
                }
                if state.bytes == 0 || state.bytes + size <= self.config.queue {
                    state.bytes += size;
                    state.outstanding += 1;
                    let queued = Queued {
                        record: Arc::new(record),
                        tag,
                        since: Instant::now(),
                    };
                    state
                        .queues
                        .entry(tp.clone())
                        .or_default()
                        .push_back(queued);
                    if state.sending.insert(tp.clone()) {
                        crate::kafka::net::spawn(self.sender().run(tp));
                    }
                    return Ok(());
                }
            }
            changed.await;
        }
    }

    /// Whether the queue takes another record without waiting.
    pub fn has_room(&self) -> bool {
        lock(&self.state).bytes < self.config.queue / 2
    }

    /// What became of records since the last call.
    pub fn reports(&self) -> Vec<Report> {
        std::mem::take(&mut lock(&self.state).reports)
    }

    fn sender(&self) -> Sender {
        Sender {
            link: self.link.clone(),
            config: self.config.clone(),
            state: Arc::clone(&self.state),
            changed: Arc::clone(&self.changed),
        }
    }

    /// Waits until each record is written or refused, and returns what became of them.
    pub async fn flush(&self) -> Vec<Report> {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = lock(&self.state);
                if state.outstanding == 0 {
                    return std::mem::take(&mut state.reports);
                }
            }
            changed.await;
        }
    }

    /// Adds offsets of a group to the transaction.
    ///
    /// # Errors
    /// By class: [`Class::Abort`], [`Class::Fatal`]; [`Class::Retry`] when the coordinator does not respond in `timeout`.
    pub async fn send_offsets(
        &self,
        who: &Membership,
        offsets: &[Offset],
        timeout: Duration,
    ) -> Result<(), Trouble> {
        let (id, producer) = self.open()?;
        let until = Instant::now() + timeout;
        lock(&self.state).registered = true;
        loop {
            let (name, group) = (Arc::clone(&id), Arc::clone(&who.group));
            let add = move |cluster: &mut Cluster, now, node| {
                cluster.add_group_to_transaction(now, node, &name, producer, &group)
            };
            let kind = Kind::Transaction;
            let added = self
                .link
                .coordinated(kind, &id, Api::Transaction, add)
                .await;
            let Err(code) = added else { break };
            self.sort(code, until, Class::Retry).await?;
        }
        loop {
            let (name, who, offsets) = (Arc::clone(&id), who.clone(), offsets.to_vec());
            let group = Arc::clone(&who.group);
            let commit = move |cluster: &mut Cluster, now, node| {
                cluster.commit_in_transaction(now, node, &name, producer, &who, &offsets)
            };
            let sent = self
                .link
                .coordinated(Kind::Group, &group, Api::Transaction, commit)
                .await;
            let Err(code) = sent else { return Ok(()) };
            self.sort(code, until, Class::Abort).await?;
        }
    }

    /// Waits before a retry, or classifies what is not retried; `late` is the class when there is no time left.
    async fn sort(&self, code: Code, until: Instant, late: Class) -> Result<(), Trouble> {
        let retried = is_moving(code)
            || matches!(
                code,
                Code::ConcurrentTransactions
                    | Code::UnknownTopicOrPartition
                    | Code::RequestTimedOut
            );
        if !retried {
            return Err(self.fail(class(code), code));
        }
        let pause = if code == Code::ConcurrentTransactions {
            Duration::from_millis(5)
        } else {
            BACKOFF
        };
        if Instant::now() + pause >= until {
            let code = if is_lost(code) {
                Code::OperationTimedOut
            } else {
                code
            };
            return Err(match late {
                Class::Retry => Trouble::new(Class::Retry, code),
                late => self.fail(late, code),
            });
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }

    fn open(&self) -> Result<(Arc<str>, log::Producer), Trouble> {
        let state = lock(&self.state);
        if let Some(trouble) = state.fatal.or(state.failed) {
            return Err(trouble);
        }
        let known = self.config.id.clone().zip(state.producer);
        let known = known.filter(|_| state.begun);
        known.ok_or(Trouble::new(Class::Plain, Code::State))
    }

    /// Commits the transaction, after all its records are written.
    ///
    /// # Errors
    /// [`Class::Abort`] when a record was refused; [`Class::Fatal`] when fenced; [`Class::Retry`] when no response came
    /// within the transaction timeout: the commit may have taken effect.
    pub async fn commit(&self) -> Result<(), Trouble> {
        self.settle().await;
        let (id, producer) = self.open()?;
        self.end(id, producer, true).await
    }

    /// Aborts the transaction.
    ///
    /// # Errors
    /// As [`Producer::commit`].
    pub async fn abort(&self) -> Result<(), Trouble> {
        {
            let mut state = lock(&self.state);
            if let Some(fatal) = state.fatal {
                return Err(fatal);
            }
            purge(&mut state);
        }
        self.settle().await;
        let known = {
            let mut state = lock(&self.state);
            if let Some(fatal) = state.fatal {
                return Err(fatal);
            }
            state.failed = None;
            self.config
                .id
                .clone()
                .zip(state.producer)
                .filter(|_| state.begun)
        };
        let Some((id, producer)) = known else {
            return Err(Trouble::new(Class::Plain, Code::State));
        };
        self.end(id, producer, false).await?;
        if std::mem::take(&mut lock(&self.state).bump) {
            self.init(self.config.transaction_timeout).await?;
            lock(&self.state).sequences.clear();
        }
        Ok(())
    }

    async fn settle(&self) {
        loop {
            let changed = self.changed.notified();
            if lock(&self.state).outstanding == 0 {
                return;
            }
            changed.await;
        }
    }

    async fn end(
        &self,
        id: Arc<str>,
        producer: log::Producer,
        commit: bool,
    ) -> Result<(), Trouble> {
        let until = Instant::now() + self.config.transaction_timeout;
        while lock(&self.state).registered {
            let name = Arc::clone(&id);
            let end = move |cluster: &mut Cluster, now, node| {
                cluster.end_transaction(now, node, &name, producer, commit)
            };
            let kind = Kind::Transaction;
            let ended = self
                .link
                .coordinated(kind, &id, Api::EndTransaction, end)
                .await;
            let Err(code) = ended else { break };
            self.sort(code, until, Class::Retry)
                .await
                .map_err(|trouble| Trouble {
                    ambiguous: trouble.class == Class::Retry,
                    ..trouble
                })?;
        }
        let mut state = lock(&self.state);
        state.begun = false;
        state.registered = false;
        state.failed = None;
        state.added.clear();
        Ok(())
    }
}

/// The class of an error in a transaction.
fn class(code: Code) -> Class {
    match code {
        Code::InvalidProducerEpoch
        | Code::ProducerFenced
        | Code::Fenced
        | Code::InvalidTransactionalState
        | Code::TransactionalIdAuthorizationFailed => Class::Fatal,
        _ => Class::Abort,
    }
}

fn fail(state: &mut State, class: Class, code: Code) -> Trouble {
    let code = match code {
        Code::InvalidProducerEpoch | Code::ProducerFenced => Code::Fenced,
        code => code,
    };
    let trouble = Trouble::new(class, code);
    match class {
        Class::Fatal => {
            let first = *state.fatal.get_or_insert(trouble);
            purge(state);
            return first;
        }
        Class::Abort => {
            state.failed.get_or_insert(trouble);
        }
        Class::Retry | Class::Plain => {}
    }
    trouble
}

/// Drops what waits in the queues.
fn purge(state: &mut State) {
    let queues = std::mem::take(&mut state.queues);
    for (tp, queue) in queues {
        for queued in queue {
            report(state, &tp, &queued, Err(Code::PurgeQueue));
        }
    }
}

fn report(state: &mut State, tp: &Tp, queued: &Queued, result: Result<i64, Code>) {
    state.bytes -= queued.record.size();
    state.outstanding -= 1;
    state.reports.push(Report {
        tag: queued.tag,
        tp: tp.clone(),
        result,
    });
}
