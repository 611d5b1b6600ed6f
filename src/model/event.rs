//! An event: read from a Kafka record once, and written as the exact body of a request.
//!
//! Three forms are recognised, in this order:
//!
//! | form | recognised by | source |
//! |---|---|---|
//! | CloudEvents 1.0, structured | header `content-type: application/cloudevents+json` | JSON event format 1.0.2 |
//! | CloudEvents 1.0, binary | header `ce_specversion` | Kafka protocol binding 1.0.2 |
//! | CloudEvents 1.0, structured | an object with the member `specversion`, whatever the content type | at least one SDK writes `application/json` |
//! | plain | any other object | `schemas/event.schema.json` |
//!
//! Whether an event is valid never depends on subscriptions: all of it that a filter or a body could touch is
//! parsed here, so a bad number deep in `data` is refused even when nobody looks at it. The reading is a pure
//! function of the record, so a record that is read twice gives the same bytes (**Stable identity**).
//! Strings and `data` are borrowed from the record; `data` keeps the producer's own bytes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::model::command::ContentType;
use crate::model::trace_context::TraceContext;
use crate::model::units::EpochMs;

/// The longest id, source, type or subject, bytes of UTF-8: they travel in record and request headers.
pub const MAX_ATTRIBUTE_BYTES: usize = 1024;
/// The longest `time`, bytes: RFC 3339 sets no limit to the fraction of a second.
pub const MAX_TIME_BYTES: usize = 64;
/// The deepest nesting of arrays and objects, counted from the event's own object: what `serde_json` reads, so
/// that a receiver that uses it can read every body.
pub const MAX_DEPTH: usize = 127;

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

