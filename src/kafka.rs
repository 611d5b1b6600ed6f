//! The edge to Kafka: client settings that every role shares, and what an error means for a role.
//!
//! Everything that librdkafka must be told for the invariants to hold is set here, once; an operator may
//! add properties with `-X`, but not change these. What each is for stands beside it.

mod bootstrap;
pub mod cluster;
pub mod consumer;
pub mod credentials;
pub mod pipeline;
pub mod producer;
pub mod scribe;
pub mod table;
pub mod watchdog;

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rdkafka::Message;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Header, Headers, OwnedHeaders};
use thiserror::Error;

use crate::command::{Command, Envelope, InvalidCommand};
use crate::config::Settings;
use crate::units::Offset;
use cluster::ClusterId;

/// A transaction that is still open after this is aborted by the broker, so that readers of its
/// partitions, and the next owner of its offsets, do not wait long for a crashed process.
pub const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(12);

/// A member that has not been heard of for this long is evicted, and others take its partitions over.
/// Longer than [`TRANSACTION_TIMEOUT`], so that an evicted member's transaction is never resolved late.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(20);

/// Room for headers and envelope above the largest event, in every own topic's `max.message.bytes` and in
/// every producer's and consumer's limit, bytes.
pub const RECORD_OVERHEAD: usize = 512 * 1024;

/// What a thread that waits for a broker calls now and then: it tells that the thread is not stuck, and learns whether
/// to go on waiting.
pub type Pulse = Arc<dyn Fn() -> bool + Send + Sync>;

/// Why a role cannot go on. All but [`Failure::Forgotten`], after which the role begins anew in the process, end the
/// process: a supervisor starts it again.
#[derive(Debug, Error)]
pub enum Failure {
    /// A topic that this role needs does not exist.
    #[error(
        "the topic {0} does not exist; `hookstream topics create` with the same settings makes hookstream's own topics, with `--attempt-log` that of the log of attempts, and with `--with-events` the event topics"
    )]
    TopicMissing(String),
    /// The broker refused.
    #[error(
        "the broker denies {what}: {source}; grant this client READ, WRITE and DESCRIBE on hookstream's topics, READ on its groups and WRITE on its transactional ids"
    )]
    Denied {
        /// What was asked for.
        what: String,
        /// What the broker said.
        source: KafkaError,
    },
    /// A broker does not accept the client's credentials, or one does not accept the other's certificate.
    #[error(
        "{what} failed: connection not authenticated: {reason}; check the properties security.protocol, sasl.* and ssl.*, or the service binding"
    )]
    Refused {
        /// What was asked for.
        what: String,
        /// What the client said.
        reason: String,
    },
    /// Another process uses the same transactional id, or this one was away for too long.
    #[error(
        "{what} was fenced: another process runs with the same --instance, or this one was stopped for longer than the transaction timeout: {source}"
    )]
    Fenced {
        /// Which producer.
        what: String,
        /// What the client said.
        source: KafkaError,
    },
    /// Anything else that the client cannot recover from.
    #[error("{what} failed: {source}")]
    Client {
        /// What was asked for.
        what: String,
        /// What the client said.
        source: KafkaError,
    },
    /// The client waits for good for an answer that it has lost; a new one does not.
    #[error("{0} has lost an answer of the group's coordinator and waits for it for good")]
    Forgotten(&'static str),
    /// A record or a commit of a later program.
    #[error(
        "{place} was written by a newer hookstream (version {version} of its format; this program reads version {known}): nothing was changed; run the newer program in every replica"
    )]
    Newer {
        /// Topic, partition and offset.
        place: String,
        /// The version found.
        version: String,
        /// The version that this program reads.
        known: u32,
    },
    /// A thread of the role ended without saying why.
    #[error("{0}")]
    Internal(String),
}

impl Failure {
    /// Whether it says that no broker answers, so that waiting may help.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Client { source, .. } if is_unreachable(source))
    }

    /// Sorts a client error by its code.
    #[must_use]
    pub fn from_client(what: impl Into<String>, source: KafkaError) -> Self {
        // The client quotes the value of a property that it refuses, which may be a credential (**Secret**).
        let source = match source {
            KafkaError::ClientConfig(code, _, property, _) => {
                KafkaError::ClientConfig(code, "refused".to_owned(), property, "***".to_owned())
            }
            other => other,
        };
        let what = what.into();
        match source.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
                | RDKafkaErrorCode::TransactionalIdAuthorizationFailed,
            ) => Self::Denied { what, source },
            Some(
                RDKafkaErrorCode::Fenced
                | RDKafkaErrorCode::ProducerFenced
                | RDKafkaErrorCode::InvalidProducerEpoch,
            ) => Self::Fenced { what, source },
            _ => Self::Client { what, source },
        }
    }
}

