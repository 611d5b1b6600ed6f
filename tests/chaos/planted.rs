//! The checker is checked: a history in which all is well passes, and each planted fault is found under its name.

use std::collections::HashSet;
use std::time::Duration;

use crate::checker::{INVARIANTS, Promise, check};
use crate::history::{Copy, History, Injected, Place, Position, Request, Sent, What};
use crate::truth::{End, Kind, Matched, SUBSCRIPTIONS, accepts};

const EVENTS: u32 = 60;

/// What a run without any trouble leaves: each copy and request as the design says, on a clock of its own.
fn perfect() -> History {
    let mut history = History::default();
    let mut next = [0_i64; 3];
    for event in 1..=EVENTS {
        history.sent.push(Sent {
            event,
            acknowledged: true,
            records: 1,
            at: i64::from(event) * 100_000 - 50,
        });
        for (number, kind) in SUBSCRIPTIONS.into_iter().enumerate() {
            if kind.matches(event) == Matched::Yes {
                live(&mut history, &mut next, event, number, kind);
            }
        }
    }
    let all: Vec<i64> = (0..next[0]).collect();
    history.positions = [
        (10, 0, all[5..9].to_vec()),
        (20, 9, vec![11]),
        (30, next[0], Vec::new()),
    ]
    .into_iter()
    .map(|(at, position, finished)| Position {
        at,
        partition: 0,
        position,
        finished,
    })
    .collect();
    history
}

fn live(history: &mut History, next: &mut [i64; 3], event: u32, number: usize, kind: Kind) {
    let mut at = i64::from(event) * 100_000;
    let hash = u64::from(event) << 8 | number as u64;
    let id = format!("id-{event}-{number}");
    let mut copy = |place: Place, at: i64, attempt: u32, cause: &str, due: Option<i64>| {
        let offset = next[place as usize];
        next[place as usize] += 1;
        history.copies.push(Copy {
            place,
            partition: 0,
            offset,
            at,
            id: id.clone(),
            subscription: number,
            event,
            attempt,
            cause: cause.to_owned(),
            due,
            hash,
            what: What::Command,
            reason: None,
        });
    };
    copy(Place::Commands, at, 0, "new", None);
    let failures = match kind.end(event) {
        End::Delivered(failures) => failures,
        End::Dead("permanent-status") => 0,
        End::Dead(_) => crate::truth::RETRIES,
    };
    for attempt in 1..=failures + 1 {
        history.requests.push(Request {
            at: at + 5,
            id: id.clone(),
            subscription: number,
            event,
            attempt,
            hash,
            accepted: accepts(number, event, attempt),
        });
        if attempt <= failures {
            copy(Place::Tier, at + 10, attempt, "retry", Some(at + 1000));
            at += 1100;
            copy(Place::Commands, at, attempt, "retry", Some(at - 100));
        }
    }
    if let End::Dead(reason) = kind.end(event) {
        copy(Place::DeadLetters, at + 20, failures + 1, "retry", None);
        history.copies.last_mut().unwrap().reason = Some(reason.to_owned());
    }
}

/// The first copy that fits.
fn find(history: &History, fits: impl Fn(&Copy) -> bool) -> usize {
    history.copies.iter().position(fits).expect("such a copy")
}

/// A name, and how it is planted.
type Planted = (&'static str, &'static str, fn(&mut History));

