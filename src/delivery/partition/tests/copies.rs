//! Commands that fan-out writes again.

use super::*;
use crate::delivery::partition::effect::Notice;
use crate::model::invalid_record::{Extent, InvalidRecord};

fn sim() -> Sim {
    Sim::new(3, [Order::None; SUBSCRIPTIONS])
}

/// Takes the records of the log that are not taken, with these notices.
fn notices(sim: &mut Sim) -> Vec<Notice> {
    let end = sim.durable.log.len();
    let incoming = (sim.read_to..end).filter_map(|at| {
        let command = sim.durable.log[at].clone()?;
        Some(Incoming {
            offset: Offset(at as i64),
            content: Ok(Box::new(command)),
            mark: sim.marks.get(&at).copied(),
        })
    });
    let incoming: Vec<_> = incoming.collect();
    sim.load += incoming.iter().map(Incoming::weight).sum::<usize>();
    sim.read_to = end;
    let env = Env {
        now: sim.now,
        wall: sim.wall,
        memory: sim.memory,
        subscriptions: &sim.listed,
    };
    let mut effects = Effects::default();
    sim.machine
        .apply(Event::Taken(incoming), &env, &mut sim.random, &mut effects);
    let each = effects.list.into_iter();
    each.filter_map(|effect| match effect {
        Effect::Notice(notice) => Some(notice),
        _ => None,
    })
    .collect()
}

#[test]
fn a_copy_is_finished_at_once_and_not_sent() {
    let mut sim = sim();
    for number in 0..6 {
        sim.produce(number % SUBSCRIPTIONS, None);
    }
    sim.take(100);
    sim.write_again(0, 3);
    sim.write_again(1, 2);
    sim.take(100);
    assert_eq!(sim.recognised, 5);
    sim.run_to_the_end(ok());
    assert!(sim.known.values().all(|known| known.delivered == 1));
    assert_eq!(sim.durable.snapshot.position.0, 11);
}

#[test]
fn a_record_that_waits_for_its_lane_is_not_taken_for_its_own_copy() {
    let mut sim = sim();
    sim.memory = Memory::Short;
    for _ in 0..QUEUE_COMMANDS * 3 {
        sim.produce(0, None);
    }
    sim.take(QUEUE_COMMANDS * 3);
    for _ in 0..5 {
        sim.advance(Duration::from_millis(100));
    }
    assert_eq!(sim.recognised, 0);
    sim.run_to_the_end(ok());
    assert!(sim.known.values().all(|known| known.delivered > 0));
    assert_eq!(sim.recognised, 0);
}

#[test]
fn records_that_a_former_owner_has_finished_count_as_seen() {
    let mut sim = sim();
    for number in 0..4 {
        sim.produce(number % SUBSCRIPTIONS, None);
    }
    sim.take(100);
    sim.dispatch();
    // The first one hangs.
    let first = sim.in_flight.iter().position(|one| one.offset.0 == 0);
    let first = sim.in_flight.swap_remove(first.unwrap());
    while !sim.in_flight.is_empty() {
        sim.end(0, ok(), false);
    }
    sim.commit();
    assert_eq!(sim.durable.snapshot.position, Position(0));
    assert_eq!(first.offset, Offset(0));
    sim.crashed = true;
    sim.reopen();
    sim.write_again(0, 2);
    sim.write_again(1, 2);
    sim.take(100);
    assert_eq!(sim.recognised, 4);
    sim.run_to_the_end(ok());
    assert!(sim.known.values().all(|known| known.delivered == 1));
}

#[test]
fn a_new_owner_recognises_copies_of_what_lies_before_the_committed_position() {
    let mut sim = sim();
    for number in 0..4 {
        sim.produce(number % SUBSCRIPTIONS, None);
    }
    sim.run_to_the_end(ok());
    assert_eq!(sim.durable.snapshot.position, Position(4));
    sim.reopen();
    sim.write_again(0, 2);
    sim.run_to_the_end(ok());
    assert_eq!(sim.recognised, 2);
    assert!(sim.known.values().all(|known| known.delivered == 1));
}

#[test]
fn a_copy_of_a_record_that_is_no_command_is_not_set_aside_again() {
    let mut sim = sim();
    let record = |offset: i64| InvalidRecord {
        key: None,
        value: None,
        headers: Vec::new(),
        error: "the header webhook-id is missing".into(),
        topic: "webhook-commands".into(),
        partition: 0,
        offset: Offset(offset),
        extent: Extent::Whole,
    };
    sim.produce(0, None);
    let mark = sim.marks[&0];
    let incoming: Vec<_> = (0..2)
        .map(|offset| Incoming {
            offset: Offset(offset),
            content: Err(Box::new(record(offset))),
            mark: Some(mark),
        })
        .collect();
    sim.load += incoming.iter().map(Incoming::weight).sum::<usize>();
    sim.apply(Event::Taken(incoming));
    assert_eq!((sim.outcomes.len(), sim.recognised), (1, 1));
    assert_eq!(sim.outcomes[0].offset, Some(Offset(0)));
}

#[test]
fn commands_without_a_source_are_never_copies() {
    let mut sim = sim();
    for number in 0..4 {
        sim.produce(number % SUBSCRIPTIONS, None);
    }
    sim.marks.clear();
    sim.run_to_the_end(ok());
    assert_eq!(sim.recognised, 0);
    assert!(sim.known.values().all(|known| known.delivered == 1));
    assert_eq!(sim.durable.snapshot.metadata, "", "as before");
}

#[test]
fn a_lost_write_is_reported_and_counts_until_it_is_written_again() {
    let mut sim = sim();
    for _ in 0..5 {
        // Of source 1 and 0 in turn.
        sim.produce(0, None);
    }
    // The second one of source 1 is lost.
    sim.durable.log[2] = None;
    let marks: Vec<_> = [2, 4].iter().map(|at| sim.marks[at]).collect();
    let found = notices(&mut sim);
    assert_eq!(
        found,
        [Notice::Hole(Offset(4), Box::new(marks[1]))],
        "{found:?}"
    );
    assert_eq!(sim.machine.holes(), 1);
    sim.write_again(1, 2);
    assert_eq!(sim.marks[&5].at, marks[0].at);
    assert_eq!(notices(&mut sim), []);
    assert_eq!(sim.machine.holes(), 0);
}

#[test]
fn a_new_owner_commits_no_coverage_of_records_that_it_has_not_read_again() {
    let mut sim = sim();
    for number in 0..3 {
        sim.produce(number, None);
    }
    sim.take(100);
    sim.dispatch();
    // The last one is delivered while the first two hang.
    let last = sim.in_flight.iter().position(|one| one.offset.0 == 2);
    sim.end(last.unwrap(), ok(), false);
    sim.commit();
    assert_eq!(sim.durable.snapshot.position, Position(0));
    sim.crashed = true;
    sim.reopen();
    sim.take(2);
    sim.dispatch();
    while !sim.in_flight.is_empty() {
        sim.end(0, ok(), false);
    }
    sim.commit();
    assert_eq!(
        sim.durable.snapshot.position,
        Position(2),
        "2 is not read again"
    );
    sim.reopen();
    sim.write_again(1, 2);
    sim.write_again(0, 1);
    sim.run_to_the_end(ok());
    assert_eq!(sim.recognised, 3);
    assert_eq!(sim.known["msg_2"].delivered, 1);
}
