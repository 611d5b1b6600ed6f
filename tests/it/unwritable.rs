//! Partitions that refuse writes, on a real Kafka: what does not need them goes on, and nothing is lost or doubled.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hookstream::model::partitioner::{key_hash, partition};
use rdkafka::admin::{NewTopic, TopicReplication};

use crate::scene::{event, put, subscription, wait_for_records, wait_until_done_within};
use crate::support::{
    Answer, Broker, Isolation, Process, Receiver, SOON, Seen, World, eventually_true,
};

const EVENTS: usize = 50;
const LATER: Duration = Duration::from_secs(120);

/// A topic of two partitions: 0 on the first two brokers, 1 on the first and the third. While the third is down, only
/// partition 0 can be written.
fn create_split(world: &World, topic: &str, settings: &[(&str, &str)]) {
    let new = NewTopic::new(topic, 2, TopicReplication::Variable(&[&[1, 2], &[1, 3]]))
        .set("min.insync.replicas", "2");
    world.create(
        settings
            .iter()
            .fold(new, |new, (key, value)| new.set(key, value)),
    );
}

/// A world on three brokers whose retry and dead-letter topics are split.
fn split_world(broker: &Broker, name: &str, guarantee: &str) -> World {
    let mut world = World::on(broker, name);
    world.tiers = vec![Duration::from_secs(1)];
    world.flags = ["--guarantee", guarantee].map(str::to_owned).to_vec();
    create_split(
        &world,
        &world.topics.retry(world.tiers[0]),
        &[("message.timestamp.type", "LogAppendTime")],
    );
    create_split(&world, &world.topics.dead_letters(), &[]);
    world.create_topics(2);
    world
}

/// Names whose records go to `wanted` of two partitions.
fn names(kind: &str, wanted: i32, count: usize) -> Vec<String> {
    (0..)
        .map(|number| format!("{kind}{number}"))
        .filter(|name| partition(key_hash(name.as_bytes()), 2) == Some(wanted))
        .take(count)
        .collect()
}

fn answer(seen: &Seen) -> Answer {
    let first = seen.header("hookstream-attempt") == Some("1");
    Answer::status(match &*seen.path {
        path if path.contains("flaky") && first => 500,
        path if path.contains("refused") => 400,
        _ => 200,
    })
}

/// Accepted webhooks by path.
fn accepted(receiver: &Receiver) -> BTreeMap<String, BTreeSet<String>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for seen in receiver.seen() {
        let second = seen.header("hookstream-attempt") != Some("1");
        if !seen.path.contains("flaky") || second {
            let ids = all.entry(seen.path.clone()).or_default();
            ids.insert(seen.webhook_id().to_owned());
        }
    }
    all
}

fn has_all(receiver: &Receiver, names: &[String]) -> bool {
    let accepted = accepted(receiver);
    let mut all = names.iter();
    all.all(|name| {
        accepted
            .get(&format!("/{name}"))
            .is_some_and(|ids| ids.len() == EVENTS)
    })
}

fn assert_nothing_stops(guarantee: &str) {
    let broker = Broker::cluster(3);
    let world = split_world(&broker, "unwritable", guarantee);
    let receiver = Receiver::start(answer);
    let good = names("good", 0, 4);
    let retried = names("flaky", 0, 2);
    let (stuck, refused) = (names("flaky", 1, 2), names("refused", 1, 1));
    let all = [&good[..], &retried, &stuck, &refused].concat();
    let subscriptions: Vec<_> = all
        .iter()
        .map(|name| subscription(name, &receiver.url(&format!("/{name}")), &["**"]))
        .collect();
    put(&world, &subscriptions);
    let mut process = world.spawn("run", &["--retry-schedule", "1s,1s,1s,1s,1s"]);
    process.wait_ready();
    broker.control(&["stop-broker", "3"]);
    world.produce_events((0..EVENTS).map(|number| {
        let id = format!("e{number}");
        (format!("k{number}"), event(&id, "order.created", "1"))
    }));

    let healthy = [&good[..], &retried].concat();
    eventually_true("the healthy ones have all of theirs", LATER, || {
        has_all(&receiver, &healthy)
    });
    for topic in [
        world.topics.retry(world.tiers[0]),
        world.topics.dead_letters(),
    ] {
        named(&process, "deliver", &topic);
    }
    assert_eq!(process.exited(), None, "{guarantee}: the process has ended");
    assert_eq!(process.get("/livez").0, 200);
    // Each of those endpoints has one attempt a command: what is not written is not tried again either.
    receiver.wait_until("the failing ones were tried", LATER, |seen| {
        let theirs = seen.iter().filter(|seen| {
            let name = &seen.path[1..];
            stuck.iter().chain(&refused).any(|one| one == name)
        });
        theirs.count() >= EVENTS * 3
    });

    broker.control(&["start-broker", "3"]);
    eventually_true("the retries arrive", LATER, || has_all(&receiver, &stuck));
    let dead = wait_for_records(&world, &world.topics.dead_letters(), EVENTS);
    wait_until_done_within(&world, LATER);
    eventually_true("the metric's series is gone", SOON, || {
        !process
            .get("/metrics")
            .1
            .contains("hookstream_unwritable_seconds{")
    });
    assert_eq!(process.exited(), None, "{guarantee}: the process has ended");
    if guarantee == "exactly-once" {
        let mut attempts = BTreeSet::new();
        for seen in receiver.seen() {
            let attempt = seen.header("hookstream-attempt").map(str::to_owned);
            let one = (seen.webhook_id().to_owned(), attempt);
            assert!(attempts.insert(one.clone()), "{one:?} was sent twice");
        }
        assert_eq!(dead.len(), EVENTS, "dead letters are written once");
        let tier = world.topics.retry(world.tiers[0]);
        let records = world.read_all(&tier, Isolation::Committed);
        let ids: BTreeSet<_> = records
            .iter()
            .map(|record| record.header("webhook-id").unwrap().to_owned())
            .collect();
        assert_eq!(ids.len(), EVENTS * (retried.len() + stuck.len()));
    }
}

