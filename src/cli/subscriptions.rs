//! `hookstream subscriptions apply|list|show|delete|pause|resume|probe|test|rotate-secret|encrypt`: manages the documents in the compacted topic.
//!
//! A document is written as it was applied. `pause`, `resume` and `probe` write a record of their own beside it, which names the
//! document that it was decided on; see [`Fold`](crate::model::subscription::Fold). The whole input is checked before any
//! of it is written. There is no lock: if two operators apply a subscription at the same time, the later record replaces
//! the earlier one.

mod backfill;
mod change;
mod chosen;
mod deciding;
mod difference;
mod document;
mod draining;
mod elsewhere;
mod listed;
mod secrets;
mod select;
mod stored;
mod testing;
mod verification;

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use self::backfill::backfill;
use self::change::{Change, unknown};
pub(super) use self::chosen::{Chosen, chosen};
pub use self::deciding::DecideArgs;
use self::deciding::{Verb, decide};
use self::difference::difference;
use self::document::{Document, applied, effect};
pub(super) use self::elsewhere::apply_elsewhere;
pub use self::secrets::{EncryptArgs, RotateArgs};
use self::select::has_labels;
pub(super) use self::select::parse_label;
pub use self::select::{Label, Selection};
use self::stored::{PURPOSE, Stored, Write, write};
pub use self::testing::TestArgs;
use super::documents;
use super::exit::{CliError, Exit};
use super::print::{self, Output};
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::egress::EgressPolicy;
use crate::edge::kafka::status_log::{StatusLog, Statuses};
use crate::edge::kafka::subscription_log::Freshness;
use crate::model::subscription;
use crate::model::subscription::{State, SubscriptionError};
use crate::model::units::parse_duration;

/// Maximum size of an input, bytes: about 100,000 subscriptions.
const MAX_INPUT_BYTES: u64 = documents::MAX_BYTES as u64;

/// `hookstream subscriptions`.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Create or update subscriptions from JSON, JSON lines or YAML, if all are valid
    Apply(ApplyArgs),
    /// List subscriptions
    List(ListArgs),
    /// Show one subscription, with its secrets redacted
    Show(ShowArgs),
    /// Delete subscriptions; their pending commands become dead letters
    Delete(IdsArgs),
    /// Pause subscriptions: their commands wait
    Pause(DecideArgs),
    /// Resume paused or disabled subscriptions
    Resume(DecideArgs),
    /// Probe endpoints whose breaker is open at once, instead of at the next probe
    Probe(DecideArgs),
    /// Send a signed sample from here, and print the request, the response and the command that verifies it
    Test(TestArgs),
    /// Make a new signing secret and print it once; the former ones sign too for a while
    RotateSecret(RotateArgs),
    /// Encrypt literal secrets with the first key of --kek-file, those under a former key again
    Encrypt(EncryptArgs),
}

/// `hookstream subscriptions apply`.
#[derive(Args, Clone, Debug)]
pub struct ApplyArgs {
    /// File to read; - is standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Refuse what is probably a mistake, instead of printing a warning
    #[arg(long)]
    strict: bool,
    /// Print what would change, without changing it
    #[arg(long)]
    dry_run: bool,
    /// The endpoints must consent before they get events: deliver asks them, and the subscriptions are pending until then
    #[arg(long)]
    verify: bool,
    /// Delete the subscriptions with the labels of --selector that the file does not contain
    #[arg(long, requires = "selector")]
    prune: bool,
    /// With --prune: the labels of the subscriptions that the file is about; repeated or separated by commas, all of them
    #[arg(short = 'l', long = "selector", value_name = "KEY=VALUE", value_delimiter = ',', value_parser = parse_label, requires = "prune")]
    selector: Vec<Label>,
    /// Also send the events of this time before now to the subscriptions that are created, with the webhook ids of a
    /// replay: a duration such as 7d
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    backfill_since: Option<Duration>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// `hookstream subscriptions list`.
#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// Subscriptions with this label; repeated or separated by commas, all of them
    #[arg(short = 'l', long = "selector", value_name = "KEY=VALUE", value_delimiter = ',', value_parser = parse_label)]
    selector: Vec<Label>,
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
    output: ShowOutput,
}

