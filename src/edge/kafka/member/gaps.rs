//! Positions outside of their logs, and topics that are deleted while they are read.

use std::time::Duration;

use rdkafka::consumer::Consumer;

use super::context::Event;
use super::gap_search::Found;
use super::{Member, TopicPartition};
use crate::edge::clock;
use crate::edge::kafka::error::Failure;
use crate::edge::port::gap::Gap;

/// Timeout of a request to the broker.
const ANSWER: Duration = Duration::from_secs(2);

impl Member {
    /// A position is out of range, and the client does not report which. Asks for the range of each partition in the
    /// background: a broker that does not respond must not keep this thread.
    pub(super) fn look_for_gaps(&self) -> Result<(), Failure> {
        let mut search = self.gap_search.borrow_mut();
        if let Some(found) = search.found() {
            drop(search);
            return self.handle_gaps(found);
        }
        if search.is_due(clock::instant()) {
            let positions = self.reader.positions()?;
            search.start(self.reader.client(), positions, clock::instant());
        }
        Ok(())
    }

    /// Resumes at the earliest record where the position is outside of its log, and elsewhere where it was, since the
    /// client has stopped some partition.
    fn handle_gaps(&self, found: Vec<Found>) -> Result<(), Failure> {
        let now = self.reader.positions()?;
        let mut all_known = true;
        let mut any = false;
        for Found { at, from, range } in &found {
            // What has moved on meanwhile is not stopped; what has left is no longer ours.
            if !now.contains(&(at.clone(), *from)) {
                continue;
            }
            let Some(range) = *range else {
                all_known = false;
                continue;
            };
            let known = self.reader.known_ends().of(at);
            let Some(gap) = Gap::find(at, *from, range, known) else {
                continue;
            };
            any = true;
            gap.log();
            self.start_at(gap.at.clone(), gap.to)?;
            self.consumer.context().push_event(Event::Gap(gap));
        }
        if all_known {
            self.gap_search.borrow_mut().end();
            if !any {
                // The log has changed since the error, but the client has stopped a partition.
                for Found { at, from, .. } in found {
                    if now.contains(&(at.clone(), from)) {
                        self.start_at(at, from)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// A leader change briefly looks like a missing topic; only a topic absent from the metadata is deleted. Its partitions
    /// are reported as gaps. The group gives them up, and assigns them again when the topic is back.
    pub(super) fn look_for_deleted_topics(&self) -> Result<(), Failure> {
        if self.deletions.borrow_mut().pass(clock::instant()).is_none() {
            return Ok(());
        }
        let Ok(metadata) = self.consumer.fetch_metadata(None, ANSWER) else {
            return Ok(());
        };
        let context = self.consumer.context();
        let positions = self.reader.positions()?;
        for (at, from) in positions {
            let mut topics = metadata.topics().iter();
            if !topics.any(|found| found.name() == &*at.topic) {
                let gap = Gap::deleted(&at, from, self.reader.known_ends().of(&at));
                self.reader.known_ends().forget(&at);
                let is_loss = from.0 > 0 || gap.lost() > 0;
                if is_loss && self.reader.forget(&at) {
                    gap.log();
                    context.push_event(Event::Gap(gap));
                }
                self.deleted.borrow_mut().insert(at.topic);
            }
        }
        Ok(())
    }

    /// Whether a partition without a position may have had one: an empty one, and one of a topic that was deleted, is read
    /// from its beginning.
    pub(super) fn may_have_lost(&self, at: &TopicPartition) -> bool {
        let is_empty = || {
            let ends = self
                .consumer
                .fetch_watermarks(&at.topic, at.partition, ANSWER);
            ends.is_ok_and(|(low, high)| low == high)
        };
        !self.deleted.borrow().contains(&at.topic) && !is_empty()
    }
}
