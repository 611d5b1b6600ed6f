//! A call into the client library that hangs ends the process with a clear message, rather than hanging with it.
//!
//! The hang is a sleep at the named point, within the call that the watchdog looks at; brokers answer all the while.

use std::time::Duration;

use crate::it::support::{Broker, Process, Receiver, World};
use crate::traffic;
use crate::truth;

const LATER: Duration = Duration::from_secs(60);

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
        let world = World::on(&broker, "hang");
        world.create_topics(1);
        let receiver = Receiver::good();
        traffic::put(&world, &receiver, 0, &crate::faults::secret(0), "active");
        world.produce_events([("k", truth::event(1))]);
        let mut arguments = vec!["run".to_owned()];
        arguments.extend(world.args());
        arguments
            .extend(["--hang-deadline", "5s", "--http-listen", "127.0.0.1:0"].map(str::to_owned));
        let forever = format!("{point}=sleep(600000)");
        let mut process = Process::spawn_with(&arguments, &[("FAILPOINTS", &forever)]);
        let status = process.wait_exit(LATER);
        let told = process.stderr().join("\n");
        assert_eq!(status.code(), Some(1), "{point}: {told}");
        assert!(
            told.contains(message) && told.contains("--hang-deadline"),
            "{point}: {told}"
        );
    }
}
