//! Waiting until a broker responds and the topics that a role needs exist.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::client::client_config;
use super::cluster::{self, ClusterId};
use super::credentials::keep_current;
use super::error::{Failure, is_denied};
use super::log::{LogContext, LoggedConsumer, serve};
use crate::config::Settings;

pub use crate::edge::port::task::KeepWaiting;

/// Waits until a broker responds and all `topics` exist, and returns the cluster id; `None` if `stop` returned true.
/// `waiting` is called after each failed try with the reason.
///
/// # Errors
/// [`Failure::TopicMissing`] names the first missing topic; [`Failure::Denied`] when the broker denies permission.
pub fn wait_for_topics(
    settings: &Settings,
    purpose: &'static str,
    topics: &[String],
    stop: &dyn Fn() -> bool,
    waiting: &mut dyn FnMut(&str),
) -> Result<Option<ClusterId>, Failure> {
    /// The limit of one try; the client keeps connecting between tries.
    const TRY: Duration = Duration::from_secs(2);
    /// A topic that was just created may not be known to every broker yet: tries before it counts as missing.
    const MISSING_TRIES: usize = 15;
    const BETWEEN: Duration = Duration::from_millis(200);
    let client: BaseConsumer<LoggedConsumer> = client_config(settings, purpose)
        .create_with_context(LoggedConsumer(LogContext::new(purpose)))
        .map_err(|error| Failure::from_client("creating a client", error))?;
    let client = Arc::new(client);
    keep_current(&settings.credentials, &client, |client| client.client());
    let mut missing_tries = 0;
    while !stop() {
        match client.fetch_metadata(None, TRY) {
            Ok(metadata) => {
                let known: std::collections::HashSet<_> =
                    metadata.topics().iter().map(|topic| topic.name()).collect();
                if let Some(missing) = topics.iter().find(|topic| !known.contains(topic.as_str())) {
                    missing_tries += 1;
                    if missing_tries < MISSING_TRIES {
                        std::thread::sleep(BETWEEN);
                        continue;
                    }
                    return Err(explain_missing(&client, missing));
                }
                match cluster::ask(client.client(), TRY) {
                    Some(cluster) => return Ok(Some(cluster)),
                    None => waiting(&format!(
                        "waiting for a broker at {}: no response with the cluster id",
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

/// A topic that this client may not describe is not listed either; requesting it by name tells the two cases apart.
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
            source: KafkaError::MetadataFetch(code).into(),
        },
        None => Failure::TopicMissing(topic.to_owned()),
    }
}
