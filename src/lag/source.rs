//! One topic that the lag role reads: its partitions, and the decoding of its records.
//!
//! The protocol cannot fetch records without their bodies, but bodies are never copied: a row is made from the key and
//! three headers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::index::{Index, Place};
use super::port::{Fed, Feed};
use super::progress::Progress;
use super::times::Times;
use crate::edge::clock;
use crate::edge::kafka::record::{each_header, header_pairs};
use crate::edge::port::failure::Failure;
use crate::edge::port::records::RecordView;
use crate::model::command::{Cause, header};
use crate::model::coverage::{Coverage, Kind as Seen};
use crate::model::dead_letter::{Coordinates, Fact, FactError};
use crate::model::source::{self, Mark};
use crate::model::throttle::Throttle;
use crate::model::units::{EpochMs, Offset};

/// How long to poll while records are unread.
const MORE: Duration = Duration::from_millis(10);
/// The causes of the first record of a command.
const ENTERS: [Cause; 2] = [Cause::New, Cause::Replay];
/// Records read in one turn.
const TURN: usize = 10_000;

/// The kind of a topic's records.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Commands,
    Tier(usize),
    DeadLetters,
}

/// One topic.
pub(super) struct Source<F> {
    pub(super) topic: Arc<str>,
    pub(super) kind: Kind,
    pub(super) feed: F,
    pub(super) partitions: BTreeMap<i32, Progress>,
    /// When the records of each partition were written.
    pub(super) times: BTreeMap<i32, Times>,
    /// What is covered of each source in the partitions of the commands topic, as delivery sees it.
    pub(super) coverages: BTreeMap<i32, Coverage>,
    pub(super) unreadable: Unreadable,
}

/// Counts records that are ignored because they cannot be read, and logs some of them.
pub(super) struct Unreadable {
    count: u64,
    lines: Throttle,
}

impl Unreadable {
    pub(super) fn new() -> Self {
        Self {
            count: 0,
            lines: Throttle::new(Duration::from_secs(1)),
        }
    }

    fn note(&mut self, message: &impl RecordView, error: &FactError) {
        self.count += 1;
        if let Some(suppressed) = self.lines.pass(clock::instant()) {
            tracing::warn!(
                topic = message.topic(),
                partition = message.partition(),
                offset = message.offset(),
                suppressed,
                "unreadable record ignored: {error}"
            );
        }
    }

    /// How many there were since the last call.
    pub(super) fn take(&mut self) -> u64 {
        std::mem::take(&mut self.count)
    }
}

impl<F: Feed> Source<F> {
    /// Starts or restarts reading a partition at `from`, or at its first record: its end offset, and what was covered
    /// before it.
    pub(super) fn read_from(
        &mut self,
        index: &mut Index,
        partition: i32,
        from: Option<i64>,
        (end, coverage): (i64, Coverage),
    ) -> Result<(), Failure> {
        let before = self.partitions.get(&partition).copied();
        if before.is_some() {
            match self.place(partition) {
                Some(place) => index.forget(place),
                None => index.forget_dead_letters(partition, Offset(i64::MAX)),
            }
        }
        self.feed.read_from(partition, from)?;
        if let Some(place) = self.place(partition) {
            index.begin(place, Offset(end));
        }
        let from = from.unwrap_or(0);
        self.times.remove(&partition);
        let progress = before.map_or_else(|| Progress::new(from), |before| before.again(from));
        self.partitions.insert(partition, progress);
        if self.kind == Kind::Commands {
            self.coverages.insert(partition, coverage);
        }
        Ok(())
    }

    /// About when the oldest record that is not done was written, seconds since the epoch; `None` if all are, and for dead
    /// letters, which may stay open.
    pub(super) fn oldest(&mut self, index: &Index) -> Option<u32> {
        let partitions: Vec<i32> = self.times.keys().copied().collect();
        let each = partitions.into_iter().filter_map(|partition| {
            let first = index.first(self.place(partition)?)?;
            self.times.get_mut(&partition)?.of(first)
        });
        each.min()
    }

    /// The place of the commands of a partition; `None` for dead letters.
    pub(super) fn place(&self, partition: i32) -> Option<Place> {
        match self.kind {
            Kind::Commands => Some(Place::Commands(partition)),
            Kind::Tier(tier) => Some(Place::Tier(tier, partition)),
            Kind::DeadLetters => None,
        }
    }

