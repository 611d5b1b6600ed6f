//! The smallest outside that the roles run on: topics in memory, groups of one member, transactions that always commit, and
//! endpoints that respond from a list. All in virtual time on one thread.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hookstream::config::Settings;
use hookstream::edge::clock;
use hookstream::edge::http::{Answer, Drained, HttpOptions, HttpSetupError, Reply, Request};
use hookstream::edge::kafka::cluster::ClusterId;
use hookstream::edge::port::failure::{BatchError, ClientError, ErrorKind, Failure, Refused};
use hookstream::edge::port::records::{
    Commit, Committed, Headers, Isolation, Range, RawHeader, Record, RecordView, TopicPartition,
};
use hookstream::edge::port::task::KeepWaiting;
use hookstream::edge::port::{Ends, Http, Log, Member, Polled, Port, Producer, ProducerKind, Task};
use hookstream::model::partitioner::{key_hash, partition};
use hookstream::model::units::{EpochMs, Position};
use tokio::task::{AbortHandle, JoinHandle};

/// Partitions of each topic.
const PARTITIONS: i32 = 2;
/// How often those who wait look again.
const LOOK: Duration = Duration::from_millis(1);
/// How long a response takes.
pub const RESPONSE: Duration = Duration::from_millis(30);
/// How long it takes to replace a producer after an eviction.
pub const RENEWAL: Duration = Duration::from_secs(15);

/// A record in a log.
pub struct Stored {
    topic: Arc<str>,
    partition: i32,
    offset: i64,
    timestamp: EpochMs,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: OwnHeaders,
}

/// A record that was read.
pub struct Seen(Arc<Stored>);

impl RecordView for Seen {
    fn topic(&self) -> &str {
        &self.0.topic
    }

    fn partition(&self) -> i32 {
        self.0.partition
    }

    fn offset(&self) -> i64 {
        self.0.offset
    }

    fn timestamp(&self) -> Option<EpochMs> {
        Some(self.0.timestamp)
    }

    fn key(&self) -> Option<&[u8]> {
        self.0.key.as_deref()
    }

    fn payload(&self) -> Option<&[u8]> {
        self.0.value.as_deref()
    }

    fn headers(&self) -> impl Iterator<Item = RawHeader<'_>> {
        let each = self.0.headers.0.iter();
        each.map(|(name, value)| (name.as_bytes(), value.as_deref()))
    }
}

/// Headers.
#[derive(Default)]
pub struct OwnHeaders(Vec<(String, Option<Vec<u8>>)>);

impl Headers for OwnHeaders {
    fn with_capacity(count: usize) -> Self {
        Self(Vec::with_capacity(count))
    }

    fn and(mut self, name: &str, value: Option<&[u8]>) -> Self {
        self.0.push((name.to_owned(), value.map(<[u8]>::to_vec)));
        self
    }
}

/// A request that an endpoint got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// When.
    pub at: EpochMs,
    /// Its `webhook-id`.
    pub webhook_id: String,
    /// Its `hookstream-attempt`.
    pub attempt: String,
    /// Its body.
    pub body: Vec<u8>,
}

type Positions = BTreeMap<TopicPartition, (Position, String)>;

#[derive(Default)]
struct World {
    logs: BTreeMap<TopicPartition, Vec<Arc<Stored>>>,
    groups: BTreeMap<String, Positions>,
    received: Vec<Received>,
    /// The next responses; 200 when there is none.
    statuses: VecDeque<u16>,
    /// The group that evicts its member with the next transaction that commits positions.
    evicts: Option<String>,
    /// The group that has done so, and when.
    evicted: Option<(String, EpochMs)>,
    seeds: u64,
}

/// The outside.
#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<World>>);

impl Memory {
    /// Endpoints respond with these, one after the other, then with 200.
    pub fn responding(statuses: &[u16]) -> Self {
        let memory = Self::default();
        memory.world().statuses.extend(statuses);
        memory
    }

    /// The next transaction that commits positions of `group` fails, since the group has evicted its member. The client
    /// learns of it after [`RENEWAL`].
    pub fn evict(&self, group: &str) {
        self.world().evicts = Some(group.to_owned());
    }

