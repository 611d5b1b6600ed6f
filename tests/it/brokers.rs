//! Brokers with other settings, and what others do to topics and transactions, on a real Kafka: work goes on, and what
//! it cannot do is named.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;

use crate::scene::{event, put, subscription, wait_until_done_within, with};
use crate::support::{Answer, Broker, Receiver, SOON, World};

const LATER: Duration = Duration::from_secs(120);

#[test]
fn a_broker_that_keeps_little_metadata_bounds_intake_and_the_position_moves() {
    const EVENTS: usize = 900;
    let dir = tempfile::tempdir().unwrap();
    let properties = dir.path().join("broker.properties");
    std::fs::write(&properties, "offset.metadata.max.bytes=128\n").unwrap();
    let broker = Broker::with_options(&["--properties", properties.to_str().unwrap()]);
    let mut world = World::on(&broker, "little-metadata");
    world.tiers = vec![Duration::from_secs(1)];
    world.create_topics(1);
    let receiver = Receiver::start(|seen| {
        let first = seen.header("hookstream-attempt") == Some("1");
        match &*seen.path {
            "/slow" => Answer::ok().after(Duration::from_secs(2)),
            "/flaky" if first => Answer::status(500),
            _ => Answer::ok(),
        }
    });
    let of = |id: &str, types: &str| {
        let url = receiver.url(&format!("/{id}"));
        with(
            subscription(id, &url, &[types]),
            json!({"max_in_flight": 64}),
        )
    };
    put(
        &world,
        &[
            of("slow", "slow.*"),
            of("good", "order.*"),
            of("flaky", "order.*"),
        ],
    );
    let process = world.spawn("run", &["--retry-schedule", "1s,1s,1s"]);
    process.wait_ready();
    world.produce_events((0..EVENTS).map(|number| {
        let kind = if number % 300 == 10 {
            "slow.one"
        } else {
            "order.created"
        };
        (
            format!("k{number}"),
            event(&format!("e{number}"), kind, "1"),
        )
    }));
    receiver.wait_for(EVENTS - 3 + (EVENTS - 3) * 2 + 3, LATER);
    wait_until_done_within(&world, LATER);
    process.wait_for_line("offset.metadata.max.bytes", SOON);
    for (_, position, metadata) in world.committed("deliver", &world.topics.commands()) {
        assert!(metadata.len() <= 128, "{position}: {metadata}");
    }
    let mut attempts = BTreeSet::new();
    for seen in receiver.seen() {
        let attempt = seen.header("hookstream-attempt").map(str::to_owned);
        let one = (seen.webhook_id().to_owned(), attempt);
        assert!(attempts.insert(one.clone()), "{one:?} was sent twice");
    }
}
