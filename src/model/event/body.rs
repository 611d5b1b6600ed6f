//! The exact body of the request, and the webhook id that identifies it to the receiver.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::model::{Attribute, Event, Form, Payload, is_sendable};
use crate::model::command::ContentType;
use crate::model::units::EpochMs;

impl Event<'_> {
    /// The exact body of the request.
    ///
    /// `standard`: `{"type","timestamp","data"}` in this order; the timestamp is the event's time, or the record's
    /// as RFC 3339 in UTC with milliseconds. `cloudevents`: a structured CloudEvent; one that came structured is
    /// passed on byte for byte, others are written with all their attributes, except those that CloudEvents does not
    /// allow ([`Event::left_out`]). JSON data keeps its own bytes, other text is a JSON string, and other bytes are
    /// `data_base64` (CloudEvents JSON format, section 3.1).
    #[must_use]
    pub fn body(&self, format: Format) -> Vec<u8> {
        match (format, &self.form) {
            (Format::Standard, _) => self.standard_body(),
            (Format::CloudEvents, Form::Verbatim(text)) => text.as_bytes().to_vec(),
            (Format::CloudEvents, Form::CloudEvent { specversion }) => {
                self.cloudevents_body(specversion)
            }
            (Format::CloudEvents, Form::Plain) => self.cloudevents_body("1.0"),
        }
    }

    /// Identifies the webhook of this event for a subscription: see [`webhook_id`] and [`plain_webhook_id`].
    #[must_use]
    pub fn webhook_id(&self, subscription_id: &str) -> String {
        match self.form {
            Form::Plain => {
                plain_webhook_id(self.source(), self.event_type(), self.id(), subscription_id)
            }
            Form::Verbatim(_) | Form::CloudEvent { .. } => {
                webhook_id(self.source(), self.id(), subscription_id)
            }
        }
    }

    /// What the webhook ids of the event are made of, beside the subscription: the type, which is empty for a CloudEvent,
    /// the source and the id.
    #[must_use]
    pub fn identity(&self) -> (&str, &str, &str) {
        let event_type = match self.form {
            Form::Plain => self.event_type(),
            Form::Verbatim(_) | Form::CloudEvent { .. } => "",
        };
        (event_type, self.source(), self.id())
    }

    fn standard_body(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.payload.len() + self.event_type.len() + 96);
        write_member(&mut out, b"{", "type", &self.event_type);
        match self.time() {
            Some(time) => write_member(&mut out, b",", "timestamp", time),
            None => write_member(&mut out, b",", "timestamp", &rfc3339(self.received)),
        }
        match self.payload {
            Payload::Absent => out.extend_from_slice(b",\"data\":null"),
            _ => self.write_payload(&mut out),
        }
        out.push(b'}');
        out
    }

    fn cloudevents_body(&self, specversion: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.payload.len() + 512);
        write_member(&mut out, b"{", "specversion", specversion);
        for (name, value) in self.attributes() {
            match value {
                Attribute::Text(text) => write_member(&mut out, b",", name, text),
                Attribute::Json(json) if !is_sendable(name, json) => {}
                Attribute::Json(json) => {
                    out.push(b',');
                    write_string(&mut out, name);
                    out.push(b':');
                    out.extend_from_slice(json.to_string().as_bytes());
                }
            }
        }
        self.write_payload(&mut out);
        out.push(b'}');
        out
    }

    fn write_payload(&self, out: &mut Vec<u8>) {
        match &self.payload {
            Payload::Absent => {}
            Payload::Json(json) => write_json(out, "data", json),
            Payload::Text(string) => write_json(out, "data", string),
            Payload::Base64(text) => write_member(out, b",", "data_base64", text),
        }
    }
}

impl Payload<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Absent => 0,
            Self::Json(json) => json.len(),
            Self::Text(json) => json.len(),
            Self::Base64(text) => text.len(),
        }
    }
}

fn write_json(out: &mut Vec<u8>, name: &str, json: &str) {
    out.push(b',');
    write_string(out, name);
    out.push(b':');
    out.extend_from_slice(json.as_bytes());
}

fn write_member(out: &mut Vec<u8>, before: &[u8], name: &str, value: &str) {
    out.extend_from_slice(before);
    write_string(out, name);
    out.push(b':');
    write_string(out, value);
}

/// JSON's escapes: the quote, the backslash and control characters; everything else is itself.
fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let plain = text
        .bytes()
        .all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\');
    if plain {
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        out.extend_from_slice(&Value::from(text).to_string().as_bytes()[1..]);
    }
}

/// RFC 3339 in UTC with milliseconds; a time beyond the years that it can write is the nearest one that it can.
#[must_use]
pub fn rfc3339(time: EpochMs) -> String {
    const YEAR_0: i64 = -62_167_219_200_000;
    let timestamp =
        jiff::Timestamp::from_millisecond(time.0.max(YEAR_0)).unwrap_or(jiff::Timestamp::MAX);
    jiff::fmt::temporal::DateTimePrinter::new()
        .precision(Some(3))
        .timestamp_to_string(&timestamp)
}

/// The webhook id of an event for a subscription: `msg_` and 27 characters of URL-safe base64.
///
/// Deterministic, so that a duplicate event, a crash or a replay gives the receiver the same id (**Stable
/// identity**). It is the first 160 bits of a SHA-256 over the fields with their lengths, so that no two sets of fields
/// run together; among 10^18 ids the odds of any two being equal are below 10^-12. It holds no `.`, which separates id,
/// timestamp and body in what Standard Webhooks signs.
///
/// This is the id of a CloudEvent, which its source and id identify; [`plain_webhook_id`] is that of a plain event.
#[must_use]
pub fn webhook_id(source: &str, event_id: &str, subscription_id: &str) -> String {
    hashed(&["hookstream webhook id 1", source, event_id, subscription_id])
}

/// As [`webhook_id`], for a plain event: its type counts too. Publishers often use the id of the entity, which is the
/// same in `order.created` and `order.paid`.
#[must_use]
pub fn plain_webhook_id(
    topic: &str,
    event_type: &str,
    event_id: &str,
    subscription_id: &str,
) -> String {
    hashed(&[
        "hookstream webhook id 2",
        topic,
        event_type,
        event_id,
        subscription_id,
    ])
}

fn hashed(fields: &[&str]) -> String {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    for field in fields {
        hash.update(&(field.len() as u64).to_be_bytes());
        hash.update(field.as_bytes());
    }
    let mut id = String::with_capacity(31);
    id.push_str("msg_");
    URL_SAFE_NO_PAD.encode_string(&hash.finish().as_ref()[..20], &mut id);
    id
}

/// The form of the body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `{"type","timestamp","data"}`.
    #[default]
    Standard,
    /// A structured CloudEvent.
    CloudEvents,
}

impl Format {
    /// The content type of a body in this form.
    #[must_use]
    pub fn content_type(self) -> ContentType {
        match self {
            Self::Standard => ContentType::Json,
            Self::CloudEvents => ContentType::CloudEvents,
        }
    }
}
