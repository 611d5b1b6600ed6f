//! Reads what is pending, without joining a group: records from where the groups are to the last stable offset, then the
//! groups' positions again and again.
//!
//! Bodies are fetched, since the protocol has no other way, and never copied: a row is made from the key and three
//! headers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::TopicPartitionList;

use super::figures::{Figures, Partition, Tally, Totals};
use super::index::{Index, Place, Waiting};
use crate::admin::log::header_pairs;
use crate::clock;
use crate::command::header;
use crate::config::Settings;
use crate::dead_letter::{Coordinates, Fact};
use crate::delivery::window::Window;
use crate::kafka::{self, Failure, LogContext, LoggedConsumer, each_header};
use crate::units::{EpochMs, Offset, Position};

/// How long an answer about positions may take.
const ANSWER: Duration = Duration::from_secs(5);
/// How often the topics are asked for partitions that were added.
const GROWTH: Duration = Duration::from_secs(30);
/// Records taken in one turn.
const TURN: usize = 10_000;

type Client = BaseConsumer<LoggedConsumer>;

/// What a partition of the commands was seen to do.
struct Seen {
    position: Option<i64>,
    finished: u64,
    moved: Instant,
}

/// What a topic's records are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Commands,
    Tier(usize),
    DeadLetters,
}

/// A source by its number, and one of its partitions.
type At = (usize, i32);

/// What groups have committed: position and metadata.
type Committed = HashMap<At, (i64, String)>;

/// One topic and its reader: the client tells the end of a partition by its number alone, so each has a client.
struct Source {
    topic: String,
    kind: Kind,
    client: Client,
    /// Where reading of each partition began.
    began: BTreeMap<i32, i64>,
    /// Partitions that were not read to their end since their last record.
    behind: HashSet<i32>,
}

impl Source {
    /// Reads a partition from `from` on, or from its first record if that is later.
    fn read_from(&mut self, partition: i32, from: Option<i64>) -> Result<(), Failure> {
        let failed = |error| Failure::from_client(format!("reading {}", self.topic), error);
        if self.began.contains_key(&partition) {
            let mut list = TopicPartitionList::new();
            list.add_partition(&self.topic, partition);
            self.client.incremental_unassign(&list).map_err(failed)?;
        }
        let start = from.map_or(rdkafka::Offset::Beginning, rdkafka::Offset::Offset);
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, partition, start)
            .map_err(failed)?;
        self.client.incremental_assign(&list).map_err(failed)?;
        self.behind.insert(partition);
        self.began.insert(partition, from.unwrap_or(0));
        Ok(())
    }

    /// Takes what there is, at most [`TURN`] records; whether there was anything.
    fn turn(&mut self, index: &mut Index) -> Result<bool, Failure> {
        for count in 0..TURN {
            match self.client.poll(Duration::ZERO) {
                None => return Ok(count > 0),
                Some(Ok(message)) => {
                    self.behind.insert(message.partition());
                    take(index, self.kind, &message);
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    self.behind.remove(&partition);
                }
                Some(Err(error)) => tolerate(error)?,
            }
        }
        Ok(true)
    }

    /// How many offsets lie behind what was read, near enough. `idle` is a client that fetches nothing: the answer of
    /// one that does would wait behind its fetches.
    fn rest(&self, idle: &Client) -> u64 {
        let positions = self.client.position().unwrap_or_default();
        let each = self.behind.iter().filter_map(|&partition| {
            let (_, high) = idle.fetch_watermarks(&self.topic, partition, ANSWER).ok()?;
            let read = positions
                .find_partition(&self.topic, partition)
                .and_then(|element| element.offset().to_raw())
                .filter(|&offset| offset >= 0);
            let position = read.or_else(|| self.began.get(&partition).copied())?;
            u64::try_from(high - position).ok()
        });
        each.sum()
    }
}

