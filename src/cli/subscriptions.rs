//! `hookstream subscriptions apply|list|show|delete|pause|resume`: manages the documents in the compacted topic.
//!
//! A document is kept as the JSON that was written, so that fields of a later version survive a state change by this one.
//! The whole input is checked before any of it is written. There is no lock: if two operators change a subscription at the
//! same time, the later record replaces the earlier one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use rdkafka::message::{Message, OwnedHeaders};
use serde::Serialize;
use serde_json::Value;

use super::documents;
use super::exit::{CliError, Exit};
use super::print::{self, Output, Row};
use crate::config::{Guarantee, Settings};
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log_reader::Log;
use crate::edge::kafka::producer::{BatchError, Producer, Record};
use crate::model::subscription;
use crate::model::subscription::{State, Subscription, SubscriptionError};

const PURPOSE: &str = "subscriptions";

/// Maximum size of an input, bytes: about 100,000 subscriptions.
const MAX_INPUT_BYTES: u64 = documents::MAX_BYTES as u64;

/// `hookstream subscriptions`.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Create or update subscriptions from JSON, JSON lines or YAML, if all are valid
    Apply(ApplyArgs),
    /// List subscriptions
    List(OutputArgs),
    /// Show one subscription, with its secrets redacted
    Show(ShowArgs),
    /// Delete subscriptions; their pending commands become dead letters
    Delete(IdsArgs),
    /// Pause subscriptions: their commands wait
    Pause(IdsArgs),
    /// Resume paused or disabled subscriptions
    Resume(IdsArgs),
}

/// `hookstream subscriptions apply`.
#[derive(Args, Clone, Debug)]
pub struct ApplyArgs {
    /// File to read; - is standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// The output format.
#[derive(Args, Clone, Debug)]
pub struct OutputArgs {
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// `hookstream subscriptions show`.
#[derive(Args, Clone, Debug)]
pub struct ShowArgs {
    /// Subscription id
    id: String,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// `hookstream subscriptions delete|pause|resume`.
#[derive(Args, Clone, Debug)]
pub struct IdsArgs {
    /// Subscription ids
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: a document is invalid, an id is unknown, or the broker is unreachable or denies access.
pub fn run(settings: &Settings, command: &Command) -> Result<Exit, CliError> {
    match command {
        Command::Apply(args) => apply(settings, args),
        Command::List(args) => list(settings, args.output),
        Command::Show(args) => show(settings, args),
        Command::Delete(args) => change(settings, args, "deleted", &|_| Ok(Some(None))),
        Command::Pause(args) => change(settings, args, "paused", &|known| {
            in_state(known, State::Paused)
        }),
        Command::Resume(args) => change(settings, args, "resumed", &|known| {
            in_state(known, State::Active)
        }),
    }
}

/// A valid subscription with its JSON.
struct Document {
    parsed: Subscription,
    json: Vec<u8>,
}

impl Document {
    fn parse(key: Option<&[u8]>, json: Vec<u8>) -> Result<Self, SubscriptionError> {
        Ok(Self {
            parsed: subscription::parse(key, &json)?,
            json,
        })
    }

    fn id(&self) -> &str {
        &self.parsed.id
    }

    /// Whether both are equal, apart from the order of fields.
    fn equals(&self, json: &[u8]) -> bool {
        let value = |json: &[u8]| serde_json::from_slice::<Value>(json).ok();
        self.json == json || value(&self.json) == value(json)
    }

    fn redacted(&self) -> Result<Value, CliError> {
        subscription::redacted(&self.json)
            .map_err(|error| CliError::new(Exit::Failure, error.problems().join("; ")))
    }
}

/// A record to write: an id and its JSON, or a tombstone.
type Write = (String, Option<Vec<u8>>);

/// The result for one subscription.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Change {
    id: String,
    result: &'static str,
}

impl Row for Change {
    const HEADINGS: &'static [&'static str] = &["ID", "RESULT"];

