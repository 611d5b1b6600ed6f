//! The step before a group's roles join it: where to begin to read each topic, written down as committed positions.
//!
//! A group without positions would otherwise begin at the first record, whether it never ran, or its positions have
//! expired and everything would be sent again. So a first start leaves a marker ([`start_marker`]), and what a start
//! decides is in `decision`.
//!
//! With exactly-once, positions and markers are written in one transaction with a transactional id that all replicas of
//! the role share: whoever starts it fences the others, and reads again before it writes. A replica joins the group only
//! after this step, so no replica commits a position in a topic that has not begun. Without transactions the positions
//! come first: those of a group that has members are refused, and positions without a marker win.

mod decision;
mod members;
mod refusals;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{Message, OwnedHeaders};
use rdkafka::topic_partition_list::TopicPartitionList;

use super::{Client, GroupRole, PURPOSE, commit_without_member, not_committed};
use crate::config::{Guarantee, Settings, StartAt};
use crate::edge::clock;
use crate::edge::failpoint;
use crate::edge::kafka::client::consumer_config;
use crate::edge::kafka::cluster::{self, ClusterId};
use crate::edge::kafka::credentials::give_once;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log::{LogContext, LoggedConsumer};
use crate::edge::kafka::log_reader::{
    ANSWER, Log, READING_CLUSTER, Range, Reading, committed_offsets,
};
use crate::edge::kafka::member::{Commit, TopicPartition, hanging_transaction};
use crate::edge::kafka::producer::{BatchError, Producer, Record};
use crate::edge::kafka::subscription_cache::{StartMarkers, SubscriptionCache};
use crate::edge::kafka::wait::KeepWaiting;
use crate::model::source::FIRST_START;
use crate::model::start_marker::{self, GroupMarkers};
use crate::model::transaction_end::TransactionEnd;
use crate::model::units::Position;
use decision::{Decision, Kind, Known, Ranges, decide};
use members::Group;

/// Begins to read `topics` as the group of `role`: commits the positions of a first start. Waits while no broker is
/// reachable. Returns `false` when `keep_waiting` did. A process that has read the topic of the subscriptions gives what it
/// knows, so that only a first start reads all of them again.
///
/// # Errors
/// [`Failure::PositionsLost`] when the group had positions and has none now; [`Failure`] when permission is denied or a
/// topic is missing.
pub fn begin(
    settings: &Settings,
    role: GroupRole,
    topics: &[String],
    keep_waiting: &KeepWaiting,
    subscriptions: Option<&SubscriptionCache>,
) -> Result<bool, Failure> {
    /// The longest delay before another try. At random, so that of many replicas one succeeds.
    const LONGEST: u64 = 2000;
    /// Our own transactions end within the transaction timeout, plus up to ten seconds until a broker notices.
    const DIAGNOSE_EVERY: Duration = Duration::from_secs(30);
    let start = Start {
        settings,
        role,
        group: role.group(settings),
        topics,
        keep_waiting,
        subscriptions,
    };
    /// Replicas that start together need a few tries.
    const LOG_AFTER: Duration = Duration::from_secs(10);
    let mut delay = 100;
    let mut undecided_since = None;
    let mut held_since = None;
    loop {
        let step = start.attempt();
        if !matches!(step, Ok(Step::Held(_))) {
            held_since = None;
        }
        match step {
            Ok(Step::Done) => return Ok(true),
            Ok(Step::Again(why)) => {
                let now = clock::instant();
                let since = *undecided_since.get_or_insert(now);
                if now.saturating_duration_since(since) >= LOG_AFTER {
                    undecided_since = Some(now);
                    tracing::warn!(group = start.group, "start not decided, retrying: {why}");
                } else {
                    tracing::debug!(group = start.group, "start not decided yet: {why}");
                }
            }
            Ok(Step::Held(failure)) => {
                tracing::warn!(
                    group = start.group,
                    "start not decided, retrying: {failure}"
                );
                let now = clock::instant();
                let since = held_since.get_or_insert(now);
                if now.saturating_duration_since(*since) >= DIAGNOSE_EVERY {
                    let found = hanging_transaction(settings, PURPOSE, &start.group);
                    tracing::error!(group = start.group, "{found}");
                    *since = now;
                }
            }
            Err(failure) if passes(&failure) => {
                tracing::warn!(
                    group = start.group,
                    "start not decided, retrying: {failure}"
                );
            }
            Err(failure) => return Err(failure),
        }
        if !keep_waiting() {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(fastrand::u64(delay / 2..=delay)));
        delay = (delay * 2).min(LONGEST);
    }
}