/// Reads all that is pending into an index.
pub(super) struct Reader {
    sources: Vec<Source>,
    deliver: Client,
    release: Client,
    index: Index,
    windows: BTreeMap<i32, Window>,
    seen: BTreeMap<i32, Seen>,
    grown: Instant,
    as_of: Option<EpochMs>,
}

impl Reader {
    /// A reader of all own topics.
    ///
    /// # Errors
    /// [`Failure`] when a client cannot be made, or a topic is missing or denied.
    pub(super) fn new(settings: &Settings) -> Result<Self, Failure> {
        let group = |name: &str| format!("{}{name}", settings.group_prefix);
        let mut topics = vec![(settings.topics.commands(), Kind::Commands)];
        for (tier, &delay) in settings.tiers.delays().iter().enumerate() {
            topics.push((settings.topics.retry(delay), Kind::Tier(tier)));
        }
        topics.push((settings.topics.dead_letters(), Kind::DeadLetters));
        let mut sources = Vec::with_capacity(topics.len());
        for (topic, kind) in topics {
            sources.push(Source {
                topic,
                kind,
                client: client(settings, &group("lag"), "read_committed")?,
                began: BTreeMap::new(),
                behind: HashSet::new(),
            });
        }
        let mut reader = Self {
            sources,
            // Else a position would have to wait for a transaction that is about to move it.
            deliver: client(settings, &group("deliver"), "read_uncommitted")?,
            release: client(settings, &group("release"), "read_uncommitted")?,
            index: Index::default(),
            windows: BTreeMap::new(),
            seen: BTreeMap::new(),
            grown: clock::instant(),
            as_of: None,
        };
        reader.grow()?;
        Ok(reader)
    }

    /// Takes partitions that are not taken yet.
    fn grow(&mut self) -> Result<(), Failure> {
        self.grown = clock::instant();
        let mut fresh: Vec<At> = Vec::new();
        for (number, source) in self.sources.iter().enumerate() {
            let metadata = source
                .client
                .fetch_metadata(Some(&source.topic), ANSWER)
                .map_err(|error| Failure::from_client("reading the topics", error))?;
            let found = metadata
                .topics()
                .iter()
                .flat_map(|topic| topic.partitions());
            let numbers: Vec<i32> = found.map(|partition| partition.id()).collect();
            if numbers.is_empty() {
                return Err(Failure::TopicMissing(source.topic.clone()));
            }
            let unknown = numbers
                .into_iter()
                .filter(|partition| !source.began.contains_key(partition));
            fresh.extend(unknown.map(|partition| (number, partition)));
        }
        let committed = self.committed(&fresh)?;
        for at in fresh {
            let from = committed.get(&at).map(|(position, _)| *position);
            self.sources[at.0].read_from(at.1, from)?;
        }
        Ok(())
    }

    /// What the groups have committed for these partitions of sources: position and metadata.
    fn committed(&self, of: &[At]) -> Result<Committed, Failure> {
        let mut found = HashMap::new();
        for (client, is_deliver) in [(&self.deliver, true), (&self.release, false)] {
            let mut asked = TopicPartitionList::new();
            let mine: Vec<_> = of
                .iter()
                .filter(|(source, _)| match self.sources[*source].kind {
                    Kind::Commands => is_deliver,
                    Kind::Tier(_) => !is_deliver,
                    Kind::DeadLetters => false,
                })
                .collect();
            for (source, partition) in &mine {
                asked.add_partition(&self.sources[*source].topic, *partition);
            }
            if mine.is_empty() {
                continue;
            }
            let answer = client
                .committed_offsets(asked, ANSWER)
                .map_err(|error| Failure::from_client("reading committed offsets", error))?;
            for &&(source, partition) in &mine {
                let element = answer.find_partition(&self.sources[source].topic, partition);
                if let Some(element) = element
                    && let rdkafka::Offset::Offset(position) = element.offset()
                {
                    let told = (position, element.metadata().to_owned());
                    found.insert((source, partition), told);
                }
            }
        }
        Ok(found)
    }

