//! Which Kafka cluster a process works on.
//!
//! An offset means something on one cluster only: a mirror copies records, headers and commit metadata unchanged and
//! gives the records other offsets. So whatever hookstream stores beside an offset also names the cluster, and is not
//! compared as a number on another one.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::client::{Client, ClientContext};

/// The id of a Kafka cluster, as its brokers give it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterId(Arc<str>);

impl ClusterId {
    /// The cluster with this id.
    #[must_use]
    pub fn new(id: &str) -> Self {
        Self(Arc::from(id))
    }

    /// As the brokers give it; empty for brokers that give none.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Asks the brokers; `None` when none responds in time. Brokers that respond and give no id (before Kafka 0.10.1) count
/// as one cluster, whose id is empty.
pub fn ask<C: ClientContext>(client: &Client<C>, timeout: Duration) -> Option<ClusterId> {
    if let Some(id) = client.fetch_cluster_id(timeout) {
        return Some(ClusterId::new(&id));
    }
    // The client gives no reason: brokers that respond to this have no id.
    client.fetch_metadata(None, timeout).ok()?;
    let id = client.fetch_cluster_id(Duration::ZERO).unwrap_or_default();
    if id.is_empty() {
        tracing::warn!(
            "the brokers give no cluster id: offsets of another cluster cannot be recognized"
        );
    }
    Some(ClusterId::new(&id))
}
