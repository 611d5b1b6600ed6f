//! Lanes that are forgotten, and those that are not.

use super::*;

const REFUSED: Response = Response::None(Class::Connect);

/// Lets each of these subscriptions have a command, which ends with this response.
fn with_lanes(sim: &mut Sim, which: impl IntoIterator<Item = usize>, response: Response) {
    let mut count = 0;
    for number in which {
        sim.produce(number, None);
        count += 1;
    }
    sim.take(count);
    loop {
        sim.dispatch();
        if sim.in_flight.is_empty() {
            break;
        }
        while !sim.in_flight.is_empty() {
            sim.end(0, response, false);
        }
    }
    sim.commit();
}

fn pass(sim: &mut Sim, seconds: u64) {
    for _ in 0..seconds {
        sim.advance(Duration::from_secs(1));
        sim.commit();
    }
}

#[test]
fn a_lane_without_commands_is_forgotten_and_made_again() {
    let mut sim = Sim::new(1, [Order::None; SUBSCRIPTIONS]);
    with_lanes(&mut sim, [0, 1], ok());
    assert_eq!(sim.machine.lanes.len(), 2);
    pass(&mut sim, 590);
    assert_eq!(sim.machine.lanes.len(), 2);
    with_lanes(&mut sim, [1], ok());
    pass(&mut sim, 60);
    assert_eq!(sim.machine.lanes.len(), 1, "the other had a command");
    let mut attempts = Vec::new();
    sim.machine.take_attempts(&mut attempts);
    assert_eq!(attempts.len(), 2, "those of a forgotten lane still count");
    with_lanes(&mut sim, [0], ok());
    assert_eq!(sim.machine.lanes.len(), 2);
    sim.settle();
}

#[test]
fn a_lane_that_fails_or_keeps_an_order_is_kept() {
    for (order, response, attempts) in [
        // The breaker opens.
        (Order::None, REFUSED, 4),
        (Order::PerSubject, ok(), 1),
    ] {
        let mut sim = Sim::new(1, [order; SUBSCRIPTIONS]);
        for _ in 0..attempts {
            with_lanes(&mut sim, [0], response);
        }
        sim.durable.tiers.clear();
        pass(&mut sim, 1_200);
        assert_eq!(sim.machine.lanes.len(), 1, "{order:?}, {response:?}");
    }
}

#[test]
fn one_failure_keeps_no_lane_for_ever() {
    let mut sim = Sim::new(1, [Order::None; SUBSCRIPTIONS]);
    with_lanes(&mut sim, [0], status(500));
    sim.durable.tiers.clear();
    let (hour, lanes) = (Duration::from_secs(3600), |sim: &Sim| {
        sim.machine.lanes.len()
    });
    for _ in 0..24 {
        sim.advance(hour);
        assert_eq!(lanes(&sim), 1, "its breaker counts the failures of a day");
    }
    sim.advance(2 * hour);
    assert_eq!(lanes(&sim), 0);
}

#[test]
fn of_very_many_lanes_those_that_have_learned_nothing_are_forgotten_soon() {
    const MANY: usize = 5_000;
    /// As many as are kept.
    const KEPT: usize = 4_096;
    let mut sim = Sim::new(1, [Order::None; SUBSCRIPTIONS]);
    for number in SUBSCRIPTIONS..MANY {
        sim.listed.put(number, Order::None, "active");
    }
    with_lanes(&mut sim, [0, 1], status(500));
    sim.durable.tiers.clear();
    // One waits for its rate limit.
    with_lanes(&mut sim, [3, 3], ok());
    with_lanes(&mut sim, SUBSCRIPTIONS..MANY, ok());
    let lanes = |sim: &Sim| sim.machine.lanes.len();
    assert_eq!(lanes(&sim), MANY - 1);
    pass(&mut sim, 9);
    assert_eq!(lanes(&sim), MANY - 1);
    // The last ones are used again.
    with_lanes(&mut sim, MANY - 2_000..MANY, ok());
    pass(&mut sim, 6);
    assert_eq!(lanes(&sim), KEPT);
    for number in [0, 1, MANY - 2_000, MANY - 1] {
        let name = format!("s{number}");
        assert!(sim.machine.by_subscription.contains_key(&*name), "{name}");
    }
}

#[test]
fn the_statuses_of_all_lanes_are_written_also_while_more_are_busy_than_are_written_at_a_time() {
    const MANY: usize = 300;
    let mut sim = Sim::new(1, [Order::None; SUBSCRIPTIONS]);
    for number in SUBSCRIPTIONS..MANY {
        sim.listed.put(number, Order::None, "active");
    }
    for _ in 0..40 {
        for number in SUBSCRIPTIONS..MANY {
            sim.produce(number, None);
        }
        sim.take(MANY);
        loop {
            sim.dispatch();
            if sim.in_flight.is_empty() {
                break;
            }
            sim.end(0, ok(), false);
        }
        sim.advance(Duration::from_secs(1));
        sim.commit();
    }
    assert_eq!(sim.statuses.len(), MANY - SUBSCRIPTIONS);
}
