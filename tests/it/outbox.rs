//! From a transaction in PostgreSQL to a verified webhook: the recipe of docs/publishing.md, file by file.

use serde_json::{Value, json};

use crate::flows::{SECRET, verified};
use crate::scene::{LATER, put, subscription, wait_until_done, with, world};
use crate::skipped::skip;
use crate::support::{Connect, Postgres, Receiver, eventually_true};

const GUIDE: &str = include_str!("../../docs/publishing.md");
const TOPIC: &str = "outbox.event.order";

/// A file of the recipe: the code block below its name.
fn file(name: &str) -> String {
    let (_, rest) = GUIDE
        .split_once(&format!("<!-- file: {name} -->\n```"))
        .unwrap_or_else(|| panic!("{name} is not in the guide"));
    let (_, rest) = rest.split_once('\n').unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

/// The same with what is different here: each line is there once.
fn file_with(name: &str, changes: &[(&str, &str)]) -> String {
    let text = file(name);
    changes.iter().fold(text, |text, (old, new)| {
        assert_eq!(text.matches(old).count(), 1, "{old} in {name}");
        text.replace(old, new)
    })
}

#[test]
fn an_order_and_its_row_in_the_outbox_become_one_verified_webhook() {
    if !Postgres::is_installed() {
        skip("without PostgreSQL");
        return;
    }
    let mut world = world("outbox");
    world.events = TOPIC.to_owned();
    world.topics.events = vec![TOPIC.to_owned()];
    world.create_events_topic(1);
    let postgres = Postgres::start(&["wal_level=logical"]);
    postgres.sql("postgres", "CREATE DATABASE shop;");
    postgres.sql("shop", &file("database.sql"));
    let mut connect = Connect::start(
        &(file_with("worker.properties", &[("kafka:9092", &world.brokers)])
            + "listeners=http://127.0.0.1:0\n"),
        &file_with(
            "connector.properties",
            &[
                ("hostname=postgres\n", "hostname=127.0.0.1\n"),
                ("port=5432\n", &format!("port={}\n", postgres.port)),
            ],
        ),
    );

    let config = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(config.path(), file("hookstream.toml")).unwrap();
    world
        .flags
        .extend(["--config".to_owned(), config.path().display().to_string()]);
    let receiver = Receiver::good();
    let signed = with(
        subscription("acme", &receiver.url("/hook"), &["order.*"]),
        json!({"secrets": [SECRET], "filter": {"data.order": ["order-42"]}}),
    );
    put(&world, &[signed]);
    let process = world.spawn("run", &["--workers", "1"]);
    process.wait_ready();
    eventually_true("Debezium reads the log of the database", LATER, || {
        assert!(connect.is_running());
        let slots = "SELECT count(*) FROM pg_replication_slots WHERE active;";
        postgres.sql("shop", slots) == "1"
    });

    // What is rolled back never was.
    let order = file("order.sql");
    postgres.sql("shop", &order.replace("COMMIT", "ROLLBACK"));
    postgres.sql("shop", &order);
    let id = postgres.sql("shop", "SELECT id FROM outbox;");
    let seen = receiver.wait_for(1, LATER);
    wait_until_done(&world);
    assert_eq!(receiver.seen().len(), 1);
    verified(&seen[0], SECRET).unwrap();
    let body: Value = serde_json::from_slice(&seen[0].body).unwrap();
    assert_eq!(body["type"], "order.created");
    let text = String::from_utf8_lossy(&seen[0].body);
    assert!(
        text.ends_with(r#""data":{"order": "order-42", "total": 19.90}}"#),
        "{text}"
    );

    let trace = world.run(&["trace", &id, "-o", "json"], "");
    assert_eq!(trace.code, 0, "{}", trace.stderr);
    let steps: Vec<Value> = serde_json::from_str(&trace.stdout).unwrap();
    assert_eq!(steps[0]["step"], "event", "{steps:?}");
    assert_eq!(steps[0]["topic"], TOPIC);
    let what = steps[0]["what"].as_str().unwrap();
    assert!(what.contains("order.created"), "{what}");
    assert_eq!(steps[1]["step"], "new");
    assert_eq!(steps[1]["webhook_id"], seen[0].webhook_id());
    assert!(steps.iter().all(|step| step["event_id"] == id.as_str()));
    let invalid = world.read_all(
        &world.topics.invalid_events(),
        crate::support::Isolation::Committed,
    );
    assert!(invalid.is_empty(), "{invalid:?}");
}
