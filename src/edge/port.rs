//! The port between the roles and the outside: Kafka, HTTP, threads, waiting and chance. The clock is [`clock`].
//!
//! The shells of the roles are generic over a [`Port`]. The product's side is [`super::live`]: librdkafka, hyper and
//! threads. The other is in `tests/sim`, on a simulated Kafka: everything in virtual time on one thread. The shells never
//! ask which. `tests/port` has the smallest one, in memory.
//!
//! # Rules
//! - In the product most futures are ready at once: they block their thread inside. So they must not be polled next to
//!   one another on a thread (`select`, `join`), except those of [`Http`] and of tokio's timers and channels, which a
//!   [`Port::spawn_worker`] runs.
//! - A shell blocks a thread, sleeps and starts threads through the port only. Channels are those of `tokio::sync`, which
//!   need no runtime.
//! - Dropping a future of this port before it has ended gives up what it waits for, and leaves the client as it is after
//!   a response that did not arrive.
//!
//! [`clock`]: super::clock

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

use super::http::{Drained, HttpOptions, HttpSetupError, Reply, Request};
use super::kafka::cluster::ClusterId;
use crate::config::Settings;
use failure::{BatchError, ClientError, Failure, Refused};
use gap::Gap;
use records::{Commit, Committed, Headers, Isolation, Range, Record, RecordView, TopicPartition};
use task::KeepWaiting;

use crate::model::units::Position;

pub mod failure;
pub mod gap;
pub mod records;
pub mod task;

