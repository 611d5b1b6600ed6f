//! The pace of a lane whose endpoint throttles: it responds 429, or 503 with `Retry-After`, or refuses HTTP/2 streams.
//!
//! A throttled request is not an attempt, so the only question is when to send it again. The lane pauses for as long as
//! the endpoint asks, or else for a backoff, then sends a single request on trial. Once that is accepted, it sends at a
//! pace below the rate at which the endpoint throttled:
//!
//! | since the last cut | pace, as a share of the base |
//! |---|---|
//! | 0 to 2 periods | grows linearly from 0.75 to 1.25 |
//! | later, and after the first cut | a search: it doubles periodically, since the limit was lifted or is not known |
//!
//! The base is the rate at which requests were lately accepted, and at most the pace at the cut. Only time in which the
//! lane sends counts as growth, so an idle lane learns nothing. Without a throttled request for [`FORGET`], the pace is
//! unlimited again.
//!
//! Pure: the time and the jitter are arguments.

use std::time::{Duration, Instant};

use crate::model::backoff::jittered;

/// The first pause when the endpoint names none; it doubles while nothing is accepted.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause that the endpoint has not asked for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The pace after a cut, as a share of the base; it grows by twice the rest within two periods.
const AFTER_CUT: f64 = 0.75;
/// The shortest and the longest period of growth, in seconds.
const PERIOD: (f64, f64) = (20.0, 300.0);
/// A period is at least this many requests, and this many pauses.
const PERIOD_REQUESTS: f64 = 20.0;
const PERIOD_PAUSES: f64 = 5.0;
/// The time in which the pace doubles, in seconds, and the least number of requests meanwhile.
const DOUBLING: f64 = 4.0;
const DOUBLING_REQUESTS: f64 = 8.0;
/// The base is up to this much more than the rate that was accepted, since part of the time was a pause.
const MARGIN: f64 = 1.2;
/// A cut leaves at least this share of the pace as its base, and less when enough was accepted to know better.
const DEEP_CUT: f64 = 0.5;
const DEEPEST_CUT: f64 = 0.1;
/// The highest pace; without effect on any lane.
const FASTEST: f64 = 1e6;
/// Requests may be this much ahead of the pace, in seconds: timers are not exact.
const AHEAD: f64 = 0.003;
/// Acceptances are counted in spans of at least this length, and at least this many requests at the current pace.
const SPAN: Duration = Duration::from_secs(1);
const SPAN_REQUESTS: f64 = 5.0;
/// A limit that has not been hit for this long is forgotten.
pub const FORGET: Duration = Duration::from_secs(900);

/// The pace of one lane.
#[derive(Debug, Default)]
pub struct Pacing {
    limit: Option<Limit>,
    trial: Trial,
    /// The last cut, and the end of its pause.
    cut: Option<(Instant, Instant)>,
    /// Consecutive pauses in which nothing was accepted.
    refusals: u32,
    /// Requests accepted in the current span, and its begin: a pause counts as part of the span after it.
    accepted: u32,
    since: Option<Instant>,
    /// The same of the previous span.
    before: Option<(u32, Instant)>,
}

/// Whether an endpoint that throttled accepts requests again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Trial {
    /// It does, as far as known.
    #[default]
    None,
    /// The next request is the trial.
    Due,
    /// The trial, which began at this time, is in flight.
    InFlight(Instant),
}

/// A limit that was found.
#[derive(Debug)]
struct Limit {
    /// The pace, in requests per second.
    rate: f64,
    growth: Growth,
    /// Requests that may be sent, as of `at`.
    tokens: f64,
    at: Instant,
}

/// How a pace grows; times are in seconds.
#[derive(Debug)]
enum Growth {
    /// For two periods.
    Linear {
        base: f64,
        period: f64,
        grown: f64,
    },
    Search,
}

