//! A lane: one subscription's queue inside delivery, and what may leave it now.
//!
//! A lane bounds what its endpoint can cost the others: so many requests in flight ([`Concurrency`]), so many per
//! second, none while its [`Breaker`] is open, so much memory. What comes on top of a full queue waits in the
//! partition if the lane drains quickly, and is parked if it does not ([`Full`]): so a slow endpoint never holds its
//! partition, and a fast one with a backlog is not sent round through the tiers for nothing.
//!
//! What is parked for want of room is parked until its turn would come at the lane's pace ([`Lane::turn`]), so that
//! it comes back when there is room, and not again and again before.
//!
//! Pure: it holds any item, and takes the time as an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::breaker::{Breaker, Change, Gate, Sign};
use super::concurrency::Concurrency;
use crate::model::breaker_rules::BreakerRules;
use crate::model::tiers::LONGEST_PARK;

/// Commands that a lane queues, except that a quick one may queue more while its partition has memory to spare.
pub const QUEUE_COMMANDS: usize = 256;
/// Bytes that it queues, except that one command always fits.
pub const QUEUE_BYTES: usize = 1024 * 1024;
/// Commands that a quick lane queues at most: an eighth of what a bitmap of a window can tell of, and no more than it
/// sends within `HORIZON`.
pub const QUICK_COMMANDS: usize = 3000;
/// The default shortest tier: what is parked comes back in portions as large as a lane's pace times this. What a rate
/// limit cannot send within it is not queued.
const HORIZON: Duration = Duration::from_secs(5);
/// A full lane that takes longer than this to drain is slow: its overflow is parked.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// Over how much time a lane's pace is measured: longer than a hiccup of the machine, and all that a lane can hold
/// its partition up before it is known to be slow.
const MEASURE: Duration = Duration::from_secs(1);
/// A lane of which nothing at all has ended for so long since it had something to do is taken for one that hangs.
const SILENT: Duration = Duration::from_millis(600);
/// A lane takes at most this share of the requests that its replica may still start: when they run short, every lane
/// still gets its first.
const SHARE_OF_SPARE: usize = 8;

/// How many requests a lane gets at most of a worker that may have `requests` in flight, when no other lane wants any.
#[must_use]
pub fn most_alone(requests: usize) -> usize {
    (requests / (SHARE_OF_SPARE + 1) + 1).min(requests)
}

/// What a subscription allows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Requests in flight at a time.
    pub max_in_flight: usize,
    /// Requests per second, if limited.
    pub rate: Option<Rate>,
    /// When to stop sending.
    pub breaker: BreakerRules,
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

/// Why a lane takes nothing, or not at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The endpoint does not keep up.
    Endpoint,
    /// The rate limit is below what comes in, or the endpoint asked to be left alone.
    Rate,
    /// The breaker is open.
    Breaker,
}

/// What a lane has to send now.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<T> {
    /// Send this; it counts as in flight until [`Lane::ended`].
    Send(T, Permit),
    /// Nothing before then.
    At(Instant),
    /// Nothing until something comes in or ends.
    Nothing,
}

/// What is to be told of an attempt at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permit {
    /// Whether it is the breaker's probe.
    pub probe: bool,
    /// Requests in flight, with it.
    pub in_flight: usize,
    /// When it began.
    pub began: Instant,
}

/// What an attempt told of its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// How it was begun.
    pub permit: Permit,
    /// For the breaker.
    pub sign: Sign,
    /// Whether there was a response, whatever its status.
    pub responded: bool,
}

