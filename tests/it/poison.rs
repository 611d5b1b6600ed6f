//! No bytes on any topic end a role: they are set aside, counted and named, and all good work goes on.

use std::collections::BTreeMap;
use std::time::Duration;

use hookstream::edge::clock;
use hookstream::model::invalid_record::{HEAD_KEY_BYTES, HEAD_VALUE_BYTES};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer};
use serde_json::json;

use crate::scene::{
    LATER, alter_topic, event, put, start, subscription, wait_for_records, wait_until_done, with,
    world, world_on,
};
use crate::support::{
    Answer, Broker, Isolation, Process, RawRecord, Receiver, Record, SOON, Weather, World,
    eventually_true,
};

const GUARANTEES: [&str; 2] = ["exactly-once", "at-least-once"];

/// Random, so that no compression makes it small.
fn noise(bytes: usize) -> Vec<u8> {
    std::iter::repeat_with(fastrand::alphanumeric)
        .map(|letter| letter as u8)
        .take(bytes)
        .collect()
}

fn raw(key: &[u8], headers: &[(&str, &[u8])], value: &[u8]) -> RawRecord {
    RawRecord {
        key: Some(key.to_vec()),
        headers: headers
            .iter()
            .map(|(name, value)| (name.as_bytes().to_vec(), Some(value.to_vec())))
            .collect(),
        value: Some(value.to_vec()),
    }
}

/// The copies in the invalid events, by the topic and offset of the original.
fn copies(world: &World) -> BTreeMap<(String, i64), Record> {
    let all = world.read_all(&world.topics.invalid_events(), Isolation::Committed);
    let place = |record: &Record| {
        let offset = record.header("hookstream-offset").unwrap();
        let topic = record.header("hookstream-topic").unwrap().to_owned();
        (topic, offset.parse().unwrap())
    };
    all.into_iter()
        .map(|record| (place(&record), record))
        .collect()
}

fn set_aside(process: &Process, topic: &str) -> f64 {
    let sample = format!(r#"hookstream_set_aside_total{{topic="{topic}"}}"#);
    process.metric(&sample).unwrap_or(0.0)
}

fn alive(process: &mut Process) {
    assert_eq!(process.exited(), None, "{}", process.stderr().join("\n"));
}

#[test]
fn an_event_that_cannot_be_copied_whole_is_set_aside_by_its_head_and_the_partition_goes_on() {
    for guarantee in GUARANTEES {
        let world = world("large-event");
        let receiver = Receiver::good();
        put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
        let limit = [("max.message.bytes", "30000000")];
        alter_topic(&world, &world.events, &limit);
        let mut process = start(&world, &["--guarantee", guarantee]);
        let many: Vec<(String, Vec<u8>)> = (0..30_000)
            .map(|n| (format!("header-{n}"), noise(40)))
            .collect();
        let many: Vec<(&str, &[u8])> = many
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_slice()))
            .collect();
        let poison = [
            // The client refuses all but the second and the last, which the broker refuses.
            raw(b"k", &[], &noise(3_000_000)),
            raw(b"k", &[], &noise(1_400_000)),
            raw(b"k", &[], &vec![b'x'; 9_000_000]),
            raw(b"k", &[("a", b"b"), ("large", &noise(2_000_000))], b"small"),
            raw(b"k", &many, b"small"),
            raw(&noise(2_000_000), &[], b"small"),
            raw(&noise(1_200_000), &[], b"small"),
        ];
        let mut offsets = Vec::new();
        for (number, one) in poison.iter().enumerate() {
            let good = event(&format!("good-{number}"), "order.created", "1");
            world.produce_raw(&world.events, 0, &[raw(b"k", &[], good.as_bytes())]);
            offsets.extend(world.produce_raw(&world.events, 0, std::slice::from_ref(one)));
        }
        world.produce_event("k", &[], event("last", "order.created", "1"));
        receiver.wait_for(poison.len() + 1, LATER);
        wait_until_done(&world);
        alive(&mut process);
        assert_eq!(
            set_aside(&process, &world.events),
            poison.len() as f64,
            "{guarantee}"
        );
        let copies = copies(&world);
        for (number, (one, offset)) in poison.iter().zip(offsets).enumerate() {
            let copy = &copies[&(world.events.clone(), offset)];
            let (value, key) = (one.value.as_ref().unwrap(), one.key.as_ref().unwrap());
            assert_eq!(
                copy.header("hookstream-truncated"),
                Some(value.len().to_string().as_str()),
                "{guarantee}: number {number}"
            );
            let head = &value[..value.len().min(HEAD_VALUE_BYTES)];
            assert_eq!(
                copy.value.as_deref(),
                Some(head),
                "{guarantee}: number {number}"
            );
            let head = &key[..key.len().min(HEAD_KEY_BYTES)];
            assert_eq!(
                copy.key.as_deref(),
                Some(head),
                "{guarantee}: number {number}"
            );
            assert!(copy.header("hookstream-error").is_some());
        }
    }
}

