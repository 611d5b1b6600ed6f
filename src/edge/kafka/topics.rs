//! Topics: which there must be, how they must be set, and where a cluster differs.
//!
//! The wanted settings are a table of rules, so that `topics create` and `topics check` cannot disagree, and
//! comparing is pure; only [`describe`] and [`create`] talk to the broker. Existing topics are never altered
//! by this program: changing retention or partitions of a live topic is the operator's decision, so each
//! difference names the command that mends it.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, NewTopic, OwnedResourceSpecifier, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use serde::Serialize;

use super::client::{COPY_OVERHEAD, RECORD_OVERHEAD, client_config};
use super::error::Failure;
use super::log::{LogContext, LoggedConsumer, explain};
use super::log_reader::ANSWER;
use crate::config::Settings;
use crate::config::table::{SETTINGS, Setting};
use crate::model::units::format_duration;

/// How many partitions commands, tiers and dead letters get when nothing else is said: twelve divides well
/// among two, three, four and six replicas.
pub const DEFAULT_PARTITIONS: i32 = 12;

/// Copies of each partition when nothing else is said, as far as there are brokers.
pub const DEFAULT_REPLICATION: i32 = 3;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Commands and retries are work, not history, but must outlive an outage of delivery or release that lasts
/// over a holiday.
const WORK_RETENTION: Duration = DAY.saturating_mul(14);

/// A letter and the facts about it: time for an operator to notice, mend and replay.
const LETTER_RETENTION: Duration = DAY.saturating_mul(90);

/// Invalid events are evidence for a producer's developer.
const INVALID_RETENTION: Duration = DAY.saturating_mul(30);

/// What was sent and answered, for those who ask about the last days.
const ATTEMPT_RETENTION: Duration = DAY.saturating_mul(3);

/// A tier keeps a record for at least this many times its delay, should a tier be longer than a day.
const TIER_DELAYS_KEPT: u32 = 14;

/// What a setting of a topic must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// This text.
    Exactly(&'static str),
    /// This number or more; −1 means without limit, and satisfies too.
    AtLeast(i64),
    /// This number when the topic is made; the operator's business afterwards.
    AtFirst(i64),
}

impl Rule {
    fn allows(&self, found: &str) -> bool {
        match self {
            Self::Exactly(wanted) => found == *wanted,
            Self::AtLeast(least) => found
                .parse::<i64>()
                .is_ok_and(|found| found == -1 || found >= *least),
            Self::AtFirst(_) => true,
        }
    }

    fn value(&self) -> String {
        match self {
            Self::Exactly(value) => (*value).to_owned(),
            Self::AtLeast(number) | Self::AtFirst(number) => number.to_string(),
        }
    }

    fn wanted(&self) -> String {
        match self {
            Self::Exactly(value) => (*value).to_owned(),
            Self::AtLeast(least) => format!("at least {least}"),
            Self::AtFirst(number) => format!("{number} or another number"),
        }
    }
}

/// How many partitions a topic has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partitions {
    /// As many as `webhook-commands`: commands, tiers, dead letters.
    Common,
    /// One when it is created: the table of subscriptions is small, and read whole by every replica.
    One,
    /// The common number when it is created, any number afterwards.
    Any,
}

/// One topic as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// How many partitions.
    pub partitions: Partitions,
    /// Its settings; empty for topics that are not ours.
    pub rules: Vec<(&'static str, Rule)>,
    /// Whether it is hookstream's own.
    pub own: bool,
}

