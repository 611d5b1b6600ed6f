//! Processes that are killed, stopped, joined and cut off from their broker in the middle of their work: nothing is
//! lost, and no command has two lives.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::scene::{event, put, subscription, wait_until_done, with};
use crate::support::{
    Answer, Broker, Isolation, Process, Receiver, Record, Seen, Weather, World, eventually_true,
    live,
};

/// All of a test's work, on a busy machine.
pub const ALL: Duration = Duration::from_secs(120);

/// So that the others take over soon after a kill.
pub const QUICK: [&str; 4] = [
    "-X",
    "session.timeout.ms=6000",
    "-X",
    "heartbeat.interval.ms=1000",
];

/// One tier, and a schedule that fits it within what release waits for: a retry is one record in the tier.
pub const RETRY: [&str; 2] = ["--retry-schedule", "1s,1s,1s,1s,1s"];

pub fn world_on(broker: Option<&Broker>, name: &str, partitions: i32) -> World {
    let mut world = broker.map_or_else(|| World::new(name), |broker| World::on(broker, name));
    world.tiers = vec![Duration::from_secs(1)];
    world.create_topics(partitions);
    world
}

fn spawn(world: &World, instance: &str, role: &str) -> Process {
    let process = world.spawn_as(instance, role, &[&QUICK[..], &RETRY[..]].concat());
    process.wait_ready();
    process
}

/// Whether the first attempt fails, where the path says so.
fn is_refused(seen: &Seen) -> bool {
    seen.path.contains("flaky") && seen.header("hookstream-attempt") == Some("1")
}

pub fn flaky(seen: &Seen) -> Answer {
    Answer::status(if is_refused(seen) { 500 } else { 200 })
}

/// `count` subscriptions to everything, of as many subscribers; every fifth has a flaky endpoint.
fn subscriptions(receiver: &Receiver, count: usize) -> Vec<Value> {
    let one = |number: usize| {
        let kind = if number.is_multiple_of(5) {
            "flaky"
        } else {
            "good"
        };
        let id = format!("s{number}");
        with(
            subscription(&id, &receiver.url(&format!("/{kind}/{id}")), &["**"]),
            json!({"max_in_flight": 16}),
        )
    };
    (0..count).map(one).collect()
}

fn produce(world: &World, numbers: std::ops::Range<usize>) {
    world.produce_events(numbers.map(|number| {
        (
            format!("k{number}"),
            event(&format!("e{number}"), "order.created", "1"),
        )
    }));
}

/// Webhooks that were answered with success, by path and id.
fn accepted(seen: &[Arc<Seen>]) -> BTreeSet<(String, String)> {
    seen.iter()
        .filter(|seen| !is_refused(seen))
        .map(|seen| (seen.path.clone(), seen.webhook_id().to_owned()))
        .collect()
}

/// Requests that repeat an attempt which was made before.
fn repeated(seen: &[Arc<Seen>]) -> usize {
    let attempts: BTreeSet<_> = seen
        .iter()
        .map(|seen| {
            (
                seen.webhook_id().to_owned(),
                seen.header("hookstream-attempt").map(str::to_owned),
            )
        })
        .collect();
    seen.len() - attempts.len()
}

fn text<'r>(record: &'r Record, header: &str) -> &'r str {
    record
        .header(header)
        .unwrap_or_else(|| panic!("{header} is missing in {record:?}"))
}

