//! One event for very many subscriptions, and what a neighbour notices of it.

use std::time::{Duration, Instant};

use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use serde_json::{Value, json};

use crate::Scale;
use crate::latency::{produce, wait};
use crate::reference::send;
use crate::report::Report;
use crate::stage::{Helper, Kafka, Problem, STUCK, World, producer_config, subscription};

/// Events a second of the neighbour.
const RATE: f64 = 200.0;

/// Produces the event that all but the neighbour want.
fn publish(kafka: &Kafka, topic: &str) -> Result<(), Problem> {
    let producer: ThreadedProducer<DefaultProducerContext> =
        producer_config(&kafka.address).create()?;
    let event = json!({"id": "wide-1", "type": "wide.created", "data": {"pad": "x".repeat(900)}});
    let value = serde_json::to_vec(&event)?;
    let record = BaseRecord::<[u8], [u8]>::to(topic)
        .key(b"wide")
        .payload(&value[..]);
    send(&producer, record)?;
    Ok(producer.flush(STUCK)?)
}

pub fn run(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    let count = scale.pick(20_000, 400_000);
    let time = Duration::from_secs(scale.pick(5, 15));
    let mut receiver = Helper::start("receiver", &[])?;
    let port = receiver.line()?;
    let mut all = vec![subscription(0, &format!("http://127.0.0.1:{port}/timed/0"))];
    all.extend((1..=count).map(|number| {
        let mut one = subscription(number, &format!("http://127.0.0.1:{port}/ok/{number}"));
        one["events"] = json!(["wide.*"]);
        one
    }));
    let world = World::new(kafka, "wide", 4, &all)?;
    drop(all);
    let role = world.again("wide").start("fanout", &[])?;
    let deliver = world.again("wide").start("deliver", &[])?;
    role.wait_ready()?;
    deliver.wait_ready()?;
    let p99 = |seen: &Value| seen["all"]["p99"].as_f64().unwrap_or(f64::NAN);
    let mut neighbour = |wide: bool| -> Result<(f64, f64), Problem> {
        receiver.ask("reset")?;
        let events = world.events();
        let before = role.sum(&[COMMANDS])?;
        std::thread::scope(|scope| {
            let topic = &events;
            let producing = scope.spawn(move || {
                produce(kafka, topic, RATE, time).map_err(|problem| problem.to_string())
            });
            let begun = Instant::now();
            if wide {
                publish(kafka, &events)?;
            }
            let until = before + if wide { count as f64 } else { 0.0 };
            while role.sum(&[COMMANDS])? < until && begun.elapsed() < STUCK {
                std::thread::sleep(Duration::from_millis(20));
            }
            let took = begun.elapsed().as_secs_f64();
            let sent = producing.join().map_err(|_| "the producer panicked")??;
            Ok((p99(&wait(&mut receiver, sent, STUCK)?), took))
        })
    };
    neighbour(false)?;
    let (calm, _) = neighbour(false)?;
    let (beside, took) = neighbour(true)?;
    let measure = |what: &str| format!("wide: one event for {count} subscriptions, {what}");
    report.tells(&measure("until all commands are written"), took, " s");
    report.tells(&measure("a neighbour's p99 before"), calm, " ms");
    report.tells(&measure("a neighbour's p99 meanwhile"), beside, " ms");
    report.tells(
        &measure("peak memory of fanout"),
        role.cost()?.memory,
        " MiB",
    );
    report.tells(
        &measure("peak memory of deliver"),
        deliver.cost()?.memory,
        " MiB",
    );
    role.stop()?;
    deliver.stop()
}

const COMMANDS: &str = r#"hookstream_commands_total{cause="new""#;
