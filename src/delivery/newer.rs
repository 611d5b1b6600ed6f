//! Partitions that stop because a newer hookstream wrote to them: the program goes on, and an upgraded replica continues
//! there.

use std::sync::Arc;

use super::role::{Delivery, as_gauge};
use crate::edge::clock;
use crate::edge::port::failure::Failure;
use crate::edge::port::records::TopicPartition;
use crate::edge::port::{Member as _, Port};
use crate::model::units::Offset;

impl<P: Port> Delivery<'_, P> {
    /// Stops reading a partition at a record of a newer program, or, without an offset, because of its commit. All before
    /// is delivered, other partitions go on, and an upgraded replica continues here.
    pub(super) fn stop_at_newer(
        &mut self,
        number: i32,
        offset: Option<Offset>,
        version: u32,
    ) -> Result<(), Failure> {
        self.stopped.insert(number);
        self.count_stopped();
        if let Some(suppressed) = self.stopped_lines.pass(clock::instant()) {
            tracing::error!(
                topic = %self.topic,
                partition = number,
                offset = offset.map(|offset| offset.0),
                version,
                metric = "hookstream_stopped_partitions",
                suppressed,
                "partition stopped: {} written by a newer hookstream; upgrade every replica",
                if offset.is_some() { "this record was" } else { "the commit metadata was" },
            );
        }
        let at = [TopicPartition {
            topic: Arc::clone(&self.topic),
            partition: number,
        }];
        self.member.pause(&at)
    }

    pub(super) fn count_stopped(&self) {
        let gauge = self.context.metrics.stopped_partitions(&self.topic);
        gauge.set(as_gauge(self.stopped.len()));
    }
}
