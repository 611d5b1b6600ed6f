//! Selects the subscribers with their own metric series: those with the largest and the oldest backlog and the most dead
//! letters. Pure.
//!
//! The limit protects Prometheus from thousands of series. Hysteresis keeps a subscriber near the limit from coming and
//! going between scrapes: a selected one stays until it falls clearly behind, and one whose backlog is empty reports 0 for
//! a while before it is removed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use super::index::Waiting;
use crate::runtime::metrics::OTHER;

/// A selected subscriber stays while it ranks within this percentage of the limit.
const MARGIN_PERCENT: usize = 125;
/// How long a subscriber with an empty backlog still reports zeros.
const ZEROS: Duration = Duration::from_secs(2 * 60);

/// The selected subscribers, from one update to the next.
#[derive(Debug)]
pub struct TopSubscribers {
    most: usize,
    /// Each with the time since when its backlog is empty, if it is.
    selected: HashMap<Box<str>, Option<Instant>>,
    /// The highest finished count of each.
    finished: HashMap<Box<str>, u64>,
}

/// The series after one update.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SubscriberSeries {
    /// The figures of each selected subscriber, and of all others as [`OTHER`].
    pub figures: BTreeMap<Box<str>, Waiting>,
    /// Commands finished since the last update, by subscriber, without [`OTHER`].
    pub finished: BTreeMap<Box<str>, u64>,
    /// Subscribers whose series are to be removed.
    pub removed: Vec<Box<str>>,
}