/// Why a record is not an event. Each is one sentence, fit for the header `hookstream-error`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEvent {
    /// No value, or one of no bytes.
    #[error("the record has no value (a tombstone or an empty one); an event is a JSON object")]
    NoValue,
    /// Over `--max-event-bytes`.
    #[error("the event is {size} bytes, the limit is {limit} bytes (--max-event-bytes)")]
    TooLarge {
        /// Bytes of the value, and of the `ce_*` headers in binary mode.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The value is not text.
    #[error("the value is not UTF-8 from byte {at} on")]
    NotUtf8 {
        /// Bytes before the first bad one.
        at: usize,
    },
    /// The value cannot be parsed, or is not an object; with `serde_json`'s reason and place.
    #[error("the value is not a JSON event: {reason} at line {line} column {column}")]
    NotJson {
        /// `serde_json`'s reason.
        reason: String,
        /// From 1.
        line: usize,
        /// From 1; 0 is the end of the line before.
        column: usize,
    },
    /// Arrays and objects inside each other.
    #[error("the event nests arrays and objects deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// CloudEvents' batch format: several events in one record would share an offset and a fate.
    #[error("the content type {0:?} is a batch; send one event a record")]
    Batch(String),
    /// CloudEvents in another format than JSON.
    #[error(
        "the content type {0:?} is not supported; structured CloudEvents must be application/cloudevents+json"
    )]
    UnsupportedFormat(String),
    /// The data of a binary mode event is something else than JSON.
    #[error("the content type {0:?} is not JSON; the data of an event must be JSON")]
    DataNotJson(String),
    /// CloudEvents' `data_base64`, in a plain event too: its payload would be dropped in silence.
    #[error("data_base64 is not supported; the data of an event must be JSON in data")]
    DataBase64,
    /// A required member is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A required member is the empty string.
    #[error("{0} is empty")]
    Empty(&'static str),
    /// A member that must be a string is not.
    #[error("{name} is {found}, it must be a string")]
    WrongType {
        /// The member.
        name: &'static str,
        /// What it is instead.
        found: &'static str,
    },
    /// A member is longer than headers should carry.
    #[error("{name} is {size} bytes, the limit is {limit} bytes")]
    TooLong {
        /// The member.
        name: &'static str,
        /// Bytes of UTF-8.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// A member that travels in headers holds a control character.
    #[error("{name} holds the control character U+{code:04X}")]
    Control {
        /// The member.
        name: &'static str,
        /// The character.
        code: u32,
    },
    /// Not RFC 3339.
    #[error("time is {0:?}, it must be RFC 3339 with an offset, as in 2026-07-01T12:00:00.250Z")]
    Time(String),
    /// Not 1.x.
    #[error("specversion is {0:?}, only CloudEvents 1.x is supported")]
    SpecVersion(String),
    /// A `ce_*` header that is not text, occurs twice or is no attribute.
    #[error("the header {name:?} {problem}")]
    Header {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// A valid event, borrowed from its record.
#[derive(Clone, Debug)]
pub struct Event<'a> {
    id: Cow<'a, str>,
    source: Cow<'a, str>,
    event_type: Cow<'a, str>,
    time: Option<Cow<'a, str>>,
    subject: Option<Cow<'a, str>>,
    traceparent: Option<Cow<'a, str>>,
    received: EpochMs,
    /// The producer's bytes of `data`.
    raw_data: &'a str,
    data: Value,
    /// CloudEvents attributes beside the fields above: `datacontenttype`, `dataschema` and extensions; by name.
    extensions: Vec<(Cow<'a, str>, Value)>,
    form: Form<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Form<'a> {
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

/// The members of the top-level object, unparsed. A member named twice is refused: readers would disagree on it.
type Members<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

struct TopLevel<'a>(Members<'a>);

#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for TopLevel<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = TopLevel<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Members::new();
                while let Some(Text(name)) = map.next_key()? {
                    if members.contains_key(&name) {
                        return Err(A::Error::custom(format_args!(
                            "the member {name:?} occurs twice"
                        )));
                    }
                    members.insert(name, map.next_value()?);
                }
                Ok(TopLevel(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

fn parse_members(text: &str) -> Result<Members<'_>, InvalidEvent> {
    serde_json::from_str::<TopLevel<'_>>(text)
        .map(|top| top.0)
        .map_err(|error| not_json(&error, "", 0))
}

/// Parses a member in full; the scan that found its end has checked neither numbers, escapes nor depth.
fn parse_data<'a>(
    text: &str,
    raw: Option<&'a RawValue>,
    outer: usize,
) -> Result<(&'a str, Value), InvalidEvent> {
    let Some(raw) = raw else {
        return Ok(("null", Value::Null));
    };
    let raw = raw.get();
    let value =
        serde_json::from_str(raw).map_err(|error| not_json(&error, text, start_of(text, raw)))?;
    if depth_exceeds(&value, MAX_DEPTH - outer) {
        return Err(InvalidEvent::TooDeep);
    }
    Ok((raw, value))
}

fn depth_exceeds(value: &Value, limit: usize) -> bool {
    match value {
        Value::Array(items) => {
            limit == 0 || items.iter().any(|item| depth_exceeds(item, limit - 1))
        }
        Value::Object(map) => limit == 0 || map.values().any(|item| depth_exceeds(item, limit - 1)),
        _ => false,
    }
}

/// Where `part`, a slice of `text`, starts.
fn start_of(text: &str, part: &str) -> usize {
    (part.as_ptr() as usize).saturating_sub(text.as_ptr() as usize)
}

/// `serde_json`'s error in a part of `text` that starts at byte `start`, with its place in the whole.
fn not_json(error: &serde_json::Error, text: &str, start: usize) -> InvalidEvent {
    let message = error.to_string();
    let reason = message
        .rsplit_once(" at line ")
        .map_or(message.as_str(), |(reason, _)| reason)
        .to_owned();
    let before = text.get(..start).unwrap_or_default();
    let lines = before.bytes().filter(|byte| *byte == b'\n').count();
    let columns = if error.line() > 1 {
        0
    } else {
        before.len() - before.rfind('\n').map_or(0, |at| at + 1)
    };
    InvalidEvent::NotJson {
        reason,
        line: error.line() + lines,
        column: error.column() + columns,
    }
}

fn string<'a>(
    text: &str,
    members: &Members<'a>,
    name: &'static str,
) -> Result<Option<Cow<'a, str>>, InvalidEvent> {
    let Some(raw) = members.get(name) else {
        return Ok(None);
    };
    let member: &'a str = raw.get();
    let found = match member.as_bytes().first() {
        Some(b'"') => {
            let Text(value) = serde_json::from_str(member)
                .map_err(|error| not_json(&error, text, start_of(text, member)))?;
            return Ok(Some(value));
        }
        Some(b'n') => return Ok(None),
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b't' | b'f') => "a boolean",
        _ => "a number",
    };
    Err(InvalidEvent::WrongType { name, found })
}

