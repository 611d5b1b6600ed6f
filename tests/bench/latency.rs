//! From event to POST in an open loop, beside produce → consume → produce → consume on the same broker.

use std::time::{Duration, Instant};

use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use serde_json::{Value, json};

use crate::Scale;
use crate::receiver::{quantiles, scheduled};
use crate::reference::{reader, send};
use crate::report::Report;
use crate::stage::{
    Helper, Kafka, Problem, STUCK, World, event, in_turn, median, producer_config, subscription,
    wall,
};

/// Of every topic here: few, so that the reference and the program poll as many.
const PARTITIONS: usize = 4;

/// Produces events at these times, late or not; each carries when it was to be produced.
pub fn produce(kafka: &Kafka, topic: &str, rate: f64, time: Duration) -> Result<usize, Problem> {
    let producer: ThreadedProducer<DefaultProducerContext> =
        producer_config(&kafka.address).create()?;
    // The first record of a producer waits for metadata and an id.
    producer.client().fetch_metadata(Some(topic), STUCK)?;
    let begun = (
        Instant::now() + Duration::from_millis(100),
        wall() + 100_000_000,
    );
    let count = (rate * time.as_secs_f64()) as usize;
    for number in 0..count {
        let after = Duration::from_secs_f64(number as f64 / rate);
        let wait = (begun.0 + after).saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
        let (key, value) = (
            format!("order-{number}"),
            event(number, begun.1 + after.as_nanos()),
        );
        let record = BaseRecord::<[u8], [u8]>::to(topic)
            .key(key.as_bytes())
            .payload(&value[..]);
        send(&producer, record)?;
    }
    producer.flush(STUCK)?;
    Ok(count)
}

