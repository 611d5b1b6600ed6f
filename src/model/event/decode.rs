//! Reads an event from a Kafka record, in whichever form it has.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::RawValue;

use super::attributes::{check_specversion, checked_subject, checked_time, required};
use super::error::InvalidEvent;
use super::json::{Members, not_json, parse_data, parse_members, string};
use super::model::{Event, Form};
use crate::model::trace_context::TraceContext;
use crate::model::units::EpochMs;

const CLOUDEVENTS_PREFIX: &str = "application/cloudevents";
const BATCH_PREFIX: &str = "application/cloudevents-batch";

/// A record of an event topic, as far as reading needs it.
#[derive(Clone, Copy, Debug)]
pub struct RawEvent<'a> {
    /// The topic that it was read from: the source of a plain event.
    pub topic: &'a str,
    /// The record's value; `None` is a tombstone.
    pub payload: Option<&'a [u8]>,
    /// The record's headers, in order.
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
    let payload = raw
        .payload
        .filter(|payload| !payload.is_empty())
        .ok_or(InvalidEvent::NoValue)?;
    check_size(payload.len(), max_bytes)?;
    let text = std::str::from_utf8(payload).map_err(|error| InvalidEvent::NotUtf8 {
        at: error.valid_up_to(),
    })?;
    let content_type = content_type(raw.headers);
    let structured = content_type.as_deref().map_or(Ok(false), is_structured)?;
    if !structured
        && raw
            .headers
            .iter()
            .any(|(name, _)| *name == "ce_specversion")
    {
        return read_binary(raw, text, content_type, max_bytes);
    }
    let members = parse_members(text)?;
    if structured || members.contains_key("specversion") {
        read_structured(raw, text, members)
    } else {
        read_plain(raw, text, &members)
    }
}

fn check_size(size: usize, limit: usize) -> Result<(), InvalidEvent> {
    if size > limit {
        Err(InvalidEvent::TooLarge { size, limit })
    } else {
        Ok(())
    }
}

/// The media type in lower case without parameters.
fn content_type(headers: &[(&str, &[u8])]) -> Option<String> {
    let (_, value) = headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("content-type"))?;
    let text = String::from_utf8_lossy(value);
    let media = text
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    (!media.is_empty()).then_some(media)
}

fn is_structured(media: &str) -> Result<bool, InvalidEvent> {
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
    let (raw_data, data) = parse_data(text, members.get("data").copied(), 1)?;
    Ok(Event {
        id: required("id", string(text, members, "id")?)?,
        source: required("source", Some(Cow::Borrowed(raw.topic)))?,
        event_type: required("type", string(text, members, "type")?)?,
        time: checked_time(string(text, members, "time")?)?,
        subject: checked_subject(string(text, members, "subject")?)?,
        traceparent: header_traceparent(raw.headers),
        received: raw.timestamp,
        raw_data,
        data,
        extensions: Vec::new(),
        form: Form::Plain,
    })
}

fn read_structured<'a>(
    raw: &RawEvent<'a>,
    text: &'a str,
    members: Members<'a>,
) -> Result<Event<'a>, InvalidEvent> {
    check_specversion(
        &string(text, &members, "specversion")?.ok_or(InvalidEvent::Missing("specversion"))?,
    )?;
    if members.contains_key("data_base64") {
        return Err(InvalidEvent::DataBase64);
    }
    let (raw_data, data) = parse_data(text, members.get("data").copied(), 1)?;
    let id = required("id", string(text, &members, "id")?)?;
    let source = required("source", string(text, &members, "source")?)?;
    let event_type = required("type", string(text, &members, "type")?)?;
    let time = checked_time(string(text, &members, "time")?)?;
    let subject = checked_subject(string(text, &members, "subject")?)?;
    let extensions = structured_extensions(text, members)?;
    Ok(Event {
        id,
        source,
        event_type,
        time,
        subject,
        traceparent: extension_traceparent(&extensions).or_else(|| header_traceparent(raw.headers)),
        received: raw.timestamp,
        raw_data,
        data,
        extensions,
        form: Form::Structured(text),
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
            "specversion" | "id" | "source" | "type" | "time" | "subject" | "data"
        ) {
            continue;
        }
        let (_, value) = parse_data(text, Some(raw), 1)?;
        if !value.is_null() {
            extensions.push((name, value));
        }
    }
    Ok(extensions)
}

fn read_binary<'a>(
    raw: &RawEvent<'a>,
    text: &'a str,
    content_type: Option<String>,
    max_bytes: usize,
) -> Result<Event<'a>, InvalidEvent> {
    let mut attributes = binary_attributes(raw.headers)?;
    let size = attributes.iter().fold(text.len(), |sum, (name, value)| {
        sum + name.len() + value.len()
    });
    check_size(size, max_bytes)?;
    let specversion = attributes
        .remove("specversion")
        .ok_or(InvalidEvent::Missing("ce_specversion"))?;
    check_specversion(specversion)?;
    if let Some(media) = content_type {
        if !is_json(&media) {
            return Err(InvalidEvent::DataNotJson(media));
        }
        attributes.remove("datacontenttype");
    }
    let whole: &'a RawValue =
        serde_json::from_str(text).map_err(|error| not_json(&error, "", 0))?;
    let (raw_data, data) = parse_data(text, Some(whole), 1)?;
    let mut take = |name| attributes.remove(name).map(Cow::Borrowed);
    let id = required("ce_id", take("id"))?;
    let source = required("ce_source", take("source"))?;
    let event_type = required("ce_type", take("type"))?;
    let time = checked_time(take("time"))?;
    let subject = checked_subject(take("subject"))?;
    let extensions = binary_extensions(raw.headers, attributes);
    Ok(Event {
        id,
        source,
        event_type,
        time,
        subject,
        traceparent: extension_traceparent(&extensions).or_else(|| header_traceparent(raw.headers)),
        received: raw.timestamp,
        raw_data,
        data,
        extensions,
        form: Form::Binary { specversion },
    })
}

/// The `ce_*` headers without their prefix. The Kafka binding, unlike HTTP's, has no percent-encoding.
fn binary_attributes<'a>(
    headers: &[(&'a str, &'a [u8])],
) -> Result<BTreeMap<&'a str, &'a str>, InvalidEvent> {
    let mut attributes = BTreeMap::new();
    for (name, value) in headers {
        let Some(attribute) = name.strip_prefix("ce_") else {
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

fn is_json(media: &str) -> bool {
    media
        .split_once('/')
        .is_some_and(|(_, subtype)| subtype == "json" || subtype.ends_with("+json"))
}

fn extension_traceparent<'a>(extensions: &[(Cow<'a, str>, Value)]) -> Option<Cow<'a, str>> {
    let (_, value) = extensions.iter().find(|(name, _)| name == "traceparent")?;
    value
        .as_str()
        .filter(|text| TraceContext::parse(text).is_some())
        .map(|text| Cow::Owned(text.to_owned()))
}

fn header_traceparent<'a>(headers: &[(&'a str, &'a [u8])]) -> Option<Cow<'a, str>> {
    let (_, value) = headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("traceparent"))?;
    std::str::from_utf8(value)
        .ok()
        .filter(|text| TraceContext::parse(text).is_some())
        .map(Cow::Borrowed)
}
