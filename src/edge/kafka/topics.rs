//! Topics: the plan, its comparison with a cluster, and the requests to the broker.
//!
//! The plan is a table of rules, so that `topics create` and `topics check` cannot disagree. Planning and comparing are
//! pure; only [`describe`], [`create`] and [`grow`] talk to the broker. No setting of an existing topic is ever changed:
//! that is the operator's decision, so each difference comes with the command that fixes it.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use rdkafka::admin::{
    AdminClient, AdminOptions, ConfigEntry, ConfigResourceResult, NewPartitions, NewTopic,
    OwnedResourceSpecifier, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataBroker;

use super::client::client_config;
use super::credentials::give_once;
use super::error::Failure;
use super::log::{LogContext, LoggedConsumer, explain};
use super::log_reader::ANSWER;
use crate::config::Settings;

mod compare;
mod plan;

pub use compare::{
    Cluster, Creation, DEFAULT_PARTITIONS, DEFAULT_REPLICATION, Difference, Found, Growth, Wish,
    creations, differences, growths,
};
pub use plan::{Partitions, Rule, TopicSpec, WORK_RETENTION, partitions_for, topics, topics_kept};

/// Describes the brokers and these topics of the cluster.
///
/// # Errors
/// [`Failure`] when no broker responds within 10 s, or permission is denied.
pub async fn describe(settings: &Settings, specs: &[TopicSpec]) -> Result<Cluster, Failure> {
    let (mut cluster, ids) = metadata(settings, specs)?;
    let admin = client(settings)?;
    describe_brokers(&admin, &ids, &mut cluster).await?;
    let names: Vec<_> = cluster.topics.keys().cloned().collect();
    let resources: Vec<_> = names
        .iter()
        .map(|name| ResourceSpecifier::Topic(name))
        .collect();
    if resources.is_empty() {
        return Ok(cluster);
    }
    let what = "reading the settings of the topics";
    for answer in ask_configs(&admin, &resources, what).await? {
        let resource =
            answer.map_err(|code| Failure::from_client(what, KafkaError::AdminOp(code)))?;
        let OwnedResourceSpecifier::Topic(name) = resource.specifier else {
            continue;
        };
        if let Some(found) = cluster.topics.get_mut(&name) {
            found.config = values(resource.entries).collect();
        }
    }
    Ok(cluster)
}

/// How long each of these topics keeps its records; `None` where age deletes none.
///
/// # Errors
/// [`Failure`] when no broker responds within 10 s; a topic's own failure is in its result.
pub async fn retentions<'a>(
    settings: &Settings,
    topics: &'a [String],
) -> Result<Vec<(&'a str, Result<Option<Duration>, Failure>)>, Failure> {
    let admin = client(settings)?;
    let mut found = Vec::with_capacity(topics.len());
    // One request for each: a denied one does not say which topic it is about.
    for topic in topics {
        let what = format!("reading the settings of the topic {topic}");
        for answer in ask_configs(&admin, &[ResourceSpecifier::Topic(topic)], &what).await? {
            let kept = answer
                .map(|resource| kept(values(resource.entries)))
                .map_err(|code| Failure::from_client(&*what, KafkaError::AdminOp(code)));
            found.push((&**topic, kept));
        }
    }
    Ok(found)
}

/// How long a topic with these settings keeps its records; `None` where age deletes none.
fn kept(config: impl Iterator<Item = (String, String)>) -> Option<Duration> {
    let config: HashMap<String, String> = config.collect();
    let policy = config.get("cleanup.policy")?;
    if !policy.split(',').any(|one| one.trim() == "delete") {
        return None;
    }
    // -1 is without a limit.
    let ms = config.get("retention.ms")?.parse().ok()?;
    Some(Duration::from_millis(ms))
}

