//! The records of the dead-letter topic as a replay reads them: dead letters, what settles them, and what a newer program
//! wrote.

use std::collections::BTreeMap;

use rdkafka::message::{BorrowedMessage, Message};

use crate::edge::kafka::record::header_pairs;
use crate::model::command::{FormatVersion, header};
use crate::model::dead_letter::{Coordinates, DeadLetter, Fact, FactError, Kind, Settled};
use crate::model::units::Offset;

/// What a newer program wrote to a partition of the dead-letter topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Newer {
    /// The first record that may settle dead letters. Which ones is unknown, so none of the partition is sent: one might
    /// be sent twice.
    Settling {
        /// Where it is.
        at: Coordinates,
        /// The version of its format.
        version: u32,
    },
    /// Dead letters, which this program cannot read.
    DeadLetters {
        /// The first one.
        at: Coordinates,
        /// The version of its format.
        version: u32,
        /// How many there are.
        count: u64,
    },
}

/// The records of a newer program in the dead-letter topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewerFacts {
    topic: String,
    settling: BTreeMap<i32, (Coordinates, u32)>,
    dead_letters: BTreeMap<i32, (Coordinates, u32, u64)>,
}

impl NewerFacts {
    /// None of this topic.
    #[must_use]
    pub fn of(topic: &str) -> Self {
        Self {
            topic: topic.to_owned(),
            ..Self::default()
        }
    }

    /// Decodes a settling record; `None` for other records, and for one of a newer program, which is noted, as is a dead
    /// letter of a newer program.
    pub fn settled(&mut self, message: &BorrowedMessage<'_>) -> Option<Settled> {
        self.decode(place(message), message.key(), &header_pairs(message))
    }

    pub(crate) fn decode(
        &mut self,
        at: Coordinates,
        key: Option<&[u8]>,
        headers: &[(&str, &[u8])],
    ) -> Option<Settled> {
        if Kind::of(headers).is_ok_and(|kind| kind == Kind::DeadLettered) {
            if let Some(version) = newer_version(headers) {
                let letters = self.dead_letters.entry(at.partition);
                letters.or_insert((at, version, 0)).2 += 1;
            }
            return None;
        }
        match Fact::decode(at, key, headers) {
            Ok(Fact::Settled(settled)) => Some(settled),
            Ok(Fact::DeadLettered(_)) => None,
            Err(FactError::Newer(version)) => {
                self.settling.entry(at.partition).or_insert((at, version));
                None
            }
            Err(error) => {
                tracing::warn!(record = %at, "unreadable record in the dead-letter topic: {error}");
                None
            }
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.settling.is_empty() && self.dead_letters.is_empty()
    }

    /// Whether the dead letters of this partition stay open.
    #[must_use]
    pub fn stops(&self, partition: i32) -> bool {
        self.settling.contains_key(&partition)
    }

    /// The name of the topic.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// What there is, by partition.
    pub fn iter(&self) -> impl Iterator<Item = Newer> {
        let settling = self.settling.values();
        let settling = settling.map(|&(at, version)| Newer::Settling { at, version });
        let letters = self.dead_letters.values();
        settling.chain(letters.map(|&(at, version, count)| Newer::DeadLetters {
            at,
            version,
            count,
        }))
    }
}

fn newer_version(headers: &[(&str, &[u8])]) -> Option<u32> {
    let (_, version) = headers.iter().find(|(name, _)| *name == header::VERSION)?;
    match FormatVersion::of(Some(version)) {
        FormatVersion::Newer(version) => Some(version),
        FormatVersion::Known | FormatVersion::Unreadable => None,
    }
}

/// A record that is no dead letter to this program.
#[derive(Debug, thiserror::Error)]
pub enum Undecoded {
    /// Of a newer program: [`NewerFacts`] has noted it.
    #[error(transparent)]
    Newer(FactError),
    /// Unreadable to any program.
    #[error(transparent)]
    Unreadable(FactError),
}

/// Decodes a dead letter; `None` for other records.
///
/// # Errors
/// [`Undecoded`].
pub fn decode(message: &BorrowedMessage<'_>) -> Result<Option<Box<DeadLetter>>, Undecoded> {
    decode_from(message, &header_pairs(message))
}

/// The same from its headers.
pub(super) fn decode_from(
    message: &BorrowedMessage<'_>,
    headers: &[(&str, &[u8])],
) -> Result<Option<Box<DeadLetter>>, Undecoded> {
    decode_headers(place(message), message.key(), headers).map_err(|error| {
        if newer_version(headers).is_some() {
            Undecoded::Newer(error)
        } else {
            Undecoded::Unreadable(error)
        }
    })
}

fn decode_headers(
    at: Coordinates,
    key: Option<&[u8]>,
    headers: &[(&str, &[u8])],
) -> Result<Option<Box<DeadLetter>>, FactError> {
    if Kind::of(headers)? != Kind::DeadLettered {
        return Ok(None);
    }
    match Fact::decode(at, key, headers)? {
        Fact::DeadLettered(letter) => Ok(Some(letter)),
        Fact::Settled(_) => Ok(None),
    }
}

/// The coordinates of a record.
#[must_use]
pub fn place<M: Message>(message: &M) -> Coordinates {
    Coordinates {
        partition: message.partition(),
        offset: Offset(message.offset()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::units::EpochMs;

    fn at(partition: i32, offset: i64) -> Coordinates {
        Coordinates {
            partition,
            offset: Offset(offset),
        }
    }

    #[test]
    fn a_fact_of_a_newer_program_stops_its_partition_and_no_other() {
        let mut newer = NewerFacts::default();
        let fact: [(&str, &[u8]); 2] = [("hs-version", b"2"), ("hs-fact", b"merged")];
        assert_eq!(newer.decode(at(1, 7), Some(b"acme"), &fact), None);
        assert_eq!(newer.decode(at(1, 8), Some(b"acme"), &fact), None);
        assert!(newer.stops(1) && !newer.stops(0));
        assert_eq!(
            newer.iter().collect::<Vec<_>>(),
            [Newer::Settling {
                at: at(1, 7),
                version: 2
            }],
            "the first is named"
        );
    }

    #[test]
    fn garbage_and_dead_letters_of_a_newer_program_stop_nothing() {
        let mut newer = NewerFacts::default();
        let records: [&[(&str, &[u8])]; 5] = [
            &[],
            &[("hs-version", b"two"), ("hs-fact", b"replayed")],
            &[("hs-version", b"\xff"), ("hs-fact", b"\xff")],
            &[("hs-version", b"1"), ("hs-fact", b"resurrected")],
            &[("hs-version", b"2"), ("hs-fact", b"dead-lettered")],
        ];
        for headers in records {
            assert_eq!(newer.decode(at(0, 1), None, headers), None, "{headers:?}");
        }
        assert!(!newer.stops(0));
        assert_eq!(
            newer.iter().collect::<Vec<_>>(),
            [Newer::DeadLetters {
                at: at(0, 1),
                version: 2,
                count: 1
            }],
            "the dead letter is named, the rest is garbage"
        );
        let settled = [
            ("hs-fact", b"replayed".as_slice()),
            ("hs-letter-partition", b"0"),
            ("hs-letter-offset", b"3"),
            ("hs-at", b"5"),
            ("webhook-id", b"msg_1"),
            ("hs-subscription", b"s"),
        ];
        let settled = newer.decode(at(0, 2), None, &settled);
        assert_eq!(settled.map(|fact| fact.at), Some(EpochMs(5)));
    }
}
