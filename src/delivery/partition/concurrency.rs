//! How many requests an endpoint gets at a time: no more than help it.
//!
//! An endpoint that answers as fast with many requests as with few gets all that its subscription allows. When its
//! answers take much longer than they did at their best, the further requests only queue at its side, and hold sockets
//! and window offsets here: then it gets fewer, about one less for each round of answers, as TCP Vegas does with the
//! round-trip time. No answer at all halves the number.
//!
//! An endpoint that always queues would look as if that were its best; so of a slow one the best is measured anew now
//! and then, with a quarter of the requests, as BBR does.
//!
//! Limiters that exist as crates wrap a service and wait on semaphores; a lane asks and is told, so that it can be
//! tested without a clock. Pure.

use std::time::{Duration, Instant};

/// Answers faster than this are never a reason to send less: the noise of a busy machine is of this size.
const QUICK: Duration = Duration::from_millis(50);
/// An answer that takes so many times the best one was queued at the endpoint.
const QUEUED: u32 = 3;
/// The best answer is measured anew after this time.
const MEMORY: Duration = Duration::from_secs(30);
/// The share of the requests that it is measured with.
const MEASURED_WITH: f64 = 0.25;

/// The number of requests that one endpoint gets at a time.
#[derive(Debug)]
pub struct Concurrency {
    limit: f64,
    most: usize,
    /// The fastest answer since then.
    best: Option<Duration>,
    since: Instant,
    /// After a measurement: where it was, to which it returns twice as fast with each round.
    back_to: Option<f64>,
    /// No second cut for attempts that were in flight at the first.
    cut: Option<Instant>,
}

impl Concurrency {
    /// Begins with all that is allowed.
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

    /// Takes a new maximum, as when the subscription changes.
    pub fn set_most(&mut self, most: usize) {
        if self.limit >= self.most as f64 {
            self.limit = most.max(1) as f64;
        }
        self.most = most.max(1);
        self.limit = self.limit.min(self.most as f64);
    }

    /// At least 1, at most what is allowed.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit as usize
    }

    /// There was an answer, whatever it was, to an attempt that began at `began` with `in_flight` in flight, itself
    /// included.
    pub fn responded(&mut self, began: Instant, in_flight: usize, now: Instant) {
        let took = now.saturating_duration_since(began);
        if now.saturating_duration_since(self.since) >= MEMORY {
            self.measure_anew(now);
        }
        // One that was sent among more than are allowed by now tells of that time.
        if in_flight > self.limit() {
            return;
        }
        let best = self.best.map_or(took, |best| best.min(took));
        self.best = Some(best);
        if took > QUICK && took > best * QUEUED {
            self.back_to = None;
            self.limit = (self.limit - 1.0 / self.limit).max(1.0);
        } else if in_flight * 2 >= self.limit() {
            // What is not used needs not grow.
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

    /// There was no answer to an attempt that began at `began`.
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

    /// An endpoint that works on `servers` requests at a time, each for `work`, and queues the others; it is sent all
    /// that is allowed for `time`. Answers a second.
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
