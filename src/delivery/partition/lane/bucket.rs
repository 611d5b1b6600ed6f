//! The token bucket of a subscription's rate limit. Pure.

use std::time::{Duration, Instant};

/// A token bucket: `burst` at once, refilled at `per_second`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Tokens added per second, above 0.
    pub per_second: f64,
    /// The capacity, at least 1.
    pub burst: f64,
}

/// Exact: in any period t it lets at most `burst + per_second * t` through.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: Rate,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn full(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            tokens: rate.burst,
            at: now,
        }
    }

    /// Tokens available now or within `time` from `now`.
    pub(super) fn within(&self, time: Duration, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        let there = (self.tokens + elapsed * self.rate.per_second).min(self.rate.burst);
        there + time.as_secs_f64() * self.rate.per_second
    }

    /// Whether it is as full as at its beginning.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        self.within(Duration::ZERO, now) >= self.rate.burst
    }

    /// Takes a token.
    ///
    /// # Errors
    /// Returns when the next token is available.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Instant> {
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
