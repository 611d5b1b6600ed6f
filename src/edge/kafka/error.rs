//! Why a role cannot continue, and how errors of the Kafka client are classified.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use thiserror::Error;

/// Why a role cannot continue. [`Failure::Stuck`] restarts the role within the process; all others end the process, and
/// its supervisor restarts it.
#[derive(Debug, Error)]
pub enum Failure {
    /// A topic that this role needs does not exist.
    #[error(
        "the topic {0} does not exist; run `hookstream topics create` with the same settings, with `--attempt-log` for the attempts topic and `--with-events` for event topics"
    )]
    TopicMissing(String),
    /// The broker denied permission.
    #[error(
        "the broker denies {what}: {source}; grant this client READ, WRITE and DESCRIBE on hookstream's topics, READ on its groups and WRITE on its transactional ids"
    )]
    Denied {
        /// The operation.
        what: String,
        /// The broker's error.
        source: KafkaError,
    },
    /// A broker rejects the client's credentials, or one side rejects the other's certificate.
    #[error(
        "{what} failed: connection not authenticated: {reason}; check the properties security.protocol, sasl.* and ssl.*, or the service binding"
    )]
    Refused {
        /// The operation.
        what: String,
        /// The client's reason.
        reason: String,
    },
    /// No broker can be reached, for a known cause.
    #[error("{what} failed: {cause}")]
    Unreachable {
        /// The operation.
        what: String,
        /// The cause.
        cause: String,
    },
    /// Another process uses the same transactional id, or this one was suspended for too long.
    #[error(
        "{what} was fenced: another process runs with the same --instance, or this one was suspended for longer than the transaction timeout: {source}"
    )]
    Fenced {
        /// The producer.
        what: String,
        /// The client's error.
        source: KafkaError,
    },
    /// Any other error that the client cannot recover from.
    #[error("{what} failed: {source}")]
    Client {
        /// The operation.
        what: String,
        /// The client's error.
        source: KafkaError,
    },
    /// The client lost a response and waits for it forever; a new client does not.
    #[error("{0}: consumer stuck waiting for the group coordinator")]
    Stuck(&'static str),
    /// A group's positions are gone, or none can be committed at its first start; says what to do.
    #[error("{0}")]
    PositionsLost(String),
    /// An internal error, such as a thread that ended unexpectedly.
    #[error("{0}")]
    Internal(String),
}

impl Failure {
    /// Whether no broker is reachable, so that waiting may help.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Client { source, .. } => is_unreachable(source),
            _ => false,
        }
    }

    /// Classifies a client error by its code.
    #[must_use]
    pub fn from_client(what: impl Into<String>, source: KafkaError) -> Self {
        // The client quotes the value of a rejected property, which may be a credential (**Secret**).
        let source = match source {
            KafkaError::ClientConfig(code, _, property, _) => {
                KafkaError::ClientConfig(code, "rejected".to_owned(), property, "***".to_owned())
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

/// Whether no broker is reachable, so that waiting may help.
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

/// Whether authentication failed: a wrong password, a certificate that one side does not trust, or a connection that broke
/// during the handshake. Waiting may help: during a rotation of credentials, the two sides change one after the other.
#[must_use]
pub fn is_refused(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL)
    )
}

/// Whether an error of a record is about its partition or topic, and not about the producer or its transaction.
#[must_use]
pub fn is_of_partition(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::MessageTimedOut
                | Code::NotEnoughReplicas
                | Code::NotEnoughReplicasAfterAppend
                | Code::UnknownTopic
                | Code::UnknownPartition
                | Code::UnknownTopicOrPartition
                | Code::TopicAuthorizationFailed
                | Code::InvalidTopic
                | Code::LeaderNotAvailable
                | Code::NotLeaderForPartition
                | Code::RequestTimedOut
                | Code::KafkaStorageError
                | Code::PolicyViolation
                | Code::InvalidRecord
                | Code::InvalidTimestamp
        )
    )
}

/// Whether permission was denied.
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
    fn a_rejected_property_is_named_without_its_value() {
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