    /// Reads what there is; whether there was anything.
    ///
    /// # Errors
    /// [`Failure`] for what waiting does not mend.
    pub(super) fn turn(&mut self) -> Result<bool, Failure> {
        let mut any = false;
        for source in &mut self.sources {
            any |= source.turn(&mut self.index)?;
        }
        Ok(any)
    }

    /// Whether everything was read to its end.
    #[must_use]
    pub(super) fn is_caught_up(&self) -> bool {
        self.sources.iter().all(|source| source.behind.is_empty())
    }

    /// Reads the groups' positions, and drops what is done. To be called once a second or so.
    ///
    /// # Errors
    /// [`Failure`] for what waiting does not mend.
    pub(super) fn positions(&mut self) -> Result<(), Failure> {
        if clock::instant() - self.grown >= GROWTH {
            self.grow()?;
        }
        let now = clock::instant();
        let caught_up = self.is_caught_up();
        let of_source = |(number, source): (usize, &Source)| {
            let partitions: Vec<i32> = source.began.keys().copied().collect();
            partitions
                .into_iter()
                .map(move |partition| (number, partition))
        };
        let all: Vec<_> = self
            .sources
            .iter()
            .enumerate()
            .flat_map(of_source)
            .collect();
        for ((number, partition), (position, metadata)) in self.committed(&all)? {
            let source = &mut self.sources[number];
            if position < source.began.get(&partition).copied().unwrap_or(0) {
                // An operator has moved the group back: what lies before was never read.
                source.read_from(partition, Some(position))?;
                continue;
            }
            match source.kind {
                Kind::Commands => {
                    let (window, error) =
                        Window::restore(Position(position), &metadata, &source.topic, partition);
                    if let Some(error) = error {
                        tracing::warn!(topic = source.topic, partition, "{error}");
                    }
                    self.index
                        .trim(Place::Commands(partition), Position(position));
                    self.observe(partition, &window, now);
                    self.windows.insert(partition, window);
                }
                Kind::Tier(tier) => {
                    self.index
                        .trim(Place::Tier(tier, partition), Position(position));
                }
                Kind::DeadLetters => {}
            }
        }
        if caught_up {
            self.as_of = Some(clock::now());
        }
        Ok(())
    }

    fn observe(&mut self, partition: i32, window: &Window, now: Instant) {
        let position = Some(window.position().0);
        let finished = window.span() - window.unfinished() as u64;
        let seen = self.seen.entry(partition).or_insert(Seen {
            position,
            finished,
            moved: now,
        });
        if (seen.position, seen.finished) != (position, finished) {
            *seen = Seen {
                position,
                finished,
                moved: now,
            };
        }
    }

    /// What is pending by subscriber, for metrics, and all in the form in which it is told.
    #[must_use]
    pub(super) fn figures(&mut self) -> (BTreeMap<Box<str>, Waiting>, Figures) {
        let now = clock::now();
        let seconds = u32::try_from(now.seconds()).unwrap_or(u32::MAX);
        let tally = Tally::of(&self.index, &self.windows);
        let subscribers = tally.told(seconds);
        let mut total = Totals::default();
        for one in &subscribers {
            total.ready += one.ready;
            total.waiting += one.waiting;
            total.dead_letters += one.dead();
        }
        let figures = Figures {
            as_of: self.as_of.map(crate::cli::print::time),
            as_of_seconds: self.as_of.map_or(0.0, |at| at.0 as f64 / 1000.0),
            behind: self
                .sources
                .iter()
                .map(|source| source.rest(&self.deliver))
                .sum(),
            total,
            subscribers,
            partitions: self.partitions(),
        };
        let sums = tally
            .subscribers
            .into_iter()
            .map(|(name, (sum, _))| (name, sum));
        (sums.collect(), figures)
    }

