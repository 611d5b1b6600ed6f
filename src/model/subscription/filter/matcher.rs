//! Matchers: what a value of an event is compared with, and how they are read.

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::ops::Bound;

use compact_str::CompactString;
use serde_json::Value;

/// The maximum number of matchers of a path, and of values of an `anything-but`.
pub const MAX_MATCHERS: usize = 64;
/// The maximum length of a string in a matcher, in bytes.
pub const MAX_STRING_BYTES: usize = 1024;

/// A JSON number, compared by value: `5` equals `5.0`, and integers that a double cannot represent stay distinct.
#[derive(Clone, Copy, Debug)]
pub enum Num {
    /// A whole number below 2^96.
    Int(i128),
    /// Any other number; never NaN.
    Float(f64),
}

impl Num {
    /// Converts a JSON number.
    #[must_use]
    pub fn of(number: &serde_json::Number) -> Self {
        const EXACT: f64 = 79_228_162_514_264_337_593_543_950_336.0; // 2^96
        if let Some(int) = number.as_i128() {
            return Self::Int(int);
        }
        let float = number.as_f64().unwrap_or_default();
        #[allow(clippy::cast_possible_truncation, reason = "whole and below 2^96")]
        if float.fract() == 0.0 && float.abs() < EXACT {
            Self::Int(float as i128)
        } else {
            Self::Float(float)
        }
    }

    /// The nearest double; preserves the order.
    #[must_use]
    pub fn as_f64(self) -> f64 {
        match self {
            #[allow(clippy::cast_precision_loss, reason = "says so")]
            Self::Int(int) => int as f64,
            Self::Float(float) => float,
        }
    }
}

impl Ord for Num {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => a.cmp(b),
            _ => self.as_f64().total_cmp(&other.as_f64()),
        }
    }
}
impl PartialOrd for Num {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Num {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Num {}
impl Hash for Num {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Int(int) => int.hash(state),
            Self::Float(float) => float.to_bits().hash(state),
        }
    }
}

/// A value in a matcher.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scalar {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number: boxed, since most are strings, and every replica holds the filters of all subscriptions in memory.
    Number(Box<Num>),
    /// A string.
    String(CompactString),
}

/// A value that a path leads to in an event.
#[derive(Clone, Copy, Debug)]
pub enum Leaf<'e> {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(Num),
    /// A string.
    String(&'e str),
    /// An object or an empty array: it exists, but equals nothing.
    Composite,
}

impl<'e> Leaf<'e> {
    /// Converts a value that is not a non-empty array.
    #[must_use]
    pub fn of(value: &'e Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(bool) => Self::Bool(*bool),
            Value::Number(number) => Self::Number(Num::of(number)),
            Value::String(text) => Self::String(text),
            Value::Array(_) | Value::Object(_) => Self::Composite,
        }
    }

    fn equals(self, scalar: &Scalar) -> bool {
        match (self, scalar) {
            (Self::Null, Scalar::Null) => true,
            (Self::Bool(a), Scalar::Bool(b)) => a == *b,
            (Self::Number(a), Scalar::Number(b)) => a == **b,
            (Self::String(a), Scalar::String(b)) => *a == **b,
            _ => false,
        }
    }

    fn text(self) -> Option<&'e str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }
}

/// The bounds of a `numeric` matcher; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    /// `>` or `>=`.
    pub lower: Bound<Num>,
    /// `<` or `<=`.
    pub upper: Bound<Num>,
}

impl Interval {
    fn contains(&self, x: Num) -> bool {
        let above = match self.lower {
            Bound::Included(low) => x >= low,
            Bound::Excluded(low) => x > low,
            Bound::Unbounded => true,
        };
        above
            && match self.upper {
                Bound::Included(high) => x <= high,
                Bound::Excluded(high) => x < high,
                Bound::Unbounded => true,
            }
    }

