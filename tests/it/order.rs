//! `order: per_subject` and `order: strict`, on a real Kafka, with failures, a lane that overflows, and restarts.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};

use crate::scene::{
    LATER, put, start, subscription, wait_for_records, wait_until_done, wait_until_done_within,
    with, world,
};
use crate::support::{Answer, Process, Receiver, SOON, Seen, World, eventually_true};

const SUBJECTS: usize = 4;

/// Event `number` of the subject that its number says.
fn produce(world: &World, numbers: std::ops::Range<usize>) {
    world.produce_events(numbers.map(|number| {
        let subject = format!("order-{}", number % SUBJECTS);
        let event = format!(
            r#"{{"id":"{number}","type":"order.created","time":"2026-07-01T12:00:00Z","subject":"{subject}","data":{{"number":{number}}}}}"#
        );
        (subject, event)
    }));
}

fn number(seen: &Seen) -> usize {
    let body: Value = serde_json::from_slice(&seen.body).unwrap();
    usize::try_from(body["data"]["number"].as_u64().unwrap()).unwrap()
}

fn ordered(receiver: &Receiver, order: &str, fields: Value) -> Value {
    let all = with(
        subscription("s", &receiver.url("/s"), &["**"]),
        json!({"order": order}),
    );
    with(all, fields)
}

#[test]
fn per_subject_makes_first_attempts_in_order_and_one_at_a_time() {
    const EVENTS: usize = 40;
    const WORK: Duration = Duration::from_millis(30);
    let world = world("per-subject");
    let receiver = Receiver::start(|seen| match number(seen) % 5 {
        0 if seen.attempt == 1 => Answer::status(500).after(WORK),
        _ => Answer::ok().after(WORK),
    });
    put(&world, &[ordered(&receiver, "per_subject", json!({}))]);
    let _process = start(&world, &[]);
    produce(&world, 0..EVENTS);
    wait_until_done(&world);
    let mut last: HashMap<usize, (usize, i64)> = HashMap::new();
    let seen = receiver.seen();
    for first in seen.iter().filter(|seen| seen.attempt == 1) {
        let number = number(first);
        if let Some((before, received)) = last.insert(number % SUBJECTS, (number, first.received)) {
            assert!(before < number, "{number} came after {before}");
            assert!(
                first.received - received >= i64::try_from(WORK.as_millis()).unwrap(),
                "{number} was sent while {before} was in flight"
            );
        }
    }
    let delivered: HashSet<usize> = seen.iter().map(|seen| number(seen)).collect();
    assert_eq!(delivered.len(), EVENTS);
    let failed = seen
        .iter()
        .filter(|seen| seen.attempt == 1 && number(seen).is_multiple_of(5));
    for failed in failed {
        let (number, of_subject) = (number(failed), number(failed) % SUBJECTS);
        let retried = seen
            .iter()
            .position(|seen| seen.attempt == 2 && self::number(seen) == number);
        let overtaken = seen
            .iter()
            .position(|seen| self::number(seen) == number + SUBJECTS);
        if let (Some(retried), Some(overtaken)) = (retried, overtaken) {
            assert!(
                overtaken < retried,
                "{number} of {of_subject} held up the next one"
            );
        }
    }
}

/// Whether a request was answered with success, by [`flaky`]'s rule.
fn succeeded(seen: &Seen) -> bool {
    !number(seen).is_multiple_of(3) || seen.attempt > 2
}

fn flaky(seen: &Seen) -> Answer {
    let answer = if succeeded(seen) {
        Answer::ok()
    } else {
        Answer::status(503)
    };
    answer.after(Duration::from_millis(5))
}

