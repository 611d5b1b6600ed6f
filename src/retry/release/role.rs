//! The shell of release: polls the tiers, and does what [`Machine`] decides.
//!
//! Each batch and the positions that it came from are one transaction (**One lineage**).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::machine::{Batch, Flow, HeldRecord, Limits, Machine, Now, TierPartition};
use crate::edge::clock;
use crate::edge::kafka::record::{Newer, read_command};
use crate::edge::otlp::Together;
use crate::edge::port::failure::Failure;
use crate::edge::port::records::{Commit, RecordView, TopicPartition};
use crate::edge::port::{Member as _, Polled, Port, ProducerKind};
use crate::edge::writer::Writer;
use crate::model::invalid_record::InvalidRecord;
use crate::model::throttle::Throttle;
use crate::model::units::{EpochMs, Offset, Position};
use crate::model::unwritable::{ProbeIds, Target};
use crate::retry::metrics::ReleaseMetrics;
use crate::runtime::context::RoleContext;
use crate::runtime::recommit::Recommit;

/// Records polled before anything else is looked at.
const TURN: usize = 512;

/// Runs until told to stop.
///
/// # Errors
/// [`Failure`] when the role cannot continue.
pub async fn run<P: Port>(
    port: &P,
    context: &RoleContext,
    metrics: &ReleaseMetrics,
) -> Result<(), Failure> {
    let settings = &context.settings;
    let tiers = settings.retry_topics();
    let mut needed = tiers.clone();
    needed.extend([settings.topics.commands(), settings.topics.invalid_events()]);
    if !context
        .wait_until_possible(port, "release", &needed)
        .await?
    {
        return Ok(());
    }
    let keep_waiting = context.keep_waiting();
    let producer = port
        .producer(settings, &keep_waiting, "release", ProducerKind::Writer)
        .await?;
    let half = || Half {
        writer: Writer::new(port, settings, context.unless_stopping(), "release"),
        under_way: None,
    };
    let (main, probe) = (half(), half());
    let group = format!("{}release", settings.group_prefix);
    let subscribed: Vec<&str> = tiers.iter().map(String::as_str).collect();
    // Small fetches: when a partition is paused, the client drops the records that it has fetched ahead.
    let extra = [
        ("fetch.message.max.bytes", "262144"),
        ("queued.max.messages.kbytes", "4096"),
    ];
    let member = port
        .join(
            settings,
            keep_waiting,
            "release",
            &group,
            &subscribed,
            &extra,
        )
        .await?;
    let mut release = Release {
        port,
        context,
        metrics,
        main: Half {
            writer: main.writer.with(producer),
            ..main
        },
        probe,
        slots: ProbeIds::default(),
        committed: BTreeMap::new(),
        recommit: Recommit::default(),
        commit_lines: Throttle::new(Duration::from_secs(10)),
        next_commit: clock::instant(),
        lines: Throttle::new(Duration::from_secs(5)),
        exported: BTreeSet::new(),
        machine: Machine::new(settings.tiers.clone(), Limits::default(), clock::instant()),
        topics: Topics {
            tiers: tiers.into_iter().map(Arc::from).collect(),
            commands: settings.topics.commands(),
            invalid: settings.topics.invalid_events(),
        },
        stopped_lines: Throttle::new(Duration::from_secs(1)),
        set_aside_lines: settings
            .tiers
            .delays()
            .iter()
            .map(|_| Throttle::new(Duration::from_secs(1)))
            .collect(),
    };
    context.ready();
    let ended = release.run(&member).await;
    context.draining();
    if ended.is_ok() {
        let positions = release.at_rest(|_| true);
        release.commit_positions(&member, positions).await;
    }
    release.end();
    drop(release);
    member.leave(ended).await
}

/// The names of the topics that release reads and writes.
pub(super) struct Topics {
    /// By the tier's index.
    pub(super) tiers: Vec<Arc<str>>,
    pub(super) commands: String,
    pub(super) invalid: String,
}

impl Topics {
    /// A topic's name by its number in the machine.
    pub(super) fn name(&self, topic: usize) -> &str {
        match topic.checked_sub(self.tiers.len()) {
            None => &self.tiers[topic],
            Some(0) => &self.commands,
            Some(_) => &self.invalid,
        }
    }

    pub(super) fn tier_partition(&self, topic: &str, partition: i32) -> Option<TierPartition> {
        let tier = self.tiers.iter().position(|name| &**name == topic)?;
        Some(TierPartition { tier, partition })
    }

    fn tier_partitions(
        &self,
        partitions: &[TopicPartition],
    ) -> impl Iterator<Item = TierPartition> {
        partitions
            .iter()
            .filter_map(|at| self.tier_partition(&at.topic, at.partition))
    }

