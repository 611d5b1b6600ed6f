//! Commands a second from events that ten subscriptions want, exactly once, beside a raw idempotent producer that
//! writes the same records.

use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

use crate::Scale;
use crate::reference::send;
use crate::report::Report;
use crate::stage::{
    Helper, Kafka, Problem, STUCK, SUBSCRIPTIONS, World, event, median, producer_config,
    subscriptions,
};

/// Writes events, keyed by subject.
pub fn fill(kafka: &Kafka, topic: &str, count: usize) -> Result<(), Problem> {
    let producer: ThreadedProducer<DefaultProducerContext> =
        producer_config(&kafka.address).create()?;
    for number in 0..count {
        let (key, value) = (format!("order-{number}"), event(number, 0));
        let record = BaseRecord::<[u8], [u8]>::to(topic)
            .key(key.as_bytes())
            .payload(&value[..]);
        send(&producer, record)?;
    }
    Ok(producer.flush(STUCK)?)
}

pub fn run(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    let events = scale.pick(10_000, 40_000);
    let commands = events * SUBSCRIPTIONS;
    let world = World::new(kafka, "fanout", 12, &subscriptions("1"))?;
    fill(kafka, &world.events(), events)?;
    let (mut ours, mut raw, mut per_cpu) = (vec![], vec![], vec![]);
    for run in 0..scale.runs {
        let role = world.again(&format!("fanout-{run}")).start("fanout", &[])?;
        let (cost, seconds) = role.wait(&["hookstream_commands_total"], commands as f64)?;
        role.stop()?;
        ours.push(commands as f64 / seconds);
        per_cpu.push(commands as f64 / cost.cpu);
        let arguments = [&kafka.address, &world.commands(), &commands.to_string()];
        let mut producer = Helper::start("producer", &arguments.map(String::as_str))?;
        raw.push(commands as f64 / producer.line()?.parse::<f64>()?);
        eprintln!(
            "  run {}: {:.0}/s, {:.0} per CPU second, raw {:.0}/s",
            run + 1,
            ours[run],
            per_cpu[run],
            raw[run]
        );
    }
    report.tells(
        "fanout: commands, exactly once",
        median(ours.iter().copied()),
        "/s",
    );
    report.tells(
        "fanout: records of a raw idempotent producer",
        median(raw.iter().copied()),
        "/s",
    );
    let shares = ours.iter().zip(&raw).map(|(ours, raw)| 100.0 * ours / raw);
    report.at_least(
        "fanout: rate over the raw producer's",
        median(shares),
        " %",
        85.0,
    );
    report.at_least(
        "fanout: commands per CPU second",
        median(per_cpu),
        "",
        100_000.0,
    );
    Ok(())
}