#[test]
fn where_not_even_the_head_fits_the_coordinates_are_kept_or_only_logged() {
    for (limit, kept) in [("3000", true), ("150", false)] {
        let world = world("no-head");
        let receiver = Receiver::good();
        put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
        alter_topic(&world, &world.events, &[("max.message.bytes", "5000000")]);
        let small = [("max.message.bytes", limit)];
        alter_topic(&world, &world.topics.invalid_events(), &small);
        let mut process = start(&world, &[]);
        let large = raw(b"k", &[("h", &noise(5000))], &noise(2_000_000));
        let offsets = world.produce_raw(&world.events, 0, std::slice::from_ref(&large));
        // The same by way of delivery.
        let commands = world.topics.commands();
        let command = raw(b"acme", &[("h", &noise(5000))], &noise(100_000));
        world.produce_raw(&commands, 0, &[command]);
        world.produce_event("k", &[], event("good", "order.created", "1"));
        receiver.wait_for(1, LATER);
        wait_until_done(&world);
        alive(&mut process);
        assert_eq!(set_aside(&process, &world.events), 1.0);
        assert_eq!(set_aside(&process, &commands), 1.0);
        let copies = copies(&world);
        assert_eq!(copies.len(), if kept { 2 } else { 0 });
        if kept {
            let copy = &copies[&(world.events.clone(), offsets[0])];
            assert_eq!((&copy.key, &copy.value), (&None, &None));
            assert_eq!(copy.header("hookstream-truncated"), Some("2000000"));
        }
        let line = if kept {
            "kept=\"coordinates\""
        } else {
            "record skipped"
        };
        process.wait_for_line(line, SOON);
    }
}

/// The time of enqueueing of a command that is not old enough to expire.
fn enqueued_now() -> String {
    clock::now().0.to_string()
}

/// The headers of a command for `acme` as fan-out writes it.
fn good_headers<'a>(webhook_id: &'a [u8], enqueued: &'a str) -> [(&'a str, &'a [u8]); 8] {
    [
        ("webhook-id", webhook_id),
        ("hs-subscription", b"acme"),
        ("hs-event-id", b"e"),
        ("hs-event-type", b"order.created"),
        ("hs-content-type", b"application/json"),
        ("hs-attempt", b"0"),
        ("hs-enqueued", enqueued.as_bytes()),
        ("hs-cause", b"new"),
    ]
}

