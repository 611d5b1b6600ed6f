//! `topics add-partitions` on a real Kafka, while events flow: nothing is lost, doubled or out of order, and whatever ends
//! the command, fan-out and release start again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::scene::{LATER, event, put, start, subscription, wait_until_done_within, with};
use crate::support::{
    Answer, Isolation, Output, Process, Receiver, SOON, World, broker, eventually_true,
};

/// Longer than a hold that nobody renews, and the start of the roles after it.
const LEASE: Duration = Duration::from_secs(90);

fn partitions(world: &World, topic: &str) -> usize {
    let client: rdkafka::consumer::BaseConsumer = world.client_config().create().unwrap();
    use rdkafka::consumer::Consumer as _;
    let metadata = client.fetch_metadata(Some(topic), SOON).unwrap();
    metadata.topics()[0].partitions().len()
}

/// An event of the only subject.
fn numbered(world: &World, number: u64) {
    let text = json!({
        "id": format!("e{number}"),
        "type": "a.b",
        "time": "2026-07-01T12:00:00Z",
        "subject": "one",
        "data": {"number": number},
    });
    world.produce_event("one", &[], text.to_string());
}

fn add(world: &World, arguments: &[&str]) -> Output {
    let all = [&["topics", "add-partitions"], arguments].concat();
    world.run(&all, "")
}

/// Topics of two partitions.
fn two(name: &str) -> World {
    let mut world = World::on(broker(), name);
    world.tiers = vec![Duration::from_millis(300), Duration::from_secs(1)];
    world.create_topics(2);
    world
}

/// The role as `/readyz` reports it.
fn state(process: &Process, role: &str) -> String {
    let text = process.get("/readyz").1;
    let json: Value = serde_json::from_str(&text).unwrap_or_default();
    json["roles"][role]["state"]
        .as_str()
        .unwrap_or(&text)
        .to_owned()
}

#[test]
fn partitions_are_added_while_events_flow_and_order_is_kept() {
    const SUBSCRIBERS: usize = 8;
    let world = two("growing");
    let before = partitions(&world, &world.topics.commands());
    let after = before * 3;
    // Some are retried: their subject waits for them, in a tier.
    let receiver = Receiver::start(|seen| {
        let body: Value = serde_json::from_slice(&seen.body).unwrap();
        match body["data"]["number"].as_u64() {
            Some(number) if number % 25 == 0 && seen.attempt == 1 => Answer::status(503),
            _ => Answer::ok(),
        }
    });
    let subscriptions: Vec<Value> = (0..SUBSCRIBERS)
        .map(|number| {
            let id = format!("s{number}");
            let one = subscription(&id, &receiver.url(&format!("/{id}")), &["**"]);
            with(
                one,
                json!({"subscriber": format!("subscriber-{number}"), "order": "strict"}),
            )
        })
        .collect();
    put(&world, &subscriptions);
    let process = start(&world, &[]);
    process.wait_ready();
    let done = AtomicBool::new(false);
    let published = std::thread::scope(|scope| {
        let publisher = scope.spawn(|| {
            let mut number = 0;
            while !done.load(Ordering::Acquire) {
                number += 1;
                numbered(&world, number);
                std::thread::sleep(Duration::from_millis(50));
            }
            number
        });
        receiver.wait_for(SUBSCRIBERS, LATER);
        let wanted = after.to_string();
        let dry = add(&world, &[&wanted, "--dry-run", "-o", "json"]);
        let grown = add(&world, &[&wanted, "--yes"]);
        done.store(true, Ordering::Release);
        assert_eq!(dry.code, 0, "{}", dry.stderr);
        let rows: Value = serde_json::from_str(&dry.stdout).unwrap();
        let last = rows.as_array().unwrap().last().unwrap();
        assert_eq!(
            *last,
            json!({"topic": world.topics.commands(), "before": before, "partitions": after})
        );
        assert_eq!(grown.code, 0, "{}", grown.stderr);
        for line in ["fanout is held", "release is held"] {
            assert!(grown.stderr.contains(line), "{}", grown.stderr);
        }
        publisher.join().unwrap()
    });
    let mut topics = vec![world.topics.commands(), world.topics.dead_letters()];
    topics.extend(world.tiers.iter().map(|&delay| world.topics.retry(delay)));
    for topic in topics {
        assert_eq!(partitions(&world, &topic), after, "{topic}");
    }
    // With the new number.
    for number in published + 1..=published + 20 {
        numbered(&world, number);
    }
    wait_until_done_within(&world, LATER * 2);
    let mut delivered: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for seen in receiver.seen() {
        let body: Value = serde_json::from_slice(&seen.body).unwrap();
        let number = body["data"]["number"].as_u64().unwrap();
        if !number.is_multiple_of(25) || seen.attempt > 1 {
            delivered.entry(seen.path.clone()).or_default().push(number);
        }
    }
    let all: Vec<u64> = (1..=published + 20).collect();
    assert_eq!(delivered.len(), SUBSCRIBERS);
    for (path, numbers) in delivered {
        let wrong = numbers
            .iter()
            .zip(&all)
            .find(|(seen, wanted)| seen != wanted);
        assert_eq!(wrong, None, "{path}: each once, in order");
        assert_eq!(numbers.len(), all.len(), "{path}");
    }
    let used: std::collections::BTreeSet<i32> = world
        .read_all(&world.topics.commands(), Isolation::Committed)
        .iter()
        .map(|record| record.partition)
        .collect();
    assert!(
        used.iter()
            .any(|&partition| partition >= i32::try_from(before).unwrap()),
        "{used:?}"
    );
}

