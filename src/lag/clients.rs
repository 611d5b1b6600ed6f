//! The reader's clients of librdkafka. Their calls block.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::port::{Bound, Fed, Feed, Group, Kafka};
use crate::config::Settings;
use crate::edge::kafka::client::{consumer_config, fetch_patiently, unless_given};
use crate::edge::kafka::cluster::{self, ClusterId};
use crate::edge::kafka::credentials::keep_current;
use crate::edge::kafka::error::{Failure, is_denied, is_unreachable};
use crate::edge::kafka::log::{LogContext, LoggedConsumer, explain};
use crate::edge::port::records::TopicPartition;

/// Timeout of requests to the brokers.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Small fetches without a pause. Records are small, decoding is faster than fetching, and the allocator keeps the memory
/// of a burst of large fetches.
const FETCHING: [(&str, &str); 3] = [
    ("queued.min.messages", "2000"),
    ("fetch.message.max.bytes", "65536"),
    ("fetch.queue.backoff.ms", "1"),
];

pub(super) type Client = Arc<BaseConsumer<LoggedConsumer>>;

/// A client that does not join the group.
///
/// # Errors
/// [`Failure`] when the client cannot be created because of its settings.
pub(super) fn client(settings: &Settings, group: &str, isolation: &str) -> Result<Client, Failure> {
    let mut config = consumer_config(settings, "lag", group);
    for (key, value) in FETCHING {
        unless_given(settings, &mut config, key, value);
    }
    fetch_patiently(settings, &mut config);
    config
        .set("isolation.level", isolation)
        .set("enable.partition.eof", "true");
    let client: BaseConsumer<LoggedConsumer> = config
        .create_with_context(LoggedConsumer(LogContext::new("lag")))
        .map_err(|error| Failure::from_client("creating a reader", error))?;
    let client = Arc::new(client);
    keep_current(&settings.credentials, &client, |client| client.client());
    Ok(client)
}

/// The clients of one reader.
pub(super) struct Clients {
    settings: Settings,
    deliver: Client,
    release: Client,
    /// Fetches no records: a response to a client that does would wait behind its fetches.
    idle: Client,
}

impl Clients {
    /// # Errors
    /// [`Failure`] when a client cannot be created because of its settings.
    pub(super) fn new(settings: &Settings) -> Result<Self, Failure> {
        let group = |name: &str| format!("{}{name}", settings.group_prefix);
        Ok(Self {
            settings: settings.clone(),
            // With read_committed, a request would wait for a transaction that is about to move the offset.
            deliver: client(settings, &group("deliver"), "read_uncommitted")?,
            release: client(settings, &group("release"), "read_uncommitted")?,
            idle: client(settings, &group("lag"), "read_committed")?,
        })
    }
}

impl Kafka for Clients {
    type Feed = Topic;

    fn serve(&self) {
        // Log and error events, which would pile up otherwise.
        for client in [&self.deliver, &self.release, &self.idle] {
            while client.poll(Duration::ZERO).is_some() {}
        }
    }

    async fn cluster(&self) -> Result<ClusterId, Failure> {
        cluster::require(self.idle.client(), TIMEOUT, "asking for the cluster's id")
    }

    async fn partitions(&self, topic: &str) -> Result<Vec<i32>, Failure> {
        let metadata = self.idle.fetch_metadata(Some(topic), TIMEOUT);
        let metadata = metadata
            .map_err(|error| Failure::from_client("reading the metadata of the topics", error))?;
        let topics = metadata.topics().iter();
        let each = topics.flat_map(|topic| topic.partitions());
        Ok(each.map(|partition| partition.id()).collect())
    }

