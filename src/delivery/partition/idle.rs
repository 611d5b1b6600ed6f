//! Forgets lanes that have nothing to do.
//!
//! A lane takes 5 to 9 KiB, and an event for all of a million subscriptions makes as many. So a lane without commands is
//! forgotten after [`IDLE`]; the next command makes it again. One whose last attempt failed is kept for [`FAILED`], so that
//! its breaker counts failures that are hours apart. Kept without a limit are lanes that are in trouble or have an order.
//! While its partition has more than [`KEPT`] lanes, one that has learned nothing is forgotten after [`SOON`], the longest
//! idle first. So memory is in proportion to the lanes with commands now and those in trouble.
//!
//! Forgetting soon loses a little: attempts and the time of a last success that are not written yet, and the success of one
//! event type, which shows for a minute that an endpoint that refuses another type is not down.

use std::time::{Duration, Instant};

use super::env::{Endpoint, Subscriptions};
use super::event::LaneId;
use super::report::LATELY;
use super::state::{LaneEntry, Partition, Step};
use crate::model::units::EpochMs;

/// Lanes of a partition that are kept for [`IDLE`].
const KEPT: usize = 4_096;
const IDLE: Duration = Duration::from_secs(600);
/// Longer than the gaps in the default schedule.
const FAILED: Duration = Duration::from_secs(25 * 3600);
/// Not less than the time for which attempts count when an egress outage is looked for.
const SOON: Duration = LATELY;
/// How often idle lanes are looked for, and the same while more are left.
const EVERY: Duration = Duration::from_secs(1);
const WHILE_MORE: Duration = Duration::from_millis(100);
/// The most that are forgotten at a time.
const AT_ONCE: usize = 1_024;

impl<E> LaneEntry<E> {
    /// When its last command came, or its last attempt ended.
    fn last_time(&self) -> Instant {
        self.last_end
            .map_or(self.last_used, |end| end.max(self.last_used))
    }

    fn is_at_rest(&self, now: Instant, wall: EpochMs) -> bool {
        !self.ready
            && self.held.is_none()
            && self.opened.is_none()
            && self.subjects.is_none()
            && !self.status.is_in_trouble()
            && !self.status.is_in_series(wall)
            && self.lane.is_at_rest(now)
    }
}

impl<E: Endpoint> Partition<E> {
    /// Forgets idle lanes.
    pub(super) fn forget_idle<S: Subscriptions<Endpoint = E>>(&mut self, step: &mut Step<'_, S>) {
        let (now, wall) = (step.env.now, step.env.wall);
        if self.next_idle.is_some_and(|next| now < next) {
            return;
        }
        let excess = self.lanes.len().saturating_sub(KEPT);
        self.forgets_soon = excess > 0;
        let may_go = |entry: &LaneEntry<E>| {
            let idle = now.saturating_duration_since(entry.last_time());
            let is_new = || entry.lane.is_as_new() && entry.unanswered == 0;
            let long = if entry.lane.has_just_failed() {
                FAILED
            } else {
                IDLE
            };
            let publishing = &entry.status.publishing;
            let may_go = match excess {
                0 => idle >= long && !publishing.has_news(),
                _ => idle >= SOON && !publishing.is_urgent() && (idle >= long || is_new()),
            };
            may_go && entry.is_at_rest(now, wall) && !self.deferrals.has(&entry.name)
        };
        let each = self.lanes.iter().filter(|(_, entry)| may_go(entry));
        let mut gone: Vec<(Instant, LaneId)> =
            each.map(|(&id, entry)| (entry.last_time(), id)).collect();
        let most = if excess > 0 {
            excess.min(AT_ONCE)
        } else {
            AT_ONCE
        };
        let has_more = gone.len() > most;
        if has_more {
            gone.select_nth_unstable(most);
            gone.truncate(most);
        }
        let more = has_more && excess != most;
        self.next_idle = Some(now + if more { WHILE_MORE } else { EVERY });
        for (_, id) in gone {
            self.forget_lane(id, step);
        }
        let count = self.lanes.len();
        if self.lanes.capacity() > 4 * count.max(KEPT) {
            self.lanes.shrink_to(2 * count);
            self.by_subscription.shrink_to(2 * count);
        }
    }
}
