//! CPU of the brokers and of fan-out at fixed rates and at rest, beside produce → consume → produce → consume on the same
//! broker.
//!
//! Everything takes its turn on a warm broker: the first run of all is not counted. What the broker needs by itself, with
//! its topics, is measured last and at rest.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::Scale;
use crate::latency::{produce, wait};
use crate::receiver::scheduled;
use crate::reference::reader;
use crate::report::Report;
use crate::stage::{Helper, Kafka, Problem, STUCK, World, in_turn, median, subscription};

/// Of every topic here, as in the row `latency`.
const PARTITIONS: usize = 4;
/// Before a figure is taken: clients connect, groups are joined, code is compiled.
const WARM_UP: Duration = Duration::from_secs(3);

/// CPU of an event, µs.
#[derive(Clone, Copy)]
struct PerEvent {
    broker: f64,
    fanout: f64,
}

fn micros(cpu: f64, events: usize) -> f64 {
    cpu * 1e6 / events as f64
}

/// `fanout` and `deliver`, one subscription that wants all events.
fn ours(
    kafka: &Kafka,
    guarantee: &str,
    rate: f64,
    time: Duration,
    name: &str,
) -> Result<PerEvent, Problem> {
    let mut receiver = Helper::start("receiver", &[])?;
    let mut one = subscription(0, &format!("http://127.0.0.1:{}/timed/0", receiver.line()?));
    one["max_in_flight"] = json!(64);
    let world = World::new(kafka, name, PARTITIONS, &[one])?;
    let again = world.again(name);
    let flags = ["--guarantee", guarantee];
    let (fanout, deliver) = (
        again.start("fanout", &flags)?,
        again.start("deliver", &flags)?,
    );
    fanout.wait_ready()?;
    deliver.wait_ready()?;
    let first = produce(kafka, &world.events(), rate, WARM_UP)?;
    wait(&mut receiver, first, STUCK)?;
    receiver.ask("reset")?;
    let before = (kafka.cpu()?, fanout.cost()?.cpu);
    let count = produce(kafka, &world.events(), rate, time)?;
    wait(&mut receiver, count, STUCK)?;
    let after = (kafka.cpu()?, fanout.cost()?.cpu);
    fanout.stop()?;
    deliver.stop()?;
    Ok(PerEvent {
        broker: micros(after.0 - before.0, count),
        fanout: micros(after.1 - before.1, count),
    })
}

/// The plain chain: its relay is what fan-out is compared with.
fn chain(kafka: &Kafka, rate: f64, time: Duration, name: &str) -> Result<PerEvent, Problem> {
    let world = World::new(kafka, name, PARTITIONS, &[])?;
    let arguments = [
        &kafka.address,
        &world.events(),
        &world.commands(),
        &PARTITIONS.to_string(),
    ];
    let mut relay = Helper::start("relay", &arguments.map(String::as_str))?;
    relay.line()?;
    let consumer = reader(
        &kafka.address,
        &world.commands(),
        i32::try_from(PARTITIONS)?,
    )?;
    let read = |count: usize| -> Result<(), Problem> {
        let (begun, mut seen) = (Instant::now(), 0);
        while seen < count {
            if begun.elapsed() > STUCK {
                return Err("the plain chain is stuck".into());
            }
            if let Some(message) = consumer.poll(Duration::from_millis(100)) {
                use rdkafka::message::Message as _;
                let message = message?;
                seen += usize::from(message.payload().and_then(scheduled).is_some());
            }
        }
        Ok(())
    };
    let run = |time: Duration| -> Result<usize, Problem> {
        std::thread::scope(|scope| {
            let topic = world.events();
            let producing = scope.spawn(move || {
                produce(kafka, &topic, rate, time).map_err(|problem| problem.to_string())
            });
            read((rate * time.as_secs_f64()) as usize)?;
            Ok(producing.join().map_err(|_| "the producer panicked")??)
        })
    };
    run(WARM_UP)?;
    let before = (kafka.cpu()?, relay.cost()?.cpu);
    let count = run(time)?;
    let after = (kafka.cpu()?, relay.cost()?.cpu);
    Ok(PerEvent {
        broker: micros(after.0 - before.0, count),
        fanout: micros(after.1 - before.1, count),
    })
}

