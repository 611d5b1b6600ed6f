//! The ends of partitions, as read-committed readers see them and as they are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::client::consumer_config;
use super::credentials::keep_current;
use super::error::Failure;
use super::log::{LogContext, LoggedConsumer};
use super::member::TopicPartition;
use crate::config::Settings;

type Client = Arc<BaseConsumer<LoggedConsumer>>;

/// Two clients that read no records and join no group.
pub struct Ends {
    committed: Client,
    all: Client,
}

impl Ends {
    /// Clients for `purpose`.
    ///
    /// # Errors
    /// [`Failure`] when a client cannot be created.
    pub fn new(settings: &Settings, purpose: &'static str) -> Result<Self, Failure> {
        // The client requires a group name, but never joins.
        let group = format!("{}{purpose}", settings.group_prefix);
        let client = |isolation| {
            let client: BaseConsumer<LoggedConsumer> = consumer_config(settings, purpose, &group)
                .set("isolation.level", isolation)
                .create_with_context(LoggedConsumer(LogContext::new(purpose)))
                .map_err(|error| Failure::from_client("creating a reader", error))?;
            let client = Arc::new(client);
            keep_current(&settings.credentials, &client, |client| client.client());
            Ok(client)
        };
        Ok(Self {
            committed: client("read_committed")?,
            all: client("read_uncommitted")?,
        })
    }

    /// The last stable offsets.
    ///
    /// # Errors
    /// [`Failure`] when a broker does not respond in time.
    pub fn stable(&self, of: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, i64>, Failure> {
        ends(&self.committed, of)
    }

    /// The high watermarks.
    ///
    /// # Errors
    /// [`Failure`] when a broker does not respond in time.
    pub fn high(&self, of: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, i64>, Failure> {
        ends(&self.all, of)
    }
}

fn ends(client: &Client, of: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, i64>, Failure> {
    // Handles the client's log and error events, which would pile up otherwise.
    while client.poll(Duration::ZERO).is_some() {}
    bounds(client, of, Offset::End)
}

/// The earliest (`Offset::Beginning`) or latest offsets (`Offset::End`) of partitions; those without a leader are left out.
///
/// # Errors
/// [`Failure`] when a broker does not respond within five seconds.
pub(super) fn bounds(
    client: &Client,
    of: &[TopicPartition],
    bound: Offset,
) -> Result<BTreeMap<TopicPartition, i64>, Failure> {
    const ANSWER: Duration = Duration::from_secs(5);
    let failed = |error| Failure::from_client("reading the ends of partitions", error);
    if of.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut asked = TopicPartitionList::with_capacity(of.len());
    for at in of {
        asked
            .add_partition_offset(&at.topic, at.partition, bound)
            .map_err(failed)?;
    }
    // A query by time, with its special values: one request per broker instead of per partition.
    let found = client.offsets_for_times(asked, ANSWER).map_err(failed)?;
    let each = of.iter().filter_map(|at| {
        let element = found.find_partition(&at.topic, at.partition)?;
        match (element.error(), element.offset()) {
            (Ok(()), Offset::Offset(offset)) => Some((at.clone(), offset)),
            _ => None,
        }
    });
    Ok(each.collect())
}
