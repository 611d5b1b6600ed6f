//! Order within a subject, as [`super::order`] decides it: what goes into the subjects of the lanes, and what follows.

use std::time::Duration;

use super::effect::{Effect, Notice};
use super::env::{Endpoint, Subscriptions};
use super::event::{Found, LaneId, UnderWay};
use super::order::{Arrival, SubjectQueue, UnderWay as Ahead};
use super::routing::reason;
use super::state::{Knowledge, Partition, Step, Taken};
use crate::model::command::{Cause, Command};
use crate::model::outcome::ParkReason;
use crate::model::subscription::Order;
use crate::model::units::EpochMs;
use crate::model::window::Window;

/// A command that should have come back from its tier for so long is looked for.
const OVERDUE: Duration = Duration::from_secs(900);

/// The subject and the sequence by which a command stands in its lane's subjects, if it does.
fn place(command: &Command, order: Order) -> Option<(&str, i64)> {
    let counts = match order {
        Order::None => false,
        Order::PerSubject => command.attempt == 0,
        Order::Strict => true,
    };
    let subject = command.subject.as_deref()?;
    counts.then_some((subject, command.sequence?))
}

/// Of what was found, what others of its subject wait for.
fn still_ahead(window: &Window, order: Order, found: Vec<Found>) -> Vec<Ahead> {
    found
        .into_iter()
        .filter(|found| order == Order::Strict || found.attempt == 0)
        .filter(|found| {
            !found
                .released
                .is_some_and(|offset| window.is_finished(offset))
        })
        .map(|found| Ahead {
            subject: found.subject,
            sequence: found.sequence,
            due: found.due,
        })
        .collect()
}

impl<E: Endpoint> Partition<E> {
    /// Gives a lane subjects, or takes them away, as its subscription asks.
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
                // Nobody waits for anybody any more.
                let waiting = entry.take_waiting();
                entry.subjects = None;
                self.let_through(id, waiting, step);
            }
            (Order::None, None) => {}
            (_, Some(subjects)) if changed => {
                // What is in the tiers counts in another way now.
                subjects.forget_away();
                self.knowledge = Knowledge::Needed;
            }
            (_, Some(_)) => {}
            (_, none) => {
                let mut subjects = Box::<SubjectQueue<Taken>>::default();
                match &mut self.knowledge {
                    Knowledge::Known(found) => {
                        let found = found.remove(&*entry.name).unwrap_or_default();
                        // Nothing waits in a new queue.
                        subjects.learn(still_ahead(&self.window, order, found));
                    }
                    needed @ Knowledge::NotNeeded => *needed = Knowledge::Needed,
                    Knowledge::Needed | Knowledge::Asked => {}
                }
                *none = Some(subjects);
            }
        }
    }

    /// Whether it is a command's turn. `None` when it waits, or was parked behind another one.
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

    /// A command went to a tier: those behind it follow, or it makes way for them.
    pub(super) fn went_away<S: Subscriptions<Endpoint = E>>(
        &mut self,
        taken: &Taken,
        step: &mut Step<'_, S>,
    ) {
        if taken.command.sequence.is_none() {
            return;
        }
        let Some(&id) = self.by_subscription.get(&*taken.command.subscription) else {
            return;
        };
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        let Some(subjects) = &mut entry.subjects else {
            return;
        };
        let Some((subject, sequence)) = place(&taken.command, entry.order) else {
            // A first attempt has been made: with order per subject the next one follows. It has had none, so it does not
            // come back to here when it is parked.
            return self.is_done(&taken.command, step);
        };
        let due = taken.command.due.unwrap_or(step.env.wall);
        for (_, behind) in subjects.away(subject, sequence, due) {
            self.follow(behind, due, step);
        }
    }

    /// Parks what waits behind one that is in a tier; its subjects know already.
    fn follow<S: Subscriptions<Endpoint = E>>(
        &mut self,
        mut behind: Taken,
        due: EpochMs,
        step: &mut Step<'_, S>,
    ) {
        behind.command.due = Some(due);
        behind.command.cause = Cause::Parked;
        step.push(Effect::Parked(ParkReason::Order));
        let tier = self.rules.tiers.for_rest(due.since(step.env.wall));
        self.write_to_tier(behind, tier, step);
    }

    /// A command is done for its order: the next one of its subject follows.
    pub(super) fn is_done<S: Subscriptions<Endpoint = E>>(
        &mut self,
        command: &Command,
        step: &mut Step<'_, S>,
    ) {
        let (Some(subject), Some(sequence)) = (&command.subject, command.sequence) else {
            return;
        };
        let Some(&id) = self.by_subscription.get(&*command.subscription) else {
            return;
        };
        let entry = self.lanes.get_mut(&id);
        let Some(subjects) = entry.and_then(|entry| entry.subjects.as_mut()) else {
            return;
        };
        let next = subjects.done(subject, sequence);
        self.let_through(id, next, step);
    }

    /// What is under way has been read.
    pub(super) fn learn_under_way<S: Subscriptions<Endpoint = E>>(
        &mut self,
        mut found: UnderWay,
        step: &mut Step<'_, S>,
    ) {
        let mut go = Vec::new();
        for (&id, entry) in &mut self.lanes {
            let order = entry.order;
            if let Some(subjects) = &mut entry.subjects {
                let found = found.remove(&*entry.name).unwrap_or_default();
                let first = subjects.learn(still_ahead(&self.window, order, found));
                go.push((id, first, subjects.take_behind_away()));
            }
        }
        self.knowledge = Knowledge::Known(found);
        for (id, first, behind) in go {
            self.let_through(id, first, step);
            for (behind, due) in behind {
                self.follow(behind, due, step);
            }
        }
    }

    /// Something in a tier has not come back for long: what is there is read anew.
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

    /// Queues commands whose turn it is in their subjects.
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
            match entry.lane.closed(now) {
                // It would wait here for as long as the lane is closed, and hold its partition's memory.
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
