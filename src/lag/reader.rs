//! Reads the backlog without joining a group: all records from the groups' committed offsets to the last stable offsets,
//! then the committed offsets once a second. [`Progress`] shows which time the result is as of.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::figures::{Backlog, Figures, Partition, Totals};
use super::index::{Index, Place, Waiting};
use super::port::{Bound, Group, Kafka};
use super::progress::{Asked, Progress};
use super::source::{Kind, Source, Unreadable};
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::cluster::ClusterId;
use crate::edge::port::failure::Failure;
use crate::edge::port::records::TopicPartition;
use crate::model::units::{EpochMs, Offset, Position, format_duration};
use crate::model::window::{Place as WindowPlace, ReadError, Restored, Window};

/// How often to look for new partitions, and, except in the commands topic, for records deleted by retention.
const GROWTH: Duration = Duration::from_secs(5);

/// The last change of a partition of the commands topic.
struct Seen {
    position: Option<i64>,
    finished: u64,
    moved: Instant,
}

/// Partitions of the commands topic whose commit metadata is unreadable, with the committed offset and the reason. The
/// metadata is read every second, and each error is logged once.
#[derive(Default)]
struct MetadataErrors(BTreeMap<i32, (i64, ReadError)>);

impl MetadataErrors {
    /// Whether `error` was not logged yet.
    fn is_news(&mut self, partition: i32, position: i64, error: Option<&ReadError>) -> bool {
        let now = error.map(|error| (position, error.clone()));
        let before = match now.clone() {
            Some(now) => self.0.insert(partition, now),
            None => self.0.remove(&partition),
        };
        now.is_some() && now != before
    }
}

/// The number of a source, and a partition of it.
type At = (usize, i32);

/// Committed offsets and metadata.
type Committed = HashMap<At, (i64, String)>;

/// Reads the backlog into an index.
pub struct Reader<K: Kafka> {
    kafka: K,
    sources: Vec<Source<K::Feed>>,
    cluster: ClusterId,
    /// The delays of the tiers, formatted.
    tiers: Vec<String>,
    index: Index,
    windows: BTreeMap<i32, Window>,
    seen: BTreeMap<i32, Seen>,
    metadata_errors: MetadataErrors,
    grown: Instant,
    /// When the end offsets were last queried.
    asked: Option<EpochMs>,
    as_of: Option<EpochMs>,
}

impl<K: Kafka> Reader<K> {
    /// A reader of all commands, tiers and dead letters.
    ///
    /// # Errors
    /// [`Failure`] when a client cannot be created, or a topic is missing or denied.
    pub async fn new(settings: &Settings, kafka: K) -> Result<Self, Failure> {
        let mut topics = vec![(settings.topics.commands(), Kind::Commands)];
        for (tier, &delay) in settings.tiers.delays().iter().enumerate() {
            topics.push((settings.topics.retry(delay), Kind::Tier(tier)));
        }
        topics.push((settings.topics.dead_letters(), Kind::DeadLetters));
        let mut sources = Vec::with_capacity(topics.len());
        for (topic, kind) in topics {
            sources.push(Source {
                feed: kafka.feed(&topic)?,
                topic: Arc::from(topic),
                kind,
                partitions: BTreeMap::new(),
                times: BTreeMap::new(),
                coverages: BTreeMap::new(),
                unreadable: Unreadable::new(),
            });
        }
        let cluster = kafka.cluster().await?;
        let mut reader = Self {
            kafka,
            sources,
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
            metadata_errors: MetadataErrors::default(),
            grown: clock::instant(),
            asked: None,
            as_of: None,
        };
        reader.grow().await?;
        Ok(reader)
    }

    /// Starts reading new partitions.
    async fn grow(&mut self) -> Result<(), Failure> {
        self.grown = clock::instant();
        let mut fresh: Vec<At> = Vec::new();
        for (number, source) in self.sources.iter().enumerate() {
            let numbers = self.kafka.partitions(&source.topic).await?;
            if numbers.is_empty() {
                return Err(Failure::TopicMissing(source.topic.to_string()));
            }
            let unknown = numbers
                .into_iter()
                .filter(|partition| !source.partitions.contains_key(partition));
            fresh.extend(unknown.map(|partition| (number, partition)));
        }
        // First, so that what moves meanwhile is seen where it goes.
        let ends = self.offsets_of(Bound::Stable, fresh.clone()).await?;
        let ends: HashMap<At, i64> = ends.into_iter().collect();
        let committed = self.committed(&fresh).await?;
        for at in fresh {
            let end = ends.get(&at).copied().unwrap_or(0);
            self.start(at, committed.get(&at), end)?;
        }
        Ok(())
    }

