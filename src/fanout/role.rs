//! The shell of fan-out: polls events, writes their commands, and commits positions, over what [`Sources`] and [`Trials`]
//! decide.
//!
//! | file | what |
//! |---|---|
//! | `writing` | the records of an event, and waiting while there is no room |
//! | `committing` | acknowledgements, positions, epochs, the number of partitions of the commands |
//! | `schema_waits` | partitions that wait for a schema |
//! | `topics` | the event topics |
//!
//! Nothing is written in a transaction. After any failure the client is replaced, never used again, and the events are read
//! again from the committed positions: what was written before is then written again, and delivery recognises the copies.

mod committing;
mod schema_waits;
mod topics;
mod writing;

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::blocked::{self, OwnedPartitions};
use super::history::EventPartition;
use super::metrics::FanoutMetrics;
use super::schemas::{Needs, Schemas};
use super::sources::{Assigned, RunAhead, Sources, Tag, Take};
use super::topics::needed_topics;
use super::trials::{Limits, Next, Trials};
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::client::RECORD_OVERHEAD;
use crate::edge::kafka::cluster::ClusterId;
use crate::edge::otlp::Open;
use crate::edge::port::failure::{BatchError, ClientError, Failure};
use crate::edge::port::gap::Gap;
use crate::edge::port::records::{Committed, RecordView, TopicPartition};
use crate::edge::port::{Member as _, Polled, Port, Producer as _, ProducerKind};
use crate::model::span::Facts;
use crate::model::subscription::Subscription;
use crate::model::throttle::Throttle;
use crate::model::units::Offset;
use crate::runtime::context::RoleContext;
use crate::runtime::recommit::Recommit;
use topics::EventTopics;

/// How long one wait for events lasts.
const WAIT: Duration = Duration::from_millis(100);
/// How often the number of partitions of the commands is asked for.
const COUNT_EVERY: Duration = Duration::from_secs(10);
/// How long a revocation and a stop wait for acknowledgements. What is not acknowledged by then is written again by the
/// next owner.
const DRAIN: Duration = Duration::from_secs(5);

/// Room in a command's record for the subscription's names and for what is of a fixed size, bytes.
const NAMES: usize = 16 * 1024;

/// How far events run beyond the committed positions while a partition of the commands takes no writes.
const RUN_AHEAD: RunAhead = RunAhead {
    events: 100_000,
    bytes: 64 * 1024 * 1024,
};

/// Runs until told to stop.
///
/// # Errors
/// [`Failure`] when the role cannot continue.
pub async fn run<P: Port>(
    port: &P,
    context: &RoleContext,
    metrics: &FanoutMetrics,
) -> Result<(), Failure> {
    let settings = &context.settings;
    if !context
        .wait_until_possible(port, "fanout", &needed_topics(settings))
        .await?
    {
        return Ok(());
    }
    let kind = ProducerKind::Copier;
    let producer = port
        .producer(settings, &context.keep_waiting(), "fanout", kind)
        .await?;
    let commands = settings.topics.commands();
    let Some(partitions) = count_partitions(port, context, &producer, &commands).await else {
        producer.abandon().await;
        return Ok(());
    };
    let group = format!("{}fanout", settings.group_prefix);
    let topics = settings.topics.fanned_out();
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    let keep_waiting = context.keep_waiting();
    let member = port
        .join(settings, keep_waiting, "fanout", &group, &topics, &[])
        .await?;
    let owned = OwnedPartitions::default();
    let watch = blocked::watch(port, settings, metrics, &owned)?;
    let now = clock::instant();
    let mut fanout = Fanout {
        context,
        metrics,
        port,
        producer,
        sources: Sources::new(RUN_AHEAD, partitions, port.seed()),
        trials: Trials::new(limits(settings)),
        schemas: Schemas::start(settings, metrics, now)?,
        cluster: context.cluster()?,
        spans: Vec::new(),
        matching: Vec::new(),
        header: String::new(),
        invalid_log: Throttle::new(Duration::from_secs(1)),
        commit_log: Throttle::new(Duration::from_secs(10)),
        recommit: Recommit::default(),
        events: EventTopics::new(settings),
        commands,
        invalid: settings.topics.invalid_events(),
        owned,
        revoked: None,
        full_since: None,
        is_paused: false,
        dropped: BTreeSet::new(),
        stopped: BTreeSet::new(),
        next_commit: now,
        next_passed: now,
        next_count: now + COUNT_EVERY,
    };
    context.ready();
    let ended = fanout.run(&member).await;
    context.draining();
    let ended = match ended {
        Ok(()) => fanout.finish(&member).await,
        failed => failed,
    };
    fanout.producer.abandon().await;
    let ended = member.leave(ended).await;
    watch.end(port).await;
    ended
}

