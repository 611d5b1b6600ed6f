//! Which partitions of a topic are not read to their ends yet.
//!
//! The client reports the end of a partition only after a fetch that waited and got nothing: half a second for a reader
//! that fetches patiently. So the ends are queried at the start, and the last record before an end counts too. The
//! report remains for the rest: an end that is unknown, and one without a record right before it, where a transaction
//! was committed or the records were compacted.

use std::collections::BTreeMap;

/// The partitions that are not read up to the ends that they had at the start; `None` where the end is unknown.
#[derive(Debug)]
pub(super) struct Unread(BTreeMap<i32, Option<i64>>);

impl Unread {
    /// Of `partitions`; `earliest` and `latest` are the bounds that are known, by partition.
    pub(super) fn new(
        partitions: impl IntoIterator<Item = i32>,
        earliest: &BTreeMap<i32, i64>,
        latest: &BTreeMap<i32, i64>,
    ) -> Self {
        let bounds = |partition| (earliest.get(&partition), latest.get(&partition).copied());
        let each = partitions.into_iter().map(|one| (one, bounds(one)));
        let unread = each.filter(|(_, (first, end))| end.is_none() || *first != end.as_ref());
        Self(unread.map(|(one, (_, end))| (one, end)).collect())
    }

    /// Whether all are read.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A record was read, and is in effect.
    pub(super) fn record(&mut self, partition: i32, offset: i64) {
        let end = self.0.get(&partition).copied().flatten();
        if end.is_some_and(|end| offset + 1 >= end) {
            self.0.remove(&partition);
        }
    }

    /// The client has reported the end.
    pub(super) fn end(&mut self, partition: i32) {
        self.0.remove(&partition);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_read_with_its_last_record_or_with_the_report_of_its_end() {
        let earliest = BTreeMap::from([(0, 0), (1, 7), (2, 3), (3, 0), (5, 0)]);
        let latest = BTreeMap::from([(0, 0), (1, 7), (2, 9), (3, 5), (4, 2)]);
        let mut unread = Unread::new(0..6, &earliest, &latest);
        // 0 never had records, 1 lost them all.
        assert_eq!(unread.0.keys().collect::<Vec<_>>(), [&2, &3, &4, &5]);
        unread.record(2, 7);
        assert!(unread.0.contains_key(&2));
        unread.record(2, 8);
        // Offset 4 is where a transaction was committed, and record 12 was written later.
        unread.record(3, 3);
        assert!(unread.0.contains_key(&3) && !unread.0.contains_key(&2));
        unread.record(3, 12);
        unread.record(4, 1);
        // Its end is unknown.
        unread.record(5, 100);
        assert_eq!(unread.0.keys().collect::<Vec<_>>(), [&5]);
        unread.end(5);
        assert!(unread.is_empty());
        unread.record(2, 9);
        unread.end(7);
        assert!(unread.is_empty());
    }
}
