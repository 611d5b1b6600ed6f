//! Secrets by reference, in `secrets` and in the values of headers: `env:NAME` and `file:/absolute/path`.

use std::path::Path;

use http::{HeaderName, HeaderValue};
use serde_json::Value;

use super::source::{HeaderSource, Redacted, SecretSource, SigningSecret};
use crate::model::envelope::{ENCRYPTED, NotEncrypted, Sealed};
use crate::model::signing_key::SigningKey;
use crate::model::units::EpochMs;

/// The longest value of a header, in bytes, also of one that is read from a reference.
pub const MAX_HEADER_BYTES: usize = 4096;

/// A header whose name contains one of these carries a credential.
const CREDENTIAL_WORDS: [&str; 9] = [
    "auth",
    "cookie",
    "token",
    "key",
    "secret",
    "password",
    "passwd",
    "signature",
    "credential",
];

/// The longest text of a secret, in bytes.
const MAX_SECRET_TEXT: usize = 8192;

const SECRET_FORMS: &str = "must be env:NAME, file:/absolute/path, enc:v1:…, whsec_… with 24 to 64 bytes in base64, \
                            or whsk_… with 32 or 64 bytes in base64";
const REFERENCE_FORMS: &str = "looks like a reference, which is env:NAME (A-Z a-z 0-9 _) or file:/absolute/path, alone or \
                               after the scheme, as in \"Bearer env:NAME\"; to send such a text itself, put it into a file";
const NOT_ENCRYPTED: &str = "has a value that begins with enc: and is not enc:v1:KEY:BASE64, as `subscriptions apply` with --kek-file writes it";
const TOO_LONG: &str = "has a value of more than 4096 bytes";
const NOT_A_VALUE: &str = "has a value with characters other than visible ASCII, spaces and tabs";

/// `None` if the text does not begin as a reference does; `Some(None)` if it does and is none.
fn reference(text: &str) -> Option<Option<SecretSource>> {
    if let Some(name) = text.strip_prefix("env:") {
        let mut bytes = name.bytes();
        let is_start = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
        let is_name = bytes.next().is_some_and(is_start)
            && bytes.all(|byte| is_start(byte) || byte.is_ascii_digit());
        return Some(is_name.then(|| SecretSource::Env(name.into())));
    }
    let path = text.strip_prefix("file:")?;
    let is_path = path.starts_with('/') && path.len() > 1 && !path.contains(char::is_control);
    Some(is_path.then(|| SecretSource::File(Path::new(path).into())))
}

/// An encrypted secret; `None` if the text does not begin as one does.
fn encrypted(text: &str) -> Option<Result<SecretSource, NotEncrypted>> {
    let is_one = text.starts_with(ENCRYPTED);
    is_one.then(|| Sealed::read(text).map(|sealed| SecretSource::Encrypted(Box::new(sealed))))
}

/// Reads an item of `secrets`: a text, or an object with the text and the time when it stops signing. No message shows the
/// text.
pub(super) fn signing_secret(item: &Value) -> Result<SigningSecret, Vec<(&'static str, String)>> {
    const FORM: &str = "must be a text, or {\"secret\": TEXT, \"until\": TIME}";
    let (text, until) = match item {
        Value::String(text) => (text, None),
        Value::Object(object) => {
            let Some(Value::String(text)) = object.get("secret") else {
                return Err(vec![("", FORM.to_owned())]);
            };
            let is_known = |name: &&String| !matches!(name.as_str(), "secret" | "until");
            if object.keys().any(|name| is_known(&name)) || !object.contains_key("until") {
                return Err(vec![("", FORM.to_owned())]);
            }
            (text, object.get("until"))
        }
        _ => return Err(vec![("", FORM.to_owned())]),
    };
    let mut problems = Vec::new();
    let until = until.and_then(|until| {
        let time = until.as_str().and_then(|text| text.parse().ok());
        if time.is_none() {
            let problem = "must be a time in RFC 3339, as 2026-11-27T18:00:00Z";
            problems.push((".until", problem.to_owned()));
        }
        time.map(|time: jiff::Timestamp| EpochMs(time.as_millisecond()))
    });
    match secret_source(text) {
        Ok(source) if problems.is_empty() => return Ok(SigningSecret { source, until }),
        Ok(_) => {}
        Err(problem) => problems.push(("", problem)),
    }
    Err(problems)
}

