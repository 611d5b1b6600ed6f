//! The adaptive concurrency limit of one endpoint.
//!
//! An endpoint that gives more throughput with more requests gets all the requests that its subscription allows.
//! Otherwise more requests only queue on its side, and hold sockets and window offsets here. Response times alone cannot
//! tell the two apart: an endpoint may respond to some requests quickly and to others slowly, whatever its load. So
//! experiments decide:
//!
//! | experiment | when | result |
//! |---|---|---|
//! | half the limit | most responses take much longer than the best one; and now and then | stays there unless the throughput falls too |
//! | twice the limit | now and then, while the limit was lowered this way | stays there if the throughput rises too |
//!
//! The throughput is the mean number of requests in flight divided by the mean response time (Little's law), so it does
//! not depend on demand. While the limit is not known to be enough, it grows by about one per round of responses.
//! Responses that are quick on average never start an experiment. An attempt without a response halves the limit.
//!
//! Existing limiter crates wrap a service and wait on semaphores. This one returns a number, so it can be tested
//! without a clock. Pure.

use std::time::{Duration, Instant};

/// Endpoints with a mean response time below this are never limited: it is within the noise of a busy machine.
const QUICK: Duration = Duration::from_millis(50);
/// A response that takes this many times the best was perhaps queued at the endpoint.
const QUEUED: u32 = 3;
/// Twice as many requests must give this many times the throughput to be worth it.
const GAIN: f64 = 1.15;
/// The least number of responses of an experiment, and of the time before one.
const SAMPLES: u32 = 32;
/// Samples are taken for this many times the slowest response, since the first to arrive are the quick ones.
const ROUNDS: u32 = 3;
/// An experiment with very slow responses ends after this time and at least this many responses.
const LONGEST: Duration = Duration::from_secs(45);
const LEAST_SAMPLES: u32 = 12;
/// The mean response time must have grown this much since an experiment, for another one to be due early.
const SLOWER: f64 = 1.5;
/// Times between experiments with more requests that found nothing to change: the first, and the longest. An experiment also takes at most
/// one part in [`SHARE`] of the time.
const BETWEEN: Duration = Duration::from_secs(30);
const LONGEST_BETWEEN: Duration = Duration::from_secs(120);
/// The first experiment without a reason.
const FIRST: Duration = Duration::from_secs(60);
const SHARE: u32 = 20;

/// The concurrency limit of one endpoint.
#[derive(Debug)]
pub struct Concurrency {
    limit: f64,
    most: usize,
    /// Attempts in flight at a cut do not cause a second one.
    cut: Option<Instant>,
    /// The fastest response since the last experiment.
    best: Option<Duration>,
    samples: Samples,
    experiment: Option<Experiment>,
    /// Whether an experiment found that more requests give no more throughput.
    is_enough: bool,
    /// The mean response time at which an experiment found that fewer requests give less throughput.
    fine_at: Option<Duration>,
    /// When the next experiments are due, and the time between them.
    next_lower: Instant,
    next_higher: Instant,
    between: Duration,
}

/// An experiment in progress.
#[derive(Clone, Copy, Debug)]
struct Experiment {
    kind: Kind,
    since: Instant,
    /// The limit before it, and its throughput.
    from: f64,
    throughput: f64,
    /// The slowest response before it.
    slowest: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Lower,
    Higher,
}

/// Responses to attempts that began since a moment.
#[derive(Clone, Copy, Debug)]
struct Samples {
    since: Instant,
    count: u32,
    queued: u32,
    in_flight: f64,
    /// Seconds.
    took: f64,
    slowest: Duration,
}

impl Samples {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            count: 0,
            queued: 0,
            in_flight: 0.0,
            took: 0.0,
            slowest: Duration::ZERO,
        }
    }

    fn add(&mut self, in_flight: usize, took: Duration, is_queued: bool) {
        if self.count >= 16 * SAMPLES {
            // What is recent weighs more.
            self.count /= 2;
            self.queued /= 2;
            self.in_flight /= 2.0;
            self.took /= 2.0;
        }
        self.count += 1;
        self.queued += u32::from(is_queued);
        self.in_flight += in_flight as f64;
        self.took += took.as_secs_f64();
        self.slowest = self.slowest.max(took);
    }

    /// Whether they represent the endpoint at this limit; `slowest` was seen before.
    fn suffice(&self, limit: usize, slowest: Duration, now: Instant) -> bool {
        let rounds = u32::try_from(limit.saturating_mul(2)).unwrap_or(u32::MAX);
        let length = now.saturating_duration_since(self.since);
        let least = self.slowest.max(slowest) * ROUNDS;
        self.count >= SAMPLES.max(rounds) && length >= least
            || self.count >= LEAST_SAMPLES && length >= LONGEST
    }

    /// Responses per second.
    fn throughput(&self) -> f64 {
        self.in_flight / self.took.max(1e-9)
    }

    fn mean(&self) -> Duration {
        Duration::from_secs_f64(self.took / f64::from(self.count.max(1)))
    }
}