    /// When the group has evicted its member.
    pub fn evicted(&self) -> Option<EpochMs> {
        self.world().evicted.as_ref().map(|(_, at)| *at)
    }

    fn has_evicted(&self, group: &str) -> Result<(), ClientError> {
        match &self.world().evicted {
            Some((evicted, _)) if evicted == group => {
                Err(ClientError::new(ErrorKind::UnknownMember, "unknown member"))
            }
            _ => Ok(()),
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The requests so far.
    pub fn received(&self) -> Vec<Received> {
        self.world().received.clone()
    }

    /// The committed position of a group in each of its partitions, and where the partition ends.
    pub fn progress(&self, group: &str) -> Vec<(i64, i64)> {
        let world = self.world();
        let positions = world.groups.get(group).into_iter().flatten();
        let end = |at: &TopicPartition| world.logs.get(at).map_or(0, Vec::len);
        positions
            .map(|(at, (position, _))| (position.0, i64::try_from(end(at)).unwrap()))
            .collect()
    }

    /// Appends a record to a partition.
    pub fn append(&self, at: TopicPartition, record: Unwritten) {
        let log = &mut self.world().logs;
        let log = log.entry(at.clone()).or_default();
        log.push(Arc::new(Stored {
            topic: at.topic,
            partition: at.partition,
            offset: i64::try_from(log.len()).unwrap(),
            timestamp: clock::now(),
            key: record.key,
            value: record.value,
            headers: record.headers,
        }));
    }

    fn commit_for(&self, group: &str, commits: &[Commit]) {
        let mut world = self.world();
        let positions = world.groups.entry(group.to_owned()).or_default();
        for commit in commits {
            let committed = (commit.position, commit.metadata.clone());
            positions.insert(commit.at.clone(), committed);
        }
    }

    fn committed_of(&self, group: &str, at: &TopicPartition) -> Committed {
        let world = self.world();
        let found = world.groups.get(group).and_then(|all| all.get(at)).cloned();
        let (position, metadata) = found.unzip();
        Committed {
            at: at.clone(),
            position,
            metadata: metadata.unwrap_or_default(),
        }
    }
}

/// A record that is to be written.
#[derive(Default)]
pub struct Unwritten {
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The value.
    pub value: Option<Vec<u8>>,
    /// The headers.
    pub headers: OwnHeaders,
}

fn partitions_of(topic: &str) -> impl Iterator<Item = TopicPartition> + use<> {
    let topic: Arc<str> = Arc::from(topic);
    (0..PARTITIONS).map(move |partition| TopicPartition {
        topic: Arc::clone(&topic),
        partition,
    })
}

impl Port for Memory {
    type Generation = String;
    type Member = OnlyMember;
    type Headers = OwnHeaders;
    type Producer = Writes;
    type Log = Topic;
    type Ends = NoEnds;
    type Http = Self;
    type Task = Spawned;

    async fn join(
        &self,
        _settings: &Settings,
        _keep_waiting: KeepWaiting,
        _purpose: &'static str,
        group: &str,
        topics: &[&str],
        _extra: &[(&str, &str)],
    ) -> Result<OnlyMember, Failure> {
        Ok(OnlyMember {
            memory: self.clone(),
            group: group.to_owned(),
            topics: topics.iter().map(|&topic| topic.to_owned()).collect(),
            assigned: Cell::new(false),
            reading: RefCell::default(),
            paused: RefCell::default(),
        })
    }

    async fn producer(
        &self,
        _settings: &Settings,
        _keep_waiting: &KeepWaiting,
        _purpose: &'static str,
        _kind: ProducerKind,
    ) -> Result<Writes, Failure> {
        Ok(Writes {
            memory: self.clone(),
            open: Vec::new(),
            acknowledged: RefCell::default(),
        })
    }

    async fn log(
        &self,
        _settings: &Settings,
        topic: String,
        _purpose: &'static str,
    ) -> Result<Topic, Failure> {
        Ok(Topic(self.clone(), topic))
    }

    async fn positions(
        &self,
        _settings: &Settings,
        group: &str,
        _purpose: &'static str,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Option<Position>>, Failure> {
        let each = partitions.iter();
        Ok(each
            .map(|at| self.committed_of(group, at).position)
            .collect())
    }

    fn ends(&self, _settings: &Settings, _purpose: &'static str) -> Result<NoEnds, Failure> {
        Ok(NoEnds)
    }

    async fn wait_for_topics(
        &self,
        _settings: &Settings,
        _purpose: &'static str,
        _topics: &[String],
        _stop: &dyn Fn() -> bool,
        _waiting: &mut dyn FnMut(&str),
    ) -> Result<Option<ClusterId>, Failure> {
        Ok(Some(ClusterId::new("memory")))
    }

    fn outage(&self, _now: Instant) -> Option<Instant> {
        None
    }

    fn http(&self, _options: HttpOptions) -> Result<Self, HttpSetupError> {
        Ok(self.clone())
    }

    fn spawn<F, T>(&self, _name: String, make: F) -> Result<Spawned, Failure>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Future<Output = ()> + 'static,
    {
        Ok(Spawned(tokio::task::spawn_local(make())))
    }

    fn spawn_worker<F, T>(&self, name: String, make: F) -> Result<Spawned, Failure>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Future<Output = ()> + 'static,
    {
        self.spawn(name, make)
    }

    fn spawn_local(&self, task: impl Future<Output = ()> + 'static) -> AbortHandle {
        tokio::task::spawn_local(task).abort_handle()
    }

    async fn sleep(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    async fn within<T>(&self, time: Duration, future: impl Future<Output = T>) -> Option<T> {
        tokio::time::timeout(time, future).await.ok()
    }

    fn seed(&self) -> u64 {
        let mut world = self.world();
        world.seeds += 1;
        world.seeds
    }
}

/// A task on the simulation's thread.
pub struct Spawned(JoinHandle<()>);

impl Task for Spawned {
    async fn join(self) -> bool {
        self.0.await.is_ok()
    }

    fn busy(&self) -> Duration {
        Duration::ZERO
    }
}

/// The only member of a group: everything is assigned to it at once and never revoked, even when it is evicted.
pub struct OnlyMember {
    memory: Memory,
    group: String,
    topics: Vec<String>,
    assigned: Cell<bool>,
    reading: RefCell<BTreeMap<TopicPartition, usize>>,
    paused: RefCell<BTreeSet<TopicPartition>>,
}

impl OnlyMember {
    fn next(&self) -> Option<Seen> {
        let (paused, world) = (self.paused.borrow(), self.memory.world());
        for (at, next) in self.reading.borrow_mut().iter_mut() {
            if paused.contains(at) {
                continue;
            }
            if let Some(record) = world.logs.get(at).and_then(|log| log.get(*next)) {
                *next += 1;
                return Some(Seen(Arc::clone(record)));
            }
        }
        None
    }
}

fn index(position: Option<Position>) -> usize {
    position.map_or(0, |position| usize::try_from(position.0).unwrap())
}

impl Member for OnlyMember {
    type Generation = String;
    type Record<'a> = Seen;

    async fn poll(&self, timeout: Duration) -> Result<Polled<Seen>, Failure> {
        tokio::task::yield_now().await;
        if !self.assigned.replace(true) {
            let all = self.topics.iter().flat_map(|topic| partitions_of(topic));
            let all = all.map(|at| self.memory.committed_of(&self.group, &at));
            return Ok(Polled::Assigned(all.collect()));
        }
        let until = clock::instant() + timeout;
        loop {
            if let Some(record) = self.next() {
                return Ok(Polled::Message(record));
            }
            let rest = until.saturating_duration_since(clock::instant());
            if rest.is_zero() {
                return Ok(Polled::Idle);
            }
            tokio::time::sleep(rest.min(LOOK)).await;
        }
    }

    fn take(&self, partitions: &[Committed]) -> Result<(), Failure> {
        let each = partitions.iter();
        let each = each.map(|found| (found.at.clone(), index(found.position)));
        self.reading.borrow_mut().extend(each);
        Ok(())
    }

    fn take_unread(&self, _partitions: &[TopicPartition]) -> Result<(), Failure> {
        Ok(())
    }

    fn give_up(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        self.stop_reading(partitions)
    }

    fn stop_reading(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        let mut reading = self.reading.borrow_mut();
        reading.retain(|at, _| !partitions.contains(at));
        Ok(())
    }

    fn pause(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        self.paused.borrow_mut().extend(partitions.iter().cloned());
        Ok(())
    }

    fn resume(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        let mut paused = self.paused.borrow_mut();
        paused.retain(|at| !partitions.contains(at));
        Ok(())
    }

    async fn rewind(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        let found = self.committed(partitions).await?;
        self.take(&found)
    }

    async fn committed(&self, partitions: &[TopicPartition]) -> Result<Vec<Committed>, Failure> {
        let each = partitions.iter();
        Ok(each
            .map(|at| self.memory.committed_of(&self.group, at))
            .collect())
    }

    fn passed(&self) -> Result<Vec<(TopicPartition, Position)>, Failure> {
        Ok(Vec::new())
    }

    async fn commit(&self, commits: &[Commit]) -> Result<(), ClientError> {
        self.memory.has_evicted(&self.group)?;
        self.memory.commit_for(&self.group, commits);
        Ok(())
    }

    fn refused_commits(&self) -> Vec<(TopicPartition, ClientError)> {
        Vec::new()
    }

    fn session(&self) -> Duration {
        Duration::from_secs(20)
    }

    fn was_disturbed(&self) -> bool {
        false
    }

    fn generation(&self) -> Option<String> {
        Some(self.group.clone())
    }

    async fn renew_generation(&self, anchor: &[Commit]) -> Result<(), ClientError> {
        self.commit(anchor).await
    }

    async fn leave(self, ended: Result<(), Failure>) -> Result<(), Failure> {
        ended
    }
}

/// A producer whose transactions always commit, unless the member is evicted.
pub struct Writes {
    memory: Memory,
    open: Vec<(TopicPartition, Unwritten)>,
    /// Of a copier, whose records are written at once.
    acknowledged: RefCell<Vec<(usize, u32)>>,
}

impl Writes {
    fn unwritten(record: Record<'_, OwnHeaders>) -> (TopicPartition, Unwritten) {
        let of_key = || partition(key_hash(record.key.unwrap_or_default()), PARTITIONS);
        let at = TopicPartition {
            topic: Arc::from(record.topic),
            partition: record.partition.or_else(of_key).unwrap(),
        };
        let unwritten = Unwritten {
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: record.headers,
        };
        (at, unwritten)
    }
}

impl Producer for Writes {
    type Generation = String;
    type Headers = OwnHeaders;

    async fn send(&mut self, record: Record<'_, OwnHeaders>) -> Result<(), BatchError> {
        self.open.push(Self::unwritten(record));
        Ok(())
    }

    async fn offer<'a>(
        &mut self,
        record: Record<'a, OwnHeaders>,
    ) -> Result<Option<Record<'a, OwnHeaders>>, BatchError> {
        let tag = record.tag;
        let (at, unwritten) = Self::unwritten(record);
        self.memory.append(at, unwritten);
        self.acknowledged.borrow_mut().push((tag, 1));
        Ok(None)
    }

    fn reports(&self) -> Result<Vec<(usize, u32)>, BatchError> {
        Ok(self.acknowledged.take())
    }

    async fn acknowledged(&self) -> Result<(), BatchError> {
        tokio::time::sleep(LOOK).await;
        Ok(())
    }

    async fn acknowledged_within(&self, _time: Duration) -> Option<Vec<Refused>> {
        tokio::time::sleep(LOOK).await;
        Some(Vec::new())
    }

    async fn finish(
        &mut self,
        commits: &[Commit],
        generation: Option<&String>,
    ) -> Result<(), BatchError> {
        tokio::time::sleep(LOOK).await;
        if let Some(group) = generation.filter(|_| !commits.is_empty()) {
            let mut world = self.memory.world();
            if world.evicts.take_if(|evicts| evicts == group).is_some() {
                world.evicted = Some((group.clone(), clock::now()));
            }
            drop(world);
            let evicted = self.memory.has_evicted(group);
            evicted.map_err(BatchError::Aborted)?;
        }
        for (at, unwritten) in self.open.drain(..) {
            self.memory.append(at, unwritten);
        }
        if let Some(group) = generation {
            self.memory.commit_for(group, commits);
        }
        Ok(())
    }

    async fn renew(&mut self) -> Result<(), Failure> {
        self.open.clear();
        tokio::time::sleep(RENEWAL).await;
        Ok(())
    }

    async fn successor(&mut self, _keep_waiting: &KeepWaiting) -> Result<Self, Failure> {
        Ok(Self {
            memory: self.memory.clone(),
            open: Vec::new(),
            acknowledged: RefCell::default(),
        })
    }

    async fn abandon(self) {}

    async fn partitions(&self, _topic: &str) -> Option<i32> {
        Some(PARTITIONS)
    }
}

/// A topic that is read without a group.
pub struct Topic(Memory, String);

impl Topic {
    fn range(&self, at: &TopicPartition) -> Range {
        let world = self.0.world();
        let records = world.logs.get(at).map_or(0, Vec::len);
        Range {
            partition: at.partition,
            low: 0,
            end: i64::try_from(records).unwrap(),
        }
    }
}

impl Log for Topic {
    type Record<'a> = Seen;

