//! What is wrong with a schema, or with a value that should have been written with it.

use std::fmt;

use crate::model::event;

/// The largest schema, together with all that it refers to, bytes of text.
pub const MAX_SCHEMA_BYTES: usize = 2 * 1024 * 1024;
/// The deepest nesting of a value: that of the JSON which is read from it.
pub(super) const MAX_DEPTH: usize = event::MAX_DEPTH;

/// Why a schema cannot be used. It never can, so the events that name it are invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Neither Avro, JSON Schema nor Protobuf.
    #[error("its type is {0:?}; must be AVRO, JSON or PROTOBUF")]
    Language(String),
    /// A build without Protobuf.
    #[error("this build cannot read Protobuf; rebuild with --features protobuf")]
    NotBuiltIn,
    /// Too long.
    #[error("it has {size} bytes with its references, the limit is {MAX_SCHEMA_BYTES} bytes")]
    TooLarge {
        /// Bytes of text.
        size: usize,
    },
    /// Text that the format does not allow.
    #[error("{0}")]
    Malformed(String),
    /// A type that neither it nor a reference defines.
    #[error("the type {0:?} is not defined, neither here nor in a reference")]
    UnknownType(String),
    /// A type that is defined twice.
    #[error("the type {0:?} is defined twice")]
    DefinedTwice(String),
}

/// Why a value has no JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decode {
    /// Where: the names of fields and the numbers of items, innermost first.
    path: Vec<String>,
    /// What is wrong there.
    problem: Problem,
}

/// What is wrong with a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It is cut off, or was written with another schema.
    #[error("the value ends too early")]
    Ends,
    /// It goes on.
    #[error("{0} bytes are left behind the end of the value")]
    Left(usize),
    /// A number of more bits than its type has.
    #[error("a number has more than {0} bits")]
    Number(u32),
    /// A length or count below zero.
    #[error("a length is negative or too large")]
    Length,
    /// Neither 0 nor 1.
    #[error("a boolean is {0}; must be 0 or 1")]
    Boolean(u8),
    /// A branch or symbol that the schema does not have.
    #[error("{what} {index} does not exist; the schema has {count}")]
    Index {
        /// What the number counts.
        what: &'static str,
        /// The number.
        index: i64,
        /// How many there are.
        count: usize,
    },
    /// A string that is not text.
    #[error("a string is not UTF-8")]
    NotUtf8,
    /// A map with one key twice: readers would disagree on it.
    #[error("the key {0:?} occurs twice")]
    Key(String),
    /// A value that the text form of its type cannot hold.
    #[error("{0}")]
    Range(&'static str),
    /// Arrays, maps and records inside each other.
    #[error("the value is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// The JSON is larger than an event may be.
    #[error("its JSON is larger than {0} bytes (--max-event-bytes)")]
    TooLarge(usize),
    /// A type that an `Any` names and the schema does not have.
    #[error("the type {0:?} is not defined in the schema")]
    UnknownType(String),
    /// What the Protobuf library says.
    #[error("{0}")]
    Protobuf(String),
}

impl From<Problem> for Decode {
    fn from(problem: Problem) -> Self {
        Self {
            path: Vec::new(),
            problem,
        }
    }
}

impl Decode {
    /// The same, seen from the field or item around it.
    pub(super) fn within(mut self, name: impl fmt::Display) -> Self {
        /// A deeper path helps nobody.
        const SHOWN: usize = 16;
        if self.path.len() < SHOWN {
            self.path.push(name.to_string());
        }
        self
    }

    /// What is wrong.
    #[must_use]
    pub fn problem(&self) -> &Problem {
        &self.problem
    }
}

impl fmt::Display for Decode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.path.iter().rev().enumerate() {
            let dot = if index > 0 { "." } else { "" };
            write!(f, "{dot}{name}")?;
        }
        let colon = if self.path.is_empty() { "" } else { ": " };
        write!(f, "{colon}{}", self.problem)
    }
}

impl std::error::Error for Decode {}
