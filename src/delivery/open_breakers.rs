//! The open breakers of a replica: all of them are counted, the first ones have metric series.
//!
//! Pure. In a mass outage thousands of breakers open at once; a series for each would flood the metrics. Those that
//! opened first keep their series until they close; then the next ones get theirs.

use std::collections::{BTreeMap, HashMap};

/// A subscriber and its subscription.
pub(super) type Labels = (Box<str>, Box<str>);

/// What happens to the series.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shown {
    /// Labels whose series is removed.
    pub(super) gone: Option<Labels>,
    /// Labels that get a series.
    pub(super) new: Option<Labels>,
}

/// The open breakers, in the order in which they opened.
#[derive(Debug)]
pub(super) struct OpenBreakers {
    most: usize,
    next: u64,
    /// When each opened, and whether it has a series.
    open: HashMap<Labels, (u64, bool)>,
    /// Those without a series.
    others: BTreeMap<u64, Labels>,
}

impl OpenBreakers {
    /// At most `most` have series.
    #[must_use]
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            next: 0,
            open: HashMap::new(),
            others: BTreeMap::new(),
        }
    }

    /// How many are open.
    #[must_use]
    pub(super) fn count(&self) -> usize {
        self.open.len()
    }

    /// A breaker opened, or opened again.
    pub(super) fn opened(&mut self, labels: Labels) -> Shown {
        if self.open.contains_key(&labels) {
            return Shown::default();
        }
        let shown = self.open.len() - self.others.len() < self.most;
        self.open.insert(labels.clone(), (self.next, shown));
        self.next += 1;
        if shown {
            return Shown {
                gone: None,
                new: Some(labels),
            };
        }
        self.others.insert(self.next - 1, labels);
        Shown::default()
    }

    /// A breaker closed, or is no longer this replica's.
    pub(super) fn closed(&mut self, labels: Labels) -> Shown {
        match self.open.remove(&labels) {
            None => Shown::default(),
            Some((since, false)) => {
                self.others.remove(&since);
                Shown::default()
            }
            Some((_, true)) => {
                let next = self.others.pop_first().map(|(_, next)| next);
                if let Some((_, shown)) = next.as_ref().and_then(|next| self.open.get_mut(next)) {
                    *shown = true;
                }
                Shown {
                    gone: Some(labels),
                    new: next,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(number: usize) -> Labels {
        ("acme".into(), number.to_string().into())
    }

    #[test]
    fn all_are_counted_and_the_first_ones_are_shown() {
        let mut breakers = OpenBreakers::new(2);
        let new = |shown: &Shown| shown.new.is_some();
        let opened: Vec<bool> = (0..1_500)
            .map(|number| new(&breakers.opened(labels(number))))
            .collect();
        assert_eq!(opened.iter().filter(|shown| **shown).count(), 2);
        assert!(opened[0] && opened[1]);
        assert!(
            !new(&breakers.opened(labels(0))),
            "a failed probe opens it again"
        );
        assert_eq!(breakers.count(), 1_500);

        assert_eq!(breakers.closed(labels(2)), Shown::default());
        let closed = breakers.closed(labels(0));
        assert_eq!(closed.gone, Some(labels(0)));
        assert_eq!(closed.new, Some(labels(3)), "the first of the others");
        assert_eq!(breakers.closed(labels(0)), Shown::default());
        assert_eq!(breakers.closed(labels(9_999)), Shown::default());
        let shown = (1..1_500).filter(|&number| breakers.closed(labels(number)).gone.is_some());
        assert_eq!(shown.count(), 1_498, "each had its series before it closed");
        assert_eq!((breakers.count(), breakers.others.len()), (0, 0));
    }
}
