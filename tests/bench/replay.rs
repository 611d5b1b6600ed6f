//! A preview of replay over a large dead-letter topic: its time, from the start of the process, and its peak memory, for a
//! filter whose dead letters lie in one partition, and for one whose dead letters are spread over all of the topic.
//!
//! A preview reads what a replay reads before it sends anything, so it is what an operator waits for in both.

use std::process::Stdio;
use std::time::{Duration, Instant};

use hookstream::edge::clock;
use hookstream::edge::kafka::record::command_headers;
use hookstream::model::dead_letter::{DeadLetterInfo, Reason};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

use crate::Scale;
use crate::reference::{command, send};
use crate::report::Report;
use crate::stage::{
    Cost, Kafka, Problem, STUCK, World, account, median, producer_config, subscription,
};

const PARTITIONS: usize = 12;
/// Each has a subscription and the same number of dead letters.
const SUBSCRIBERS: usize = 100;
/// Of a dead letter's body.
const BODY: usize = 512;

/// Writes dead letters to a partition in turn of their subscribers; of each subscriber's, one in a hundred has the status 503.
fn fill(kafka: &Kafka, topic: &str, count: usize) -> Result<(), Problem> {
    let producer: ThreadedProducer<DefaultProducerContext> =
        producer_config(&kafka.address).create()?;
    for number in 0..count {
        let mut command = command(number);
        let name = number % SUBSCRIBERS;
        command.subscriber = format!("subscriber-{name}").into();
        command.subscription = format!("s{name}").into();
        let is_rare = number / SUBSCRIBERS % 100 == name;
        let status = if is_rare { 503 } else { 500 };
        let info = DeadLetterInfo {
            reason: Reason::AttemptsExhausted,
            status: Some(status),
            error: format!("the endpoint responded {status}"),
            first_failure: clock::now(),
            last_failure: clock::now(),
        };
        let own: OwnedHeaders = command_headers(&command.envelope());
        let headers = info.headers().into_iter().fold(own, |all, (key, value)| {
            let value = Some(value.as_bytes());
            all.insert(Header { key, value })
        });
        let record = BaseRecord::<[u8], [u8]>::to(topic)
            .key(command.subscriber.as_bytes())
            .payload(&command.body[..BODY])
            .headers(headers);
        send(&producer, record)?;
    }
    Ok(producer.flush(STUCK)?)
}

/// Runs a preview: how many it would replay, its time and its peak memory.
fn preview(world: &World<'_>, filter: &[&str]) -> Result<(u64, Cost), Problem> {
    let arguments = ["replay", "--dead-letters", "--dry-run", "-o", "json"];
    let begun = Instant::now();
    let mut child = world
        .command(&[&arguments[..], filter].concat())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut cost = Cost::default();
    while child.try_wait()?.is_none() {
        // Its last look may come after its end.
        cost = account(child.id()).unwrap_or(cost);
        std::thread::sleep(Duration::from_millis(5));
    }
    cost.wall = begun.elapsed().as_secs_f64();
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(format!("the preview with {filter:?} has failed").into());
    }
    let told: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let letters = told["letters"].as_u64().ok_or("no count")?;
    Ok((letters, cost))
}

pub fn run(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    let count = scale.pick(200_000, 1_000_000);
    let all: Vec<_> = (0..SUBSCRIBERS)
        .map(|number| subscription(number, "http://127.0.0.1:9/"))
        .collect();
    let world = World::new(kafka, "replay", PARTITIONS, &all)?;
    eprintln!("  writing {count} dead letters");
    fill(kafka, &format!("{}-dead-letters", world.name()), count)?;
    for (what, filter) in [
        ("one subscriber", ["--subscriber", "subscriber-7"]),
        ("spread over all of them", ["--status", "503"]),
    ] {
        let (mut seconds, mut memory) = (vec![], vec![]);
        for _ in 0..scale.runs.min(3) {
            let (letters, cost) = preview(&world, &filter)?;
            if letters != count as u64 / 100 {
                return Err(format!("{letters} of {count} dead letters match {filter:?}").into());
            }
            eprintln!(
                "  {what}: {:.2} s, {:.0} MiB, {:.1} CPU s",
                cost.wall, cost.memory, cost.cpu
            );
            seconds.push(cost.wall);
            memory.push(cost.memory);
        }
        let name = format!("replay: preview of 1 % of {count} dead letters, {what}");
        let most = 5.0 * count as f64 / 1e6;
        report.at_most(&name, median(seconds), " s", most);
        let peak = memory.into_iter().fold(0.0, f64::max);
        report.at_most(&format!("{name}: peak memory"), peak, " MiB", 200.0);
    }
    Ok(())
}
