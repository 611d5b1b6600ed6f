//! The committed offsets of a group, and those that wait for the end of a transaction.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::kafka::log::Ms;
use crate::kafka::{Code, Tp};

/// A committed offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The next offset to read.
    pub position: i64,
    /// What was committed with it.
    pub metadata: Arc<str>,
    /// When.
    pub at: Ms,
    /// Which of two commits of a partition is the later one, also where one waits in a transaction.
    order: u64,
}

/// All offsets of a group.
#[derive(Debug, Default)]
pub struct Offsets {
    committed: BTreeMap<Tp, Stored>,
    /// By producer id.
    waiting: BTreeMap<i64, BTreeMap<Tp, Stored>>,
    order: u64,
}

impl Offsets {
    fn stored(&mut self, at: Ms, position: i64, metadata: &Arc<str>) -> Stored {
        self.order += 1;
        Stored {
            position,
            metadata: Arc::clone(metadata),
            at,
            order: self.order,
        }
    }

    /// Commits one offset.
    pub fn commit(&mut self, now: Ms, tp: Tp, position: i64, metadata: &Arc<str>) {
        let stored = self.stored(now, position, metadata);
        self.committed.insert(tp, stored);
    }

    /// Adds one offset to the transaction of `producer`.
    pub fn stage(&mut self, now: Ms, producer: i64, tp: Tp, position: i64, metadata: &Arc<str>) {
        let stored = self.stored(now, position, metadata);
        self.waiting.entry(producer).or_default().insert(tp, stored);
    }

    /// Ends the transaction of `producer`. Of two commits the one that was sent last stays.
    pub fn end(&mut self, producer: i64, commit: bool) {
        let Some(all) = self.waiting.remove(&producer).filter(|_| commit) else {
            return;
        };
        for (tp, stored) in all {
            let present = self.committed.get(&tp);
            if present.is_none_or(|present| present.order < stored.order) {
                self.committed.insert(tp, stored);
            }
        }
    }

    /// The committed offset of a partition.
    ///
    /// # Errors
    /// With `stable`, `UNSTABLE_OFFSET_COMMIT` while a transaction holds one (KIP-447).
    pub fn get(&self, tp: &Tp, stable: bool) -> Result<Option<&Stored>, Code> {
        let mut waiting = self.waiting.values();
        if stable && waiting.any(|all| all.contains_key(tp)) {
            return Err(Code::UnstableOffsetCommit);
        }
        Ok(self.committed.get(tp))
    }

    /// Forgets offsets committed before `before`, unless a transaction holds them. Returns whether none is left.
    pub fn expire(&mut self, before: Ms) -> bool {
        let waiting = &self.waiting;
        let held = |tp: &Tp| waiting.values().any(|all| all.contains_key(tp));
        self.committed
            .retain(|tp, stored| stored.at >= before || held(tp));
        self.committed.is_empty() && self.waiting.is_empty()
    }

    /// Forgets the offsets of a topic that was deleted.
    pub fn forget(&mut self, topic: &str) {
        self.committed.retain(|tp, _| *tp.topic != *topic);
        for all in self.waiting.values_mut() {
            all.retain(|tp, _| *tp.topic != *topic);
        }
    }
}