/// Records that no program of this version can use.
fn garbage() -> Vec<RawRecord> {
    let enqueued = enqueued_now();
    let good = good_headers(b"msg_1", &enqueued);
    let mut all = vec![
        RawRecord::default(),
        RawRecord {
            headers: vec![(Vec::new(), None), (b"\xff\xfe".to_vec(), Some(Vec::new()))],
            ..RawRecord::default()
        },
        raw(b"", &[], b""),
        raw(b"\xff\xfe", &good, b"{}"),
        raw(b"", &good, b"{}"),
        raw(b"acme", &[], b"not JSON"),
        raw(b"acme", &[], b"{\"id\":\"acme\"}"),
        raw(b"acme", &[], &[0xff; 3000]),
        raw(b"acme", &[("hs-fact", b"resurrected")], b"{}"),
        raw(
            b"acme",
            &[("hs-fact", b"replayed"), ("hs-letter-offset", b"-")],
            b"{}",
        ),
        raw(&noise(20_000), &[("hs-fact", &noise(20_000))], b"{}"),
        RawRecord {
            value: None,
            ..raw(b"acme", &good, b"")
        },
    ];
    for version in [
        &b""[..],
        b" ",
        b"0",
        b"01",
        b"-1",
        b"two",
        b"\xff",
        b"99999999999999999999",
    ] {
        let headers = [&good[..], &[("hs-version", version)]].concat();
        all.push(raw(b"acme", &headers, b"{}"));
    }
    for (name, _) in good {
        for value in [&b""[..], b"\xff", b"-1.5e99"] {
            // Any text will do as an id or a type.
            let is_text = !matches!(
                name,
                "hs-content-type" | "hs-attempt" | "hs-enqueued" | "hs-cause"
            );
            if !(is_text && value == b"-1.5e99") {
                let headers = [&good[..], &[(name, value)]].concat();
                all.push(raw(b"acme", &headers, b"{}"));
            }
        }
        let without: Vec<_> = good
            .iter()
            .copied()
            .filter(|(other, _)| *other != name)
            .collect();
        let mut null = raw(b"acme", &without, b"{}");
        all.push(null.clone());
        null.headers.push((name.as_bytes().to_vec(), None));
        all.push(null);
    }
    all
}

fn odd_command(name: &str, value: &[u8]) -> RawRecord {
    let enqueued = enqueued_now();
    let fields = [&good_headers(b"msg_odd", &enqueued)[..], &[(name, value)]].concat();
    raw(b"acme", &fields, b"odd")
}

/// A command of the beginning of time: it can be read, and has expired.
fn ancient() -> RawRecord {
    odd_command("hs-enqueued", b"-9223372036854775808")
}

/// Commands that are odd and can be read: they are delivered.
fn odd() -> Vec<RawRecord> {
    let command = odd_command;
    let mut all = vec![
        command("hs-attempt", b"4294967295"),
        command("hs-due", b"-9223372036854775808"),
        command("hs-enqueued", b"9223372036854775807"),
        command("hs-first-failure", b"9223372036854775807"),
        command("hs-sequence", b"-9223372036854775808"),
        command("webhook-id", b"line\r\nbreak"),
        command("traceparent", b"\x00"),
        command("hs-subject", &noise(100_000)),
        command("hs-event-time", b"yesterday"),
        command("hs-of-tomorrow", b"\xff"),
    ];
    let mut foreign = command("x", b"y");
    foreign
        .headers
        .push((b"\xff\xfe\xfd".to_vec(), Some(b"z".to_vec())));
    all.push(foreign);
    all
}

