//! Finds events of a batch that have one identity but different contents: their webhooks have one id, so receivers that
//! dedupe by it drop all but the first. Pure.

use std::hash::BuildHasher;

use crate::model::event::Event;
use crate::model::maps::FastMap;

/// The identities of the events of a batch.
#[derive(Debug, Default)]
pub(super) struct Identities {
    /// A hash of the contents, by a hash of the identity.
    seen: FastMap<u64, u64>,
}

impl Identities {
    /// Notes an event and the value of its record; returns whether an earlier one of this batch had the same identity
    /// and another value.
    pub(super) fn collides(&mut self, event: &Event<'_>, value: &[u8]) -> bool {
        let hasher = self.seen.hasher();
        let (identity, contents) = (hasher.hash_one(event.identity()), hasher.hash_one(value));
        *self.seen.entry(identity).or_insert(contents) != contents
    }

    /// The batch has ended.
    pub(super) fn clear(&mut self) {
        self.seen.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::{RawEvent, read};
    use crate::model::units::EpochMs;

    #[test]
    fn events_collide_that_have_one_identity_and_different_contents() {
        let mut identities = Identities::default();
        let mut collides = |value: &str| {
            let raw = RawEvent {
                topic: "order-events",
                key: None,
                payload: Some(value.as_bytes()),
                headers: &[],
                timestamp: EpochMs(0),
            };
            identities.collides(&read(&raw, 1000).unwrap(), value.as_bytes())
        };
        assert!(!collides(r#"{"id":"1","type":"a","data":1}"#));
        assert!(
            !collides(r#"{"id":"1","type":"a","data":1}"#),
            "the same event, written twice"
        );
        assert!(
            !collides(r#"{"id":"1","type":"b","data":1}"#),
            "the type is part of it"
        );
        assert!(collides(r#"{"id":"1","type":"a","data":2}"#));
        let cloud = |kind: &str| {
            format!(r#"{{"specversion":"1.0","source":"/s","id":"1","type":"{kind}"}}"#)
        };
        assert!(!collides(&cloud("a")));
        assert!(collides(&cloud("b")), "a CloudEvent's type is not");
        identities.clear();
        let value = r#"{"id":"1","type":"a","data":3}"#;
        let raw = RawEvent {
            topic: "order-events",
            key: None,
            payload: Some(value.as_bytes()),
            headers: &[],
            timestamp: EpochMs(0),
        };
        assert!(!identities.collides(&read(&raw, 1000).unwrap(), value.as_bytes()));
    }
}
