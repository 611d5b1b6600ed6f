//! Delivery: commands become POSTs, and POSTs outcomes that are durable before the position passes them.
//!
//! This thread polls Kafka, runs the rebalances and commits: all that concerns the group happens here, in
//! order. The partitions' windows and lanes live on `worker` threads; between the two go whole batches.
//! Every 100 ms the workers tell each partition's state: its window, and the outcomes since the last time.
//! Outcomes and positions are committed in one transaction; positions alone by a plain commit. After a failed
//! transaction the outcomes are kept and written again with the next state: an abort repeats no POST.

mod endpoint;
pub mod lane;
pub mod outcome;
pub mod signing;
pub mod window;
mod worker;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::Message;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::OwnedHeaders;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::clock;
use crate::command::{Command, Envelope};
use crate::config::{Guarantee, Settings};
use crate::egress::EgressPolicy;
use crate::http::{HttpClient, HttpOptions};
use crate::kafka::consumer::{Commit, Member, Polled, TopicPartition};
use crate::kafka::producer::{BatchError, Producer, Record};
use crate::kafka::{Failure, InvalidRecord, command_headers, read_command, with_header};
use crate::metrics::{Role as RoleLabel, TransactionResult};
use crate::service::RoleContext;
use crate::subscription::{State, with_state};
use crate::units::Offset;
use window::{Snapshot, Window};
use worker::{Incoming, Load, Order, Outcome, PartitionState, Surroundings};

/// How often positions and outcomes are committed.
const COMMIT_EVERY: Duration = Duration::from_millis(100);
/// Records taken in one turn before anything else is looked at.
const TURN: usize = 512;
/// A partition may always hold this much, bytes, however many partitions share `--max-queued-bytes`.
const LEAST_SHARE: usize = 256 * 1024;
/// How long the last commit of partitions that are given up may take, tries included.
const FINAL_COMMIT: Duration = Duration::from_secs(5);
/// Look-ups of names at a time, per worker; more wait, within their attempts' deadlines.
const RESOLVERS: usize = 16;
/// How long leaving the group may take.
const CLOSE: Duration = Duration::from_secs(5);

/// Runs until told to stop, then drains.
///
/// # Errors
/// [`Failure`] when the role cannot go on.
pub fn run(context: &RoleContext) -> Result<(), Failure> {
    let settings = &context.settings;
    let topics = needed_topics(settings);
    if !context.wait_until_possible("deliver", &topics)? {
        return Ok(());
    }
    let workers = Workers::start(context)?;
    let group = format!("{}deliver", settings.group_prefix);
    let topic = settings.topics.commands();
    let producer = Producer::new(settings, "deliver", 0)?;
    let prefetch = [("queued.max.messages.kbytes", "4096")];
    let member = Member::join(settings, "deliver", &group, &[&topic], &prefetch)?;
    let mut delivery = Delivery {
        context,
        member,
        producer,
        workers,
        topic: Arc::from(topic),
        partitions: HashMap::new(),
        kept: Vec::new(),
        next_commit: clock::instant(),
    };
    context.ready();
    let result = delivery.go();
    if result.is_ok() {
        context.draining();
    }
    let ended = result.and_then(|()| delivery.give_up_all());
    delivery.end();
    ended
}

fn needed_topics(settings: &Settings) -> Vec<String> {
    let topics = &settings.topics;
    let mut needed = vec![
        topics.commands(),
        topics.subscriptions(),
        topics.dead_letters(),
        topics.invalid_events(),
    ];
    needed.extend(
        settings
            .tiers
            .delays()
            .iter()
            .map(|&delay| topics.retry(delay)),
    );
    needed
}

/// A partition as this thread sees it.
struct Owned {
    load: Arc<Load>,
    paused: bool,
    /// What the broker has, as far as is known.
    committed: Option<Snapshot>,
}

