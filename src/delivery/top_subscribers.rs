//! Selects the subscribers with their own metric series: a limited number, those with failing attempts first, then
//! those with the most attempts.
//!
//! Pure. During an incident the question is whose attempts fail, so failures rank first. They are counted in bad
//! seconds, not attempts: an open breaker leaves few attempts, and a healthy endpoint has some failures. The selection
//! is updated once per second:
//!
//! | a selected subscriber that | is |
//! |---|---|
//! | has had no attempt for [`IDLE`] | removed |
//! | does not fail while another one does and no place is free | replaced at once |
//! | has been selected for less than [`HOLD`] | kept |
//! | has less than half as much as another one while no place is free | replaced |
//!
//! So a series lasts for minutes at least, unless it is replaced by a failing subscriber, and its counts only grow.
//! Attempts before and after count for [`OTHER`]. A subscriber that is selected again starts at 0, as every counter
//! does.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::partition::counts::AttemptCounts;
use crate::runtime::metrics::OTHER;

/// How often the selection is updated.
pub const EVERY: Duration = Duration::from_secs(1);
/// A subscriber without an attempt for this long is removed. Longer than the delay between two probes of a breaker.
pub const IDLE: Duration = Duration::from_secs(15 * 60);
/// A series lasts at least this long, unless its subscriber does not fail and another one does.
pub const HOLD: Duration = Duration::from_secs(5 * 60);
/// A second is bad when at least one in this many attempts failed.
const BAD_SHARE: u64 = 10;
/// A subscriber ranks clearly higher at this many times the other's count.
const CLEARLY: u64 = 2;

/// A subscriber's rank; fields are compared in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    bad_seconds: u64,
    attempts: u64,
}

impl Rank {
    fn fails(self) -> bool {
        self.bad_seconds > 0
    }

    fn is_clearly_before(self, other: Self) -> bool {
        if self.fails() || other.fails() {
            self.bad_seconds >= other.bad_seconds.saturating_mul(CLEARLY)
                && self.bad_seconds > other.bad_seconds
        } else {
            self.attempts >= other.attempts.saturating_mul(CLEARLY)
        }
    }
}

/// A subscriber with recent attempts.
#[derive(Debug)]
struct Known {
    /// Not reported yet.
    unreported: AttemptCounts,
    last: Instant,
    /// Covers the last [`IDLE`] at least, and twice that at most.
    now: Rank,
    before: Rank,
    /// Since when it has its own series.
    shown: Option<Instant>,
}

impl Known {
    fn rank(&self) -> Rank {
        Rank {
            bad_seconds: self.now.bad_seconds + self.before.bad_seconds,
            attempts: self.now.attempts + self.before.attempts,
        }
    }

    fn look(&mut self, now: Instant) {
        let (attempts, failed) = (self.unreported.attempts(), self.unreported.failed());
        if attempts == 0 {
            return;
        }
        self.last = now;
        self.now.attempts += attempts;
        self.now.bad_seconds += u64::from(failed > 0 && failed * BAD_SHARE >= attempts);
    }
}

/// The selection, updated every second.
#[derive(Debug)]
pub struct TopSubscribers {
    most: usize,
    known: HashMap<Arc<str>, Known>,
    next: Instant,
    /// When the current counts become the previous ones.
    turn: Instant,
}

/// The report of one second.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SubscriberAttempts {
    /// Attempts of [`OTHER`], and of selected subscribers that are new or had any.
    pub attempts: BTreeMap<Arc<str>, AttemptCounts>,
    /// Subscribers whose series are to be removed, before anything is added.
    pub gone: Vec<Arc<str>>,
}

impl TopSubscribers {
    /// Selects at most `most` subscribers, besides [`OTHER`].
    #[must_use]
    pub fn new(most: usize, now: Instant) -> Self {
        Self {
            most,
            known: HashMap::new(),
            next: now,
            turn: now + IDLE,
        }
    }