    fn cells(&self) -> Vec<String> {
        vec![self.id.clone(), self.result.to_owned()]
    }
}

// ---- apply ----

fn apply(settings: &Settings, args: &ApplyArgs) -> Result<Exit, CliError> {
    let name = if args.file == Path::new("-") {
        "standard input".to_owned()
    } else {
        args.file.display().to_string()
    };
    let text = read_input(&args.file, &name)?;
    let documents = parse_input(&name, &text)
        .map_err(|errors| CliError::new(Exit::Failure, errors.join("\n")))?;
    let stored = read_stored(settings)?;
    let (mut changes, mut writes) = (Vec::new(), Vec::new());
    for document in documents {
        let id = document.id().to_owned();
        let result = stored.effect(&document);
        if result != "unchanged" {
            writes.push((id.clone(), Some(document.json)));
        }
        changes.push(Change { id, result });
    }
    write(settings, &writes)?;
    print::rows(args.output, &changes)?;
    Ok(Exit::Done)
}

fn read_input(path: &Path, name: &str) -> Result<String, CliError> {
    let refused = |error| CliError::new(Exit::Failure, format!("reading {name}: {error}"));
    let mut text = String::new();
    let limit = MAX_INPUT_BYTES + 1;
    let read = if path == Path::new("-") {
        std::io::stdin()
            .lock()
            .take(limit)
            .read_to_string(&mut text)
    } else {
        std::fs::File::open(path)
            .map_err(refused)?
            .take(limit)
            .read_to_string(&mut text)
    };
    if read.map_err(refused)? as u64 > MAX_INPUT_BYTES {
        let message = format!("{name} exceeds {MAX_INPUT_BYTES} bytes; apply it in parts");
        return Err(CliError::new(Exit::Failure, message));
    }
    Ok(text)
}

/// Parses and checks all documents; returns all errors, each with its place.
fn parse_input(name: &str, text: &str) -> Result<Vec<Document>, Vec<String>> {
    let found = documents::documents(text).map_err(|error| vec![format!("{name}: {error}")])?;
    if found.is_empty() {
        return Err(vec![format!("{name} contains no subscription")]);
    }
    let (mut checked, mut errors, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (place, value) in found {
        let checked_value = serde_json::to_vec(&value)
            .map_err(|error| vec![error.to_string()])
            .and_then(|json| Document::parse(None, json).map_err(|error| error.problems()));
        match checked_value {
            Ok(known) if !seen.insert(known.id().to_owned()) => {
                errors.push(format!("{name}, {place}: duplicate id {:?}", known.id()));
            }
            Ok(known) => checked.push(known),
            Err(reasons) => {
                let id = value
                    .get("id")
                    .and_then(Value::as_str)
                    .map(|id| format!(" ({id:?})"))
                    .unwrap_or_default();
                errors.extend(
                    reasons
                        .into_iter()
                        .map(|reason| format!("{name}, {place}{id}: {reason}")),
                );
            }
        }
    }
    if errors.is_empty() {
        Ok(checked)
    } else {
        Err(errors)
    }
}

// ---- stored subscriptions ----

/// The effective subscriptions: the latest valid record of each id, as in fan-out and delivery.
#[derive(Default)]
struct Stored {
    known: BTreeMap<String, Document>,
    /// Ids whose latest record is invalid, and why.
    invalid: BTreeMap<String, String>,
}

impl Stored {
    fn take(&mut self, key: Option<&[u8]>, value: Option<&[u8]>) {
        let name = String::from_utf8_lossy(key.unwrap_or_default()).into_owned();
        self.invalid.remove(&name);
        let Some(value) = value else {
            self.known.remove(&name);
            return;
        };
        match Document::parse(key, value.to_vec()) {
            Ok(document) => drop(self.known.insert(name, document)),
            Err(error) => drop(self.invalid.insert(name, error.problems().join("; "))),
        }
    }

    /// The result of applying `document`. If the latest record is invalid, the document is written again even if it is
    /// unchanged: compaction removes the earlier, valid record.
    fn effect(&self, document: &Document) -> &'static str {
        match self.known.get(document.id()) {
            None => "created",
            Some(known)
                if known.equals(&document.json) && !self.invalid.contains_key(document.id()) =>
            {
                "unchanged"
            }
            Some(_) => "updated",
        }
    }
}

fn read_stored(settings: &Settings) -> Result<Stored, CliError> {
    let log = Log::open(settings, settings.topics.subscriptions(), PURPOSE)?;
    let ends = log.stable_ends()?;
    let mut stored = Stored::default();
    log.read::<Failure>(&ends, &|| false, |message| {
        stored.take(message.key(), message.payload());
        Ok(ControlFlow::Continue(()))
    })?;
    for (id, reasons) in &stored.invalid {
        print::note(&format!(
            "the latest record of {id:?} is invalid, the previous one stays in effect: {reasons}"
        ));
    }
    Ok(stored)
}

/// Writes documents or tombstones; returns when all in-sync replicas have acknowledged them.
fn write(settings: &Settings, writes: &[Write]) -> Result<(), CliError> {
    if writes.is_empty() {
        return Ok(());
    }
    let topic = settings.topics.subscriptions();
    // The records are independent: a transaction would only need a transactional id and its ACL.
    let plain = Settings {
        guarantee: Guarantee::AtLeastOnce,
        ..settings.clone()
    };
    let mut producer =
        Producer::sole(&plain, PURPOSE).map_err(|failure| print::failed(&failure))?;
    for (tag, (id, json)) in writes.iter().enumerate() {
        let (key, value, headers) = (Some(id.as_bytes()), json.as_deref(), OwnedHeaders::new());
        let record = Record {
            topic: &topic,
            partition: None,
            key,
            value,
            headers,
            tag,
        };
        producer
            .send(record)
            .map_err(|error| refused(error, writes))?;
    }
    producer
        .finish(&[], None)
        .map_err(|error| refused(error, writes))
}

/// Converts a failed write to an error. Running the command again is safe.
fn refused(error: BatchError, writes: &[Write]) -> CliError {
    match error {
        BatchError::TooLarge { tag } => {
            let id = writes.get(tag).map_or("?", |(id, _)| id.as_str());
            let message = format!(
                "subscription {id:?} exceeds the broker's size limit; others may have been written"
            );
            CliError::new(Exit::Partial, message)
        }
        BatchError::Aborted(error) => {
            let failure = Failure::from_client(
                "writing subscriptions (some may have been written; run again)",
                error,
            );
            print::failed(&failure)
        }
        BatchError::Failed(failure) => print::failed(&failure),
    }
}

// ---- list, show, change ----

/// A subscription as listed: the redacted document.
#[derive(Serialize)]
#[serde(transparent)]
struct Listed(Value);

impl Listed {
    fn text(&self, name: &str, default: &str) -> String {
        self.0
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or(default)
            .to_owned()
    }
}

impl Row for Listed {
    const HEADINGS: &'static [&'static str] = &["ID", "SUBSCRIBER", "STATE", "EVENTS", "URL"];

