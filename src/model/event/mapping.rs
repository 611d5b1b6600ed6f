//! Where the attributes and the data of an event are in the records of one topic, as an operator configures it.
//!
//! Publishers that write neither CloudEvents nor the plain form (an outbox table read by Debezium, Spring Cloud Stream)
//! have all that an event needs, elsewhere: in headers, in the key, deep in the value. A mapping names the places.
//!
//! | field | what it says |
//! |---|---|
//! | `preset` | the values of all other fields that are not given |
//! | `id`, `type`, `source`, `subject`, `time` | one place, or several of which the first that has something counts |
//! | `data` | `value`, or a path in it |
//! | `unwrap` | whether values, keys and data are taken out of what converters put around them |
//! | `tombstone` | what a record without a value is |

use std::collections::BTreeMap;
use std::fmt;

use super::attributes::is_rfc3339;
use super::error::MAX_ATTRIBUTE_BYTES;

/// All fields of a mapping, in the order of the reference.
pub const FIELDS: [&str; 9] = [
    "preset",
    "id",
    "type",
    "source",
    "subject",
    "time",
    "data",
    "unwrap",
    "tombstone",
];

/// The most places of a field.
const MAX_PLACES: usize = 8;
/// The most segments of a path.
const MAX_PATH_SEGMENTS: usize = 16;

/// How the records of a topic become events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub(super) cloudevents: CloudEvents,
    /// The places of all attributes and of the data.
    pub(super) fields: Fields,
    /// Those of them that are not the preset's: they hold for CloudEvents too.
    pub(super) own: Fields,
    pub(super) unwrap: bool,
    pub(super) tombstone: Tombstone,
}

/// Places by attribute; the data is one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields {
    pub(super) id: Option<Places>,
    pub(super) event_type: Option<Places>,
    pub(super) source: Option<Places>,
    pub(super) subject: Option<Places>,
    pub(super) time: Option<Places>,
    pub(super) data: Option<Places>,
}

/// Whether records may be CloudEvents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CloudEvents {
    /// They are not looked at as such.
    Never,
    /// Those that are recognised are read as such.
    Recognised,
    /// All of them are.
    Always,
}

/// What a record without a value is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Tombstone {
    /// It is no event, as without a mapping.
    #[default]
    Skip,
    /// It is an invalid event.
    Invalid,
    /// It is an event without data, of this type if one is given. Without the id it is skipped.
    Event(Option<String>),
}

/// Places to look at in turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) list: Vec<Place>,
    /// Whether nothing is an answer too.
    pub(super) optional: bool,
}

impl Places {
    /// Whether the whole value is one of them.
    pub(super) fn has_value(&self) -> bool {
        self.list.contains(&Place::Value)
    }
}

/// A place in a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A header.
    Header(String),
    /// The key.
    Key,
    /// A path in the value.
    Json(Path),
    /// The same in all records.
    Const(String),
    /// The name of the topic.
    Topic,
    /// The whole value; for the data only.
    Value,
}

/// The way from the value to one of its parts: names of members, numbers of items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) segments: Vec<String>,
    text: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Key => f.write_str("key"),
            Self::Json(path) => write!(f, "json:{}", path.text),
            Self::Const(text) => write!(f, "const:{text}"),
            Self::Topic => f.write_str("topic"),
            Self::Value => f.write_str("value"),
        }
    }
}

/// A preset: values of fields, by name.
struct Preset {
    name: &'static str,
    cloudevents: CloudEvents,
    fields: &'static [(&'static str, &'static [&'static str])],
    unwrap: bool,
    tombstone: Tombstone,
}

static PRESETS: [Preset; 3] = [
    // What the router's default options write: the header `id`, the key `aggregateid`, and the payload column as the
    // value. Its documentation puts the type into the header `eventType`, and into `type` when no name is given.
    Preset {
        name: "debezium-outbox",
        cloudevents: CloudEvents::Never,
        fields: &[
            ("id", &["header:id"]),
            ("type", &["header:eventType", "header:type", "topic"]),
            ("source", &["topic"]),
            ("subject", &["key", "none"]),
            ("data", &["value"]),
        ],
        unwrap: true,
        // A row whose payload is null. It has the header `id`, which the tombstones of a compacted topic do not have.
        tombstone: Tombstone::Event(None),
    },
    Preset {
        name: "debezium-cloudevents",
        cloudevents: CloudEvents::Always,
        fields: &[],
        unwrap: true,
        tombstone: Tombstone::Skip,
    },
    // The binder writes the application's headers, and neither an id nor a type of its own. What its CloudEvents support
    // writes has the prefix `ce-` (HTTP's) when the message was not made by a function.
    Preset {
        name: "spring-cloud-stream",
        cloudevents: CloudEvents::Recognised,
        fields: &[
            (
                "id",
                &[
                    "header:eventId",
                    "header:event-id",
                    "header:event_id",
                    "header:id",
                ],
            ),
            (
                "type",
                &[
                    "header:eventType",
                    "header:event-type",
                    "header:event_type",
                    "header:type",
                ],
            ),
            ("source", &["topic"]),
            ("subject", &["key", "none"]),
            (
                "time",
                &[
                    "header:eventTime",
                    "header:event-time",
                    "header:event_time",
                    "header:time",
                    "none",
                ],
            ),
            ("data", &["value"]),
        ],
        unwrap: false,
        tombstone: Tombstone::Skip,
    },
];

