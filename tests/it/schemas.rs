//! The schemas describe what is really on Kafka, and the AsyncAPI document leaves no topic out.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::scene::{
    body, event, start, subscription, wait_for_dead_letters, wait_for_records, wait_until_done,
    world,
};
use crate::support::{Answer, Isolation, Receiver, Record};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas")
}

pub fn schema(name: &str) -> jsonschema::Validator {
    let text = std::fs::read_to_string(folder().join(name)).unwrap();
    let schema: Value = serde_json::from_str(&text).unwrap();
    assert!(
        jsonschema::meta::is_valid(&schema),
        "{name} is no valid schema"
    );
    jsonschema::validator_for(&schema).unwrap()
}

/// One of a schema's `$defs`.
pub fn definition(name: &str, of: &str) -> jsonschema::Validator {
    let text = std::fs::read_to_string(folder().join(name)).unwrap();
    let schema: Value = serde_json::from_str(&text).unwrap();
    jsonschema::validator_for(&schema["$defs"][of]).unwrap()
}

fn headers(record: &Record) -> Value {
    let text = |bytes: &Vec<u8>| Value::String(String::from_utf8(bytes.clone()).unwrap());
    let pairs = record
        .headers
        .iter()
        .map(|(name, value)| (name.clone(), text(value)));
    Value::Object(pairs.collect::<Map<_, _>>())
}

#[track_caller]
pub fn assert_valid(validator: &jsonschema::Validator, value: &Value, what: &str) {
    let errors: Vec<_> = validator
        .iter_errors(value)
        .map(|error| error.to_string())
        .collect();
    assert!(errors.is_empty(), "{what}: {value}: {errors:?}");
}

