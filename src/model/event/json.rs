//! The JSON object of a record, read in two steps: its members unparsed, then the members that are used.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::error::{InvalidEvent, MAX_DEPTH};
use super::lenient;

/// The members of the top-level object, unparsed. A member named twice is refused: readers would disagree on it.
pub(super) type Members<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

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

pub(super) fn parse_members(text: &str) -> Result<Members<'_>, InvalidEvent> {
    serde_json::from_str::<TopLevel<'_>>(text)
        .map(|top| top.0)
        .map_err(|error| not_json(&error, "", 0))
}

/// Parses the data in full; the scan that found its end has checked neither numbers, escapes nor depth. What is valid and
/// cannot be represented has a substitute in the value, see [`lenient`].
pub(super) fn parse_data<'a>(
    text: &str,
    raw: Option<&'a RawValue>,
    outer: usize,
) -> Result<(&'a str, Value), InvalidEvent> {
    let Some(raw) = raw else {
        return Ok(("null", Value::Null));
    };
    let read = |raw: &str| match serde_json::from_str(raw) {
        Ok(value) => Ok(value),
        Err(error) => lenient::readable(raw)
            .and_then(|readable| serde_json::from_str(&readable).ok())
            .ok_or(error),
    };
    parse(text, raw.get(), outer, read)
}

/// Parses an attribute in full.
pub(super) fn parse_attribute<'a>(
    text: &str,
    raw: &'a RawValue,
) -> Result<(&'a str, Value), InvalidEvent> {
    parse(text, raw.get(), 1, |raw| serde_json::from_str(raw))
}

fn parse<'a>(
    text: &str,
    raw: &'a str,
    outer: usize,
    read: impl FnOnce(&str) -> Result<Value, serde_json::Error>,
) -> Result<(&'a str, Value), InvalidEvent> {
    let value = read(raw).map_err(|error| not_json(&error, text, start_of(text, raw)))?;
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
pub(super) fn not_json(error: &serde_json::Error, text: &str, start: usize) -> InvalidEvent {
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

pub(super) fn string<'a>(
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

/// The whole text as one JSON value, without the blanks around it.
pub(super) fn raw_value(text: &str) -> Result<&RawValue, InvalidEvent> {
    serde_json::from_str(text).map_err(|error| not_json(&error, "", 0))
}

/// The text of a JSON string; `None` if `json` is none.
pub(super) fn parse_string(json: &str) -> Option<Cow<'_, str>> {
    if !json.starts_with('"') {
        return None;
    }
    serde_json::from_str::<Text<'_>>(json)
        .ok()
        .map(|Text(text)| text)
}
