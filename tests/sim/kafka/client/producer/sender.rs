//! The task that sends what waits for one partition.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;

use super::{Config, Queued, State, fail, report};
use crate::kafka::client::{BACKOFF, Class, Link, is_lost, is_moving};
use crate::kafka::cluster::{Cluster, Kind};
use crate::kafka::log::{self, Appended, BATCH_OVERHEAD, Batch, Source};
use crate::kafka::net::{Api, lock};
use crate::kafka::{Code, Pending, Reply, Tp};

/// How long a new transaction waits for the markers of the last one before it asks again.
const SOON: Duration = Duration::from_millis(20);

/// What sends for one producer.
#[derive(Clone)]
pub(super) struct Sender {
    pub(super) link: Link,
    pub(super) config: Config,
    pub(super) state: Arc<Mutex<State>>,
    pub(super) changed: Arc<Notify>,
}

/// What happened to one batch.
enum Sent {
    Done(Appended),
    Refused(Code),
    Again,
    /// The last transaction is still being ended.
    Soon,
    /// By a newer epoch; the batch is reported with this.
    Fenced(Code),
}

impl Sender {
    /// Sends what waits for one partition, until nothing does.
    pub(super) async fn run(self, tp: Tp) {
        loop {
            if !self.config.linger.is_zero() {
                tokio::time::sleep(self.config.linger).await;
            }
            let Some(batch) = self.take(&tp) else {
                return;
            };
            self.deliver(&tp, batch).await;
            self.changed.notify_waiters();
        }
    }

    fn take(&self, tp: &Tp) -> Option<Vec<Queued>> {
        let mut state = lock(&self.state);
        let closed = state.closed;
        let queue = state
            .queues
            .get_mut(tp)
            .filter(|queue| !queue.is_empty() && !closed);
        let Some(queue) = queue else {
            state.sending.remove(tp);
            self.changed.notify_waiters();
            return None;
        };
        let (mut batch, mut size) = (Vec::new(), BATCH_OVERHEAD);
        while let Some(next) = queue.front() {
            size += next.record.size();
            if !batch.is_empty() && size > self.config.batch {
                break;
            }
            batch.extend(queue.pop_front());
        }
        Some(batch)
    }

    async fn deliver(&self, tp: &Tp, batch: Vec<Queued>) {
        let mut uncertain = false;
        loop {
            if lock(&self.state).closed {
                return;
            }
            let first = batch.first().map(|queued| queued.since);
            let old = first.is_some_and(|since| since.elapsed() >= self.config.message_timeout);
            let sent = match self.add(tp).await {
                _ if old => Sent::Refused(Code::MessageTimedOut),
                Ok(()) => self.append(tp, &batch, &mut uncertain).await,
                Err(sent) => sent,
            };
            match sent {
                Sent::Done(appended) => {
                    let mut state = lock(&self.state);
                    let next = state.sequences.entry(tp.clone()).or_default();
                    *next = log::after(*next, batch.len());
                    for (offset, queued) in (appended.first..).zip(&batch) {
                        report(&mut state, tp, queued, Ok(offset));
                    }
                    return;
                }
                Sent::Refused(code) => return self.refuse(tp, &batch, code).await,
                Sent::Fenced(code) => {
                    let mut state = lock(&self.state);
                    fail(&mut state, Class::Fatal, Code::Fenced);
                    for queued in &batch {
                        report(&mut state, tp, queued, Err(code));
                    }
                    return;
                }
                Sent::Again => tokio::time::sleep(BACKOFF).await,
                Sent::Soon => tokio::time::sleep(SOON).await,
            }
        }
    }

    /// Adds the partition to the transaction, before the first record of it.
    async fn add(&self, tp: &Tp) -> Result<(), Sent> {
        let (id, producer) = {
            let mut state = lock(&self.state);
            if state.fatal.is_some() {
                return Err(Sent::Refused(Code::PurgeQueue));
            }
            let Some(id) = self.config.id.clone().filter(|_| !state.added.contains(tp)) else {
                return Ok(());
            };
            state.registered = true;
            (id, state.producer.ok_or(Sent::Again)?)
        };
        let (name, all) = (Arc::clone(&id), vec![tp.clone()]);
        let add = move |cluster: &mut Cluster, now, node| {
            cluster.add_to_transaction(now, node, &name, producer, &all)
        };
        let kind = Kind::Transaction;
        match self
            .link
            .coordinated(kind, &id, Api::Transaction, add)
            .await
        {
            Ok(()) => {
                lock(&self.state).added.insert(tp.clone());
                Ok(())
            }
            Err(Code::InvalidProducerEpoch | Code::ProducerFenced) => {
                Err(Sent::Fenced(Code::PurgeQueue))
            }
            Err(Code::ConcurrentTransactions) => Err(Sent::Soon),
            Err(code) if is_moving(code) || code == Code::UnknownTopicOrPartition => {
                Err(Sent::Again)
            }
            Err(code) => Err(Sent::Refused(code)),
        }
    }

