//! `subscriptions apply --verify`: endpoints that must consent before they get events.
//!
//! That a subscription needs consent stands in its document, as `verify`. It stays there when the document is applied
//! again without a word about it, so that a changed URL is pending again whoever applies it; `"verify": false` ends it.

use serde_json::Value;

use super::document::{Document, read_record};
use super::stored::Stored;
use crate::cli::exit::{CliError, Exit};
use crate::model::subscription::State;

const FIELD: &str = "verify";

/// The document as it is written: with `verify` where it is `wanted`, or the stored one has it, and this says nothing
/// else.
///
/// # Errors
/// [`CliError`] where it is wanted and the document says that it is not.
pub(super) fn required(
    document: Document,
    before: Option<&[u8]>,
    wanted: bool,
) -> Result<Document, CliError> {
    if document.parsed.verify {
        return Ok(document);
    }
    let mut record = read_record(&document.json)?;
    if record.contains_key(FIELD) {
        if !wanted {
            return Ok(document);
        }
        let message = format!(
            "{:?}: verify: must not be false with --verify or --require-verification",
            document.id()
        );
        return Err(CliError::new(Exit::Failure, message));
    }
    let is_kept = match before {
        Some(before) => read_record(before)?.get(FIELD) == Some(&Value::Bool(true)),
        None => false,
    };
    if !wanted && !is_kept {
        return Ok(document);
    }
    record.insert(FIELD.to_owned(), Value::Bool(true));
    let json = serde_json::to_vec(&record);
    let json = json.map_err(|error| CliError::new(Exit::Failure, error.to_string()))?;
    Document::parse(None, json)
        .map_err(|error| CliError::new(Exit::Failure, error.problems().join("; ")))
}

/// Whether the endpoint of a document will be asked.
pub(super) fn is_asked(stored: &Stored, document: &Document, all: bool) -> bool {
    let parsed = &document.parsed;
    let known = stored.fold.get(&parsed.id);
    let has_consented = known.is_some_and(|known| {
        let last = stored.fold.verification(&known.id);
        last.is_some_and(|last| last.consent(&parsed.url).is_some())
    });
    (parsed.verify || all) && parsed.state == State::Active && !has_consented
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(more: &str) -> Document {
        let json = format!(
            r#"{{"id":"a","subscriber":"a","url":"https://a.example/","events":["**"]{more}}}"#
        );
        Document::parse(None, json.into_bytes()).unwrap()
    }

    fn verify(more: &str, before: Option<&str>, wanted: bool) -> Option<Value> {
        let before = before.map(|more| document(more).json);
        let required = required(document(more), before.as_deref(), wanted).unwrap();
        let record = read_record(&required.json).unwrap();
        assert_eq!(
            required.parsed.verify,
            record.get(FIELD) == Some(&Value::Bool(true)) || more.contains("pending")
        );
        record.get(FIELD).cloned()
    }

    #[test]
    fn consent_that_was_once_needed_is_needed_until_a_document_says_otherwise() {
        let (yes, no) = (Some(Value::Bool(true)), Some(Value::Bool(false)));
        assert_eq!(verify("", None, false), None);
        assert_eq!(verify("", None, true), yes);
        assert_eq!(verify("", Some(r#","verify":true"#), false), yes);
        assert_eq!(verify("", Some(r#","verify":false"#), false), None);
        assert_eq!(verify("", Some(""), false), None);
        assert_eq!(
            verify(r#","verify":false"#, Some(r#","verify":true"#), false),
            no
        );
        assert_eq!(verify(r#","verify":true"#, Some(""), false), yes);
        assert_eq!(verify(r#","state":"paused""#, None, true), yes);
        assert_eq!(
            verify(r#","state":"pending""#, None, true),
            None,
            "it says so"
        );
        let refused = required(document(r#","verify":false"#), None, true);
        assert!(refused.is_err_and(|error| error.message.contains("verify")));
    }
}
