//! A member of a consumer group whose rebalances are ordinary events of the poll loop.
//!
//! Membership and reading are two clients. The *member* subscribes, commits and knows the generation; its partitions are
//! paused, so it never fetches. The `reader` belongs to no group and fetches what the member hands it. With one client,
//! librdkafka fetches nothing from a revocation until the partitions are given up, also of the partitions that stay.
//!
//! librdkafka reports a rebalance in a callback inside `poll`. Here the callback only queues it, and [`Member::poll`]
//! returns it as [`Polled::Assigned`] or [`Polled::Revoked`]. The role responds with [`Member::take`] or
//! [`Member::give_up`], at once or after a drain: meanwhile it polls, reads the other partitions and commits. So
//! everything that touches a partition happens on one thread, in order (**Owner only**).
//!
//! Revoked partitions are given up together. librdkafka counts all of them as given up after the first call, joins again
//! without them, and the group would assign those that still drain to others. And nothing would be gained by parts: the
//! group assigns them in its next generation, which begins when this member joins it.
//!
//! Two properties of the clients are verified rather than trusted: that each record is returned once (`sequence_guard`),
//! and that the member is not stuck (`health`, and a client that reads committed offsets in its place).

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{
    BaseConsumer, CommitMode, Consumer, ConsumerGroupMetadata, RebalanceProtocol,
};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;

use super::bootstrap;
use super::watchdog::Link;
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::failpoint;
use crate::edge::kafka::client::{SESSION_TIMEOUT, consumer_config};
use crate::edge::kafka::error::{Failure, is_denied, is_unreachable};
use crate::edge::kafka::wait::KeepWaiting;
use crate::edge::port;
use crate::model::throttle::Throttle;
use crate::model::units::Position;
use assignment::{Assignment, no_position};
use committed::CommittedReader;
use context::{Event, MemberContext, unassign};
use gap_search::GapSearch;
use health::ClientHealth;
use partition::{plain, starting};
use reader::{Read, Reader};

mod assignment;
mod committed;
mod context;
mod gap_search;
mod gaps;
mod hanging;
mod health;
mod known_ends;
mod partition;
mod read_positions;
mod reader;
mod reader_context;
mod sequence_guard;

pub use crate::edge::port::gap::Gap;
pub use committed::Committed;
pub use hanging::diagnosis as hanging_transaction;
pub use partition::{Commit, TopicPartition, commit_list};

/// Timeout of a request for metadata.
const ANSWER: Duration = Duration::from_secs(5);

/// The result of one poll.
pub type Polled<'a> = port::Polled<BorrowedMessage<'a>>;

/// A member of one consumer group; used from the thread that joined it.
pub struct Member {
    /// In the group; reads nothing.
    consumer: Arc<BaseConsumer<MemberContext>>,
    link: Link,
    offsets: CommittedReader,
    /// What was assigned, until its offsets are known.
    assignment: RefCell<Option<Assignment>>,
    /// In no group; reads.
    reader: Reader,
    purpose: &'static str,
    keep_waiting: KeepWaiting,
    group: String,
    /// `session.timeout.ms`.
    session: Duration,
    /// The generation in which the partitions were taken. Never refreshed at commit time: after an eviction it would
    /// be empty, and a broker accepts an empty generation from anybody.
    metadata: RefCell<Option<Arc<ConsumerGroupMetadata>>>,
    /// The group has taken this member for dead. Then the group may have been empty, and an empty group can lose its
    /// positions.
    was_lost: Cell<bool>,
    /// Topics that were deleted while this member read them: made again, they have no positions and are read from their
    /// beginning.
    deleted: RefCell<BTreeSet<Arc<str>>>,
    /// Limits how often to look for deleted topics.
    deletions: RefCell<Throttle>,
    /// Locates positions that are out of range.
    gap_search: RefCell<GapSearch>,
}