/// Reads the settings of the brokers, if that is permitted.
async fn describe_brokers(
    admin: &AdminClient<DefaultClientContext>,
    ids: &BTreeSet<i32>,
    cluster: &mut Cluster,
) -> Result<(), Failure> {
    for &id in ids {
        let what = format!("reading the settings of broker {id}");
        for answer in ask_configs(admin, &[ResourceSpecifier::Broker(id)], &what).await? {
            match answer {
                Ok(resource) => {
                    let config = values(resource.entries).collect();
                    cluster.broker_configs.insert(id, config);
                }
                Err(RDKafkaErrorCode::ClusterAuthorizationFailed) => {
                    cluster.broker_configs_unknown =
                        Some("the permission DescribeConfigs on the cluster is missing".to_owned());
                    return Ok(());
                }
                Err(code) => return Err(Failure::from_client(what, KafkaError::AdminOp(code))),
            }
        }
    }
    Ok(())
}

/// Asks for the settings of `resources`; each has a result of its own.
async fn ask_configs(
    admin: &AdminClient<DefaultClientContext>,
    resources: &[ResourceSpecifier<'_>],
    what: &str,
) -> Result<Vec<ConfigResourceResult>, Failure> {
    let answers = admin.describe_configs(resources, &options()).await;
    answers.map_err(|error| Failure::from_client(what, error))
}

/// The settings that have a value.
fn values(entries: Vec<ConfigEntry>) -> impl Iterator<Item = (String, String)> {
    let each = entries.into_iter();
    each.filter_map(|entry| Some((entry.name, entry.value?)))
}

fn client(settings: &Settings) -> Result<AdminClient<DefaultClientContext>, Failure> {
    let client: AdminClient<DefaultClientContext> = client_config(settings, "topics")
        .create()
        .map_err(|error| Failure::from_client("creating a client", error))?;
    give_once(&settings.credentials, client.inner());
    Ok(client)
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(ANSWER))
        .operation_timeout(Some(ANSWER))
}

/// Describes each topic by name: otherwise a topic without the permission to describe would look like a missing one.
fn metadata(settings: &Settings, specs: &[TopicSpec]) -> Result<(Cluster, BTreeSet<i32>), Failure> {
    let client: BaseConsumer<LoggedConsumer> = client_config(settings, "topics")
        .create_with_context(LoggedConsumer(LogContext::new("topics")))
        .map_err(|error| Failure::from_client("creating a client", error))?;
    give_once(&settings.credentials, client.client());
    let (mut cluster, mut ids) = (Cluster::default(), BTreeSet::new());
    for spec in specs {
        let what = || format!("describing the topic {}", spec.name);
        let answer = client
            .fetch_metadata(Some(&spec.name), ANSWER)
            .map_err(|error| explain(&client, &client.context().0, what(), error))?;
        cluster.brokers = i32::try_from(answer.brokers().len()).unwrap_or(i32::MAX);
        ids.extend(answer.brokers().iter().map(MetadataBroker::id));
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
    Ok((cluster, ids))
}

/// Creates the topics; topics that exist by now are left unchanged. Returns one result per topic.
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
    // The client drops the bootstrap server once it has learned the brokers, which may cancel the first request.
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

/// Adds partitions to one topic after the other, and stops at the first that fails.
///
/// # Errors
/// [`Failure`] names the topic; those before it have their partitions.
pub async fn grow(settings: &Settings, growths: &[Growth]) -> Result<(), Failure> {
    let admin = client(settings)?;
    for growth in growths {
        let what = || format!("adding partitions to the topic {}", growth.topic);
        let count = usize::try_from(growth.partitions)
            .map_err(|_| Failure::Internal(format!("{}: a negative number", what())))?;
        let wanted = NewPartitions::new(&growth.topic, count);
        let answers = admin
            .create_partitions([&wanted], &options())
            .await
            .map_err(|error| Failure::from_client(what(), error))?;
        for answer in answers {
            answer.map_err(|(_, code)| Failure::from_client(what(), KafkaError::AdminOp(code)))?;
        }
    }
    Ok(())
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
mod tests;
