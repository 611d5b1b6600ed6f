//! `hookstream invalid-events list|show|replay`: records that were set aside.
//!
//! The field names of the JSON formats are a stable interface, described in `schemas/invalid-event.schema.json`.

use std::ops::ControlFlow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::confirm;
use super::dead_letters::{check_range, parse_time};
use super::exit::{CliError, Exit};
use super::interrupt::Interrupt;
use super::print::{self, Output, Row};
use crate::config::Settings;
use crate::edge::kafka::log_reader::Reading;
use crate::model::dead_letter::Coordinates;
use crate::model::units::{EpochMs, counted, first_of};
use crate::replay::{
    InvalidCopy, InvalidFilter, InvalidLog, InvalidReplay, ReplayError, replay_invalid,
};

/// The number of records that `list` prints by default.
const DEFAULT_LIMIT: u64 = 1000;

/// `hookstream invalid-events`.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// List records that were set aside, in the order of the topic
    List(ListArgs),
    /// Show one record with its headers and value
    Show(ShowArgs),
    /// Write records to their topics again, each once, after their cause was fixed
    Replay(ReplayArgs),
}

/// Selects records.
#[derive(Args, Clone, Debug, Default)]
struct FilterArgs {
    /// Only records of this topic
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
    /// Only records whose error contains this text, in upper or lower case
    #[arg(long, value_name = "TEXT")]
    error_contains: Option<String>,
    /// Only records set aside at or after this time: RFC 3339, or a duration before now such as 2h
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<EpochMs>,
    /// Only records set aside before this time: RFC 3339, or a duration before now such as 2h
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    until: Option<EpochMs>,
}

impl FilterArgs {
    fn filter(&self, places: Vec<Coordinates>) -> Result<InvalidFilter, CliError> {
        check_range(self.since, self.until)?;
        Ok(InvalidFilter {
            topic: self.topic.clone(),
            error_contains: self.error_contains.clone(),
            since: self.since,
            until: self.until,
            places,
        })
    }
}

/// `hookstream invalid-events list`.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Include replayed records
    #[arg(long)]
    all: bool,
    /// Maximum number of records; 0 is unlimited
    #[arg(long, value_name = "N", default_value_t = DEFAULT_LIMIT)]
    limit: u64,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// `hookstream invalid-events show`.
#[derive(Args, Clone, Debug)]
pub struct ShowArgs {
    /// The place of the record in the topic of invalid events, such as 3:1042
    #[arg(value_name = "PARTITION:OFFSET")]
    place: Coordinates,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// `hookstream invalid-events replay`.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// The places of records in the topic of invalid events, such as 3:1042; all that match, if there is none
    #[arg(value_name = "PARTITION:OFFSET")]
    places: Vec<Coordinates>,
    #[command(flatten)]
    filter: FilterArgs,
    /// Maximum number of records
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Print what would be replayed, by topic, without replaying it
    #[arg(long)]
    dry_run: bool,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: a topic cannot be read or written, or there is no such record.
pub fn run(settings: &Settings, command: &Command) -> Result<Exit, CliError> {
    match command {
        Command::List(args) => list(settings, args),
        Command::Show(args) => show(settings, args),
        Command::Replay(args) => replay(settings, args),
    }
}

/// A record as listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Listed {
    place: String,
    state: &'static str,
    replayed_at: Option<String>,
    set_aside_at: String,
    topic: String,
    partition: i32,
    offset: i64,
    error: String,
    /// The size of the original's value, if the copy is not whole.
    truncated: Option<u64>,
    value_bytes: usize,
}

impl Listed {
    fn new(copy: &InvalidCopy) -> Self {
        Self {
            place: copy.at.to_string(),
            state: if copy.replayed.is_some() {
                "replayed"
            } else {
                "open"
            },
            replayed_at: copy.replayed.map(EpochMs::rfc3339),
            set_aside_at: copy.time.rfc3339(),
            topic: copy.origin.topic.clone(),
            partition: copy.origin.partition,
            offset: copy.origin.offset.0,
            error: copy.origin.error.clone(),
            truncated: copy.origin.truncated,
            value_bytes: copy.raw.value.as_ref().map_or(0, Vec::len),
        }
    }
}

impl Row for Listed {
    const HEADINGS: &'static [&'static str] =
        &["PLACE", "STATE", "SET ASIDE", "TOPIC", "ORIGINAL", "ERROR"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.place.clone(),
            self.state.to_owned(),
            self.set_aside_at.clone(),
            self.topic.clone(),
            format!("{}:{}", self.partition, self.offset),
            self.error.clone(),
        ]
    }
}

