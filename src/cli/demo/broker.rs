//! The broker of the demo: embedded, or a real Kafka with the demo's own topics.
//!
//! The embedded broker is librdkafka's mock cluster. It runs in this process, keeps about 5 MiB per partition in memory,
//! and supports neither transactions nor CreateTopics, so the guarantee is at-least-once and a separate call creates the
//! topics. On a real Kafka the topics are not deleted, so that they can be inspected.

use rdkafka::message::OwnedHeaders;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

use super::events::Flow;
use super::receivers::Receivers;
use super::subscribers::SUBSCRIBERS;
use crate::cli::exit::{CliError, Exit, runtime};
use crate::cli::print;
use crate::config::{Guarantee, Settings};
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::producer::{BatchError, Producer, Record};
use crate::edge::kafka::topics as admin;
use crate::edge::kafka::topics::{Partitions, Wish};

/// Placeholder address of the embedded broker.
pub(super) const EMBEDDED: &str = "embedded:9092";

/// Partitions of the demo topics: more than one, to spread the keys.
const PARTITIONS: i32 = 3;

/// Maximum events on the embedded broker: a third of them become dead letters in one partition, and the broker silently
/// drops records beyond its 5 MiB.
const EMBEDDED_EVENTS: u32 = 12_000;

/// A broker with all topics.
pub(super) struct Broker {
    /// The settings with the address of the broker.
    pub(super) settings: Settings,
    embedded: Option<MockCluster<'static, DefaultProducerContext>>,
}

impl Broker {
    /// Starts the embedded broker or connects to the real one, and creates the topics.
    ///
    /// # Errors
    /// [`CliError`]: the broker is unreachable or denies access, or the embedded one does not support the settings.
    pub(super) fn start(mut settings: Settings, flow: Flow) -> Result<Self, CliError> {
        if settings.brokers != EMBEDDED {
            create_topics(&settings)?;
            return Ok(Self {
                settings,
                embedded: None,
            });
        }
        if settings.guarantee != Guarantee::AtLeastOnce {
            let message = "the embedded broker does not support transactions: omit --guarantee, or set --brokers to a real Kafka";
            return Err(CliError::new(Exit::Usage, message));
        }
        if flow.events() > EMBEDDED_EVENTS {
            let message = format!(
                "the embedded broker is limited to {EMBEDDED_EVENTS} events (--rate times --duration); for more, set --brokers to a real Kafka"
            );
            return Err(CliError::new(Exit::Usage, message));
        }
        let failed = |error| {
            CliError::new(
                Exit::Failure,
                format!("starting the embedded broker: {error}"),
            )
        };
        let cluster = MockCluster::new(1).map_err(failed)?;
        for spec in admin::topics(&settings) {
            let partitions = if spec.partitions == Partitions::One {
                1
            } else {
                PARTITIONS
            };
            cluster
                .create_topic(&spec.name, partitions, 1)
                .map_err(failed)?;
        }
        settings.brokers = cluster.bootstrap_servers();
        Ok(Self {
            settings,
            embedded: Some(cluster),
        })
    }

    /// Whether the broker runs in this process.
    pub(super) fn is_embedded(&self) -> bool {
        self.embedded.is_some()
    }

    /// A producer for independent records.
    ///
    /// # Errors
    /// [`CliError`] when it cannot be created.
    pub(super) fn producer(&self) -> Result<Producer, CliError> {
        let plain = Settings {
            guarantee: Guarantee::AtLeastOnce,
            ..self.settings.clone()
        };
        Producer::sole(&plain, "demo").map_err(|failure| print::failed(&failure))
    }

    /// Writes the subscriptions. `rate`: events per second.
    ///
    /// # Errors
    /// [`CliError`] when the broker does not accept them.
    pub(super) fn subscribe(&self, receivers: &Receivers, rate: u32) -> Result<(), CliError> {
        let topic = self.settings.topics.subscriptions();
        let mut producer = self.producer()?;
        for (tag, (subscriber, receiver)) in SUBSCRIBERS.iter().zip(&receivers.all).enumerate() {
            let document = subscriber
                .subscription(&receiver.url, &receiver.secret, rate)
                .to_string();
            let record = Record {
                topic: &topic,
                partition: None,
                key: Some(subscriber.name.as_bytes()),
                value: Some(document.as_bytes()),
                headers: OwnedHeaders::new(),
                tag,
            };
            producer
                .send(record)
                .map_err(|error| refused("writing the subscriptions", error))?;
        }
        producer
            .finish(&[], None)
            .map_err(|error| refused("writing the subscriptions", error))
    }
}

/// Converts a failed batch to an error.
pub(super) fn refused(what: &str, error: BatchError) -> CliError {
    match error {
        BatchError::Failed(failure) => print::failed(&failure),
        BatchError::Aborted(error) => print::failed(&Failure::from_client(what, error)),
        BatchError::TooLarge { .. } => CliError::new(
            Exit::Failure,
            format!("{what}: a record exceeds the broker's size limit"),
        ),
    }
}

fn create_topics(settings: &Settings) -> Result<(), CliError> {
    let runtime = runtime()?;
    let wish = Wish {
        partitions: Some(PARTITIONS),
        ..Wish::default()
    };
    let results = runtime.block_on(async {
        let specs = admin::topics(settings);
        let cluster = admin::describe(settings, &specs).await?;
        admin::create(settings, &admin::creations(&specs, &cluster, wish, true)).await
    });
    for (_, result) in results.map_err(|failure| print::failed(&failure))? {
        result.map_err(|failure| print::failed(&failure))?;
    }
    Ok(())
}
