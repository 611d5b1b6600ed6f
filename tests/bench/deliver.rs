//! CPU per delivery, beside a raw HTTP client that POSTs as much to the same receiver, and what reading alone costs.

use std::process::Stdio;
use std::time::Instant;

use rdkafka::producer::{DefaultProducerContext, Producer, ThreadedProducer};

use crate::Scale;
use crate::reference::{command_of, record, send};
use crate::report::Report;
use crate::stage::{
    Cost, Helper, IN_FLIGHT_EACH, Kafka, Problem, STUCK, SUBSCRIPTIONS, World, median,
    producer_config, subscriptions,
};

pub const DONE: [&str; 2] = [
    r#"hookstream_attempts_total{class="2xx""#,
    // What is parked comes back through the release role, which does not run here.
    "hookstream_parked_total",
];

/// Writes commands of 10 subscriptions in turn.
pub fn fill(kafka: &Kafka, topic: &str, count: usize) -> Result<(), Problem> {
    fill_for(kafka, topic, count, SUBSCRIPTIONS)
}

/// The same for so many subscriptions.
pub fn fill_for(
    kafka: &Kafka,
    topic: &str,
    count: usize,
    subscriptions: usize,
) -> Result<(), Problem> {
    let producer: ThreadedProducer<DefaultProducerContext> =
        producer_config(&kafka.address).create()?;
    for number in 0..count {
        let command = command_of(number, number % subscriptions);
        send(&producer, record(topic, &command))?;
    }
    Ok(producer.flush(STUCK)?)
}

pub fn run(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    let count = scale.pick(100_000, 200_000);
    let mut receiver = Helper::start("receiver", &[])?;
    let port = receiver.line()?;
    let world = World::new(kafka, "deliver", 12, &subscriptions(&port))?;
    fill(kafka, &world.commands(), count)?;
    let (mut ours, mut raw, mut reading, mut rates) = (vec![], vec![], vec![], vec![]);
    for run in 0..scale.runs {
        let role = world
            .again(&format!("deliver-{run}"))
            .start("deliver", &["--workers", "1"])?;
        let (cost, seconds) = role.wait(&DONE, count as f64)?;
        role.stop()?;
        ours.push(cost);
        rates.push(count as f64 / seconds);
        let in_flight = (SUBSCRIPTIONS * IN_FLIGHT_EACH).to_string();
        raw.push(helper("client", &[&port, &count.to_string(), &in_flight])?);
        let partitions = world.partitions().to_string();
        let arguments = [
            &kafka.address,
            &world.commands(),
            &partitions,
            &count.to_string(),
        ];
        reading.push(helper("consumer", &arguments.map(String::as_str))?);
        let each = |cost: &Cost| cost.cpu / count as f64 * 1e6;
        eprintln!(
            "  run {}: {:.1} µs, raw {:.1} µs, reading {:.1} µs",
            run + 1,
            each(&ours[run]),
            each(&raw[run]),
            each(&reading[run])
        );
    }
    let micros = |costs: &[Cost]| median(costs.iter().map(|cost| cost.cpu)) / count as f64 * 1e6;
    report.tells("deliver: CPU per delivery", micros(&ours), " µs");
    report.tells("deliver: CPU per POST of a raw client", micros(&raw), " µs");
    report.tells(
        "deliver: CPU per record of a raw consumer",
        micros(&reading),
        " µs",
    );
    let ratios = ours.iter().zip(&raw).map(|(ours, raw)| ours.cpu / raw.cpu);
    report.at_most(
        "deliver: CPU over the raw client's",
        median(ratios),
        " x",
        1.45,
    );
    report.tells("deliver: deliveries, one worker", median(rates), "/s");
    report.tells(
        "deliver: peak memory",
        median(ours.iter().map(|cost| cost.memory)),
        " MiB",
    );
    Ok(())
}

/// What the log of attempts costs: runs with it on and off in turn.
pub fn log(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    let count = scale.pick(100_000, 200_000);
    let mut receiver = Helper::start("receiver", &[])?;
    let port = receiver.line()?;
    let world = World::new(kafka, "log", 12, &subscriptions(&port))?;
    let made = world
        .command(&["topics", "create", "--attempt-log"])
        .stdout(Stdio::null())
        .status()?;
    if !made.success() {
        return Err("the topic of the log could not be created".into());
    }
    fill(kafka, &world.commands(), count)?;
    let (mut rates, mut own, mut brokers, mut dropped) = (vec![], vec![], vec![], vec![]);
    // One more, which warms the broker and the receiver and does not count.
    for run in 0..=scale.runs {
        let mut both = [(0.0, 0.0, 0.0); 2];
        // Which one is first changes from run to run.
        for on in [run % 2 == 0, run % 2 != 0] {
            let log: &[&str] = if on { &["--attempt-log"] } else { &[] };
            let flags = [&["--workers", "1"], log].concat();
            let before = kafka.cpu()?;
            let role = world
                .again(&format!("log-{run}-{on}"))
                .start("deliver", &flags)?;
            let (cost, seconds) = role.wait(&DONE, count as f64)?;
            if on {
                dropped.push(role.sum(&[r#"hookstream_attempt_records_total{result="dropped""#])?);
            }
            // What its client still holds is written before it ends.
            role.stop()?;
            both[usize::from(on)] = (count as f64 / seconds, cost.cpu, kafka.cpu()? - before);
        }
        let [off, on] = both;
        eprintln!(
            "  run {run}: {:.0}/s with the log, {:.0}/s without",
            on.0, off.0
        );
        if run > 0 {
            rates.push(on.0 / off.0 * 100.0);
            own.push((on.1 - off.1) / count as f64 * 1e6);
            brokers.push((on.2 - off.2) / count as f64 * 1e6);
        }
    }
    report.at_least(
        "deliver: rate with the log of attempts over that without",
        median(rates),
        " %",
        90.0,
    );
    report.tells("… its CPU per delivery", median(own), " µs");
    report.tells("… Kafka's CPU per delivery", median(brokers), " µs");
    report.tells("… records dropped", median(dropped), "");
    Ok(())
}

/// Runs a part to its end: what it cost.
pub fn helper(part: &str, arguments: &[&str]) -> Result<Cost, Problem> {
    let begun = Instant::now();
    let mut helper = Helper::start(part, arguments)?;
    helper.line()?;
    let mut cost = helper.cost()?;
    cost.wall = begun.elapsed().as_secs_f64();
    Ok(cost)
}
