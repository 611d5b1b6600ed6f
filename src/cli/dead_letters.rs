//! `hookstream dead-letters list|show`: dead letters and their state.
//!
//! Both read the dead-letter topic twice, as a replay does: first the settling records, then the dead letters. The field
//! names of the JSON formats are a stable interface, described in `schemas/dead-letter.schema.json`.

use std::ops::ControlFlow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use rdkafka::message::{BorrowedMessage, Message};
use serde::Serialize;

use super::exit::{CliError, Exit};
use super::print::{self, Output, Row};
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log_reader::{Log, Range};
use crate::edge::kafka::record::header_pairs;
use crate::model::dead_letter::{Coordinates, DeadLetter, Filter, OpenLetters, Reason, State};
use crate::model::subscription::TypePattern;
use crate::model::units::{EpochMs, Offset, counted, parse_duration};
use crate::replay::{self, Newer, NewerFacts, Undecoded};

/// The number of dead letters that `list` prints by default.
const DEFAULT_LIMIT: u64 = 1000;

/// Selects dead letters.
#[derive(Args, Clone, Debug, Default)]
pub struct FilterArgs {
    /// Only dead letters of this subscriber
    #[arg(long, value_name = "NAME")]
    pub subscriber: Option<String>,
    /// Only dead letters of this subscription
    #[arg(long, value_name = "ID")]
    pub subscription: Option<String>,
    /// Only events of this type; * matches one segment, ** any number
    #[arg(long, value_name = "PATTERN", value_parser = TypePattern::parse)]
    pub event_type: Option<TypePattern>,
    /// Only dead letters with this reason
    #[arg(long, value_name = "REASON", value_parser = parse_reason)]
    pub reason: Option<Reason>,
    /// Only dead letters with this last response status
    #[arg(long, value_name = "CODE", value_parser = clap::value_parser!(u16).range(100..=999))]
    pub status: Option<u16>,
    /// Only last failures at or after this time: RFC 3339, or a duration before now such as 2h
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub since: Option<EpochMs>,
    /// Only last failures before this time: RFC 3339, or a duration before now such as 2h
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub until: Option<EpochMs>,
}

impl FilterArgs {
    /// Checks the arguments and returns the filter.
    ///
    /// # Errors
    /// [`CliError`]: the time range is empty.
    pub fn filter(&self) -> Result<Filter, CliError> {
        check_range(self.since, self.until)?;
        let Self {
            subscriber,
            subscription,
            event_type,
            reason,
            status,
            since,
            until,
        } = self.clone();
        Ok(Filter {
            subscriber,
            subscription,
            event_type,
            reason,
            status,
            since,
            until,
        })
    }
}

fn parse_reason(text: &str) -> Result<Reason, String> {
    text.parse()
}

pub(super) fn parse_time(text: &str) -> Result<EpochMs, String> {
    time_at(text, clock::now())
}

/// Refuses an empty time range.
pub(super) fn check_range(since: Option<EpochMs>, until: Option<EpochMs>) -> Result<(), CliError> {
    range_at(since, until, clock::now()).map_err(|wrong| CliError::new(Exit::Usage, wrong))
}

fn range_at(since: Option<EpochMs>, until: Option<EpochMs>, now: EpochMs) -> Result<(), String> {
    match (since, until) {
        (Some(since), Some(until)) if until <= since => Err(format!(
            "--until ({}) must be later than --since ({})",
            until.rfc3339(),
            since.rfc3339()
        )),
        (Some(since), _) if since > now => Err(format!(
            "--since ({}) is in the future; the current time is {}",
            since.rfc3339(),
            now.rfc3339()
        )),
        _ => Ok(()),
    }
}

/// Parses a time, or a duration before `now`.
fn time_at(text: &str, now: EpochMs) -> Result<EpochMs, String> {
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(EpochMs(time.as_millisecond()));
    }
    parse_duration(text).map(|ago| now - ago).map_err(|_| {
        format!(
            "{text:?} is not a time such as 2026-05-01T12:00:00Z or a duration before now such as 2h"
        )
    })
}

/// `hookstream dead-letters`.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// List dead letters, sorted by last failure (jsonl: in topic order)
    List(ListArgs),
    /// Show one dead letter with its headers, body and state
    Show(ShowArgs),
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
    }
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

/// Where the state of dead letters may be wrong: a newer program settled some of them in a way unknown to this one; and
/// dead letters that this one cannot read.
fn note_newer(newer: &NewerFacts) -> Exit {
    let topic = newer.topic();
    for found in newer.iter() {
        print::note(&match found {
            Newer::Settling { at, version } => format!(
                "the state of the dead letters of {topic} partition {} is uncertain: the record at offset {} was written by a newer hookstream (version {version} of the format); upgrade this program",
                at.partition, at.offset,
            ),
            Newer::DeadLetters { at, version, count } => format!(
                "{} of {topic} partition {}, the first at offset {}, written by a newer hookstream (version {version} of the format), cannot be read; upgrade this program",
                counted(count, "dead letter"),
                at.partition,
                at.offset,
            ),
        });
    }
    if newer.is_empty() {
        Exit::Done
    } else {
        Exit::Partial
    }
}

fn open(settings: &Settings) -> Result<(Log, Vec<Range>), CliError> {
    let log = Log::open(settings, settings.topics.dead_letters(), "dead-letters")
        .map_err(|f| print::failed(&f))?;
    let ends = log
        .stable_ends()
        .map_err(|failure| print::failed(&failure))?;
    Ok((log, ends))
}

fn fold(log: &Log, ends: &[Range]) -> Result<(OpenLetters, NewerFacts), CliError> {
    let mut settled = OpenLetters::default();
    let mut newer = NewerFacts::of(log.topic());
    log.read::<Failure>(ends, &|| false, |message| {
        if let Some(fact) = newer.settled(message) {
            settled.settle(&fact, replay::place(message));
        }
        Ok(ControlFlow::Continue(()))
    })
    .map_err(|failure| print::failed(&failure))?;
    Ok((settled, newer))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_time_range_is_refused() {
        let range = |since: Option<i64>, until: Option<i64>| {
            range_at(since.map(EpochMs), until.map(EpochMs), EpochMs(3000))
        };
        for fine in [
            (None, None),
            (Some(3000), None),
            (None, Some(1)),
            (Some(1000), Some(2000)),
            (Some(1000), Some(9000)),
        ] {
            assert_eq!(range(fine.0, fine.1), Ok(()), "{fine:?}");
        }
        let error = range(Some(2000), Some(1000)).unwrap_err();
        assert!(
            error.contains("--until (1970-01-01T00:00:01Z)")
                && error.contains("--since (1970-01-01T00:00:02Z)"),
            "{error}"
        );
        assert!(range(Some(2000), Some(2000)).is_err());
        let error = range(Some(4000), Some(5000)).unwrap_err();
        assert!(error.contains("in the future"), "{error}");
    }

    #[test]
    fn a_time_is_a_timestamp_or_a_duration_before_now() {
        let now = EpochMs(1_700_000_000_000);
        assert_eq!(time_at("2023-11-14T22:13:20Z", EpochMs(0)), Ok(now));
        assert_eq!(time_at("2023-11-14T23:13:20+01:00", EpochMs(0)), Ok(now));
        assert_eq!(
            time_at("2h", now),
            Ok(EpochMs(1_700_000_000_000 - 7_200_000))
        );
        assert!(time_at("yesterday", now).unwrap_err().contains("2h"));
    }
}
