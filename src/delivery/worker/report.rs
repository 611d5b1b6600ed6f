//! What a worker reports to the role's thread.

use std::sync::Arc;

use super::Worker;
use crate::delivery::messages::PartitionState;
use crate::delivery::outage::Health;
use crate::delivery::partition::counts::AttemptCounts;
use crate::delivery::partition::event::LookAhead;
use crate::delivery::partition::lane::most_alone;
use crate::edge::clock;
use crate::edge::port::Port;

impl<P: Port> Worker<P> {
    pub(super) fn health(&self) -> Health {
        let now = clock::instant();
        let mut health = Health::default();
        for owned in self.partitions.values() {
            owned.machine.health(&mut health.lanes, now);
            health.heard |= owned.machine.heard();
        }
        health
    }

    /// Commands that were read again hold memory again.
    pub(super) fn count_again(&self, partition: i32, found: &LookAhead) {
        if let (LookAhead::Again(found), Some(owned)) = (found, self.partitions.get(&partition)) {
            let metrics = &self.around.metrics;
            metrics.deferred_reads().inc_by(found.records as u64);
            for (_, command) in &found.commands {
                owned.load.add(command.weight());
            }
        }
    }

    /// Takes the attempts since the last call.
    pub(super) fn attempts(&mut self) -> Vec<(Arc<str>, AttemptCounts)> {
        let mut all = std::mem::take(&mut self.of_gone);
        for owned in self.partitions.values_mut() {
            owned.machine.take_attempts(&mut all);
        }
        all
    }

    pub(super) fn states(&mut self) -> Vec<PartitionState> {
        let now = clock::instant();
        let format = self.around.settings.window_format;
        let most = most_alone(self.around.max_in_flight);
        let each = self.partitions.iter_mut();
        each.map(|(&partition, owned)| {
            let ages = owned.in_flight.values().map(|flight| now - flight.started);
            PartitionState {
                partition,
                snapshot: owned.machine.snapshot(owned.place, format),
                span: owned.machine.span(),
                stalled: owned.machine.stalled(now),
                oldest: ages.max().unwrap_or_default(),
                runnable: owned.machine.runnable(most, now),
                reach: owned.machine.reach(self.limit),
                holes: owned.machine.holes(),
                deferred: owned.machine.deferred(),
                outcomes: std::mem::take(&mut owned.outcomes),
            }
        })
        .collect()
    }
}
