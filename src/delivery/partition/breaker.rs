//! A circuit breaker: stops attempts to an endpoint that is down, and detects when it works again.
//!
//! While closed, it counts consecutive failures and the share of failures in a sliding window. Past either limit it
//! opens, unless the endpoint shows that it is not down:
//!
//! - a success less than a moment ago (`MOMENT`), of whatever command;
//! - for failures with a response or a timeout: a [`Kind`] of command whose last attempt succeeded less than `RECENT`
//!   ago. One event type that is refused, or first attempts that always fail, say nothing about the others.
//!
//! While open, nothing is sent until the next probe, a single attempt, which closes it or opens it for longer. Any other
//! success closes it too. A probe is of another kind than those that failed, if one is queued. A partition has one owner
//! and a subscription lives in one partition, so there is exactly one breaker per subscription, and its counts are exact.
//!
//! A failure is an attempt that is to be retried (no response, 5xx, 404, …). A response that permanently rejects one
//! request (400, …) shows that the endpoint works.
//!
//! Pure: the time and the jitter are arguments.

use std::hash::BuildHasher;
use std::time::{Duration, Instant};

use crate::model::backoff::jittered;
use crate::model::breaker_rules::BreakerRules;
use crate::model::command::Command;

/// Slices of the sliding window; it expires one slice at a time.
const SLICES: usize = 10;
/// It does not open within this time after a success, or within the initial probe delay if that is shorter.
const MOMENT: Duration = Duration::from_secs(5);
/// How long the success of a kind of command shows that the endpoint is not down.
const RECENT: Duration = Duration::from_secs(60);
/// Kinds of commands that are remembered; failed ones are forgotten first, the oldest first.
const KINDS: usize = 16;
/// A command with more attempts waits long when another one fails: for half an hour or more by the default schedule.
const SHORT_ATTEMPTS: u32 = 1;
/// So many probes of untried event types do not wait for their time.
const EARLY_PROBES: u32 = 8;
/// The delay doubles at most this often for an endpoint that fails again soon after it worked.
const MOST_REOPENINGS: u32 = 3;

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
    /// The endpoint does not work, at least not for this command.
    Bad,
    /// There was no connection to the endpoint, whatever the command.
    Unreachable,
    /// No information.
    None,
}

/// What may make an endpoint treat commands differently: the event type, and whether it has seen the webhook before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    event_type: u64,
    repeated: bool,
}

impl Kind {
    /// The kind of a command.
    #[must_use]
    pub fn of(command: &Command) -> Self {
        Self::new(&command.event_type, command.attempt > 0)
    }

    fn new(event_type: &str, repeated: bool) -> Self {
        Self {
            event_type: foldhash::fast::FixedState::default().hash_one(event_type),
            repeated,
        }
    }
}

/// A queued command that may be the probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its kind.
    pub kind: Kind,
    /// Its attempts so far: the more, the longer its next delay if the probe fails.
    pub attempts: u32,
}

impl Candidate {
    /// The command as a candidate.
    #[must_use]
    pub fn of(command: &Command) -> Self {
        Self {
            kind: Kind::of(command),
            attempts: command.attempt,
        }
    }
}

/// The end of an attempt, for the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// What it says about the endpoint.
    pub sign: Sign,
    /// The kind of its command.
    pub kind: Kind,
    /// Whether it was the probe.
    pub was_probe: bool,
}

/// One endpoint's breaker.
#[derive(Debug)]
pub struct Breaker {
    state: State,
    /// Failed probes since it first opened.
    failed_probes: u32,
    /// When it last closed, and the probe delay at that time.
    closed: Option<(Instant, Duration)>,
    /// The last success.
    success: Option<Instant>,
    tried: Tried,
    /// Probes that did not wait for their time, since it last closed.
    early_probes: u32,
}

#[derive(Debug)]
enum State {
    Closed { in_a_row: u32, window: Window },
    Open { since: Instant, probe_at: Instant },
    Probing,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            state: State::CLOSED,
            failed_probes: 0,
            closed: None,
            success: None,
            tried: Tried::default(),
            early_probes: 0,
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
            State::Open { probe_at, .. } if probe_at <= now => Gate::Probe,
            State::Open { probe_at, .. } => Gate::Open(probe_at),
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

