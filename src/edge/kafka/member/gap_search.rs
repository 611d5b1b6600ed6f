//! Locates the partition whose position is out of range.
//!
//! The client reports the error without the partition, so every partition's range is asked for: in the background, since a
//! broker that does not respond would keep the role's thread for seconds per partition. A partition whose range is not
//! known is asked for again, while all others are read on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::context::MemberContext;
use super::partition::TopicPartition;
use crate::model::units::Position;

/// The time between two searches.
const AGAIN: Duration = Duration::from_secs(1);
/// How long one partition may take; it is asked for again with the next search.
const ANSWER: Duration = Duration::from_secs(3);

/// The range of one partition.
pub(super) struct Found {
    pub(super) at: TopicPartition,
    /// The position when the search began.
    pub(super) from: Position,
    /// The first offset, and the high watermark; `None` when no broker told in time.
    pub(super) range: Option<(i64, i64)>,
}

#[derive(Default)]
enum State {
    /// Every position is in range, as far as known.
    #[default]
    Idle,
    /// A position is out of range.
    Wanted,
    Running(Receiver<Vec<Found>>),
}

/// Searches, one at a time.
#[derive(Default)]
pub(super) struct GapSearch {
    state: State,
    began: Option<Instant>,
}

impl GapSearch {
    /// The client has reported a position out of range.
    pub(super) fn want(&mut self) {
        if matches!(self.state, State::Idle) {
            self.state = State::Wanted;
        }
    }

    /// Whether a search is needed or running.
    pub(super) fn is_wanted(&self) -> bool {
        !matches!(self.state, State::Idle)
    }

    /// Whether to start one now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let recent = |began| now.saturating_duration_since(began) < AGAIN;
        matches!(self.state, State::Wanted) && !self.began.is_some_and(recent)
    }

    /// Starts a search over all partitions.
    pub(super) fn start(
        &mut self,
        consumer: &Arc<BaseConsumer<MemberContext>>,
        positions: Vec<(TopicPartition, Position)>,
        now: Instant,
    ) {
        let consumer = Arc::clone(consumer);
        let (done, found) = channel();
        std::thread::spawn(move || {
            let closing = || consumer.context().closing.load(Ordering::Relaxed);
            let each = positions.into_iter().map(|(at, from)| {
                let ask = || consumer.fetch_watermarks(&at.topic, at.partition, ANSWER);
                let range = if closing() { None } else { ask().ok() };
                Found { at, from, range }
            });
            // Nobody waits for it when the member has left.
            done.send(each.collect()).ok();
        });
        self.state = State::Running(found);
        self.began = Some(now);
    }

    /// The result of a search that has ended; another one follows, unless [`GapSearch::end`] is called.
    pub(super) fn found(&mut self) -> Option<Vec<Found>> {
        let State::Running(running) = &self.state else {
            return None;
        };
        match running.try_recv() {
            Ok(found) => {
                self.state = State::Wanted;
                Some(found)
            }
            Err(TryRecvError::Empty) => None,
            // The thread has panicked; another search follows.
            Err(TryRecvError::Disconnected) => {
                self.state = State::Wanted;
                None
            }
        }
    }

    /// Every range is known, and gaps are handled.
    pub(super) fn end(&mut self) {
        self.state = State::Idle;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_search_runs_at_a_time_and_the_next_begins_a_while_later() {
        let mut now = crate::edge::clock::instant();
        let mut search = GapSearch::default();
        assert!(!search.is_wanted());
        search.want();
        assert!(search.is_due(now));
        let (done, found) = channel();
        search.state = State::Running(found);
        search.began = Some(now);
        search.want();
        assert!(search.is_wanted() && !search.is_due(now));
        assert!(search.found().is_none(), "it is under way");
        done.send(Vec::new()).unwrap();
        assert!(search.found().is_some());
        assert!(search.is_wanted(), "until it is ended");
        assert!(!search.is_due(now));
        now += AGAIN;
        assert!(search.is_due(now));
        search.end();
        assert!(!search.is_wanted());
    }
}
