//! Where groups begin to read: first starts, and positions that are gone.

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;

use hookstream::model::units::EpochMs;

use crate::scene::{
    LATER, event, put, start, subscription, wait_for_records, wait_until_done, world,
};
use crate::support::{
    Answer, Isolation, Process, Receiver, World, block_on, broker, eventually, eventually_true,
};

fn publish(world: &World, ids: &[&str]) {
    for id in ids {
        world.produce_event(id, &[], event(id, "a", &format!(r#"{{"n":"{id}"}}"#)));
    }
}

/// The events that were delivered, sorted: subscriptions are unordered.
fn delivered(receiver: &Receiver) -> Vec<String> {
    let seen = receiver.seen();
    let number = |body: &[u8]| {
        let body: serde_json::Value = serde_json::from_slice(body).unwrap();
        body["data"]["n"].as_str().unwrap().to_owned()
    };
    let mut all: Vec<String> = seen.iter().map(|seen| number(&seen.body)).collect();
    all.sort_unstable();
    all
}

fn first_starts(process: &Process, group: &str) -> Vec<String> {
    let lines = process.stderr().into_iter();
    let of_group = |line: &String| line.contains("first start") && line.contains(group);
    lines.filter(of_group).collect()
}

/// What the committed positions of fan-out are, by partition.
fn positions(world: &World) -> Vec<i64> {
    let mut all = world.committed("fanout", &world.events);
    all.sort_unstable();
    all.into_iter().map(|(_, position, _)| position).collect()
}

fn markers(world: &World) -> Vec<String> {
    let records = world.read_all(&world.topics.subscriptions(), Isolation::Committed);
    let keys = records.iter().map(|record| record.key_text().to_owned());
    keys.filter(|key| key.starts_with("start/")).collect()
}

fn stop(mut process: Process) {
    process.sigterm();
    assert!(process.wait_exit(LATER).success());
}

fn with_default(name: &str) -> World {
    let mut world = world(name);
    world.start_at = "";
    world
}

/// Removes all positions of a group, as the broker does a week after its last member has left.
fn forget(world: &World, role: &str) {
    let admin: AdminClient<DefaultClientContext> = world.client_config().create().unwrap();
    let group = format!("{}{role}", world.prefix);
    eventually_true("the group is deleted", LATER, || {
        let done = block_on(admin.delete_groups(&[&group], &AdminOptions::new()));
        done.is_ok_and(|results| results.iter().all(Result::is_ok))
    });
}

fn skips_what_was_before(world: &World) {
    let receiver = Receiver::good();
    put(world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    publish(world, &["1", "2", "3"]);
    let process = start(world, &[]);
    let group = format!("{}fanout", world.prefix);
    let lines = first_starts(&process, &group);
    let [line] = lines.as_slice() else {
        panic!("one line: {lines:?}");
    };
    assert!(
        line.contains("skipped=3") && line.contains("start_at=now"),
        "{line}"
    );
    assert!(
        line.contains(&format!("{} 0: 0 to 3", world.events)),
        "{line}"
    );
    publish(world, &["4"]);
    receiver.wait_for(1, LATER);
    wait_until_done(world);
    stop(process);
    // A later start continues, and is not a first one.
    publish(world, &["5"]);
    let process = start(world, &[]);
    receiver.wait_for(2, LATER);
    wait_until_done(world);
    assert_eq!(delivered(&receiver), ["4", "5"]);
    assert_eq!(first_starts(&process, &world.prefix), Vec::<String>::new());
    let listed = world.run(&["subscriptions", "list", "-o", "json"], "");
    assert!(listed.stdout.contains("acme"), "{}", listed.stdout);
    assert!(!listed.stdout.contains("start/"), "{}", listed.stdout);
    assert_eq!(listed.stderr, "", "a marker is not an invalid subscription");
    assert_eq!(
        process.metric("hookstream_invalid_subscriptions_total"),
        Some(0.0)
    );
}

#[test]
fn a_first_start_skips_what_was_there_and_reports_the_ranges() {
    skips_what_was_before(&with_default("start-now"));
}

#[test]
fn a_first_start_without_transactions_skips_what_was_there_too() {
    let mut world = with_default("start-alo");
    world.flags = ["--guarantee", "at-least-once"].map(str::to_owned).to_vec();
    skips_what_was_before(&world);
}

#[test]
fn a_first_start_begins_at_a_time_or_with_the_first_record() {
    let world = with_default("start-time");
    let receiver = Receiver::good();
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    publish(&world, &["1", "2"]);
    let last = |world: &World| {
        let records = world.read_all(&world.events, Isolation::Committed);
        records.last().unwrap().timestamp
    };
    let before = last(&world);
    eventually_true("a later time", LATER, || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.unwrap().as_millis() > before.unsigned_abs().into()
    });
    publish(&world, &["3"]);
    let time = EpochMs(last(&world)).rfc3339();
    publish(&world, &["4"]);
    let process = start(&world, &["--start-at", &time]);
    receiver.wait_for(2, LATER);
    wait_until_done(&world);
    assert_eq!(delivered(&receiver), ["3", "4"]);
    let lines = first_starts(&process, &format!("{}fanout", world.prefix));
    assert!(
        lines[0].contains("skipped=2") && lines[0].contains("to_read=2"),
        "{lines:?}"
    );
    stop(process);

    let mut world = with_default("start-earliest");
    world.start_at = "earliest";
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    publish(&world, &["5", "6"]);
    let process = start(&world, &[]);
    receiver.wait_for(4, LATER);
    wait_until_done(&world);
    assert_eq!(delivered(&receiver)[2..], ["5", "6"]);
    stop(process);
}

#[test]
fn what_is_published_between_topics_create_and_the_first_start_is_delivered() {
    let mut world = World::new("start-create");
    world.start_at = "";
    world.create_events_topic(1);
    publish(&world, &["1"]);
    let made = world.create_topics_by_program(1, &["--partitions", "1"]);
    assert!(made.stderr.contains("skipped=1"), "{}", made.stderr);
    let receiver = Receiver::good();
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    publish(&world, &["2", "3"]);
    // Run again, it changes nothing.
    world.create_topics_by_program(1, &[]);
    assert_eq!(positions(&world), [1]);
    let process = start(&world, &[]);
    receiver.wait_for(2, LATER);
    wait_until_done(&world);
    assert_eq!(delivered(&receiver), ["2", "3"]);
    stop(process);
}

#[test]
fn a_partition_that_is_added_later_is_read_from_its_beginning() {
    let world = with_default("start-grown");
    let receiver = Receiver::good();
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    publish(&world, &["1"]);
    stop(start(&world, &[]));
    let admin: AdminClient<DefaultClientContext> = world.client_config().create().unwrap();
    let grown = NewPartitions::new(&world.events, 2);
    block_on(admin.create_partitions([&grown], &AdminOptions::new())).unwrap();
    eventually_true("the partition has its leader", LATER, || {
        let metadata = admin.inner().fetch_metadata(Some(&world.events), LATER);
        metadata.is_ok_and(|metadata| metadata.topics()[0].partitions().len() == 2)
    });
    let ids = ["2", "3", "4", "5", "6", "7"];
    // A producer that knows both partitions.
    publish(&world.elsewhere(broker()), &ids);
    let records = world.read_all(&world.events, Isolation::Committed);
    assert!(records.iter().any(|record| record.partition == 1));
    let process = start(&world, &[]);
    receiver.wait_for(ids.len(), LATER);
    wait_until_done(&world);
    assert_eq!(delivered(&receiver), ids);
    stop(process);
}

#[test]
fn positions_that_are_gone_stop_each_role_and_nothing_is_sent_again() {
    let mut world = with_default("start-lost");
    // A flag that stands in the configuration sends nothing again either.
    world.start_at = "earliest";
    let receiver = Receiver::start(|seen| match seen.header("hookstream-attempt") {
        Some("1") => Answer::status(500),
        _ => Answer::ok(),
    });
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    publish(&world, &["1", "2"]);
    let process = start(&world, &[]);
    receiver.wait_for(4, LATER);
    wait_until_done(&world);
    stop(process);
    let tier = world.topics.retry(world.tiers[0]);
    let commands = world.topics.commands();
    assert!(!world.read_all(&tier, Isolation::Committed).is_empty());
    let before = world.read_all(&commands, Isolation::Committed).len();

    for (role, topic) in [
        ("fanout", &world.events),
        ("deliver", &commands),
        ("release", &tier),
    ] {
        forget(&world, role);
        let mut process = world.spawn(role, &[]);
        let code = process.wait_exit(LATER).code();
        let log = process.stderr().join("\n");
        assert_eq!(code, Some(1), "{role}: {log}");
        for part in [topic.as_str(), "hookstream positions set", "--start-at"] {
            assert!(log.contains(part), "{role}: {part}: {log}");
        }
    }
    // Set-up that runs with each rollout reports it and goes on.
    let created = world.run(&["topics", "create"], "");
    assert_eq!(created.code, 0, "{}", created.stderr);
    assert!(
        created.stderr.contains("hookstream positions set"),
        "{}",
        created.stderr
    );
    assert!(positions(&world).is_empty());

    for topic in [&world.events, &commands, &tier] {
        let set = ["positions", "set", topic, "--to", "now", "--yes"];
        let output = world.run(&set, "");
        assert_eq!(output.code, 0, "{}", output.stderr);
    }
    let process = start(&world, &[]);
    publish(&world, &["3"]);
    receiver.wait_for(6, LATER);
    wait_until_done(&world);
    assert_eq!(
        delivered(&receiver)[4..],
        ["3", "3"],
        "an attempt and its retry"
    );
    let after = world.read_all(&commands, Isolation::Committed).len();
    assert_eq!(
        after - before,
        2,
        "only the new event and its retry are commands"
    );
    stop(process);
}

/// A process that is suspended for longer than its session leaves its groups empty, and an empty group can lose its
/// positions. When it goes on, it must not send everything again.
#[test]
fn a_process_that_was_suspended_refuses_to_begin_anew_when_its_positions_are_gone() {
    let mut world = world("start-suspended");
    world.start_at = "earliest";
    let receiver = Receiver::good();
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    publish(&world, &["1", "2"]);
    let mut process = start(&world, &["-X", "session.timeout.ms=6000"]);
    receiver.wait_for(2, LATER);
    wait_until_done(&world);
    process.signal("STOP");
    for role in ["fanout", "deliver", "release"] {
        // The broker refuses while the group has a member.
        forget(&world, role);
    }
    process.signal("CONT");
    let code = process.wait_exit(LATER).code();
    let log = process.stderr().join("\n");
    assert_eq!(code, Some(1), "{log}");
    for part in ["role restarted", "hookstream positions set"] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert_eq!(delivered(&receiver), ["1", "2"], "nothing is sent again");
}

#[test]
fn replicas_that_start_at_once_begin_once() {
    let world = with_default("start-race");
    let receiver = Receiver::good();
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    publish(&world, &["1", "2", "3"]);
    let replicas: Vec<Process> = (0..3).map(|_| world.spawn("run", &[])).collect();
    replicas.iter().for_each(Process::wait_ready);
    publish(&world, &["4", "5"]);
    receiver.wait_for(2, LATER);
    wait_until_done(&world);
    assert_eq!(delivered(&receiver), ["4", "5"]);
    for role in ["fanout", "deliver", "release"] {
        let group = format!("{}{role}", world.prefix);
        let lines: Vec<String> = replicas
            .iter()
            .flat_map(|one| first_starts(one, &group))
            .collect();
        assert_eq!(lines.len(), 1, "one of them begins: {lines:?}");
    }
    replicas.into_iter().for_each(stop);
}

#[test]
fn an_installation_of_an_older_version_continues_and_gets_its_markers() {
    let world = with_default("start-upgrade");
    let receiver = Receiver::good();
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    let process = start(&world, &["--start-at", "earliest"]);
    publish(&world, &["1"]);
    receiver.wait_for(1, LATER);
    wait_until_done(&world);
    stop(process);
    // As it was left by a version without markers.
    let mut known = markers(&world);
    known.sort_unstable();
    known.dedup();
    // Of the events, the notices, the commands, and the tiers.
    assert_eq!(known.len(), 3 + world.tiers.len(), "{known:?}");
    let tombstones = known.iter().map(|key| (Some(key), Vec::new(), None));
    world.produce(&world.topics.subscriptions(), tombstones);
    publish(&world, &["2"]);
    let process = start(&world, &[]);
    receiver.wait_for(2, LATER);
    wait_until_done(&world);
    assert_eq!(delivered(&receiver), ["1", "2"]);
    assert_eq!(first_starts(&process, &world.prefix), Vec::<String>::new());
    stop(process);
    let written = markers(&world).len();
    assert_eq!(
        written,
        3 * known.len(),
        "written, deleted and written again"
    );
}

#[test]
fn a_topic_that_is_added_begins_while_other_replicas_run() {
    let mut world = with_default("start-added");
    let receiver = Receiver::good();
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    let first = start(&world, &[]);
    let added = format!("{}added", world.prefix);
    world.create_topic(&added, 1, &[]);
    world.produce(
        &added,
        [(
            Some("1"),
            Vec::new(),
            Some(event("1", "a", r#"{"n":"1"}"#).into_bytes()),
        )],
    );
    world.topics.events.push(added.clone());
    let second = start(&world, &[]);
    let group = format!("{}fanout", world.prefix);
    let lines = first_starts(&second, &group);
    assert!(
        lines.len() == 1 && lines[0].contains("skipped=1"),
        "{lines:?}"
    );
    let position = eventually("its position", LATER, || {
        world
            .committed("fanout", &added)
            .first()
            .map(|(_, position, _)| *position)
    });
    assert_eq!(position, 1);
    stop(first);
    world.produce(
        &added,
        [(
            Some("2"),
            Vec::new(),
            Some(event("2", "a", r#"{"n":"2"}"#).into_bytes()),
        )],
    );
    receiver.wait_for(1, LATER);
    wait_for_records(&world, &world.topics.commands(), 1);
    assert_eq!(delivered(&receiver), ["2"]);
    stop(second);
}

/// A marker of another cluster, as a mirror copies it, is not believed; nothing is skipped without a decision.
#[test]
fn a_mirror_without_positions_waits_for_a_decision() {
    let world = with_default("start-mirror");
    let receiver = Receiver::good();
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    publish(&world, &["1"]);
    let key = format!("start/{}fanout/{}/elsewhere", world.prefix, world.events);
    world.put_subscription(&key, r#"{"partitions":1}"#);
    let mut process = world.spawn("fanout", &[]);
    assert_eq!(process.wait_exit(LATER).code(), Some(1));
    let log = process.stderr().join("\n");
    assert!(log.contains("hookstream positions import"), "{log}");
    let process = start(&world, &["--start-at", "earliest"]);
    receiver.wait_for(1, LATER);
    stop(process);
}
