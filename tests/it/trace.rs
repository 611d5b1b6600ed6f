//! `hookstream trace`: the life of an event that was retried, given up and replayed, by either id.

use serde_json::Value;

use crate::scene::{
    event, put, start, subscription, wait_for_dead_letters, wait_for_records, wait_until_done,
    world,
};
use crate::schemas::{assert_valid, definition};
use crate::support::{Answer, Output, Receiver, World};

fn steps(output: &Output) -> Vec<Value> {
    assert_eq!(output.code, 0, "{}", output.stderr);
    let steps: Vec<Value> = serde_json::from_str(&output.stdout).unwrap();
    let schema = definition("attempt.schema.json", "step");
    for step in &steps {
        assert_valid(&schema, step, "a step");
    }
    steps
}

fn names(steps: &[Value]) -> Vec<&str> {
    steps
        .iter()
        .map(|step| step["step"].as_str().unwrap())
        .collect()
}

/// One that fails until it is given up, and works when it is replayed; and one that works at once.
fn lived(name: &str, flags: &[&str]) -> World {
    let mut world = world(name);
    if flags.contains(&"--attempt-log") {
        world.create_topic(&world.topics.attempts(), 1, &[]);
    }
    world
        .flags
        .extend(flags.iter().map(|&flag| flag.to_owned()));
    let receiver = Receiver::start(|seen| match (seen.path.as_str(), seen.attempt) {
        ("/bad", 1..=2) => Answer::status(500),
        _ => Answer::ok(),
    });
    put(
        &world,
        &[
            subscription("good", &receiver.url("/good"), &["order.*"]),
            subscription("bad", &receiver.url("/bad"), &["order.*"]),
        ],
    );
    let mut process = world.spawn("run", &["--retry-schedule", "300ms"]);
    process.wait_ready();
    world.produce_event("k", &[], event("other", "order.created", "1"));
    world.produce_event("k", &[], event("e1", "order.created", "1"));
    world.produce_event("k", &[], event("nobody", "a.b", "1"));
    wait_for_dead_letters(&world, 2);
    let replayed = world.run(&["replay", "--dead-letters", "--yes"], "");
    assert_eq!(replayed.code, 0, "{}", replayed.stderr);
    wait_until_done(&world);
    process.sigterm();
    assert!(process.wait_exit(crate::scene::LATER).success());
    world
}

#[test]
fn a_life_is_told_in_order_by_the_events_id_and_by_the_webhooks() {
    let world = lived("trace", &["--attempt-log"]);
    wait_for_records(&world, &world.topics.attempts(), 8);
    let by_event = steps(&world.run(&["trace", "e1", "-o", "json"], ""));
    assert_eq!(by_event[0]["step"], "event");
    assert!(by_event.iter().all(|step| step["event_id"] == "e1"));
    let bad: Vec<Value> = by_event
        .iter()
        .filter(|step| step["subscription"] == "bad")
        .cloned()
        .collect();
    // The replay's command and its fact are written together: either may have the earlier time.
    let mut told = names(&bad);
    if told[6..8] == ["replay", "replayed"] {
        told.swap(6, 7);
    }
    assert_eq!(
        told,
        [
            "new",
            "attempt",
            "retry",
            "released",
            "attempt",
            "dead-lettered",
            "replayed",
            "replay",
            "attempt",
        ],
        "{bad:#?}"
    );
    assert_eq!(bad[1]["status"], 500);
    assert_eq!(
        (&bad[1]["attempt"], &bad[4]["attempt"], &bad[8]["attempt"]),
        (&1.into(), &2.into(), &1.into())
    );
    assert_eq!(bad[5]["reason"], "attempts-exhausted");
    let good: Vec<Value> = by_event
        .iter()
        .filter(|step| step["subscription"] == "good")
        .cloned()
        .collect();
    assert_eq!(names(&good), ["new", "attempt"]);

    let webhook = bad[0]["webhook_id"].as_str().unwrap();
    let by_webhook = steps(&world.run(&["trace", webhook, "-o", "json"], ""));
    let expected: Vec<Value> = by_event
        .iter()
        .filter(|step| step["subscription"] != "good")
        .cloned()
        .collect();
    assert_eq!(
        by_webhook, expected,
        "the same life without the other webhook"
    );
    assert_eq!(by_webhook[0]["topic"], world.events.as_str());

    let table = world.run(&["trace", webhook], "");
    for part in [
        "TIME",
        "new command",
        "attempt 1: status 500 after ",
        "retry 1 due ",
        "released for attempt 2",
        "dead letter after 2 attempts, attempts-exhausted: the endpoint responded 500",
        "replayed",
        "new command from a replay",
        "attempt 1: status 200 after ",
    ] {
        assert!(table.stdout.contains(part), "{part} in\n{}", table.stdout);
    }
    assert!(
        table
            .stderr
            .contains(&format!("10 records; {webhook} of bad")),
        "{}",
        table.stderr
    );
}

