//! `hookstream subscriptions apply|list|show|delete|pause|resume`: the compacted topic as a table of documents.
//!
//! A document is kept as the JSON that was written, so that fields of a later version survive a state change
//! made by this one. All of an input is checked before any of it is written. There is no lock: of two operators
//! who change one subscription at the same moment, the later record wins, whole.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use rdkafka::message::{Message, OwnedHeaders};
use serde::Serialize;
use serde_json::Value;

use super::outcome::{CliError, Exit, Output};
use super::print::{self, Row};
use crate::admin::log::Log;
use crate::config::{Guarantee, Settings};
use crate::kafka::Failure;
use crate::kafka::producer::{BatchError, Producer, Record};

const PURPOSE: &str = "subscriptions";

/// Larger inputs are refused, bytes: about 100,000 subscriptions.
const MAX_INPUT_BYTES: u64 = 64 * 1024 * 1024;

/// `hookstream subscriptions`.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Create or update subscriptions from JSON, JSON lines or YAML; all are checked before any is written
    Apply(ApplyArgs),
    /// List subscriptions
    List(OutputArgs),
    /// Show one subscription, its secrets redacted
    Show(ShowArgs),
    /// Delete subscriptions; their waiting commands become dead letters
    Delete(IdsArgs),
    /// Pause subscriptions: their commands wait
    Pause(IdsArgs),
    /// Resume subscriptions that are paused or disabled
    Resume(IdsArgs),
}