    fn topic(&self) -> &str {
        &self.1
    }

    async fn stable_ends(&self) -> Result<Vec<Range>, Failure> {
        Ok(partitions_of(&self.1).map(|at| self.range(&at)).collect())
    }

    async fn high_watermark(
        &self,
        partition: i32,
        _patience: Duration,
        _stop: &dyn Fn() -> bool,
    ) -> Result<(Range, i64), Failure> {
        let mut all = self.stable_ends().await?.into_iter();
        let range = all.find(|range| range.partition == partition).unwrap();
        Ok((range, range.end))
    }

    async fn read(
        &self,
        _isolation: Isolation,
        ranges: &[Range],
        _stop: &dyn Fn() -> bool,
        mut visit: impl FnMut(&Seen),
    ) -> Result<(), Failure> {
        for range in ranges {
            let at = partitions_of(&self.1).find(|at| at.partition == range.partition);
            let records: Vec<_> = {
                let world = self.0.world();
                let log = world.logs.get(&at.unwrap()).into_iter().flatten();
                let within = |one: &&Arc<Stored>| one.offset >= range.low && one.offset < range.end;
                log.filter(within).cloned().collect()
            };
            records.into_iter().for_each(|record| visit(&Seen(record)));
        }
        Ok(())
    }
}

/// Nothing is ever hidden.
pub struct NoEnds;

impl Ends for NoEnds {
    async fn stable(
        &self,
        _of: &[TopicPartition],
    ) -> Result<BTreeMap<TopicPartition, i64>, Failure> {
        Ok(BTreeMap::new())
    }

