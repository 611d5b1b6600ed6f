//! Lanes: named cases, and a model of what may be in flight.

use proptest::prelude::*;

use super::pace::{MEASURE, SILENT};
use super::*;
use crate::delivery::partition::breaker::tests::{RULES, of};

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

/// All items are of one kind.
fn kind(_: &u32) -> Kind {
    of(Sign::None, false).kind
}

fn candidate(item: &u32) -> Candidate {
    Candidate {
        kind: kind(item),
        attempts: 0,
    }
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
    assert_eq!(sent(lane.next(SPARE, now, candidate)), Some(0));
    assert_eq!(sent(lane.next(SPARE, now, candidate)), Some(1));
    assert_eq!(lane.next(SPARE, now, candidate), Next::Nothing);
    lane.ended(now);
    assert_eq!(sent(lane.next(SPARE, now, candidate)), Some(2));
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
        assert!(matches!(lane.next(SPARE, *now, candidate), Next::Send(..)));
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
        Full::Slow(Slowness::Endpoint)
    );
}

#[test]
fn a_lane_that_hangs_is_known_to_be_slow_soon() {
    let mut now = start();
    let mut lane = lane(1, None, now);
    work(&mut lane, &mut now, Duration::from_millis(1), 2 * MEASURE);
    assert!(matches!(lane.next(SPARE, now, candidate), Next::Send(..)));
    now += 3 * MEASURE;
    lane.offer(0, 1, false, now).unwrap();
    assert_eq!(fill(&mut lane, now), Full::Slow(Slowness::Endpoint));
}

#[test]
fn a_lane_that_hangs_stays_known_for_it_when_its_queue_is_parked() {
    let mut now = start();
    let mut lane = lane(1, None, now);
    lane.offer(0, 1, false, now).unwrap();
    assert!(matches!(lane.next(SPARE, now, candidate), Next::Send(..)));
    for _ in 0..20 {
        now += MEASURE;
        assert_eq!(fill(&mut lane, now), Full::Slow(Slowness::Endpoint));
        assert_eq!(lane.take_queue().count(), QUEUE_COMMANDS);
    }
}

#[test]
fn a_lane_that_hangs_from_its_first_attempt_takes_no_more_than_its_queue_for_long() {
    let now = start();
    let mut lane = lane(1, None, now);
    lane.offer(0, 1, true, now).unwrap();
    assert!(matches!(lane.next(SPARE, now, candidate), Next::Send(..)));
    let full =
        |lane: &mut Lane<u32>, now| (0..).find_map(|item| lane.offer(item, 1, true, now).err());
    let (_, full) = full(&mut lane, now + SILENT).unwrap();
    assert_eq!(full, Full::Slow(Slowness::Endpoint));
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
    lane.next(SPARE, now, candidate);
    now += Duration::from_millis(1);
    lane.ended(now);
    now += Duration::from_secs(3600);
    lane.offer(1, 1, false, now).unwrap();
    lane.next(SPARE, now, candidate);
    assert_eq!(fill(&mut lane, now), Full::Quick);
}

#[test]
fn a_lane_whose_rate_is_below_what_comes_in_parks_for_that() {
    let now = start();
    let mut lane = lane(8, Some((10.0, 1.0)), now);
    assert_eq!(fill(&mut lane, now), Full::Slow(Slowness::Rate));
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
        lane.next(SPARE, now, candidate),
        Next::At(until),
        "a shorter silence does not cut a longer one"
    );
    assert_eq!(lane.closed(now), Some((Slowness::Rate, until)));
    assert_eq!(sent(lane.next(SPARE, until, candidate)), Some(1));
}

#[test]
fn replicas_short_of_requests_leave_every_lane_its_first() {
    let now = start();
    let mut lane = lane(64, None, now);
    for item in 0..64 {
        lane.offer(item, 1, false, now).unwrap();
    }
    let mut spare = 128;
    while sent(lane.next(spare, now, candidate)).is_some() {
        spare -= 1;
    }
    assert!(
        lane.in_flight() <= spare / SHARE_OF_SPARE + 1,
        "{} of 128, {spare} left",
        lane.in_flight()
    );
    assert!(
        sent(self::lane(1, None, now).next(0, now, candidate)).is_none(),
        "nothing is queued"
    );
    let mut other = self::lane(8, None, now);
    other.offer(0, 1, false, now).unwrap();
    assert_eq!(sent(other.next(1, now, candidate)), Some(0));
}

