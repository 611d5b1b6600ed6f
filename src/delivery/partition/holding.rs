//! Holds lanes during an egress outage ([`crate::delivery::outage`] decides about the replica; the lanes are here).
//!
//! A lane that fails is held: it keeps one command to probe with, and parks all others without spending attempts. A lane
//! that heard from its endpoint recently is never held, so a wrong decision delays nothing.

use std::time::{Duration, Instant};

use super::env::{Endpoint, Subscriptions};
use super::event::LaneId;
use super::health::Held;
use super::state::{LaneEntry, Partition, Step, Taken};
use crate::model::outcome::ParkReason;

/// A single attempt without a response may be a coincidence.
const UNANSWERED: u32 = 2;
/// A lane that heard from its endpoint within this time does not fail, whatever its last attempts were.
const RECENTLY: Duration = Duration::from_secs(5);

impl<E> LaneEntry<E> {
    /// Whether nothing comes from its endpoint.
    pub(super) fn fails(&self, now: Instant) -> bool {
        let recently = |at: Instant| now.saturating_duration_since(at) < RECENTLY;
        self.unanswered >= UNANSWERED && !self.last_heard.is_some_and(recently)
    }
}

impl<E: Endpoint> Partition<E> {
    /// Holds the lanes that fail; others follow when they begin to.
    pub(super) fn outage_began<S: Subscriptions<Endpoint = E>>(&mut self, step: &mut Step<'_, S>) {
        self.outage = true;
        self.heard = false;
        let all: Vec<LaneId> = self.lanes.keys().copied().collect();
        for id in all {
            self.hold_if_it_fails(id, step);
        }
    }

    /// Holds a lane that fails, during an outage.
    pub(super) fn hold_if_it_fails<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        step: &mut Step<'_, S>,
    ) {
        let now = step.env.now;
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        if !self.outage || entry.held.is_some() || !entry.fails(now) {
            return;
        }
        entry.held = Some(Held::default());
        let mut queue = entry.lane.take_queue();
        let probe = queue.next();
        let rest: Vec<Taken> = queue.collect();
        if let Some(probe) = probe {
            let weight = probe.command.weight();
            entry.lane.push(probe, weight, now);
        }
        for taken in rest {
            self.park(taken, ParkReason::Outage, None, step);
        }
    }

    /// Takes a command of a held lane: one waits to be the next probe, others are parked.
    pub(super) fn take_held<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        taken: Taken,
        step: &mut Step<'_, S>,
    ) {
        let now = step.env.now;
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        if entry.lane.queued() > 0 {
            return self.park(taken, ParkReason::Outage, None, step);
        }
        let weight = taken.command.weight();
        entry.lane.push(taken, weight, now);
        self.make_ready(id, step);
    }

    /// The held lanes that can probe, each with the probes that it has sent and when its endpoint was last heard.
    pub fn can_probe(&self) -> impl Iterator<Item = (LaneId, u32, Option<Instant>)> {
        self.lanes.iter().filter_map(|(&id, entry)| {
            let held = entry.held.as_ref()?;
            let can = entry.lane.queued() > 0 && entry.lane.in_flight() == 0;
            can.then_some((id, held.probes, entry.last_heard))
        })
    }

    /// Lets a held lane send one command, also while its breaker is open.
    pub(super) fn probe<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        step: &mut Step<'_, S>,
    ) {
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        if let Some(held) = &mut entry.held {
            held.may_probe = true;
            entry.lane.probe_soon(step.env.now);
            self.make_ready(id, step);
        }
    }

    /// A lane heard from its endpoint.
    pub(super) fn heard_from<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        step: &mut Step<'_, S>,
    ) {
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        entry.unanswered = 0;
        entry.last_heard = Some(step.env.now);
        if entry.held.take().is_some() {
            self.heard = true;
            self.make_ready(id, step);
        }
    }

    /// An attempt ended without a sign of the endpoint.
    pub(super) fn not_heard_from<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        step: &mut Step<'_, S>,
    ) {
        if let Some(entry) = self.lanes.get_mut(&id) {
            entry.unanswered = entry.unanswered.saturating_add(1);
            self.hold_if_it_fails(id, step);
        }
    }

    /// Holds no lane any more. If one heard from its endpoint, the fault was on this side, and open breakers probe soon.
    pub(super) fn outage_ended<S: Subscriptions<Endpoint = E>>(
        &mut self,
        heard: bool,
        step: &mut Step<'_, S>,
    ) {
        self.outage = false;
        self.heard = false;
        let all: Vec<LaneId> = self.lanes.keys().copied().collect();
        for id in all {
            if let Some(entry) = self.lanes.get_mut(&id) {
                entry.held = None;
                entry.unanswered = 0;
                entry.last_end = None;
                if heard {
                    entry.lane.probe_soon(step.env.now);
                }
            }
            self.make_ready(id, step);
        }
    }
}