/// The number of partitions of the commands; `None` when told to stop before a broker has said it.
async fn count_partitions<P: Port>(
    port: &P,
    context: &RoleContext,
    producer: &P::Producer,
    commands: &str,
) -> Option<i32> {
    while !context.stopping() {
        context.heartbeat();
        if let Some(count) = producer.partitions(commands).await {
            return Some(count);
        }
        port.sleep(WAIT).await;
    }
    None
}

fn limits(settings: &Settings) -> Limits {
    Limits {
        event_bytes: settings.max_event_bytes,
        command_bytes: settings.max_event_bytes + RECORD_OVERHEAD - NAMES,
    }
}

struct Fanout<'a, P: Port> {
    context: &'a RoleContext,
    metrics: &'a FanoutMetrics,
    port: &'a P,
    producer: P::Producer,
    sources: Sources,
    trials: Trials,
    schemas: Schemas,
    cluster: ClusterId,
    /// Of the traced events that are not acknowledged.
    spans: Vec<(Tag, Open, Facts)>,
    /// The subscriptions that match an event; empty between two events.
    matching: Vec<Arc<Subscription>>,
    /// The header `hs-source` of a command; of no use between two of them.
    header: String,
    invalid_log: Throttle,
    commit_log: Throttle,
    recommit: Recommit,
    events: EventTopics,
    commands: String,
    invalid: String,
    /// For the task that looks for open transactions.
    owned: OwnedPartitions,
    /// Partitions that were revoked while an event was written, and whether they are lost: to be responded to next.
    revoked: Option<(Vec<TopicPartition>, bool)>,
    /// Since when nothing is taken because there is no room.
    full_since: Option<Instant>,
    /// Whether all partitions are paused since there has been no room for long.
    is_paused: bool,
    /// Partitions of which a record was dropped meanwhile.
    dropped: BTreeSet<EventPartition>,
    /// Partitions whose position a newer program has committed: they are not read.
    stopped: BTreeSet<EventPartition>,
    next_commit: Instant,
    next_passed: Instant,
    next_count: Instant,
}

