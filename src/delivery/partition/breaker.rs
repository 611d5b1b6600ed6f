//! A circuit breaker: stops attempts to an endpoint that fails, and detects when it works again.
//!
//! While closed, it counts consecutive failures and the share of failures in a sliding window. Past either limit it
//! opens: nothing is sent until the next probe, a single attempt, which closes it or opens it for longer. A partition
//! has one owner and a subscription lives in one partition, so there is exactly one breaker per subscription, and its
//! counts are exact.
//!
//! A failure is an attempt that is to be retried (no response, 5xx, 404, …). A response that permanently rejects one
//! request (400, …) shows that the endpoint works.
//!
//! Pure: the time and the jitter are arguments.

use std::time::{Duration, Instant};

use crate::model::backoff::jittered;
use crate::model::breaker_rules::BreakerRules;

/// Slices of the sliding window; it expires one slice at a time.
const SLICES: usize = 10;

/// Whether an attempt may start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Any attempt may.
    Closed,
    /// One attempt may: the probe.
    Probe,
    /// None may: the probe is in flight.
    Probing,
    /// None may before this time.
    Open(Instant),
}

/// How the end of an attempt changed the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It opened or stays open; the next probe is due at this time.
    Opened(Instant),
    /// It closed.
    Closed,
}

/// What the end of an attempt says about the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// The endpoint works.
    Good,
    /// The endpoint does not work.
    Bad,
    /// No information.
    None,
}

/// One endpoint's breaker.
#[derive(Debug)]
pub struct Breaker {
    state: State,
    /// Failed probes since it first opened.
    failed_probes: u32,
    /// When it last closed, and the probe delay at that time.
    closed: Option<(Instant, Duration)>,
}

#[derive(Debug)]
enum State {
    Closed { in_a_row: u32, window: Window },
    Open { probe_at: Instant },
    Probing,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            state: State::CLOSED,
            failed_probes: 0,
            closed: None,
        }
    }
}

impl State {
    const CLOSED: Self = Self::Closed {
        in_a_row: 0,
        window: Window::EMPTY,
    };
}

impl Breaker {
    /// Whether an attempt may start at `now`.
    #[must_use]
    pub fn gate(&self, now: Instant) -> Gate {
        match self.state {
            State::Closed { .. } => Gate::Closed,
            State::Probing => Gate::Probing,
            State::Open { probe_at } if probe_at <= now => Gate::Probe,
            State::Open { probe_at } => Gate::Open(probe_at),
        }
    }

    /// Marks the attempt that starts now as the probe.
    pub fn probe(&mut self) {
        debug_assert!(
            matches!(self.state, State::Open { .. }),
            "one probe at a time"
        );
        self.state = State::Probing;
    }

    /// Records the end of an attempt. Attempts that began before the breaker opened are ignored.
    pub fn ended(
        &mut self,
        rules: &BreakerRules,
        sign: Sign,
        was_probe: bool,
        now: Instant,
        jitter: f64,
    ) -> Option<Change> {
        match (&mut self.state, sign) {
            (State::Closed { .. }, Sign::None) => None,
            (State::Closed { in_a_row, window }, sign) => {
                let failed = sign == Sign::Bad;
                *in_a_row = if failed {
                    in_a_row.saturating_add(1)
                } else {
                    0
                };
                let share = window.add(failed, rules, now);
                let opens = failed
                    && (rules.failures > 0 && *in_a_row >= rules.failures
                        || rules.rate > 0.0 && share.is_some_and(|share| share >= rules.rate));
                opens.then(|| {
                    self.forget_old_trouble(now);
                    self.open(rules, now, jitter)
                })
            }
            (State::Probing, Sign::Good) if was_probe => {
                self.closed = Some((now, self.wait(rules)));
                self.state = State::CLOSED;
                Some(Change::Closed)
            }
            (State::Probing, Sign::Bad) if was_probe => {
                self.failed_probes = self.failed_probes.saturating_add(1);
                Some(self.open(rules, now, jitter))
            }
            // The probe gave no information, so the next attempt is a probe.
            (State::Probing, Sign::None) if was_probe => {
                self.state = State::Open { probe_at: now };
                None
            }
            (State::Probing | State::Open { .. }, _) => None,
        }
    }

    /// The endpoint was not at fault: the next attempt is a probe, after at most the initial delay.
    pub fn probe_soon(&mut self, now: Instant) {
        if let State::Open { probe_at } = &mut self.state {
            *probe_at = (*probe_at).min(now);
            self.failed_probes = 0;
        }
    }

    /// Whether only probes are sent.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed { .. })
    }

    /// The current probe delay, before jitter.
    #[must_use]
    pub fn wait(&self, rules: &BreakerRules) -> Duration {
        let doubled = 2_u32.saturating_pow(self.failed_probes.min(31));
        rules.probe.saturating_mul(doubled).min(rules.max_probe)
    }

    fn open(&mut self, rules: &BreakerRules, now: Instant, jitter: f64) -> Change {
        let probe_at = now + jittered(self.wait(rules), jitter).min(rules.max_probe);
        self.state = State::Open { probe_at };
        Change::Opened(probe_at)
    }

    /// An endpoint that fails again soon after a successful probe continues at its previous delay. One that worked for
    /// twice as long as its last delay starts over.
    fn forget_old_trouble(&mut self, now: Instant) {
        let was_well = self
            .closed
            .is_none_or(|(since, wait)| now.saturating_duration_since(since) >= wait * 2);
        if was_well {
            self.failed_probes = 0;
        } else {
            self.failed_probes = self.failed_probes.saturating_add(1);
        }
    }
}

