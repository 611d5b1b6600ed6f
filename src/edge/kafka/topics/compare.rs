//! Compares a cluster with the plan: the differences with their fixes, and the topics to create. Pure.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde::Serialize;

use super::plan::{Partitions, Rule, TopicSpec};
use crate::config::Settings;
use crate::config::table::{SETTINGS, Setting};
use crate::edge::kafka::client::TRANSACTION_TIMEOUT;
use crate::model::units::format_duration;
use crate::model::window::METADATA_LIMIT;

/// Default partition count of commands, tiers and dead letters: twelve divides evenly among two, three, four and six
/// replicas.
pub const DEFAULT_PARTITIONS: i32 = 12;

/// Default replication factor, if there are enough brokers.
pub const DEFAULT_REPLICATION: i32 = 3;

/// Rules for the settings of every broker, by name.
const BROKER_RULES: [(&str, Rule); 3] = [
    // The window of a partition is commit metadata.
    (
        "offset.metadata.max.bytes",
        Rule::AtLeast(METADATA_LIMIT as i64),
    ),
    // A group that is empty for longer loses its positions: over a long weekend, at least.
    ("offsets.retention.minutes", Rule::AtLeast(7 * 24 * 60)),
    (
        "transaction.max.timeout.ms",
        Rule::AtLeast(TRANSACTION_TIMEOUT.as_millis() as i64),
    ),
];

/// An existing topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Number of partitions.
    pub partitions: i32,
    /// The lowest replication factor of its partitions.
    pub replication: i32,
    /// Settings, including defaults.
    pub config: HashMap<String, String>,
}

/// The part of a cluster that is compared.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Number of brokers.
    pub brokers: i32,
    /// Those of the planned topics that exist.
    pub topics: BTreeMap<String, Found>,
    /// By broker id: its settings, defaults included.
    pub broker_configs: BTreeMap<i32, HashMap<String, String>>,
    /// Why the settings of the brokers are unknown.
    pub broker_configs_unknown: Option<String>,
}

/// What the operator requested on the command line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish {
    /// Partitions of commands, tiers and dead letters.
    pub partitions: Option<i32>,
    /// The replication factor.
    pub replication: Option<i32>,
    /// How long commands and retries are kept.
    pub retention: Option<Duration>,
}

impl Cluster {
    /// The partition count of commands, tiers and dead letters: the requested number, or the highest of any of them
    /// (partitions are never removed), or the default.
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

    /// The replication factor: the requested one, or three, or the number of brokers if there are fewer.
    #[must_use]
    pub fn replication(&self, wish: Wish) -> i32 {
        wish.replication
            .unwrap_or(DEFAULT_REPLICATION.min(self.brokers.max(1)))
    }
}

/// A difference between a topic and its plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The topic.
    pub topic: String,
    /// The setting; `existence`, `partitions` and `replication.factor` count as settings.
    pub setting: String,
    /// The actual value.
    pub found: String,
    /// The required value.
    pub wanted: String,
    /// The command that fixes it. The name of the JSON field is `mend`.
    pub mend: String,
}

/// Compares a cluster with the plan.
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
    let topics = specs
        .iter()
        .flat_map(|spec| judge.topic(spec, cluster.topics.get(&spec.name)));
    topics.chain(brokers(cluster)).collect()
}

/// What hookstream needs of every broker. These settings are read from a broker's file: it must be restarted.
fn brokers(cluster: &Cluster) -> impl Iterator<Item = Difference> {
    cluster.broker_configs.iter().flat_map(|(id, config)| {
        BROKER_RULES.iter().filter_map(move |(key, rule)| {
            // A broker that does not have a setting has no such limit.
            let value = config.get(*key)?;
            (!rule.allows(value)).then(|| Difference {
                topic: format!("broker {id}"),
                setting: (*key).to_owned(),
                found: value.clone(),
                wanted: rule.wanted(),
                mend: format!(
                    "set {key}={} in the configuration of every broker, and restart them one by one",
                    rule.value()
                ),
            })
        })
    })
}