    pub(super) fn topic_partition(&self, at: TierPartition) -> TopicPartition {
        TopicPartition {
            topic: Arc::clone(&self.tiers[at.tier]),
            partition: at.partition,
        }
    }
}

pub(super) struct Release<'a, P: Port> {
    pub(super) port: &'a P,
    pub(super) context: &'a RoleContext,
    pub(super) metrics: &'a ReleaseMetrics,
    pub(super) main: Half<P>,
    pub(super) probe: Half<P>,
    pub(super) slots: ProbeIds,
    /// The last known committed position of each owned partition.
    pub(super) committed: BTreeMap<TierPartition, Position>,
    /// Whether a commit may arrive behind later ones.
    pub(super) recommit: Recommit,
    pub(super) commit_lines: Throttle,
    pub(super) next_commit: Instant,
    pub(super) lines: Throttle,
    /// Partitions with a series of the metric.
    pub(super) exported: BTreeSet<Target>,
    pub(super) machine: Machine,
    pub(super) topics: Topics,
    pub(super) stopped_lines: Throttle,
    /// By the tier's index, so that each topic is named.
    pub(super) set_aside_lines: Vec<Throttle>,
}

/// Which of the two producers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// All records but those for partitions that refuse writes.
    Main,
    /// One of those.
    Probe,
}

/// A batch that is not acknowledged yet.
pub(super) struct UnderWay {
    pub(super) batch: Batch,
    pub(super) began: Instant,
    /// Of its traced commands.
    pub(super) spans: Together,
    /// The records that it sets aside, as they were sent, with their tiers.
    pub(super) set_aside: Vec<(usize, InvalidRecord)>,
    pub(super) sent: bool,
}

pub(super) struct Half<P: Port> {
    pub(super) writer: Writer<P>,
    pub(super) under_way: Option<UnderWay>,
}

