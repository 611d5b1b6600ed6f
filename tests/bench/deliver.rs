//! CPU per delivery, beside a raw HTTP client that POSTs as much to the same receiver, and what reading alone costs.

use std::time::Instant;

use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

use crate::Scale;
use crate::reference::{command, send};
use crate::report::Report;
use crate::stage::{
    Cost, Helper, Kafka, Problem, STUCK, World, median, producer_config, subscriptions,
};

pub const DONE: [&str; 2] = [
    r#"hookstream_attempts_total{class="2xx""#,
    // What is parked comes back through the release role, which does not run here.
    "hookstream_parked_total",
];

/// Writes commands of 10 subscriptions in turn.
pub fn fill(kafka: &Kafka, topic: &str, count: usize) -> Result<(), Problem> {
    let producer: ThreadedProducer<DefaultProducerContext> =
        producer_config(&kafka.address).create()?;
    for number in 0..count {
        let command = command(number);
        let record = BaseRecord::<[u8], [u8]>::to(topic)
            .key(command.subscriber.as_bytes())
            .payload(&command.body[..])
            .headers(hookstream::kafka::command_headers(&command.envelope()));
        send(&producer, record)?;
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
        raw.push(helper("client", &[&port, &count.to_string()])?);
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

/// Runs a part to its end: what it cost.
pub fn helper(part: &str, arguments: &[&str]) -> Result<Cost, Problem> {
    let begun = Instant::now();
    let mut helper = Helper::start(part, arguments)?;
    helper.line()?;
    let mut cost = helper.cost()?;
    cost.wall = begun.elapsed().as_secs_f64();
    Ok(cost)
}
