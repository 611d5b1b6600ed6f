//! The outcomes of a partition that are durable without a gap.
//!
//! Outcomes are numbered in the order in which they are decided, and become durable in any order: those for a topic
//! partition that refuses writes are held back while later ones are written. So a count of durable outcomes says nothing
//! about the first ones; the end of the prefix does.
//!
//! Pure. Memory: one entry per run of durable outcomes behind a missing one, so at most as many as outcomes are missing.

use std::collections::BTreeMap;

/// The durable outcomes of a partition.
#[derive(Debug, Default)]
pub(super) struct DurablePrefix {
    /// All outcomes with a lower number are durable.
    end: u64,
    /// The runs of durable outcomes behind that, as start and end. They neither touch nor overlap.
    beyond: BTreeMap<u64, u64>,
}

impl DurablePrefix {
    /// The outcome with this number, counted from 0, is durable. Returns how many outcomes are durable without a gap.
    pub(super) fn add(&mut self, number: u64) -> u64 {
        if number < self.end {
            return self.end;
        }
        if number == self.end {
            self.end = self.beyond.remove(&(number + 1)).unwrap_or(number + 1);
            return self.end;
        }
        let before = self.beyond.range_mut(..=number).next_back();
        let start = match before {
            Some((_, end)) if *end > number => return self.end,
            Some((&start, end)) if *end == number => start,
            _ => number,
        };
        let end = self.beyond.remove(&(number + 1)).unwrap_or(number + 1);
        self.beyond.insert(start, end);
        self.end
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_later_outcome_does_not_stand_for_an_earlier_one() {
        let mut prefix = DurablePrefix::default();
        assert_eq!(prefix.add(1), 0, "the first one is not durable");
        assert_eq!(prefix.add(3), 0);
        assert_eq!(prefix.add(2), 0);
        assert_eq!(prefix.beyond.len(), 1, "neighbours are one run");
        assert_eq!(prefix.add(0), 4);
        assert_eq!(prefix.add(2), 4, "counted once");
        assert!(prefix.beyond.is_empty());
    }

    proptest! {
        #[test]
        fn the_prefix_ends_at_the_first_missing_outcome(
            numbers in prop::collection::vec(0_u64..40, 0..80),
        ) {
            let (mut prefix, mut durable) = (DurablePrefix::default(), BTreeSet::new());
            for number in numbers {
                durable.insert(number);
                let first_missing = (0..).find(|number| !durable.contains(number));
                prop_assert_eq!(Some(prefix.add(number)), first_missing);
                let missing = (0..40).filter(|number| !durable.contains(number)).count();
                prop_assert!(prefix.beyond.len() <= missing);
            }
        }
    }
}
