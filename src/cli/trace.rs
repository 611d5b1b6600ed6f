//! `hookstream trace WEBHOOK_ID|EVENT_ID`: the life of one event, as the topics tell it.
//!
//! The field names of the JSON forms are an interface, described in `schemas/attempt.schema.json` (`$defs/step`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::dead_letters::{check_range, parse_time};
use super::interrupt::Interrupt;
use super::outcome::{CliError, Exit, Output};
use super::print::{self, Row};
use super::progress::bar;
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::log_reader::Reading;
use crate::model::units::{EpochMs, counted};
use crate::timeline as trace;
use crate::timeline::story::{Step, What};
use crate::timeline::{Progress, Search};

/// `hookstream trace`.
#[derive(Args, Clone, Debug)]
pub struct TraceArgs {
    /// The id of the event, or of one of its webhooks
    #[arg(value_name = "WEBHOOK_ID|EVENT_ID", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    id: String,
    /// Search records of this time or later: RFC 3339, or a duration ago such as 2h
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "24h")]
    since: EpochMs,
    /// Search records before this time: RFC 3339, or a duration ago such as 2h [default: all up to now]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<EpochMs>,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// One record as it is printed.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Told {
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

impl Told {
    fn of(step: Step) -> Self {
        let what = step.what.sentence(EpochMs::rfc3339);
        let name = step.what.name();
        let (webhook_id, subscription) = step
            .webhook
            .map(|webhook| (webhook.id, webhook.subscription))
            .unzip();
        let told = Self {
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
        match step.what {
            What::Event { .. } => told,
            What::Invalid { error } | What::Unreadable { error } => Self {
                error: Some(error),
                ..told
            },
            What::Command { cause, attempts } => Self {
                cause: Some(cause.as_str()),
                attempts: Some(attempts),
                ..told
            },
            What::Waits {
                cause,
                attempts,
                due,
                ..
            } => Self {
                cause: Some(cause.as_str()),
                attempts: Some(attempts),
                due: due.map(EpochMs::rfc3339),
                ..told
            },
            What::DeadLetter {
                reason,
                attempts,
                status,
                error,
            } => Self {
                reason: Some(reason.as_str()),
                attempts: Some(attempts),
                status,
                error: Some(error),
                ..told
            },
            What::Settled { letter, .. } => Self {
                letter: Some(letter.to_string()),
                ..told
            },
            What::Attempt {
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
                ..told
            },
        }
    }
}

impl Row for Told {
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
    let life = supervise(settings, &search)?;
    let told: Vec<Told> = life.steps.into_iter().map(Told::of).collect();
    print::rows(args.output, &told)?;
    if life.reading == Reading::Stopped {
        return Err(CliError::new(
            Exit::Interrupted,
            "interrupted before everything was read; there may be more",
        ));
    }
    if told.is_empty() {
        return Err(CliError::new(
            Exit::Failure,
            format!(
                "no record about {:?} from {} to {}; --since 7d looks further back, as far as the topics reach",
                args.id,
                args.since.rfc3339(),
                args.until.unwrap_or(began).rfc3339(),
            ),
        ));
    }
    summarise(&told);
    Ok(Exit::Done)
}

/// Says which webhooks these are.
fn summarise(told: &[Told]) {
    let webhooks: BTreeSet<_> = told
        .iter()
        .filter_map(|one| Some((one.subscription.as_ref()?, one.webhook_id.as_ref()?)))
        .collect();
    let list: Vec<String> = webhooks
        .into_iter()
        .map(|(subscription, id)| format!("{id} of {subscription}"))
        .collect();
    let which = if !list.is_empty() {
        list.join(", ")
    } else if told.iter().all(|one| one.step == "invalid") {
        "no command: it could not be read as an event".to_owned()
    } else {
        "no command: no subscription matched, or fan-out has not come to it".to_owned()
    };
    let records = counted(told.len() as u64, "record");
    print::note(&format!("{records}; {which}"));
}

/// Runs the search on a thread of its own, and shows how far it is.
fn supervise(settings: &Settings, search: &Search) -> Result<trace::Life, CliError> {
    let interrupt = Interrupt::watch()?;
    let progress = Arc::new(Progress::default());
    let (done, ended) = mpsc::channel();
    {
        let (settings, search) = (settings.clone(), search.clone());
        let (progress, interrupt) = (Arc::clone(&progress), interrupt.clone());
        std::thread::spawn(move || {
            let stop = || interrupt.is_raised();
            let life = trace::run(&settings, &search, &stop, &progress);
            // Somebody waits for it as long as there is a command.
            done.send(life).ok();
        });
    }
    let bar = bar();
    loop {
        match ended.recv_timeout(Duration::from_millis(100)) {
            Ok(life) => {
                bar.finish_and_clear();
                return life.map_err(|failure| print::failed(&failure));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(CliError::new(
                    Exit::Failure,
                    "the search's thread ended without a result",
                ));
            }
        }
        bar.set_length(progress.of.load(Ordering::Relaxed).max(1));
        bar.set_position(progress.read.load(Ordering::Relaxed));
        bar.set_message(format!("found {}", progress.found.load(Ordering::Relaxed)));
    }
}
