//! The events that a subscription matches: type patterns, and a content filter in the style of EventBridge patterns.
//!
//! A filter maps paths to lists of matchers. All paths must match. For each path any matcher of its list is enough, and
//! if the path leads to several values (through arrays) any of them is enough.
//!
//! | matcher | holds when a value at the path … |
//! |---|---|
//! | `"DE"`, `5`, `true`, `null` | equals it; numbers by value, so `5` equals `5.0`, integers of 64 bits exactly |
//! | `{"prefix":"a"}`, `{"suffix":"z"}` | is a string that starts or ends with it |
//! | `{"anything-but":x}` | exists, is not an object, and is not x; x is a value, a list, `{"prefix":…}` or `{"suffix":…}` |
//! | `{"numeric":[">=",100,"<",200]}` | is a number within the bounds |
//! | `{"exists":true}`, `{"exists":false}` | exists (`null` and objects included), does not exist |
//!
//! Paths start with `data`, or name an attribute: `type`, `subject`, `source`, `id`, `time`, or a CloudEvents
//! extension. A dot in the name of a member is written `\.`.

mod matcher;

use std::sync::Arc;

use serde_json::{Map, Value};

use matcher::parse_matchers;
pub use matcher::{Interval, Leaf, MAX_MATCHERS, MAX_STRING_BYTES, Matcher, Num, Scalar};

use super::path;
use crate::model::event::{Attribute, Event};

/// The maximum number of paths in a filter.
pub const MAX_PATHS: usize = 32;
/// The maximum length of a type pattern, in bytes: that of an event's type.
pub const MAX_PATTERN_BYTES: usize = 1024;

/// One segment of a type pattern.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Segment {
    /// This text.
    Literal(Box<str>),
    /// `*`: one segment.
    One,
    /// `**`: any number of segments, including none.
    Any,
}

/// A pattern over an event's type, whose segments are separated by dots.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TypePattern {
    /// Without wildcards.
    Exact(Box<str>),
    /// With at least one wildcard.
    Wildcard(Box<[Segment]>),
}

impl TypePattern {
    /// Parses a pattern such as `order.created`, `order.*`, `**.failed`; `order.**` also matches `order`.
    ///
    /// # Errors
    /// A sentence that describes the problem.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > MAX_PATTERN_BYTES || text.chars().any(char::is_control) {
            return Err(format!(
                "a pattern has 1 to {MAX_PATTERN_BYTES} bytes and no control characters"
            ));
        }
        let mut segments = text.split('.');
        if text.contains('*') {
            return segments
                .map(Segment::parse)
                .collect::<Result<_, _>>()
                .map(Self::Wildcard);
        }
        match segments.find(|segment| segment.is_empty()) {
            Some(segment) => Segment::parse(segment).map(|_| Self::Exact(text.into())),
            None => Ok(Self::Exact(text.into())),
        }
    }

    /// Whether the pattern matches an event of this type.
    #[must_use]
    pub fn matches(&self, event_type: &str) -> bool {
        match self {
            Self::Exact(text) => **text == *event_type,
            Self::Wildcard(segments) => {
                let wanted: Vec<&str> = event_type.split('.').collect();
                segments_match(segments, &wanted)
            }
        }
    }
}

impl Segment {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("a segment between dots is empty".to_owned()),
            "*" => Ok(Self::One),
            "**" => Ok(Self::Any),
            _ if text.contains('*') => {
                Err("* and ** stand for whole segments between dots".to_owned())
            }
            _ => Ok(Self::Literal(text.into())),
        }
    }
}

/// Row by row, so that patterns with many `**` cost at most pattern length times type length.
fn segments_match(pattern: &[Segment], segments: &[&str]) -> bool {
    let mut row = vec![false; segments.len() + 1];
    row[0] = true;
    for part in pattern {
        let mut next = vec![false; row.len()];
        match part {
            Segment::Any => {
                let mut reached = false;
                for (cell, before) in next.iter_mut().zip(&row) {
                    reached |= before;
                    *cell = reached;
                }
            }
            Segment::One => next[1..].copy_from_slice(&row[..segments.len()]),
            Segment::Literal(text) => {
                for (at, segment) in segments.iter().enumerate() {
                    next[at + 1] = row[at] && **text == **segment;
                }
            }
        }
        row = next;
    }
    row[segments.len()]
}

