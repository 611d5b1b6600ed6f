//! Where the demo plays: an embedded broker, or a real Kafka with topics of the demo's own.
//!
//! The embedded broker is librdkafka's mock cluster: it lives in this process, keeps about 5 MiB a partition in
//! memory, and has no transactions and no CreateTopics, so the guarantee is at-least-once and topics are made by a
//! call of its own. On a real Kafka nothing is deleted: the topics stay to be looked at.

use rdkafka::message::OwnedHeaders;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

use super::events::Flow;
use super::receivers::Receivers;
use super::subscribers::SUBSCRIBERS;
use crate::cli::exit::{CliError, Exit};
use crate::cli::print;
use crate::config::{Guarantee, Settings};
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::producer::{BatchError, Producer, Record};
use crate::edge::kafka::topics as admin;
use crate::edge::kafka::topics::{Partitions, Wish};

/// Stands for the brokers when none are given.
pub(super) const EMBEDDED: &str = "embedded:9092";

/// Partitions of the demo's topics: more than one, so that keys spread.
const PARTITIONS: i32 = 3;

/// Events that the embedded broker holds: of a third of them the dead letters lie in one partition, and what exceeds
/// its 5 MiB would be dropped silently.
const EMBEDDED_EVENTS: u32 = 12_000;

/// A broker with all topics.
pub(super) struct Broker {
    /// With the broker's address.
    pub(super) settings: Settings,
    embedded: Option<MockCluster<'static, DefaultProducerContext>>,
}

impl Broker {
    /// Starts the embedded broker or asks the real one, and makes the topics.
    ///
    /// # Errors
    /// [`CliError`]: no broker answers, it denies, or the embedded one cannot do what is asked for.
    pub(super) fn set(mut settings: Settings, flow: Flow) -> Result<Self, CliError> {
        if settings.brokers != EMBEDDED {
            create_topics(&settings)?;
            return Ok(Self {
                settings,
                embedded: None,
            });
        }
        if settings.guarantee != Guarantee::AtLeastOnce {
            let message = "the embedded broker has no transactions: leave --guarantee out, or name a real Kafka with --brokers";
            return Err(CliError::new(Exit::Usage, message));
        }
        if flow.events() > EMBEDDED_EVENTS {
            let message = format!(
                "the embedded broker holds {EMBEDDED_EVENTS} events (--rate times --duration); name a real Kafka with --brokers for more"
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

    /// Whether the broker ends with this process.
    pub(super) fn is_embedded(&self) -> bool {
        self.embedded.is_some()
    }

    /// A producer for records that each stand for themselves.
    ///
    /// # Errors
    /// [`CliError`] when there can be none.
    pub(super) fn producer(&self) -> Result<Producer, CliError> {
        let plain = Settings {
            guarantee: Guarantee::AtLeastOnce,
            ..self.settings.clone()
        };
        Producer::sole(&plain, "demo").map_err(|failure| print::failed(&failure))
    }

    /// Writes the subscriptions. `rate`: orders a second.
    ///
    /// # Errors
    /// [`CliError`] when the broker does not take them.
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

/// A batch that the broker did not take, as a message.
pub(super) fn refused(what: &str, error: BatchError) -> CliError {
    match error {
        BatchError::Failed(failure) => print::failed(&failure),
        BatchError::Aborted(error) => print::failed(&Failure::from_client(what, error)),
        BatchError::TooLarge { .. } => CliError::new(
            Exit::Failure,
            format!("{what}: a record is larger than the broker's limit"),
        ),
    }
}

fn create_topics(settings: &Settings) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| {
            CliError::new(Exit::Failure, format!("cannot start a runtime: {error}"))
        })?;
    let wish = Wish {
        partitions: Some(PARTITIONS),
        replication: None,
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