const PLANTED: [Planted; 19] = [
    (
        "a healthy subscription delayed by another tenant",
        "Isolated",
        |history| {
            let sent = history.sent[20].at;
            history.faults.push(Injected {
                what: "eight subscriptions to a closed port".to_owned(),
                of_brokers: false,
                of_tenant: true,
                from: sent - 10,
                until: sent + 10,
            });
            let event = history.sent[20].event;
            let late = history.requests.iter_mut();
            late.filter(|one| one.event == event && one.subscription == 0)
                .for_each(|one| one.at += 6_000);
        },
    ),
    ("a command lost before it was made", "Complete", |history| {
        let lost = find(history, |copy| {
            SUBSCRIPTIONS[copy.subscription] == Kind::Healthy
        });
        let pair = (
            history.copies[lost].event,
            history.copies[lost].subscription,
        );
        history.copies.remove(lost);
        history
            .requests
            .retain(|one| (one.event, one.subscription) != pair);
    }),
    ("a command doubled by fan-out", "Complete", |history| {
        let mut again = history.copies[0].clone();
        again.offset = 9999;
        history.copies.push(again);
    }),
    (
        "a command for a subscription that does not match",
        "Complete",
        |history| {
            let number = SUBSCRIPTIONS
                .iter()
                .position(|kind| *kind == Kind::OnlyA)
                .unwrap();
            let event = (1..=EVENTS)
                .find(|&event| Kind::OnlyA.matches(event) == Matched::No)
                .unwrap();
            let mut wrong = history.copies[0].clone();
            (wrong.event, wrong.subscription, wrong.offset) = (event, number, 9999);
            wrong.id = "another".to_owned();
            history.copies.push(wrong);
        },
    ),
    (
        "a command of an event that is not on the topic",
        "Complete",
        |history| {
            history.sent[0].acknowledged = false;
            history.sent[0].records = 0;
        },
    ),
    (
        "an event that stands twice on the topic and was read once",
        "Complete",
        |history| history.sent[0].records = 2,
    ),
    (
        "some of an unacknowledged event's commands without the others",
        "Complete",
        |history| {
            history.sent[0].acknowledged = false;
            let one = find(history, |copy| copy.event == 1 && copy.subscription == 1);
            history.copies.remove(one);
            history
                .requests
                .retain(|one| (one.event, one.subscription) != (1, 1));
        },
    ),
    (
        "committed past a command that was not sent",
        "Durable outcome",
        |history| {
            history
                .requests
                .retain(|one| (one.event, one.subscription) != (2, 0));
        },
    ),
    (
        "a record left behind at rest",
        "Durable outcome",
        |history| {
            history.left.push(("commands".to_owned(), 0, 3));
        },
    ),
    (
        "a retry produced outside its transaction, and again",
        "One lineage",
        |history| {
            let tier = find(history, |copy| copy.place == Place::Tier);
            let released = find(history, |copy| {
                copy.place == Place::Commands
                    && copy.cause == "retry"
                    && copy.id == history.copies[tier].id
            });
            let mut again = history.copies[released].clone();
            again.offset = 9999;
            history.copies.push(again);
        },
    ),
    (
        "released before it was gone from where it was",
        "One lineage",
        |history| {
            let released = find(history, |copy| {
                copy.cause == "retry" && copy.place == Place::Commands
            });
            history.copies[released].at -= 1095;
        },
    ),
    (
        "an attempt number reset",
        "Attempt counts survive",
        |history| {
            let failed = find(history, |copy| {
                copy.place == Place::Tier && copy.attempt == 2
            });
            let id = history.copies[failed].id.clone();
            for copy in history
                .copies
                .iter_mut()
                .filter(|copy| copy.id == id && copy.attempt == 2)
            {
                copy.attempt = 1;
            }
        },
    ),
    (
        "an attempt number skipped",
        "Attempt counts survive",
        |history| {
            let one = history
                .requests
                .iter_mut()
                .find(|one| SUBSCRIPTIONS[one.subscription] == Kind::Healthy);
            one.unwrap().attempt = 3;
        },
    ),
    ("a body changed by a byte", "Stable identity", |history| {
        history.requests[7].hash ^= 1;
    }),
    ("one id for two commands", "Stable identity", |history| {
        let id = history.requests[0].id.clone();
        history.requests[1].id = id;
    }),
    ("sent early", "Never early", |history| {
        let again = history
            .requests
            .iter_mut()
            .find(|one| one.attempt == 2)
            .unwrap();
        again.at -= 200;
    }),
    (
        "the bitmap ignored on restart",
        "Repeats are bounded",
        |history| {
            let mut again = history.requests[3].clone();
            again.at += 50;
            history.requests.push(again);
        },
    ),
    ("replayed twice", "Dead letters are whole", |history| {
        let letter = find(history, |copy| copy.place == Place::DeadLetters);
        let letter = history.copies[letter].clone();
        for offset in [9998, 9999] {
            let mut fact = letter.clone();
            fact.what = What::Replayed(letter.partition, letter.offset);
            fact.offset = offset;
            let mut command = letter.clone();
            (command.place, command.offset, command.attempt) = (Place::Commands, offset, 0);
            command.cause = "replay".to_owned();
            command.reason = None;
            history.copies.extend([fact, command]);
        }
    }),
    (
        "a position written by a revoked owner",
        "Owner only",
        |history| {
            let mut late = history.positions[0].clone();
            late.at = 25;
            history.positions.insert(2, late);
        },
    ),
];

