//! Defers commands and takes them back ([`super::deferral`]).

use std::time::Instant;

use super::deferral::{Deferred, Found, PASS_PARKED, Wanted, When};
use super::effect::{Effect, Notice};
use super::env::{Endpoint, Env, Memory, Rules, Subscriptions};
use super::event::LaneId;
use super::lane::QUEUE_COMMANDS;
use super::state::{Intake, LaneEntry, Partition, Step, Taken};
use crate::model::outcome::ParkReason;
use crate::model::units::{EpochMs, Offset, Position};
use crate::model::window::Window;

impl<E> LaneEntry<E> {
    /// Whether the lane accepts commands and drains quickly: only then is it worth while to defer them.
    pub(super) fn is_quick(&self, now: Instant) -> bool {
        self.standing.accepts()
            && self.held.is_none()
            && self.lane.closed(now).is_none()
            && self.lane.slow(now).is_none()
    }

    /// What it would take of these deferred commands.
    fn wants(&self, of: &Deferred, around: &Around<'_>) -> Option<Wanted> {
        let now = around.now;
        if let Some(wanted) = self.wants_until_probe(of, around) {
            return Some(wanted);
        }
        if !self.is_quick(now) {
            return Some(TO_PARK);
        }
        let queued = self.lane.queued();
        let has_spare = around.memory == Memory::Plenty;
        let commands = if has_spare {
            self.lane.room(now)
        } else {
            QUEUE_COMMANDS.saturating_sub(queued)
        };
        let when = match () {
            () if queued > 0 && !has_spare || queued > commands => When::WithAnother,
            () => When::Now,
        };
        (commands > 0).then_some(Wanted { commands, when })
    }
}

/// Of a lane that is not quick, or gone: its commands are parked, as those of any other such lane, but not all at once,
/// since it may be quick again soon.
pub(super) const TO_PARK: Wanted = Wanted {
    commands: PASS_PARKED,
    when: When::NextTick,
};

/// What the lanes of a partition have in common.
pub(super) struct Around<'a> {
    pub(super) rules: &'a Rules,
    pub(super) now: Instant,
    pub(super) wall: EpochMs,
    memory: Memory,
    /// Behind the last offset that was taken.
    pub(super) end: Position,
    /// Whether the window has room for no more that rest.
    pub(super) window_is_full: bool,
}

impl<'a> Around<'a> {
    fn new<S: Subscriptions>(rules: &'a Rules, window: &Window, env: &Env<'_, S>) -> Self {
        Self {
            rules,
            now: env.now,
            wall: env.wall,
            memory: env.memory,
            end: window.end(),
            window_is_full: false,
        }
    }
}

impl<E: Endpoint> Partition<E> {
    /// Handles a command for which its quick lane has no room, or which is behind deferred ones: defers it if others wait
    /// behind it. Otherwise returns it, to hold the intake, since reading it twice would gain nothing.
    pub(super) fn overflow<S: Subscriptions<Endpoint = E>>(
        &mut self,
        taken: Taken,
        step: &mut Step<'_, S>,
    ) -> Option<Taken> {
        if self.deferrals.is_routing {
            return Some(taken);
        }
        let (offset, now) = (taken.offset, step.env.now);
        let defers = self.rules.defers;
        let others = defers && self.fairness.saw_others() || !self.fairness.waits(offset, now);
        if !others {
            return Some(taken);
        }
        self.fairness.routed(false);
        let has_room = defers && self.deferrals.has_room(offset, taken.command.weight());
        if has_room && self.window.may_rest(&self.coverage) {
            self.defer(taken, step);
            return None;
        }
        self.park_in_turn(taken, step);
        None
    }

    pub(super) fn defer<S: Subscriptions<Endpoint = E>>(
        &mut self,
        taken: Taken,
        step: &mut Step<'_, S>,
    ) {
        let weight = taken.command.weight();
        let name = &taken.command.subscription;
        self.deferrals.add(name, taken.offset, weight);
        self.window.rest(taken.offset);
        step.effects.free(weight);
        step.effects.deferred += usize::from(!self.deferrals.is_routing);
    }

