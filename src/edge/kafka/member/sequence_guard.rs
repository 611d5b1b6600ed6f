//! What is still to come of each partition.
//!
//! A record that the client gives a second time, whatever the reason, would be fanned out or sent a second time
//! (**Complete**, **One lineage**); and one that it leaves out at first would be lost once a later one is committed. The
//! client is not known to do either: this is the belt beside the braces, and costs a comparison a record.

use std::sync::Arc;

/// What the record at an offset is to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It comes for the first time, and in order.
    New,
    /// It, or one behind it, has been given since reading began there.
    Again,
    /// It lies where reading began, and the first record that was given lies behind it.
    LeftOut,
}

/// One partition since reading began.
#[derive(Clone, Copy, Debug)]
struct Read {
    start: i64,
    /// The first offset that was given.
    first: Option<i64>,
    /// Behind the last that was given.
    next: i64,
}

/// Of each partition, what was given since reading began.
#[derive(Debug, Default)]
pub(super) struct Wanted(Vec<(Arc<str>, Vec<Option<Read>>)>);

impl Wanted {
    /// Reading begins at `offset`.
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
        all[partition] = Some(Read {
            start: offset,
            first: None,
            next: offset,
        });
    }

    /// What the record at `offset` is; of a partition that was never started every record is new.
    pub(super) fn take(&mut self, topic: &str, partition: i32, offset: i64) -> Turn {
        let Some(read) = self.of(topic, partition) else {
            return Turn::New;
        };
        if offset >= read.next {
            read.first.get_or_insert(offset);
            read.next = offset + 1;
            return Turn::New;
        }
        let left_out = offset >= read.start && read.first.is_some_and(|first| offset < first);
        if left_out { Turn::LeftOut } else { Turn::Again }
    }

    /// Behind the last record of a partition that was given, or where its reading began.
    pub(super) fn next(&mut self, topic: &str, partition: i32) -> Option<i64> {
        self.of(topic, partition).map(|read| read.next)
    }

    fn of(&mut self, topic: &str, partition: i32) -> Option<&mut Read> {
        let (_, all) = self.0.iter_mut().find(|(known, _)| **known == *topic)?;
        all.get_mut(usize::try_from(partition).ok()?)?.as_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::{Turn, Wanted};
    use std::sync::Arc;

    #[test]
    fn a_record_is_new_once_until_reading_begins_anew() {
        let (a, b) = (Arc::from("a"), Arc::from("b"));
        let mut wanted = Wanted::default();
        wanted.start(&a, 3, 7);
        wanted.start(&b, 0, 0);
        assert_eq!(wanted.next("a", 3), Some(7));
        assert_eq!(wanted.take("a", 3, 7), Turn::New);
        assert_eq!(wanted.next("a", 3), Some(8));
        assert_eq!(wanted.next("a", 4), None);
        let after_markers = wanted.take("a", 3, 9);
        assert_eq!(after_markers, Turn::New, "compaction leaves offsets out");
        assert_eq!(wanted.take("a", 3, 9), Turn::Again);
        assert_eq!(wanted.take("a", 3, 8), Turn::Again);
        assert_eq!(wanted.take("a", 3, 6), Turn::Again);
        assert_eq!(wanted.take("b", 0, 0), Turn::New, "each has its own");
        wanted.start(&a, 3, 8);
        assert_eq!(wanted.take("a", 3, 8), Turn::New, "it was gone back to");
    }

    #[test]
    fn a_record_before_the_first_one_that_was_given_was_left_out() {
        let mut wanted = Wanted::default();
        wanted.start(&Arc::from("a"), 0, 7);
        assert_eq!(wanted.take("a", 0, 20), Turn::New);
        assert_eq!(wanted.take("a", 0, 7), Turn::LeftOut);
        assert_eq!(wanted.take("a", 0, 19), Turn::LeftOut);
        assert_eq!(wanted.take("a", 0, 20), Turn::Again);
    }
}
