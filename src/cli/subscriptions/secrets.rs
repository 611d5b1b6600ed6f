//! `rotate-secret` and `encrypt`: what changes nothing of a subscription but its secrets, and the encryption at `apply`.
//!
//! A record is written again as a whole. A decision about its state, such as a pause, holds for the new record too: it is
//! written before it, and names both ([`Decision::kept`]).

use std::time::Duration;

use clap::Args;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::Serialize;
use serde_json::{Map, Value};

use super::change::{Change, unknown};
use super::document::{Document, read_record};
use super::select::Selection;
use super::stored::{Stored, Write, write};
use crate::cli::exit::{CliError, Exit};
use crate::cli::print::{self, Output, Row};
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::subscription_log::Freshness;
use crate::edge::small_file::{self, MAX_SECRET_BYTES};
use crate::model::envelope::{Keys, Owner, RANDOM_BYTES, Sealed};
use crate::model::subscription::{self, Decision, SecretSource, Subscription, Version};
use crate::model::units::{EpochMs, parse_duration};

/// The bytes of a new secret.
const SECRET_BYTES: usize = 32;
/// The longest overlap.
const MAX_OVERLAP: Duration = Duration::from_secs(30 * 86_400);

/// `hookstream subscriptions rotate-secret`.
#[derive(Args, Clone, Debug)]
pub struct RotateArgs {
    /// Subscription id
    id: String,
    /// How long the former secrets sign too; 0s removes them at once
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = overlap)]
    overlap: Duration,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// `hookstream subscriptions encrypt`.
#[derive(Args, Clone, Debug)]
pub struct EncryptArgs {
    #[command(flatten)]
    selection: Selection,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

fn overlap(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        overlap if overlap <= MAX_OVERLAP => Ok(overlap),
        _ => Err("must be at most 30days".to_owned()),
    }
}

/// Random bytes of the operating system.
fn random<const N: usize>() -> Result<[u8; N], CliError> {
    let mut bytes = [0; N];
    let filled = SystemRandom::new().fill(&mut bytes);
    filled.map_err(|_| failed("the operating system has no random bytes"))?;
    Ok(bytes)
}

fn failed(message: impl Into<String>) -> CliError {
    CliError::new(Exit::Failure, message.into())
}

/// The keys of `--kek-file`, if it is set.
///
/// # Errors
/// When it cannot be read or holds no keys: then nothing must be written.
pub(super) fn keys(settings: &Settings) -> Result<Option<Keys>, CliError> {
    let Some(path) = &settings.kek_file else {
        return Ok(None);
    };
    let refused = |reason: String| {
        let message = format!(
            "--kek-file {}: {reason}; nothing was written",
            path.display()
        );
        CliError::new(Exit::Usage, message)
    };
    let text = small_file::read_text(path, MAX_SECRET_BYTES);
    let text = text.map_err(|error| refused(error.to_string()))?;
    Keys::read(&text)
        .map(Some)
        .map_err(|error| refused(error.to_string()))
}

/// The document with its literal secrets encrypted, if there are keys.
pub(super) fn encrypted(
    document: Document,
    stored: Option<&[u8]>,
    keys: Option<&Keys>,
) -> Result<Document, CliError> {
    let Some(keys) = keys else {
        return Ok(document);
    };
    let named = |problems: Vec<String>| {
        let id = document.id();
        let each = problems.iter().map(|problem| format!("{id:?}: {problem}"));
        failed(each.collect::<Vec<_>>().join("\n"))
    };
    let mut value = Value::Object(read_record(&document.json)?);
    let mut lacking = Ok(());
    let next = || {
        random::<RANDOM_BYTES>().unwrap_or_else(|error| {
            lacking = Err(error);
            [0; RANDOM_BYTES]
        })
    };
    subscription::seal(&mut value, stored, keys, next).map_err(named)?;
    lacking?;
    parsed(value)
}

fn parsed(value: Value) -> Result<Document, CliError> {
    let json = serde_json::to_vec(&value).map_err(|error| failed(error.to_string()))?;
    Document::parse(None, json).map_err(|error| failed(error.problems().join("\n")))
}

/// A record that is written again: what is written, and the version that is then in force.
struct Rewritten {
    writes: Vec<Write>,
    applied: Version,
}

/// Writes a document again in the place of `known`, in the same state.
fn rewritten(stored: &Stored, known: &Subscription, document: Document, now: EpochMs) -> Rewritten {
    let header = format!("{}-{:08x}", now.0, fastrand::u32(..));
    let applied = Version::of_applied(&document.json, Some(header.as_bytes()));
    let mut writes = Vec::new();
    // In the same partition, before the record.
    if let Some((_, at)) = stored.fold.decided_by(&known.id) {
        let decision = Decision::kept(known, applied.clone(), at);
        writes.push(Write::decision(known, &decision));
    }
    writes.push(Write {
        key: known.id.as_bytes().to_vec(),
        value: Some(document.json),
        applied: Some(header),
        partition: known.source.partition,
    });
    Rewritten { writes, applied }
}