/// **Complete** and **One lineage**, from what is in Kafka when nothing is under way: each event has one command by
/// fan-out for each subscription, and each further copy of a command was written when the one before it had been
/// read, so that there never were two.
pub fn assert_one_lineage(world: &World, events: usize, subscriptions: usize) {
    let commands = live(world.read_all(&world.topics.commands(), Isolation::Committed));
    let tier = world.read_all(&world.topics.retry(world.tiers[0]), Isolation::Committed);
    let mut per_event: HashMap<&str, usize> = HashMap::new();
    let mut lives: HashMap<&str, (Vec<&Record>, Vec<&Record>)> = HashMap::new();
    for record in &commands {
        lives
            .entry(text(record, "webhook-id"))
            .or_default()
            .0
            .push(record);
        *per_event.entry(text(record, "hs-event-id")).or_default() +=
            usize::from(text(record, "hs-cause") == "new");
    }
    for record in &tier {
        lives
            .entry(text(record, "webhook-id"))
            .or_default()
            .1
            .push(record);
    }
    assert_eq!(per_event.len(), events);
    let incomplete: Vec<_> = per_event
        .iter()
        .filter(|(_, count)| **count != subscriptions)
        .collect();
    assert!(
        incomplete.is_empty(),
        "each event has one new command a subscription: {incomplete:?}"
    );
    for (id, (mut commands, mut tier)) in lives {
        commands.sort_by_key(|record| record.timestamp);
        tier.sort_by_key(|record| record.timestamp);
        let story = || {
            let tell = |place: &str, record: &Record| {
                let (cause, attempt) = (text(record, "hs-cause"), text(record, "hs-attempt"));
                format!("{} {place} {cause} attempt {attempt}", record.timestamp)
            };
            let mut lines: Vec<_> = commands
                .iter()
                .map(|record| tell("command", record))
                .collect();
            lines.extend(tier.iter().map(|record| tell("tier", record)));
            lines.sort();
            lines.join("\n")
        };
        // A wait that is longer than the tier's delay is several rounds through it, one after the other.
        let delay = i64::try_from(world.tiers[0].as_millis()).unwrap();
        let mut waits: Vec<(&Record, &Record)> = Vec::new();
        for &record in &tier {
            match waits.last_mut() {
                Some((_, last)) if text(last, "hs-due") == text(record, "hs-due") => {
                    let round = record.timestamp - last.timestamp;
                    assert!(round >= delay, "{id}: a round of {round} ms:\n{}", story());
                    *last = record;
                }
                _ => waits.push((record, record)),
            }
        }
        assert_eq!(
            commands.len(),
            waits.len() + 1,
            "{id}: one command more than waits:\n{}",
            story()
        );
        assert_eq!(text(commands[0], "hs-cause"), "new", "{id}:\n{}", story());
        for ((first, last), pair) in waits.iter().zip(commands.windows(2)) {
            let times = [pair[0], first, last, pair[1]].map(|record| record.timestamp);
            assert!(
                times.is_sorted(),
                "{id}: two copies lived at a time:\n{}",
                story()
            );
            let attempt = |record: &Record| text(record, "hs-attempt").parse::<u32>().unwrap();
            let spent = u32::from(text(first, "hs-cause") == "retry");
            let after = attempt(pair[0]) + spent;
            assert_eq!(
                [attempt(first), attempt(pair[1])],
                [after, after],
                "{id}:\n{}",
                story()
            );
            assert_eq!(
                pair[0].value, pair[1].value,
                "{id}: the body is always the same"
            );
        }
    }
    let dead = world.read_all(&world.topics.dead_letters(), Isolation::Committed);
    assert!(dead.is_empty(), "nothing was refused: {dead:?}");
}

fn wait_for_accepted(receiver: &Receiver, count: usize) {
    receiver.wait_until(&format!("{count} webhooks accepted"), ALL, |seen| {
        accepted(seen).len() >= count
    });
}