impl Limit {
    fn after_cut(base: f64, pause: Duration, now: Instant) -> Self {
        let least = (PERIOD_REQUESTS / base).max(PERIOD_PAUSES * pause.as_secs_f64());
        Self {
            rate: base * AFTER_CUT,
            growth: Growth::Linear {
                base,
                period: least.clamp(PERIOD.0, PERIOD.1),
                grown: 0.0,
            },
            tokens: 1.0,
            at: now,
        }
    }

    fn search(from: f64, now: Instant) -> Self {
        Self {
            rate: from,
            growth: Growth::Search,
            tokens: 1.0,
            at: now,
        }
    }

    fn tokens(&self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        (self.tokens + elapsed * self.rate).min(1.0 + self.rate * AHEAD)
    }

    fn sent(&mut self, now: Instant) {
        // A trial may be sent without one.
        self.tokens = self.tokens(now) - 1.0;
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        // Idle time is no growth.
        let grows = elapsed.min(2.0 / self.rate);
        match &mut self.growth {
            Growth::Linear {
                base,
                period,
                grown,
            } => {
                *grown += grows;
                let periods = (*grown / *period).min(2.0);
                self.rate = *base * (AFTER_CUT + (1.0 - AFTER_CUT) * periods);
                if periods >= 2.0 {
                    self.growth = Growth::Search;
                }
            }
            Growth::Search => {
                let doubling = DOUBLING.max(DOUBLING_REQUESTS / self.rate);
                self.rate = (self.rate * (grows / doubling).exp2()).min(FASTEST);
            }
        }
    }
}

impl Pacing {
    /// Whether a request may be sent at `now`.
    ///
    /// # Errors
    /// When the next one may be, if that depends on time alone.
    pub fn ready(&self, now: Instant) -> Result<(), Option<Instant>> {
        match self.trial {
            Trial::None => {}
            Trial::Due => return Ok(()),
            Trial::InFlight(_) => return Err(None),
        }
        let Some(limit) = &self.limit else {
            return Ok(());
        };
        let missing = 1.0 - limit.tokens(now);
        if missing <= 0.0 || self.is_forgotten(now) {
            return Ok(());
        }
        // Rounded up, so that waiting until then is always enough.
        let wait = Duration::from_secs_f64(missing / limit.rate) + Duration::from_micros(1);
        Err(Some(now + wait))
    }

    /// Records that a request is sent, which was [`Self::ready`].
    pub fn sent(&mut self, now: Instant) {
        if self.trial == Trial::Due {
            self.trial = Trial::InFlight(now);
        }
        if self.limit.is_some() && self.is_forgotten(now) {
            *self = Self::default();
        }
        if let Some(limit) = &mut self.limit {
            limit.sent(now);
        }
    }

    /// Records a response that did not throttle to a request that began at `began`.
    pub fn accepted(&mut self, began: Instant, now: Instant) {
        let since = *self.since.get_or_insert(began);
        let requests = self
            .limit
            .as_ref()
            .map_or(0.0, |limit| SPAN_REQUESTS / limit.rate);
        let span = SPAN.max(Duration::from_secs_f64(requests));
        if now.saturating_duration_since(since) >= span && self.accepted > 0 {
            self.before = Some((self.accepted, since));
            (self.accepted, self.since) = (0, Some(now));
        }
        self.accepted = self.accepted.saturating_add(1);
        if self.is_recent(began) {
            self.refusals = 0;
            self.trial = Trial::None;
        }
    }

    /// Records a request that began at `began` and got no response.
    pub fn failed(&mut self, began: Instant) {
        if self.trial == Trial::InFlight(began) {
            self.trial = Trial::Due;
        }
    }