/// The outside of one process. Cheap to clone; each role and each of its tasks has a copy.
pub trait Port: Clone + Send + Sync + 'static {
    /// A member's membership at one moment: group, member id and generation. A transaction that commits positions names it.
    type Generation: Clone + Send + 'static;
    /// A member of a group.
    type Member: Member<Generation = Self::Generation>;
    /// The headers of records to write.
    type Headers: Headers;
    /// A producer.
    type Producer: Producer<Generation = Self::Generation, Headers = Self::Headers>;
    /// A topic, read without a group.
    type Log: Log;
    /// The ends of partitions.
    type Ends: Ends;
    /// The client of webhooks.
    type Http: Http;
    /// A started task.
    type Task: Task;

    /// Joins `group` for `topics`. Returns at once: the first assignment comes from [`Member::poll`]. `extra` are
    /// properties of the client that reads for this member; `keep_waiting` is called while the member waits for a broker.
    ///
    /// # Errors
    /// [`Failure`] when the settings do not allow a client to be created.
    fn join(
        &self,
        settings: &Settings,
        keep_waiting: KeepWaiting,
        purpose: &'static str,
        group: &str,
        topics: &[&str],
        extra: &[(&str, &str)],
    ) -> impl Future<Output = Result<Self::Member, Failure>>;

    /// A producer for `purpose`, with transactions unless its kind or the guarantee says otherwise. It waits while no broker is
    /// reachable, and calls `keep_waiting` meanwhile. A predecessor with the same [`ProducerKind::transactional_id`] is
    /// fenced, and its open transaction aborted.
    ///
    /// # Errors
    /// [`Failure`] when the client cannot be created or the coordinator rejects it; of a probe also when its transactions
    /// cannot be started at present.
    fn producer(
        &self,
        settings: &Settings,
        keep_waiting: &KeepWaiting,
        purpose: &'static str,
        kind: ProducerKind,
    ) -> impl Future<Output = Result<Self::Producer, Failure>>;

    /// Opens a topic for reading without a group.
    ///
    /// # Errors
    /// [`Failure`] when no broker responds within 10 s, the topic is missing, or permission is denied.
    fn log(
        &self,
        settings: &Settings,
        topic: String,
        purpose: &'static str,
    ) -> impl Future<Output = Result<Self::Log, Failure>>;

    /// The committed positions of a group that this process need not belong to, in the order of `partitions`. Asked once:
    /// while a transaction holds one, this fails.
    ///
    /// # Errors
    /// [`Failure`] when the coordinator does not respond within 2 s, or refuses.
    fn positions(
        &self,
        settings: &Settings,
        group: &str,
        purpose: &'static str,
        partitions: &[TopicPartition],
    ) -> impl Future<Output = Result<Vec<Option<Position>>, Failure>>;

    /// Clients that ask for the ends of partitions.
    ///
    /// # Errors
    /// [`Failure`] when a client cannot be created.
    fn ends(&self, settings: &Settings, purpose: &'static str) -> Result<Self::Ends, Failure>;

    /// Waits until a broker responds and all `topics` exist, and returns the cluster id; `None` if `stop` returned true.
    /// `waiting` is called after each failed try with the reason.
    ///
    /// # Errors
    /// [`Failure::TopicMissing`] names the first missing topic; [`Failure::Denied`] when the broker denies permission.
    fn wait_for_topics(
        &self,
        settings: &Settings,
        purpose: &'static str,
        topics: &[String],
        stop: &dyn Fn() -> bool,
        waiting: &mut dyn FnMut(&str),
    ) -> impl Future<Output = Result<Option<ClusterId>, Failure>>;

    /// Since when no client of this process reaches any broker; `None` while one does. As of `now`.
    fn outage(&self, now: Instant) -> Option<Instant>;

    /// A client for webhooks, for one [`Port::spawn_worker`].
    ///
    /// # Errors
    /// As the product's client: a trust store that cannot be read, for instance.
    fn http(&self, options: HttpOptions) -> Result<Self::Http, HttpSetupError>;

    /// Starts a task that may block: a thread of its own in the product. `make` runs there, so the future need not be
    /// [`Send`].
    ///
    /// # Errors
    /// [`Failure`] when the thread cannot be started.
    fn spawn<F, T>(&self, name: String, make: F) -> Result<Self::Task, Failure>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Future<Output = ()> + 'static;

    /// Starts a task that never blocks and may use sockets, the timers of tokio, and [`Port::spawn_local`]: in the product
    /// a thread with a runtime of its own.
    ///
    /// # Errors
    /// [`Failure`] when the thread or its runtime cannot be started.
    fn spawn_worker<F, T>(&self, name: String, make: F) -> Result<Self::Task, Failure>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Future<Output = ()> + 'static;

    /// Starts a task beside the worker that calls this; it ends with the worker at the latest.
    fn spawn_local(&self, task: impl Future<Output = ()> + 'static) -> AbortHandle;

    /// Waits for `time`. Not for workers, which use tokio's timers.
    fn sleep(&self, time: Duration) -> impl Future<Output = ()>;

    /// Waits for `future` for at most `time`; `None` when it has not ended by then. Not for workers.
    fn within<T>(
        &self,
        time: Duration,
        future: impl Future<Output = T>,
    ) -> impl Future<Output = Option<T>>;

    /// The seed of a random number generator.
    fn seed(&self) -> u64;
}

/// The purpose of a [`Port::log`] of which short parts are read: it fetches little ahead, since what is left of that is
/// thrown away.
pub const AGAIN: &str = "again";

/// What a producer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProducerKind {
    /// The one of a [`super::writer::Writer`]: a record that is not acknowledged within [`WRITE_DEADLINE`] is refused.
    Writer,
    /// The one of a copier, which writes without transactions whatever the guarantee is, and can repeat all that it writes.
    /// Records are written in order, and wait for their partition without a time limit. After the first error it is
    /// replaced: [`Producer::renew`].
    Copier,
    /// A writer's probe of a partition that refuses records, with an id of its own. Creating it fails, instead of waiting,
    /// while the coordinator cannot end the last transaction of this id.
    Probe(usize),
}

impl ProducerKind {
    /// The id of the transactions of such a producer.
    #[must_use]
    pub fn transactional_id(self, settings: &Settings, purpose: &str) -> String {
        let (prefix, instance) = (&settings.group_prefix, &settings.instance);
        match self {
            // A copier has none.
            Self::Writer | Self::Copier => format!("{prefix}{purpose}-{instance}-0"),
            Self::Probe(slot) => format!("{prefix}{purpose}-{instance}-probe-{slot}"),
        }
    }
}

/// How long a record of a [`super::writer::Writer`] may take to be acknowledged. Shorter than the transaction timeout, so
/// that the record is refused before the coordinator ends its transaction; longer than the election of a leader takes.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(8);

/// The result of one poll of a [`Member`], with records of the type `R`.
pub enum Polled<R> {
    /// A record.
    Message(R),
    /// Partitions were assigned, with these committed offsets; the list may be empty. Respond with [`Member::take`].
    Assigned(Vec<Committed>),
    /// Partitions were revoked, and are not read any more. Respond with [`Member::give_up`] when their work has ended;
    /// the group waits for it, for as long as `max.poll.interval.ms`.
    Revoked {
        /// Which.
        partitions: Vec<TopicPartition>,
        /// The partitions are lost: another member may own them already, so nothing may be committed.
        lost: bool,
    },
    /// The broker had no record at the read position; reading resumed elsewhere.
    Gap(Gap),
    /// Nothing within the time allowed.
    Idle,
}