impl Member {
    /// Joins `group` for `topics`. `extra` are properties of this role's reader; `keep_waiting` is called while the member
    /// waits for a broker.
    ///
    /// # Errors
    /// [`Failure`] when the settings do not allow a client to be created.
    pub fn join(
        settings: &Settings,
        keep_waiting: KeepWaiting,
        purpose: &'static str,
        group: &str,
        topics: &[&str],
        extra: &[(&str, &str)],
    ) -> Result<Self, Failure> {
        let config = member_config(settings, purpose, group);
        // The client rejects a value that is no number.
        let milliseconds = |name| config.get(name).and_then(|ms| ms.parse::<u32>().ok());
        // Its own default is one minute.
        let health = ClientHealth::new(milliseconds("socket.timeout.ms").unwrap_or(60_000).into());
        let session = milliseconds("session.timeout.ms").map(u64::from);
        let context = MemberContext::new(purpose, health);
        let (ready, thread) = (Arc::clone(&context.ready), std::thread::current());
        let reader = Reader::new(settings, purpose, group, extra, thread.clone())?;
        let mut consumer: BaseConsumer<MemberContext> =
            config.create_with_context(context).map_err(|error| {
                Failure::from_client(format!("creating the consumer of {purpose}"), error)
            })?;
        consumer.set_nonempty_callback(move || {
            ready.store(true, Ordering::Release);
            thread.unpark();
        });
        consumer.subscribe(topics).map_err(|error| {
            Failure::from_client(format!("subscribing to {}", topics.join(", ")), error)
        })?;
        let consumer = Arc::new(consumer);
        let link = bootstrap::keep(settings, &consumer, |consumer| consumer.client(), purpose)?;
        let offsets = CommittedReader {
            consumer: Arc::clone(&consumer),
            link: link.clone(),
            settings: Arc::new(settings.clone()),
            purpose,
            group: Arc::from(group),
            keep_waiting: Arc::clone(&keep_waiting),
        };
        Ok(Self {
            consumer,
            link,
            offsets,
            assignment: RefCell::default(),
            reader,
            purpose,
            keep_waiting,
            group: group.to_owned(),
            session: session.map_or(SESSION_TIMEOUT, Duration::from_millis),
            metadata: RefCell::default(),
            was_lost: Cell::default(),
            deleted: RefCell::default(),
            deletions: RefCell::new(Throttle::new(Duration::from_secs(5))),
            gap_search: RefCell::default(),
        })
    }