/// The output format of `show`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ShowOutput {
    /// As JSON.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// One JSON document on one line.
    Jsonl,
    /// The document as it was applied, which can be applied again.
    Yaml,
}

/// `hookstream subscriptions delete`.
#[derive(Args, Clone, Debug)]
pub struct IdsArgs {
    /// Subscription ids
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// First wait until the pending commands are delivered or dead letters; no new events match meanwhile
    #[arg(long, conflicts_with = "discard")]
    drain: bool,
    /// Also discard the dead letters that the pending commands become
    #[arg(long)]
    discard: bool,
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
        Command::List(args) => list(settings, args),
        Command::Show(args) => show(settings, args),
        Command::Delete(args) => delete(settings, args),
        Command::Pause(args) => decide(settings, args, Verb::Pause),
        Command::Resume(args) => decide(settings, args, Verb::Resume),
        Command::Probe(args) => decide(settings, args, Verb::Probe),
        Command::Test(args) => testing::run(settings, args),
        Command::RotateSecret(args) => secrets::rotate(settings, args),
        Command::Encrypt(args) => secrets::encrypt(settings, args),
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
    let kept = |id: &str| -> Result<Option<Vec<u8>>, CliError> {
        let stored = Stored::read(settings, Freshness::Latest)?;
        Ok(stored.document(id).map(<[u8]>::to_vec))
    };
    let documents = parse_input(&name, &text, &kept)?
        .map_err(|errors| CliError::new(Exit::Usage, errors.join("\n")))?;
    report(settings, &documents, args.strict)?;
    let stored = Stored::read(settings, Freshness::Latest)?;
    let refused: Vec<String> = documents
        .iter()
        .filter_map(|document| subscriber_change(&stored, document))
        .collect();
    if !refused.is_empty() {
        return Err(CliError::new(Exit::Failure, refused.join("\n")));
    }
    let outside = documents
        .iter()
        .filter(|document| args.prune && !has_labels(&document.json, &args.selector));
    let outside: Vec<String> = outside
        .map(|document| {
            let labels = select::shown(&args.selector);
            format!(
                "{:?} does not have {labels}, so a later --prune would not know it",
                document.id()
            )
        })
        .collect();
    if !outside.is_empty() {
        return Err(CliError::new(Exit::Failure, outside.join("\n")));
    }
    let pruned = pruned(&stored, &documents, args);
    let keys = secrets::keys(settings)?;
    let verify = args.verify || settings.require_verification;
    let documents = documents.into_iter().map(|document| {
        let before = stored.document(document.id());
        let document = verification::required(document, before, verify)?;
        secrets::encrypted(document, before, keys.as_ref())
    });
    let documents: Vec<Document> = documents.collect::<Result<_, _>>()?;
    let (mut changes, mut writes) = (Vec::new(), Vec::new());
    for document in documents {
        let result = effect(&stored, &document);
        let id = document.id().to_owned();
        if let Some(note) = state_note(&stored, &document, result) {
            print::note(&note);
        }
        if verification::is_asked(&stored, &document, settings.require_verification) {
            print::note(&format!(
                "{id:?} is pending until its endpoint consents; `hookstream subscriptions show {id}` prints what it responds"
            ));
        }
        if args.dry_run && result != "unchanged" {
            let before = stored.document(&id);
            print_difference(&id, result, before, Some(&document.json));
        }
        if result != "unchanged" {
            writes.extend(applied(&stored, document, clock::now()));
        }
        changes.push(Change { id, result });
    }
    for id in pruned {
        if args.dry_run {
            print_difference(&id, "deleted", stored.document(&id), None);
        }
        writes.extend(stored.tombstones(&id));
        let result = "deleted";
        changes.push(Change { id, result });
    }
    if args.dry_run {
        print::note("dry run: nothing was written");
    } else {
        write(settings, &writes)?;
    }
    print::rows(args.output, &changes)?;
    match args.backfill_since {
        Some(since) => backfill(settings, &changes, since, args.dry_run, args.output),
        None => Ok(Exit::Done),
    }
}