    /// Counts a subscriber's attempts.
    pub fn count(&mut self, subscriber: Arc<str>, counts: &AttemptCounts, now: Instant) {
        let known = self.known.entry(subscriber).or_insert_with(|| Known {
            unreported: AttemptCounts::default(),
            last: now,
            now: Rank::default(),
            before: Rank::default(),
            shown: None,
        });
        known.unreported.add(counts);
    }

    /// The report, once per [`EVERY`].
    pub fn report(&mut self, now: Instant) -> Option<SubscriberAttempts> {
        if now < self.next {
            return None;
        }
        self.next = now + EVERY;
        self.known.values_mut().for_each(|known| known.look(now));
        if now >= self.turn {
            self.turn = now + IDLE;
            for known in self.known.values_mut() {
                known.before = std::mem::take(&mut known.now);
            }
        }
        let mut report = SubscriberAttempts::default();
        self.known.retain(|name, known| {
            let stays = now.saturating_duration_since(known.last) < IDLE;
            if !stays && known.shown.is_some() {
                report.gone.push(Arc::clone(name));
            }
            stays
        });
        self.choose(now, &mut report);
        let mut other = AttemptCounts::default();
        for (name, known) in &mut self.known {
            let unreported = known.unreported.take();
            match known.shown {
                None => other.add(&unreported.unwrap_or_default()),
                // A new subscriber is reported in any case.
                Some(since) if since < now && unreported.is_none() => {}
                Some(_) => drop(
                    report
                        .attempts
                        .insert(Arc::clone(name), unreported.unwrap_or_default()),
                ),
            }
        }
        report.attempts.insert(OTHER.into(), other);
        Some(report)
    }