#[test]
fn garbage_on_every_topic_is_set_aside_counted_and_named_and_all_good_work_is_done() {
    for guarantee in GUARANTEES {
        let world = world("garbage");
        let attempts = world.topics.attempts();
        world.create_topic(&attempts, 1, &[]);
        // The first attempt of each event fails, so that good work passes the retry topics.
        let receiver = Receiver::start(|seen| match seen.header("hookstream-attempt") {
            Some("1") if seen.path == "/flaky" => Answer::status(500),
            _ => Answer::ok(),
        });
        put(
            &world,
            &[
                subscription("acme", &receiver.url("/odd"), &["nothing"]),
                subscription("flaky", &receiver.url("/flaky"), &["**"]),
                with(
                    subscription("strict", &receiver.url("/strict"), &["**"]),
                    json!({"order": "strict"}),
                ),
            ],
        );
        let (garbage, odd) = (garbage(), odd());
        let commands = world.topics.commands();
        let tiers: Vec<String> = world
            .tiers
            .iter()
            .map(|tier| world.topics.retry(*tier))
            .collect();
        let dead_letters = world.topics.dead_letters();
        let mut originals = BTreeMap::new();
        let mut produce = || {
            for topic in tiers.iter().chain([&commands]) {
                let offsets = world.produce_raw(topic, 0, &garbage);
                let places = offsets.into_iter().map(|offset| (topic.clone(), offset));
                originals.extend(places.zip(garbage.clone()));
            }
            world.produce_raw(&dead_letters, 0, &garbage);
            world.produce_raw(&attempts, 0, &garbage);
            world.produce_raw(&world.topics.subscriptions(), 0, &with_keys(&garbage));
        };
        // Before the roles start, and while they run.
        produce();
        let mut process = start(&world, &["--attempt-log", "--guarantee", guarantee]);
        world.produce_events((0..20).map(|n| ("k", event(&format!("a{n}"), "order.created", "1"))));
        produce();
        world.produce_raw(&commands, 0, &odd);
        world.produce_raw(&commands, 0, &[ancient()]);
        world.produce_events((0..20).map(|n| ("k", event(&format!("b{n}"), "order.created", "1"))));

        receiver.wait_until("the good work is done", LATER, |seen| {
            let at = |path: &str| seen.iter().filter(|one| one.path == path).count();
            at("/flaky") >= 80 && at("/strict") >= 40 && at("/odd") >= odd.len()
        });
        wait_until_done(&world);
        alive(&mut process);
        let letters = world.read_all(&dead_letters, Isolation::Committed);
        let expired = letters
            .iter()
            .filter(|letter| letter.header("hs-reason") == Some("expired"));
        assert_eq!(expired.count(), 1, "{guarantee}: the ancient one");
        let good = receiver.seen_at("/flaky").len();
        assert_eq!(good, 80, "{guarantee}: forty events, each twice");
        let copies = copies(&world);
        for (place, original) in &originals {
            let copy = copies
                .get(place)
                .unwrap_or_else(|| panic!("{guarantee}: {place:?} {original:?}"));
            assert_eq!(
                (&copy.key, &copy.value),
                (&original.key, &original.value),
                "{place:?}"
            );
            let kept = copy.headers.len() - 4;
            assert_eq!(
                kept,
                original.headers.len(),
                "{place:?}: {:?}",
                copy.headers
            );
        }
        assert_eq!(copies.len(), originals.len(), "{guarantee}");
        for topic in tiers.iter().chain([&commands]) {
            assert_eq!(
                set_aside(&process, topic),
                2.0 * garbage.len() as f64,
                "{guarantee}: {topic}"
            );
        }
        let invalid = process
            .metric("hookstream_invalid_subscriptions_total")
            .unwrap();
        assert!(invalid > 0.0);
        assert_eq!(set_aside(&process, &world.topics.subscriptions()), invalid);
        eventually_true("the lag role counts dead letters", SOON, || {
            set_aside(&process, &dead_letters) == 2.0 * garbage.len() as f64
        });
        let log = process.stderr().join("\n");
        for topic in tiers.iter().chain([&commands, &dead_letters]) {
            let named = log.lines().any(|line| {
                line.contains(topic.as_str())
                    && line.contains("offset=")
                    && line.contains("partition=0")
            });
            assert!(named, "{topic} is not named in the log: {log}");
        }
        for command in [
            &["dead-letters", "list", "-o", "json"][..],
            &["replay", "--dead-letters", "--yes"],
            &["replay", "--dead-letters", "--dry-run"],
            &["subscriptions", "list"],
            &["lag", "--once", "-o", "json"],
            &["trace", "a1"],
        ] {
            let output = world.run(command, "");
            assert_eq!(
                output.code, 0,
                "{guarantee}: {command:?}: {}",
                output.stderr
            );
        }
        process.sigterm();
        assert_eq!(process.wait_exit(LATER).code(), Some(0));
        let output = world.run(&["positions", "export"], "");
        assert_eq!(output.code, 0, "{guarantee}: {}", output.stderr);
    }
}

/// A compacted topic takes no record without a key.
fn with_keys(records: &[RawRecord]) -> Vec<RawRecord> {
    let keyed = |record: &RawRecord| RawRecord {
        key: Some(record.key.clone().unwrap_or_default()),
        ..record.clone()
    };
    // A null value deletes, which is not garbage.
    let values = records.iter().filter(|record| record.value.is_some());
    values.map(keyed).collect()
}

