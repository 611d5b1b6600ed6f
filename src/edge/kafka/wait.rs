//! Waiting until a broker responds and the topics that a role needs exist.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::config::RDKafkaLogLevel;
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
    let mut config = client_config(settings, purpose);
    // A connection that the broker closes at once is reported only in this line of the log; it may be the only sign of a
    // wrong listener.
    config
        .set("log.connection.close", "true")
        .set_log_level(RDKafkaLogLevel::Info);
    let client: BaseConsumer<LoggedConsumer> = config
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
                let why = match client.context().0.cause() {
                    Some(cause) if cause.is_refusal => {
                        format!("connection not authenticated: {}", cause.text)
                    }
                    Some(cause) => cause.text,
                    None => error.to_string(),
                };
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;
    use crate::config::{Layers, Machine, Source};
    use crate::edge::clock;

    /// The reason for which a client with `properties` waits for a server that closes each connection after it was sent
    /// something.
    fn reason(properties: &[&str]) -> String {
        /// Longer than the client takes on a busy machine.
        const LIMIT: Duration = Duration::from_secs(60);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                // Closed whatever came.
                if let Ok(0) = stream.read(&mut [0; 64]) {
                    continue;
                }
            }
        });
        wait_at(&address, properties, LIMIT)
    }

    fn wait_at(address: &str, properties: &[&str], limit: Duration) -> String {
        let mut layers = Layers::new();
        layers.give("brokers", Source::Flag, address);
        for property in properties {
            layers.give_property(property, Source::Flag);
        }
        let machine = Machine {
            host_name: "test".to_owned(),
            cores: 1,
        };
        let settings = Settings::check(&layers, &machine).unwrap();
        let began = clock::instant();
        let reasons = RefCell::new(Vec::new());
        let is_known = || {
            let last = reasons.borrow().last().cloned();
            let is_known = |last: String| !last.contains("Local: ");
            last.is_some_and(is_known) || began.elapsed() > limit
        };
        let mut waiting = |reason: &str| reasons.borrow_mut().push(reason.to_owned());
        let waited = wait_for_topics(&settings, "test", &[], &is_known, &mut waiting);
        assert!(waited.unwrap().is_none());
        reasons.into_inner().pop().unwrap()
    }

    #[test]
    fn the_cause_is_named_while_a_broker_is_waited_for() {
        let login = [
            "sasl.mechanism=PLAIN",
            "sasl.username=me",
            "sasl.password=hunter2",
        ];
        let with = |protocol| [&[protocol][..], &login].concat();
        for (properties, expected) in [
            (vec![], "the broker closes connections of this kind"),
            (
                vec!["security.protocol=SSL"],
                "its listener may be a plaintext one",
            ),
            (
                with("security.protocol=SASL_SSL"),
                "its listener may be a plaintext one",
            ),
            (
                with("security.protocol=SASL_PLAINTEXT"),
                "the broker closes connections of this kind",
            ),
        ] {
            let reason = reason(&properties);
            assert!(
                reason.starts_with("waiting for a broker at 127.0.0.1:"),
                "{reason}"
            );
            assert!(reason.contains(expected), "{properties:?}: {reason}");
            assert!(!reason.contains("hunter2"), "{reason}");
        }
    }

    #[test]
    fn a_port_where_nothing_listens_is_named() {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = closed.local_addr().unwrap().to_string();
        drop(closed);
        let reason = wait_at(&address, &[], Duration::from_secs(60));
        assert!(
            reason.contains("nothing listens at the broker's address"),
            "{reason}"
        );
    }
}