/// A record with its headers and value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Shown {
    #[serde(flatten)]
    listed: Listed,
    key: Option<String>,
    headers: Vec<HeaderText>,
    value: Option<String>,
    value_base64: Option<String>,
}

/// One header; bytes that are not UTF-8 are replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct HeaderText {
    name: String,
    value: Option<String>,
}

impl Shown {
    fn new(copy: &InvalidCopy) -> Self {
        let lossy = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
        let value = copy.raw.value.as_deref();
        let text = value.and_then(|value| std::str::from_utf8(value).ok());
        let headers = copy.raw.headers.iter();
        Self {
            listed: Listed::new(copy),
            key: copy.raw.key.as_ref().map(lossy),
            headers: headers
                .map(|(name, value)| HeaderText {
                    name: name.clone(),
                    value: value.as_ref().map(lossy),
                })
                .collect(),
            value: text.map(str::to_owned),
            value_base64: value
                .filter(|_| text.is_none())
                .map(|value| STANDARD.encode(value)),
        }
    }

    fn text(&self) -> String {
        let listed = &self.listed;
        let replayed = listed.replayed_at.as_ref();
        let replayed = replayed.map(|at| format!(" at {at}")).unwrap_or_default();
        let mut lines = vec![
            format!("{}  {}{replayed}", listed.place, listed.state),
            listed.error.clone(),
            format!(
                "from {} {}:{}, set aside {}",
                listed.topic, listed.partition, listed.offset, listed.set_aside_at
            ),
        ];
        if let Some(size) = listed.truncated {
            lines.push(format!("not whole: the original's value has {size} bytes"));
        }
        lines.push(String::new());
        if let Some(key) = &self.key {
            lines.push(format!("(key): {key}"));
        }
        let headers = self.headers.iter();
        lines.extend(headers.map(|header| {
            let value = header.value.as_deref().unwrap_or("(null)");
            format!("{}: {value}", header.name)
        }));
        lines.push(String::new());
        lines.push(match (&self.value, &self.value_base64) {
            (Some(text), _) => text.clone(),
            (None, Some(base64)) => format!("(not UTF-8; base64) {base64}"),
            (None, None) => "(null)".to_owned(),
        });
        lines.join("\n")
    }
}

