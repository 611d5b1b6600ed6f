//! Outcomes that are not durable yet: which of them are written together.
//!
//! A transaction that holds a record for a partition that refuses writes aborts as a whole. So after a failure the
//! outcomes for that partition are held back, and one of them at a time probes it, apart from all others, until it
//! recovers ([`Unwritable`]). All others are written meanwhile, and what needs no record is not affected at all.
//!
//! A broker refuses a record that is too large together with the records that it gets in the same request. So after such
//! a refusal the outcomes of that partition are written one by one, until the refused one is known. A smaller one is then
//! written in its place (`oversize`).
//!
//! Pure: time is an argument, and records are whatever the caller gives.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use crate::model::partitioner;
use crate::model::units::Offset;
use crate::model::unwritable::{Target, Unwritable};

/// The most outcomes of a batch: it must be acknowledged well within the delivery timeout of its records.
const BATCH: usize = 5_000;
/// The most bytes of a batch, except that one outcome always fits.
const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// An outcome that is not durable yet.
#[derive(Debug)]
pub(super) struct Entry<R> {
    /// The partition of the commands that it belongs to.
    pub(super) partition: i32,
    /// The command's offset, if the outcome ends one.
    pub(super) offset: Option<Offset>,
    /// Which of its partition's moves to a tier it is, also when something smaller is written instead.
    pub(super) move_number: Option<u64>,
    /// The topic that it is written to, by the number that the caller gave it.
    pub(super) topic: usize,
    /// The hash of its key there.
    pub(super) hash: u32,
    /// Bytes.
    pub(super) weight: usize,
    /// Bytes that it counts among what its partition of the commands holds, until it is durable.
    pub(super) load: Option<usize>,
    /// The record.
    pub(super) record: R,
}

/// What a batch was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Outcomes for partitions that are not known to fail.
    Ordinary,
    /// One outcome, to see whether its partition can be written.
    Probe(Target),
}

/// Outcomes to be written together.
#[derive(Debug)]
pub(super) struct Batch<R> {
    pub(super) purpose: Purpose,
    pub(super) entries: Vec<Entry<R>>,
}

/// How long a partition could not be written that has recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Recovered {
    pub(super) target: Target,
    pub(super) after: Duration,
}

/// Outcomes that are not durable, except those of batches under way.
#[derive(Debug)]
pub(super) struct Outbox<R> {
    waiting: VecDeque<Entry<R>>,
    held: BTreeMap<Target, VecDeque<Entry<R>>>,
    unwritable: Unwritable,
    /// Partitions whose outcomes are written one by one, and how many still have to be.
    one_by_one: HashMap<Target, usize>,
    /// Where the commit's metadata of a partition of the commands ends: outcomes behind it are not written yet.
    reach: HashMap<i32, i64>,
    /// Partitions of each topic, where that is known.
    counts: HashMap<usize, i32>,
}

impl<R> Default for Outbox<R> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            held: BTreeMap::new(),
            unwritable: Unwritable::default(),
            one_by_one: HashMap::new(),
            reach: HashMap::new(),
            counts: HashMap::new(),
        }
    }
}

impl<R> Outbox<R> {
    /// Adds an outcome.
    pub(super) fn add(&mut self, entry: Entry<R>) {
        match self.unwritable.holds(self.target(&entry)) {
            Some(target) => self.held.entry(target).or_default().push_back(entry),
            None => self.waiting.push_back(entry),
        }
    }

    /// Where an outcome goes; the partition is `None` while the topic's count is not known.
    pub(super) fn target(&self, entry: &Entry<R>) -> Target {
        let count = self.counts.get(&entry.topic);
        Target {
            topic: entry.topic,
            partition: count.and_then(|&count| partitioner::partition(entry.hash, count)),
        }
    }

    /// The number of outcomes for a topic that are held back.
    pub(super) fn held_for(&self, topic: usize) -> usize {
        let of_topic = self.held.iter().filter(|(target, _)| target.topic == topic);
        of_topic.map(|(_, held)| held.len()).sum()
    }

    /// Whether the count of a topic's partitions is needed and not known.
    pub(super) fn needs_count(&self, topic: usize) -> bool {
        !self.counts.contains_key(&topic)
    }

    /// A topic has this many partitions.
    pub(super) fn learn_count(&mut self, topic: usize, count: i32) {
        self.counts.insert(topic, count);
    }

    /// From now on a commit of this partition cannot say that an offset from `end` on is finished.
    pub(super) fn reaches(&mut self, partition: i32, end: Offset) {
        self.reach.insert(partition, end.0);
    }

    /// Whether the commit that belongs to an outcome can say that its offset is finished.
    fn fits(&self, entry: &Entry<R>) -> bool {
        match (self.reach.get(&entry.partition), entry.offset) {
            (Some(&end), Some(offset)) => offset.0 < end,
            _ => true,
        }
    }

    /// The next outcomes that are not held back. `None` if there are none.
    pub(super) fn next_batch(&mut self) -> Option<Batch<R>> {
        let mut bytes = 0;
        let mut entries = Vec::new();
        let mut later = VecDeque::new();
        while let Some(first) = self.waiting.front() {
            if !self.fits(first) {
                later.extend(self.waiting.pop_front());
                continue;
            }
            bytes += first.weight;
            if !entries.is_empty() && (bytes > BATCH_BYTES || entries.len() >= BATCH) {
                break;
            }
            entries.extend(self.waiting.pop_front());
        }
        later.append(&mut self.waiting);
        self.waiting = later;
        let purpose = Purpose::Ordinary;
        (!entries.is_empty()).then_some(Batch { purpose, entries })
    }

