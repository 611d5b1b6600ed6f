//! The partitions of events as sources of commands: where each command goes and what its header says, which events are
//! acknowledged, which positions are committed, and when an epoch begins.
//!
//! Commands are written without transactions, so a crash, a failure or a second owner writes some of them again. Delivery
//! recognises the copies ([`crate::model::coverage`]), because every writer of an epoch writes the commands of a source in
//! one order, to the same partitions, and each names the one before it. The rules that this takes:
//!
//! - A source's position passes an event only when all its records are acknowledged, and with it all events before it. A
//!   partition of the commands that takes no writes pins the positions of its sources; how far the others run beyond is
//!   bounded ([`RunAhead`]).
//! - A writer that begins at a committed position writes no predecessor ("start"): all before it was written.
//! - An epoch and the number of partitions of the commands are committed before the first command is written with them.
//! - A new epoch begins when the order may differ from before: without a committed position or its [`Stamp`], when the
//!   offsets of a source come again, and when the number of partitions has changed. The last waits until every event that
//!   anybody may have written with the old number is committed; until then the old number is used.
//!
//! A commit that takes effect late, after a later one, takes a position back; within one epoch that costs copies, and a
//! group that seems to be behind until everything is committed again. So a failed commit of a new epoch is tried again with the same epoch, never with another one.
//!
//! Pure: chance is an argument.

use std::collections::{BTreeMap, VecDeque};

use super::counts::EventCounts;
use super::history::EventPartition;
use super::metrics::NewEpoch;
use super::stamp::{Found, Stamp};
use crate::model::partitioner::partition;
use crate::model::source::{Point, Source, write_place};
use crate::model::units::{Offset, Position};
use state::{Entry, Epoch, State};

mod state;

/// Names an event: its records carry it, and their acknowledgements.
pub(super) type Tag = usize;

/// The bits of a tag that number the events of a slot.
const SEQUENCE_BITS: u32 = 40;

/// How far events may run beyond the committed positions: what is written again after a crash, at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct RunAhead {
    /// Events.
    pub(super) events: usize,
    /// Bytes of their records, except that an event is always written as a whole.
    pub(super) bytes: usize,
}

/// The result of taking an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Take {
    /// It is taken.
    Taken(Tag),
    /// Its source begins a new epoch first: [`Sources::begin`].
    Begin,
    /// This process does not own the partition, or does not read it.
    NotOwned,
}

/// A new epoch, to be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Begin {
    /// The metadata of the position.
    pub(super) metadata: String,
    /// Why.
    pub(super) why: NewEpoch,
}

/// A partition was assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Assigned {
    /// Its events can be written.
    Ready,
    /// A newer program has written the metadata, in this version: it is not read.
    Newer(u32),
}

#[derive(Debug, Default)]
struct Slot {
    state: Option<State>,
    /// The number of its next event; its earlier states had others.
    next: u64,
}

/// All sources that this process owns.
#[derive(Debug)]
pub(super) struct Sources {
    limits: RunAhead,
    random: fastrand::Rng,
    /// The number of partitions of the commands.
    partitions: i32,
    slots: Vec<Slot>,
    by_place: BTreeMap<EventPartition, usize>,
    /// Events and bytes that are not committed.
    events: usize,
    bytes: usize,
    /// Events that were committed since the start.
    committed: u64,
    /// Those to be counted, with their topics.
    counts: Vec<(usize, EventCounts)>,
}

impl Sources {
    /// None yet. There are so many partitions of the commands.
    pub(super) fn new(limits: RunAhead, partitions: i32, seed: u64) -> Self {
        Self {
            limits,
            random: fastrand::Rng::with_seed(seed),
            partitions,
            slots: Vec::new(),
            by_place: BTreeMap::new(),
            events: 0,
            bytes: 0,
            committed: 0,
            counts: Vec::new(),
        }
    }

    /// The number of partitions of the commands.
    pub(super) fn set_partitions(&mut self, count: i32) {
        self.partitions = count;
    }

