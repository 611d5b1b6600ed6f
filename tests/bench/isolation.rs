//! Ten endpoints, of which some misbehave: what that costs the healthy ones, in the same partition and spread.

use std::time::Duration;

use serde_json::Value;

use crate::Scale;
use crate::latency::{produce, wait};
use crate::report::Report;
use crate::stage::{Helper, Kafka, Problem, SUBSCRIPTIONS, World, median, subscription};

/// How many misbehave, and how.
const CASES: [(&str, usize, &str); 6] = [
    ("all healthy", 0, ""),
    ("1 of 10 hangs", 1, "hang"),
    ("2 of 10 hang", 2, "hang"),
    ("1 of 10 refuses connections", 1, "refuse"),
    ("1 of 10 answers 500", 1, "fail"),
    ("1 of 10 answers after 10 s", 1, "slow"),
];

/// What the healthy ones saw.
struct Outcome {
    p50: f64,
    p99: f64,
    /// Of what was sent to them.
    share: f64,
    appends: f64,
}

pub fn run(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    let rate = match scale.rate {
        Some(rate) => rate,
        None => half_of_capacity(kafka)?,
    };
    let time = Duration::from_secs(scale.pick(3, 10));
    report.tells(
        "isolation: half of capacity, ten commands an event",
        rate,
        " events/s",
    );
    let partitions: &[(usize, &str)] = scale.pick(
        &[(1, "one partition")],
        &[(1, "one partition"), (12, "spread")],
    );
    let mut rows = Vec::new();
    // The quick one looks at what does not answer and at what answers badly.
    let looked_at = |how: &str| !scale.quick || matches!(how, "" | "hang" | "fail");
    let chosen: Vec<_> = CASES
        .into_iter()
        .filter(|(_, bad, how)| looked_at(how) && (*bad < 2 || !scale.quick))
        .collect();
    for &(partitions, place) in partitions {
        let mut cases: Vec<Vec<Outcome>> = chosen.iter().map(|_| Vec::new()).collect();
        let mut again = Vec::new();
        // Not counted: the broker is quicker after a while.
        let name = format!("isolation-{partitions}-first");
        case(kafka, &name, partitions, rate, time, 0, "")?;
        for run in 0..scale.runs.min(if partitions == 1 { 3 } else { 1 }) {
            // Each run begins with another one, and the baseline is run twice to show its own spread.
            for turn in 0..=chosen.len() {
                let at = (turn + 2 * run) % (chosen.len() + 1);
                let name = format!("isolation-{partitions}-{run}-{at}");
                match chosen.get(at) {
                    Some((_, bad, how)) => {
                        cases[at].push(case(kafka, &name, partitions, rate, time, *bad, how)?);
                    }
                    None => again.push(case(kafka, &name, partitions, rate, time, 0, "")?),
                }
            }
        }
        let of =
            |outcomes: &[Outcome], what: fn(&Outcome) -> f64| median(outcomes.iter().map(what));
        let healthy = of(&cases[0], |one| one.p99);
        let mut row = |name: &str, outcomes: &[Outcome]| {
            rows.push(vec![
                place.to_owned(),
                name.to_owned(),
                format!("{:.1}", of(outcomes, |one| one.p50)),
                format!("{:.1}", of(outcomes, |one| one.p99)),
                format!("{:.1}", of(outcomes, |one| one.share * 100.0)),
                format!("{:.2}", of(outcomes, |one| one.appends)),
            ]);
        };
        for ((name, bad, _), outcomes) in chosen.iter().zip(&cases) {
            row(name, outcomes);
            if *bad == 0 {
                row("all healthy, again", &again);
                let spread = of(&again, |one| one.p99) / healthy;
                report.tells(
                    &format!("isolation, {place}: p99 of the baseline over itself"),
                    spread,
                    " x",
                );
                continue;
            }
            let measure = |what: &str| format!("isolation, {place}, {name}: {what}");
            let p99 = of(outcomes, |one| one.p99) / healthy;
            report.at_most(&measure("healthy p99 over the baseline's"), p99, " x", 1.1);
            let share = of(outcomes, |one| one.share * 100.0);
            report.at_least(&measure("healthy delivered"), share, " %", 95.0);
        }
    }
    report.table(
        "Healthy endpoints, milliseconds from event to POST:",
        &[
            "place",
            "case",
            "p50",
            "p99",
            "delivered, %",
            "appends per command",
        ],
        &rows,
    );
    Ok(())
}

fn case(
    kafka: &Kafka,
    name: &str,
    partitions: usize,
    rate: f64,
    time: Duration,
    bad: usize,
    how: &str,
) -> Result<Outcome, Problem> {
    let mut receiver = Helper::start("receiver", &[])?;
    let port = receiver.line()?;
    let url = |number: usize| match (number < bad, how) {
        // Nobody listens there.
        (true, "refuse") => "http://127.0.0.1:1/".to_owned(),
        (true, how) => format!("http://127.0.0.1:{port}/{how}/{number}"),
        (false, _) => format!("http://127.0.0.1:{port}/timed/{number}"),
    };
    let all: Vec<Value> = (0..SUBSCRIPTIONS)
        .map(|number| subscription(number, &url(number)))
        .collect();
    let world = World::new(kafka, name, partitions, &all)?;
    let role = world
        .again(name)
        .start("run", &["--drain-deadline", "0s"])?;
    role.wait_ready()?;
    // Not measured: connections are opened, and the bad ones are found to be bad.
    let warm_up = time.min(Duration::from_secs(5));
    let count = produce(kafka, &world.events(), rate, warm_up)? * (SUBSCRIPTIONS - bad);
    wait(&mut receiver, count, 2 * time)?;
    receiver.ask("reset")?;
    let sent = produce(kafka, &world.events(), rate, time)? * (SUBSCRIPTIONS - bad);
    // What has not come a moment after the last event was produced is late for good.
    let seen = wait(&mut receiver, sent, Duration::from_secs(2))?;
    let commands = role.sum(&["hookstream_commands_total{cause=\"new\"}"])?;
    let appends = role.sum(&[
        "hookstream_commands_total",
        "hookstream_parked_total",
        "hookstream_released_total{to=\"tier\"}",
    ])? + failed(&role)?;
    role.stop()?;
    let all = &seen["all"];
    let figure = |name: &str| all[name].as_f64().unwrap_or(f64::NAN);
    Ok(Outcome {
        p50: figure("p50"),
        p99: figure("p99"),
        share: (figure("count") / sent as f64).min(1.0),
        appends: appends / commands.max(1.0),
    })
}

/// Attempts that were followed by a record in a tier or among the dead letters.
fn failed(role: &crate::stage::Role) -> Result<f64, Problem> {
    let ended = role.sum(&["hookstream_attempts_total"])?;
    let delivered = role.sum(&crate::drain::DELIVERED)?;
    Ok(ended - delivered)
}

/// Ten commands an event, in one partition, which has one core at most.
fn half_of_capacity(kafka: &Kafka) -> Result<f64, Problem> {
    let mut receiver = Helper::start("receiver", &[])?;
    let port = receiver.line()?;
    let all: Vec<Value> = (0..SUBSCRIPTIONS)
        .map(|number| subscription(number, &format!("http://127.0.0.1:{port}/timed/{number}")))
        .collect();
    crate::drain::half_of_capacity(kafka, "isolation-capacity", 1, &all, 10_000)
}
