//! A whale: one of 1,001 subscribers gets more than its endpoint takes. What that costs the others, in its partition and
//! elsewhere, and how near it comes to its own limit.

use std::time::{Duration, Instant};

use hookstream::model::partitioner::{key_hash, partition};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use serde_json::{Value, json};

use crate::Scale;
use crate::receiver::WHALE;
use crate::reference::send;
use crate::report::Report;
use crate::stage::{
    Helper, Kafka, Problem, Role, STUCK, World, producer_config, subscription, wall,
};

const SUBSCRIBERS: usize = 1_000;
const PARTITIONS: usize = 12;
/// Events per second of all subscribers but the whale.
const RATE: f64 = 1_000.0;
/// Requests of the whale at a time.
const IN_FLIGHT: usize = 32;

/// How the whale's events come.
const CASES: [(&str, Option<f64>); 3] = [
    ("no whale", None),
    ("20,000/s", Some(20_000.0)),
    ("all at once", Some(f64::INFINITY)),
];

pub fn run(kafka: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    let commands = scale.pick(40_000, 300_000);
    let time = Duration::from_secs(scale.pick(15, 60));
    let mut rows = Vec::new();
    let mut baseline: Option<Value> = None;
    for (name, rate) in CASES {
        let seen = case(kafka, name, rate.map(|rate| (rate, commands)), time)?;
        let figure = |place: &str, which: &str| seen[place][which].as_f64().unwrap_or(f64::NAN);
        for (place, title) in [("inside", "in its partition"), ("outside", "elsewhere")] {
            let mut row = vec![name.to_owned(), title.to_owned()];
            let each = ["p50", "p90", "p99", "max"];
            row.extend(each.map(|which| format!("{:.1}", figure(place, which))));
            rows.push(row);
        }
        let Some(before) = &baseline else {
            baseline = Some(seen);
            continue;
        };
        for place in ["inside", "outside"] {
            let p99 = figure(place, "p99") / before[place]["p99"].as_f64().unwrap_or(f64::NAN);
            let measure = format!("whale, {name}: p99 of others {place} over that without it");
            report.at_most(&measure, p99, " x", 2.0);
        }
        let of = |what: &str| seen[what].as_f64().unwrap_or(f64::NAN);
        let measure = |what: &str| format!("whale, {name}: {what}");
        report.at_least(&measure("its rate over its limit"), of("share"), " x", 0.9);
        report.at_most(&measure("appends per command"), of("appends"), "", 0.3);
        report.tells(&measure("reads again per command"), of("reads"), "");
        report.tells(&measure("deferred per command"), of("deferred"), "");
        report.tells(
            &measure("seconds until fan-out had read it"),
            of("fanned_out"),
            " s",
        );
        report.tells(
            &measure("delivered of what was sent"),
            of("delivered") * 100.0,
            " %",
        );
    }
    report.table(
        "1,000 subscribers at 1,000 events/s beside a whale, milliseconds from event to POST:",
        &["whale", "place", "p50", "p90", "p99", "max"],
        &rows,
    );
    Ok(())
}

fn subscriber(number: usize) -> String {
    format!("subscriber-{number}")
}