/// Whether the error says that no broker answers, so that waiting may help.
#[must_use]
pub fn is_unreachable(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::Resolve
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::RequestTimedOut
                | RDKafkaErrorCode::MessageTimedOut
                | RDKafkaErrorCode::BrokerNotAvailable
                | RDKafkaErrorCode::NetworkException
        )
    ) || is_refused(error)
}

/// Whether the error says that a broker does not accept this client: a wrong password, or a certificate that one of the
/// two does not trust; or that the connection broke while the two found out. Waiting may help, since both sides are
/// changed one after the other when credentials rotate.
#[must_use]
pub fn is_refused(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL)
    )
}

/// Whether the error is a matter of permissions.
#[must_use]
pub fn is_denied(error: &KafkaError) -> bool {
    matches!(
        Failure::from_client("", error.clone()),
        Failure::Denied { .. }
    )
}

/// What every client of this process is told; `purpose` shows in the broker's logs and quotas.
#[must_use]
pub fn client_config(settings: &Settings, purpose: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    for (key, value) in &settings.properties {
        config.set(key, value);
    }
    settings.credentials.apply(&mut config);
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
    let largest = settings.max_event_bytes + RECORD_OVERHEAD + crate::admin::COPY_OVERHEAD;
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
    let largest = settings.max_event_bytes + RECORD_OVERHEAD + crate::admin::COPY_OVERHEAD;
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
fn default(config: &mut ClientConfig, key: &str, value: &str) {
    if config.get(key).is_none() {
        config.set(key, value);
    }
}

/// The headers of a command's record.
#[must_use]
pub fn command_headers(envelope: &Envelope<'_>) -> OwnedHeaders {
    let mut headers = Some(OwnedHeaders::new_with_capacity(15));
    envelope.each_header(|name, value| {
        headers = headers.take().map(|all| with_header(all, name, value))
    });
    headers.unwrap_or_default()
}

/// A record that could not be read, as it came, and why.
#[derive(Debug)]
pub struct InvalidRecord {
    /// The original key.
    pub key: Option<Vec<u8>>,
    /// The original value.
    pub value: Option<Vec<u8>>,
    /// The original headers.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// One sentence.
    pub error: String,
    /// Where it was read.
    pub topic: String,
    /// Where it was read.
    pub partition: i32,
    /// Where it was read.
    pub offset: Offset,
}

impl InvalidRecord {
    /// Keeps all of `message`.
    #[must_use]
    pub fn of(message: &BorrowedMessage<'_>, error: String) -> Self {
        Self {
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: each_header(message)
                .map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec)))
                .collect(),
            error,
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: Offset(message.offset()),
        }
    }

    /// What it weighs in memory, bytes, near enough for a cap.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.value.as_ref().map_or(0, Vec::len) + 512
    }

    /// The original headers, then where the record was and what is wrong with it.
    #[must_use]
    pub fn to_headers(&self) -> OwnedHeaders {
        let all = self.headers.iter().fold(
            OwnedHeaders::new_with_capacity(self.headers.len() + 4),
            |all, (name, value)| {
                all.insert(Header {
                    key: name,
                    value: value.as_deref(),
                })
            },
        );
        let all = with_header(all, "hookstream-error", &self.error);
        let all = with_header(all, "hookstream-topic", &self.topic);
        let all = with_header(all, "hookstream-partition", &self.partition.to_string());
        with_header(all, "hookstream-offset", &self.offset.to_string())
    }
}

/// The headers of a message, in order.
pub fn each_header<'a>(
    message: &'a BorrowedMessage<'_>,
) -> impl Iterator<Item = (&'a str, Option<&'a [u8]>)> {
    let headers = message.headers();
    (0..headers.map_or(0, Headers::count)).filter_map(move |index| {
        headers.map(|headers| {
            let header = headers.get(index);
            (header.key, header.value)
        })
    })
}

