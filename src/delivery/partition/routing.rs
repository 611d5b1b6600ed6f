//! Routes commands for which there is room: into a lane, back to a tier, or to the dead letters.

use std::cmp::Reverse;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::counts::AttemptCounts;
use super::effect::{Effect, Outcome};
use super::env::{Endpoint, Memory, Standing, Subscriptions, Terms, Unavailable};
use super::event::{Incoming, LaneId};
use super::health::Sides;
use super::lane::{Full, Lane, Slowness};
use super::parking::reason;
use super::state::{DueSoon, LaneEntry, Partition, STEADY, Step, Taken};
use super::status::status_of;
use crate::model::command::{Cause, Command};
use crate::model::dead_letter::{DeadLetterInfo, Reason};
use crate::model::expiry::{Expiry, explain};
use crate::model::outcome::ParkReason;
use crate::model::units::EpochMs;

/// A command may arrive before its subscription, because they travel through different topics. A command younger than
/// this waits for its subscription; for an older one the subscription counts as missing.
const SUBSCRIPTION_GRACE: Duration = Duration::from_secs(10);
/// A command due within this time waits in memory; one due later goes back to a tier.
const DUE_SOON: Duration = Duration::from_secs(2);

/// When the commands of a subscription expire. A resume in the future would delay that for ever.
fn expiry<E>(terms: &Terms<E>, wall: EpochMs) -> Expiry {
    Expiry {
        max_age: terms.max_age,
        resumed_at: terms.resumed_at.map(|at| at.min(wall)),
    }
}

impl<E: Endpoint> Partition<E> {
    /// Moves pending records into the window and the lanes while there is room.
    pub(super) fn admit<S: Subscriptions<Endpoint = E>>(&mut self, step: &mut Step<'_, S>) {
        loop {
            let Some(first) = self.pending.front() else {
                self.stalled_since = None;
                self.fairness.no_longer_held();
                return;
            };
            let offset = first.offset;
            if !self.first_is_taken {
                let mark = first.mark;
                if !self.has_room(offset, mark.is_some()) {
                    if self.make_room(step) {
                        continue;
                    }
                    self.stalled_since.get_or_insert(step.env.now);
                    return;
                }
                // Once for each record, in the order of the log, also if a former owner has finished it.
                let is_copy = mark.is_some_and(|mark| self.is_copy(offset, mark, step));
                self.first_is_taken = self.window.take(offset);
                if is_copy && self.first_is_taken {
                    self.window.finish(offset);
                    self.first_is_taken = false;
                    step.effects.copies += 1;
                }
            }
            let Some(incoming) = self.pending.pop_front() else {
                return;
            };
            if !std::mem::take(&mut self.first_is_taken) {
                // A former owner has finished it, or it is a copy.
                step.effects.free(incoming.weight());
                continue;
            }
            let waits = match incoming.content {
                Ok(command) => self.route(Taken { offset, command }, step),
                Err(record) => {
                    let weight = record.weight();
                    self.settle(offset, weight, Some(Outcome::Invalid(record)), step);
                    None
                }
            };
            if let Some(taken) = waits {
                self.pending.push_front(Incoming {
                    offset,
                    content: Ok(taken.command),
                    mark: None,
                });
                self.first_is_taken = true;
                self.stalled_since.get_or_insert(step.env.now);
                return;
            }
            self.stalled_since = None;
        }
    }

    /// Routes a command whose offset is in the window; returns it if its lane is currently full.
    pub(super) fn route<S: Subscriptions<Endpoint = E>>(
        &mut self,
        mut taken: Taken,
        step: &mut Step<'_, S>,
    ) -> Option<Taken> {
        let (now, wall) = (step.env.now, step.env.wall);
        if let Some(due) = taken.command.due.filter(|&due| due > wall) {
            self.not_yet(taken, due, step);
            return None;
        }
        let id = match self.lane_of(&taken.command, step) {
            Ok(id) => id,
            Err(why) => {
                self.unavailable(taken, why, step);
                return None;
            }
        };
        let entry = self.lanes.get_mut(&id)?;
        entry.last_used = now;
        if entry.subjects.is_some() {
            taken.place_in_order(&self.rules.cluster);
        }
        if !entry.standing.accepts() {
            let (standing, expiry) = (entry.standing.clone(), entry.expiry);
            self.turn_away(taken, &standing, expiry, step);
            return None;
        }
        let since = taken.command.waits_since();
        if entry.expiry.at(since) <= wall {
            let limit = entry.expiry.max_age;
            self.expire(taken, limit, step);
            return None;
        }
        let is_behind = self.deferrals.are_before(&entry.name, taken.offset);
        if is_behind && (entry.subjects.is_some() || entry.is_quick(now)) {
            return self.overflow(taken, step);
        }
        entry.holds(since);
        let taken = self.take_turn(id, taken, step)?;
        let entry = self.lanes.get_mut(&id)?;
        if entry.held.is_some() {
            self.take_held(id, taken, step);
            return None;
        }
        if let Some((cause, until)) = entry.lane.closed(now)
            && !(cause == Slowness::Breaker && entry.keeps_probe(&taken, now))
        {
            let rest = until - now;
            let parked = match cause {
                Slowness::Breaker => self.wait_for_probe(id, taken, rest, step),
                _ => Some(taken),
            };
            if let Some(taken) = parked {
                self.park(taken, reason(cause), Some(rest), step);
            }
            return None;
        }
        let weight = taken.command.weight();
        // What was read again was asked for as far as there was memory, and its memory counts by now.
        let has_spare = step.env.memory != Memory::Short || self.deferrals.is_routing;
        match entry.lane.offer(taken, weight, has_spare, now) {
            Ok(()) => {
                let is_short = !entry.lane.is_backlogged() && !self.deferrals.has(&entry.name);
                let keeps_up = entry.keeps_up(is_short, now);
                if !self.deferrals.is_routing {
                    self.fairness.routed(keeps_up);
                }
                self.make_ready(id, step);
                None
            }
            Err((taken, Full::Quick)) => self.overflow(taken, step),
            Err((taken, Full::Slow(cause))) => {
                let rest = entry.lane.turn(now);
                self.park(taken, reason(cause), rest, step);
                None
            }
        }
    }