struct Delivery<'a> {
    context: &'a RoleContext,
    member: Member,
    producer: Producer,
    workers: Workers,
    topic: Arc<str>,
    partitions: HashMap<i32, Owned>,
    /// Outcomes of a transaction that failed, to be written with the next one.
    kept: Vec<(i32, Outcome)>,
    next_commit: Instant,
}

impl Delivery<'_> {
    fn go(&mut self) -> Result<(), Failure> {
        while !self.context.stopping() {
            self.context.beat();
            let wait = self.next_commit.saturating_duration_since(clock::instant());
            self.turn(wait)?;
            self.flow()?;
            if clock::instant() >= self.next_commit {
                self.commit()?;
                self.next_commit = clock::instant() + COMMIT_EVERY;
            }
        }
        Ok(())
    }

    /// Takes what there is, at most [`TURN`] records.
    fn turn(&mut self, wait: Duration) -> Result<(), Failure> {
        let mut taken: HashMap<i32, Vec<Incoming>> = HashMap::new();
        let mut wait = wait;
        for _ in 0..TURN {
            match self.member.poll(wait)? {
                Polled::Message(message) => {
                    let incoming = Incoming {
                        offset: Offset(message.offset()),
                        content: read_command(&message),
                    };
                    taken.entry(message.partition()).or_default().push(incoming);
                }
                Polled::Assigned(partitions) => {
                    self.hand_over(taken);
                    return self.assigned(&partitions);
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
            // What was still in the client's queue of a partition that was given up is not ours.
            let Some(owned) = self.partitions.get(&partition) else {
                continue;
            };
            for one in &incoming {
                owned.load.add(one.weight());
            }
            self.workers
                .of(partition)
                .send(Order::Take(partition, incoming));
        }
    }

    /// Bounds what waits in memory: a partition that holds more than its share is paused until half of that has gone.
    /// Pausing throws the client's prefetched records away, so the share is made large against them.
    fn flow(&mut self) -> Result<(), Failure> {
        let share = (self.context.settings.max_queued_bytes / self.partitions.len().max(1))
            .max(LEAST_SHARE);
        for (&number, owned) in &mut self.partitions {
            let held = owned.load.bytes();
            let at = [TopicPartition {
                topic: Arc::clone(&self.topic),
                partition: number,
            }];
            if !owned.paused && held > share {
                self.member.pause(&at)?;
                owned.paused = true;
            } else if owned.paused && held < share / 2 {
                self.member.resume(&at)?;
                owned.paused = false;
            }
        }
        let loads = || self.partitions.values().map(|owned| &owned.load);
        self.context
            .metrics
            .queued_bytes()
            .set(as_gauge(loads().map(|load| load.bytes()).sum()));
        self.context
            .metrics
            .queued_commands()
            .set(as_gauge(loads().map(|load| load.commands()).sum()));
        Ok(())
    }

    fn assigned(&mut self, partitions: &[TopicPartition]) -> Result<(), Failure> {
        let committed = self.member.committed(partitions)?;
        let mut positions = Vec::with_capacity(committed.len());
        for found in committed {
            let number = found.at.partition;
            let position = found.position.unwrap_or_default();
            let (window, error) = Window::restore(position, &found.metadata, &self.topic, number);
            if let Some(error) = error {
                self.context.metrics.foreign_commit_metadata().inc();
                tracing::error!(
                    topic = %self.topic, partition = number, position = position.0,
                    "finished commands above the committed position may be delivered again: {error}",
                );
            }
            let load = Arc::new(Load::default());
            self.workers.of(number).send(Order::Open {
                partition: number,
                window,
                load: Arc::clone(&load),
            });
            let known = found.position.map(|position| Snapshot {
                position,
                metadata: found.metadata,
            });
            self.partitions.insert(
                number,
                Owned {
                    load,
                    paused: false,
                    committed: known,
                },
            );
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

    /// Partitions are revoked in a later generation than they were taken in, and only in that one the last
    /// transaction of theirs is accepted. What is committed already is committed once more to ask for it.
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

    /// Lets attempts in flight end, up to the deadline. What is cut then is delivered again by the next owner.
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
            worker.send(Order::Stop(theirs, done));
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

    /// The group may be between two generations when partitions are given up, so this is tried for a while.
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
            worker.send(Order::Close(list.to_vec()));
        }
        self.partitions.retain(|number, _| !gone.contains(number));
        self.kept.retain(|(number, _)| !gone.contains(number));
        for number in list {
            self.context.metrics.forget_partition(*number);
        }
    }

    /// Commits what has changed since the last time. `Ok(false)` when that did not succeed and is to be tried again.
    fn commit(&mut self) -> Result<bool, Failure> {
        let states = self.workers.states()?;
        self.context.metrics.oldest_attempt(
            states
                .iter()
                .map(|state| state.oldest)
                .max()
                .unwrap_or_default(),
        );
        let mut commits = Vec::new();
        let mut outcomes = std::mem::take(&mut self.kept);
        let mut wanted: HashMap<i32, Snapshot> = HashMap::new();
        for state in states {
            self.observe(&state);
            let Some(owned) = self.partitions.get(&state.partition) else {
                continue;
            };
            outcomes.extend(
                state
                    .outcomes
                    .into_iter()
                    .map(|outcome| (state.partition, outcome)),
            );
            if owned.committed.as_ref() != Some(&state.snapshot) {
                let at = TopicPartition {
                    topic: Arc::clone(&self.topic),
                    partition: state.partition,
                };
                let Snapshot { position, metadata } = state.snapshot.clone();
                commits.push(Commit {
                    at,
                    position,
                    metadata,
                });
                wanted.insert(state.partition, state.snapshot);
            }
        }
        if commits.is_empty() && outcomes.is_empty() {
            return Ok(true);
        }
        let done = if outcomes.is_empty() {
            self.commit_positions(&commits)
        } else {
            self.commit_outcomes(outcomes, &commits, &wanted)?
        };
        if done {
            for (number, snapshot) in wanted {
                if let Some(owned) = self.partitions.get_mut(&number) {
                    owned.committed = Some(snapshot);
                }
            }
        }
        Ok(done)
    }

    fn commit_positions(&self, commits: &[Commit]) -> bool {
        match self.member.commit(commits) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(
                    "committing positions: {error}; they are committed with the next ones"
                );
                false
            }
        }
    }

    fn commit_outcomes(
        &mut self,
        outcomes: Vec<(i32, Outcome)>,
        commits: &[Commit],
        wanted: &HashMap<i32, Snapshot>,
    ) -> Result<bool, Failure> {
        let started = clock::instant();
        let generation = self.member.generation();
        let written = self
            .write(&outcomes)
            .and_then(|()| self.producer.finish(commits, generation.as_deref()));
        let took = clock::instant() - started;
        let label = if written.is_ok() {
            TransactionResult::Committed
        } else {
            TransactionResult::Aborted
        };
        self.context
            .metrics
            .transaction(RoleLabel::Deliver, label, took);
        match written {
            Ok(()) if self.context.settings.guarantee == Guarantee::AtLeastOnce => {
                Ok(self.commit_positions(commits))
            }
            Ok(()) => Ok(true),
            Err(BatchError::Failed(failure)) => Err(failure),
            Err(BatchError::TooLarge { tag }) => {
                let what = outcomes
                    .get(tag)
                    .map(|(partition, _)| partition.to_string())
                    .unwrap_or_default();
                Err(Failure::Internal(format!(
                    "an outcome of partition {what} is larger than its topic allows; `hookstream topics check` names the topic whose max.message.bytes is too small"
                )))
            }
            Err(BatchError::Aborted(error)) => {
                tracing::warn!("outcomes were not committed: {error}; they are written again");
                self.producer.renew()?;
                self.keep_unless_durable(outcomes, wanted)
            }
        }
    }

    /// After a commit whose end was not known, and is by now, the committed positions tell. Only partitions with
    /// outcomes can tell: each outcome ends an offset, so nothing but this transaction can have committed what it
    /// wanted to; what it wanted for others, a plain commit may have committed before.
    fn keep_unless_durable(
        &mut self,
        outcomes: Vec<(i32, Outcome)>,
        wanted: &HashMap<i32, Snapshot>,
    ) -> Result<bool, Failure> {
        let telling: HashSet<i32> = outcomes.iter().map(|(number, _)| *number).collect();
        let asked: Vec<_> = telling
            .into_iter()
            .map(|partition| TopicPartition {
                topic: Arc::clone(&self.topic),
                partition,
            })
            .collect();
        if self.context.settings.guarantee == Guarantee::ExactlyOnce {
            for found in self.member.committed(&asked)? {
                let metadata = found.metadata;
                let snapshot = found
                    .position
                    .map(|position| Snapshot { position, metadata });
                if snapshot.is_some() && snapshot.as_ref() == wanted.get(&found.at.partition) {
                    tracing::info!("the outcomes had been committed after all");
                    return Ok(true);
                }
            }
        }
        self.kept = outcomes;
        Ok(false)
    }

    fn write(&mut self, outcomes: &[(i32, Outcome)]) -> Result<(), BatchError> {
        let settings = Arc::clone(&self.context.settings);
        let tiers: Vec<String> = settings
            .tiers
            .delays()
            .iter()
            .map(|&delay| settings.topics.retry(delay))
            .collect();
        let dead_letters = settings.topics.dead_letters();
        for (tag, (_, outcome)) in outcomes.iter().enumerate() {
            match outcome {
                Outcome::Tier(tier, command) => self.write_command(
                    &tiers[*tier],
                    command,
                    command_headers(&command.envelope()),
                    tag,
                )?,
                Outcome::DeadLetter(command, info) => {
                    let headers = info
                        .headers()
                        .iter()
                        .fold(dead_letter_headers(command), |headers, (name, value)| {
                            with_header(headers, name, value)
                        });
                    self.write_command(&dead_letters, command, headers, tag)?;
                }
                Outcome::Invalid(record) => self.write_invalid(record, tag)?,
                Outcome::Disable(id) => self.write_disabled(id, tag)?,
            }
        }
        Ok(())
    }

    fn write_command(
        &mut self,
        topic: &str,
        command: &Command,
        headers: OwnedHeaders,
        tag: usize,
    ) -> Result<(), BatchError> {
        let key = Some(command.subscriber.as_bytes());
        self.producer.send(Record {
            topic,
            partition: None,
            key,
            value: Some(&command.body),
            headers,
            tag,
        })
    }

    fn write_invalid(&mut self, record: &InvalidRecord, tag: usize) -> Result<(), BatchError> {
        let topic = self.context.settings.topics.invalid_events();
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        self.producer.send(Record {
            topic: &topic,
            partition: None,
            key,
            value,
            headers: record.to_headers(),
            tag,
        })
    }

    fn write_disabled(&mut self, id: &str, tag: usize) -> Result<(), BatchError> {
        let Some(record) = self.context.table.record(id) else {
            return Ok(());
        };
        let disabled = match with_state(&record, State::Disabled) {
            Ok(disabled) => disabled,
            Err(error) => {
                tracing::error!(subscription = id, "it cannot be disabled: {error}");
                return Ok(());
            }
        };
        let topic = self.context.settings.topics.subscriptions();
        let (key, value) = (Some(id.as_bytes()), Some(disabled.as_slice()));
        self.producer.send(Record {
            topic: &topic,
            partition: None,
            key,
            value,
            headers: OwnedHeaders::new(),
            tag,
        })
    }

    fn observe(&self, state: &PartitionState) {
        let metrics = &self.context.metrics;
        metrics.window(state.partition, state.span);
        metrics.stalled(state.partition, state.stalled);
    }

    fn end(self) {
        drop(self.producer);
        if !self.member.close(CLOSE) {
            tracing::warn!(
                "leaving the group took too long; the broker will notice by the session timeout"
            );
        }
        self.workers.end();
    }
}