/// Whether waiting may help.
fn passes(failure: &Failure) -> bool {
    match failure {
        Failure::Client { source, .. } => source.is_moving() || source.is_unreachable(),
        // Another replica decides at the same time.
        Failure::Fenced { .. } => true,
        // Files of credentials are read again, and a new token replaces one that has expired.
        Failure::Refused { .. } => true,
        other => other.is_unreachable(),
    }
}

/// The result of one try.
enum Step {
    Done,
    Again(String),
    /// The positions can be read, but not as read-committed readers see them: an open transaction holds one.
    Held(Failure),
}

struct Start<'a> {
    settings: &'a Settings,
    role: GroupRole,
    group: String,
    topics: &'a [String],
    keep_waiting: &'a KeepWaiting,
    subscriptions: Option<&'a SubscriptionCache>,
}

fn known<'p>(markers: &GroupMarkers, topic: &str, positions: &'p [Option<i64>]) -> Known<'p> {
    Known {
        positions,
        marker: markers.here.get(topic).copied(),
        is_elsewhere: markers.elsewhere.iter().any(|known| known == topic),
    }
}

/// What to write, and to report.
#[derive(Default)]
struct Plan {
    commits: Vec<Commit>,
    /// By topic.
    markers: Vec<(String, i32)>,
    skipped: Ranges,
    to_read: Ranges,
    /// Topics of which no partition had a position.
    first: Vec<String>,
}