    /// Takes over a partition of the events, `place`, from what is committed.
    pub(super) fn assigned(
        &mut self,
        at: EventPartition,
        place: Source,
        position: Option<Position>,
        metadata: &str,
    ) -> Assigned {
        self.removed(at);
        let mut fresh = |why| Epoch::Next {
            epoch: self.random.u32(..),
            why,
        };
        let epoch = match position.map(|position| Stamp::read(metadata, place, position)) {
            None | Some(Found::First) => fresh(NewEpoch::First),
            Some(Found::Known(stamp)) => Epoch::begun(stamp),
            Some(Found::Nothing) => fresh(NewEpoch::Lost),
            Some(Found::Foreign) => fresh(NewEpoch::Foreign),
            Some(Found::Newer(version)) => return Assigned::Newer(version),
        };
        let slot = self.slots.iter().position(|slot| slot.state.is_none());
        let slot = slot.unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        self.by_place.insert(at, slot);
        self.slots[slot].state = Some(State {
            at,
            place,
            epoch,
            previous: Vec::new(),
            last: None,
            entries: VecDeque::new(),
            done: 0,
            first: self.slots[slot].next,
            next: None,
            committed: position,
            until: None,
        });
        Assigned::Ready
    }

    /// Gives a partition up.
    pub(super) fn removed(&mut self, at: EventPartition) {
        self.rewound(at);
        if let Some(slot) = self.by_place.remove(&at) {
            self.slots[slot].state = None;
        }
    }

    /// A partition is read again from its committed position: what was taken of it and is not committed is given up.
    pub(super) fn rewound(&mut self, at: EventPartition) {
        let Some(state) = self.state_mut(at) else {
            return;
        };
        let next = state.next.take();
        state.until = match (state.until, next) {
            (Some(until), Some(next)) => Some(until.max(next.0)),
            (until, _) => until,
        };
        state.last = None;
        state.previous.clear();
        self.give_up(at);
    }

    /// All partitions are read again.
    pub(super) fn rewound_all(&mut self) {
        let all: Vec<_> = self.by_place.keys().copied().collect();
        all.into_iter().for_each(|at| self.rewound(at));
    }

    fn give_up(&mut self, at: EventPartition) {
        let Some(&slot) = self.by_place.get(&at) else {
            return;
        };
        let slot = &mut self.slots[slot];
        let Some(state) = &mut slot.state else {
            return;
        };
        self.events -= state.entries.len();
        self.bytes -= state.entries.iter().map(|entry| entry.bytes).sum::<usize>();
        state.entries.clear();
        state.done = 0;
        state.first = slot.next;
    }

    /// The partition is read from `to` on, since the broker had no record where it was read.
    pub(super) fn moved(&mut self, at: EventPartition, to: Position) {
        let random = self.random.u32(..);
        let Some(state) = self.state_mut(at) else {
            return;
        };
        let read_to = state.next.or(state.committed);
        if read_to.is_some_and(|read_to| to < read_to) {
            state.come_again(random);
            self.give_up(at);
        }
    }

    /// Takes the next event of a partition.
    pub(super) fn take(&mut self, at: EventPartition, leader_epoch: i32, offset: Offset) -> Take {
        let (random, partitions) = (self.random.u32(..), self.partitions);
        let Some(&number) = self.by_place.get(&at) else {
            return Take::NotOwned;
        };
        let Some(state) = &mut self.slots[number].state else {
            return Take::NotOwned;
        };
        if state
            .last
            .is_some_and(|last| last >= (leader_epoch, offset))
        {
            // The log was cut off or made again.
            state.come_again(random);
            self.give_up(at);
            return Take::Begin;
        }
        let Epoch::Begun { stamp, .. } = &state.epoch else {
            return Take::Begin;
        };
        if stamp.partitions != partitions && state.may_switch(partitions, offset) {
            state.epoch = Epoch::Next {
                epoch: random,
                why: NewEpoch::Partitions,
            };
            return Take::Begin;
        }
        state.last = Some((leader_epoch, offset));
        state.next = Some(offset.next());
        state.entries.push_back(Entry {
            offset,
            unacknowledged: 0,
            bytes: 0,
            counts: None,
        });
        self.events += 1;
        let slot = &mut self.slots[number];
        slot.next += 1;
        // Far more than are taken in the life of a process.
        let sequence = usize::try_from(slot.next - 1).unwrap_or(usize::MAX);
        Take::Taken(number << SEQUENCE_BITS | sequence)
    }