impl<R> Polled<R> {
    /// The same with what `read` makes of a record, so that the member is free for other calls.
    pub fn map<T>(self, read: impl FnOnce(R) -> T) -> Polled<T> {
        match self {
            Self::Message(record) => Polled::Message(read(record)),
            Self::Assigned(committed) => Polled::Assigned(committed),
            Self::Revoked { partitions, lost } => Polled::Revoked { partitions, lost },
            Self::Gap(gap) => Polled::Gap(gap),
            Self::Idle => Polled::Idle,
        }
    }
}

/// A member of one consumer group, which also reads its partitions. Used by one task.
///
/// Assignments are cooperative: a rebalance revokes only the partitions that leave, and the member reads and commits the
/// others meanwhile. Records are read committed. Metadata of a commit that was not written by this member is returned as
/// it is.
pub trait Member {
    /// The same as that of the port.
    type Generation;
    /// A record.
    type Record<'a>: RecordView
    where
        Self: 'a;

    /// Waits for the next event for at most `timeout`; with a timeout of zero it returns what is there. Must be called at
    /// least every few minutes (`max.poll.interval.ms`), or the group evicts this member.
    ///
    /// # Errors
    /// [`Failure`] for what waiting does not fix: a denied permission, a fatal client error, a stuck client.
    fn poll(
        &self,
        timeout: Duration,
    ) -> impl Future<Output = Result<Polled<Self::Record<'_>>, Failure>>;

    /// Takes assigned partitions, and reads from their committed offsets or from the earliest record. Adopts the
    /// generation.
    ///
    /// # Errors
    /// [`Failure`] when the client fails.
    fn take(&self, partitions: &[Committed]) -> Result<(), Failure>;

    /// Takes assigned partitions without reading them: for a process that is about to leave.
    ///
    /// # Errors
    /// [`Failure`] when the client fails.
    fn take_unread(&self, partitions: &[TopicPartition]) -> Result<(), Failure>;

    /// Gives up `partitions`, all that were revoked together; all their work must be committed or dropped by now.
    ///
    /// # Errors
    /// [`Failure`] when the client fails.
    fn give_up(&self, partitions: &[TopicPartition]) -> Result<(), Failure>;

    /// Stops reading `partitions`, which stay with this member.
    ///
    /// # Errors
    /// [`Failure`] when the client fails.
    fn stop_reading(&self, partitions: &[TopicPartition]) -> Result<(), Failure>;

    /// Pauses reading. Records that were fetched ahead are read again after [`Member::resume`].
    ///
    /// # Errors
    /// [`Failure`] when the client fails.
    fn pause(&self, partitions: &[TopicPartition]) -> Result<(), Failure>;

    /// Resumes reading.
    ///
    /// # Errors
    /// [`Failure`] when the client fails.
    fn resume(&self, partitions: &[TopicPartition]) -> Result<(), Failure>;

    /// Reads `partitions` again from their committed offsets.
    ///
    /// # Errors
    /// As [`Member::committed`]; and when seeking a partition takes longer than 10 s.
    fn rewind(&self, partitions: &[TopicPartition]) -> impl Future<Output = Result<(), Failure>>;

    /// The committed offsets of `partitions`. Waits while an open transaction holds them, and while no broker is
    /// reachable.
    ///
    /// # Errors
    /// [`Failure`] when permission is denied, when the process is stopping, or when the client is stuck.
    fn committed(
        &self,
        partitions: &[TopicPartition],
    ) -> impl Future<Output = Result<Vec<Committed>, Failure>>;

    /// The positions of partitions in which the client has passed offsets without a record, such as transaction markers,
    /// since the last record that it returned. Sends no request to a broker.
    ///
    /// # Errors
    /// [`Failure`] when the client fails.
    fn passed(&self) -> Result<Vec<(TopicPartition, Position)>, Failure>;

    /// Commits, in the present generation of the client, and waits for the response. Once the client knows that it is no
    /// member any more, and until its partitions are given up, this fails at once as with an unknown member: an empty group
    /// would take the commit.
    ///
    /// # Errors
    /// The client's error; the caller decides whether to retry. One without a response may have taken effect, or may do so
    /// later ([`Member::was_disturbed`]).
    fn commit(&self, commits: &[Commit]) -> impl Future<Output = Result<(), ClientError>>;