fn case(
    kafka: &Kafka,
    name: &str,
    whale: Option<(f64, usize)>,
    time: Duration,
) -> Result<Value, Problem> {
    let mut receiver = Helper::start("receiver", &[])?;
    let port = receiver.line()?;
    let place = |number: usize| {
        partition(key_hash(subscriber(number).as_bytes()), PARTITIONS as i32).unwrap_or(0)
    };
    let url = |number: usize| match () {
        () if number == 0 => format!("http://127.0.0.1:{port}/whale/0"),
        () if place(number) == place(0) => format!("http://127.0.0.1:{port}/timed/inside"),
        () => format!("http://127.0.0.1:{port}/timed/outside"),
    };
    let all: Vec<Value> = (0..=SUBSCRIBERS)
        .map(|number| {
            let mut one = subscription(number, &url(number));
            one["events"] = json!([event_type(number)]);
            if number == 0 {
                one["max_in_flight"] = json!(IN_FLIGHT);
            }
            one
        })
        .collect();
    let name = format!("whale-{}", name.replace([',', '/', ' '], "-"));
    let world = World::new(kafka, &name, PARTITIONS, &all)?;
    let role = world
        .again(&name)
        .start("run", &["--drain-deadline", "0s"])?;
    role.wait_ready()?;
    // Not measured: connections are opened.
    let warm_up = produce(
        kafka,
        &world.events(),
        RATE,
        RATE as usize * 3,
        1..=SUBSCRIBERS,
    )?;
    receive(
        &mut receiver,
        &["/timed/inside", "/timed/outside"],
        warm_up,
        STUCK,
    )?;
    receiver.ask("reset")?;
    let before = figures(&role)?;
    let others = (RATE * time.as_secs_f64()) as usize;
    let begun = Instant::now();
    let fanned_out = std::thread::scope(|scope| {
        let topic = world.events();
        let beside = topic.clone();
        let flood = scope.spawn(move || match whale {
            Some((rate, commands)) => {
                std::thread::sleep(Duration::from_secs(2));
                produce(kafka, &beside, rate, commands, 0..=0).map_err(|error| error.to_string())
            }
            None => Ok(0),
        });
        let rest = scope.spawn(move || {
            produce(kafka, &topic, RATE, others, 1..=SUBSCRIBERS).map_err(|error| error.to_string())
        });
        let flooded = flood.join().map_err(|_| "the producer panicked")??;
        let events = ["hookstream_events_total{result=\"fanned_out\"}"];
        while role.sum(&events)? < (warm_up + flooded) as f64 && begun.elapsed() < STUCK {
            std::thread::sleep(Duration::from_millis(50));
        }
        let fanned_out = begun.elapsed().as_secs_f64() - 2.0;
        rest.join().map_err(|_| "the producer panicked")??;
        Ok::<_, Problem>(fanned_out)
    })?;
    let timed = ["/timed/inside", "/timed/outside"];
    receive(&mut receiver, &timed, others, Duration::from_secs(30))?;
    let mut took = f64::NAN;
    if let Some((_, commands)) = whale {
        receive(&mut receiver, &["/whale/0"], commands, STUCK)?;
        took = begun.elapsed().as_secs_f64() - 2.0;
    }
    let seen = receiver.ask("report")?;
    let after = figures(&role)?;
    role.stop()?;
    let commands = whale.map_or(f64::NAN, |(_, commands)| commands as f64);
    let limit = IN_FLIGHT as f64 / WHALE.as_secs_f64();
    let per_command = |which: usize| (after[which] - before[which]) / commands;
    let count = |path: &str| seen["each"][path]["count"].as_f64().unwrap_or(0.0);
    let delivered: f64 = timed.into_iter().chain(["/whale/0"]).map(count).sum();
    Ok(json!({
        "inside": seen["each"]["/timed/inside"],
        "outside": seen["each"]["/timed/outside"],
        "share": commands / took / limit,
        "appends": per_command(0),
        "reads": per_command(1),
        "deferred": per_command(2),
        "fanned_out": fanned_out,
        "delivered": delivered / (others as f64 + whale.map_or(0.0, |(_, commands)| commands as f64)),
    }))
}

/// Appends of parked commands (to a tier and back), records read again, and commands deferred.
fn figures(role: &Role) -> Result<[f64; 3], Problem> {
    Ok([
        role.sum(&["hookstream_parked_total", "hookstream_released_total"])?,
        role.sum(&["hookstream_deferred_reads_total"])?,
        role.sum(&["hookstream_deferred_total"])?,
    ])
}

/// Waits until these paths together have seen `count` requests.
fn receive(
    receiver: &mut Helper,
    paths: &[&str],
    count: usize,
    at_most: Duration,
) -> Result<(), Problem> {
    let begun = Instant::now();
    loop {
        let seen = receiver.ask("report")?;
        let each = paths
            .iter()
            .map(|path| seen["each"][path]["count"].as_u64().unwrap_or(0));
        if each.sum::<u64>() >= count as u64 || begun.elapsed() > at_most {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub fn event_type(number: usize) -> String {
    format!("to.s{number}")
}

/// Events for these subscribers in turn, at this rate; returns how many.
pub fn produce(
    kafka: &Kafka,
    topic: &str,
    rate: f64,
    count: usize,
    of: std::ops::RangeInclusive<usize>,
) -> Result<usize, Problem> {
    let producer: ThreadedProducer<DefaultProducerContext> =
        producer_config(&kafka.address).create()?;
    producer.client().fetch_metadata(Some(topic), STUCK)?;
    let (begun, at) = (Instant::now(), wall());
    let pad = "x".repeat(200);
    for (number, to) in of.cycle_for(count) {
        let after = Duration::from_secs_f64(number as f64 / rate);
        let wait = (begun + after).saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
        let (id, event_type) = (fastrand::u64(..), event_type(to));
        let at = at + after.as_nanos();
        let value = format!(
            r#"{{"id":"event-{id}","type":"{event_type}","time":"2026-01-01T00:00:00Z","data":{{"at":{at},"pad":"{pad}"}}}}"#
        );
        let key = format!("order-{number}");
        let record = BaseRecord::<[u8], [u8]>::to(topic)
            .key(key.as_bytes())
            .payload(value.as_bytes());
        send(&producer, record)?;
    }
    producer.flush(STUCK)?;
    Ok(count)
}

trait CycleFor {
    /// The first `count` numbers, each with an element in turn.
    fn cycle_for(self, count: usize) -> impl Iterator<Item = (usize, usize)>;
}

impl CycleFor for std::ops::RangeInclusive<usize> {
    fn cycle_for(self, count: usize) -> impl Iterator<Item = (usize, usize)> {
        (0..count).zip(self.cycle())
    }
}
