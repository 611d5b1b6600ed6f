//! A call into the client library that hangs ends the process with a clear message, rather than hanging with it.
//!
//! The hang is a sleep at the named point, within the call that the watchdog looks at; brokers answer all the while, or
//! one of three is frozen: then its clients wait for it, which is no hang, and hides none.
//! A client that is silent for good, which no call tells, makes its role begin anew; one that does not let go of its group
//! either ends the process.

use std::time::{Duration, Instant};

use crate::it::support::{Answer, Broker, Process, Receiver, World, eventually_true};
use crate::traffic;
use crate::truth;

const LATER: Duration = Duration::from_secs(120);

#[test]
fn a_call_that_hangs_ends_the_process_with_its_name() {
    let _beside = crate::beside_others();
    let broker = Broker::own();
    let cases = [
        ("init-transactions.before", "starting transactions hangs"),
        ("committed-read.before", "reading committed offsets hangs"),
        ("acknowledged.before", "waiting for acknowledgements hangs"),
        (
            "offsets-sent.before",
            "sending offsets to the transaction hangs",
        ),
        ("end-txn.before", "committing a transaction hangs"),
        ("snapshot-commit.before", "committing positions hangs"),
    ];
    for (point, message) in cases {
        let (mut process, _receiver) = run_with(&broker, &format!("{point}=sleep(600000)"));
        let status = process.wait_exit(LATER);
        let told = process.stderr().join("\n");
        assert_eq!(status.code(), Some(1), "{point}: {told}");
        assert!(
            told.contains(message) && told.contains("--hang-deadline"),
            "{point}: {told}"
        );
    }
}

/// A world with one event, and `run` in it with fail-points. Its endpoint fails, so that delivery writes a retry.
fn run_with(broker: &Broker, points: &str) -> (Process, Receiver) {
    let (world, receiver) = world_on(broker, Receiver::start(|_| Answer::status(500)));
    world.produce_events([("k", truth::event(1))]);
    (start(&world, "5s", points), receiver)
}

/// A world with one subscription, whose groups have begun: a first start has calls of its own, before those of the roles.
fn world_on(broker: &Broker, receiver: Receiver) -> (World, Receiver) {
    let world = World::on(broker, "hang");
    world.create_topics(1);
    traffic::put(&world, &receiver, 0, &crate::faults::secret(0), "active");
    let mut first = start(&world, "30s", "");
    first.wait_ready();
    first.sigterm();
    assert!(first.wait_exit(LATER).success());
    (world, receiver)
}

fn start(world: &World, deadline: &str, points: &str) -> Process {
    let mut arguments = vec!["run".to_owned()];
    arguments.extend(world.args());
    let more = ["--hang-deadline", deadline, "--http-listen", "127.0.0.1:0"];
    arguments.extend(more.map(str::to_owned));
    Process::spawn_with(&arguments, &[("FAILPOINTS", points)])
}

/// Its clients wait for it, for as long as the broker is not replaced by another: that is no hang, and whatever else the
/// process does goes on.
#[test]
fn a_frozen_broker_of_three_stops_no_work_and_ends_no_process() {
    /// Longer than the default of `--hang-deadline`.
    const FROZEN: Duration = Duration::from_secs(45);
    let _beside = crate::beside_others();
    let broker = Broker::cluster(3);
    let (world, receiver) = world_on(&broker, Receiver::good());
    let mut process = start(&world, "30s", "");
    process.wait_ready();
    world.produce_events([("k", truth::event(1))]);
    receiver.wait_for(1, LATER);
    let frozen = broker.freeze(world.leader(&world.events, 0));
    let began = Instant::now();
    let mut events = 1;
    let is_live = |process: &mut Process, events: u32| {
        let after = began.elapsed();
        assert_eq!(process.exited(), None, "after {after:?}, event {events}");
        let (status, body) = process.get("/livez");
        assert_eq!(status, 200, "after {after:?}, event {events}: {body}");
    };
    // The work shows that another broker has taken over, and that it goes on.
    while began.elapsed() < FROZEN {
        events += 1;
        world.produce_events([("k", truth::event(events))]);
        eventually_true("the event arrives", LATER, || {
            is_live(&mut process, events);
            receiver.seen().len() >= events as usize
        });
    }
    drop(frozen);
    events += 1;
    world.produce_events([("k", truth::event(events))]);
    receiver.wait_for(events as usize, LATER);
    is_live(&mut process, events);
    let (_, metrics) = process.get("/metrics");
    assert_eq!(restarts(&metrics), 0, "a role began anew");
}

#[test]
fn a_frozen_broker_of_three_hides_no_call_that_hangs() {
    let _beside = crate::beside_others();
    let broker = Broker::cluster(3);
    let (world, receiver) = world_on(&broker, Receiver::start(|_| Answer::status(500)));
    // The first transaction is that of the retry of the first event.
    let mut process = start(&world, "20s", "end-txn.before=1*off->sleep(600000)");
    process.wait_ready();
    world.produce_events([("k", truth::event(1))]);
    receiver.wait_for(1, LATER);
    eventually_true("the retry is written", LATER, || {
        let (_, metrics) = process.get("/metrics");
        metrics.contains(r#"hookstream_transactions_total{result="committed",role="deliver"} 1"#)
    });
    let _frozen = broker.freeze(world.leader(&world.events, 0));
    // Returns when another broker has taken over.
    world.produce_events([("k", truth::event(2)), ("k", truth::event(3))]);
    let status = process.wait_exit(LATER);
    let told = process.stderr().join("\n");
    assert_eq!(status.code(), Some(1), "{told}");
    assert!(
        told.contains("committing a transaction hangs") && told.contains("--hang-deadline"),
        "{told}"
    );
}

/// How often roles began anew.
fn restarts(metrics: &str) -> u32 {
    let counts = metrics.lines().filter_map(|line| {
        let count = line.strip_prefix("hookstream_role_restarts_total{")?;
        count.rsplit(' ').next()?.parse::<u32>().ok()
    });
    counts.sum()
}

#[test]
fn a_role_whose_client_is_silent_for_good_begins_anew() {
    let _beside = crate::beside_others();
    let broker = Broker::own();
    let (process, receiver) = run_with(&broker, "forgotten=3*return->off");
    eventually_true("the event arrives", LATER, || !receiver.seen().is_empty());
    let (_, metrics) = process.get("/metrics");
    assert_eq!(restarts(&metrics), 3);
}

/// Its group would wait for it for minutes: found by seed 331.
#[test]
fn a_client_that_is_silent_and_does_not_leave_its_group_ends_the_process() {
    let _beside = crate::beside_others();
    let broker = Broker::own();
    let (mut process, _receiver) = run_with(
        &broker,
        "forgotten=1*return->off;close.before=sleep(600000)",
    );
    let status = process.wait_exit(LATER);
    let told = process.stderr().join("\n");
    assert_eq!(status.code(), Some(1), "{told}");
    assert!(told.contains("did not leave the group"), "{told}");
}
