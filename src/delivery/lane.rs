//! A lane: one subscription's queue inside delivery, and what may leave it now.
//!
//! A lane bounds what its endpoint can cost the others: so many requests in flight, so many per second, so
//! much memory. What comes on top of a full queue waits in the partition if the lane drains quickly, and is
//! parked if it does not ([`Full`]): so a slow endpoint never holds its partition, and a fast one with a
//! backlog is not sent round through the tiers for nothing.
//!
//! Pure: it holds any item, and takes the time as an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Commands that a lane queues at most.
pub const QUEUE_COMMANDS: usize = 256;
/// Bytes that a lane queues at most, except that one command always fits.
pub const QUEUE_BYTES: usize = 1024 * 1024;
/// A full lane that takes longer than this to drain is slow: its overflow is parked.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// Over how much time a lane's pace is measured: longer than a hiccup of the machine, and all that a lane can hold
/// its partition up before it is known to be slow.
const MEASURE: Duration = Duration::from_secs(1);

/// What a subscription allows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Requests in flight at a time.
    pub max_in_flight: usize,
    /// Requests per second, if limited.
    pub rate: Option<Rate>,
}

/// A token bucket: `burst` at once, refilled at `per_second`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Tokens that flow in, above 0.
    pub per_second: f64,
    /// Tokens that it holds, at least 1.
    pub burst: f64,
}

/// The queue has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// It drains within [`PATIENCE`]: wait for room.
    Quick,
    /// It does not: park.
    Slow(Cause),
}

/// Why a lane is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The endpoint does not keep up.
    Endpoint,
    /// The rate limit is below what comes in.
    Rate,
}

/// What a lane has to send now.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<T> {
    /// Send this; it counts as in flight until [`Lane::ended`].
    Send(T),
    /// Nothing before then.
    At(Instant),
    /// Nothing until something comes in or ends.
    Nothing,
}

/// One subscription's queue.
#[derive(Debug)]
pub struct Lane<T> {
    limits: Limits,
    queue: VecDeque<(T, usize)>,
    queued_bytes: usize,
    in_flight: usize,
    /// The endpoint asked for silence until then.
    silent_until: Option<Instant>,
    bucket: Option<Bucket>,
    pace: Pace,
}

impl<T> Lane<T> {
    /// An empty lane.
    #[must_use]
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self {
            limits,
            queue: VecDeque::new(),
            queued_bytes: 0,
            in_flight: 0,
            silent_until: None,
            bucket: limits.rate.map(|rate| Bucket::full(rate, now)),
            pace: Pace::default(),
        }
    }

    /// Takes new limits, as when the subscription changes; what is in flight stays so.
    pub fn set_limits(&mut self, limits: Limits, now: Instant) {
        if limits.rate != self.limits.rate {
            self.bucket = limits.rate.map(|rate| Bucket::full(rate, now));
        }
        self.limits = limits;
    }

    /// Queues `item`, which weighs `bytes`.
    ///
    /// # Errors
    /// Gives it back when there is no room, with what to do about it.
    pub fn offer(&mut self, item: T, bytes: usize, now: Instant) -> Result<(), (T, Full)> {
        let fits = self.queue.is_empty()
            || (self.queue.len() < QUEUE_COMMANDS && self.queued_bytes + bytes <= QUEUE_BYTES);
        if !fits {
            return Err((item, self.fullness(now)));
        }
        if self.queue.is_empty() {
            self.pace.begin(now);
        }
        self.queue.push_back((item, bytes));
        self.queued_bytes += bytes;
        Ok(())
    }

    /// What may be sent at `now`.
    pub fn next(&mut self, now: Instant) -> Next<T> {
        if self.queue.is_empty() || self.in_flight >= self.limits.max_in_flight {
            return Next::Nothing;
        }
        if let Some(until) = self.silent_until {
            if now < until {
                return Next::At(until);
            }
            self.silent_until = None;
        }
        if let Some(bucket) = &mut self.bucket
            && let Err(at) = bucket.take(now)
        {
            return Next::At(at);
        }
        let Some((item, bytes)) = self.queue.pop_front() else {
            return Next::Nothing;
        };
        self.queued_bytes -= bytes;
        self.in_flight += 1;
        Next::Send(item)
    }

    /// An attempt has ended, whichever way.
    pub fn ended(&mut self, now: Instant) {
        debug_assert!(self.in_flight > 0, "an attempt ends once");
        self.in_flight = self.in_flight.saturating_sub(1);
        self.pace.ended(now);
    }

    /// The endpoint asked for silence (429 or 503 with `Retry-After`).
    pub fn silence(&mut self, until: Instant) {
        self.silent_until = Some(self.silent_until.map_or(until, |before| before.max(until)));
    }

    /// Until when the endpoint wants silence, if that is longer than [`PATIENCE`] from `now`.
    #[must_use]
    pub fn long_silence(&self, now: Instant) -> Option<Instant> {
        self.silent_until.filter(|&until| until > now + PATIENCE)
    }

    /// Empties the queue, for parking.
    pub fn take_queue(&mut self) -> impl Iterator<Item = T> + '_ {
        self.queued_bytes = 0;
        self.queue.drain(..).map(|(item, _)| item)
    }

    /// Removes the queued items for which `gone` holds.
    pub fn forget(&mut self, gone: impl Fn(&T) -> bool, mut each: impl FnMut(&T)) {
        let bytes = &mut self.queued_bytes;
        self.queue.retain(|(item, weight)| {
            let gone = gone(item);
            if gone {
                *bytes -= weight;
                each(item);
            }
            !gone
        });
    }

    /// How many are queued.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// How many are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn fullness(&self, now: Instant) -> Full {
        let queued = self.queue.len().max(1) as f64;
        let is_slow = |rate: f64| queued > rate * PATIENCE.as_secs_f64();
        if self.long_silence(now).is_some() || self.pace.rate(now).is_some_and(is_slow) {
            return Full::Slow(Cause::Endpoint);
        }
        match self.limits.rate {
            Some(rate) if is_slow(rate.per_second) => Full::Slow(Cause::Rate),
            _ => Full::Quick,
        }
    }
}

