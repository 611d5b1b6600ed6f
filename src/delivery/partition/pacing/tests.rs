//! Simulates endpoints that limit the rate of requests, in virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::*;

/// Requests in flight at a time.
const MOST: usize = 8;
/// How long the endpoint takes to respond.
const TAKES: Duration = Duration::from_millis(20);

/// How an endpoint limits the rate.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// A token bucket: so many per second, and so many at once.
    Bucket(f64, f64),
    /// So many in each window of so many seconds.
    Windows(u32, f64),
}

struct Limiter {
    rule: Rule,
    begin: Instant,
    tokens: f64,
    at: Instant,
    window: u64,
    used: u32,
}

impl Limiter {
    fn new(rule: Rule, now: Instant) -> Self {
        let tokens = match rule {
            Rule::Bucket(_, burst) => burst,
            Rule::Windows(..) => 0.0,
        };
        Self {
            rule,
            begin: now,
            tokens,
            at: now,
            window: 0,
            used: 0,
        }
    }

    fn accepts(&mut self, now: Instant) -> bool {
        match self.rule {
            Rule::Bucket(rate, burst) => {
                let elapsed = (now - self.at).as_secs_f64();
                self.tokens = (self.tokens + elapsed * rate).min(burst);
                self.at = now;
                let accepts = self.tokens >= 1.0;
                self.tokens -= f64::from(u8::from(accepts));
                accepts
            }
            Rule::Windows(most, length) => {
                let window = ((now - self.begin).as_secs_f64() / length) as u64;
                if self.window != window {
                    (self.window, self.used) = (window, 0);
                }
                self.used += 1;
                self.used <= most
            }
        }
    }

    /// The time until the next window.
    fn rest(&self, now: Instant) -> Duration {
        let Rule::Windows(_, length) = self.rule else {
            return Duration::ZERO;
        };
        let elapsed = (now - self.begin).as_secs_f64();
        Duration::from_secs_f64(length - elapsed % length)
    }
}

/// What `Retry-After` the endpoint sends.
#[derive(Clone, Copy, Debug)]
enum Asks {
    Nothing,
    Seconds(u64),
    /// Until the end of the window, rounded up to whole seconds.
    Rest,
}

/// A lane's worth of requests in virtual time.
struct Sim {
    pacing: Pacing,
    limiter: Limiter,
    asks: Asks,
    now: Instant,
    paused: Instant,
    in_flight: BinaryHeap<Reverse<(Instant, Instant, bool)>>,
    accepted: usize,
    throttled: usize,
}

impl Sim {
    fn new(rule: Rule, asks: Asks) -> Self {
        let now = crate::edge::clock::instant();
        Self {
            pacing: Pacing::default(),
            limiter: Limiter::new(rule, now),
            asks,
            now,
            paused: now,
            in_flight: BinaryHeap::new(),
            accepted: 0,
            throttled: 0,
        }
    }

    /// Sends as much as possible until `end`, or until `count` requests were accepted.
    fn run(&mut self, end: Instant, count: usize) {
        while self.now < end && self.accepted < count {
            let mut wake = None;
            while self.in_flight.len() < MOST {
                if self.now < self.paused {
                    wake = Some(self.paused);
                    break;
                }
                match self.pacing.ready(self.now) {
                    Ok(()) => {
                        self.pacing.sent(self.now);
                        let accepts = self.limiter.accepts(self.now);
                        let sent = (self.now + TAKES, self.now, accepts);
                        self.in_flight.push(Reverse(sent));
                    }
                    Err(at) => {
                        assert!(at.is_none_or(|at| at > self.now));
                        wake = at;
                        break;
                    }
                }
            }
            let ends = self.in_flight.peek().map(|Reverse((at, ..))| *at);
            self.now = ends.into_iter().chain(wake).min().expect("it goes on");
            while let Some(&Reverse((at, began, accepts))) = self.in_flight.peek()
                && at <= self.now
            {
                self.in_flight.pop();
                self.end(began, accepts);
            }
        }
    }