#[test]
fn one_of_two_processes_of_each_role_is_killed_and_nothing_is_lost_or_doubled() {
    const EVENTS: usize = 2000;
    let world = world_on(None, "killed", 8);
    let receiver = Receiver::start(flaky);
    put(&world, &subscriptions(&receiver, 10));
    let roles = ["fanout", "deliver", "release"];
    let mut first: Vec<_> = roles
        .iter()
        .map(|role| spawn(&world, "one", role))
        .collect();
    let second: Vec<_> = roles
        .iter()
        .map(|role| spawn(&world, "two", role))
        .collect();
    produce(&world, 0..EVENTS);
    wait_for_accepted(&receiver, 3000);
    for process in &mut first {
        process.sigkill();
    }
    wait_for_accepted(&receiver, EVENTS * 10);
    wait_until_done(&world);
    assert_one_lineage(&world, EVENTS, 10);
    let seen = receiver.seen();
    assert_eq!(
        accepted(&seen).len(),
        EVENTS * 10,
        "nothing that was not wanted"
    );
    // HTTP is at-least-once: what was in flight, and what had ended since the last commit, is sent again.
    println!(
        "{} requests of {} repeat an attempt",
        repeated(&seen),
        seen.len()
    );
    for process in &second {
        assert_eq!(process.get("/readyz").0, 200, "the survivors do the work");
    }
}

/// The longest time between two requests of one subscription.
fn longest_pause(seen: &[Arc<Seen>]) -> Duration {
    let mut last: HashMap<&str, i64> = HashMap::new();
    let pauses = seen.iter().filter_map(|seen| {
        let before = last.insert(&seen.path, seen.received)?;
        Some(seen.received - before)
    });
    Duration::from_millis(pauses.max().unwrap().unsigned_abs())
}

/// Fan-out writes no transactions: what a killed one has written is visible, and written again. Delivery recognises it.
#[test]
fn a_fan_out_that_is_killed_under_load_again_and_again_sends_nothing_twice() {
    const EVENTS: usize = 3000;
    const KILLS: usize = 5;
    let world = world_on(None, "copies", 4);
    let receiver = Receiver::good();
    let subscriptions: Vec<_> = (0..10)
        .map(|number| {
            let id = format!("s{number}");
            subscription(&id, &receiver.url(&format!("/{id}")), &["**"])
        })
        .collect();
    put(&world, &subscriptions);
    let deliver = spawn(&world, "d", "deliver");
    // What does not fit into its lane comes back from a tier.
    let _release = spawn(&world, "r", "release");
    let mut fanout = spawn(&world, "f0", "fanout");
    for kill in 0..KILLS {
        let (from, to) = (EVENTS * kill / KILLS, EVENTS * (kill + 1) / KILLS);
        produce(&world, from..to);
        // In the middle of these.
        wait_for_accepted(&receiver, from * 10 + (to - from) * 3);
        fanout.sigkill();
        fanout = spawn(&world, &format!("f{}", kill + 1), "fanout");
    }
    wait_for_accepted(&receiver, EVENTS * 10);
    wait_until_done(&world);
    assert_one_lineage(&world, EVENTS, 10);
    let seen = receiver.seen();
    assert_eq!((seen.len(), repeated(&seen)), (EVENTS * 10, 0));
    let all = world.read_all(&world.topics.commands(), Isolation::Committed);
    let new = all
        .iter()
        .filter(|record| text(record, "hs-cause") == "new");
    let copies = new.count() - EVENTS * 10;
    let pause = longest_pause(&seen);
    println!(
        "{copies} commands were written again; the longest pause of a subscription took {pause:?}"
    );
    // The session of the killed one (6 s), and the start of the next one on a busy machine.
    assert!(pause < Duration::from_secs(30), "{pause:?}");
    eventually_true("copies are counted", ALL, || {
        deliver.metric("hookstream_duplicate_commands_total") == Some(copies as f64)
    });
    assert_eq!(deliver.metric("hookstream_source_holes"), Some(0.0));
}

