//! A lane: one subscription's queue in delivery, and its limits.
//!
//! A lane bounds the cost of its endpoint to others: requests in flight ([`Concurrency`]), requests per second (the
//! subscription's limit, and the endpoint's own: [`Pacing`]), memory, and no requests while its [`Breaker`] is open. When its queue is full, more commands wait in the partition if the
//! lane drains quickly, and are parked otherwise ([`Full`]). So a slow endpoint never blocks its partition, and the
//! backlog of a fast one takes no needless trip through the tiers.
//!
//! A command that is parked for lack of room stays parked until its turn at the lane's pace ([`Lane::turn`]), so that
//! it returns when there is room rather than being parked repeatedly.
//!
//! Pure: it holds items of any type and takes the time as an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use self::bucket::Bucket;
pub use self::bucket::Rate;
use self::pace::Pace;
use super::breaker::{Breaker, Candidate, Change, Ended, Gate, Kind, Sign};
use super::concurrency::Concurrency;
use super::pacing::Pacing;
use crate::model::breaker_rules::BreakerRules;
use crate::model::tiers::LONGEST_PARK;

mod bucket;
mod pace;

/// The most commands that a lane queues; a quick lane may queue more while its partition has spare memory.
pub const QUEUE_COMMANDS: usize = 256;
/// The most bytes that a lane queues; a single command always fits.
pub const QUEUE_BYTES: usize = 1024 * 1024;
/// The most commands that a quick lane queues: an eighth of what a window's bitmap can hold, and no more than the lane
/// sends within `HORIZON`.
pub const QUICK_COMMANDS: usize = 3000;
/// The default shortest tier: parked commands return in batches of the lane's pace times this. A lane queues no more
/// than its rate limit can send within this time.
const HORIZON: Duration = Duration::from_secs(5);
/// Parked commands return at this many times the measured pace: a lane that runs dry measures the pace of its supply.
const EARLY: f64 = 1.25;
/// A full lane that takes longer than this to drain is slow: its overflow is parked.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// Commands that wait in the lane for the next probes while its breaker is open, at most one of each kind.
const PROBES: usize = 8;
/// The same for kinds whose last attempt failed.
const FAILED_PROBES: usize = 2;
/// A lane gets at most one in this many of the requests that its replica may still start: when requests run short,
/// every lane still gets its first.
const SHARE_OF_SPARE: usize = 8;

/// The most requests that a lane gets from a worker with `requests` slots when no other lane needs any.
#[must_use]
pub fn most_alone(requests: usize) -> usize {
    (requests / (SHARE_OF_SPARE + 1) + 1).min(requests)
}

/// The limits of a subscription.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Requests in flight at a time.
    pub max_in_flight: usize,
    /// Requests per second, if limited.
    pub rate: Option<Rate>,
    /// The rules of its circuit breaker.
    pub breaker: BreakerRules,
}

/// The queue has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// It drains within [`PATIENCE`]: wait for room.
    Quick,
    /// It does not: park.
    Slow(Slowness),
}

/// Why a lane accepts nothing, or delays it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slowness {
    /// The endpoint does not keep up.
    Endpoint,
    /// The rate limit is below the input rate, or the endpoint throttles.
    Rate,
    /// The breaker is open.
    Breaker,
}

/// What a lane can send now.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<T> {
    /// Send this item; it counts as in flight until [`Lane::ended`].
    Send(T, Permit),
    /// Nothing before this time.
    At(Instant),
    /// Nothing until an item arrives or an attempt ends.
    Nothing,
}

/// What an attempt's end needs to know about its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permit {
    /// Whether the attempt is the breaker's probe.
    pub probe: bool,
    /// Requests in flight, including this one.
    pub in_flight: usize,
    /// When it began.
    pub began: Instant,
}

/// What an attempt reports about its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// The permit that the attempt started with.
    pub permit: Permit,
    /// The kind of its command.
    pub kind: Kind,
    /// For the breaker.
    pub sign: Sign,
    /// How it ended.
    pub end: End,
}

/// How an attempt ended, as far as the limits of its lane are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With a response, whatever its status.
    Responded,
    /// Without a response.
    NoResponse,
    /// The endpoint throttles, and asks for this pause.
    Throttled(Option<Duration>),
}

/// One subscription's queue.
#[derive(Debug)]
pub struct Lane<T> {
    limits: Limits,
    queue: VecDeque<(T, usize)>,
    queued_bytes: usize,
    in_flight: usize,
    /// The endpoint throttled: nothing is sent until then.
    held_off_until: Option<Instant>,
    bucket: Option<Bucket>,
    pace: Pace,
    breaker: Breaker,
    concurrency: Concurrency,
    pacing: Pacing,
    /// The turn of the last item parked for lack of room.
    last_turn: Instant,
}

