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
    /// The producer's bytes of `data`.
    pub(super) raw_data: &'a str,
    pub(super) data: Value,
    /// CloudEvents attributes beside the fields above: `datacontenttype`, `dataschema` and extensions; by name.
    pub(super) extensions: Vec<(Cow<'a, str>, Value)>,
    pub(super) form: Form<'a>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Form<'a> {
    Plain,
    /// The whole text: it is a structured CloudEvent already.
    Structured(&'a str),
    Binary {
        specversion: &'a str,
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

    /// Parsed, for filters; `null` when the event has none.
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