/// The names of all presets.
pub fn presets() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|preset| preset.name)
}

impl Mapping {
    /// Reads a mapping. Each field has one value or, where several places are allowed, a list of them.
    ///
    /// # Errors
    /// All that is wrong with it, each with the field and the way out.
    pub fn read(given: &BTreeMap<String, Vec<String>>) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        for name in given.keys() {
            if !FIELDS.contains(&name.as_str()) {
                mistakes.push(format!(
                    "unknown field {name:?}; must be one of {}",
                    FIELDS.join(", ")
                ));
            }
        }
        let preset = keep(&mut mistakes, single(given, "preset", preset));
        let unwrap = keep(&mut mistakes, single(given, "unwrap", switch));
        let tombstone = keep(&mut mistakes, single(given, "tombstone", tombstone));
        let own = Fields::read(&mut mistakes, |name| given.get(name).cloned());
        let preset_fields = Fields::read(&mut mistakes, |name| {
            preset.and_then(|preset| preset.places(name))
        });
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let fields = own.clone().or(preset_fields);
        let is_always = preset.is_some_and(|preset| preset.cloudevents == CloudEvents::Always);
        for (name, places) in [("id", &fields.id), ("type", &fields.event_type)] {
            if places.is_none() && !is_always {
                mistakes.push(format!(
                    "{name} is missing; name its place, as in {name} = \"header:{name}\", or set preset to one of {}",
                    list(presets())
                ));
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        Ok(Self {
            cloudevents: preset.map_or(CloudEvents::Never, |preset| preset.cloudevents),
            fields,
            own,
            unwrap: unwrap.unwrap_or_else(|| preset.is_some_and(|preset| preset.unwrap)),
            tombstone: tombstone
                .or_else(|| preset.map(|preset| preset.tombstone.clone()))
                .unwrap_or_default(),
        })
    }
}

impl Preset {
    fn places(&self, name: &str) -> Option<Vec<String>> {
        let (_, places) = self.fields.iter().find(|(field, _)| *field == name)?;
        Some(places.iter().map(|&place| place.to_owned()).collect())
    }
}

/// What was read; a mistake is noted.
fn keep<T>(mistakes: &mut Vec<String>, read: Result<Option<T>, String>) -> Option<T> {
    read.unwrap_or_else(|mistake| {
        mistakes.push(mistake);
        None
    })
}

impl Fields {
    fn read(mistakes: &mut Vec<String>, given: impl Fn(&str) -> Option<Vec<String>>) -> Self {
        let mut field = |name| keep(mistakes, places(name, given(name)));
        Self {
            id: field("id"),
            event_type: field("type"),
            source: field("source"),
            subject: field("subject"),
            time: field("time"),
            data: field("data"),
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            id: self.id.or(other.id),
            event_type: self.event_type.or(other.event_type),
            source: self.source.or(other.source),
            subject: self.subject.or(other.subject),
            time: self.time.or(other.time),
            data: self.data.or(other.data),
        }
    }
}

fn list(names: impl Iterator<Item = &'static str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

/// A field that has one value.
fn single<T>(
    given: &BTreeMap<String, Vec<String>>,
    name: &str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, String> {
    match given.get(name).map(Vec::as_slice) {
        None => Ok(None),
        Some([value]) => parse(value).map(Some),
        Some(_) => Err(format!("{name} must have one value")),
    }
}

fn preset(name: &str) -> Result<&'static Preset, String> {
    let found = PRESETS.iter().find(|preset| preset.name == name);
    found.ok_or_else(|| {
        format!(
            "unknown preset {name:?}; must be one of {}",
            list(presets())
        )
    })
}

fn switch(text: &str) -> Result<bool, String> {
    let refuse = |_| format!("unwrap is {text:?}; must be true or false");
    text.parse().map_err(refuse)
}

fn tombstone(text: &str) -> Result<Tombstone, String> {
    match text {
        "skip" => Ok(Tombstone::Skip),
        "invalid" => Ok(Tombstone::Invalid),
        "event" => Ok(Tombstone::Event(None)),
        _ => match text.strip_prefix("event:") {
            Some(event_type) => {
                check_const("tombstone", event_type)?;
                Ok(Tombstone::Event(Some(event_type.to_owned())))
            }
            None => Err(format!(
                "tombstone is {text:?}; must be skip, invalid, event, or event:TYPE"
            )),
        },
    }
}

fn places(field: &'static str, given: Option<Vec<String>>) -> Result<Option<Places>, String> {
    let Some(given) = given else {
        return Ok(None);
    };
    if given.is_empty() || given.len() > MAX_PLACES {
        return Err(format!(
            "{field} has {} places; must have 1 to {MAX_PLACES}",
            given.len()
        ));
    }
    let mut found = Places {
        list: Vec::new(),
        optional: false,
    };
    for (index, text) in given.iter().enumerate() {
        if text == "none" {
            if !matches!(field, "subject" | "time") {
                return Err(format!("{field} cannot be none: every event has it"));
            }
            if index + 1 < given.len() {
                return Err(format!("{field}: none must be the last place"));
            }
            found.optional = true;
        } else {
            found.list.push(place(field, text)?);
        }
    }
    Ok(Some(found))
}

fn place(field: &'static str, text: &str) -> Result<Place, String> {
    let (kind, rest) = text
        .split_once(':')
        .map_or((text, None), |(kind, rest)| (kind, Some(rest)));
    match (kind, rest) {
        ("json", Some(path)) => return Ok(Place::Json(Path::parse(field, path)?)),
        ("value", None) if field == "data" => return Ok(Place::Value),
        _ if field == "data" => {
            return Err(format!(
                "data is {text:?}; must be value, or json:PATH for a part of it"
            ));
        }
        _ => {}
    }
    match (kind, rest) {
        ("header", Some(name)) if !name.is_empty() => Ok(Place::Header(name.to_owned())),
        ("key", None) => Ok(Place::Key),
        ("const", Some(_)) | ("topic", None) if field == "id" => Err(format!(
            "id is {text:?}: all events of the topic would have the same id, and receivers would drop all but one; use header:NAME, key or json:PATH"
        )),
        ("const", Some(text)) => {
            check_const(field, text)?;
            Ok(Place::Const(text.to_owned()))
        }
        ("topic", None) if field != "time" => Ok(Place::Topic),
        ("value", None) => Err(format!(
            "{field} is \"value\", which is for data only; use json:PATH for a part of the value"
        )),
        _ => Err(format!(
            "{field} is {text:?}; must be header:NAME, key, json:PATH, const:TEXT{}",
            match field {
                "time" => " or none",
                "subject" => ", topic or none",
                _ => " or topic",
            }
        )),
    }
}

/// What holds for the attribute of an event holds for a constant.
fn check_const(field: &str, text: &str) -> Result<(), String> {
    let size = text.len();
    if text.is_empty() {
        Err(format!("{field}: the constant is empty"))
    } else if size > MAX_ATTRIBUTE_BYTES {
        Err(format!(
            "{field}: the constant is {size} bytes, the limit is {MAX_ATTRIBUTE_BYTES} bytes"
        ))
    } else if text.chars().any(char::is_control) {
        Err(format!("{field}: the constant holds a control character"))
    } else if field == "time" && !is_rfc3339(text) {
        Err(format!(
            "time is {text:?}; a constant must be RFC 3339 with an offset"
        ))
    } else {
        Ok(())
    }
}

impl Path {
    /// Segments are separated by dots; a backslash makes the next character part of its segment.
    fn parse(field: &str, text: &str) -> Result<Self, String> {
        let refuse = |why: &str| Err(format!("{field} is \"json:{text}\": {why}"));
        if text == "$" || text.starts_with("$.") || text.starts_with("$[") {
            return refuse("a path has no $; write json:a.b for the member b of the member a");
        }
        if text.starts_with('/') {
            return refuse(
                "a path has dots, not slashes; write json:a.b, or json:\\/a for a name that begins with one",
            );
        }
        let mut segments = Vec::new();
        let mut segment = String::new();
        let mut letters = text.chars();
        while let Some(letter) = letters.next() {
            match letter {
                '.' => segments.push(std::mem::take(&mut segment)),
                '[' => {
                    return refuse(
                        "write the number of an item as a segment, as in json:items.0.id, and \\[ for a bracket in a name",
                    );
                }
                '\\' => match letters.next() {
                    Some(next) => segment.push(next),
                    None => return refuse("it ends with a backslash"),
                },
                letter => segment.push(letter),
            }
        }
        segments.push(segment);
        if segments.iter().any(String::is_empty) {
            return refuse("a segment is empty; write \\. for a dot in a name");
        }
        if segments.len() > MAX_PATH_SEGMENTS {
            return refuse(&format!(
                "it has {} segments, the limit is {MAX_PATH_SEGMENTS}",
                segments.len()
            ));
        }
        Ok(Self {
            segments,
            text: text.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests;