/// The log and a metric name the partition.
fn named(process: &Process, role: &str, topic: &str) {
    process.wait_for_line("to this partition", LATER);
    let labels = format!(r#"{{partition="1",role="{role}",topic="{topic}"}}"#);
    let sample = format!("hookstream_unwritable_seconds{labels}");
    eventually_true(&format!("the metric names {topic}"), LATER, || {
        process.metric(&sample).is_some()
    });
}

#[test]
fn a_retry_partition_that_refuses_writes_stops_no_healthy_endpoint() {
    assert_nothing_stops("exactly-once");
}

#[test]
fn without_transactions_a_retry_partition_that_refuses_writes_stops_no_healthy_endpoint() {
    assert_nothing_stops("at-least-once");
}

#[test]
fn release_holds_only_what_moves_to_a_partition_that_refuses_writes() {
    let broker = Broker::cluster(3);
    let mut world = World::on(&broker, "unreleasable");
    // A retry waits in the longer tier, then the rest in the shorter one, even if it was written some seconds late.
    world.tiers = [4, 8].map(Duration::from_secs).to_vec();
    let shorter = world.topics.retry(world.tiers[0]);
    create_split(
        &world,
        &shorter,
        &[("message.timestamp.type", "LogAppendTime")],
    );
    world.create_topics(2);
    let receiver = Receiver::start(answer);
    let (moves, stuck) = (names("flaky", 0, 3), names("flaky", 1, 1));
    let subscriptions: Vec<_> = [&moves[..], &stuck]
        .concat()
        .iter()
        .map(|name| subscription(name, &receiver.url(&format!("/{name}")), &["**"]))
        .collect();
    put(&world, &subscriptions);
    let mut process = world.spawn("run", &["--retry-schedule", "14s,14s,14s,14s,14s"]);
    process.wait_ready();
    broker.control(&["stop-broker", "3"]);
    world.produce_events((0..EVENTS).map(|number| {
        let id = format!("e{number}");
        (format!("k{number}"), event(&id, "order.created", "1"))
    }));
    named(&process, "release", &shorter);
    // What is due meanwhile needs no other tier any more.
    eventually_true("the others are retried", LATER, || {
        has_all(&receiver, &moves)
    });
    assert_eq!(process.exited(), None, "the process has ended");
    broker.control(&["start-broker", "3"]);
    eventually_true("the retries arrive", LATER, || has_all(&receiver, &stuck));
    wait_until_done_within(&world, LATER);
    let mut attempts = BTreeSet::new();
    for seen in receiver.seen() {
        let attempt = seen.header("hookstream-attempt").map(str::to_owned);
        let one = (seen.webhook_id().to_owned(), attempt);
        assert!(attempts.insert(one.clone()), "{one:?} was sent twice");
    }
}

/// The events whose commands go there, in part, pin the positions; what the others need is written all the same.
#[test]
fn a_partition_of_the_commands_that_refuses_writes_stops_no_other() {
    let broker = Broker::cluster(3);
    let world = World::on(&broker, "pinned");
    create_split(&world, &world.topics.commands(), &[]);
    world.create_topics(2);
    let receiver = Receiver::start(answer);
    let (good, stuck) = (names("good", 0, 3), names("stuck", 1, 2));
    let all = [&good[..], &stuck].concat();
    let subscriptions: Vec<_> = all
        .iter()
        .map(|name| subscription(name, &receiver.url(&format!("/{name}")), &["**"]))
        .collect();
    put(&world, &subscriptions);
    let mut process = world.spawn("run", &[]);
    process.wait_ready();
    broker.control(&["stop-broker", "3"]);
    let produce = |range: std::ops::Range<usize>| {
        world.produce_events(range.map(|number| {
            let id = format!("e{number}");
            (format!("k{number}"), event(&id, "order.created", "1"))
        }));
    };
    produce(0..EVENTS / 2);
    eventually_true("the first of the others arrive", LATER, || {
        receiver.seen().len() >= EVENTS / 2 * good.len()
    });
    produce(EVENTS / 2..EVENTS);
    eventually_true("the others have all of theirs", LATER, || {
        has_all(&receiver, &good)
    });
    eventually_true("what is not committed is counted", SOON, || {
        process.metric("hookstream_uncommitted_events") > Some(0.0)
    });
    assert_eq!(process.exited(), None);
    assert_eq!(process.get("/livez").0, 200);
    broker.control(&["start-broker", "3"]);
    eventually_true("the rest arrives", LATER, || has_all(&receiver, &stuck));
    wait_until_done_within(&world, LATER);
    assert_eq!(
        receiver.seen().len(),
        EVENTS * all.len(),
        "none is sent twice"
    );
    assert_eq!(process.exited(), None);
    assert_eq!(process.metric("hookstream_source_holes"), Some(0.0));
}
