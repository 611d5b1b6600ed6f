//! Delivery started on a large backlog: its memory, and its rate against that without one.

use crate::Scale;
use crate::deliver::{DONE, fill};
use crate::report::Report;
use crate::stage::{Helper, Kafka, Problem, World, median, subscriptions};

pub fn run(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    let (few, many) = scale.pick((50_000, 200_000), (200_000, 2_000_000));
    let mut receiver = Helper::start("receiver", &[])?;
    let port = receiver.line()?;
    let mut rates = Vec::new();
    let mut drain = |name: &str, count: usize, runs: usize| -> Result<(f64, f64), Problem> {
        let world = World::new(kafka, name, 12, &subscriptions(&port))?;
        fill(kafka, &world.commands(), count)?;
        rates.clear();
        let mut memory: f64 = 0.0;
        for run in 0..runs {
            let role = world
                .again(&format!("{name}-{run}"))
                .start("deliver", &[])?;
            let (_, seconds) = role.wait(&DONE, count as f64)?;
            memory = memory.max(role.cost()?.memory);
            let parked = role.sum(&["hookstream_parked_total"])?;
            role.stop()?;
            rates.push(count as f64 / seconds);
            eprintln!(
                "  {count} commands: {:.0}/s, {memory:.0} MiB, {parked} parked",
                rates[run]
            );
        }
        Ok((median(rates.iter().copied()), memory))
    };
    let (without, _) = drain("backlog-none", few, scale.runs)?;
    let (with, memory) = drain("backlog", many, 1)?;
    report.at_most(
        &format!("backlog of {many}: peak memory"),
        memory,
        " MiB",
        300.0,
    );
    report.at_least(
        &format!("backlog of {many}: rate over that of {few}"),
        100.0 * with / without,
        " %",
        90.0,
    );
    Ok(())
}
