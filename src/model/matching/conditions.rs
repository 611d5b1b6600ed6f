//! The subscriptions of one type pattern, each indexed by its most selective condition.
//!
//! Every list here is found through a value of the event, so the cost depends on what the event contains. A candidate
//! is not yet a match: the caller checks the whole filter.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::ops::Bound;

use smallvec::SmallVec;

use super::map::Map;
use super::paths::{PathId, Resolved};
use crate::model::subscription::filter::{Condition, Interval, Leaf, Matcher, Num, Scalar};

/// A subscription's place in the index.
pub(super) type Slot = u32;

/// The place of a condition in its filter, which has at most 32; `None` if the index can use none of them.
pub(super) type Chosen = Option<u8>;

/// A sorted set; mostly appended to, and small when the chosen conditions are selective.
/// Most fit in place.
#[derive(Debug, Default)]
pub(super) struct Slots(SmallVec<[Slot; 4]>);

impl Slots {
    fn set(&mut self, slot: Slot, present: bool) {
        match (self.0.binary_search(&slot), present) {
            (Ok(at), false) => drop(self.0.remove(at)),
            (Err(at), true) => self.0.insert(at, slot),
            _ => {}
        }
    }
}

/// The subscriptions of one pattern.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    unconditioned: Slots,
    by_path: Map<PathId, PathIndex>,
}

impl Bucket {
    /// Adds a subscription under its best condition, and returns that condition's position for [`Bucket::remove`].
    pub(super) fn insert(
        &mut self,
        slot: Slot,
        paths: &[PathId],
        conditions: &[Condition],
    ) -> Chosen {
        let candidates = |at: usize, condition: &Condition| {
            let index = self.by_path.get(&paths[at]);
            let each = condition.matchers.iter();
            let each = each.map(|matcher| index.map_or(0, |index| index.cell_len(matcher)));
            each.sum::<usize>() + condition.matchers.len()
        };
        // Most filters have one condition, and nothing to compare.
        let is_choice = conditions.len() > 1;
        let first = conditions.iter().take(usize::from(u8::MAX));
        let usable = first.enumerate().filter_map(|(at, condition)| {
            let worst = worst_class(&condition.matchers)?;
            let candidates = is_choice.then(|| candidates(at, condition));
            Some((worst, candidates, at))
        });
        let chosen = usable.min().map(|(_, _, at)| at);
        match chosen {
            Some(at) => {
                self.by_path
                    .entry(paths[at])
                    .or_default()
                    .set(slot, &conditions[at].matchers, true)
            }
            None => self.unconditioned.set(slot, true),
        }
        chosen.and_then(|at| u8::try_from(at).ok())
    }

    /// Removes a subscription whose insertion returned `chosen`.
    pub(super) fn remove(
        &mut self,
        slot: Slot,
        chosen: Chosen,
        paths: &[PathId],
        conditions: &[Condition],
    ) {
        let Some(at) = chosen.map(usize::from) else {
            return self.unconditioned.set(slot, false);
        };
        if let Some(index) = self.by_path.get_mut(&paths[at]) {
            index.set(slot, &conditions[at].matchers, false);
            if index.is_empty() {
                self.by_path.remove(&paths[at]);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.unconditioned.0.is_empty() && self.by_path.is_empty()
    }

    /// Appends candidates; some may occur more than once.
    pub(super) fn candidates(&self, resolved: &Resolved<'_>, found: &mut Vec<Slot>) {
        found.extend_from_slice(&self.unconditioned.0);
        if self.by_path.len() < resolved.paths() {
            for (path, index) in &self.by_path {
                index.candidates(resolved.leaves(*path), found);
            }
        } else {
            for (path, leaves) in resolved.iter() {
                if let Some(index) = self.by_path.get(&path) {
                    index.candidates(leaves, found);
                }
            }
        }
    }
}

/// How selective a matcher is, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    /// One value, prefix, suffix, or closed numeric range: a separate list.
    Narrow,
    /// A half-open numeric range.
    HalfOpen,
    /// One of three values.
    Coarse,
    /// The path exists.
    Present,
}

/// `None` if an absent value satisfies the matcher, so that no value of an event leads to it.
fn class(matcher: &Matcher) -> Option<Class> {
    match matcher {
        Matcher::Equals(Scalar::Null | Scalar::Bool(_)) => Some(Class::Coarse),
        Matcher::Equals(_) | Matcher::Prefix(_) | Matcher::Suffix(_) => Some(Class::Narrow),
        Matcher::Numeric(interval) if bounded(interval).is_some() => Some(Class::Narrow),
        Matcher::Numeric(_) => Some(Class::HalfOpen),
        Matcher::NotIn(_)
        | Matcher::NotPrefix(_)
        | Matcher::NotSuffix(_)
        | Matcher::Exists(true) => Some(Class::Present),
        Matcher::Exists(false) => None,
    }
}

fn worst_class(matchers: &[Matcher]) -> Option<Class> {
    let worst = |worst: Class, matcher| class(matcher).map(|class| worst.max(class));
    matchers.iter().try_fold(Class::Narrow, worst)
}

/// `null`, booleans and numbers: values that are looked up without borrowing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Plain {
    Null,
    Bool(bool),
    Number(Num),
}

