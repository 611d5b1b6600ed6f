//! Recognises a value that is framed with the id of its schema.
//!
//! | where | bytes |
//! |---|---|
//! | in front of the value | 0, the id as 4 bytes |
//! | the header `__value_schema_id` | 1, a GUID of 16 bytes (or 0 and the 4 bytes) |
//!
//! A Protobuf value has the path to its message behind the id, in the same place: how many numbers, then the numbers, all
//! as zigzag varints; the single byte 0 stands for the first message.

use std::fmt;

use super::error::Problem;

/// The header with a value's schema id.
pub(super) const SCHEMA_ID_HEADER: &str = "__value_schema_id";

/// Names a schema of a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SchemaId {
    /// Its number.
    Number(u32),
    /// Its globally unique id.
    Guid([u8; 16]),
}

impl fmt::Display for SchemaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Guid(bytes) => write_uuid(f, bytes),
        }
    }
}

/// 16 bytes as a UUID is written.
pub(super) fn write_uuid(f: &mut impl fmt::Write, bytes: &[u8; 16]) -> fmt::Result {
    for (index, byte) in bytes.iter().enumerate() {
        let dash = if matches!(index, 4 | 6 | 8 | 10) {
            "-"
        } else {
            ""
        };
        write!(f, "{dash}{byte:02x}")?;
    }
    Ok(())
}

/// A value and the id of its schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framed<'a> {
    /// The schema.
    pub id: SchemaId,
    /// What stands behind the id in a header: the path of a Protobuf message.
    pub(super) path: Option<&'a [u8]>,
    /// What stands behind the id in front of the value.
    pub(super) rest: &'a [u8],
}

/// What a value is framed with; `header` is that of the name `__value_schema_id`, which has precedence.
///
/// `None` when it is not framed: no JSON text begins with such a byte.
#[must_use]
pub fn recognise<'a>(value: &'a [u8], header: Option<&'a [u8]>) -> Option<Framed<'a>> {
    if let Some((id, path)) = header.and_then(split) {
        return Some(Framed {
            id,
            path: Some(path),
            rest: value,
        });
    }
    match split(value)? {
        (id @ SchemaId::Number(_), rest) => Some(Framed {
            id,
            path: None,
            rest,
        }),
        // Only headers hold GUIDs.
        (SchemaId::Guid(_), _) => None,
    }
}

fn split(bytes: &[u8]) -> Option<(SchemaId, &[u8])> {
    match bytes.split_first()? {
        (0, rest) => {
            let (id, rest) = rest.split_first_chunk()?;
            Some((SchemaId::Number(u32::from_be_bytes(*id)), rest))
        }
        (1, rest) => {
            let (guid, rest) = rest.split_first_chunk()?;
            Some((SchemaId::Guid(*guid), rest))
        }
        _ => None,
    }
}

/// Takes a zigzag varint off the front of `input`.
pub(super) fn zigzag(input: &mut &[u8]) -> Result<i64, Problem> {
    let mut value = 0_u64;
    let bytes: &[u8] = input;
    for (index, &byte) in bytes.iter().enumerate() {
        let part = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit.
        if index == 9 && part > 1 || index > 9 {
            return Err(Problem::Number(64));
        }
        value |= part << (7 * index);
        if byte < 0x80 {
            *input = &bytes[index + 1..];
            return Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
        }
    }
    Err(Problem::Ends)
}
