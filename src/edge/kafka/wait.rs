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

/// What a thread that waits for a broker calls now and then: it tells that the thread is not stuck, and learns whether
/// to go on waiting.
pub type Pulse = Arc<dyn Fn() -> bool + Send + Sync>;

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
    keep_current(&settings.credentials, &client, |client| client.client());
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
