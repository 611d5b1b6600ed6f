//! Delivery: sends commands as POSTs, and makes their outcomes durable before the position passes them.
//!
//! This thread polls Kafka, handles rebalances and commits: everything that concerns the group happens here, in order.
//! The partitions' windows and lanes live on `worker` threads, which exchange whole batches with this one. Every 100 ms
//! the workers report each partition's state: its window, and the outcomes since the last report. Outcomes and
//! positions are committed in one transaction; positions alone by a plain commit. After a failed transaction the
//! outcomes are kept and written again, so an aborted transaction repeats no POST; what cannot be written stops nothing
//! else (`writing`).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use rdkafka::Message as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::busy::Busy;
use super::messages::{Load, Message};
use super::metrics::DeliveryMetrics;
use super::outage::Outage;
use super::partition::event::Incoming;
use super::recommit::Recommit;
use super::top_subscribers::TopSubscribers;
use super::workers::Workers;
use super::writing::OutcomeWriter;
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::cluster::ClusterId;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::member::{Commit, Gap, Member, Polled, TopicPartition};
use crate::edge::kafka::record::read_command;
use crate::model::units::Offset;
use crate::model::window::{METADATA_LIMIT, Place, ReadError, Snapshot, VERSION, Window};
use crate::runtime::context::RoleContext;

/// How often positions and outcomes are committed.
const COMMIT_EVERY: Duration = Duration::from_millis(100);
/// How often to ask which offsets without a record were passed.
const PASSED_EVERY: Duration = Duration::from_secs(1);
/// The most records taken in one turn.
const TURN: usize = 512;
/// The least share of `--max-queued-bytes` that a partition gets, however many partitions there are, bytes.
const LEAST_SHARE: usize = 256 * 1024;
/// The least share of `--max-queued-commands` that a partition gets, however many partitions there are.
const LEAST_COMMANDS: usize = 512;
/// The time limit for the last commit of revoked partitions, retries included.
const FINAL_COMMIT: Duration = Duration::from_secs(5);
/// An attempt older than this has outlived its deadline, which is at most 60 s; `/livez` fails some time later.
const STALE: Duration = Duration::from_secs(120);

/// Runs until shutdown is requested, then drains.
///
/// # Errors
/// [`Failure`] when the role cannot continue.
pub fn run(context: &RoleContext, metrics: &DeliveryMetrics) -> Result<(), Failure> {
    let settings = &context.settings;
    let topics = needed_topics(settings);
    if !context.wait_until_possible("deliver", &topics)? {
        return Ok(());
    }
    let workers = Workers::start(context, metrics)?;
    let group = format!("{}deliver", settings.group_prefix);
    let topic = settings.topics.commands();
    let outcomes = OutcomeWriter::new(context)?;
    let prefetch = [("queued.max.messages.kbytes", "4096")];
    let member = Member::join(
        settings,
        context.keep_waiting(),
        "deliver",
        &group,
        &[&topic],
        &prefetch,
    )?;
    let mut delivery = Delivery {
        context,
        metrics,
        member,
        outcomes,
        workers,
        cluster: context.cluster()?,
        topic: Arc::from(topic),
        partitions: HashMap::new(),
        next_commit: clock::instant(),
        next_passed: clock::instant(),
        outage: Outage::default(),
        recommit: Recommit::default(),
        metadata_limit: METADATA_LIMIT,
        oldest: Duration::ZERO,
        top_subscribers: TopSubscribers::new(settings.lag_top, clock::instant()),
        busy: Busy::default(),
    };
    // Series of an earlier run within this process.
    metrics.forget_subscriber_attempts();
    metrics.reset_breakers(settings.lag_top);
    metrics.systemic_failure().set(0);
    context.ready();
    let result = delivery.go();
    if result.is_ok() {
        context.draining();
    }
    let ended = match result {
        Ok(()) => delivery.give_up_all(),
        Err(failure) => {
            // As when partitions are lost.
            let list: Vec<i32> = delivery.partitions.keys().copied().collect();
            delivery.forget(&list);
            Err(failure)
        }
    };
    delivery.end(ended)
}

fn needed_topics(settings: &Settings) -> Vec<String> {
    let topics = &settings.topics;
    let mut needed = vec![
        topics.commands(),
        topics.subscriptions(),
        topics.dead_letters(),
        topics.invalid_events(),
    ];
    needed.extend(settings.retry_topics());
    if settings.attempt_log {
        needed.push(topics.attempts());
    }
    needed
}

/// A partition as this thread sees it.
pub(super) struct Owned {
    pub(super) load: Arc<Load>,
    pub(super) paused: bool,
    /// The last snapshot known to be committed.
    pub(super) committed: Option<Snapshot>,
}