    /// Starts or restarts reading a partition, which ends at `end`, from what is committed, or from its first record.
    fn start(
        &mut self,
        (number, partition): At,
        committed: Option<&(i64, String)>,
        end: i64,
    ) -> Result<(), Failure> {
        let source = &mut self.sources[number];
        let from = committed.map(|(position, _)| *position);
        let position = Position(from.unwrap_or(0));
        let place = WindowPlace::new(self.cluster.as_str(), &source.topic, partition);
        let metadata = committed.map_or("", |(_, metadata)| metadata);
        // What is not usable is logged where the window is read.
        let (restored, _) = Restored::read(position, metadata, place);
        source.read_from(&mut self.index, partition, from, (end, restored.coverage))
    }

    fn at(&self, (source, partition): At) -> TopicPartition {
        TopicPartition {
            topic: Arc::clone(&self.sources[source].topic),
            partition,
        }
    }

    /// The committed offsets and metadata of these partitions.
    async fn committed(&self, of: &[At]) -> Result<Committed, Failure> {
        let mut found = HashMap::new();
        for group in [Group::Deliver, Group::Release] {
            let is_its = |at: &At| match self.sources[at.0].kind {
                Kind::Commands => group == Group::Deliver,
                Kind::Tier(_) => group == Group::Release,
                Kind::DeadLetters => false,
            };
            let its: Vec<At> = of.iter().copied().filter(is_its).collect();
            if its.is_empty() {
                continue;
            }
            let asked: Vec<_> = its.iter().map(|&at| self.at(at)).collect();
            let committed = self.kafka.committed(group, &asked).await?;
            let each = its.into_iter().zip(committed);
            found.extend(each.filter_map(|(at, committed)| Some((at, committed?))));
        }
        Ok(found)
    }

    /// Reads available records; returns whether there were any.
    ///
    /// # Errors
    /// [`Failure`] for errors that do not go away by waiting.
    pub async fn turn(&mut self) -> Result<bool, Failure> {
        let mut any = false;
        for source in &mut self.sources {
            any |= source.turn(&mut self.index).await?;
        }
        Ok(any)
    }

    /// Records of the dead-letter topic that could not be read, since the last call.
    pub fn take_unreadable(&mut self) -> u64 {
        let sources = self.sources.iter_mut();
        sources.map(|source| source.unreadable.take()).sum()
    }

    /// All partitions.
    fn partitions(&self) -> Vec<At> {
        let each = self.sources.iter().enumerate();
        let each = each.flat_map(|(number, source)| {
            let partitions = source.partitions.keys();
            partitions.map(move |&partition| (number, partition))
        });
        each.collect()
    }

    /// An end of the partitions that match `wanted`.
    async fn offsets(
        &self,
        which: Bound,
        wanted: impl Fn(&At) -> bool,
    ) -> Result<Vec<(At, i64)>, Failure> {
        let mut all = self.partitions();
        all.retain(wanted);
        self.offsets_of(which, all).await
    }

    /// The same of these partitions.
    async fn offsets_of(&self, which: Bound, all: Vec<At>) -> Result<Vec<(At, i64)>, Failure> {
        let asked: Vec<_> = all.iter().map(|&at| self.at(at)).collect();
        let found = self.kafka.offsets(&asked, which).await?;
        let each = all.into_iter().zip(found);
        Ok(each
            .filter_map(|(at, offset)| Some((at, offset?)))
            .collect())
    }

    /// Queries end offsets and committed offsets, drops finished records, and updates the time of the figures. Call it
    /// about once a second; after a failure the figures keep their previous time.
    ///
    /// # Errors
    /// [`Failure`] for errors that do not go away by waiting.
    pub async fn tick(&mut self) -> Result<(), Failure> {
        self.kafka.serve();
        let is_time = clock::instant() - self.grown >= GROWTH;
        if is_time {
            self.grow().await?;
        }
        self.forget_deleted(is_time).await?;
        let now = clock::now();
        let ends = self.offsets(Bound::Stable, |_| true).await?;
        let mut reached = ends.len() == self.partitions().len();
        for ((number, partition), end) in ends {
            let source = &mut self.sources[number];
            let progress = source.partitions.get_mut(&partition);
            let asked = progress.map_or(Asked::Behind, |progress| progress.ask(end));
            reached &= asked == Asked::Reached;
            if asked == Asked::Recreated {
                tracing::warn!(
                    topic = &*source.topic,
                    partition,
                    "end offset decreased, reading the partition again"
                );
                self.read_again((number, partition), None)?;
            }
        }
        let mut as_of = if reached { self.asked } else { self.as_of };
        self.asked = Some(now);
        if self.is_reached() {
            as_of = self.asked;
        }
        let any_again = self.positions().await?;
        // The records of a partition that is read again are missing until then.
        if !any_again {
            self.as_of = as_of;
        }
        Ok(())
    }