    /// The place of the best probe among queued commands: of a kind that worked at its last attempt, else one whose event
    /// type was not tried, or that itself was not, else the one whose failure is longest ago; of those that are alike, the
    /// command with the fewest attempts. Among failed kinds, a command with two attempts or more only if none with
    /// fewer has its event type: it would be delivered long after the endpoint is back.
    pub fn choose(&self, queued: impl Iterator<Item = Candidate> + Clone, now: Instant) -> usize {
        let all = queued.clone();
        let is_spared = |one: Candidate| {
            let is_gentler = |other: Candidate| {
                other.kind.event_type == one.kind.event_type && other.attempts <= SHORT_ATTEMPTS
            };
            one.attempts > SHORT_ATTEMPTS && all.clone().any(is_gentler)
        };
        let ranked = queued.enumerate().map(|(place, candidate)| {
            let (class, failed) = self.tried.rank(candidate.kind, now);
            let is_last = failed.is_some() && is_spared(candidate);
            (class, is_last, failed, candidate.attempts, place)
        });
        ranked.min().map_or(0, |(.., place)| place)
    }

    /// Whether the last attempt of this kind failed.
    #[must_use]
    pub fn has_failed(&self, kind: Kind) -> bool {
        self.tried.has_failed(kind)
    }

    /// Records the end of an attempt. A failure of an attempt that began before the breaker opened is ignored.
    pub fn ended(
        &mut self,
        rules: &BreakerRules,
        ended: Ended,
        now: Instant,
        jitter: f64,
    ) -> Option<Change> {
        let Ended {
            sign,
            kind,
            was_probe,
        } = ended;
        match sign {
            Sign::None => {
                // The probe gave no information, so the next attempt is a probe.
                if was_probe && matches!(self.state, State::Probing) {
                    self.state = State::Open {
                        since: now,
                        probe_at: now,
                    };
                }
                return None;
            }
            Sign::Good => {
                self.success = Some(now);
                self.tried.worked(kind, now);
            }
            Sign::Bad | Sign::Unreachable => self.tried.failed(kind, now),
        }
        match (&mut self.state, sign) {
            (State::Closed { in_a_row, window }, _) => {
                let failed = sign != Sign::Good;
                *in_a_row = if failed {
                    in_a_row.saturating_add(1)
                } else {
                    0
                };
                let share = window.add(failed, rules, now);
                let opens = failed
                    && (rules.failures > 0 && *in_a_row >= rules.failures
                        || rules.rate > 0.0 && share.is_some_and(|share| share >= rules.rate));
                (opens && self.is_down(rules, sign, now)).then(|| {
                    self.forget_old_trouble(now);
                    self.open(rules, now, jitter)
                })
            }
            (State::Probing | State::Open { .. }, Sign::Good) => {
                self.closed = Some((now, self.wait(rules)));
                self.early_probes = 0;
                self.state = State::CLOSED;
                Some(Change::Closed)
            }
            (State::Probing, _) if was_probe => {
                self.failed_probes = self.failed_probes.saturating_add(1);
                Some(self.open(rules, now, jitter))
            }
            (State::Probing | State::Open { .. }, _) => None,
        }
    }

    /// Whether nothing shows that the endpoint works, after a failure with this sign.
    fn is_down(&self, rules: &BreakerRules, sign: Sign, now: Instant) -> bool {
        let moment = MOMENT.min(rules.probe);
        let just_worked = self
            .success
            .is_some_and(|last| now.saturating_duration_since(last) < moment);
        !just_worked && (sign == Sign::Unreachable || !self.tried.any_works(now))
    }

    /// A command of this kind is queued. If its event type was not tried before, it is a probe as soon as the initial
    /// delay has passed, since what was tried says little about it.
    pub fn queued(&mut self, kind: Kind, rules: &BreakerRules, now: Instant) {
        if let State::Open { since, probe_at } = &mut self.state {
            let soon = now.max(*since + rules.probe);
            if soon < *probe_at
                && self.early_probes < EARLY_PROBES
                && !self.tried.is_type_tried(kind)
            {
                self.early_probes += 1;
                *probe_at = soon;
            }
        }
    }

    /// The endpoint was not at fault: the next attempt is a probe, after at most the initial delay.
    pub fn probe_soon(&mut self, now: Instant) {
        if let State::Open { probe_at, .. } = &mut self.state {
            *probe_at = (*probe_at).min(now);
            self.failed_probes = 0;
        }
    }