/// Reads the text of a secret. The message never shows it.
fn secret_source(text: &str) -> Result<SecretSource, String> {
    if text.len() > MAX_SECRET_TEXT {
        let length = text.len();
        return Err(format!("is {length} bytes, the limit is {MAX_SECRET_TEXT}"));
    }
    if let Some(read) = encrypted(text) {
        return read.map_err(|error| error.to_string());
    }
    match reference(text) {
        Some(Some(source)) => return Ok(source),
        Some(None) => return Err(SECRET_FORMS.to_owned()),
        None => {}
    }
    // Delivery also accepts the base64 alone and blanks around it, which secret managers and files have. In a record the
    // prefix says that the text is meant to be a secret.
    let is_secret = text.starts_with("wh") && text.contains('_') && text.trim() == text;
    if !is_secret {
        return Err(SECRET_FORMS.to_owned());
    }
    SigningKey::check(text).map_err(|error| error.to_string())?;
    Ok(SecretSource::Literal(Redacted::new(text)))
}

/// Reads a credential of `auth`, which is never a literal.
pub(super) fn credential(text: &str) -> Result<SecretSource, &'static str> {
    const FORMS: &str = "must be env:NAME (A-Z a-z 0-9 _) or file:/absolute/path; the record must not hold the secret itself";
    reference(text).flatten().ok_or(FORMS)
}

/// Reads the value of a header. The message never shows it.
///
/// A reference is the whole value, or follows `Bearer `; in `authorization` it may follow any scheme.
pub(super) fn header_source(name: &HeaderName, value: &str) -> Result<HeaderSource, &'static str> {
    let (prefix, rest) = match value.trim().split_once([' ', '\t']) {
        Some((scheme, rest)) if is_scheme(name, scheme) => {
            (format!("{scheme} "), rest.trim_start())
        }
        _ => (String::new(), value.trim()),
    };
    let found = match encrypted(rest) {
        Some(read) => Some(Some(read.map_err(|_| NOT_ENCRYPTED)?)),
        None => reference(rest),
    };
    match found {
        Some(Some(source)) => Ok(HeaderSource::Reference {
            prefix: prefix.into(),
            source,
        }),
        Some(None) => Err(REFERENCE_FORMS),
        None if value.len() > MAX_HEADER_BYTES => Err(TOO_LONG),
        None => {
            let mut value = header_value(value)?;
            value.set_sensitive(is_credential(name.as_str()));
            Ok(HeaderSource::Literal(value))
        }
    }
}

fn is_scheme(name: &HeaderName, word: &str) -> bool {
    word.eq_ignore_ascii_case("bearer")
        || name == http::header::AUTHORIZATION && reference(word).is_none()
}

fn header_value(value: &str) -> Result<HeaderValue, &'static str> {
    HeaderValue::try_from(value)
        .ok()
        .filter(|value| value.as_bytes().is_ascii())
        .ok_or(NOT_A_VALUE)
}

impl HeaderSource {
    /// The reference that its value is read from.
    #[must_use]
    pub fn reference(&self) -> Option<&SecretSource> {
        match self {
            Self::Literal(_) => None,
            Self::Reference { source, .. } => Some(source),
        }
    }

    /// The value of the header; `secret` is what the reference leads to, if there is one.
    ///
    /// # Errors
    /// One sentence that names the source and never shows the secret.
    pub fn value(&self, secret: Option<&str>) -> Result<HeaderValue, String> {
        let (prefix, source) = match self {
            Self::Literal(value) => return Ok(value.clone()),
            Self::Reference { prefix, source } => (prefix, source),
        };
        let secret = secret.unwrap_or_default().trim();
        let refuse = |problem: &str| format!("the secret at {source} {problem}");
        if secret.is_empty() {
            return Err(refuse("is empty"));
        }
        credential_value(&format!("{prefix}{secret}"), refuse)
    }
}