/// Reads a command; of what is none, all is kept.
///
/// # Errors
/// The whole record, for `webhook-invalid-events`.
pub fn read_command(
    message: &BorrowedMessage<'_>,
) -> Result<Result<Box<Command>, Box<InvalidRecord>>, Failure> {
    let body = message.payload().map(Bytes::copy_from_slice);
    match Command::from_record(message.key(), each_header(message), body) {
        Ok(command) => Ok(Ok(Box::new(command))),
        Err(InvalidCommand::Newer(version)) => Err(Failure::Newer {
            place: format!(
                "{} {}:{}",
                message.topic(),
                message.partition(),
                message.offset()
            ),
            version,
            known: crate::command::VERSION,
        }),
        Err(error) => Ok(Err(Box::new(InvalidRecord::of(message, error.to_string())))),
    }
}

/// Adds one text header.
#[must_use]
pub fn with_header(headers: OwnedHeaders, name: &str, value: &str) -> OwnedHeaders {
    headers.insert(Header {
        key: name,
        value: Some(value),
    })
}

/// Hands librdkafka's own log to `tracing`, with the client's purpose.
pub struct LogContext {
    purpose: &'static str,
    /// When it was last told that no broker answers, seconds since the epoch.
    told: AtomicI64,
    /// What a broker said last, where it does not accept this client.
    refusal: Mutex<Option<String>>,
}

impl LogContext {
    /// For the client that is used for `purpose`.
    #[must_use]
    pub fn new(purpose: &'static str) -> Self {
        Self {
            purpose,
            told: AtomicI64::new(0),
            refusal: Mutex::default(),
        }
    }

    /// Why a broker does not accept this client, if that was what it did last. The client says so once, not each time.
    fn refusal(&self) -> Option<String> {
        let refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        refusal.clone()
    }

    fn note(&self, error: &KafkaError, reason: &str) {
        let mut refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        if is_refused(error) {
            *refusal = Some(reason.to_owned());
        } else if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            // It got no further than to connect, or failed at something else.
            *refusal = None;
        }
    }

    /// A broker that is away makes every connection complain several times a second: one line says it all.
    fn may_tell(&self) -> bool {
        const SECONDS_BETWEEN: i64 = 10;
        let now = crate::clock::now().seconds();
        let told = self.told.load(Ordering::Relaxed);
        now - told >= SECONDS_BETWEEN
            && self
                .told
                .compare_exchange(told, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

impl ClientContext for LogContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_client(self.purpose, level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let client = self.purpose;
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF) {
            // Asked for, and told to the reader as an event of its own.
            return;
        }
        self.note(&error, reason);
        if is_refused(&error) {
            if self.may_tell() {
                tracing::warn!(client, "connection not authenticated: {reason}");
            }
        } else if !is_unreachable(&error) {
            tracing::warn!(client, "{error}: {reason}");
        } else if self.may_tell() {
            tracing::warn!(client, "a broker does not answer: {reason}");
        } else {
            tracing::debug!(client, "a broker does not answer: {reason}");
        }
    }
}

pub(crate) fn log_client(purpose: &str, level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error => {
            // The same trouble reaches the role as an error, which is logged with what it means.
            tracing::debug!(target: "librdkafka", client = purpose, facility, "{message}");
        }
        // The client tries again by itself; and a property of `-X` goes to producers and consumers alike.
        RDKafkaLogLevel::Warning if matches!(facility, "GETPID" | "CONFWARN") => {
            tracing::debug!(target: "librdkafka", client = purpose, facility, "{message}");
        }
        RDKafkaLogLevel::Warning => {
            tracing::warn!(target: "librdkafka", client = purpose, facility, "{message}")
        }
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
            tracing::debug!(target: "librdkafka", client = purpose, facility, "{message}");
        }
        RDKafkaLogLevel::Debug => {
            tracing::trace!(target: "librdkafka", client = purpose, facility, "{message}")
        }
    }
}

