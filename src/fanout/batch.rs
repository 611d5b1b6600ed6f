//! What fan-out decides: the commands of an event, when a batch ends and what it commits, and which events are set aside.
//!
//! A batch ends when it is large or old; with it, its commands, its invalid events and the positions of its events
//! become visible in one transaction (**Complete**). After a failure every batch that is not committed is given up, and
//! its events are read again.
//!
//! The broker refuses a record that is too large together with the records that it gets in the same request, so it names
//! only one of many. After a refusal each event is therefore tried alone, until the refused one is known: it is read again
//! and set aside, whole or, when that is refused too, ever less of it ([`Extent`]).
//!
//! The same after two failures in a row of any other kind: one event may have more commands than a transaction has time
//! for. When an event fails alone, its partition is held for a while and the others go on (**Isolated**).
//!
//! Pure: time and the matching subscriptions are arguments, and what is to be done is returned.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::history::{EventPartition, Failures, Held, Origin, Origins};
use super::identities::Identities;
use super::waiting::Waiting;
use crate::model::command::{Cause, ContentType, Envelope};
use crate::model::event::{self, Event, Format, Mapping, RawEvent};
use crate::model::invalid_record::{Extent, InvalidRecord};
use crate::model::subscription::{Order, Subscription};
use crate::model::transaction_end::TransactionEnd;
use crate::model::units::{EpochMs, Offset, Position};

/// What keeps a batch bounded.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// Events of a batch.
    pub(super) events: usize,
    /// Bytes of a batch, except that the commands of an event stay together.
    pub(super) bytes: usize,
    /// How long a batch is open while events keep coming.
    pub(super) time: Duration,
    /// Bytes of an event.
    pub(super) event_bytes: usize,
    /// Bytes of a command's body and of the parts of the event that travel in its headers.
    pub(super) command_bytes: usize,
    /// Batches, the open one included, that can be under way: their events are known by tag.
    pub(super) batches: usize,
}

/// What a batch is counted as when it is visible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Events that at least one subscription matched.
    pub(super) fanned_out: u64,
    /// Events that no subscription matched.
    pub(super) unmatched: u64,
    /// Records that were set aside.
    pub(super) invalid: u64,
    /// Commands.
    pub(super) commands: u64,
    /// Tombstones.
    pub(super) tombstones: u64,
    /// Events whose record has no usable timestamp.
    pub(super) times_replaced: u64,
    /// Attributes that CloudEvents does not allow.
    pub(super) left_out: u64,
    /// Events with the webhook ids of another one of the batch.
    pub(super) collisions: u64,
}

/// A batch that has ended, to be committed.
#[derive(Debug)]
pub(super) struct Ended {
    /// The position of each partition that it has events of, and those behind the ends of transactions.
    pub(super) positions: BTreeMap<EventPartition, Position>,
    /// Its counts.
    pub(super) counts: Counts,
    /// Records that were set aside, by topic.
    pub(super) set_aside: BTreeMap<String, u64>,
    /// Whether it must be committed before the next one begins.
    pub(super) alone: bool,
}

/// What follows a transaction that was not committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Renew the producers, and read the owned partitions again from their committed positions.
    ReadAgain,
    /// The same, but this event failed alone: its partition is not read until [`Batch::due`] returns it.
    Hold {
        /// The event's partition.
        at: EventPartition,
        /// The event's offset.
        offset: Offset,
        /// How long.
        wait: Duration,
    },
    /// This process cannot write.
    Stop,
}

/// An event has a command that is too large to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct TooLarge;

/// A command for one event and one subscription, not yet written.
#[derive(Debug)]
pub(super) struct NewCommand<'a> {
    event: &'a Event<'a>,
    subscription: &'a Subscription,
    content_type: ContentType,
    webhook_id: String,
    enqueued: EpochMs,
    traceparent: Option<&'a str>,
    /// The body.
    pub(super) body: &'a [u8],
}

impl NewCommand<'_> {
    /// The partition key.
    pub(super) fn subscriber(&self) -> &str {
        &self.subscription.subscriber
    }

    /// All but its key and body.
    pub(super) fn envelope(&self) -> Envelope<'_> {
        Envelope {
            webhook_id: &self.webhook_id,
            subscription: &self.subscription.id,
            event_id: self.event.id(),
            event_type: self.event.event_type(),
            event_time: self.event.time(),
            subject: self.event.subject(),
            content_type: self.content_type,
            attempt: 0,
            due: None,
            enqueued: self.enqueued,
            recorded: Some(self.event.received()),
            cause: Cause::New,
            first_failure: None,
            last_failure: None,
            replayed: None,
            sequence: None,
            cluster: None,
            traceparent: self.traceparent,
        }
    }
}