/// All topics that hookstream uses: its own, then the event topics.
#[must_use]
pub fn topics(settings: &Settings) -> Vec<TopicSpec> {
    let record = settings.max_event_bytes.saturating_add(RECORD_OVERHEAD);
    let copy = record.saturating_add(COPY_OVERHEAD);
    let names = &settings.topics;
    let mut all = vec![
        own(
            names.subscriptions(),
            Partitions::One,
            record,
            vec![("cleanup.policy", Rule::Exactly("compact"))],
        ),
        own(
            names.commands(),
            Partitions::Common,
            record,
            kept(WORK_RETENTION),
        ),
    ];
    for delay in settings.tiers.delays() {
        let mut rules = kept(WORK_RETENTION.max(delay.saturating_mul(TIER_DELAYS_KEPT)));
        // A tier waits by the broker's clock: it is the same for all writers, and it never runs backwards
        // along a partition, so the head is always the first to be due.
        rules.push(("message.timestamp.type", Rule::Exactly("LogAppendTime")));
        all.push(own(names.retry(*delay), Partitions::Common, copy, rules));
    }
    all.push(own(
        names.dead_letters(),
        Partitions::Common,
        copy,
        kept(LETTER_RETENTION),
    ));
    all.push(own(
        names.invalid_events(),
        Partitions::Any,
        copy,
        kept(INVALID_RETENTION),
    ));
    if settings.attempt_log {
        let retention = i64::try_from(ATTEMPT_RETENTION.as_millis()).unwrap_or(i64::MAX);
        all.push(own(
            names.attempts(),
            Partitions::Any,
            record,
            vec![
                ("cleanup.policy", Rule::Exactly("delete")),
                ("retention.ms", Rule::AtFirst(retention)),
            ],
        ));
    }
    all.extend(names.events.iter().map(|name| TopicSpec {
        name: name.clone(),
        partitions: Partitions::Any,
        rules: Vec::new(),
        own: false,
    }));
    all
}

fn own(
    name: String,
    partitions: Partitions,
    max_bytes: usize,
    mut rules: Vec<(&'static str, Rule)>,
) -> TopicSpec {
    let max_bytes = i64::try_from(max_bytes).unwrap_or(i64::MAX);
    rules.push(("max.message.bytes", Rule::AtLeast(max_bytes)));
    rules.push(("compression.type", Rule::Exactly("producer")));
    TopicSpec {
        name,
        partitions,
        rules,
        own: true,
    }
}

/// Kept for a time, whatever the size: a size limit would drop work silently in a backlog.
fn kept(retention: Duration) -> Vec<(&'static str, Rule)> {
    let ms = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
    vec![
        ("cleanup.policy", Rule::Exactly("delete")),
        ("retention.ms", Rule::AtLeast(ms)),
        ("retention.bytes", Rule::Exactly("-1")),
    ]
}

/// One topic as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Number of partitions.
    pub partitions: i32,
    /// Copies of each partition, the fewest of any.
    pub replication: i32,
    /// Settings, defaults included.
    pub config: HashMap<String, String>,
}

/// A cluster, as far as it matters.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Number of brokers.
    pub brokers: i32,
    /// The topics that exist, of those asked for.
    pub topics: BTreeMap<String, Found>,
}

/// What the operator asked for, beside the settings.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish {
    /// Partitions of commands, tiers and dead letters.
    pub partitions: Option<i32>,
    /// Copies of each partition.
    pub replication: Option<i32>,
}

impl Cluster {
    /// The number of partitions that commands, tiers and dead letters should have: what was asked for, or the
    /// most that any of them has (partitions are never taken away), or the default.
    #[must_use]
    pub fn common_partitions(&self, specs: &[TopicSpec], wish: Wish) -> i32 {
        let common = specs
            .iter()
            .filter(|spec| spec.partitions == Partitions::Common);
        let most = common
            .filter_map(|spec| self.topics.get(&spec.name))
            .map(|found| found.partitions)
            .max();
        match (wish.partitions, most) {
            (Some(wish), Some(most)) => wish.max(most),
            (wish, most) => wish.or(most).unwrap_or(DEFAULT_PARTITIONS),
        }
    }

    /// Copies of each partition: what was asked for, or three, or one for each broker when there are fewer.
    #[must_use]
    pub fn replication(&self, wish: Wish) -> i32 {
        wish.replication
            .unwrap_or(DEFAULT_REPLICATION.min(self.brokers.max(1)))
    }
}

/// Where a topic differs from what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The topic.
    pub topic: String,
    /// The setting; `existence`, `partitions` and `replication.factor` are used as if they were settings.
    pub setting: String,
    /// What it is.
    pub found: String,
    /// What it should be.
    pub wanted: String,
    /// The command that mends it.
    pub mend: String,
}