/// The subscriptions that `--prune` deletes.
fn pruned(stored: &Stored, documents: &[Document], args: &ApplyArgs) -> Vec<String> {
    if !args.prune {
        return Vec::new();
    }
    let kept: BTreeSet<&str> = documents.iter().map(Document::id).collect();
    let there = select::with_labels(stored, &args.selector).into_iter();
    there
        .filter(|id| !kept.contains(id))
        .map(str::to_owned)
        .collect()
}

/// Prints how a document changes, on standard error.
fn print_difference(id: &str, result: &str, before: Option<&[u8]>, after: Option<&[u8]>) {
    let in_colour = std::io::stderr().is_terminal();
    print::note(&format!("{id}: {result}"));
    for line in difference(before, after) {
        print::note(&line.text(in_colour));
    }
}

/// Prints what is probably a mistake, and URLs that are used in another form than they were typed.
fn report(settings: &Settings, documents: &[Document], strict: bool) -> Result<(), CliError> {
    let policy = EgressPolicy::new(&settings.egress);
    let doubts = documents
        .iter()
        .flat_map(|document| document.doubts(&policy, &settings.secret_rules));
    let doubts: Vec<String> = doubts.collect();
    if strict && !doubts.is_empty() {
        return Err(CliError::new(Exit::Failure, doubts.join("\n")));
    }
    doubts
        .iter()
        .for_each(|doubt| print::note(&format!("warning: {doubt}")));
    let normal = documents.iter().filter_map(Document::normal_url);
    normal.for_each(|note| print::note(&note));
    Ok(())
}

/// Refuses a document that changes the subscriber of a subscription: its pending commands are keyed by it.
fn subscriber_change(stored: &Stored, document: &Document) -> Option<String> {
    let known = stored.fold.get(document.id())?;
    let error = SubscriptionError::SubscriberChanged {
        from: known.subscriber.as_str().into(),
        to: document.parsed.subscriber.as_str().into(),
    };
    (known.subscriber != document.parsed.subscriber)
        .then(|| format!("{:?}: {error}", document.id()))
}

/// What applying a document does to a state that it does not mention.
fn state_note(stored: &Stored, document: &Document, result: &str) -> Option<String> {
    let (id, state) = (document.id(), document.parsed.state);
    let now = stored.fold.get(id)?.state;
    let why = stored
        .why(id)
        .filter(|_| now != state && now != State::Pending)?;
    Some(if result == "unchanged" {
        let way_out = match state {
            State::Active => format!("`hookstream subscriptions resume {id}` makes it active"),
            _ => "an unchanged document does not change that".to_owned(),
        };
        format!("{id:?} stays {why}; {way_out}")
    } else {
        format!("{id:?} was {why}; the changed document makes it {state}")
    })
}

fn read_input(path: &Path, name: &str) -> Result<String, CliError> {
    let refused = |error| CliError::new(Exit::Usage, format!("reading {name}: {error}"));
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
        return Err(CliError::new(Exit::Usage, message));
    }
    Ok(text)
}

/// Reads the stored document of an id.
type StoredDocument<'a> = &'a dyn Fn(&str) -> Result<Option<Vec<u8>>, CliError>;

