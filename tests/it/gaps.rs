//! Records that are deleted before their role has read them, on a real Kafka: what is left is read, and what is lost is
//! counted and named.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::json;

use crate::scene::{
    body, event, put, subscription, wait_for_records, wait_until_done_within, with,
};
use crate::support::{Answer, Broker, Receiver, SOON, World, block_on, eventually_true};

const LATER: Duration = Duration::from_secs(120);

/// As `kafka-delete-records.sh` does it.
#[track_caller]
fn delete_before(world: &World, topic: &str, partition: i32, offset: i64) {
    let admin: AdminClient<DefaultClientContext> = world.client_config().create().unwrap();
    let options = AdminOptions::new().operation_timeout(Some(SOON));
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, rdkafka::Offset::Offset(offset))
        .unwrap();
    block_on(admin.delete_records(&list, &options)).unwrap();
}

#[test]
fn records_deleted_underneath_release_lose_only_what_it_did_not_hold() {
    const EVENTS: usize = 3_000;
    const SIZE: usize = 10_000;
    // Release buffers 64 MiB in all, a 64th of it for each of so many partitions, and its client 8 MiB: less than half of
    // what is there, however fast it comes.
    const PARTITIONS: i32 = 64;
    let mut world = World::new("deleted-records");
    world.tiers = Vec::new();
    world.create_topics(1);
    world.tiers = vec![Duration::from_secs(60)];
    let tier = world.topics.retry(world.tiers[0]);
    world.create_topic(
        &tier,
        PARTITIONS,
        &[("message.timestamp.type", "LogAppendTime")],
    );
    let receiver = Receiver::start(|seen| {
        let first = seen.header("hookstream-attempt") == Some("1");
        Answer::status(if first { 500 } else { 200 })
    });
    let one = subscription("acme", &receiver.url("/"), &["**"]);
    put(&world, &[with(one, json!({"max_in_flight": 64}))]);
    let mut process = world.spawn("run", &["--retry-schedule", "60s,60s,60s"]);
    process.wait_ready();
    let data = "x".repeat(SIZE);
    world.produce_events((0..EVENTS).map(|number| {
        let value = format!(r#"{{"id":"e{number}","type":"a.b","data":"{data}"}}"#);
        ("k", value)
    }));
    let records = wait_for_records(&world, &tier, EVENTS);
    let partition = records[0].partition;
    assert!(records.iter().all(|record| record.partition == partition));
    let kept = records.len() * 9 / 10;
    delete_before(&world, &tier, partition, records[kept].offset);

    let line = process.wait_for_line("LOST", LATER);
    assert!(line.contains(&tier), "{line}");
    wait_until_done_within(&world, LATER);
    let mut attempts: BTreeMap<String, usize> = BTreeMap::new();
    for seen in receiver.seen() {
        if seen.header("hookstream-attempt") == Some("2") {
            let id = seen.webhook_id().to_owned();
            *attempts.entry(id).or_default() += 1;
        }
    }
    assert!(attempts.values().all(|count| *count == 1), "{attempts:?}");
    for record in &records[kept..] {
        let id = record.header("webhook-id").unwrap();
        assert!(attempts.contains_key(id), "{id} was there and is lost");
    }
    let held = attempts.len() - (records.len() - kept);
    assert!(held > 0, "what release held moves all the same");
    let lost = format!(r#"hookstream_lost_offsets_total{{topic="{tier}"}}"#);
    let lost = process.metric(&lost).unwrap_or_default();
    // The ends of transactions have offsets too.
    assert!(
        lost >= (kept - held) as f64,
        "{lost} of {kept} deleted ones, {held} held"
    );
    assert_eq!(process.exited(), None, "nothing was restarted");
}

/// The search for the gap asks for the range of each partition: one whose leader does not respond delays no other.
#[test]
fn a_gap_is_found_while_one_broker_of_three_is_frozen() {
    const PARTITIONS: i32 = 3;
    let broker = Broker::cluster(3);
    let world = World::on(&broker, "frozen-gap");
    world.create_topics(PARTITIONS);
    let receiver = Receiver::good();
    put(&world, &[subscription("acme", &receiver.url("/"), &["**"])]);
    let producer: BaseProducer = world.client_config().create().unwrap();
    let send = |partition: i32, data: &str| {
        let payload = event(&format!("e{data}"), "a.b", data);
        let record = BaseRecord::<str, str>::to(&world.events)
            .partition(partition)
            .payload(&payload);
        producer.send(record).unwrap();
        producer.flush(LATER).unwrap();
    };
    let mut process = world.spawn("run", &[]);
    process.wait_ready();
    (0..PARTITIONS).for_each(|partition| send(partition, &format!("1{partition}")));
    receiver.wait_for(3, LATER);
    wait_until_done_within(&world, LATER);
    process.sigterm();
    assert!(process.wait_exit(LATER).success());

    (0..PARTITIONS).for_each(|partition| send(partition, &format!("2{partition}")));
    send(0, "30");
    let all = world.read_all(&world.events, crate::support::Isolation::Committed);
    let last = all
        .iter()
        .filter(|record| record.partition == 0)
        .max_by_key(|one| one.offset);
    delete_before(&world, &world.events, 0, last.unwrap().offset);
    let of_gap = world.leader(&world.events, 0);
    let other = (1..=3).find(|&number| number != of_gap).unwrap();
    let frozen = broker.freeze(other);
    let mut process = world.spawn("run", &[]);
    let line = process.wait_for_line("LOST", LATER);
    assert!(line.contains(&world.events), "{line}");
    receiver.wait_until("what is left arrives", LATER, |seen| {
        ["21", "22", "30"].iter().all(|data| {
            let body = body("a.b", data);
            seen.iter().any(|seen| seen.body == body.as_bytes())
        })
    });
    drop(frozen);
    let lost = format!(
        r#"hookstream_lost_offsets_total{{topic="{}"}}"#,
        world.events
    );
    eventually_true("the loss is counted", SOON, || {
        process.metric(&lost) == Some(1.0)
    });
    assert_eq!(process.exited(), None, "nothing was restarted");
}