/// A new secret, printed once. No `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize)]
struct Rotated {
    id: String,
    /// The secret: whoever runs the command gives it to the receiver.
    secret: String,
    /// When the former ones stop signing, RFC 3339; null if there are none, or they have stopped.
    former_until: Option<String>,
    /// The key that it is encrypted with; null if it is not.
    key: Option<String>,
}

impl Row for Rotated {
    const HEADINGS: &'static [&'static str] = &["ID", "SECRET", "FORMER SIGN UNTIL"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            self.secret.clone(),
            self.former_until.clone().unwrap_or_default(),
        ]
    }
}

/// Makes a new secret for a subscription.
///
/// Kafka has no compare-and-set, so the topic is read again afterwards: the secret is printed if its record is in force.
pub(super) fn rotate(settings: &Settings, args: &RotateArgs) -> Result<Exit, CliError> {
    let keys = keys(settings)?;
    let stored = Stored::read(settings, Freshness::Latest)?;
    let id = args.id.as_str();
    let (Some(known), Some(before)) = (stored.fold.get(id), stored.document(id)) else {
        return Err(unknown(&[id]));
    };
    refuse_ed25519(known, keys.as_ref())?;
    let now = clock::now();
    let until = now + args.overlap;
    let secret = format!("whsec_{}", base64(&random::<SECRET_BYTES>()?));
    let mut record = read_record(before)?;
    subscription::rotated(&mut record, &secret, until, now)
        .map_err(|problem| failed(format!("{id:?}: {problem}")))?;
    let is_signed_too = has_former(&record);
    let document = encrypted(parsed(Value::Object(record))?, Some(before), keys.as_ref())?;
    let next = rewritten(&stored, known, document, now);
    write(settings, &next.writes)?;
    let after = Stored::read(settings, Freshness::Latest)?;
    let after = after.fold.get(id);
    if after.is_none_or(|after| after.source.applied != next.applied) {
        return Err(failed(format!(
            "{id:?} was changed at the same time, so the new secret is not in force and is not printed; run again when nothing applies it"
        )));
    }
    let former_until = is_signed_too.then(|| until.rfc3339());
    if keys.is_none() {
        print::note(
            "the secret is written as it is, since --kek-file is not set: readers of the topic can sign with it",
        );
    }
    let key = keys.as_ref().and_then(|keys| keys.names().next());
    let row = Rotated {
        id: id.to_owned(),
        secret,
        former_until,
        key: key.map(str::to_owned),
    };
    print::rows(args.output, &[row])?;
    print::note("the secret is not shown again; the receiver needs it now");
    Ok(Exit::Done)
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Whether a record has more than its new secret.
fn has_former(record: &Map<String, Value>) -> bool {
    let secrets = record.get("secrets").and_then(Value::as_array);
    secrets.is_some_and(|secrets| secrets.len() > 1)
}

/// A receiver that verifies ed25519 has no use for an HMAC secret.
fn refuse_ed25519(known: &Subscription, keys: Option<&Keys>) -> Result<(), CliError> {
    let owner = Owner {
        subscriber: &known.subscriber,
        id: &known.id,
    };
    let opened = |sealed: &Sealed| keys?.open(sealed, owner).ok();
    let mut sources = known.secrets.iter().map(|secret| &secret.source);
    let is_asymmetric = sources.any(|source| match source {
        SecretSource::Literal(secret) => secret.expose().starts_with("whsk_"),
        SecretSource::Encrypted(sealed) => {
            opened(sealed).is_some_and(|text| text.starts_with("whsk_"))
        }
        SecretSource::Env(_) | SecretSource::File(_) => false,
    });
    match is_asymmetric {
        false => Ok(()),
        true => Err(failed(format!(
            "{:?} signs with ed25519 (whsk_), and rotate-secret makes secrets for HMAC; put a new whsk_ secret before the old one with `subscriptions apply`",
            known.id
        ))),
    }
}

/// Encrypts the literal secrets of subscriptions, and those under a former key again.
pub(super) fn encrypt(settings: &Settings, args: &EncryptArgs) -> Result<Exit, CliError> {
    let Some(keys) = keys(settings)? else {
        let message = "--kek-file is needed: it holds the key to encrypt with";
        return Err(CliError::new(Exit::Usage, message));
    };
    let stored = Stored::read(settings, Freshness::Latest)?;
    let now = clock::now();
    let (mut writes, mut changes, mut written) = (Vec::new(), Vec::new(), Vec::new());
    let ids = args.selection.ids(&stored)?;
    for id in &ids {
        let (Some(known), Some(before)) = (stored.fold.get(id), stored.document(id)) else {
            continue;
        };
        let document = parsed(Value::Object(read_record(before)?))?;
        let document = encrypted(document, Some(before), Some(&keys))?;
        let is_same = document.equals(before);
        let result = if is_same { "unchanged" } else { "encrypted" };
        if !is_same {
            let next = rewritten(&stored, known, document, now);
            writes.extend(next.writes);
            written.push((id.as_str(), next.applied));
        }
        let id = id.clone();
        changes.push(Change { id, result });
    }
    write(settings, &writes)?;
    if !written.is_empty() {
        let after = Stored::read(settings, Freshness::Latest)?;
        let is_in_force = |id: &str, applied: &Version| {
            let after = after.fold.get(id);
            after.is_some_and(|after| after.source.applied == *applied)
        };
        let lost = written
            .iter()
            .filter(|(id, applied)| !is_in_force(id, applied));
        let lost: Vec<String> = lost.map(|(id, _)| format!("{id:?}")).collect();
        if !lost.is_empty() {
            return Err(failed(format!(
                "{} changed at the same time; run again when nothing applies it",
                lost.join(", ")
            )));
        }
    }
    print::rows(args.output, &changes)?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::subscription::{Change, State, TopicRecord};

    const ACME: &str =
        r#"{"id":"acme","subscriber":"acme","url":"https://acme.example/h","events":["order.*"]}"#;

    fn take(stored: &mut Stored, key: &[u8], value: &[u8], applied: Option<&[u8]>) {
        let record = TopicRecord {
            key: Some(key),
            value: Some(value),
            applied,
            partition: Some(0),
            timestamp: Some(EpochMs(1)),
        };
        let change = stored.fold.take(&record);
        assert!(matches!(change, Change::Updated(_) | Change::Nothing));
        stored.take(&record, &change);
    }

    /// The records that are written, taken as a reader does; the state after each of them.
    fn states(stored: &mut Stored, next: &Rewritten) -> Vec<State> {
        let mut states = Vec::new();
        for write in &next.writes {
            let applied = write.applied.as_deref().map(str::as_bytes);
            take(stored, &write.key, write.value.as_deref().unwrap(), applied);
            states.push(stored.fold.get("acme").unwrap().state);
        }
        states
    }

    #[test]
    fn a_subscription_keeps_its_state_at_every_moment_while_its_secrets_change() {
        for state in [State::Active, State::Paused, State::Disabled] {
            let mut stored = Stored::default();
            // Other than what was decided.
            let own = if state == State::Active {
                "paused"
            } else {
                "active"
            };
            let json = ACME.replace("\"events\"", &format!("\"state\":\"{own}\",\"events\""));
            take(&mut stored, b"acme", json.as_bytes(), None);
            let known = stored.fold.get("acme").unwrap().clone();
            let decision = Decision::by_operator(&known, state, EpochMs(5));
            take(&mut stored, b"state/acme", &decision.to_json(), None);
            for _ in 0..2 {
                let known = stored.fold.get("acme").unwrap().clone();
                let document = Document::parse(None, json.as_bytes().to_vec()).unwrap();
                let next = rewritten(&stored, &known, document, EpochMs(9));
                assert_eq!(states(&mut stored, &next), [state, state]);
                let after = stored.fold.get("acme").unwrap();
                assert_eq!(after.source.applied, next.applied);
                assert_eq!(after.resumed_at(), known.resumed_at());
                assert_eq!(stored.fold.decided_by("acme").unwrap().1, EpochMs(5));
            }
        }
        let mut stored = Stored::default();
        take(&mut stored, b"acme", ACME.as_bytes(), None);
        let known = stored.fold.get("acme").unwrap().clone();
        let document = Document::parse(None, ACME.as_bytes().to_vec()).unwrap();
        let next = rewritten(&stored, &known, document, EpochMs(9));
        assert_eq!(next.writes.len(), 1, "nothing was decided");
    }

    #[test]
    fn a_subscription_that_hookstream_disabled_stays_disabled() {
        let mut stored = Stored::default();
        take(&mut stored, b"acme", ACME.as_bytes(), None);
        let known = stored.fold.get("acme").unwrap().clone();
        let gone = Decision::gone(&known, EpochMs(3));
        take(&mut stored, b"disabled/acme", &gone.to_json(), None);
        let known = stored.fold.get("acme").unwrap().clone();
        assert_eq!(known.state, State::Disabled);
        let document = Document::parse(None, ACME.as_bytes().to_vec()).unwrap();
        let next = rewritten(&stored, &known, document, EpochMs(9));
        assert_eq!(
            states(&mut stored, &next),
            [State::Disabled, State::Disabled]
        );
    }

    #[test]
    fn an_ed25519_subscription_is_refused_encrypted_or_not() {
        let private = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";
        let json = ACME.replace(
            "\"events\"",
            &format!("\"secrets\":[\"{private}\"],\"events\""),
        );
        let document = Document::parse(None, json.into_bytes()).unwrap();
        assert!(refuse_ed25519(&document.parsed, None).is_err());
        let keys = Keys::read(&base64(&[1; 32])).unwrap();
        let sealed = encrypted(document, None, Some(&keys)).unwrap();
        assert!(!String::from_utf8_lossy(&sealed.json).contains("whsk_"));
        assert!(refuse_ed25519(&sealed.parsed, Some(&keys)).is_err());
        let hmac = Document::parse(None, ACME.as_bytes().to_vec()).unwrap();
        assert!(refuse_ed25519(&hmac.parsed, Some(&keys)).is_ok());
    }
}