impl<P: Port> Fanout<'_, P> {
    async fn run(&mut self, member: &P::Member) -> Result<(), Failure> {
        while !self.context.stopping() {
            self.context.heartbeat();
            let done = self.turn(member).await;
            self.recover(member, done).await?;
        }
        Ok(())
    }

    /// Waits for what is under way, and commits it.
    async fn finish(&mut self, member: &P::Member) -> Result<(), Failure> {
        match self.settle(member, DRAIN, None).await {
            Ok(true) => {}
            // The next owner writes it again.
            Ok(false) => tracing::info!(
                events = self.sources.uncommitted(),
                "events not committed: their records are not acknowledged"
            ),
            Err(error) => tracing::info!("events not committed: {error}"),
        }
        Ok(())
    }

    async fn turn(&mut self, member: &P::Member) -> Result<(), BatchError> {
        self.read_held(member).await?;
        self.commit_when_due(member).await?;
        if let Some((partitions, lost)) = self.revoked.take() {
            return self.revoked(member, &partitions, lost).await;
        }
        if self.sources.is_full() {
            return self.wait_for_room(member).await;
        }
        self.go_on(member).await?;
        match member.poll(self.wait()).await.map_err(BatchError::Failed)? {
            Polled::Message(message) => self.message(member, &message).await,
            Polled::Idle => Ok(()),
            Polled::Gap(gap) => {
                self.gap(&gap);
                Ok(())
            }
            Polled::Assigned(committed) => self.assigned(member, &committed).await,
            Polled::Revoked { partitions, lost } => self.revoked(member, &partitions, lost).await,
        }
    }

    fn gap(&mut self, gap: &Gap) {
        self.context.metrics.lost_offsets(&gap.at.topic, gap.lost());
        let at = self.events.event_partition(&gap.at.topic, gap.at.partition);
        self.sources.moved(at, gap.to);
    }

    async fn message(
        &mut self,
        member: &P::Member,
        message: &impl RecordView,
    ) -> Result<(), BatchError> {
        let at = self
            .events
            .event_partition(message.topic(), message.partition());
        if self.trials.is_held(at) {
            return Ok(());
        }
        let offset = Offset(message.offset());
        let needs = self.schemas.needs(message);
        if let Needs::Later(schema) = needs {
            return self.wait_for_schema(member, at, offset, schema);
        }
        if self.trials.is_alone(at, offset) && !self.settle(member, DRAIN, None).await? {
            // What is under way may take for ever, and this one cannot be tried beside it.
            return self.hold(member, at, offset);
        }
        let Some(tag) = self.take(member, message, at, offset).await? else {
            return Ok(());
        };
        let is_alone = self.trials.take(at, offset);
        self.write(member, message, (at, offset), tag, &needs)
            .await?;
        if is_alone && self.settle(member, DRAIN, None).await? {
            self.trials.succeeded();
        }
        Ok(())
    }

    /// Takes an event, whose source begins a new epoch first if it must. `None` if its partition is not read.
    async fn take(
        &mut self,
        member: &P::Member,
        message: &impl RecordView,
        at: EventPartition,
        offset: Offset,
    ) -> Result<Option<Tag>, BatchError> {
        /// A source may find that it must begin an epoch only after another reason for one is gone.
        const TRIES: usize = 3;
        for _ in 0..TRIES {
            match self.sources.take(at, message.leader_epoch(), offset) {
                Take::Taken(tag) => return Ok(Some(tag)),
                Take::NotOwned => return Ok(None),
                Take::Begin => self.begin(member, at, offset.position()).await?,
            }
        }
        Err(Failure::Internal("a source begins one epoch after the other".to_owned()).into())
    }

    fn hold(
        &mut self,
        member: &P::Member,
        at: EventPartition,
        offset: Offset,
    ) -> Result<(), BatchError> {
        self.trials.wait(at, offset, clock::instant());
        Ok(member.pause(&[self.events.topic_partition(at)])?)
    }

    /// Reads partitions again that were held because of an event that failed alone, or for a schema.
    async fn read_held(&mut self, member: &P::Member) -> Result<(), Failure> {
        let mut due = self.trials.due(clock::instant());
        due.extend(self.schemas_due());
        if due.is_empty() {
            return Ok(());
        }
        self.read_from_committed(member, &due).await
    }

    /// Reads some partitions again from their committed positions.
    async fn read_from_committed(
        &mut self,
        member: &P::Member,
        which: &[EventPartition],
    ) -> Result<(), Failure> {
        for &at in which {
            self.sources.rewound(at);
        }
        let each = which.iter();
        let places: Vec<_> = each.map(|&at| self.events.topic_partition(at)).collect();
        member.resume(&places)?;
        member.rewind(&places).await
    }

    async fn assigned(
        &mut self,
        member: &P::Member,
        committed: &[Committed],
    ) -> Result<(), BatchError> {
        // Partitions that stay are read on, and what is under way of them goes on.
        let (mut taken, mut unread) = (Vec::new(), Vec::new());
        for found in committed {
            let at = self
                .events
                .event_partition(&found.at.topic, found.at.partition);
            let place = self.events.place(self.cluster.as_str(), at);
            match self
                .sources
                .assigned(at, place, found.position, &found.metadata)
            {
                Assigned::Ready => taken.push(at),
                Assigned::Newer(version) => {
                    tracing::error!(
                        topic = %found.at.topic,
                        partition = found.at.partition,
                        version,
                        supported = crate::model::source::VERSION,
                        metric = "hookstream_stopped_partitions",
                        "a newer hookstream has committed this partition's position: it is not read here; run only the newer version",
                    );
                    unread.push(found.at.clone());
                    self.stopped.insert(at);
                }
            }
        }
        member.take(committed)?;
        member.stop_reading(&unread)?;
        self.trials.assigned(taken.into_iter());
        let partitions: Vec<_> = committed.iter().map(|found| found.at.clone()).collect();
        log_partitions("partitions assigned", &partitions);
        self.note_owned();
        Ok(())
    }

    async fn revoked(
        &mut self,
        member: &P::Member,
        partitions: &[TopicPartition],
        lost: bool,
    ) -> Result<(), BatchError> {
        let what = if lost {
            "partitions lost"
        } else {
            "partitions revoked"
        };
        log_partitions(what, partitions);
        let given_up = self.events.event_partitions(partitions);
        self.trials.revoking(&given_up);
        let settled = match lost {
            true => Ok(false),
            false => self.settle(member, DRAIN, Some(&given_up)).await,
        };
        match settled {
            Ok(true) => {}
            // **Owner only**: what the client has queued of them is not to be written any more.
            Ok(false) if lost || self.sources.has_uncommitted(&given_up) => {
                self.trials.give_up();
                self.read_again(member, &what).await?;
            }
            Ok(false) => {}
            Err(error) => self.recover(member, Err(error)).await?,
        }
        for &at in &given_up {
            self.no_longer_waits(at);
            self.sources.removed(at);
            self.dropped.remove(&at);
            self.stopped.remove(&at);
        }
        self.trials.revoked(&given_up);
        self.note_owned();
        Ok(member.give_up(partitions)?)
    }

    fn note_owned(&self) {
        for (number, topic) in self.events.names().enumerate() {
            let stopped = self.stopped.iter().filter(|at| at.topic == number);
            let stopped = i64::try_from(stopped.count()).unwrap_or(i64::MAX);
            self.context.metrics.stopped_partitions(topic).set(stopped);
        }
        let owned = self.trials.owned();
        let owned = owned.map(|at| self.events.topic_partition(at)).collect();
        *self.owned.lock().unwrap_or_else(PoisonError::into_inner) = owned;
    }

    /// After a failure: gives up all that is not committed, and reads again from the committed positions.
    async fn recover(
        &mut self,
        member: &P::Member,
        done: Result<(), BatchError>,
    ) -> Result<(), Failure> {
        let Err(error) = done else { return Ok(()) };
        if self.revoked.is_some() && matches!(error, BatchError::Aborted(_)) {
            self.trials.give_up();
            return self.read_again(member, &"partitions move").await;
        }
        let (events, committed) = (self.sources.uncommitted(), self.sources.events_committed());
        let now = clock::instant();
        match self.trials.failed(error.end(), events, committed, now) {
            Next::ReadAgain => self.read_again(member, &error).await,
            Next::Hold { at, offset, wait } => {
                let at = self.events.topic_partition(at);
                self.metrics.held(&at.topic).inc();
                tracing::error!(
                    topic = %at.topic,
                    partition = at.partition,
                    offset = offset.0,
                    retry_in = ?wait,
                    "the commands of this event could not be written, although it was tried alone; its partition waits, the others go on: {error}",
                );
                self.read_again(member, &error).await?;
                member.pause(&[at])
            }
            Next::Stop => Err(match error {
                BatchError::Failed(failure) => failure,
                error => Failure::Internal(error.to_string()),
            }),
        }
    }

    async fn read_again(
        &mut self,
        member: &P::Member,
        reason: &dyn std::fmt::Display,
    ) -> Result<(), Failure> {
        tracing::warn!("reading again from the committed positions: {reason}");
        self.spans.clear();
        self.producer.renew().await?;
        self.next_count = clock::instant();
        self.sources.rewound_all();
        self.dropped.clear();
        let owned: Vec<_> = self
            .trials
            .owned()
            .map(|at| self.events.topic_partition(at))
            .collect();
        member.rewind(&owned).await
    }
}

/// What is under way is given up for a rebalance.
fn interrupted() -> BatchError {
    BatchError::Aborted(ClientError::canceled())
}

fn log_partitions(what: &str, partitions: &[TopicPartition]) {
    if !partitions.is_empty() {
        let list: Vec<String> = partitions
            .iter()
            .map(|at| format!("{} {}", at.topic, at.partition))
            .collect();
        tracing::info!("{what}: {}", list.join(", "));
    }
}
