//! `make bench`: speed and isolation on a real Kafka, each beside a raw reference in the same run.
//!
//! Every sender, receiver and reference is a process of its own. What counts is the CPU time that the system accounts
//! to it (`/proc/PID/stat`), since wall time is noisy on a shared machine; runs of what is measured and of its reference
//! alternate, and figures are medians. Latency is measured in an open loop, from the time at which an event was to be
//! produced, so that a stall is not left out. Nothing is asserted: a target that is missed is reported as missed.
//!
//! Arguments: `--quick`, `--runs N`, `--rate EVENTS_PER_SECOND`, `--minutes N` (of the soak), and the rows to run; all but
//! `sizing`, `outage` and `soak` when none is named.
//! The tables go to standard output, `target/bench/bench.md` and `target/bench/bench.json`.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    unreachable_pub,
    reason = "a bench reads the clock itself, and what fails ends it"
)]

mod backlog;
mod bad;
mod byhand;
mod certificates;
mod cost;
mod deliver;
mod drain;
mod failing;
mod fanout;
mod flight;
mod isolation;
mod lag;
mod latency;
mod many;
mod matching;
mod outage;
mod receiver;
mod reference;
mod replay;
mod report;
mod sizing;
mod soak;
mod stage;
mod tls;
mod whale;
mod wide;

use report::Report;
use stage::{Kafka, Problem};

/// How much to do.
pub struct Scale {
    pub quick: bool,
    /// Of each figure; medians of them.
    pub runs: usize,
    /// Events a second of what is measured at half of capacity; measured when not given.
    pub rate: Option<f64>,
    /// Of the soak.
    pub minutes: Option<usize>,
}

impl Scale {
    pub fn pick<T>(&self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }
}

type Row = fn(&Kafka, &Scale, &mut Report) -> Result<(), Problem>;

const ROWS: [(&str, Row); 21] = [
    ("matching", matching::run),
    ("deliver", deliver::run),
    ("log", deliver::log),
    ("flight", flight::run),
    ("tls", tls::run),
    ("fanout", fanout::run),
    ("drain", drain::run),
    ("latency", latency::run),
    ("cost", cost::run),
    ("isolation", isolation::run),
    ("whale", whale::run),
    ("failing", failing::run),
    (OUTAGE, outage::run),
    ("bad", bad::run),
    ("wide", wide::run),
    ("many", many::run),
    ("backlog", backlog::run),
    ("lag", lag::run),
    ("replay", replay::run),
    (SOAK, soak::run),
    (SIZING, sizing::run),
];

/// Its figures are for `docs/sizing.md`, not for a comparison.
const SIZING: &str = "sizing";
/// It takes half an hour.
const OUTAGE: &str = "outage";
/// It takes an hour.
const SOAK: &str = "soak";

fn main() -> Result<(), Problem> {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        // `cargo bench` passes this to every bench.
        .filter(|argument| argument != "--bench")
        .collect();
    if let Some((part, rest)) = arguments.split_first()
        && let Some(part) = part.strip_prefix("part:")
    {
        return play(part, rest);
    }
    let (scale, rows) = read(&arguments)?;
    let kafka = Kafka::start()?;
    let mut report = Report::new(&scale);
    for (name, row) in ROWS {
        let is_default = rows.is_empty() && !matches!(name, SIZING | OUTAGE | SOAK);
        if is_default || rows.iter().any(|wanted| wanted == name) {
            eprintln!("{name}:");
            row(&kafka, &scale, &mut report)?;
            report.write()?;
        }
    }
    println!("{}", report.markdown());
    Ok(())
}

fn play(part: &str, arguments: &[String]) -> Result<(), Problem> {
    match part {
        "receiver" => receiver::play(arguments),
        "client" => reference::client(arguments),
        "tls-client" => tls::client(arguments),
        "producer" => reference::producer(arguments),
        "consumer" => reference::consumer(arguments),
        "relay" => reference::relay(arguments),
        "byhand" => byhand::play(arguments),
        "matching" => matching::play(arguments),
        "subscriptions" => many::play(arguments),
        _ => Err(format!("there is no part {part}").into()),
    }
}

fn read(arguments: &[String]) -> Result<(Scale, Vec<String>), Problem> {
    let mut scale = Scale {
        quick: false,
        runs: 0,
        rate: None,
        minutes: None,
    };
    let mut rows = Vec::new();
    let mut left = arguments.iter();
    while let Some(argument) = left.next() {
        let mut value = || left.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--quick" => scale.quick = true,
            "--runs" => scale.runs = value()?.parse()?,
            "--rate" => scale.rate = Some(value()?.parse()?),
            "--minutes" => scale.minutes = Some(value()?.parse()?),
            row if ROWS.iter().any(|(name, _)| *name == row) => rows.push(row.to_owned()),
            other => {
                let names: Vec<&str> = ROWS.iter().map(|(name, _)| *name).collect();
                return Err(format!(
                    "{other} is not known; there are --quick, --runs N, --rate N, --minutes N and the rows {}",
                    names.join(", ")
                )
                .into());
            }
        }
    }
    if scale.runs == 0 {
        scale.runs = scale.pick(1, 5);
    }
    Ok((scale, rows))
}