/// Percent of a core at rest: of `run`, of the broker beside it, and of the broker alone.
fn rest(kafka: &Kafka, time: Duration) -> Result<[f64; 3], Problem> {
    let world = World::new(
        kafka,
        "cost-rest",
        PARTITIONS,
        &[subscription(0, "http://127.0.0.1:9/in")],
    )?;
    let of_a_core = |cpu: f64| 100.0 * cpu / time.as_secs_f64();
    std::thread::sleep(WARM_UP);
    let before = kafka.cpu()?;
    std::thread::sleep(time);
    let alone = kafka.cpu()? - before;
    let run = world.again("cost-rest").start("run", &[])?;
    run.wait_ready()?;
    std::thread::sleep(WARM_UP);
    let before = (run.cost()?.cpu, kafka.cpu()?);
    std::thread::sleep(time);
    let beside = kafka.cpu()? - before.1;
    let own = run.cost()?.cpu - before.0;
    run.stop()?;
    Ok([own, beside, alone].map(of_a_core))
}

pub fn run(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    let time = Duration::from_secs(scale.pick(4, 15));
    let rates: &[f64] = scale.pick(&[200.0], &[50.0, 200.0, 2_000.0, 8_000.0]);
    let kinds = ["exactly-once", "at-least-once", "plain chain"];
    chain(kafka, 500.0, WARM_UP, "cost-warm")?;
    let mut rows = Vec::new();
    for &rate in rates {
        let mut seen: Vec<Vec<PerEvent>> = vec![Vec::new(); kinds.len()];
        for run in 0..scale.runs {
            for at in in_turn(run, kinds.len()) {
                let name = format!("cost-{rate}-{at}-{run}");
                seen[at].push(match kinds[at] {
                    "plain chain" => chain(kafka, rate, time, &name)?,
                    guarantee => ours(kafka, guarantee, rate, time, &name)?,
                });
            }
        }
        let at = |kind: usize, figure: fn(&PerEvent) -> f64| median(seen[kind].iter().map(figure));
        for (kind, name) in kinds.iter().enumerate() {
            let figures = [at(kind, |one| one.broker), at(kind, |one| one.fanout)];
            let figures = figures.map(|micros| format!("{micros:.0}"));
            let names = vec![format!("{rate:.0}"), (*name).to_owned()];
            rows.push([names, figures.to_vec()].concat());
        }
        let broker = |kind| at(kind, |one: &PerEvent| one.broker);
        report.at_most(
            &format!("cost at {rate:.0}/s: the broker's CPU, exactly once, over the plain chain's"),
            broker(0) / broker(2),
            " x",
            1.5,
        );
        report.at_most(
            &format!("cost at {rate:.0}/s: the broker's CPU, exactly once, over at-least-once"),
            broker(0) / broker(1),
            " x",
            1.1,
        );
        if rate == 200.0 {
            let fanout = at(0, |one| one.fanout);
            report.at_most(
                "cost at 200/s: fan-out's CPU an event",
                fanout,
                " µs",
                200.0,
            );
        }
    }
    report.table(
        "CPU of an event, µs (of the plain chain: its relay's instead of fan-out's):",
        &["events/s", "what", "broker", "fan-out"],
        &rows,
    );
    let [own, beside, alone] = rest(kafka, Duration::from_secs(scale.pick(10, 30)))?;
    report.at_most("cost at rest: run", own, " % of a core", 1.5);
    report.at_most(
        "cost at rest: the broker's CPU, over its own without run",
        beside / alone.max(0.1),
        " x",
        1.5,
    );
    Ok(())
}
