//! Reads what is pending, without joining a group: records from where the groups are to the last stable offset, then the
//! groups' positions again and again, and by [`Progress`] of when that is.
//!
//! Bodies are fetched, since the protocol has no other way, and never copied: a row is made from the key and three
//! headers.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::TopicPartitionList;

use super::figures::{Figures, Partition, Tally, Totals};
use super::index::{Index, Place, Waiting};
use super::progress::{Asked, Progress};
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::client::consumer_config;
use crate::edge::kafka::cluster::{self, ClusterId};
use crate::edge::kafka::credentials::keep_current;
use crate::edge::kafka::error::{Failure, is_denied, is_unreachable};
use crate::edge::kafka::log::{LogContext, LoggedConsumer};
use crate::edge::kafka::log_reader::header_pairs;
use crate::edge::kafka::record::each_header;
use crate::model::command::header;
use crate::model::dead_letter::{Coordinates, Fact};
use crate::model::units::{EpochMs, Offset, Position, format_duration};
use crate::model::window::{Place as WindowPlace, ReadError, Window};

/// How long an answer about positions may take.
const ANSWER: Duration = Duration::from_secs(5);
/// How often the topics are asked for partitions that were added, and all but the commands for records that retention has
/// deleted.
const GROWTH: Duration = Duration::from_secs(5);
/// How long to wait for what is still to be read.
const MORE: Duration = Duration::from_millis(10);
/// Records taken in one turn.
const TURN: usize = 10_000;

/// Small portions, fetched at once when the last one was read. Records are small, a row is made faster than a broker sends,
/// and what a burst of large portions took stays with the allocator.
const FETCHING: [(&str, &str); 3] = [
    ("queued.min.messages", "2000"),
    ("fetch.message.max.bytes", "65536"),
    ("fetch.queue.backoff.ms", "1"),
];

pub(super) type Client = Arc<BaseConsumer<LoggedConsumer>>;

/// What a partition of the commands was seen to do.
struct Seen {
    position: Option<i64>,
    finished: u64,
    moved: Instant,
}

/// Of which partitions of the commands the commit's metadata could not be read, at which position, and why: it is read
/// every second, and told once.
#[derive(Default)]
struct Complaints(BTreeMap<i32, (i64, ReadError)>);

impl Complaints {
    /// Whether `error` was not told yet.
    fn is_news(&mut self, partition: i32, position: i64, error: Option<&ReadError>) -> bool {
        let now = error.map(|error| (position, error.clone()));
        let before = match now.clone() {
            Some(now) => self.0.insert(partition, now),
            None => self.0.remove(&partition),
        };
        now.is_some() && now != before
    }
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
    partitions: BTreeMap<i32, Progress>,
}

impl Source {
    /// Reads a partition from `from` on, or from its first record if that is later.
    fn read_from(
        &mut self,
        index: &mut Index,
        partition: i32,
        from: Option<i64>,
    ) -> Result<(), Failure> {
        let failed = |error| Failure::from_client(format!("reading {}", self.topic), error);
        let before = self.partitions.get(&partition).copied();
        if before.is_some() {
            let mut list = TopicPartitionList::new();
            list.add_partition(&self.topic, partition);
            self.client.incremental_unassign(&list).map_err(failed)?;
            match self.place(partition) {
                Some(place) => index.forget(place),
                None => index.forget_letters(partition, Offset(i64::MAX)),
            }
        }
        let start = from.map_or(rdkafka::Offset::Beginning, rdkafka::Offset::Offset);
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, partition, start)
            .map_err(failed)?;
        self.client.incremental_assign(&list).map_err(failed)?;
        let from = from.unwrap_or(0);
        let progress = before.map_or_else(|| Progress::new(from), |before| before.again(from));
        self.partitions.insert(partition, progress);
        Ok(())
    }

    /// Of a partition's commands; dead letters have none.
    fn place(&self, partition: i32) -> Option<Place> {
        match self.kind {
            Kind::Commands => Some(Place::Commands(partition)),
            Kind::Tier(tier) => Some(Place::Tier(tier, partition)),
            Kind::DeadLetters => None,
        }
    }

    /// Takes what there is, at most [`TURN`] records; whether there was anything. While there is more to come, it waits
    /// for it a little: a client that is asked too seldom stops fetching.
    fn turn(&mut self, index: &mut Index) -> Result<bool, Failure> {
        let more = !self.partitions.values().all(Progress::is_reached);
        let mut patience = if more { MORE } else { Duration::ZERO };
        for count in 0..TURN {
            match self.client.poll(std::mem::take(&mut patience)) {
                None => return Ok(count > 0),
                Some(Ok(message)) => {
                    if let Some(progress) = self.partitions.get_mut(&message.partition()) {
                        progress.record(message.offset());
                    }
                    take(index, self.kind, &message);
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    if let Some(progress) = self.partitions.get_mut(&partition) {
                        progress.end();
                    }
                }
                Some(Err(error)) => tolerate(error)?,
            }
        }
        Ok(true)
    }
}