/// Exact: over any time t it lets at most `burst + per_second * t` through.
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            tokens: rate.burst,
            at: now,
        }
    }

    /// # Errors
    /// When the next token comes.
    fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.rate.per_second).min(self.rate.burst);
        self.at = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        // Rounded up, so that waiting until then is always enough.
        let wait = Duration::from_secs_f64((1.0 - self.tokens) / self.rate.per_second)
            + Duration::from_micros(1);
        Err(now + wait)
    }
}

/// How many attempts end in a second, while something is queued: what a lane does without demand says nothing
/// about its endpoint.
#[derive(Debug, Default)]
struct Pace {
    /// The span that is being measured, and the ends in it.
    since: Option<Instant>,
    ends: u32,
    /// Of the span before it, per second.
    before: Option<f64>,
}

impl Pace {
    fn begin(&mut self, now: Instant) {
        *self = Self {
            since: Some(now),
            ends: 0,
            before: None,
        };
    }

    fn ended(&mut self, now: Instant) {
        let Some(since) = self.since else { return };
        if now.saturating_duration_since(since) >= MEASURE {
            self.before = self.rate(now);
            self.since = Some(now);
            self.ends = 0;
        }
        self.ends += 1;
    }

    /// `None` until a whole span has been measured.
    fn rate(&self, now: Instant) -> Option<f64> {
        let span = now.saturating_duration_since(self.since?);
        if span >= MEASURE {
            Some(f64::from(self.ends) / span.as_secs_f64())
        } else {
            self.before
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn start() -> Instant {
        crate::clock::instant()
    }

    fn lane(max_in_flight: usize, rate: Option<(f64, f64)>, now: Instant) -> Lane<u32> {
        let rate = rate.map(|(per_second, burst)| Rate { per_second, burst });
        Lane::new(
            Limits {
                max_in_flight,
                rate,
            },
            now,
        )
    }

    fn fill(lane: &mut Lane<u32>, now: Instant) -> Full {
        (0..)
            .find_map(|item| lane.offer(item, 1, now).err())
            .unwrap()
            .1
    }

    #[test]
    fn no_more_than_the_limit_is_in_flight() {
        let now = start();
        let mut lane = lane(2, None, now);
        for item in 0..5 {
            lane.offer(item, 10, now).unwrap();
        }
        assert_eq!(lane.next(now), Next::Send(0));
        assert_eq!(lane.next(now), Next::Send(1));
        assert_eq!(lane.next(now), Next::Nothing);
        lane.ended(now);
        assert_eq!(lane.next(now), Next::Send(2));
    }

    #[test]
    fn the_queue_is_bounded_in_commands_and_in_bytes() {
        let now = start();
        let mut by_count = lane(1, None, now);
        fill(&mut by_count, now);
        assert_eq!(by_count.queued(), QUEUE_COMMANDS);

        let mut by_bytes = lane(1, None, now);
        by_bytes
            .offer(0, 10 * QUEUE_BYTES, now)
            .expect("one command always fits");
        assert!(by_bytes.offer(1, 1, now).is_err());
    }

    /// Keeps the queue full while one attempt after the other takes `each`, for `time`.
    fn work(lane: &mut Lane<u32>, now: &mut Instant, each: Duration, time: Duration) -> Full {
        let end = *now + time;
        fill(lane, *now);
        while *now < end {
            assert!(matches!(lane.next(*now), Next::Send(_)));
            *now += each;
            lane.ended(*now);
            fill(lane, *now);
        }
        fill(lane, *now)
    }

    #[test]
    fn a_full_lane_that_keeps_moving_is_waited_for_and_one_that_does_not_is_not() {
        let mut now = start();
        let mut quick = lane(1, None, now);
        assert_eq!(
            fill(&mut quick, now),
            Full::Quick,
            "nothing is known against it yet"
        );
        assert_eq!(
            work(&mut quick, &mut now, Duration::from_millis(1), 5 * MEASURE),
            Full::Quick
        );

        let mut slow = lane(1, None, now);
        let pace = Duration::from_millis(100);
        assert_eq!(
            work(&mut slow, &mut now, pace, 3 * MEASURE),
            Full::Slow(Cause::Endpoint)
        );
    }

    #[test]
    fn a_lane_that_hangs_is_known_to_be_slow_soon() {
        let mut now = start();
        let mut lane = lane(1, None, now);
        work(&mut lane, &mut now, Duration::from_millis(1), 2 * MEASURE);
        assert!(matches!(lane.next(now), Next::Send(_)));
        now += 3 * MEASURE;
        lane.offer(0, 1, now).unwrap();
        assert_eq!(fill(&mut lane, now), Full::Slow(Cause::Endpoint));
    }

    #[test]
    fn a_hiccup_makes_no_lane_slow() {
        let mut now = start();
        let mut lane = lane(1, None, now);
        work(&mut lane, &mut now, Duration::from_millis(1), 2 * MEASURE);
        assert_eq!(
            work(&mut lane, &mut now, MEASURE / 2, MEASURE / 2),
            Full::Quick
        );
        assert_eq!(
            work(&mut lane, &mut now, Duration::from_millis(1), MEASURE),
            Full::Quick
        );
    }

    #[test]
    fn a_lane_that_was_idle_is_not_slow_for_that() {
        let mut now = start();
        let mut lane = lane(1, None, now);
        lane.offer(0, 1, now).unwrap();
        lane.next(now);
        now += Duration::from_millis(1);
        lane.ended(now);
        now += Duration::from_secs(3600);
        lane.offer(1, 1, now).unwrap();
        lane.next(now);
        assert_eq!(fill(&mut lane, now), Full::Quick);
    }

    #[test]
    fn a_lane_whose_rate_is_below_what_comes_in_parks_for_that() {
        let now = start();
        let mut lane = lane(8, Some((10.0, 1.0)), now);
        assert_eq!(fill(&mut lane, now), Full::Slow(Cause::Rate));
    }

    #[test]
    fn a_silent_lane_sends_nothing_until_it_may() {
        let now = start();
        let mut lane = lane(8, None, now);
        lane.offer(1, 1, now).unwrap();
        let until = now + Duration::from_secs(9);
        lane.silence(until);
        lane.silence(now + Duration::from_secs(3));
        assert_eq!(
            lane.next(now),
            Next::At(until),
            "a shorter silence does not cut a longer one"
        );
        assert_eq!(lane.long_silence(now), Some(until));
        assert_eq!(lane.next(until), Next::Send(1));
    }

    #[test]
    fn forgetting_frees_the_room() {
        let now = start();
        let mut lane = lane(8, None, now);
        for item in 0..10 {
            lane.offer(item, QUEUE_BYTES / 10, now).unwrap();
        }
        let mut forgotten = Vec::new();
        lane.forget(|item| item % 2 == 0, |item| forgotten.push(*item));
        assert_eq!(forgotten, [0, 2, 4, 6, 8]);
        assert_eq!(lane.queued(), 5);
        lane.offer(11, QUEUE_BYTES / 2, now)
            .expect("their bytes are free again");
    }

    proptest! {
        #[test]
        fn the_rate_is_exact(per_second in 0.5..500.0_f64, burst in 1..50_u32, steps in proptest::collection::vec(0..200_u64, 1..200)) {
            let begin = start();
            let mut now = begin;
            let mut lane = lane(usize::MAX, Some((per_second, f64::from(burst))), begin);
            let mut sent = 0.0;
            for step in steps {
                now += Duration::from_millis(step);
                while lane.offer(0, 1, now).is_ok() && lane.queued() < 100 {}
                loop {
                    match lane.next(now) {
                        Next::Send(_) => { sent += 1.0; lane.ended(now); }
                        Next::At(at) => {
                            prop_assert!(at > now);
                            break;
                        }
                        Next::Nothing => break,
                    }
                }
                let allowed = f64::from(burst) + per_second * (now - begin).as_secs_f64();
                prop_assert!(sent <= allowed + 1e-3, "{sent} sent, {allowed} allowed");
            }
        }

        #[test]
        fn waiting_as_long_as_a_lane_says_is_enough(per_second in 0.1..1000.0_f64) {
            let mut now = start();
            let mut lane = lane(usize::MAX, Some((per_second, 1.0)), now);
            for item in 0..20 {
                lane.offer(item, 1, now).unwrap();
                match lane.next(now) {
                    Next::Send(_) => {}
                    Next::At(at) => {
                        now = at;
                        prop_assert!(matches!(lane.next(now), Next::Send(_)));
                    }
                    Next::Nothing => prop_assert!(false, "there is something to send"),
                }
            }
        }
    }
}
