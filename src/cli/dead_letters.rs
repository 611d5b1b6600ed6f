//! `hookstream dead-letters list|show|discard|stats`: dead letters and their state.
//!
//! Both read the dead-letter topic twice, as a replay does: first the settling records, then the dead letters. The field
//! names of the JSON formats are a stable interface, described in `schemas/dead-letter.schema.json`.

mod filter;
mod reading;
mod stats;

use std::ops::ControlFlow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use rdkafka::message::{BorrowedMessage, Message};
use serde::Serialize;

pub use self::filter::{FilterArgs, check_range, parse_time};
use self::reading::{fold, note_newer, open};
pub use self::stats::StatsArgs;
use super::exit::{CliError, Exit};
use super::print::{self, Output, Row};
use super::settle::{How, execute};
use crate::config::Settings;
use crate::edge::kafka::log_reader::Range;
use crate::edge::kafka::record::header_pairs;
use crate::model::dead_letter::{Coordinates, DeadLetter, Reason, State};
use crate::model::units::{EpochMs, Offset, counted};
use crate::replay::{self, Plan, Undecoded};

/// The number of dead letters that `list` prints by default.
const DEFAULT_LIMIT: u64 = 1000;

/// `hookstream dead-letters`.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// List dead letters, sorted by last failure (jsonl: in topic order)
    List(ListArgs),
    /// Show one dead letter with its headers, body and state
    Show(ShowArgs),
    /// Discard open dead letters: they are not open any more, and never sent
    Discard(DiscardArgs),
    /// Count open dead letters by subscriber, reason and hour
    Stats(StatsArgs),
}

/// `hookstream dead-letters discard`.
#[derive(Args, Clone, Debug)]
pub struct DiscardArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Maximum number of dead letters
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Print what would be discarded, by subscriber and reason, without discarding it
    #[arg(long)]
    dry_run: bool,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// `hookstream dead-letters list`.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Only open dead letters (the default)
    #[arg(long, conflicts_with = "all")]
    open: bool,
    /// Include replayed and discarded dead letters
    #[arg(long)]
    all: bool,
    /// Maximum number of dead letters; 0 is unlimited
    #[arg(long, value_name = "N", default_value_t = DEFAULT_LIMIT)]
    limit: u64,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// `hookstream dead-letters show`.
#[derive(Args, Clone, Debug)]
pub struct ShowArgs {
    /// The place of the dead letter, such as 3:1042, or a webhook id for its latest dead letter
    #[arg(value_name = "PARTITION:OFFSET|WEBHOOK_ID")]
    letter: String,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: the topic cannot be read, or there is no such dead letter.
pub fn run(settings: &Settings, command: &Command) -> Result<Exit, CliError> {
    match command {
        Command::List(args) => list(settings, args),
        Command::Show(args) => show(settings, args),
        Command::Discard(args) => discard(settings, args),
        Command::Stats(args) => stats::run(settings, args),
    }
}

fn discard(settings: &Settings, args: &DiscardArgs) -> Result<Exit, CliError> {
    let plan = Plan {
        filter: args.filter.filter()?,
        discards: true,
        limit: args.limit,
        ..Plan::default()
    };
    let how = How {
        dry_run: args.dry_run,
        yes: args.yes,
        output: args.output,
    };
    execute(settings, plan, how)
}

/// A dead letter as listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// `partition:offset`.
    pub place: String,
    /// `open`, `replayed` or `discarded`.
    pub state: &'static str,
    /// When it was replayed or discarded.
    pub settled_at: Option<String>,
    /// The subscriber.
    pub subscriber: String,
    /// The subscription id.
    pub subscription: String,
    /// The webhook id.
    pub webhook_id: String,
    /// The event id.
    pub event_id: String,
    /// The event type.
    pub event_type: String,
    /// The reason.
    pub reason: Reason,
    /// The status of the last response.
    pub status: Option<u16>,
    /// The last error.
    pub error: String,
    /// Attempts made.
    pub attempts: u32,
    /// When the first command was written.
    pub enqueued_at: Option<String>,
    /// When the first attempt failed.
    pub first_failure_at: String,
    /// When the last attempt failed.
    pub last_failure_at: String,
    /// The size of the body.
    pub body_bytes: usize,
}