    fn is_empty(&self) -> bool {
        match (self.lower, self.upper) {
            (Bound::Included(low), Bound::Included(high)) => low > high,
            (
                Bound::Included(low) | Bound::Excluded(low),
                Bound::Included(high) | Bound::Excluded(high),
            ) => low >= high,
            _ => false,
        }
    }
}

/// One entry of a path's list; see the table in the module documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Matcher {
    /// Exact.
    Equals(Scalar),
    /// `{"prefix"}`; not empty.
    Prefix(Box<str>),
    /// `{"suffix"}`; not empty.
    Suffix(Box<str>),
    /// `{"anything-but": value or list}`.
    NotIn(Box<[Scalar]>),
    /// `{"anything-but": {"prefix"}}`.
    NotPrefix(Box<str>),
    /// `{"anything-but": {"suffix"}}`.
    NotSuffix(Box<str>),
    /// `{"numeric"}`.
    Numeric(Box<Interval>),
    /// `{"exists"}`.
    Exists(bool),
}

impl Matcher {
    pub(super) fn accepts(&self, leaf: Leaf<'_>) -> bool {
        let scalar = !matches!(leaf, Leaf::Composite);
        match self {
            Self::Equals(wanted) => leaf.equals(wanted),
            Self::Prefix(text) => leaf.text().is_some_and(|value| value.starts_with(&**text)),
            Self::Suffix(text) => leaf.text().is_some_and(|value| value.ends_with(&**text)),
            Self::NotIn(values) => scalar && !values.iter().any(|value| leaf.equals(value)),
            Self::NotPrefix(text) => {
                scalar && !leaf.text().is_some_and(|value| value.starts_with(&**text))
            }
            Self::NotSuffix(text) => {
                scalar && !leaf.text().is_some_and(|value| value.ends_with(&**text))
            }
            Self::Numeric(interval) => matches!(leaf, Leaf::Number(x) if interval.contains(x)),
            Self::Exists(wanted) => *wanted,
        }
    }
}

/// A problem of each matcher; it names the matcher by its place, if there are several.
pub(super) fn parse_matchers(list: &Value) -> Result<Box<[Matcher]>, Vec<String>> {
    let Value::Array(items) = list else {
        return Err(vec![
            "must be a list of matchers, as in [\"DE\"]".to_owned(),
        ]);
    };
    if items.is_empty() || items.len() > MAX_MATCHERS {
        return Err(vec![format!(
            "has {} matchers, allowed are 1 to {MAX_MATCHERS}",
            items.len()
        )]);
    }
    let (mut matchers, mut problems) = (Vec::new(), Vec::new());
    for (at, item) in items.iter().enumerate() {
        match parse_matcher(item) {
            Ok(matcher) => matchers.push(matcher),
            Err(problem) if items.len() == 1 => problems.push(problem),
            Err(problem) => problems.push(format!("matcher {}: {problem}", at + 1)),
        }
    }
    if problems.is_empty() {
        Ok(matchers.into())
    } else {
        Err(problems)
    }
}

fn parse_matcher(value: &Value) -> Result<Matcher, String> {
    let Value::Object(map) = value else {
        return scalar(value).map(Matcher::Equals);
    };
    match (map.len(), map.iter().next()) {
        (1, Some((name, operand))) => match name.as_str() {
            "prefix" => text(name, operand).map(Matcher::Prefix),
            "suffix" => text(name, operand).map(Matcher::Suffix),
            "anything-but" => parse_anything_but(operand),
            "numeric" => parse_numeric(operand).map(numeric),
            "exists" => operand
                .as_bool()
                .map(Matcher::Exists)
                .ok_or_else(|| "exists must be true or false".to_owned()),
            _ => Err(format!(
                "unknown matcher {name:?}; must be prefix, suffix, anything-but, numeric or exists, \
                 and paths are written with dots, as in data.total"
            )),
        },
        (count, _) => {
            let names = map.keys().take(4).map(String::as_str);
            let names = names.collect::<Vec<_>>().join(", ");
            Err(format!(
                "a matcher object has one member, this has {count} ({names})"
            ))
        }
    }
}

