//! Moves the committed offsets of the groups to a mirrored cluster, exactly. [`control`] shows and sets them, [`start`]
//! writes them at a first start.
//!
//! On a mirror, records have other offsets. MirrorMaker 2 translates a committed offset to one at or before the exact one,
//! and copies commit metadata, whose offsets are invalid on the target. By itself, a failover would repeat the records in
//! between, and all retries that had been released from them.
//!
//! A planned failover therefore describes positions by records: [`export`] on the source after all roles have stopped,
//! [`import`] on the target after the mirror has copied everything. An import commits nothing unless it finds the records
//! of every partition, so it also verifies that the mirror is complete.

pub mod control;
pub mod hold;
pub mod start;
pub mod trail;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::groups::GroupMemberInfo;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::TopicPartitionList;
use serde::{Deserialize, Serialize};

use crate::config::Settings;
use crate::edge::kafka::client::consumer_config;
use crate::edge::kafka::credentials::give_once;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log::{LogContext, LoggedConsumer};
use crate::edge::kafka::log_reader::{ANSWER, Log, Range, Reading, committed_offsets, settled};
use crate::edge::kafka::member::{Commit, TopicPartition, commit_list};
use crate::edge::kafka::record::header_pairs;
use crate::model::units::{Offset, Position};
use crate::model::window::{METADATA_LIMIT, Place, Window};
use trail::{Fingerprint, Trail};

const PURPOSE: &str = "positions";

/// The version of the exported document.
pub const VERSION: u32 = 1;

/// How many offsets before the expected start to begin reading: transaction markers take offsets too.
const SLACK: i64 = 10_000;

/// The positions of all groups, described by records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// [`VERSION`].
    pub version: u32,
    /// The source cluster.
    pub cluster: String,
    /// The partitions with a committed offset.
    pub partitions: Vec<Exported>,
}

/// The position in one partition, described by records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// The role of the group.
    pub role: GroupRole,
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The records around the position.
    #[serde(flatten)]
    pub trail: Trail,
}

/// A role that has a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupRole {
    /// Reads events.
    Fanout,
    /// Reads commands.
    Deliver,
    /// Reads the retry tiers.
    Release,
}

impl GroupRole {
    const ALL: [Self; 3] = [Self::Fanout, Self::Deliver, Self::Release];

    /// The name, as in the group id.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fanout => "fanout",
            Self::Deliver => "deliver",
            Self::Release => "release",
        }
    }

    fn group(self, settings: &Settings) -> String {
        format!("{}{}", settings.group_prefix, self.as_str())
    }

    /// The topics that its group reads.
    #[must_use]
    pub fn topics(self, settings: &Settings) -> Vec<String> {
        let topics = &settings.topics;
        let tiers = settings.tiers.delays().iter();
        match self {
            Self::Fanout => topics.fanned_out(),
            Self::Deliver => vec![topics.commands()],
            Self::Release => tiers.map(|&delay| topics.retry(delay)).collect(),
        }
    }
}

/// Why an export or import failed.
#[derive(Debug, thiserror::Error)]
pub enum PositionsError {
    /// A replica is running.
    #[error("group {0} has members: stop all replicas first, so that its positions do not move")]
    Running(String),
    /// The commit metadata is unreadable.
    #[error("the position of {topic} {partition}: {error}")]
    Metadata {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// What is wrong with it.
        error: crate::model::window::ReadError,
    },
    /// The document is from the target cluster itself.
    #[error(
        "the positions were exported from this cluster ({0}): set --brokers to the other cluster"
    )]
    SameCluster(String),
    /// The document has a later version.
    #[error(
        "the document has version {0}, but this program reads version {VERSION}: use a newer program"
    )]
    Newer(u32),
    /// Records are missing.
    #[error(
        "nothing was committed: these partitions lack the records of the exported positions: {}; the mirror has not copied everything yet, or duplicated records",
        .0.join(", ")
    )]
    NotThere(Vec<String>),
    /// No group reads the topic.
    #[error("{topic} is read by no group; topics with positions: {}", .known.join(", "))]
    UnknownTopic {
        /// The topic.
        topic: String,
        /// The topics that are read.
        known: Vec<String>,
    },
    /// The topic has fewer partitions.
    #[error("{topic} has no partition {partition}; it has {count} partitions, from 0")]
    UnknownPartition {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// How many there are.
        count: usize,
    },
    /// The broker has no such offset.
    #[error("offset {offset} is outside {topic} {partition}, which has {low} to {end}")]
    OutOfRange {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The offset.
        offset: i64,
        /// The first offset.
        low: i64,
        /// One past the last offset.
        end: i64,
    },
    /// Interrupted.
    #[error("interrupted; nothing was committed")]
    Interrupted,
    /// A Kafka failure.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// One position that was, or would be, committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// The group.
    pub group: String,
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The previous committed offset, as translated by the mirror.
    pub before: Option<i64>,
    /// The exact position.
    pub position: i64,
    /// Records from the position to the end of the partition at the export.
    pub records: usize,
    /// How many of them are finished and will not be delivered again.
    pub finished: usize,
}

