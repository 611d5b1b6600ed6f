//! Deferral: a whale delays no neighbour, is parked only beyond the bounds, keeps its order, and nothing is lost or doubled.

use super::*;
use crate::delivery::partition::deferral::PASS_RECORDS;

/// A whale (s0) and neighbours, one of which (s1) has had commands for a while; without spare memory a lane takes 256.
fn with_whale(order: Order) -> Sim {
    let mut sim = Sim::new(7, [order, Order::None, Order::None, Order::None]);
    sim.memory = Memory::Short;
    sim.keep_up(1);
    sim
}

/// Commands of [`Sim::keep_up`].
const BEFORE: i64 = 2;

impl Sim {
    /// A subscription keeps up with what it gets.
    fn keep_up(&mut self, subscription: usize) {
        for _ in 0..BEFORE {
            self.produce(subscription, None);
            self.play(1);
            self.advance(Duration::from_secs(1));
        }
    }

    /// Reads, sends and commits for a while; each endpoint takes 600 a second.
    fn play(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.take(2_000);
            self.answer();
            for _ in 0..12 {
                self.dispatch();
                while !self.in_flight.is_empty() {
                    self.end(0, ok(), false);
                }
            }
            self.commit();
            self.advance(Duration::from_millis(20));
        }
    }

    /// The same until everything is delivered.
    fn play_to_the_end(&mut self) {
        for _ in 0..2_000 {
            self.release(Duration::ZERO);
            self.play(1);
            let is_done = self.durable.snapshot.position.0 == self.durable.log.len() as i64;
            if is_done && self.durable.tiers.is_empty() && self.load == 0 {
                return self.check_lineage();
            }
        }
        panic!(
            "{} stay deferred; {:?} of {}, {} in tiers, {} bytes",
            self.machine.deferred(),
            self.durable.snapshot.position,
            self.durable.log.len(),
            self.durable.tiers.len(),
            self.load,
        );
    }

    fn parked(&self) -> u64 {
        self.moves
    }

    fn all_are_delivered_once(&self) -> bool {
        self.known.values().all(|known| known.delivered == 1)
    }
}

#[test]
fn a_whale_delays_nobody_in_its_partition_and_nothing_of_it_is_parked() {
    let mut sim = with_whale(Order::None);
    let mut neighbours = Vec::new();
    for number in 0..12_000 {
        sim.produce(0, None);
        if number % 200 == 0 {
            neighbours.push(sim.next_id);
            sim.produce(1, None);
        }
    }
    // All that the whale has takes 20 s.
    sim.play(25);
    for number in neighbours {
        let id = format!("msg_{number}");
        assert_eq!(sim.known[&*id].delivered, 1, "{id} waits behind the whale");
    }
    assert!(sim.machine.deferred() > 8_000, "{}", sim.machine.deferred());
    assert_eq!(sim.parked(), 0);
    let length = sim.durable.snapshot.metadata.len();
    assert!(length < 500, "{length}");
    sim.play_to_the_end();
    assert_eq!((sim.parked(), sim.machine.deferred()), (0, 0));
    assert!(sim.all_are_delivered_once());
    // Each pass reads what its lane takes, and little more.
    assert!(
        sim.read_again <= 2 * sim.deferred,
        "{} of {}",
        sim.read_again,
        sim.deferred
    );
}

#[test]
fn while_every_lane_has_a_backlog_nothing_is_put_off() {
    let mut sim = Sim::new(7, [Order::None; 4]);
    sim.memory = Memory::Short;
    for number in 0..3_000 {
        sim.produce(number % 2, None);
    }
    sim.play_to_the_end();
    assert_eq!((sim.deferred, sim.parked()), (0, 0));
    assert!(sim.all_are_delivered_once());
}

#[test]
fn a_whale_with_order_keeps_it_over_a_crash() {
    for order in [Order::PerSubject, Order::Strict] {
        let mut sim = with_whale(order);
        // It reads first what is unfinished.
        sim.produce(0, Some(0));
        sim.play_to_the_end();
        for number in 0..1_000 {
            sim.produce(0, Some(number % 400));
            if number % 100 == 0 {
                sim.produce(1, None);
            }
        }
        sim.play(3);
        assert!(sim.machine.deferred() > 200);
        sim.crashed = true;
        sim.reopen();
        // Those behind others of their subject are parked.
        sim.settle();
    }
}

#[test]
fn a_new_owner_reads_what_was_deferred_from_the_log() {
    let mut sim = with_whale(Order::None);
    for number in 0..6_000 {
        sim.produce(usize::from(number % 50 == 0), None);
    }
    sim.play(10);
    let deferred = sim.machine.deferred();
    assert!(deferred > 4_000, "{deferred}");
    sim.hand_over();
    sim.play_to_the_end();
    assert!(
        sim.all_are_delivered_once(),
        "what was finished is not sent again"
    );
    assert_eq!(sim.parked(), 0);
}

