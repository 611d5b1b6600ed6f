//! The log of attempts: one record a request while it is on, nothing while it is off, and never a secret.

use std::time::Duration;

use serde_json::{Value, json};

use crate::scene::{
    LATER, alter_topic, event, put, start, subscription, wait_for_dead_letters, wait_for_records,
    wait_until_done, with, world,
};
use crate::support::{Answer, Isolation, Receiver, Record, SOON, World, eventually_true};

/// A world whose log of attempts is on, with its topic.
fn logged(name: &str) -> World {
    let mut world = world(name);
    world.create_topic(&world.topics.attempts(), 1, &[]);
    world.flags.push("--attempt-log".to_owned());
    world
}

/// In the order in which they began.
fn values(records: &[Record]) -> Vec<Value> {
    let mut values: Vec<Value> = records.iter().map(Record::json).collect();
    values.sort_by_key(|value| value["time"].as_str().unwrap().to_owned());
    values
}

#[test]
fn each_request_has_one_record_with_its_number_over_retries_and_replays() {
    let world = logged("attempts");
    let receiver = Receiver::start(|seen| match (seen.path.as_str(), seen.attempt) {
        ("/flaky", 1) => Answer::status(500).body("no room at the inn"),
        ("/flaky", 2) => Answer::reset(),
        ("/refuse", 1) => Answer::status(400),
        ("/busy", 1 | 2) => Answer::status(429).header("retry-after", "1"),
        _ => Answer::ok().body("thanks"),
    });
    put(
        &world,
        &[
            subscription("flaky", &receiver.url("/flaky"), &["**"]),
            subscription("refuse", &receiver.url("/refuse"), &["**"]),
            subscription("busy", &receiver.url("/busy"), &["**"]),
        ],
    );
    let process = start(&world, &[]);
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    world.produce_event(
        "k",
        &[("traceparent", trace)],
        event("e1", "order.created", "1"),
    );
    wait_for_dead_letters(&world, 1);
    let replayed = world.run(&["replay", "--dead-letters", "--yes"], "");
    assert_eq!(replayed.code, 0, "{}", replayed.stderr);
    wait_until_done(&world);
    let records = wait_for_records(&world, &world.topics.attempts(), 8);
    assert_eq!(
        records.len(),
        receiver.seen().len(),
        "one record for each request"
    );

    let all = values(&records);
    let of = |id: &str| -> Vec<Value> {
        let told = |value: &Value| {
            let fields = ["attempt", "status", "class", "outcome", "body"];
            fields.iter().map(|field| value[field].clone()).collect()
        };
        all.iter()
            .filter(|value| value["subscription"] == id)
            .map(told)
            .collect()
    };
    assert_eq!(
        of("flaky"),
        [
            json!([1, 500, "5xx", "retry", "no room at the inn"]),
            json!([2, null, "other", "retry", null]),
            json!([3, 200, "2xx", "delivered", "thanks"]),
        ]
    );
    assert_eq!(
        of("refuse"),
        [
            json!([1, 400, "4xx", "dead_lettered", null]),
            json!([1, 200, "2xx", "delivered", "thanks"]),
        ]
    );
    assert_eq!(
        of("busy"),
        [
            json!([1, 429, "4xx", "throttled", null]),
            json!([1, 429, "4xx", "throttled", null]),
            json!([1, 200, "2xx", "delivered", "thanks"]),
        ]
    );
    for value in &all {
        assert_eq!(value["event_id"], "e1");
        assert_eq!(value["traceparent"], trace);
        assert_eq!(value["url"], receiver.url("/REDACTED"));
        assert!(value["duration_ms"].as_f64().unwrap() < 60_000.0);
        assert_eq!(
            value["error"].is_string(),
            value["status"].is_null(),
            "{value}"
        );
    }
    for record in &records {
        assert_eq!(record.key_text(), record.json()["subscriber"]);
    }
    let written = r#"hookstream_attempt_records_total{result="written"}"#;
    eventually_true("the records are counted", SOON, || {
        process.metric(written) == Some(8.0)
    });
}

#[test]
fn while_it_is_off_nothing_is_written() {
    let world = world("attempts-off");
    world.create_topic(&world.topics.attempts(), 1, &[]);
    let receiver = Receiver::good();
    put(&world, &[subscription("s", &receiver.url("/"), &["**"])]);
    let mut process = start(&world, &[]);
    world.produce_event("k", &[], event("e1", "a.b", "1"));
    receiver.wait_for(1, LATER);
    process.sigterm();
    assert!(process.wait_exit(LATER).success());
    assert_eq!(
        world.read_all(&world.topics.attempts(), Isolation::Committed),
        []
    );
}