    async fn append(&self, tp: &Tp, batch: &[Queued], uncertain: &mut bool) -> Sent {
        let leader = match self.link.leader(tp).await {
            Ok(leader) => leader,
            Err(_) => return Sent::Again,
        };
        let source = {
            let state = lock(&self.state);
            state.producer.map(|producer| Source {
                producer,
                sequence: state.sequences.get(tp).copied().unwrap_or(0),
                transactional: self.config.id.is_some(),
            })
        };
        let Some(source) = source else {
            return Sent::Again;
        };
        if self.link.net.is_refused(&self.link.name) {
            return Sent::Refused(Code::InvalidTimestamp);
        }
        let records = batch
            .iter()
            .map(|queued| Arc::clone(&queued.record))
            .collect();
        let sent = Batch {
            source: Some(source),
            records,
        };
        let (at, id) = (tp.clone(), self.config.id.clone());
        let append =
            move |cluster: &mut Cluster, now| cluster.append(now, leader, &at, sent, id.as_deref());
        let answered = self.link.call(leader, Api::Produce, append).await;
        let result = match answered {
            Ok(Ok(Pending::Now(appended))) => Ok(appended),
            Ok(Ok(Pending::Later(token))) => {
                match self.link.net.reply(leader, token, self.link.timeout).await {
                    Ok(Reply::Appended(result)) => result,
                    Ok(_) => Err(Code::Fail),
                    Err(lost) => Err(lost.into()),
                }
            }
            Ok(Err(code)) => Err(code),
            Err(lost) => Err(lost.into()),
        };
        self.judge(tp, result, uncertain)
    }

    fn judge(&self, tp: &Tp, result: Result<Appended, Code>, uncertain: &mut bool) -> Sent {
        match result {
            Ok(appended) => Sent::Done(appended),
            Err(Code::InvalidProducerEpoch | Code::ProducerFenced) if self.config.id.is_some() => {
                Sent::Fenced(Code::InvalidProducerEpoch)
            }
            Err(
                code @ (Code::NotLeaderForPartition
                | Code::LeaderNotAvailable
                | Code::UnknownTopicOrPartition
                | Code::NotEnoughReplicas
                | Code::NotEnoughReplicasAfterAppend
                | Code::RequestTimedOut
                | Code::ConcurrentTransactions
                | Code::BrokerTransportFailure
                | Code::OperationTimedOut),
            ) => {
                *uncertain |= is_lost(code);
                self.link.forget(&tp.topic);
                Sent::Again
            }
            Err(code) => Sent::Refused(code),
        }
    }

    /// A batch is not written. Without a transaction, later ones need other sequence numbers: a new producer id.
    async fn refuse(&self, tp: &Tp, batch: &[Queued], code: Code) {
        {
            let mut state = lock(&self.state);
            let mut reported = code;
            if self.config.id.is_some() {
                fail(&mut state, Class::Abort, code);
                // The library does not send these sequence numbers again, although the broker has not taken them: what
                // comes next is out of order, and only then the library asks for a new epoch.
                let next = state.sequences.entry(tp.clone()).or_default();
                *next = log::after(*next, batch.len());
                if code == Code::OutOfOrderSequenceNumber {
                    state.bump = true;
                    reported = Code::PurgeQueue;
                }
            }
            for queued in batch {
                report(&mut state, tp, queued, Err(reported));
            }
            if self.config.id.is_some() {
                return;
            }
            state.sequences.clear();
        }
        let renewed = self
            .link
            .ask(|cluster, now| cluster.init_producer(now, 0, None, 0))
            .await;
        if let Ok(Ok(producer)) = renewed {
            lock(&self.state).producer = Some(producer);
        }
    }
}
