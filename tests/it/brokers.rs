//! Brokers with other settings, and what others do to topics and transactions, on a real Kafka: work goes on, and what
//! it cannot do is named.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::util::Timeout;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::json;

use crate::scene::{
    body, dead_letters, event, put, subscription, wait_for_records, wait_until_done_within, with,
};
use crate::support::{
    Answer, Broker, Isolation, Process, Receiver, SOON, Seen, Weather, World, block_on,
    eventually_true, live,
};

const LATER: Duration = Duration::from_secs(120);

#[test]
fn a_broker_that_keeps_little_metadata_bounds_intake_and_the_position_moves() {
    const EVENTS: usize = 900;
    let dir = tempfile::tempdir().unwrap();
    let properties = dir.path().join("broker.properties");
    std::fs::write(&properties, "offset.metadata.max.bytes=128\n").unwrap();
    let broker = Broker::with_options(&["--properties", properties.to_str().unwrap()]);
    let mut world = World::on(&broker, "little-metadata");
    world.tiers = vec![Duration::from_secs(1)];
    world.create_topics(1);
    let receiver = Receiver::start(|seen| {
        let first = seen.header("hookstream-attempt") == Some("1");
        match &*seen.path {
            "/slow" => Answer::ok().after(Duration::from_secs(2)),
            "/flaky" if first => Answer::status(500),
            _ => Answer::ok(),
        }
    });
    let of = |id: &str, types: &str| {
        let url = receiver.url(&format!("/{id}"));
        with(
            subscription(id, &url, &[types]),
            json!({"max_in_flight": 64}),
        )
    };
    put(
        &world,
        &[
            of("slow", "slow.*"),
            of("good", "order.*"),
            of("flaky", "order.*"),
        ],
    );
    let process = world.spawn("run", &["--retry-schedule", "1s,1s,1s"]);
    process.wait_ready();
    world.produce_events((0..EVENTS).map(|number| {
        let kind = if number % 300 == 10 {
            "slow.one"
        } else {
            "order.created"
        };
        (
            format!("k{number}"),
            event(&format!("e{number}"), kind, "1"),
        )
    }));
    receiver.wait_for(EVENTS - 3 + (EVENTS - 3) * 2 + 3, LATER);
    wait_until_done_within(&world, LATER);
    process.wait_for_line("offset.metadata.max.bytes", SOON);
    for (_, position, metadata) in world.committed("deliver", &world.topics.commands()) {
        assert!(metadata.len() <= 128, "{position}: {metadata}");
    }
    let mut attempts = BTreeSet::new();
    for seen in receiver.seen() {
        let attempt = seen.header("hookstream-attempt").map(str::to_owned);
        let one = (seen.webhook_id().to_owned(), attempt);
        assert!(attempts.insert(one.clone()), "{one:?} was sent twice");
    }
}

fn sample(process: &Process, name: &str, world: &World, partition: i32) -> Option<f64> {
    let topic = &world.events;
    process.metric(&format!(
        r#"{name}{{partition="{partition}",topic="{topic}"}}"#
    ))
}

/// The time-out of a transaction that stays open, ms.
const LONG: &str = "600000";

/// Writes an event to a partition, and waits until it is there.
fn send_to(world: &World, producer: &BaseProducer, partition: i32, payload: &str) {
    let record = BaseRecord::<str, str>::to(&world.events)
        .partition(partition)
        .payload(payload);
    producer.send(record).unwrap();
    producer.flush(SOON).unwrap();
}