fn list(settings: &Settings, args: &ListArgs) -> Result<Exit, CliError> {
    let filter = args.filter.filter(Vec::new())?;
    let log = InvalidLog::open(settings)?;
    let (mut rows, mut listed, mut more) = (Vec::new(), 0_u64, false);
    let streams = args.output == Output::Jsonl && args.limit == 0;
    let (unreadable, _) = log.read::<CliError>(&filter, &|| false, |copy| {
        if !args.all && copy.replayed.is_some() {
            return Ok(ControlFlow::Continue(()));
        }
        if args.limit > 0 && listed >= args.limit {
            more = true;
            return Ok(ControlFlow::Break(()));
        }
        listed += 1;
        let row = Listed::new(&copy);
        if streams {
            // Printed immediately, so that a long list needs no memory.
            print::document(Output::Jsonl, &row)?;
        } else {
            rows.push((copy.time, copy.at, row));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if !streams {
        rows.sort_by_key(|(time, at, _)| (*time, *at));
        let rows: Vec<Listed> = rows.into_iter().map(|(_, _, row)| row).collect();
        print::rows(args.output, &rows)?;
    }
    if more {
        print::note(&format!(
            "only the first {} are listed; use --limit 0 for all",
            counted(args.limit, "record")
        ));
    }
    if unreadable > 0 {
        print::note(&format!(
            "skipped {}",
            counted(unreadable, "unreadable record")
        ));
    }
    if listed == 0 {
        print::note("no records match");
    }
    Ok(Exit::Done)
}

fn show(settings: &Settings, args: &ShowArgs) -> Result<Exit, CliError> {
    let filter = InvalidFilter {
        places: vec![args.place],
        ..InvalidFilter::default()
    };
    let mut found = None;
    InvalidLog::open(settings)?.read::<CliError>(&filter, &|| false, |copy| {
        found = Some(Shown::new(&copy));
        Ok(ControlFlow::Break(()))
    })?;
    let Some(shown) = found else {
        return Err(CliError::new(
            Exit::Failure,
            format!("no record that was set aside at {}", args.place),
        ));
    };
    match args.output {
        Output::Table => print::line(&shown.text())?,
        output => print::document(output, &shown)?,
    }
    Ok(Exit::Done)
}

/// Records of one topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Group {
    topic: String,
    records: u64,
}

impl Row for Group {
    const HEADINGS: &'static [&'static str] = &["TOPIC", "COUNT"];

    fn cells(&self) -> Vec<String> {
        vec![self.topic.clone(), self.records.to_string()]
    }
}

fn groups(done: &InvalidReplay) -> Vec<Group> {
    let each = done.replayed.iter();
    each.map(|(topic, &records)| Group {
        topic: topic.clone(),
        records,
    })
    .collect()
}

fn replay(settings: &Settings, args: &ReplayArgs) -> Result<Exit, CliError> {
    let filter = args.filter.filter(args.places.clone())?;
    let asks = !args.dry_run && !args.yes;
    if asks {
        confirm::can_ask("replay")?;
    }
    let interrupt = Interrupt::watch()?;
    let stop = || interrupt.is_raised();
    if args.dry_run || asks {
        let (seen, result) = replay_invalid(settings, &filter, args.limit, true, &stop);
        result.map_err(|error| explain(&error, 0))?;
        if interrupt.is_raised() {
            let message = "interrupted while reading; nothing was replayed";
            return Err(CliError::new(Exit::Interrupted, message));
        }
        if args.dry_run {
            print::rows(args.output, &groups(&seen))?;
            return ended(&seen);
        }
        if seen.count() == 0 {
            print::note("no records match");
            return ended(&seen);
        }
        print::note(&print::draw(&groups(&seen)));
        let question = format!("Replay {}?", counted(seen.count(), "record"));
        if !confirm::ask(&question, "nothing was replayed", &interrupt)? {
            return Ok(if interrupt.is_raised() {
                Exit::Interrupted
            } else {
                Exit::Done
            });
        }
    }
    let (done, result) = replay_invalid(settings, &filter, args.limit, false, &stop);
    print::rows(args.output, &groups(&done))?;
    let reading = result.map_err(|error| explain(&error, done.count()))?;
    let replayed = counted(done.count(), "record");
    if reading == Reading::Stopped && interrupt.is_raised() {
        let message = format!("interrupted after {replayed}; run again to continue");
        return Err(CliError::new(Exit::Interrupted, message));
    }
    print::note(&format!("replayed {replayed}"));
    ended(&done)
}

/// Reports what was left, with the way out.
fn ended(done: &InvalidReplay) -> Result<Exit, CliError> {
    let mut left: Vec<String> = Vec::new();
    for (topic, count) in &done.foreign {
        left.push(format!(
            "left: {} of {topic}, which is not among --events; add it and replay again",
            counted(*count, "record")
        ));
    }
    if !done.expired.is_empty() {
        left.push(format!(
            "left: {}, whose copies are not whole and whose originals have expired",
            first_of(&done.expired)
        ));
    }
    if !done.too_large.is_empty() {
        left.push(format!(
            "left: {}, too large for --max-event-bytes; raise it and replay again",
            first_of(&done.too_large)
        ));
    }
    if left.is_empty() {
        return Ok(Exit::Done);
    }
    let exit = if done.count() == 0 {
        Exit::Failure
    } else {
        Exit::Partial
    };
    Err(CliError::new(exit, left.join("\n")))
}

fn explain(error: &ReplayError, replayed: u64) -> CliError {
    let taken_over = "another replay of invalid events took over; this one stopped";
    let (exit, message) = print::failed_replay(error, taken_over, replayed);
    let replayed = counted(replayed, "record");
    CliError::new(
        exit,
        format!("{message}; replayed {replayed}; run again for the others, none is replayed twice"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_named_with_the_way_out() {
        let mut done = InvalidReplay::default();
        assert_eq!(ended(&done).unwrap(), Exit::Done);
        done.foreign.insert("payments".to_owned(), 2);
        let error = ended(&done).unwrap_err();
        assert_eq!(error.exit, Exit::Failure);
        assert!(error.message.contains("2 records of payments"), "{error}");
        done.replayed.insert("orders".to_owned(), 1);
        done.expired = (0..30)
            .map(|offset| format!("0:{offset}").parse().unwrap())
            .collect();
        let error = ended(&done).unwrap_err();
        assert_eq!(error.exit, Exit::Partial);
        assert!(error.message.contains("0:19 and 10 more"), "{error}");
    }
}
