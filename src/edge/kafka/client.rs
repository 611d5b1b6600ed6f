//! Kafka client settings that every role shares.
//!
//! All librdkafka settings that the invariants depend on are set here. An operator may add properties with `-X`, but
//! not change these. A comment explains each one.

use std::time::Duration;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};

use super::credentials;
use crate::config::{Settings, is_served_here};
use crate::edge::failpoint;

/// The broker aborts a transaction that is open for longer, so that readers of its partitions, and the next owner of
/// its offsets, do not wait long for a crashed process.
pub const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(12);

/// A member without heartbeats for this long is evicted, and others take over its partitions. Longer than
/// [`TRANSACTION_TIMEOUT`], so that an evicted member's transaction is never resolved late.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(20);

/// Room for headers and envelope beyond the largest event, in bytes: part of the `max.message.bytes` of each topic of
/// hookstream, and of the limits of all producers and consumers.
pub const RECORD_OVERHEAD: usize = 512 * 1024;

/// Limit of the bytes that wait in a producer for a broker, KiB; with `--max-event-bytes` above 15 MiB, two of the largest
/// records. Beyond it, sending waits, so a batch of any size is written at the brokers' pace. Fan-out, delivery and
/// release have one producer each.
pub const PRODUCER_QUEUE_KIB: usize = 32 * 1024;

/// Settings of every client of this process; `purpose` appears in the broker's logs and quotas.
#[must_use]
pub fn client_config(settings: &Settings, purpose: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    for (key, value) in settings.properties.iter() {
        if !is_served_here(key) {
            config.set(key, value);
        }
    }
    failpoint::panics_with("client.configured", || {
        let values = settings.properties.iter().map(|(_, value)| value.as_str());
        values.collect::<Vec<_>>().join(" ")
    });
    credentials::apply(&settings.credentials, &mut config);
    if config.get("debug").is_some() {
        // So that `-X debug=cgrp --log librdkafka=trace` shows the client's debug lines.
        config.set_log_level(RDKafkaLogLevel::Debug);
    }
    config
        .set("bootstrap.servers", &settings.brokers)
        .set(
            "client.id",
            format!("hookstream-{purpose}-{}", settings.instance),
        )
        // A missing topic is an error to report, not to hide by creating it with default settings.
        .set("allow.auto.create.topics", "false")
        // The role logs connection failures once; otherwise every client thread would.
        .set("log.connection.close", "false");
    config
}

/// Settings of every consumer. librdkafka requires `group` even for readers that never join one.
#[must_use]
pub fn consumer_config(settings: &Settings, purpose: &str, group: &str) -> ClientConfig {
    let mut config = client_config(settings, purpose);
    let largest = settings.max_event_bytes + RECORD_OVERHEAD + COPY_OVERHEAD;
    default(
        &mut config,
        "session.timeout.ms",
        &SESSION_TIMEOUT.as_millis().to_string(),
    );
    // A member learns of a rebalance at its next heartbeat, and moving a partition takes two rebalances: the partition
    // pauses for up to twice the interval.
    default(&mut config, "heartbeat.interval.ms", "500");
    // A dead connection keeps a partition from being read for this long; the default is a minute.
    default(&mut config, "socket.timeout.ms", "12000");
    // New partitions are discovered within this time; the default is five minutes.
    default(&mut config, "topic.metadata.refresh.interval.ms", "20000");
    // Limits the client's prefetch, per partition queue and in total.
    default(&mut config, "queued.max.messages.kbytes", "8192");
    default(&mut config, "fetch.wait.max.ms", "100");
    default(
        &mut config,
        "fetch.message.max.bytes",
        &largest.max(1_048_576).to_string(),
    );
    config
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "earliest")
        // Only the partitions that move are paused during a rebalance.
        .set("partition.assignment.strategy", "cooperative-sticky")
        // The default of one second causes visible stalls after the queue was full.
        .set("fetch.queue.backoff.ms", "50");
    config
}

/// For a consumer that follows a topic and never pauses: an idle one asks twice a second instead of ten times, which is most
/// of what an idle process costs itself and its brokers. A record is sent at once all the same. Not for the reader of a
/// role: a client has one fetch under way at each broker, so a partition that is resumed or assigned would wait for one
/// that the idle partitions wait in (measured: half of the drain rate).
pub fn fetch_patiently(settings: &Settings, config: &mut ClientConfig) {
    unless_given(settings, config, "fetch.wait.max.ms", "500");
}

/// Sets a property, also if [`consumer_config`] has a default of its own, unless the operator has set it.
pub fn unless_given(settings: &Settings, config: &mut ClientConfig, key: &str, value: &str) {
    if !settings.properties.iter().any(|(given, _)| given == key) {
        config.set(key, value);
    }
}

/// Settings of every producer: acknowledged by all in-sync replicas, in order, without duplicates.
#[must_use]
pub fn producer_config(settings: &Settings, purpose: &str) -> ClientConfig {
    let mut config = client_config(settings, purpose);
    // Copies of a command are slightly larger than the command; the topics' own limits decide.
    let largest = settings.max_event_bytes + RECORD_OVERHEAD + COPY_OVERHEAD;
    default(&mut config, "linger.ms", "1");
    default(&mut config, "compression.type", "lz4");
    // The broker rejects a whole batch above its topic's limit, so a batch of valid records must never exceed it.
    let topic_limit = settings.max_event_bytes + RECORD_OVERHEAD;
    default(
        &mut config,
        "batch.size",
        &topic_limit.min(1_000_000).to_string(),
    );
    default(&mut config, "queue.buffering.max.messages", "200000");
    // The client's own default is 1 GiB per producer.
    let queue = PRODUCER_QUEUE_KIB.max(2 * largest.div_ceil(1024));
    default(
        &mut config,
        "queue.buffering.max.kbytes",
        &queue.to_string(),
    );
    config
        .set("enable.idempotence", "true")
        .set("message.max.bytes", largest.to_string())
        // Maps keys to the same partitions as the Java client.
        .set("partitioner", "murmur2_random");
    config
}

/// Settings of every transactional producer, besides [`producer_config`].
#[must_use]
pub fn transactional_config(
    settings: &Settings,
    purpose: &str,
    transactional_id: &str,
) -> ClientConfig {
    let mut config = producer_config(settings, purpose);
    default(
        &mut config,
        "transaction.timeout.ms",
        &TRANSACTION_TIMEOUT.as_millis().to_string(),
    );
    // How long a new transaction waits while the broker still writes the markers of the previous one: the default of
    // 100 ms would delay every second transaction by that.
    default(&mut config, "retry.backoff.ms", "5");
    // When it looks for a group's coordinator, the client retries a few times and then waits, without limit, for any
    // connection to open or close (librdkafka, `rd_kafka_coord_req_fsm`); a starting broker often responds that many
    // times with "not available". Closing and reopening idle connections ends that wait.
    default(&mut config, "connections.max.idle.ms", "10000");
    config.set("transactional.id", transactional_id);
    config
}

/// Sets a property unless the operator has set it.
pub(super) fn default(config: &mut ClientConfig, key: &str, value: &str) {
    if config.get(key).is_none() {
        config.set(key, value);
    }
}

/// A dead letter may be this many bytes larger than its command, and a retry larger by its due time. Whatever fits
/// `webhook-commands` must fit its next topic, or its partition would be stuck.
pub const COPY_OVERHEAD: usize = 64 * 1024;