/// The commands of one event.
#[derive(Debug)]
pub(super) struct Commands<'a> {
    event: &'a Event<'a>,
    matching: &'a [Arc<Subscription>],
    /// One body for each format that is asked for.
    bodies: [Option<Vec<u8>>; 2],
    /// Of the bodies of all commands.
    bytes: usize,
}

fn body_slot(format: Format) -> (usize, ContentType) {
    match format {
        Format::Standard => (0, ContentType::Json),
        Format::CloudEvents => (1, ContentType::CloudEvents),
    }
}

impl<'a> Commands<'a> {
    fn new(event: &'a Event<'a>, matching: &'a [Arc<Subscription>]) -> Self {
        let mut bodies = [None, None];
        let mut bytes = 0;
        for subscription in matching {
            let (slot, _) = body_slot(subscription.format);
            let body: &mut Vec<u8> =
                bodies[slot].get_or_insert_with(|| event.body(subscription.format));
            bytes += body.len();
        }
        Self {
            event,
            matching,
            bodies,
            bytes,
        }
    }

    /// Whether one of them must be in the log behind all commands of earlier batches.
    pub(super) fn keep_order(&self) -> bool {
        self.matching.iter().any(|one| one.order != Order::None)
    }

    /// One for each subscription, in order.
    pub(super) fn each(
        &'a self,
        traceparent: Option<&'a str>,
        enqueued: EpochMs,
    ) -> impl Iterator<Item = NewCommand<'a>> {
        self.matching.iter().map(move |subscription| {
            let (slot, content_type) = body_slot(subscription.format);
            NewCommand {
                event: self.event,
                subscription,
                content_type,
                webhook_id: self.event.webhook_id(&subscription.id),
                enqueued,
                traceparent,
                body: self.bodies[slot].as_deref().unwrap_or_default(),
            }
        })
    }

    /// Of the longest body, and of what travels in headers beside it.
    fn largest(&self) -> usize {
        let bodies = self.bodies.iter().flatten();
        let event = self.event;
        let optional = |text: Option<&str>| text.map_or(0, str::len);
        bodies.map(Vec::len).max().map_or(0, |longest| {
            longest
                + event.id().len()
                + event.event_type().len()
                + optional(event.time())
                + optional(event.subject())
        })
    }
}

/// The open batch.
#[derive(Debug, Default)]
struct Open {
    counts: Counts,
    set_aside: BTreeMap<String, u64>,
    /// Its one event is tried alone.
    alone: bool,
    events: usize,
    bytes: usize,
    /// Behind the last event of each partition.
    positions: BTreeMap<EventPartition, Position>,
    began: Option<Instant>,
}

/// The open batch, and what is known of events that do not fit.
#[derive(Debug)]
pub(super) struct Batch {
    limits: Limits,
    open: Open,
    origins: Origins,
    /// How many events are still to be tried alone, to find the one that fails.
    one_by_one: usize,
    /// The event that was last taken, if it is tried alone: nothing else is under way.
    alone: Option<Origin>,
    failures: Failures,
    /// Events of which the broker refused a record for its size, and how much of each is set aside.
    oversized: HashMap<Origin, Extent>,
    held: BTreeMap<EventPartition, Held>,
    /// Partitions that wait for the schema of their next event: their events are dropped for now, too.
    pub(super) waiting: Waiting,
    owned: BTreeSet<EventPartition>,
    /// Positions behind the ends of transactions that were committed although there is no event before them.
    passed: BTreeMap<EventPartition, Position>,
    next_passed: Instant,
    identities: Identities,
}

impl Batch {
    /// How often the positions behind the ends of transactions are committed.
    const PASSED_EVERY: Duration = Duration::from_secs(1);
    /// Failures in a row after which events are tried alone.
    const FAILURES: u32 = 2;
    /// How long a partition is held when its event fails alone for the first time.
    const FIRST_HOLD: Duration = Duration::from_secs(1);
    /// How long at most.
    const LONGEST_HOLD: Duration = Duration::from_secs(60);

    /// Empty, of a process that owns no partition.
    pub(super) fn new(limits: Limits, now: Instant) -> Self {
        Self {
            open: Open::default(),
            origins: Origins::new(limits.events * limits.batches),
            limits,
            one_by_one: 0,
            alone: None,
            failures: Failures::default(),
            oversized: HashMap::new(),
            held: BTreeMap::new(),
            waiting: Waiting::default(),
            owned: BTreeSet::new(),
            passed: BTreeMap::new(),
            next_passed: now,
            identities: Identities::default(),
        }
    }

    /// Whether events of this partition are dropped for now: it is read again later, see [`Batch::due`].
    pub(super) fn is_held(&self, at: EventPartition) -> bool {
        self.waiting.contains(at) || self.held.get(&at).is_some_and(|held| held.until.is_some())
    }

