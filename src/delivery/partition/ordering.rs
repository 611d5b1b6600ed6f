//! Order within a subject: connects the lanes to their subject queues ([`super::order`]).

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::effect::{Effect, Notice};
use super::env::{Endpoint, Subscriptions};
use super::event::LaneId;
use super::order::{Arrival, SubjectQueue, UnderWay as Ahead};
use super::parking::reason;
use super::state::{Knowledge, Partition, Step, Taken};
use super::under_way::{UnderWay, Unfinished};
use crate::model::command::{Cause, Command};
use crate::model::outcome::ParkReason;
use crate::model::subscription::Order;
use crate::model::units::{EpochMs, Offset};
use crate::model::window::Window;

/// A command that should have returned from its tier this long ago is overdue: the tiers are read again.
const OVERDUE: Duration = Duration::from_secs(900);
/// The least time between reads of the tiers for lanes whose backlog is known only in part.
const BETWEEN: Duration = Duration::from_secs(5);

/// The subject and sequence of a command, if it is subject to `order`.
fn place(command: &Command, order: Order) -> Option<(&str, i64)> {
    let counts = match order {
        Order::None => false,
        Order::PerSubject => command.attempt == 0,
        Order::Strict => true,
    };
    let subject = command.subject.as_deref()?;
    counts.then_some((subject, command.sequence?))
}

/// The found commands that block others of their subject, and up to which sequence they are complete.
fn still_ahead(
    window: &Window,
    unwritten: &HashSet<i64>,
    order: Order,
    found: Unfinished,
) -> (Vec<Ahead>, i64) {
    let has_ended = |offset: Offset| window.is_finished(offset) || unwritten.contains(&offset.0);
    let (found, horizon) = found.take(order);
    let ahead = found
        .filter(|found| !found.released.is_some_and(&has_ended))
        .map(|found| Ahead {
            subject: found.subject,
            sequence: found.sequence,
            due: found.due,
        })
        .collect();
    (ahead, horizon)
}

/// What the records of one lane may weigh, when `lanes` share `bytes`: at most an eighth, and enough for some hundred
/// commands.
fn share(bytes: usize, lanes: usize) -> usize {
    const LEAST: usize = 64 * 1024;
    let most = bytes / 8;
    (bytes / lanes.max(1)).clamp(LEAST.min(most), most)
}