    fn end(&mut self, began: Instant, accepts: bool) {
        if accepts {
            self.accepted += 1;
            return self.pacing.accepted(began, self.now);
        }
        self.throttled += 1;
        let asked = match self.asks {
            Asks::Nothing => None,
            Asks::Seconds(seconds) => Some(Duration::from_secs(seconds)),
            Asks::Rest => Some(Duration::from_secs(
                self.limiter.rest(self.now).as_secs_f64().ceil() as u64,
            )),
        };
        let pause = self.pacing.throttled(began, asked, self.now, 0.5);
        self.paused = self.paused.max(self.now + pause);
    }
}

#[test]
fn the_rate_of_an_endpoint_is_found_and_hardly_exceeded() {
    let cases = [
        (Rule::Bucket(2.0, 2.0), Asks::Seconds(1), 200),
        (Rule::Windows(2, 1.0), Asks::Seconds(1), 200),
        (Rule::Bucket(2.0, 2.0), Asks::Nothing, 200),
        (Rule::Bucket(10.0, 10.0), Asks::Seconds(5), 2000),
        (Rule::Bucket(100.0, 1.0), Asks::Seconds(1), 10_000),
        (Rule::Bucket(100.0, 100.0), Asks::Nothing, 10_000),
        (Rule::Windows(60, 60.0), Asks::Rest, 300),
        (Rule::Bucket(0.1, 1.0), Asks::Nothing, 60),
        (Rule::Bucket(1.0, 10.0), Asks::Seconds(30), 600),
    ];
    for (rule, asks, count) in cases {
        let rate = match rule {
            Rule::Bucket(rate, _) => rate,
            Rule::Windows(most, length) => f64::from(most) / length,
        };
        let mut sim = Sim::new(rule, asks);
        let begin = sim.now;
        let ideal = Duration::from_secs_f64(f64::from(count) / rate);
        sim.run(begin + 4 * ideal, count as usize);
        let took = sim.now - begin;
        let share = ideal.as_secs_f64() / took.as_secs_f64();
        let throttled = sim.throttled as f64 / f64::from(count);
        assert!(share > 0.6, "{rule:?} {asks:?}: {took:?} for {ideal:?}");
        assert!(throttled < 0.35, "{rule:?} {asks:?}: {throttled}");
    }
}

#[test]
fn a_limit_that_is_lifted_is_soon_no_limit() {
    let mut sim = Sim::new(Rule::Bucket(2.0, 2.0), Asks::Seconds(1));
    let begin = sim.now;
    sim.run(begin + Duration::from_secs(120), usize::MAX);
    sim.limiter = Limiter::new(Rule::Bucket(1e6, 1e6), sim.now);
    let lifted = sim.now;
    sim.run(lifted + Duration::from_secs(100), usize::MAX);
    let before = sim.accepted;
    let from = sim.now;
    sim.run(from + Duration::from_secs(10), usize::MAX);
    let rate = (sim.accepted - before) as f64 / 10.0;
    let possible = MOST as f64 / TAKES.as_secs_f64();
    assert!(rate > 0.8 * possible, "{rate} of {possible} per second");
}

#[test]
fn an_endpoint_that_refuses_all_for_a_while_gets_one_request_at_a_time_and_then_its_load_back() {
    let mut sim = Sim::new(Rule::Bucket(1e6, 1e6), Asks::Nothing);
    let begin = sim.now;
    sim.run(begin + Duration::from_secs(10), usize::MAX);
    let before = sim.accepted;
    sim.limiter = Limiter::new(Rule::Windows(0, 1.0), sim.now);
    let closed = sim.now;
    sim.run(closed + Duration::from_secs(600), usize::MAX);
    assert_eq!(sim.accepted, before);
    let tries = MOST + 6 + 600 / 60;
    assert!((15..=tries).contains(&sim.throttled), "{}", sim.throttled);
    sim.limiter = Limiter::new(Rule::Bucket(1e6, 1e6), sim.now);
    let opened = sim.now;
    sim.run(opened + Duration::from_secs(300), usize::MAX);
    let (before, from) = (sim.accepted, sim.now);
    sim.run(from + Duration::from_secs(10), usize::MAX);
    let rate = (sim.accepted - before) as f64 / 10.0;
    let possible = MOST as f64 / TAKES.as_secs_f64();
    assert!(rate > 0.8 * possible, "{rate} of {possible} per second");
}

