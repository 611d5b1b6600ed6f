//! A set of offsets as runs, with the bytes that commit metadata takes for it.
//!
//! What waits for a whale comes in long runs, so a set of 300,000 offsets is a few runs; the memory is that of the runs.

use std::collections::BTreeMap;

use crate::model::varint;

/// A set of offsets.
#[derive(Clone, Debug, Default)]
pub(super) struct Runs {
    /// The first offset of each run, and the position behind its last one. Runs neither touch nor overlap.
    runs: BTreeMap<i64, i64>,
    offsets: usize,
    /// Bytes of the gaps between the offsets as varints; the first one's gap is 0.
    gap_bytes: usize,
}

impl Runs {
    /// The number of offsets.
    pub(super) fn len(&self) -> usize {
        self.offsets
    }

    /// The number of runs.
    pub(super) fn runs(&self) -> usize {
        self.runs.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.offsets == 0
    }

    /// Bytes of the gaps between the offsets as varints.
    pub(super) fn gap_bytes(&self) -> usize {
        self.gap_bytes
    }

    /// The lowest offset.
    pub(super) fn first(&self) -> Option<i64> {
        self.runs.first_key_value().map(|(&from, _)| from)
    }

    /// The position behind the highest offset.
    pub(super) fn end(&self) -> Option<i64> {
        self.runs.last_key_value().map(|(_, &to)| to)
    }

    /// Each run's first offset and the position behind its last one, ascending.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (i64, i64)> {
        self.runs.iter().map(|(&from, &to)| (from, to))
    }

    /// The parts of runs from `low` to before `high`, ascending.
    pub(super) fn within(&self, low: i64, high: i64) -> impl Iterator<Item = (i64, i64)> {
        let before = self.runs.range(..low).next_back();
        let reaches = before
            .filter(|(_, to)| **to > low)
            .map(|(&from, &to)| (from, to));
        let rest = self.runs.range(low..high.max(low));
        let all = reaches
            .into_iter()
            .chain(rest.map(|(&from, &to)| (from, to)));
        all.map(move |(from, to)| (from.max(low), to.min(high)))
            .filter(|(from, to)| from < to)
    }

    pub(super) fn contains(&self, offset: i64) -> bool {
        let run = self.runs.range(..=offset).next_back();
        run.is_some_and(|(_, &to)| offset < to)
    }

    /// Adds offsets behind all others.
    pub(super) fn push(&mut self, from: i64, to: i64) {
        let added = usize::try_from(to - from).unwrap_or(0);
        self.offsets += added;
        match self.runs.last_entry() {
            Some(mut last) if *last.get() == from => {
                *last.get_mut() = to;
                self.gap_bytes += added;
                return;
            }
            Some(last) => {
                let gap = from - *last.get();
                self.gap_bytes += gap_length(gap) + added - 1;
            }
            None => self.gap_bytes += added,
        }
        self.runs.insert(from, to);
    }

    /// Adds one offset anywhere; `false` if it is there.
    pub(super) fn insert(&mut self, offset: i64) -> bool {
        if self.contains(offset) {
            return false;
        }
        if self.end().is_none_or(|end| offset >= end) {
            self.push(offset, offset + 1);
            return true;
        }
        self.change(offset, |runs| {
            let to = runs.remove(&(offset + 1)).unwrap_or(offset + 1);
            match runs.range_mut(..offset).next_back() {
                Some((_, end)) if *end == offset => *end = to,
                _ => drop(runs.insert(offset, to)),
            }
        });
        self.offsets += 1;
        true
    }

    /// Removes an offset; `false` if it is not there.
    pub(super) fn remove(&mut self, offset: i64) -> bool {
        let run = self.runs.range(..=offset).next_back();
        let Some((from, to)) = run
            .map(|(&from, &to)| (from, to))
            .filter(|run| offset < run.1)
        else {
            return false;
        };
        self.change(offset, |runs| {
            if from == offset {
                runs.remove(&from);
            } else {
                runs.insert(from, offset);
            }
            if offset + 1 < to {
                runs.insert(offset + 1, to);
            }
        });
        self.offsets -= 1;
        true
    }

    /// Changes the runs at `offset`, and the bytes of those around it.
    fn change(&mut self, offset: i64, edit: impl FnOnce(&mut BTreeMap<i64, i64>)) {
        let before = self.runs.range(..offset).next_back();
        let low = before.map_or(offset, |(&from, _)| from);
        let after = self.runs.range(offset + 1..).next();
        let high = after.map_or(offset + 1, |(&from, _)| from);
        let bytes = self.bytes(low, high);
        edit(&mut self.runs);
        self.gap_bytes = self.gap_bytes + self.bytes(low, high) - bytes;
    }

    /// The gap bytes of the runs that begin from `low` to `high`.
    fn bytes(&self, low: i64, high: i64) -> usize {
        let mut before = self.runs.range(..low).next_back().map(|(_, &to)| to);
        let mut gaps = 0;
        for (&from, &to) in self.runs.range(low..=high) {
            gaps += before.map_or(1, |before| gap_length(from - before));
            gaps += usize::try_from(to - from).unwrap_or(1) - 1;
            before = Some(to);
        }
        gaps
    }
}

fn gap_length(gap: i64) -> usize {
    varint::length(u64::try_from(gap).unwrap_or(0))
}

impl FromIterator<(i64, i64)> for Runs {
    fn from_iter<T: IntoIterator<Item = (i64, i64)>>(runs: T) -> Self {
        let mut all = Self::default();
        for (from, to) in runs.into_iter().filter(|(from, to)| from < to) {
            all.push(from, to);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_agree_with_a_plain_set_and_count_their_bytes(
            actions in proptest::collection::vec((any::<bool>(), 0..300_i64), 0..200),
        ) {
            let (mut runs, mut set) = (Runs::default(), BTreeSet::new());
            for (adds, offset) in actions {
                if adds {
                    prop_assert_eq!(runs.insert(offset), set.insert(offset));
                } else {
                    prop_assert_eq!(runs.remove(offset), set.remove(&offset));
                }
                prop_assert_eq!(runs.len(), set.len());
                let all: Vec<i64> = runs.iter().flat_map(|(from, to)| from..to).collect();
                prop_assert!(all.iter().eq(set.iter()));
                let anew: Runs = runs.iter().collect();
                prop_assert_eq!(runs.gap_bytes(), anew.gap_bytes());
                let gaps: usize = all
                    .iter()
                    .scan(None, |last: &mut Option<i64>, &offset| {
                        let gap = last.map_or(0, |last| offset - last - 1);
                        *last = Some(offset);
                        Some(gap_length(gap))
                    })
                    .sum();
                prop_assert_eq!(runs.gap_bytes(), gaps);
                let part: Vec<i64> = runs.within(50, 200).flat_map(|(from, to)| from..to).collect();
                prop_assert!(part.iter().eq(set.range(50..200)));
            }
        }
    }
}