#[test]
fn a_publishers_open_transaction_is_named_and_other_partitions_go_on() {
    let world = World::new("open-transaction");
    world.create_topics(2);
    let receiver = Receiver::good();
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    let process = world.spawn("run", &[]);
    process.wait_ready();
    let publisher = world.begin_transaction("open", LONG);
    let plain: BaseProducer = world.client_config().create().unwrap();
    let send = |producer: &BaseProducer, partition: i32, id: &str| {
        send_to(&world, producer, partition, &event(id, "a.b", "1"));
    };
    send(&publisher, 0, "open");
    send(&plain, 0, "behind1");
    send(&plain, 0, "behind2");
    send(&plain, 1, "other");
    assert_eq!(
        receiver.wait_for(1, LATER).len(),
        1,
        "the other partition goes on"
    );

    let line = process.wait_for_line("stays open at offset 0", LATER);
    assert!(line.contains(&world.events), "{line}");
    assert!(line.contains("3 offsets"), "{line}");
    assert!(line.contains("kafka-transactions.sh"), "{line}");
    for (name, least) in [
        ("hookstream_event_blocked_seconds", 60.0),
        ("hookstream_event_blocked_offsets", 3.0),
        ("hookstream_event_lag", 3.0),
    ] {
        eventually_true(&format!("{name} tells"), SOON, || {
            sample(&process, name, &world, 0).is_some_and(|value| value >= least)
        });
        let other = sample(&process, name, &world, 1);
        assert!(other.is_none_or(|value| value == 0.0), "{name}: {other:?}");
    }
    publisher.abort_transaction(Timeout::Never).unwrap();
    receiver.wait_for(3, LATER);
    eventually_true("the series is gone, and nothing waits", LATER, || {
        sample(&process, "hookstream_event_blocked_seconds", &world, 0).is_none()
            && sample(&process, "hookstream_event_lag", &world, 0) == Some(0.0)
    });
}

#[test]
fn a_hanging_transaction_on_the_positions_is_reported_with_the_command_that_ends_it() {
    let broker = Broker::own();
    let mut world = World::on(&broker, "hanging");
    world.tiers = vec![Duration::from_secs(1)];
    world.create_topics(1);
    let receiver = Receiver::good();
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    world.produce_event("k", &[], event("1", "a.b", "1"));
    // A transaction with a position of the group, which nobody ends.
    let mut config = world.client_config();
    config.set("group.id", format!("{}fanout", world.prefix));
    let consumer: BaseConsumer = config.create().unwrap();
    let holder = world.begin_transaction("holder", LONG);
    let mut positions = TopicPartitionList::new();
    positions
        .add_partition_offset(&world.events, 0, Offset::Offset(0))
        .unwrap();
    let group = consumer.group_metadata().unwrap();
    holder
        .send_offsets_to_transaction(&positions, &group, SOON)
        .unwrap();

    let process = world.spawn("run", &[]);
    let line = process.wait_for_line("hanging transaction", Duration::from_secs(75));
    assert!(line.contains("KAFKA-20734"), "{line}");
    assert_eq!(process.get("/livez").0, 200, "a restart would not help");
    let command = line.split('`').nth(1).unwrap();
    let arguments: Vec<&str> = command.split_whitespace().collect();
    assert_eq!(arguments[0], "kafka-transactions.sh");
    let output = broker.tool("kafka-transactions", &arguments[1..]);
    assert!(output.status.success(), "{command}: {output:?}");
    receiver.wait_for(1, LATER);
}