    /// Waits for the next event for at most `timeout`. Must be called at least every few minutes.
    ///
    /// # Errors
    /// [`Failure`] for what waiting does not fix: a denied permission, a fatal client error, a stuck client.
    pub fn poll(&self, timeout: Duration) -> Result<Polled<'_>, Failure> {
        failpoint::point("poll.before");
        // Once in each turn of the role, whatever was signalled: some events run no callback, and there may be more
        // behind them.
        if !timeout.is_zero() {
            self.consumer.context().ready.store(true, Ordering::Relaxed);
        }
        let mut until: Option<Instant> = None;
        loop {
            if self.consumer.context().health.is_stuck() {
                return Err(Failure::Stuck(self.purpose));
            }
            self.serve_group()?;
            if let Some(event) = self.next_event()? {
                return Ok(event);
            }
            if self.gap_search.borrow().is_wanted() {
                self.look_for_gaps()?;
                if let Some(event) = self.next_event()? {
                    return Ok(event);
                }
            }
            match self.reader.poll()? {
                Read::Record(message) => return Ok(Polled::Message(message)),
                Read::Dropped => continue,
                Read::Failed(error) => {
                    self.tolerate(error)?;
                    return Ok(Polled::Idle);
                }
                Read::Empty if timeout.is_zero() => return Ok(Polled::Idle),
                Read::Empty => {}
            }
            let now = clock::instant();
            let rest = until.get_or_insert(now + timeout);
            let rest = rest.saturating_duration_since(now);
            if rest.is_zero() {
                return Ok(Polled::Idle);
            }
            // Both clients end this when one of their queues gets something.
            std::thread::park_timeout(rest);
            self.consumer.context().ready.store(true, Ordering::Relaxed);
        }
    }

    /// Runs the callbacks of the member's client, if it has something, or the thread has just waited.
    fn serve_group(&self) -> Result<(), Failure> {
        let context = self.consumer.context();
        if !context.ready.load(Ordering::Relaxed) {
            return Ok(());
        }
        context.ready.store(false, Ordering::SeqCst);
        loop {
            context.called_back.store(false, Ordering::Relaxed);
            match self.consumer.poll(Duration::ZERO) {
                // Fetched before the pause had taken effect: the reader returns it.
                Some(Ok(_)) => {}
                Some(Err(error)) => self.tolerate(error)?,
                // A callback ends a poll, and the queue signals only when it was empty.
                None if context.called_back.load(Ordering::Relaxed) => {}
                None => return Ok(()),
            }
        }
    }

    fn next_event(&self) -> Result<Option<Polled<'static>>, Failure> {
        let Some(event) = self.consumer.context().next_event() else {
            return self.offsets_found();
        };
        Ok(match event {
            Event::Assign(partitions) if partitions.is_empty() => {
                Some(Polled::Assigned(Vec::new()))
            }
            Event::Assign(partitions) => {
                // What is under way of the other partitions is committed in the new generation.
                self.adopt_generation();
                let reader = self.offsets.clone();
                let begun = Assignment::begin(partitions, reader, std::thread::current())?;
                self.assignment.replace(Some(begun));
                None
            }
            Event::Revoke { partitions, lost } => {
                self.was_lost.set(self.was_lost.get() || lost);
                self.reader.stop(&partitions)?;
                Some(Polled::Revoked { partitions, lost })
            }
            Event::Gap(gap) => Some(Polled::Gap(gap)),
        })
    }

    /// Assigned partitions whose committed offsets have just been read.
    fn offsets_found(&self) -> Result<Option<Polled<'static>>, Failure> {
        let mut waiting = self.assignment.borrow_mut();
        let Some(found) = waiting.as_ref().and_then(Assignment::found) else {
            return Ok(None);
        };
        let partitions = waiting.take().map(|assigned| assigned.partitions);
        match found {
            Ok(committed) => Ok(Some(Polled::Assigned(committed))),
            // The process is stopping.
            Err(_) if !(self.keep_waiting)() => {
                self.take_unread(&partitions.unwrap_or_default())?;
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }

    fn adopt_generation(&self) {
        let generation = self.consumer.group_metadata().map(Arc::new);
        self.metadata.replace(generation);
    }

    fn tolerate(&self, error: KafkaError) -> Result<(), Failure> {
        if matches!(error, KafkaError::MessageConsumptionFatal(_)) {
            return Err(Failure::from_client(
                format!("the consumer of {}", self.group),
                error,
            ));
        }
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                self.look_for_deleted_topics()
            }
            // The member knows a new partition before the reader does.
            Some(RDKafkaErrorCode::UnknownPartition) => {
                self.reader.refresh(ANSWER);
                Ok(())
            }
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                self.gap_search.borrow_mut().want();
                Ok(())
            }
            _ if is_denied(&error) => Err(Failure::from_client(
                format!("reading as group {}", self.group),
                error,
            )),
            // The client logs this itself.
            _ if is_unreachable(&error) => Ok(()),
            _ => {
                tracing::warn!(group = self.group, "poll failed: {error}");
                Ok(())
            }
        }
    }

    /// Reassigns one partition: the client has stopped it, so seeking fails. The group is not involved.
    fn start_at(&self, at: TopicPartition, position: Position) -> Result<(), Failure> {
        self.reader.start(&[(at, Some(position))])
    }

    /// The positions of partitions in which the client has skipped offsets without a record, such as transaction
    /// markers, since the last record that it returned. Once all returned records are done, such a position may be
    /// committed. Sends no request to a broker.
    ///
    /// # Errors
    /// [`Failure`] when the client fails, which a healthy client does not.
    pub fn passed(&self) -> Result<Vec<(TopicPartition, Position)>, Failure> {
        self.reader.passed()
    }

    /// The committed offsets of `partitions`. Waits while an open transaction holds them, and while no broker is
    /// reachable.
    ///
    /// # Errors
    /// [`Failure`] when permission is denied, when the process is stopping, or when the client is stuck.
    pub fn committed(&self, partitions: &[TopicPartition]) -> Result<Vec<Committed>, Failure> {
        self.offsets.read(partitions)
    }

    /// Takes `partitions` and reads from their committed offsets, or from the earliest record of new partitions.
    ///
    /// # Errors
    /// [`Failure::NoPosition`] when there is none in a partition, and the group has taken this member for dead before;
    /// [`Failure`] when the client fails, which a healthy client does not.
    pub fn take(&self, partitions: &[Committed]) -> Result<(), Failure> {
        let all: Vec<_> = partitions.iter().map(|found| found.at.clone()).collect();
        self.take_unread(&all)?;
        failpoint::point("assigned.after");
        let fresh = partitions.iter().filter(|found| found.position.is_none());
        let fresh: Vec<&TopicPartition> = fresh.map(|found| &found.at).collect();
        if self.was_lost.get()
            && let Some(lost) = fresh.iter().find(|at| self.may_have_lost(at))
        {
            return Err(no_position(&self.group, lost));
        }
        if !fresh.is_empty() {
            tracing::info!(
                group = self.group,
                partitions = fresh.len(),
                "no committed offset; starting at the earliest record"
            );
        }
        self.reader.start(&positions(partitions))
    }

    /// Takes `partitions` without reading them: for a process that is about to leave.
    ///
    /// # Errors
    /// [`Failure`] when the client fails, which a healthy client does not.
    pub fn take_unread(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        let failed = |error| Failure::from_client("taking partitions", error);
        // A position, so that the client does not look for one. It is not used: the partitions are paused before the next
        // poll, and stay so.
        let each = partitions.iter();
        let each: Vec<_> = each.map(|at| (at.clone(), Some(Position(0)))).collect();
        let assigned = starting(&each).map_err(failed)?;
        let taken = match self.consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => self.consumer.incremental_assign(&assigned),
            _ => self.consumer.assign(&assigned),
        };
        taken.map_err(failed)?;
        if !partitions.is_empty() {
            self.consumer.pause(&assigned).map_err(failed)?;
        }
        self.adopt_generation();
        Ok(())
    }

    /// Seeks `partitions` back to their committed offsets.
    ///
    /// # Errors
    /// As [`Member::committed`]; and when seeking a partition takes longer than 10 s.
    pub fn rewind(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        self.reader.seek(positions(&self.committed(partitions)?))
    }

    /// Stops reading `partitions`, which stay with this member: for a process that is about to leave.
    ///
    /// # Errors
    /// [`Failure`] when the client fails, which a healthy client does not.
    pub fn stop_reading(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        self.reader.stop(partitions)
    }

    /// Gives up `partitions`, all that were revoked together; all their work must be committed or dropped by now.
    ///
    /// # Errors
    /// [`Failure`] when the client fails, which a healthy client does not.
    pub fn give_up(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        self.reader.stop(partitions)?;
        unassign(&self.consumer, &plain(partitions))
            .map_err(|error| Failure::from_client("giving up partitions", error))
    }

    /// After this time without a response of the group's coordinator, the client reports its partitions as lost.
    #[must_use]
    pub const fn session(&self) -> Duration {
        self.session
    }

    /// The generation in which the current partitions were taken.
    #[must_use]
    pub fn generation(&self) -> Option<Arc<ConsumerGroupMetadata>> {
        self.metadata.borrow().clone()
    }

    /// Adopts the current generation of the group, if this process is a member of it. Membership is verified by
    /// committing `anchor`, which must equal what is already committed: the broker rejects the commit of an evicted
    /// member, and no later generation can start without a rebalance that this thread sees. Does nothing without an
    /// anchor.
    ///
    /// # Errors
    /// The broker's rejection: this process is not a member.
    pub fn renew_generation(&self, anchor: &[Commit]) -> Result<(), KafkaError> {
        if anchor.is_empty() {
            return Ok(());
        }
        let present = self.consumer.group_metadata();
        self.commit(anchor)?;
        self.metadata.replace(present.map(Arc::new));
        Ok(())
    }

    /// Commits and waits for the response. Not after the group has evicted this member: its membership is empty then, and
    /// a group without members takes such a commit from anybody, over those of the members that it had meanwhile.
    ///
    /// # Errors
    /// The client's error; the caller decides whether to retry.
    pub fn commit(&self, commits: &[Commit]) -> Result<(), KafkaError> {
        if commits.is_empty() {
            return Ok(());
        }
        if self.consumer.assignment_lost() {
            return Err(KafkaError::ConsumerCommit(
                RDKafkaErrorCode::UnknownMemberId,
            ));
        }
        let list = commit_list(commits)?;
        let commit = || {
            failpoint::point("snapshot-commit.before");
            self.consumer.commit(&list, CommitMode::Sync)
        };
        self.link.bounded("committing positions", commit)?;
        failpoint::point("snapshot-commit.after");
        Ok(())
    }

    /// Partitions whose commit the broker has refused since the last call, as known after a poll. It may have taken those
    /// of other partitions in the same request, and [`Member::commit`] has returned no error then.
    #[must_use]
    pub fn refused_commits(&self) -> Vec<(TopicPartition, KafkaError)> {
        self.consumer.context().take_refused()
    }

    /// Whether a connection broke or a request timed out since the last call. The client may then have sent a commit
    /// twice, and the first copy may still be in flight.
    #[must_use]
    pub fn was_disturbed(&self) -> bool {
        self.consumer.context().health.was_disturbed()
    }

    /// Pauses fetching of `partitions`. Prefetched records are discarded, so use this for long waits only.
    ///
    /// # Errors
    /// [`Failure`] when the client fails.
    pub fn pause(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        self.reader.pause(partitions)
    }

    /// Resumes fetching of `partitions`.
    ///
    /// # Errors
    /// [`Failure`] when the client fails.
    pub fn resume(&self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        self.reader.resume(partitions)
    }

    /// Leaves the group when the role has ended with the result `ended`.
    ///
    /// # Errors
    /// The result of the role. A role that would be restarted within this process is not if its client does not
    /// close: the broker may still count it as a member, and a rebalance waits minutes for each member.
    pub fn leave(self, ended: Result<(), Failure>) -> Result<(), Failure> {
        /// Time for the last requests to the coordinator.
        const CLOSE: Duration = Duration::from_secs(5);
        let purpose = self.purpose;
        if self.close(CLOSE) {
            return ended;
        }
        tracing::warn!(
            "group not left in time; the broker evicts this member after the session timeout"
        );
        match ended {
            Err(why @ (Failure::Stuck(_) | Failure::NoPosition { .. })) => {
                Err(Failure::Internal(format!(
                    "{why}, and its client did not leave the group of {purpose} in time; exiting to release the membership"
                )))
            }
            ended => ended,
        }
    }

    /// Closing can block forever when the coordinator does not respond (rdkafka 453, 611), so each client is closed on
    /// its own thread. After `deadline` this returns whether the group was left, and leaves such a thread behind; it
    /// finishes when it can, or ends with the process.
    fn close(self, deadline: Duration) -> bool {
        let until = clock::instant() + deadline;
        let context = self.consumer.context();
        context.closing.store(true, Ordering::Relaxed);
        self.respond_to_all();
        drop(self.offsets);
        let (reader, member) = (closed(self.reader.into_client()), closed(self.consumer));
        let [_, left] = [reader, member].map(|closed| {
            let rest = until.saturating_duration_since(clock::instant());
            closed.recv_timeout(rest).is_ok()
        });
        left
    }

    /// The client closes only when every rebalance that it has reported has got its response.
    fn respond_to_all(&self) {
        let assigned = self.assignment.take().map(|assigned| assigned.partitions);
        let assigned = assigned.map(Event::Assign);
        let others = std::iter::from_fn(|| self.consumer.context().next_event());
        for event in assigned.into_iter().chain(others) {
            let responded = match event {
                Event::Assign(partitions) => self.take_unread(&partitions),
                Event::Revoke { partitions, .. } => self.give_up(&partitions),
                Event::Gap(_) => Ok(()),
            };
            if let Err(error) = responded {
                tracing::debug!(group = self.group, "closing: {error}");
            }
        }
    }
}

fn positions(committed: &[Committed]) -> Vec<(TopicPartition, Option<Position>)> {
    let each = committed.iter();
    each.map(|found| (found.at.clone(), found.position))
        .collect()
}

/// Closes a client on a thread of its own.
fn closed<T: Send + Sync + 'static>(mut client: Arc<T>) -> Receiver<()> {
    let (done, closed) = channel();
    std::thread::spawn(move || {
        failpoint::point("close.before");
        // Watching threads release the client within a moment.
        while let Err(still) = Arc::try_unwrap(client) {
            client = still;
            std::thread::sleep(Duration::from_millis(5));
        }
        // After the deadline the receiver is gone, and nobody waits for this.
        done.send(()).ok();
    });
    closed
}

/// The settings of the client that is in the group.
fn member_config(settings: &Settings, purpose: &str, group: &str) -> ClientConfig {
    let mut config = consumer_config(settings, purpose, group);
    config.set("statistics.interval.ms", "3000");
    // Of what it fetches of a new partition before that is paused, nothing is used.
    config.set("fetch.message.max.bytes", "1024");
    config
}
