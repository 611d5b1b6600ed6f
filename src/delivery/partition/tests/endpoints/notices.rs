//! Notices: when they are written, once, and never because of notices.

use super::statuses::{broken_until, events, respond, seconds};
use super::*;
use crate::model::notice::Kind;
use crate::model::status::Failing;
use crate::model::subscription::DisabledBecause;

fn types(world: &Virtual) -> Vec<&'static str> {
    let notices = world.notices.iter();
    notices
        .map(|(_, notice)| notice.kind.event_type())
        .collect()
}

const FAILING: &str = "hookstream.endpoint.failing";
const RECOVERED: &str = "hookstream.endpoint.recovered";
const BEGUN: &str = "hookstream.dead_letters.begun";

#[test]
fn an_endpoint_that_fails_for_long_is_told_of_once_and_when_it_works_again() {
    let mut world = broken_until(seconds(500));
    events(&mut world, seconds(700));
    world.run(seconds(3600));
    let of_endpoint: Vec<_> = world
        .notices
        .iter()
        .filter(|(_, notice)| notice.kind.event_type() != BEGUN)
        .collect();
    let kinds: Vec<_> = of_endpoint
        .iter()
        .map(|(_, one)| one.kind.event_type())
        .collect();
    assert_eq!(kinds, [FAILING, RECOVERED]);
    let (at, notice) = of_endpoint[0];
    let Kind::Failing(failing) = notice.kind else {
        unreachable!()
    };
    assert!((seconds(300)..seconds(310)).contains(at), "{at:?}");
    assert_eq!(
        (&*notice.subscription, &*notice.subscriber),
        ("s0", "owner0")
    );
    assert_eq!(notice.last_failure.as_ref().unwrap().status, Some(503));
    let (at, recovered) = of_endpoint[1];
    assert!(*at >= seconds(500), "{at:?}");
    assert!(matches!(recovered.kind, Kind::Recovered(one) if one.since == failing.since));
    // The status that says so is written with each, and is never dropped.
    let musts = world.statuses.iter().filter(|(_, status)| status.must);
    assert_eq!(musts.count(), world.notices.len());
}

#[test]
fn an_endpoint_that_fails_for_a_moment_is_not_told_of() {
    // Its last probe before the notice is after less than three minutes.
    let mut world = broken_until(seconds(60));
    events(&mut world, seconds(400));
    world.run(seconds(3600));
    assert_eq!(types(&world), [] as [&str; 0]);
}

#[test]
fn a_rollout_repeats_no_notice() {
    let failing = Failing {
        since: EpochMs(1_699_999_000_000),
        noticed: Some(EpochMs(1_699_999_300_000)),
    };
    let before = Status {
        subscription: "s0".into(),
        subscriber: "owner0".into(),
        failing: Some(failing),
        last_dead_letter: Some(EpochMs(1_699_999_999_000)),
        ..Status::default()
    };
    let mut world = broken_until(seconds(400));
    world.only.before = Some(Arc::new(before));
    events(&mut world, seconds(500));
    world.run(seconds(3600));
    assert_eq!(types(&world), [RECOVERED]);
}

#[test]
fn a_subscription_is_disabled_when_its_endpoint_has_failed_for_as_long_as_the_operator_says() {
    let mut world = broken_until(seconds(5000));
    let mut rules = undeferred();
    rules.notices.disable_after = Some(seconds(900));
    world.machine = Partition::new(Arc::new(rules), Window::new(Position(0)));
    events(&mut world, seconds(1000));
    world.run(seconds(1000));
    let last: Vec<_> = types(&world)
        .into_iter()
        .filter(|one| *one != BEGUN)
        .collect();
    assert_eq!(last[..2], [FAILING, "hookstream.endpoint.disabled"]);
    let disabled = |notice: &crate::model::notice::Notice| {
        notice.kind == Kind::Disabled(DisabledBecause::Failing)
    };
    let at = world
        .notices
        .iter()
        .find(|(_, notice)| disabled(notice))
        .unwrap()
        .0;
    assert!((seconds(900)..seconds(915)).contains(&at), "{at:?}");
}

#[test]
fn a_series_of_dead_letters_is_told_of_when_it_begins() {
    let refusing = || Virtual::new("none", 8, |_| (Duration::from_millis(20), respond(400)));
    let mut world = refusing();
    for minute in [0, 1, 30, 80, 120, 200, 201] {
        world.event(seconds(minute * 60), "order.created", None);
    }
    world.run(seconds(4 * 3600));
    assert_eq!(world.dead, 7);
    let at: Vec<u64> = world
        .notices
        .iter()
        .map(|(at, _)| at.as_secs() / 60)
        .collect();
    assert_eq!(at, [0, 200], "a series ends after an hour without");
    let (_, notice) = &world.notices[0];
    assert_eq!(notice.kind, Kind::DeadLettersBegun("permanent-status"));
    assert_eq!(notice.detail.as_deref(), Some("the endpoint responded 400"));
}

#[test]
fn notices_never_cause_notices() {
    // A subscription that gets nothing but notices.
    let mut world = Virtual::new("none", 8, |_| (Duration::from_millis(20), respond(503)));
    let record = serde_json::json!({
        "id": "s0", "subscriber": "owner0", "events": ["hookstream.**"], "url": "https://example.com/",
    });
    let subscription = parse(Some(b"s0"), record.to_string().as_bytes()).unwrap();
    world.only.subscription = Arc::new(subscription);
    events(&mut world, seconds(600));
    world.run(seconds(1200));
    assert!(world.opened > 0, "its breaker opens nevertheless");
    assert_eq!(types(&world), [] as [&str; 0]);

    // One that gets events too, whose endpoint refuses or fails for notices.
    for status in [400, 503] {
        let mut world = Virtual::new("none", 8, move |_| {
            (Duration::from_millis(20), respond(status))
        });
        for number in 0..3000 {
            world.event(
                Duration::from_millis(number * 200),
                "hookstream.endpoint.failing",
                None,
            );
        }
        world.run(seconds(1200));
        assert_eq!(types(&world), [] as [&str; 0], "{status}");
    }
}
