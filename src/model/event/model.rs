//! The event itself, and what filters and the body read of it.

use std::borrow::Cow;

use serde_json::Value;

use crate::model::units::EpochMs;

/// A valid event, borrowed from its record.
#[derive(Clone, Debug)]
pub struct Event<'a> {
    pub(super) id: Cow<'a, str>,
    pub(super) source: Cow<'a, str>,
    pub(super) event_type: Cow<'a, str>,
    pub(super) time: Option<Cow<'a, str>>,
    pub(super) subject: Option<Cow<'a, str>>,
    pub(super) traceparent: Option<Cow<'a, str>>,
    pub(super) received: EpochMs,
    pub(super) payload: Payload<'a>,
    /// The payload for filters; `null` when there is none, and for bytes.
    pub(super) data: Value,
    /// CloudEvents attributes beside the fields above: `datacontenttype`, `dataschema` and extensions; by name.
    pub(super) extensions: Vec<(Cow<'a, str>, Value)>,
    pub(super) form: Form<'a>,
    /// Whether it came with a `subject` of no characters, which CloudEvents does not allow.
    pub(super) empty_subject: bool,
}

/// What an event carries, as it is written into bodies.
#[derive(Clone, Debug)]
pub(super) enum Payload<'a> {
    /// Nothing: the value of a CloudEvent in binary mode, or the data of a structured one, is absent.
    Absent,
    /// JSON, in the producer's own bytes.
    Json(Cow<'a, str>),
    /// Text that is not JSON, as a JSON string.
    Text(String),
    /// Other bytes, in base64.
    Base64(Cow<'a, str>),
}

#[derive(Clone, Debug)]
pub(super) enum Form<'a> {
    Plain,
    /// The whole text: it is a structured CloudEvent that any SDK accepts.
    Verbatim(&'a str),
    /// A CloudEvent in binary mode, or a structured one with attributes that must be left out.
    CloudEvent {
        specversion: Cow<'a, str>,
    },
}

/// The value of an attribute, for filters.
#[derive(Clone, Copy, Debug)]
pub enum Attribute<'e> {
    /// A string.
    Text(&'e str),
    /// An extension in its JSON type.
    Json(&'e Value),
}

/// Whether an attribute can be part of a CloudEvent: a name of lower-case letters and digits, a string, a boolean or a
/// 32-bit integer (CloudEvents 1.0.2, "Naming Conventions" and "Type System").
pub(super) fn is_sendable(name: &str, value: &Value) -> bool {
    let is_name = !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let is_value = match value {
        Value::Bool(_) => true,
        Value::Number(number) => number
            .as_i64()
            .is_some_and(|number| i32::try_from(number).is_ok()),
        // These two must not be empty.
        Value::String(text) => {
            !text.is_empty() || !matches!(name, "datacontenttype" | "dataschema")
        }
        _ => false,
    };
    is_name && is_value
}

impl Event<'_> {
    /// Unique within the source; 1 to 1,024 bytes, no control characters.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// CloudEvents' `source`, or the topic of a plain event.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// What type patterns match; 1 to 1,024 bytes, no control characters.
    #[must_use]
    pub fn event_type(&self) -> &str {
        &self.event_type
    }

    /// When its record was written.
    #[must_use]
    pub fn received(&self) -> EpochMs {
        self.received
    }

    /// RFC 3339, as it came.
    #[must_use]
    pub fn time(&self) -> Option<&str> {
        self.time.as_deref()
    }

    /// What the event is about, as in an order's id; never empty.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }

    /// W3C trace context: of the CloudEvents extension, else of the record's header.
    #[must_use]
    pub fn traceparent(&self) -> Option<&str> {
        self.traceparent.as_deref()
    }

    /// Parsed, for filters: text that is not JSON is a string; `null` when the event has none, and for bytes.
    #[must_use]
    pub fn data(&self) -> &Value {
        &self.data
    }

    /// A CloudEvents attribute or extension by name, for filters; all but `specversion`.
    #[must_use]
    pub fn attribute(&self, name: &str) -> Option<Attribute<'_>> {
        self.attributes()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value)
    }

    /// The number of attributes that a body in CloudEvents format leaves out: their names or types are not those of
    /// the specification, and an SDK would refuse the whole webhook.
    #[must_use]
    pub fn left_out(&self) -> usize {
        let extensions = self.extensions.iter();
        extensions
            .filter(|(name, value)| !is_sendable(name, value))
            .count()
            + usize::from(self.empty_subject)
    }

    /// All that [`Event::attribute`] knows; each name once.
    pub fn attributes(&self) -> impl Iterator<Item = (&str, Attribute<'_>)> {
        let own = [
            ("id", Some(self.id())),
            ("source", Some(self.source())),
            ("type", Some(self.event_type())),
            ("time", self.time()),
            ("subject", self.subject()),
        ];
        let own = own
            .into_iter()
            .filter_map(|(name, value)| value.map(|text| (name, Attribute::Text(text))));
        own.chain(
            self.extensions
                .iter()
                .map(|(name, value)| (&**name, Attribute::Json(value))),
        )
    }
}
