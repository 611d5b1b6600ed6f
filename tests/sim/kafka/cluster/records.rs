//! Records: appended, replicated, fetched.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Cluster, Timer};
use crate::kafka::log::{Appended, Batch, Fetched, Ms};
use crate::kafka::{Code, Node, Pending, Reply, Token, Tp};

/// Which offset is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spec {
    /// The first one kept.
    Start,
    /// The last stable offset.
    Stable,
    /// The high watermark.
    High,
    /// That of the first record of this time or later.
    Time(Ms),
}

impl Cluster {
    /// Appends a batch, acknowledged by all in-sync replicas. `transaction` is the transactional id of the producer, whose
    /// coordinator must know that this partition belongs to the transaction (KIP-890).
    ///
    /// # Errors
    /// `MESSAGE_TOO_LARGE`, `INVALID_TIMESTAMP`, `NOT_ENOUGH_REPLICAS`, those of the log and of the transaction.
    pub fn append(
        &mut self,
        now: Ms,
        node: Node,
        tp: &Tp,
        mut batch: Batch,
        transaction: Option<&str>,
    ) -> Result<Pending<Appended>, Code> {
        let partition = self.led(node, tp)?;
        let topic = &self.topics[&tp.topic];
        let (config, id) = (&topic.config, topic.id);
        if batch.size() > config.largest {
            return Err(Code::MessageSizeTooLarge);
        }
        let ahead = |record: &Arc<_>| record_time(record) > now + config.ahead;
        if !config.append_time && batch.records.iter().any(ahead) {
            return Err(Code::InvalidTimestamp);
        }
        if partition.in_sync.len() < config.min_in_sync {
            return Err(Code::NotEnoughReplicas);
        }
        if let Some(source) = batch.source.filter(|source| source.transactional)
            && !partition.log.is_open(source.producer.id)
        {
            let known = transaction.and_then(|id| self.transactions.get(id));
            let known = known.ok_or(Code::InvalidProducerIdMapping)?;
            known.verify(source.producer, tp)?;
        }
        if config.append_time {
            for record in &mut batch.records {
                Arc::make_mut(record).timestamp = now;
            }
        }
        let partition = self.partition_mut(tp)?;
        let appended = partition.log.append(now, &batch)?;
        if appended.last < partition.log.bounds().high {
            return Ok(Pending::Now(appended));
        }
        let alone = partition.replicas.len() == 1;
        let delay = if alone {
            0
        } else {
            self.between(self.settings.replication)
        };
        if delay == 0 {
            self.replicated(tp, id, appended.last + 1);
            if appended.last < self.partition(tp)?.log.bounds().high {
                return Ok(Pending::Now(appended));
            }
            // A replica does not answer: what is appended waits until that is out of sync.
        } else {
            let timer = Timer::Replicated(tp.clone(), id, appended.last + 1);
            self.start(now + delay, timer);
        }
        let token = self.token();
        let partition = self.partition_mut(tp)?;
        partition.waiting.insert((appended.last, token), appended);
        Ok(Pending::Later(token))
    }

    /// The followers have everything below `offset`, unless one of the in-sync replicas does not answer: then they wait
    /// until it is out of sync.
    pub(super) fn replicated(&mut self, tp: &Tp, topic: u64, offset: i64) {
        if self
            .topics
            .get(&tp.topic)
            .is_none_or(|found| found.id != topic)
        {
            return;
        }
        let brokers = &self.brokers;
        let answers = |node: &Node| brokers.get(node).is_some_and(|broker| broker.up);
        let Some(partition) = self.topics.get_mut(&tp.topic).and_then(|topic| {
            topic
                .partitions
                .get_mut(usize::try_from(tp.partition).ok()?)
        }) else {
            return;
        };
        if !partition.in_sync.iter().all(answers) {
            return;
        }
        let moved = partition.log.replicated(offset);
        let high = partition.log.bounds().high;
        let later = partition.waiting.split_off(&(high, Token(0)));
        let done = std::mem::replace(&mut partition.waiting, later);
        let done = done.into_iter();
        let done = done.map(|((_, token), appended)| (token, Reply::Appended(Ok(appended))));
        self.finished.extend(done);
        if moved {
            self.moved(tp);
        }
    }

    /// Reads one partition; see [`crate::kafka::log::Log::fetch`].
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC_OR_PARTITION`, `NOT_LEADER_OR_FOLLOWER`, `OFFSET_OUT_OF_RANGE`.
    pub fn fetch(
        &self,
        node: Node,
        tp: &Tp,
        from: i64,
        committed: bool,
        bytes: usize,
    ) -> Result<Fetched, Code> {
        self.led(node, tp)?.log.fetch(from, committed, bytes)
    }

    /// Tells by this token when the partition has something new, or a new leader; once.
    pub fn watch(&mut self, tp: &Tp, token: Token) {
        match self.partition_mut(tp) {
            Ok(partition) => partition.watchers.push(token),
            Err(_) => self.finished.push((token, Reply::Moved(tp.clone()))),
        }
    }

    /// A token for [`Cluster::watch`].
    pub fn watcher(&mut self) -> Token {
        self.token()
    }

    /// One offset of each partition. Those that `node` does not lead are left out, and those without a record of the time
    /// or later.
    pub fn offsets(&self, node: Node, of: &[(Tp, Spec)]) -> BTreeMap<Tp, i64> {
        let each = of.iter().filter_map(|(tp, spec)| {
            let log = &self.led(node, tp).ok()?.log;
            let bounds = log.bounds();
            let offset = match *spec {
                Spec::Start => bounds.start,
                Spec::Stable => bounds.stable,
                Spec::High => bounds.high,
                Spec::Time(at) => log.at_time(at)?.0,
            };
            Some((tp.clone(), offset))
        });
        each.collect()
    }
}

fn record_time(record: &Arc<crate::kafka::log::Record>) -> Ms {
    record.timestamp
}