type Client = BaseConsumer<LoggedConsumer>;

/// A partition with a committed offset.
struct CommittedPartition {
    range: Range,
    position: i64,
    metadata: String,
}

/// Exports the positions of all groups. Waits for open transactions of killed processes.
///
/// # Errors
/// [`PositionsError`]; nothing is written.
pub fn export(settings: &Settings, stop: &dyn Fn() -> bool) -> Result<Document, PositionsError> {
    let mut partitions = Vec::new();
    let mut cluster = None;
    for role in GroupRole::ALL {
        let client = client(settings, role)?;
        for topic in role.topics(settings) {
            let log = Log::open(settings, topic.clone(), PURPOSE)?;
            let cluster = match &cluster {
                Some(known) => known,
                None => cluster.insert(log.cluster()?),
            };
            let ends = log.high_watermarks(stop)?;
            let committed = committed(&client, role, settings, &topic, &ends)?;
            for committed_partition in committed {
                let range = committed_partition.range;
                let place = Place::new(cluster.as_str(), &topic, range.partition);
                // Only delivery has windows. What fan-out commits is of its cluster: it begins anew on another one.
                let metadata = match role {
                    GroupRole::Deliver => &*committed_partition.metadata,
                    GroupRole::Fanout | GroupRole::Release => "",
                };
                let position = Position(committed_partition.position);
                let (window, error) = Window::restore(position, metadata, place);
                if let Some(error) = error {
                    return Err(PositionsError::Metadata {
                        topic,
                        partition: range.partition,
                        error,
                    });
                }
                let trail = trail_of(&log, range, &window, stop)?;
                partitions.extend(trail.map(|trail| Exported {
                    role,
                    topic: topic.clone(),
                    partition: range.partition,
                    trail,
                }));
            }
        }
        no_members(&client, &role.group(settings))?;
    }
    Ok(Document {
        version: VERSION,
        cluster: cluster.map_or_else(String::new, |cluster| cluster.as_str().to_owned()),
        partitions,
    })
}

