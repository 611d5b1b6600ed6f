//! What many subscriptions have in common, kept once: their type patterns, and the paths of their filters. A process holds
//! all subscriptions in memory, and there are far fewer of these than of subscriptions.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use super::filter::TypePattern;
use super::model::Subscription;

/// Values that subscriptions share.
#[derive(Debug, Default)]
pub(super) struct Interned {
    patterns: Interner<[TypePattern]>,
    paths: Interner<[Box<str>]>,
}

impl Interned {
    /// The same subscription, which shares what others have, too. Copied where it has other owners.
    pub(super) fn share(&mut self, mut subscription: Arc<Subscription>) -> Arc<Subscription> {
        let changed = Arc::make_mut(&mut subscription);
        self.patterns.share(&mut changed.events);
        for condition in &mut changed.filter.conditions {
            self.paths.share(&mut condition.path);
        }
        subscription
    }
}

#[derive(Debug)]
struct Interner<T: ?Sized> {
    all: HashSet<Arc<T>>,
    /// How many it may hold until those that nobody uses any more are removed.
    limit: usize,
}

impl<T: ?Sized> Default for Interner<T> {
    fn default() -> Self {
        Self {
            all: HashSet::new(),
            limit: 1024,
        }
    }
}

impl<T: ?Sized + Eq + Hash> Interner<T> {
    fn share(&mut self, value: &mut Arc<T>) {
        if let Some(known) = self.all.get(&**value) {
            *value = Arc::clone(known);
            return;
        }
        if self.all.len() >= self.limit {
            self.all.retain(|known| Arc::strong_count(known) > 1);
            self.limit = (2 * self.all.len()).max(self.limit);
        }
        self.all.insert(Arc::clone(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_kept_once_and_unused_ones_are_removed() {
        let mut interner = Interner::default();
        let text = |number: usize| Arc::<str>::from(number.to_string());
        let (mut one, mut same) = (text(1), text(1));
        interner.share(&mut one);
        interner.share(&mut same);
        assert!(Arc::ptr_eq(&one, &same));
        for number in 2..10_000 {
            interner.share(&mut text(number));
            assert!(interner.all.len() <= 1024);
        }
        assert!(interner.all.contains(&*one), "it is in use");
    }

    #[test]
    fn an_interner_of_values_in_use_is_not_searched_each_time() {
        let mut interner = Interner::default();
        let mut kept: Vec<Arc<str>> = Vec::new();
        for number in 0..5_000 {
            let mut value = Arc::from(number.to_string());
            interner.share(&mut value);
            kept.push(value);
        }
        assert_eq!(interner.all.len(), kept.len());
        assert!(interner.limit >= kept.len() && interner.limit <= 4 * kept.len());
    }
}
