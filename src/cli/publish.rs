//! `hookstream publish`: writes sample events, or given ones, to an event topic.

use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use rdkafka::message::OwnedHeaders;
use serde::Serialize;
use serde_json::{Value, json};

use super::exit::{CliError, Exit};
use super::interrupt::Interrupt;
use super::print::{self, Output, Row};
use super::samples::{self, parse_json};
use crate::config::{Guarantee, Settings};
use crate::edge::clock;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log_reader::Log;
use crate::edge::kafka::producer::{BatchError, Producer, Record};
use crate::model::event::{self, RawEvent};
use crate::model::units::counted;

/// The most events of an input; they are all checked before the first is written.
const MAX_EVENTS: usize = 100_000;

/// Events between two waits for acknowledgements.
const BATCH: usize = 500;

/// `hookstream publish`.
#[derive(Args, Clone, Debug)]
pub struct PublishArgs {
    /// JSON events, one a line; - is standard input. Without it, sample orders are published
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["number", "type", "data", "subject"])]
    file: Option<PathBuf>,
    /// The number of sample events
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    number: u32,
    /// The type of the sample events [default: order.created, order.paid and order.shipped in turn]
    #[arg(long, value_name = "TYPE")]
    r#type: Option<String>,
    /// The data of the sample events
    #[arg(long, value_name = "JSON", value_parser = parse_json)]
    data: Option<Value>,
    /// The subject of the sample events
    #[arg(long, value_name = "TEXT")]
    subject: Option<String>,
    /// The topic [default: the first one of --events]
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
    /// Events per second [default: as fast as possible]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: Option<u32>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// An event to publish.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Published {
    id: String,
    r#type: String,
    subject: Option<String>,
    topic: String,
    #[serde(skip)]
    value: String,
}

impl Row for Published {
    const HEADINGS: &'static [&'static str] = &["ID", "TYPE", "SUBJECT", "TOPIC"];

    fn cells(&self) -> Vec<String> {
        let subject = self.subject.clone().unwrap_or_else(|| "-".to_owned());
        vec![
            self.id.clone(),
            self.r#type.clone(),
            subject,
            self.topic.clone(),
        ]
    }
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: an event is invalid, then none is written; or the topic cannot be written.
pub fn run(settings: &Settings, args: &PublishArgs) -> Result<Exit, CliError> {
    let topic = match (&args.topic, settings.topics.events.first()) {
        (Some(topic), _) if !settings.topics.events.contains(topic) => {
            let message =
                format!("--topic: {topic} is not among --events, so nobody reads it; add it there");
            return Err(CliError::new(Exit::Usage, message));
        }
        (Some(topic), _) | (None, Some(topic)) => topic.clone(),
        (None, None) => return Err(CliError::new(Exit::Usage, "--events names no topic")),
    };
    let values = match &args.file {
        Some(path) => read(path)?,
        None => samples(args),
    };
    let events = check(settings, &topic, values)?;
    let interrupt = Interrupt::watch()?;
    // Before the producer, which would wait for brokers and topics instead of failing.
    drop(Log::open(settings, topic.clone(), "publish")?);
    let plain = Settings {
        guarantee: Guarantee::AtLeastOnce,
        ..settings.clone()
    };
    let mut producer = Producer::sole(&plain, "publish")?;
    let (begun, mut written) = (clock::instant(), 0);
    let batch = args.rate.map_or(BATCH, |_| 1);
    for events in events.chunks(batch) {
        for (tag, event) in events.iter().enumerate() {
            let sent = producer.send(Record {
                topic: &event.topic,
                partition: None,
                key: Some(event.subject.as_ref().unwrap_or(&event.id).as_bytes()),
                value: Some(event.value.as_bytes()),
                headers: OwnedHeaders::new(),
                tag,
            });
            sent.map_err(|error| refused(&topic, written, error))?;
        }
        let finished = producer.finish(&[], None);
        finished.map_err(|error| refused(&topic, written, error))?;
        if args.output == Output::Jsonl {
            print::rows(args.output, events)?;
        }
        written += events.len();
        if let Some(rate) = args.rate {
            let due = Duration::from_secs_f64(written as f64 / f64::from(rate));
            while begun.elapsed() < due && !interrupt.is_raised() {
                std::thread::sleep(
                    Duration::from_millis(5).min(due.saturating_sub(begun.elapsed())),
                );
            }
        }
        if interrupt.is_raised() {
            let count = counted(written as u64, "event");
            return Err(CliError::new(
                Exit::Interrupted,
                format!("interrupted after {count}"),
            ));
        }
    }
    match args.output {
        // A long list says nothing.
        Output::Table if events.len() > 20 => {}
        Output::Jsonl => {}
        output => print::rows(output, &events)?,
    }
    print::note(&format!(
        "published {} to {topic}",
        counted(events.len() as u64, "event")
    ));
    Ok(Exit::Done)
}