    /// Delays a released command that is not due by this machine's clock (**Never early**).
    fn not_yet<S: Subscriptions<Endpoint = E>>(
        &mut self,
        mut taken: Taken,
        due: EpochMs,
        step: &mut Step<'_, S>,
    ) {
        let rest = due.since(step.env.wall);
        if rest > DUE_SOON {
            // Its lane has to know that it is in a tier: a look-ahead does not find it there before the next commit.
            let id = self.lane_of(&taken.command, step).ok();
            let entry = id.and_then(|id| self.lanes.get(&id));
            if entry.is_some_and(|entry| entry.subjects.is_some()) {
                taken.place_in_order(&self.rules.cluster);
            }
            return self.wait_in_tier(taken, due, None, step);
        }
        self.due_soon.push(Reverse(DueSoon { due, taken }));
        self.wake_at(step.env.now + rest, step);
    }

    /// Handles a command that has no subscription, or not a known one.
    fn unavailable<S: Subscriptions<Endpoint = E>>(
        &mut self,
        taken: Taken,
        why: Unavailable,
        step: &mut Step<'_, S>,
    ) {
        // Whatever becomes of it, what a look-ahead has found of its subject does not hold any more.
        self.has_strays |= taken.command.subject.is_some();
        let id = &taken.command.subscription;
        let error = match why {
            Unavailable::Invalid => return self.wait_for_subscription(taken, step),
            Unavailable::Missing => format!("the subscription {id} does not exist"),
            Unavailable::Foreign(owner) => format!(
                "the subscription {id} belongs to {owner}, not to {}: it was deleted and created again for another subscriber",
                taken.command.subscriber
            ),
        };
        if step.env.wall.since(taken.command.enqueued) < SUBSCRIPTION_GRACE {
            return self.wait_for_subscription(taken, step);
        }
        self.dead_letter(taken, Reason::SubscriptionMissing, None, error, step);
    }

    /// Parks a command until its subscription may be known. Whether that has an order is not known either: the command
    /// keeps its place, and the lane will look for it in the tiers.
    fn wait_for_subscription<S: Subscriptions<Endpoint = E>>(
        &mut self,
        mut taken: Taken,
        step: &mut Step<'_, S>,
    ) {
        if taken.command.subject.is_some() {
            taken.place_in_order(&self.rules.cluster);
        }
        self.park(taken, ParkReason::Paused, None, step);
    }

    /// Handles a command whose subscription currently accepts none.
    pub(super) fn turn_away<S: Subscriptions<Endpoint = E>>(
        &mut self,
        taken: Taken,
        standing: &Standing<E>,
        expiry: Expiry,
        step: &mut Step<'_, S>,
    ) {
        match standing {
            Standing::Open(_) | Standing::Loading | Standing::Waiting | Standing::Unusable(_) => {
                // It is back before it could expire after a resume.
                let age = step.env.wall.since(taken.command.waits_since());
                let rest = self.rules.tiers.park_for(age).min(expiry.grace() / 2);
                self.park(taken, ParkReason::Paused, Some(rest), step);
            }
            Standing::Disabled => {
                let id = &taken.command.subscription;
                let error = format!("the subscription {id} is disabled");
                self.dead_letter(taken, Reason::Disabled, None, error, step);
            }
            Standing::Denied(error) => {
                let error = error.to_string();
                self.dead_letter(taken, Reason::EgressDenied, None, error, step);
            }
        }
    }

