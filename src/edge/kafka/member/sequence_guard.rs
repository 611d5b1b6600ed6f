//! The offsets that a member has received, per partition.
//!
//! If the client returned a record twice, it would be fanned out or sent twice (**Complete**, **One lineage**). If it
//! skipped a record and returned it late, that record would be lost once a later offset is committed. The client is not
//! known to do either. This guard is a second line of defence and costs one comparison per record.

use std::sync::Arc;

/// How a record relates to those received before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Received for the first time, in order.
    New,
    /// This record, or one behind it, was received since reading started.
    Repeated,
    /// At or behind the start position, but before the first record received.
    Skipped,
    /// Of a partition that is not read: it was in the client's queue when reading stopped.
    Unread,
}

/// One partition since reading started.
#[derive(Clone, Copy, Debug)]
struct Progress {
    start: i64,
    /// The first offset received.
    first: Option<i64>,
    /// One past the last offset received.
    next: i64,
}

/// Tracks which offsets each partition has delivered to this member.
#[derive(Debug, Default)]
pub(super) struct SequenceGuard(Vec<(Arc<str>, Vec<Option<Progress>>)>);

impl SequenceGuard {
    /// Reading starts at `offset`.
    pub(super) fn start(&mut self, topic: &Arc<str>, partition: i32, offset: i64) {
        let Ok(partition) = usize::try_from(partition) else {
            return;
        };
        let at = self.0.iter().position(|(known, _)| known == topic);
        let at = at.unwrap_or_else(|| {
            self.0.push((Arc::clone(topic), Vec::new()));
            self.0.len() - 1
        });
        let all = &mut self.0[at].1;
        all.resize(all.len().max(partition + 1), None);
        all[partition] = Some(Progress {
            start: offset,
            first: None,
            next: offset,
        });
    }

    /// Reading stops.
    pub(super) fn stop(&mut self, topic: &str, partition: i32) {
        let known = self.0.iter_mut().find(|(known, _)| **known == *topic);
        let all = known.map(|(_, all)| all);
        let at = usize::try_from(partition).ok();
        if let Some(progress) = all.zip(at).and_then(|(all, at)| all.get_mut(at)) {
            *progress = None;
        }
    }

    /// Classifies the record at `offset`.
    pub(super) fn take(&mut self, topic: &str, partition: i32, offset: i64) -> Arrival {
        let Some(progress) = self.of(topic, partition) else {
            return Arrival::Unread;
        };
        if offset >= progress.next {
            progress.first.get_or_insert(offset);
            progress.next = offset + 1;
            return Arrival::New;
        }
        let skipped =
            offset >= progress.start && progress.first.is_some_and(|first| offset < first);
        if skipped {
            Arrival::Skipped
        } else {
            Arrival::Repeated
        }
    }

    /// One past the last offset received from a partition, or its start position; `None` while it is not read.
    pub(super) fn next(&mut self, topic: &str, partition: i32) -> Option<i64> {
        self.of(topic, partition).map(|progress| progress.next)
    }

    fn of(&mut self, topic: &str, partition: i32) -> Option<&mut Progress> {
        let (_, all) = self.0.iter_mut().find(|(known, _)| **known == *topic)?;
        all.get_mut(usize::try_from(partition).ok()?)?.as_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::{Arrival, SequenceGuard};
    use std::sync::Arc;

    #[test]
    fn a_record_is_new_once_until_reading_restarts() {
        let (a, b) = (Arc::from("a"), Arc::from("b"));
        let mut guard = SequenceGuard::default();
        guard.start(&a, 3, 7);
        guard.start(&b, 0, 0);
        assert_eq!(guard.next("a", 3), Some(7));
        assert_eq!(guard.take("a", 3, 7), Arrival::New);
        assert_eq!(guard.next("a", 3), Some(8));
        assert_eq!(guard.next("a", 4), None);
        let after_markers = guard.take("a", 3, 9);
        assert_eq!(after_markers, Arrival::New, "compaction removes offsets");
        assert_eq!(guard.take("a", 3, 9), Arrival::Repeated);
        assert_eq!(guard.take("a", 3, 8), Arrival::Repeated);
        assert_eq!(guard.take("a", 3, 6), Arrival::Repeated);
        let other = guard.take("b", 0, 0);
        assert_eq!(other, Arrival::New, "partitions are independent");
        guard.start(&a, 3, 8);
        let rewound = guard.take("a", 3, 8);
        assert_eq!(rewound, Arrival::New, "reading restarted here");
    }

    #[test]
    fn what_arrives_of_a_partition_that_is_not_read_is_dropped() {
        let topic = Arc::from("a");
        let mut guard = SequenceGuard::default();
        assert_eq!(guard.take("a", 0, 7), Arrival::Unread, "never read");
        guard.start(&topic, 0, 7);
        guard.start(&topic, 1, 7);
        assert_eq!(guard.take("a", 0, 7), Arrival::New);
        guard.stop("a", 0);
        guard.stop("b", 0);
        assert_eq!(guard.take("a", 0, 8), Arrival::Unread);
        assert_eq!(guard.next("a", 0), None);
        assert_eq!(guard.take("a", 1, 7), Arrival::New, "it is still read");
        guard.start(&topic, 0, 9);
        assert_eq!(guard.take("a", 0, 9), Arrival::New);
    }

    #[test]
    fn a_record_before_the_first_one_received_was_skipped() {
        let mut guard = SequenceGuard::default();
        guard.start(&Arc::from("a"), 0, 7);
        assert_eq!(guard.take("a", 0, 20), Arrival::New);
        assert_eq!(guard.take("a", 0, 7), Arrival::Skipped);
        assert_eq!(guard.take("a", 0, 19), Arrival::Skipped);
        assert_eq!(guard.take("a", 0, 20), Arrival::Repeated);
    }
}