/// Compares a cluster with the wanted topics.
#[must_use]
pub fn differences(
    settings: &Settings,
    specs: &[TopicSpec],
    cluster: &Cluster,
    wish: Wish,
) -> Vec<Difference> {
    let judge = Judge {
        brokers: &quoted(&settings.brokers),
        settings,
        wish,
        partitions: cluster.common_partitions(specs, wish),
        replication: cluster.replication(wish),
    };
    specs
        .iter()
        .flat_map(|spec| judge.topic(spec, cluster.topics.get(&spec.name)))
        .collect()
}

/// The command that makes what is missing, also in a shell where nothing of this one's environment or file is at hand:
/// it repeats what decides names and settings, as far as it is not the default. Properties are left out, since some are
/// secrets; where they are needed it fails without them, and makes nothing that is wrong.
fn create_command(settings: &Settings, wish: Wish, spec: &TopicSpec) -> String {
    let topics = &settings.topics;
    let tiers: Vec<_> = settings
        .tiers
        .delays()
        .iter()
        .map(|&delay| format_duration(delay))
        .collect();
    let mut command = "hookstream topics create".to_owned();
    if !spec.own {
        command.push_str(" --with-events");
    }
    let mut repeat = |name: &str, value: &str| {
        let is_default = |setting: &Setting| setting.name == name && setting.default == value;
        if !SETTINGS.iter().any(is_default) {
            command.push_str(&format!(" --{name} {}", quoted(value)));
        }
    };
    repeat("brokers", &settings.brokers);
    if !spec.own {
        repeat("events", &topics.events.join(","));
    }
    repeat("topic-prefix", &topics.prefix);
    repeat("tiers", &tiers.join(","));
    repeat("max-event-bytes", &size_text(settings.max_event_bytes));
    if let Some(replication) = wish.replication {
        repeat("replication-factor", &replication.to_string());
    }
    if spec.name == topics.attempts() {
        command.push_str(" --attempt-log");
    }
    command
}

/// Bytes in the largest unit in which they are a whole number.
fn size_text(bytes: usize) -> String {
    let units = [(1024 * 1024, "MiB"), (1024, "KiB")];
    let unit = units.iter().find(|(unit, _)| bytes.is_multiple_of(*unit));
    unit.map_or_else(
        || bytes.to_string(),
        |(unit, name)| format!("{}{name}", bytes / unit),
    )
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let is_plain = |letter: char| {
        letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-' | ':' | ',' | '/')
    };
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

struct Judge<'a> {
    settings: &'a Settings,
    wish: Wish,
    /// For a shell.
    brokers: &'a str,
    partitions: i32,
    replication: i32,
}

impl Judge<'_> {
    fn topic(&self, spec: &TopicSpec, found: Option<&Found>) -> Vec<Difference> {
        let Some(found) = found else {
            return vec![self.missing(spec)];
        };
        if !spec.own {
            return Vec::new();
        }
        let mut differences: Vec<_> = self.shape(spec, found).into_iter().flatten().collect();
        differences.extend(
            spec.rules
                .iter()
                .filter_map(|(key, rule)| self.setting(spec, found, key, rule)),
        );
        if found.replication >= 3 {
            differences.extend(self.setting(spec, found, "min.insync.replicas", &Rule::AtLeast(2)));
        }
        differences
    }

    fn missing(&self, spec: &TopicSpec) -> Difference {
        Difference {
            topic: spec.name.clone(),
            setting: "existence".to_owned(),
            found: "missing".to_owned(),
            wanted: "present".to_owned(),
            mend: create_command(self.settings, self.wish, spec),
        }
    }

    fn shape(&self, spec: &TopicSpec, found: &Found) -> [Option<Difference>; 2] {
        let Self {
            brokers,
            partitions,
            replication,
            ..
        } = self;
        let name = &spec.name;
        let number = |setting: &str, found: i32, wanted: i32, mend: String| Difference {
            topic: name.clone(),
            setting: setting.to_owned(),
            found: found.to_string(),
            wanted: wanted.to_string(),
            mend,
        };
        let too_few = spec.partitions == Partitions::Common && found.partitions != *partitions;
        let alter = format!(
            "kafka-topics.sh --bootstrap-server {brokers} --alter --topic {name} --partitions {partitions}"
        );
        let reassign = format!(
            "kafka-reassign-partitions.sh --bootstrap-server {brokers} --execute --reassignment-json-file FILE, \
             where FILE lists {replication} replicas for each partition of {name}"
        );
        [
            too_few.then(|| number("partitions", found.partitions, *partitions, alter)),
            (found.replication < *replication).then(|| {
                number(
                    "replication.factor",
                    found.replication,
                    *replication,
                    reassign,
                )
            }),
        ]
    }

    fn setting(
        &self,
        spec: &TopicSpec,
        found: &Found,
        key: &str,
        rule: &Rule,
    ) -> Option<Difference> {
        let value = found.config.get(key).map_or("", String::as_str);
        (!rule.allows(value)).then(|| Difference {
            topic: spec.name.clone(),
            setting: key.to_owned(),
            found: value.to_owned(),
            wanted: rule.wanted(),
            mend: format!(
                "kafka-configs.sh --bootstrap-server {} --alter --entity-type topics --entity-name {} --add-config {key}={}",
                self.brokers,
                spec.name,
                rule.value()
            ),
        })
    }
}

