//! What to do about a transaction that holds a group's positions and does not end.
//!
//! The brokers believe that it is over, so nobody ends it: the client library has no call for that. An operator has to,
//! with Kafka's own tool, which needs the partition of `__consumer_offsets` and the offset at which the transaction starts.

use std::fmt::Write as _;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::config::Settings;
use crate::edge::kafka::client::consumer_config;
use crate::edge::kafka::credentials::give_once;
use crate::edge::kafka::log::{LogContext, LoggedConsumer};
use crate::edge::kafka::watchdog::Link;

/// What an operator has to do about the transaction that holds the positions of `group`, for the log. Only after these
/// cannot be read with `read_committed`, but without it.
#[must_use]
pub fn diagnosis(settings: &Settings, purpose: &'static str, group: &str) -> String {
    const ANSWER: Duration = Duration::from_secs(5);
    let found = || {
        let client = second_client(settings, purpose, group, "read_committed")?;
        let metadata = client.fetch_metadata(Some(OFFSETS_TOPIC), ANSWER).ok()?;
        let count = metadata.topics().first()?.partitions().len();
        let partition = partition_of(group, i32::try_from(count).ok()?)?;
        // As read-committed readers see it, the partition ends where the transaction starts.
        let ends = client.fetch_watermarks(OFFSETS_TOPIC, partition, ANSWER);
        std::thread::spawn(move || drop(client));
        Some((partition, ends.ok().map(|(_, stable)| stable)))
    };
    let link = Link::new(purpose);
    match link.bounded("looking for a hanging transaction", found) {
        Some((partition, start)) => message(&settings.brokers, Some(partition), start),
        None => message(&settings.brokers, None, None),
    }
}

/// A client of `group` that never joins it.
pub(super) fn second_client(
    settings: &Settings,
    purpose: &'static str,
    group: &str,
    isolation: &str,
) -> Option<BaseConsumer<LoggedConsumer>> {
    let mut config = consumer_config(settings, purpose, group);
    config.set("isolation.level", isolation);
    let context = LoggedConsumer(LogContext::new(purpose));
    let client: BaseConsumer<LoggedConsumer> = config.create_with_context(context).ok()?;
    give_once(&settings.credentials, client.client());
    Some(client)
}

/// Kafka's topic of committed positions.
const OFFSETS_TOPIC: &str = "__consumer_offsets";

/// The partition of [`OFFSETS_TOPIC`] that holds a group, of `count`: `Utils.abs(groupId.hashCode) % count`.
fn partition_of(group: &str, count: i32) -> Option<i32> {
    let hash = group.encode_utf16().fold(0_i32, |hash, unit| {
        hash.wrapping_mul(31).wrapping_add(i32::from(unit))
    });
    // The smallest number has no positive counterpart; Kafka takes 0.
    let hash = hash.checked_abs().unwrap_or(0);
    hash.checked_rem(count)
}

/// The message for the log. `partition` and `start` are known as far as this client may read them.
fn message(brokers: &str, partition: Option<i32>, start: Option<i64>) -> String {
    let mut text = String::from(
        "committed offsets blocked by a hanging transaction, waiting: the brokers have lost its end, as those of Kafka 4.3.1 did in trials (KAFKA-20734); 3.9.2 and 4.0.2 did not. No version that fixes it is known to this release; use 3.9 or 4.0, or one whose release notes list it as fixed. End the transaction with `",
    );
    let tool = format!("kafka-transactions.sh --bootstrap-server {brokers}");
    // Writing to a string does not fail.
    let written = match (partition, start) {
        (Some(partition), Some(start)) => write!(
            text,
            "{tool} abort --topic {OFFSETS_TOPIC} --partition {partition} --start-offset {start}`"
        ),
        (Some(partition), None) => write!(
            text,
            "{tool} abort --topic {OFFSETS_TOPIC} --partition {partition} --start-offset OFFSET`, where `{tool} describe-producers --topic {OFFSETS_TOPIC} --partition {partition}` shows OFFSET as CurrentTransactionStartOffset"
        ),
        (None, _) => write!(
            text,
            "{tool} abort --topic {OFFSETS_TOPIC} --partition N --start-offset OFFSET`, where `{tool} find-hanging --broker-id ID` shows N and OFFSET"
        ),
    };
    debug_assert!(written.is_ok());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_of_a_group_is_that_of_kafka() {
        // Java: Math.abs("hookstream-deliver".hashCode()) % 50, and so on.
        assert_eq!(partition_of("", 50), Some(0));
        assert_eq!(partition_of("a", 50), Some(47));
        assert_eq!(partition_of("ab", 50), Some(5));
        // The hash of this text is the smallest number.
        assert_eq!(partition_of("polygenelubricants", 50), Some(0));
        assert_eq!(partition_of("group", 0), None);
    }

    #[test]
    fn the_message_has_the_exact_command_as_far_as_it_is_known() {
        let all = message("b:9092", Some(7), Some(42));
        assert!(
            all.contains("`kafka-transactions.sh --bootstrap-server b:9092 abort --topic __consumer_offsets --partition 7 --start-offset 42`"),
            "{all}"
        );
        for (partition, start) in [(Some(7), None), (None, None)] {
            let text = message("b:9092", partition, start);
            assert!(
                text.contains("KAFKA-20734") && text.contains(" abort "),
                "{text}"
            );
        }
    }
}