impl Start<'_> {
    fn attempt(&self) -> Result<Step, Failure> {
        // As read-uncommitted readers see them: a transaction that holds a position never hides that there is one.
        let client = self.client("read_uncommitted")?;
        let positions = self.positions(&client)?;
        let markers = match self.subscriptions {
            // One that was removed meanwhile only ends this start a step early: nothing is read without a position.
            Some(cache) => {
                cluster::require(client.client(), ANSWER, READING_CLUSTER).map(|cluster| {
                    let markers = self.of_group(&cluster, cache.start_markers());
                    (cluster, Some(markers))
                })
            }
            None => {
                let topic = self.settings.topics.subscriptions();
                let log = Log::open(self.settings, topic, PURPOSE);
                log.and_then(|log| Ok((log.cluster()?, self.markers(&log)?)))
            }
        };
        let (cluster, markers) = match markers {
            Ok((cluster, Some(markers))) => (cluster, markers),
            Ok((_, None)) => return Ok(Step::Again("interrupted".to_owned())),
            Err(denied) => return self.without_marker(&positions, denied),
        };
        let all = self.topics.iter().zip(&positions);
        if all
            .into_iter()
            .all(|(topic, positions)| known(&markers, topic, positions).is_complete())
        {
            return Ok(Step::Done);
        }
        match self.decide(cluster.as_str()) {
            Err(denied) => self.without_marker(&positions, denied),
            decided => decided,
        }
    }

    /// An installation of an older version may lack the permission to write markers, which it needs for nothing else.
    fn without_marker(
        &self,
        positions: &[Vec<Option<i64>>],
        failure: Failure,
    ) -> Result<Step, Failure> {
        if !self.kind().has_begun(positions) || !matches!(failure, Failure::Denied { .. }) {
            return Err(failure);
        }
        tracing::warn!(
            group = self.group,
            "the start is not recorded, so positions that expire later will look like a first start: {failure}"
        );
        Ok(Step::Done)
    }

    /// Decides and writes, while other replicas may do the same.
    fn decide(&self, cluster: &str) -> Result<Step, Failure> {
        let purpose = self.role.as_str();
        // From here on no other replica can write what it has decided.
        let id = format!("{}-start", self.group);
        let producer = Producer::shared(self.settings, self.keep_waiting, purpose, id)?;
        let client = self.client("read_committed")?;
        let log = Log::open(self.settings, self.settings.topics.subscriptions(), PURPOSE)?;
        let Some(markers) = self.markers(&log)? else {
            return Ok(Step::Again("interrupted".to_owned()));
        };
        failpoint::point("start-markers.after");
        // After the markers: one that fences this one meanwhile commits both together. In the other order its marker would
        // be seen without its positions, as if these had been lost.
        let positions = match self.positions(&client) {
            Err(failure) if failure.is_unreachable() => return Ok(Step::Held(failure)),
            read => read?,
        };
        let plan = match self.plan(&client, &positions, &markers)? {
            ControlFlow::Continue(plan) => plan,
            ControlFlow::Break(step) => return Ok(step),
        };
        let step = self.write(producer, &client, &plan, cluster)?;
        if matches!(step, Step::Done) {
            self.report(&plan);
        }
        Ok(step)
    }

    fn plan(
        &self,
        client: &Client,
        positions: &[Vec<Option<i64>>],
        markers: &GroupMarkers,
    ) -> Result<ControlFlow<Step, Plan>, Failure> {
        let mut plan = Plan::default();
        let mut group = None;
        let mut lost = Vec::new();
        for (topic, positions) in self.topics.iter().zip(positions) {
            let known = known(markers, topic, positions);
            if known.is_complete() {
                continue;
            }
            if known.lacks_no_position() {
                let count = i32::try_from(positions.len()).unwrap_or(i32::MAX);
                plan.markers.push((topic.clone(), count));
                continue;
            }
            let log = Log::open(self.settings, topic.clone(), PURPOSE)?;
            let ranges = log.stable_ends()?;
            let group = match &group {
                Some(known) => known,
                None => group.insert(Group::ask(client, &self.group)?),
            };
            let transactions = self.settings.guarantee == Guarantee::ExactlyOnce;
            match decide(
                known,
                &ranges,
                self.kind_of(topic),
                group.of(topic),
                transactions,
            ) {
                Decision::GoOn { marker } => {
                    plan.markers
                        .extend(marker.map(|count| (topic.clone(), count)));
                }
                Decision::Begin {
                    partitions,
                    at,
                    is_first,
                    marker,
                } => {
                    let ranges = ranges.into_iter();
                    let ranges: Vec<Range> = ranges
                        .filter(|range| partitions.contains(&range.partition))
                        .collect();
                    let is_fanout = matches!(self.role, GroupRole::Fanout);
                    let metadata = if is_fanout { FIRST_START } else { "" };
                    plan.begin(&log, &ranges, at, metadata)?;
                    plan.markers
                        .extend(marker.map(|count| (topic.clone(), count)));
                    plan.first.extend(is_first.then(|| topic.clone()));
                }
                Decision::Wait => {
                    let why = format!("the group {} rebalances", self.group);
                    return Ok(ControlFlow::Break(Step::Again(why)));
                }
                Decision::Lost(partitions) => lost.push((topic.clone(), partitions)),
                Decision::NotMoved => return Err(self.not_moved(topic)),
                Decision::Busy => return Err(self.busy(topic)),
            }
        }
        match lost.is_empty() {
            true => Ok(ControlFlow::Continue(plan)),
            false => Err(self.lost(&lost)),
        }
    }

    /// Notices are read from the first one: fan-out may begin after delivery.
    fn kind_of(&self, topic: &str) -> Kind {
        if topic == self.settings.topics.notices() {
            Kind::Own
        } else {
            self.kind()
        }
    }

    /// The kind of the event topics among `topics`, if there is one.
    fn start_of(&self, topics: &[String]) -> Kind {
        let mut kinds = topics.iter().map(|topic| self.kind_of(topic));
        let of_events = kinds.find(|kind| matches!(kind, Kind::Events(_)));
        of_events.unwrap_or(Kind::Own)
    }

    fn kind(&self) -> Kind {
        match self.role {
            GroupRole::Fanout => Kind::Events(self.settings.start_at),
            GroupRole::Deliver | GroupRole::Release => Kind::Own,
        }
    }

    fn client(&self, isolation: &str) -> Result<Client, Failure> {
        let mut config = consumer_config(self.settings, PURPOSE, &self.group);
        config.set("isolation.level", isolation);
        let client: Client = config
            .create_with_context(LoggedConsumer(LogContext::new(PURPOSE)))
            .map_err(|error| Failure::from_client("creating a client", error))?;
        give_once(&self.settings.credentials, client.client());
        Ok(client)
    }

    /// The position in each partition of each topic.
    fn positions(&self, client: &Client) -> Result<Vec<Vec<Option<i64>>>, Failure> {
        let what = || format!("reading the positions of {}", self.group);
        let failed = |error| Failure::from_client(what(), error);
        let mut asked = TopicPartitionList::new();
        let mut counts = Vec::new();
        for topic in self.topics {
            let count = partition_count(client, topic)?;
            for partition in 0..count {
                asked.add_partition(topic, partition);
            }
            counts.push(count);
        }
        let found = committed_offsets(client, &asked, ANSWER, what)?;
        let mut all = Vec::new();
        for (topic, count) in self.topics.iter().zip(counts) {
            let mut positions = Vec::new();
            for partition in 0..count {
                let element = found.find_partition(topic, partition);
                if let Some(element) = &element {
                    element.error().map_err(failed)?;
                }
                positions.push(match element.map(|element| element.offset()) {
                    Some(rdkafka::Offset::Offset(position)) => Some(position),
                    _ => None,
                });
            }
            all.push(positions);
        }
        Ok(all)
    }

    /// Reads them; `None` when interrupted.
    fn markers(&self, log: &Log) -> Result<Option<GroupMarkers>, Failure> {
        let cluster = log.cluster()?;
        let mut markers = GroupMarkers::default();
        let stop = || !(self.keep_waiting)();
        let reading = log.read::<Failure>(&log.stable_ends()?, &stop, |message| {
            let key = message.key().unwrap_or_default();
            markers.take(&self.group, cluster.as_str(), key, message.payload());
            Ok(ControlFlow::Continue(()))
        })?;
        Ok((reading == Reading::Complete).then_some(markers))
    }

    fn of_group(&self, cluster: &ClusterId, seen: StartMarkers) -> GroupMarkers {
        let mut markers = GroupMarkers::default();
        for (key, value) in seen {
            markers.take(&self.group, cluster.as_str(), &key, Some(&value));
        }
        markers
    }

    fn write(
        &self,
        mut producer: Producer,
        client: &Client,
        plan: &Plan,
        cluster: &str,
    ) -> Result<Step, Failure> {
        if plan.commits.is_empty() && plan.markers.is_empty() {
            return Ok(Step::Done);
        }
        if self.settings.guarantee == Guarantee::AtLeastOnce {
            match commit_without_member(client, &plan.commits) {
                Err(error) if is_of_group(error.rdkafka_error_code()) => {
                    return Ok(Step::Again(error.to_string()));
                }
                committed => committed.map_err(|error| not_committed(&self.group, error))?,
            }
        }
        let written = self.write_batch(&mut producer, client, plan, cluster);
        match written.map_err(|error| producer.explained(error)) {
            Ok(()) => Ok(Step::Done),
            Err(BatchError::Failed(Failure::Denied { source, .. })) => Err(Failure::Denied {
                what: self.writing(),
                source,
            }),
            Err(BatchError::Failed(failure)) => Err(failure),
            Err(error) => {
                let why = error.to_string();
                if error.end() != TransactionEnd::Fenced {
                    producer.abandon();
                }
                Ok(Step::Again(why))
            }
        }
    }

    /// What is denied when a write is: the topic and the group are in the same transaction.
    fn writing(&self) -> String {
        format!(
            "recording the start of {} (WRITE on {}, READ on the group and on {})",
            self.group,
            self.settings.topics.subscriptions(),
            self.topics.join(", "),
        )
    }

    fn write_batch(
        &self,
        producer: &mut Producer,
        client: &Client,
        plan: &Plan,
        cluster: &str,
    ) -> Result<(), BatchError> {
        let subscriptions = self.settings.topics.subscriptions();
        for (topic, partitions) in &plan.markers {
            let key = start_marker::key(&self.group, topic, cluster);
            let value = start_marker::value(*partitions);
            producer.send(Record {
                topic: &subscriptions,
                partition: None,
                key: Some(key.as_bytes()),
                value: Some(value.as_bytes()),
                headers: OwnedHeaders::new(),
                tag: 0,
            })?;
        }
        // Of no generation: a broker accepts that in a transaction.
        let group = client.group_metadata();
        producer.finish(&plan.commits, group.as_ref())
    }

    fn report(&self, plan: &Plan) {
        if plan.commits.is_empty() {
            return;
        }
        let (skipped, to_read) = (&plan.skipped, &plan.to_read);
        match plan.first.as_slice() {
            [] => tracing::info!(
                group = self.group,
                to_read = to_read.offsets,
                reading = to_read.text(),
                "new partitions are read from their beginning"
            ),
            topics => tracing::info!(
                group = self.group,
                topics = topics.join(","),
                start_at = %self.start_of(topics).start_at(),
                skipped = skipped.offsets,
                to_read = to_read.offsets,
                skipping = skipped.text(),
                reading = to_read.text(),
                "first start"
            ),
        }
    }
}