    /// Drops the records of a partition and reads it again from what is committed.
    fn read_again(&mut self, at: At, committed: Option<&(i64, String)>) -> Result<(), Failure> {
        let progress = self.sources[at.0].partitions.get(&at.1);
        let end = progress.map_or(0, Progress::known_end);
        self.start(at, committed, end)?;
        if self.sources[at.0].kind == Kind::Commands {
            self.forget_window(at.1);
        }
        Ok(())
    }

    /// Drops the window of a partition of the commands topic, which is for other records or out of date.
    fn forget_window(&mut self, partition: i32) {
        self.windows.remove(&partition);
        self.seen.remove(&partition);
    }

    /// Whether the end offsets of the last query were all reached.
    fn is_reached(&self) -> bool {
        let mut all = self
            .sources
            .iter()
            .flat_map(|source| source.partitions.values());
        all.all(Progress::is_reached)
    }

    /// The time that the figures are as of.
    #[must_use]
    pub fn as_of(&self) -> Option<EpochMs> {
        self.as_of
    }

    /// The delays of the tiers, formatted.
    #[must_use]
    pub fn tiers(&self) -> &[String] {
        &self.tiers
    }

    /// Drops records that retention or an operator has deleted. Deleted commands are dropped at each tick, before the
    /// committed offsets are read: a group that skips deleted commands has not finished them.
    async fn forget_deleted(&mut self, all: bool) -> Result<(), Failure> {
        let of = |at: &At| all || self.sources[at.0].kind == Kind::Commands;
        let starts = self.offsets(Bound::First, of).await?;
        for ((number, partition), start) in starts {
            let Some(place) = self.sources[number].place(partition) else {
                self.index.forget_dead_letters(partition, Offset(start));
                continue;
            };
            let window = self.windows.get(&partition);
            self.index.delete(place, Offset(start), |offset| {
                window.is_some_and(|window| window.is_finished(offset))
            });
        }
        Ok(())
    }

    /// Partitions whose committed offset is beyond their end: they were truncated, or an operator set the offset, and the
    /// group will restart at the first record.
    async fn cut(&self, committed: &Committed) -> Result<Vec<At>, Failure> {
        let position = |at: &At| committed.get(at).map_or(0, |(position, _)| *position);
        // Usually the group has only advanced since the end offsets were queried; so they are queried again. They are
        // queried as uncommitted: the group may have committed past the last stable offset.
        let may_be = |at: &At| {
            let end = self.sources[at.0].partitions.get(&at.1);
            end.is_some_and(|progress| progress.is_before(position(at)))
        };
        let ends = self.offsets(Bound::High, may_be).await?;
        let cut = ends.into_iter().filter(|(at, end)| *end < position(at));
        Ok(cut.map(|(at, _)| at).collect())
    }

    /// Reads the committed offsets and drops finished records; returns whether any partition is read again.
    async fn positions(&mut self) -> Result<bool, Failure> {
        let mut any_again = false;
        let now = clock::instant();
        let all = self.partitions();
        let mut found = self.committed(&all).await?;
        for at in self.cut(&found).await? {
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
                // An operator moved the group back, or its offsets expired: the records from there were dropped.
                self.read_again((number, partition), committed.as_ref())?;
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
                let is_news = self
                    .metadata_errors
                    .is_news(partition, position, error.as_ref());
                if let Some(error) = error.filter(|_| is_news) {
                    tracing::warn!(topic = &*source.topic, partition, "{error}");
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

    /// By topic of commands: about when its oldest unfinished record was written, seconds since the epoch.
    pub fn oldest(&mut self) -> Vec<(Arc<str>, Option<u32>)> {
        let sources = self.sources.iter_mut();
        let sources = sources.filter(|source| source.kind != Kind::DeadLetters);
        let each = sources.map(|source| (Arc::clone(&source.topic), source.oldest(&self.index)));
        each.collect()
    }

    /// The backlog by subscriber, for metrics, and the complete figures.
    #[must_use]
    pub fn figures(&mut self) -> (BTreeMap<Box<str>, Waiting>, Figures) {
        let at = self.as_of.unwrap_or_else(clock::now);
        let at = u32::try_from(at.seconds()).unwrap_or(u32::MAX);
        let backlog = Backlog::of(&self.index, &self.windows);
        let subscribers = backlog.figures(&self.tiers, at);
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
            partitions: self.partition_figures(&backlog.partitions),
            events: Vec::new(),
        };
        let sums = backlog
            .subscribers
            .into_iter()
            .map(|(name, (sum, _))| (name, sum));
        (sums.collect(), figures)
    }

    /// The figures of the partitions of the commands topic.
    fn partition_figures(&mut self, pending: &BTreeMap<i32, u64>) -> Vec<Partition> {
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
                // An idle partition is not stalled.
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

#[cfg(test)]
mod tests;