/// Nothing of an event was sent before the event of its subject ahead of it had been delivered.
fn assert_strict(seen: &[Arc<Seen>], events: usize) {
    let mut done: HashSet<usize> = HashSet::new();
    for one in seen {
        let number = number(one);
        if let Some(ahead) = number.checked_sub(SUBJECTS) {
            assert!(
                done.contains(&ahead),
                "{number} was sent before {ahead} was delivered"
            );
        }
        if succeeded(one) {
            done.insert(number);
        }
    }
    assert_eq!(done.len(), events, "all are delivered");
}

#[test]
fn strict_holds_a_subject_back_until_the_one_ahead_is_delivered() {
    const EVENTS: usize = 48;
    let world = world("strict");
    let receiver = Receiver::start(flaky);
    put(&world, &[ordered(&receiver, "strict", json!({}))]);
    let _process = start(&world, &[]);
    produce(&world, 0..EVENTS);
    wait_until_done(&world);
    assert_strict(&receiver.seen(), EVENTS);
}

#[test]
fn strict_holds_over_kills_and_overflow() {
    const EVENTS: usize = 400;
    let mut world = world("strict-killed");
    world.flags = ["-X", "session.timeout.ms=6000"]
        .map(str::to_owned)
        .to_vec();
    let receiver = Receiver::start(flaky);
    // So slow a rate that most of it is parked.
    let rate = json!({"rate_limit": {"per_second": 150, "burst": 10}});
    put(&world, &[ordered(&receiver, "strict", rate)]);
    produce(&world, 0..EVENTS);
    for round in 1..=4 {
        let mut process = start(&world, &[]);
        receiver.wait_until("it goes on", LATER, |seen| seen.len() > EVENTS / 8 * round);
        process.sigkill();
    }
    let _process = start(&world, &[]);
    // What was parked four times comes back one by one.
    wait_until_done_within(&world, 3 * LATER);
    assert_strict(&receiver.seen(), EVENTS);
}

/// A producer whose transaction in these partitions of a topic nobody ends.
fn hanging(world: &World, topic: &str, partitions: &[i32], timeout_ms: &str) -> BaseProducer {
    let dead = world.begin_transaction("dead", timeout_ms);
    for partition in partitions {
        let record = BaseRecord::<str, str>::to(topic).key("s").payload("{}");
        dead.send(record.partition(*partition)).unwrap();
    }
    dead.flush(SOON).unwrap();
    dead
}

/// Writes a command of the subscription that is called like its subscriber.
fn write_command(
    world: &World,
    topic: &str,
    subscriber: &str,
    (id, subject): (&str, &str),
    (cause, sequence): (&str, Option<&str>),
) {
    let now = hookstream::edge::clock::now().to_string();
    let mut headers = vec![
        ("webhook-id", id),
        ("hs-subscription", subscriber),
        ("hs-event-id", id),
        ("hs-event-type", "order.created"),
        ("hs-subject", subject),
        ("hs-content-type", "application/json"),
        ("hs-attempt", "0"),
        ("hs-enqueued", &now),
        ("hs-due", &now),
        ("hs-cause", cause),
    ];
    headers.extend(sequence.map(|sequence| ("hs-sequence", sequence)));
    world.produce(topic, [(Some(subscriber), headers, Some(b"{}".to_vec()))]);
}

/// A dead process's open transaction hides what was committed behind it in the tier: a new owner must not take the
/// subject for free.
#[test]
fn what_an_open_transaction_hides_in_a_tier_still_comes_first() {
    let world = world("strict-hidden");
    let receiver = Receiver::good();
    put(&world, &[ordered(&receiver, "strict", json!({}))]);
    let tier = world.topics.retry(world.tiers[1]);
    let _dead = hanging(&world, &tier, &[0], "5000");
    let write = |topic: &str, id: &str, subject: &str, cause: &str, sequence: Option<&str>| {
        write_command(&world, topic, "s", (id, subject), (cause, sequence));
    };
    // The one in the tier was taken at offset 0, where another one stands here: before all that comes.
    let commands = world.topics.commands();
    write(&commands, "other", "order-2", "new", None);
    write(&tier, "first", "order-1", "parked", Some("0"));
    write(&commands, "second", "order-1", "new", None);
    let _process = start(&world, &[]);
    let seen = receiver.wait_until("both are delivered", LATER, |seen| {
        ["first", "second"]
            .iter()
            .all(|id| seen.iter().any(|seen| seen.webhook_id() == *id))
    });
    let order: Vec<&str> = seen.iter().map(|seen| seen.webhook_id()).collect();
    let at = |id: &str| order.iter().position(|seen| *seen == id);
    assert!(at("first") < at("second"), "{order:?}");
}

