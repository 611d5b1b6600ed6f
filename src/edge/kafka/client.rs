//! Client settings that every role shares.
//!
//! Everything that librdkafka must be told for the invariants to hold is set here, once; an operator may add properties
//! with `-X`, but not change these. What each is for stands beside it.

use std::time::Duration;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};

use super::credentials;
use crate::config::Settings;

/// A transaction that is still open after this is aborted by the broker, so that readers of its
/// partitions, and the next owner of its offsets, do not wait long for a crashed process.
pub const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(12);

/// A member that has not been heard of for this long is evicted, and others take its partitions over.
/// Longer than [`TRANSACTION_TIMEOUT`], so that an evicted member's transaction is never resolved late.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(20);

/// Room for headers and envelope above the largest event, in every own topic's `max.message.bytes` and in
/// every producer's and consumer's limit, bytes.
pub const RECORD_OVERHEAD: usize = 512 * 1024;

/// What every client of this process is told; `purpose` shows in the broker's logs and quotas.
#[must_use]
pub fn client_config(settings: &Settings, purpose: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    for (key, value) in &settings.properties {
        config.set(key, value);
    }
    credentials::apply(&settings.credentials, &mut config);
    if config.get("debug").is_some() {
        // Whoever asks for the client's debug lines gets them: `-X debug=cgrp --log librdkafka=trace`.
        config.set_log_level(RDKafkaLogLevel::Debug);
    }
    config
        .set("bootstrap.servers", &settings.brokers)
        .set(
            "client.id",
            format!("hookstream-{purpose}-{}", settings.instance),
        )
        // A missing topic is a mistake to be named, not one to be papered over with default settings.
        .set("allow.auto.create.topics", "false")
        // Connection trouble is logged once by us, with the role's name, not by every client thread.
        .set("log.connection.close", "false");
    config
}

/// What every consumer is told. `group` is needed by librdkafka also for readers that never join one.
#[must_use]
pub fn consumer_config(settings: &Settings, purpose: &str, group: &str) -> ClientConfig {
    let mut config = client_config(settings, purpose);
    let largest = settings.max_event_bytes + RECORD_OVERHEAD + COPY_OVERHEAD;
    default(
        &mut config,
        "session.timeout.ms",
        &SESSION_TIMEOUT.as_millis().to_string(),
    );
    // A member learns of a rebalance by its next heartbeat, and a partition that moves takes two rebalances: it stands still
    // for up to twice as long.
    default(&mut config, "heartbeat.interval.ms", "500");
    // The default of a minute is how long a connection that the network forgot keeps a partition from being read.
    default(&mut config, "socket.timeout.ms", "12000");
    // Partitions that are added are read soon: the default is five minutes.
    default(&mut config, "topic.metadata.refresh.interval.ms", "20000");
    // Bounds what the client prefetches, per partition queue and in all.
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
        // Only the partitions that move stop during a rebalance.
        .set("partition.assignment.strategy", "cooperative-sticky")
        // The default of a second shows as stalls after the queue was full.
        .set("fetch.queue.backoff.ms", "50");
    config
}

/// What every producer is told: acknowledged by all in-sync replicas, in order, without duplicates.
#[must_use]
pub fn producer_config(settings: &Settings, purpose: &str) -> ClientConfig {
    let mut config = client_config(settings, purpose);
    // Copies of a command carry a little more than the command; the topics' own limits decide.
    let largest = settings.max_event_bytes + RECORD_OVERHEAD + COPY_OVERHEAD;
    default(&mut config, "linger.ms", "1");
    default(&mut config, "compression.type", "lz4");
    // A batch is refused as a whole when it is over its topic's limit: none may be, of records that are not.
    let topic_limit = settings.max_event_bytes + RECORD_OVERHEAD;
    default(
        &mut config,
        "batch.size",
        &topic_limit.min(1_000_000).to_string(),
    );
    default(&mut config, "queue.buffering.max.messages", "200000");
    config
        .set("enable.idempotence", "true")
        .set("message.max.bytes", largest.to_string())
        // So that a key lands in the same partition as with the Java client.
        .set("partitioner", "murmur2_random");
    config
}

/// What every transactional producer is told, beside [`producer_config`].
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
    // How long a new transaction waits while the broker still writes the last one's markers: with the
    // default of 100 ms every second transaction would be late by that.
    default(&mut config, "retry.backoff.ms", "5");
    // Looking for a group's coordinator, the client asks a few times and then waits, without limit, for any connection
    // to come or go (librdkafka, `rd_kafka_coord_req_fsm`): a broker that is starting answers that often with "not yet".
    // Connections that rest are closed and opened again, so the wait ends.
    default(&mut config, "connections.max.idle.ms", "10000");
    config.set("transactional.id", transactional_id);
    config
}

/// Sets a property that the operator did not.
pub(super) fn default(config: &mut ClientConfig, key: &str, value: &str) {
    if config.get(key).is_none() {
        config.set(key, value);
    }
}

/// A dead letter carries up to this many bytes more than the command that it was, and a retry its due time:
/// whatever fits `webhook-commands` must fit where it goes next, or its partition would be stuck.
pub const COPY_OVERHEAD: usize = 64 * 1024;
