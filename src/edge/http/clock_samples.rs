//! Samples of the endpoints' clocks, from the `Date` of one response a second: see [`ClockSkew`].

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use http::header::{DATE, HeaderMap};

use crate::edge::clock;
use crate::model::clock_skew::{ClockSkew, LEAST_HOSTS};

/// Milliseconds between two samples of a process.
const EVERY: u64 = 1000;
/// Milliseconds without a sample after which hosts that had one have another.
const ROUND: u64 = 10_000;

/// Shared by all clients of a process.
#[derive(Clone, Debug)]
pub struct ClockSamples(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    base: Instant,
    /// When the next sample is due, milliseconds since `base`.
    next: AtomicU64,
    /// A bit, by a hash, for each host that had a sample in this round: bursts that begin with the same host every time
    /// must not hide the others.
    sampled: AtomicU64,
    skew: Mutex<ClockSkew>,
}

impl Default for ClockSamples {
    fn default() -> Self {
        Self(Arc::new(Inner {
            base: clock::instant(),
            next: AtomicU64::new(0),
            sampled: AtomicU64::new(0),
            skew: Mutex::new(ClockSkew::of(LEAST_HOSTS)),
        }))
    }
}

impl ClockSamples {
    /// Whether the response of a request to `host` that begins now is to be a sample: one a second, of a host that had
    /// none in this round.
    pub(super) fn is_due(&self, host: &str, now: Instant) -> bool {
        let inner = &self.0;
        let now = u64::try_from((now - inner.base).as_millis()).unwrap_or(u64::MAX);
        let next = inner.next.load(Ordering::Relaxed);
        if now < next {
            return false;
        }
        let mut hasher = DefaultHasher::new();
        host.hash(&mut hasher);
        let bit = 1 << (hasher.finish() % u64::from(u64::BITS));
        let sampled = inner.sampled.load(Ordering::Relaxed);
        let ends_round = now >= next + ROUND - EVERY;
        if sampled & bit != 0 && !ends_round {
            return false;
        }
        let order = Ordering::Relaxed;
        let is_first = inner.next.compare_exchange(next, now + EVERY, order, order);
        if is_first.is_ok() {
            let rest = if ends_round { 0 } else { sampled };
            inner.sampled.store(rest | bit, Ordering::Relaxed);
        }
        is_first.is_ok()
    }

    /// Takes a sample of a response to a request that began at `started`.
    pub(super) fn take(&self, host: &str, headers: &HeaderMap, started: Instant) {
        let date = headers.get(DATE).and_then(|value| value.to_str().ok());
        let Some(date) = date.and_then(|text| httpdate::parse_http_date(text).ok()) else {
            return;
        };
        let Ok(theirs) = date.duration_since(std::time::UNIX_EPOCH) else {
            return;
        };
        let now = clock::instant();
        // The response was made between the two, and its date is without the fraction of a second.
        let ours = clock::now().0 as f64 / 1000.0 - (now - started).as_secs_f64() / 2.0;
        let ahead = ours - (theirs.as_secs_f64() + 0.5);
        let mut skew = self.0.skew.lock().unwrap_or_else(PoisonError::into_inner);
        skew.note(host, ahead, now);
    }

    /// By how many seconds this clock is ahead of those of the endpoints; `None` while too few of them are known.
    #[must_use]
    pub fn ahead(&self) -> Option<f64> {
        let skew = self.0.skew.lock().unwrap_or_else(PoisonError::into_inner);
        skew.ahead(clock::instant())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn one_response_a_second_is_a_sample_and_each_host_has_its_turn() {
        let samples = ClockSamples::default();
        let base = samples.0.base;
        let due = |(ms, host)| samples.is_due(host, base + Duration::from_millis(ms));
        let requests = [
            (0, "a"),
            (1, "a"),
            (1, "b"),
            (1000, "a"),
            (1000, "b"),
            (2000, "a"),
            (2000, "b"),
            (2001, "c"),
            (12_000, "a"),
            (12_001, "a"),
            (12_002, "b"),
            (13_001, "b"),
        ];
        let expected = [
            true, false, false, false, true, false, false, true, false, true, false, true,
        ];
        assert_eq!(requests.map(due), expected);
    }

    #[test]
    fn a_clock_that_is_a_minute_behind_is_seen_by_three_hosts() {
        let samples = ClockSamples::default();
        let date = |ahead: u64| {
            let at = SystemTime::UNIX_EPOCH
                + Duration::from_millis(u64::try_from(clock::now().0).unwrap())
                + Duration::from_secs(ahead);
            let mut headers = HeaderMap::new();
            headers.insert(DATE, httpdate::fmt_http_date(at).parse().unwrap());
            headers
        };
        let started = clock::instant();
        samples.take("a", &date(60), started);
        samples.take("b", &date(60), started);
        samples.take("no-date", &HeaderMap::new(), started);
        let mut broken = HeaderMap::new();
        broken.insert(DATE, "yesterday".parse().unwrap());
        samples.take("broken", &broken, started);
        assert_eq!(samples.ahead(), None);
        samples.take("c", &date(60), started);
        let ahead = samples.ahead().unwrap();
        assert!((-62.0..-58.0).contains(&ahead), "{ahead}");
    }
}