    /// The next outcome that is tried apart from all others. `None` if it is not time for one.
    pub(super) fn next_probe(&mut self, now: Instant) -> Option<Batch<R>> {
        let due: Vec<Target> = self.unwritable.due(now).collect();
        for target in due {
            let held = self.held.get(&target);
            let first = held.map(|held| held.iter().position(|entry| self.fits(entry)));
            // None fits yet.
            if first == Some(None) && held.is_some_and(|held| !held.is_empty()) {
                continue;
            }
            let held = self.held.get_mut(&target);
            if let Some(entry) = held.and_then(|held| held.remove(first.flatten()?)) {
                return Some(Batch {
                    purpose: Purpose::Probe(target),
                    entries: vec![entry],
                });
            }
            // Its outcomes were given up with their partitions.
            self.release(target);
            self.unwritable.forget(target);
        }
        None
    }

    /// A batch is durable. Returns the partition that has recovered, if that is news.
    pub(super) fn written(&mut self, purpose: Purpose, now: Instant) -> Option<Recovered> {
        let Purpose::Probe(target) = purpose else {
            return None;
        };
        if let Some(left) = self.one_by_one.get_mut(&target) {
            *left = left.saturating_sub(1);
            if *left > 0 && self.held.get(&target).is_some_and(|held| !held.is_empty()) {
                self.unwritable.probe_now(target, now);
                return None;
            }
        }
        self.release(target);
        let after = self.unwritable.written(target, now)?;
        Some(Recovered { target, after })
    }

    /// A batch was not written, for no fault of a partition: its outcomes are tried again.
    pub(super) fn back(&mut self, batch: Batch<R>, now: Instant) {
        match batch.purpose {
            Purpose::Probe(target) => {
                self.unwritable.failed(target, now);
                let held = self.held.entry(target).or_default();
                for entry in batch.entries.into_iter().rev() {
                    held.push_front(entry);
                }
            }
            Purpose::Ordinary => {
                for entry in batch.entries.into_iter().rev() {
                    match self.unwritable.holds(self.target(&entry)) {
                        Some(target) => self.held.entry(target).or_default().push_front(entry),
                        None => self.waiting.push_front(entry),
                    }
                }
            }
        }
    }

    /// A batch was not written, since these partitions refused records. Returns those of which that is news.
    pub(super) fn refused(
        &mut self,
        batch: Batch<R>,
        by: &BTreeSet<Target>,
        now: Instant,
    ) -> Vec<Target> {
        let mut new = Vec::new();
        for &target in by {
            if batch.purpose != Purpose::Probe(target) && self.unwritable.failed(target, now) {
                new.push(target);
            }
        }
        self.hold_back();
        self.back(batch, now);
        new
    }

    /// The broker refused a batch because a record for `target` is too large: its outcomes are tried one by one.
    pub(super) fn too_large(&mut self, batch: Batch<R>, target: Target, now: Instant) {
        let suspects = batch
            .entries
            .iter()
            .filter(|entry| {
                let own = self.target(entry);
                own.topic == target.topic
                    && (own.partition.is_none()
                        || target.partition.is_none()
                        || own.partition == target.partition)
            })
            .count();
        self.one_by_one.insert(target, suspects.max(1));
        self.unwritable.failed(target, now);
        self.hold_back();
        self.back(batch, now);
        self.unwritable.probe_now(target, now);
    }

    /// The only outcome of a batch is too large for its topic: `smaller`, if there is one, is written in its place.
    pub(super) fn is_too_large(
        &mut self,
        smaller: Option<Entry<R>>,
        purpose: Purpose,
        now: Instant,
    ) {
        if let Some(smaller) = smaller {
            self.add(smaller);
        }
        // The partition itself takes records.
        if let Purpose::Probe(target) = purpose {
            self.unwritable.probe_now(target, now);
            if self.held.get(&target).is_none_or(VecDeque::is_empty) {
                self.release(target);
                self.unwritable.forget(target);
            }
        }
    }

    /// Drops the outcomes of partitions that this process gives up.
    pub(super) fn forget(&mut self, partitions: &HashSet<i32>) {
        let stays = |entry: &Entry<R>| !partitions.contains(&entry.partition);
        self.waiting.retain(stays);
        self.reach
            .retain(|partition, _| !partitions.contains(partition));
        for held in self.held.values_mut() {
            held.retain(stays);
        }
    }

    /// Whether every outcome that can be written at present is.
    pub(super) fn is_settled(&self) -> bool {
        !self.waiting.iter().any(|entry| self.fits(entry))
    }

    /// The partitions that refuse writes, since when, and how many outcomes wait for each.
    pub(super) fn failing(&self) -> impl Iterator<Item = (Target, Instant, usize)> {
        self.unwritable.all().map(|(target, since)| {
            let held = self.held.get(&target).map_or(0, VecDeque::len);
            (target, since, held)
        })
    }

    /// Holds back what waits for a partition that fails by now.
    fn hold_back(&mut self) {
        for entry in std::mem::take(&mut self.waiting) {
            self.add(entry);
        }
    }

    /// What was held back for `target` is no longer.
    fn release(&mut self, target: Target) {
        self.one_by_one.remove(&target);
        let held = self.held.remove(&target).unwrap_or_default();
        for entry in held.into_iter().rev() {
            self.waiting.push_front(entry);
        }
    }
}

#[cfg(test)]
mod tests;
