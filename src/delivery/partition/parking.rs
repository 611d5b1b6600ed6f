//! Parks commands: moves them to a tier without an attempt.
//!
//! Each round costs two appends, into the tier and back, and one more for each hop between tiers. How long it lasts:
//!
//! | reason | time | hops |
//! |---|---|---|
//! | the breaker is open | until the next probe at least; one that came back in vain, half of the delay between probes at least | one, two at most |
//! | paused, an outage, behind a command whose time is unknown | in proportion to its age, up to [`LONGEST_PARK`] | one, two at most |
//! | the rate, a full lane | until its turn at the lane's pace, which a longer wait would leave idle | as many as it takes |
//! | behind a command in a tier | until that one is due | the same |
//!
//! Long waits that begin just behind a probe end just behind a later one. Without the least time for those that came
//! back, probes and parked commands drift apart until one of them comes back shortly before a probe, for another round.

use std::time::Duration;

use super::breaker::Kind;
use super::env::{Endpoint, Subscriptions};
use super::event::LaneId;
use super::lane::Slowness;
use super::state::{Partition, Step, Taken};
use crate::model::command::{Cause, Command};
use crate::model::outcome::ParkReason;
use crate::model::tiers::LONGEST_PARK;
use crate::model::units::EpochMs;

/// The park reason for a lane's slowness.
pub(super) fn reason(cause: Slowness) -> ParkReason {
    match cause {
        Slowness::Endpoint => ParkReason::LaneFull,
        Slowness::Rate => ParkReason::Rate,
        Slowness::Breaker => ParkReason::Breaker,
    }
}

impl<E: Endpoint> Partition<E> {
    /// Moves a command to a tier without an attempt: for about `rest`, or in proportion to its age.
    pub(super) fn park<S: Subscriptions<Endpoint = E>>(
        &mut self,
        taken: Taken,
        why: ParkReason,
        rest: Option<Duration>,
        step: &mut Step<'_, S>,
    ) {
        let wall = step.env.wall;
        let time = self.time_of(&taken.command, why, rest, wall);
        self.wait_in_tier(taken, wall + time, Some(why), step);
    }

    /// The table above.
    pub(super) fn time_of(
        &self,
        command: &Command,
        why: ParkReason,
        rest: Option<Duration>,
        wall: EpochMs,
    ) -> Duration {
        let tiers = &self.rules.tiers;
        let Some(rest) = rest else {
            return tiers.park_for(wall.since(command.waits_since()));
        };
        if why != ParkReason::Breaker {
            return rest.min(LONGEST_PARK);
        }
        let again = if command.cause == Cause::Parked {
            self.probe_wait(command) / 2
        } else {
            Duration::ZERO
        };
        tiers.at_least(rest.max(again))
    }

    /// The current delay between the probes of a command's endpoint.
    fn probe_wait(&self, command: &Command) -> Duration {
        let lane = self.by_subscription.get(&*command.subscription);
        let entry = lane.and_then(|id| self.lanes.get(id));
        entry.map_or(Duration::ZERO, |entry| entry.lane.probe_wait())
    }

    /// Parks a lane's whole queue.
    pub(super) fn park_queue<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        why: ParkReason,
        rest: Option<Duration>,
        step: &mut Step<'_, S>,
    ) {
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        let queue: Vec<_> = entry.lane.take_queue().collect();
        for taken in queue {
            self.park(taken, why, rest, step);
        }
    }

    /// The breaker is open until a probe in `rest`: parks a lane's queue, except for the candidates for probes.
    pub(super) fn park_all_but_probes<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        rest: Duration,
        step: &mut Step<'_, S>,
    ) {
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        if entry.subjects.is_some() {
            // What waits in a lane holds up those behind it in its subject, in memory.
            return self.park_queue(id, ParkReason::Breaker, Some(rest), step);
        }
        let kind = |taken: &Taken| Kind::of(&taken.command);
        for taken in entry.lane.take_all_but_probes(kind) {
            self.park(taken, ParkReason::Breaker, Some(rest), step);
        }
        self.make_ready(id, step);
    }
}