#[test]
fn a_trial_that_gets_no_response_is_followed_by_another() {
    let now = crate::edge::clock::instant();
    let mut pacing = Pacing::default();
    pacing.sent(now);
    let pause = pacing.throttled(now, Some(Duration::from_secs(3)), now, 0.5);
    assert_eq!(pause, Duration::from_secs(3));
    let trial = now + pause;
    assert_eq!(pacing.ready(trial), Ok(()));
    pacing.sent(trial);
    assert_eq!(pacing.ready(trial), Err(None));
    // An earlier request that is throttled late lengthens the pause; the trial is still one.
    let late = trial + Duration::from_millis(1);
    assert_eq!(
        pacing.throttled(now, Some(Duration::from_secs(9)), late, 0.5),
        Duration::from_secs(9)
    );
    pacing.failed(trial);
    assert_eq!(pacing.ready(late), Ok(()));
    pacing.sent(late);
    pacing.accepted(late, late);
    assert_eq!(pacing.ready(late), Ok(()));
}

#[test]
fn a_pause_that_was_too_short_grows_beyond_what_was_asked() {
    let mut now = crate::edge::clock::instant();
    let mut pacing = Pacing::default();
    let mut pauses = Vec::new();
    for _ in 0..9 {
        pacing.sent(now);
        let pause = pacing.throttled(now, Some(FIRST_PAUSE), now, 0.5);
        pauses.push(pause.as_secs());
        now += pause;
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    let far = Duration::from_secs(500);
    pacing.sent(now);
    assert_eq!(pacing.throttled(now, Some(far), now, 0.5), far);
}

#[test]
fn a_limit_is_forgotten_in_time() {
    let mut now = crate::edge::clock::instant();
    let mut pacing = Pacing::default();
    pacing.accepted(now, now);
    now += pacing.throttled(now, None, now, 0.5);
    pacing.sent(now);
    pacing.accepted(now, now);
    assert!(pacing.rate().is_some());
    now += FORGET;
    assert_eq!(pacing.tokens(now), usize::MAX);
    for _ in 0..100 {
        assert_eq!(pacing.ready(now), Ok(()));
        pacing.sent(now);
    }
    assert_eq!(pacing.rate(), None);
}

/// Of a simulated run: six requests waited for more than a minute, because the one in the half minute before was taken for
/// what the endpoint accepts.
#[test]
fn after_a_lane_with_few_requests_was_throttled_it_does_not_wait_for_minutes() {
    let begin = crate::edge::clock::instant();
    let at = |seconds: f64| begin + Duration::from_secs_f64(seconds);
    let mut pacing = Pacing::default();
    pacing.sent(begin);
    pacing.accepted(begin, at(0.05));
    let mut now = at(30.0);
    for _ in 0..4 {
        pacing.sent(now);
        let asked = Some(Duration::from_secs(1));
        let pause = pacing.throttled(now, asked, now + TAKES, 1.0);
        now += TAKES + pause;
    }
    pacing.sent(now);
    pacing.accepted(now, now + TAKES);
    let accepted = now;
    for _ in 0..6 {
        while let Err(next) = pacing.ready(now) {
            now = next.unwrap();
        }
        pacing.sent(now);
        pacing.accepted(now, now + TAKES);
    }
    let took = now - accepted;
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(took > Duration::from_secs(2), "at a pace: {took:?}");
}
