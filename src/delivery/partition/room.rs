//! Room in a window that is full: the queues of slow lanes are parked, the one with the oldest command first.
//!
//! Which lanes are slow is a question to all of them, and an event with many subscriptions makes a lane for each. So they
//! are asked again only after a time in proportion to their number; until then those that were found are parked in turn,
//! unless they have changed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::env::{Endpoint, Subscriptions};
use super::event::LaneId;
use super::state::{LaneEntry, Partition, Step};
use crate::model::outcome::ParkReason;
use crate::model::units::Offset;

/// The time between two looks at all lanes, for each lane. To look at one takes some 50 ns.
const FOR_EACH: Duration = Duration::from_micros(1);

/// The slow lanes that the last look has found and that were not parked since, with their first commands, in order.
#[derive(Debug, Default)]
pub(super) struct SlowLanes {
    found: VecDeque<(Offset, LaneId)>,
    next_look: Option<Instant>,
}

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
        let Some(id) = self.slowest(now) else {
            return false;
        };
        let entry = self.lanes.get_mut(&id);
        let rest = entry.and_then(|entry| entry.lane.turn(now));
        self.park_queue(id, ParkReason::LaneFull, rest, step);
        true
    }

    fn slowest(&mut self, now: Instant) -> Option<LaneId> {
        if let Some(id) = self.next_slow(now) {
            return Some(id);
        }
        if self.slow_lanes.next_look.is_some_and(|next| now < next) {
            return None;
        }
        let count = u32::try_from(self.lanes.len()).unwrap_or(u32::MAX);
        self.slow_lanes.next_look = Some(now + FOR_EACH * count);
        let each = self.lanes.iter();
        let each = each.filter_map(|(&id, entry)| Some((first_of_slow(entry, now)?, id)));
        let mut found: Vec<_> = each.collect();
        found.sort_unstable();
        self.slow_lanes.found = found.into();
        self.next_slow(now)
    }

    /// The next lane that was found and is as it was.
    fn next_slow(&mut self, now: Instant) -> Option<LaneId> {
        while let Some((offset, id)) = self.slow_lanes.found.pop_front() {
            let entry = self.lanes.get(&id);
            if entry.and_then(|entry| first_of_slow(entry, now)) == Some(offset) {
                return Some(id);
            }
        }
        None
    }
}