/// One topic to be created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Creation {
    /// Its name.
    pub topic: String,
    /// Its partitions.
    pub partitions: i32,
    /// Copies of each partition.
    pub replication_factor: i32,
    /// Settings that differ from the broker's defaults, or may.
    pub config: BTreeMap<String, String>,
}

/// The topics that are missing, as they would be created; event topics only if `events`.
#[must_use]
pub fn creations(
    specs: &[TopicSpec],
    cluster: &Cluster,
    wish: Wish,
    events: bool,
) -> Vec<Creation> {
    let common = cluster.common_partitions(specs, wish);
    let replication = cluster.replication(wish);
    let missing = specs
        .iter()
        .filter(|spec| (spec.own || events) && !cluster.topics.contains_key(&spec.name));
    let creation = |spec: &TopicSpec| {
        let mut config: BTreeMap<_, _> = spec
            .rules
            .iter()
            .map(|(key, rule)| ((*key).to_owned(), rule.value()))
            .collect();
        if spec.own && replication >= 3 {
            config.insert("min.insync.replicas".to_owned(), "2".to_owned());
        }
        Creation {
            topic: spec.name.clone(),
            partitions: if spec.partitions == Partitions::One {
                1
            } else {
                common
            },
            replication_factor: replication,
            config,
        }
    };
    missing.map(creation).collect()
}

/// Asks the cluster about its brokers and these topics.
///
/// # Errors
/// [`Failure`] when no broker answers within 10 s, or describing is denied.
pub async fn describe(settings: &Settings, specs: &[TopicSpec]) -> Result<Cluster, Failure> {
    let mut cluster = metadata(settings, specs)?;
    let admin = client(settings)?;
    let names: Vec<_> = cluster.topics.keys().cloned().collect();
    let resources: Vec<_> = names
        .iter()
        .map(|name| ResourceSpecifier::Topic(name))
        .collect();
    if resources.is_empty() {
        return Ok(cluster);
    }
    let what = "reading the settings of the topics";
    let answers = admin
        .describe_configs(&resources, &options())
        .await
        .map_err(|error| Failure::from_client(what, error))?;
    for answer in answers {
        let resource =
            answer.map_err(|code| Failure::from_client(what, KafkaError::AdminOp(code)))?;
        let OwnedResourceSpecifier::Topic(name) = resource.specifier else {
            continue;
        };
        let config = resource
            .entries
            .into_iter()
            .filter_map(|entry| Some((entry.name, entry.value?)))
            .collect();
        if let Some(found) = cluster.topics.get_mut(&name) {
            found.config = config;
        }
    }
    Ok(cluster)
}

fn client(settings: &Settings) -> Result<AdminClient<DefaultClientContext>, Failure> {
    client_config(settings, "topics")
        .create()
        .map_err(|error| Failure::from_client("creating a client", error))
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(ANSWER))
        .operation_timeout(Some(ANSWER))
}

