//! A billion commands a day through all roles on one machine: the figures should not drift from minute to minute.

use std::time::{Duration, Instant};

use crate::Scale;
use crate::latency::{produce, wait};
use crate::report::Report;
use crate::stage::{Helper, Kafka, Problem, SUBSCRIPTIONS, World, median, subscription};

/// Commands per second: a billion a day.
const RATE: f64 = 11_574.0;
const PARTITIONS: usize = 12;
const MINUTE: Duration = Duration::from_secs(60);

/// What a minute has shown.
struct Minute {
    delivered: f64,
    p99: f64,
    /// MiB.
    memory: f64,
    descriptors: f64,
    /// Pending commands at its end.
    lag: f64,
    /// Cores of the process and of the broker.
    cpu: f64,
    broker: f64,
}

pub fn run(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    let minutes = scale.minutes.unwrap_or(scale.pick(2, 60));
    let mut receiver = Helper::start("receiver", &[])?;
    let port = receiver.line()?;
    let all: Vec<_> = (0..SUBSCRIPTIONS)
        .map(|number| {
            let mut one = subscription(number, &format!("http://127.0.0.1:{port}/timed/{number}"));
            one["max_in_flight"] = serde_json::json!(64);
            one
        })
        .collect();
    let world = World::new(kafka, "soak", PARTITIONS, &all)?;
    let role = world.again("soak").start("run", &[])?;
    role.wait_ready()?;
    let rate = RATE / SUBSCRIPTIONS as f64;
    let time = MINUTE * u32::try_from(minutes)?;
    let topic = world.events();
    let (seen, sent, left) = std::thread::scope(|scope| {
        let producing = scope.spawn(move || {
            produce(kafka, &topic, rate, time).map_err(|problem| problem.to_string())
        });
        let (mut seen, begun) = (Vec::new(), Instant::now());
        let mut before = (role.cost()?.cpu, kafka.cpu()?);
        for minute in 1..=u32::try_from(minutes)? {
            std::thread::sleep((MINUTE * minute).saturating_sub(begun.elapsed()));
            let minute_seen = receiver.ask("take")?;
            let figure = |name: &str| minute_seen["all"][name].as_f64().unwrap_or(f64::NAN);
            let now = (role.cost()?.cpu, kafka.cpu()?);
            seen.push(Minute {
                delivered: figure("count"),
                p99: figure("p99"),
                memory: role.resident()?,
                descriptors: role.descriptors()? as f64,
                lag: role.sum(&["hookstream_subscriber_lag{"])?,
                cpu: (now.0 - before.0) / MINUTE.as_secs_f64(),
                broker: (now.1 - before.1) / MINUTE.as_secs_f64(),
            });
            before = now;
        }
        let sent = producing.join().map_err(|_| "the producer panicked")?? * SUBSCRIPTIONS;
        let until_now: f64 = seen.iter().map(|minute| minute.delivered).sum();
        let left = wait(
            &mut receiver,
            sent.saturating_sub(until_now as usize),
            MINUTE,
        )?;
        let left = left["all"]["count"].as_f64().unwrap_or(0.0);
        Ok::<_, Problem>((seen, sent as f64, left))
    })?;
    role.stop()?;
    let delivered: f64 = seen.iter().map(|minute| minute.delivered).sum::<f64>() + left;
    let of = |figure: fn(&Minute) -> f64| median(seen.iter().map(figure));
    let name = format!("soak of {minutes} min at {RATE:.0} commands/s");
    report.at_most(&format!("{name}: not delivered"), sent - delivered, "", 0.0);
    report.tells(
        &format!("{name}: p99, median of the minutes"),
        of(|minute| minute.p99),
        " ms",
    );
    // The first minute connects and fills caches.
    let early = seen.get(1).or(seen.first());
    if let Some((early, late)) = early.zip(seen.last()) {
        report.at_most(
            &format!("{name}: memory at the end, relative to minute 2"),
            late.memory / early.memory,
            " x",
            1.1,
        );
        report.at_most(
            &format!("{name}: file descriptors at the end, relative to minute 2"),
            late.descriptors / early.descriptors,
            " x",
            1.1,
        );
    }
    let each = seen.iter().enumerate().map(|(at, minute)| {
        vec![
            (at + 1).to_string(),
            format!("{:.0}", minute.delivered),
            format!("{:.1}", minute.p99),
            format!("{:.0}", minute.lag),
            format!("{:.0}", minute.memory),
            format!("{:.0}", minute.descriptors),
            format!("{:.2}", minute.cpu),
            format!("{:.2}", minute.broker),
        ]
    });
    report.table(
        &format!("{name}:"),
        &[
            "minute",
            "delivered",
            "p99, ms",
            "pending",
            "memory, MiB",
            "descriptors",
            "cores",
            "broker's cores",
        ],
        &each.collect::<Vec<_>>(),
    );
    Ok(())
}
