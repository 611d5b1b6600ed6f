//! Applies events, one at a time.

use super::breaker::Candidate;
use super::deferral::When;
use super::effect::{Attempt, Effect, Effects, Question};
use super::env::{Endpoint, Env, Standing, Subscriptions};
use super::event::{AttemptEnd, Event, LaneId, LookAhead};
use super::lane::Next;
use super::state::{Intake, Knowledge, Partition, Step, Taken};
use crate::model::outcome::ParkReason;
use std::cmp::Reverse;

impl<E: Endpoint> Partition<E> {
    /// Applies an event and appends the resulting effects to `effects`, in the order in which to execute them.
    pub fn apply<S: Subscriptions<Endpoint = E>>(
        &mut self,
        event: Event<E>,
        env: &Env<'_, S>,
        random: &mut fastrand::Rng,
        effects: &mut Effects<E>,
    ) {
        let step = &mut Step {
            env,
            random,
            effects,
        };
        match event {
            Event::Taken(incoming) => {
                if self.intake == Intake::Open {
                    self.pending.extend(incoming);
                    self.admit(step);
                } else {
                    // The next owner reads it again.
                    for one in incoming {
                        step.effects.free(one.weight());
                    }
                }
            }
            Event::Turn { lane, spare } => self.turn(lane, spare, step),
            Event::Ended(end) => self.attempt_ended(end, step),
            Event::SlotFreed(lane) => self.free_slot(lane, step),
            Event::Responded(lane, offset, line) => self.responded(lane, offset, &line),
            Event::Timer => self.timer(step),
            Event::Tick => self.tick(step),
            Event::LookedAhead(LookAhead::UnderWay(found)) => self.learn_under_way(found, step),
            Event::LookedAhead(LookAhead::Others(found)) => {
                self.fairness.learn(found);
                self.admit(step);
            }
            Event::LookedAhead(LookAhead::Again(found)) => self.take_again(*found, step),
            Event::Durable(offsets) => self.durable(&offsets, step),
            // What is pending is not in the window yet.
            Event::Passed(position) if self.pending.is_empty() => self.window.pass(position),
            Event::Passed(_) => {}
            Event::OutageBegan => self.outage_began(step),
            Event::Probe(lane) => self.probe(lane, step),
            Event::OutageEnded { heard } => self.outage_ended(heard, step),
            Event::Stop => self.stop(step),
        }
    }