/// By name, one by one: a topic that may not be described would otherwise look like a missing one.
fn metadata(settings: &Settings, specs: &[TopicSpec]) -> Result<Cluster, Failure> {
    let client: BaseConsumer<LoggedConsumer> = client_config(settings, "topics")
        .create_with_context(LoggedConsumer(LogContext::new("topics")))
        .map_err(|error| Failure::from_client("creating a client", error))?;
    let mut cluster = Cluster::default();
    for spec in specs {
        let what = || format!("describing the topic {}", spec.name);
        let answer = client
            .fetch_metadata(Some(&spec.name), ANSWER)
            .map_err(|error| explain(&client, &client.context().0, what(), error))?;
        cluster.brokers = i32::try_from(answer.brokers().len()).unwrap_or(i32::MAX);
        let Some(topic) = answer.topics().first() else {
            continue;
        };
        match topic.error().map(RDKafkaErrorCode::from) {
            None => {
                let replicas = topic
                    .partitions()
                    .iter()
                    .map(|partition| partition.replicas().len())
                    .min();
                let found = Found {
                    partitions: i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX),
                    replication: replicas
                        .and_then(|least| i32::try_from(least).ok())
                        .unwrap_or(0),
                    config: HashMap::new(),
                };
                cluster.topics.insert(spec.name.clone(), found);
            }
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {}
            Some(code) => {
                return Err(Failure::from_client(
                    what(),
                    KafkaError::MetadataFetch(code),
                ));
            }
        }
    }
    Ok(cluster)
}

/// Creates the topics; those that somebody else has created meanwhile are left alone. Returns one result a topic.
///
/// # Errors
/// [`Failure`] when the request as a whole fails; a topic's own failure is in its result.
pub async fn create(
    settings: &Settings,
    creations: &[Creation],
) -> Result<Vec<(String, Result<(), Failure>)>, Failure> {
    if creations.is_empty() {
        return Ok(Vec::new());
    }
    let admin = client(settings)?;
    let topics: Vec<_> = creations.iter().map(new_topic).collect();
    let mut answers = admin.create_topics(&topics, &options()).await;
    // The client drops the bootstrap server that it asked when it learns who the brokers are: by now it knows.
    let dropped = |error: &KafkaError| {
        error.rdkafka_error_code() == Some(RDKafkaErrorCode::DestroyBroker)
            || matches!(error, KafkaError::AdminOp(RDKafkaErrorCode::DestroyBroker))
    };
    if answers.as_ref().is_err_and(dropped) {
        answers = admin.create_topics(&topics, &options()).await;
    }
    let answers = answers.map_err(|error| Failure::from_client("creating topics", error))?;
    let result = |answer| match answer {
        Ok(name) | Err((name, RDKafkaErrorCode::TopicAlreadyExists)) => (name, Ok(())),
        Err((name, code)) => {
            let failure = Failure::from_client(
                format!("creating the topic {name}"),
                KafkaError::AdminOp(code),
            );
            (name, Err(failure))
        }
    };
    Ok(answers.into_iter().map(result).collect())
}

