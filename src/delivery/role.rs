//! Delivery: sends commands as POSTs, and makes their outcomes durable before the position passes them.
//!
//! This thread polls Kafka, handles rebalances and commits: everything that concerns the group happens here, in order.
//! The partitions' windows and lanes live on `worker` threads, which exchange whole batches with this one. Every 100 ms
//! the workers report each partition's state: its window, and the outcomes since the last report. Outcomes and
//! positions are committed in one transaction; positions alone by a plain commit. After a failed transaction the
//! outcomes are kept and written again, so an aborted transaction repeats no POST; what cannot be written stops nothing
//! else (`writing`).
//!
//! Partitions that leave are no longer read, and their attempts in flight may end; all else goes on meanwhile (see
//! [`Drain`]). At the end of the process all partitions leave in the same way.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::busy::Busy;
use super::drain::{Drain, Step};
use super::durable_prefix::DurablePrefix;
use super::messages::{Decided, Load, Message};
use super::metrics::DeliveryMetrics;
use super::outage::Outage;
use super::partition::env::{Amount, Memory};
use super::partition::event::Incoming;
use super::rejected::Rejected;
use super::top_subscribers::TopSubscribers;
use super::topics::needed_topics;
use super::verifying::LEADER;
use super::workers::Workers;
use super::writing::OutcomeWriter;
use crate::edge::clock;
use crate::edge::kafka::cluster::ClusterId;
use crate::edge::kafka::record::{Newer, read_marked};
use crate::edge::port::failure::{ClientError, ErrorKind, Failure};
use crate::edge::port::gap::Gap;
use crate::edge::port::records::{Commit, RecordView as _, TopicPartition};
use crate::edge::port::{Member as _, Polled, Port};
use crate::model::throttle::Throttle;
use crate::model::units::Offset;
use crate::model::window::{METADATA_LIMIT, Restored, Snapshot};
use crate::runtime::context::RoleContext;
use crate::runtime::recommit::Recommit;

/// How often positions and outcomes are committed.
const COMMIT_EVERY: Duration = Duration::from_millis(100);
/// The same when nothing has been under way for [`REST_AFTER`].
const COMMIT_AT_REST: Duration = Duration::from_millis(500);
/// How long a role that has nothing to do goes on as if it had.
const REST_AFTER: Duration = Duration::from_secs(1);
/// How often to ask which offsets without a record were passed.
const PASSED_EVERY: Duration = Duration::from_secs(1);
/// The most records taken in one turn.
const TURN: usize = 512;
/// The least share of `--max-queued-bytes` that a partition gets, however many partitions there are, bytes.
const LEAST_SHARE: usize = 256 * 1024;
/// The least share of `--max-queued-commands` that a partition gets, however many partitions there are.
const LEAST_COMMANDS: usize = 512;
/// An attempt older than this has outlived its deadline, which is at most 60 s; `/livez` fails some time later.
const STALE: Duration = Duration::from_secs(120);

