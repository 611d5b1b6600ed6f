//! Finds the subscriptions that match an event: an index whose cost grows with the matches, not with the subscriptions.
//!
//! Three steps narrow the search, each by lookups of what the event contains. Type patterns (`types`: a hash map for
//! exact ones, a tree of segments for wildcards) lead to buckets. In each bucket, one condition of each subscription's
//! filter (`conditions`: equality, prefix, suffix and numbers by hash or sorted lists) leads to candidates. Each
//! candidate is checked against its whole filter, over paths resolved once per event (`paths`). A subscription without
//! a filter, or with one that an absent value can satisfy, is a candidate for every event of its types.
//!
//! The index changes one subscription at a time, and always equals a naive search over its subscriptions.

mod conditions;
mod map;
mod paths;
mod types;

use std::sync::Arc;

use conditions::{Chosen, Slot};
use map::Map;
use paths::{PathId, Paths, Resolved};
use smallvec::SmallVec;
use types::Types;

use crate::model::event::Event;
use crate::model::source::subscription_hash;
use crate::model::subscription::{State, Subscription};

/// All subscriptions, searchable by event. No two of them may have ids of one [`subscription_hash`]: the
/// [`Fold`](crate::model::subscription::Fold) refuses the second one.
#[derive(Debug, Default)]
pub struct Index {
    entries: Vec<Option<Entry>>,
    free: Vec<Slot>,
    /// By the hash of its id, so that no subscription is read when the map grows.
    by_id: Map<u64, Slot>,
    types: Types,
    paths: Paths,
}

#[derive(Debug)]
struct Entry {
    subscription: Arc<Subscription>,
    /// The paths of the filter's conditions, in order.
    paths: EachPath,
    /// For each type pattern, the condition that the index uses.
    chosen: EachChosen,
}

/// As many in place as fit into the size of a `Vec`.
type EachPath = SmallVec<[PathId; 4]>;
/// The same.
type EachChosen = SmallVec<[Chosen; 8]>;

impl Entry {
    fn wants(&self, resolved: &Resolved<'_>) -> bool {
        if self.subscription.state == State::Pending {
            return false;
        }
        let conditions = self.subscription.filter.conditions.iter();
        conditions
            .zip(&self.paths)
            .all(|(condition, path)| condition.accepts(resolved.leaves(*path)))
    }
}

impl Index {
    /// Creates an empty index.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a subscription; replaces the one with the same id.
    pub fn insert(&mut self, subscription: Arc<Subscription>) {
        self.remove(&subscription.id);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            Slot::try_from(self.entries.len() - 1).unwrap_or(Slot::MAX)
        });
        let (paths, chosen) = self.classify(&subscription, slot);
        self.by_id.insert(subscription_hash(&subscription.id), slot);
        self.entries[slot as usize] = Some(Entry {
            subscription,
            paths,
            chosen,
        });
    }

    /// Enters a subscription where the events that it matches will look for it.
    fn classify(&mut self, subscription: &Subscription, slot: Slot) -> (EachPath, EachChosen) {
        let conditions = &subscription.filter.conditions;
        let paths: EachPath = conditions
            .iter()
            .map(|condition| self.paths.acquire(&condition.path))
            .collect();
        let each = subscription.events.iter().map(|pattern| {
            self.types
                .change(pattern, |bucket| bucket.insert(slot, &paths, conditions))
        });
        let chosen = each.collect();
        (paths, chosen)
    }

    /// Removes a subscription; does nothing if there is none with this id.
    pub fn remove(&mut self, id: &str) {
        let hash = subscription_hash(id);
        let Some(&slot) = self.by_id.get(&hash) else {
            return;
        };
        let entry = &mut self.entries[slot as usize];
        let Some(entry) = entry.take_if(|entry| *entry.subscription.id == *id) else {
            return;
        };
        self.by_id.remove(&hash);
        self.free.push(slot);
        let conditions = &entry.subscription.filter.conditions;
        for (pattern, chosen) in entry.subscription.events.iter().zip(&entry.chosen) {
            self.types.change(pattern, |bucket| {
                bucket.remove(slot, *chosen, &entry.paths, conditions)
            });
        }
        conditions
            .iter()
            .for_each(|condition| self.paths.release(&condition.path));
    }

    /// The subscription with this id.
    #[cfg(test)]
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Arc<Subscription>> {
        self.entry(*self.by_id.get(&subscription_hash(id))?)
            .map(|entry| &entry.subscription)
    }

    /// The number of subscriptions.
    #[cfg(test)]
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are no subscriptions.
    #[cfg(test)]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// All subscriptions, in arbitrary order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Subscription>> {
        self.entries
            .iter()
            .flatten()
            .map(|entry| &entry.subscription)
    }

    /// Clears `found` and fills it with the subscriptions that match the event, each once, in arbitrary order. Includes
    /// paused and disabled ones, whose commands wait or are dead-lettered, and no pending ones.
    pub fn matching(&self, event: &Event<'_>, found: &mut Vec<Arc<Subscription>>) {
        found.clear();
        let resolved = self.paths.resolve(event);
        let mut candidates = Vec::new();
        self.types.matching(event.event_type(), |bucket| {
            bucket.candidates(&resolved, &mut candidates)
        });
        candidates.sort_unstable();
        candidates.dedup();
        let entries = candidates.into_iter().filter_map(|slot| self.entry(slot));
        found.extend(
            entries
                .filter(|entry| entry.wants(&resolved))
                .map(|entry| Arc::clone(&entry.subscription)),
        );
    }

    fn entry(&self, slot: Slot) -> Option<&Entry> {
        self.entries.get(slot as usize)?.as_ref()
    }
}

#[cfg(test)]
mod tests;