fn new_topic(creation: &Creation) -> NewTopic<'_> {
    let replication = TopicReplication::Fixed(creation.replication_factor);
    let topic = NewTopic::new(&creation.topic, creation.partitions, replication);
    creation
        .config
        .iter()
        .fold(topic, |topic, (key, value)| topic.set(key, value))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::{EgressSettings, Guarantee, Topics};
    use crate::delivery::partition::breaker::tests::RULES;
    use crate::model::tiers::Tiers;

    fn settings() -> Settings {
        let tiers = vec![
            Duration::from_secs(5),
            Duration::from_secs(2 * 24 * 60 * 60),
        ];
        Settings {
            brokers: "kafka:9092".to_owned(),
            properties: Vec::new(),
            credentials: crate::config::credentials::Credentials::default(),
            topics: Topics {
                events: vec!["order-events".to_owned()],
                prefix: "webhook-".to_owned(),
            },
            group_prefix: "hookstream-".to_owned(),
            guarantee: Guarantee::ExactlyOnce,
            instance: "test".to_owned(),
            http_listen: ([127, 0, 0, 1], 0).into(),
            tiers: Tiers::new(tiers).unwrap(),
            retry_schedule: Vec::new(),
            timeout: Duration::from_secs(15),
            drain_deadline: Duration::from_secs(10),
            attempt_log: true,
            lag_top: 200,
            window_format: crate::model::window::Format::V2,
            hang_deadline: Duration::from_secs(30),
            otlp: None,
            egress: EgressSettings::default(),
            ca_file: None,
            max_event_bytes: 1024 * 1024,
            workers: 1,
            max_in_flight: 1,
            max_queued_bytes: 1,
            max_queued_commands: 1,
            breaker: RULES,
        }
    }

    /// A cluster on which everything was created as wanted.
    fn created(brokers: i32, wish: Wish) -> Cluster {
        let empty = Cluster {
            brokers,
            topics: BTreeMap::new(),
        };
        let creations = creations(&topics(&settings()), &empty, wish, true);
        let found = |creation: Creation| {
            let config = creation.config.into_iter().collect();
            let Creation {
                partitions,
                replication_factor: replication,
                ..
            } = creation;
            (
                creation.topic,
                Found {
                    partitions,
                    replication,
                    config,
                },
            )
        };
        Cluster {
            brokers,
            topics: creations.into_iter().map(found).collect(),
        }
    }

    fn differing(cluster: &Cluster) -> BTreeSet<(String, String)> {
        let found = differences(&settings(), &topics(&settings()), cluster, Wish::default());
        found
            .into_iter()
            .map(|difference| (difference.topic, difference.setting))
            .collect()
    }

    fn one(topic: &str, setting: &str) -> BTreeSet<(String, String)> {
        BTreeSet::from([(topic.to_owned(), setting.to_owned())])
    }

    #[test]
    fn what_create_makes_check_finds_well() {
        for brokers in [1, 2, 3, 9] {
            for partitions in [None, Some(1), Some(48)] {
                let cluster = created(
                    brokers,
                    Wish {
                        partitions,
                        replication: None,
                    },
                );
                assert_eq!(
                    differing(&cluster),
                    BTreeSet::new(),
                    "{brokers} brokers, {partitions:?} partitions"
                );
                assert!(
                    creations(&topics(&settings()), &cluster, Wish::default(), true).is_empty()
                );
            }
        }
    }

    #[test]
    fn each_way_to_differ_is_named() {
        let cases: [(&str, &str, &str); 6] = [
            ("webhook-subscriptions", "cleanup.policy", "delete"),
            ("webhook-retry-5s", "message.timestamp.type", "CreateTime"),
            ("webhook-retry-48h", "retention.ms", "1209600000"),
            ("webhook-commands", "max.message.bytes", "1048588"),
            ("webhook-dead-letters", "retention.bytes", "1000000"),
            ("webhook-commands", "min.insync.replicas", "1"),
        ];
        for (topic, setting, value) in cases {
            let mut cluster = created(3, Wish::default());
            let config = &mut cluster.topics.get_mut(topic).unwrap().config;
            config.insert(setting.to_owned(), value.to_owned());
            assert_eq!(differing(&cluster), one(topic, setting));
        }
    }

    #[test]
    fn more_than_what_is_wanted_is_well_too() {
        let mut cluster = created(1, Wish::default());
        let config = &mut cluster.topics.get_mut("webhook-commands").unwrap().config;
        config.insert("retention.ms".to_owned(), "-1".to_owned());
        config.insert("max.message.bytes".to_owned(), "9999999".to_owned());
        assert_eq!(differing(&cluster), BTreeSet::new());
    }

    #[test]
    fn the_command_that_makes_a_missing_topic_makes_it_with_the_settings_in_force() {
        let mends = |settings: &Settings, wish| -> BTreeMap<String, String> {
            let cluster = Cluster::default();
            let found = differences(settings, &topics(settings), &cluster, wish);
            found.into_iter().map(|one| (one.topic, one.mend)).collect()
        };
        let tiers = ["5s", "30s", "2m", "10m", "1h", "6h"]
            .map(|text| crate::model::units::parse_duration(text).unwrap());
        let mut settings = Settings {
            tiers: Tiers::new(tiers.to_vec()).unwrap(),
            ..settings()
        };
        let told = mends(&settings, Wish::default());
        let plain = "hookstream topics create --brokers kafka:9092";
        assert_eq!(told["webhook-commands"], plain);
        assert_eq!(told["webhook-attempts"], format!("{plain} --attempt-log"));
        assert_eq!(
            told["order-events"],
            "hookstream topics create --with-events --brokers kafka:9092"
        );

        settings.brokers = "[::1]:9092,b:1".to_owned();
        settings.topics.prefix = "nope-".to_owned();
        settings.topics.events = vec!["a".to_owned(), "b".to_owned()];
        settings.tiers = Tiers::new(vec![Duration::from_millis(1500)]).unwrap();
        settings.max_event_bytes = 2048;
        let wish = Wish {
            replication: Some(2),
            ..Wish::default()
        };
        let told = mends(&settings, wish);
        let rest =
            "--topic-prefix nope- --tiers 1500ms --max-event-bytes 2KiB --replication-factor 2";
        assert_eq!(
            told["nope-commands"],
            format!("hookstream topics create --brokers '[::1]:9092,b:1' {rest}")
        );
        assert_eq!(
            told["b"],
            format!(
                "hookstream topics create --with-events --brokers '[::1]:9092,b:1' --events a,b {rest}"
            )
        );
        assert!(told["nope-attempts"].ends_with(" --attempt-log"));
    }

    #[test]
    fn a_word_is_quoted_for_a_shell_only_where_it_must_be() {
        assert_eq!(
            quoted("kafka-1.example:9092,b:1"),
            "kafka-1.example:9092,b:1"
        );
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }

    #[test]
    fn commands_tiers_and_dead_letters_have_as_many_partitions() {
        let mut cluster = created(1, Wish::default());
        cluster
            .topics
            .get_mut("webhook-retry-5s")
            .unwrap()
            .partitions = 6;
        let found = differences(&settings(), &topics(&settings()), &cluster, Wish::default());
        assert_eq!(found.len(), 1);
        assert!(
            found[0]
                .mend
                .ends_with("--topic webhook-retry-5s --partitions 12"),
            "{}",
            found[0].mend
        );
    }

    #[test]
    fn a_missing_topic_is_made_with_the_partitions_of_the_others() {
        let mut cluster = created(
            1,
            Wish {
                partitions: Some(4),
                replication: None,
            },
        );
        cluster.topics.remove("webhook-dead-letters");
        cluster.topics.remove("order-events");
        assert_eq!(differing(&cluster).len(), 2);
        let made = creations(&topics(&settings()), &cluster, Wish::default(), false);
        assert_eq!(made.len(), 1, "event topics are made only when asked for");
        assert_eq!(
            (made[0].topic.as_str(), made[0].partitions),
            ("webhook-dead-letters", 4)
        );
    }

    #[test]
    fn the_log_of_attempts_has_a_topic_only_while_it_is_on_and_is_kept_as_its_operator_likes() {
        let mut cluster = created(1, Wish::default());
        let log = cluster.topics.get_mut("webhook-attempts").unwrap();
        assert_eq!(
            (log.partitions, &*log.config["retention.ms"]),
            (12, "259200000")
        );
        for (setting, value) in [("retention.ms", "3600000"), ("retention.bytes", "1000000")] {
            log.config.insert(setting.to_owned(), value.to_owned());
        }
        log.partitions = 3;
        assert_eq!(differing(&cluster), BTreeSet::new());
        let off = Settings {
            attempt_log: false,
            ..settings()
        };
        let named = |settings: &Settings| {
            topics(settings)
                .into_iter()
                .any(|spec| spec.name == "webhook-attempts")
        };
        assert!(named(&settings()), "on");
        assert!(!named(&off), "off");
    }

    #[test]
    fn a_tier_keeps_its_records_for_many_times_its_delay() {
        let specs = topics(&settings());
        let long = specs
            .iter()
            .find(|spec| spec.name == "webhook-retry-48h")
            .unwrap();
        let days = i64::try_from(DAY.as_millis()).unwrap() * 28;
        assert!(long.rules.contains(&("retention.ms", Rule::AtLeast(days))));
    }
}
