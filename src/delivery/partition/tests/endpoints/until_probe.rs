//! Commands that arrive while a breaker waits for its next probe.

use super::parking::with_default_tiers;
use super::*;
use crate::delivery::partition::until_probe::LATE;
use crate::model::tiers::LONGEST_PARK;

const UP: Duration = Duration::from_secs(1_800);

/// An endpoint that is down for half an hour, in which it gets so many commands.
fn outage(rules: Rules, order: &str, commands: u32) -> Virtual {
    let mut world = Virtual::with(rules, order, 64, |seen| {
        let is_down = seen.at < UP;
        let refused = Response::None(Class::Connect);
        (QUICK, if is_down { refused } else { ok() })
    });
    for number in 0..commands {
        world.event(UP * number / commands, "order", None);
    }
    world
}

fn deferring() -> Rules {
    Rules {
        defers: true,
        ..with_default_tiers()
    }
}

/// Runs until all have ended; returns how long after the first success that was.
fn after_success(world: &mut Virtual) -> Duration {
    world.run(UP + 3 * LONGEST_PARK);
    assert_eq!(world.delivered.len() + world.dead, world.events_made);
    assert!(world.dead < 20, "{}", world.dead);
    assert_eq!(world.machine.deferred(), 0);
    world.last() - world.delivered[0].at
}

#[test]
fn a_backlog_is_delivered_with_the_probe_that_succeeds() {
    // Delays between probes differ.
    for seed in 1..=6 {
        let mut world = outage(deferring(), "none", 15_000);
        world.random = fastrand::Rng::with_seed(seed);
        let after = after_success(&mut world);
        println!(
            "{seed}: {after:?}, {} appends, {} reads",
            world.appends, world.read_again
        );
        let most = LATE + Duration::from_secs(5);
        assert!(after <= most, "{seed}: {after:?}");
        assert!(world.read_again <= 3 * 15_000, "{}", world.read_again);
    }
}

#[test]
fn parking_alone_takes_minutes_more_and_more_appends() {
    let mut world = outage(deferring(), "none", 15_000);
    after_success(&mut world);
    let mut parking = outage(with_default_tiers(), "none", 15_000);
    let after = after_success(&mut parking);
    assert!(after > 2 * LATE, "{after:?}");
    let (appends, more) = (world.appends, parking.appends);
    assert!(appends < more, "{appends} {more}");
}

#[test]
fn a_busy_partition_holds_back_its_position_for_no_probe() {
    // 100 a second are 60,000 until a probe.
    let mut world = outage(deferring(), "none", 180_000);
    let after = after_success(&mut world);
    assert_eq!(world.read_again, 0);
    assert!(after <= LONGEST_PARK, "{after:?}");
}

#[test]
fn with_order_nothing_waits_in_its_partition() {
    let mut world = outage(deferring(), "strict", 300);
    after_success(&mut world);
    assert_eq!(world.read_again, 0);
}

#[test]
fn a_lane_without_a_candidate_probes_with_what_waits() {
    let mut world = outage(deferring(), "none", 15_000);
    world.run(UP - Duration::from_secs(10));
    let waiting = world.machine.deferred();
    assert!(waiting > 100, "{waiting}");
    // Nothing else comes, and what its lane held is gone.
    world.events.clear();
    world.waiting.clear();
    world.looks.clear();
    let Virtual { machine, .. } = &mut world;
    let mut held = 0;
    for entry in machine.lanes.values_mut() {
        for taken in entry.lane.take_queue() {
            machine.window.finish(taken.offset);
            held += 1;
        }
    }
    assert!(held > 0);
    world.events_made = waiting;
    world.run(UP + LONGEST_PARK);
    assert_eq!(world.delivered.len(), waiting);
}

#[test]
fn a_burst_is_read_again_a_few_times_at_most() {
    let mut world = outage(deferring(), "none", 3_000);
    // What others had waits in the partition, too, for a while.
    for _ in 0..60_000 {
        world.event(UP / 2, "order", None);
    }
    world.events.make_contiguous().sort_by_key(|(at, _)| *at);
    after_success(&mut world);
    assert!(world.read_again <= 3 * 63_000, "{}", world.read_again);
}

#[test]
fn nothing_waits_beyond_its_maximum_age() {
    let mut world = outage(deferring(), "none", 3_000);
    world.only.max_age = Duration::from_secs(400);
    world.run(UP);
    assert!(world.dead > 1_000, "{}", world.dead);
    let age = world.oldest_dead;
    // What the tiers may add.
    assert!(age <= Duration::from_secs(440), "{age:?}");
}

#[test]
fn what_waits_is_parked_when_its_subscription_is_paused() {
    let mut world = outage(deferring(), "none", 15_000);
    world.run(UP - Duration::from_secs(100));
    assert!(world.machine.deferred() > 100);
    world.only.is_paused = true;
    world.only.subscription = Arc::new((*world.only.subscription).clone());
    world.only.version += 1;
    world.run(UP - Duration::from_secs(90));
    assert_eq!(world.machine.deferred(), 0);
}