    fn partitions(&mut self) -> Vec<Partition> {
        let now = clock::instant();
        let pending = self
            .index
            .pending_by_partition(&|partition, offset| is_done(&self.windows, partition, offset));
        let commands = self
            .sources
            .iter()
            .find(|source| source.kind == Kind::Commands);
        let numbers: Vec<i32> = commands
            .map(|source| source.began.keys().copied().collect())
            .unwrap_or_default();
        let seen = &mut self.seen;
        let windows = &self.windows;
        let each = numbers.into_iter().map(|partition| {
            let pending = pending.get(&partition).copied().unwrap_or(0);
            let window = windows.get(&partition);
            let seen = seen.get_mut(&partition);
            let stalled = seen.map_or(0, |seen| {
                // Nothing to do is no stall.
                if pending == 0 {
                    seen.moved = now;
                }
                (now - seen.moved).as_secs()
            });
            Partition {
                partition,
                position: window.map(|window| window.position().0),
                window: window.map_or(0, Window::span),
                unfinished: window.map_or(0, Window::unfinished),
                pending,
                stalled_seconds: stalled,
            }
        });
        each.collect()
    }
}

/// Whether an offset of the commands is finished.
pub(super) fn is_done(windows: &BTreeMap<i32, Window>, partition: i32, offset: Offset) -> bool {
    let window = windows.get(&partition);
    window.is_some_and(|window| offset.0 < window.position().0 || window.is_finished(offset))
}

fn take(index: &mut Index, kind: Kind, message: &BorrowedMessage<'_>) {
    let place = match kind {
        Kind::Commands => Place::Commands(message.partition()),
        Kind::Tier(tier) => Place::Tier(tier, message.partition()),
        Kind::DeadLetters => return take_fact(index, message),
    };
    // What is no command is moved to the invalid events by the role that meets it; until then it is nobody's.
    let subscriber = message.key().and_then(|key| std::str::from_utf8(key).ok());
    let mut subscription = None;
    let mut enqueued = None;
    let mut due = None;
    for (name, value) in each_header(message) {
        let text = || value.and_then(|bytes| std::str::from_utf8(bytes).ok());
        match name {
            header::SUBSCRIPTION => subscription = text(),
            header::ENQUEUED => enqueued = text().and_then(|text| text.parse().ok()),
            header::DUE => due = text().and_then(|text| text.parse().ok()),
            _ => {}
        }
    }
    if let (Some(subscriber), Some(subscription), Some(enqueued)) =
        (subscriber, subscription, enqueued)
    {
        let entry = index.entry(subscriber, subscription);
        let offset = Offset(message.offset());
        index.add(place, offset, entry, EpochMs(enqueued), due.map(EpochMs));
    }
}

fn take_fact(index: &mut Index, message: &BorrowedMessage<'_>) {
    let at = Coordinates {
        partition: message.partition(),
        offset: Offset(message.offset()),
    };
    match Fact::decode(at, message.key(), &header_pairs(message)) {
        Ok(Fact::DeadLettered(letter)) => {
            let entry = index.entry(&letter.subscriber, &letter.subscription);
            index.dead_lettered(at, entry, letter.info.reason);
        }
        Ok(Fact::Settled(settled)) => index.settled(&settled),
        Err(error) => tracing::warn!("the record {at} of the dead letters is no fact: {error}"),
    }
}

fn tolerate(error: KafkaError) -> Result<(), Failure> {
    let is_fatal = kafka::is_denied(&error)
        || matches!(error, KafkaError::MessageConsumptionFatal(_))
        || error.rdkafka_error_code() == Some(RDKafkaErrorCode::UnknownTopicOrPartition);
    if is_fatal {
        return Err(Failure::from_client("reading what is pending", error));
    }
    if !kafka::is_unreachable(&error) {
        tracing::warn!("reading what is pending: {error}");
    }
    Ok(())
}

fn client(settings: &Settings, group: &str, isolation: &str) -> Result<Client, Failure> {
    let mut config = kafka::consumer_config(settings, "lag", group);
    config
        .set("isolation.level", isolation)
        .set("enable.partition.eof", "true");
    config
        .create_with_context(LoggedConsumer(LogContext::new("lag")))
        .map_err(|error| Failure::from_client("creating a reader", error))
}