/// The command that creates a missing topic, complete enough for a shell without this process's environment or file: it
/// repeats every non-default setting that determines names and configuration. Properties are omitted, since some are
/// secrets; where they are needed, the command fails without side effects.
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
    if let Some(retention) = wish.retention {
        repeat("retention", &format_duration(retention));
    }
    if spec.name == topics.attempts() {
        command.push_str(" --attempt-log");
    }
    command
}

/// A size in the largest unit that divides it.
fn size_text(bytes: usize) -> String {
    let units = [(1024 * 1024, "MiB"), (1024, "KiB")];
    let unit = units.iter().find(|(unit, _)| bytes.is_multiple_of(*unit));
    unit.map_or_else(
        || bytes.to_string(),
        |(unit, name)| format!("{}{name}", bytes / unit),
    )
}

/// Quotes a word for a shell, if needed.
pub(super) fn quoted(word: &str) -> String {
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
    /// Quoted for a shell.
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
            return self.event_size(spec, found).into_iter().collect();
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

    /// An event topic that takes larger events than fan-out does: they would be set aside.
    fn event_size(&self, spec: &TopicSpec, found: &Found) -> Option<Difference> {
        /// What a record has beside its value, at Kafka's default of 1,048,588 bytes for values of 1 MiB and more.
        const BESIDE: usize = 1024;
        const KEY: &str = "max.message.bytes";
        let value = found.config.get(KEY)?;
        let bytes: usize = value.parse().ok()?;
        let most = self.settings.max_event_bytes;
        (bytes > most.saturating_add(BESIDE)).then(|| Difference {
            topic: spec.name.clone(),
            setting: KEY.to_owned(),
            found: value.clone(),
            wanted: format!("at most {most}, which is --max-event-bytes"),
            mend: format!(
                "set --max-event-bytes {} for all roles and check again, or kafka-configs.sh --bootstrap-server {} --alter --entity-type topics --entity-name {} --add-config {KEY}={most}",
                size_text(bytes),
                self.brokers,
                spec.name
            ),
        })
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
        let alter = format!("hookstream topics add-partitions {partitions} --brokers {brokers}");
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

/// A topic to create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Creation {
    /// Its name.
    pub topic: String,
    /// Its partitions.
    pub partitions: i32,
    /// The replication factor.
    pub replication_factor: i32,
    /// Settings that differ, or may differ, from the broker's defaults.
    pub config: BTreeMap<String, String>,
}

/// The missing topics, as they would be created; event topics only if `events`.
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

/// A topic that gets partitions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Growth {
    /// Its name.
    pub topic: String,
    /// Its partitions now.
    pub before: i32,
    /// Its partitions afterwards.
    pub partitions: i32,
}

/// The topics that need partitions to have this common number: `webhook-commands` last, so that an interrupted growth
/// leaves no command without its retry partition.
///
/// # Errors
/// A topic is missing, or has more partitions: they are never removed.
pub fn growths(
    specs: &[TopicSpec],
    cluster: &Cluster,
    commands: &str,
    partitions: i32,
) -> Result<Vec<Growth>, String> {
    let mut growths = Vec::new();
    for spec in specs
        .iter()
        .filter(|spec| spec.partitions == Partitions::Common)
    {
        let topic = spec.name.clone();
        let Some(found) = cluster.topics.get(&topic) else {
            return Err(format!(
                "the topic {topic} is missing; create it with `hookstream topics create`"
            ));
        };
        let before = found.partitions;
        if before > partitions {
            return Err(format!(
                "{topic} has {before} partitions, and partitions are never removed: N must be at least {before}"
            ));
        }
        if before < partitions {
            growths.push(Growth {
                topic,
                before,
                partitions,
            });
        }
    }
    growths.sort_by_key(|growth| growth.topic == commands);
    Ok(growths)
}
