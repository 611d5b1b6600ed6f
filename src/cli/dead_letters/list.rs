//! `hookstream dead-letters list`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::filter::FilterArgs;
use super::reading::{fold, note_newer, open};
use crate::cli::exit::{CliError, Exit};
use crate::cli::print::{self, Output};
use crate::config::Settings;
use crate::model::dead_letter::{Coordinates, DeadLetter, Reason, State};
use crate::model::units::{EpochMs, counted};
use crate::replay::{self, Undecoded};

/// The number of dead letters that `list` prints by default.
const DEFAULT_LIMIT: u64 = 1000;

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
    /// The order, of which the first N are printed [default: last-failure; of jsonl, the order of the topic]
    #[arg(long, value_enum)]
    sort: Option<Sort>,
    /// The reverse order, such as the newest first
    #[arg(long)]
    reverse: bool,
    /// Columns of the table, by the names of the JSON fields, separated by commas
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = clap::builder::PossibleValuesParser::new(COLUMNS))]
    columns: Vec<String>,
    /// Maximum number of dead letters; 0 is unlimited
    #[arg(long, value_name = "N", default_value_t = DEFAULT_LIMIT)]
    limit: u64,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// The order of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// The oldest last failure first
    LastFailure,
    /// The oldest first failure first
    FirstFailure,
    /// The fewest attempts first
    Attempts,
    /// The smallest body first
    BodyBytes,
    /// By subscriber, then by last failure
    Subscriber,
    /// By event type, then by last failure
    EventType,
    /// By reason, then by last failure
    Reason,
    /// By partition and offset
    Place,
}

/// What dead letters are sorted by: a text, a number, then the place.
type Key = (String, i64, i64, Coordinates);

impl Sort {
    fn key(self, letter: &DeadLetter, body_bytes: usize) -> Key {
        let last = letter.info.last_failure.0;
        let (text, number) = match self {
            Self::LastFailure => (String::new(), last),
            Self::FirstFailure => (String::new(), letter.info.first_failure.0),
            Self::Attempts => (String::new(), i64::from(letter.attempts)),
            Self::BodyBytes => (String::new(), i64::try_from(body_bytes).unwrap_or(i64::MAX)),
            Self::Subscriber => (letter.subscriber.clone(), last),
            Self::EventType => (letter.event_type.clone(), last),
            Self::Reason => (letter.info.reason.to_string(), last),
            Self::Place => (String::new(), 0),
        };
        (text, number, last, letter.at)
    }
}

/// The first rows of an order, as many as are asked for.
struct First {
    limit: usize,
    reverse: bool,
    rows: BTreeMap<Key, Listed>,
    dropped: u64,
}