    async fn offsets(
        &self,
        of: &[TopicPartition],
        which: Bound,
    ) -> Result<Vec<Option<i64>>, Failure> {
        let failed = |error| Failure::from_client("reading the offsets of the topics", error);
        let (client, which) = match which {
            Bound::First => (&self.idle, Offset::Beginning),
            Bound::Stable => (&self.idle, Offset::End),
            Bound::High => (&self.deliver, Offset::End),
        };
        if of.is_empty() {
            return Ok(Vec::new());
        }
        let mut asked = TopicPartitionList::with_capacity(of.len());
        for at in of {
            asked
                .add_partition_offset(&at.topic, at.partition, which)
                .map_err(failed)?;
        }
        // A query by time, with its special values for first and end: one request per broker instead of per partition.
        let found = client.offsets_for_times(asked, TIMEOUT).map_err(failed)?;
        let mut offsets = Vec::with_capacity(of.len());
        for at in of {
            let element = found.find_partition(&at.topic, at.partition);
            if let Some(element) = &element {
                element.error().map_err(failed)?;
            }
            offsets.push(match element.map(|element| element.offset()) {
                Some(Offset::Offset(offset)) => Some(offset),
                _ => None,
            });
        }
        Ok(offsets)
    }

    async fn committed(
        &self,
        group: Group,
        of: &[TopicPartition],
    ) -> Result<Vec<Option<(i64, String)>>, Failure> {
        let what = "reading committed offsets";
        let failed = |error| Failure::from_client(what, error);
        if of.is_empty() {
            return Ok(Vec::new());
        }
        let client = match group {
            Group::Deliver => &self.deliver,
            Group::Release => &self.release,
        };
        let mut asked = TopicPartitionList::with_capacity(of.len());
        for at in of {
            asked.add_partition(&at.topic, at.partition);
        }
        let found = client
            .committed_offsets(asked, TIMEOUT)
            .map_err(|error| explain(client, &client.context().0, what, error))?;
        let mut committed = Vec::with_capacity(of.len());
        for at in of {
            let element = found.find_partition(&at.topic, at.partition);
            if let Some(element) = &element {
                // An error is not a missing offset, after which everything would be read again.
                element.error().map_err(failed)?;
            }
            committed.push(element.and_then(|element| match element.offset() {
                Offset::Offset(position) => Some((position, element.metadata().to_owned())),
                _ => None,
            }));
        }
        Ok(committed)
    }

    fn feed(&self, topic: &str) -> Result<Topic, Failure> {
        let group = format!("{}lag", self.settings.group_prefix);
        Ok(Topic {
            topic: topic.to_owned(),
            client: client(&self.settings, &group, "read_committed")?,
            assigned: RefCell::default(),
        })
    }
}

/// One topic. Each has its own client, since a client reports the end of a partition without the topic.
pub(super) struct Topic {
    topic: String,
    client: Client,
    assigned: RefCell<BTreeSet<i32>>,
}

impl Feed for Topic {
    type Record<'a> = BorrowedMessage<'a>;

    fn read_from(&self, partition: i32, from: Option<i64>) -> Result<(), Failure> {
        let failed = |error| Failure::from_client(format!("reading {}", self.topic), error);
        if !self.assigned.borrow_mut().insert(partition) {
            let mut list = TopicPartitionList::new();
            list.add_partition(&self.topic, partition);
            self.client.incremental_unassign(&list).map_err(failed)?;
        }
        let start = from.map_or(Offset::Beginning, Offset::Offset);
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, partition, start)
            .map_err(failed)?;
        self.client.incremental_assign(&list).map_err(failed)
    }

    async fn poll(&self, patience: Duration) -> Result<Fed<BorrowedMessage<'_>>, Failure> {
        let mut patience = patience;
        loop {
            match self.client.poll(std::mem::take(&mut patience)) {
                None => return Ok(Fed::Idle),
                Some(Ok(message)) => return Ok(Fed::Record(message)),
                Some(Err(KafkaError::PartitionEOF(partition))) => return Ok(Fed::End(partition)),
                Some(Err(error)) => tolerate(error)?,
            }
        }
    }
}

fn tolerate(error: KafkaError) -> Result<(), Failure> {
    let is_fatal = is_denied(&error)
        || matches!(error, KafkaError::MessageConsumptionFatal(_))
        || error.rdkafka_error_code() == Some(RDKafkaErrorCode::UnknownTopicOrPartition);
    if is_fatal {
        return Err(Failure::from_client("reading the backlog", error));
    }
    if !is_unreachable(&error) {
        tracing::warn!("reading the backlog: {error}");
    }
    Ok(())
}