impl<E: Endpoint> Partition<E> {
    /// Adds or removes a lane's subject queue, as its subscription requires.
    pub(super) fn keep_order<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        order: Order,
        step: &mut Step<'_, S>,
    ) {
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        let changed = std::mem::replace(&mut entry.order, order) != order;
        match (order, &mut entry.subjects) {
            (Order::None, Some(_)) => {
                // Without order, no command waits for another.
                let waiting = entry.take_waiting();
                entry.subjects = None;
                self.ordered -= 1;
                self.let_through(id, waiting, step);
            }
            (Order::None, None) => {}
            (_, Some(subjects)) if changed => {
                // A change of order changes which commands in tiers count.
                subjects.forget_away();
                self.knowledge = Knowledge::Needed;
            }
            (_, Some(_)) => {}
            (_, none) => {
                let mut subjects = Box::<SubjectQueue<Taken>>::default();
                self.ordered += 1;
                subjects.set_limit(share(self.rules.order_bytes, self.ordered));
                match &mut self.knowledge {
                    // What was found before has not all of them, or too many.
                    known @ Knowledge::Known(_) if self.has_strays => *known = Knowledge::Needed,
                    Knowledge::Known(found) => {
                        let found = found.remove(&entry.name, &entry.subscriber);
                        let (ahead, horizon) =
                            still_ahead(&self.window, &self.unwritten, order, found);
                        // A new queue holds no waiting items.
                        subjects.learn(ahead, horizon);
                    }
                    needed @ Knowledge::NotNeeded => *needed = Knowledge::Needed,
                    Knowledge::Needed | Knowledge::Asked => {}
                }
                *none = Some(subjects);
            }
        }
    }

    /// Returns a command whose turn it is. `None` when it waits or was parked behind another one.
    pub(super) fn take_turn<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        taken: Taken,
        step: &mut Step<'_, S>,
    ) -> Option<Taken> {
        let Some(entry) = self.lanes.get_mut(&id) else {
            return Some(taken);
        };
        let Some(subjects) = &mut entry.subjects else {
            return Some(taken);
        };
        let Some((subject, sequence)) = place(&taken.command, entry.order) else {
            return Some(taken);
        };
        let subject: Box<str> = subject.into();
        subjects.set_limit(share(self.rules.order_bytes, self.ordered));
        match subjects.arrive(&subject, sequence, taken) {
            Arrival::Go(taken) => Some(taken),
            Arrival::Waits => None,
            Arrival::Behind(taken, due) => {
                let wall = step.env.wall;
                if due.is_some_and(|due| wall.since(due) > OVERDUE) {
                    self.look_again(id, step);
                }
                let rest = due.map(|due| due.since(wall));
                self.park(taken, ParkReason::Order, rest, step);
                None
            }
        }
    }

    /// The lane of a command's subscription, if there is one and it belongs to the command's subscriber: the subscription
    /// may have been created again for another one.
    pub(super) fn own_lane(&self, command: &Command) -> Option<LaneId> {
        let id = *self.by_subscription.get(&*command.subscription)?;
        let entry = self.lanes.get(&id)?;
        (*entry.subscriber == *command.subscriber).then_some(id)
    }

    /// A command went to a tier: those behind it follow, or the next one proceeds.
    pub(super) fn went_away<S: Subscriptions<Endpoint = E>>(
        &mut self,
        taken: &Taken,
        step: &mut Step<'_, S>,
    ) {
        if taken.command.sequence.is_none() {
            return;
        }
        let Some(id) = self.own_lane(&taken.command) else {
            return;
        };
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        let Some(subjects) = &mut entry.subjects else {
            return;
        };
        let Some((subject, sequence)) = place(&taken.command, entry.order) else {
            // The first attempt has been made, so order per subject lets the next command proceed. Commands behind it
            // have had no attempt, so parking them does not lead here again.
            return self.is_done(&taken.command, step);
        };
        let due = taken.command.due.unwrap_or(step.env.wall);
        for (_, behind) in subjects.away(subject, sequence, due) {
            self.follow(behind, due, step);
        }
    }

    /// Parks a command that waits behind one in a tier; the subject queue already counts it as being in a tier.
    fn follow<S: Subscriptions<Endpoint = E>>(
        &mut self,
        mut behind: Taken,
        due: EpochMs,
        step: &mut Step<'_, S>,
    ) {
        let wall = step.env.wall;
        let due = match self.expires(&behind.command, step) {
            Some((end, limit)) if end <= wall => return self.expire(behind, limit, step),
            Some((end, _)) => due.min(end),
            None => due,
        };
        behind.command.due = Some(due);
        behind.command.cause = Cause::Parked;
        step.push(Effect::Parked(ParkReason::Order));
        let tier = self.rules.tiers.for_rest(due.since(wall));
        self.write_to_tier(behind, tier, step);
    }

    /// A command is done as far as order is concerned: the next one of its subject proceeds.
    pub(super) fn is_done<S: Subscriptions<Endpoint = E>>(
        &mut self,
        command: &Command,
        step: &mut Step<'_, S>,
    ) {
        let (Some(subject), Some(sequence)) = (&command.subject, command.sequence) else {
            return;
        };
        let Some(id) = self.own_lane(command) else {
            return;
        };
        let entry = self.lanes.get_mut(&id);
        let Some(subjects) = entry.and_then(|entry| entry.subjects.as_mut()) else {
            return;
        };
        let next = subjects.done(subject, sequence);
        self.let_through(id, next, step);
    }

    /// Records the unfinished commands that a look-ahead found.
    pub(super) fn learn_under_way<S: Subscriptions<Endpoint = E>>(
        &mut self,
        mut found: UnderWay,
        step: &mut Step<'_, S>,
    ) {
        let mut go = Vec::new();
        for (&id, entry) in &mut self.lanes {
            let order = entry.order;
            if let Some(subjects) = &mut entry.subjects {
                let found = found.remove(&entry.name, &entry.subscriber);
                let (ahead, horizon) = still_ahead(&self.window, &self.unwritten, order, found);
                let (first, beyond) = subjects.learn(ahead, horizon);
                go.push((id, first, beyond, subjects.take_behind_away()));
            }
        }
        self.knowledge = Knowledge::Known(found);
        for (id, first, beyond, behind) in go {
            self.let_through(id, first, step);
            for beyond in beyond {
                let age = step.env.wall.since(beyond.command.waits_since());
                let due = step.env.wall + self.rules.tiers.park_for(age);
                self.follow(beyond, due, step);
            }
            for (behind, due) in behind {
                self.follow(behind, due, step);
            }
        }
    }

    /// A command in a tier is long overdue: reads the tiers again.
    fn look_again<S: Subscriptions<Endpoint = E>>(&mut self, id: LaneId, step: &mut Step<'_, S>) {
        let now = step.env.now;
        let lately = self
            .looked_again
            .is_some_and(|last| now.saturating_duration_since(last) < OVERDUE);
        if lately || !matches!(self.knowledge, Knowledge::Known(_)) {
            return;
        }
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        self.looked_again = Some(now);
        self.knowledge = Knowledge::Needed;
        step.push(Effect::Notice(Notice::Overdue(entry.name.clone())));
        if let Some(subjects) = &mut entry.subjects {
            subjects.forget_away();
        }
    }

    /// Reads the tiers again for lanes that know too little of what is unfinished.
    pub(super) fn look_further(&mut self, now: Instant) {
        let lately = self
            .looked_further
            .is_some_and(|last| now.saturating_duration_since(last) < BETWEEN);
        if lately || !matches!(self.knowledge, Knowledge::Known(_)) {
            return;
        }
        for entry in self.lanes.values_mut() {
            if let Some(subjects) = &mut entry.subjects
                && subjects.wants_more()
            {
                subjects.forget_away();
                self.knowledge = Knowledge::Needed;
                self.looked_further = Some(now);
            }
        }
    }

    /// Queues commands that may proceed.
    fn let_through<S: Subscriptions<Endpoint = E>>(
        &mut self,
        id: LaneId,
        items: impl IntoIterator<Item = Taken>,
        step: &mut Step<'_, S>,
    ) {
        let now = step.env.now;
        for item in items {
            let Some(entry) = self.lanes.get_mut(&id) else {
                return;
            };
            if entry.held.is_some() {
                self.take_held(id, item, step);
                continue;
            }
            match entry.lane.closed(now) {
                // It would wait here for as long as the lane is closed, and hold the partition's memory.
                Some((cause, until)) => self.park(item, reason(cause), Some(until - now), step),
                None => {
                    let weight = item.command.weight();
                    entry.lane.push(item, weight, now);
                }
            }
        }
        self.make_ready(id, step);
    }
}