/// `hookstream subscriptions apply`.
#[derive(Args, Clone, Debug)]
pub struct ApplyArgs {
    /// File to read; - is standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// The form of the output alone.
#[derive(Args, Clone, Debug)]
pub struct OutputArgs {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// `hookstream subscriptions show`.
#[derive(Args, Clone, Debug)]
pub struct ShowArgs {
    /// The subscription
    id: String,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// `hookstream subscriptions delete|pause|resume`.
#[derive(Args, Clone, Debug)]
pub struct IdsArgs {
    /// The subscriptions
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs the command.
///
/// # Errors
/// [`CliError`]: an invalid document, an unknown id, or the broker.
pub fn run(settings: &Settings, command: &Command) -> Result<Exit, CliError> {
    match command {
        Command::Apply(args) => apply(settings, args),
        Command::List(args) => list(settings, args.output),
        Command::Show(args) => show(settings, args),
        Command::Delete(args) => change(settings, args, |_| None, "deleted"),
        Command::Pause(args) => change(
            settings,
            args,
            |document| Some(with_state(document, "paused")),
            "paused",
        ),
        Command::Resume(args) => change(
            settings,
            args,
            |document| Some(with_state(document, "active")),
            "resumed",
        ),
    }
}

/// A valid subscription as it was written.
type Document = serde_json::Map<String, Value>;

/// The document in another state; the same when it is in that state already, also by default.
fn with_state(document: &Document, state: &str) -> Document {
    let mut changed = document.clone();
    if document
        .get("state")
        .map_or("active", |state| state.as_str().unwrap_or_default())
        != state
    {
        changed.insert("state".to_owned(), Value::from(state));
    }
    changed
}

/// What became of one subscription.
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
    let table = table(settings)?;
    let mut changes = Vec::new();
    let mut writes = Vec::new();
    for (id, document) in documents {
        let result = match table.get(&id) {
            None => "created",
            Some(known) if *known == document => "unchanged",
            Some(_) => "updated",
        };
        if result != "unchanged" {
            writes.push((id.clone(), Some(document)));
        }
        changes.push(Change { id, result });
    }
    write(settings, &writes)?;
    print::rows(args.output, &changes)?;
    Ok(Exit::Done)
}

fn read_input(path: &Path, name: &str) -> Result<String, CliError> {
    let refused = |error| CliError::new(Exit::Failure, format!("cannot read {name}: {error}"));
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
        let message = format!("{name} is larger than {MAX_INPUT_BYTES} bytes; apply it in parts");
        return Err(CliError::new(Exit::Failure, message));
    }
    Ok(text)
}

/// Reads and checks every document; all errors at once, each with its place.
fn parse_input(name: &str, text: &str) -> Result<Vec<(String, Document)>, Vec<String>> {
    let found = documents(text).map_err(|error| vec![format!("{name}: {error}")])?;
    if found.is_empty() {
        return Err(vec![format!("{name} holds no subscription")]);
    }
    let (mut checked, mut errors, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (place, value) in found {
        match check(None, &value) {
            Ok((id, _)) if !seen.insert(id.clone()) => {
                errors.push(format!(
                    "{name}, {place}: the id {id:?} stands in this input twice"
                ));
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

/// Splits an input into documents: JSON (one, an array, or one after another), else YAML (one, a list, or several
/// separated by `---`).
fn documents(text: &str) -> Result<Vec<(String, Value)>, String> {
    let text = text.trim_start_matches('\u{feff}');
    let values: Vec<Value> = if text.trim_start().starts_with(['{', '[']) {
        let stream = serde_json::Deserializer::from_str(text).into_iter();
        stream
            .collect::<Result<_, _>>()
            .map_err(|error| format!("not valid JSON: {error}"))?
    } else {
        serde_saphyr::from_multiple(text).map_err(|error| format!("not valid YAML: {error}"))?
    };
    let many = values.len() > 1;
    let mut found = Vec::new();
    for (index, value) in values.into_iter().enumerate() {
        let place = if many {
            format!("document {}", index + 1)
        } else {
            "the document".to_owned()
        };
        match value {
            Value::Array(items) => {
                let items = items.into_iter().enumerate();
                found.extend(
                    items.map(|(item, value)| (format!("{place}, item {}", item + 1), value)),
                );
            }
            // An empty YAML document, as behind a last `---`.
            Value::Null => {}
            value => found.push((place, value)),
        }
    }
    Ok(found)
}

/// Checks one document by the rules of `subscription.rs`.
fn check(key: Option<&[u8]>, value: &Value) -> Result<(String, Document), Vec<String>> {
    let Value::Object(document) = value else {
        return Err(vec!["not an object".to_owned()]);
    };
    let bytes = serde_json::to_vec(value).map_err(|error| vec![error.to_string()])?;
    let id = seam::parse(key, &bytes)?;
    Ok((id, document.clone()))
}

/// Stands in for `crate::subscription` until that is there.
mod seam {
    use serde_json::Value;

    pub(super) fn parse(key: Option<&[u8]>, value: &[u8]) -> Result<String, Vec<String>> {
        let document: Value =
            serde_json::from_slice(value).map_err(|error| vec![error.to_string()])?;
        let text = |name: &str| document.get(name).and_then(Value::as_str);
        let missing: Vec<_> = ["id", "subscriber", "url"]
            .into_iter()
            .filter(|name| text(name).is_none())
            .collect();
        let mut errors: Vec<_> = missing
            .iter()
            .map(|name| format!("{name} is missing"))
            .collect();
        if !document.get("events").is_some_and(Value::is_array) {
            errors.push("events is missing".to_owned());
        }
        let id = text("id").unwrap_or_default().to_owned();
        if key.is_some_and(|key| key != id.as_bytes()) {
            errors.push("the key is not the id".to_owned());
        }
        if errors.is_empty() {
            Ok(id)
        } else {
            Err(errors)
        }
    }

    pub(super) fn redacted(document: &super::Document) -> Value {
        let mut document = document.clone();
        if let Some(Value::Array(secrets)) = document.get_mut("secrets") {
            for secret in secrets {
                let reference = secret
                    .as_str()
                    .is_some_and(|s| s.starts_with("env:") || s.starts_with("file:"));
                if !reference {
                    *secret = Value::from("redacted");
                }
            }
        }
        Value::Object(document)
    }
}

// ---- the table ----

/// The subscriptions in force: of each id the latest valid record, as in fan-out and delivery.
fn table(settings: &Settings) -> Result<BTreeMap<String, Document>, CliError> {
    let log = Log::open(settings, settings.topics.subscriptions(), PURPOSE)
        .map_err(|f| print::failed(&f))?;
    let ends = log
        .stable_ends()
        .map_err(|failure| print::failed(&failure))?;
    let mut table = BTreeMap::new();
    log.read::<Failure>(&ends, &|| false, |message| {
        take(&mut table, message.key(), message.payload());
        Ok(ControlFlow::Continue(()))
    })
    .map_err(|failure| print::failed(&failure))?;
    Ok(table)
}

fn take(table: &mut BTreeMap<String, Document>, key: Option<&[u8]>, value: Option<&[u8]>) {
    let name = String::from_utf8_lossy(key.unwrap_or_default()).into_owned();
    let Some(value) = value else {
        table.remove(&name);
        return;
    };
    let checked = serde_json::from_slice(value)
        .map_err(|error| vec![error.to_string()])
        .and_then(|value: Value| check(key, &value));
    match checked {
        Ok((id, document)) => drop(table.insert(id, document)),
        Err(reasons) => {
            let reasons = reasons.join("; ");
            print::note(&format!(
                "a record of {name:?} is invalid, and what was before stays in force: {reasons}"
            ));
        }
    }
}

/// Writes documents, or tombstones; returns when all are acknowledged by all in-sync replicas.
fn write(settings: &Settings, writes: &[(String, Option<Document>)]) -> Result<(), CliError> {
    if writes.is_empty() {
        return Ok(());
    }
    let topic = settings.topics.subscriptions();
    // Each record stands for itself: a transaction would add nothing but a transactional id to be permitted.
    let plain = Settings {
        guarantee: Guarantee::AtLeastOnce,
        ..settings.clone()
    };
    let mut producer =
        Producer::sole(&plain, PURPOSE).map_err(|failure| print::failed(&failure))?;
    for (tag, (id, document)) in writes.iter().enumerate() {
        let value = document.as_ref().map(serde_json::to_vec).transpose();
        let value = value
            .map_err(|error| CliError::new(Exit::Failure, format!("cannot write JSON: {error}")))?;
        let (key, value, headers) = (Some(id.as_bytes()), value.as_deref(), OwnedHeaders::new());
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

/// Applying again is safe, so that is what to do after any failure.
fn refused(error: BatchError, writes: &[(String, Option<Document>)]) -> CliError {
    match error {
        BatchError::TooLarge { tag } => {
            let id = writes.get(tag).map_or("?", |(id, _)| id.as_str());
            let message = format!(
                "the subscription {id:?} is larger than the broker's limit; others may be written"
            );
            CliError::new(Exit::Partial, message)
        }
        BatchError::Aborted(error) => {
            let failure = Failure::from_client(
                "writing subscriptions (some may be written; run again)",
                error,
            );
            print::failed(&failure)
        }
        BatchError::Failed(failure) => print::failed(&failure),
    }
}

// ---- list, show, change ----

/// A subscription as it is listed: the whole document, redacted, under its own field names.
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
    let rows: Vec<_> = table(settings)?
        .values()
        .map(|document| Listed(seam::redacted(document)))
        .collect();
    print::rows(output, &rows)?;
    if rows.is_empty() {
        print::note("there are no subscriptions");
    }
    Ok(Exit::Done)
}

fn show(settings: &Settings, args: &ShowArgs) -> Result<Exit, CliError> {
    let table = table(settings)?;
    let document = table
        .get(&args.id)
        .ok_or_else(|| unknown(&[args.id.as_str()]))?;
    print::document(args.output, &seam::redacted(document))?;
    Ok(Exit::Done)
}

fn unknown(ids: &[&str]) -> CliError {
    let ids: Vec<_> = ids.iter().map(|id| format!("{id:?}")).collect();
    CliError::new(
        Exit::Failure,
        format!("there is no subscription {}", ids.join(", ")),
    )
}

/// Changes or deletes subscriptions; nothing is written when one of them is unknown.
fn change(
    settings: &Settings,
    args: &IdsArgs,
    changed: impl Fn(&Document) -> Option<Document>,
    done: &'static str,
) -> Result<Exit, CliError> {
    let table = table(settings)?;
    let ids: BTreeSet<&str> = args.ids.iter().map(String::as_str).collect();
    let missing: Vec<_> = ids
        .iter()
        .copied()
        .filter(|id| !table.contains_key(*id))
        .collect();
    if !missing.is_empty() {
        return Err(unknown(&missing));
    }
    let (mut writes, mut changes) = (Vec::new(), Vec::new());
    for (id, document) in ids.iter().filter_map(|id| Some((*id, table.get(*id)?))) {
        let next = changed(document);
        let unchanged = next.as_ref() == Some(document);
        if !unchanged {
            writes.push((id.to_owned(), next));
        }
        changes.push(Change {
            id: id.to_owned(),
            result: if unchanged { "unchanged" } else { done },
        });
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
        parse_input("subs", text).map(|found| found.into_iter().map(|(id, _)| id).collect())
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
    fn every_error_is_told_with_its_place() {
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
                .any(|error| error.contains("item 3") && error.contains("twice")),
            "{errors:?}"
        );
        assert!(ids("").unwrap_err()[0].contains("no subscription"));
        assert!(ids("{").unwrap_err()[0].contains("JSON"));
    }

    #[test]
    fn a_tombstone_deletes_and_an_invalid_record_changes_nothing() {
        let mut table = BTreeMap::new();
        take(&mut table, Some(b"acme"), Some(ACME.as_bytes()));
        take(&mut table, Some(b"globex"), Some(GLOBEX.as_bytes()));
        take(&mut table, Some(b"acme"), Some(b"{}"));
        assert_eq!(
            table.len(),
            2,
            "an invalid record leaves the previous one in force"
        );
        take(&mut table, Some(b"acme"), None);
        assert_eq!(table.keys().collect::<Vec<_>>(), ["globex"]);
    }

    #[test]
    fn a_state_change_keeps_all_other_fields() {
        let Value::Object(document) = serde_json::from_str(ACME).unwrap() else {
            panic!("an object")
        };
        let paused = with_state(&document, "paused");
        assert_eq!(paused.get("state"), Some(&Value::from("paused")));
        let mut rest = paused;
        rest.remove("state");
        assert_eq!(rest, document);
        assert_eq!(
            with_state(&document, "active"),
            document,
            "a subscription is active by default"
        );
    }
}