/// A single number becomes an equality, which is faster to look up than an interval.
fn numeric(interval: Interval) -> Matcher {
    match (interval.lower, interval.upper) {
        (Bound::Included(low), Bound::Included(high)) if low == high => {
            Matcher::Equals(Scalar::Number(Box::new(low)))
        }
        _ => Matcher::Numeric(Box::new(interval)),
    }
}

fn parse_anything_but(operand: &Value) -> Result<Matcher, String> {
    match operand {
        Value::Object(_) => match parse_matcher(operand)? {
            Matcher::Prefix(text) => Ok(Matcher::NotPrefix(text)),
            Matcher::Suffix(text) => Ok(Matcher::NotSuffix(text)),
            _ => {
                Err("anything-but takes a value, a list of values, a prefix or a suffix".to_owned())
            }
        },
        Value::Array(items) if items.is_empty() || items.len() > MAX_MATCHERS => Err(format!(
            "anything-but has {} values, allowed are 1 to {MAX_MATCHERS}",
            items.len()
        )),
        Value::Array(items) => Ok(Matcher::NotIn(
            items.iter().map(scalar).collect::<Result<_, _>>()?,
        )),
        value => Ok(Matcher::NotIn(Box::new([scalar(value)?]))),
    }
}

fn parse_numeric(operand: &Value) -> Result<Interval, String> {
    const FORM: &str = "numeric is a list as in [\">=\",100,\"<\",200], with =, >, >=, < or <=";
    let items = operand
        .as_array()
        .filter(|items| matches!(items.len(), 2 | 4))
        .ok_or(FORM)?;
    let mut interval = Interval {
        lower: Bound::Unbounded,
        upper: Bound::Unbounded,
    };
    for pair in items.chunks_exact(2) {
        let (Value::String(operator), Value::Number(number)) = (&pair[0], &pair[1]) else {
            return Err(FORM.to_owned());
        };
        let x = Num::of(number);
        let (lower, upper) = match operator.as_str() {
            "=" => (Some(Bound::Included(x)), Some(Bound::Included(x))),
            ">" => (Some(Bound::Excluded(x)), None),
            ">=" => (Some(Bound::Included(x)), None),
            "<" => (None, Some(Bound::Excluded(x))),
            "<=" => (None, Some(Bound::Included(x))),
            _ => return Err(FORM.to_owned()),
        };
        set_once(&mut interval.lower, lower)?;
        set_once(&mut interval.upper, upper)?;
    }
    if interval.is_empty() {
        Err(format!("no number lies within {operand}"))
    } else {
        Ok(interval)
    }
}

fn set_once(side: &mut Bound<Num>, bound: Option<Bound<Num>>) -> Result<(), String> {
    match (bound, *side) {
        (None, _) => Ok(()),
        (Some(bound), Bound::Unbounded) => {
            *side = bound;
            Ok(())
        }
        _ => Err("numeric has two bounds on the same side".to_owned()),
    }
}

fn scalar(value: &Value) -> Result<Scalar, String> {
    match value {
        Value::Null => Ok(Scalar::Null),
        Value::Bool(bool) => Ok(Scalar::Bool(*bool)),
        Value::Number(number) => Ok(Scalar::Number(Box::new(Num::of(number)))),
        Value::String(text) if text.len() > MAX_STRING_BYTES => Err(format!(
            "a string is {} bytes, the limit is {MAX_STRING_BYTES}",
            text.len()
        )),
        Value::String(text) => Ok(Scalar::String(text.as_str().into())),
        _ => Err("a value is a string, a number, true, false or null".to_owned()),
    }
}

fn text(name: &str, operand: &Value) -> Result<Box<str>, String> {
    match operand {
        Value::String(text) if (1..=MAX_STRING_BYTES).contains(&text.len()) => {
            Ok(text.as_str().into())
        }
        _ => Err(format!(
            "{name} must be a string of 1 to {MAX_STRING_BYTES} bytes"
        )),
    }
}
