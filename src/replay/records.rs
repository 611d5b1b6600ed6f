//! The records of the dead-letter topic as a replay reads them: dead letters, what settles them, and what a newer program
//! wrote.

use std::collections::BTreeMap;

use rdkafka::message::{BorrowedMessage, Message};

use crate::edge::kafka::record::header_pairs;
use crate::model::dead_letter::{Coordinates, DeadLetter, Fact, FactError, Kind, Settled};
use crate::model::units::Offset;

/// The first record of each partition that a newer program wrote to settle dead letters.
///
/// Which ones it settles is unknown, so none of that partition is sent: one might be sent twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewerFacts(BTreeMap<i32, (Coordinates, u32)>);

impl NewerFacts {
    /// Decodes a settling record; `None` for other records, and for one of a newer program, which is noted.
    pub fn settled(&mut self, message: &BorrowedMessage<'_>) -> Option<Settled> {
        self.decode(place(message), message.key(), &header_pairs(message))
    }

    fn decode(
        &mut self,
        at: Coordinates,
        key: Option<&[u8]>,
        headers: &[(&str, &[u8])],
    ) -> Option<Settled> {
        if Kind::of(headers).is_ok_and(|kind| kind == Kind::DeadLettered) {
            return None;
        }
        match Fact::decode(at, key, headers) {
            Ok(Fact::Settled(settled)) => Some(settled),
            Ok(Fact::DeadLettered(_)) => None,
            Err(FactError::Newer(version)) => {
                self.0.entry(at.partition).or_insert((at, version));
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
        self.0.is_empty()
    }

    /// Whether the dead letters of this partition stay open.
    #[must_use]
    pub fn stops(&self, partition: i32) -> bool {
        self.0.contains_key(&partition)
    }

    /// Each record with its version.
    pub fn iter(&self) -> impl Iterator<Item = (Coordinates, u32)> {
        self.0.values().copied()
    }
}

/// Decodes a dead letter; `None` for other records.
///
/// # Errors
/// The record is unreadable.
pub fn decode(message: &BorrowedMessage<'_>) -> Result<Option<Box<DeadLetter>>, FactError> {
    let headers = header_pairs(message);
    if Kind::of(&headers)? != Kind::DeadLettered {
        return Ok(None);
    }
    match Fact::decode(place(message), message.key(), &headers)? {
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
            [(at(1, 7), 2)],
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
        assert!(newer.is_empty());
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
