//! Why a role cannot continue, and what an error of the Kafka client means for it.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use thiserror::Error;

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

#[cfg(test)]
mod tests {
    use rdkafka::config::ClientConfig;
    use rdkafka::consumer::BaseConsumer;

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