impl Listed {
    fn new(letter: &DeadLetter, state: State, body_bytes: usize) -> Self {
        let settled_at = match state {
            State::Open => None,
            State::Settled(_, at) => Some(at.rfc3339()),
        };
        Self {
            place: letter.at.to_string(),
            state: state.as_str(),
            settled_at,
            subscriber: letter.subscriber.clone(),
            subscription: letter.subscription.clone(),
            webhook_id: letter.webhook_id.clone(),
            event_id: letter.event_id.clone(),
            event_type: letter.event_type.clone(),
            reason: letter.info.reason,
            status: letter.info.status,
            error: letter.info.error.clone(),
            attempts: letter.attempts,
            enqueued_at: letter.enqueued.map(EpochMs::rfc3339),
            first_failure_at: letter.info.first_failure.rfc3339(),
            last_failure_at: letter.info.last_failure.rfc3339(),
            body_bytes,
        }
    }
}

impl Row for Listed {
    const HEADINGS: &'static [&'static str] = &[
        "PLACE",
        "STATE",
        "SUBSCRIBER",
        "SUBSCRIPTION",
        "EVENT TYPE",
        "REASON",
        "STATUS",
        "ATTEMPTS",
        "LAST FAILURE",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.place.clone(),
            self.state.to_owned(),
            self.subscriber.clone(),
            self.subscription.clone(),
            self.event_type.clone(),
            self.reason.to_string(),
            self.status
                .map_or_else(|| "-".to_owned(), |status| status.to_string()),
            self.attempts.to_string(),
            self.last_failure_at.clone(),
        ]
    }
}

/// A dead letter with headers and body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Detailed {
    /// The fields of the list.
    #[serde(flatten)]
    pub listed: Listed,
    /// The headers of the record, in order.
    pub headers: Vec<HeaderText>,
    /// The body, if it is UTF-8.
    pub body: Option<String>,
    /// The body, if it is not.
    pub body_base64: Option<String>,
}

/// One header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeaderText {
    /// Its name.
    pub name: String,
    /// Its value; bytes that are not UTF-8 are replaced.
    pub value: String,
}

