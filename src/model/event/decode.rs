//! Reads an event from a Kafka record, in whichever form it has.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;

use super::attributes::{check_specversion, checked_subject, checked_time, required};
use super::data::{self, Media};
use super::error::InvalidEvent;
use super::framing;
use super::json::{Members, parse_attribute, parse_data, parse_members, string};
use super::model::{Event, Form, Payload, is_sendable};
use crate::model::trace_context::TraceContext;
use crate::model::units::EpochMs;

/// The prefix of attributes in the Kafka binding.
pub(super) const KAFKA_PREFIX: &str = "ce_";
/// That of the HTTP binding.
pub(super) const HTTP_PREFIX: &str = "ce-";
const CLOUDEVENTS_PREFIX: &str = "application/cloudevents";
const BATCH_PREFIX: &str = "application/cloudevents-batch";

/// A record of an event topic, as far as reading needs it.
#[derive(Clone, Copy, Debug)]
pub struct RawEvent<'a> {
    /// The topic that it was read from: the source of a plain event.
    pub topic: &'a str,
    /// The record's key.
    pub key: Option<&'a [u8]>,
    /// The record's value; `None` is a tombstone.
    pub payload: Option<&'a [u8]>,
    /// The record's headers, in order; without those whose value is null, which are attributes that are not set.
    pub headers: &'a [(&'a str, &'a [u8])],
    /// The record's timestamp: the time of an event that has none.
    pub timestamp: EpochMs,
}

/// Reads an event. Deterministic; `max_bytes` bounds the value, with the `ce_*` headers in binary mode.
///
/// A member that is `null` counts as absent, and so does an empty `subject`: neither has a value to match.
///
/// # Errors
/// What makes the record unreadable, in one sentence.
pub fn read<'a>(raw: &RawEvent<'a>, max_bytes: usize) -> Result<Event<'a>, InvalidEvent> {
    read_in_any_form(raw, max_bytes).map_err(InvalidEvent::brief)
}

fn read_in_any_form<'a>(raw: &RawEvent<'a>, max_bytes: usize) -> Result<Event<'a>, InvalidEvent> {
    let content_type = content_type(raw.headers);
    let structured = match &content_type {
        Some(media) => is_structured(&media.essence)?,
        None => false,
    };
    let payload = raw.payload.unwrap_or_default();
    check_size(payload.len(), max_bytes)?;
    let event = if !structured && is_binary(raw.headers, &[KAFKA_PREFIX]) {
        read_binary(raw, content_type, max_bytes, &[KAFKA_PREFIX])
    } else if payload.is_empty() {
        return Err(InvalidEvent::NoValue);
    } else {
        read_json(raw, payload, structured)
    };
    event.map_err(|error| match error {
        InvalidEvent::NotUtf8 { .. } | InvalidEvent::NotJson { .. } | InvalidEvent::Missing(_) => {
            framing::explain(error, payload, raw.headers)
        }
        error => error,
    })
}

fn read_json<'a>(
    raw: &RawEvent<'a>,
    payload: &'a [u8],
    structured: bool,
) -> Result<Event<'a>, InvalidEvent> {
    let text = std::str::from_utf8(payload).map_err(|error| InvalidEvent::NotUtf8 {
        at: error.valid_up_to(),
    })?;
    let members = parse_members(text);
    if structured {
        return read_structured(raw, text, members?, AsItCame::Yes);
    }
    match (members, foreign_attribute(raw.headers)) {
        (Ok(members), _) if members.contains_key("specversion") => {
            read_structured(raw, text, members, AsItCame::Yes)
        }
        (_, Some(name)) => Err(InvalidEvent::ForeignPrefix(name.to_owned())),
        (members, None) => read_plain(raw, text, &members?),
    }
}

/// The attributes that every CloudEvent has.
const REQUIRED: [&str; 4] = ["specversion", "id", "source", "type"];

/// Whether a header carries an attribute that every CloudEvent in binary mode has, with one of the prefixes.
pub(super) fn is_binary(headers: &[(&str, &[u8])], prefixes: &[&str]) -> bool {
    let is_required = |attribute: &str| REQUIRED.contains(&attribute);
    headers
        .iter()
        .any(|(name, _)| without_prefix(name, prefixes).is_some_and(is_required))
}

fn without_prefix<'a>(name: &'a str, prefixes: &[&str]) -> Option<&'a str> {
    prefixes.iter().find_map(|prefix| name.strip_prefix(prefix))
}

/// A header with a required attribute in the spelling of another binding: `ce-id` (HTTP), `cloudEvents:id` (AMQP), `CE_ID`.
fn foreign_attribute<'a>(headers: &[(&'a str, &[u8])]) -> Option<&'a str> {
    let is_foreign = |name: &str| {
        let lower = name.to_ascii_lowercase();
        let prefixes = ["ce_", "ce-", "cloudevents_", "cloudevents:", "cloudevents-"];
        prefixes
            .iter()
            .filter_map(|prefix| lower.strip_prefix(prefix))
            .any(|attribute| REQUIRED.contains(&attribute))
    };
    let mut names = headers.iter().map(|(name, _)| *name);
    names.find(|name| is_foreign(name))
}

