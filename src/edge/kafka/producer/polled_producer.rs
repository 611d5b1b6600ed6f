//! A producer whose delivery reports are served by a thread of its own, which sleeps while nothing happens.
//!
//! `ThreadedProducer` of rdkafka polls ten times a second, and each poll spins through the last fraction of a millisecond
//! before its deadline: about 1 % of a core for each producer at rest. This thread waits for [`POLL`], and is not joined:
//! it ends after its last wait, and the client with it. What the client has not sent by then is purged at once.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::producer::{BaseProducer, Producer as _, PurgeConfig};

use super::deliveries::DeliveryContext;
use crate::edge::kafka::error::Failure;

/// How long one wait for reports lasts at most.
const POLL: Duration = Duration::from_secs(5);

/// A producer with a thread that serves its reports until this is dropped.
pub(super) struct PolledProducer {
    client: Arc<BaseProducer<DeliveryContext>>,
    ended: Arc<AtomicBool>,
}

impl PolledProducer {
    /// Starts the thread of a client.
    ///
    /// # Errors
    /// [`Failure`] when the thread cannot be started.
    pub(super) fn of(
        client: BaseProducer<DeliveryContext>,
        purpose: &str,
    ) -> Result<Self, Failure> {
        let client = Arc::new(client);
        let ended = Arc::new(AtomicBool::new(false));
        let (polled, is_ended) = (Arc::clone(&client), Arc::clone(&ended));
        std::thread::Builder::new()
            .name(format!("reports-{purpose}"))
            .spawn(move || {
                while !is_ended.load(Ordering::Acquire) {
                    polled.poll(POLL);
                }
            })
            .map_err(|error| Failure::Internal(format!("starting a thread: {error}")))?;
        Ok(Self { client, ended })
    }
}

impl Deref for PolledProducer {
    type Target = BaseProducer<DeliveryContext>;

    fn deref(&self) -> &Self::Target {
        &self.client
    }
}

impl Drop for PolledProducer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        self.client.context().log.end();
        // Its successor writes the same again: nothing of this one may come after that.
        self.client.purge(PurgeConfig::default().queue().inflight());
    }
}