    /// Records a throttled request that began at `began`. Returns how long to pause; the endpoint may ask for a time.
    pub fn throttled(
        &mut self,
        began: Instant,
        asked: Option<Duration>,
        now: Instant,
        jitter: f64,
    ) -> Duration {
        // Requests that were in flight together are throttled together: one cut.
        if !self.is_recent(began) {
            let until = self.cut.map_or(now, |(_, until)| until);
            let asked = asked.unwrap_or_default();
            self.cut = self.cut.map(|(cut, until)| (cut, until.max(now + asked)));
            return asked.max(until.saturating_duration_since(now));
        }
        let doubled = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(self.refusals.min(16)));
        let own = jittered(doubled.min(LONGEST_PAUSE), jitter);
        let pause = match asked {
            // As asked the first time; longer if that was too short.
            Some(asked) if self.refusals == 0 && !asked.is_zero() => asked,
            Some(asked) => asked.max(own),
            None => own,
        };
        self.learn(pause, now);
        self.cut = Some((now, now + pause));
        self.refusals = self.refusals.saturating_add(1);
        self.trial = Trial::Due;
        pause
    }

    /// The current limit, in requests per second; `None` if there is none.
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        self.limit.as_ref().map(|limit| limit.rate)
    }

    /// Whether the limit may be far above [`Self::rate`].
    #[must_use]
    pub fn is_searching(&self) -> bool {
        let limit = self.limit.as_ref();
        limit.is_some_and(|limit| matches!(limit.growth, Growth::Search))
    }

    /// Whether the endpoint has throttled lately.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.cut.is_some()
    }

    /// Whether there is no limit, or one that was not hit for [`FORGET`].
    #[must_use]
    pub fn is_unlimited(&self, now: Instant) -> bool {
        self.limit.is_none() && self.trial == Trial::None || self.is_forgotten(now)
    }

    /// Requests that may be sent at `now`.
    #[must_use]
    pub fn tokens(&self, now: Instant) -> usize {
        match (self.trial, &self.limit) {
            (Trial::InFlight(_), _) => 0,
            (Trial::Due, _) => 1,
            (Trial::None, Some(limit)) if !self.is_forgotten(now) => limit.tokens(now) as usize,
            (Trial::None, _) => usize::MAX,
        }
    }

    /// Lowers the pace to what was accepted.
    fn learn(&mut self, pause: Duration, now: Instant) {
        if self.accepted == 0 && self.before.is_none() && self.cut.is_some() {
            // Nothing was accepted since the last cut: the pause was too short, which says nothing about the pace.
            return;
        }
        let (before, since) = match self.before {
            Some((before, since)) => (before, Some(since)),
            None => (0, self.since),
        };
        let accepted = f64::from(self.accepted.saturating_add(before));
        let took = now.saturating_duration_since(since.unwrap_or(now));
        match &self.limit {
            Some(limit) => {
                let lately = MARGIN * accepted / took.as_secs_f64().max(f64::EPSILON);
                let deepest = if accepted < SPAN_REQUESTS {
                    DEEP_CUT
                } else {
                    DEEPEST_CUT
                };
                let base = lately.clamp(deepest * limit.rate, limit.rate);
                self.limit = Some(Limit::after_cut(base, pause, now));
            }
            None if accepted > 0.0 => {
                // Perhaps much less than the endpoint accepts. A span is short; what is more, the lane was idle.
                let took = took.min(2 * SPAN);
                let rate = accepted / (took + pause).as_secs_f64().max(0.001);
                self.limit = Some(Limit::search(rate, now));
            }
            None => {}
        }
        (self.accepted, self.since, self.before) = (0, Some(now), None);
    }

    /// Whether a request that began at `began` says something about the time since the last pause.
    fn is_recent(&self, began: Instant) -> bool {
        self.trial == Trial::InFlight(began) || self.cut.is_none_or(|(_, until)| began >= until)
    }

    fn is_forgotten(&self, now: Instant) -> bool {
        self.trial == Trial::None
            && self
                .cut
                .is_some_and(|(_, until)| now.saturating_duration_since(until) >= FORGET)
    }
}

#[cfg(test)]
mod tests;
