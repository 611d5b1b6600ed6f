//! Which Kafka cluster a process works on.
//!
//! Offsets are only meaningful on one cluster: a mirror copies records, headers and commit metadata unchanged, but its
//! records have other offsets. So hookstream stores the cluster id beside each offset, and does not compare offsets
//! across clusters.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::error::Failure;

/// The id of a Kafka cluster, as reported by its brokers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterId(Arc<str>);

impl ClusterId {
    /// The cluster with this id.
    #[must_use]
    pub fn new(id: &str) -> Self {
        Self(Arc::from(id))
    }

    /// The id; empty if the brokers report none.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Reads the cluster id; `None` when no broker responds in time. Brokers without an id (before Kafka 0.10.1) count as one
/// cluster with an empty id.
pub fn ask<C: ClientContext>(client: &Client<C>, timeout: Duration) -> Option<ClusterId> {
    if let Some(id) = client.fetch_cluster_id(timeout) {
        return Some(ClusterId::new(&id));
    }
    // The client reports no reason: brokers that respond to this request have no id.
    client.fetch_metadata(None, timeout).ok()?;
    let id = client.fetch_cluster_id(Duration::ZERO).unwrap_or_default();
    if id.is_empty() {
        tracing::warn!(
            "brokers report no cluster id, offsets of other clusters cannot be detected"
        );
    }
    Some(ClusterId::new(&id))
}

/// The same where nothing can be done without it; `what` is the operation, for the error.
///
/// # Errors
/// [`Failure`] when no broker responds in time.
pub fn require<C: ClientContext>(
    client: &Client<C>,
    timeout: Duration,
    what: &str,
) -> Result<ClusterId, Failure> {
    ask(client, timeout).ok_or_else(|| {
        let error = KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut);
        Failure::from_client(what, error)
    })
}
