//! What bad input gets, on a real Kafka: its own topic, a metric, a clear message; and what is good goes on.

use std::net::TcpListener;

use serde_json::json;

use crate::scene::{
    LATER, alter_topic, body, event, put, start, subscription, wait_for_records, wait_until_done,
    with, world,
};
use crate::support::{
    Broker, Isolation, Process, Receiver, Record, SOON, World, eventually_true, run_to_end,
};

/// Events count once their position is committed, which is after they are seen.
#[track_caller]
fn counted(process: &Process, result: &str, events: f64) {
    let sample = format!("hookstream_events_total{{result={result:?}}}");
    eventually_true(&format!("{events} {result}"), LATER, || {
        process.metric(&sample) == Some(events)
    });
}

#[test]
fn an_unreadable_event_is_kept_whole_and_the_good_one_behind_it_arrives() {
    let world = world("invalid");
    let receiver = Receiver::good();
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    let process = start(&world, &["--max-event-bytes", "4KiB"]);
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let large = format!(r#""{}""#, "x".repeat(5000));
    let cloud = ("content-type", "application/cloudevents+json");
    let binary = ("ce_specversion", "1.0");
    type BadEvent = (
        &'static str,
        Vec<(&'static str, &'static str)>,
        Option<Vec<u8>>,
    );
    let bad: Vec<BadEvent> = vec![
        ("not JSON", vec![], Some(b"order created".to_vec())),
        ("not an object", vec![], Some(b"[1,2]".to_vec())),
        (
            "cut off",
            vec![],
            Some(br#"{"id":"1","type":"order.created","data":{"#.to_vec()),
        ),
        (
            "no id",
            vec![],
            Some(br#"{"type":"order.created","data":1}"#.to_vec()),
        ),
        ("no type", vec![], Some(br#"{"id":"1","data":1}"#.to_vec())),
        (
            "id is a number",
            vec![],
            Some(br#"{"id":1,"type":"order.created"}"#.to_vec()),
        ),
        (
            "not UTF-8",
            vec![],
            Some(b"{\"id\":\"1\",\"type\":\"a.b\",\"data\":\"\xff\xfe\"}".to_vec()),
        ),
        (
            "too large",
            vec![],
            Some(event("1", "order.created", &large).into_bytes()),
        ),
        (
            "too deep",
            vec![],
            Some(event("1", "order.created", &deep).into_bytes()),
        ),
        (
            "absurd number in an attribute",
            vec![cloud],
            Some(
                br#"{"specversion":"1.0","id":"1","source":"s","type":"a.b","level":1e999999}"#
                    .to_vec(),
            ),
        ),
        (
            "bad time",
            vec![],
            Some(br#"{"id":"1","type":"a.b","time":"yesterday"}"#.to_vec()),
        ),
        (
            "data in base64",
            vec![],
            Some(br#"{"id":"1","type":"a.b","data_base64":"aGk="}"#.to_vec()),
        ),
        (
            "a byte order mark",
            vec![],
            Some(
                "\u{feff}{\"id\":\"1\",\"type\":\"a.b\"}"
                    .as_bytes()
                    .to_vec(),
            ),
        ),
        (
            "a member twice",
            vec![],
            Some(br#"{"id":"1","type":"a.b","id":"2"}"#.to_vec()),
        ),
        (
            "a line break in the id",
            vec![],
            Some(br#"{"id":"1\n2","type":"a.b"}"#.to_vec()),
        ),
        ("empty", vec![], Some(Vec::new())),
        (
            "CloudEvent without source",
            vec![cloud],
            Some(br#"{"specversion":"1.0","id":"1","type":"a.b"}"#.to_vec()),
        ),
        (
            "CloudEvent of a later version",
            vec![cloud],
            Some(br#"{"specversion":"2.0","id":"1","source":"s","type":"a.b"}"#.to_vec()),
        ),
        (
            "binary CloudEvent without id",
            vec![binary, ("ce_source", "s"), ("ce_type", "a.b")],
            Some(b"1".to_vec()),
        ),
    ];
    let originals: Vec<Record> = {
        let records = bad
            .iter()
            .map(|(name, headers, value)| (Some(*name), headers.clone(), value.clone()));
        world.produce(&world.events, records);
        world.read_all(&world.events, Isolation::Committed)
    };
    // Tombstones are neither copied nor counted as invalid.
    world.produce(
        &world.events,
        (0..3).map(|_| (Some("deleted"), Vec::new(), None)),
    );
    world.produce_event("k", &[], event("good", "order.created", "1"));

    let seen = receiver.wait_for(1, LATER);
    assert_eq!(seen[0].body, body("order.created", "1").as_bytes());
    let kept = wait_for_records(&world, &world.topics.invalid_events(), bad.len());
    assert_eq!(kept.len(), bad.len());
    for original in &originals {
        let name = original.key_text();
        let same = kept.iter().find(|one| one.key == original.key);
        let same = same.unwrap_or_else(|| panic!("{name}: it was not kept"));
        assert_eq!(same.value, original.value, "{name}: its bytes have changed");
        assert_eq!(
            same.headers[..original.headers.len()],
            original.headers,
            "{name}: its headers have changed"
        );
        assert!(
            same.header("hookstream-error")
                .is_some_and(|error| error.len() > 5),
            "{name}"
        );
        assert_eq!(
            same.header("hookstream-topic"),
            Some(world.events.as_str()),
            "{name}"
        );
        assert_eq!(same.header("hookstream-partition"), Some("0"), "{name}");
        assert_eq!(
            same.header("hookstream-offset"),
            Some(original.offset.to_string().as_str()),
            "{name}"
        );
    }
    counted(&process, "invalid", bad.len() as f64);
    counted(&process, "tombstone", 3.0);
    counted(&process, "fanned_out", 1.0);
    wait_until_done(&world);
    assert_eq!(receiver.seen().len(), 1);
}

#[test]
fn an_invalid_subscription_record_leaves_the_previous_one_in_force() {
    let world = world("bad-subscription");
    let receiver = Receiver::good();
    let good = subscription("acme", &receiver.url("/good"), &["order.*"]);
    put(&world, std::slice::from_ref(&good));
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let invalid = with(
        good.clone(),
        json!({"url": receiver.url("/bad"), "max_in_flight": 0, "secrets": [secret, "whsec_!"]}),
    );
    world.put_subscription("acme", invalid.to_string());
    world.put_subscription("acme", "{");
    world.put_subscription("other-key", good.to_string());
    world.put_subscription("never-valid", "not JSON");
    let process = start(&world, &[]);
    world.produce_event("k", &[], event("1", "order.created", "1"));
    wait_until_done(&world);
    let seen = receiver.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].path, "/good");
    assert_eq!(
        process.metric("hookstream_invalid_subscriptions_total"),
        Some(4.0)
    );
    let log = process.stderr().join("\n");
    assert!(
        log.contains("max_in_flight"),
        "the log names what is wrong: {log}"
    );
    assert!(!log.contains("MfKQ9r8"), "a secret is in the log");
}

#[test]
fn a_record_that_is_no_command_goes_to_the_invalid_events() {
    let world = world("no-command");
    let receiver = Receiver::good();
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    let commands = world.topics.commands();
    world.produce(
        &commands,
        [(
            Some("acme"),
            vec![("hs-attempt", "many"), ("x", "y")],
            Some(b"who knows".to_vec()),
        )],
    );
    let _process = start(&world, &[]);
    world.produce_event("k", &[], event("1", "order.created", "1"));
    receiver.wait_for(1, LATER);
    let kept = &wait_for_records(&world, &world.topics.invalid_events(), 1)[0];
    assert_eq!(
        (kept.key_text(), kept.value.as_deref()),
        ("acme", Some(&b"who knows"[..]))
    );
    assert_eq!(
        (kept.header("hs-attempt"), kept.header("x")),
        (Some("many"), Some("y"))
    );
    assert_eq!(kept.header("hookstream-topic"), Some(commands.as_str()));
    assert_eq!(kept.header("hookstream-offset"), Some("0"));
    wait_until_done(&world);
    assert_eq!(receiver.seen().len(), 1);
}

#[test]
fn foreign_commit_metadata_reads_as_empty_and_is_counted() {
    let world = world("foreign-metadata");
    let receiver = Receiver::good();
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    let commands = world.topics.commands();
    world.commit("deliver", &commands, 0, 0, "by somebody else ☃");
    assert_eq!(
        world.committed("deliver", &commands)[0].2,
        "by somebody else ☃"
    );

    let process = start(&world, &[]);
    world.produce_events((0..3).map(|n| ("k", event(&n.to_string(), "order.created", "1"))));
    wait_until_done(&world);
    assert_eq!(receiver.seen().len(), 3);
    assert_eq!(
        process.metric("hookstream_foreign_commit_metadata_total"),
        Some(1.0)
    );
}

#[test]
fn an_event_whose_command_is_too_large_for_its_topic_does_not_stop_the_others() {
    let world = world("too-large");
    let receiver = Receiver::good();
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    alter_topic(
        &world,
        &world.topics.commands(),
        &[("max.message.bytes", "20000")],
    );
    let process = start(&world, &[]);
    // Random, so that no compression makes it fit.
    let noise: String = std::iter::repeat_with(fastrand::alphanumeric)
        .take(100_000)
        .collect();
    let large = event("large", "order.created", &format!(r#""{noise}""#));
    world.produce_events([
        ("k", event("before", "order.created", "1")),
        ("large", large.clone()),
        ("k", event("behind", "order.created", "2")),
    ]);
    wait_until_done(&world);
    let mut bodies: Vec<String> = receiver
        .seen()
        .iter()
        .map(|seen| String::from_utf8(seen.body.to_vec()).unwrap())
        .collect();
    bodies.sort();
    assert_eq!(
        bodies,
        [body("order.created", "1"), body("order.created", "2")]
    );
    let kept = world.read_all(&world.topics.invalid_events(), Isolation::Committed);
    assert_eq!(kept.len(), 1);
    assert_eq!(
        (kept[0].key_text(), kept[0].value.as_deref()),
        ("large", Some(large.as_bytes()))
    );
    assert!(
        kept[0]
            .header("hookstream-error")
            .unwrap()
            .contains("max.message.bytes")
    );
    counted(&process, "invalid", 1.0);
}

#[test]
fn many_events_fit_topics_that_are_made_for_small_ones() {
    let mut world = World::new("small");
    world.flags = ["--max-event-bytes", "4KiB"].map(str::to_owned).to_vec();
    world.create_topics_by_program(1, &["--partitions", "1"]);
    put(
        &world,
        &[subscription("acme", "http://127.0.0.1:1/", &["**"])],
    );
    // Random, so that no compression makes a batch small.
    let noise = || -> String {
        std::iter::repeat_with(fastrand::alphanumeric)
            .take(3800)
            .collect()
    };
    world.produce_events((0..800).map(|n| {
        let data = format!(r#""{}""#, noise());
        ("k", event(&n.to_string(), "order.created", &data))
    }));
    // So that batches grow as large as they may.
    let process = world.spawn("fanout", &["-X", "linger.ms=50"]);
    wait_for_records(&world, &world.topics.commands(), 800);
    assert_eq!(
        process.metric(r#"hookstream_events_total{result="invalid"}"#),
        Some(0.0)
    );
    let again = process
        .stderr()
        .into_iter()
        .filter(|line| line.contains("reading again"));
    assert_eq!(again.count(), 0, "a batch of small commands was refused");
}

#[test]
fn a_role_waits_for_a_broker_that_is_down_and_goes_on_when_it_comes() {
    let broker = Broker::own();
    let world = World::on(&broker, "down");
    world.create_topics(1);
    let receiver = Receiver::good();
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    world.produce_event("k", &[], event("1", "order.created", "1"));
    broker.stop();

    let process = world.spawn("run", &[]);
    let line = process.wait_for_line("waiting for a broker", SOON);
    assert!(line.contains(&world.brokers), "{line}");
    let (status, told) = process.get("/readyz");
    assert_eq!(status, 503, "{told}");
    assert!(told.contains("waiting"), "{told}");
    assert_eq!(process.get("/livez").0, 200, "waiting is being alive");
    eventually_true("the metric says so", SOON, || {
        process.metric("hookstream_broker_up") == Some(0.0)
    });

    broker.start();
    receiver.wait_for(1, LATER);
    process.wait_ready();
    assert_eq!(process.metric("hookstream_broker_up"), Some(1.0));
}

#[test]
fn a_missing_topic_ends_a_role_with_the_command_that_makes_it() {
    let world = World::new("no-topics");
    for role in ["fanout", "deliver", "release", "run"] {
        let mut process = world.spawn(role, &[]);
        let status = process.wait_exit(SOON);
        assert_eq!(status.code(), Some(1), "{role}");
        let told = process.stderr().join("\n");
        assert!(
            told.contains(&world.prefix),
            "{role} names no topic: {told}"
        );
        assert!(
            told.contains("hookstream topics create"),
            "{role} names no command: {told}"
        );
    }
}

#[test]
fn a_port_in_use_ends_a_role_with_the_flag_that_changes_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let output = run_to_end(
        &["run", "--brokers", "127.0.0.1:1", "--http-listen", &taken],
        "",
    );
    assert_eq!(output.code, 1, "{}", output.stderr);
    assert!(
        output.stderr.contains(&taken) && output.stderr.contains("--http-listen"),
        "{}",
        output.stderr
    );
}
