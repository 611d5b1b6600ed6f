//! What a lane writes about its endpoint, and what its next owner continues.

use super::*;
use crate::model::status::{EndpointState, Failing, Failure, Status};

pub(super) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(super) fn respond(status: u16) -> Response {
    Response::Status {
        status,
        retry_after: None,
    }
}

/// An endpoint that fails until then.
pub(super) fn broken_until(end: Duration) -> Virtual {
    Virtual::new("none", 8, move |seen| {
        let status = if seen.at < end { 503 } else { 200 };
        (Duration::from_millis(20), respond(status))
    })
}

/// Events every 200 ms.
pub(super) fn events(world: &mut Virtual, over: Duration) {
    for number in 0..over.as_millis() as u64 / 200 {
        world.event(Duration::from_millis(number * 200), "order.created", None);
    }
}

#[test]
fn an_endpoint_that_fails_is_told_with_since_when_and_why_until_it_works() {
    let mut world = broken_until(seconds(60));
    events(&mut world, seconds(90));
    world.run(seconds(600));
    assert!(world.delivered.len() > 400, "{}", world.delivered.len());
    let statuses = &world.statuses;
    let (first, status) = &statuses[0];
    assert!(*first < seconds(2), "{first:?}");
    let failure = status.last_failure.as_ref().unwrap();
    assert_eq!((&*failure.class, failure.status), ("5xx", Some(503)));
    assert!(!failure.webhook_id.is_empty());
    assert_eq!(status.last_success, None);

    let is_open = |status: &Status| status.state == EndpointState::BreakerOpen;
    let opened: Vec<_> = statuses.iter().filter(|(_, one)| is_open(one)).collect();
    assert!(opened[0].0 < seconds(5), "{:?}", opened[0].0);
    let since = opened[0].1.failing.unwrap();
    for (at, status) in &opened {
        assert_eq!(status.failing, Some(since), "at {at:?}");
        assert!(status.breaker_open_until.is_some());
    }
    let (_, last) = statuses.last().unwrap();
    assert_eq!((last.state, last.failing), (EndpointState::Active, None));
    assert_eq!(last.breaker_open_until, None);
    assert!(last.last_success > last.last_failure.as_ref().map(|last| last.at));
    assert!(
        last.attempts["2xx"] > 0 && last.attempts["5xx"] > 0,
        "{last:?}"
    );
    // While it fails in the same way, only now and then; while it works, in rounds.
    let count = statuses.len();
    let ends = statuses.last().unwrap().0.as_secs() as usize;
    assert!(count < 15 + ends / 4, "{count} in {ends} s");
}

#[test]
fn an_endpoint_that_works_is_told_of_in_rounds() {
    let mut world = Virtual::new("none", 8, |_| (Duration::from_millis(5), respond(200)));
    events(&mut world, seconds(100));
    world.run(seconds(200));
    let count = world.statuses.len();
    assert!((9..=12).contains(&count), "{count}");
    let (_, last) = world.statuses.last().unwrap();
    assert!(last.last_success.is_some() && last.last_failure.is_none());
}

#[test]
fn the_first_line_of_the_response_is_the_error() {
    let mut world = broken_until(seconds(1));
    world.event(Duration::ZERO, "order.created", None);
    world.run(Duration::from_millis(500));
    world.apply(Event::Responded(0, Offset(7), "of another".into()));
    world.apply(Event::Responded(0, Offset(0), "upstream is down".into()));
    world.apply(Event::Stop);
    let (_, last) = world.statuses.last().unwrap();
    let failure = last.last_failure.as_ref().unwrap();
    assert_eq!(&*failure.error, "upstream is down");
}

#[test]
fn the_next_owner_continues_what_the_former_one_knew() {
    let since = Failing {
        since: EpochMs(1_699_999_000_000),
        noticed: Some(EpochMs(1_699_999_300_000)),
    };
    let at = EpochMs(1_699_999_990_000);
    let before = Status {
        subscription: "s0".into(),
        subscriber: "owner0".into(),
        state: EndpointState::BreakerOpen,
        failing: Some(since),
        last_failure: Some(Failure::new(at, Class::Tls, None, "expired", "msg_1")),
        last_success: Some(EpochMs(1_699_990_000_000)),
        ..Status::default()
    };
    // It fails on.
    let mut world = broken_until(seconds(30));
    world.only.before = Some(Arc::new(before.clone()));
    events(&mut world, seconds(10));
    world.run(seconds(20));
    let open: Vec<_> = world.statuses.iter().map(|(_, one)| one).collect();
    assert!(
        open.iter().all(|one| one.failing == Some(since)),
        "{open:?}"
    );
    assert!(
        open.iter()
            .all(|one| one.last_success == before.last_success)
    );

    // It works by now.
    let mut world = broken_until(Duration::ZERO);
    world.only.before = Some(Arc::new(before.clone()));
    world.event(Duration::ZERO, "order.created", None);
    world.run(seconds(5));
    world.apply(Event::Stop);
    let (_, last) = world.statuses.last().unwrap();
    assert_eq!((last.failing, last.state), (None, EndpointState::Active));
    assert_eq!(
        last.last_failure, before.last_failure,
        "it is still the last one"
    );
    assert!(last.last_success > before.last_success);

    // What the former owner wrote last comes after the lane began.
    let mut world = broken_until(seconds(30));
    world.event(Duration::ZERO, "order.created", None);
    world.run(Duration::from_millis(150));
    world.only.before = Some(Arc::new(before.clone()));
    world.only.statuses += 1;
    world.event(seconds(1), "order.created", None);
    world.run(seconds(2));
    world.apply(Event::Stop);
    let (_, last) = world.statuses.last().unwrap();
    assert_eq!(last.failing, Some(since));
}

#[test]
fn what_is_new_is_written_when_the_partition_leaves() {
    let mut world = broken_until(Duration::ZERO);
    world.event(seconds(1), "order.created", None);
    world.run(seconds(2));
    let before = world.statuses.len();
    world.apply(Event::Stop);
    assert!(world.statuses.len() <= before + 1);
    let (_, last) = world.statuses.last().unwrap();
    assert!(last.last_success.is_some());
}

#[test]
fn a_changed_subscription_is_probed_at_once() {
    let fixed = seconds(60);
    let mut world = broken_until(fixed);
    events(&mut world, seconds(120));
    world.run(fixed);
    let (_, last) = world.statuses.last().unwrap();
    let due = last.breaker_open_until.unwrap().since(world.wall);
    assert!(due > seconds(2), "the next probe is due in {due:?}");
    assert!(world.delivered.is_empty());
    // Its URL or secret changed, or an operator wants a probe.
    world.only.subscription = Arc::new((*world.only.subscription).clone());
    world.only.version += 1;
    world.run(fixed + seconds(1));
    assert!(!world.delivered.is_empty(), "it is probed within a second");
    let (_, last) = world.statuses.last().unwrap();
    assert_eq!(last.state, EndpointState::Active);
}