#[test]
fn a_record_of_a_newer_program_stops_its_partition_and_no_other() {
    let mut world = World::new("newer");
    world.tiers = vec![Duration::from_millis(300), Duration::from_secs(1)];
    world.create_topics(2);
    let receiver = Receiver::good();
    // One subscriber in each partition, as the partitioner puts them.
    let ids: Vec<String> = (0..16).map(|n| format!("s{n}")).collect();
    let all: Vec<_> = ids
        .iter()
        .map(|id| subscription(id, &receiver.url(&format!("/{id}")), &["**"]))
        .collect();
    put(&world, &all);
    let commands = world.topics.commands();
    let newer = |key: &str| {
        raw(
            key.as_bytes(),
            &[("hs-version", b"2"), ("hs-anything", b"else")],
            b"\xff",
        )
    };
    let [at, _] = [world.produce_raw(&commands, 0, &[newer("acme")])[0], 0];
    let tier = world.topics.retry(world.tiers[0]);
    world.produce_raw(&tier, 1, &[newer("acme")]);
    let mut process = start(&world, &[]);
    world.produce_event("k", &[], event("1", "order.created", "1"));
    let written = wait_for_records(&world, &commands, ids.len() + 1);
    let (stopped, others): (Vec<_>, Vec<_>) = written
        .iter()
        .filter(|record| record.header("hs-version") == Some("1"))
        .partition(|record| record.partition == 0);
    assert!(
        !stopped.is_empty() && !others.is_empty(),
        "both partitions have subscribers"
    );
    receiver.wait_for(others.len(), LATER);
    let gauge = |process: &Process, topic: &str| {
        process.metric(&format!(
            r#"hookstream_stopped_partitions{{topic="{topic}"}}"#
        ))
    };
    for topic in [&commands, &tier] {
        eventually_true("the gauge shows it", SOON, || {
            gauge(&process, topic) == Some(1.0)
        });
    }
    let line = process.wait_for_line("partition stopped", SOON);
    assert!(line.contains("version=2"), "{line}");
    alive(&mut process);
    assert_eq!(
        receiver.seen().len(),
        others.len(),
        "nothing behind it is delivered"
    );
    for (partition, position, _) in world.committed("deliver", &commands) {
        assert!(
            partition != 0 || position <= at,
            "the position is past the record"
        );
    }
    assert_eq!(copies(&world).len(), 0, "it is not set aside");
    assert_eq!(process.get("/livez").0, 200);

    // After a restart it stops at the same record.
    process.sigterm();
    assert_eq!(
        process.wait_exit(LATER).code(),
        Some(0),
        "{}",
        process.stderr().join("\n")
    );
    let mut process = start(&world, &[]);
    eventually_true("it stops again", SOON, || {
        gauge(&process, &commands) == Some(1.0)
    });
    world.produce_event("k", &[], event("2", "order.created", "1"));
    receiver.wait_for(2 * others.len(), LATER);
    alive(&mut process);
}