/// One subscription's queue.
#[derive(Debug)]
pub struct Lane<T> {
    limits: Limits,
    queue: VecDeque<(T, usize)>,
    queued_bytes: usize,
    in_flight: usize,
    /// The endpoint asked to be left alone until then.
    held_off_until: Option<Instant>,
    bucket: Option<Bucket>,
    pace: Pace,
    breaker: Breaker,
    concurrency: Concurrency,
    /// When the last of those that were parked for want of room has its turn.
    last_turn: Instant,
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
            held_off_until: None,
            bucket: limits.rate.map(|rate| Bucket::full(rate, now)),
            pace: Pace::default(),
            breaker: Breaker::default(),
            concurrency: Concurrency::new(limits.max_in_flight, now),
            last_turn: now,
        }
    }

    /// Takes new limits, as when the subscription changes; what is in flight stays so.
    pub fn set_limits(&mut self, limits: Limits, now: Instant) {
        if limits.rate != self.limits.rate {
            self.bucket = limits.rate.map(|rate| Bucket::full(rate, now));
        }
        if limits.max_in_flight != self.limits.max_in_flight {
            self.concurrency.set_most(limits.max_in_flight);
        }
        self.limits = limits;
    }

    /// Why the lane takes nothing now, and until when.
    #[must_use]
    pub fn closed(&self, now: Instant) -> Option<(Cause, Instant)> {
        if let Gate::Open(probe_at) = self.breaker.gate(now) {
            return Some((Cause::Breaker, probe_at));
        }
        let until = self
            .held_off_until
            .filter(|&until| until > now + PATIENCE)?;
        Some((Cause::Rate, until))
    }

    /// Queues `item`, which weighs `bytes`; `spare` tells whether its partition has memory to spare.
    ///
    /// # Errors
    /// Gives it back when there is no room, with what to do about it.
    pub fn offer(
        &mut self,
        item: T,
        bytes: usize,
        spare: bool,
        now: Instant,
    ) -> Result<(), (T, Full)> {
        if let Some(full) = self.fullness(bytes, spare, now) {
            return Err((item, full));
        }
        self.push(item, bytes, now);
        Ok(())
    }

    /// Queues an item that was waiting for another one to end, whatever the room: it has taken its place in memory
    /// and in the window already.
    pub fn push(&mut self, item: T, bytes: usize, now: Instant) {
        // Where all that may be in flight is, there was demand all the while: an endpoint that hangs stays known for it,
        // also when its queue was parked.
        if self.queue.is_empty() && self.in_flight < self.at_most() {
            self.pace.begin(now);
        }
        self.queue.push_back((item, bytes));
        self.queued_bytes += bytes;
    }

    /// What may be sent at `now`, when the replica may start `spare` more requests.
    pub fn next(&mut self, spare: usize, now: Instant) -> Next<T> {
        if self.queue.is_empty()
            || self.in_flight >= self.at_most()
            || self.in_flight.saturating_mul(SHARE_OF_SPARE) > spare
        {
            return Next::Nothing;
        }
        if let Some(until) = self.held_off_until {
            if now < until {
                return Next::At(until);
            }
            self.held_off_until = None;
        }
        let probe = match self.breaker.gate(now) {
            Gate::Closed => false,
            Gate::Probe => true,
            Gate::Probing => return Next::Nothing,
            Gate::Open(at) => return Next::At(at),
        };
        if let Some(bucket) = &mut self.bucket
            && let Err(at) = bucket.take(now)
        {
            return Next::At(at);
        }
        let Some((item, bytes)) = self.queue.pop_front() else {
            return Next::Nothing;
        };
        if probe {
            self.breaker.probe();
        }
        self.queued_bytes -= bytes;
        self.in_flight += 1;
        let in_flight = self.in_flight;
        Next::Send(
            item,
            Permit {
                probe,
                in_flight,
                began: now,
            },
        )
    }

    /// How many of the queued could be sent at `now` on a worker without other lanes, which gives a lane `most` requests
    /// ([`most_alone`]): those that neither the lane's limits nor its endpoint hold up. More replicas help these, and none
    /// of the others.
    #[must_use]
    pub fn runnable(&self, most: usize, now: Instant) -> usize {
        if self.held_off_until.is_some_and(|until| now < until) {
            return 0;
        }
        let allowed = match self.breaker.gate(now) {
            Gate::Closed => usize::MAX,
            Gate::Probe => 1,
            Gate::Probing | Gate::Open(_) => 0,
        };
        let tokens = self.bucket.as_ref().map_or(usize::MAX, |bucket| {
            bucket.within(Duration::ZERO, now) as usize
        });
        let room = self.at_most().min(most).saturating_sub(self.in_flight);
        self.queue.len().min(room).min(allowed).min(tokens)
    }

    /// What an attempt told. Its slot is still taken until [`Lane::ended`].
    pub fn learn(&mut self, report: Report, now: Instant, jitter: f64) -> Option<Change> {
        let Report { permit, sign, .. } = report;
        if report.responded {
            self.concurrency
                .responded(permit.began, permit.in_flight, now);
        } else {
            self.concurrency.failed(permit.began, now);
        }
        self.breaker
            .ended(&self.limits.breaker, sign, permit.probe, now, jitter)
    }

    /// An attempt's slot is free, whichever way it ended.
    pub fn ended(&mut self, now: Instant) {
        debug_assert!(self.in_flight > 0, "an attempt ends once");
        self.in_flight = self.in_flight.saturating_sub(1);
        self.pace.ended(now);
    }

    /// The endpoint asked to be left alone (429 or 503 with `Retry-After`).
    pub fn hold_off(&mut self, until: Instant) {
        self.held_off_until = Some(
            self.held_off_until
                .map_or(until, |before| before.max(until)),
        );
    }

    /// The trouble was not the endpoint's: see [`Breaker::probe_soon`].
    pub fn probe_soon(&mut self, now: Instant) {
        self.breaker.probe_soon(now);
    }

    /// How long to park what has no room: until it would have its turn behind all that wait already. `None` when
    /// the lane's pace says nothing.
    pub fn turn(&mut self, now: Instant) -> Option<Duration> {
        let measured = self.pace.rate(now).filter(|&pace| pace >= 1.0);
        let limited = self.limits.rate.map(|rate| rate.per_second);
        let pace = measured.into_iter().chain(limited).reduce(f64::min)?;
        let ahead = Duration::from_secs_f64(self.queue.len() as f64 / pace);
        let turn = self.last_turn.max(now + ahead);
        self.last_turn = (turn + Duration::from_secs_f64(1.0 / pace)).min(now + LONGEST_PARK);
        Some(turn - now)
    }

    /// What the lane queued while it was thought to be quick, and is slow: it is to be parked.
    pub fn take_excess(&mut self, now: Instant) -> Vec<T> {
        let slow = self.queue.len() > QUEUE_COMMANDS
            && matches!(self.fullness(0, false, now), Some(Full::Slow(_)));
        if !slow {
            return Vec::new();
        }
        let excess = self.queue.split_off(QUEUE_COMMANDS);
        self.queued_bytes -= excess.iter().map(|(_, bytes)| bytes).sum::<usize>();
        excess.into_iter().map(|(item, _)| item).collect()
    }

    /// Empties the queue, for parking.
    pub fn take_queue(&mut self) -> impl Iterator<Item = T> + '_ {
        self.queued_bytes = 0;
        self.queue.drain(..).map(|(item, _)| item)
    }

    /// The item that is queued longest.
    #[must_use]
    pub fn first(&self) -> Option<&T> {
        self.queue.front().map(|(item, _)| item)
    }

    /// Whether more is queued than an endpoint without a backlog leaves.
    #[must_use]
    pub fn is_backlogged(&self) -> bool {
        self.queue.len() >= QUEUE_COMMANDS / 2 || self.queued_bytes >= QUEUE_BYTES / 2
    }

    /// How many are queued.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// How many may be in flight now.
    fn at_most(&self) -> usize {
        self.concurrency.limit().min(self.limits.max_in_flight)
    }

    /// How many are in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Why it takes longer than [`PATIENCE`] to drain a full queue; `None` while nothing is known against it.
    #[must_use]
    pub fn slow(&self, now: Instant) -> Option<Cause> {
        if self.breaker.is_open() {
            return Some(Cause::Breaker);
        }
        let limited = self.limits.rate.map(|rate| rate.per_second);
        let is_slow = |pace: f64| QUEUE_COMMANDS as f64 > pace * PATIENCE.as_secs_f64();
        if self.closed(now).is_some() || limited.is_some_and(is_slow) {
            return Some(Cause::Rate);
        }
        self.pace
            .rate(now)
            .is_some_and(is_slow)
            .then_some(Cause::Endpoint)
    }

    /// `None` when there is room.
    fn fullness(&self, bytes: usize, spare: bool, now: Instant) -> Option<Full> {
        let queued = self.queue.len();
        if let Some(bucket) = &self.bucket {
            let soon = bucket.within(HORIZON, now).max(1.0);
            if queued as f64 >= soon {
                return Some(Full::Slow(Cause::Rate));
            }
        }
        let fits = queued < QUEUE_COMMANDS && self.queued_bytes + bytes <= QUEUE_BYTES;
        if queued == 0 || fits {
            return None;
        }
        if let Some(cause) = self.slow(now) {
            return Some(Full::Slow(cause));
        }
        let pace = self.pace.rate(now);
        let most = pace.map_or(QUICK_COMMANDS, |pace| {
            ((pace * HORIZON.as_secs_f64()) as usize).min(QUICK_COMMANDS)
        });
        (!spare || queued >= most).then_some(Full::Quick)
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

    /// Tokens that there are, and that come within `time` from `now`.
    fn within(&self, time: Duration, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        let there = (self.tokens + elapsed * self.rate.per_second).min(self.rate.burst);
        there + time.as_secs_f64() * self.rate.per_second
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

    /// `None` until a whole span has been measured, or nothing at all has ended in a good part of one.
    fn rate(&self, now: Instant) -> Option<f64> {
        let span = now.saturating_duration_since(self.since?);
        if span >= MEASURE {
            Some(f64::from(self.ends) / span.as_secs_f64())
        } else {
            let silent = self.ends == 0 && span >= SILENT;
            self.before.or_else(|| silent.then_some(0.0))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::delivery::partition::breaker::tests::RULES;

    /// Enough for any lane.
    const SPARE: usize = usize::MAX;

    fn start() -> Instant {
        crate::edge::clock::instant()
    }

    fn lane(max_in_flight: usize, rate: Option<(f64, f64)>, now: Instant) -> Lane<u32> {
        let rate = rate.map(|(per_second, burst)| Rate { per_second, burst });
        Lane::new(
            Limits {
                max_in_flight,
                rate,
                breaker: RULES,
            },
            now,
        )
    }

    fn sent(next: Next<u32>) -> Option<u32> {
        match next {
            Next::Send(item, _) => Some(item),
            Next::At(_) | Next::Nothing => None,
        }
    }

    fn fill(lane: &mut Lane<u32>, now: Instant) -> Full {
        (0..)
            .find_map(|item| lane.offer(item, 1, false, now).err())
            .unwrap()
            .1
    }

    #[test]
    fn no_more_than_the_limit_is_in_flight() {
        let now = start();
        let mut lane = lane(2, None, now);
        for item in 0..5 {
            lane.offer(item, 10, false, now).unwrap();
        }
        assert_eq!(sent(lane.next(SPARE, now)), Some(0));
        assert_eq!(sent(lane.next(SPARE, now)), Some(1));
        assert_eq!(lane.next(SPARE, now), Next::Nothing);
        lane.ended(now);
        assert_eq!(sent(lane.next(SPARE, now)), Some(2));
    }

    #[test]
    fn the_queue_is_bounded_in_commands_and_in_bytes() {
        let now = start();
        let mut by_count = lane(1, None, now);
        fill(&mut by_count, now);
        assert_eq!(by_count.queued(), QUEUE_COMMANDS);

        let mut by_bytes = lane(1, None, now);
        by_bytes
            .offer(0, 10 * QUEUE_BYTES, false, now)
            .expect("one command always fits");
        assert!(by_bytes.offer(1, 1, false, now).is_err());
    }

    /// Keeps the queue full while one attempt after the other takes `each`, for `time`.
    fn work(lane: &mut Lane<u32>, now: &mut Instant, each: Duration, time: Duration) -> Full {
        let end = *now + time;
        fill(lane, *now);
        while *now < end {
            assert!(matches!(lane.next(SPARE, *now), Next::Send(..)));
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
        assert!(matches!(lane.next(SPARE, now), Next::Send(..)));
        now += 3 * MEASURE;
        lane.offer(0, 1, false, now).unwrap();
        assert_eq!(fill(&mut lane, now), Full::Slow(Cause::Endpoint));
    }

    #[test]
    fn a_lane_that_hangs_stays_known_for_it_when_its_queue_is_parked() {
        let mut now = start();
        let mut lane = lane(1, None, now);
        lane.offer(0, 1, false, now).unwrap();
        assert!(matches!(lane.next(SPARE, now), Next::Send(..)));
        for _ in 0..20 {
            now += MEASURE;
            assert_eq!(fill(&mut lane, now), Full::Slow(Cause::Endpoint));
            assert_eq!(lane.take_queue().count(), QUEUE_COMMANDS);
        }
    }

    #[test]
    fn a_lane_that_hangs_from_its_first_attempt_takes_no_more_than_its_queue_for_long() {
        let now = start();
        let mut lane = lane(1, None, now);
        lane.offer(0, 1, true, now).unwrap();
        assert!(matches!(lane.next(SPARE, now), Next::Send(..)));
        let full =
            |lane: &mut Lane<u32>, now| (0..).find_map(|item| lane.offer(item, 1, true, now).err());
        let (_, full) = full(&mut lane, now + SILENT).unwrap();
        assert_eq!(full, Full::Slow(Cause::Endpoint));
        assert_eq!(lane.queued(), QUEUE_COMMANDS);
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
        lane.offer(0, 1, false, now).unwrap();
        lane.next(SPARE, now);
        now += Duration::from_millis(1);
        lane.ended(now);
        now += Duration::from_secs(3600);
        lane.offer(1, 1, false, now).unwrap();
        lane.next(SPARE, now);
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
        lane.offer(1, 1, false, now).unwrap();
        let until = now + Duration::from_secs(9);
        lane.hold_off(until);
        lane.hold_off(now + Duration::from_secs(3));
        assert_eq!(
            lane.next(SPARE, now),
            Next::At(until),
            "a shorter silence does not cut a longer one"
        );
        assert_eq!(lane.closed(now), Some((Cause::Rate, until)));
        assert_eq!(sent(lane.next(SPARE, until)), Some(1));
    }

    #[test]
    fn replicas_short_of_requests_leave_every_lane_its_first() {
        let now = start();
        let mut lane = lane(64, None, now);
        for item in 0..64 {
            lane.offer(item, 1, false, now).unwrap();
        }
        let mut spare = 128;
        while sent(lane.next(spare, now)).is_some() {
            spare -= 1;
        }
        assert!(
            lane.in_flight() <= spare / SHARE_OF_SPARE + 1,
            "{} of 128, {spare} left",
            lane.in_flight()
        );
        assert!(
            sent(self::lane(1, None, now).next(0, now)).is_none(),
            "nothing is queued"
        );
        let mut other = self::lane(8, None, now);
        other.offer(0, 1, false, now).unwrap();
        assert_eq!(sent(other.next(1, now)), Some(0));
    }

    #[test]
    fn an_open_breaker_closes_the_lane_until_its_probe() {
        let now = start();
        let mut lane = lane(8, None, now);
        let mut changed = None;
        for item in 0..RULES.failures {
            lane.offer(item, 1, false, now).unwrap();
            let Next::Send(_, permit) = lane.next(SPARE, now) else {
                panic!("it is closed");
            };
            let report = Report {
                permit,
                sign: Sign::Bad,
                responded: true,
            };
            changed = lane.learn(report, now, 0.5);
            lane.ended(now);
        }
        let probe_at = now + RULES.probe;
        assert_eq!(changed, Some(Change::Opened(probe_at)));
        assert_eq!(lane.closed(now), Some((Cause::Breaker, probe_at)));
        lane.offer(7, 1, false, probe_at).unwrap();
        lane.offer(8, 1, false, probe_at).unwrap();
        let Next::Send(7, probe) = lane.next(SPARE, probe_at) else {
            panic!("the probe is due");
        };
        assert!(probe.probe);
        assert_eq!(
            lane.next(SPARE, probe_at),
            Next::Nothing,
            "one probe at a time"
        );
        let report = Report {
            permit: probe,
            sign: Sign::Good,
            responded: true,
        };
        assert_eq!(lane.learn(report, probe_at, 0.5), Some(Change::Closed));
        assert_eq!(sent(lane.next(SPARE, probe_at)), Some(8));
    }

    /// An endpoint that takes `pace` a second, at twice that for a while; what is parked comes back in portions of a
    /// tier of 5 s. How often each command was parked on average, and how long all took.
    fn overloaded(pace: u64, rate: Option<(f64, f64)>) -> (f64, Duration) {
        const TIME: Duration = Duration::from_secs(20);
        const TIER: Duration = Duration::from_secs(5);
        let begin = start();
        let mut lane = lane(1, rate, begin);
        let each = Duration::from_secs(1) / u32::try_from(pace).unwrap();
        let (mut now, mut parked, mut done) = (begin, 0_u32, 0_u32);
        let mut coming: std::collections::BTreeMap<Instant, Vec<u32>> = (0..pace * 40)
            .map(|number| {
                (
                    begin
                        + TIME * u32::try_from(number).unwrap() / u32::try_from(pace * 40).unwrap(),
                    vec![number as u32],
                )
            })
            .collect();
        let count = u32::try_from(pace * 40).unwrap();
        let mut busy: Option<Instant> = None;
        while done < count {
            let next = coming.keys().next().copied().into_iter().chain(busy).min();
            now = next.map_or(now + Duration::from_millis(1), |next| {
                next.max(now + Duration::from_micros(1))
            });
            if busy.is_some_and(|end| end <= now) {
                busy = None;
                lane.ended(now);
                done += 1;
            }
            let due: Vec<Instant> = coming.range(..=now).map(|(at, _)| *at).collect();
            let arrived: Vec<u32> = due
                .iter()
                .flat_map(|at| coming.remove(at).unwrap())
                .collect();
            for item in arrived {
                if let Err((item, full)) = lane.offer(item, 1000, true, now) {
                    if full == Full::Quick {
                        // It holds its partition up.
                        let soon = now + Duration::from_millis(10);
                        coming.entry(soon).or_default().push(item);
                        continue;
                    }
                    parked += 1;
                    let turn = lane.turn(now).unwrap_or(TIER);
                    let tiers = turn.as_nanos().div_ceil(TIER.as_nanos()).max(1);
                    coming
                        .entry(now + TIER * u32::try_from(tiers).unwrap())
                        .or_default()
                        .push(item);
                }
            }
            if busy.is_none() {
                match lane.next(SPARE, now) {
                    Next::Send(..) => busy = Some(now + each),
                    Next::At(at) => {
                        coming.entry(at).or_default();
                    }
                    Next::Nothing => {}
                }
            }
        }
        (f64::from(parked) / f64::from(count), now - begin)
    }

    #[test]
    fn a_lane_at_its_limit_does_not_park_the_same_commands_again_and_again() {
        for (pace, rate) in [
            (20, None),
            (100, None),
            (500, None),
            (100, Some((50.0, 10.0))),
        ] {
            let (parked, took) = overloaded(pace, rate);
            let effective = rate.map_or(pace as f64, |(rate, _)| rate.min(pace as f64));
            let least = Duration::from_secs_f64(pace as f64 * 40.0 / effective);
            assert!(
                parked < 3.0,
                "{pace}/s, {rate:?}: parked {parked:.2} times each"
            );
            assert!(
                took < least.mul_f64(1.3) + Duration::from_secs(10),
                "{pace}/s, {rate:?}: {took:?} of at least {least:?}"
            );
        }
    }

    #[test]
    fn only_what_nothing_of_its_own_holds_up_counts_as_runnable() {
        let now = start();
        let mut free = lane(8, None, now);
        assert_eq!(free.runnable(SPARE, now), 0, "nothing is queued");
        (0..100).for_each(|item| free.push(item, 1, now));
        assert_eq!(free.runnable(SPARE, now), 8);
        assert_eq!(free.runnable(3, now), 3, "a worker gives a lane so many");
        for left in (3..8).rev() {
            assert!(matches!(free.next(SPARE, now), Next::Send(..)));
            assert_eq!(free.runnable(SPARE, now), left);
        }
        assert_eq!(free.runnable(3, now), 0, "another worker gives no more");
        free.hold_off(now + HORIZON);
        assert_eq!(
            free.runnable(SPARE, now),
            0,
            "the endpoint asked to be left alone"
        );
        assert_eq!(free.runnable(SPARE, now + HORIZON), 3);

        let mut limited = lane(8, Some((10.0, 2.0)), now);
        (0..100).for_each(|item| limited.push(item, 1, now));
        assert_eq!(limited.runnable(SPARE, now), 2, "the tokens that there are");
        assert!(matches!(limited.next(SPARE, now), Next::Send(..)));
        assert!(matches!(limited.next(SPARE, now), Next::Send(..)));
        assert_eq!(limited.runnable(SPARE, now), 0);
        assert_eq!(limited.runnable(SPARE, now + Duration::from_millis(101)), 1);

        let mut dead = lane(8, None, now);
        (0..100).for_each(|item| dead.push(item, 1, now));
        let mut opened = false;
        while !opened {
            let Next::Send(_, permit) = dead.next(SPARE, now) else {
                panic!("the breaker is closed");
            };
            let report = Report {
                permit,
                sign: Sign::Bad,
                responded: true,
            };
            opened = dead.learn(report, now, 0.5).is_some();
            dead.ended(now);
        }
        assert_eq!(dead.runnable(SPARE, now), 0, "its breaker is open");
        let probe = now + RULES.probe;
        assert_eq!(dead.runnable(SPARE, probe), 1, "the probe");
        assert!(matches!(dead.next(SPARE, probe), Next::Send(..)));
        assert_eq!(dead.runnable(SPARE, probe), 0);
    }

    #[test]
    fn a_lane_without_neighbours_gets_what_the_share_of_the_spare_allows() {
        let now = start();
        for requests in [1, 4, 9, 100, 1024] {
            let mut lane = lane(usize::MAX, None, now);
            (0..2 * requests as u32).for_each(|item| lane.push(item, 1, now));
            while matches!(lane.next(requests - lane.in_flight(), now), Next::Send(..)) {}
            assert_eq!(lane.in_flight(), most_alone(requests), "of {requests}");
            assert_eq!(lane.runnable(most_alone(requests), now), 0);
        }
    }

    proptest! {
        #[test]
        fn what_is_runnable_can_be_sent_at_once_and_nothing_more(
            max_in_flight in 1..20_usize,
            rate in proptest::option::of((0.5..500.0_f64, 1..20_u32)),
            steps in proptest::collection::vec((0..6_u8, 0..3000_u64), 1..60),
        ) {
            let mut now = start();
            let rate = rate.map(|(per_second, burst)| (per_second, f64::from(burst)));
            let mut lane = lane(max_in_flight, rate, now);
            let mut permits = VecDeque::new();
            for (step, time) in steps {
                match step {
                    0 | 1 => (0..30).for_each(|item| lane.push(item, 1, now)),
                    2 => lane.hold_off(now + Duration::from_millis(time)),
                    3 | 4 => {
                        now += Duration::from_millis(time);
                        for permit in permits.drain(..) {
                            let (sign, responded) = match step {
                                3 => (Sign::Good, true),
                                _ => (Sign::Bad, false),
                            };
                            lane.learn(Report { permit, sign, responded }, now, 0.5);
                            lane.ended(now);
                        }
                    }
                    _ => now += Duration::from_millis(time),
                }
                let runnable = lane.runnable(SPARE, now);
                let mut sent = 0;
                while let Next::Send(_, permit) = lane.next(SPARE, now) {
                    permits.push_back(permit);
                    sent += 1;
                }
                prop_assert_eq!(runnable, sent);
                prop_assert_eq!(lane.runnable(SPARE, now), 0);
            }
        }

        #[test]
        fn the_rate_is_exact(per_second in 0.5..500.0_f64, burst in 1..50_u32, steps in proptest::collection::vec(0..200_u64, 1..200)) {
            let begin = start();
            let mut now = begin;
            let mut lane = lane(usize::MAX, Some((per_second, f64::from(burst))), begin);
            let mut sent = 0.0;
            for step in steps {
                now += Duration::from_millis(step);
                while lane.offer(0, 1, false, now).is_ok() && lane.queued() < 100 {}
                loop {
                    match lane.next(SPARE, now) {
                        Next::Send(..) => { sent += 1.0; lane.ended(now); }
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
                lane.offer(item, 1, false, now).unwrap();
                match lane.next(SPARE, now) {
                    Next::Send(..) => {}
                    Next::At(at) => {
                        now = at;
                        prop_assert!(matches!(lane.next(SPARE, now), Next::Send(..)));
                    }
                    Next::Nothing => prop_assert!(false, "there is something to send"),
                }
            }
        }
    }
}
