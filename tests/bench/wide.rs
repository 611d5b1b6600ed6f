//! One event for very many subscriptions, or of many bytes for many, and what a neighbour notices of it.

use std::time::{Duration, Instant};

use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use serde_json::{Value, json};

use crate::Scale;
use crate::drain::DELIVERED;
use crate::latency::{produce, wait};
use crate::reference::send;
use crate::report::Report;
use crate::stage::{Helper, Kafka, Problem, Role, STUCK, World, producer_config, subscription};

/// Events a second of the neighbour.
const RATE: f64 = 200.0;

struct Case {
    name: &'static str,
    subscriptions: usize,
    /// Of the event.
    bytes: usize,
    /// Seconds until all commands are written.
    target: Option<f64>,
}

/// Produces the event that all but the neighbour want.
fn publish(kafka: &Kafka, topic: &str, bytes: usize) -> Result<(), Problem> {
    let producer: ThreadedProducer<DefaultProducerContext> = producer_config(&kafka.address)
        .set("message.max.bytes", "2000000")
        .create()?;
    // Hexadecimal digits at random: compression halves them, as it does with much real data.
    let pad: String = std::iter::repeat_with(|| fastrand::choice(*b"0123456789abcdef"))
        .flatten()
        .map(char::from)
        .take(bytes)
        .collect();
    let event = json!({"id": "wide-1", "type": "wide.created", "data": {"pad": pad}});
    let value = serde_json::to_vec(&event)?;
    let record = BaseRecord::<[u8], [u8]>::to(topic)
        .key(b"wide")
        .payload(&value[..]);
    send(&producer, record)?;
    Ok(producer.flush(STUCK)?)
}

pub fn run(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    let cases = [
        Case {
            name: "wide",
            subscriptions: scale.pick(20_000, 400_000),
            bytes: 900,
            target: Some(2.0),
        },
        Case {
            name: "wider",
            subscriptions: scale.pick(50_000, 1_000_000),
            bytes: 900,
            target: Some(6.0),
        },
        Case {
            name: "large",
            subscriptions: scale.pick(200, 2_000),
            bytes: 1_000_000,
            target: None,
        },
    ];
    for case in &cases {
        measure(kafka, scale, report, case)?;
    }
    Ok(())
}

fn measure(kafka: &Kafka, scale: &Scale, report: &mut Report, case: &Case) -> Result<(), Problem> {
    let count = case.subscriptions;
    let time = Duration::from_secs(scale.pick(5, 15));
    let mut receiver = Helper::start("receiver", &[])?;
    let port = receiver.line()?;
    let mut all = vec![subscription(0, &format!("http://127.0.0.1:{port}/timed/0"))];
    all.extend((1..=count).map(|number| {
        let mut one = subscription(number, &format!("http://127.0.0.1:{port}/ok/{number}"));
        one["events"] = json!(["wide.*"]);
        one
    }));
    let world = World::new(kafka, case.name, 4, &all)?;
    drop(all);
    let role = world.again(case.name).start("fanout", &[])?;
    let deliver = world.again(case.name).start("deliver", &[])?;
    // What a lane has no room for, and what times out, comes back through it.
    let release = world.again(case.name).start("release", &[])?;
    role.wait_ready()?;
    deliver.wait_ready()?;
    release.wait_ready()?;
    let p99 = |seen: &Value| seen["all"]["p99"].as_f64().unwrap_or(f64::NAN);
    let mut neighbour = |wide: bool| -> Result<Seen, Problem> {
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
                publish(kafka, &events, case.bytes)?;
            }
            let until = before + if wide { count as f64 } else { 0.0 };
            while role.sum(&[COMMANDS])? < until && begun.elapsed() < STUCK {
                std::thread::sleep(Duration::from_millis(20));
            }
            let took = begun.elapsed().as_secs_f64();
            let sent = producing.join().map_err(|_| "the producer panicked")??;
            let late = p99(&wait(&mut receiver, sent, STUCK)?);
            Ok(Seen { late, took, sent })
        })
    };
    neighbour(false)?;
    let calm = neighbour(false)?;
    let before = deliver.sum(&DELIVERED)?;
    let beside = neighbour(true)?;
    let delivered = until_delivered(&deliver, before + beside.sent as f64, count)?;
    let bytes = case.bytes;
    let measure =
        |what: &str| format!("wide: one event of {bytes} bytes for {count} subscriptions, {what}");
    let written = measure("until all commands are written");
    match case.target {
        Some(most) => report.at_most(&written, beside.took, " s", most),
        None => report.tells(&written, beside.took, " s"),
    }
    report.tells(&measure("a neighbour's p99 before"), calm.late, " ms");
    report.tells(&measure("a neighbour's p99 meanwhile"), beside.late, " ms");
    report.tells(
        &measure("delivered"),
        delivered / count as f64 * 100.0,
        " %",
    );
    let memory = [("fanout", &role), ("deliver", &deliver)];
    for (name, role) in memory {
        let peak = measure(&format!("peak memory of {name}"));
        report.tells(&peak, role.cost()?.memory, " MiB");
    }
    role.stop()?;
    release.stop()?;
    deliver.stop()
}

/// What a run of the neighbour has shown.
struct Seen {
    /// Its p99, ms.
    late: f64,
    /// Seconds until all commands were written.
    took: f64,
    /// Its events.
    sent: usize,
}

/// Waits until `count` commands are delivered beside `others`; returns how many are.
fn until_delivered(deliver: &Role, others: f64, count: usize) -> Result<f64, Problem> {
    let (begun, mut seen) = (Instant::now(), 0.0);
    while begun.elapsed() < STUCK {
        seen = deliver.sum(&DELIVERED)? - others;
        if seen >= count as f64 {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(seen)
}

const COMMANDS: &str = r#"hookstream_commands_total{cause="new""#;
