//! Reads the committed offsets of the group, and decides how long to wait for them.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::TopicPartitionList;

use super::context::MemberContext;
use super::hanging::{self, second_client};
use super::partition::{TopicPartition, plain};
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::failpoint;
use crate::edge::kafka::error::{Failure, is_denied};
use crate::edge::kafka::wait::KeepWaiting;
use crate::edge::kafka::watchdog::{Link, was_unreachable_within};
use crate::model::units::Position;

pub use crate::edge::port::records::Committed;

/// Reads the committed offsets of one group.
#[derive(Clone)]
pub(super) struct CommittedReader {
    pub(super) consumer: Arc<BaseConsumer<MemberContext>>,
    pub(super) link: Link,
    pub(super) settings: Arc<Settings>,
    pub(super) purpose: &'static str,
    pub(super) group: Arc<str>,
    pub(super) keep_waiting: KeepWaiting,
}

impl CommittedReader {
    /// Reads the committed offsets of `partitions`. Waits while an open transaction holds them, and while no broker is
    /// reachable. Shortly after an outage of all brokers, a coordinator that has just started may return old positions
    /// (seen once, with Kafka 4.0.2 after all brokers were killed); two readings then have to agree.
    ///
    /// # Errors
    /// [`Failure`] when permission is denied; when the process is stopping; and when a second client gets a response
    /// and this one still does not.
    pub(super) fn read(&self, partitions: &[TopicPartition]) -> Result<Vec<Committed>, Failure> {
        const TRY: Duration = Duration::from_secs(5);
        /// Longer than one of our requests can take: after this a second client tries, and again after as much time.
        const SECOND_CLIENT: Duration = Duration::from_secs(15);
        /// Every so many tries a hanging transaction is diagnosed. Our own transactions end within the transaction
        /// timeout, plus up to ten seconds until a broker notices.
        const DIAGNOSE_EVERY: usize = 6;
        /// For this long after an outage of all brokers a reading is repeated, after this delay.
        const UNSETTLED: Duration = Duration::from_secs(60);
        const REPEAT: Duration = Duration::from_secs(1);
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        if failpoint::fails("forgotten") {
            return Err(Failure::Stuck(self.purpose));
        }
        let wanted = plain(partitions);
        let mut tries = 0;
        let mut asked = clock::instant();
        let mut second_has_read = false;
        let mut before = None;
        loop {
            tries += 1;
            let read = || {
                failpoint::point("committed-read.before");
                self.consumer.committed_offsets(wanted.clone(), TRY)
            };
            match self.link.bounded("reading committed offsets", read) {
                Ok(found) => {
                    failpoint::point("committed-read.after");
                    let found = read_committed(partitions, &found)?;
                    if !was_unreachable_within(UNSETTLED)
                        || before.as_ref() == Some(&found)
                        || !(self.keep_waiting)()
                    {
                        return Ok(found);
                    }
                    before = Some(found);
                    std::thread::sleep(REPEAT);
                }
                Err(error) if is_denied(&error) || !(self.keep_waiting)() => {
                    return Err(Failure::from_client(
                        format!("reading the committed offsets of {}", self.group),
                        error,
                    ));
                }
                Err(error) => {
                    tracing::warn!(
                        group = &*self.group,
                        "reading committed offsets failed, retrying: {error}"
                    );
                    if second_has_read {
                        return Err(Failure::Stuck(self.purpose));
                    }
                    if clock::instant().saturating_duration_since(asked) >= SECOND_CLIENT {
                        second_has_read = self.second_client_reads(&wanted, "read_committed", TRY);
                        asked = clock::instant();
                    }
                    if tries % DIAGNOSE_EVERY == 0
                        && self.second_client_reads(&wanted, "read_uncommitted", TRY)
                    {
                        let found = hanging::diagnosis(&self.settings, self.purpose, &self.group);
                        tracing::error!(group = &*self.group, "{found}");
                    }
                }
            }
        }
    }

    /// Whether a client that is not a member can read the committed offsets. If it can with `read_committed`, neither
    /// an open transaction nor an unreachable broker blocks this one.
    fn second_client_reads(
        &self,
        wanted: &TopicPartitionList,
        isolation: &str,
        timeout: Duration,
    ) -> bool {
        let Some(client) = second_client(&self.settings, self.purpose, &self.group, isolation)
        else {
            return false;
        };
        let read = || client.committed_offsets(wanted.clone(), timeout);
        let link = Link::new(self.purpose);
        let reads = link
            .bounded("reading committed offsets with a second client", read)
            .is_ok();
        // Dropping a client can block while no coordinator responds.
        std::thread::spawn(move || drop(client));
        reads
    }
}

fn read_committed(
    partitions: &[TopicPartition],
    found: &TopicPartitionList,
) -> Result<Vec<Committed>, Failure> {
    partitions
        .iter()
        .map(|at| {
            let Some(element) = found.find_partition(&at.topic, at.partition) else {
                return Ok(Committed {
                    at: at.clone(),
                    position: None,
                    metadata: String::new(),
                });
            };
            element.error().map_err(|error| {
                Failure::from_client(
                    format!(
                        "reading the committed offset of {} {}",
                        at.topic, at.partition
                    ),
                    error,
                )
            })?;
            let position = match element.offset() {
                rdkafka::Offset::Offset(offset) => Some(Position(offset)),
                _ => None,
            };
            // The client panics on metadata that is not UTF-8, but brokers store it as a string.
            Ok(Committed {
                at: at.clone(),
                position,
                metadata: element.metadata().to_owned(),
            })
        })
        .collect()
}