#[test]
fn a_transaction_that_hangs_withholds_the_order_of_its_own_partition_only() {
    let mut world = World::new("strict-hanging");
    world.tiers = vec![Duration::from_secs(1)];
    world.create_topics(6);
    let receiver = Receiver::good();
    let ids: Vec<_> = (0..24).map(|number| format!("s{number}")).collect();
    let subscriptions: Vec<_> = ids
        .iter()
        .map(|id| {
            let url = receiver.url(&format!("/{id}"));
            with(subscription(id, &url, &["**"]), json!({"order": "strict"}))
        })
        .collect();
    put(&world, &subscriptions);
    let commands = world.topics.commands();
    for id in &ids {
        write_command(&world, &commands, id, (id, "order-1"), ("new", None));
    }
    let written = wait_for_records(&world, &commands, ids.len());
    let partitions = written
        .iter()
        .map(|record| (record.key_text().to_owned(), record.partition));
    let partitions: HashMap<String, i32> = partitions.collect();
    let free = partitions["s0"];
    let others: Vec<i32> = (0..6).filter(|partition| *partition != free).collect();
    let tier = world.topics.retry(world.tiers[0]);
    let _dead = hanging(&world, &tier, &others, "600000");
    let process = start(&world, &[]);
    let is_free = |seen: &Arc<Seen>| partitions[seen.webhook_id()] == free;
    let began = Instant::now();
    receiver.wait_until("what is not hidden", LATER, |seen| seen.iter().any(is_free));
    // The others wait for five seconds.
    let is_quick = began.elapsed() < Duration::from_secs(3);
    let seen = receiver.wait_until("all are delivered", LATER, |seen| seen.len() >= ids.len());
    let first = seen[0].webhook_id();
    assert!(
        !is_quick || is_free(&seen[0]),
        "{first} was hidden and is the first"
    );
    eventually_true(
        "one thread is left for all partitions of a worker",
        LATER,
        || threads(&process, "ahead") == 1,
    );
    assert_eq!(world.open_transactions(&tier).len(), others.len());
}

/// The threads of a process whose name begins so.
fn threads(process: &Process, name: &str) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", process.pid())).unwrap();
    let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")));
    names
        .filter(|found| found.as_ref().is_ok_and(|found| found.starts_with(name)))
        .count()
}

/// Fan-out writes its batches by several producers, whose records could overtake each other.
#[test]
fn commands_of_an_ordered_subscription_stand_in_the_order_of_their_events() {
    const EVENTS: usize = 6000;
    let world = world("strict-written");
    let receiver = Receiver::good();
    put(&world, &[ordered(&receiver, "strict", json!({}))]);
    let fanout = world.spawn("fanout", &[]);
    fanout.wait_ready();
    // In small portions, so that there are many batches.
    for first in (0..EVENTS).step_by(5) {
        produce(&world, first..first + 5);
    }
    let written = wait_for_records(&world, &world.topics.commands(), EVENTS);
    let numbers: Vec<u64> = written
        .iter()
        .map(|record| record.json()["data"]["number"].as_u64().unwrap())
        .collect();
    let swapped: Vec<_> = numbers
        .windows(2)
        .filter(|pair| pair[0] > pair[1])
        .collect();
    assert!(swapped.is_empty(), "{swapped:?}");
}
