//! A tenth of first attempts fails: what that costs the others, beside the same load without failures.

use std::time::Duration;

use serde_json::Value;

use crate::Scale;
use crate::latency::{produce, wait};
use crate::report::Report;
use crate::stage::{Helper, Kafka, Problem, STUCK, SUBSCRIPTIONS, World, median, subscription};

/// Commands a second, of all subscriptions together.
const RATE: f64 = 2_000.0;
const PARTITIONS: usize = 4;
const WARM_UP: Duration = Duration::from_secs(5);

/// Quantiles of the first attempts that succeed.
fn load(kafka: &Kafka, kind: &str, time: Duration, name: &str) -> Result<Value, Problem> {
    let mut receiver = Helper::start("receiver", &[])?;
    let port = receiver.line()?;
    let all: Vec<Value> = (0..SUBSCRIPTIONS)
        .map(|number| subscription(number, &format!("http://127.0.0.1:{port}/{kind}/{number}")))
        .collect();
    let world = World::new(kafka, name, PARTITIONS, &all)?;
    let role = world.again(name).start("run", &[])?;
    role.wait_ready()?;
    let rate = RATE / SUBSCRIPTIONS as f64;
    let seen = |events: usize| match kind {
        "tenth" => events * SUBSCRIPTIONS * 9 / 10,
        _ => events * SUBSCRIPTIONS,
    };
    let first = produce(kafka, &world.events(), rate, WARM_UP)?;
    wait(&mut receiver, seen(first), STUCK)?;
    receiver.ask("reset")?;
    let count = produce(kafka, &world.events(), rate, time)?;
    let told = wait(&mut receiver, seen(count), STUCK)?;
    role.stop()?;
    Ok(told["all"].clone())
}

pub fn run(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    // Long enough for the retries of the first ones to come back meanwhile.
    let time = Duration::from_secs(scale.pick(15, 60));
    let kinds = ["timed", "tenth"];
    let mut seen: [Vec<Value>; 2] = Default::default();
    for run in 0..scale.runs.min(3) {
        for (at, kind) in kinds.iter().enumerate() {
            seen[at].push(load(kafka, kind, time, &format!("failing-{kind}-{run}"))?);
        }
    }
    let of = |at: usize, quantile: &str| {
        let figures = seen[at].iter();
        median(figures.map(|one| one[quantile].as_f64().unwrap_or(f64::NAN)))
    };
    report.tells("failing: p99 without failures", of(0, "p99"), " ms");
    report.tells("failing: p99 of the others, 10 % fail", of(1, "p99"), " ms");
    report.at_most(
        "failing: p99 of the others, over that without failures",
        of(1, "p99") / of(0, "p99"),
        " x",
        1.5,
    );
    Ok(())
}