    /// Reads available records, at most [`TURN`]; returns whether there were any. Polls with a short timeout while records
    /// are unread, since a client that is polled too rarely stops fetching.
    pub(super) async fn turn(&mut self, index: &mut Index) -> Result<bool, Failure> {
        let more = !self.partitions.values().all(Progress::is_reached);
        let mut patience = if more { MORE } else { Duration::ZERO };
        for count in 0..TURN {
            match self.feed.poll(std::mem::take(&mut patience)).await? {
                Fed::Idle => return Ok(count > 0),
                Fed::Record(message) => {
                    if let Some(progress) = self.partitions.get_mut(&message.partition()) {
                        progress.record(message.offset());
                    }
                    if let Some(written) = message.timestamp() {
                        let times = self.times.entry(message.partition()).or_default();
                        times.record(Offset(message.offset()), written);
                    }
                    let coverage = self.coverages.get_mut(&message.partition());
                    if !coverage.is_some_and(|coverage| is_copy(coverage, &message)) {
                        take_record(index, self.kind, &message, &mut self.unreadable);
                    }
                }
                Fed::End(partition) => {
                    if let Some(progress) = self.partitions.get_mut(&partition) {
                        progress.end();
                    }
                }
            }
        }
        Ok(true)
    }
}

/// Whether delivery takes a command for a copy of one before it, which it finishes at once.
fn is_copy(coverage: &mut Coverage, message: &impl RecordView) -> bool {
    let (mut mark, mut is_new) = (None, true);
    for (name, value) in each_header(message) {
        match name {
            source::HEADER => mark = value,
            header::CAUSE => is_new = value == Some(Cause::New.as_str().as_bytes()),
            _ => {}
        }
    }
    let Some(Ok(mark)) = mark.filter(|_| is_new).map(Mark::parse) else {
        return false;
    };
    let offset = Offset(message.offset());
    let answer = coverage.ask(offset, &mark);
    // Nothing is committed from here.
    coverage.pass(offset.next(), std::iter::empty());
    answer.kind == Seen::Copy
}

fn take_record(
    index: &mut Index,
    kind: Kind,
    message: &impl RecordView,
    unreadable: &mut Unreadable,
) {
    let place = match kind {
        Kind::Commands => Place::Commands(message.partition()),
        Kind::Tier(tier) => Place::Tier(tier, message.partition()),
        Kind::DeadLetters => return take_dead_letter_record(index, message, unreadable),
    };
    // A record that is not a command is ignored; the role that reads it moves it to the invalid events.
    let subscriber = message.key().and_then(|key| std::str::from_utf8(key).ok());
    let mut subscription = None;
    let mut enqueued = None;
    let mut due = None;
    let mut enters = false;
    for (name, value) in each_header(message) {
        let text = || value.and_then(|bytes| std::str::from_utf8(bytes).ok());
        match name {
            header::SUBSCRIPTION => subscription = text(),
            header::ENQUEUED => enqueued = text().and_then(|text| text.parse().ok()),
            header::DUE => due = text().and_then(|text| text.parse().ok()),
            header::CAUSE => {
                enters = ENTERS
                    .iter()
                    .any(|cause| value == Some(cause.as_str().as_bytes()))
            }
            _ => {}
        }
    }
    if let (Some(subscriber), Some(subscription), Some(enqueued)) =
        (subscriber, subscription, enqueued)
    {
        let entry = index.entry(subscriber, subscription);
        let offset = Offset(message.offset());
        let (enqueued, due) = (EpochMs(enqueued), due.map(EpochMs));
        index.add(place, offset, entry, enqueued, due, enters);
    }
}

fn take_dead_letter_record(
    index: &mut Index,
    message: &impl RecordView,
    unreadable: &mut Unreadable,
) {
    let at = Coordinates {
        partition: message.partition(),
        offset: Offset(message.offset()),
    };
    match Fact::decode(at, message.key(), &header_pairs(message)) {
        Ok(Fact::DeadLettered(dead_letter)) => {
            let entry = index.entry(&dead_letter.subscriber, &dead_letter.subscription);
            index.dead_lettered(&dead_letter, entry);
        }
        Ok(Fact::Settled(settled)) => index.settled(&settled, at),
        Err(error) => unreadable.note(message, &error),
    }
}
