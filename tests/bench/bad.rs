//! Very many subscriptions of which one in twenty is bad, in one of five ways: what the others notice, and the memory it
//! takes.

use std::time::Duration;

use serde_json::{Value, json};

use crate::Scale;
use crate::latency::wait;
use crate::report::Report;
use crate::stage::{Helper, Kafka, Problem, STUCK, World, in_turn, median, subscription};
use crate::whale::{event_type, produce};

/// Events per second, for one subscription each, in turn.
const RATE: f64 = 1_000.0;
const PARTITIONS: usize = 12;
const WARM_UP: Duration = Duration::from_secs(5);
/// Of so many subscriptions, one is bad.
const ONE_IN: usize = 20;

/// An endpoint that hangs, refuses connections, responds 500, is slow, or shows a certificate that nobody trusts.
fn bad_url(number: usize, port: &str, tls_port: &str) -> String {
    match number / ONE_IN % 5 {
        0 => format!("http://127.0.0.1:{port}/hang/{number}"),
        // Nothing listens on the discard port.
        1 => format!("http://127.0.0.1:9/refused/{number}"),
        2 => format!("http://127.0.0.1:{port}/fail/{number}"),
        3 => format!("http://127.0.0.1:{port}/slow/{number}"),
        _ => format!("https://127.0.0.1:{tls_port}/ok/{number}"),
    }
}

struct Seen {
    quantiles: Value,
    /// Peak, MiB.
    memory: f64,
    delivered: f64,
}

fn case(
    kafka: &Kafka,
    count: usize,
    time: Duration,
    any_bad: bool,
    name: &str,
) -> Result<Seen, Problem> {
    let file = std::env::current_dir()?.join("target/bench/untrusted.pem");
    let mut receiver = Helper::start("receiver", &[])?;
    let mut untrusted = Helper::start("receiver", &[&file.to_string_lossy()])?;
    let (port, tls_port) = (receiver.line()?, untrusted.line()?);
    let is_bad = |number: usize| any_bad && number.is_multiple_of(ONE_IN);
    let all: Vec<Value> = (0..count)
        .map(|number| {
            let url = match is_bad(number) {
                true => bad_url(number, &port, &tls_port),
                false => format!("http://127.0.0.1:{port}/timed/healthy"),
            };
            let mut one = subscription(number, &url);
            one["events"] = json!([event_type(number)]);
            one
        })
        .collect();
    let name = format!("bad-{name}");
    let world = World::new(kafka, &name, PARTITIONS, &all)?;
    drop(all);
    let role = world
        .again(&name)
        .start("run", &["--drain-deadline", "0s"])?;
    role.wait_ready()?;
    let mut play = |time: Duration| -> Result<(Value, usize), Problem> {
        receiver.ask("reset")?;
        let events = (RATE * time.as_secs_f64()) as usize;
        produce(kafka, &world.events(), RATE, events, 0..=count - 1)?;
        let healthy = (0..events).filter(|number| !is_bad(number % count)).count();
        Ok((wait(&mut receiver, healthy, STUCK)?, healthy))
    };
    play(WARM_UP)?;
    let (seen, healthy) = play(time)?;
    let memory = role.cost()?.memory;
    role.stop()?;
    std::fs::remove_file(file)?;
    Ok(Seen {
        delivered: seen["all"]["count"].as_f64().unwrap_or(0.0) / healthy as f64,
        quantiles: seen["all"].clone(),
        memory,
    })
}

pub fn run(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    let count = scale.pick(5_000, 50_000);
    let time = Duration::from_secs(scale.pick(10, 60));
    // The first run of all, on a cold broker, does not count.
    case(kafka, count, time / 2, true, "warm")?;
    let mut seen: [Vec<Seen>; 2] = Default::default();
    for run in 0..scale.runs.min(3) {
        for at in in_turn(run, 2) {
            let name = format!("{at}-{run}");
            seen[at].push(case(kafka, count, time, at == 1, &name)?);
        }
    }
    let of = |at: usize, figure: fn(&Seen) -> f64| median(seen[at].iter().map(figure));
    let p99 = |one: &Seen| one.quantiles["p99"].as_f64().unwrap_or(f64::NAN);
    let measure = |what: &str| format!("bad: {count} subscriptions, 5 % bad: {what}");
    report.tells(
        &measure("p99 of healthy endpoints, all healthy"),
        of(0, p99),
        " ms",
    );
    report.tells(&measure("p99 of healthy endpoints"), of(1, p99), " ms");
    report.at_most(
        &measure("p99 of healthy endpoints, relative to that"),
        of(1, p99) / of(0, p99),
        " x",
        1.1,
    );
    report.at_least(
        &measure("delivered to the healthy"),
        of(1, |one| one.delivered) * 100.0,
        " %",
        100.0,
    );
    report.tells(
        &measure("peak memory when all are healthy"),
        of(0, |one| one.memory),
        " MiB",
    );
    report.tells(&measure("peak memory"), of(1, |one| one.memory), " MiB");
    Ok(())
}