#[test]
fn an_open_breaker_closes_the_lane_until_its_probe() {
    let now = start();
    let mut lane = lane(8, None, now);
    let mut changed = None;
    for item in 0..RULES.failures {
        lane.offer(item, 1, false, now).unwrap();
        let Next::Send(_, permit) = lane.next(SPARE, now, candidate) else {
            panic!("it is closed");
        };
        let report = Report {
            permit,
            kind: kind(&item),
            sign: Sign::Bad,
            end: End::Responded,
        };
        changed = lane.learn(report, now, 0.5);
        lane.ended(now);
    }
    let probe_at = now + RULES.probe;
    assert_eq!(changed, Some(Change::Opened(probe_at)));
    assert_eq!(lane.closed(now), Some((Slowness::Breaker, probe_at)));
    lane.offer(7, 1, false, probe_at).unwrap();
    lane.offer(8, 1, false, probe_at).unwrap();
    let Next::Send(7, probe) = lane.next(SPARE, probe_at, candidate) else {
        panic!("the probe is due");
    };
    assert!(probe.probe);
    assert_eq!(
        lane.next(SPARE, probe_at, candidate),
        Next::Nothing,
        "one probe at a time"
    );
    let report = Report {
        permit: probe,
        kind: kind(&7),
        sign: Sign::Good,
        end: End::Responded,
    };
    assert_eq!(lane.learn(report, probe_at, 0.5), Some(Change::Closed));
    assert_eq!(sent(lane.next(SPARE, probe_at, candidate)), Some(8));
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
                begin + TIME * u32::try_from(number).unwrap() / u32::try_from(pace * 40).unwrap(),
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
            match lane.next(SPARE, now, candidate) {
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

/// Parked in proportion to their age, a few would return at a time, and each time later.
#[test]
fn after_throttling_commands_return_at_the_pace_of_the_subscription() {
    let begin = start();
    for rate in [None, Some((2.0, 2.0))] {
        let mut lane = lane(8, rate, begin);
        for (number, end) in [End::Responded, End::Throttled(Some(Duration::from_secs(3)))]
            .into_iter()
            .enumerate()
        {
            lane.offer(0, 1, false, begin).unwrap();
            let now = begin + Duration::from_secs(number as u64);
            let Next::Send(_, permit) = lane.next(SPARE, now, candidate) else {
                panic!("nothing holds it up");
            };
            let report = Report {
                permit,
                kind: kind(&0),
                sign: Sign::None,
                end,
            };
            lane.learn(report, now, 0.5);
            lane.ended(now);
        }
        let now = begin + Duration::from_secs(4);
        assert!(
            lane.pacing.is_searching(),
            "the limit of the endpoint is unknown"
        );
        fill(&mut lane, now);
        let ahead = Duration::from_secs(1) * u32::try_from(lane.queued()).unwrap() / 2;
        for number in 0..100 {
            let turn = ahead + Duration::from_millis(500) * number;
            assert_eq!(lane.turn(now), rate.map(|_| turn), "{rate:?}");
        }
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
        assert!(matches!(free.next(SPARE, now, candidate), Next::Send(..)));
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
    assert!(matches!(
        limited.next(SPARE, now, candidate),
        Next::Send(..)
    ));
    assert!(matches!(
        limited.next(SPARE, now, candidate),
        Next::Send(..)
    ));
    assert_eq!(limited.runnable(SPARE, now), 0);
    assert_eq!(limited.runnable(SPARE, now + Duration::from_millis(101)), 1);

    let mut dead = lane(8, None, now);
    (0..100).for_each(|item| dead.push(item, 1, now));
    let mut opened = false;
    while !opened {
        let Next::Send(_, permit) = dead.next(SPARE, now, candidate) else {
            panic!("the breaker is closed");
        };
        let report = Report {
            permit,
            kind: kind(&0),
            sign: Sign::Bad,
            end: End::Responded,
        };
        opened = dead.learn(report, now, 0.5).is_some();
        dead.ended(now);
    }
    assert_eq!(dead.runnable(SPARE, now), 0, "its breaker is open");
    let probe = now + RULES.probe;
    assert_eq!(dead.runnable(SPARE, probe), 1, "the probe");
    assert!(matches!(dead.next(SPARE, probe, candidate), Next::Send(..)));
    assert_eq!(dead.runnable(SPARE, probe), 0);
}

#[test]
fn a_lane_without_neighbours_gets_what_the_share_of_the_spare_allows() {
    let now = start();
    for requests in [1, 4, 9, 100, 1024] {
        let mut lane = lane(usize::MAX, None, now);
        (0..2 * requests as u32).for_each(|item| lane.push(item, 1, now));
        while matches!(
            lane.next(requests - lane.in_flight(), now, candidate),
            Next::Send(..)
        ) {}
        assert_eq!(lane.in_flight(), most_alone(requests), "of {requests}");
        assert_eq!(lane.runnable(most_alone(requests), now), 0);
    }
}

proptest! {
    #[test]
    fn what_is_runnable_can_be_sent_at_once_and_nothing_more(
        max_in_flight in 1..20_usize,
        rate in proptest::option::of((0.5..500.0_f64, 1..20_u32)),
        steps in proptest::collection::vec((0..7_u8, 0..3000_u64), 1..60),
    ) {
        let mut now = start();
        let rate = rate.map(|(per_second, burst)| (per_second, f64::from(burst)));
        let mut lane = lane(max_in_flight, rate, now);
        let mut permits = VecDeque::new();
        for (step, time) in steps {
            match step {
                0 | 1 => (0..30).for_each(|item| lane.push(item, 1, now)),
                2 => lane.hold_off(now + Duration::from_millis(time)),
                3..=5 => {
                    now += Duration::from_millis(time);
                    for permit in permits.drain(..) {
                        let (sign, end) = match step {
                            3 => (Sign::Good, End::Responded),
                            4 => (Sign::Bad, End::NoResponse),
                            _ => (Sign::None, End::Throttled(None)),
                        };
                        lane.learn(Report { permit, kind: kind(&0), sign, end }, now, 0.5);
                        lane.ended(now);
                    }
                }
                _ => now += Duration::from_millis(time),
            }
            let runnable = lane.runnable(SPARE, now);
            let mut sent = 0;
            while let Next::Send(_, permit) = lane.next(SPARE, now, candidate) {
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
                match lane.next(SPARE, now, candidate) {
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
            match lane.next(SPARE, now, candidate) {
                Next::Send(..) => {}
                Next::At(at) => {
                    now = at;
                    prop_assert!(matches!(lane.next(SPARE, now, candidate), Next::Send(..)));
                }
                Next::Nothing => prop_assert!(false, "there is something to send"),
            }
        }
    }
}