#[test]
fn a_history_in_which_all_is_well_passes() {
    let verdict = check(&perfect(), Promise::ExactlyOnce);
    assert_eq!(verdict.violations, []);
    assert_eq!(verdict.repeated, 0);
    assert!(verdict.commands > 600, "{}", verdict.commands);
}

#[test]
fn each_planted_fault_is_found_by_its_name() {
    let mut named: HashSet<&str> = HashSet::new();
    for (what, invariant, plant) in PLANTED {
        let mut history = perfect();
        plant(&mut history);
        let verdict = check(&history, Promise::ExactlyOnce);
        let found: Vec<&str> = verdict.violations.iter().map(|one| one.invariant).collect();
        assert!(
            found.contains(&invariant),
            "{what}: {:#?}",
            verdict.violations
        );
        assert!(
            verdict
                .violations
                .iter()
                .all(|one| INVARIANTS.contains(&one.invariant)),
            "{what}"
        );
        named.insert(invariant);
    }
    let missed: Vec<_> = INVARIANTS
        .iter()
        .filter(|name| !named.contains(*name))
        .collect();
    assert_eq!(
        missed, [&""; 0],
        "an invariant that no planted fault shows to be checked"
    );
}

#[test]
fn a_repeat_at_a_fault_is_counted_and_allowed() {
    let mut history = perfect();
    let again = history.requests[3].clone();
    history.faults.push(Injected {
        what: "kill -9 of deliver".to_owned(),
        of_brokers: false,
        of_tenant: false,
        from: again.at + 10,
        until: again.at + 10,
    });
    history.requests.push(again);
    let verdict = check(&history, Promise::ExactlyOnce);
    assert_eq!(verdict.violations, []);
    assert_eq!(verdict.repeated, 1);
    assert!(verdict.allowed >= verdict.repeated);
}

#[test]
fn a_repeat_by_a_member_that_a_busy_machine_evicted_is_allowed() {
    let mut history = perfect();
    let again = history.requests[3].clone();
    history.session = Duration::from_secs(4);
    history.evictions.push(again.at + 2_000);
    history.requests.push(again);
    let verdict = check(&history, Promise::ExactlyOnce);
    assert_eq!(verdict.violations, []);
    assert_eq!(verdict.repeated, 1);
}

#[test]
fn a_position_that_is_told_back_once_while_brokers_begin_is_counted_and_allowed() {
    let mut history = perfect();
    let last = history.positions.last().unwrap().clone();
    let told = |at, position| Position {
        at: last.at + at,
        position,
        finished: Vec::new(),
        ..last.clone()
    };
    history.positions.extend([
        told(1_000, last.position + 20),
        told(2_000, last.position + 10),
        told(3_000, last.position + 20),
    ]);
    let verdict = check(&history, Promise::ExactlyOnce);
    assert_eq!(verdict.violations.len(), 1, "no broker was away");
    history.faults.push(Injected {
        what: "all brokers down".to_owned(),
        of_brokers: true,
        of_tenant: false,
        from: last.at - 30_000,
        until: last.at,
    });
    let verdict = check(&history, Promise::ExactlyOnce);
    assert_eq!(verdict.violations, []);
    assert_eq!(verdict.told_back, 1);
    history.positions.pop();
    let verdict = check(&history, Promise::ExactlyOnce);
    assert_eq!(verdict.violations.len(), 1, "it stayed so");
}

#[test]
fn at_least_once_allows_doubles_and_no_loss() {
    let mut history = perfect();
    let mut again = history.copies[0].clone();
    again.offset = 9999;
    history.copies.push(again);
    let verdict = check(&history, Promise::AtLeastOnce);
    assert_eq!(verdict.violations, []);
    assert_eq!(verdict.doubled, 1);
    history
        .copies
        .retain(|copy| (copy.event, copy.subscription) != (3, 1));
    history
        .requests
        .retain(|one| (one.event, one.subscription) != (3, 1));
    let verdict = check(&history, Promise::AtLeastOnce);
    assert_eq!(verdict.violations[0].invariant, "Complete");
}

#[test]
fn an_event_that_kafka_lost_is_counted_and_is_no_violation() {
    let mut history = perfect();
    history.sent[0].records = 0;
    history.copies.retain(|copy| copy.event != 1);
    history.requests.retain(|request| request.event != 1);
    let verdict = check(&history, Promise::ExactlyOnce);
    assert_eq!((verdict.violations, verdict.never_there), (vec![], 1));
}
