//! What fan-out decides: the commands of an event, when a batch ends and what it commits, and which events are set aside.
//!
//! A batch ends when it is large or old; with it, its commands, its invalid events and the positions of its events
//! become visible in one transaction (**Complete**). After a failure every batch that is not committed is given up, and
//! its events are read again.
//!
//! The broker refuses a record that is too large together with the records that it gets in the same request, so it names
//! only one of many. After a refusal each event is therefore a batch of its own, until the refused one is known: it is
//! read again as an invalid event.
//!
//! Pure: time and the matching subscriptions are arguments, and what is to be done is returned.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::identities::Identities;
use crate::model::command::{Cause, ContentType, Envelope};
use crate::model::event::{self, Event, Format, RawEvent};
use crate::model::invalid_record::InvalidRecord;
use crate::model::subscription::{Order, Subscription};
use crate::model::transaction_end::TransactionEnd;
use crate::model::units::{EpochMs, Offset, Position};

/// One partition of an event topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct EventPartition {
    /// The topic, by the number that the shell gave it.
    pub(super) topic: usize,
    /// The partition's number.
    pub(super) partition: i32,
}

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
    /// Bytes of a command's body.
    pub(super) body_bytes: usize,
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
    pub(super) positions: HashMap<EventPartition, Position>,
    /// Its counts.
    pub(super) counts: Counts,
    /// Whether it must be committed before the next one begins.
    pub(super) alone: bool,
}

/// What follows a transaction that was not committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Renew the producers, and read the owned partitions again from their committed positions.
    ReadAgain,
    /// The event was set aside, and that record is refused too.
    TooLargeToSetAside(EventPartition, Offset),
    /// The refused record has no event that is known.
    UnknownEvent,
    /// This process cannot write.
    Stop,
}

/// The event with this tag has a command that is too large to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct TooLarge {
    /// The tag of its records.
    pub(super) tag: usize,
}

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
            cause: Cause::New,
            first_failure: None,
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

    fn longest_body(&self) -> usize {
        let bodies = self.bodies.iter().flatten();
        bodies.map(Vec::len).max().unwrap_or_default()
    }
}

/// The open batch.
#[derive(Debug, Default)]
struct Open {
    counts: Counts,
    events: usize,
    bytes: usize,
    /// Behind the last event of each partition.
    positions: HashMap<EventPartition, Position>,
    began: Option<Instant>,
}

/// Where recent events came from, by the tag that their records carry.
#[derive(Debug)]
struct Origins {
    first: usize,
    kept: usize,
    recent: VecDeque<(EventPartition, Offset)>,
}

impl Origins {
    fn add(&mut self, origin: (EventPartition, Offset)) -> usize {
        if self.recent.len() == self.kept {
            self.recent.pop_front();
            self.first += 1;
        }
        self.recent.push_back(origin);
        self.first + self.recent.len() - 1
    }

    fn of(&self, tag: usize) -> Option<(EventPartition, Offset)> {
        self.recent.get(tag.checked_sub(self.first)?).copied()
    }
}

/// The open batch, and what is known of events that do not fit.
#[derive(Debug)]
pub(super) struct Batch {
    limits: Limits,
    open: Open,
    origins: Origins,
    /// How many events are still to be committed one by one, to find the one whose record is refused.
    one_by_one: usize,
    /// Events of which the broker refused a record for its size.
    oversized: HashSet<(EventPartition, Offset)>,
    owned: HashSet<EventPartition>,
    /// Positions behind the ends of transactions that were committed although there is no event before them.
    passed: HashMap<EventPartition, Position>,
    next_passed: Instant,
    identities: Identities,
}

impl Batch {
    /// How often the positions behind the ends of transactions are committed.
    const PASSED_EVERY: Duration = Duration::from_secs(1);

    /// Empty, of a process that owns no partition.
    pub(super) fn new(limits: Limits, now: Instant) -> Self {
        Self {
            open: Open::default(),
            origins: Origins {
                first: 0,
                kept: limits.events * limits.batches,
                recent: VecDeque::new(),
            },
            limits,
            one_by_one: 0,
            oversized: HashSet::new(),
            owned: HashSet::new(),
            passed: HashMap::new(),
            next_passed: now,
            identities: Identities::default(),
        }
    }

    /// Takes an event into the open batch; returns the tag of its records.
    pub(super) fn take(&mut self, at: EventPartition, offset: Offset, now: Instant) -> usize {
        self.open.began.get_or_insert(now);
        self.open.events += 1;
        self.open.positions.insert(at, offset.next());
        self.origins.add((at, offset))
    }

    /// Reads the event with this tag.
    ///
    /// # Errors
    /// Why it is to be set aside with [`Batch::set_aside`].
    pub(super) fn read<'a>(&self, tag: usize, raw: &RawEvent<'a>) -> Result<Event<'a>, String> {
        let event = event::read(raw, self.limits.event_bytes).map_err(|error| error.to_string())?;
        if !self.oversized.is_empty()
            && let Some(origin) = self.origins.of(tag)
            && self.oversized.contains(&origin)
        {
            return Err("a command for this event would be larger than the broker's limit (max.message.bytes of the commands topic)".to_owned());
        }
        Ok(event)
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
    }

    /// The commands of the event with this tag, all of which are to be written.
    ///
    /// # Errors
    /// A body is larger than any record that the broker takes.
    pub(super) fn fan_out<'a>(
        &mut self,
        tag: usize,
        event: &'a Event<'a>,
        matching: &'a [Arc<Subscription>],
    ) -> Result<Commands<'a>, TooLarge> {
        let commands = Commands::new(event, matching);
        if commands.longest_body() > self.limits.body_bytes {
            return Err(TooLarge { tag });
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
            self.one_by_one > 0
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
            if self.passed.insert(at, position) != Some(position) {
                self.open.positions.insert(at, position);
            }
        }
        if self.open.positions.is_empty() {
            return None;
        }
        let open = std::mem::take(&mut self.open);
        self.identities.clear();
        let alone = self.one_by_one > 0;
        self.one_by_one = self.one_by_one.saturating_sub(1);
        Some(Ended {
            positions: open.positions,
            counts: open.counts,
            alone,
        })
    }

    /// Takes note of a transaction that was not committed, and gives up the open batch with all that are under way.
    pub(super) fn failed(&mut self, end: TransactionEnd) -> Next {
        self.give_up();
        match end {
            TransactionEnd::Committed
            | TransactionEnd::Aborted
            | TransactionEnd::Fenced
            | TransactionEnd::Ambiguous => Next::ReadAgain,
            TransactionEnd::Fatal => Next::Stop,
            // Of many events, any may be the one whose record is refused.
            TransactionEnd::TooLarge { .. } if self.one_by_one == 0 => {
                self.one_by_one = self.origins.kept;
                Next::ReadAgain
            }
            TransactionEnd::TooLarge { tag } => {
                self.one_by_one = 0;
                match self.origins.of(tag) {
                    None => Next::UnknownEvent,
                    Some(origin) if self.oversized.insert(origin) => Next::ReadAgain,
                    Some((at, offset)) => Next::TooLargeToSetAside(at, offset),
                }
            }
        }
    }

    /// Gives up the open batch and all that are under way; all owned partitions are read again.
    pub(super) fn give_up(&mut self) {
        self.open = Open::default();
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
        }
        if !self.oversized.is_empty() {
            self.oversized.retain(|(at, _)| !partitions.contains(at));
        }
    }

    /// The partitions that this process owns.
    pub(super) fn owned(&self) -> impl Iterator<Item = EventPartition> {
        self.owned.iter().copied()
    }
}

#[cfg(test)]
mod tests;
