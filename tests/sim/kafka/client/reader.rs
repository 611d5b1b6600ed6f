//! A reader without a group: positions of its own, and events.
//!
//! It asks a partition again only when that has something new, so an idle partition costs nothing. What was fetched ahead
//! waits in a queue, and is dropped when its partition is paused, sought or no longer read.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{BACKOFF, Link};
use crate::kafka::log::{Fetched, Record};
use crate::kafka::net::{Api, Net, Watch};
use crate::kafka::{Code, Node, Tp};

/// What a poll returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A record.
    Record(Tp, i64, Arc<Record>),
    /// The reader has reached the end that it may see.
    End(Tp, i64),
    /// A partition cannot be read: `OFFSET_OUT_OF_RANGE`, `UNKNOWN_TOPIC_OR_PARTITION`.
    Failed(Tp, Code),
}

struct Part {
    /// The next offset to fetch.
    fetch: i64,
    /// One past the last record returned, or the start.
    returned: i64,
    /// The end that was reported last.
    ended: Option<i64>,
    paused: bool,
    /// Asked for news of this partition.
    watched: bool,
    failed: bool,
    /// Records in the queue.
    queued: usize,
    /// The high watermark, as far as known.
    high: Option<i64>,
}

/// A reader.
pub struct Reader {
    link: Link,
    committed: bool,
    bytes: usize,
    parts: BTreeMap<Tp, Part>,
    /// Partitions that may have something.
    ready: BTreeSet<Tp>,
    queue: VecDeque<Event>,
    watch: Arc<Watch>,
}

impl Reader {
    /// A reader of this name, of committed records or of all.
    pub fn new(net: &Net, name: &str, committed: bool) -> Self {
        Self {
            link: Link::new(net, name),
            committed,
            bytes: 1 << 20,
            parts: BTreeMap::new(),
            ready: BTreeSet::new(),
            queue: VecDeque::new(),
            watch: Arc::default(),
        }
    }

    /// The connection, for other questions.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Reads a partition from `offset` on.
    pub fn start(&mut self, tp: &Tp, offset: i64) {
        self.drop_queued(tp);
        let watched = self.parts.get(tp).is_some_and(|part| part.watched);
        let part = Part {
            fetch: offset,
            returned: offset,
            ended: None,
            paused: false,
            watched,
            failed: false,
            queued: 0,
            high: None,
        };
        self.parts.insert(tp.clone(), part);
        self.ready.insert(tp.clone());
    }

    /// Asks again for a partition whose position was out of range, from the same position.
    pub fn retry(&mut self, tp: &Tp) {
        if let Some(part) = self.parts.get_mut(tp) {
            part.failed = false;
            self.ready.insert(tp.clone());
        }
    }

    /// Reads a partition no more.
    pub fn stop(&mut self, tp: &Tp) {
        self.parts.remove(tp);
        self.ready.remove(tp);
        self.drop_queued(tp);
    }

    /// Whether a partition is read.
    pub fn reads(&self, tp: &Tp) -> bool {
        self.parts.contains_key(tp)
    }

    /// The partitions that are read, with the position behind the last record returned.
    pub fn positions(&self) -> impl Iterator<Item = (&Tp, i64)> {
        let each = self.parts.iter();
        each.map(|(tp, part)| (tp, part.returned))
    }

    /// The high watermark of a partition, as far as known.
    pub fn known_end(&self, tp: &Tp) -> Option<i64> {
        self.parts.get(tp)?.high
    }

    /// Waits until something may have come, for at most `timeout`. Nothing is lost when this is dropped.
    pub async fn moved(&self, timeout: Duration) {
        // Those that failed are asked again soon, without a signal.
        let timeout = if self.ready.is_empty() {
            timeout
        } else {
            timeout.min(BACKOFF)
        };
        let moved = self.watch.moved.notified();
        tokio::time::timeout(timeout, moved).await.ok();
    }

    /// Pauses or resumes a partition; what was fetched ahead is fetched again.
    pub fn pause(&mut self, tp: &Tp, paused: bool) {
        self.drop_queued(tp);
        if let Some(part) = self.parts.get_mut(tp) {
            part.paused = paused;
            if !paused {
                self.ready.insert(tp.clone());
            }
        }
    }

    /// Partitions whose position is behind offsets without records, with that position.
    pub fn passed(&self) -> Vec<(Tp, i64)> {
        let each = self.parts.iter();
        let passed = each.filter(|(_, part)| part.fetch > part.returned && part.queued == 0);
        passed.map(|(tp, part)| (tp.clone(), part.fetch)).collect()
    }

    fn drop_queued(&mut self, tp: &Tp) {
        let of = |event: &Event| match event {
            Event::Record(at, ..) | Event::End(at, _) | Event::Failed(at, _) => at == tp,
        };
        self.queue.retain(|event| !of(event));
        if let Some(part) = self.parts.get_mut(tp) {
            if part.queued > 0 {
                part.fetch = part.returned;
            }
            part.queued = 0;
        }
    }