/// The value of a header that carries a credential. `refuse` makes the error of a problem.
pub(super) fn credential_value(
    text: &str,
    refuse: impl Fn(&str) -> String,
) -> Result<HeaderValue, String> {
    if text.len() > MAX_HEADER_BYTES {
        return Err(refuse(&format!(
            "makes a value of {} bytes, the limit is {MAX_HEADER_BYTES}",
            text.len()
        )));
    }
    let mut value = header_value(text).map_err(refuse)?;
    value.set_sensitive(true);
    Ok(value)
}

/// Whether a header carries a credential, by its name in lower case.
pub(super) fn is_credential(name: &str) -> bool {
    CREDENTIAL_WORDS.iter().any(|word| name.contains(word))
}

/// Whether the value of a header is a reference, which may be shown.
pub(super) fn is_reference(name: &str, value: &str) -> bool {
    header_reference(name, value).is_some()
}

/// The reference in the value of a header.
pub(super) fn header_reference(name: &str, value: &str) -> Option<SecretSource> {
    let name = HeaderName::try_from(name).ok()?;
    header_source(&name, value).ok()?.reference().cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str, value: &str) -> Result<HeaderSource, &'static str> {
        header_source(&HeaderName::try_from(name).unwrap(), value)
    }

    fn read(name: &str, value: &str, secret: &str) -> String {
        let value = source(name, value).unwrap().value(Some(secret)).unwrap();
        assert!(value.is_sensitive(), "{name}");
        value.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_reference_is_the_whole_value_or_follows_the_scheme() {
        for (name, value, expected) in [
            ("x-api-key", "env:ACME_TOKEN", "hush"),
            ("x-api-key", "file:/run/secrets/acme", "hush"),
            ("authorization", "Bearer env:ACME_TOKEN", "Bearer hush"),
            ("authorization", "bearer  file:/run/a b", "bearer hush"),
            ("authorization", "Bearer\tenv:A", "Bearer hush"),
            ("authorization", "Basic env:_A1", "Basic hush"),
            ("x-forward-auth", "Bearer env:A", "Bearer hush"),
        ] {
            assert_eq!(read(name, value, " hush\n"), expected, "{value}");
        }
    }

    #[test]
    fn other_texts_are_sent_as_they_are() {
        for (name, value) in [
            ("x-tenant", "acme"),
            ("x-note", "see env:PROD"),
            ("x-note", "Token env:PROD"),
            ("authorization", "Bearer eyJhbGciOi"),
            ("x-envelope", "environment:PROD"),
        ] {
            let HeaderSource::Literal(literal) = source(name, value).unwrap() else {
                panic!("{value} is a literal");
            };
            assert_eq!(literal, value);
        }
    }

    #[test]
    fn what_begins_as_a_reference_and_is_none_is_refused() {
        for (name, value) in [
            ("x-a", "env:"),
            ("x-a", "env:ACME-TOKEN"),
            ("x-a", "env:1A"),
            ("x-a", "env: ACME"),
            ("x-a", "file:secret"),
            ("x-a", "file:/"),
            ("authorization", "env: ACME"),
            ("authorization", "env:ACME TOKEN"),
            ("authorization", "Bearer env:A B"),
            ("authorization", "Token file:relative"),
        ] {
            let error = source(name, value).unwrap_err();
            assert!(error.contains("env:NAME"), "{value}: {error}");
        }
    }

    #[test]
    fn a_secret_that_no_header_can_carry_is_named_by_its_source_only() {
        let source = source("authorization", "Bearer env:TOKEN").unwrap();
        for (secret, problem) in [
            ("hush\nhush", "visible ASCII"),
            ("hüsh", "visible ASCII"),
            ("  ", "is empty"),
            (&"hush".repeat(2000), "the limit is 4096"),
        ] {
            let error = source.value(Some(secret)).unwrap_err();
            assert!(
                error.contains("env:TOKEN") && error.contains(problem),
                "{error}"
            );
            assert!(!error.contains("hush"), "{error}");
        }
    }
}
