//! The records of `webhook-invalid-events` as operators read them: copies of records that were set aside, and the facts
//! that one was replayed.
//!
//! Pure. A fact lies in its copy's own partition and names it by its coordinates there. A copy has the original's headers,
//! which may be anything; hookstream's own follow them, so the last one of a name counts.

use crate::model::dead_letter::Coordinates;
use crate::model::invalid_record::TRUNCATED;
use crate::model::units::{EpochMs, Offset};

/// The header of a fact: the place of the copy that was replayed, `partition:offset`.
pub const REPLAYED: &str = "hookstream-replayed";
/// The header of a fact: when that was, epoch ms.
pub const REPLAYED_AT: &str = "hookstream-replayed-at";

/// Headers that hookstream adds to a copy; the original has none of them.
const ADDED: [&str; 5] = [
    "hookstream-error",
    "hookstream-topic",
    "hookstream-partition",
    "hookstream-offset",
    TRUNCATED,
];

/// A record of the topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetAside {
    /// A copy.
    Copy(Origin),
    /// A copy was replayed.
    Replayed {
        /// Which one.
        copy: Coordinates,
        /// When.
        at: EpochMs,
    },
}

/// Where a copy is from, and why it was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The topic of the original.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: Offset,
    /// One sentence.
    pub error: String,
    /// The size of the original's value, if the copy is not whole.
    pub truncated: Option<u64>,
}

impl SetAside {
    /// Reads the headers of a record.
    ///
    /// # Errors
    /// One sentence that names the header.
    pub fn read(headers: &[(&str, &[u8])]) -> Result<Self, String> {
        // A copy first: its original may have a header of the name of a fact's.
        let Some(topic) = text(headers, "hookstream-topic")? else {
            let copy = text(headers, REPLAYED)?
                .ok_or_else(|| "the header hookstream-topic is missing".to_owned())?;
            let at = number(headers, REPLAYED_AT)?;
            return Ok(Self::Replayed {
                copy: copy.parse()?,
                at: EpochMs(at),
            });
        };
        let truncated = text(headers, TRUNCATED)?.is_some();
        Ok(Self::Copy(Origin {
            topic: topic.to_owned(),
            partition: number(headers, "hookstream-partition")?,
            offset: Offset(number(headers, "hookstream-offset")?),
            error: text(headers, "hookstream-error")?
                .unwrap_or_default()
                .to_owned(),
            truncated: truncated.then(|| number(headers, TRUNCATED)).transpose()?,
        }))
    }
}

/// The headers of the fact that a copy was replayed.
#[must_use]
pub fn replayed_headers(copy: Coordinates, at: EpochMs) -> [(&'static str, String); 2] {
    [(REPLAYED, copy.to_string()), (REPLAYED_AT, at.to_string())]
}

/// How many of a copy's headers are the original's: those before the ones that hookstream added.
#[must_use]
pub fn original_headers<N: AsRef<[u8]>>(names: &[N]) -> usize {
    let added = |name: &N| ADDED.iter().any(|added| added.as_bytes() == name.as_ref());
    let kept = names.iter().rev().take_while(|name| added(name));
    // An original that was itself a copy keeps what it came with: only one of each name is of this copy.
    let mut seen = Vec::new();
    let own = kept.take_while(|name| {
        let name = name.as_ref().to_vec();
        let is_new = !seen.contains(&name);
        seen.push(name);
        is_new
    });
    names.len() - own.count()
}

fn text<'a>(headers: &[(&str, &'a [u8])], name: &str) -> Result<Option<&'a str>, String> {
    let Some((_, value)) = headers.iter().rev().find(|(header, _)| *header == name) else {
        return Ok(None);
    };
    std::str::from_utf8(value)
        .map(Some)
        .map_err(|_| format!("the header {name} is not UTF-8"))
}

fn number<N: std::str::FromStr>(headers: &[(&str, &[u8])], name: &str) -> Result<N, String> {
    let value = text(headers, name)?.ok_or_else(|| format!("the header {name} is missing"))?;
    value
        .parse()
        .map_err(|_| format!("the header {name} has the invalid value {value:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::invalid_record::{Extent, InvalidRecord};

    fn headers_of(record: &InvalidRecord) -> Vec<(String, Vec<u8>)> {
        let copy = record.copy().unwrap();
        let own = copy.headers.iter();
        let own = own.map(|(name, value)| (name.clone(), value.clone().unwrap_or_default()));
        let added = copy.added.iter();
        let added = added.map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()));
        own.chain(added).collect()
    }

    fn pairs(headers: &[(String, Vec<u8>)]) -> Vec<(&str, &[u8])> {
        let pairs = headers.iter();
        pairs
            .map(|(name, value)| (name.as_str(), value.as_slice()))
            .collect()
    }

    fn record(headers: Vec<(String, Option<Vec<u8>>)>, extent: Extent) -> InvalidRecord {
        InvalidRecord {
            key: None,
            value: Some(vec![b'x'; 100]),
            headers,
            error: "id is missing".to_owned(),
            topic: "order-events".to_owned(),
            partition: 3,
            offset: Offset(41),
            extent,
        }
    }

    #[test]
    fn a_copy_is_read_as_it_was_written_and_gives_the_original_headers_back() {
        let own = vec![
            ("ce_id".to_owned(), Some(b"1".to_vec())),
            (REPLAYED.to_owned(), Some(b"0:1".to_vec())),
            ("hookstream-topic".to_owned(), Some(b"forged".to_vec())),
        ];
        for (extent, truncated) in [(Extent::Whole, None), (Extent::Head, Some(100))] {
            let headers = headers_of(&record(own.clone(), extent));
            let read = SetAside::read(&pairs(&headers)).unwrap();
            assert_eq!(
                read,
                SetAside::Copy(Origin {
                    topic: "order-events".to_owned(),
                    partition: 3,
                    offset: Offset(41),
                    error: "id is missing".to_owned(),
                    truncated,
                })
            );
            let names: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(original_headers(&names), own.len());
        }
    }

    #[test]
    fn a_fact_names_its_copy() {
        let copy = "3:7".parse().unwrap();
        let headers = replayed_headers(copy, EpochMs(5))
            .map(|(name, value)| (name.to_owned(), value.into_bytes()));
        let read = SetAside::read(&pairs(&headers)).unwrap();
        assert_eq!(
            read,
            SetAside::Replayed {
                copy,
                at: EpochMs(5)
            }
        );
    }

    #[test]
    fn anything_else_is_an_error() {
        for (headers, part) in [
            (vec![], "hookstream-topic"),
            (
                vec![("hookstream-topic", &b"t"[..])],
                "hookstream-partition",
            ),
            (vec![("hookstream-topic", &b"\xff"[..])], "UTF-8"),
            (
                vec![(REPLAYED, &b"x"[..]), (REPLAYED_AT, &b"1"[..])],
                "position",
            ),
        ] {
            let error = SetAside::read(&headers).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