impl TopSubscribers {
    /// Selects at most `most` by each of pending commands, age and dead letters.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            most,
            selected: HashMap::new(),
            finished: HashMap::new(),
        }
    }

    /// A new reader counts finished commands from zero.
    pub fn restart(&mut self) {
        self.finished.clear();
    }

    /// Selects again, from the figures of all subscribers.
    pub fn update(&mut self, all: &BTreeMap<Box<str>, Waiting>, now: Instant) -> SubscriberSeries {
        let enter = self.ranks(all, self.most);
        let stay = self.ranks(all, self.most * MARGIN_PERCENT / 100);
        let mut series = SubscriberSeries::default();
        let before = std::mem::take(&mut self.selected);
        for (name, quiet) in before {
            let is_quiet = all.get(&name).is_none_or(Waiting::is_empty);
            let quiet = is_quiet.then(|| quiet.unwrap_or(now));
            if stay.contains(&*name) || quiet.is_some_and(|since| now - since < ZEROS) {
                self.selected.insert(name, quiet);
            } else {
                series.removed.push(name);
            }
        }
        for name in enter {
            if !self.selected.contains_key(name) {
                series.removed.retain(|removed| **removed != *name);
                self.selected.insert(name.into(), None);
            }
        }
        let before = std::mem::take(&mut self.finished);
        for name in self.selected.keys() {
            let figures = all.get(name).cloned().unwrap_or_default();
            // The first update of a counter adds nothing. A count that was too high is not counted again.
            let was = *before.get(name).unwrap_or(&figures.finished);
            let finished = figures.finished.saturating_sub(was);
            series.finished.insert(name.clone(), finished);
            self.finished
                .insert(name.clone(), was.max(figures.finished));
            series.figures.insert(name.clone(), figures);
        }
        let mut other = Waiting::default();
        let rest = all
            .iter()
            .filter(|(name, _)| !self.selected.contains_key(*name));
        rest.for_each(|(_, waiting)| other.add(waiting));
        series.figures.insert(OTHER.into(), other);
        series
    }

    fn ranks<'a>(&self, all: &'a BTreeMap<Box<str>, Waiting>, most: usize) -> HashSet<&'a str> {
        let mut chosen = HashSet::new();
        let mut rank = |key: &dyn Fn(&Waiting) -> u64| {
            let mut ranked: Vec<(u64, &str)> = all
                .iter()
                .map(|(name, waiting)| (key(waiting), &**name))
                .filter(|(value, name)| *value > 0 && *name != OTHER)
                .collect();
            // The greatest first; ties by name.
            ranked.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
            chosen.extend(ranked.into_iter().take(most).map(|(_, name)| name));
        };
        rank(&Waiting::pending);
        rank(&|waiting| {
            waiting
                .oldest
                .map_or(0, |oldest| u64::from(u32::MAX - oldest))
        });
        rank(&|waiting| waiting.dead.values().sum());
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(ready: u64) -> Waiting {
        Waiting {
            ready,
            ..Waiting::default()
        }
    }

    fn all(figures: &[(&str, u64)]) -> BTreeMap<Box<str>, Waiting> {
        let each = figures
            .iter()
            .map(|&(name, ready)| (name.into(), waiting(ready)));
        each.collect()
    }

    /// An update at an arbitrary time.
    fn update(top: &mut TopSubscribers, figures: &[(&str, u64)]) -> SubscriberSeries {
        top.update(&all(figures), crate::edge::clock::instant())
    }

    #[test]
    fn the_others_are_summed_up_and_none_is_lost() {
        let mut top = TopSubscribers::new(2);
        let series = update(&mut top, &[("a", 10), ("b", 30), ("c", 20), ("d", 5)]);
        let names: Vec<&str> = series.figures.keys().map(|name| &**name).collect();
        assert_eq!(names, ["_other", "b", "c"]);
        assert_eq!(series.figures[OTHER].ready, 15);
        let sum: u64 = series.figures.values().map(|one| one.ready).sum();
        assert_eq!(sum, 65);
    }

    #[test]
    fn a_subscriber_near_the_limit_does_not_come_and_go() {
        let mut top = TopSubscribers::new(4);
        let figures = [("a", 9), ("b", 8), ("c", 7), ("d", 6), ("e", 5)];
        update(&mut top, &figures);
        let figures = [("a", 9), ("b", 8), ("c", 7), ("d", 5), ("e", 6)];
        let series = update(&mut top, &figures);
        assert!(
            series.figures.contains_key("d"),
            "the fifth, within the margin"
        );
        assert!(series.figures.contains_key("e"));
        assert!(series.removed.is_empty());
    }

    #[test]
    fn finished_commands_are_counted_between_updates() {
        let figures = |ready, finished| {
            let waiting = Waiting {
                ready,
                finished,
                ..Waiting::default()
            };
            BTreeMap::from([("a".into(), waiting)])
        };
        let mut top = TopSubscribers::new(2);
        let now = crate::edge::clock::instant();
        let finished = |top: &mut TopSubscribers, ready, finished| {
            top.update(&figures(ready, finished), now).finished["a"]
        };
        assert_eq!(
            finished(&mut top, 9, 1_000_000),
            0,
            "the first update counts nothing"
        );
        assert_eq!(finished(&mut top, 5, 1_000_004), 4);
        assert_eq!(
            finished(&mut top, 0, 1_000_009),
            5,
            "also with an empty backlog"
        );
        assert_eq!(finished(&mut top, 1, 1_000_007), 0);
        assert_eq!(
            finished(&mut top, 0, 1_000_010),
            1,
            "nothing is counted twice"
        );
        top.restart();
        assert_eq!(finished(&mut top, 3, 0), 0, "the reader was replaced");
        assert_eq!(finished(&mut top, 3, 2), 2);
    }

    #[test]
    fn a_subscriber_named_other_counts_among_the_others() {
        let mut top = TopSubscribers::new(2);
        let figures = [("a", 1), (OTHER, 90), ("b", 2), ("c", 3)];
        for _ in 0..2 {
            let series = update(&mut top, &figures);
            assert_eq!(series.figures[OTHER].ready, 91);
            assert_eq!(series.figures.len(), 3, "two have their own series");
            assert!(!series.finished.contains_key(OTHER));
        }
    }

    #[test]
    fn a_drained_subscriber_reports_zero_before_it_is_removed() {
        let mut top = TopSubscribers::new(2);
        let mut now = crate::edge::clock::instant();
        top.update(&all(&[("a", 1)]), now);
        // At any interval between updates.
        for seconds in [1, 15, 104] {
            now += Duration::from_secs(seconds);
            let series = top.update(&all(&[]), now);
            assert_eq!(series.figures.get("a"), Some(&Waiting::default()));
        }
        now += Duration::from_secs(2);
        let series = top.update(&all(&[]), now);
        assert_eq!(series.removed, ["a".into()]);
        assert!(!series.figures.contains_key("a"));
    }

    #[test]
    fn a_subscriber_that_drains_again_reports_zero_for_the_full_time() {
        let mut top = TopSubscribers::new(2);
        let now = crate::edge::clock::instant();
        let mut at = |seconds, figures: &[(&str, u64)]| {
            let series = top.update(&all(figures), now + Duration::from_secs(seconds));
            series.removed.len()
        };
        assert_eq!(at(0, &[("a", 1)]), 0);
        assert_eq!(at(1, &[]), 0);
        assert_eq!(at(100, &[("a", 1)]), 0);
        assert_eq!(at(101, &[]), 0);
        assert_eq!(at(220, &[]), 0);
        assert_eq!(at(221, &[]), 1);
    }
}
