//! The exact body of the request, and the webhook id that identifies it to the receiver.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::model::{Attribute, Event, Form};
use crate::model::command::ContentType;
use crate::model::units::EpochMs;

impl Event<'_> {
    /// The exact body of the request.
    ///
    /// `standard`: `{"type","timestamp","data"}` in this order; the timestamp is the event's time, or the record's
    /// as RFC 3339 in UTC with milliseconds. `cloudevents`: a structured CloudEvent; one that came structured is
    /// passed on byte for byte, others are written with all their attributes. `data` keeps its own bytes.
    #[must_use]
    pub fn body(&self, format: Format) -> Vec<u8> {
        match (format, self.form) {
            (Format::Standard, _) => self.standard_body(),
            (Format::CloudEvents, Form::Structured(text)) => text.as_bytes().to_vec(),
            (Format::CloudEvents, Form::Binary { specversion }) => {
                self.cloudevents_body(specversion)
            }
            (Format::CloudEvents, Form::Plain) => self.cloudevents_body("1.0"),
        }
    }

    fn standard_body(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.raw_data.len() + self.event_type.len() + 96);
        write_member(&mut out, b"{", "type", &self.event_type);
        match self.time() {
            Some(time) => write_member(&mut out, b",", "timestamp", time),
            None => write_member(&mut out, b",", "timestamp", &rfc3339(self.received)),
        }
        self.finish_with_data(out)
    }

    fn cloudevents_body(&self, specversion: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.raw_data.len() + 512);
        write_member(&mut out, b"{", "specversion", specversion);
        for (name, value) in self.attributes() {
            match value {
                Attribute::Text(text) => write_member(&mut out, b",", name, text),
                Attribute::Json(json) => {
                    out.push(b',');
                    write_string(&mut out, name);
                    out.push(b':');
                    out.extend_from_slice(json.to_string().as_bytes());
                }
            }
        }
        self.finish_with_data(out)
    }

    fn finish_with_data(&self, mut out: Vec<u8>) -> Vec<u8> {
        out.extend_from_slice(b",\"data\":");
        out.extend_from_slice(self.raw_data.as_bytes());
        out.push(b'}');
        out
    }
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
/// identity**). It is the first 160 bits of a SHA-256 over the three fields with their lengths, so that no two
/// triples run together; among 10^18 ids the odds of any two being equal are below 10^-12. It holds no `.`, which
/// separates id, timestamp and body in what Standard Webhooks signs.
#[must_use]
pub fn webhook_id(source: &str, event_id: &str, subscription_id: &str) -> String {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    for field in ["hookstream webhook id 1", source, event_id, subscription_id] {
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
