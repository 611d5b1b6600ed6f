//! Partitions that are not delivered any more since a broker has said that this process is not a member of its group,
//! while the client has not reported them as lost.
//!
//! A broker that has just become the group's coordinator, or has just ceased to be it, says so of members too, of which
//! the client never hears: it goes on with its partitions, and nobody else gets them. So they are taken back when the
//! client would have reported them as lost by now.
//!
//! Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How much longer than the session a report of the client may take.
const MARGIN: Duration = Duration::from_secs(2);

/// Partitions, and when they were given up.
#[derive(Debug, Default)]
pub(super) struct Rejected(BTreeMap<i32, Instant>);

impl Rejected {
    /// These partitions are given up, since the group has rejected this process.
    pub(super) fn add(&mut self, partitions: &[i32], now: Instant) {
        self.0
            .extend(partitions.iter().map(|&number| (number, now)));
    }

    /// The client has reported what becomes of these partitions.
    pub(super) fn settled(&mut self, partitions: &[i32]) {
        self.0.retain(|number, _| !partitions.contains(number));
    }

    /// Partitions that this process has after all: the client has not reported them as lost, for longer than the session.
    pub(super) fn take_back(&mut self, session: Duration, now: Instant) -> Vec<i32> {
        let after = session + MARGIN;
        let is_due = |_: &i32, since: &mut Instant| now.saturating_duration_since(*since) > after;
        self.0
            .extract_if(.., is_due)
            .map(|(number, _)| number)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{MARGIN, Rejected};
    use std::time::Duration;

    const SESSION: Duration = Duration::from_secs(20);

    #[test]
    fn partitions_come_back_when_the_client_has_not_reported_them_as_lost() {
        let began = crate::edge::clock::instant();
        let mut rejected = Rejected::default();
        rejected.add(&[1, 2, 3], began);
        rejected.settled(&[2]);
        assert!(rejected.take_back(SESSION, began + SESSION).is_empty());
        let due = began + SESSION + MARGIN + Duration::from_millis(1);
        assert_eq!(rejected.take_back(SESSION, due), [1, 3]);
        assert!(rejected.take_back(SESSION, due).is_empty(), "once");
    }

    #[test]
    fn a_second_rejection_counts_anew() {
        let began = crate::edge::clock::instant();
        let mut rejected = Rejected::default();
        rejected.add(&[1], began);
        rejected.add(&[1], began + SESSION);
        assert!(
            rejected
                .take_back(SESSION, began + SESSION + MARGIN * 2)
                .is_empty()
        );
    }
}
