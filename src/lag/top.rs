//! Which subscribers get series of their own: those that wait the most and the longest, with hysteresis.
//!
//! Pure. A thousand subscribers must not flood Prometheus, and one at the border must not come and go with each scrape:
//! who is shown stays until clearly out of the ranks, and one that drains to nothing reports 0 for a while before it goes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use super::index::Waiting;
use crate::runtime::metrics::OTHER;

/// How far, in hundredths of K, one that is shown may fall behind before it goes.
const MARGIN_PERCENT: usize = 125;
/// For how long one that has nothing any more is told of with zeros.
const ZEROS: Duration = Duration::from_secs(2 * 60);

/// Who is shown, from round to round.
#[derive(Debug)]
pub struct Top {
    most: usize,
    /// And since when there has been nothing, if there is nothing.
    shown: HashMap<Box<str>, Option<Instant>>,
    /// What each had finished in the last round.
    finished: HashMap<Box<str>, u64>,
}

/// What to tell in one round.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Each subscriber with its figures, [`OTHER`] included.
    pub figures: BTreeMap<Box<str>, Waiting>,
    /// How many commands of each of them but [`OTHER`] were finished since the last round in which it was told of.
    pub finished: BTreeMap<Box<str>, u64>,
    /// Whose series are to be removed.
    pub gone: Vec<Box<str>>,
}

impl Top {
    /// At most `most` by each rank: pending commands, age, dead letters.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            most,
            shown: HashMap::new(),
            finished: HashMap::new(),
        }
    }

    /// The next round.
    pub fn update(&mut self, all: &BTreeMap<Box<str>, Waiting>, now: Instant) -> Told {
        let enter = self.ranks(all, self.most);
        let stay = self.ranks(all, self.most * MARGIN_PERCENT / 100);
        let mut told = Told::default();
        let before = std::mem::take(&mut self.shown);
        for (name, quiet) in before {
            let is_quiet = all.get(&name).is_none_or(Waiting::is_empty);
            let quiet = is_quiet.then(|| quiet.unwrap_or(now));
            if stay.contains(&*name) || quiet.is_some_and(|since| now - since < ZEROS) {
                self.shown.insert(name, quiet);
            } else {
                told.gone.push(name);
            }
        }
        for name in enter {
            if !self.shown.contains_key(name) {
                told.gone.retain(|gone| **gone != *name);
                self.shown.insert(name.into(), None);
            }
        }
        let before = std::mem::take(&mut self.finished);
        for name in self.shown.keys() {
            let figures = all.get(name).cloned().unwrap_or_default();
            // One that is told of for the first time begins with nothing, as every counter does; and a reader that was
            // made anew begins to count anew.
            let was = before.get(name).unwrap_or(&figures.finished);
            let finished = figures.finished.saturating_sub(*was);
            told.finished.insert(name.clone(), finished);
            self.finished.insert(name.clone(), figures.finished);
            told.figures.insert(name.clone(), figures);
        }
        let mut other = Waiting::default();
        let rest = all
            .iter()
            .filter(|(name, _)| !self.shown.contains_key(*name));
        rest.for_each(|(_, waiting)| other.add(waiting));
        told.figures.insert(OTHER.into(), other);
        told
    }

    fn ranks<'a>(&self, all: &'a BTreeMap<Box<str>, Waiting>, most: usize) -> HashSet<&'a str> {
        let mut chosen = HashSet::new();
        let mut rank = |key: &dyn Fn(&Waiting) -> u64| {
            let mut ranked: Vec<(u64, &str)> = all
                .iter()
                .map(|(name, waiting)| (key(waiting), &**name))
                .filter(|(value, name)| *value > 0 && *name != OTHER)
                .collect();
            // The greatest first; of equals, always the same.
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

    /// A round at no time in particular.
    fn round(top: &mut Top, figures: &[(&str, u64)]) -> Told {
        top.update(&all(figures), crate::edge::clock::instant())
    }

    #[test]
    fn the_rest_is_summed_up_and_nothing_is_lost() {
        let mut top = Top::new(2);
        let told = round(&mut top, &[("a", 10), ("b", 30), ("c", 20), ("d", 5)]);
        let names: Vec<&str> = told.figures.keys().map(|name| &**name).collect();
        assert_eq!(names, ["_other", "b", "c"]);
        assert_eq!(told.figures[OTHER].ready, 15);
        let sum: u64 = told.figures.values().map(|one| one.ready).sum();
        assert_eq!(sum, 65);
    }

    #[test]
    fn one_at_the_border_does_not_come_and_go() {
        let mut top = Top::new(4);
        let figures = [("a", 9), ("b", 8), ("c", 7), ("d", 6), ("e", 5)];
        round(&mut top, &figures);
        let figures = [("a", 9), ("b", 8), ("c", 7), ("d", 5), ("e", 6)];
        let told = round(&mut top, &figures);
        assert!(
            told.figures.contains_key("d"),
            "it is the fifth, within the margin"
        );
        assert!(told.figures.contains_key("e"));
        assert!(told.gone.is_empty());
    }

    #[test]
    fn what_was_finished_is_told_from_round_to_round() {
        let figures = |ready, finished| {
            let waiting = Waiting {
                ready,
                finished,
                ..Waiting::default()
            };
            BTreeMap::from([("a".into(), waiting)])
        };
        let mut top = Top::new(2);
        let now = crate::edge::clock::instant();
        let mut told = |ready, finished| top.update(&figures(ready, finished), now).finished["a"];
        assert_eq!(told(9, 1_000_000), 0, "what was before is no rate");
        assert_eq!(told(5, 1_000_004), 4);
        assert_eq!(told(0, 1_000_009), 5, "also when nothing is left");
        assert_eq!(told(3, 0), 0, "the reader was made anew");
        assert_eq!(told(3, 2), 2);
    }

    #[test]
    fn a_subscriber_with_the_name_of_the_rest_counts_there() {
        let mut top = Top::new(2);
        let figures = [("a", 1), (OTHER, 90), ("b", 2), ("c", 3)];
        for _ in 0..2 {
            let told = round(&mut top, &figures);
            assert_eq!(told.figures[OTHER].ready, 91);
            assert_eq!(told.figures.len(), 3, "two have series of their own");
            assert!(!told.finished.contains_key(OTHER));
        }
    }

    #[test]
    fn one_that_has_drained_tells_zero_before_it_goes() {
        let mut top = Top::new(2);
        let mut now = crate::edge::clock::instant();
        top.update(&all(&[("a", 1)]), now);
        // However far the rounds are apart.
        for seconds in [1, 15, 104] {
            now += Duration::from_secs(seconds);
            let told = top.update(&all(&[]), now);
            assert_eq!(told.figures.get("a"), Some(&Waiting::default()));
        }
        now += Duration::from_secs(2);
        let told = top.update(&all(&[]), now);
        assert_eq!(told.gone, ["a".into()]);
        assert!(!told.figures.contains_key("a"));
    }

    #[test]
    fn one_that_has_something_again_tells_zero_for_as_long_the_next_time() {
        let mut top = Top::new(2);
        let now = crate::edge::clock::instant();
        let mut at = |seconds, figures: &[(&str, u64)]| {
            let told = top.update(&all(figures), now + Duration::from_secs(seconds));
            told.gone.len()
        };
        assert_eq!(at(0, &[("a", 1)]), 0);
        assert_eq!(at(1, &[]), 0);
        assert_eq!(at(100, &[("a", 1)]), 0);
        assert_eq!(at(101, &[]), 0);
        assert_eq!(at(220, &[]), 0);
        assert_eq!(at(221, &[]), 1);
    }
}