#[test]
fn what_was_noted_is_written_before_an_orderly_end() {
    let world = logged("attempts-end");
    let receiver = Receiver::good();
    put(&world, &[subscription("s", &receiver.url("/"), &["**"])]);
    let mut process = start(&world, &[]);
    world.produce_events((0..300).map(|n| ("k", event(&format!("e{n}"), "a.b", "1"))));
    receiver.wait_for(300, LATER);
    process.sigterm();
    assert!(process.wait_exit(LATER).success());
    let records = world.read_all(&world.topics.attempts(), Isolation::Committed);
    assert_eq!(records.len(), receiver.seen().len());
}

#[test]
fn no_secret_and_nothing_of_a_path_or_query_is_in_the_log_even_if_the_endpoint_echoes_them() {
    let world = logged("attempts-secret");
    let receiver = Receiver::start(|seen| {
        let headers: Vec<String> = seen
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        let echo = format!("you sent {} {}", seen.path, headers.join("; "));
        Answer::status(500).body(echo)
    });
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let credentials =
        json!({"secrets": [secret], "headers": {"authorization": "Bearer header-secret"}});
    let url = receiver.url("/in/path-secret?token=query-secret&x=1");
    put(
        &world,
        &[with(subscription("s", &url, &["**"]), credentials)],
    );
    let _process = start(&world, &[]);
    world.produce_event("k", &[], event("e1", "a.b", "1"));
    let records = wait_for_records(&world, &world.topics.attempts(), 1);
    let seen = &receiver.seen()[0];
    assert_eq!(seen.path, "/in/path-secret?token=query-secret&x=1");
    assert_eq!(seen.header("authorization"), Some("Bearer header-secret"));
    let value = records[0].json();
    assert_eq!(value["url"], receiver.url("/REDACTED"));
    let body = value["body"].as_str().unwrap();
    assert!(
        body.contains("you sent ***?***") && body.contains("authorization: ***"),
        "{body}"
    );
    let whole = value.to_string();
    for hidden in [
        "path-secret",
        "query-secret",
        "header-secret",
        secret,
        "token=",
    ] {
        assert!(!whole.contains(hidden), "{hidden} in {whole}");
    }
}

#[test]
fn a_log_that_cannot_be_written_holds_nothing_up_and_is_counted() {
    let world = logged("attempts-lost");
    // Refuses every record for its size.
    alter_topic(
        &world,
        &world.topics.attempts(),
        &[("max.message.bytes", "10")],
    );
    let receiver = Receiver::good();
    put(&world, &[subscription("s", &receiver.url("/"), &["**"])]);
    let process = start(&world, &[]);
    world.produce_events((0..50).map(|n| ("k", event(&format!("e{n}"), "a.b", "1"))));
    receiver.wait_for(50, LATER);
    wait_until_done(&world);
    let dropped = r#"hookstream_attempt_records_total{result="dropped"}"#;
    eventually_true("the records are counted as dropped", LATER, || {
        process.metric(dropped) == Some(50.0)
    });
    let line = process.wait_for_line("attempt log record dropped", LATER);
    for part in [world.topics.attempts().as_str(), "partition="] {
        assert!(line.contains(part), "{line}");
    }
}

#[test]
fn the_topic_is_made_and_checked_while_the_log_is_on_and_missed_by_name() {
    let mut world = World::new("attempts-topic");
    world.tiers = vec![Duration::from_secs(1)];
    let topic = world.topics.attempts();
    world.create_topics_by_program(2, &["--partitions", "2"]);
    world.flags.push("--attempt-log".to_owned());
    let checked = world.run(&["topics", "check"], "");
    assert_eq!(checked.code, 1, "{}", checked.stdout);
    assert!(checked.stdout.contains(&topic), "{}", checked.stdout);
    let mut process = world.spawn("deliver", &[]);
    assert_eq!(process.wait_exit(LATER).code(), Some(1));
    let told = process.stderr().join("\n");
    assert!(
        told.contains(&format!("the topic {topic} does not exist")),
        "{told}"
    );
    let made = world.run(&["topics", "create", "-o", "json"], "");
    assert_eq!(made.code, 0, "{}", made.stderr);
    let made: Vec<Value> = serde_json::from_str(&made.stdout).unwrap();
    let log = made.iter().find(|one| one["topic"] == topic.as_str());
    let log = log.unwrap();
    assert_eq!(log["result"], "created");
    assert_eq!(log["partitions"], 2);
    assert_eq!(log["config"]["retention.ms"], "259200000");
    let checked = world.run(&["topics", "check"], "");
    assert_eq!(checked.code, 0, "{}{}", checked.stdout, checked.stderr);
}