impl Concurrency {
    /// Starts at the maximum.
    #[must_use]
    pub fn new(most: usize, now: Instant) -> Self {
        Self {
            limit: most.max(1) as f64,
            most: most.max(1),
            cut: None,
            best: None,
            samples: Samples::new(now),
            experiment: None,
            is_enough: false,
            fine_at: None,
            next_lower: now + FIRST,
            next_higher: now,
            between: BETWEEN,
        }
    }

    /// Sets a new maximum, as when the subscription changes.
    pub fn set_most(&mut self, most: usize) {
        let most = most.max(1);
        self.experiment = None;
        if self.limit >= self.most as f64 {
            self.limit = most as f64;
        }
        self.most = most;
        self.limit = self.limit.min(self.most as f64);
    }

    /// The current limit, from 1 to the maximum.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit as usize
    }

    /// Records a response, of any status, to an attempt that began at `began` with `in_flight` requests in flight,
    /// including itself.
    pub fn responded(&mut self, began: Instant, in_flight: usize, now: Instant) {
        // An attempt sent under another limit measures that limit.
        if began <= self.samples.since || in_flight > self.limit() {
            return;
        }
        let took = now.saturating_duration_since(began);
        let best = self.best.map_or(took, |best| best.min(took));
        self.best = Some(best);
        // An unused limit measures nothing.
        if in_flight * 2 < self.limit() {
            return;
        }
        let is_queued = took > QUICK && took > best * QUEUED;
        self.samples.add(in_flight, took, is_queued);
        match self.experiment {
            Some(experiment) => self.conclude(experiment, now),
            None => self.go_on(now),
        }
    }

    /// Records an attempt without a response that began at `began`.
    pub fn failed(&mut self, began: Instant, now: Instant) {
        if self.cut.is_some_and(|cut| began < cut) {
            return;
        }
        self.cut = Some(now);
        self.experiment = None;
        // What was enough before says nothing about half of it.
        self.is_enough = false;
        self.set_limit(self.limit / 2.0, now);
    }

    /// Outside an experiment: grows, or starts one that is due.
    fn go_on(&mut self, now: Instant) {
        if !self.is_enough {
            self.limit = (self.limit + 1.0 / self.limit).min(self.most as f64);
        }
        let limit = self.limit();
        if !self.samples.suffice(limit, Duration::ZERO, now) {
            return;
        }
        let mean = self.samples.mean();
        if mean <= QUICK {
            self.is_enough = false;
            return;
        }
        if limit > 1 && self.is_lower_due(mean, now) {
            return self.begin(Kind::Lower, self.limit / 2.0, now);
        }
        if self.is_enough && limit < self.most && now >= self.next_higher {
            self.begin(Kind::Higher, self.limit * 2.0, now);
        }
    }

    fn is_lower_due(&self, mean: Duration, now: Instant) -> bool {
        let looks_queued = self.samples.queued * 2 > self.samples.count;
        let is_slower = self.fine_at.is_none_or(|fine| mean > fine.mul_f64(SLOWER));
        looks_queued && is_slower || now >= self.next_lower
    }

    fn begin(&mut self, kind: Kind, limit: f64, now: Instant) {
        self.experiment = Some(Experiment {
            kind,
            since: now,
            from: self.limit,
            throughput: self.samples.throughput(),
            slowest: self.samples.slowest,
        });
        self.best = None;
        self.set_limit(limit, now);
    }

    /// Ends an experiment that has seen enough.
    fn conclude(&mut self, experiment: Experiment, now: Instant) {
        if !self.samples.suffice(self.limit(), experiment.slowest, now) {
            return;
        }
        let length = now.saturating_duration_since(experiment.since);
        self.experiment = None;
        let throughput = self.samples.throughput();
        let is_worth_it = match experiment.kind {
            Kind::Lower => experiment.throughput >= GAIN * throughput,
            Kind::Higher => throughput >= GAIN * experiment.throughput,
        };
        let rest = (length * SHARE).max(self.between);
        let later = now + rest;
        match (experiment.kind, is_worth_it) {
            (Kind::Lower, true) => {
                let at_half = self.samples.mean();
                self.fine_at = Some(self.fine_at.map_or(at_half, |fine| fine.max(at_half)));
                self.next_lower = later.max(now + LONGEST_BETWEEN);
                self.set_limit(experiment.from, now);
            }
            (Kind::Lower, false) => {
                // Perhaps even less is enough.
                self.is_enough = true;
                self.fine_at = None;
                self.next_lower = now;
                self.between = BETWEEN;
                self.next_higher = now + BETWEEN;
            }
            (Kind::Higher, true) => {
                self.is_enough = false;
                self.between = BETWEEN;
            }
            (Kind::Higher, false) => {
                self.between = (self.between * 2).min(LONGEST_BETWEEN);
                self.next_higher = later;
                self.set_limit(experiment.from, now);
            }
        }
        if self.experiment.is_none() {
            self.samples = Samples::new(now);
        }
    }

    fn set_limit(&mut self, limit: f64, now: Instant) {
        self.limit = limit.clamp(1.0, self.most as f64);
        self.samples = Samples::new(now);
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    use super::*;

    /// Simulates an endpoint that serves `servers` requests at a time, each for `work`, and queues the rest. It
    /// receives all the requests that the limit allows for `time`. Returns responses per second.
    fn load(
        concurrency: &mut Concurrency,
        servers: usize,
        work: Duration,
        time: Duration,
        now: &mut Instant,
    ) -> f64 {
        let begin = *now;
        let mut free = vec![*now; servers];
        let mut answers = BinaryHeap::new();
        let mut count = 0.0;
        while *now < begin + time {
            while answers.len() < concurrency.limit() {
                let server = free.iter_mut().min().unwrap();
                *server = (*server).max(*now) + work;
                answers.push(Reverse((*server, *now, answers.len() + 1)));
            }
            let Reverse((at, began, in_flight)) = answers.pop().unwrap();
            *now = at;
            count += 1.0;
            concurrency.responded(began, in_flight, *now);
        }
        count / time.as_secs_f64()
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn an_endpoint_that_can_take_it_gets_all_that_is_allowed() {
        let mut now = crate::edge::clock::instant();
        let mut concurrency = Concurrency::new(64, now);
        let work = Duration::from_millis(200);
        let rate = load(&mut concurrency, 64, work, 10 * MINUTE, &mut now);
        assert!(rate > 0.95 * 64.0 / work.as_secs_f64(), "{rate} answers/s");
    }

    #[test]
    fn an_endpoint_that_queues_gets_about_what_it_works_on_and_loses_nothing() {
        let mut now = crate::edge::clock::instant();
        let mut concurrency = Concurrency::new(64, now);
        let work = Duration::from_millis(100);
        let rate = load(&mut concurrency, 4, work, 10 * MINUTE, &mut now);
        let limit = concurrency.limit();
        assert!(
            (1..=16).contains(&limit),
            "{limit} for an endpoint that works on 4"
        );
        assert!(rate > 0.95 * 4.0 / work.as_secs_f64(), "{rate} answers/s");
    }

    #[test]
    fn the_noise_of_quick_answers_takes_nothing_away() {
        let mut now = crate::edge::clock::instant();
        let mut concurrency = Concurrency::new(8, now);
        for turn in 0..10_000_u64 {
            let began = now;
            now += Duration::from_micros(200 + (turn % 50) * 900);
            concurrency.responded(began, 8, now);
            assert_eq!(concurrency.limit(), 8);
        }
    }

    #[test]
    fn an_endpoint_that_has_become_slower_for_good_is_not_starved() {
        let mut now = crate::edge::clock::instant();
        let mut concurrency = Concurrency::new(8, now);
        load(
            &mut concurrency,
            8,
            Duration::from_millis(10),
            MINUTE,
            &mut now,
        );
        load(
            &mut concurrency,
            8,
            Duration::from_secs(2),
            MINUTE,
            &mut now,
        );
        let rate = load(
            &mut concurrency,
            8,
            Duration::from_secs(2),
            10 * MINUTE,
            &mut now,
        );
        assert!(rate > 0.8 * 4.0, "{rate} answers/s");
    }

    #[test]
    fn attempts_without_an_answer_that_were_in_flight_together_halve_it_once() {
        let begin = crate::edge::clock::instant();
        let end = begin + Duration::from_secs(15);
        let mut concurrency = Concurrency::new(8, begin);
        for _ in 0..8 {
            concurrency.failed(begin, end);
        }
        assert_eq!(concurrency.limit(), 4);
        for round in 1..10 {
            let began = end + Duration::from_secs(15 * round - 15);
            concurrency.failed(began, began + Duration::from_secs(15));
        }
        assert_eq!(concurrency.limit(), 1);
    }

    /// Responses per second of an endpoint that serves any number of requests at once, each for the time that `takes`
    /// gives for its number.
    fn parallel(most: usize, time: Duration, takes: impl Fn(u64) -> Duration) -> (f64, usize) {
        let begin = crate::edge::clock::instant();
        let mut now = begin;
        let mut concurrency = Concurrency::new(most, now);
        let mut answers = BinaryHeap::new();
        let (mut number, mut count, mut least) = (0, 0.0, most);
        while now < begin + time {
            while answers.len() < concurrency.limit() {
                answers.push(Reverse((now + takes(number), now, answers.len() + 1)));
                number += 1;
            }
            let Reverse((at, began, in_flight)) = answers.pop().unwrap();
            now = at;
            count += 1.0;
            concurrency.responded(began, in_flight, now);
            least = least.min(concurrency.limit());
        }
        (count / time.as_secs_f64(), least)
    }

    #[test]
    fn quick_responses_among_slow_ones_starve_nothing() {
        for most in [2, 8, 64] {
            for pings in [1, 5, 50] {
                let (rate, least) = parallel(most, 5 * MINUTE, |number| {
                    let is_ping = number * 7919 % 100 < pings;
                    Duration::from_millis(if is_ping { 5 } else { 200 })
                });
                let mean = (5.0 * pings as f64 + 200.0 * (100 - pings) as f64) / 100_000.0;
                let possible = most as f64 / mean;
                assert!(
                    rate > 0.95 * possible,
                    "{most}, {pings} %: {rate} of {possible}"
                );
                assert!(least >= most / 2, "{most}, {pings} %: {least}");
            }
        }
    }

    #[test]
    fn response_times_of_any_spread_starve_nothing() {
        for most in [4, 16] {
            let random = std::cell::RefCell::new(fastrand::Rng::with_seed(5));
            let (rate, _) = parallel(most, 20 * MINUTE, |_| {
                let chance = random.borrow_mut().f64();
                // Exponential, 300 ms on average.
                Duration::from_secs_f64(-0.3 * (1.0 - chance).ln())
            });
            let possible = most as f64 / 0.3;
            assert!(rate > 0.85 * possible, "{most}: {rate} of {possible}");
        }
    }

    #[test]
    fn a_few_slow_responses_do_not_starve_an_endpoint_either() {
        for most in [4, 32] {
            let (rate, _) = parallel(most, 20 * MINUTE, |number| {
                let is_slow = number * 7919 % 100 < 5;
                Duration::from_millis(if is_slow { 5_000 } else { 100 })
            });
            let possible = most as f64 / 0.345;
            assert!(rate > 0.85 * possible, "{most}: {rate} of {possible}");
        }
    }

    #[test]
    fn an_endpoint_that_queues_is_found_out_among_quick_responses_too() {
        let mut now = crate::edge::clock::instant();
        let mut concurrency = Concurrency::new(64, now);
        let work = Duration::from_millis(100);
        for _ in 0..20 {
            let began = now;
            now += Duration::from_millis(5);
            concurrency.responded(began, 64, now);
        }
        load(&mut concurrency, 4, work, 10 * MINUTE, &mut now);
        assert!(concurrency.limit() <= 16, "{}", concurrency.limit());
        // It gets more servers.
        load(&mut concurrency, 64, work, 3 * MINUTE, &mut now);
        let rate = load(&mut concurrency, 64, work, MINUTE, &mut now);
        assert!(rate > 0.9 * 640.0, "{rate}");
    }

    #[test]
    fn a_limit_that_was_enough_grows_back_after_an_attempt_without_an_answer() {
        let mut now = crate::edge::clock::instant();
        let mut concurrency = Concurrency::new(64, now);
        let work = Duration::from_millis(100);
        load(&mut concurrency, 8, work, 2 * MINUTE, &mut now);
        assert!((8..=16).contains(&concurrency.limit()));
        for _ in 0..4 {
            concurrency.failed(now, now);
            now += Duration::from_millis(1);
        }
        assert_eq!(concurrency.limit(), 1);
        let rate = load(&mut concurrency, 8, work, MINUTE, &mut now);
        assert!(rate > 0.85 * 80.0, "{rate}");
    }

    #[test]
    fn a_new_maximum_holds_at_once() {
        let now = crate::edge::clock::instant();
        let mut concurrency = Concurrency::new(8, now);
        concurrency.set_most(32);
        assert_eq!(concurrency.limit(), 32);
        concurrency.set_most(2);
        assert_eq!(concurrency.limit(), 2);
    }
}