#[test]
fn a_signal_ends_a_process_in_order_and_nothing_is_sent_twice() {
    let world = world_on(None, "drained", 2);
    let receiver = Receiver::start(|_| Answer::ok().after(Duration::from_secs(1)));
    put(
        &world,
        &[with(
            subscription("slow", &receiver.url("/"), &["**"]),
            json!({"max_in_flight": 4}),
        )],
    );
    let mut process = spawn(&world, "one", "run");
    produce(&world, 0..12);
    receiver.wait_for(4, ALL);
    process.sigterm();
    assert!(process.wait_exit(Duration::from_secs(30)).success());
    let before = receiver.seen().len();
    assert!(before < 12, "the signal came in the middle");
    let _again = spawn(&world, "one", "run");
    receiver.wait_for(12, ALL);
    wait_until_done(&world);
    let seen = receiver.seen();
    assert_eq!((accepted(&seen).len(), repeated(&seen)), (12, 0));
}

#[test]
fn partitions_move_between_processes_without_a_request_sent_twice() {
    const EVENTS: usize = 600;
    let world = world_on(None, "moved", 8);
    let receiver = Receiver::start(|seen| flaky(seen).after(Duration::from_millis(20)));
    put(&world, &subscriptions(&receiver, 10));
    let _others = [spawn(&world, "f", "fanout"), spawn(&world, "r", "release")];
    let mut first = spawn(&world, "one", "deliver");
    produce(&world, 0..EVENTS);
    wait_for_accepted(&receiver, 500);
    let second = spawn(&world, "two", "deliver");
    second.wait_for_line("partitions assigned partitions=[", ALL);
    wait_for_accepted(&receiver, 2000);
    first.sigterm();
    assert!(first.wait_exit(Duration::from_secs(30)).success());
    wait_for_accepted(&receiver, EVENTS * 10);
    wait_until_done(&world);
    assert_one_lineage(&world, EVENTS, 10);
    assert_eq!(
        repeated(&receiver.seen()),
        0,
        "what was under way was finished and committed before it moved"
    );
}

#[test]
fn a_restart_of_the_broker_in_the_middle_loses_nothing() {
    const EVENTS: usize = 600;
    let broker = Broker::own();
    let world = world_on(Some(&broker), "restarted", 4);
    let receiver = Receiver::start(|seen| flaky(seen).after(Duration::from_millis(5)));
    put(&world, &subscriptions(&receiver, 5));
    let mut process = spawn(&world, "one", "run");
    produce(&world, 0..EVENTS / 2);
    wait_for_accepted(&receiver, 300);
    // Hard: an only broker that stops in order first takes the leaders away, and Kafka 4.1 to 4.4 then skip the end of a
    // transaction in partitions without a leader, as if they were deleted (KAFKA-20734): it stays open for good.
    broker.control(&["stop-broker", "--hard", "1"]);
    eventually_true("it is not ready, since no broker answers", ALL, || {
        let (status, told) = process.get("/readyz");
        status == 503 && told.contains("no broker answers")
    });
    assert_eq!(process.get("/livez").0, 200, "a restart would not help");
    let (_, metrics) = process.get("/metrics");
    assert!(metrics.contains("hookstream_broker_up 0"));
    broker.control(&["start-broker", "1"]);
    produce(&world, EVENTS / 2..EVENTS);
    // It goes on by itself when the broker comes back. Where a call hangs for good in the client, the watchdog ends the
    // process, and a supervisor starts it again.
    eventually_true("everything is accepted", ALL, || {
        if process.exited().is_some() {
            process = spawn(&world, "one", "run");
        }
        accepted(&receiver.seen()).len() >= EVENTS * 5
    });
    wait_until_done(&world);
    assert_one_lineage(&world, EVENTS, 5);
    eventually_true("it is ready", ALL, || process.get("/readyz").0 == 200);
}