    /// Partitions whose commit the broker has refused since the last call, as known after a poll. It may have taken those
    /// of other partitions in the same request, and [`Member::commit`] has returned no error then.
    fn refused_commits(&self) -> Vec<(TopicPartition, ClientError)>;

    /// Whether a connection broke or a request timed out since the last call: the client may have sent a commit twice, and
    /// the first copy may still be in flight.
    fn was_disturbed(&self) -> bool;

    /// After this time without a response of the group's coordinator, the client reports its partitions as lost.
    fn session(&self) -> Duration;

    /// The generation in which the current partitions were taken; `None` before the first assignment. Not that of the
    /// client at this moment: after an eviction it would be empty, and a broker accepts an empty one from anybody.
    fn generation(&self) -> Option<Self::Generation>;

    /// Adopts the present generation of the client, if a commit of `anchor` succeeds in it, which must equal what is
    /// already committed. Does nothing without an anchor.
    ///
    /// # Errors
    /// The broker's rejection: this process is not a member.
    fn renew_generation(&self, anchor: &[Commit]) -> impl Future<Output = Result<(), ClientError>>;

    /// Leaves the group when the role has ended with the result `ended`.
    ///
    /// # Errors
    /// The result of the role; [`Failure::Internal`] in place of one that would restart the role when the group was not left
    /// in time.
    fn leave(self, ended: Result<(), Failure>) -> impl Future<Output = Result<(), Failure>>;
}

/// Writes batches, each visible as a whole or not at all where the guarantee is exactly-once.
pub trait Producer: Send + 'static {
    /// The same as that of the port.
    type Generation;
    /// The same as that of the port.
    type Headers: Headers;

    /// Adds a record to the batch, beginning one (and its transaction) if there is none. Waits while the client's queue is
    /// full.
    ///
    /// # Errors
    /// [`BatchError`]; the batch must then be abandoned, except after a rejection at once.
    fn send(
        &mut self,
        record: Record<'_, Self::Headers>,
    ) -> impl Future<Output = Result<(), BatchError>>;

    /// The same without waiting: returns the record when the client's queue is full.
    ///
    /// # Errors
    /// [`BatchError`]; the client must then be replaced with [`Producer::renew`], except after a rejection at once.
    fn offer<'a>(
        &mut self,
        record: Record<'a, Self::Headers>,
    ) -> impl Future<Output = Result<Option<Record<'a, Self::Headers>>, BatchError>>;

    /// How many records of each tag were acknowledged since the last call; a tag may stand there several times. Of a
    /// [`ProducerKind::Copier`].
    ///
    /// # Errors
    /// [`BatchError`] for the first record that was refused; the client must then be replaced with [`Producer::renew`].
    fn reports(&self) -> Result<Vec<(usize, u32)>, BatchError>;

    /// Waits until the whole batch is acknowledged.
    ///
    /// # Errors
    /// [`BatchError`]; the batch must then be abandoned with [`Producer::renew`].
    fn acknowledged(&self) -> impl Future<Output = Result<(), BatchError>>;

    /// Waits until the whole batch is acknowledged or refused, for at most `time`. Returns the records that were refused;
    /// `None` while some are neither.
    fn acknowledged_within(&self, time: Duration) -> impl Future<Output = Option<Vec<Refused>>>;

    /// A record of a topic with `message.timestamp.type=LogAppendTime` that was acknowledged since the last call. Not of a
    /// [`ProducerKind::Copier`].
    fn stamp(&self) -> Option<records::Stamp> {
        None
    }

    /// Ends the batch. With transactions, `commits` become visible with it, in `generation` of the group; without, the
    /// caller commits them. An empty batch only commits.
    ///
    /// # Errors
    /// [`BatchError`]; the batch must then be abandoned with [`Producer::renew`].
    fn finish(
        &mut self,
        commits: &[Commit],
        generation: Option<&Self::Generation>,
    ) -> impl Future<Output = Result<(), BatchError>>;

    /// Abandons the current batch and replaces the client. On return, the outcome of the last transaction is final at the
    /// broker, and the committed offsets show it.
    ///
    /// # Errors
    /// [`Failure`] when a new client cannot be created, or was fenced too often.
    fn renew(&mut self) -> impl Future<Output = Result<(), Failure>>;

    /// A new producer with the next alternative id, which does not wait for the end of this one's last transaction. Only
    /// for a batch that was given up before its offsets were sent: no later request can commit it.
    ///
    /// # Errors
    /// As [`Port::producer`].
    fn successor(
        &mut self,
        keep_waiting: &KeepWaiting,
    ) -> impl Future<Output = Result<Self, Failure>>
    where
        Self: Sized;

    /// Abandons the current batch, aborting its transaction as far as that is quick, and the producer.
    fn abandon(self) -> impl Future<Output = ()>;

    /// The number of partitions of a topic, as far as a broker tells at once.
    fn partitions(&self, topic: &str) -> impl Future<Output = Option<i32>>;
}

