//! How a producer's client is created, and which transactional id it gets.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer as _};

use super::deliveries::{Deliveries, DeliveryContext};
use super::polled_producer::PolledProducer;
use crate::config::Settings;
use crate::edge::failpoint;
use crate::edge::kafka::bootstrap;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log::LogContext;
use crate::edge::kafka::wait::KeepWaiting;
use crate::edge::kafka::watchdog::Link;

/// Alternative transactional ids of a producer, beside its own.
pub(super) const IDS: usize = 16;

/// What to do when the broker cannot end the last transaction of a transactional id, as when it cannot write the end to
/// one of the partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnStuck {
    /// Wait: the id excludes others.
    Wait,
    /// Use another id. The last transaction is over, since it cannot be committed any more.
    NextId,
    /// Fail.
    Fail,
}

/// A client, its link to the watchdog, and its delivery reports.
pub(super) type Made = (Arc<PolledProducer>, Link, Arc<Deliveries>);

/// How to create the client.
#[derive(Clone)]
pub(super) struct Recipe {
    pub(super) settings: Settings,
    pub(super) keep_waiting: KeepWaiting,
    pub(super) purpose: &'static str,
    pub(super) transactional_id: Option<String>,
    /// Its reports say which records were acknowledged; small batches are sent at once.
    pub(super) is_copier: bool,
    /// Which of the alternative ids is used; 0 for the id itself.
    pub(super) turn: usize,
    pub(super) on_stuck: OnStuck,
    /// How long a record may take to be acknowledged; the client's default when `None`.
    pub(super) deadline: Option<Duration>,
}

impl Recipe {
    /// Creates the client, with transactions started.
    ///
    /// # Errors
    /// [`Failure`] when that is not possible.
    pub(super) fn make(&mut self) -> Result<Made, Failure> {
        loop {
            let (client, link, deliveries) = self.client()?;
            if self.transactional_id.is_none() || self.init_transactions(&client, &link)? {
                return Ok((client, link, deliveries));
            }
            let stuck = self.id().unwrap_or_default();
            self.turn = (self.turn + 1) % IDS;
            tracing::warn!(
                client = self.purpose,
                transactional_id = stuck,
                "the broker cannot end the last transaction of this transactional id, as when one of its partitions cannot be written; using another id"
            );
        }
    }

    /// The transactional id in use.
    fn id(&self) -> Option<String> {
        let id = self.transactional_id.as_ref()?;
        Some(match self.turn {
            0 => id.clone(),
            turn => format!("{id}-{turn}"),
        })
    }

    fn client(&self) -> Result<Made, Failure> {
        let deliveries = Arc::new(Deliveries::new(self.is_copier));
        let context = DeliveryContext {
            log: LogContext::new(self.purpose),
            deliveries: Arc::clone(&deliveries),
        };
        let mut config = match self.id() {
            Some(id) => {
                crate::edge::kafka::client::transactional_config(&self.settings, self.purpose, &id)
            }
            None => {
                let mut config =
                    crate::edge::kafka::client::producer_config(&self.settings, self.purpose);
                // With transactions, their timeout is the bound. Otherwise a dead connection would block writing for
                // the default of one minute.
                crate::edge::kafka::client::default(&mut config, "socket.timeout.ms", "12000");
                if self.is_copier {
                    copies(&mut config);
                }
                config
            }
        };
        if let Some(deadline) = self.deadline.filter(|_| {
            // Two names of one property.
            config.get("delivery.timeout.ms").is_none()
        }) {
            let transaction = config
                .get("transaction.timeout.ms")
                .filter(|_| self.transactional_id.is_some())
                .and_then(|ms| ms.parse().ok())
                .map(Duration::from_millis);
            // The coordinator must not end the transaction, and fence this client, before the record is refused.
            let deadline = transaction.map_or(deadline, |longest| deadline.min(longest * 2 / 3));
            let ms = deadline.as_millis().to_string();
            crate::edge::kafka::client::default(&mut config, "message.timeout.ms", &ms);
        }
        let client: BaseProducer<DeliveryContext> =
            config.create_with_context(context).map_err(|error| {
                Failure::from_client(format!("creating the producer of {}", self.purpose), error)
            })?;
        let client = Arc::new(PolledProducer::of(client, self.purpose)?);
        let link = bootstrap::keep(
            &self.settings,
            &client,
            |client| client.client(),
            self.purpose,
        )?;
        Ok((client, link, deliveries))
    }

    /// `false` when the last transaction of this id does not end, and another id is to be used. The coordinator has then
    /// decided how it ends, since it has fenced the id's last client before it responds so.
    fn init_transactions(&self, client: &PolledProducer, link: &Link) -> Result<bool, Failure> {
        const TRY: Duration = Duration::from_secs(10);
        loop {
            let init = || {
                failpoint::point("init-transactions.before");
                client.init_transactions(TRY)
            };
            let Err(error) = link.bounded("starting transactions", init) else {
                return Ok(true);
            };
            let is_stuck =
                error.rdkafka_error_code() == Some(RDKafkaErrorCode::ConcurrentTransactions);
            if is_stuck && self.on_stuck == OnStuck::NextId {
                return Ok(false);
            }
            let retriable =
                matches!(&error, KafkaError::Transaction(inner) if inner.is_retriable());
            if !(self.keep_waiting)()
                || self.on_stuck == OnStuck::Fail
                || !retriable && !crate::edge::kafka::error::is_unreachable(&error)
            {
                return Err(Failure::from_client(
                    format!("starting transactions of {}", self.purpose),
                    error,
                ));
            }
            tracing::warn!(
                client = self.purpose,
                "starting transactions failed, retrying: {error}"
            );
        }
    }
}

/// What a copier needs beside the settings of every producer.
fn copies(config: &mut ClientConfig) {
    // No record is given up, which would leave a gap: its partition may take writes again at any time. Two names of one
    // property.
    config.remove("delivery.timeout.ms");
    config.set("message.timeout.ms", "0");
    // Next to nothing is waited for, so that a lone event is not delayed; under load, batches grow while others are in
    // flight.
    crate::edge::kafka::client::default(config, "linger.ms", "0.2");
}
