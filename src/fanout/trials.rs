//! What fan-out decides about one event: its commands, whether it is set aside, and whether it is tried alone.
//!
//! After a failure everything that is not committed is given up and read again. The broker refuses a record that is too
//! large together with the records that it gets in the same request, so it names only one of many. After a refusal each
//! event is therefore tried alone, until the refused one is known: it is read again and set aside, whole or, when that is
//! refused too, ever less of it ([`Extent`]).
//!
//! The same after two failures in a row of any other kind: the broker may refuse one record for another reason. When an
//! event fails alone, its partition is held for a while and the others go on (**Isolated**).
//!
//! Pure: time and the matching subscriptions are arguments, and what is to be done is returned.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::counts::EventCounts;
use super::history::{EventPartition, Failures, Held, Origin};
use super::identities::Identities;
use super::metrics::EventResult;
use super::waiting::Waiting;
use crate::model::command::{Cause, ContentType, Envelope};
use crate::model::event::{self, Event, Format, Mapping, RawEvent};
use crate::model::invalid_record::Extent;
use crate::model::source::subscription_hash;
use crate::model::subscription::Subscription;
use crate::model::transaction_end::TransactionEnd;
use crate::model::units::{EpochMs, Offset};

/// What is too large to be written.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// Bytes of an event.
    pub(super) event_bytes: usize,
    /// Bytes of a command's body and of the parts of the event that travel in its headers.
    pub(super) command_bytes: usize,
}

