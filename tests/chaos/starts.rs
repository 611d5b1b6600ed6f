//! Replicas that begin at once, one of them at a bad moment.

use std::time::Duration;

use crate::it::support::{Process, World};
use crate::truth;

const LATER: Duration = Duration::from_secs(120);
/// Longer than a first start takes.
const PAUSE: &str = "1*sleep(15000)";

/// The other replica fences the first one, and commits positions and markers, while the first has read the one and not yet
/// the other: it must not take that for positions that were lost.
#[test]
fn a_replica_that_is_overtaken_while_it_begins_goes_on() {
    let _beside = crate::beside_others();
    let mut world = World::new("overtaken");
    // With an explicit flag, positions are never taken for lost.
    world.start_at = "";
    world.create_topics(1);
    // Nothing is taken for lost where there is nothing to read.
    world.produce_events([("k", truth::event(1))]);
    let overtaken = start(&world, &format!("start-markers.after={PAUSE}"));
    overtaken.wait_for_line("subscriptions loaded", LATER);
    let other = start(&world, "");
    other.wait_ready();
    let told = overtaken.stderr().join("\n");
    assert!(!told.contains("ready"), "it was overtaken: {told}");
    overtaken.wait_ready();
}

fn start(world: &World, points: &str) -> Process {
    let mut arguments = vec!["fanout".to_owned()];
    arguments.extend(world.args());
    arguments.extend(["--http-listen", "127.0.0.1:0"].map(str::to_owned));
    Process::spawn_with(&arguments, &[("FAILPOINTS", points)])
}