pub(super) struct Delivery<'a> {
    pub(super) context: &'a RoleContext,
    pub(super) metrics: &'a DeliveryMetrics,
    pub(super) member: Member,
    pub(super) outcomes: OutcomeWriter,
    pub(super) workers: Workers,
    pub(super) cluster: ClusterId,
    pub(super) topic: Arc<str>,
    pub(super) partitions: HashMap<i32, Owned>,
    pub(super) next_commit: Instant,
    /// When to ask again which offsets without a record were passed.
    next_passed: Instant,
    pub(super) outage: Outage,
    /// Whether a delayed commit may still overwrite later ones.
    pub(super) recommit: Recommit,
    /// Characters that the broker keeps with a position, as far as it is known to keep fewer than usual.
    pub(super) metadata_limit: usize,
    /// The age of the oldest attempt in flight.
    pub(super) oldest: Duration,
    /// The subscribers with their own metric series.
    pub(super) top_subscribers: TopSubscribers,
    /// How busy the workers are.
    pub(super) busy: Busy,
}

impl Delivery<'_> {
    fn go(&mut self) -> Result<(), Failure> {
        while !self.context.stopping() {
            // A stuck commit stops the heartbeat, and so does an attempt that outlives every deadline.
            if self.oldest <= STALE {
                self.context.heartbeat();
            }
            let wait = self.next_commit.saturating_duration_since(clock::instant());
            self.turn(wait)?;
            self.flow()?;
            if clock::instant() >= self.next_commit {
                self.pass()?;
                self.commit()?;
                self.next_commit = clock::instant() + COMMIT_EVERY;
            }
        }
        Ok(())
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
            // All records before it are with the worker by now, which does nothing about a position that it knows.
            if self.partitions.contains_key(&number) {
                self.workers
                    .of(number)
                    .send(Message::Passed(number, position));
            }
        }
        Ok(())
    }

    /// Takes the available records, at most [`TURN`].
    fn turn(&mut self, wait: Duration) -> Result<(), Failure> {
        let mut taken: HashMap<i32, Vec<Incoming>> = HashMap::new();
        let mut wait = wait;
        for _ in 0..TURN {
            match self.member.poll(wait)? {
                Polled::Message(message) => {
                    let incoming = Incoming {
                        offset: Offset(message.offset()),
                        content: read_command(&message)?,
                    };
                    taken.entry(message.partition()).or_default().push(incoming);
                }
                Polled::Assigned(partitions) => {
                    self.hand_over(taken);
                    return self.assigned(&partitions);
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

    fn hand_over(&self, taken: HashMap<i32, Vec<Incoming>>) {
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

    /// Bounds memory: pauses a partition that holds more than its share until half of it is free, and every partition
    /// during an egress outage. A pause discards the client's prefetched records, so the share is large compared to
    /// them.
    fn flow(&mut self) -> Result<(), Failure> {
        let among = self.partitions.len().max(1);
        let bytes = (self.context.settings.max_queued_bytes / among).max(LEAST_SHARE);
        let commands = (self.context.settings.max_queued_commands / among).max(LEAST_COMMANDS);
        let all_paused = self.outage.is_paused();
        for (&number, owned) in &mut self.partitions {
            let (held, count) = (owned.load.bytes(), owned.load.commands());
            owned.load.set_share(bytes);
            let at = [TopicPartition {
                topic: Arc::clone(&self.topic),
                partition: number,
            }];
            if !owned.paused && (all_paused || held > bytes || count > commands) {
                self.member.pause(&at)?;
                owned.paused = true;
            } else if owned.paused && !all_paused && held < bytes / 2 && count <= commands / 2 {
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
            self.open(number, Window::new(gap.to), None);
        }
    }

    fn place(&self, number: i32) -> Place {
        Place::new(self.cluster.as_str(), &self.topic, number)
    }

    fn open(&mut self, number: i32, window: Window, committed: Option<Snapshot>) {
        let load = Arc::new(Load::default());
        let place = self.place(number);
        self.workers.place(number).send(Message::Open {
            partition: number,
            place,
            window,
            load: Arc::clone(&load),
        });
        let owned = Owned {
            load,
            paused: false,
            committed,
        };
        self.partitions.insert(number, owned);
    }

    fn assigned(&mut self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        let committed = self.member.committed(partitions)?;
        let mut positions = Vec::with_capacity(committed.len());
        for found in committed {
            let number = found.at.partition;
            let position = found.position.unwrap_or_default();
            let place = self.place(number);
            let (window, error) = Window::restore(position, &found.metadata, place);
            if let Some(ReadError::Newer(version)) = error {
                return Err(Failure::Newer {
                    place: format!("the commit metadata of {} {number}", self.topic),
                    version: version.to_string(),
                    known: VERSION.into(),
                });
            }
            if let Some(error) = error {
                self.metrics.foreign_commit_metadata().inc();
                tracing::error!(
                    topic = %self.topic, partition = number, position = position.0,
                    metric = "hookstream_foreign_commit_metadata_total",
                    "finished commands above the committed position may be delivered again: {error}",
                );
            }
            let known = found.position.map(|position| Snapshot {
                position,
                metadata: found.metadata,
            });
            self.open(number, window, known);
            positions.push((found.at, found.position));
        }
        self.member.take(&positions)?;
        if !partitions.is_empty() {
            tracing::info!(partitions = ?numbers(partitions), "partitions assigned");
        }
        Ok(())
    }

    fn revoked(&mut self, partitions: &[TopicPartition], lost: bool) -> Result<(), Failure> {
        let list = numbers(partitions);
        tracing::info!(partitions = ?list, lost, "partitions revoked");
        if !lost {
            self.drain(&list);
            self.commit_finally()?;
        }
        self.forget(&list);
        self.member.give_up(partitions)
    }

    /// Partitions are revoked in a later generation than the one in which they were assigned, and only the later one
    /// can commit their last transaction. Commits the committed position once more to obtain it.
    fn renew_generation(&self) -> Result<(), KafkaError> {
        let anchor: Vec<Commit> = self
            .partitions
            .iter()
            .filter_map(|(&partition, owned)| {
                let Snapshot { position, metadata } = owned.committed.clone()?;
                Some(Commit {
                    at: TopicPartition {
                        topic: Arc::clone(&self.topic),
                        partition,
                    },
                    position,
                    metadata,
                })
            })
            .take(1)
            .collect();
        self.member.renew_generation(&anchor)
    }

    fn give_up_all(&mut self) -> Result<(), Failure> {
        let list: Vec<i32> = self.partitions.keys().copied().collect();
        self.drain(&list);
        self.commit_finally()?;
        self.forget(&list);
        Ok(())
    }

    /// Lets attempts in flight end, up to the deadline. The next owner repeats those that are cut off.
    fn drain(&self, partitions: &[i32]) {
        let deadline = clock::instant() + self.context.settings.drain_deadline;
        let mut waiting = Vec::new();
        for worker in &self.workers.all {
            let theirs: Vec<i32> = partitions
                .iter()
                .copied()
                .filter(|&number| self.workers.owns(worker, number))
                .collect();
            if theirs.is_empty() {
                continue;
            }
            let (done, ended) = channel();
            let expected = theirs.len();
            worker.send(Message::Stop(theirs, done));
            waiting.push((ended, expected));
        }
        for (ended, expected) in waiting {
            for _ in 0..expected {
                let rest = deadline.saturating_duration_since(clock::instant());
                if ended.recv_timeout(rest).is_err() {
                    tracing::warn!(
                        "the drain deadline has passed: attempts in flight are cut and will be repeated"
                    );
                    return;
                }
            }
        }
    }

    /// Retries for a while, because the group may be between two generations during a revocation.
    fn commit_finally(&mut self) -> Result<(), Failure> {
        const PAUSE: Duration = Duration::from_millis(100);
        let deadline = clock::instant() + FINAL_COMMIT;
        loop {
            match self.renew_generation() {
                Ok(()) if self.commit()? => return Ok(()),
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!("the group does not take this member's commits: {error}");
                    if error.rdkafka_error_code() == Some(RDKafkaErrorCode::UnknownMemberId) {
                        break;
                    }
                }
            }
            if clock::instant() >= deadline {
                break;
            }
            std::thread::sleep(PAUSE);
        }
        tracing::warn!(
            "the last commit did not succeed: what it would have told is done again by the next owner"
        );
        Ok(())
    }

    fn forget(&mut self, list: &[i32]) {
        let gone: HashSet<i32> = list.iter().copied().collect();
        for worker in &self.workers.all {
            worker.send(Message::Close(list.to_vec()));
        }
        self.workers.give_up(list);
        self.partitions.retain(|number, _| !gone.contains(number));
        self.outcomes.forget(&gone);
        for number in list {
            self.metrics.forget_partition(*number);
        }
    }

    fn end(self, ended: Result<(), Failure>) -> Result<(), Failure> {
        self.outcomes.end();
        let ended = self.member.leave(ended);
        self.workers.end();
        ended
    }
}

fn as_gauge(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn numbers(partitions: &[TopicPartition]) -> Vec<i32> {
    partitions.iter().map(|at| at.partition).collect()
}