/// Waits until a broker answers and every topic in `wanted` is there; `waiting` is told, once a try, why not yet.
///
/// # Errors
/// [`Failure::TopicMissing`] names the first topic that is not there; [`Failure::Denied`] if the broker refuses.
/// `Ok(None)` when `stop` said to give up; otherwise the cluster's id.
pub fn wait_for_topics(
    settings: &Settings,
    purpose: &'static str,
    wanted: &[String],
    stop: &dyn Fn() -> bool,
    waiting: &mut dyn FnMut(&str),
) -> Result<Option<ClusterId>, Failure> {
    /// A whole try; the client goes on connecting between tries.
    const TRY: Duration = Duration::from_secs(2);
    /// A topic that was created a moment ago is not known to every broker yet: so often it may be missing.
    const APPEARS: usize = 15;
    const BETWEEN: Duration = Duration::from_millis(200);
    let client: BaseConsumer<LoggedConsumer> = client_config(settings, purpose)
        .create_with_context(LoggedConsumer(LogContext::new(purpose)))
        .map_err(|error| Failure::from_client("creating a client", error))?;
    let client = Arc::new(client);
    settings
        .credentials
        .keep_current(&client, |client| client.client());
    let mut missing_tries = 0;
    while !stop() {
        match client.fetch_metadata(None, TRY) {
            Ok(metadata) => {
                let there: std::collections::HashSet<_> =
                    metadata.topics().iter().map(|topic| topic.name()).collect();
                if let Some(missing) = wanted.iter().find(|topic| !there.contains(topic.as_str())) {
                    missing_tries += 1;
                    if missing_tries < APPEARS {
                        std::thread::sleep(BETWEEN);
                        continue;
                    }
                    return Err(explain_missing(&client, missing));
                }
                match cluster::ask(client.client(), TRY) {
                    Some(cluster) => return Ok(Some(cluster)),
                    None => waiting(&format!(
                        "waiting for a broker at {}: it does not give the cluster's id",
                        settings.brokers
                    )),
                }
            }
            Err(error) if is_denied(&error) => {
                return Err(Failure::from_client("reading metadata", error));
            }
            Err(error) => {
                serve(&client);
                let why = client.context().0.refusal();
                let why = why.map_or_else(
                    || error.to_string(),
                    |refusal| format!("connection not authenticated: {refusal}"),
                );
                waiting(&format!(
                    "waiting for a broker at {}: {why}",
                    settings.brokers
                ));
            }
        }
    }
    Ok(None)
}

/// Serves the log and error events of a client that nobody polls.
fn serve<C: rdkafka::consumer::ConsumerContext>(client: &BaseConsumer<C>) {
    /// Each call serves one; more than these are not worth the time.
    const EVENTS: usize = 100;
    for _ in 0..EVENTS {
        drop(client.poll(Duration::ZERO));
    }
}

/// What the error of `client` means, with what a broker said that does not accept it: a call ends with no more than that
/// no broker answers.
pub(crate) fn explain<C: rdkafka::consumer::ConsumerContext>(
    client: &BaseConsumer<C>,
    log: &LogContext,
    what: impl Into<String>,
    error: KafkaError,
) -> Failure {
    if is_unreachable(&error) {
        serve(client);
        if let Some(reason) = log.refusal() {
            let what = what.into();
            return Failure::Refused { what, reason };
        }
    }
    Failure::from_client(what, error)
}

/// A topic that may not be described is not listed either: asking for it by name tells which it is.
fn explain_missing(client: &BaseConsumer<LoggedConsumer>, topic: &str) -> Failure {
    let denied = client
        .fetch_metadata(Some(topic), Duration::from_secs(5))
        .ok()
        .and_then(|metadata| {
            metadata
                .topics()
                .first()
                .and_then(|found| found.error())
                .map(RDKafkaErrorCode::from)
                .filter(|code| *code == RDKafkaErrorCode::TopicAuthorizationFailed)
        });
    match denied {
        Some(code) => Failure::Denied {
            what: format!("describing the topic {topic}"),
            source: KafkaError::MetadataFetch(code),
        },
        None => Failure::TopicMissing(topic.to_owned()),
    }
}

/// A consumer context that only logs.
pub struct LoggedConsumer(pub LogContext);

impl ClientContext for LoggedConsumer {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(error, reason);
    }
}

impl rdkafka::consumer::ConsumerContext for LoggedConsumer {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_property_is_named_without_its_value() {
        let mut config = ClientConfig::new();
        config.set("sasl.passwrod", "hunter2");
        let made: Result<BaseConsumer, _> = config.create();
        let failure = Failure::from_client("creating a client", made.err().unwrap());
        assert!(failure.to_string().contains("sasl.passwrod"), "{failure}");
        assert!(
            !format!("{failure} {failure:?}").contains("hunter2"),
            "{failure:?}"
        );
    }
}
