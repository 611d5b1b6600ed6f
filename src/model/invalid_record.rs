//! A record that was set aside, as it is kept in `webhook-invalid-events`.
//!
//! The copy is the original, unchanged. Where that cannot be written because of its size, the copy is cut, step by step,
//! until it fits: see [`Extent`]. The coordinates in its headers lead to the original.

use std::borrow::Cow;

use crate::model::units::Offset;

/// Bytes of the original's value that a head keeps.
pub const HEAD_VALUE_BYTES: usize = 64 * 1024;
/// Bytes of the original's key that a head keeps.
pub const HEAD_KEY_BYTES: usize = 4 * 1024;
/// Bytes of the original's headers, names and values, that a head keeps: the first headers that fit together.
pub const HEAD_HEADER_BYTES: usize = 16 * 1024;
/// The longest reason, bytes; the rest is cut at a character's border.
pub const MAX_ERROR_BYTES: usize = 1024;

/// The header of a copy that names the topic of the original.
pub const HEADER_TOPIC: &str = "hookstream-topic";
/// The header of a copy that names the partition of the original.
pub const HEADER_PARTITION: &str = "hookstream-partition";
/// The header of a copy that names the offset of the original.
pub const HEADER_OFFSET: &str = "hookstream-offset";

/// The header of a copy that is not whole: the size of the original's value, bytes.
pub const TRUNCATED: &str = "hookstream-truncated";

/// How much of a record its copy holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// All of it.
    #[default]
    Whole,
    /// The first bytes of its key, headers and value, for people to recognise it.
    Head,
    /// Only where it was, how large it was, and why it was set aside.
    Coordinates,
    /// No copy: not even the coordinates can be written. The log names the record.
    Nothing,
}

impl Extent {
    /// The next smaller one, after a copy of this one was refused for its size.
    #[must_use]
    pub fn smaller(self) -> Self {
        match self {
            Self::Whole => Self::Head,
            Self::Head => Self::Coordinates,
            Self::Coordinates | Self::Nothing => Self::Nothing,
        }
    }
}

/// A record that is set aside, as it came, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidRecord {
    /// The original key.
    pub key: Option<Vec<u8>>,
    /// The original value.
    pub value: Option<Vec<u8>>,
    /// The original headers; in a name, bytes that are not UTF-8 are written `\xNN`.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// One sentence.
    pub error: String,
    /// Topic that it was read from.
    pub topic: String,
    /// Partition that it was read from.
    pub partition: i32,
    /// Offset that it was read from.
    pub offset: Offset,
    /// How much of it its copy holds.
    pub extent: Extent,
}

/// The copy of a record, to be written.
#[derive(Debug)]
pub struct Copy<'a> {
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub value: Option<&'a [u8]>,
    /// The original's headers that it holds.
    pub headers: &'a [(String, Option<Vec<u8>>)],
    /// The headers behind them: what is wrong, where the record was, and how large if the copy is not whole.
    pub added: Vec<(&'static str, Cow<'a, str>)>,
}

impl InvalidRecord {
    /// What it takes in memory, bytes, near enough for a cap.
    #[must_use]
    pub fn weight(&self) -> usize {
        /// An entry in the list of headers.
        const HEADER: usize = 64;
        let length = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        let headers = self.headers.iter();
        let headers: usize = headers
            .map(|(name, value)| HEADER + name.len() + length(value))
            .sum();
        length(&self.key) + length(&self.value) + headers + 512
    }

    /// Its copy, as large as its extent says; `None` when there is to be none.
    #[must_use]
    pub fn copy(&self) -> Option<Copy<'_>> {
        let (key, value) = (self.key.as_deref(), self.value.as_deref());
        let (key, value, headers) = match self.extent {
            Extent::Nothing => return None,
            Extent::Coordinates => (None, None, 0),
            Extent::Head => (
                key.map(|key| head(key, HEAD_KEY_BYTES)),
                value.map(|value| head(value, HEAD_VALUE_BYTES)),
                self.headers_within(HEAD_HEADER_BYTES),
            ),
            Extent::Whole => (key, value, self.headers.len()),
        };
        let error = &self.error[..self.error.floor_char_boundary(MAX_ERROR_BYTES)];
        let mut added = vec![
            ("hookstream-error", Cow::Borrowed(error)),
            (HEADER_TOPIC, Cow::Borrowed(self.topic.as_str())),
            (HEADER_PARTITION, self.partition.to_string().into()),
            (HEADER_OFFSET, self.offset.to_string().into()),
        ];
        if self.extent != Extent::Whole {
            let size = self.value.as_ref().map_or(0, Vec::len);
            added.push((TRUNCATED, size.to_string().into()));
        }
        Some(Copy {
            key,
            value,
            headers: &self.headers[..headers],
            added,
        })
    }

    /// How many of the first headers take at most `limit` bytes together.
    fn headers_within(&self, limit: usize) -> usize {
        let mut bytes = 0;
        let fits = |(name, value): &&(String, Option<Vec<u8>>)| {
            bytes += name.len() + value.as_ref().map_or(0, Vec::len);
            bytes <= limit
        };
        self.headers.iter().take_while(fits).count()
    }
}

