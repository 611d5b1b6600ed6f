//! The state of a partition, as reported to its shell and to operators.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::counts::AttemptCounts;
use super::env::{Endpoint, Standing};
use super::state::Partition;
use crate::model::units::Offset;
use crate::model::window::{Format, Place, Snapshot};

impl<E: Endpoint> Partition<E> {
    /// What may be committed now.
    #[must_use]
    pub fn snapshot(&self, place: Place, format: Format) -> Snapshot {
        self.window.snapshot(place, format)
    }

    /// What may be committed together with the outcomes of these offsets. They stay open here until
    /// [`super::event::Event::Durable`].
    #[must_use]
    pub fn snapshot_with(&self, offsets: &[Offset], place: Place, format: Format) -> Snapshot {
        let mut window = self.window.clone();
        for &offset in offsets {
            window.finish(offset);
        }
        window.snapshot(place, format)
    }

    /// The broker keeps at most this many characters with a position.
    pub fn set_limit(&mut self, characters: usize) {
        self.window.set_limit(characters);
    }

    /// The number of offsets from the committed position to the last one taken.
    #[must_use]
    pub fn span(&self) -> u64 {
        self.window.span()
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
            .filter(|entry| entry.lane.queued() > 0 && matches!(entry.standing, Standing::Open(_)));
        open.map(|entry| entry.lane.runnable(most, now)).sum()
    }

    /// Subscriptions with an attempt that ended within `lately`, and how many of these had no response to their last
    /// two or more attempts. Subscriptions whose breaker has been open for longer do not count.
    #[must_use]
    pub fn health(&self, lately: Duration, now: Instant) -> (usize, usize) {
        /// A single attempt without a response may be a coincidence.
        const UNANSWERED: u32 = 2;
        let recent = |at: Instant| now.saturating_duration_since(at) < lately;
        let active = self
            .lanes
            .values()
            .filter(|entry| entry.last_end.is_some_and(recent) && entry.opened.is_none_or(recent));
        active.fold((0, 0), |(active, failing), entry| {
            let fails = usize::from(entry.unanswered >= UNANSWERED);
            (active + 1, failing + fails)
        })
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