/// Finds the records of every position of `document` on this cluster, and commits the positions unless `dry_run`.
///
/// # Errors
/// [`PositionsError`]; nothing is committed unless all are found. If a commit fails, earlier groups are already committed;
/// the import can be repeated.
pub fn import(
    settings: &Settings,
    document: &Document,
    dry_run: bool,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<Imported>, PositionsError> {
    if document.version != VERSION {
        return Err(PositionsError::Newer(document.version));
    }
    let mut imported = Vec::new();
    let mut missing = Vec::new();
    let mut commits: Vec<(GroupRole, Client, Vec<Commit>)> = Vec::new();
    for role in GroupRole::ALL {
        let client = client(settings, role)?;
        let mut list = Vec::new();
        for topic in role.topics(settings) {
            let log = Log::open(settings, topic.clone(), PURPOSE)?;
            let cluster = log.cluster()?;
            if cluster.as_str() == document.cluster {
                return Err(PositionsError::SameCluster(document.cluster.clone()));
            }
            let ends = log.high_watermarks(stop)?;
            let before = committed(&client, role, settings, &topic, &ends)?;
            for range in &ends {
                let exported = document.partitions.iter().find(|exported| {
                    (exported.role, exported.topic.as_str(), exported.partition)
                        == (role, topic.as_str(), range.partition)
                });
                let Some(exported) = exported else { continue };
                let Some((window, finished)) = find(&log, *range, &exported.trail, stop)? else {
                    missing.push(format!("{topic} {}", range.partition));
                    continue;
                };
                let place = Place::new(cluster.as_str(), &topic, range.partition);
                let snapshot = window.snapshot(place, settings.window_format);
                if snapshot.metadata.len() > METADATA_LIMIT {
                    return Err(Failure::Internal(format!(
                        "the window of {topic} {} does not fit the commit metadata",
                        range.partition
                    ))
                    .into());
                }
                let mut known = before.iter();
                let known = known.find(|committed_partition| {
                    committed_partition.range.partition == range.partition
                });
                imported.push(Imported {
                    group: role.group(settings),
                    topic: topic.clone(),
                    partition: range.partition,
                    before: known.map(|committed_partition| committed_partition.position),
                    position: snapshot.position.0,
                    records: exported.trail.records,
                    finished,
                });
                list.push(Commit {
                    at: TopicPartition {
                        topic: Arc::from(topic.as_str()),
                        partition: range.partition,
                    },
                    position: snapshot.position,
                    metadata: snapshot.metadata,
                });
            }
            let gone = document.partitions.iter().filter(|exported| {
                exported.role == role
                    && exported.topic == topic
                    && !ends
                        .iter()
                        .any(|range| range.partition == exported.partition)
            });
            missing.extend(gone.map(|exported| format!("{topic} {}", exported.partition)));
        }
        no_members(&client, &role.group(settings))?;
        commits.push((role, client, list));
    }
    if !missing.is_empty() {
        return Err(PositionsError::NotThere(missing));
    }
    if !dry_run {
        for (role, client, list) in commits {
            commit(&client, &role.group(settings), &list)?;
        }
    }
    Ok(imported)
}

fn commit(client: &Client, group: &str, list: &[Commit]) -> Result<(), Failure> {
    commit_without_member(client, list).map_err(|error| not_committed(group, error))
}

fn not_committed(group: &str, error: KafkaError) -> Failure {
    Failure::from_client(format!("committing the positions of {group}"), error)
}

/// A broker accepts this only while the group has no members.
fn commit_without_member(client: &Client, list: &[Commit]) -> Result<(), KafkaError> {
    if list.is_empty() {
        return Ok(());
    }
    let list = commit_list(list)?;
    settled(|| client.commit(&list, CommitMode::Sync))
}

fn client(settings: &Settings, role: GroupRole) -> Result<Client, Failure> {
    client_of(settings, &role.group(settings))
}

/// A client that reads and commits positions of a group without joining it.
fn client_of(settings: &Settings, group: &str) -> Result<Client, Failure> {
    let client: Client = consumer_config(settings, PURPOSE, group)
        .create_with_context(LoggedConsumer(LogContext::new(PURPOSE)))
        .map_err(|error| Failure::from_client("creating a client", error))?;
    // A command of the operator is done long before a token expires.
    give_once(&settings.credentials, client.client());
    Ok(client)
}

fn no_members(client: &Client, group: &str) -> Result<(), PositionsError> {
    match members(client, group)?.is_empty() {
        true => Ok(()),
        false => Err(PositionsError::Running(group.to_owned())),
    }
}

/// The members of a group, by client id and host.
fn members(client: &Client, group: &str) -> Result<Vec<String>, Failure> {
    let found = settled(|| client.fetch_group_list(Some(group), ANSWER))
        .map_err(|error| Failure::from_client(format!("listing the members of {group}"), error))?;
    let members = found.groups().iter().flat_map(|group| group.members());
    let name = |member: &GroupMemberInfo| {
        let host = member.client_host().trim_start_matches('/');
        format!("{} at {host}", member.client_id())
    };
    Ok(members.map(name).collect())
}

/// The partitions with a committed offset.
fn committed(
    client: &Client,
    role: GroupRole,
    settings: &Settings,
    topic: &str,
    ranges: &[Range],
) -> Result<Vec<CommittedPartition>, Failure> {
    /// Longer than the open transaction of a killed process can block the committed offsets.
    const PATIENCE: Duration = Duration::from_secs(60);
    let what = || format!("reading the positions of {}", role.group(settings));
    let failed = |error| Failure::from_client(what(), error);
    let mut asked = TopicPartitionList::new();
    for range in ranges {
        asked.add_partition(topic, range.partition);
    }
    let found = committed_offsets(client, &asked, PATIENCE, what)?;
    let mut all = Vec::new();
    for range in ranges {
        let Some(element) = found.find_partition(topic, range.partition) else {
            continue;
        };
        element.error().map_err(failed)?;
        if let rdkafka::Offset::Offset(position) = element.offset() {
            all.push(CommittedPartition {
                range: *range,
                position,
                metadata: element.metadata().to_owned(),
            });
        }
    }
    Ok(all)
}

/// The offsets and fingerprints of a partition's records from about `from` on.
fn records(
    log: &Log,
    range: Range,
    from: i64,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<(Offset, Fingerprint)>, PositionsError> {
    let mut all = Vec::new();
    let range = Range {
        low: from.clamp(range.low, range.end.max(range.low)),
        ..range
    };
    let reading = log.read::<Failure>(&[range], stop, |message| {
        let headers = header_pairs(message);
        let fingerprint = Fingerprint::of(message.key(), &headers, message.payload());
        all.push((Offset(message.offset()), fingerprint));
        Ok(ControlFlow::Continue(()))
    })?;
    match reading {
        Reading::Complete => Ok(all),
        Reading::Stopped => Err(PositionsError::Interrupted),
    }
}

/// The records around the position; `None` for a partition that never had a record.
fn trail_of(
    log: &Log,
    range: Range,
    window: &Window,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Trail>, PositionsError> {
    let mut from = window.position().0 - SLACK;
    loop {
        let records = records(log, range, from, stop)?;
        let trail = Trail::new(&records, window);
        if trail.before.is_some() || from <= range.low {
            return Ok((trail.before.is_some() || trail.records > 0).then_some(trail));
        }
        from = range.low;
    }
}

fn find(
    log: &Log,
    range: Range,
    trail: &Trail,
    stop: &dyn Fn() -> bool,
) -> Result<Option<(Window, usize)>, PositionsError> {
    let needed = i64::try_from(trail.records).unwrap_or(i64::MAX);
    let mut from = range.end.saturating_sub(needed).saturating_sub(SLACK);
    loop {
        let records = records(log, range, from, stop)?;
        let found = trail.find(&records, range.low);
        if found.is_some() || from <= range.low {
            return Ok(found);
        }
        from = range.low;
    }
}