    /// Whether only probes are sent.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed { .. })
    }

    /// Whether it is closed, and would not continue with an earlier delay if it opened now.
    #[must_use]
    pub fn is_well(&self, now: Instant) -> bool {
        matches!(self.state, State::Closed { .. }) && self.has_been_well(now)
    }

    /// Whether the last attempts of all kinds succeeded.
    #[must_use]
    pub fn has_seen_no_failure(&self) -> bool {
        !self.has_just_failed() && self.tried.has_no_failure()
    }

    /// Whether the last attempt failed.
    #[must_use]
    pub fn has_just_failed(&self) -> bool {
        !matches!(self.state, State::Closed { in_a_row: 0, .. })
    }

    /// The current probe delay, before jitter.
    #[must_use]
    pub fn wait(&self, rules: &BreakerRules) -> Duration {
        let doubled = 2_u32.saturating_pow(self.failed_probes.min(31));
        rules.probe.saturating_mul(doubled).min(rules.max_probe)
    }

    fn open(&mut self, rules: &BreakerRules, now: Instant, jitter: f64) -> Change {
        let probe_at = now + jittered(self.wait(rules), jitter).min(rules.max_probe);
        self.state = State::Open {
            since: now,
            probe_at,
        };
        Change::Opened(probe_at)
    }

    fn has_been_well(&self, now: Instant) -> bool {
        self.closed
            .is_none_or(|(since, wait)| now.saturating_duration_since(since) >= wait * 2)
    }

    /// An endpoint that fails again soon after a successful probe continues at its previous delay. One that worked for
    /// twice as long as its last delay starts over.
    fn forget_old_trouble(&mut self, now: Instant) {
        if self.has_been_well(now) {
            self.failed_probes = 0;
        } else {
            self.failed_probes = (self.failed_probes + 1).min(MOST_REOPENINGS);
        }
    }
}

/// The result of the last attempt of each kind.
#[derive(Debug, Default)]
struct Tried(Vec<(Kind, bool, Instant)>);

impl Tried {
    fn worked(&mut self, kind: Kind, now: Instant) {
        self.set(kind, true, now);
    }

    fn failed(&mut self, kind: Kind, now: Instant) {
        self.set(kind, false, now);
    }

    fn set(&mut self, kind: Kind, works: bool, now: Instant) {
        if let Some(known) = self.0.iter_mut().find(|(known, ..)| *known == kind) {
            (known.1, known.2) = (works, now);
            return;
        }
        if self.0.len() >= KINDS {
            let places = self.0.iter().enumerate();
            let oldest = places.min_by_key(|(_, (_, works, at))| (*works, *at));
            if let Some((oldest, _)) = oldest {
                self.0.swap_remove(oldest);
            }
        }
        self.0.push((kind, works, now));
    }

    fn any_works(&self, now: Instant) -> bool {
        let recent = |at: Instant| now.saturating_duration_since(at) < RECENT;
        self.0.iter().any(|&(_, works, at)| works && recent(at))
    }

    /// Less is better for a probe.
    fn rank(&self, kind: Kind, now: Instant) -> (u8, Option<Instant>) {
        match self.0.iter().find(|(known, ..)| *known == kind) {
            Some((_, true, at)) if now.saturating_duration_since(*at) < RECENT => (0, None),
            Some((_, false, at)) => (3, Some(*at)),
            None | Some((_, true, _)) => (1 + u8::from(self.is_type_tried(kind)), None),
        }
    }

    fn is_type_tried(&self, kind: Kind) -> bool {
        let is_tried = |known: &Kind| known.event_type == kind.event_type;
        self.0.iter().any(|(known, ..)| is_tried(known))
    }

    fn has_no_failure(&self) -> bool {
        self.0.iter().all(|(_, works, _)| *works)
    }