/// The subscriptions indexed by one path.
#[derive(Debug, Default)]
struct PathIndex {
    /// By a hash of the text: texts that share one share a list, since the whole filter is checked anyway.
    strings: Map<u64, Slots>,
    plain: Map<Plain, Slots>,
    prefixes: Affixes,
    suffixes: Affixes,
    /// By bound, and whether it is excluded.
    above: BTreeMap<(Num, bool), Slots>,
    /// By bound, and whether it is included.
    below: BTreeMap<(Num, bool), Slots>,
    ranges: RangeIndex,
    present: Slots,
}

impl PathIndex {
    fn hash(&self, text: &str) -> u64 {
        self.strings.hasher().hash_one(text)
    }

    fn set(&mut self, slot: Slot, matchers: &[Matcher], present: bool) {
        for matcher in matchers {
            self.set_one(slot, matcher, present);
        }
    }

    fn set_one(&mut self, slot: Slot, matcher: &Matcher, present: bool) {
        match matcher {
            Matcher::Equals(Scalar::String(text)) => {
                let hash = self.hash(text);
                set_in_hash(&mut self.strings, hash, slot, present)
            }
            Matcher::Equals(scalar) => {
                if let Some(plain) = plain(scalar) {
                    set_in_hash(&mut self.plain, plain, slot, present);
                }
            }
            Matcher::Prefix(text) => self.prefixes.set(slot, text, present),
            Matcher::Suffix(text) => self.suffixes.set(slot, text, present),
            Matcher::Numeric(interval) => self.set_interval(slot, interval, present),
            _ => self.present.set(slot, present),
        }
    }

    fn set_interval(&mut self, slot: Slot, interval: &Interval, present: bool) {
        match (bounded(interval), interval.lower, interval.upper) {
            (Some((low, high)), ..) => self.ranges.set(slot, low, high, present),
            (None, Bound::Included(low), _) => {
                set_in_tree(&mut self.above, (low, false), slot, present)
            }
            (None, Bound::Excluded(low), _) => {
                set_in_tree(&mut self.above, (low, true), slot, present)
            }
            (None, _, Bound::Included(high)) => {
                set_in_tree(&mut self.below, (high, true), slot, present)
            }
            (None, _, Bound::Excluded(high)) => {
                set_in_tree(&mut self.below, (high, false), slot, present)
            }
            (None, Bound::Unbounded, Bound::Unbounded) => self.present.set(slot, present),
        }
    }

    /// The length of the list that the matcher would join; for half-open ranges, the number of lists.
    fn cell_len(&self, matcher: &Matcher) -> usize {
        let length = |slots: Option<&Slots>| slots.map_or(0, |slots| slots.0.len());
        match matcher {
            Matcher::Equals(Scalar::String(text)) => length(self.strings.get(&self.hash(text))),
            Matcher::Equals(scalar) => {
                length(plain(scalar).and_then(|plain| self.plain.get(&plain)))
            }
            Matcher::Prefix(text) => length(self.prefixes.lists.get(text)),
            Matcher::Suffix(text) => length(self.suffixes.lists.get(text)),
            Matcher::Numeric(interval) => match bounded(interval) {
                Some((low, high)) => self.ranges.cell_len(low, high),
                None => self.above.len() + self.below.len(),
            },
            _ => self.present.0.len(),
        }
    }

    fn is_empty(&self) -> bool {
        self.strings.is_empty()
            && self.plain.is_empty()
            && self.prefixes.lists.is_empty()
            && self.suffixes.lists.is_empty()
            && self.above.is_empty()
            && self.below.is_empty()
            && self.ranges.levels.is_empty()
            && self.present.0.is_empty()
    }

