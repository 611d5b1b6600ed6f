//! Very many subscriptions, three to a subscriber: how long fan-out and delivery need until they are ready, their memory,
//! and what a change of one subscription costs.

use std::time::{Duration, Instant};

use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use serde_json::json;

use hookstream::edge::kafka::subscription_cache::SubscriptionCache;
use hookstream::model::subscription::{Kept, TopicRecord};

use crate::Scale;
use crate::reference::{print, send};
use crate::report::Report;
use crate::stage::{Again, Helper, Kafka, Problem, STUCK, World, account, median, producer_config};

/// The roles that hold all subscriptions.
const ROLES: [&str; 2] = ["fanout", "deliver"];
/// Subscriptions that are changed, one after the other.
const CHANGES: usize = 1_000;
/// Records that are made at a time.
const CHUNK: usize = 50_000;

/// The record of a subscription, some 300 bytes.
fn record(number: usize, max_in_flight: usize) -> (String, Vec<u8>) {
    let (id, tenant) = (format!("sub-{number:07}"), number / 3);
    let record = json!({
        "id": id, "subscriber": format!("tenant-{tenant:07}"),
        "url": format!("https://hooks.tenant-{tenant:07}.example.com/v1/webhooks/{number:07}"),
        "events": [format!("order.g{}", number % 1_000), "invoice.*"],
        "filter": {"data.shop": [format!("shop-{tenant}")]},
        "secrets": ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], "max_in_flight": max_in_flight,
    });
    (id, record.to_string().into_bytes())
}

/// COUNT: takes so many records into a cache; prints the CPU of one, µs.
pub fn play(arguments: &[String]) -> Result<(), Problem> {
    let count: usize = arguments[0].parse()?;
    let cache = SubscriptionCache::new(false, Kept::ForMatching);
    let mut cpu = 0.0;
    // To make the records is not part of it.
    for first in (0..count).step_by(CHUNK) {
        let numbers = first..count.min(first + CHUNK);
        let records: Vec<_> = numbers.map(|number| record(number, 8)).collect();
        let before = account(std::process::id())?.cpu;
        for (id, value) in &records {
            let taken = cache.apply(&TopicRecord {
                key: Some(id.as_bytes()),
                value: Some(value),
                partition: Some(0),
                ..TopicRecord::default()
            });
            taken.map_err(|refusal| refusal.error)?;
        }
        cpu += account(std::process::id())?.cpu - before;
    }
    print(&(cpu / count as f64 * 1e6).to_string())
}

struct Ready {
    seconds: f64,
    /// MiB, resident.
    memory: f64,
}

fn ready(again: &Again<'_>, role: &str) -> Result<Ready, Problem> {
    let running = again.start(role, &[])?;
    running.wait_ready()?;
    let seconds = running.age().as_secs_f64();
    // Memory of the burst is freed by then.
    std::thread::sleep(Duration::from_secs(5));
    let memory = running.resident()?;
    running.stop()?;
    Ok(Ready { seconds, memory })
}

pub fn run(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    let count = scale.pick(100_000, 1_000_000);
    let none = World::new(kafka, "many-none", 4, &[])?;
    let many = World::new(kafka, "many", 4, &[])?;
    // A first start records where its group begins: that is not what is measured.
    for role in ROLES {
        for world in [&none, &many] {
            ready(&world.again(role), role)?;
        }
    }
    let producer: ThreadedProducer<DefaultProducerContext> =
        producer_config(&kafka.address).create()?;
    let topic = many.subscriptions();
    let write = |number: usize, max_in_flight: usize| {
        let (id, value) = record(number, max_in_flight);
        let record = BaseRecord::<[u8], [u8]>::to(&topic)
            .key(id.as_bytes())
            .payload(&value);
        send(&producer, record)?;
        Ok::<usize, Problem>(value.len())
    };
    let mut bytes = 0;
    for number in 0..count {
        bytes += write(number, 8)?;
    }
    producer.flush(STUCK)?;
    report.tells("many: bytes of a record", bytes as f64 / count as f64, " B");
    let cpu = Helper::start("subscriptions", &[&count.to_string()])?.line()?;
    report.tells(
        "many: the cache alone: CPU of a record",
        cpu.parse()?,
        " µs",
    );
    for role in ROLES {
        let (mut seconds, mut each) = (Vec::new(), Vec::new());
        for _ in 0..scale.runs.min(3) {
            let without = ready(&none.again(role), role)?;
            let with = ready(&many.again(role), role)?;
            seconds.push(with.seconds);
            each.push((with.memory - without.memory) * 1024.0 * 1024.0 / count as f64);
        }
        report.at_most(
            &format!("many: {role}: start to ready with {count} subscriptions"),
            median(seconds),
            " s",
            4.0,
        );
        report.at_most(
            &format!("many: {role}: memory of a subscription"),
            median(each),
            " B",
            600.0,
        );
    }
    let role = many.again("deliver").start("deliver", &[])?;
    role.wait_ready()?;
    let before = role.cost()?.cpu;
    for number in 0..CHANGES {
        write(number * (count / CHANGES), 9)?;
    }
    // One invalid record behind the changes of each partition is counted when all are read.
    let metadata = producer.client().fetch_metadata(Some(&topic), STUCK)?;
    let partitions = metadata.topics()[0].partitions();
    for partition in partitions {
        let record = BaseRecord::<[u8], [u8]>::to(&topic).partition(partition.id());
        send(&producer, record.key(b"last").payload(b"{}"))?;
    }
    producer.flush(STUCK)?;
    let begun = Instant::now();
    while role.sum(&["hookstream_invalid_subscriptions_total"])? < partitions.len() as f64 {
        if begun.elapsed() > STUCK {
            return Err("the changes were not read".into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let cpu = role.cost()?.cpu - before;
    report.tells(
        "many: CPU of one change, its reading included",
        cpu / CHANGES as f64 * 1e6,
        " µs",
    );
    role.stop()
}