/// Positions behind the ends of transactions are committed at rest.
#[test]
fn no_position_at_rest_passes_a_record_of_a_newer_program() {
    let mut world = World::new("newer-at-rest");
    world.tiers = vec![Duration::from_millis(300)];
    world.create_topics(1);
    let receiver = Receiver::good();
    put(&world, &[subscription("s", &receiver.url("/"), &["**"])]);
    let commands = world.topics.commands();
    let tier = world.topics.retry(world.tiers[0]);
    let mut process = start(&world, &[]);
    world.produce_event("k", &[], event("1", "order.created", "1"));
    receiver.wait_for(1, LATER);
    let producer = world.begin_transaction("newer", "60000");
    for topic in [&commands, &tier] {
        let version = Header {
            key: "hs-version",
            value: Some("2"),
        };
        let headers = OwnedHeaders::new().insert(version);
        let record = BaseRecord::<str, str>::to(topic).key("acme").payload("");
        producer.send(record.headers(headers)).unwrap();
    }
    producer.commit_transaction(SOON).unwrap();
    for topic in [&commands, &tier] {
        let gauge = format!(r#"hookstream_stopped_partitions{{topic="{topic}"}}"#);
        eventually_true("the gauge shows it", SOON, || {
            process.metric(&gauge) == Some(1.0)
        });
    }
    let as_of = || process.metric("hookstream_lag_as_of_timestamp_seconds");
    let began = as_of().unwrap();
    eventually_true("five seconds pass by the figures' own clock", LATER, || {
        as_of().is_some_and(|now| now >= began + 5.0)
    });
    for (group, topic) in [("deliver", &commands), ("release", &tier)] {
        let newer = world.read_all(topic, Isolation::Committed);
        let newer = newer
            .iter()
            .find(|record| record.header("hs-version") == Some("2"));
        let at = newer.unwrap().offset;
        for (_, position, _) in world.committed(group, topic) {
            assert!(position <= at, "{group} is at {position}, past {at}");
        }
    }
    alive(&mut process);
}

#[test]
fn commit_metadata_of_a_newer_program_stops_its_partition_and_no_other() {
    let world = World::new("newer-commit");
    world.create_topics(2);
    let receiver = Receiver::good();
    let ids: Vec<String> = (0..16).map(|n| format!("s{n}")).collect();
    let all: Vec<_> = ids
        .iter()
        .map(|id| subscription(id, &receiver.url("/"), &["**"]))
        .collect();
    put(&world, &all);
    let commands = world.topics.commands();
    let metadata = newer_metadata();
    world.commit("deliver", &commands, 1, 0, &metadata);
    let mut process = start(&world, &[]);
    world.produce_event("k", &[], event("1", "order.created", "1"));
    let written = wait_for_records(&world, &commands, ids.len());
    let others = written
        .iter()
        .filter(|record| record.partition == 0)
        .count();
    assert!(others > 0 && others < ids.len());
    receiver.wait_for(others, LATER);
    let sample = format!(r#"hookstream_stopped_partitions{{topic="{commands}"}}"#);
    eventually_true("the gauge shows it", SOON, || {
        process.metric(&sample) == Some(1.0)
    });
    process.wait_for_line(
        "the commit metadata was written by a newer hookstream",
        SOON,
    );
    alive(&mut process);
    let committed = world.committed("deliver", &commands).into_iter();
    let mut left = committed.filter(|(partition, _, _)| *partition == 1);
    assert_eq!(left.next(), Some((1, 0, metadata)), "it is left as it is");
    assert_eq!(receiver.seen().len(), others);
}

/// Commit metadata of a version that this program does not know, with a valid checksum.
fn newer_metadata() -> String {
    use base64::Engine as _;
    let rest = b"anything";
    let mut bytes = vec![9];
    bytes.extend_from_slice(&crc32fast::hash(rest).to_be_bytes());
    bytes.extend_from_slice(rest);
    base64::engine::general_purpose::STANDARD_NO_PAD.encode(bytes)
}

#[test]
fn what_delivery_and_release_may_not_write_for_its_size_ends_elsewhere_and_stops_nothing() {
    for guarantee in GUARANTEES {
        let world = world("oversize");
        let receiver = Receiver::start(|seen| match seen.path.as_str() {
            "/good" => Answer::ok(),
            _ => Answer::status(500),
        });
        put(
            &world,
            &[
                subscription("good", &receiver.url("/good"), &["**"]),
                subscription("bad", &receiver.url("/bad"), &["large.*"]),
            ],
        );
        let small = [("max.message.bytes", "4000")];
        let commands = world.topics.commands();
        let tier = world.topics.retry(world.tiers[0]);
        let longer = world.topics.retry(world.tiers[1]);
        let mut process = start(&world, &["--guarantee", guarantee]);
        let large = |id: &str| {
            let data = format!("\"{}\"", String::from_utf8(noise(8000)).unwrap());
            event(id, "large.event", &data)
        };
        // A retry that does not fit its topic is a dead letter.
        for topic in [&tier, &longer] {
            alter_topic(&world, topic, &small);
        }
        world.produce_event("k", &[], large("first"));
        world.produce_event("k", &[], event("behind", "small.event", "1"));
        receiver.wait_until("the good work is done", LATER, |seen| {
            seen.iter().filter(|one| one.path == "/good").count() == 2
        });
        let letters = wait_for_records(&world, &world.topics.dead_letters(), 1);
        assert_eq!(
            letters[0].header("hs-reason"),
            Some("too-large"),
            "{guarantee}"
        );
        assert_eq!(letters[0].header("hs-event-id"), Some("first"));
        // One that does not fit the dead letters either is set aside.
        alter_topic(&world, &world.topics.dead_letters(), &small);
        world.produce_event("k", &[], large("second"));
        let kept = wait_for_records(&world, &world.topics.invalid_events(), 1);
        assert_eq!(kept[0].header("hs-event-id"), Some("second"), "{guarantee}");
        assert_eq!(kept[0].header("hs-reason"), Some("too-large"));
        assert_eq!(kept[0].header("hookstream-topic"), Some(commands.as_str()));
        assert!(kept[0].value.as_ref().unwrap().len() > 8000, "it is whole");
        // What waits in a retry topic and does not fit the commands is set aside by release.
        alter_topic(&world, &tier, &[("max.message.bytes", "1000000")]);
        alter_topic(&world, &commands, &small);
        let enqueued = enqueued_now();
        let waits = |id: &str, body: usize| {
            let headers: [(&str, &[u8]); 8] = [
                ("webhook-id", id.as_bytes()),
                ("hs-subscription", b"good"),
                ("hs-event-id", id.as_bytes()),
                ("hs-event-type", b"small.event"),
                ("hs-content-type", b"application/json"),
                ("hs-attempt", b"1"),
                ("hs-enqueued", enqueued.as_bytes()),
                ("hs-cause", b"retry"),
            ];
            raw(b"good", &headers, &noise(body))
        };
        let mut waiting: Vec<RawRecord> = (0..30).map(|n| waits(&format!("w{n}"), 10)).collect();
        waiting.insert(17, waits("large", 8000));
        world.produce_raw(&tier, 0, &waiting);
        receiver.wait_until("the good work is done", LATER, |seen| {
            let ids: std::collections::BTreeSet<&str> =
                seen.iter().map(|one| one.webhook_id()).collect();
            (0..30).all(|n| ids.contains(format!("w{n}").as_str()))
        });
        let kept = wait_for_records(&world, &world.topics.invalid_events(), 2);
        let large = kept
            .iter()
            .find(|one| one.header("webhook-id") == Some("large"));
        assert_eq!(
            large.unwrap().header("hookstream-topic"),
            Some(tier.as_str()),
            "{guarantee}"
        );
        assert_eq!(set_aside(&process, &tier), 1.0);
        assert_eq!(set_aside(&process, &commands), 1.0);
        alive(&mut process);
    }
}

/// 60 MB of commands at some 8 MB/s: more than a transaction would have time for.
#[test]
fn an_event_with_very_many_bytes_of_commands_is_written_and_the_group_is_served_meanwhile() {
    let broker = Broker::behind_proxies(1);
    let mut world = world_on(&broker, "held");
    world.events = format!("{}two", world.events);
    world.topics.events = vec![world.events.clone()];
    world.create_events_topic(2);
    let receiver = Receiver::good();
    let large =
        (0..150).map(|n| subscription(&format!("large-{n}"), &receiver.url("/large"), &["large"]));
    let small = subscription("small", &receiver.url("/small"), &["small"]);
    put(&world, &large.chain([small]).collect::<Vec<_>>());
    let mut process = world.spawn("run", &["-X", "compression.type=none"]);
    process.wait_ready();
    broker.proxies[0].set(Weather::Slow(Duration::from_millis(50)));
    let data = format!("\"{}\"", String::from_utf8(noise(400_000)).unwrap());
    let large = event("large", "large", &data).into_bytes();
    world.produce_raw(&world.events, 0, &[raw(b"k", &[], &large)]);
    for n in 0..40 {
        let good = event(&format!("g{n}"), "small", "1").into_bytes();
        world.produce_raw(&world.events, 1, &[raw(b"k", &[], &good)]);
    }
    receiver.wait_until("all is delivered", 6 * LATER, |seen| seen.len() >= 190);
    alive(&mut process);
    let seen = receiver.seen();
    let at = |path: &str| seen.iter().filter(|one| one.path == path).count();
    assert_eq!(
        (at("/large"), at("/small")),
        (150, 40),
        "none is sent twice"
    );
    assert_eq!(process.metric("hookstream_source_holes"), Some(0.0));
}