/// Runs until shutdown is requested, then drains.
///
/// # Errors
/// [`Failure`] when the role cannot continue.
pub async fn run<P: Port>(
    port: &P,
    context: &RoleContext,
    metrics: &DeliveryMetrics,
) -> Result<(), Failure> {
    let settings = &context.settings;
    let topics = needed_topics(settings);
    if !context
        .wait_until_possible(port, "deliver", &topics)
        .await?
    {
        return Ok(());
    }
    if !context.wait_for_statuses(port).await {
        return Ok(());
    }
    let workers = Workers::start(port, context, metrics)?;
    let group = format!("{}deliver", settings.group_prefix);
    let topic = settings.topics.commands();
    let outcomes = OutcomeWriter::new(port, context).await?;
    let prefetch = [("queued.max.messages.kbytes", "4096")];
    let keep_waiting = context.keep_waiting();
    let member = port
        .join(
            settings,
            keep_waiting,
            "deliver",
            &group,
            &[&topic],
            &prefetch,
        )
        .await?;
    let mut delivery = Delivery {
        context,
        metrics,
        member,
        outcomes,
        workers,
        cluster: context.cluster()?,
        topic: Arc::from(topic),
        partitions: BTreeMap::new(),
        stopped: BTreeSet::new(),
        stopped_lines: Throttle::new(Duration::from_secs(1)),
        set_aside_lines: Throttle::new(Duration::from_secs(1)),
        next_commit: clock::instant(),
        busy_at: clock::instant(),
        next_passed: clock::instant(),
        outage: Outage::default(),
        recommit: Recommit::default(),
        metadata_limit: METADATA_LIMIT,
        drain: None,
        is_generation_old: false,
        is_evicted: false,
        rejected: Rejected::default(),
        oldest: Duration::ZERO,
        top_subscribers: TopSubscribers::new(settings.lag_top, clock::instant()),
        busy: Busy::default(),
    };
    // Series of an earlier run within this process.
    metrics.forget_subscriber_attempts();
    metrics.reset_breakers(settings.lag_top);
    metrics.systemic_failure().set(0);
    context.ready();
    let result = delivery.go().await;
    if result.is_ok() {
        context.draining();
    }
    let ended = match result {
        Ok(()) => delivery.finish().await,
        Err(failure) => {
            // As when partitions are lost.
            let list: Vec<i32> = delivery.partitions.keys().copied().collect();
            delivery.forget(&list);
            Err(failure)
        }
    };
    delivery.end(ended).await
}

/// A partition as this thread sees it.
pub(super) struct Owned {
    pub(super) load: Arc<Load>,
    pub(super) durable_moves: DurablePrefix,
    pub(super) paused: bool,
    /// The last snapshot known to be committed.
    pub(super) committed: Option<Snapshot>,
}

pub(super) struct Delivery<'a, P: Port> {
    pub(super) context: &'a RoleContext,
    pub(super) metrics: &'a DeliveryMetrics,
    pub(super) member: P::Member,
    pub(super) outcomes: OutcomeWriter<P>,
    pub(super) workers: Workers<P>,
    pub(super) cluster: ClusterId,
    pub(super) topic: Arc<str>,
    pub(super) partitions: BTreeMap<i32, Owned>,
    /// Partitions with a record or a commit of a newer program, which are not read further.
    pub(super) stopped: BTreeSet<i32>,
    pub(super) stopped_lines: Throttle,
    pub(super) set_aside_lines: Throttle,
    pub(super) next_commit: Instant,
    /// When anything was under way last.
    busy_at: Instant,
    /// When to ask again which offsets without a record were passed.
    next_passed: Instant,
    pub(super) outage: Outage,
    /// Whether a delayed commit may still overwrite later ones.
    pub(super) recommit: Recommit,
    /// Characters that the broker keeps with a position, as far as it is known to keep fewer than usual.
    pub(super) metadata_limit: usize,
    /// Partitions that are leaving.
    pub(super) drain: Option<Drain>,
    /// Partitions were revoked in a later generation than the one in which they were assigned, and only the later one can
    /// commit transactions.
    pub(super) is_generation_old: bool,
    /// The group has evicted this member: its partitions have other owners, or will have. They are given up with the
    /// drain.
    pub(super) is_evicted: bool,
    /// Partitions that were given up for that, and of which the client has reported nothing.
    pub(super) rejected: Rejected,
    /// The age of the oldest attempt in flight.
    pub(super) oldest: Duration,
    /// The subscribers with their own metric series.
    pub(super) top_subscribers: TopSubscribers,
    /// How busy the workers are.
    pub(super) busy: Busy,
}

