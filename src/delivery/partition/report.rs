//! The state of a partition, as reported to its shell and to operators.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::counts::AttemptCounts;
use super::env::{Endpoint, Standing};
use super::health::{LaneHealth, Look, Sides};
use super::state::Partition;
use crate::model::units::Offset;
use crate::model::window::{Format, Place, Snapshot, Window};

/// The time that counts as recent.
pub(super) const LATELY: Duration = Duration::from_secs(10);
/// How long a held lane counts after its last attempt, when it has no command to probe with.
const STILL: Duration = Duration::from_secs(60);

impl<E: Endpoint> Partition<E> {
    /// What may be committed now.
    #[must_use]
    pub fn snapshot(&self, place: Place, format: Format) -> Snapshot {
        self.window.snapshot_beside(&self.coverage, place, format)
    }

    /// What may be committed together with the outcomes of these offsets. They stay open here until
    /// [`super::event::Event::Durable`].
    #[must_use]
    pub fn snapshot_with(&self, offsets: &[Offset], place: Place, format: Format) -> Snapshot {
        let mut window = self.window.clone();
        for &offset in offsets {
            window.finish(offset);
        }
        window.snapshot_beside(&self.coverage, place, format)
    }

    /// The broker keeps at most this many characters with a position.
    pub fn set_limit(&mut self, characters: usize) {
        self.window.set_limit(characters);
        let limit = Window::coverage_limit(characters);
        self.coverage.set_limit(limit);
    }

    /// The number of offsets from the committed position to the last one taken.
    #[must_use]
    pub fn span(&self) -> u64 {
        self.window.span()
    }

    /// How many offsets from the position on a commit of so many characters can describe, whatever is finished.
    #[must_use]
    pub fn reach(&self, characters: usize) -> usize {
        Window::reach_beside(characters, &self.coverage)
    }

    /// Writes of fan-out that were lost and that it has not written again yet.
    #[must_use]
    pub fn holes(&self) -> usize {
        self.coverage.holes()
    }

    /// How many commands are deferred.
    #[must_use]
    pub fn deferred(&self) -> usize {
        self.deferrals.commands()
    }

    /// How long intake has been waiting for room.
    #[must_use]
    pub fn stalled(&self, now: Instant) -> Duration {
        self.stalled_since
            .map(|since| now.saturating_duration_since(since))
            .unwrap_or_default()
    }

    /// Queued commands that wait only for requests of the replica, where a lane alone gets `most` requests. Records
    /// that are not routed yet do not count.
    #[must_use]
    pub fn runnable(&self, most: usize, now: Instant) -> usize {
        let open = self
            .lanes
            .values()
            .filter(|entry| entry.lane.queued() > 0 && entry.held.is_none())
            .filter(|entry| matches!(entry.standing, Standing::Open(_)));
        open.map(|entry| entry.lane.runnable(most, now)).sum()
    }

    /// Appends the health of the lanes with recent attempts, and of those that are held. Lanes whose breaker has been
    /// open for longer say nothing about now.
    pub fn health(&self, into: &mut Vec<LaneHealth>, now: Instant) {
        let within = |at: Option<Instant>, time: Duration| {
            at.is_some_and(|at| now.saturating_duration_since(at) < time)
        };
        for entry in self.lanes.values() {
            let counts = match &entry.held {
                Some(_) => within(entry.last_end, STILL) || entry.lane.queued() > 0,
                None => {
                    let opened_lately = entry.opened.is_none() || within(entry.opened, LATELY);
                    within(entry.last_end, LATELY) && opened_lately
                }
            };
            if counts {
                let look = match () {
                    () if entry.held.is_some() || entry.fails(now) => Look::Fails,
                    () if within(entry.last_heard, LATELY) => Look::Responds,
                    () => Look::Unclear,
                };
                let Sides { host, subscriber } = entry.sides;
                into.push(LaneHealth {
                    host,
                    subscriber,
                    look,
                });
            }
        }
    }

    /// What the records for order weigh, bytes, roughly.
    #[must_use]
    pub fn order_weight(&self) -> usize {
        let queues = self
            .lanes
            .values()
            .filter_map(|entry| entry.subjects.as_ref());
        queues.map(|subjects| subjects.weight()).sum()
    }

    /// Whether a held lane heard from its endpoint since the outage began.
    #[must_use]
    pub fn heard(&self) -> bool {
        self.heard
    }

    /// Takes the attempts by subscriber since the last call; a subscriber may occur several times.
    pub fn take_attempts(&mut self, into: &mut Vec<(Arc<str>, AttemptCounts)>) {
        into.append(&mut self.gone);
        for entry in self.lanes.values_mut() {
            if let Some(counts) = entry.counts.take() {
                into.push((Arc::clone(&entry.subscriber), counts));
            }
        }
    }

    /// The subscriptions whose breakers are open, with their subscribers.
    pub fn open_breakers(&self) -> impl Iterator<Item = (&Rc<str>, &Arc<str>)> {
        let open = self.lanes.values().filter(|entry| entry.opened.is_some());
        open.map(|entry| (&entry.name, &entry.subscriber))
    }
}
