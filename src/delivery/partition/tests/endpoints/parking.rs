//! What an outage of an endpoint costs: records written for each of its commands that waits.

use super::*;
use crate::model::tiers::LONGEST_PARK;

const HOUR: Duration = Duration::from_secs(3600);
/// Goal: one round of two appends in ten minutes.
const GOAL: f64 = 12.0;
const PARTS: u64 = 6;

/// With the default tiers.
pub(super) fn with_default_tiers() -> Rules {
    let delays = [5, 30, 120, 600, 3600, 21_600].map(Duration::from_secs);
    Rules {
        tiers: Tiers::new(delays.to_vec()).unwrap(),
        ..undeferred()
    }
}

/// The appends for each command that waits, by hour of an outage that begins with `first` commands and gets `more` during
/// each hour.
fn outage(order: &str, hours: u32, first: usize, more: u32) -> (Virtual, Vec<f64>) {
    let up = HOUR * hours;
    let mut world = Virtual::with(with_default_tiers(), order, 8, move |seen| {
        let is_down = seen.at < up;
        (
            QUICK,
            if is_down {
                Response::None(Class::Connect)
            } else {
                ok()
            },
        )
    });
    for number in 0..first {
        world.event(Duration::ZERO, &format!("type{}", number % 3), None);
    }
    for number in 0..more * hours {
        world.event(HOUR * number / more.max(1), "type0", None);
    }
    let mut costs = Vec::new();
    for hour in 0..hours {
        let (mut waiting, before) = (0, world.appends);
        for part in 1..=PARTS {
            world.run(HOUR * hour + HOUR * part as u32 / PARTS as u32);
            waiting += world.events_made - world.events.len() - world.dead - world.delivered.len();
        }
        let mean = waiting as f64 / PARTS as f64;
        costs.push((world.appends - before) as f64 / mean);
    }
    (world, costs)
}

#[test]
fn a_command_that_waits_for_an_endpoint_costs_two_appends_in_ten_minutes() {
    for (order, first, more) in [("none", 300, 0), ("none", 100, 300), ("strict", 100, 60)] {
        let (mut world, costs) = outage(order, 4, first, more);
        println!("{order}, {first} and {more} an hour: appends {costs:.1?}");
        // Until the delay between probes is at its longest, there are more of them.
        assert!(costs[0] <= 2.2 * GOAL, "{order}: {costs:?}");
        assert!(
            costs[1..].iter().all(|&cost| cost <= GOAL + 0.2),
            "{order}: {costs:?}"
        );
        // A probe within ten minutes, and then the longest wait.
        world.run(HOUR * 4 + 2 * LONGEST_PARK + Duration::from_secs(60));
        let ended = world.delivered.len() + world.dead;
        assert_eq!(
            ended, world.events_made,
            "{order}: it works, and something waits"
        );
        assert!(world.dead < 20, "{order}: {} are dead", world.dead);
    }
}

#[test]
fn a_subscription_that_wants_probes_often_gets_its_commands_back_as_often() {
    let up = HOUR;
    let mut world = Virtual::with(with_default_tiers(), "none", 8, move |seen| {
        (
            QUICK,
            if seen.at < up {
                Response::None(Class::Connect)
            } else {
                ok()
            },
        )
    });
    world.only.limits.breaker.max_probe = Duration::from_secs(30);
    for _ in 0..300 {
        world.event(Duration::ZERO, "order", None);
    }
    world.run(up + Duration::from_secs(200));
    assert_eq!(world.delivered.len() + world.dead, 300);
    let late = world.last() - up;
    // A probe, and then a wait of at most two hops.
    assert!(late <= Duration::from_secs(30 + 60 + 5), "{late:?}");
}

#[test]
fn candidates_for_a_probe_do_not_hold_back_the_position_for_long() {
    let mut world = Virtual::new("none", 8, |_| (QUICK, Response::None(Class::Connect)));
    for number in 0..100 {
        world.event(Duration::from_secs(number), "order", None);
    }
    world.run(Duration::from_secs(95));
    let before = world.machine.window.position();
    let is_open = |world: &Virtual| world.machine.window.unfinished() > 0;
    assert!(is_open(&world));
    // Others have had so many that have ended.
    world.offset += 300_000;
    world.run(Duration::from_secs(98));
    let after = world.machine.window.position();
    assert!(after.0 >= before.0 + 300_000, "{before:?} {after:?}");
    assert!(is_open(&world), "there is another candidate");
}