fn list(settings: &Settings, args: &ListArgs) -> Result<Exit, CliError> {
    let filter = args.filter.filter()?;
    let (log, ends) = open(settings)?;
    let (settled, newer) = fold(&log, &ends)?;
    let (mut kept, mut listed, mut more, mut unreadable) = (Vec::new(), 0_u64, false, 0_u64);
    log.read::<CliError>(&ends, &|| false, |message| {
        let letter = match replay::decode(message) {
            Ok(Some(letter)) => letter,
            Ok(None) => return Ok(ControlFlow::Continue(())),
            // Reported with all that a newer program wrote.
            Err(Undecoded::Newer(_)) => return Ok(ControlFlow::Continue(())),
            Err(Undecoded::Unreadable(_)) => {
                unreadable += 1;
                return Ok(ControlFlow::Continue(()));
            }
        };
        let state = settled.state(&letter);
        if !(args.all || state == State::Open) || !filter.matches(&letter) {
            return Ok(ControlFlow::Continue(()));
        }
        if args.limit > 0 && listed >= args.limit {
            more = true;
            return Ok(ControlFlow::Break(()));
        }
        let row = Listed::new(&letter, state, message.payload_len());
        listed += 1;
        if args.output == Output::Jsonl {
            // Printed immediately, so that a long list needs no memory.
            print::document(Output::Jsonl, &row)?;
        } else {
            kept.push((letter.info.last_failure, letter.at, row));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if args.output != Output::Jsonl {
        kept.sort_by_key(|(last_failure, at, _)| (*last_failure, *at));
        let rows: Vec<Listed> = kept.into_iter().map(|(_, _, row)| row).collect();
        print::rows(args.output, &rows)?;
    }
    if more {
        print::note(&format!(
            "only the first {} dead letters are listed; use --limit 0 for all",
            args.limit
        ));
    }
    if unreadable > 0 {
        print::note(&format!(
            "skipped {}",
            counted(unreadable, "unreadable record")
        ));
    }
    if listed == 0 {
        print::note("no dead letters match");
    }
    Ok(note_newer(&newer))
}

fn show(settings: &Settings, args: &ShowArgs) -> Result<Exit, CliError> {
    let (log, ends) = open(settings)?;
    let place = args.letter.parse::<Coordinates>().ok();
    // A dead letter and the records that settle it are in the same partition.
    let ends: Vec<Range> = ends
        .into_iter()
        .filter(|range| place.is_none_or(|at| at.partition == range.partition))
        .collect();
    let (settled, newer) = fold(&log, &ends)?;
    let mut found: Vec<(EpochMs, Detailed)> = Vec::new();
    let wanted =
        |letter: &DeadLetter| place.map_or(letter.webhook_id == args.letter, |at| letter.at == at);
    log.read::<CliError>(&from(&ends, place), &|| false, |message| {
        if let Ok(Some(letter)) = replay::decode(message)
            && wanted(&letter)
        {
            found.push((
                letter.info.last_failure,
                detailed(&letter, settled.state(&letter), message),
            ));
        }
        let beyond = place.is_some_and(|at| message.offset() >= at.offset.0);
        Ok(if beyond {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    })?;
    found.sort_by_key(|(last_failure, _)| *last_failure);
    let Some((_, latest)) = found.pop() else {
        return Err(CliError::new(
            Exit::Failure,
            format!("dead letter {:?} not found", args.letter),
        ));
    };
    if !found.is_empty() {
        let others: Vec<_> = found
            .iter()
            .map(|(_, other)| other.listed.place.as_str())
            .collect();
        print::note(&format!(
            "this is the latest dead letter of the webhook; earlier ones: {}",
            others.join(", ")
        ));
    }
    if args.output == Output::Table {
        print::line(&describe(&latest))?
    } else {
        print::document(args.output, &latest)?
    }
    Ok(note_newer(&newer))
}

/// Skips the records before a known place.
fn from(ends: &[Range], place: Option<Coordinates>) -> Vec<Range> {
    let start = place.map_or(Offset(0), |at| at.offset).0;
    ends.iter()
        .map(|range| Range {
            low: range.low.max(start),
            ..*range
        })
        .collect()
}

fn detailed(letter: &DeadLetter, state: State, message: &BorrowedMessage<'_>) -> Detailed {
    let body = message.payload().unwrap_or_default();
    let text = std::str::from_utf8(body).ok().map(str::to_owned);
    let headers = header_pairs(message).into_iter();
    Detailed {
        listed: Listed::new(letter, state, body.len()),
        headers: headers
            .map(|(name, value)| HeaderText {
                name: name.to_owned(),
                value: String::from_utf8_lossy(value).into_owned(),
            })
            .collect(),
        body_base64: text.is_none().then(|| STANDARD.encode(body)),
        body: text,
    }
}

fn describe(letter: &Detailed) -> String {
    let Listed {
        place,
        state,
        settled_at,
        reason,
        error,
        first_failure_at,
        last_failure_at,
        ..
    } = &letter.listed;
    let settled = settled_at
        .as_ref()
        .map(|at| format!(" at {at}"))
        .unwrap_or_default();
    let mut lines = vec![
        format!("{place}  {state}{settled}"),
        format!("{reason}: {error}"),
        format!("subscriber {}", letter.listed.subscriber),
        format!("first failure {first_failure_at}, last failure {last_failure_at}"),
        String::new(),
    ];
    lines.extend(
        letter
            .headers
            .iter()
            .map(|header| format!("{}: {}", header.name, header.value)),
    );
    lines.push(String::new());
    lines.push(match (&letter.body, &letter.body_base64) {
        (Some(text), _) => text.clone(),
        (None, base64) => format!("(not UTF-8; base64) {}", base64.clone().unwrap_or_default()),
    });
    lines.join("\n")
}