#[test]
fn every_record_on_kafka_is_as_its_schema_says() {
    let mut world = world("schemas");
    world.flags.push("--attempt-log".to_owned());
    world.create_topic(&world.topics.attempts(), 1, &[]);
    let receiver = Receiver::start(|seen| match seen.path.as_str() {
        "/refuse" if seen.attempt == 1 => Answer::status(400),
        "/flaky" if seen.attempt == 1 => Answer::status(500).body("busy"),
        _ => Answer::ok(),
    });
    let all = ["good", "flaky", "refuse"]
        .map(|id| subscription(id, &receiver.url(&format!("/{id}")), &["**"]));
    let applied = world.run(
        &["subscriptions", "apply", "-f", "-"],
        &json!(all).to_string(),
    );
    assert_eq!(applied.code, 0, "{}", applied.stderr);
    let _process = start(&world, &[]);
    let trace = (
        "traceparent",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    );
    let structured = r#"{"specversion":"1.0","id":"2","source":"/shop","type":"order.paid","subject":"o","data":{"total":1}}"#;
    let binary = [
        ("ce_specversion", "1.0"),
        ("ce_id", "3"),
        ("ce_source", "/shop"),
        ("ce_type", "order.sent"),
    ];
    world.produce_event("k", &[trace], event("1", "order.created", "1"));
    world.produce_event("k", &[], structured);
    world.produce_event("k", &binary, r#"{"total":2}"#);
    world.produce_event("k", &[], "no json");
    wait_for_dead_letters(&world, 3);
    let replayed = world.run(&["replay", "--dead-letters", "--yes"], "");
    assert_eq!(replayed.code, 0, "{}", replayed.stderr);
    wait_until_done(&world);

    let read = |topic: &str| world.read_all(topic, Isolation::Committed);
    let commands = schema("command-headers.schema.json");
    let written = read(&world.topics.commands());
    let mut causes: Vec<_> = written
        .iter()
        .map(|record| record.header("hs-cause").unwrap())
        .collect();
    causes.sort_unstable();
    causes.dedup();
    assert_eq!(
        causes,
        ["new", "replay", "retry"],
        "each kind of command is looked at"
    );
    for record in &written {
        assert_valid(&commands, &headers(record), "command");
    }
    assert!(
        written
            .iter()
            .any(|record| record.value.as_deref() == Some(body("order.created", "1").as_bytes()))
    );
    let waited: Vec<_> = world
        .tiers
        .iter()
        .flat_map(|tier| read(&world.topics.retry(*tier)))
        .collect();
    assert!(waited.len() >= 3, "what failed once has waited");
    for record in &waited {
        assert_valid(&commands, &headers(record), "retry");
    }
    // The dead letters of `refuse`, which gets a 400.
    let notices = wait_for_records(&world, &world.topics.notices(), 1);
    for record in &notices {
        let notice = record.json();
        assert_valid(&schema("notice.schema.json"), &notice, "notice");
        assert_eq!(notice["type"], "hookstream.dead_letters.begun");
        assert_eq!(
            (record.key_text(), &notice["subject"]),
            ("refuse", &json!("refuse"))
        );
    }
    let statuses = wait_for_records(&world, &world.topics.status(), 1);
    for record in &statuses {
        assert_valid(&schema("status.schema.json"), &record.json(), "status");
    }
    let (letters, facts): (Vec<_>, Vec<_>) = read(&world.topics.dead_letters())
        .into_iter()
        .partition(|record| record.header("hs-fact") == Some("dead-lettered"));
    assert_eq!((letters.len(), facts.len()), (3, 3));
    for record in &letters {
        assert_valid(
            &schema("dead-letter.schema.json"),
            &headers(record),
            "dead letter",
        );
    }
    for record in &facts {
        assert_valid(&schema("fact.schema.json"), &headers(record), "fact");
    }
    // Three are delivered, three after one failure, three refused and replayed.
    let attempts = wait_for_records(&world, &world.topics.attempts(), 15);
    assert_eq!(attempts.len(), 15);
    for record in &attempts {
        assert_valid(&schema("attempt.schema.json"), &record.json(), "attempt");
        assert!(record.headers.is_empty(), "{:?}", record.headers);
    }
    let paused = world.run(&["subscriptions", "pause", "good"], "");
    assert_eq!(paused.code, 0, "{}", paused.stderr);
    let (decisions, subscriptions): (Vec<_>, Vec<_>) = read(&world.topics.subscriptions())
        .into_iter()
        // The markers of first starts are about no subscription.
        .filter(|record| !record.key_text().starts_with("start/"))
        .partition(|record| record.key_text().contains('/'));
    assert_eq!((subscriptions.len(), decisions.len()), (3, 1));
    for record in &decisions {
        assert_valid(
            &schema("subscription-state.schema.json"),
            &record.json(),
            "decision",
        );
    }
    for record in &subscriptions {
        assert_valid(
            &schema("subscription.schema.json"),
            &record.json(),
            "subscription",
        );
    }
    let events = read(&world.events);
    for record in events.iter().take(2) {
        assert_valid(&schema("event.schema.json"), &record.json(), "event");
    }
    let invalid = wait_for_records(&world, &world.topics.invalid_events(), 1);
    assert_eq!(invalid[0].value.as_deref(), Some("no json".as_bytes()));
    assert_valid(
        &schema("invalid-event-headers.schema.json"),
        &headers(&invalid[0]),
        "invalid event",
    );
}

/// All values of `$ref` in a document.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match member {
                    Value::String(target) if name == "$ref" => found.push(target.clone()),
                    other => references(other, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[test]
fn the_asyncapi_document_names_every_topic_and_every_schema() {
    let text = std::fs::read_to_string(folder().join("asyncapi.yaml")).unwrap();
    let document: Value = serde_saphyr::from_str(&text).unwrap();
    let addresses: Vec<_> = document["channels"]
        .as_object()
        .unwrap()
        .values()
        .map(|channel| channel["address"].as_str().unwrap())
        .collect();
    let topics = hookstream::config::Topics {
        events: vec!["order-events".into()],
        prefix: "webhook-".into(),
    };
    for topic in [
        topics.commands(),
        topics.subscriptions(),
        topics.dead_letters(),
        topics.attempts(),
        topics.invalid_events(),
        topics.status(),
        topics.notices(),
    ] {
        assert!(addresses.contains(&topic.as_str()), "{topic} is missing");
    }
    assert!(addresses.contains(&"webhook-retry-{delay}") && addresses.contains(&"order-events"));
    let mut found = Vec::new();
    references(&document, &mut found);
    let mut files: Vec<_> = found
        .iter()
        .filter_map(|target| target.strip_prefix("./"))
        .filter_map(|target| target.split('#').next())
        .collect();
    for local in found.iter().filter_map(|target| target.strip_prefix('#')) {
        assert!(document.pointer(local).is_some(), "{local} leads nowhere");
    }
    files.sort_unstable();
    files.dedup();
    let mut schemas: Vec<_> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".json"))
        .collect();
    schemas.sort();
    assert_eq!(
        files, schemas,
        "each schema is used, and each that is used is there"
    );
}
