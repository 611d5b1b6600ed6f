//! Why a record is not an event, and the limits that an event must keep.

/// The longest id, source, type or subject, bytes of UTF-8: they travel in record and request headers.
pub const MAX_ATTRIBUTE_BYTES: usize = 1024;
/// The longest `time`, bytes: RFC 3339 sets no limit to the fraction of a second.
pub const MAX_TIME_BYTES: usize = 64;
/// The deepest nesting of arrays and objects, counted from the event's own object: what `serde_json` reads, so
/// that a receiver that uses it can read every body.
pub const MAX_DEPTH: usize = 127;

/// How much of a record's text a message quotes, bytes.
const MAX_QUOTED: usize = 256;

/// Why a record is not a valid event. Each message is suitable for the header `hookstream-error`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEvent {
    /// A value of no bytes, or none.
    #[error("the value is empty; an event is a JSON object")]
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
    #[error("the content type {0:?} is a batch; send one event per record")]
    Batch(String),
    /// CloudEvents in another format than JSON.
    #[error(
        "the content type {0:?} is not supported; structured CloudEvents must be application/cloudevents+json"
    )]
    UnsupportedFormat(String),
    /// A string as data of a type that is neither JSON nor text.
    #[error(
        "data is a string and not base64, but datacontenttype {0:?} is neither JSON nor text; bytes belong into data_base64"
    )]
    DataNotText(String),
    /// CloudEvents' `data_base64` in a plain event: the payload would be dropped silently.
    #[error("a plain event has no data_base64; put JSON into data, or publish a CloudEvent")]
    DataBase64,
    /// `data_base64` that is not base64.
    #[error("data_base64 is not base64 with padding (RFC 4648, section 4)")]
    NotBase64,
    /// Two payloads.
    #[error("data and data_base64 are both present; a CloudEvent has only one of them")]
    TwoPayloads,
    /// The headers of a CloudEvent in another binding's spelling.
    #[error(
        "the header {0:?} looks like a CloudEvents attribute, but its prefix is not \"ce_\" (Kafka protocol binding 1.0.2, section 3.2.3.1)"
    )]
    ForeignPrefix(String),
    /// A value that is recognised as something else.
    #[error("the value begins with, or is, {what}; {way_out}")]
    Framing {
        /// What it is.
        what: String,
        /// What the publisher can do.
        way_out: &'static str,
    },
    /// What a mapping names is at none of its places.
    #[error("{name} is not where the event mapping of the topic looks for it: {places}")]
    NotMapped {
        /// The attribute, or data.
        name: &'static str,
        /// Each place, and what is wrong with it.
        places: String,
    },
    /// A JSON string that is to be unwrapped holds something else.
    #[error(
        "{what} is a JSON string that does not hold JSON ({reason}); unwrap = false passes it on as a string"
    )]
    NotWrapped {
        /// The value, or its data.
        what: &'static str,
        /// Why it is not JSON.
        reason: String,
    },
    /// A JSON string whose escapes are no text.
    #[error("the value holds an escape that is not a character")]
    Escape,
    /// A record without a value where the mapping does not expect one.
    #[error("the record is a tombstone, which the event mapping of the topic declares invalid")]
    Tombstone,
    /// A required member is missing.
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
        /// The actual type.
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

impl InvalidEvent {
    /// The same with the beginning of what it quotes: a content type or the name of a header can be as long as a record.
    pub(super) fn brief(mut self) -> Self {
        match &mut self {
            Self::Batch(text)
            | Self::UnsupportedFormat(text)
            | Self::DataNotText(text)
            | Self::ForeignPrefix(text)
            | Self::Time(text)
            | Self::SpecVersion(text)
            | Self::Framing { what: text, .. }
            | Self::NotJson { reason: text, .. }
            | Self::NotWrapped { reason: text, .. }
            | Self::Header { name: text, .. } => cut(text, MAX_QUOTED),
            // The places are those of the settings.
            Self::NotMapped { places, .. } => cut(places, 4 * MAX_QUOTED),
            Self::NoValue
            | Self::TooLarge { .. }
            | Self::NotUtf8 { .. }
            | Self::TooDeep
            | Self::DataBase64
            | Self::NotBase64
            | Self::TwoPayloads
            | Self::Escape
            | Self::Tombstone
            | Self::Missing(_)
            | Self::Empty(_)
            | Self::WrongType { .. }
            | Self::TooLong { .. }
            | Self::Control { .. } => {}
        }
        self
    }
}

fn cut(text: &mut String, most: usize) {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most));
        text.push('…');
    }
}