/// librdkafka issue 5301: a client that is told of no brokers forgets all that it knew, and is silent for good.
#[test]
fn clients_that_were_told_of_no_broker_find_their_way_back() {
    const EVENTS: usize = 200;
    let broker = Broker::behind_proxies(1);
    let world = world_on(Some(&broker), "no-brokers", 2);
    let receiver = Receiver::start(flaky);
    put(&world, &subscriptions(&receiver, 5));
    // Metadata is asked for often, so that every client is told.
    let mut process = world.spawn_as(
        "one",
        "run",
        &[
            &QUICK[..],
            &RETRY[..],
            &["-X", "topic.metadata.refresh.interval.ms=500"],
        ]
        .concat(),
    );
    process.wait_ready();
    produce(&world, 0..EVENTS / 2);
    wait_for_accepted(&receiver, EVENTS / 2 * 5);
    let proxy = &broker.proxies[0];
    proxy.set(Weather::NoBrokers);
    proxy.wait_for_changed(6);
    proxy.set(Weather::Clear);
    produce(&world, EVENTS / 2..EVENTS);
    // Sending offsets to a transaction may hang for good in the client after that: then the watchdog ends the process, and
    // a supervisor starts it again.
    eventually_true("everything is accepted", ALL, || {
        if process.exited().is_some() {
            process = spawn(&world, "one", "run");
        }
        accepted(&receiver.seen()).len() >= EVENTS * 5
    });
    wait_until_done(&world);
    assert_one_lineage(&world, EVENTS, 5);
}