impl<T> Lane<T> {
    /// Creates an empty lane.
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
            pacing: Pacing::default(),
            last_turn: now,
        }
    }

    /// Sets new limits, as when the subscription changes; requests in flight are unaffected.
    pub fn set_limits(&mut self, limits: Limits, now: Instant) {
        if limits.rate != self.limits.rate {
            self.bucket = limits.rate.map(|rate| Bucket::full(rate, now));
        }
        if limits.max_in_flight != self.limits.max_in_flight {
            self.concurrency.set_most(limits.max_in_flight);
        }
        self.limits = limits;
    }

    /// Why the lane accepts nothing now, and until when.
    #[must_use]
    pub fn closed(&self, now: Instant) -> Option<(Slowness, Instant)> {
        if let Gate::Open(probe_at) = self.breaker.gate(now) {
            return Some((Slowness::Breaker, probe_at));
        }
        let until = self
            .held_off_until
            .filter(|&until| until > now + PATIENCE)?;
        Some((Slowness::Rate, until))
    }

    /// Queues `item` of size `bytes`; `spare` says whether the partition has spare memory.
    ///
    /// # Errors
    /// Returns the item when there is no room, with what to do about it.
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

    /// Queues an item that was waiting for another one to end, even without room: it already counts in memory and in
    /// the window.
    pub fn push(&mut self, item: T, bytes: usize, now: Instant) {
        // A lane at its limit had demand all along: a stalled endpoint still counts as stalled after its queue was
        // parked.
        if self.queue.is_empty() && self.in_flight < self.at_most() {
            self.pace.begin(now);
        }
        self.queue.push_back((item, bytes));
        self.queued_bytes += bytes;
    }

    /// Returns a throttled item to the front of the queue, even without room: before the first one that `is_later`
    /// reports.
    pub fn put_back(&mut self, item: T, bytes: usize, is_later: impl Fn(&T) -> bool) {
        let place = self.queue.iter().position(|(other, _)| is_later(other));
        let place = place.unwrap_or(self.queue.len());
        self.queue.insert(place, (item, bytes));
        self.queued_bytes += bytes;
    }

    /// What may be sent at `now`, when the replica may start `spare` more requests. `candidate` is for the choice
    /// of a probe.
    pub fn next(
        &mut self,
        spare: usize,
        now: Instant,
        candidate: impl Fn(&T) -> Candidate,
    ) -> Next<T> {
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
        if let Err(at) = self.pacing.ready(now) {
            return at.map_or(Next::Nothing, Next::At);
        }
        if let Some(bucket) = &mut self.bucket
            && let Err(at) = bucket.take(now)
        {
            return Next::At(at);
        }
        let place = if probe {
            let queued = self.queue.iter().take(QUEUE_COMMANDS);
            let candidates = queued.map(|(item, _)| candidate(item));
            self.breaker.choose(candidates, now)
        } else {
            0
        };
        let Some((item, bytes)) = self.queue.remove(place) else {
            return Next::Nothing;
        };
        if probe {
            self.breaker.probe();
        }
        self.pacing.sent(now);
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

    /// How many queued items could be sent at `now` on a worker without other lanes, which gives a lane `most` requests
    /// ([`most_alone`]): those that neither the lane's limits nor its endpoint hold up. More replicas help only these.
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
        let allowed = allowed.min(tokens).min(self.pacing.tokens(now));
        self.queue.len().min(room).min(allowed)
    }

    /// Records an attempt's report. Its slot stays taken until [`Lane::ended`].
    pub fn learn(&mut self, report: Report, now: Instant, jitter: f64) -> Option<Change> {
        let permit = report.permit;
        let began = permit.began;
        match report.end {
            End::Responded => {
                self.concurrency.responded(began, permit.in_flight, now);
                self.pacing.accepted(began, now);
            }
            End::NoResponse => {
                self.concurrency.failed(began, now);
                self.pacing.failed(began);
            }
            End::Throttled(asked) => {
                let asked = asked.map(|asked| asked.min(LONGEST_PARK));
                let pause = self.pacing.throttled(began, asked, now, jitter);
                self.hold_off(now + pause);
            }
        }
        let ended = Ended {
            sign: report.sign,
            kind: report.kind,
            was_probe: permit.probe,
        };
        self.breaker.ended(&self.limits.breaker, ended, now, jitter)
    }

    /// Whether the endpoint has throttled lately.
    #[must_use]
    pub fn is_paced(&self) -> bool {
        self.pacing.is_active()
    }

    /// Frees an attempt's slot, however it ended.
    pub fn ended(&mut self, now: Instant) {
        debug_assert!(self.in_flight > 0, "an attempt ends once");
        self.in_flight = self.in_flight.saturating_sub(1);
        self.pace.ended(now);
    }

    /// Holds the lane off until then.
    fn hold_off(&mut self, until: Instant) {
        self.held_off_until = Some(
            self.held_off_until
                .map_or(until, |before| before.max(until)),
        );
    }

    /// The endpoint was not at fault: see [`Breaker::probe_soon`].
    pub fn probe_soon(&mut self, now: Instant) {
        self.breaker.probe_soon(now);
    }

    /// When the next probe may start while the breaker is open; not after `now` if one may start, or is in flight.
    #[must_use]
    pub fn breaker_open_until(&self, now: Instant) -> Option<Instant> {
        match self.breaker.gate(now) {
            Gate::Closed => None,
            Gate::Probe | Gate::Probing => Some(now),
            Gate::Open(at) => Some(at),
        }
    }

    /// The current delay between probes, before jitter.
    #[must_use]
    pub fn probe_wait(&self) -> Duration {
        self.breaker.wait(&self.limits.breaker)
    }

    /// How long to park an item without room: until its turn behind all items that already wait. `None` while the
    /// lane's pace is unknown.
    pub fn turn(&mut self, now: Instant) -> Option<Duration> {
        let own = self.limits.rate.map(|rate| rate.per_second);
        let pace = if self.pacing.is_searching() {
            // The endpoint may soon take much more than what is measured, but not more than the subscription allows.
            own?
        } else {
            let measured = self.pace.rate(now).filter(|&pace| pace >= 1.0);
            measured
                .map(|pace| pace * EARLY)
                .into_iter()
                .chain(self.limited())
                .reduce(f64::min)?
        };
        let ahead = Duration::from_secs_f64(self.queue.len() as f64 / pace);
        let turn = self.last_turn.max(now + ahead);
        self.last_turn = (turn + Duration::from_secs_f64(1.0 / pace)).min(now + LONGEST_PARK);
        Some(turn - now)
    }

    /// Removes what a lane queued while it counted as quick, if it is slow now; the caller parks it.
    pub fn take_excess(&mut self, now: Instant) -> Vec<T> {
        let slow = self.queue.len() > QUEUE_COMMANDS
            && matches!(self.fullness(0, false, now), Some(Full::Slow(_)));
        if !slow {
            return Vec::new();
        }
        let excess = self.queue.split_off(QUEUE_COMMANDS);
        // Their turns come before those of what was parked behind them.
        self.last_turn = now;
        self.queued_bytes -= excess.iter().map(|(_, bytes)| bytes).sum::<usize>();
        excess.into_iter().map(|(item, _)| item).collect()
    }

    /// Removes the queued items for which `ends` holds, in order.
    pub fn take_if(&mut self, mut ends: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        for _ in 0..self.queue.len() {
            let Some((item, bytes)) = self.queue.pop_front() else {
                break;
            };
            if ends(&item) {
                self.queued_bytes -= bytes;
                taken.push(item);
            } else {
                self.queue.push_back((item, bytes));
            }
        }
        taken
    }

    /// Whether a command of this kind is to wait in the lane while the breaker is open: probes need not wait for the
    /// tiers, and are of different kinds. The caller queues it if so.
    pub fn keeps_probe(&mut self, of: Kind, kind: impl Fn(&T) -> Kind, now: Instant) -> bool {
        let is_new = self.queue.iter().all(|(item, _)| kind(item) != of);
        let keeps = is_new && self.queue.len() < self.most_probes(of);
        if keeps {
            self.breaker.queued(of, &self.limits.breaker, now);
        }
        keeps
    }

    /// The number of candidates below which another one of this kind is kept.
    fn most_probes(&self, kind: Kind) -> usize {
        if self.breaker.has_failed(kind) {
            FAILED_PROBES
        } else {
            PROBES
        }
    }

    /// Empties the queue for parking, except for the candidates for the next probes: the first of each kind.
    pub fn take_all_but_probes(&mut self, kind: impl Fn(&T) -> Kind) -> Vec<T> {
        let mut kinds = Vec::with_capacity(PROBES);
        let mut taken = Vec::with_capacity(self.queue.len());
        for (item, bytes) in std::mem::take(&mut self.queue) {
            let kind = kind(&item);
            let most = self.most_probes(kind);
            if kinds.len() < most && !kinds.contains(&kind) {
                kinds.push(kind);
                self.queue.push_back((item, bytes));
            } else {
                self.queued_bytes -= bytes;
                taken.push(item);
            }
        }
        taken
    }

    /// Empties the queue, for parking.
    pub fn take_queue(&mut self) -> impl Iterator<Item = T> + '_ {
        self.queued_bytes = 0;
        self.queue.drain(..).map(|(item, _)| item)
    }

    /// How many items a quick lane would queue while its partition has spare memory.
    #[must_use]
    pub fn room(&self, now: Instant) -> usize {
        let soon = self
            .bucket
            .as_ref()
            .map_or(usize::MAX, |bucket| bucket.within(HORIZON, now) as usize);
        let most = self.most_quick(now).max(QUEUE_COMMANDS).min(soon);
        most.saturating_sub(self.queue.len())
    }

    fn most_quick(&self, now: Instant) -> usize {
        let pace = self.pace.rate(now).unwrap_or(f64::INFINITY);
        ((pace * HORIZON.as_secs_f64()) as usize).min(QUICK_COMMANDS)
    }

    /// The item that has been queued longest.
    #[must_use]
    pub fn first(&self) -> Option<&T> {
        self.queue.front().map(|(item, _)| item)
    }

    /// Whether this holds for any queued item.
    #[must_use]
    pub fn any(&self, holds: impl Fn(&T) -> bool) -> bool {
        self.queue.iter().any(|(item, _)| holds(item))
    }

    /// Whether the queue is longer than an endpoint without a backlog leaves it.
    #[must_use]
    pub fn is_backlogged(&self) -> bool {
        self.queue.len() >= QUEUE_COMMANDS / 2 || self.queued_bytes >= QUEUE_BYTES / 2
    }

    /// The number of queued items.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// The current limit of requests in flight.
    fn at_most(&self) -> usize {
        self.concurrency.limit().min(self.limits.max_in_flight)
    }

    /// The current limit of requests per second, if there is one.
    fn limited(&self) -> Option<f64> {
        let own = self.limits.rate.map(|rate| rate.per_second);
        own.into_iter().chain(self.pacing.rate()).reduce(f64::min)
    }

    /// The number of requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether nothing is queued or in flight, and nothing restrains the next items.
    #[must_use]
    pub fn is_at_rest(&self, now: Instant) -> bool {
        let is_full = |bucket: &Bucket| bucket.is_full(now);
        self.queue.is_empty()
            && self.in_flight == 0
            && self.held_off_until.is_none_or(|until| until <= now)
            && self.bucket.as_ref().is_none_or(is_full)
            && self.breaker.is_well(now)
            && self.pacing.is_unlimited(now)
            && self.last_turn <= now
    }

    /// Whether the last attempt failed.
    #[must_use]
    pub fn has_just_failed(&self) -> bool {
        self.breaker.has_just_failed()
    }

    /// Whether nothing has been learned lately that a new lane would lack.
    #[must_use]
    pub fn is_as_new(&self) -> bool {
        let is_limited = self.concurrency.limit() < self.limits.max_in_flight;
        !is_limited && !self.pacing.is_active() && self.breaker.has_seen_no_failure()
    }

    /// Why a full queue takes longer than [`PATIENCE`] to drain; `None` if it does not, or while that is unknown.
    #[must_use]
    pub fn slow(&self, now: Instant) -> Option<Slowness> {
        if self.breaker.is_open() {
            return Some(Slowness::Breaker);
        }
        let is_slow = |pace: f64| QUEUE_COMMANDS as f64 > pace * PATIENCE.as_secs_f64();
        if self.closed(now).is_some() || self.limited().is_some_and(is_slow) {
            return Some(Slowness::Rate);
        }
        self.pace
            .rate(now)
            .is_some_and(is_slow)
            .then_some(Slowness::Endpoint)
    }

    /// Whether the queue is full; `None` when there is room.
    fn fullness(&self, bytes: usize, spare: bool, now: Instant) -> Option<Full> {
        let queued = self.queue.len();
        if let Some(bucket) = &self.bucket {
            let soon = bucket.within(HORIZON, now).max(1.0);
            if queued as f64 >= soon {
                return Some(Full::Slow(Slowness::Rate));
            }
        }
        let fits = queued < QUEUE_COMMANDS && self.queued_bytes + bytes <= QUEUE_BYTES;
        if queued == 0 || fits {
            return None;
        }
        if let Some(cause) = self.slow(now) {
            return Some(Full::Slow(cause));
        }
        (!spare || queued >= self.most_quick(now)).then_some(Full::Quick)
    }
}

#[cfg(test)]
mod tests;