fn required<'a>(
    name: &'static str,
    value: Option<Cow<'a, str>>,
) -> Result<Cow<'a, str>, InvalidEvent> {
    let value = value.ok_or(InvalidEvent::Missing(name))?;
    if value.is_empty() {
        return Err(InvalidEvent::Empty(name));
    }
    check_text(name, &value)?;
    Ok(value)
}

fn checked_subject(value: Option<Cow<'_, str>>) -> Result<Option<Cow<'_, str>>, InvalidEvent> {
    let value = value.filter(|subject| !subject.is_empty());
    value
        .as_deref()
        .map_or(Ok(()), |subject| check_text("subject", subject))?;
    Ok(value)
}

fn check_text(name: &'static str, value: &str) -> Result<(), InvalidEvent> {
    if value.len() > MAX_ATTRIBUTE_BYTES {
        return Err(InvalidEvent::TooLong {
            name,
            size: value.len(),
            limit: MAX_ATTRIBUTE_BYTES,
        });
    }
    match value.chars().find(|c| c.is_control()) {
        Some(c) => Err(InvalidEvent::Control {
            name,
            code: u32::from(c),
        }),
        None => Ok(()),
    }
}

fn checked_time(value: Option<Cow<'_, str>>) -> Result<Option<Cow<'_, str>>, InvalidEvent> {
    match value.as_deref() {
        Some(time) if time.len() > MAX_TIME_BYTES => Err(InvalidEvent::TooLong {
            name: "time",
            size: time.len(),
            limit: MAX_TIME_BYTES,
        }),
        Some(time) if !is_rfc3339(time) => Err(InvalidEvent::Time(time.to_owned())),
        _ => Ok(value),
    }
}

fn check_specversion(version: &str) -> Result<(), InvalidEvent> {
    let minor = version.strip_prefix("1.").unwrap_or_default();
    if !minor.is_empty() && minor.len() <= 4 && minor.bytes().all(|byte| byte.is_ascii_digit()) {
        Ok(())
    } else {
        Err(InvalidEvent::SpecVersion(
            version.chars().take(64).collect(),
        ))
    }
}

/// RFC 3339 section 5.6 `date-time`. Stricter than most parsers, which also take a space, a missing offset or
/// a zone in brackets: receivers would choke on those.
fn is_rfc3339(text: &str) -> bool {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| -> Option<u32> {
        let digits = bytes.get(from..to)?;
        digits.iter().try_fold(0, |sum, d| {
            d.is_ascii_digit().then(|| sum * 10 + u32::from(d - b'0'))
        })
    };
    let within = |from, to, low, high| number(from, to).is_some_and(|n| (low..=high).contains(&n));
    let at =
        |index: usize, wanted: &[u8]| bytes.get(index).is_some_and(|byte| wanted.contains(byte));
    let (Some(year), Some(month)) = (number(0, 4), number(5, 7)) else {
        return false;
    };
    let date =
        at(4, b"-") && within(5, 7, 1, 12) && at(7, b"-") && within(8, 10, 1, days_in(year, month));
    let clock = at(10, b"Tt")
        && within(11, 13, 0, 23)
        && at(13, b":")
        && within(14, 16, 0, 59)
        && at(16, b":")
        && within(17, 19, 0, 60);
    if !date || !clock {
        return false;
    }
    let fraction = match bytes.get(19) {
        Some(b'.') => {
            1 + bytes[20..]
                .iter()
                .take_while(|byte| byte.is_ascii_digit())
                .count()
        }
        _ => 0,
    };
    let zone = 19 + fraction;
    let offset = at(zone, b"+-") && within(zone + 1, zone + 3, 0, 23) && at(zone + 3, b":");
    fraction != 1
        && ((at(zone, b"Zz") && bytes.len() == zone + 1)
            || (offset && within(zone + 4, zone + 6, 0, 59) && bytes.len() == zone + 6))
}

fn days_in(year: u32, month: u32) -> u32 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => {
            29
        }
        2 => 28,
        _ => 31,
    }
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

#[cfg(test)]
mod tests;