fn as_gauge(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn numbers(partitions: &[TopicPartition]) -> Vec<i32> {
    partitions.iter().map(|at| at.partition).collect()
}

fn dead_letter_headers(command: &Command) -> OwnedHeaders {
    // The letter's own first-failure header stands for the command's.
    command_headers(&Envelope {
        first_failure: None,
        ..command.envelope()
    })
}

struct WorkerHandle {
    orders: UnboundedSender<Order>,
    thread: JoinHandle<()>,
}

impl WorkerHandle {
    fn send(&self, order: Order) {
        if self.orders.send(order).is_err() {
            // Its thread has panicked; asking for states tells the role so.
            tracing::error!("a delivery worker has ended");
        }
    }
}

struct Workers {
    all: Vec<WorkerHandle>,
}

impl Workers {
    fn start(context: &RoleContext) -> Result<Self, Failure> {
        let settings = &context.settings;
        let policy = Arc::new(EgressPolicy::new(&settings.egress));
        let mut options = HttpOptions::new(Arc::clone(&policy));
        options.ca_file.clone_from(&settings.ca_file);
        // One set of trust roots for all; each worker has its own connections.
        let count = settings.workers.max(1);
        let mut all = Vec::with_capacity(count);
        for index in 0..count {
            let client = HttpClient::new(options.clone())
                .map_err(|error| Failure::Internal(error.to_string()))?;
            let surroundings = Surroundings {
                settings: Arc::clone(settings),
                table: Arc::clone(&context.table),
                metrics: context.metrics.clone(),
                policy: Arc::clone(&policy),
                client,
                max_in_flight: settings.max_in_flight.div_ceil(count),
            };
            let (orders, inbox) = unbounded_channel();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                // Names are resolved there: slow DNS must not become hundreds of threads.
                .max_blocking_threads(RESOLVERS)
                .build()
                .map_err(|error| {
                    Failure::Internal(format!("starting a delivery worker: {error}"))
                })?;
            let thread = std::thread::Builder::new()
                .name(format!("deliver-{index}"))
                .spawn(move || {
                    let local = tokio::task::LocalSet::new();
                    local.block_on(&runtime, worker::run(surroundings, inbox));
                    // A name that still resolves on the blocking pool must not hold the process up.
                    runtime.shutdown_background();
                })
                .map_err(|error| {
                    Failure::Internal(format!("starting a delivery worker: {error}"))
                })?;
            all.push(WorkerHandle { orders, thread });
        }
        Ok(Self { all })
    }

    fn index(&self, partition: i32) -> usize {
        usize::try_from(partition).unwrap_or(0) % self.all.len()
    }

    fn of(&self, partition: i32) -> &WorkerHandle {
        &self.all[self.index(partition)]
    }

    fn owns(&self, worker: &WorkerHandle, partition: i32) -> bool {
        std::ptr::eq(self.of(partition), worker)
    }

    fn states(&self) -> Result<Vec<PartitionState>, Failure> {
        let asked: Vec<Receiver<Vec<PartitionState>>> = self
            .all
            .iter()
            .map(|worker| {
                let (reply, states) = channel();
                worker.send(Order::Snapshot(reply));
                states
            })
            .collect();
        let mut all = Vec::new();
        for states in asked {
            let states = states
                .recv()
                .map_err(|_| Failure::Internal("a delivery worker has panicked".to_owned()))?;
            all.extend(states);
        }
        Ok(all)
    }

    fn end(self) {
        for worker in self.all {
            drop(worker.orders);
            if worker.thread.join().is_err() {
                tracing::error!("a delivery worker has panicked");
            }
        }
    }
}