/// Parses and checks all documents; returns all errors, each with its place.
///
/// `stored` returns the stored document of an id; it is asked for documents with fingerprints in the place of secrets.
fn parse_input(
    name: &str,
    text: &str,
    stored: StoredDocument<'_>,
) -> Result<Result<Vec<Document>, Vec<String>>, CliError> {
    let found = match documents::documents(text) {
        Ok(found) if found.is_empty() => {
            return Ok(Err(vec![format!("{name} contains no subscription")]));
        }
        Ok(found) => found,
        Err(error) => return Ok(Err(vec![format!("{name}: {error}")])),
    };
    let (mut checked, mut errors, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (place, mut value) in found {
        let mut kept = Ok(());
        if subscription::has_fingerprints(&value) {
            let id = value.get("id").and_then(Value::as_str).unwrap_or_default();
            let stored = stored(id)?;
            kept = subscription::keep(&mut value, stored.as_deref());
        }
        let checked_value = kept
            .and_then(|()| serde_json::to_vec(&value).map_err(|error| vec![error.to_string()]))
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
    Ok(if errors.is_empty() {
        Ok(checked)
    } else {
        Err(errors)
    })
}

// ---- list, show, change ----

/// The ids of the subscriptions with an order.
///
/// # Errors
/// [`CliError`] when the subscriptions cannot be read.
pub(super) fn ordered_ids(settings: &Settings) -> Result<Vec<String>, CliError> {
    let stored = Stored::read(settings, Freshness::Latest)?;
    let ordered = stored.fold.iter();
    let ordered = ordered.filter(|one| one.order != subscription::Order::None);
    Ok(ordered
        .map(|subscription| subscription.id.to_string())
        .collect())
}

fn list(settings: &Settings, args: &ListArgs) -> Result<Exit, CliError> {
    let stored = Stored::read(settings, Freshness::Visible)?;
    let statuses = statuses(settings)?;
    let mut rows = Vec::new();
    let is_asked = |id: &&str| {
        let document = stored.document(id);
        document.is_some_and(|document| has_labels(document, &args.selector))
    };
    for id in stored.ids().filter(is_asked) {
        rows.extend(stored.listed(id, &statuses)?);
    }
    print::rows(args.output, &rows)?;
    if rows.is_empty() {
        print::note("no subscriptions");
    }
    Ok(Exit::Done)
}

/// A document as YAML: a line for each field, whose value is JSON, which is YAML too.
fn as_yaml(document: &Value) -> String {
    let fields = document.as_object().into_iter().flatten();
    let lines: Vec<String> = fields
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    lines.join("\n")
}

/// Prints a document that can be applied again.
fn show_yaml(stored: &Stored, id: &str) -> Result<Exit, CliError> {
    let failed = |error: String| CliError::new(Exit::Failure, error);
    let document = stored.document(id).ok_or_else(|| unknown(&[id]))?;
    let document = subscription::fingerprinted(document)
        .map_err(|error| failed(error.problems().join("; ")))?;
    print::line(&as_yaml(&document))?;
    Ok(Exit::Done)
}

/// The statuses of all endpoints.
fn statuses(settings: &Settings) -> Result<Statuses, CliError> {
    let read = StatusLog::open(settings, PURPOSE).and_then(|mut log| {
        log.catch_up(&|| false)?;
        Ok(log.statuses().clone())
    });
    read.map_err(|failure| print::failed(&failure))
}

fn show(settings: &Settings, args: &ShowArgs) -> Result<Exit, CliError> {
    let stored = Stored::read(settings, Freshness::Visible)?;
    let output = match args.output {
        ShowOutput::Table => Output::Table,
        ShowOutput::Json => Output::Json,
        ShowOutput::Jsonl => Output::Jsonl,
        ShowOutput::Yaml => return show_yaml(&stored, &args.id),
    };
    let listed = stored
        .listed(&args.id, &statuses(settings)?)?
        .ok_or_else(|| unknown(&[args.id.as_str()]))?;
    print::document(output, &listed)?;
    if let Some(why) = stored.why(&args.id) {
        print::note(&why);
    }
    Ok(Exit::Done)
}

/// Deletes subscriptions, unless one of them is unknown.
fn delete(settings: &Settings, args: &IdsArgs) -> Result<Exit, CliError> {
    let stored = Stored::read(settings, Freshness::Latest)?;
    let ids: BTreeSet<&str> = args.ids.iter().map(String::as_str).collect();
    let writes: Vec<(&str, Vec<Write>)> = ids
        .into_iter()
        .map(|id| (id, stored.tombstones(id)))
        .collect();
    let missing = writes.iter().filter(|(_, writes)| writes.is_empty());
    let missing: Vec<&str> = missing.map(|(id, _)| *id).collect();
    if !missing.is_empty() {
        return Err(unknown(&missing));
    }
    let ids: Vec<&str> = writes.iter().map(|(id, _)| *id).collect();
    let changes = ids.iter().map(|id| Change {
        id: (*id).to_owned(),
        result: "deleted",
    });
    let changes: Vec<Change> = changes.collect();
    let writes: Vec<Write> = if args.drain {
        draining::drain(settings, &stored, &ids)?;
        let stored = Stored::read(settings, Freshness::Latest)?;
        ids.iter().flat_map(|id| stored.tombstones(id)).collect()
    } else {
        writes
            .iter()
            .flat_map(|(id, _)| stored.tombstones(id))
            .collect()
    };
    write(settings, &writes)?;
    print::rows(args.output, &changes)?;
    if args.discard {
        return draining::discard(settings, &ids, args.output);
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::secret_rules::SecretRules;
    use crate::model::subscription::{Decision, TopicRecord};
    use crate::model::units::EpochMs;

    const ACME: &str =
        r#"{"id":"acme","subscriber":"acme","url":"https://acme.example/h","events":["order.*"]}"#;
    const GLOBEX: &str =
        r#"{"id":"globex","subscriber":"globex","url":"https://globex.example/h","events":["**"]}"#;

    fn ids(text: &str) -> Result<Vec<String>, Vec<String>> {
        parse_input("subs", text, &|_| Ok(None))
            .unwrap()
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
    fn what_is_shown_as_yaml_can_be_applied_again() {
        let stored = ACME.replace(
            "\"events\"",
            r#""secrets":["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw","env:OLD"],"filter":{"data.n":[{"numeric":[">",1.5]}],"type":["a: #b"]},"events""#,
        );
        let shown = as_yaml(&subscription::fingerprinted(stored.as_bytes()).unwrap());
        assert!(
            !shown.contains("MfKQ9r8") && shown.contains("url: \"https"),
            "{shown}"
        );
        let again = parse_input("subs", &shown, &|id| {
            assert_eq!(id, "acme");
            Ok(Some(stored.as_bytes().to_vec()))
        });
        let again = again.unwrap().unwrap();
        assert!(again[0].equals(stored.as_bytes()));
        let errors = parse_input("subs", &shown, &|_| Ok(None))
            .unwrap()
            .err()
            .unwrap();
        assert!(
            errors[0].contains("secrets.0") && errors[0].contains("keep:"),
            "{errors:?}"
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
    fn what_is_pruned_has_the_labels_and_is_not_in_the_file() {
        let labelled = |json: &str, team: &str| {
            json.replace(
                "\"events\"",
                &format!("\"labels\":{{\"team\":\"{team}\"}},\"events\""),
            )
        };
        let mut stored = Stored::default();
        let (acme, globex) = (labelled(ACME, "payments"), labelled(GLOBEX, "payments"));
        let other = labelled(&ACME.replace("acme", "other"), "orders");
        let bare = ACME.replace("acme", "bare");
        for (key, json) in [
            ("acme", &acme),
            ("globex", &globex),
            ("other", &other),
            ("bare", &bare),
        ] {
            take(&mut stored, key.as_bytes(), Some(json.as_bytes()), None);
        }
        let args = |prune| ApplyArgs {
            file: PathBuf::new(),
            strict: false,
            dry_run: false,
            verify: false,
            prune,
            backfill_since: None,
            selector: vec![parse_label("team=payments").unwrap()],
            output: Output::Json,
        };
        let documents = [document(&acme)];
        assert_eq!(pruned(&stored, &documents, &args(true)), ["globex"]);
        assert!(pruned(&stored, &documents, &args(false)).is_empty());
    }

    fn take(stored: &mut Stored, key: &[u8], value: Option<&[u8]>, applied: Option<&[u8]>) {
        let record = TopicRecord {
            key: Some(key),
            value,
            applied,
            partition: Some(0),
            timestamp: None,
        };
        let change = stored.fold.take(&record);
        stored.take(&record, &change);
    }

    fn take_all(stored: &mut Stored, writes: &[Write]) {
        for write in writes {
            let applied = write.applied.as_ref().map(String::as_bytes);
            take(stored, &write.key, write.value.as_deref(), applied);
        }
    }

    fn document(json: &str) -> Document {
        Document::parse(None, json.as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn markers_of_first_starts_are_neither_shown_nor_deleted() {
        let mut stored = Stored::default();
        take(&mut stored, b"acme", Some(ACME.as_bytes()), None);
        let key = b"start/hookstream-fanout/order-events/cluster";
        for value in [Some(&br#"{"partitions":1}"#[..]), Some(b"\xff"), None] {
            take(&mut stored, key, value, None);
            assert_eq!(stored.ids().collect::<Vec<_>>(), ["acme"]);
            assert!(stored.invalid.is_empty(), "{value:?}");
        }
        let id = String::from_utf8_lossy(key);
        assert!(stored.tombstones(&id).is_empty());
    }

    #[test]
    fn a_tombstone_deletes_and_an_invalid_record_changes_nothing() {
        let mut stored = Stored::default();
        take(&mut stored, b"acme", Some(ACME.as_bytes()), None);
        take(&mut stored, b"globex", Some(GLOBEX.as_bytes()), None);
        let acme = document(ACME);
        assert_eq!(effect(&stored, &acme), "unchanged");
        take(&mut stored, b"acme", Some(b"{}"), None);
        assert_eq!(
            stored.ids().count(),
            2,
            "an invalid record leaves the previous one in effect"
        );
        assert_eq!(
            effect(&stored, &acme),
            "updated",
            "compaction would remove the valid record"
        );
        take(&mut stored, b"acme", None, None);
        assert_eq!(stored.ids().collect::<Vec<_>>(), ["globex"]);
        assert_eq!(effect(&stored, &acme), "created");
    }

    #[test]
    fn a_decision_leaves_the_document_alone_and_is_shown() {
        let mut stored = Stored::default();
        take_all(
            &mut stored,
            &applied(&Stored::default(), document(ACME), EpochMs(1)),
        );
        let state = |stored: &Stored| stored.redacted("acme").unwrap().unwrap()["state"].clone();
        assert_eq!(
            state(&stored),
            Value::Null,
            "nothing is added to the document"
        );
        let pause = |stored: &Stored| {
            let known = stored.fold.get("acme").unwrap();
            Write::decision(
                known,
                &Decision::by_operator(known, State::Paused, EpochMs(2)),
            )
        };
        let write = pause(&stored);
        assert_eq!(write.key, b"state/acme");
        take_all(&mut stored, &[write]);
        assert_eq!(state(&stored), "paused");
        assert_eq!(
            stored.document("acme").map(<[u8]>::len),
            Some(document(ACME).json.len())
        );
        assert_eq!(
            effect(&stored, &document(ACME)),
            "unchanged",
            "which does not undo a pause"
        );
        let note = state_note(&stored, &document(ACME), "unchanged").unwrap();
        assert!(
            note.contains("paused by an operator") && note.contains("resume acme"),
            "{note}"
        );

        let changed = ACME.replace("order", "invoice");
        assert_eq!(effect(&stored, &document(&changed)), "updated");
        let note = state_note(&stored, &document(&changed), "updated").unwrap();
        assert!(note.contains("makes it active"), "{note}");
        let writes = applied(&stored, document(&changed), EpochMs(3));
        take_all(&mut stored, &writes);
        let known = stored.fold.get("acme").unwrap();
        assert_eq!(
            (known.state, known.resumed_at()),
            (State::Active, Some(EpochMs(3)))
        );
        assert_eq!(state_note(&stored, &document(&changed), "unchanged"), None);

        // Back to the first document: it is another record than the one that was paused.
        let writes = applied(&stored, document(ACME), EpochMs(4));
        take_all(&mut stored, &writes);
        assert_eq!(stored.fold.get("acme").unwrap().state, State::Active);
    }

    #[test]
    fn a_deleted_subscription_leaves_no_record() {
        let mut stored = Stored::default();
        take(&mut stored, b"acme", Some(ACME.as_bytes()), None);
        let known = std::sync::Arc::clone(stored.fold.get("acme").unwrap());
        let gone = Decision::gone(&known, EpochMs(1)).to_json();
        let paused = Decision::by_operator(&known, State::Paused, EpochMs(1)).to_json();
        take(&mut stored, b"disabled/acme", Some(&gone), None);
        take(&mut stored, b"state/acme", Some(&paused), None);
        let keys = |stored: &Stored, id: &str| -> Vec<String> {
            let writes = stored.tombstones(id);
            assert!(
                writes
                    .iter()
                    .all(|write| write.value.is_none() && write.partition == Some(0))
            );
            let keys = writes
                .iter()
                .map(|write| String::from_utf8_lossy(&write.key).into_owned());
            keys.collect()
        };
        assert_eq!(
            keys(&stored, "acme"),
            ["acme", "disabled/acme", "state/acme"]
        );
        assert!(keys(&stored, "globex").is_empty());
        // Records that were never valid.
        take(&mut stored, b"never", Some(b"{}"), None);
        take(&mut stored, b"state/odd", Some(b"5"), None);
        take(&mut stored, b"a \xff", Some(b"5"), None);
        assert_eq!(keys(&stored, "never"), ["never"]);
        assert_eq!(keys(&stored, "odd"), ["state/odd"]);
        assert_eq!(keys(&stored, "a \u{fffd}"), ["a \u{fffd}"]);
        let writes = stored.tombstones("acme");
        take_all(&mut stored, &writes);
        assert!(keys(&stored, "acme").is_empty());
    }

    #[test]
    fn a_changed_subscriber_is_refused_with_the_way_out() {
        let mut stored = Stored::default();
        take(&mut stored, b"acme", Some(ACME.as_bytes()), None);
        assert_eq!(subscriber_change(&stored, &document(ACME)), None);
        let moved = ACME.replace(r#""subscriber":"acme""#, r#""subscriber":"globex""#);
        let error = subscriber_change(&stored, &document(&moved)).unwrap();
        for part in ["acme", "globex", "new id"] {
            assert!(error.contains(part), "{error}");
        }
        take(&mut stored, b"acme", None, None);
        assert_eq!(subscriber_change(&stored, &document(&moved)), None);
    }

    #[test]
    fn what_is_probably_a_mistake_is_reported() {
        let policy = EgressPolicy::new(&crate::config::EgressSettings {
            allow_http: false,
            allow_cidrs: Vec::new(),
            deny_cidrs: Vec::new(),
            ports: vec![443..=443, 8443..=8443],
            ..crate::config::EgressSettings::default()
        });
        let with_url = |url: &str| document(&ACME.replace("https://acme.example/h", url));
        for (url, rule) in [
            ("http://acme.example/h", "--egress-allow-http"),
            ("https://10.0.0.5/x", "--egress-allow-cidr"),
            ("https://acme.example:9443/h", "--egress-ports"),
            ("https://localhost/h", "a name of one label"),
            ("https://169.254.169.254/latest", "link-local"),
            ("https://[::1]/h", "loopback"),
            ("https://[::ffff:10.0.0.5]/h", "private"),
            ("https://0x7f.1/h", "loopback"),
            ("https://acme.example:0/h", "port 0"),
        ] {
            let doubts = with_url(url).doubts(&policy, &SecretRules::default());
            assert_eq!(doubts.len(), 1, "{url}: {doubts:?}");
            assert!(
                doubts[0].starts_with("\"acme\": url: ") && doubts[0].contains(rule),
                "{doubts:?}"
            );
        }
        assert!(
            document(ACME)
                .doubts(&policy, &SecretRules::default())
                .is_empty()
        );
        let filter = r#""filter":{"data.items.0.sku":["a"]},"events""#;
        let doubts =
            document(&ACME.replace("\"events\"", filter)).doubts(&policy, &SecretRules::default());
        assert!(doubts[0].contains("not a position"), "{doubts:?}");
    }

    #[test]
    fn a_url_that_is_used_in_another_form_is_noted_without_its_query() {
        let note = |url: &str| document(&ACME.replace("https://acme.example/h", url)).normal_url();
        assert_eq!(note("https://acme.example/h?token=hush"), None);
        for (typed, expected) in [
            (
                "HTTPS://ACME.example:443/a/../b|c",
                "https://acme.example/b%7Cc",
            ),
            (
                "https://ACME.example/h?token=hush",
                "https://acme.example/h?…",
            ),
            (
                "https://acme.example/h?token=hush|",
                "https://acme.example/h?… (the query is percent-encoded)",
            ),
        ] {
            let expected = format!("\"acme\": the url is used as {expected}");
            assert_eq!(note(typed), Some(expected));
        }
    }
}
