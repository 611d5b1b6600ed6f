//! Order within a subject, as `order` decides it: what goes into the books of the lanes, and what follows from them.

use std::time::Duration;

use super::super::order::{Arrival, Book, UnderWay as Ahead};
use super::super::scan::{Found, UnderWay};
use super::partition::{Scan, Taken};
use super::routing::reason;
use super::{LaneEntry, LaneId, Worker};
use crate::edge::clock;
use crate::model::command::{Cause, Command};
use crate::model::outcome::ParkReason;
use crate::model::subscription::Order;
use crate::model::units::EpochMs;
use crate::model::window::Window;

/// A command that should have come back from its tier for so long is looked for.
const OVERDUE: Duration = Duration::from_secs(900);

impl LaneEntry {
    /// Takes out what waits for its turn.
    fn take_waiting(&mut self) -> Vec<Taken> {
        self.book
            .as_mut()
            .map(|book| book.take_waiting())
            .unwrap_or_default()
    }

    /// Takes out all that is not in flight: what is queued, then what waits for its turn.
    pub(super) fn take_all(&mut self) -> Vec<Taken> {
        let mut all: Vec<Taken> = self.lane.take_queue().collect();
        all.extend(self.take_waiting());
        all
    }
}

/// The subject and the sequence by which a command stands in its lane's book, if it does.
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

impl Worker {
    /// Gives a lane a book, or takes it away, as its subscription asks.
    pub(super) fn keep_order(&mut self, id: LaneId, order: Order) {
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        let changed = std::mem::replace(&mut entry.order, order) != order;
        match (order, entry.book.is_some()) {
            (Order::None, true) => {
                // Nobody waits for anybody any more.
                let waiting = entry.take_waiting();
                entry.book = None;
                self.queue(id, waiting);
            }
            (Order::None, false) => {}
            (_, true) if changed => {
                // What is in the tiers counts in another way now.
                if let Some(book) = &mut entry.book {
                    book.forget_away();
                }
                if let Some(partition) = self.partitions.get_mut(&entry.partition) {
                    partition.scan = Scan::Wanted;
                }
            }
            (_, true) => {}
            (_, false) => {
                let mut book = Box::<Book<Taken>>::default();
                let partition = entry.partition;
                if let Some(partition) = self.partitions.get_mut(&partition) {
                    match &mut partition.scan {
                        Scan::Done(found) => {
                            let found = found.remove(&*entry.name).unwrap_or_default();
                            // Nothing waits in a new book.
                            book.learn(still_ahead(&partition.window, order, found));
                        }
                        asked @ Scan::Unasked => *asked = Scan::Wanted,
                        Scan::Wanted | Scan::Running => {}
                    }
                }
                entry.book = Some(book);
            }
        }
    }

    /// Whether it is a command's turn. `None` when it waits, or was parked behind another one.
    pub(super) fn take_turn(&mut self, id: LaneId, taken: Taken, now: EpochMs) -> Option<Taken> {
        let Some(entry) = self.lanes.get_mut(&id) else {
            return Some(taken);
        };
        let Some(book) = &mut entry.book else {
            return Some(taken);
        };
        let Some((subject, sequence)) = place(&taken.command, entry.order) else {
            return Some(taken);
        };
        let subject: Box<str> = subject.into();
        match book.arrive(&subject, sequence, taken) {
            Arrival::Go(taken) => Some(taken),
            Arrival::Waits => None,
            Arrival::Behind(taken, due) => {
                if due.is_some_and(|due| now.since(due) > OVERDUE) {
                    self.look_again(id);
                }
                self.park(taken, ParkReason::Order, due.map(|due| due.since(now)), now);
                None
            }
        }
    }

