//! Literal secrets in a document that is shown and applied again: each prints as a fingerprint, `keep:…`, which `apply`
//! replaces by the stored secret that has it. Pure.

use serde_json::Value;

use super::record::{SubscriptionError, read_object};
use super::reference::{header_reference, is_credential};
use super::source::SecretSource;
use super::version::digest;
use crate::model::envelope::ENCRYPTED;

/// The beginning of a fingerprint.
const KEEP: &str = "keep:";
/// Hexadecimal digits of a fingerprint: enough to tell the secrets of one subscription apart, and too few to guess from.
const DIGITS: usize = 12;

fn fingerprint(secret: &str) -> String {
    let digest = digest(secret.as_bytes(), None);
    format!("{KEEP}{}", digest.get(..DIGITS).unwrap_or(&digest))
}

/// Whether a text is a fingerprint.
fn is_kept(text: &str) -> bool {
    text.starts_with(KEEP)
}

/// Calls `each` with the path and the text of all values that may be literal secrets.
fn each_secret(document: &mut Value, mut each: impl FnMut(&str, &mut String)) {
    each_in_record(document, |field, kind, text| {
        if kind == Kind::Literal {
            each(field, text);
        }
    });
}

/// How a record holds a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// As it is.
    Literal,
    /// Encrypted; of a header, perhaps behind a scheme.
    Encrypted,
}

/// Calls `each` with the path and the text of all values that may be secrets in the record itself.
pub(super) fn each_in_record(document: &mut Value, mut each: impl FnMut(&str, Kind, &mut String)) {
    if let Some(Value::Array(secrets)) = document.get_mut("secrets") {
        for (at, secret) in secrets.iter_mut().enumerate() {
            let text = match secret {
                Value::Object(secret) => secret.get_mut("secret"),
                text => Some(text),
            };
            if let Some(Value::String(text)) = text {
                let is_reference = text.starts_with("env:") || text.starts_with("file:");
                let kind = match text.starts_with(ENCRYPTED) {
                    true => Kind::Encrypted,
                    false => Kind::Literal,
                };
                if !is_reference {
                    each(&format!("secrets.{at}"), kind, text);
                }
            }
        }
    }
    if let Some(Value::Object(headers)) = document.get_mut("headers") {
        for (name, value) in headers {
            if let Value::String(text) = value {
                let kind = match header_reference(name, text) {
                    Some(SecretSource::Encrypted(_)) => Kind::Encrypted,
                    Some(_) => continue,
                    None if is_credential(&name.to_ascii_lowercase()) => Kind::Literal,
                    None => continue,
                };
                each(&format!("headers.{name}"), kind, text);
            }
        }
    }
}

/// The stored document with fingerprints in the place of literal secrets, for `show -o yaml`.
///
/// # Errors
/// When the value is not a JSON object.
pub fn fingerprinted(stored: &[u8]) -> Result<Value, SubscriptionError> {
    let mut document = Value::Object(read_object(stored)?);
    each_secret(&mut document, |_, text| *text = fingerprint(text));
    Ok(document)
}

/// Whether a document has fingerprints, which [`keep`] must replace.
#[must_use]
pub fn has_fingerprints(document: &Value) -> bool {
    let mut any = false;
    let mut copy = document.clone();
    each_secret(&mut copy, |_, text| any |= is_kept(text));
    any
}

/// Replaces the fingerprints of a document by the secrets of the stored one.
///
/// # Errors
/// The fingerprints that no secret of the stored document has, each with its field.
pub fn keep(document: &mut Value, stored: Option<&[u8]>) -> Result<(), Vec<String>> {
    let mut secrets: Vec<String> = Vec::new();
    if let Some(Ok(stored)) = stored.map(read_object) {
        each_secret(&mut Value::Object(stored), |_, text| {
            secrets.push(text.clone())
        });
    }
    let mut unknown = Vec::new();
    each_secret(document, |field, text| {
        if !is_kept(text) {
            return;
        }
        match secrets.iter().find(|secret| fingerprint(secret) == *text) {
            Some(secret) => text.clone_from(secret),
            None => unknown.push(format!(
                "{field}: {text} is the fingerprint of a secret that the stored subscription does not have; write the secret, or env:NAME or file:PATH"
            )),
        }
    });
    if unknown.is_empty() {
        Ok(())
    } else {
        Err(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn stored() -> Value {
        json!({
            "id": "a", "secrets": ["env:NEW", SECRET, "file:/s/old"],
            "headers": {"authorization": "Bearer hunter2", "x-token": "env:TOKEN", "x-tenant": "acme"},
        })
    }

    #[test]
    fn what_is_shown_has_no_literal_secret_and_can_be_applied_again() {
        let bytes = stored().to_string().into_bytes();
        let shown = fingerprinted(&bytes).unwrap();
        let text = shown.to_string();
        assert!(
            !text.contains("MfKQ9r8") && !text.contains("hunter2"),
            "{text}"
        );
        for kept in ["env:NEW", "file:/s/old", "env:TOKEN", "acme", "keep:"] {
            assert!(text.contains(kept), "{kept} is missing in {text}");
        }
        assert!(has_fingerprints(&shown) && !has_fingerprints(&stored()));
        let mut again = shown.clone();
        keep(&mut again, Some(&bytes)).unwrap();
        assert_eq!(again, stored());
    }

    #[test]
    fn a_fingerprint_of_another_secret_is_refused_with_its_field() {
        let bytes = stored().to_string().into_bytes();
        let mut other = json!({"secrets": ["keep:000000000000"], "headers": {"x-api-key": "keep:1", "x-tenant": "keep:1"}});
        let errors = keep(&mut other, Some(&bytes)).unwrap_err();
        assert_eq!(errors.len(), 2);
        assert!(
            errors[0].starts_with("secrets.0: keep:000000000000"),
            "{errors:?}"
        );
        assert!(errors[1].starts_with("headers.x-api-key: "), "{errors:?}");
        let mut shown = fingerprinted(&bytes).unwrap();
        assert!(keep(&mut shown, None).is_err(), "nothing is stored");
    }
}