    /// Sends a lane's next command, if the lane may send.
    fn turn<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        spare: usize,
        step: &mut Step<'_, S>,
    ) {
        if let Some(entry) = self.lanes.get_mut(&id) {
            entry.ready = false;
        }
        if !self.refresh(id, step) {
            return;
        }
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        match &entry.standing {
            Standing::Open(_) => {}
            // Each tick asks again, and so does the end of the read.
            Standing::Loading => return,
            _ => return self.clear_lane(id, step),
        }
        let wall = step.env.wall;
        // Any of them, since a probe need not be the first one.
        if entry.may_expire(wall) {
            self.expire_lane(id, step);
        }
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        if entry.held.as_ref().is_some_and(|held| !held.may_probe) {
            return;
        }
        let Standing::Open(endpoint) = &entry.standing else {
            return;
        };
        let candidate = |taken: &Taken| Candidate::of(&taken.command);
        match entry.lane.next(spare, step.env.now, candidate) {
            Next::Send(taken, permit) => {
                let attempt = Attempt {
                    lane: id,
                    offset: taken.offset,
                    command: taken.command,
                    endpoint: endpoint.clone(),
                    permit,
                };
                if let Some(held) = &mut entry.held {
                    held.may_probe = false;
                    held.probes += 1;
                }
                self.in_flight += 1;
                step.push(Effect::Send(attempt));
                self.make_ready(id, step);
            }
            Next::At(at) if entry.timed.is_none_or(|timed| at < timed) => {
                entry.timed = Some(at);
                self.timers.push(Reverse((at, id)));
                self.wake_at(at, step);
            }
            Next::At(_) | Next::Nothing => {}
        }
    }

    fn attempt_ended<S: Subscriptions<Endpoint = E>>(
        &mut self,
        end: AttemptEnd<E>,
        step: &mut Step<'_, S>,
    ) {
        debug_assert!(self.in_flight > 0, "an attempt ends once");
        self.in_flight = self.in_flight.saturating_sub(1);
        let (lane, slot_follows) = (end.lane, end.slot_follows);
        self.conclude(end, step);
        self.drained_if_idle(step);
        if !slot_follows {
            self.free_slot(lane, step);
        }
    }

    fn free_slot<S: Subscriptions<Endpoint = E>>(&mut self, id: LaneId, step: &mut Step<'_, S>) {
        // The lane is gone, and its slots with it.
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        entry.lane.ended(step.env.now);
        self.make_ready(id, step);
        self.lane_drains(id, step);
        self.admit(step);
    }

    fn timer<S: Subscriptions<Endpoint = E>>(&mut self, step: &mut Step<'_, S>) {
        self.wake_at = None;
        let now = step.env.now;
        while let Some(&Reverse((at, id))) = self.timers.peek() {
            if at > now {
                break;
            }
            self.timers.pop();
            // Skip if an earlier timer has already given the lane its turn.
            if let Some(entry) = self.lanes.get_mut(&id)
                && entry.timed == Some(at)
            {
                entry.timed = None;
                self.make_ready(id, step);
            }
        }
        while let Some(Reverse(first)) = self.due_soon.peek()
            && first.due <= step.env.wall
        {
            let Some(Reverse(first)) = self.due_soon.pop() else {
                break;
            };
            if let Some(taken) = self.route(first.taken, step) {
                self.park(taken, ParkReason::LaneFull, None, step);
            }
        }
        let lane = self.timers.peek().map(|Reverse((at, _))| *at);
        let due = self
            .due_soon
            .peek()
            .map(|Reverse(first)| now + first.due.since(step.env.wall));
        if let Some(at) = lane.into_iter().chain(due).min() {
            self.wake_at(at, step);
        }
    }

    /// Handles changes that depend on time alone: a lane may have stalled, or a subscription may have been resumed.
    fn tick<S: Subscriptions<Endpoint = E>>(&mut self, step: &mut Step<'_, S>) {
        self.coverage
            .pass(self.window.position(), self.window.open());
        self.growth.tick(self.window.end(), step.env.now);
        if self.intake != Intake::Open {
            return;
        }
        self.refresh_all(step);
        self.learn_statuses(step);
        self.publish_statuses(step);
        self.expire_lanes(step);
        self.park_excess(step);
        self.park_what_holds_back(step);
        self.forget_idle(step);
        // Lanes that could not send because too few requests were left.
        let waiting: Vec<LaneId> = self
            .lanes
            .iter()
            .filter(|(_, entry)| {
                entry.lane.queued() > 0 && entry.timed.is_none() && entry.held.is_none()
            })
            .map(|(&id, _)| id)
            .collect();
        for id in waiting {
            self.make_ready(id, step);
        }
        if !self.pending.is_empty() {
            self.admit(step);
        }
        self.read_again(When::NextTick, step);
        self.ask(step);
    }

    /// Lets the lanes know of changed subscriptions: one that waits for its breaker's next probe may probe at once.
    fn refresh_all<S: Subscriptions<Endpoint = E>>(&mut self, step: &mut Step<'_, S>) {
        let version = step.env.subscriptions.version();
        if self.table_version == version {
            return;
        }
        self.table_version = version;
        let lanes: Vec<LaneId> = self.lanes.keys().copied().collect();
        for id in lanes {
            self.refresh(id, step);
        }
    }

    /// Requests the look-ahead reads that the partition needs.
    fn ask<S: Subscriptions<Endpoint = E>>(&mut self, step: &mut Step<'_, S>) {
        self.look_further(step.env.now);
        if matches!(self.knowledge, Knowledge::Needed) {
            self.knowledge = Knowledge::Asked;
            self.has_strays = false;
            let window = Box::new(self.window.clone());
            step.push(Effect::LookAhead(Question::UnderWay(window)));
        }
        if let Some(first) = self.pending.front()
            && let Some(from) = self.fairness.ask(first.offset, step.env.now)
        {
            let backlogged = self
                .lanes
                .values()
                .filter(|entry| entry.lane.is_backlogged());
            let except = backlogged
                .map(|entry| Box::from(&*entry.name))
                .chain(self.deferrals.names().map(|name| Box::from(&**name)))
                .collect();
            step.push(Effect::LookAhead(Question::Others(from, except)));
        }
    }

    /// Gives up commands that have reached their maximum age in a lane, as when an attempt ahead of them hangs.
    fn expire_lanes<S: Subscriptions<Endpoint = E>>(&mut self, step: &mut Step<'_, S>) {
        let wall = step.env.wall;
        let due: Vec<LaneId> = self
            .lanes
            .iter()
            .filter(|(_, entry)| entry.may_expire(wall))
            .map(|(&id, _)| id)
            .collect();
        for id in due {
            // It may have been paused since: then it is cleared.
            if self.refresh(id, step) {
                self.expire_lane(id, step);
            }
        }
    }

    fn park_excess<S: Subscriptions<Endpoint = E>>(&mut self, step: &mut Step<'_, S>) {
        let now = step.env.now;
        let mut excess = Vec::new();
        for entry in self.lanes.values_mut() {
            for taken in entry.lane.take_excess(now) {
                excess.push((taken, entry.lane.turn(now)));
            }
        }
        for (taken, rest) in excess {
            self.park(taken, ParkReason::LaneFull, rest, step);
        }
    }

    fn stop<S: Subscriptions<Endpoint = E>>(&mut self, step: &mut Step<'_, S>) {
        self.intake = Intake::Stopping;
        self.last_statuses(step);
        for incoming in self.pending.drain(..) {
            step.effects.free(incoming.weight());
        }
        self.first_is_taken = false;
        for Reverse(due_soon) in self.due_soon.drain() {
            step.effects.free(due_soon.taken.command.weight());
        }
        for entry in self.lanes.values_mut() {
            for taken in entry.take_all() {
                step.effects.free(taken.command.weight());
            }
        }
        self.drained_if_idle(step);
    }
}