pub(super) fn check_size(size: usize, limit: usize) -> Result<(), InvalidEvent> {
    if size > limit {
        Err(InvalidEvent::TooLarge { size, limit })
    } else {
        Ok(())
    }
}

fn content_type(headers: &[(&str, &[u8])]) -> Option<Media> {
    let (_, value) = headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("content-type"))?;
    Media::parse(&String::from_utf8_lossy(value))
}

pub(super) fn is_structured(media: &str) -> Result<bool, InvalidEvent> {
    if media == "application/cloudevents+json" {
        Ok(true)
    } else if media.starts_with(BATCH_PREFIX) {
        Err(InvalidEvent::Batch(media.to_owned()))
    } else if media.starts_with(CLOUDEVENTS_PREFIX) {
        Err(InvalidEvent::UnsupportedFormat(media.to_owned()))
    } else {
        Ok(false)
    }
}

fn read_plain<'a>(
    raw: &RawEvent<'a>,
    text: &'a str,
    members: &Members<'a>,
) -> Result<Event<'a>, InvalidEvent> {
    // Further members are ignored, but this one is meant for the payload.
    if members
        .get("data_base64")
        .is_some_and(|raw| raw.get() != "null")
    {
        return Err(InvalidEvent::DataBase64);
    }
    let (json, data) = parse_data(text, members.get("data").copied(), 1)?;
    Ok(Event {
        id: required("id", string(text, members, "id")?)?,
        source: required("source", Some(Cow::Borrowed(raw.topic)))?,
        event_type: required("type", string(text, members, "type")?)?,
        time: checked_time(string(text, members, "time")?)?,
        subject: checked_subject(string(text, members, "subject")?)?,
        traceparent: header_traceparent(raw.headers),
        received: raw.timestamp,
        payload: Payload::Json(json.into()),
        data,
        extensions: Vec::new(),
        form: Form::Plain,
        empty_subject: false,
    })
}

/// Whether the body in CloudEvents format is to be the value itself, if it can be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AsItCame {
    Yes,
    No,
}

/// Reads a structured CloudEvent that is not passed on as it came.
pub(super) fn read_structured_text<'a>(raw: &RawEvent<'a>) -> Result<Event<'a>, InvalidEvent> {
    let payload = raw.payload.unwrap_or_default();
    if payload.is_empty() {
        return Err(InvalidEvent::NoValue);
    }
    let text = std::str::from_utf8(payload).map_err(|error| InvalidEvent::NotUtf8 {
        at: error.valid_up_to(),
    })?;
    read_structured(raw, text, parse_members(text)?, AsItCame::No)
}

fn read_structured<'a>(
    raw: &RawEvent<'a>,
    text: &'a str,
    members: Members<'a>,
    as_it_came: AsItCame,
) -> Result<Event<'a>, InvalidEvent> {
    let specversion =
        string(text, &members, "specversion")?.ok_or(InvalidEvent::Missing("specversion"))?;
    check_specversion(&specversion)?;
    let media = string(text, &members, "datacontenttype")?;
    let media = media.as_deref().and_then(Media::parse);
    let base64 = string(text, &members, "data_base64")?;
    let data = members.get("data").filter(|raw| raw.get() != "null");
    let (payload, data) = match (data.copied(), base64) {
        (Some(_), Some(_)) => return Err(InvalidEvent::TwoPayloads),
        (None, Some(base64)) => data::of_base64(base64, media.as_ref())?,
        (data, None) => data::of_member(text, data, media.as_ref())?,
    };
    let id = required("id", string(text, &members, "id")?)?;
    let source = required("source", string(text, &members, "source")?)?;
    let event_type = required("type", string(text, &members, "type")?)?;
    let time = checked_time(string(text, &members, "time")?)?;
    let subject = string(text, &members, "subject")?;
    let empty_subject = subject.as_deref().is_some_and(str::is_empty);
    let subject = checked_subject(subject)?;
    let extensions = structured_extensions(text, members)?;
    let is_sendable = !empty_subject
        && extensions
            .iter()
            .all(|(name, value)| is_sendable(name, value));
    // Bytes that came as a string of `data` are passed on as such.
    let is_bytes = matches!(&payload, Payload::Base64(Cow::Owned(_)));
    let form = if as_it_came == AsItCame::Yes && is_sendable && !is_bytes {
        Form::Verbatim(text)
    } else {
        Form::CloudEvent { specversion }
    };
    Ok(Event {
        id,
        source,
        event_type,
        time,
        subject,
        traceparent: extension_traceparent(&extensions).or_else(|| header_traceparent(raw.headers)),
        received: raw.timestamp,
        payload,
        data,
        extensions,
        form,
        empty_subject,
    })
}

fn structured_extensions<'a>(
    text: &'a str,
    members: Members<'a>,
) -> Result<Vec<(Cow<'a, str>, Value)>, InvalidEvent> {
    let mut extensions = Vec::new();
    for (name, raw) in members {
        if matches!(
            &*name,
            "specversion" | "id" | "source" | "type" | "time" | "subject" | "data" | "data_base64"
        ) {
            continue;
        }
        let (_, value) = parse_attribute(text, raw)?;
        if !value.is_null() {
            extensions.push((name, value));
        }
    }
    Ok(extensions)
}

