//! The Kafka half of the roles' port, on the simulated clients.
//!
//! A world's own port (`Port::join`, `Port::producer` and so on) calls these constructors with the network of its process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hookstream::config::Settings;
use hookstream::edge::kafka::client::{COPY_OVERHEAD, RECORD_OVERHEAD};
use hookstream::edge::port::failure::{ClientError, ErrorKind, Failure};
use hookstream::edge::port::records::{Headers, RawHeader, RecordView};
use hookstream::model::source::HEADER;
use hookstream::model::units::{EpochMs, Position};

use super::client::member::committed;
use super::client::{Class, Link, Trouble};
use super::log::Record;
use super::net::Net;
use super::{Code, Tp};

pub mod log;
pub mod member;
pub mod producer;

/// A record that was read.
#[derive(Clone, Debug)]
pub struct View {
    tp: Tp,
    offset: i64,
    record: Arc<Record>,
    /// Of a planted bug: the reader does not see where the command comes from.
    is_unmarked: bool,
}

impl View {
    /// This record, from this place.
    pub fn new(tp: Tp, offset: i64, record: Arc<Record>) -> Self {
        Self {
            tp,
            offset,
            record,
            is_unmarked: false,
        }
    }
}

impl RecordView for View {
    fn topic(&self) -> &str {
        &self.tp.topic
    }

    fn partition(&self) -> i32 {
        self.tp.partition
    }

    fn offset(&self) -> i64 {
        self.offset
    }

    fn timestamp(&self) -> Option<EpochMs> {
        Some(EpochMs(self.record.timestamp))
    }

    fn key(&self) -> Option<&[u8]> {
        self.record.key.as_deref()
    }

    fn payload(&self) -> Option<&[u8]> {
        self.record.value.as_deref()
    }

    fn headers(&self) -> impl Iterator<Item = RawHeader<'_>> {
        let each = self.record.headers.iter();
        let each = each.filter(|(name, _)| !self.is_unmarked || **name != *HEADER);
        each.map(|(name, value)| (name.as_bytes(), value.as_deref()))
    }
}

/// The headers of a record to write.
#[derive(Clone, Debug, Default)]
pub struct SimHeaders(Vec<(Arc<str>, Option<Bytes>)>);

impl Headers for SimHeaders {
    fn with_capacity(count: usize) -> Self {
        Self(Vec::with_capacity(count))
    }

    fn and(mut self, name: &str, value: Option<&[u8]>) -> Self {
        let value = value.map(Bytes::copy_from_slice);
        self.0.push((Arc::from(name), value));
        self
    }
}

/// The name of a client in the network.
pub fn client_name(settings: &Settings, purpose: &str) -> String {
    format!("{purpose}-{}", settings.instance)
}

/// The largest record that a producer takes, as the product sets it.
fn largest(settings: &Settings) -> usize {
    settings.max_event_bytes + RECORD_OVERHEAD + COPY_OVERHEAD
}

/// An error as the roles see it, with the kinds of the product's own classification.
pub fn error(trouble: Trouble) -> ClientError {
    let found = ClientError::new(kind(trouble.code), &format!("{:?}", trouble.code));
    if trouble.ambiguous || trouble.class == Class::Retry {
        found.ambiguous()
    } else {
        found
    }
}

/// An error without a class.
pub fn plain(code: Code) -> ClientError {
    ClientError::new(kind(code), &format!("{code:?}"))
}

fn kind(code: Code) -> ErrorKind {
    match code {
        Code::TopicAuthorizationFailed => ErrorKind::TopicDenied,
        Code::GroupAuthorizationFailed | Code::TransactionalIdAuthorizationFailed => {
            ErrorKind::Denied
        }
        Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch => ErrorKind::Fenced,
        Code::RequestTimedOut | Code::MessageTimedOut => ErrorKind::TimedOut,
        Code::AllBrokersDown | Code::BrokerTransportFailure | Code::OperationTimedOut => {
            ErrorKind::Unreachable
        }
        Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::UnknownTopic
        | Code::UnknownPartition
        | Code::UnknownTopicOrPartition
        | Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::InvalidTimestamp => ErrorKind::OfPartition,
        Code::MessageSizeTooLarge => ErrorKind::TooLarge,
        Code::OffsetMetadataTooLarge => ErrorKind::MetadataTooLarge,
        Code::UnknownMemberId => ErrorKind::UnknownMember,
        _ => ErrorKind::Other,
    }
}

/// The committed positions of a group, asked once, in the order of `partitions`.
///
/// # Errors
/// [`Failure`] when the coordinator does not respond within 2 s, or a transaction holds one.
pub async fn positions(
    net: &Net,
    settings: &Settings,
    group: &str,
    purpose: &'static str,
    partitions: &[Tp],
) -> Result<Vec<Option<Position>>, Failure> {
    const ANSWER: Duration = Duration::from_secs(2);
    let link = Link::new(net, &client_name(settings, purpose));
    let found = committed(&link, &Arc::from(group), partitions, ANSWER).await;
    let what = || format!("reading the committed positions of {group}");
    let found = found.map_err(|code| Failure::from_client(what(), plain(code)))?;
    let each = found.into_iter();
    Ok(each
        .map(|found| found.map(|(offset, _)| Position(offset)))
        .collect())
}

/// Waits until a broker responds and all `topics` exist; `false` if `stop` returned true.
///
/// # Errors
/// [`Failure::TopicMissing`] names the first missing topic.
pub async fn wait_for_topics(
    net: &Net,
    settings: &Settings,
    purpose: &'static str,
    topics: &[String],
    stop: &dyn Fn() -> bool,
    waiting: &mut dyn FnMut(&str),
) -> Result<bool, Failure> {
    const BETWEEN: Duration = Duration::from_millis(200);
    const MISSING_TRIES: usize = 15;
    let link = Link::new(net, &client_name(settings, purpose));
    let mut missing_tries = 0;
    while !stop() {
        let wanted = topics.to_vec();
        let missing = link.ask(move |cluster, _| {
            let mut each = wanted.into_iter();
            each.find(|topic| cluster.describe(topic).is_none())
        });
        match missing.await {
            Ok(None) => return Ok(true),
            Ok(Some(missing)) => {
                missing_tries += 1;
                if missing_tries >= MISSING_TRIES {
                    return Err(Failure::TopicMissing(missing));
                }
            }
            Err(lost) => waiting(&format!("waiting for a broker: {lost:?}")),
        }
        tokio::time::sleep(BETWEEN).await;
    }
    Ok(false)
}

/// Since when no broker is reachable by a client; `None` while one is.
pub fn outage(
    net: &Net,
    client: &Arc<str>,
    since: Option<Instant>,
    now: Instant,
) -> Option<Instant> {
    match net.bootstrap(client) {
        Some(_) => None,
        None => since.or(Some(now)),
    }
}

#[cfg(test)]
mod tests;