/// Sample events, made new by the time and chance.
fn samples(args: &PublishArgs) -> Vec<(String, String)> {
    let run = format!("{:x}-{:04x}", clock::now().0, fastrand::u16(..));
    let one = |number: u32| {
        let mut value = samples::Event::new(&run, number).envelope(&clock::now().rfc3339());
        let given = [
            ("type", args.r#type.clone().map(Value::from)),
            ("data", args.data.clone()),
            ("subject", args.subject.clone().map(Value::from)),
        ];
        for (name, given) in given {
            if let Some(given) = given {
                value[name] = json!(given);
            }
        }
        (format!("event {}", number + 1), value.to_string())
    };
    (0..args.number).map(one).collect()
}

/// The lines of an input, each with its place.
fn read(path: &Path) -> Result<Vec<(String, String)>, CliError> {
    let name = if path == Path::new("-") {
        "standard input".to_owned()
    } else {
        path.display().to_string()
    };
    let usage = |error: String| CliError::new(Exit::Usage, format!("reading {name}: {error}"));
    let input: Box<dyn Read> = if path == Path::new("-") {
        if std::io::stdin().is_terminal() {
            print::note("reading events from standard input, one a line; end with Ctrl-D");
        }
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(path).map_err(|error| usage(error.to_string()))?)
    };
    let mut all = Vec::new();
    for (number, line) in BufReader::new(input).lines().enumerate() {
        let line = line.map_err(|error| usage(format!("line {}: {error}", number + 1)))?;
        if line.trim().is_empty() {
            continue;
        }
        if all.len() >= MAX_EVENTS {
            return Err(usage(format!(
                "more than {MAX_EVENTS} events; publish it in parts"
            )));
        }
        all.push((format!("{name}, line {}", number + 1), line));
    }
    if all.is_empty() {
        return Err(usage("it contains no event".to_owned()));
    }
    Ok(all)
}

/// Checks the events as fan-out reads them.
fn check(
    settings: &Settings,
    topic: &str,
    values: Vec<(String, String)>,
) -> Result<Vec<Published>, CliError> {
    let (mut events, mut errors) = (Vec::with_capacity(values.len()), Vec::new());
    for (place, value) in values {
        let raw = RawEvent {
            topic,
            key: None,
            payload: Some(value.as_bytes()),
            headers: &[],
            timestamp: clock::now(),
        };
        let limit = settings.max_event_bytes;
        let read = match settings.event_mappings.get(topic) {
            None => event::read(&raw, limit),
            Some(mapping) => event::read_mapped(&raw, mapping, limit),
        };
        let read = read.map(|event| {
            let subject = event.subject().map(str::to_owned);
            (
                event.id().to_owned(),
                event.event_type().to_owned(),
                subject,
            )
        });
        match read {
            Ok((id, event_type, subject)) => events.push(Published {
                id,
                r#type: event_type,
                subject,
                topic: topic.to_owned(),
                value,
            }),
            Err(error) => errors.push(format!("{place}: {error}")),
        }
    }
    if errors.is_empty() {
        return Ok(events);
    }
    /// Errors that are printed.
    const MOST: usize = 20;
    let rest = errors.len().saturating_sub(MOST);
    errors.truncate(MOST);
    if rest > 0 {
        errors.push(format!("and {}", counted(rest as u64, "further error")));
    }
    Err(CliError::new(Exit::Usage, errors.join("\n")))
}

fn refused(topic: &str, written: usize, error: BatchError) -> CliError {
    let done = counted(written as u64, "event");
    let what = format!("writing to {topic}, after {done}");
    match error {
        BatchError::Failed(failure) => print::failed(&failure),
        BatchError::Aborted(error) => print::failed(&Failure::from_client(what, error)),
        BatchError::TooLarge { .. } => CliError::new(
            Exit::Failure,
            format!("{what}: an event exceeds the topic's size limit (max.message.bytes)"),
        ),
    }
}
