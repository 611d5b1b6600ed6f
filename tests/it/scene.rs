//! What tests of whole flows begin with and end on: subscriptions, a running process, and "nothing is under way".

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use serde_json::{Value, json};

use crate::support::{
    Broker, Isolation, Process, Record, World, broker, eventually_ok, eventually_true,
};

/// Delays of the retry schedule in force in [`start`]ed processes, before jitter.
pub const SCHEDULE: [Duration; 3] = [
    Duration::from_millis(300),
    Duration::from_millis(500),
    Duration::from_secs(1),
];

/// Retries and hops take seconds, and the machine may be busy.
pub const LATER: Duration = Duration::from_secs(60);

/// A world with tiers of 300 ms and 1 s and topics of one partition, so that what comes later is behind.
#[track_caller]
pub fn world(name: &str) -> World {
    world_on(broker(), name)
}

/// The same on a broker of the test's own.
#[track_caller]
pub fn world_on(broker: &Broker, name: &str) -> World {
    let mut world = World::on(broker, name);
    world.tiers = vec![Duration::from_millis(300), Duration::from_secs(1)];
    world.create_topics(1);
    world
}

/// A subscription to `events` patterns; its subscriber is its id.
pub fn subscription(id: &str, url: &str, events: &[&str]) -> Value {
    json!({"id": id, "subscriber": id, "url": url, "events": events})
}

/// The same with further fields.
pub fn with(mut subscription: Value, fields: Value) -> Value {
    let Value::Object(fields) = fields else {
        panic!("fields are an object")
    };
    subscription.as_object_mut().unwrap().extend(fields);
    subscription
}

/// Writes subscriptions without asking the program; start it afterwards, so that it knows them.
#[track_caller]
pub fn put(world: &World, subscriptions: &[Value]) {
    for one in subscriptions {
        world.put_subscription(one["id"].as_str().unwrap(), one.to_string());
    }
}

/// All roles in one process, ready.
#[track_caller]
pub fn start(world: &World, extra: &[&str]) -> Process {
    let flags = ["--retry-schedule", "300ms,500ms,1s", "--workers", "1"];
    let process = world.spawn("run", &[&flags, extra].concat());
    process.wait_ready();
    process
}

/// A plain event.
pub fn event(id: &str, event_type: &str, data: &str) -> String {
    format!(r#"{{"id":"{id}","type":"{event_type}","time":"2026-07-01T12:00:00Z","data":{data}}}"#)
}

/// The body that subscriptions of format `standard` get for [`event`].
pub fn body(event_type: &str, data: &str) -> String {
    format!(r#"{{"type":"{event_type}","timestamp":"2026-07-01T12:00:00Z","data":{data}}}"#)
}

/// Waits until everything produced so far has come to its end: no event, command or retry is left.
#[track_caller]
pub fn wait_until_done(world: &World) {
    wait_until_done_within(world, LATER);
}

/// The same where retries wait for longer.
#[track_caller]
pub fn wait_until_done_within(world: &World, time: Duration) {
    let mut before = None;
    eventually_ok("nothing is under way any more", time, || {
        let now = positions_at_rest(world)?;
        // What moved on while this looked from topic to topic has moved a position since.
        let moved = before
            .replace(now.clone())
            .is_none_or(|before| before != now);
        if moved {
            return Err(format!("positions move: {now:?}"));
        }
        Ok(())
    });
}

/// Each topic's positions, if they are past all of its records.
///
/// # Errors
/// What is left of the first topic that is not done.
fn positions_at_rest(world: &World) -> Result<Vec<BTreeMap<i32, i64>>, String> {
    let mut topics = vec![
        ("fanout", world.events.clone()),
        ("deliver", world.topics.commands()),
    ];
    let tiers = world.tiers.iter();
    topics.extend(tiers.map(|tier| ("release", world.topics.retry(*tier))));
    let topics = topics.into_iter().map(|(group, topic)| {
        let committed = world.committed(group, &topic).into_iter();
        let positions = committed
            .map(|(partition, position, _)| (partition, position))
            .collect();
        let left = world.read_from(&topic, Isolation::Committed, &positions);
        match left.first() {
            None => Ok(positions),
            Some(first) => {
                let headers = first.headers.iter();
                let headers = headers.map(|(name, value)| (name, String::from_utf8_lossy(value)));
                Err(format!(
                    "{} records of {topic} from {positions:?} on, the first at {}/{} with {:?}",
                    left.len(),
                    first.partition,
                    first.offset,
                    headers.collect::<Vec<_>>(),
                ))
            }
        }
    });
    topics.collect()
}

/// Waits for that many records in a topic, and returns them.
#[track_caller]
pub fn wait_for_records(world: &World, topic: &str, count: usize) -> Vec<Record> {
    let mut records = Vec::new();
    eventually_true(&format!("{count} records in {topic}"), LATER, || {
        records = world.read_all(topic, Isolation::Committed);
        records.len() >= count
    });
    records
}

/// Open dead letters as the operator sees them.
#[track_caller]
pub fn dead_letters(world: &World) -> Vec<Value> {
    let listed = world.run(&["dead-letters", "list", "-o", "json"], "");
    assert_eq!(listed.code, 0, "{}", listed.stderr);
    serde_json::from_str(&listed.stdout).unwrap()
}

/// Waits for that many open dead letters.
#[track_caller]
pub fn wait_for_dead_letters(world: &World, count: usize) -> Vec<Value> {
    wait_for_records(world, &world.topics.dead_letters(), count);
    dead_letters(world)
}

/// Sets a topic's settings; those not named get their defaults back.
#[track_caller]
pub fn alter_topic(world: &World, topic: &str, settings: &[(&str, &str)]) {
    let admin: AdminClient<DefaultClientContext> = world.client_config().create().unwrap();
    let change = settings.iter().fold(
        AlterConfig::new(ResourceSpecifier::Topic(topic)),
        |change, (name, value)| change.set(name, value),
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let results = runtime
        .block_on(admin.alter_configs([&change], &AdminOptions::new()))
        .unwrap();
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}
