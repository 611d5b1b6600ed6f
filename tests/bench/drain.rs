//! End to end: events that wait become POSTs, all roles in one process, Kafka on the same cores.

use std::time::Instant;

use serde_json::Value;

use crate::Scale;
use crate::report::Report;
use crate::stage::{Helper, Kafka, Problem, SUBSCRIPTIONS, World, median, subscriptions};

pub const DELIVERED: [&str; 1] = [r#"hookstream_attempts_total{class="2xx""#];

pub fn run(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    let events = scale.pick(5_000, 20_000);
    let mut receiver = Helper::start("receiver", &[])?;
    let port = receiver.line()?;
    let (mut rates, mut per_cpu, mut own) = (vec![], vec![], vec![]);
    for run in 0..scale.runs {
        // Both sides begin anew: new topics, so that delivery reads nothing of the run before.
        let fresh = World::new(kafka, &format!("drain-{run}"), 12, &subscriptions(&port))?;
        crate::fanout::fill(kafka, &fresh.events(), events)?;
        let before = kafka.cpu()?;
        let begun = Instant::now();
        let role = fresh.again(&format!("drain-{run}")).start("run", &[])?;
        let deliveries = (events * SUBSCRIPTIONS) as f64;
        let (cost, _) = role.wait(&DELIVERED, deliveries)?;
        rates.push(deliveries / begun.elapsed().as_secs_f64());
        let broker = kafka.cpu()? - before;
        role.stop()?;
        per_cpu.push(deliveries / (cost.cpu + broker));
        own.push(deliveries / cost.cpu);
        eprintln!(
            "  run {}: {:.0}/s, hookstream {:.2} s CPU, Kafka {broker:.2} s",
            run + 1,
            rates[run],
            cost.cpu
        );
    }
    report.tells(
        "end to end: deliveries, start included",
        median(rates),
        "/s",
    );
    report.tells(
        "end to end: deliveries per CPU second, Kafka's included",
        median(per_cpu),
        "",
    );
    report.tells(
        "end to end: deliveries per CPU second of hookstream",
        median(own),
        "",
    );
    Ok(())
}

/// Half of the events a second that `run` turns into deliveries when they wait.
pub fn half_of_capacity(
    kafka: &Kafka,
    name: &str,
    partitions: usize,
    subscriptions: &[Value],
    events: usize,
) -> Result<f64, Problem> {
    let world = World::new(kafka, name, partitions, subscriptions)?;
    crate::fanout::fill(kafka, &world.events(), events)?;
    let role = world.again(name).start("run", &[])?;
    let (_, seconds) = role.wait(&DELIVERED, (events * subscriptions.len()) as f64)?;
    role.stop()?;
    Ok(events as f64 / seconds / 2.0)
}