    /// Whether all earlier batches must be committed before this event is taken: it failed before, and is tried alone.
    pub(super) fn is_suspect(&self, at: EventPartition, offset: Offset) -> bool {
        self.oversized.contains_key(&(at, offset))
            || self.held.get(&at).is_some_and(|held| held.offset == offset)
    }

    /// Held partitions whose time is over: read them again from their committed positions.
    pub(super) fn due(&mut self, now: Instant) -> Vec<EventPartition> {
        let held = self.held.iter_mut();
        let due = held.filter(|(_, held)| held.until.is_some_and(|until| until <= now));
        due.map(|(&at, held)| {
            held.until = None;
            at
        })
        .collect()
    }

    /// Takes an event into the open batch; returns the tag of its records.
    pub(super) fn take(&mut self, at: EventPartition, offset: Offset, now: Instant) -> usize {
        let alone = self.one_by_one > 0 || self.is_suspect(at, offset);
        self.alone = alone.then_some((at, offset));
        self.open.alone = alone;
        if self.held.get(&at).is_some_and(|held| held.offset < offset) {
            self.held.remove(&at);
        }
        self.open.began.get_or_insert(now);
        self.open.events += 1;
        self.open.positions.insert(at, offset.next());
        self.origins.add((at, offset))
    }

    /// Reads the event with this tag, by the mapping of its topic if there is one.
    ///
    /// # Errors
    /// Why it is to be set aside with [`Batch::set_aside`].
    pub(super) fn read<'a>(
        &self,
        tag: usize,
        raw: &RawEvent<'a>,
        mapping: Option<&Mapping>,
    ) -> Result<Event<'a>, String> {
        let event = match mapping {
            None => event::read(raw, self.limits.event_bytes),
            Some(mapping) => event::read_mapped(raw, mapping, self.limits.event_bytes),
        };
        let event = event.map_err(|error| error.to_string())?;
        if !self.oversized.is_empty()
            && let Some(origin) = self.origins.of(tag)
            && self.oversized.contains_key(&origin)
        {
            return Err("a command for this event would be larger than the broker's limit (max.message.bytes of the commands topic)".to_owned());
        }
        Ok(event)
    }

    /// How much of the event with this tag is set aside.
    pub(super) fn extent(&self, tag: usize) -> Extent {
        let origin = self.origins.of(tag);
        let known = origin.and_then(|origin| self.oversized.get(&origin));
        known.copied().unwrap_or_default()
    }

    /// Counts a tombstone, which is neither an event nor set aside.
    pub(super) fn skip_tombstone(&mut self) {
        self.open.counts.tombstones += 1;
    }

    /// Counts what is odd about an event that was read from `value`.
    pub(super) fn observe(&mut self, event: &Event<'_>, value: &[u8], time_replaced: bool) {
        let counts = &mut self.open.counts;
        counts.times_replaced += u64::from(time_replaced);
        counts.left_out += event.left_out() as u64;
        counts.collisions += u64::from(self.identities.collides(event, value));
    }

    /// Counts an invalid event, whose record is to be written.
    pub(super) fn set_aside(&mut self, record: &InvalidRecord) {
        self.open.bytes += record.weight();
        self.open.counts.invalid += 1;
        *self.open.set_aside.entry(record.topic.clone()).or_default() += 1;
    }

    /// The commands of an event, all of which are to be written.
    ///
    /// # Errors
    /// One would be larger than any record that is written: the event is to be set aside with [`Batch::set_aside`].
    pub(super) fn fan_out<'a>(
        &mut self,
        event: &'a Event<'a>,
        matching: &'a [Arc<Subscription>],
    ) -> Result<Commands<'a>, TooLarge> {
        let commands = Commands::new(event, matching);
        if commands.largest() > self.limits.command_bytes {
            return Err(TooLarge);
        }
        self.open.bytes += commands.bytes;
        let counts = &mut self.open.counts;
        match matching.len() {
            0 => counts.unmatched += 1,
            written => {
                counts.fanned_out += 1;
                counts.commands += u64::try_from(written).unwrap_or(u64::MAX);
            }
        }
        Ok(commands)
    }

    /// Whether a batch is open: then the next poll must not wait, and an empty poll ends the batch, so that a lone event
    /// does not wait for others.
    pub(super) fn is_open(&self) -> bool {
        self.open.began.is_some()
    }

    /// Whether the open batch takes no more events.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        let Open {
            events,
            bytes,
            began,
            ..
        } = self.open;
        began.is_some_and(|began| {
            self.open.alone
                || events >= self.limits.events
                || bytes >= self.limits.bytes
                || now.saturating_duration_since(began) >= self.limits.time
        })
    }

    /// Whether it is time to ask the client for the positions that it has passed, for [`Batch::end`].
    pub(super) fn asks_for_passed(&mut self, now: Instant) -> bool {
        let asks = now >= self.next_passed;
        if asks {
            self.next_passed = now + Self::PASSED_EVERY;
        }
        asks
    }

    /// Ends the open batch. The client has `passed` these positions, behind which it has given no event: they are
    /// committed too, or the group would seem to be behind for as long as no event comes. All that the client has given
    /// is in this batch or in one before it, and commits stay in order. `None` if there is nothing to commit.
    pub(super) fn end(
        &mut self,
        passed: impl Iterator<Item = (EventPartition, Position)>,
    ) -> Option<Ended> {
        for (at, position) in passed {
            // What was given of a held partition was dropped.
            if !self.is_held(at) && self.passed.insert(at, position) != Some(position) {
                self.open.positions.insert(at, position);
            }
        }
        if self.open.positions.is_empty() {
            return None;
        }
        let open = std::mem::take(&mut self.open);
        let alone = open.alone || self.one_by_one > 0;
        if open.events == 0 {
            // Only positions: the event that was tried alone is committed.
            self.alone = None;
        } else if alone {
            self.one_by_one = self.one_by_one.saturating_sub(1);
        }
        self.failures.ended(open.events, self.limits.batches);
        self.identities.clear();
        Some(Ended {
            positions: open.positions,
            counts: open.counts,
            set_aside: open.set_aside,
            alone,
        })
    }

    /// Takes note of a transaction that was not committed, and gives up the open batch with all that are under way.
    /// `committed` is how many batches were committed since the start.
    pub(super) fn failed(&mut self, end: TransactionEnd, committed: u64, now: Instant) -> Next {
        let events = self.open.events + self.failures.under_way(committed);
        let alone = self.alone.take();
        let progress = self.failures.failed(committed);
        self.give_up();
        match (end, alone) {
            (TransactionEnd::Fatal, _) => Next::Stop,
            (TransactionEnd::TooLarge { .. }, Some(origin)) => {
                self.one_by_one = 0;
                self.cut(origin);
                Next::ReadAgain
            }
            // Of many events, any may be the one whose record is refused.
            (TransactionEnd::TooLarge { .. }, None) => {
                self.one_by_one = events.max(1);
                Next::ReadAgain
            }
            (_, Some((at, offset))) => {
                let wait = self.hold(at, offset, progress, now);
                Next::Hold { at, offset, wait }
            }
            (_, None) => {
                if self.failures.in_a_row >= Self::FAILURES {
                    self.one_by_one = events.max(1);
                }
                Next::ReadAgain
            }
        }
    }

    /// Sets the event aside, or less of it than was refused.
    fn cut(&mut self, (at, offset): Origin) {
        // Those before it are committed.
        self.oversized
            .retain(|(partition, before), _| *partition != at || *before >= offset);
        let extent = self.oversized.entry((at, offset));
        extent
            .and_modify(|extent| *extent = extent.smaller())
            .or_default();
    }

    /// Holds the partition of an event that failed alone. The wait grows only while others are committed: otherwise the
    /// failure has nothing to do with the event.
    fn hold(
        &mut self,
        at: EventPartition,
        offset: Offset,
        progress: bool,
        now: Instant,
    ) -> Duration {
        let before = self.held.get(&at).filter(|held| held.offset == offset);
        let wait = match before {
            Some(held) if progress => (held.wait * 2).min(Self::LONGEST_HOLD),
            Some(held) => held.wait,
            None => Self::FIRST_HOLD,
        };
        let until = Some(now + wait);
        self.held.insert(
            at,
            Held {
                offset,
                wait,
                until,
            },
        );
        wait
    }

    /// Gives up the open batch and all that are under way; all owned partitions are read again.
    pub(super) fn give_up(&mut self) {
        self.open = Open::default();
        self.alone = None;
        self.identities.clear();
        self.passed.clear();
    }

    /// Takes over partitions.
    pub(super) fn assigned(&mut self, partitions: impl Iterator<Item = EventPartition>) {
        self.owned.extend(partitions);
    }

    /// Partitions are to be given up: after a failure they are not read again. Their events must be committed, or given
    /// up with [`Batch::give_up`], before [`Batch::revoked`].
    pub(super) fn revoking(&mut self, partitions: &[EventPartition]) {
        for at in partitions {
            self.owned.remove(at);
        }
    }

    /// Forgets partitions.
    pub(super) fn revoked(&mut self, partitions: &[EventPartition]) {
        for at in partitions {
            self.passed.remove(at);
            self.held.remove(at);
            self.waiting.remove(*at);
        }
        if !self.oversized.is_empty() {
            self.oversized.retain(|(at, _), _| !partitions.contains(at));
        }
    }

    /// The partitions that this process owns.
    pub(super) fn owned(&self) -> impl Iterator<Item = EventPartition> {
        self.owned.iter().copied()
    }
}

#[cfg(test)]
mod tests;