/// Attempts and failures of the sliding window, by slice.
#[derive(Debug)]
struct Window {
    slices: [(u32, u32); SLICES],
    /// The current slice, and when it began.
    current: usize,
    since: Option<Instant>,
}

impl Window {
    const EMPTY: Self = Self {
        slices: [(0, 0); SLICES],
        current: 0,
        since: None,
    };

    /// Counts one attempt; returns the share of failures once there are enough attempts.
    fn add(&mut self, failed: bool, rules: &BreakerRules, now: Instant) -> Option<f64> {
        self.move_on(rules.window / SLICES as u32, now);
        let slice = &mut self.slices[self.current];
        slice.0 += 1;
        slice.1 += u32::from(failed);
        let (all, failed) = self.slices.iter().fold((0_u32, 0_u32), |sum, slice| {
            (sum.0 + slice.0, sum.1 + slice.1)
        });
        (all >= rules.volume.max(1)).then(|| f64::from(failed) / f64::from(all))
    }

    fn move_on(&mut self, length: Duration, now: Instant) {
        let since = *self.since.get_or_insert(now);
        let slices = now.saturating_duration_since(since).as_nanos() / length.as_nanos().max(1);
        for _ in 0..slices.min(SLICES as u128) {
            self.current = (self.current + 1) % SLICES;
            self.slices[self.current] = (0, 0);
        }
        if slices > 0 {
            self.since = Some(if slices >= SLICES as u128 {
                now
            } else {
                since + length * u32::try_from(slices).unwrap_or(0)
            });
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::breaker_rules::BreakerOverrides;

    /// The defaults.
    pub(crate) const RULES: BreakerRules = BreakerRules {
        failures: 5,
        rate: 0.5,
        window: Duration::from_secs(30),
        volume: 20,
        probe: Duration::from_secs(5),
        max_probe: Duration::from_secs(600),
    };
    /// No jitter.
    const MIDDLE: f64 = 0.5;

    fn end(breaker: &mut Breaker, sign: Sign, now: Instant) -> Option<Change> {
        breaker.ended(&RULES, sign, false, now, MIDDLE)
    }

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        for _ in 0..RULES.failures {
            end(&mut breaker, Sign::Bad, now);
        }
        assert!(breaker.is_open());
        breaker
    }

    fn probe(breaker: &mut Breaker, sign: Sign, now: Instant) -> Option<Change> {
        assert_eq!(breaker.gate(now), Gate::Probe);
        breaker.probe();
        assert_eq!(breaker.gate(now), Gate::Probing);
        breaker.ended(&RULES, sign, true, now, MIDDLE)
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_between_them_does_not() {
        let now = crate::edge::clock::instant();
        let mut breaker = Breaker::default();
        for _ in 1..RULES.failures {
            assert_eq!(end(&mut breaker, Sign::Bad, now), None);
        }
        assert_eq!(end(&mut breaker, Sign::None, now), None);
        end(&mut breaker, Sign::Good, now);
        for _ in 1..RULES.failures {
            assert_eq!(end(&mut breaker, Sign::Bad, now), None);
        }
        assert_eq!(
            end(&mut breaker, Sign::Bad, now),
            Some(Change::Opened(now + RULES.probe))
        );
    }

    #[test]
    fn half_of_enough_attempts_failing_opens_it_and_half_of_few_does_not() {
        let now = crate::edge::clock::instant();
        let mut breaker = Breaker::default();
        for turn in 0..RULES.volume - 1 {
            let sign = if turn % 2 == 0 { Sign::Good } else { Sign::Bad };
            assert_eq!(end(&mut breaker, sign, now), None);
        }
        assert!(matches!(
            end(&mut breaker, Sign::Bad, now),
            Some(Change::Opened(_))
        ));
    }

    #[test]
    fn what_has_left_the_window_does_not_count() {
        let mut now = crate::edge::clock::instant();
        let mut breaker = Breaker::default();
        for _ in 0..RULES.volume {
            end(&mut breaker, Sign::Bad, now);
            end(&mut breaker, Sign::Good, now);
            now += RULES.window / 10;
            assert!(
                !breaker.is_open(),
                "there are never more than {} at a time",
                RULES.volume
            );
        }
    }

    #[test]
    fn one_probe_at_a_time_and_its_interval_doubles_up_to_the_longest() {
        let mut now = crate::edge::clock::instant();
        let mut breaker = opened(now);
        let mut wait = RULES.probe;
        for _ in 0..10 {
            assert_eq!(breaker.gate(now), Gate::Open(now + wait));
            now += wait;
            wait = (wait * 2).min(RULES.max_probe);
            assert_eq!(
                probe(&mut breaker, Sign::Bad, now),
                Some(Change::Opened(now + wait))
            );
        }
        assert_eq!(wait, RULES.max_probe);
        now += wait;
        assert_eq!(probe(&mut breaker, Sign::Good, now), Some(Change::Closed));
        assert_eq!(breaker.gate(now), Gate::Closed);
    }

    #[test]
    fn attempts_that_began_before_it_opened_change_nothing() {
        let now = crate::edge::clock::instant();
        let mut breaker = opened(now);
        let gate = breaker.gate(now);
        assert_eq!(end(&mut breaker, Sign::Good, now), None);
        assert_eq!(end(&mut breaker, Sign::Bad, now), None);
        assert_eq!(breaker.gate(now), gate);
        breaker.probe();
        assert_eq!(
            end(&mut breaker, Sign::Good, now),
            None,
            "only the probe closes it"
        );
        assert_eq!(breaker.gate(now), Gate::Probing);
    }

    #[test]
    fn a_probe_that_tells_nothing_is_followed_by_another() {
        let now = crate::edge::clock::instant();
        let mut breaker = opened(now);
        let now = now + RULES.probe;
        assert_eq!(probe(&mut breaker, Sign::None, now), None);
        assert_eq!(breaker.gate(now), Gate::Probe);
    }

    #[test]
    fn failing_again_soon_after_a_good_probe_goes_on_where_it_was() {
        let mut now = crate::edge::clock::instant();
        let mut breaker = opened(now);
        now += RULES.probe;
        probe(&mut breaker, Sign::Good, now);
        for _ in 0..RULES.failures {
            end(&mut breaker, Sign::Bad, now);
        }
        assert_eq!(breaker.gate(now), Gate::Open(now + RULES.probe * 2));
        now += RULES.probe * 2;
        probe(&mut breaker, Sign::Good, now);
        now += Duration::from_secs(3600);
        for _ in 0..RULES.failures {
            end(&mut breaker, Sign::Bad, now);
        }
        assert_eq!(breaker.gate(now), Gate::Open(now + RULES.probe));
    }

    #[test]
    fn limits_of_zero_are_off() {
        let now = crate::edge::clock::instant();
        let rules = BreakerRules {
            failures: 0,
            rate: 0.0,
            ..RULES
        };
        let mut breaker = Breaker::default();
        for _ in 0..1000 {
            assert_eq!(breaker.ended(&rules, Sign::Bad, false, now, MIDDLE), None);
        }
    }

    #[test]
    fn a_subscription_overrides_what_it_names() {
        let own = BreakerOverrides {
            failures: Some(2),
            probe: Some(Duration::from_secs(700)),
            ..Default::default()
        };
        let rules = RULES.with(&own);
        assert_eq!((rules.failures, rules.volume), (2, RULES.volume));
        assert_eq!(
            rules.max_probe,
            Duration::from_secs(700),
            "never below the first"
        );
    }

    proptest! {
        /// Compares with a naive count over the whole history.
        #[test]
        fn it_opens_when_the_naive_count_says_so(
            history in proptest::collection::vec((any::<bool>(), 0..4_000_u64), 1..200),
        ) {
            let begin = crate::edge::clock::instant();
            let mut now = begin;
            let mut breaker = Breaker::default();
            let mut all: Vec<(u128, bool)> = Vec::new();
            let slice = (RULES.window / SLICES as u32).as_nanos();
            for (failed, pause) in history {
                now += Duration::from_millis(pause);
                let sign = if failed { Sign::Bad } else { Sign::Good };
                let first = *all.first().map(|(at, _)| at).unwrap_or(&(now - begin).as_nanos());
                all.push(((now - begin).as_nanos(), failed));
                let number = |at: u128| (at - first) / slice;
                let current = number((now - begin).as_nanos());
                let recent: Vec<bool> = all
                    .iter()
                    .filter(|(at, _)| number(*at) + SLICES as u128 > current)
                    .map(|(_, failed)| *failed)
                    .collect();
                let in_a_row = all.iter().rev().take_while(|(_, failed)| *failed).count();
                let bad = recent.iter().filter(|failed| **failed).count();
                let wanted = failed
                    && (in_a_row >= RULES.failures as usize
                        || recent.len() >= RULES.volume as usize && bad * 2 >= recent.len());
                prop_assert_eq!(end(&mut breaker, sign, now).is_some(), wanted);
                if wanted {
                    break;
                }
            }
        }

        #[test]
        fn the_wait_is_within_its_jitter(jitter in 0.0..1.0_f64, failed in 0..12_u32) {
            let now = crate::edge::clock::instant();
            let mut breaker = Breaker { failed_probes: failed, ..Breaker::default() };
            let base = breaker.wait(&RULES);
            let Change::Opened(at) = breaker.open(&RULES, now, jitter) else { unreachable!() };
            prop_assert!(at - now >= base.mul_f64(0.79) && at - now <= base.mul_f64(1.21).min(RULES.max_probe));
        }
    }
}