    async fn high(&self, _of: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, i64>, Failure> {
        Ok(BTreeMap::new())
    }
}

impl Http for Memory {
    type Rest = ();

    async fn post_until_processed(
        &self,
        build: impl Fn() -> Request,
        _deadline: tokio::time::Instant,
    ) -> Reply<()> {
        tokio::time::sleep(RESPONSE).await;
        let request = build();
        let header = |name: &str| {
            let value = request.headers.get(name);
            value.map_or_else(String::new, |value| value.to_str().unwrap().to_owned())
        };
        let mut world = self.world();
        world.received.push(Received {
            at: clock::now(),
            webhook_id: header("webhook-id"),
            attempt: header("hookstream-attempt"),
            body: request.body.to_vec(),
        });
        Reply::Answered(Answer {
            status: world.statuses.pop_front().unwrap_or(200),
            retry_after: None,
            headers: None,
            rest: None,
        })
    }

    async fn exchange(
        &self,
        _method: http::Method,
        request: Request,
        deadline: tokio::time::Instant,
    ) -> Reply<()> {
        self.post_until_processed(|| request.clone(), deadline)
            .await
    }

    async fn drain((): (), _deadline: tokio::time::Instant) -> Drained {
        Drained::Complete
    }

    async fn read_snippet((): (), _deadline: tokio::time::Instant) -> (Vec<u8>, Drained) {
        (Vec::new(), Drained::Complete)
    }
}
