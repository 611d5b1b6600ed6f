//! Looks for what a mapping names: in the headers, the key and the value of a record.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::decode::RawEvent;
use super::error::InvalidEvent;
use super::json::{parse_data, parse_members, parse_string, raw_value};
use super::mapping::{Mapping, Path, Place, Places};

/// A record, and the JSON text that its value is, if it is one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'d, 'm> {
    pub(super) raw: RawEvent<'d>,
    document: Option<&'d str>,
    mapping: &'m Mapping,
}

/// Why there is nothing to use at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nothing {
    Absent,
    Empty,
    Null,
    NotText,
    Object,
    Array,
    Boolean,
    /// Two headers, or members, of one name that differ.
    Ambiguous,
    /// A string that is to be a part of the path, and holds no JSON.
    NotJson,
}

impl fmt::Display for Nothing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => "is absent",
            Self::Empty => "is empty",
            Self::Null => "is null",
            Self::NotText => "is not text in UTF-8",
            Self::Object => "is an object, not a string or a number",
            Self::Array => "is an array, not a string or a number",
            Self::Boolean => "is a boolean, not a string or a number",
            Self::Ambiguous => "occurs twice, with different values",
            Self::NotJson => "leads through a string that does not hold JSON",
        })
    }
}

impl<'d, 'm> Record<'d, 'm> {
    /// `document` is the value if that is JSON, unwrapped if that is configured.
    pub(super) fn new(raw: RawEvent<'d>, document: Option<&'d str>, mapping: &'m Mapping) -> Self {
        Self {
            raw,
            document,
            mapping,
        }
    }

    /// The text at the first of the places that has one; `None` if there may be none.
    pub(super) fn text(
        &self,
        name: &'static str,
        places: &Places,
    ) -> Result<Option<Cow<'d, str>>, InvalidEvent> {
        let mut reasons = String::new();
        for place in &places.list {
            match self.text_at(place) {
                Ok(text) => return Ok(Some(text)),
                Err(nothing) => note(&mut reasons, place, nothing),
            }
        }
        if places.optional {
            return Ok(None);
        }
        Err(InvalidEvent::NotMapped {
            name,
            places: reasons,
        })
    }

    /// The data at the first of the places that has some: JSON text, and the same parsed.
    pub(super) fn data(&self, places: &Places) -> Result<(Cow<'d, str>, Value), InvalidEvent> {
        let mut reasons = String::new();
        for place in &places.list {
            let found = match place {
                Place::Json(path) => self.json_at(path),
                _ if self.document.is_some() => return self.whole(),
                _ => Err(Nothing::Absent),
            };
            match found {
                Ok(json) => return self.parsed(json),
                Err(nothing) => note(&mut reasons, place, nothing),
            }
        }
        Err(InvalidEvent::NotMapped {
            name: "data",
            places: reasons,
        })
    }

    /// The whole value as data.
    pub(super) fn whole(&self) -> Result<(Cow<'d, str>, Value), InvalidEvent> {
        let document = self.document.ok_or(InvalidEvent::NoValue)?;
        let (json, data) = parse_data(document, Some(raw_value(document)?), 1)?;
        Ok((Cow::Borrowed(json), data))
    }

    fn parsed(&self, json: Cow<'d, str>) -> Result<(Cow<'d, str>, Value), InvalidEvent> {
        let inner = if self.mapping.unwrap {
            match &json {
                Cow::Borrowed(json) => unwrapped(json, "data")?,
                Cow::Owned(json) => {
                    unwrapped(json, "data")?.map(|inner| Cow::Owned(inner.into_owned()))
                }
            }
        } else {
            None
        };
        let json = inner.unwrap_or(json);
        let (_, data) = parse_data(&json, Some(raw_value(&json)?), 1)?;
        Ok((json, data))
    }

    fn text_at(&self, place: &Place) -> Result<Cow<'d, str>, Nothing> {
        match place {
            Place::Header(name) => self.header(name),
            Place::Key => self.key(),
            Place::Json(path) => scalar(self.json_at(path)?),
            Place::Const(text) => Ok(Cow::Owned(text.clone())),
            Place::Topic => Ok(Cow::Borrowed(self.raw.topic)),
            Place::Value => Err(Nothing::Object),
        }
    }

    fn header(&self, name: &str) -> Result<Cow<'d, str>, Nothing> {
        let headers = self.raw.headers.iter();
        let mut found = headers.filter(|(known, _)| *known == name);
        let (_, value) = found.next().ok_or(Nothing::Absent)?;
        if found.any(|(_, other)| other != value) {
            return Err(Nothing::Ambiguous);
        }
        self.unwrapped_text(text_of(value)?)
    }

    fn key(&self) -> Result<Cow<'d, str>, Nothing> {
        let key = text_of(self.raw.key.ok_or(Nothing::Absent)?)?;
        // Keys of another type than text, such as a number of eight bytes.
        if key.chars().any(char::is_control) {
            return Err(Nothing::NotText);
        }
        self.unwrapped_text(key)
    }

    /// What is inside of what Connect's JSON converter puts around a header or a key.
    fn unwrapped_text(&self, text: Cow<'d, str>) -> Result<Cow<'d, str>, Nothing> {
        match text {
            Cow::Borrowed(text) if self.mapping.unwrap => match envelope(text) {
                Some(inner) => scalar(Cow::Borrowed(inner)),
                None => Ok(Cow::Borrowed(text)),
            },
            text => Ok(text),
        }
    }

    fn json_at(&self, path: &Path) -> Result<Cow<'d, str>, Nothing> {
        let document = self.document.ok_or(Nothing::Absent)?;
        at(document, &path.segments, self.mapping.unwrap)
    }
}