/// A topic, read from one fixed position to another without joining a group.
pub trait Log {
    /// A record, valid while it is visited.
    type Record<'a>: RecordView;

    /// The topic's name.
    fn topic(&self) -> &str;

    /// What a read-committed reader sees now: up to the last stable offsets.
    ///
    /// # Errors
    /// [`Failure`] when the broker does not respond.
    fn stable_ends(&self) -> impl Future<Output = Result<Vec<Range>, Failure>>;

    /// The high watermark of one partition, and the last stable offset: the same unless a transaction stays open for
    /// longer than `patience`, or `stop` returns true. Then nothing says yet which records behind the stable offset will
    /// be committed. Without patience, each of the two requests waits for the leader for 2 s at most.
    ///
    /// # Errors
    /// [`Failure`] when the broker does not respond.
    fn high_watermark(
        &self,
        partition: i32,
        patience: Duration,
        stop: &dyn Fn() -> bool,
    ) -> impl Future<Output = Result<(Range, i64), Failure>>;

    /// Visits every record of `ranges` that this isolation shows, in the order of offsets in each partition, until `stop`
    /// returns true.
    ///
    /// # Errors
    /// [`Failure`] when permission is denied or no broker responds for 30 s.
    fn read(
        &self,
        isolation: Isolation,
        ranges: &[Range],
        stop: &dyn Fn() -> bool,
        visit: impl FnMut(&Self::Record<'_>),
    ) -> impl Future<Output = Result<(), Failure>>;
}

/// The ends of partitions, for any number of them at once. Partitions without a leader are left out.
pub trait Ends {
    /// The last stable offsets.
    ///
    /// # Errors
    /// [`Failure`] when a broker does not respond in time.
    fn stable(
        &self,
        of: &[TopicPartition],
    ) -> impl Future<Output = Result<BTreeMap<TopicPartition, i64>, Failure>>;

    /// The high watermarks.
    ///
    /// # Errors
    /// [`Failure`] when a broker does not respond in time.
    fn high(
        &self,
        of: &[TopicPartition],
    ) -> impl Future<Output = Result<BTreeMap<TopicPartition, i64>, Failure>>;
}

/// Sends webhooks. Clones share their connections.
pub trait Http: Clone + Send + 'static {
    /// A response's body that is still to be read. Dropping it closes the connection.
    type Rest: 'static;

    /// Sends the request that `build` returns, and waits for complete response headers until `deadline` at most; again
    /// while the server refuses it before it processes it. `deadline` includes all. Dropping the future closes the
    /// connection; the receiver may still have received the request.
    fn post_until_processed(
        &self,
        build: impl Fn() -> Request,
        deadline: tokio::time::Instant,
    ) -> impl Future<Output = Reply<Self::Rest>>;

    /// Sends a request with any method once, and waits for complete response headers until `deadline` at most. The answer
    /// has its headers.
    fn exchange(
        &self,
        method: http::Method,
        request: Request,
        deadline: tokio::time::Instant,
    ) -> impl Future<Output = Reply<Self::Rest>>;

    /// Reads and discards the body, so that the connection can be reused.
    fn drain(rest: Self::Rest, deadline: tokio::time::Instant) -> impl Future<Output = Drained>;

    /// The same, but keeps up to [`super::http::MAX_BODY_BYTES`].
    fn read_snippet(
        rest: Self::Rest,
        deadline: tokio::time::Instant,
    ) -> impl Future<Output = (Vec<u8>, Drained)>;
}

/// A started task. Dropping it leaves the task alone.
pub trait Task {
    /// Waits for its end; `false` if it has panicked.
    fn join(self) -> impl Future<Output = bool>;

    /// For how long a worker has been busy since it began, on the wall clock; zero for any other task.
    fn busy(&self) -> Duration;
}
