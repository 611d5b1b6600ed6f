//! How errors of the Kafka client are classified.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::edge::port::failure::{ClientError, ErrorKind};

pub use crate::edge::port::failure::Failure;

/// The client's error as the roles see it.
impl From<KafkaError> for ClientError {
    fn from(error: KafkaError) -> Self {
        let kind = kind(&error);
        let is_ambiguous = match &error {
            KafkaError::Transaction(inner) => !inner.txn_requires_abort(),
            KafkaError::ConsumerCommit(_) => true,
            _ => false,
        };
        let found = match error {
            // The client quotes the value of a rejected property, which may be a credential (**Secret**).
            KafkaError::ClientConfig(code, _, property, _) => {
                let rejected = KafkaError::ClientConfig(
                    code,
                    "rejected".to_owned(),
                    property,
                    "***".to_owned(),
                );
                Self::new(kind, &rejected.to_string())
            }
            other => Self::new(kind, &other.to_string()),
        };
        if is_ambiguous {
            found.ambiguous()
        } else {
            found
        }
    }
}

fn kind(error: &KafkaError) -> ErrorKind {
    use RDKafkaErrorCode as Code;
    match error.rdkafka_error_code() {
        Some(Code::TopicAuthorizationFailed) => ErrorKind::TopicDenied,
        Some(
            Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed,
        ) => ErrorKind::Denied,
        Some(Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch) => ErrorKind::Fenced,
        Some(Code::RequestTimedOut | Code::MessageTimedOut) => ErrorKind::TimedOut,
        Some(
            Code::AllBrokersDown
            | Code::BrokerTransportFailure
            | Code::Resolve
            | Code::OperationTimedOut
            | Code::BrokerNotAvailable
            | Code::NetworkException,
        ) => ErrorKind::Unreachable,
        Some(Code::Authentication | Code::SSL) => ErrorKind::NotAuthenticated,
        Some(
            Code::NotEnoughReplicas
            | Code::NotEnoughReplicasAfterAppend
            | Code::UnknownTopic
            | Code::UnknownPartition
            | Code::UnknownTopicOrPartition
            | Code::InvalidTopic
            | Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::KafkaStorageError
            | Code::PolicyViolation
            | Code::InvalidRecord
            | Code::InvalidTimestamp,
        ) => ErrorKind::OfPartition,
        // The second: larger than a segment of the topic.
        Some(Code::MessageSizeTooLarge | Code::MessageBatchTooLarge) => ErrorKind::TooLarge,
        Some(Code::OffsetMetadataTooLarge) => ErrorKind::MetadataTooLarge,
        Some(
            Code::NotCoordinator
            | Code::CoordinatorNotAvailable
            | Code::CoordinatorLoadInProgress
            | Code::ReplicaNotAvailable
            | Code::Partial,
        ) => ErrorKind::Moving,
        Some(Code::UnknownMemberId) => ErrorKind::UnknownMember,
        _ => ErrorKind::Other,
    }
}

/// Whether no broker is reachable, so that waiting may help.
#[must_use]
pub fn is_unreachable(error: &KafkaError) -> bool {
    kind(error).is_unreachable()
}

/// Whether authentication failed: a wrong password, a certificate that one side does not trust, or a connection that broke
/// during the handshake. Waiting may help: during a rotation of credentials, the two sides change one after the other.
#[must_use]
pub fn is_refused(error: &KafkaError) -> bool {
    kind(error) == ErrorKind::NotAuthenticated
}

/// Whether permission was denied.
#[must_use]
pub fn is_denied(error: &KafkaError) -> bool {
    kind(error).is_denied()
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