    /// When a command expires, and the maximum age; `None` while its subscription is paused or unknown.
    pub(super) fn expires<S: Subscriptions<Endpoint = E>>(
        &mut self,
        command: &Command,
        step: &mut Step<'_, S>,
    ) -> Option<(EpochMs, Duration)> {
        let id = match self.own_lane(command) {
            Some(id) => id,
            // It was deleted during an attempt, and perhaps created again.
            None => self.lane_of(command, step).ok()?,
        };
        // It may have been paused or resumed since.
        if !self.refresh(id, step) {
            return None;
        }
        let entry = self.lanes.get(&id)?;
        let is_paused = matches!(entry.standing, Standing::Waiting);
        let end = entry.expiry.at(command.waits_since());
        (!is_paused).then_some((end, entry.expiry.max_age))
    }

    /// The maximum age of a command that has reached it.
    pub(super) fn has_expired<S: Subscriptions<Endpoint = E>>(
        &mut self,
        command: &Command,
        step: &mut Step<'_, S>,
    ) -> Option<Duration> {
        let (end, limit) = self.expires(command, step)?;
        (end <= step.env.wall).then_some(limit)
    }

    /// Gives up a command that has reached its maximum age.
    pub(super) fn expire<S: Subscriptions<Endpoint = E>>(
        &mut self,
        taken: Taken,
        limit: Duration,
        step: &mut Step<'_, S>,
    ) {
        let error = explain(&taken.command, limit, step.env.wall);
        let last = taken.command.last_failure.as_ref();
        let status = last.and_then(|failure| failure.status);
        self.dead_letter(taken, Reason::Expired, status, error, step);
    }