fn note(reasons: &mut String, place: &Place, nothing: Nothing) {
    if !reasons.is_empty() {
        reasons.push_str("; ");
    }
    // Writing to a string does not fail.
    write!(reasons, "{place} {nothing}").ok();
}

/// The text of a header or a key. Some serializers write it as a JSON string, quotation marks included.
fn text_of(bytes: &[u8]) -> Result<Cow<'_, str>, Nothing> {
    let text = std::str::from_utf8(bytes).map_err(|_| Nothing::NotText)?;
    let text = match parse_string(text) {
        Some(string) => string,
        None => Cow::Borrowed(text),
    };
    if text.is_empty() {
        return Err(Nothing::Empty);
    }
    Ok(text)
}

/// The text of a string or a number.
fn scalar(json: Cow<'_, str>) -> Result<Cow<'_, str>, Nothing> {
    let text = match json.as_bytes().first() {
        Some(b'"') => match json {
            Cow::Borrowed(json) => parse_string(json),
            Cow::Owned(json) => parse_string(&json).map(|text| Cow::Owned(text.into_owned())),
        }
        .ok_or(Nothing::NotText)?,
        Some(b'{') => return Err(Nothing::Object),
        Some(b'[') => return Err(Nothing::Array),
        Some(b't' | b'f') => return Err(Nothing::Boolean),
        Some(b'n') | None => return Err(Nothing::Null),
        Some(_) => json,
    };
    if text.is_empty() {
        return Err(Nothing::Empty);
    }
    Ok(text)
}

/// The JSON text at a path. With `unwrap`, the path leads through strings that hold JSON.
fn at<'d>(json: &'d str, path: &[String], unwrap: bool) -> Result<Cow<'d, str>, Nothing> {
    let Some((first, rest)) = path.split_first() else {
        return Ok(Cow::Borrowed(json));
    };
    match json.as_bytes().first() {
        Some(b'{') => at(member(json, first)?, rest, unwrap),
        Some(b'[') => at(item(json, first)?, rest, unwrap),
        Some(b'"') if unwrap => match parse_string(json).ok_or(Nothing::NotText)? {
            Cow::Borrowed(inner) => at(whole(inner)?, path, unwrap),
            Cow::Owned(inner) => {
                let found = at(whole(&inner)?, path, unwrap)?;
                Ok(Cow::Owned(found.into_owned()))
            }
        },
        _ => Err(Nothing::Absent),
    }
}

fn whole(text: &str) -> Result<&str, Nothing> {
    raw_value(text)
        .map(RawValue::get)
        .map_err(|_| Nothing::NotJson)
}

/// The member of that name.
fn member<'d>(json: &'d str, name: &str) -> Result<&'d str, Nothing> {
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let found = Member(name).deserialize(&mut deserializer);
    found.unwrap_or(Err(Nothing::NotText)).map(RawValue::get)
}

/// Reads an object for one of its members, which must not occur twice.
struct Member<'n>(&'n str);

impl<'de> DeserializeSeed<'de> for Member<'_> {
    type Value = Result<&'de RawValue, Nothing>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Member<'_> {
    type Value = Result<&'de RawValue, Nothing>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = Err(Nothing::Absent);
        while let Some(is_it) = map.next_key_seed(IsName(self.0))? {
            if is_it {
                let value = map.next_value()?;
                found = match found {
                    Err(Nothing::Absent) => Ok(value),
                    _ => Err(Nothing::Ambiguous),
                };
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Compares a name without a copy of it.
struct IsName<'n>(&'n str);

impl<'de> DeserializeSeed<'de> for IsName<'_> {
    type Value = bool;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for IsName<'_> {
    type Value = bool;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }
    fn visit_str<E>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}

/// The item of that number.
fn item<'d>(json: &'d str, number: &str) -> Result<&'d str, Nothing> {
    let number: usize = number.parse().map_err(|_| Nothing::Absent)?;
    let items: Vec<&RawValue> = serde_json::from_str(json).map_err(|_| Nothing::Absent)?;
    items
        .get(number)
        .map(|item| item.get())
        .ok_or(Nothing::Absent)
}

/// What is inside of what Connect's JSON converter puts around a value (`schema` and `payload`), and of a JSON string
/// that holds JSON; one of each at most. `None` if there is neither.
///
/// # Errors
/// A string does not hold JSON; `what` is it.
pub(super) fn unwrapped<'d>(
    json: &'d str,
    what: &'static str,
) -> Result<Option<Cow<'d, str>>, InvalidEvent> {
    let inner = envelope(json);
    let json = inner.unwrap_or(json);
    if !json.starts_with('"') {
        return Ok(inner.map(Cow::Borrowed));
    }
    let refuse = |reason: &InvalidEvent| InvalidEvent::NotWrapped {
        what,
        reason: reason.to_string(),
    };
    let text = parse_string(json).ok_or_else(|| refuse(&InvalidEvent::Escape))?;
    Ok(Some(match text {
        Cow::Borrowed(text) => {
            Cow::Borrowed(raw_value(text).map_err(|error| refuse(&error))?.get())
        }
        Cow::Owned(text) => {
            let inner = raw_value(&text).map_err(|error| refuse(&error))?;
            Cow::Owned(inner.get().to_owned())
        }
    }))
}

/// The `payload` of an object of `schema` and `payload`.
fn envelope(json: &str) -> Option<&str> {
    if !json.starts_with('{') {
        return None;
    }
    let members = parse_members(json).ok()?;
    let schema = members.get("schema")?.get();
    let payload = members.get("payload")?.get();
    let is_schema = schema.starts_with('{') || schema == "null";
    (members.len() == 2 && is_schema).then_some(payload)
}