#[test]
fn while_commands_wait_nothing_is_added_and_everything_goes_on() {
    let world = two("not-growing");
    let before = partitions(&world, &world.topics.commands());
    let receiver = Receiver::start(|seen| match &*seen.path {
        "/hanging" => Answer::hang(),
        _ => Answer::ok(),
    });
    put(
        &world,
        &[
            with(
                subscription("hanging", &receiver.url("/hanging"), &["h"]),
                json!({"timeout": "1m"}),
            ),
            subscription("good", &receiver.url("/good"), &["g"]),
        ],
    );
    let process = start(&world, &[]);
    world.produce_event("k", &[], event("1", "h", "1"));
    receiver.wait_for(1, LATER);
    let more = (before + 1).to_string();
    let refused = add(&world, &[&more, "--yes", "--wait", "12s"]);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(
        refused
            .stderr
            .contains("nothing was added: after 12s there is still to wait for 1 command in the commands topic"),
        "{}",
        refused.stderr
    );
    assert_eq!(partitions(&world, &world.topics.commands()), before);
    world.produce_event("k", &[], event("2", "g", "1"));
    receiver.wait_for(2, LATER);

    // Fewer are refused, and as many are done.
    let fewer = add(&world, &[&(before - 1).to_string(), "--yes"]);
    assert_eq!(fewer.code, 1);
    assert!(fewer.stderr.contains("never removed"), "{}", fewer.stderr);
    let same = add(&world, &[&before.to_string(), "--yes"]);
    assert_eq!(same.code, 0, "{}", same.stderr);
    let unconfirmed = add(&world, &[&more]);
    assert_eq!(unconfirmed.code, 2, "{}", unconfirmed.stderr);

    // The command is killed: its hold ends by itself.
    let mut arguments = vec!["topics", "add-partitions", &more, "--yes"];
    let all = world.args();
    arguments.extend(all.iter().map(String::as_str));
    let mut killed = Process::spawn(&arguments);
    killed.wait_for_line("fanout is held", LATER);
    // It has left its group, and has its work to end.
    eventually_true("fan-out waits", SOON, || {
        state(&process, "fanout") == "waiting"
    });
    assert_eq!(state(&process, "release"), "ready");
    killed.sigkill();
    world.produce_event("k", &[], event("3", "g", "1"));
    receiver.wait_for(3, LEASE);
    eventually_true("fan-out is ready", SOON, || {
        state(&process, "fanout") == "ready"
    });
}
