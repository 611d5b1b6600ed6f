//! Room in a window that is full, and a position that is not far behind: the queues of slow lanes are parked.

use std::time::{Duration, Instant};

use super::env::{Endpoint, Subscriptions};
use super::event::LaneId;
use super::parking::reason;
use super::state::{LaneEntry, Partition, Step, Taken};
use crate::model::outcome::ParkReason;
use crate::model::units::Offset;

/// How far a slow lane may hold back the position, in offsets: a new owner reads them again in some three seconds.
const FAR: i64 = 250_000;
/// How often such lanes are looked for, and how many are parked at a time.
const EVERY: Duration = Duration::from_secs(1);
const AT_ONCE: usize = 1_024;

fn is_slow<E>(entry: &LaneEntry<E>, now: Instant) -> bool {
    entry.held.is_some() || entry.lane.slow(now).is_some()
}

/// The first command of a lane that is slow.
fn first_of_slow<E>(entry: &LaneEntry<E>, now: Instant) -> Option<Offset> {
    let first = entry.lane.first().filter(|_| is_slow(entry, now))?;
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
        let Some(id) = self.first_slow_lane(step.env.now) else {
            return false;
        };
        self.park_slow(id, step);
        true
    }

    /// Parks the queues of slow lanes that hold back the position far behind the end, as the candidates for the next probe
    /// of an endpoint that is down do.
    pub(super) fn park_what_holds_back<S: Subscriptions<Endpoint = E>>(
        &mut self,
        step: &mut Step<'_, S>,
    ) {
        let (now, end) = (step.env.now, self.window.end().0);
        let is_due = self.next_far.is_none_or(|next| now >= next);
        if end - self.window.position().0 <= FAR || !is_due {
            return;
        }
        self.next_far = Some(now + EVERY);
        let is_far = |taken: &Taken| end - taken.offset.0 > FAR;
        let far = |entry: &LaneEntry<E>| is_slow(entry, now) && entry.lane.any(is_far);
        let each = self.lanes.iter().filter(|(_, entry)| far(entry));
        let first = |entry: &LaneEntry<E>| entry.lane.first().map(|taken| taken.offset);
        let mut all: Vec<_> = each.map(|(&id, entry)| (first(entry), id)).collect();
        all.sort_unstable();
        for (_, id) in all.into_iter().take(AT_ONCE) {
            self.park_slow(id, step);
        }
    }

    /// The slow lane whose first command is the oldest.
    fn first_slow_lane(&mut self, now: Instant) -> Option<LaneId> {
        if self.unwritten.contains(&self.window.position().0) {
            return None;
        }
        let lanes = &self.lanes;
        let all = || {
            let each = lanes.iter();
            each.filter_map(|(&id, entry)| Some((first_of_slow(entry, now)?, id)))
        };
        let first = |id: LaneId| first_of_slow(lanes.get(&id)?, now);
        self.slow_lanes.next(now, lanes.len(), all, first)
    }

    fn park_slow<S: Subscriptions<Endpoint = E>>(&mut self, id: LaneId, step: &mut Step<'_, S>) {
        let now = step.env.now;
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        let (why, rest) = match entry.lane.closed(now) {
            Some((cause, until)) => (reason(cause), Some(until - now)),
            None => (ParkReason::LaneFull, entry.lane.turn(now)),
        };
        self.park_queue(id, why, rest, step);
    }
}