    /// The new epoch of a partition, to be committed with `position`, from which on its events are read. Nothing of it is
    /// under way.
    pub(super) fn begin(&mut self, at: EventPartition, position: Position) -> Option<Begin> {
        let partitions = self.partitions;
        let state = self.state_mut(at)?;
        let Epoch::Next { epoch, why } = state.epoch else {
            return None;
        };
        Some(Begin {
            metadata: state.stamp(epoch, partitions).to_text(position),
            why,
        })
    }

    /// The new epoch is committed with `position`.
    pub(super) fn begun(&mut self, at: EventPartition, position: Position) {
        let partitions = self.partitions;
        let Some(state) = self.state_mut(at) else {
            return;
        };
        if let Epoch::Next { epoch, .. } = state.epoch {
            state.epoch = Epoch::begun(state.stamp(epoch, partitions));
            state.previous.clear();
            state.last = None;
            state.next = Some(position);
            state.committed = Some(position);
            // Nobody has written in it.
            state.until = Some(0);
        }
    }

    /// The partition of the commands for the next command of an event, and its header `hs-source`. Within an event,
    /// commands ascend by the hash of their subscription.
    pub(super) fn command(
        &mut self,
        tag: Tag,
        key_hash: u32,
        subscription: u64,
        header: &mut String,
    ) -> Option<i32> {
        let state = self.state_of(tag)?;
        let Epoch::Begun { stamp, prefix } = &state.epoch else {
            return None;
        };
        let target = partition(key_hash, stamp.partitions)?;
        // Events are written one after the other.
        let (leader_epoch, offset) = state.last?;
        let at = Point {
            leader_epoch,
            offset: offset.0,
            subscription,
        };
        let index = usize::try_from(target).ok()?;
        if state.previous.len() <= index {
            state.previous.resize(index + 1, None);
        }
        header.clear();
        header.push_str(prefix);
        write_place(header, at, state.previous[index].replace(at));
        self.record(tag);
        Some(target)
    }

    /// One more record of an event is handed to the client.
    pub(super) fn record(&mut self, tag: Tag) {
        if let Some(entry) = self.entry(tag) {
            entry.unacknowledged += 1;
        }
    }

    /// All records of an event, of so many bytes, were handed to the client.
    pub(super) fn written(&mut self, tag: Tag, bytes: usize, counts: EventCounts) {
        if let Some(entry) = self.entry(tag) {
            entry.bytes = bytes;
            entry.counts = Some(counts);
            self.bytes += bytes;
            self.advance(tag);
        }
    }

    /// So many records of an event were acknowledged. Those of events that were given up may be, too.
    pub(super) fn acknowledged(&mut self, tag: Tag, records: u32) {
        if let Some(entry) = self.entry(tag) {
            entry.unacknowledged = entry.unacknowledged.saturating_sub(records);
            if entry.is_done() {
                self.advance(tag);
            }
        }
    }

    fn advance(&mut self, tag: Tag) {
        if let Some(state) = self.state_of(tag) {
            while state.entries.get(state.done).is_some_and(Entry::is_done) {
                state.done += 1;
            }
        }
    }

    /// Whether all records of an event are acknowledged, or the event is no longer known.
    pub(super) fn is_done(&mut self, tag: Tag) -> bool {
        self.entry(tag).is_none_or(|entry| entry.is_done())
    }

    /// Whether no more events are to be taken before some are committed.
    pub(super) fn is_full(&self) -> bool {
        self.events >= self.limits.events || self.bytes >= self.limits.bytes
    }

    /// Events that were taken and are not committed.
    pub(super) fn uncommitted(&self) -> usize {
        self.events
    }

    /// Whether every event that was taken of some partitions, or of all, is acknowledged.
    pub(super) fn is_acknowledged(&self, of: Option<&[EventPartition]>) -> bool {
        let is_done = |state: &State| state.done == state.entries.len();
        match of {
            None => self.states().all(is_done),
            Some(of) => of.iter().filter_map(|&at| self.state(at)).all(is_done),
        }
    }

    /// Whether one of these partitions has events that are not committed.
    pub(super) fn has_uncommitted(&self, of: &[EventPartition]) -> bool {
        let mut of = of.iter().filter_map(|at| self.state(*at));
        of.any(|state| !state.entries.is_empty())
    }