/// Reads all that is pending into an index.
pub(super) struct Reader {
    sources: Vec<Source>,
    deliver: Client,
    release: Client,
    /// Fetches nothing: the answer of a client that does would wait behind its fetches.
    idle: Client,
    cluster: ClusterId,
    /// The tiers' delays, as they are written.
    tiers: Vec<String>,
    index: Index,
    windows: BTreeMap<i32, Window>,
    seen: BTreeMap<i32, Seen>,
    complaints: Complaints,
    grown: Instant,
    /// When the ends were last asked for.
    asked: Option<EpochMs>,
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
                partitions: BTreeMap::new(),
            });
        }
        let idle = client(settings, &group("lag"), "read_committed")?;
        let Some(cluster) = cluster::ask(idle.client(), ANSWER) else {
            let error = KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut);
            return Err(Failure::from_client("asking for the cluster's id", error));
        };
        let mut reader = Self {
            sources,
            // Else a position would have to wait for a transaction that is about to move it.
            deliver: client(settings, &group("deliver"), "read_uncommitted")?,
            release: client(settings, &group("release"), "read_uncommitted")?,
            idle,
            cluster,
            tiers: settings
                .tiers
                .delays()
                .iter()
                .map(|&delay| format_duration(delay))
                .collect(),
            index: Index::default(),
            windows: BTreeMap::new(),
            seen: BTreeMap::new(),
            complaints: Complaints::default(),
            grown: clock::instant(),
            asked: None,
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
            let metadata = self
                .idle
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
                .filter(|partition| !source.partitions.contains_key(partition));
            fresh.extend(unknown.map(|partition| (number, partition)));
        }
        let committed = self.committed(&fresh)?;
        for at in fresh {
            let from = committed.get(&at).map(|(position, _)| *position);
            self.sources[at.0].read_from(&mut self.index, at.1, from)?;
        }
        Ok(())
    }

    /// What the groups have committed for these partitions of sources: position and metadata.
    fn committed(&self, of: &[At]) -> Result<Committed, Failure> {
        let failed = |error| Failure::from_client("reading committed offsets", error);
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
            let answer = client.committed_offsets(asked, ANSWER).map_err(failed)?;
            for &&(source, partition) in &mine {
                let element = answer.find_partition(&self.sources[source].topic, partition);
                let Some(element) = element else {
                    continue;
                };
                // Not the same as no position, after which everything would be read again.
                element.error().map_err(failed)?;
                if let rdkafka::Offset::Offset(position) = element.offset() {
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

    /// All partitions that are read.
    fn partitions(&self) -> Vec<At> {
        let each = self.sources.iter().enumerate();
        let each = each.flat_map(|(number, source)| {
            let partitions = source.partitions.keys();
            partitions.map(move |&partition| (number, partition))
        });
        each.collect()
    }

    /// The offset of each partition's first record, or of its end as `client` sees it; of the partitions that are `wanted`.
    fn offsets(
        &self,
        client: &Client,
        of: rdkafka::Offset,
        wanted: impl Fn(&At) -> bool,
    ) -> Result<Vec<(At, i64)>, Failure> {
        let failed = |error| Failure::from_client("reading where the topics end", error);
        let mut all = self.partitions();
        all.retain(wanted);
        if all.is_empty() {
            return Ok(Vec::new());
        }
        let mut asked = TopicPartitionList::new();
        for &(source, partition) in &all {
            let topic = &self.sources[source].topic;
            asked
                .add_partition_offset(topic, partition, of)
                .map_err(failed)?;
        }
        // By time, in which the first and the last are special: one request to each broker, not one for each partition.
        let answer = client.offsets_for_times(asked, ANSWER).map_err(failed)?;
        let mut found = Vec::with_capacity(all.len());
        for (source, partition) in all {
            let element = answer.find_partition(&self.sources[source].topic, partition);
            if let Some(element) = element {
                element.error().map_err(failed)?;
                if let rdkafka::Offset::Offset(offset) = element.offset() {
                    found.push(((source, partition), offset));
                }
            }
        }
        Ok(found)
    }

    /// Asks for ends and positions, drops what is done, and learns of when the figures are. To be called once a second
    /// or so; until it succeeds again, figures stay those of before.
    ///
    /// # Errors
    /// [`Failure`] for what waiting does not mend.
    pub(super) fn tick(&mut self) -> Result<(), Failure> {
        // Serves their log and error events, which would pile up otherwise.
        for client in [&self.deliver, &self.release, &self.idle] {
            while client.poll(Duration::ZERO).is_some() {}
        }
        let is_time = clock::instant() - self.grown >= GROWTH;
        if is_time {
            self.grow()?;
        }
        self.forget_deleted(is_time)?;
        let now = clock::now();
        let ends = self.offsets(&self.idle, rdkafka::Offset::End, |_| true)?;
        let mut reached = ends.len() == self.partitions().len();
        for ((number, partition), end) in ends {
            let source = &mut self.sources[number];
            let progress = source.partitions.get_mut(&partition);
            let asked = progress.map_or(Asked::Behind, |progress| progress.ask(end));
            reached &= asked == Asked::Reached;
            if asked == Asked::MadeAnew {
                tracing::warn!(
                    topic = source.topic,
                    partition,
                    "the partition ends earlier than it did: it is read again"
                );
                self.read_again((number, partition), None)?;
            }
        }
        let mut as_of = if reached { self.asked } else { self.as_of };
        self.asked = Some(now);
        if self.is_reached() {
            as_of = self.asked;
        }
        let any_again = self.positions()?;
        // What was dropped to be read again is missing until then.
        if !any_again {
            self.as_of = as_of;
        }
        Ok(())
    }

    /// Drops all of a partition, and reads it from `from` on.
    fn read_again(&mut self, (number, partition): At, from: Option<i64>) -> Result<(), Failure> {
        let source = &mut self.sources[number];
        source.read_from(&mut self.index, partition, from)?;
        if source.kind == Kind::Commands {
            self.forget_window(partition);
        }
        Ok(())
    }

    /// What was known of a partition of the commands tells of other records, or is not known any more.
    fn forget_window(&mut self, partition: i32) {
        self.windows.remove(&partition);
        self.seen.remove(&partition);
    }

    /// Whether all ends that were asked for last were reached.
    fn is_reached(&self) -> bool {
        let mut all = self
            .sources
            .iter()
            .flat_map(|source| source.partitions.values());
        all.all(Progress::is_reached)
    }

    /// Of when the figures are: what was visible then is in, and what has ended since is out.
    #[must_use]
    pub(super) fn as_of(&self) -> Option<EpochMs> {
        self.as_of
    }

    /// The tiers' delays, as they are written.
    #[must_use]
    pub(super) fn tiers(&self) -> &[String] {
        &self.tiers
    }

    /// What retention, or an operator, has deleted is not pending. The commands are looked at each time, before the
    /// positions are read: a group that steps over what is gone has not finished it.
    fn forget_deleted(&mut self, all: bool) -> Result<(), Failure> {
        let of = |at: &At| all || self.sources[at.0].kind == Kind::Commands;
        let starts = self.offsets(&self.idle, rdkafka::Offset::Beginning, of)?;
        for ((number, partition), start) in starts {
            let Some(place) = self.sources[number].place(partition) else {
                self.index.forget_letters(partition, Offset(start));
                continue;
            };
            let window = self.windows.get(&partition);
            self.index.delete(place, Offset(start), |offset| {
                window.is_some_and(|window| window.is_finished(offset))
            });
        }
        Ok(())
    }

    /// Of which partitions the group has committed a position behind their end: they were cut, or an operator has set it,
    /// and the group will begin with the first record that there is.
    fn cut(&self, committed: &Committed) -> Result<Vec<At>, Failure> {
        let position = |at: &At| committed.get(at).map_or(0, |(position, _)| *position);
        // Most often the group has only moved on since the ends were asked for; so they are asked for again. And where
        // nobody who reads what is committed comes to, since a transaction is open, the broker still knows the position.
        let may_be = |at: &At| {
            let end = self.sources[at.0].partitions.get(&at.1);
            end.is_some_and(|progress| progress.is_before(position(at)))
        };
        let ends = self.offsets(&self.deliver, rdkafka::Offset::End, may_be)?;
        let cut = ends.into_iter().filter(|(at, end)| *end < position(at));
        Ok(cut.map(|(at, _)| at).collect())
    }

    /// Reads the groups' positions, and drops what is done; whether any partition is read again.
    fn positions(&mut self) -> Result<bool, Failure> {
        let mut any_again = false;
        let now = clock::instant();
        let all = self.partitions();
        let mut found = self.committed(&all)?;
        for at in self.cut(&found)? {
            found.remove(&at);
        }
        for (number, partition) in all {
            let source = &mut self.sources[number];
            let Some(place) = source.place(partition) else {
                continue;
            };
            let Some(progress) = source.partitions.get_mut(&partition) else {
                continue;
            };
            let committed = found.remove(&(number, partition));
            let position = committed.as_ref().map(|(position, _)| *position);
            if position.unwrap_or(0) < progress.floor {
                // An operator has moved the group back, or its positions have expired: what lies before was dropped.
                self.read_again((number, partition), position)?;
                any_again = true;
                continue;
            }
            let Some((position, metadata)) = committed else {
                if source.kind == Kind::Commands {
                    self.forget_window(partition);
                }
                continue;
            };
            progress.floor = position;
            self.index.trim(place, Position(position));
            if matches!(place, Place::Commands(_)) {
                let at = WindowPlace::new(self.cluster.as_str(), &source.topic, partition);
                let (window, error) = Window::restore(Position(position), &metadata, at);
                let is_news = self.complaints.is_news(partition, position, error.as_ref());
                if let Some(error) = error.filter(|_| is_news) {
                    tracing::warn!(topic = source.topic, partition, "{error}");
                }
                self.observe(partition, &window, now);
                self.windows.insert(partition, window);
            }
        }
        Ok(any_again)
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
        let at = self.as_of.unwrap_or_else(clock::now);
        let at = u32::try_from(at.seconds()).unwrap_or(u32::MAX);
        let tally = Tally::of(&self.index, &self.windows);
        let subscribers = tally.told(&self.tiers, at);
        let figures = Figures {
            as_of: self.as_of.map(EpochMs::rfc3339),
            as_of_seconds: self.as_of.map_or(0.0, |at| at.0 as f64 / 1000.0),
            behind: self
                .sources
                .iter()
                .flat_map(|source| source.partitions.values())
                .map(Progress::behind)
                .sum(),
            total: Totals::of(&subscribers),
            subscribers,
            partitions: self.map(&tally.partitions),
        };
        let sums = tally
            .subscribers
            .into_iter()
            .map(|(name, (sum, _))| (name, sum));
        (sums.collect(), figures)
    }

    /// The partitions of the commands, as they are told.
    fn map(&mut self, pending: &BTreeMap<i32, u64>) -> Vec<Partition> {
        let now = clock::instant();
        let commands = self
            .sources
            .iter()
            .find(|source| source.kind == Kind::Commands);
        let numbers: Vec<i32> = commands
            .map(|source| source.partitions.keys().copied().collect())
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
            index.dead_lettered(&letter, entry);
        }
        Ok(Fact::Settled(settled)) => index.settled(&settled, at),
        Err(error) => tracing::warn!("the record {at} of the dead letters is no fact: {error}"),
    }
}

fn tolerate(error: KafkaError) -> Result<(), Failure> {
    let is_fatal = is_denied(&error)
        || matches!(error, KafkaError::MessageConsumptionFatal(_))
        || error.rdkafka_error_code() == Some(RDKafkaErrorCode::UnknownTopicOrPartition);
    if is_fatal {
        return Err(Failure::from_client("reading what is pending", error));
    }
    if !is_unreachable(&error) {
        tracing::warn!("reading what is pending: {error}");
    }
    Ok(())
}

/// A reader that joins no group.
///
/// # Errors
/// [`Failure`] when the client cannot be made, which is a matter of settings.
pub(super) fn client(settings: &Settings, group: &str, isolation: &str) -> Result<Client, Failure> {
    let mut config = consumer_config(settings, "lag", group);
    for (key, value) in FETCHING {
        if !settings.properties.iter().any(|(known, _)| known == key) {
            config.set(key, value);
        }
    }
    config
        .set("isolation.level", isolation)
        .set("enable.partition.eof", "true");
    let client: BaseConsumer<LoggedConsumer> = config
        .create_with_context(LoggedConsumer(LogContext::new("lag")))
        .map_err(|error| Failure::from_client("creating a reader", error))?;
    let client = Arc::new(client);
    keep_current(&settings.credentials, &client, |client| client.client());
    Ok(client)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMANDS: &str = "webhook-commands";

    /// A reader of one partition of the commands, whose clients have no broker.
    fn reader() -> Reader {
        let client = || -> Client {
            let mut config = rdkafka::ClientConfig::new();
            config.set("bootstrap.servers", "127.0.0.1:1");
            config.set("group.id", "hookstream-lag");
            let context = LoggedConsumer(LogContext::new("lag"));
            Arc::new(config.create_with_context(context).unwrap())
        };
        let mut source = Source {
            topic: COMMANDS.to_owned(),
            kind: Kind::Commands,
            client: client(),
            partitions: BTreeMap::new(),
        };
        let mut index = Index::default();
        source.read_from(&mut index, 0, Some(5)).unwrap();
        let entry = index.entry("acme", "orders");
        for offset in 5..9 {
            let enqueued = EpochMs(60_000);
            index.add(Place::Commands(0), Offset(offset), entry, enqueued, None);
            source.partitions.get_mut(&0).unwrap().record(offset);
        }
        source.partitions.get_mut(&0).unwrap().ask(9);
        Reader {
            sources: vec![source],
            deliver: client(),
            release: client(),
            idle: client(),
            cluster: ClusterId::new("cluster-a"),
            tiers: Vec::new(),
            index,
            windows: BTreeMap::new(),
            seen: BTreeMap::new(),
            complaints: Complaints::default(),
            grown: clock::instant(),
            asked: None,
            as_of: None,
        }
    }

    #[test]
    fn what_is_read_again_is_behind_and_nothing_of_before_is_taken_for_its_state() {
        let mut reader = reader();
        let window = Window::new(Position(7));
        reader.observe(0, &window, clock::instant());
        reader.windows.insert(0, window);
        let (_, before) = reader.figures();
        assert_eq!((before.total.ready, before.behind), (2, 0));
        assert!(reader.is_reached());

        reader.read_again((0, 0), Some(3)).unwrap();
        assert!(!reader.is_reached());
        let (_, told) = reader.figures();
        assert_eq!((told.total.ready, told.behind), (0, 6));
        assert_eq!(told.partitions[0].position, None);
        let entry = reader.index.entry("acme", "orders");
        let place = Place::Commands(0);
        reader.index.add(place, Offset(3), entry, EpochMs(0), None);
        let (_, told) = reader.figures();
        assert_eq!(told.total.ready, 1, "the window of before does not count");
        assert!(reader.seen.is_empty());
    }

    #[test]
    fn an_age_is_that_of_the_moment_of_the_figures() {
        let mut reader = reader();
        reader.as_of = Some(EpochMs(100_500));
        let (_, told) = reader.figures();
        assert_eq!(told.subscribers[0].age_seconds, Some(40));
    }

    #[test]
    fn metadata_that_cannot_be_read_is_told_once_for_each_position_and_reason() {
        let mut complaints = Complaints::default();
        let (foreign, stale) = (Some(&ReadError::Foreign), Some(&ReadError::Stale));
        assert!(complaints.is_news(0, 5, foreign));
        assert!(!complaints.is_news(0, 5, foreign));
        assert!(complaints.is_news(1, 5, foreign), "another partition");
        assert!(complaints.is_news(0, 5, stale));
        assert!(complaints.is_news(0, 6, stale));
        assert!(!complaints.is_news(0, 7, None));
        assert!(complaints.is_news(0, 6, stale), "it was well meanwhile");
    }
}