/// What follows a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Replace the producer, and read the owned partitions again from their committed positions.
    ReadAgain,
    /// The same, but this event failed alone: its partition is not read until [`Trials::due`] returns it.
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

    /// The hash of its subscription's id, by which the commands of an event ascend.
    pub(super) fn hash(&self) -> u64 {
        subscription_hash(&self.subscription.id)
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
    /// Sorts `matching`: all writers write the commands of an event in one order.
    fn new(event: &'a Event<'a>, matching: &'a mut [Arc<Subscription>]) -> Self {
        if matching.len() > 1 {
            matching.sort_by_cached_key(|one| subscription_hash(&one.id));
        }
        let matching = &*matching;
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

    /// Of the bodies.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
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

/// What is known of events that fail.
#[derive(Debug)]
pub(super) struct Trials {
    limits: Limits,
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
    identities: Identities,
}

impl Trials {
    /// Failures in a row after which events are tried alone.
    const FAILURES: u32 = 2;
    /// How long a partition is held when its event fails alone for the first time.
    const FIRST_HOLD: Duration = Duration::from_secs(1);
    /// How long at most.
    const LONGEST_HOLD: Duration = Duration::from_secs(60);

    /// Of a process that owns no partition.
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            one_by_one: 0,
            alone: None,
            failures: Failures::default(),
            oversized: HashMap::new(),
            held: BTreeMap::new(),
            waiting: Waiting::default(),
            owned: BTreeSet::new(),
            identities: Identities::default(),
        }
    }

    /// Whether events of this partition are dropped for now: it is read again later, see [`Trials::due`].
    pub(super) fn is_held(&self, at: EventPartition) -> bool {
        self.waiting.contains(at) || self.held.get(&at).is_some_and(|held| held.until.is_some())
    }

    /// Whether everything else must be committed before this event is taken: it failed before, or one of the next ones
    /// will.
    pub(super) fn is_alone(&self, at: EventPartition, offset: Offset) -> bool {
        self.one_by_one > 0
            || self.oversized.contains_key(&(at, offset))
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

    /// Takes note of an event that is written now; returns whether it is tried alone, so that nothing is taken before it
    /// is committed: [`Trials::succeeded`].
    pub(super) fn take(&mut self, at: EventPartition, offset: Offset) -> bool {
        let alone = self.is_alone(at, offset);
        self.alone = alone.then_some((at, offset));
        if self.held.get(&at).is_some_and(|held| held.offset < offset) {
            self.held.remove(&at);
        }
        alone
    }

    /// The event that was tried alone is committed.
    pub(super) fn succeeded(&mut self) {
        if self.alone.take().is_some() {
            self.one_by_one = self.one_by_one.saturating_sub(1);
        }
    }

    /// Reads an event, by the mapping of its topic if there is one.
    ///
    /// # Errors
    /// Why it is to be set aside.
    pub(super) fn read<'a>(
        &self,
        origin: Origin,
        raw: &RawEvent<'a>,
        mapping: Option<&Mapping>,
    ) -> Result<Event<'a>, String> {
        let event = match mapping {
            None => event::read(raw, self.limits.event_bytes),
            Some(mapping) => event::read_mapped(raw, mapping, self.limits.event_bytes),
        };
        let event = event.map_err(|error| error.to_string())?;
        if !self.oversized.is_empty() && self.oversized.contains_key(&origin) {
            return Err("a command for this event would be larger than the broker's limit (max.message.bytes of the commands topic)".to_owned());
        }
        Ok(event)
    }

    /// How much of an event is set aside.
    pub(super) fn extent(&self, origin: Origin) -> Extent {
        self.oversized.get(&origin).copied().unwrap_or_default()
    }

    /// What an event counts as that was read from `value` and matches so many subscriptions.
    pub(super) fn counts(
        &mut self,
        event: &Event<'_>,
        value: &[u8],
        is_time_replaced: bool,
        commands: usize,
    ) -> EventCounts {
        let result = match commands {
            0 => EventResult::Unmatched,
            _ => EventResult::FannedOut,
        };
        EventCounts {
            commands: u32::try_from(commands).unwrap_or(u32::MAX),
            is_time_replaced,
            left_out: u32::try_from(event.left_out()).unwrap_or(u32::MAX),
            collides: self.identities.collides(event, value),
            ..EventCounts::of(result)
        }
    }

    /// What was read before was committed, or is soon: collisions are looked for among events that are close together.
    pub(super) fn forget_identities(&mut self) {
        self.identities.clear();
    }

    /// The commands of an event, all of which are to be written.
    ///
    /// # Errors
    /// One would be larger than any record that is written: the event is to be set aside.
    pub(super) fn fan_out<'a>(
        &self,
        event: &'a Event<'a>,
        matching: &'a mut [Arc<Subscription>],
    ) -> Result<Commands<'a>, TooLarge> {
        let commands = Commands::new(event, matching);
        if commands.largest() > self.limits.command_bytes {
            return Err(TooLarge);
        }
        Ok(commands)
    }

    /// Takes note of a failure, after which everything is given up that is not committed: so many events.
    /// `committed` is how many events were committed since the start.
    pub(super) fn failed(
        &mut self,
        end: TransactionEnd,
        events: usize,
        committed: u64,
        now: Instant,
    ) -> Next {
        let alone = self.alone.take();
        let progress = self.failures.failed(committed);
        self.identities.clear();
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

    /// Everything under way is given up for a reason that has nothing to do with an event.
    pub(super) fn give_up(&mut self) {
        self.alone = None;
        self.identities.clear();
    }

    /// What is under way does not end, so an event that is to be tried alone waits. Nothing says that one of the next ones
    /// would fail.
    pub(super) fn wait(&mut self, at: EventPartition, offset: Offset, now: Instant) {
        self.one_by_one = 0;
        self.alone = None;
        self.hold(at, offset, false, now);
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

    /// Takes over partitions.
    pub(super) fn assigned(&mut self, partitions: impl Iterator<Item = EventPartition>) {
        self.owned.extend(partitions);
    }

    /// Partitions are to be given up: after a failure they are not read again.
    pub(super) fn revoking(&mut self, partitions: &[EventPartition]) {
        for at in partitions {
            self.owned.remove(at);
        }
    }

    /// Forgets partitions.
    pub(super) fn revoked(&mut self, partitions: &[EventPartition]) {
        for at in partitions {
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