impl<P: Port> Release<'_, P> {
    async fn run(&mut self, member: &P::Member) -> Result<(), Failure> {
        while !self.context.stopping() {
            self.context.heartbeat();
            self.poll(member).await?;
            self.count_stopped();
            for (at, change) in self.machine.flow() {
                let at = [self.topics.topic_partition(at)];
                match change {
                    Flow::Pause => member.pause(&at)?,
                    Flow::Resume => member.resume(&at)?,
                }
            }
            self.move_due(member, Which::Main).await?;
            self.move_due(member, Which::Probe).await?;
            self.observe();
            self.commit_when_due(member).await?;
        }
        Ok(())
    }

    /// Commits positions behind transaction markers; otherwise the group would show lag at rest. After a disturbance,
    /// commits all positions again ([`Recommit`]): if a late commit moved one backwards, the next owner would move records
    /// twice.
    async fn commit_when_due(&mut self, member: &P::Member) -> Result<(), Failure> {
        const EVERY: Duration = Duration::from_secs(1);
        let now = clock::instant();
        if now < self.next_commit {
            return Ok(());
        }
        self.next_commit = now + EVERY;
        if member.was_disturbed() {
            self.recommit.begin(now);
        }
        let mut positions = match self.recommit.is_due(now) {
            true => self.at_rest(|_| true),
            false => BTreeMap::new(),
        };
        for (at, position) in member.passed()? {
            if let Some(from) = self.topics.tier_partition(&at.topic, at.partition)
                && self.machine.is_empty(from)
                && self.committed.get(&from) != Some(&position)
            {
                positions.insert(from, position);
            }
        }
        self.commit_positions(member, positions).await;
        Ok(())
    }

    /// The known positions of the partitions for which `of` holds, without those that a transaction under way moves.
    fn at_rest(&self, of: impl Fn(TierPartition) -> bool) -> BTreeMap<TierPartition, Position> {
        let known = self
            .committed
            .iter()
            .map(|(&from, &position)| (from, position));
        known
            .filter(|&(from, _)| of(from) && !self.machine.is_busy(from))
            .collect()
    }

    /// Commits positions without a transaction. What fails is tried again with the next ones.
    async fn commit_positions(
        &mut self,
        member: &P::Member,
        mut positions: BTreeMap<TierPartition, Position>,
    ) {
        if positions.is_empty() {
            return;
        }
        let commits: Vec<Commit> = positions
            .iter()
            .map(|(&from, &position)| Commit {
                at: self.topics.topic_partition(from),
                position,
                metadata: String::new(),
            })
            .collect();
        let began = clock::instant();
        let done = member.commit(&commits).await;
        let ended = clock::instant();
        let refused = member.refused_commits();
        let error = match done {
            Ok(()) => {
                self.recommit.answered(ended - began, ended);
                for (at, _) in &refused {
                    let from = self.topics.tier_partition(&at.topic, at.partition);
                    from.map(|from| positions.remove(&from));
                }
                self.committed.extend(positions);
                refused.into_iter().next().map(|(_, error)| error)
            }
            Err(error) => {
                self.recommit.begin(ended);
                Some(error)
            }
        };
        if let Some(error) = error
            && let Some(suppressed) = self.commit_lines.pass(ended)
        {
            tracing::warn!(suppressed, "positions not committed, trying again: {error}");
        }
    }

    async fn poll(&mut self, member: &P::Member) -> Result<(), Failure> {
        /// Between looks at a producer that is being created: due records cannot be moved before, however long it takes.
        const OPENING: Duration = Duration::from_millis(20);
        let least = match self.main.writer.is_opening() {
            true => OPENING,
            false => Duration::ZERO,
        };
        let mut wait = self.machine.wait(now()).max(least);
        for _ in 0..TURN {
            match member.poll(wait).await? {
                Polled::Message(message) => self.take(&message),
                Polled::Gap(gap) => {
                    let metrics = &self.context.metrics;
                    metrics.lost_offsets(&gap.at.topic, gap.lost());
                    let at = &gap.at;
                    if let Some(at) = self.topics.tier_partition(&at.topic, at.partition) {
                        if gap.is_restart() {
                            self.end_batches_of(member, &[at]).await?;
                        }
                        self.committed.remove(&at);
                        let dropped = self.machine.gap(at, gap.from, gap.to, gap.end);
                        metrics.lost_offsets(&gap.at.topic, dropped);
                        if dropped > 0 {
                            tracing::error!(
                                topic = &*gap.at.topic,
                                partition = gap.at.partition,
                                dropped,
                                "LOST: retries of a topic that was truncated, deleted or recreated"
                            );
                        }
                    }
                    return Ok(());
                }
                Polled::Assigned(committed) => {
                    member.take(&committed)?;
                    for found in &committed {
                        let at = &found.at;
                        let from = self.topics.tier_partition(&at.topic, at.partition);
                        self.committed.extend(from.zip(found.position));
                    }
                    let partitions: Vec<_> = committed.into_iter().map(|found| found.at).collect();
                    self.machine
                        .assigned(self.topics.tier_partitions(&partitions));
                    if !partitions.is_empty() {
                        tracing::info!(partitions = partitions.len(), "tier partitions assigned");
                    }
                    return Ok(());
                }
                Polled::Revoked { partitions, lost } => {
                    let leaving: Vec<_> = self.topics.tier_partitions(&partitions).collect();
                    self.end_batches_of(member, &leaving).await?;
                    if !lost {
                        // The last commit of partitions that leave counts, whatever arrived late before.
                        let positions = self.at_rest(|at| leaving.contains(&at));
                        self.commit_positions(member, positions).await;
                    }
                    self.committed.retain(|at, _| !leaving.contains(at));
                    self.machine
                        .revoked(self.topics.tier_partitions(&partitions));
                    tracing::info!(partitions = partitions.len(), "tier partitions revoked");
                    return member.give_up(&partitions);
                }
                Polled::Idle => return Ok(()),
            }
            wait = Duration::ZERO;
        }
        Ok(())
    }

    fn take(&mut self, message: &impl RecordView) {
        let at = self
            .topics
            .tier_partition(message.topic(), message.partition());
        let Some(at) = at.filter(|&at| self.machine.takes(at)) else {
            return;
        };
        match read_command(message) {
            Ok(content) => {
                let record = HeldRecord {
                    offset: Offset(message.offset()),
                    appended: message.timestamp().unwrap_or(EpochMs(0)),
                    content,
                };
                self.machine.take(at, record);
            }
            Err(Newer { version }) => {
                self.machine.stop(at);
                if let Some(suppressed) = self.stopped_lines.pass(clock::instant()) {
                    tracing::error!(
                        topic = message.topic(),
                        partition = message.partition(),
                        offset = message.offset(),
                        version,
                        metric = "hookstream_stopped_partitions",
                        suppressed,
                        "partition stopped: this record was written by a newer hookstream; upgrade every replica",
                    );
                }
            }
        }
    }

    fn count_stopped(&self) {
        for (tier, topic) in self.topics.tiers.iter().enumerate() {
            let stopped = i64::try_from(self.machine.stopped(tier)).unwrap_or(i64::MAX);
            self.context.metrics.stopped_partitions(topic).set(stopped);
        }
    }
}

pub(super) fn now() -> Now {
    Now {
        wall: clock::now(),
        steady: clock::instant(),
    }
}