#[test]
fn one_of_ten_endpoints_on_a_partition_hangs_and_the_other_nine_finish() {
    const EVENTS: usize = 600;
    let world = world_on(None, "hanging", 1);
    let receiver = Receiver::start(|seen| {
        if seen.path.ends_with("/s0") {
            Answer::hang()
        } else {
            Answer::ok()
        }
    });
    let ids: Vec<_> = (0..10).map(|number| format!("s{number}")).collect();
    let all: Vec<_> = ids
        .iter()
        .map(|id| subscription(id, &receiver.url(&format!("/{id}")), &["**"]))
        .collect();
    put(&world, &all);
    let flags = ["--timeout", "20s"];
    let process = world.spawn_as("one", "run", &[&flags[..], &RETRY[..]].concat());
    process.wait_ready();
    produce(&world, 0..EVENTS);
    receiver.wait_until("the nine others have all of theirs", ALL, |seen| {
        seen.iter()
            .filter(|seen| !seen.path.ends_with("/s0"))
            .count()
            >= EVENTS * 9
    });
    let parked = || {
        process
            .metric(r#"hookstream_parked_total{why="lane_full"}"#)
            .unwrap_or_default()
    };
    eventually_true("what its lane has no room for is parked", ALL, || {
        parked() > 100.0
    });
    let hanging = receiver.seen_at("/s0");
    assert_eq!(
        hanging.len(),
        8,
        "and no more than max_in_flight are sent to the one that hangs"
    );
}

#[test]
fn fan_out_is_killed_again_and_again_and_each_event_has_all_its_commands_once() {
    const EVENTS: usize = 3000;
    const KILLS: usize = 4;
    let world = world_on(None, "fanout-killed", 4);
    let receiver = Receiver::good();
    put(&world, &subscriptions(&receiver, 3));
    let commands = world.topics.commands();
    // What a fan-out writes again after a kill does not count.
    let written = || live(world.read_all(&commands, Isolation::Committed)).len();
    for round in 0..KILLS {
        let mut fanout = spawn(&world, "one", "fanout");
        let before = written();
        produce(&world, EVENTS / KILLS * round..EVENTS / KILLS * (round + 1));
        eventually_true("some commands are written", ALL, || written() > before);
        fanout.sigkill();
    }
    let _last = spawn(&world, "one", "fanout");
    eventually_true("all commands are written", ALL, || written() >= EVENTS * 3);
    assert_one_lineage(&world, EVENTS, 3);
}

#[test]
fn what_is_finished_behind_a_hanging_command_stays_finished_after_a_kill() {
    const EVENTS: usize = 300;
    let world = world_on(None, "bitmap", 1);
    let receiver = Receiver::start(|seen| {
        if seen.path == "/hangs" {
            Answer::hang()
        } else {
            Answer::ok()
        }
    });
    put(
        &world,
        &[
            with(
                subscription("a-hangs", &receiver.url("/hangs"), &["first"]),
                json!({"subscriber": "a"}),
            ),
            with(
                subscription("b-good", &receiver.url("/good"), &["order.*"]),
                json!({"subscriber": "b"}),
            ),
        ],
    );
    let flags = [&["--timeout", "60s"][..], &QUICK[..]].concat();
    let mut first = world.spawn_as("one", "run", &flags);
    first.wait_ready();
    world.produce_event("k", &[], event("first", "first", "1"));
    receiver.wait_until("the first command hangs", ALL, |seen| {
        seen.iter().any(|seen| seen.path == "/hangs")
    });
    produce(&world, 0..EVENTS);
    receiver.wait_until("all behind it are delivered", ALL, |seen| {
        accepted(seen).len() > EVENTS
    });
    // Transaction markers take offsets too, so the last command's own offset is what counts.
    let commands = live(world.read_all(&world.topics.commands(), Isolation::Committed));
    let last = commands.iter().map(|record| record.offset).max().unwrap();
    let place = world.window_place(0);
    eventually_true(
        "the commit tells of all that is finished behind the first",
        ALL,
        || {
            world
                .committed("deliver", &world.topics.commands())
                .iter()
                .any(|(_, position, metadata)| {
                    let (window, error) = hookstream::model::window::Window::restore(
                        hookstream::model::units::Position(*position),
                        metadata,
                        place,
                    );
                    let end = window.position().0 + i64::try_from(window.span()).unwrap();
                    error.is_none() && window.unfinished() == 1 && end > last
                })
        },
    );
    first.sigkill();
    let second = world.spawn_as("two", "run", &flags);
    second.wait_ready();
    receiver.wait_until("the hanging command is sent again", ALL, |seen| {
        seen.iter().filter(|seen| seen.path == "/hangs").count() == 2
    });
    // Behind all others in the partition: when it has arrived, they have been looked at.
    world.produce_event("k", &[], event("last", "order.last", "1"));
    receiver.wait_until("a last event arrives", ALL, |seen| {
        accepted(seen).len() > EVENTS + 1
    });
    let good = receiver.seen_at("/good");
    assert_eq!(
        good.len(),
        EVENTS + 1,
        "none of the finished commands is sent again"
    );
}

#[test]
fn at_least_once_loses_nothing_over_a_restart() {
    const EVENTS: usize = 300;
    let world = world_on(None, "at-least-once", 2);
    let receiver = Receiver::start(|seen| flaky(seen).after(Duration::from_millis(10)));
    put(&world, &subscriptions(&receiver, 5));
    let flags = [
        &["--guarantee", "at-least-once"][..],
        &RETRY[..],
        &QUICK[..],
    ]
    .concat();
    let mut first = world.spawn_as("one", "run", &flags);
    first.wait_ready();
    produce(&world, 0..EVENTS);
    wait_for_accepted(&receiver, 200);
    first.sigkill();
    let second = world.spawn_as("two", "run", &flags);
    second.wait_ready();
    wait_for_accepted(&receiver, EVENTS * 5);
    wait_until_done(&world);
    assert_eq!(accepted(&receiver.seen()).len(), EVENTS * 5);
}

#[test]
fn a_process_whose_log_nobody_reads_any_more_goes_on() {
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let listen = format!("127.0.0.1:{port}");
    let arguments = ["run", "--brokers", "127.0.0.1:1", "--http-listen", &listen];
    let mut child = crate::support::program()
        .args(arguments)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    // Where it listens is told on the log before.
    eventually_true("it answers", ALL, || {
        assert_eq!(child.try_wait().unwrap(), None, "it has ended");
        crate::support::http_get(port, "/livez").is_ok_and(|(status, _)| status == 200)
    });
    child.kill().unwrap();
    child.wait().unwrap();
}
