//! The types of Avro.

/// A compiled schema. Types are known by number, since named ones may contain themselves.
#[derive(Debug)]
pub(crate) struct Schema {
    pub(super) types: Vec<Type>,
    pub(super) root: usize,
}

/// A type, with the number of each type inside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    /// A named type whose definition is not at its end yet.
    Undefined,
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    Record(Vec<Field>),
    Enum(Vec<String>),
    Array(usize),
    Map(usize),
    Union(Vec<usize>),
    Fixed(usize),
    /// An unscaled number of that many bytes, or of any number of them.
    Decimal {
        scale: usize,
        fixed: Option<usize>,
    },
    /// 16 bytes.
    Uuid,
    /// Days since 1970.
    Date,
    /// Since midnight.
    TimeOfDay(Unit, Width),
    /// Since 1970, UTC.
    Timestamp(Unit),
    /// The same in an unknown time zone.
    LocalTimestamp(Unit),
    /// Months, days and milliseconds.
    Duration,
}

/// The type of an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    Int,
    Long,
}

/// The unit of a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Milli,
    Micro,
    Nano,
}

impl Unit {
    /// How many there are in a second.
    pub(super) fn per_second(self) -> i64 {
        match self {
            Self::Milli => 1_000,
            Self::Micro => 1_000_000,
            Self::Nano => 1_000_000_000,
        }
    }

    /// Digits of a fraction of a second.
    pub(super) fn digits(self) -> usize {
        match self {
            Self::Milli => 3,
            Self::Micro => 6,
            Self::Nano => 9,
        }
    }
}

/// A field of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    pub(super) name: String,
    pub(super) of: usize,
}