#[test]
fn whales_of_different_density_are_read_a_small_number_of_times() {
    let mut sim = with_whale(Order::None);
    for number in 0..10_000 {
        sim.produce(if number % 10 == 0 { 2 } else { 0 }, None);
        if number % 500 == 0 {
            sim.produce(1, None);
        }
    }
    sim.play(10);
    assert!(sim.machine.deferred() > 5_000);
    sim.play_to_the_end();
    let most = 5 * sim.deferred + 2 * PASS_RECORDS;
    assert!(
        sim.read_again <= most,
        "{} of {}",
        sim.read_again,
        sim.deferred
    );
    assert!(sim.all_are_delivered_once());
}

#[test]
fn what_a_lane_deferred_is_parked_when_its_breaker_opens_or_it_is_paused() {
    for paused in [false, true] {
        let mut sim = with_whale(Order::None);
        for number in 0..3_000 {
            sim.produce(usize::from(number % 50 == 0), None);
        }
        sim.play(5);
        assert!(sim.machine.deferred() > 1_000);
        if paused {
            sim.listed.change(0, Order::None, "paused", sim.wall);
        }
        for _ in 0..60 {
            sim.dispatch();
            while !sim.in_flight.is_empty() {
                sim.end(0, Response::None(Class::Connect), false);
            }
            sim.answer();
            sim.commit();
            sim.advance(Duration::from_millis(100));
        }
        assert_eq!(sim.machine.deferred(), 0, "paused: {paused}");
        assert!(sim.parked() > 1_000, "paused: {paused}");
        sim.settle();
    }
}

#[test]
fn what_retention_deleted_before_it_was_read_again_ends() {
    let mut sim = with_whale(Order::None);
    for number in 0..2_000 {
        sim.produce(usize::from(number % 50 == 0), None);
    }
    sim.play(3);
    assert!(sim.machine.deferred() > 500);
    // Everything but the last ones is gone.
    for offset in 0..1_900 {
        sim.durable.log[offset] = None;
    }
    sim.play(200);
    assert_eq!((sim.machine.deferred(), sim.load), (0, 0));
    assert_eq!(sim.durable.snapshot.position, Position(2_000 + BEFORE));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn deferred_commands_come_to_one_end_in_order_whatever_happens(
        seed in any::<u64>(),
        orders in [order(), order(), order(), order()],
        floods in proptest::collection::vec((0..SUBSCRIPTIONS, 0..SUBSCRIPTIONS, 300..900_usize), 1..4),
        actions in proptest::collection::vec(prop_oneof![3 => action(), 1 => change()], 0..80),
        limit in prop::sample::select(vec![METADATA_LIMIT, 700, 400]),
        // With long ones only, commands wait for probes in their partition.
        tiers in prop::sample::select(vec![TIERS, [150, 300, 600]]),
    ) {
        let mut sim = Sim::new(seed, orders);
        sim.memory = Memory::Short;
        (sim.limit, sim.tiers) = (limit, tiers);
        sim.reopen();
        let mut actions = actions.into_iter();
        for (whale, other, commands) in floods {
            sim.keep_up(other);
            for number in 0..commands {
                let subject = (number % 5 == 0).then_some(number % SUBJECTS);
                sim.produce(if number % 40 == 7 { other } else { whale }, subject);
            }
            sim.play(3);
            run(&mut sim, actions.by_ref().take(20).collect());
        }
        run(&mut sim, actions.collect());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn commands_that_wait_for_a_probe_come_to_one_end_whatever_happens(
        seed in any::<u64>(),
        commands in 20..200_usize,
        actions in proptest::collection::vec(prop_oneof![3 => action(), 1 => change()], 0..80),
    ) {
        let mut sim = Sim::new(seed, [Order::None; SUBSCRIPTIONS]);
        sim.tiers = [150, 300, 600];
        sim.reopen();
        // The pace of the partition gets known.
        for _ in 0..30 {
            sim.advance(Duration::from_secs(1));
        }
        // The breaker opens.
        for _ in 0..4 {
            sim.produce(0, None);
            sim.take(1);
            sim.dispatch();
            sim.end(0, Response::None(Class::Connect), false);
        }
        for number in 0..commands {
            sim.produce(usize::from(number % 7 == 0), None);
        }
        sim.take(commands);
        let waiting = sim.machine.deferred();
        prop_assert!(waiting > commands / 2, "{waiting} of {commands}");
        run(&mut sim, actions);
    }
}
