//! Partitions that wait for the schema of their next event: the shell of `waiting`.

use super::Fanout;
use crate::edge::clock;
use crate::edge::port::failure::BatchError;
use crate::edge::port::{Member as _, Port};
use crate::fanout::history::EventPartition;
use crate::model::schema::SchemaId;
use crate::model::units::Offset;

impl<P: Port> Fanout<'_, P> {
    /// Holds a partition until the schema of its next event is known. It is read on from its committed position then, so
    /// what is written of it until now is committed in the meantime, or is written again.
    pub(super) fn wait_for_schema(
        &mut self,
        member: &P::Member,
        at: EventPartition,
        offset: Offset,
        schema: SchemaId,
    ) -> Result<(), BatchError> {
        let now = clock::instant();
        self.trials.waiting.add(at, offset, schema, now);
        Ok(member.pause(&[self.events.topic_partition(at)])?)
    }

    /// The partitions whose schemas are known now.
    pub(super) fn schemas_due(&mut self) -> Vec<EventPartition> {
        if self.trials.waiting.is_empty() {
            return Vec::new();
        }
        let (events, waiting) = (&self.events, &mut self.trials.waiting);
        let name = |at| events.topic_partition(at);
        let due = self
            .schemas
            .due(waiting, clock::instant(), self.metrics, name);
        for &at in &due {
            self.no_longer_waits(at);
        }
        due
    }

    pub(super) fn no_longer_waits(&mut self, at: EventPartition) {
        self.trials.waiting.remove(at);
        let at = self.events.topic_partition(at);
        self.metrics.forget_schema_wait(&at.topic, at.partition);
    }
}
