//! `hookstream trace WEBHOOK_ID|EVENT_ID`: the timeline of one event, from the records in the topics.
//!
//! The field names of the JSON forms are a stable interface, described in `schemas/attempt.schema.json` (`$defs/step`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::dead_letters::{check_range, parse_time};
use super::exit::{CliError, Exit};
use super::interrupt::Interrupt;
use super::print::{self, Output, Row};
use super::progress::bar;
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::log_reader::Reading;
use crate::model::units::{EpochMs, counted};
use crate::timeline::{self, Detail, Search, SearchProgress, Step, Timeline, Undecoded};

/// `hookstream trace`.
#[derive(Args, Clone, Debug)]
pub struct TraceArgs {
    /// Event id or webhook id
    #[arg(value_name = "WEBHOOK_ID|EVENT_ID", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    id: String,
    /// Start of the time range: RFC 3339, or a duration before now such as 2h
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "24h")]
    since: EpochMs,
    /// End of the time range, exclusive: RFC 3339, or a duration before now such as 2h [default: now]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<EpochMs>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// One step as printed.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct StepRow {
    time: String,
    topic: String,
    partition: i32,
    offset: i64,
    step: &'static str,
    what: String,
    event_id: String,
    webhook_id: Option<String>,
    subscription: Option<String>,
    cause: Option<&'static str>,
    attempt: Option<u32>,
    attempts: Option<u32>,
    due: Option<String>,
    status: Option<u16>,
    class: Option<String>,
    outcome: Option<String>,
    duration_ms: Option<f64>,
    reason: Option<&'static str>,
    letter: Option<String>,
    error: Option<String>,
}

impl StepRow {
    fn of(step: Step) -> Self {
        let what = step.detail.summary(EpochMs::rfc3339);
        let name = step.detail.name();
        let (webhook_id, subscription) = step
            .webhook
            .map(|webhook| (webhook.id, webhook.subscription))
            .unzip();
        let row = Self {
            time: step.time.rfc3339(),
            topic: step.topic.to_string(),
            partition: step.at.partition,
            offset: step.at.offset.0,
            step: name,
            what,
            event_id: step.event_id,
            webhook_id,
            subscription,
            cause: None,
            attempt: None,
            attempts: None,
            due: None,
            status: None,
            class: None,
            outcome: None,
            duration_ms: None,
            reason: None,
            letter: None,
            error: None,
        };
        match step.detail {
            Detail::Event { .. } => row,
            Detail::Invalid { error } | Detail::Unreadable { error } => Self {
                error: Some(error),
                ..row
            },
            Detail::Command { cause, attempts } => Self {
                cause: Some(cause.as_str()),
                attempts: Some(attempts),
                ..row
            },
            Detail::Waits {
                cause,
                attempts,
                due,
                ..
            } => Self {
                cause: Some(cause.as_str()),
                attempts: Some(attempts),
                due: due.map(EpochMs::rfc3339),
                ..row
            },
            Detail::DeadLetter {
                reason,
                attempts,
                status,
                error,
            } => Self {
                reason: Some(reason.as_str()),
                attempts: Some(attempts),
                status,
                error: Some(error),
                ..row
            },
            Detail::Settled { letter, .. } => Self {
                letter: Some(letter.to_string()),
                ..row
            },
            Detail::Attempt {
                number,
                status,
                class,
                outcome,
                duration_ms,
                error,
            } => Self {
                attempt: Some(number),
                status,
                class: Some(class),
                outcome: Some(outcome),
                duration_ms: Some(duration_ms),
                error,
                ..row
            },
        }
    }
}

impl Row for StepRow {
    const HEADINGS: &'static [&'static str] = &["TIME", "TOPIC", "PLACE", "SUBSCRIPTION", "WHAT"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.time.clone(),
            self.topic.clone(),
            format!("{}:{}", self.partition, self.offset),
            self.subscription.clone().unwrap_or_else(|| "-".to_owned()),
            self.what.clone(),
        ]
    }
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: nothing was found, the topics cannot be read, or it was interrupted.
pub fn run(settings: &Settings, args: &TraceArgs) -> Result<Exit, CliError> {
    check_range(Some(args.since), args.until)?;
    let search = Search {
        id: args.id.clone(),
        since: args.since,
        until: args.until,
    };
    let began = clock::now();
    let found = supervise(settings, &search)?;
    let rows: Vec<StepRow> = found.steps.into_iter().map(StepRow::of).collect();
    print::rows(args.output, &rows)?;
    if found.undecoded.values > 0 {
        print::note(&not_searched(&found.undecoded));
    }
    if found.reading == Reading::Stopped {
        return Err(CliError::new(
            Exit::Interrupted,
            "interrupted before the end of the topics; the timeline may be incomplete",
        ));
    }
    if rows.is_empty() {
        return Err(CliError::new(
            Exit::Failure,
            format!(
                "no records for {:?} from {} to {}; search further back with --since, for example --since 7d",
                args.id,
                args.since.rfc3339(),
                args.until.unwrap_or(began).rfc3339(),
            ),
        ));
    }
    summarise(&rows);
    Ok(Exit::Done)
}

/// What a search could not look into.
fn not_searched(undecoded: &Undecoded) -> String {
    format!(
        "{} with a schema id not searched: {}",
        counted(undecoded.values, "event value"),
        undecoded.reason
    )
}

/// Prints the number of records and the webhooks they belong to.
fn summarise(rows: &[StepRow]) {
    let webhooks: BTreeSet<_> = rows
        .iter()
        .filter_map(|row| Some((row.subscription.as_ref()?, row.webhook_id.as_ref()?)))
        .collect();
    let list: Vec<String> = webhooks
        .into_iter()
        .map(|(subscription, id)| format!("{id} of {subscription}"))
        .collect();
    let which = if !list.is_empty() {
        list.join(", ")
    } else if rows.iter().all(|row| row.step == "invalid") {
        "no command: the event is invalid".to_owned()
    } else {
        "no command: no subscription matched, or fan-out has not reached the event yet".to_owned()
    };
    let records = counted(rows.len() as u64, "record");
    print::note(&format!("{records}; {which}"));
}

/// Runs the search on its own thread and shows its progress.
fn supervise(settings: &Settings, search: &Search) -> Result<Timeline, CliError> {
    let interrupt = Interrupt::watch()?;
    let progress = Arc::new(SearchProgress::default());
    let (done, ended) = mpsc::channel();
    {
        let (settings, search) = (settings.clone(), search.clone());
        let (progress, interrupt) = (Arc::clone(&progress), interrupt.clone());
        std::thread::spawn(move || {
            let stop = || interrupt.is_raised();
            let timeline = timeline::run(&settings, &search, &stop, &progress);
            // Fails only when the command has already ended.
            done.send(timeline).ok();
        });
    }
    let bar = bar();
    loop {
        match ended.recv_timeout(Duration::from_millis(100)) {
            Ok(timeline) => {
                bar.finish_and_clear();
                return timeline.map_err(|failure| print::failed(&failure));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(CliError::new(
                    Exit::Failure,
                    "the search thread ended without a result",
                ));
            }
        }
        bar.set_length(progress.of.load(Ordering::Relaxed).max(1));
        bar.set_position(progress.read.load(Ordering::Relaxed));
        bar.set_message(format!("found {}", progress.found.load(Ordering::Relaxed)));
    }
}
