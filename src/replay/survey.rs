//! The first pass over the dead-letter topic: what has settled dead letters, and which part of each partition has any that
//! match.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use rdkafka::message::Message;

use super::plan::{Plan, Progress};
use super::records::{NewerFacts, Undecoded, decode_from, place};
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log_reader::{Log, Range};
use crate::edge::kafka::record::header_pairs;
use crate::model::dead_letter::{DeadLetter, OpenLetters};

/// What the first pass has found.
#[derive(Debug)]
pub(super) struct Survey {
    /// What has settled dead letters.
    pub(super) open: OpenLetters,
    /// What a newer program wrote.
    pub(super) newer: NewerFacts,
    /// By partition: from the first record that matches up to behind the last one.
    pub(super) parts: BTreeMap<i32, Range>,
    /// By partition: where facts that are not in `open` begin.
    pub(super) read_to: HashMap<i32, i64>,
    /// Records that cannot be read by any program.
    pub(super) unreadable: u64,
    /// All dead letters that match, with the size of their bodies, if they are few and were asked for.
    pub(super) matching: Option<Vec<(Box<DeadLetter>, usize)>>,
}

/// What is kept of dead letters that match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// Nothing: they are read again.
    Nothing,
    /// All but their bodies, unless there are more than [`MOST_KEPT`].
    Few,
}

/// About 20 MiB of them.
const MOST_KEPT: usize = 20_000;

impl Survey {
    /// Reads all of the topic up to `ends`, unless `stop` is set: then it is incomplete.
    pub(super) fn read(
        log: &Log,
        plan: &Plan,
        ends: &[Range],
        keep: Keep,
        stop: &dyn Fn() -> bool,
        report: &mut dyn FnMut(Progress),
    ) -> Result<Self, Failure> {
        let cluster = log.cluster()?;
        let mut open = OpenLetters::default();
        let mut newer = NewerFacts::of(log.topic());
        let mut parts: BTreeMap<i32, Range> = BTreeMap::new();
        let mut matching = (keep == Keep::Few).then(Vec::new);
        let mut unreadable = 0;
        let mut way = Way::over(ends);
        report(way.progress(false));
        log.read::<Failure>(ends, stop, |message| {
            way.pass(message.partition(), message.offset());
            report(way.progress(false));
            let headers = header_pairs(message);
            if let Some(settled) = newer.decode(place(message), message.key(), &headers) {
                if plan.accepts(&settled, cluster.as_str()) {
                    open.settle(&settled, place(message));
                }
                return Ok(ControlFlow::Continue(()));
            }
            // One that cannot be read is counted when its part is read again.
            let is_part = match decode_from(message, &headers) {
                Ok(Some(letter)) if plan.filter.matches(&letter) => {
                    keep_letter(&mut matching, letter, message.payload_len());
                    true
                }
                Ok(_) => false,
                Err(error) => {
                    unreadable += u64::from(matches!(error, Undecoded::Unreadable(_)));
                    true
                }
            };
            if is_part {
                let (partition, low) = (message.partition(), message.offset());
                let first = Range {
                    partition,
                    low,
                    end: low,
                };
                parts.entry(partition).or_insert(first).end = low + 1;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if !stop() {
            report(way.end(false));
        }
        Ok(Self {
            open,
            newer,
            parts,
            read_to: ends
                .iter()
                .map(|range| (range.partition, range.end))
                .collect(),
            unreadable,
            matching,
        })
    }
}

/// Keeps one more; all are dropped once there are too many.
fn keep_letter(
    matching: &mut Option<Vec<(Box<DeadLetter>, usize)>>,
    letter: Box<DeadLetter>,
    bytes: usize,
) {
    if let Some(all) = matching {
        all.push((letter, bytes));
    }
    matching.take_if(|all| all.len() > MOST_KEPT);
}

/// How far reading has come, in offsets: records are fewer, since transactions leave gaps.
#[derive(Debug)]
pub(super) struct Way {
    /// By partition: the offset that is read next.
    next: HashMap<i32, i64>,
    passed: u64,
    of: u64,
}

impl Way {
    pub(super) fn over<'a>(ranges: impl IntoIterator<Item = &'a Range>) -> Self {
        let mut way = Self {
            next: HashMap::new(),
            passed: 0,
            of: 0,
        };
        for range in ranges {
            way.next.insert(range.partition, range.low);
            way.of += u64::try_from(range.end - range.low).unwrap_or(0);
        }
        way
    }

    /// A record was read. Returns whether that is the first time.
    pub(super) fn pass(&mut self, partition: i32, offset: i64) -> bool {
        let Some(next) = self.next.get_mut(&partition) else {
            return true;
        };
        let is_new = offset >= *next;
        if is_new {
            self.passed += u64::try_from(offset + 1 - *next).unwrap_or(0);
            *next = offset + 1;
        }
        is_new
    }

    /// The offset behind the last record that was read of a partition.
    pub(super) fn next(&self, partition: i32) -> Option<i64> {
        self.next.get(&partition).copied()
    }

    pub(super) fn progress(&self, sending: bool) -> Progress {
        Progress {
            sending,
            read: self.passed.min(self.of),
            of: self.of,
            ..Progress::default()
        }
    }

    /// All is read, also the gaps behind the last records.
    pub(super) fn end(&mut self, sending: bool) -> Progress {
        self.passed = self.of;
        self.progress(sending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_counts_gaps_and_ends_with_all() {
        let range = |partition, low, end| Range {
            partition,
            low,
            end,
        };
        let mut way = Way::over(&[range(0, 10, 20), range(3, 0, 5)]);
        assert_eq!((way.progress(false).read, way.progress(false).of), (0, 15));
        assert!(way.pass(0, 12));
        assert_eq!(
            way.progress(false).read,
            3,
            "two offsets are the ends of transactions"
        );
        assert!(way.pass(3, 0));
        assert!(!way.pass(0, 11));
        assert_eq!(
            way.progress(false).read,
            4,
            "read again after it was fenced"
        );
        assert_eq!(way.end(true).read, 15);
    }
}