#[test]
fn without_the_log_of_attempts_the_rest_is_told() {
    let world = lived("trace-bare", &[]);
    let told = steps(&world.run(&["trace", "e1", "-o", "json"], ""));
    let bad: Vec<Value> = told
        .into_iter()
        .filter(|step| step["subscription"] == "bad")
        .collect();
    let mut names = names(&bad);
    names[4..].sort_unstable();
    assert_eq!(
        names,
        [
            "new",
            "retry",
            "released",
            "dead-lettered",
            "replay",
            "replayed"
        ]
    );
}

#[test]
fn what_is_not_found_is_told_with_the_range_that_was_searched() {
    let world = lived("trace-none", &[]);
    let unmatched = world.run(&["trace", "nobody", "-o", "jsonl"], "");
    assert_eq!(unmatched.code, 0, "{}", unmatched.stderr);
    assert_eq!(unmatched.stdout.lines().count(), 1);
    assert!(
        unmatched.stderr.contains("no subscription matched"),
        "{}",
        unmatched.stderr
    );

    let nothing = world.run(&["trace", "e9"], "");
    assert_eq!((nothing.code, nothing.stdout.as_str()), (1, ""));
    assert!(
        nothing.stderr.contains("no records for \"e9\" from "),
        "{}",
        nothing.stderr
    );
    let before = world.run(
        &[
            "trace",
            "e1",
            "--since",
            "2020-01-01T00:00:00Z",
            "--until",
            "2020-01-02T00:00:00Z",
        ],
        "",
    );
    assert_eq!(before.code, 1, "{}", before.stdout);
    assert!(
        before
            .stderr
            .contains("from 2020-01-01T00:00:00Z to 2020-01-02T00:00:00Z"),
        "{}",
        before.stderr
    );
    let reversed = world.run(&["trace", "e1", "--since", "1h", "--until", "2h"], "");
    assert_eq!(reversed.code, 2, "{}", reversed.stderr);
    let later = world.run(&["trace", "e1", "--since", "2100-01-01T00:00:00Z"], "");
    assert_eq!(later.code, 2, "{}", later.stdout);
    assert!(later.stderr.contains("in the future"), "{}", later.stderr);
}

#[test]
fn an_event_that_could_not_be_read_is_found_by_the_id_that_stands_in_it() {
    let world = world("trace-invalid");
    let _process = start(&world, &[]);
    world.produce_event("k", &[], r#"{"id":"e7","data":1}"#);
    let binary = [("ce_specversion", "1.0"), ("ce_id", "e8")];
    world.produce_event("k", &binary, "[");
    wait_for_records(&world, &world.topics.invalid_events(), 2);
    let told = steps(&world.run(&["trace", "e7", "-o", "json"], ""));
    assert_eq!(names(&told), ["invalid"]);
    assert_eq!(told[0]["error"], "type is missing");
    let output = world.run(&["trace", "e8", "-o", "json"], "");
    assert_eq!(names(&steps(&output)), ["invalid"]);
    assert!(
        output
            .stderr
            .contains("1 record; no command: the event is invalid"),
        "{}",
        output.stderr
    );
}