    /// The next event, waiting for at most `timeout`.
    pub async fn poll(&mut self, timeout: Duration) -> Option<Event> {
        let until = Instant::now() + timeout;
        loop {
            if let Some(event) = self.queue.pop_front() {
                if let Event::Record(tp, offset, _) = &event
                    && let Some(part) = self.parts.get_mut(tp)
                {
                    part.returned = offset + 1;
                    part.queued -= 1;
                }
                return Some(event);
            }
            for tp in self.watch.take() {
                if let Some(part) = self.parts.get_mut(&tp) {
                    part.watched = false;
                    self.ready.insert(tp);
                }
            }
            if self.fetch(until).await {
                continue;
            }
            let watch = Arc::clone(&self.watch);
            let moved = watch.moved.notified();
            if tokio::time::timeout_at(until, moved).await.is_err() {
                return None;
            }
        }
    }

    /// Asks the leaders of all partitions that may have something. Returns whether to look again.
    async fn fetch(&mut self, until: Instant) -> bool {
        let asked = std::mem::take(&mut self.ready);
        let (mut by_leader, mut later): (BTreeMap<Node, Vec<(Tp, i64)>>, bool) = Default::default();
        for tp in asked {
            let Some(part) = self
                .parts
                .get(&tp)
                .filter(|part| !part.paused && !part.failed)
            else {
                continue;
            };
            let from = part.fetch;
            match self.link.leader(&tp).await {
                Ok(leader) => by_leader.entry(leader).or_default().push((tp, from)),
                Err(code) => {
                    later = true;
                    self.failed(tp, code);
                }
            }
        }
        for (leader, parts) in by_leader {
            let (committed, bytes) = (self.committed, self.bytes);
            let wanted = parts.clone();
            let fetch = move |cluster: &mut crate::kafka::cluster::Cluster, _| {
                let each = wanted.iter();
                let found =
                    each.map(|(tp, from)| cluster.fetch(leader, tp, *from, committed, bytes));
                found.collect::<Vec<_>>()
            };
            match self.link.call(leader, Api::Fetch, fetch).await {
                Ok(found) => {
                    for ((tp, from), found) in parts.into_iter().zip(found) {
                        match found {
                            Ok(found) => self.found(tp, from, found),
                            Err(code) => {
                                later = true;
                                self.failed(tp, code);
                            }
                        }
                    }
                }
                Err(lost) => {
                    later = true;
                    for (tp, _) in parts {
                        self.failed(tp, lost.into());
                    }
                }
            }
        }
        if !self.queue.is_empty() {
            return true;
        }
        if later && Instant::now() < until {
            // A leader is missing: soon again.
            tokio::time::sleep_until((Instant::now() + BACKOFF).min(until)).await;
            return true;
        }
        !self.ready.is_empty() && Instant::now() < until
    }

    fn found(&mut self, tp: Tp, from: i64, found: Fetched) {
        let Some(part) = self.parts.get_mut(&tp).filter(|part| part.fetch == from) else {
            return;
        };
        let limit = if self.committed {
            found.bounds.stable
        } else {
            found.bounds.high
        };
        part.fetch = found.next;
        let empty = found.records.is_empty();
        part.queued += found.records.len();
        part.high = Some(found.bounds.high);
        let each = found.records.into_iter();
        self.queue
            .extend(each.map(|(offset, record)| Event::Record(tp.clone(), offset, record)));
        if part.fetch < limit {
            self.ready.insert(tp);
            return;
        }
        if part.ended != Some(limit) || !empty {
            part.ended = Some(limit);
            self.queue.push_back(Event::End(tp.clone(), limit));
        }
        if !part.watched {
            part.watched = true;
            self.link.net.watch(&tp, &self.watch);
            // It may have moved since it was asked.
            self.recheck(tp, limit);
        }
    }

    fn recheck(&mut self, tp: Tp, limit: i64) {
        let bounds = self.link.net.with(|cluster, _| cluster.bounds(&tp));
        let committed = self.committed;
        let moved = bounds.is_none_or(|bounds| {
            let now = if committed {
                bounds.stable
            } else {
                bounds.high
            };
            now != limit
        });
        if moved {
            self.ready.insert(tp);
        }
    }

    fn failed(&mut self, tp: Tp, code: Code) {
        self.link.forget(&tp.topic);
        match code {
            // The position is not changed without the caller.
            Code::OffsetOutOfRange => {
                if let Some(part) = self.parts.get_mut(&tp) {
                    part.failed = true;
                }
                self.queue.push_back(Event::Failed(tp, code));
            }
            Code::UnknownTopicOrPartition => {
                self.queue.push_back(Event::Failed(tp.clone(), code));
                self.ready.insert(tp);
            }
            _ => {
                self.ready.insert(tp);
            }
        }
    }
}