    /// Gives up the commands of a lane that have reached their maximum age.
    pub(super) fn expire_lane<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        step: &mut Step<'_, S>,
    ) {
        let wall = step.env.wall;
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        let expiry = entry.expiry;
        let mut oldest: Option<EpochMs> = None;
        let mut ends = |taken: &Taken| {
            let since = taken.command.waits_since();
            let ends = expiry.at(since) <= wall;
            if !ends {
                oldest = Some(oldest.map_or(since, |oldest| oldest.min(since)));
            }
            ends
        };
        let mut ended = entry.lane.take_if(&mut ends);
        if let Some(subjects) = &mut entry.subjects {
            ended.extend(subjects.take_waiting_if(&mut ends));
        }
        entry.oldest = oldest;
        for taken in ended {
            self.expire(taken, expiry.max_age, step);
        }
    }

    /// Moves a command to a tier until `due`, or until it expires if that is earlier. `parked` says why, unless an
    /// attempt is due then.
    pub(super) fn wait_in_tier<S: Subscriptions<Endpoint = E>>(
        &mut self,
        mut taken: Taken,
        due: EpochMs,
        parked: Option<ParkReason>,
        step: &mut Step<'_, S>,
    ) {
        let wall = step.env.wall;
        let due = match self.expires(&taken.command, step) {
            Some((end, limit)) if end <= wall => return self.expire(taken, limit, step),
            Some((end, _)) => due.min(end),
            None => due,
        };
        if let Some(why) = parked {
            taken.command.cause = Cause::Parked;
            step.push(Effect::Parked(why));
        }
        taken.command.due = Some(due);
        let tier = self.rules.tiers.for_rest(due.since(wall));
        self.leave(taken, tier, step);
    }

    /// Moves a command to a tier, with those that wait behind it in its subject.
    pub(super) fn leave<S: Subscriptions<Endpoint = E>>(
        &mut self,
        taken: Taken,
        tier: usize,
        step: &mut Step<'_, S>,
    ) {
        self.went_away(&taken, step);
        self.write_to_tier(taken, tier, step);
    }

    /// Does the same for a command whose subject queue already counts it as being in a tier.
    pub(super) fn write_to_tier<S: Subscriptions<Endpoint = E>>(
        &mut self,
        taken: Taken,
        tier: usize,
        step: &mut Step<'_, S>,
    ) {
        let weight = taken.command.weight();
        let outcome = Outcome::Tier(tier, taken.command);
        self.settle(taken.offset, weight, Some(outcome), step);
    }

    pub(super) fn dead_letter<S: Subscriptions<Endpoint = E>>(
        &mut self,
        taken: Taken,
        reason: Reason,
        status: Option<u16>,
        error: String,
        step: &mut Step<'_, S>,
    ) {
        let now = step.env.wall;
        let Taken { offset, command } = taken;
        let info = DeadLetterInfo {
            reason,
            status,
            error,
            first_failure: command.first_failure.unwrap_or(now),
            last_failure: now,
        };
        self.is_done(&command, step);
        self.dead_letter_series(&command, &info, step);
        let weight = command.weight();
        let outcome = Outcome::DeadLetter(command, Box::new(info));
        self.settle(offset, weight, Some(outcome), step);
    }

    /// The lane of a command's subscription, with current terms.
    fn lane_of<S: Subscriptions<Endpoint = E>>(
        &mut self,
        command: &Command,
        step: &mut Step<'_, S>,
    ) -> Result<LaneId, Unavailable> {
        let subscription = &*command.subscription;
        if let Some(&id) = self.by_subscription.get(subscription)
            && self.refresh(id, step)
            && let Some(entry) = self.lanes.get(&id)
        {
            return if *entry.subscriber == *command.subscriber {
                Ok(id)
            } else {
                Err(Unavailable::Foreign((&*entry.subscriber).into()))
            };
        }
        let now = step.env.now;
        let version = step.env.subscriptions.version();
        let subscriber = &*command.subscriber;
        let current = step.env.subscriptions.get(subscription, subscriber)?;
        let terms = step.env.subscriptions.terms(&current, None);
        let sides = Sides::of(&current);
        let id = self.next_lane;
        self.next_lane += 1;
        let name: Rc<str> = Rc::from(subscription);
        let subscriber: Arc<str> = Arc::from(subscriber);
        let status = status_of(&name, &subscriber, step);
        self.by_subscription.insert(Rc::clone(&name), id);
        let entry = LaneEntry {
            lane: Lane::new(terms.limits, now),
            name,
            expiry: expiry(&terms, step.env.wall),
            oldest: None,
            subscriber,
            counts: AttemptCounts::default(),
            status,
            standing: terms.standing,
            subscription: current,
            version,
            valid_until: terms.valid_for.map(|time| now + time),
            ready: false,
            timed: None,
            unanswered: 0,
            last_end: None,
            made: now,
            last_used: now,
            last_heard: None,
            keeps_up_since: self.forgets_soon.then(|| now.checked_sub(STEADY)).flatten(),
            held: None,
            sides,
            opened: None,
            order: terms.order,
            subjects: None,
        };
        self.lanes.insert(id, entry);
        self.notice_refusal(id, step);
        self.keep_order(id, terms.order, step);
        Ok(id)
    }

    /// Updates a lane to a changed subscription; returns `false` and removes the lane when the subscription no longer
    /// exists for its subscriber.
    pub(super) fn refresh<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        step: &mut Step<'_, S>,
    ) -> bool {
        let now = step.env.now;
        let version = step.env.subscriptions.version();
        let Some(entry) = self.lanes.get_mut(&id) else {
            return false;
        };
        let holds = entry.valid_until.is_none_or(|until| now < until);
        if entry.version == version && holds {
            return true;
        }
        let current = step.env.subscriptions.get(&entry.name, &entry.subscriber);
        let current = match current {
            Ok(current) => current,
            Err(why) => {
                self.remove_lane(id, &why, step);
                return false;
            }
        };
        entry.version = version;
        if holds && Arc::ptr_eq(&current, &entry.subscription) {
            return true;
        }
        let before = entry.standing.endpoint();
        let terms = step.env.subscriptions.terms(&current, before);
        entry.subscription = current;
        entry.valid_until = terms.valid_for.map(|time| now + time);
        entry.expiry = expiry(&terms, step.env.wall);
        entry.sides = Sides::of(&entry.subscription);
        let changed = match (entry.standing.endpoint(), terms.standing.endpoint()) {
            (Some(before), Some(endpoint)) => !before.is_same(endpoint),
            (None, Some(_)) => true,
            (_, None) => false,
        };
        entry.standing = terms.standing;
        entry.lane.set_limits(terms.limits, now);
        if changed {
            // Another URL, another secret, a resume, or a probe that an operator wants: it may work now.
            entry.lane.probe_soon(now);
            self.make_ready(id, step);
        }
        self.notice_refusal(id, step);
        let Some(entry) = self.lanes.get_mut(&id) else {
            return false;
        };
        let accepts = entry.standing.accepts();
        self.keep_order(id, terms.order, step);
        if !accepts {
            self.clear_lane(id, step);
        }
        true
    }

    /// Empties a lane that accepts no commands, according to its standing.
    pub(super) fn clear_lane<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        step: &mut Step<'_, S>,
    ) {
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        let (standing, expiry) = (entry.standing.clone(), entry.expiry);
        let all = entry.take_all();
        entry.oldest = None;
        for taken in all {
            self.turn_away(taken, &standing, expiry, step);
        }
    }

    /// The subscription was deleted. Attempts in flight end on their own; queued commands are dead-lettered or parked.
    fn remove_lane<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        why: &Unavailable,
        step: &mut Step<'_, S>,
    ) {
        let Some(mut entry) = self.forget_lane(id, step) else {
            return;
        };
        for taken in entry.take_all() {
            self.unavailable(taken, why.clone(), step);
        }
    }
}