    fn has_failed(&self, kind: Kind) -> bool {
        let known = self.0.iter().find(|(known, ..)| *known == kind);
        known.is_some_and(|&(_, works, _)| !works)
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

    /// The end of an attempt of a first attempt of type `a`.
    pub(crate) fn of(sign: Sign, was_probe: bool) -> Ended {
        Ended {
            sign,
            kind: Kind::new("a", false),
            was_probe,
        }
    }

    fn end(breaker: &mut Breaker, sign: Sign, now: Instant) -> Option<Change> {
        breaker.ended(&RULES, of(sign, false), now, MIDDLE)
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
        breaker.ended(&RULES, of(sign, true), now, MIDDLE)
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_between_them_does_not() {
        let mut now = crate::edge::clock::instant();
        let mut breaker = Breaker::default();
        for _ in 1..RULES.failures {
            assert_eq!(end(&mut breaker, Sign::Bad, now), None);
        }
        assert_eq!(end(&mut breaker, Sign::None, now), None);
        end(&mut breaker, Sign::Good, now);
        now += MOMENT;
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
        let mut now = crate::edge::clock::instant();
        let rules = BreakerRules {
            failures: 0,
            ..RULES
        };
        let mut breaker = Breaker::default();
        let end =
            |breaker: &mut Breaker, sign, now| breaker.ended(&rules, of(sign, false), now, MIDDLE);
        for turn in 0..RULES.volume - 1 {
            let sign = if turn < RULES.volume / 2 {
                Sign::Good
            } else {
                Sign::Bad
            };
            assert_eq!(end(&mut breaker, sign, now), None);
        }
        now += MOMENT;
        assert!(matches!(
            end(&mut breaker, Sign::Bad, now),
            Some(Change::Opened(_))
        ));
    }

    #[test]
    fn what_has_left_the_window_does_not_count() {
        let mut now = crate::edge::clock::instant();
        let mut breaker = Breaker::default();
        let rules = BreakerRules {
            failures: 0,
            ..RULES
        };
        for _ in 0..10 * RULES.volume {
            let change = breaker.ended(&rules, of(Sign::Bad, false), now, MIDDLE);
            assert_eq!(change, None, "never {} at a time", RULES.volume);
            now += RULES.window / (RULES.volume - 2);
        }
        let burst = (0..RULES.volume)
            .find_map(|_| breaker.ended(&rules, of(Sign::Bad, false), now, MIDDLE));
        assert!(burst.is_some());
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
    fn failures_of_attempts_that_began_before_it_opened_change_nothing_and_any_success_closes_it() {
        let now = crate::edge::clock::instant();
        let mut breaker = opened(now);
        let gate = breaker.gate(now);
        assert_eq!(end(&mut breaker, Sign::Bad, now), None);
        assert_eq!(end(&mut breaker, Sign::None, now), None);
        assert_eq!(breaker.gate(now), gate);
        breaker.probe();
        assert_eq!(end(&mut breaker, Sign::Bad, now), None);
        assert_eq!(breaker.gate(now), Gate::Probing);
        assert_eq!(end(&mut breaker, Sign::Good, now), Some(Change::Closed));
        assert_eq!(
            breaker.ended(&RULES, of(Sign::Bad, true), now, MIDDLE),
            None,
            "the probe is no longer one"
        );
        assert!(!breaker.is_open());
    }

    #[test]
    fn an_endpoint_that_worked_a_moment_ago_is_not_down() {
        let mut now = crate::edge::clock::instant();
        let mut breaker = Breaker::default();
        for _ in 0..100 {
            end(&mut breaker, Sign::Good, now);
            for sign in [Sign::Bad, Sign::Unreachable].repeat(20) {
                assert_eq!(end(&mut breaker, sign, now), None);
                now += MOMENT / 50;
            }
        }
        now += MOMENT / 5;
        assert!(end(&mut breaker, Sign::Bad, now).is_some());
    }

    fn end_of(breaker: &mut Breaker, sign: Sign, event_type: &str, now: Instant) -> Option<Change> {
        let kind = Kind::new(event_type, false);
        let ended = Ended {
            kind,
            ..of(sign, false)
        };
        breaker.ended(&RULES, ended, now, MIDDLE)
    }

    #[test]
    fn one_event_type_that_is_refused_leaves_it_closed_until_the_other_fails_too() {
        let mut now = crate::edge::clock::instant();
        let mut breaker = Breaker::default();
        for _ in 0..5 {
            end_of(&mut breaker, Sign::Good, "order", now);
            for number in 0..50 {
                let invoice = format!("invoice.{}", number % 20);
                now += Duration::from_secs(1);
                assert_eq!(end_of(&mut breaker, Sign::Bad, &invoice, now), None);
            }
        }
        now += Duration::from_secs(1);
        assert!(end_of(&mut breaker, Sign::Bad, "order", now).is_some());
    }

    #[test]
    fn an_endpoint_that_cannot_be_reached_is_down_for_all_event_types() {
        let mut now = crate::edge::clock::instant();
        let mut breaker = Breaker::default();
        end_of(&mut breaker, Sign::Good, "order", now);
        now += MOMENT;
        for _ in 1..RULES.failures {
            assert_eq!(
                end_of(&mut breaker, Sign::Unreachable, "invoice", now),
                None
            );
        }
        assert!(end_of(&mut breaker, Sign::Unreachable, "invoice", now).is_some());
    }

    #[test]
    fn a_probe_is_of_a_kind_that_has_not_failed_or_else_of_the_one_that_failed_first() {
        let now = crate::edge::clock::instant();
        let second = |seconds| now + Duration::from_secs(seconds);
        let mut breaker = Breaker::default();
        let kinds = ["a", "b", "c", "d"].map(|name| Kind::new(name, false));
        let candidate = |kind: &Kind| Candidate {
            kind: *kind,
            attempts: 0,
        };
        let choose = |breaker: &Breaker, kinds: &[Kind]| {
            breaker.choose(kinds.iter().map(candidate), second(4))
        };
        assert_eq!(choose(&breaker, &[]), 0);
        assert_eq!(choose(&breaker, &kinds), 0);
        end_of(&mut breaker, Sign::Bad, "b", second(0));
        end_of(&mut breaker, Sign::Bad, "a", second(1));
        assert_eq!(choose(&breaker, &kinds), 2);
        assert_eq!(choose(&breaker, &kinds[..2]), 1);
        let repeated = Kind::new("a", true);
        assert_eq!(choose(&breaker, &[kinds[0], kinds[1], repeated]), 2);
        assert_eq!(choose(&breaker, &[kinds[0], repeated, kinds[2]]), 2);
        end_of(&mut breaker, Sign::Good, "d", second(2));
        assert_eq!(choose(&breaker, &kinds), 3);
    }

    #[test]
    fn of_one_kind_the_command_with_the_fewest_attempts_is_the_probe() {
        let now = crate::edge::clock::instant();
        let choose = |breaker: &Breaker, attempts: &[u32]| {
            let queued = attempts.iter().map(|attempts| Candidate {
                kind: Kind::new("a", *attempts > 0),
                attempts: *attempts,
            });
            breaker.choose(queued, now)
        };
        let mut breaker = Breaker::default();
        assert_eq!(choose(&breaker, &[3, 1, 2, 1]), 1);
        breaker.tried.failed(Kind::new("a", false), now);
        assert_eq!(
            choose(&breaker, &[0, 3, 2]),
            2,
            "of a kind that was not tried"
        );
        breaker.tried.failed(Kind::new("a", true), now);
        breaker
            .tried
            .failed(Kind::new("a", false), now + Duration::from_secs(1));
        assert_eq!(
            choose(&breaker, &[0, 2, 1]),
            2,
            "the failure of its kind is longest ago"
        );
        assert_eq!(
            choose(&breaker, &[2, 0, 0]),
            1,
            "the other would wait for half an hour"
        );
        assert_eq!(choose(&breaker, &[3, 2]), 1);
        let other = Candidate {
            kind: Kind::new("b", true),
            attempts: 4,
        };
        breaker.tried.failed(other.kind, now);
        let fresh = Candidate {
            kind: Kind::new("a", false),
            attempts: 0,
        };
        let queued = [fresh, other];
        let chosen = breaker.choose(queued.into_iter(), now);
        assert_eq!(
            chosen, 1,
            "new commands of one type do not keep another one from being tried"
        );
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
        for doubled in [2, 4, 8, 8] {
            probe(&mut breaker, Sign::Good, now);
            now += MOMENT;
            for _ in 0..RULES.failures {
                end(&mut breaker, Sign::Bad, now);
            }
            assert_eq!(breaker.gate(now), Gate::Open(now + RULES.probe * doubled));
            now += RULES.probe * doubled;
        }
        probe(&mut breaker, Sign::Good, now);
        now += Duration::from_secs(3600);
        for _ in 0..RULES.failures {
            end(&mut breaker, Sign::Bad, now);
        }
        assert_eq!(breaker.gate(now), Gate::Open(now + RULES.probe));
    }

    #[test]
    fn an_event_type_that_was_not_tried_is_probed_early_but_not_for_ever() {
        let mut now = crate::edge::clock::instant();
        let mut breaker = opened(now);
        let mut early = 0;
        for number in 0..100 {
            let kind = Kind::new(&number.to_string(), false);
            breaker.queued(kind, &RULES, now);
            let Gate::Open(at) = breaker.gate(now) else {
                panic!("{number}: it is not open");
            };
            assert!(at >= now + RULES.probe);
            early += u32::from(at == now + RULES.probe && number > 0);
            let is_same = Kind::new("a", false);
            breaker.queued(is_same, &RULES, now);
            assert_eq!(breaker.gate(now), Gate::Open(at));
            now = at;
            breaker.probe();
            let ended = Ended {
                kind,
                ..of(Sign::Bad, true)
            };
            breaker.ended(&RULES, ended, now, MIDDLE);
        }
        assert_eq!(early, EARLY_PROBES);
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
            assert_eq!(
                breaker.ended(&rules, of(Sign::Bad, false), now, MIDDLE),
                None
            );
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
            history in proptest::collection::vec((prop::bool::weighted(0.7), 0..4_000_u64), 1..200),
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
                let just_worked = all
                    .iter()
                    .rfind(|(_, failed)| !failed)
                    .is_some_and(|(at, _)| (now - begin).as_nanos() - at < MOMENT.as_nanos());
                let wanted = failed
                    && !just_worked
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