    /// Gives free places to the highest-ranked subscribers, and replaces selected ones.
    fn choose(&mut self, now: Instant, report: &mut SubscriberAttempts) {
        // A subscriber may be named like [`OTHER`]: it counts there.
        let all = self.known.iter().filter(|(name, _)| &***name != OTHER);
        let (mut shown, mut others): (Vec<_>, Vec<_>) = all
            .map(|(name, known)| (known.rank(), Arc::clone(name), known.shown))
            .partition(|(_, _, shown)| shown.is_some());
        let free = self.most.saturating_sub(shown.len());
        // The first candidate and the last selected subscriber; ties are broken consistently.
        let first =
            |a: &(Rank, Arc<str>, _), b: &(Rank, Arc<str>, _)| b.0.cmp(&a.0).then(a.1.cmp(&b.1));
        if others.len() > self.most {
            // Candidates beyond the number of places need no order: there may be a hundred thousand.
            others.select_nth_unstable_by(self.most, first);
            others.truncate(self.most);
        }
        others.sort_by(first);
        shown.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        let mut others = others.into_iter().map(|(rank, name, _)| (rank, name));
        let mut enter: Vec<Arc<str>> = others.by_ref().take(free).map(|(_, name)| name).collect();
        let mut others = others.peekable();
        for (rank, name, since) in shown {
            let Some((other, _)) = others.peek() else {
                break;
            };
            let held = since.is_some_and(|since| now.saturating_duration_since(since) >= HOLD);
            let may_go = held || (other.fails() && !rank.fails());
            if !may_go || !other.is_clearly_before(rank) {
                continue;
            }
            if let Some(known) = self.known.get_mut(&name) {
                known.shown = None;
            }
            report.gone.push(name);
            enter.extend(others.next().map(|(_, name)| name));
        }
        for name in enter {
            if let Some(known) = self.known.get_mut(&name) {
                known.shown = Some(now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use super::*;
    use crate::model::outcome::Class;

    fn counts(good: u64, bad: u64) -> AttemptCounts {
        let mut counts = AttemptCounts::default();
        (0..good).for_each(|_| counts.count(Class::Success, false));
        (0..bad).for_each(|_| counts.count(Class::ServerError, true));
        counts
    }

    struct Scene {
        shown: TopSubscribers,
        now: Instant,
        /// The series as Prometheus would see them.
        series: BTreeMap<Arc<str>, AttemptCounts>,
    }

    impl Scene {
        fn new(most: usize) -> Self {
            let now = crate::edge::clock::instant();
            Self {
                shown: TopSubscribers::new(most, now),
                now,
                series: BTreeMap::new(),
            }
        }

        /// A second with these attempts: successful and failed ones.
        fn second(&mut self, attempts: &[(&str, u64, u64)]) -> SubscriberAttempts {
            for &(name, good, bad) in attempts {
                self.shown.count(name.into(), &counts(good, bad), self.now);
            }
            let report = self.shown.report(self.now).expect("a second has passed");
            self.now += EVERY;
            for name in &report.gone {
                assert!(self.series.remove(name).is_some(), "{name} had series");
            }
            for (name, counts) in &report.attempts {
                self.series.entry(Arc::clone(name)).or_default().add(counts);
            }
            report
        }

        fn seconds(&mut self, length: Duration, attempts: &[(&str, u64, u64)]) {
            for _ in 0..length.as_secs() {
                self.second(attempts);
            }
        }

        fn names(&self) -> Vec<&str> {
            let names = self.series.keys().map(|name| &**name);
            names.filter(|name| *name != OTHER).collect()
        }
    }

    #[test]
    fn those_that_fail_come_first_then_those_with_most_attempts_and_the_rest_is_summed_up() {
        let mut scene = Scene::new(2);
        scene.second(&[("a", 500, 0), ("b", 900, 1), ("c", 0, 1), ("d", 2, 0)]);
        assert_eq!(scene.names(), ["b", "c"]);
        assert_eq!(scene.series[OTHER], counts(502, 0));
        assert_eq!(scene.series["b"], counts(900, 1));
    }

    #[test]
    fn one_that_begins_to_fail_gets_the_place_of_one_that_does_not_at_once() {
        let mut scene = Scene::new(2);
        scene.second(&[("a", 900, 0), ("b", 500, 0)]);
        let report = scene.second(&[("a", 900, 0), ("b", 500, 0), ("c", 0, 1)]);
        assert_eq!(report.gone, ["b".into()]);
        assert_eq!(scene.names(), ["a", "c"]);
        assert_eq!(
            scene.series["c"],
            counts(0, 1),
            "its first failure is report"
        );
        assert_eq!(scene.series[OTHER], counts(500, 0));
    }

    #[test]
    fn one_whose_breaker_opens_among_many_good_attempts_is_seen_to_fail() {
        let mut scene = Scene::new(1);
        scene.seconds(IDLE, &[("big", 50, 0), ("dying", 10, 0)]);
        assert_eq!(scene.names(), ["big"]);
        scene.second(&[("big", 50, 0), ("dying", 5, 5)]);
        assert_eq!(scene.names(), ["dying"], "5 of 9,000 attempts");
    }

    #[test]
    fn some_failures_among_many_attempts_are_not_failing() {
        let mut scene = Scene::new(1);
        scene.second(&[("a", 900, 0)]);
        scene.second(&[("a", 900, 0), ("b", 400, 4)]);
        assert_eq!(scene.names(), ["a"]);
    }

    #[test]
    fn two_that_fail_do_not_take_turns() {
        let mut scene = Scene::new(1);
        scene.second(&[("a", 0, 1)]);
        for _ in 0..10 {
            scene.seconds(HOLD / 2, &[("b", 0, 3)]);
            scene.seconds(HOLD / 2, &[("a", 0, 3)]);
            assert_eq!(scene.names(), ["a"]);
        }
    }

    #[test]
    fn one_that_recovers_keeps_its_series_until_another_is_clearly_before_it() {
        let mut scene = Scene::new(1);
        scene.seconds(HOLD / 5, &[("a", 0, 1), ("b", 5, 0)]);
        scene.seconds(HOLD, &[("a", 1, 0), ("b", 5, 0)]);
        assert_eq!(scene.names(), ["a"], "its failures are still of interest");
        scene.seconds(IDLE * 2, &[("a", 1, 0), ("b", 5, 0)]);
        assert_eq!(scene.names(), ["b"]);
    }

    #[test]
    fn one_that_has_much_more_gets_a_place_only_after_a_while() {
        let mut scene = Scene::new(1);
        scene.second(&[("a", 1, 0)]);
        scene.seconds(HOLD - EVERY, &[("a", 1, 0), ("b", 9, 0)]);
        assert_eq!(scene.names(), ["a"]);
        scene.second(&[("a", 1, 0), ("b", 9, 0)]);
        assert_eq!(scene.names(), ["b"]);
    }

    #[test]
    fn one_that_has_had_nothing_for_long_goes_and_makes_room() {
        let mut scene = Scene::new(1);
        scene.second(&[("a", 0, 1)]);
        scene.seconds(IDLE - EVERY, &[]);
        assert_eq!(scene.names(), ["a"]);
        let report = scene.second(&[("b", 1, 0)]);
        assert_eq!(report.gone, ["a".into()]);
        assert_eq!(scene.names(), ["b"]);
        scene.second(&[("a", 7, 0)]);
        assert_eq!(scene.series[OTHER], counts(7, 0));
    }

    #[test]
    fn a_subscriber_with_the_name_of_the_rest_counts_there() {
        let mut scene = Scene::new(2);
        scene.second(&[(OTHER, 0, 3), ("a", 1, 0)]);
        assert_eq!(scene.names(), ["a"]);
        assert_eq!(scene.series[OTHER], counts(0, 3));
    }

    #[test]
    fn it_is_told_once_a_second() {
        let now = crate::edge::clock::instant();
        let mut shown = TopSubscribers::new(1, now);
        assert!(shown.report(now).is_some());
        shown.count("a".into(), &counts(1, 0), now);
        assert_eq!(shown.report(now + EVERY / 2), None);
        shown.count("a".into(), &counts(1, 0), now);
        let report = shown.report(now + EVERY).unwrap();
        assert_eq!(report.attempts["a"], counts(2, 0));
    }

    /// For any input: never more than the limit, every attempt reported once, and a removed series was selected for a
    /// while, idle, or replaced by a failing subscriber.
    #[test]
    fn at_most_so_many_are_shown_nothing_is_lost_and_no_series_flaps() {
        const MOST: usize = 4;
        for seed in 0..20 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut scene = Scene::new(MOST);
            let names: Vec<String> = (0..12).map(|number| format!("s{number}")).collect();
            let mut since: HashMap<Arc<str>, Instant> = HashMap::new();
            let mut failed: HashMap<Arc<str>, Instant> = HashMap::new();
            let mut sum = AttemptCounts::default();
            let mut told_sum = AttemptCounts::default();
            for _ in 0..4_000 {
                let mut attempts: Vec<(&str, u64, u64)> = Vec::new();
                for name in &names {
                    if random.u8(..10) == 0 {
                        let bad = if random.u8(..20) == 0 { 1 } else { 0 };
                        attempts.push((name, random.u64(1..9), bad));
                    }
                }
                if random.u16(..400) == 0 {
                    scene.now += Duration::from_secs(random.u64(..1200));
                }
                let now = scene.now;
                for (name, good, bad) in &attempts {
                    sum.add(&counts(*good, *bad));
                    if *bad > 0 {
                        failed.insert((*name).into(), now);
                    }
                }
                let report = scene.second(&attempts);
                report.attempts.values().for_each(|one| told_sum.add(one));
                for name in &report.gone {
                    assert!(!report.attempts.contains_key(name), "{name}, seed {seed}");
                    let stood = now - since.remove(name).unwrap();
                    let lately = failed.get(name).is_some_and(|at| now - *at < IDLE);
                    assert!(stood >= HOLD || !lately, "{name}, seed {seed}: {stood:?}");
                }
                for name in scene.names() {
                    since.entry(name.into()).or_insert(now);
                }
                assert!(scene.names().len() <= MOST, "seed {seed}");
                let shown: BTreeSet<&str> = scene.names().into_iter().collect();
                assert_eq!(shown, since.keys().map(|name| &**name).collect());
            }
            assert_eq!(told_sum, sum, "seed {seed}");
        }
    }
}
