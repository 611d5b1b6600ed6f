//! Reads the committed offsets of the group, and waits for them where that is right.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::TopicPartitionList;

use super::context::MemberContext;
use super::partition::{TopicPartition, plain};
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::failpoint;
use crate::edge::kafka::client::consumer_config;
use crate::edge::kafka::error::{Failure, is_denied};
use crate::edge::kafka::log::{LogContext, LoggedConsumer};
use crate::edge::kafka::wait::Pulse;
use crate::edge::kafka::watchdog::{bounded, was_unreachable_within};
use crate::model::units::Position;

/// What a group has committed for a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Where.
    pub at: TopicPartition,
    /// `None` when the group has never committed here.
    pub position: Option<Position>,
    /// As it was committed.
    pub metadata: String,
}

/// Reads the committed offsets of one group.
pub(super) struct CommittedReader<'a> {
    pub(super) consumer: &'a BaseConsumer<MemberContext>,
    pub(super) settings: &'a Settings,
    pub(super) purpose: &'static str,
    pub(super) group: &'a str,
    pub(super) pulse: &'a Pulse,
}

impl CommittedReader<'_> {
    /// What the group has committed for `partitions`; waits while a transaction that holds them is open, and while no
    /// broker answers. Soon after no broker answered, a coordinator that has just begun may tell old positions for a
    /// moment (seen once, of Kafka 4.0.2 after all brokers had been killed): then two readings have to agree.
    ///
    /// # Errors
    /// [`Failure`] when permission is denied; when the process is told to stop before there is an answer; and when
    /// another client got one, and this one still does not.
    pub(super) fn read(&self, partitions: &[TopicPartition]) -> Result<Vec<Committed>, Failure> {
        const TRY: Duration = Duration::from_secs(5);
        /// After this, longer than a request of ours can take, another client is asked, and again as much later.
        const ANSWERED: Duration = Duration::from_secs(15);
        /// Of so many tries the last says what the matter is. A transaction of ours ends within
        /// [`TRANSACTION_TIMEOUT`], and ten seconds that a broker may take to notice.
        const HANGING: usize = 6;
        /// For so long after no broker answered a reading is made again, so much later.
        const UNSETTLED: Duration = Duration::from_secs(60);
        const AGAIN: Duration = Duration::from_secs(1);
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        if failpoint::fails("forgotten") {
            return Err(Failure::Forgotten(self.purpose));
        }
        let wanted = plain(partitions);
        let mut tries = 0;
        let mut asked = clock::instant();
        let mut another_has_read = false;
        let mut before = None;
        loop {
            tries += 1;
            let read = || {
                failpoint::point("committed-read.before");
                self.consumer.committed_offsets(wanted.clone(), TRY)
            };
            match bounded("reading committed offsets", read) {
                Ok(found) => {
                    failpoint::point("committed-read.after");
                    let found = read_committed(partitions, &found)?;
                    if !was_unreachable_within(UNSETTLED)
                        || before.as_ref() == Some(&found)
                        || !(self.pulse)()
                    {
                        return Ok(found);
                    }
                    before = Some(found);
                    std::thread::sleep(AGAIN);
                }
                Err(error) if is_denied(&error) || !(self.pulse)() => {
                    return Err(Failure::from_client(
                        format!("reading the committed offsets of {}", self.group),
                        error,
                    ));
                }
                Err(error) => {
                    tracing::warn!(
                        group = self.group,
                        "reading committed offsets: {error}; trying again"
                    );
                    if another_has_read {
                        return Err(Failure::Forgotten(self.purpose));
                    }
                    if clock::instant().saturating_duration_since(asked) >= ANSWERED {
                        another_has_read = self.another_reads(&wanted, "read_committed", TRY);
                        asked = clock::instant();
                    }
                    if tries % HANGING == 0 && self.another_reads(&wanted, "read_uncommitted", TRY)
                    {
                        tracing::error!(
                            group = self.group,
                            "the positions of this group hang in a transaction that should have ended long ago: a broker has lost its end; see the runbook, HangingTransaction; waiting"
                        );
                    }
                }
            }
        }
    }

    /// Whether a client that is no member reads what the group has committed: if it does as `read_committed`, no open
    /// transaction and no missing broker keeps this one from it.
    fn another_reads(
        &self,
        wanted: &TopicPartitionList,
        isolation: &str,
        timeout: Duration,
    ) -> bool {
        let mut config = consumer_config(self.settings, self.purpose, self.group);
        config.set("isolation.level", isolation);
        let context = LoggedConsumer(LogContext::new(self.purpose));
        let another: Result<BaseConsumer<LoggedConsumer>, _> = config.create_with_context(context);
        let Ok(client) = another else { return false };
        let read = || client.committed_offsets(wanted.clone(), timeout);
        let reads = bounded("reading committed offsets by another client", read).is_ok();
        // Dropping it can block while no coordinator answers.
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
                    format!("the offset of {} {}", at.topic, at.partition),
                    error,
                )
            })?;
            let position = match element.offset() {
                rdkafka::Offset::Offset(offset) => Some(Position(offset)),
                _ => None,
            };
            // The client panics on metadata that is not UTF-8, but brokers keep it as a string.
            Ok(Committed {
                at: at.clone(),
                position,
                metadata: element.metadata().to_owned(),
            })
        })
        .collect()
}