impl First {
    fn new(limit: u64, reverse: bool) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Self {
            limit: if limit == 0 { usize::MAX } else { limit },
            reverse,
            rows: BTreeMap::new(),
            dropped: 0,
        }
    }

    /// Takes a row, unless it is behind all of as many as are asked for.
    fn take(&mut self, key: Key, row: impl FnOnce() -> Listed) {
        if self.rows.len() >= self.limit {
            self.dropped += 1;
            let last = if self.reverse {
                self.rows.keys().next().filter(|last| key > **last)
            } else {
                self.rows.keys().next_back().filter(|last| key < **last)
            };
            let Some(last) = last.cloned() else { return };
            self.rows.remove(&last);
        }
        self.rows.insert(key, row());
    }

    fn into_rows(self) -> Vec<Listed> {
        let mut rows: Vec<Listed> = self.rows.into_values().collect();
        if self.reverse {
            rows.reverse();
        }
        rows
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
    pub(super) fn new(letter: &DeadLetter, state: State, body_bytes: usize) -> Self {
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

/// All fields.
const COLUMNS: [&str; 16] = [
    "place",
    "state",
    "settled_at",
    "subscriber",
    "subscription",
    "webhook_id",
    "event_id",
    "event_type",
    "reason",
    "status",
    "error",
    "attempts",
    "enqueued_at",
    "first_failure_at",
    "last_failure_at",
    "body_bytes",
];

/// The fields of a table by default.
const DEFAULT_COLUMNS: [&str; 9] = [
    "place",
    "state",
    "subscriber",
    "subscription",
    "event_type",
    "reason",
    "status",
    "attempts",
    "last_failure_at",
];

/// The heading of a column.
fn heading(column: &str) -> String {
    let name = column.strip_suffix("_at").unwrap_or(column);
    name.replace('_', " ").to_uppercase()
}

/// The cells of a row.
fn cells(row: &Listed, columns: &[&str]) -> Vec<String> {
    let fields = serde_json::to_value(row).unwrap_or_default();
    let cell = |column: &&str| match &fields[*column] {
        serde_json::Value::Null => "-".to_owned(),
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    columns.iter().map(cell).collect()
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: the topic cannot be read.
pub(super) fn run(settings: &Settings, args: &ListArgs) -> Result<Exit, CliError> {
    let filter = args.filter.filter()?;
    let (log, ends) = open(settings)?;
    let (settled, newer) = fold(&log, &ends)?;
    // Printed immediately, so that a long list needs no memory.
    let streams = args.output == Output::Jsonl && args.sort.is_none() && !args.reverse;
    let sort = args.sort.unwrap_or(Sort::LastFailure);
    let (mut first, mut unreadable) = (First::new(args.limit, args.reverse), 0_u64);
    let (mut printed, mut more) = (0_u64, false);
    log.read::<CliError>(&ends, &|| false, |message| {
        match replay::decode(message) {
            Ok(Some(letter)) => {
                let state = settled.state(&letter);
                if !(args.all || state == State::Open) || !filter.matches(&letter) {
                    return Ok(ControlFlow::Continue(()));
                }
                let bytes = message.payload_len();
                let row = || Listed::new(&letter, state, bytes);
                if !streams {
                    first.take(sort.key(&letter, bytes), row);
                } else if args.limit > 0 && printed >= args.limit {
                    more = true;
                    return Ok(ControlFlow::Break(()));
                } else {
                    printed += 1;
                    print::document(Output::Jsonl, &row())?;
                }
            }
            // What a newer program wrote is reported together.
            Ok(None) | Err(Undecoded::Newer(_)) => {}
            Err(Undecoded::Unreadable(_)) => unreadable += 1,
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let dropped = first.dropped;
    let rows = first.into_rows();
    print_rows(args, &rows)?;
    if dropped > 0 {
        print::note(&format!(
            "only the first {} of {} are listed; use --limit 0 for all",
            args.limit,
            counted(dropped + rows.len() as u64, "dead letter")
        ));
    }
    if more {
        print::note(&format!(
            "only the first {} dead letters are listed; use --limit 0 for all",
            args.limit
        ));
    }
    if unreadable > 0 {
        let records = counted(unreadable, "unreadable record");
        print::note(&format!("skipped {records}"));
    }
    if rows.is_empty() && printed == 0 {
        print::note("no dead letters match");
    }
    Ok(note_newer(&newer))
}

fn print_rows(args: &ListArgs, rows: &[Listed]) -> Result<(), CliError> {
    match args.output {
        Output::Table if rows.is_empty() => Ok(()),
        Output::Table => {
            let columns: Vec<&str> = if args.columns.is_empty() {
                DEFAULT_COLUMNS.to_vec()
            } else {
                args.columns.iter().map(String::as_str).collect()
            };
            let headings = columns.iter().map(|column| heading(column)).collect();
            let rows = rows.iter().map(|row| cells(row, &columns));
            print::line(&print::draw_cells(headings, rows))
        }
        Output::Json => print::document(Output::Json, &rows),
        Output::Jsonl => {
            for row in rows {
                print::document(Output::Jsonl, row)?;
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::model::dead_letter::DeadLetterInfo;
    use crate::model::units::Offset;

    fn letter(offset: i64, last_failure: i64, subscriber: &str) -> DeadLetter {
        DeadLetter {
            at: Coordinates {
                partition: 0,
                offset: Offset(offset),
            },
            subscriber: subscriber.to_owned(),
            subscription: "s".to_owned(),
            webhook_id: format!("msg_{offset}"),
            event_id: "e".to_owned(),
            event_type: "t".to_owned(),
            attempts: 1,
            enqueued: None,
            info: DeadLetterInfo {
                reason: Reason::Gone,
                status: Some(410),
                error: String::new(),
                first_failure: EpochMs(1),
                last_failure: EpochMs(last_failure),
            },
        }
    }

    fn listed(limit: u64, sort: Sort, reverse: bool) -> (Vec<String>, u64) {
        let mut first = First::new(limit, reverse);
        // In topic order: the last failures are not.
        for (offset, last, subscriber) in [(1, 30, "b"), (2, 10, "c"), (3, 20, "a"), (4, 40, "a")] {
            let letter = letter(offset, last, subscriber);
            first.take(sort.key(&letter, 7), || {
                Listed::new(&letter, State::Open, 7)
            });
        }
        let dropped = first.dropped;
        (
            first
                .into_rows()
                .into_iter()
                .map(|row| row.webhook_id)
                .collect(),
            dropped,
        )
    }

    #[test]
    fn the_limit_takes_the_first_of_the_order_and_not_of_the_topic() {
        let ids = |ids: &[i64]| ids.iter().map(|id| format!("msg_{id}")).collect::<Vec<_>>();
        assert_eq!(listed(0, Sort::LastFailure, false), (ids(&[2, 3, 1, 4]), 0));
        assert_eq!(listed(2, Sort::LastFailure, false), (ids(&[2, 3]), 2));
        assert_eq!(
            listed(2, Sort::LastFailure, true),
            (ids(&[4, 1]), 2),
            "the newest"
        );
        assert_eq!(listed(3, Sort::Subscriber, false), (ids(&[3, 4, 1]), 1));
        assert_eq!(listed(1, Sort::Place, true), (ids(&[4]), 3));
    }

    #[test]
    fn each_column_is_a_field_and_prints_it() {
        let row = Listed::new(&letter(7, 1000, "acme"), State::Open, 12);
        let fields = serde_json::to_value(&row).unwrap();
        let names: BTreeSet<&str> = fields
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        assert_eq!(names, COLUMNS.into_iter().collect());
        let columns = [
            "place",
            "settled_at",
            "status",
            "last_failure_at",
            "body_bytes",
        ];
        assert_eq!(
            cells(&row, &columns),
            ["0:7", "-", "410", "1970-01-01T00:00:01Z", "12"]
        );
        assert_eq!(columns.map(heading)[3], "LAST FAILURE");
    }
}