#[test]
fn retries_of_a_deleted_topic_are_counted_and_work_goes_on_when_it_is_back() {
    let mut world = World::new("deleted");
    world.tiers = vec![Duration::from_secs(10)];
    world.create_topics(1);
    let receiver =
        Receiver::start(|seen| Answer::status(if seen.path == "/bad" { 500 } else { 200 }));
    let of = |id: &str, types: &str| subscription(id, &receiver.url(&format!("/{id}")), &[types]);
    put(&world, &[of("bad", "bad.*"), of("good", "good.*")]);
    let mut process = world.spawn("run", &["--retry-schedule", "10s,10s,10s"]);
    process.wait_ready();
    let again = |seen: &[Arc<Seen>]| {
        let second = |seen: &&Arc<Seen>| seen.header("hookstream-attempt") == Some("2");
        seen.iter().filter(second).count()
    };
    // Only what release has read is known to be lost: it must read the topic before that is gone.
    world.produce_event("k", &[], event("b", "bad.one", "1"));
    receiver.wait_until("a retry is sent", LATER, |seen| again(seen) == 1);
    let tier = world.topics.retry(world.tiers[0]);
    world.produce_events((0..3).map(|n| ("k", event(&format!("b{n}"), "bad.one", "1"))));
    wait_for_records(&world, &tier, 5);
    delete_topic(&world, &tier);
    let line = process.wait_for_line("LOST: retries", LATER);
    assert!(line.contains(&tier), "{line}");
    let lost = format!(r#"hookstream_lost_offsets_total{{topic="{tier}"}}"#);
    assert!(process.metric(&lost).is_some_and(|lost| lost >= 4.0));

    // Others go on; a retry waits for the topic, and is written when it is back.
    world.produce_event("k", &[], event("g1", "good.one", "1"));
    world.produce_event("k", &[], event("b5", "bad.one", "1"));
    receiver.wait_until("the good one has its event", LATER, |seen| {
        seen.iter().any(|seen| seen.path == "/good")
    });
    world.create_topic(&tier, 1, &[("message.timestamp.type", "LogAppendTime")]);
    let records = wait_for_records(&world, &tier, 1);
    assert_eq!(records[0].header("hs-event-id"), Some("b5"));
    receiver.wait_until("its retry is sent", LATER, |seen| again(seen) == 2);
    assert_eq!(process.exited(), None, "nothing was restarted");
}

fn delete_topic(world: &World, topic: &str) {
    let admin: AdminClient<DefaultClientContext> = world.client_config().create().unwrap();
    let deleted = block_on(admin.delete_topics(&[topic], &AdminOptions::new()));
    assert!(deleted.unwrap()[0].is_ok());
}

fn lost_offsets(process: &Process, topic: &str) -> f64 {
    let name = format!(r#"hookstream_lost_offsets_total{{topic="{topic}"}}"#);
    process.metric(&name).unwrap_or_default()
}

#[test]
fn malformed_answers_of_a_broker_lose_nothing_and_need_no_restart() {
    const ROUNDS: usize = 5;
    const EVENTS: usize = 40;
    let broker = Broker::behind_proxies(1);
    let proxy = &broker.proxies[0];
    let mut world = World::on(&broker, "malformed-answers");
    world.tiers = vec![Duration::from_secs(1)];
    world.create_topics(2);
    let receiver = Receiver::start(|seen| match seen.header("hookstream-attempt") {
        Some("1") if seen.body.len() % 2 == 0 => Answer::status(500),
        _ => Answer::ok().after(Duration::from_millis(20)),
    });
    let limited = json!({"max_in_flight": 2});
    let one = with(subscription("acme", &receiver.url("/"), &["**"]), limited);
    put(&world, &[one]);
    let mut process = world.spawn("run", &["--retry-schedule", "1s,1s,1s"]);
    process.wait_ready();
    for round in 0..ROUNDS {
        world.produce_events((0..EVENTS).map(|number| {
            let data = number.to_string();
            (
                format!("k{number}"),
                event(&format!("e{round}-{number}"), "order.created", &data),
            )
        }));
        let changed = proxy.changed();
        proxy.set(Weather::Malformed(5));
        proxy.wait_for_changed(changed + 20);
        proxy.set(Weather::Clear);
    }
    wait_until_done_within(&world, LATER);
    assert_eq!(process.exited(), None, "nothing was restarted");
    let delivered: BTreeSet<String> = receiver
        .seen()
        .iter()
        .map(|seen| seen.webhook_id().to_owned())
        .collect();
    assert_eq!(delivered.len(), ROUNDS * EVENTS);
    let commands = live(world.read_all(&world.topics.commands(), Isolation::Committed));
    let new = commands
        .iter()
        .filter(|command| command.header("hs-cause") == Some("new"));
    assert_eq!(
        new.count(),
        ROUNDS * EVENTS,
        "one new command for each event, and copies of it"
    );
    assert_eq!(dead_letters(&world), Vec::<serde_json::Value>::new());
}

#[test]
fn commands_of_a_recreated_topic_are_counted_and_work_goes_on_without_a_restart() {
    const HANGING: usize = 3;
    let world = World::new("recreated-commands");
    world.create_topics(1);
    let receiver = Receiver::start(|seen| match &*seen.path {
        "/hang" => Answer::hang(),
        _ => Answer::ok(),
    });
    let of = |id: &str, types: &str| subscription(id, &receiver.url(&format!("/{id}")), &[types]);
    let slow = with(of("hang", "hang.*"), json!({"timeout": "60s"}));
    put(&world, &[slow, of("good", "good.*")]);
    let mut process = world.spawn("run", &[]);
    process.wait_ready();
    world.produce_event("k", &[], event("g0", "good.one", "1"));
    world.produce_events((0..HANGING).map(|n| ("k", event(&format!("h{n}"), "hang.one", "1"))));
    let arrived = |path: &str, count: usize| {
        receiver.wait_until(&format!("{count} at {path}"), LATER, |seen| {
            seen.iter().filter(|seen| seen.path == path).count() >= count
        });
    };
    arrived("/good", 1);
    arrived("/hang", HANGING);
    let commands = world.topics.commands();
    delete_topic(&world, &commands);
    let line = process.wait_for_line("LOST", LATER);
    assert!(line.contains(&commands), "{line}");
    // Fan-out has nowhere to write to: its event waits.
    world.produce_event("k", &[], event("g1", "good.one", "1"));
    world.create_topic(&commands, 1, &[("cleanup.policy", "delete")]);
    world.produce_event("k", &[], event("g2", "good.one", "1"));
    arrived("/good", 3);
    eventually_true("what hung is counted as lost", SOON, || {
        lost_offsets(&process, &commands) >= HANGING as f64
    });
    assert_eq!(process.exited(), None, "nothing was restarted");
}

#[test]
fn unread_events_of_a_recreated_topic_are_counted_and_work_goes_on_without_a_restart() {
    const UNREAD: i32 = 3;
    /// Of partition 1 nothing is read.
    const PARTITIONS: i32 = 2;
    /// Two of the times after which the client tells where partitions end.
    const KNOWN: Duration = Duration::from_secs(6);
    let world = World::new("recreated-events");
    world.create_topics(PARTITIONS);
    let receiver = Receiver::good();
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    let mut process = world.spawn("run", &[]);
    process.wait_ready();
    let plain: BaseProducer = world.client_config().create().unwrap();
    let send = |producer: &BaseProducer, partition: i32, data: &str| {
        let payload = event(&format!("e{data}"), "a.b", data);
        send_to(&world, producer, partition, &payload);
    };
    send(&plain, 0, "0");
    receiver.wait_for(1, LATER);
    // What is behind an open transaction is not read.
    let publisher = world.begin_transaction("open", LONG);
    for partition in 0..PARTITIONS {
        send(&publisher, partition, "1");
        (0..UNREAD).for_each(|_| send(&plain, partition, "1"));
    }
    // Nothing outside shows when the reader knows the ends.
    let produced = Instant::now();
    eventually_true("the backlog is known", LATER, || {
        let of = |partition| sample(&process, "hookstream_event_lag", &world, partition);
        produced.elapsed() > KNOWN && (0..PARTITIONS).all(|at| of(at) > Some(f64::from(UNREAD)))
    });
    delete_topic(&world, &world.events);
    let line = process.wait_for_line("LOST", LATER);
    assert!(line.contains(&world.events), "{line}");
    eventually_true("what was not read is counted", SOON, || {
        lost_offsets(&process, &world.events) == f64::from(PARTITIONS * (UNREAD + 1))
    });
    world.create_events_topic(PARTITIONS);
    world.produce_event("k", &[], event("again", "a.b", "2"));
    let seen = receiver.wait_for(2, LATER);
    assert_eq!(String::from_utf8_lossy(&seen[1].body), body("a.b", "2"));
    assert_eq!(process.exited(), None, "nothing was restarted");
}
