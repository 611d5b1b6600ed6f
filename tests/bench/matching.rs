//! Matching alone: events per CPU second against 100, 10,000 and 100,000 subscriptions, ten matches each.

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use hookstream::model::event;
use hookstream::model::event::RawEvent;
use hookstream::model::matching::Index;
use hookstream::model::subscription;
use hookstream::model::units::EpochMs;
use serde_json::{Value, json};

use crate::Scale;
use crate::report::Report;
use crate::stage::{Helper, Kafka, Problem, account, median};

const SIZES: [usize; 3] = [100, 10_000, 100_000];
const MATCHES: usize = 10;
/// Different events, in turn.
const EVENTS: usize = 1000;

/// Groups of ten that want the same events: by exact type, by wildcard, by equality and by number.
fn wanted(number: usize) -> Value {
    let group = number / MATCHES;
    let id = format!("s{number}");
    let (events, filter) = match group % 4 {
        0 => (json!([format!("order.g{group}")]), json!({})),
        1 => (json!([format!("order.g{group}.*")]), json!({})),
        2 => (
            json!(["order.paid"]),
            json!({"data.shop": [format!("shop-{group}")], "data.country": ["DE", "FR"]}),
        ),
        _ => (
            json!(["order.counted"]),
            json!({"data.total": [{"numeric": [">=", group, "<", group + 1]}]}),
        ),
    };
    json!({"id": id, "subscriber": id, "url": "https://example.com/", "events": events, "filter": filter})
}

/// An event that one group wants.
fn sent(group: usize) -> String {
    let (kind, data) = match group % 4 {
        0 => (
            format!("order.g{group}"),
            json!({"total": 1, "shop": "none", "country": "DE"}),
        ),
        1 => (
            format!("order.g{group}.created"),
            json!({"total": 1, "shop": "none", "country": "DE"}),
        ),
        2 => (
            "order.paid".to_owned(),
            json!({"total": 1, "shop": format!("shop-{group}"), "country": "FR"}),
        ),
        _ => (
            "order.counted".to_owned(),
            json!({"total": group as f64 + 0.5, "shop": "none", "country": "DE"}),
        ),
    };
    json!({"id": format!("e{group}"), "type": kind, "subject": "order-1", "data": data}).to_string()
}

/// SUBSCRIPTIONS SECONDS: events a CPU second for matching alone, and with reading.
pub fn play(arguments: &[String]) -> Result<(), Problem> {
    let (size, seconds): (usize, f64) = (arguments[0].parse()?, arguments[1].parse()?);
    let mut index = Index::new();
    for number in 0..size {
        let value = wanted(number).to_string();
        index.insert(Arc::new(subscription::parse(None, value.as_bytes())?));
    }
    let groups = size / MATCHES;
    // Spread over all groups, in an order that caches do not like.
    let texts: Vec<String> = (0..EVENTS)
        .map(|number| sent(number * 7919 % groups))
        .collect();
    let raw: Vec<RawEvent<'_>> = texts
        .iter()
        .map(|text| RawEvent {
            topic: "order-events",
            key: None,
            payload: Some(text.as_bytes()),
            headers: &[],
            timestamp: EpochMs(0),
        })
        .collect();
    let events: Vec<_> = raw
        .iter()
        .map(|raw| event::read(raw, 1 << 20))
        .collect::<Result<_, _>>()?;
    let mut found = Vec::new();
    let mut rate =
        |one: &mut dyn FnMut(usize, &mut Vec<_>) -> Result<(), Problem>| -> Result<f64, Problem> {
            let (begun, before) = (Instant::now(), account(std::process::id())?.cpu);
            let mut count = 0_usize;
            while begun.elapsed().as_secs_f64() < seconds {
                for (number, text) in texts.iter().enumerate() {
                    found.clear();
                    one(number, &mut found)?;
                    if found.len() != MATCHES {
                        return Err(format!("{} matches of {MATCHES}: {text}", found.len(),).into());
                    }
                }
                count += EVENTS;
            }
            Ok(count as f64 / (account(std::process::id())?.cpu - before))
        };
    let alone = rate(&mut |number, found| {
        index.matching(&events[number], found);
        Ok(())
    })?;
    let with_reading = rate(&mut |number, found| {
        index.matching(&event::read(&raw[number], 1 << 20)?, found);
        Ok(())
    })?;
    println!("{}", json!([alone, with_reading]));
    Ok(std::io::stdout().flush()?)
}

pub fn run(_: &Kafka, scale: &Scale, report: &mut Report) -> Result<(), Problem> {
    let seconds = scale.pick("0.5", "2");
    let mut rates: Vec<[Vec<f64>; 2]> = SIZES.iter().map(|_| [Vec::new(), Vec::new()]).collect();
    for _ in 0..scale.runs {
        for (size, rates) in SIZES.iter().zip(&mut rates) {
            let told = Helper::start("matching", &[&size.to_string(), seconds])?.line()?;
            let both: [f64; 2] = serde_json::from_str(&told)?;
            rates[0].push(both[0]);
            rates[1].push(both[1]);
        }
    }
    let of = |at: usize, which: usize| median(rates[at][which].iter().copied());
    for (at, size) in SIZES.iter().enumerate() {
        report.at_least(
            &format!("matching: events per CPU second, {size} subscriptions"),
            of(at, 0),
            "",
            50_000.0,
        );
        report.tells(
            &format!("matching and reading: events per CPU second, {size} subscriptions"),
            of(at, 1),
            "",
        );
    }
    report.at_most(
        "matching: cost with 100,000 over that with 100",
        of(0, 0) / of(2, 0),
        " x",
        2.0,
    );
    Ok(())
}
