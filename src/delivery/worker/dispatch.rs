//! Turns of lanes: who may start the next request.

use super::{Event, Worker};
use crate::edge::port::Port;

impl<P: Port> Worker<P> {
    /// Gives the ready lanes their turns, one command per lane at a time.
    pub(super) fn dispatch(&mut self) {
        let most = self.around.max_in_flight;
        self.crowded
            .wake(most.saturating_sub(self.in_flight), &mut self.ready);
        while self.in_flight < self.around.max_in_flight {
            let Some((owner, lane)) = self.ready.pop_front() else {
                return;
            };
            let spare = self.around.max_in_flight - self.in_flight;
            match self.partitions.get(&owner.partition) {
                Some(owned) if owned.epoch == owner.epoch => {
                    let target = owned.machine.endpoint(lane);
                    match target.and_then(|target| target.shared.full(spare)) {
                        Some(full) => self.crowded.wait(full, (owner, lane)),
                        None => self.apply(owner.partition, Event::Turn { lane, spare }),
                    }
                }
                _ => {}
            }
        }
    }
}