    /// What has changed since the last commit, or everything.
    pub(super) fn commits(&self, everything: bool) -> Vec<(EventPartition, Position, String)> {
        let each = self.states().filter_map(|state| {
            let Epoch::Begun { stamp, .. } = &state.epoch else {
                return None;
            };
            let position = match state.entries.get(state.done) {
                Some(first) => Position(first.offset.0),
                None => state.next.or(state.committed.filter(|_| everything))?,
            };
            let is_due = everything || state.committed != Some(position);
            is_due.then(|| (state.at, position, stamp.to_text(position)))
        });
        each.collect()
    }

    /// A position of [`Sources::commits`] is committed.
    pub(super) fn committed(&mut self, at: EventPartition, position: Position) {
        let Some(&slot) = self.by_place.get(&at) else {
            return;
        };
        let Some(state) = &mut self.slots[slot].state else {
            return;
        };
        state.committed = Some(position);
        while state.done > 0
            && let Some(entry) = state
                .entries
                .pop_front_if(|first| first.offset.0 < position.0)
        {
            state.done -= 1;
            state.first += 1;
            self.events -= 1;
            self.bytes -= entry.bytes;
            self.committed += 1;
            self.counts
                .extend(entry.counts.map(|counts| (at.topic, counts)));
        }
    }

    /// Events that were committed since the start.
    pub(super) fn events_committed(&self) -> u64 {
        self.committed
    }

    /// What was committed since the last call, with the numbers of the topics.
    pub(super) fn counts(&mut self) -> Vec<(usize, EventCounts)> {
        std::mem::take(&mut self.counts)
    }

    /// The client has passed `position` without a record, and has given all records before it. Returns whether the
    /// partition begins a new epoch there first.
    pub(super) fn passed(&mut self, at: EventPartition, position: Position) -> bool {
        let Some(state) = self.state_mut(at) else {
            return false;
        };
        if !state.entries.is_empty() || state.next.or(state.committed) >= Some(position) {
            return false;
        }
        match state.epoch {
            Epoch::Begun { .. } => {
                state.next = Some(position);
                false
            }
            Epoch::Next { .. } => true,
        }
    }

    /// Partitions that are to change to another number of partitions of the commands, and of which it is unknown how far
    /// others have written: [`Sources::set_end`].
    pub(super) fn unknown_ends(&self) -> Vec<EventPartition> {
        let each = self.states().filter(|state| {
            state.until.is_none()
                && matches!(&state.epoch, Epoch::Begun { stamp, .. } if stamp.partitions < self.partitions)
        });
        each.map(|state| state.at).collect()
    }

    /// The end of a partition of the events, read after it was assigned.
    pub(super) fn set_end(&mut self, at: EventPartition, end: i64) {
        if let Some(state) = self.state_mut(at)
            && state.until.is_none()
        {
            state.until = Some(end.max(state.next.unwrap_or_default().0));
        }
    }

    /// Whether a partition would change to another number of partitions of the commands if nothing were under way.
    pub(super) fn wants_rest(&self) -> bool {
        self.states().any(|state| {
            let next = state.next.map_or(0, |next| next.0);
            !state.entries.is_empty()
                && matches!(&state.epoch, Epoch::Begun { stamp, .. } if stamp.partitions < self.partitions)
                && state.until.is_some_and(|until| until <= next)
        })
    }

    fn states(&self) -> impl Iterator<Item = &State> {
        self.by_place
            .values()
            .filter_map(|&slot| self.slots[slot].state.as_ref())
    }

    fn state(&self, at: EventPartition) -> Option<&State> {
        self.slots[*self.by_place.get(&at)?].state.as_ref()
    }

    fn state_mut(&mut self, at: EventPartition) -> Option<&mut State> {
        self.slots[*self.by_place.get(&at)?].state.as_mut()
    }

    fn state_of(&mut self, tag: Tag) -> Option<&mut State> {
        self.slots.get_mut(tag >> SEQUENCE_BITS)?.state.as_mut()
    }

    fn entry(&mut self, tag: Tag) -> Option<&mut Entry> {
        let sequence = (tag & ((1 << SEQUENCE_BITS) - 1)) as u64;
        let state = self.state_of(tag)?;
        let index = sequence.checked_sub(state.first)?;
        state.entries.get_mut(usize::try_from(index).ok()?)
    }
}

#[cfg(test)]
mod tests;