    fn candidates(&self, leaves: &[Leaf<'_>], found: &mut Vec<Slot>) {
        if leaves.is_empty() {
            return;
        }
        found.extend_from_slice(&self.present.0);
        for leaf in leaves {
            match *leaf {
                Leaf::String(text) => self.by_text(text, found),
                Leaf::Number(x) => self.by_number(x, found),
                Leaf::Bool(bool) => extend(found, self.plain.get(&Plain::Bool(bool))),
                Leaf::Null => extend(found, self.plain.get(&Plain::Null)),
                Leaf::Composite => {}
            }
        }
    }

    fn by_text(&self, text: &str, found: &mut Vec<Slot>) {
        extend(found, self.strings.get(&self.hash(text)));
        for length in self
            .prefixes
            .lengths
            .range(..=text.len())
            .map(|(length, _)| *length)
        {
            extend(
                found,
                text.get(..length)
                    .and_then(|start| self.prefixes.lists.get(start)),
            );
        }
        for length in self
            .suffixes
            .lengths
            .range(..=text.len())
            .map(|(length, _)| *length)
        {
            extend(
                found,
                text.get(text.len() - length..)
                    .and_then(|end| self.suffixes.lists.get(end)),
            );
        }
    }

    fn by_number(&self, x: Num, found: &mut Vec<Slot>) {
        extend(found, self.plain.get(&Plain::Number(x)));
        for slots in self.above.range(..=(x, false)).map(|(_, slots)| slots) {
            extend(found, Some(slots));
        }
        for slots in self.below.range((x, true)..).map(|(_, slots)| slots) {
            extend(found, Some(slots));
        }
        self.ranges.candidates(x, found);
    }
}

fn extend(found: &mut Vec<Slot>, slots: Option<&Slots>) {
    found.extend_from_slice(slots.map_or(&[], |slots| &slots.0));
}

fn plain(scalar: &Scalar) -> Option<Plain> {
    match scalar {
        Scalar::Null => Some(Plain::Null),
        Scalar::Bool(bool) => Some(Plain::Bool(*bool)),
        Scalar::Number(x) => Some(Plain::Number(**x)),
        Scalar::String(_) => None,
    }
}

fn bounded(interval: &Interval) -> Option<(Num, Num)> {
    match (interval.lower, interval.upper) {
        (
            Bound::Included(low) | Bound::Excluded(low),
            Bound::Included(high) | Bound::Excluded(high),
        ) => Some((low, high)),
        _ => None,
    }
}

fn set_in_hash<K: Eq + std::hash::Hash>(
    map: &mut Map<K, Slots>,
    key: K,
    slot: Slot,
    present: bool,
) {
    use std::collections::hash_map::Entry;
    match map.entry(key) {
        Entry::Occupied(mut entry) => {
            entry.get_mut().set(slot, present);
            if entry.get().0.is_empty() {
                entry.remove();
            }
        }
        Entry::Vacant(entry) if present => entry.insert(Slots::default()).set(slot, true),
        Entry::Vacant(_) => {}
    }
}

fn set_in_tree<K: Ord>(map: &mut BTreeMap<K, Slots>, key: K, slot: Slot, present: bool) {
    use std::collections::btree_map::Entry;
    match map.entry(key) {
        Entry::Occupied(mut entry) => {
            entry.get_mut().set(slot, present);
            if entry.get().0.is_empty() {
                entry.remove();
            }
        }
        Entry::Vacant(entry) if present => entry.insert(Slots::default()).set(slot, true),
        Entry::Vacant(_) => {}
    }
}

/// Prefixes or suffixes: one lookup per occurring length.
#[derive(Debug, Default)]
struct Affixes {
    lists: Map<Box<str>, Slots>,
    /// The number of lists of each length in bytes.
    lengths: BTreeMap<usize, usize>,
}

impl Affixes {
    fn set(&mut self, slot: Slot, text: &str, present: bool) {
        let before = self.lists.len();
        set_in_hash(&mut self.lists, text.into(), slot, present);
        let count = self.lengths.entry(text.len()).or_default();
        *count = (*count + self.lists.len()).saturating_sub(before);
        if *count == 0 {
            self.lengths.remove(&text.len());
        }
    }
}

/// Closed numeric ranges. A range of length at most 2^k lies in one or two neighbouring cells of the grid with cells of
/// 2^k. So a number is looked up in one cell per level, and a cell holds few distant ranges.
#[derive(Debug, Default)]
struct RangeIndex {
    levels: BTreeMap<i32, Map<i64, Slots>>,
}

impl RangeIndex {
    /// The finest grid in which the range spans at most two cells. Rounding may widen the range but never loses it,
    /// because `cell` is monotonic.
    fn place(low: Num, high: Num) -> (i32, i64, i64) {
        let (low, high) = (low.as_f64(), high.as_f64());
        let length = (high - low).clamp(f64::MIN_POSITIVE, f64::MAX);
        #[allow(
            clippy::cast_possible_truncation,
            reason = "within the exponents of a double"
        )]
        let mut level = length.log2().ceil() as i32;
        loop {
            let (first, last) = (cell(low, level), cell(high, level));
            if last.saturating_sub(first) <= 1 {
                return (level, first, last);
            }
            level += 1;
        }
    }

    fn set(&mut self, slot: Slot, low: Num, high: Num, present: bool) {
        let (level, first, last) = Self::place(low, high);
        let grid = self.levels.entry(level).or_default();
        for at in first..=last {
            set_in_hash(grid, at, slot, present);
        }
        if grid.is_empty() {
            self.levels.remove(&level);
        }
    }

    fn cell_len(&self, low: Num, high: Num) -> usize {
        let (level, first, _) = Self::place(low, high);
        self.levels
            .get(&level)
            .and_then(|grid| grid.get(&first))
            .map_or(0, |slots| slots.0.len())
    }

    fn candidates(&self, x: Num, found: &mut Vec<Slot>) {
        for (level, grid) in &self.levels {
            extend(found, grid.get(&cell(x.as_f64(), *level)));
        }
    }
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "saturates, which keeps the order"
)]
fn cell(x: f64, level: i32) -> i64 {
    (x / 2f64.powi(level)).floor() as i64
}