impl Plan {
    fn begin(
        &mut self,
        log: &Log,
        ranges: &[Range],
        at: StartAt,
        metadata: &str,
    ) -> Result<(), Failure> {
        let positions: Vec<i64> = match at {
            StartAt::Now => ranges.iter().map(|range| range.end).collect(),
            StartAt::Earliest => ranges.iter().map(|range| range.low).collect(),
            StartAt::Time(time) => {
                let later = log.since(ranges, time)?;
                later.iter().map(|range| range.low).collect()
            }
        };
        let topic: Arc<str> = Arc::from(log.topic());
        for (range, position) in ranges.iter().zip(positions) {
            let partition = range.partition;
            self.skipped.add(&topic, partition, range.low, position);
            self.to_read.add(&topic, partition, position, range.end);
            self.commits.push(Commit {
                at: TopicPartition {
                    topic: Arc::clone(&topic),
                    partition,
                },
                position: Position(position),
                metadata: metadata.to_owned(),
            });
        }
        Ok(())
    }
}

/// Whether a commit was refused since the group has members by now.
fn is_of_group(code: Option<RDKafkaErrorCode>) -> bool {
    matches!(
        code,
        Some(
            RDKafkaErrorCode::UnknownMemberId
                | RDKafkaErrorCode::IllegalGeneration
                | RDKafkaErrorCode::RebalanceInProgress
        )
    )
}

fn partition_count(client: &BaseConsumer<LoggedConsumer>, topic: &str) -> Result<i32, Failure> {
    let what = || format!("describing the topic {topic}");
    let metadata = client
        .fetch_metadata(Some(topic), ANSWER)
        .map_err(|error| Failure::from_client(what(), error))?;
    let Some(found) = metadata.topics().first() else {
        return Err(Failure::TopicMissing(topic.to_owned()));
    };
    match found.error().map(RDKafkaErrorCode::from) {
        None => Ok(i32::try_from(found.partitions().len()).unwrap_or(i32::MAX)),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
            Err(Failure::TopicMissing(topic.to_owned()))
        }
        Some(code) => Err(Failure::from_client(
            what(),
            rdkafka::error::KafkaError::MetadataFetch(code),
        )),
    }
}