fn head(bytes: &[u8], limit: usize) -> &[u8] {
    &bytes[..bytes.len().min(limit)]
}

/// A header's name as text; bytes that are not UTF-8 are written `\xNN`.
#[must_use]
pub fn name_text(name: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            // Writing to a string does not fail.
            write!(text, "\\x{byte:02x}").ok();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(key: usize, value: usize, headers: &[usize], error: usize) -> InvalidRecord {
        InvalidRecord {
            key: Some(vec![b'k'; key]),
            value: Some(vec![b'v'; value]),
            headers: headers
                .iter()
                .map(|&length| ("name".to_owned(), Some(vec![b'h'; length])))
                .collect(),
            error: "é".repeat(error / 2),
            topic: "orders".to_owned(),
            partition: 3,
            offset: Offset(41),
            extent: Extent::Whole,
        }
    }

    fn size(copy: &Copy<'_>) -> usize {
        let length = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
        let headers = copy.headers.iter();
        let headers: usize = headers
            .map(|(name, value)| name.len() + length(value.as_deref()))
            .sum();
        let added: usize = copy
            .added
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        length(copy.key) + length(copy.value) + headers + added
    }

    proptest! {
        #[test]
        fn each_refusal_makes_the_copy_smaller_until_none_is_left(
            key in 0..10_000_usize, value in 0..200_000_usize,
            headers in proptest::collection::vec(0..9_000_usize, 0..20), error in 0..5_000_usize,
        ) {
            let mut record = record(key, value, &headers, error);
            let whole = record.copy().map(|copy| size(&copy));
            let head = HEAD_KEY_BYTES + HEAD_VALUE_BYTES + HEAD_HEADER_BYTES + 2048;
            for limit in [head, 2048] {
                record.extent = record.extent.smaller();
                let copy = record.copy().unwrap();
                prop_assert!(size(&copy) <= limit, "{:?}", record.extent);
                let (name, original) = copy.added.last().unwrap();
                prop_assert_eq!(*name, TRUNCATED);
                prop_assert_eq!(original.parse::<usize>().unwrap(), value);
                prop_assert!(copy.added.iter().any(|(name, value)| *name == "hookstream-offset" && value == "41"));
            }
            prop_assert!(whole.is_some());
            record.extent = record.extent.smaller();
            prop_assert!(record.copy().is_none());
        }
    }

    #[test]
    fn a_whole_copy_is_the_original_without_the_mark_of_a_cut_one() {
        let record = record(7, 100_000, &[5, 5], 10);
        let copy = record.copy().unwrap();
        assert_eq!(copy.value, record.value.as_deref());
        assert_eq!(copy.headers, record.headers);
        assert!(copy.added.iter().all(|(name, _)| *name != TRUNCATED));
    }

    #[test]
    fn a_head_keeps_the_first_bytes_and_the_first_headers() {
        let record = InvalidRecord {
            extent: Extent::Head,
            ..record(5_000, 100_000, &[10_000, 10_000, 1], 10)
        };
        let copy = record.copy().unwrap();
        assert_eq!(copy.key.map(<[u8]>::len), Some(HEAD_KEY_BYTES));
        assert_eq!(copy.value.map(<[u8]>::len), Some(HEAD_VALUE_BYTES));
        assert_eq!(copy.headers.len(), 1, "the second does not fit any more");
    }

    #[test]
    fn a_name_that_is_not_utf8_stays_recognisable() {
        assert_eq!(name_text(b"a\xffb\xc3"), "a\\xffb\\xc3");
        assert_eq!(name_text("é".as_bytes()), "é");
    }
}