/// A path and its matchers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The segments of the path; at least one.
    pub path: Arc<[Box<str>]>,
    /// At least one.
    pub matchers: Box<[Matcher]>,
}

impl Condition {
    fn new(path: Arc<[Box<str>]>, matchers: Box<[Matcher]>) -> Result<Self, String> {
        let (is_text, is_required) = path::is_text(&path);
        let can_hold = |matcher: &Matcher| match matcher {
            Matcher::Equals(scalar) => matches!(scalar, Scalar::String(_)),
            Matcher::Numeric(_) => false,
            Matcher::Exists(wanted) => *wanted || !is_required,
            _ => true,
        };
        if is_text && !matchers.iter().any(can_hold) {
            let name = &path[0];
            return Err(format!(
                "matches no event: {name} is always a text (write numbers in quotes, as in \"5\"){}",
                if is_required {
                    ", and every event has one"
                } else {
                    ""
                }
            ));
        }
        Ok(Self { path, matchers })
    }

    /// Whether one of the matchers holds for the values that the path leads to.
    #[must_use]
    pub fn accepts(&self, leaves: &[Leaf<'_>]) -> bool {
        self.matchers.iter().any(|matcher| match matcher {
            Matcher::Exists(wanted) => leaves.is_empty() != *wanted,
            _ => leaves.iter().any(|leaf| matcher.accepts(*leaf)),
        })
    }
}

/// A content filter; the empty one matches every event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// All must hold; each path occurs once.
    pub conditions: Box<[Condition]>,
}

impl Filter {
    /// Parses a filter.
    ///
    /// # Errors
    /// A sentence for each problem, with its path.
    pub fn parse(map: &Map<String, Value>) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        if map.len() > MAX_PATHS {
            problems.push(format!("has {} paths, the limit is {MAX_PATHS}", map.len()));
        }
        let mut conditions = Vec::new();
        for (path, list) in map {
            let read = match (path::parse(path), parse_matchers(list)) {
                (Ok(path), Ok(matchers)) => {
                    Condition::new(path, matchers).map_err(|problem| vec![problem])
                }
                (path, matchers) => Err(path
                    .err()
                    .into_iter()
                    .chain(matchers.err().into_iter().flatten())
                    .collect()),
            };
            match read {
                Ok(condition) => conditions.push(condition),
                Err(found) => {
                    problems.extend(found.iter().map(|problem| format!("{path:?}: {problem}")))
                }
            }
        }
        if problems.is_empty() {
            Ok(Self {
                conditions: conditions.into(),
            })
        } else {
            Err(problems)
        }
    }

    /// What is probably meant otherwise, although it may match: a sentence for each, with its path.
    pub fn doubts(&self) -> impl Iterator<Item = String> {
        let paths = self.conditions.iter().map(|condition| &condition.path);
        paths.filter_map(|path| Some(format!("{:?}: {}", path.join("."), path::doubt(path)?)))
    }

    /// Whether the filter matches the event. The reference that the index in `model::matching` is tested against.
    #[must_use]
    pub fn matches(&self, event: &Event<'_>) -> bool {
        let mut leaves = Vec::new();
        self.conditions.iter().all(|condition| {
            leaves.clear();
            resolve(event, &condition.path, &mut leaves);
            condition.accepts(&leaves)
        })
    }
}

/// Appends the values that the path leads to.
fn resolve<'e>(event: &'e Event<'_>, path: &[Box<str>], leaves: &mut Vec<Leaf<'e>>) {
    match path {
        [first, rest @ ..] if **first == *"data" => descend(event.data(), rest, leaves),
        [name] => match event.attribute(name) {
            Some(Attribute::Text(text)) => leaves.push(Leaf::String(text)),
            Some(Attribute::Json(value)) => descend(value, &[], leaves),
            None => {}
        },
        _ => {}
    }
}

fn descend<'e>(value: &'e Value, path: &[Box<str>], leaves: &mut Vec<Leaf<'e>>) {
    match (value, path) {
        (Value::Array(items), _) if !items.is_empty() => {
            for item in items {
                descend(item, path, leaves);
            }
        }
        (Value::Object(map), [first, rest @ ..]) => {
            if let Some(member) = map.get(&**first) {
                descend(member, rest, leaves);
            }
        }
        (_, []) => leaves.push(Leaf::of(value)),
        _ => {}
    }
}
