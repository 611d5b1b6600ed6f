//! The adaptive concurrency limit of one endpoint.
//!
//! An endpoint that responds as fast to many requests as to few gets all the requests that its subscription allows.
//! When its responses take much longer than at best, more requests only queue on its side, and hold sockets and window
//! offsets here. The limit then drops by about one per round of responses, as TCP Vegas does with the round-trip time.
//! An attempt without a response halves the limit.
//!
//! An endpoint that always queues would make queuing look like its best. So the best response time of a slow endpoint
//! is periodically measured again with a quarter of the requests, as BBR does.
//!
//! Existing limiter crates wrap a service and wait on semaphores. This one returns a number, so it can be tested
//! without a clock. Pure.

use std::time::{Duration, Instant};

/// Responses faster than this never lower the limit: they are within the noise of a busy machine.
const QUICK: Duration = Duration::from_millis(50);
/// A response that takes this many times the best was queued at the endpoint.
const QUEUED: u32 = 3;
/// The best response time is measured again after this time.
const MEMORY: Duration = Duration::from_secs(30);
/// The share of the limit that a measurement uses.
const MEASURED_WITH: f64 = 0.25;

/// The concurrency limit of one endpoint.
#[derive(Debug)]
pub struct Concurrency {
    limit: f64,
    most: usize,
    /// The fastest response since then.
    best: Option<Duration>,
    since: Instant,
    /// The limit before a measurement; the limit returns to it, growing twice as fast with each round.
    back_to: Option<f64>,
    /// Attempts in flight at a cut do not cause a second one.
    cut: Option<Instant>,
}

impl Concurrency {
    /// Starts at the maximum.
    #[must_use]
    pub fn new(most: usize, now: Instant) -> Self {
        Self {
            limit: most.max(1) as f64,
            most: most.max(1),
            best: None,
            since: now,
            back_to: None,
            cut: None,
        }
    }

    /// Sets a new maximum, as when the subscription changes.
    pub fn set_most(&mut self, most: usize) {
        if self.limit >= self.most as f64 {
            self.limit = most.max(1) as f64;
        }
        self.most = most.max(1);
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
        let took = now.saturating_duration_since(began);
        if now.saturating_duration_since(self.since) >= MEMORY {
            self.measure_anew(now);
        }
        // An attempt sent under a higher limit measures that limit, not the current one.
        if in_flight > self.limit() {
            return;
        }
        let best = self.best.map_or(took, |best| best.min(took));
        self.best = Some(best);
        if took > QUICK && took > best * QUEUED {
            self.back_to = None;
            self.limit = (self.limit - 1.0 / self.limit).max(1.0);
        } else if in_flight * 2 >= self.limit() {
            // An unused limit need not grow.
            let step = match self.back_to {
                Some(before) if self.limit < before => 1.0,
                _ => {
                    self.back_to = None;
                    1.0 / self.limit
                }
            };
            self.limit = (self.limit + step).min(self.most as f64);
        }
    }

    /// Records an attempt without a response that began at `began`.
    pub fn failed(&mut self, began: Instant, now: Instant) {
        if self.cut.is_some_and(|cut| began < cut) {
            return;
        }
        self.cut = Some(now);
        self.back_to = None;
        self.limit = (self.limit / 2.0).max(1.0);
    }

    fn measure_anew(&mut self, now: Instant) {
        self.since = now;
        if self.best.take().is_some_and(|best| best > QUICK) {
            self.back_to = Some(self.limit);
            self.limit = (self.limit * MEASURED_WITH).max(1.0);
        }
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