/// Reads a CloudEvent in binary mode, whose attributes have one of the prefixes.
pub(super) fn read_binary<'a>(
    raw: &RawEvent<'a>,
    content_type: Option<Media>,
    max_bytes: usize,
    prefixes: &[&str],
) -> Result<Event<'a>, InvalidEvent> {
    let value = raw.payload.unwrap_or_default();
    let mut attributes = binary_attributes(raw.headers, prefixes)?;
    let size = attributes.iter().fold(value.len(), |sum, (name, value)| {
        sum + name.len() + value.len()
    });
    check_size(size, max_bytes)?;
    let specversion = attributes
        .remove("specversion")
        .ok_or(InvalidEvent::Missing("ce_specversion"))?;
    check_specversion(specversion)?;
    // The header is binary mode's `datacontenttype`, but some publishers write the attribute.
    let attribute = attributes.get("datacontenttype").copied();
    let media = content_type.or_else(|| attribute.and_then(Media::parse));
    let (payload, data) = match value {
        [] => (Payload::Absent, Value::Null),
        value => data::of_value(value, media.as_ref())?,
    };
    let mut take = |name| attributes.remove(name).map(Cow::Borrowed);
    let id = required("ce_id", take("id"))?;
    let source = required("ce_source", take("source"))?;
    let event_type = required("ce_type", take("type"))?;
    let time = checked_time(take("time"))?;
    let subject = take("subject");
    let empty_subject = subject.as_deref().is_some_and(str::is_empty);
    let subject = checked_subject(subject)?;
    let extensions = binary_extensions(raw.headers, attributes);
    Ok(Event {
        id,
        source,
        event_type,
        time,
        subject,
        traceparent: extension_traceparent(&extensions).or_else(|| header_traceparent(raw.headers)),
        received: raw.timestamp,
        payload,
        data,
        extensions,
        form: Form::CloudEvent {
            specversion: Cow::Borrowed(specversion),
        },
        empty_subject,
    })
}

/// The `ce_*` headers without their prefix. The Kafka binding, unlike HTTP's, has no percent-encoding.
fn binary_attributes<'a>(
    headers: &[(&'a str, &'a [u8])],
    prefixes: &[&str],
) -> Result<BTreeMap<&'a str, &'a str>, InvalidEvent> {
    let mut attributes = BTreeMap::new();
    for (name, value) in headers {
        let Some(attribute) = without_prefix(name, prefixes) else {
            continue;
        };
        let refuse = |problem| InvalidEvent::Header {
            name: (*name).to_owned(),
            problem,
        };
        if matches!(attribute, "" | "data" | "data_base64") {
            return Err(refuse("is not a CloudEvents attribute"));
        }
        let value = std::str::from_utf8(value).map_err(|_| refuse("is not UTF-8"))?;
        let is_quoted = value.len() >= 2 && value.starts_with('"') && value.ends_with('"');
        if is_quoted && is_core(attribute) {
            return Err(refuse(
                "is in quotation marks; a header holds the text of the attribute itself, not JSON",
            ));
        }
        if attributes.insert(attribute, value).is_some() {
            return Err(refuse("occurs twice"));
        }
    }
    Ok(attributes)
}

/// What is left of the attributes; the `content-type` header is binary mode's `datacontenttype`, as it came.
fn binary_extensions<'a>(
    headers: &[(&'a str, &'a [u8])],
    mut attributes: BTreeMap<&'a str, &'a str>,
) -> Vec<(Cow<'a, str>, Value)> {
    let header = headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("content-type"));
    if let Some(Ok(value)) = header.map(|(_, value)| std::str::from_utf8(value))
        && !value.trim().is_empty()
    {
        attributes.insert("datacontenttype", value);
    }
    attributes
        .into_iter()
        .map(|(name, value)| (Cow::Borrowed(name), Value::from(value)))
        .collect()
}

/// Whether an attribute is defined by CloudEvents itself: none of these begins with a quotation mark.
fn is_core(attribute: &str) -> bool {
    REQUIRED.contains(&attribute)
        || matches!(
            attribute,
            "subject" | "time" | "datacontenttype" | "dataschema"
        )
}

fn extension_traceparent<'a>(extensions: &[(Cow<'a, str>, Value)]) -> Option<Cow<'a, str>> {
    let (_, value) = extensions.iter().find(|(name, _)| name == "traceparent")?;
    value
        .as_str()
        .filter(|text| TraceContext::parse(text).is_some())
        .map(|text| Cow::Owned(text.to_owned()))
}

pub(super) fn header_traceparent<'a>(headers: &[(&'a str, &'a [u8])]) -> Option<Cow<'a, str>> {
    let (_, value) = headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("traceparent"))?;
    std::str::from_utf8(value)
        .ok()
        .filter(|text| TraceContext::parse(text).is_some())
        .map(Cow::Borrowed)
}