    fn cells(&self) -> Vec<String> {
        let events = self.0.get("events").and_then(Value::as_array);
        let events: Vec<_> = events
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        vec![
            self.text("id", ""),
            self.text("subscriber", ""),
            self.text("state", "active"),
            events.join(" "),
            self.text("url", ""),
        ]
    }
}

fn list(settings: &Settings, output: Output) -> Result<Exit, CliError> {
    let stored = read_stored(settings)?;
    let rows: Vec<_> = stored
        .known
        .values()
        .map(|known| known.redacted().map(Listed))
        .collect::<Result<_, _>>()?;
    print::rows(output, &rows)?;
    if rows.is_empty() {
        print::note("no subscriptions");
    }
    Ok(Exit::Done)
}

fn show(settings: &Settings, args: &ShowArgs) -> Result<Exit, CliError> {
    let stored = read_stored(settings)?.known;
    let document = stored
        .get(&args.id)
        .ok_or_else(|| unknown(&[args.id.as_str()]))?;
    print::document(args.output, &document.redacted()?)?;
    Ok(Exit::Done)
}

fn unknown(ids: &[&str]) -> CliError {
    let ids: Vec<_> = ids.iter().map(|id| format!("{id:?}")).collect();
    CliError::new(
        Exit::Failure,
        format!("unknown subscription {}", ids.join(", ")),
    )
}

/// The JSON of a subscription in another state; `None` if it is already in that state.
fn in_state(known: &Document, state: State) -> Result<Option<Option<Vec<u8>>>, SubscriptionError> {
    if known.parsed.state == state {
        Ok(None)
    } else {
        Ok(Some(Some(subscription::with_state(&known.json, state)?)))
    }
}

/// Computes the write for a subscription, if any.
type Changed<'a> = &'a dyn Fn(&Document) -> Result<Option<Option<Vec<u8>>>, SubscriptionError>;

/// Changes or deletes subscriptions, unless one of them is unknown.
fn change(
    settings: &Settings,
    args: &IdsArgs,
    done: &'static str,
    changed: Changed<'_>,
) -> Result<Exit, CliError> {
    let stored = read_stored(settings)?.known;
    let ids: BTreeSet<&str> = args.ids.iter().map(String::as_str).collect();
    let missing: Vec<_> = ids
        .iter()
        .copied()
        .filter(|id| !stored.contains_key(*id))
        .collect();
    if !missing.is_empty() {
        return Err(unknown(&missing));
    }
    let (mut writes, mut changes) = (Vec::new(), Vec::new());
    for (id, known) in ids
        .iter()
        .filter_map(|id| Some(((*id).to_owned(), stored.get(*id)?)))
    {
        let next = changed(known)
            .map_err(|error| CliError::new(Exit::Failure, error.problems().join("; ")))?;
        let result = if next.is_some() { done } else { "unchanged" };
        writes.extend(next.map(|json| (id.clone(), json)));
        changes.push(Change { id, result });
    }
    write(settings, &writes)?;
    print::rows(args.output, &changes)?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACME: &str =
        r#"{"id":"acme","subscriber":"acme","url":"https://acme.example/h","events":["order.*"]}"#;
    const GLOBEX: &str =
        r#"{"id":"globex","subscriber":"globex","url":"https://globex.example/h","events":["**"]}"#;

    fn ids(text: &str) -> Result<Vec<String>, Vec<String>> {
        parse_input("subs", text)
            .map(|found| found.iter().map(|known| known.id().to_owned()).collect())
    }

    #[test]
    fn subscriptions_come_as_json_json_lines_or_yaml() {
        let both = vec!["acme".to_owned(), "globex".to_owned()];
        assert_eq!(ids(ACME), Ok(vec!["acme".to_owned()]));
        assert_eq!(ids(&format!("[{ACME},{GLOBEX}]")), Ok(both.clone()));
        assert_eq!(ids(&format!("{ACME}\n{GLOBEX}\n")), Ok(both.clone()));
        let yaml = |id: &str| {
            format!(
                "id: {id}\nsubscriber: {id}\nurl: https://{id}.example/h\nevents: [\"order.*\"]\n"
            )
        };
        assert_eq!(
            ids(&format!(
                "# two\n---\n{}---\n{}",
                yaml("acme"),
                yaml("globex")
            )),
            Ok(both.clone())
        );
        let item = |id: &str| yaml(id).replace("\n", "\n  ").trim_end().to_owned();
        assert_eq!(
            ids(&format!("- {}\n- {}\n", item("acme"), item("globex"))),
            Ok(both)
        );
    }

    #[test]
    fn every_error_is_reported_with_its_place() {
        let broken = r#"{"id":"initech","subscriber":"initech"}"#;
        let errors = ids(&format!("[{ACME},{broken},{ACME}]")).unwrap_err();
        assert!(
            errors
                .iter()
                .any(|error| error.contains("item 2") && error.contains("url")),
            "{errors:?}"
        );
        assert!(
            errors
                .iter()
                .any(|error| error.contains("item 3") && error.contains("duplicate")),
            "{errors:?}"
        );
        assert!(ids("").unwrap_err()[0].contains("no subscription"));
        assert!(ids("{").unwrap_err()[0].contains("JSON"));
    }

    #[test]
    fn a_tombstone_deletes_and_an_invalid_record_changes_nothing() {
        let mut stored = Stored::default();
        stored.take(Some(b"acme"), Some(ACME.as_bytes()));
        stored.take(Some(b"globex"), Some(GLOBEX.as_bytes()));
        let acme = Document::parse(None, ACME.as_bytes().to_vec()).unwrap();
        assert_eq!(stored.effect(&acme), "unchanged");
        stored.take(Some(b"acme"), Some(b"{}"));
        assert_eq!(
            stored.known.len(),
            2,
            "an invalid record leaves the previous one in effect"
        );
        assert_eq!(
            stored.effect(&acme),
            "updated",
            "compaction would remove the valid record"
        );
        stored.take(Some(b"acme"), None);
        assert_eq!(stored.known.keys().collect::<Vec<_>>(), ["globex"]);
        assert_eq!(stored.effect(&acme), "created");
    }

    #[test]
    fn a_state_change_keeps_all_other_fields() {
        let known = Document::parse(None, ACME.as_bytes().to_vec()).unwrap();
        assert!(
            in_state(&known, State::Active).unwrap().is_none(),
            "a subscription is active by default"
        );
        let paused = in_state(&known, State::Paused).unwrap().flatten().unwrap();
        let mut rest: Value = serde_json::from_slice(&paused).unwrap();
        let state = rest.as_object_mut().unwrap().remove("state");
        assert_eq!(state, Some(Value::from("paused")));
        assert!(known.equals(&serde_json::to_vec(&rest).unwrap()));
        let paused = Document::parse(None, paused).unwrap();
        assert!(in_state(&paused, State::Active).unwrap().is_some());
    }
}
