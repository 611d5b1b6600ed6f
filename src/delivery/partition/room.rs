//! Room in a window that is full: the queues of slow lanes are parked.

use std::time::Instant;

use super::env::{Endpoint, Subscriptions};
use super::event::LaneId;
use super::state::{LaneEntry, Partition, Step};
use crate::model::outcome::ParkReason;
use crate::model::units::Offset;

/// The first command of a lane that is slow.
fn first_of_slow<E>(entry: &LaneEntry<E>, now: Instant) -> Option<Offset> {
    let is_slow = entry.held.is_some() || entry.lane.slow(now).is_some();
    let first = entry.lane.first().filter(|_| is_slow)?;
    Some(first.offset)
}

impl<E: Endpoint> Partition<E> {
    /// Parks the queue of the slow lane whose first command is the oldest. Returns `false` if no lane is slow, as far as
    /// known, since quick lanes will make room soon; and if the oldest offset has an outcome that is not durable yet,
    /// since parking more makes no room before that.
    pub(super) fn make_room<S: Subscriptions<Endpoint = E>>(
        &mut self,
        step: &mut Step<'_, S>,
    ) -> bool {
        let now = step.env.now;
        if self.unwritten.contains(&self.window.position().0) {
            return false;
        }
        let lanes = &self.lanes;
        let all = || {
            let each = lanes.iter();
            each.filter_map(|(&id, entry)| Some((first_of_slow(entry, now)?, id)))
        };
        let first = |id: LaneId| first_of_slow(lanes.get(&id)?, now);
        let Some(id) = self.slow_lanes.next(now, lanes.len(), all, first) else {
            return false;
        };
        let entry = self.lanes.get_mut(&id);
        let rest = entry.and_then(|entry| entry.lane.turn(now));
        self.park_queue(id, ParkReason::LaneFull, rest, step);
        true
    }
}
