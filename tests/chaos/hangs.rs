//! A call into the client library that hangs ends the process with a clear message, rather than hanging with it.
//!
//! The hang is a sleep at the named point, within the call that the watchdog looks at; brokers answer all the while.
//! A client that is silent for good, which no call tells, makes its role begin anew; one that does not let go of its group
//! either ends the process.

use std::time::Duration;

use crate::it::support::{Broker, Process, Receiver, World, eventually_true};
use crate::traffic;
use crate::truth;

const LATER: Duration = Duration::from_secs(120);

#[test]
fn a_call_that_hangs_ends_the_process_with_its_name() {
    let _alone = crate::alone();
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

/// A world with one event, and `run` in it with fail-points.
fn run_with(broker: &Broker, points: &str) -> (Process, Receiver) {
    let world = World::on(broker, "hang");
    world.create_topics(1);
    let receiver = Receiver::good();
    traffic::put(&world, &receiver, 0, &crate::faults::secret(0), "active");
    world.produce_events([("k", truth::event(1))]);
    let mut arguments = vec!["run".to_owned()];
    arguments.extend(world.args());
    arguments.extend(["--hang-deadline", "5s", "--http-listen", "127.0.0.1:0"].map(str::to_owned));
    let process = Process::spawn_with(&arguments, &[("FAILPOINTS", points)]);
    (process, receiver)
}

#[test]
fn a_role_whose_client_is_silent_for_good_begins_anew() {
    let _alone = crate::alone();
    let broker = Broker::own();
    let (process, receiver) = run_with(&broker, "forgotten=3*return->off");
    eventually_true("the event arrives", LATER, || !receiver.seen().is_empty());
    let (_, metrics) = process.get("/metrics");
    let restarts = metrics.lines().filter_map(|line| {
        let count = line.strip_prefix("hookstream_role_restarts_total{")?;
        count.rsplit(' ').next()?.parse::<u32>().ok()
    });
    assert_eq!(restarts.sum::<u32>(), 3);
}

/// Its group would wait for it for minutes: found by seed 331.
#[test]
fn a_client_that_is_silent_and_does_not_leave_its_group_ends_the_process() {
    let _alone = crate::alone();
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
