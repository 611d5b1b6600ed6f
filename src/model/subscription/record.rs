//! The record of a subscription as JSON: parsing and redaction.

use serde_json::{Map, Value};

use super::auth::redact;
use super::json::StrictValue;
use super::reference::{credential, is_credential, is_reference};
use crate::model::envelope::ENCRYPTED;

/// The maximum size of a record, in bytes: every replica's subscription cache holds all of them in memory.
pub const MAX_RECORD_BYTES: usize = 256 * 1024;

/// Why a record is not a valid subscription.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubscriptionError {
    /// Over [`MAX_RECORD_BYTES`].
    #[error("the subscription is {0} bytes, the limit is {MAX_RECORD_BYTES} bytes")]
    TooLarge(usize),
    /// Not a JSON object; with the parser's reason and position, never with the text.
    #[error("the subscription is not a JSON object: {0}")]
    NotJson(String),
    /// The problems; each names its field.
    #[error("the subscription is invalid: {}", .0.join("; "))]
    Invalid(Vec<String>),
    /// Its subscriber differs from that of the record in force. Pending commands are keyed by the subscriber, so limits
    /// and order would not hold across a change.
    #[error(
        "subscriber: must not change from {from:?} to {to:?}, since pending commands are keyed by it; create a subscription with a new id instead"
    )]
    SubscriberChanged {
        /// The subscriber in force.
        from: Box<str>,
        /// The subscriber of the record.
        to: Box<str>,
    },
    /// Its id and that of another subscription have one hash, by which fan-out orders commands.
    #[error(
        "id: it has the same 64-bit hash as the id {0:?} of another subscription, so that copies of their commands could not be told apart; choose another id"
    )]
    SameHash(Box<str>),
}

impl SubscriptionError {
    /// The individual problems, for lists.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        match self {
            Self::Invalid(problems) => problems.clone(),
            other => vec![other.to_string()],
        }
    }
}

/// The record as `list` and `show` print it: literal secrets and the values of headers that carry credentials are
/// redacted; everything else, references and query strings included, is as stored.
///
/// # Errors
/// When the value is not a JSON object.
pub fn redacted(value: &[u8]) -> Result<Value, SubscriptionError> {
    let mut record = read_object(value)?;
    if let Some(Value::Array(secrets)) = record.get_mut("secrets") {
        for secret in secrets {
            let text = match secret {
                Value::Object(secret) => secret.entry("secret").or_insert(Value::Null),
                text => text,
            };
            *text = Value::from(redacted_secret(text.as_str().unwrap_or_default()));
        }
    }
    if let Some(Value::Object(headers)) = record.get_mut("headers") {
        for (name, value) in headers {
            let text = value.as_str().unwrap_or_default();
            if is_credential(&name.to_ascii_lowercase()) && !is_reference(name, text) {
                *value = Value::from("(redacted)");
            }
        }
    }
    if let Some(auth) = record.get_mut("auth") {
        redact(auth);
    }
    for field in ["tls_ca", "client_certificate", "client_key"] {
        if let Some(value) = record.get_mut(field)
            && value.as_str().is_none_or(|text| credential(text).is_err())
        {
            *value = Value::from("(redacted)");
        }
    }
    Ok(Value::Object(record))
}

fn redacted_secret(secret: &str) -> String {
    let kept = |prefix: &str| secret.starts_with(prefix);
    match () {
        () if kept("env:") || kept("file:") || kept(ENCRYPTED) => secret.to_owned(),
        () if kept("whsk_") => "whsk_…(redacted)".to_owned(),
        () => "whsec_…(redacted)".to_owned(),
    }
}

pub(super) fn read_object(value: &[u8]) -> Result<Map<String, Value>, SubscriptionError> {
    if value.len() > MAX_RECORD_BYTES {
        return Err(SubscriptionError::TooLarge(value.len()));
    }
    match serde_json::from_slice(value) {
        Ok(StrictValue(Value::Object(record))) => Ok(record),
        Ok(_) => Err(SubscriptionError::NotJson(
            "it is another kind of value".to_owned(),
        )),
        Err(error) => Err(SubscriptionError::NotJson(error.to_string())),
    }
}