    /// A command went to a tier: those behind it follow, or it makes way for them.
    pub(super) fn went_away(&mut self, taken: &Taken) {
        if taken.command.sequence.is_none() {
            return;
        }
        let Some((id, order)) = self.ordered_lane(taken.partition, &taken.command) else {
            return;
        };
        let Some((subject, sequence)) = place(&taken.command, order) else {
            // A first attempt has been made: with order per subject the next one follows.
            return self.is_done(taken.partition, &taken.command);
        };
        let due = taken.command.due.unwrap_or_else(clock::now);
        let book = self
            .lanes
            .get_mut(&id)
            .and_then(|entry| entry.book.as_mut());
        let Some(book) = book else { return };
        let behind = book.away(subject, sequence, due);
        for (_, behind) in behind {
            self.follow(behind, due);
        }
    }

    /// Parks what waits behind one that is in a tier; its book knows already.
    fn follow(&mut self, mut behind: Taken, due: EpochMs) {
        let now = clock::now();
        behind.command.due = Some(due);
        behind.command.cause = Cause::Parked;
        self.around.metrics.parked(ParkReason::Order).inc();
        let tier = self.around.settings.tiers.for_rest(due.since(now));
        self.write_to_tier(behind, tier);
    }

    /// A command is done for its order: the next one of its subject follows.
    pub(super) fn is_done(&mut self, partition: i32, command: &Command) {
        let (Some(subject), Some(sequence)) = (&command.subject, command.sequence) else {
            return;
        };
        let Some((id, _)) = self.ordered_lane(partition, command) else {
            return;
        };
        let next = self
            .lanes
            .get_mut(&id)
            .and_then(|entry| entry.book.as_mut())
            .and_then(|book| book.done(subject, sequence));
        self.queue(id, next);
    }

    /// What is under way has been read.
    pub(super) fn under_way(&mut self, number: i32, mut found: UnderWay) {
        let Some(partition) = self.partitions.get_mut(&number) else {
            return;
        };
        let mut go = Vec::new();
        for &id in partition.lanes.values() {
            let Some(entry) = self.lanes.get_mut(&id) else {
                continue;
            };
            let order = entry.order;
            if let Some(book) = &mut entry.book {
                let found = found.remove(&*entry.name).unwrap_or_default();
                let first = book.learn(still_ahead(&partition.window, order, found));
                go.push((id, first, book.take_behind_away()));
            }
        }
        partition.scan = Scan::Done(found);
        for (id, first, behind) in go {
            self.queue(id, first);
            for (behind, due) in behind {
                self.follow(behind, due);
            }
        }
    }

    /// Something in a tier has not come back for long: what is there is read anew.
    fn look_again(&mut self, id: LaneId) {
        let Some(entry) = self.lanes.get_mut(&id) else {
            return;
        };
        let now = clock::instant();
        let Some(partition) = self.partitions.get_mut(&entry.partition) else {
            return;
        };
        let lately = partition
            .looked_again
            .is_some_and(|last| now.saturating_duration_since(last) < OVERDUE);
        if lately || !matches!(partition.scan, Scan::Done(_)) {
            return;
        }
        partition.looked_again = Some(now);
        partition.scan = Scan::Wanted;
        tracing::warn!(
            subscription = %entry.name,
            "a command that others wait behind is long overdue: the tiers are read again",
        );
        if let Some(book) = &mut entry.book {
            book.forget_away();
        }
    }

    fn queue(&mut self, id: LaneId, items: impl IntoIterator<Item = Taken>) {
        let now = clock::instant();
        for item in items {
            let Some(entry) = self.lanes.get_mut(&id) else {
                return;
            };
            match entry.lane.closed(now) {
                // It would wait here for as long as the lane is closed, and hold its partition's memory.
                Some((cause, until)) => {
                    self.park(item, reason(cause), Some(until - now), clock::now());
                }
                None => {
                    let weight = item.command.weight();
                    entry.lane.push(item, weight, now);
                }
            }
        }
        self.make_ready(id);
    }

    fn ordered_lane(&self, partition: i32, command: &Command) -> Option<(LaneId, Order)> {
        let id = *self
            .partitions
            .get(&partition)?
            .lanes
            .get(&*command.subscription)?;
        let entry = self.lanes.get(&id)?;
        entry.book.as_ref()?;
        Some((id, entry.order))
    }
}