/// Waits until the receiver has seen that many, or for a while longer than it should take.
pub fn wait(receiver: &mut Helper, count: usize, at_most: Duration) -> Result<Value, Problem> {
    let begun = Instant::now();
    loop {
        let seen = receiver.ask("report")?;
        if seen["all"]["count"].as_u64().unwrap_or(0) >= count as u64 || begun.elapsed() > at_most {
            return Ok(seen);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn ours(
    kafka: &Kafka,
    guarantee: &str,
    rate: f64,
    time: Duration,
    name: &str,
) -> Result<Value, Problem> {
    let mut receiver = Helper::start("receiver", &[])?;
    let port = receiver.line()?;
    let url = format!("http://127.0.0.1:{port}/timed/0");
    // As many in flight as it takes: this is no test of a limit.
    let mut one = subscription(0, &url);
    one["max_in_flight"] = json!(64);
    let world = World::new(kafka, name, PARTITIONS, &[one])?;
    let role = world
        .again(name)
        .start("run", &["--guarantee", guarantee])?;
    role.wait_ready()?;
    let first = produce(kafka, &world.events(), rate, WARM_UP)?;
    wait(&mut receiver, first, STUCK)?;
    receiver.ask("reset")?;
    let count = produce(kafka, &world.events(), rate, time)?;
    let seen = wait(&mut receiver, count, STUCK)?;
    role.stop()?;
    Ok(seen["all"].clone())
}

const WARM_UP: Duration = Duration::from_secs(2);

fn reference(kafka: &Kafka, rate: f64, time: Duration, name: &str) -> Result<Value, Problem> {
    let world = World::new(kafka, name, PARTITIONS, &[])?;
    let partitions = PARTITIONS.to_string();
    let arguments = [
        &kafka.address,
        &world.events(),
        &world.commands(),
        &partitions,
    ];
    let mut relay = Helper::start("relay", &arguments.map(String::as_str))?;
    relay.line()?;
    let consumer = reader(
        &kafka.address,
        &world.commands(),
        i32::try_from(PARTITIONS)?,
    )?;
    let skip = (rate * WARM_UP.as_secs_f64()) as usize;
    let wanted = skip + (rate * time.as_secs_f64()) as usize;
    std::thread::scope(|scope| {
        let topic = world.events();
        let producing = scope.spawn(move || {
            produce(kafka, &topic, rate, WARM_UP)
                .and_then(|_| produce(kafka, &topic, rate, time))
                .map_err(|problem| problem.to_string())
        });
        let mut histogram = crate::receiver::histogram();
        let mut seen = 0;
        let begun = Instant::now();
        while seen < wanted && begun.elapsed() < STUCK {
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    seen += 1;
                    let at = message.payload().and_then(scheduled).unwrap_or_default();
                    if seen > skip {
                        let late = wall().saturating_sub(at) / 1000;
                        histogram.saturating_record(u64::try_from(late)?);
                    }
                }
                Some(Err(error)) => return Err(error.into()),
                None => {}
            }
        }
        producing.join().map_err(|_| "the producer panicked")??;
        Ok(quantiles(&histogram))
    })
}

pub fn run(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    let time = Duration::from_secs(scale.pick(3, 10));
    // A broker that has just started needs several times the CPU.
    for at in 0..2 {
        ours(
            kafka,
            "exactly-once",
            500.0,
            time,
            &format!("latency-warm-{at}"),
        )?;
    }
    let mut rows = Vec::new();
    let mut loads = vec![("200/s", 200.0)];
    if !scale.quick {
        loads.insert(0, ("50/s", 50.0));
        loads.extend([("2,000/s", 2_000.0), ("8,000/s", 8_000.0)]);
        let half = match scale.rate {
            Some(rate) => rate,
            None => half_of_capacity(kafka)?,
        };
        report.tells(
            "latency: half of capacity, one subscription",
            half,
            " events/s",
        );
        loads.push(("half of capacity", half));
    }
    for (load, rate) in loads {
        let kinds = ["exactly-once", "at-least-once", "reference"];
        let mut seen: Vec<Vec<Value>> = vec![Vec::new(); kinds.len()];
        for run in 0..scale.runs {
            for at in in_turn(run, kinds.len()) {
                let name = format!("latency-{}-{}-{run}", rate as u64, kinds[at]);
                seen[at].push(match kinds[at] {
                    "reference" => reference(kafka, rate, time, &name)?,
                    guarantee => ours(kafka, guarantee, rate, time, &name)?,
                });
            }
        }
        let at = |kind: usize, quantile: &str| {
            median(
                seen[kind]
                    .iter()
                    .map(|one| one[quantile].as_f64().unwrap_or(f64::NAN)),
            )
        };
        for (kind, name) in kinds.iter().enumerate() {
            let quantiles =
                ["p50", "p90", "p99", "p999"].map(|quantile| format!("{:.1}", at(kind, quantile)));
            rows.push(
                [
                    vec![load.to_owned(), (*name).to_owned()],
                    quantiles.to_vec(),
                ]
                .concat(),
            );
        }
        let measure = |what: &str| format!("latency at {load}: {what}, over the reference's");
        let is_half = load == "half of capacity";
        for (quantile, most) in [("p50", if is_half { 3.0 } else { 2.0 }), ("p99", 2.0)] {
            report.at_most(
                &measure(&format!("exactly-once {quantile}")),
                at(0, quantile) / at(2, quantile),
                " x",
                most,
            );
            report.at_most(
                &format!("latency at {load}: exactly-once {quantile}, over at-least-once"),
                at(0, quantile) / at(1, quantile),
                " x",
                1.1,
            );
        }
    }
    report.table(
        "Event → POST, milliseconds:",
        &["load", "what", "p50", "p90", "p99", "p99.9"],
        &rows,
    );
    Ok(())
}

/// One command an event.
fn half_of_capacity(kafka: &Kafka) -> Result<f64, Problem> {
    let mut receiver = Helper::start("receiver", &[])?;
    let mut one = subscription(0, &format!("http://127.0.0.1:{}/ok/0", receiver.line()?));
    one["max_in_flight"] = json!(64);
    crate::drain::half_of_capacity(kafka, "capacity", PARTITIONS, &[one], 60_000)
}