    /// Reads deferred commands again, if this lane has just made room for them.
    pub(super) fn lane_drains<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        step: &mut Step<'_, S>,
    ) {
        let Some(entry) = self.lanes.get(&id) else {
            return;
        };
        let Some(of) = self.deferrals.get(&entry.name) else {
            return;
        };
        // Whether it would have to park them makes no difference here.
        let around = Around::new(&self.rules, &self.window, step.env);
        let wanted = entry.wants(of, &around);
        if wanted.is_some_and(|wanted| wanted.when == When::Now) {
            self.read_again(When::Now, step);
        }
    }

    /// Reads deferred commands again, if a lane has room for them.
    pub(super) fn read_again<S: Subscriptions<Endpoint = E>>(
        &mut self,
        when: When,
        step: &mut Step<'_, S>,
    ) {
        let idle = self.deferrals.reading.is_none() && self.intake == Intake::Open;
        if !idle || self.deferrals.is_empty() {
            return;
        }
        let window_is_full = !self.window.may_rest(&self.coverage);
        let around = Around {
            window_is_full,
            ..Around::new(&self.rules, &self.window, step.env)
        };
        let (lanes, by_subscription) = (&self.lanes, &self.by_subscription);
        let lane = |name: &str| lanes.get(by_subscription.get(name)?);
        let wants = |name: &str, of: &Deferred| match lane(name) {
            Some(entry) => entry.wants(of, &around),
            // Its subscription is gone.
            None => Some(TO_PARK),
        };
        if let Some(pass) = self.deferrals.next_pass(&self.window, when, wants) {
            step.push(Effect::ReadAgain(Box::new(pass)));
        }
    }

    /// Takes commands that were read again.
    pub(super) fn take_again<S: Subscriptions<Endpoint = E>>(
        &mut self,
        found: Found,
        step: &mut Step<'_, S>,
    ) {
        let Some(names) = self.deferrals.reading.take() else {
            return;
        };
        if self.intake != Intake::Open {
            for (_, command) in found.commands {
                step.effects.free(command.weight());
            }
            return;
        }
        self.deferrals.spend(found.records);
        let mut left = found.left;
        let (mut is_full, mut taken) = (false, 0);
        for (offset, command) in found.commands {
            let (name, weight) = (command.subscription.clone(), command.weight());
            let known = self.deferrals.are_before(&name, offset) && self.window.rests(offset);
            is_full = is_full || !self.window.may_wake(offset, &self.coverage);
            if is_full && known {
                let first = left.entry(name.clone()).or_insert(offset.0);
                *first = (*first).min(offset.0);
            }
            // Behind one without room, it waits for the next pass.
            if !known || left.get(&name).is_some_and(|&first| first <= offset.0) {
                step.effects.free(weight);
                continue;
            }
            self.deferrals.take(&name, offset, weight);
            self.window.wake(offset);
            taken += 1;
            self.deferrals.is_routing = true;
            if let Some(back) = self.route(Taken { offset, command }, step) {
                if self.deferrals.is_sweep {
                    self.park_in_turn(back, step);
                } else {
                    taken -= 1;
                    left.insert(name, offset.0);
                    self.defer(back, step);
                }
            }
            self.deferrals.is_routing = false;
        }
        let mut gone = 0;
        for (from, to) in found.gone {
            let runs: Vec<_> = self.window.resting(from, to).collect();
            for offset in runs.into_iter().flat_map(|(from, to)| from..to) {
                gone += usize::from(self.window.finish(Offset(offset)));
            }
        }
        if gone > 0 {
            step.push(Effect::Notice(Notice::DeferredGone(gone)));
        }
        for name in names {
            let from = left.get(&name).copied().unwrap_or(found.seen_to);
            self.deferrals.advance(&name, from);
        }
        if taken > 0 {
            self.read_again(When::Now, step);
        }
        self.admit(step);
    }

    /// Parks a command for which its lane has no room.
    fn park_in_turn<S: Subscriptions<Endpoint = E>>(
        &mut self,
        taken: Taken,
        step: &mut Step<'_, S>,
    ) {
        let id = self.by_subscription.get(&*taken.command.subscription);
        let entry = id.and_then(|id| self.lanes.get_mut(id));
        let rest = entry.and_then(|entry| entry.lane.turn(step.env.now));
        self.park(taken, ParkReason::LaneFull, rest, step);
    }
}