impl<P: Port> Delivery<'_, P> {
    async fn go(&mut self) -> Result<(), Failure> {
        while !self.context.stopping() {
            self.round().await?;
        }
        Ok(())
    }

    /// Lets all partitions leave.
    async fn finish(&mut self) -> Result<(), Failure> {
        let all: Vec<i32> = self.partitions.keys().copied().collect();
        let each = all.iter().map(|&number| self.at(number));
        self.member.stop_reading(&each.collect::<Vec<_>>())?;
        self.stop(&all);
        while self.drain.is_some() {
            self.round().await?;
        }
        Ok(())
    }

    async fn round(&mut self) -> Result<(), Failure> {
        // A stuck commit stops the heartbeat, and so does an attempt that outlives every deadline.
        if self.oldest <= STALE {
            self.context.heartbeat();
        }
        let wait = self.next_commit.saturating_duration_since(clock::instant());
        self.turn(wait).await?;
        self.flow()?;
        let now = clock::instant();
        if self.is_busy() {
            self.busy_at = now;
        }
        let every = if now.saturating_duration_since(self.busy_at) < REST_AFTER {
            COMMIT_EVERY
        } else {
            COMMIT_AT_REST
        };
        // What comes to a role at rest does not wait as long as it would have.
        self.next_commit = self.next_commit.min(now + every);
        if now >= self.next_commit {
            self.pass()?;
            self.verify()?;
            self.settle().await?;
            self.take_back().await?;
            self.next_commit = clock::instant() + every;
        }
        Ok(())
    }

    /// Whether a round may have something to do.
    fn is_busy(&self) -> bool {
        let mut loads = self.partitions.values().map(|owned| &owned.load);
        self.drain.is_some()
            || self.is_generation_old
            || self.outage.is_on()
            || loads.any(|load| load.commands() > 0)
    }

    /// Positions behind the ends of transactions are committed too: else a group at rest would seem to be behind.
    fn pass(&mut self) -> Result<(), Failure> {
        let now = clock::instant();
        if now < self.next_passed {
            return Ok(());
        }
        self.next_passed = now + PASSED_EVERY;
        for (at, position) in self.member.passed()? {
            let number = at.partition;
            // The client has read past the record that stops a partition; its position must not.
            if self.stopped.contains(&number) {
                continue;
            }
            // All records before it are with the worker by now, which does nothing about a position that it knows.
            if self.partitions.contains_key(&number) {
                self.workers
                    .of(number)
                    .send(Message::Passed(number, position));
            }
        }
        Ok(())
    }

    /// Writes what became of asking endpoints for consent.
    fn verify(&mut self) -> Result<(), Failure> {
        let leads = self.partitions.contains_key(&LEADER) && self.drain.is_none();
        for outcome in self.workers.verifier.round(leads)? {
            let decided = Decided {
                offset: None,
                move_number: None,
                outcome,
            };
            self.outcomes.add(LEADER, decided);
        }
        Ok(())
    }

    /// Takes the available records, at most [`TURN`].
    async fn turn(&mut self, wait: Duration) -> Result<(), Failure> {
        let mut taken: BTreeMap<i32, Vec<Incoming>> = BTreeMap::new();
        let mut wait = wait;
        for _ in 0..TURN {
            let polled = self.member.poll(wait).await?;
            let polled = polled.map(|message| {
                let (number, offset) = (message.partition(), Offset(message.offset()));
                let is_read = !self.stopped.contains(&number);
                (number, offset, is_read.then(|| read_marked(&message)))
            });
            match polled {
                // Its partition is not read further: the next owner reads it again.
                Polled::Message((_, _, None)) => {}
                Polled::Message((number, offset, Some(Ok((content, mark))))) => {
                    let incoming = Incoming {
                        offset,
                        content,
                        mark,
                    };
                    taken.entry(number).or_default().push(incoming);
                }
                Polled::Message((number, offset, Some(Err(Newer { version })))) => {
                    self.stop_at_newer(number, Some(offset), version)?;
                }
                Polled::Assigned(committed) => {
                    self.busy_at = clock::instant();
                    self.hand_over(taken);
                    return self.assigned(&committed);
                }
                Polled::Gap(gap) => {
                    self.hand_over(taken);
                    self.gap(&gap);
                    return Ok(());
                }
                Polled::Revoked { partitions, lost } => {
                    self.hand_over(taken);
                    return self.revoked(&partitions, lost);
                }
                Polled::Idle => break,
            }
            wait = Duration::ZERO;
        }
        self.hand_over(taken);
        Ok(())
    }

    fn hand_over(&mut self, taken: BTreeMap<i32, Vec<Incoming>>) {
        if !taken.is_empty() {
            // A copy is done before anybody looks.
            self.busy_at = clock::instant();
        }
        for (partition, incoming) in taken {
            // A record of a revoked partition that was still in the client's queue belongs to the next owner.
            let Some(owned) = self.partitions.get(&partition) else {
                continue;
            };
            for one in &incoming {
                owned.load.add(one.weight());
            }
            self.workers
                .of(partition)
                .send(Message::Take(partition, incoming));
        }
    }

    /// Bounds memory: pauses a partition that holds more than its share until half of it is free. A pause discards the
    /// client's prefetched records, so the share is large compared to them.
    fn flow(&mut self) -> Result<(), Failure> {
        let among = self.partitions.len().max(1);
        let settings = &self.context.settings;
        let share = Amount {
            bytes: (settings.max_queued_bytes / among).max(LEAST_SHARE),
            commands: (settings.max_queued_commands / among).max(LEAST_COMMANDS),
        };
        for (&number, owned) in &mut self.partitions {
            if self.stopped.contains(&number) {
                continue;
            }
            let held = owned.load.held();
            owned.load.set_share(share);
            let at = [TopicPartition {
                topic: Arc::clone(&self.topic),
                partition: number,
            }];
            let is_over = held.bytes > share.bytes || held.commands > share.commands;
            let is_paused = owned.paused;
            if !is_paused && is_over {
                self.member.pause(&at)?;
                owned.paused = true;
            } else if is_paused && Memory::left(held, share) != Memory::Short {
                self.member.resume(&at)?;
                owned.paused = false;
            }
        }
        let loads = || self.partitions.values().map(|owned| &owned.load);
        self.metrics
            .queued_bytes()
            .set(as_gauge(loads().map(|load| load.bytes()).sum()));
        self.metrics
            .queued_commands()
            .set(as_gauge(loads().map(|load| load.commands()).sum()));
        Ok(())
    }

    /// Records already taken are still delivered; if the topic ends before the position, the partition starts over.
    fn gap(&mut self, gap: &Gap) {
        let metrics = &self.context.metrics;
        metrics.lost_offsets(&gap.at.topic, gap.lost());
        let number = gap.at.partition;
        // Reading has moved; a record of a newer program, if it is still there, stops the partition again.
        self.stopped.remove(&number);
        self.count_stopped();
        if gap.is_restart()
            && let Some(owned) = self.partitions.get(&number)
        {
            // What is held from the new end on is not read again.
            let gone = u64::try_from(gap.from.0 - gap.end.0).unwrap_or(0);
            let dropped = gone.min(owned.load.commands() as u64);
            metrics.lost_offsets(&gap.at.topic, dropped);
            if dropped > 0 {
                tracing::error!(
                    topic = &*gap.at.topic,
                    partition = number,
                    dropped,
                    "LOST: unfinished commands of a topic that was truncated, deleted or recreated"
                );
            }
            self.forget(&[number]);
            // Its next owner starts it over.
            let leaves = self
                .drain
                .as_mut()
                .is_some_and(|drain| drain.emptied(number));
            if !leaves {
                self.open(number, Restored::unknown(gap.to), None);
            }
        }
    }

    fn revoked(&mut self, partitions: &[TopicPartition], lost: bool) -> Result<(), Failure> {
        let list = numbers(partitions);
        self.rejected.settled(&list);
        tracing::info!(partitions = ?list, lost, "partitions revoked");
        if lost {
            if let Some(drain) = &mut self.drain {
                drain.lost(&list);
            }
            self.forget(&list);
            return self.member.give_up(partitions);
        }
        self.is_generation_old = true;
        self.stop(&list).revoked(partitions);
        Ok(())
    }

    /// Starts nothing more in these partitions. Their attempts in flight may end, up to the deadline.
    fn stop(&mut self, list: &[i32]) -> &mut Drain {
        let deadline = clock::instant() + self.context.settings.drain_deadline;
        let drain = self.drain.get_or_insert_with(|| Drain::new(deadline));
        drain.extend(deadline);
        let is_held = |number: &i32| self.partitions.contains_key(number);
        let list: Vec<i32> = list.iter().copied().filter(is_held).collect();
        for worker in &self.workers.all {
            let owned = |number: &i32| self.workers.owns(worker, *number);
            let theirs: Vec<i32> = list.iter().copied().filter(owned).collect();
            if !theirs.is_empty() {
                worker.send(Message::Stop(theirs, drain.idle()));
            }
        }
        drain.add(&list);
        drain
    }

    /// Commits, and gives up the partitions that leave when nothing of them is in flight, or their time is over. What is
    /// cut off then, the next owner repeats.
    async fn settle(&mut self) -> Result<(), Failure> {
        let step = self
            .drain
            .as_mut()
            .map(|drain| drain.step(clock::instant()));
        if let Some(Step::LastCommit { cut: 1.. }) = step {
            tracing::warn!(
                "the drain deadline has passed: attempts in flight are cut and will be repeated"
            );
        }
        let last = matches!(step, Some(Step::LastCommit { .. } | Step::GiveUp));
        let committed = match self.renew_generation().await {
            Ok(()) => self.commit(last).await?,
            Err(error) => {
                tracing::warn!("the group rejects the commits of this member: {error}");
                self.note_eviction(&error);
                false
            }
        };
        // As when they are lost, which the client reports later: while partitions leave, only when these are given up.
        if std::mem::take(&mut self.is_evicted) {
            return self.end_drain();
        }
        match step {
            None => Ok(()),
            Some(Step::LastCommit { .. } | Step::GiveUp) if committed => self.end_drain(),
            Some(Step::Wait | Step::LastCommit { .. }) => Ok(()),
            Some(Step::GiveUp) => {
                tracing::warn!(
                    "the last commit of partitions failed: the next owner repeats what it would have recorded"
                );
                self.end_drain()
            }
        }
    }

    /// Takes note of an error of a commit that only a member gets which the group has evicted. Others have its partitions,
    /// or will have: nothing more is sent of them, whenever the client reports that they are lost.
    pub(super) fn note_eviction(&mut self, error: &ClientError) {
        if error.kind() != ErrorKind::UnknownMember {
            return;
        }
        let all: Vec<i32> = self.partitions.keys().copied().collect();
        if !all.is_empty() {
            tracing::warn!(partitions = ?all, "given up: a broker says that this process is not in its group");
            self.stop(&all);
            self.rejected.add(&all, clock::instant());
        }
        self.is_evicted |= self.drain.is_some();
    }

    fn end_drain(&mut self) -> Result<(), Failure> {
        let Some(drain) = self.drain.take() else {
            return Ok(());
        };
        let (leaving, revoked) = drain.end();
        self.forget(&leaving);
        match revoked {
            Some(revoked) => {
                self.rejected.settled(&numbers(&revoked));
                self.member.give_up(&revoked)
            }
            None => Ok(()),
        }
    }

    /// Obtains the present generation after a revocation, by repeating the commit of a committed position.
    async fn renew_generation(&mut self) -> Result<(), ClientError> {
        if !self.is_generation_old {
            return Ok(());
        }
        let anchor: Vec<Commit> = self
            .partitions
            .iter()
            .filter_map(|(&partition, owned)| {
                let Snapshot { position, metadata } = owned.committed.clone()?;
                Some(Commit {
                    at: self.at(partition),
                    position,
                    metadata,
                })
            })
            .take(1)
            .collect();
        self.member.renew_generation(&anchor).await?;
        self.is_generation_old = false;
        Ok(())
    }

    pub(super) fn at(&self, partition: i32) -> TopicPartition {
        TopicPartition {
            topic: Arc::clone(&self.topic),
            partition,
        }
    }

    fn forget(&mut self, list: &[i32]) {
        let gone: HashSet<i32> = list.iter().copied().collect();
        for worker in &self.workers.all {
            worker.send(Message::Close(list.to_vec()));
        }
        self.workers.give_up(list);
        self.partitions.retain(|number, _| !gone.contains(number));
        self.outcomes.forget(&gone);
        self.stopped.retain(|number| !gone.contains(number));
        self.count_stopped();
        for number in list {
            self.metrics.forget_partition(*number);
        }
    }

    async fn end(self, ended: Result<(), Failure>) -> Result<(), Failure> {
        self.outcomes.end();
        let ended = self.member.leave(ended).await;
        self.workers.end().await;
        ended
    }
}

pub(super) fn as_gauge(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn numbers(partitions: &[TopicPartition]) -> Vec<i32> {
    partitions.iter().map(|at| at.partition).collect()
}
