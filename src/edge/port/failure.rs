//! Why a role cannot continue, why a batch did not become visible, and what the roles ask about an error of the client.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

use crate::model::transaction_end::TransactionEnd;

/// What is known about an error of a Kafka client, as far as a role acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// No broker is reachable, or none responds; waiting may help.
    Unreachable,
    /// Authentication failed. Waiting may help: during a rotation of credentials, the two sides change one after the other.
    NotAuthenticated,
    /// A record or a request was not acknowledged in time: its partition may be at fault, or all brokers.
    TimedOut,
    /// A partition does not take records: no leader, too few replicas, no such topic, an invalid record.
    OfPartition,
    /// The topic's permissions do not allow it.
    TopicDenied,
    /// The permissions of a group, a transactional id or the cluster do not allow it.
    Denied,
    /// Another producer has taken over the transactional id.
    Fenced,
    /// A record or its batch is too large for its topic.
    TooLarge,
    /// The metadata of a commit is too long for the broker (`offset.metadata.max.bytes`).
    MetadataTooLarge,
    /// The group does not know this member: it was evicted.
    UnknownMember,
    /// A group's coordinator or a partition's replica moves, or some brokers did not respond; waiting may help.
    Moving,
    /// Something else, which is only logged.
    Other,
}

impl ErrorKind {
    /// Whether no broker is reachable, so that waiting may help.
    #[must_use]
    pub fn is_unreachable(self) -> bool {
        matches!(
            self,
            Self::Unreachable | Self::NotAuthenticated | Self::TimedOut
        )
    }

    /// Whether permission was denied.
    #[must_use]
    pub fn is_denied(self) -> bool {
        matches!(self, Self::Denied | Self::TopicDenied)
    }
}

/// An error of a Kafka client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientError {
    kind: ErrorKind,
    is_ambiguous: bool,
    text: Arc<str>,
}

impl ClientError {
    /// An error with a text for operators, which must not hold a credential (**Secret**).
    #[must_use]
    pub fn new(kind: ErrorKind, text: &str) -> Self {
        Self {
            kind,
            is_ambiguous: false,
            text: Arc::from(text),
        }
    }

    /// The same, of a request that may have taken effect at the broker.
    #[must_use]
    pub fn ambiguous(self) -> Self {
        Self {
            is_ambiguous: true,
            ..self
        }
    }

    /// What is given up on purpose.
    #[must_use]
    pub fn canceled() -> Self {
        Self::new(ErrorKind::Other, "canceled")
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the request may have taken effect at the broker nevertheless.
    #[must_use]
    pub fn is_ambiguous(&self) -> bool {
        self.is_ambiguous
    }

    /// Whether no broker is reachable, so that waiting may help.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        self.kind.is_unreachable()
    }

    /// Whether a partition or a group has no leader for the moment, so that waiting may help.
    #[must_use]
    pub fn is_moving(&self) -> bool {
        matches!(self.kind, ErrorKind::OfPartition | ErrorKind::Moving)
    }

    /// Whether an error of a record is about its partition or topic, and not about the producer or its transaction.
    #[must_use]
    pub fn is_of_partition(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::OfPartition | ErrorKind::TimedOut | ErrorKind::TopicDenied
        )
    }

    /// Whether permission was denied.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        self.kind.is_denied()
    }

    /// Whether a record was refused for its size, or for that of the request that it came in.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        self.kind == ErrorKind::TooLarge
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for ClientError {}

/// Why a role cannot continue. [`Failure::Stuck`] and [`Failure::NoPosition`] restart the role within the process; all
/// others end the process, and its supervisor restarts it.
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
        source: ClientError,
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
        source: ClientError,
    },
    /// Any other error that the client cannot recover from.
    #[error("{what} failed: {source}")]
    Client {
        /// The operation.
        what: String,
        /// The client's error.
        source: ClientError,
    },
    /// The client lost a response and waits for it forever; a new client does not.
    #[error("{0}: consumer stuck waiting for the group coordinator")]
    Stuck(&'static str),
    /// A member that was taken for dead is back, and its group has no position in a partition with records: it is new, or
    /// the positions were deleted meanwhile. The next start decides.
    #[error("{group} has no committed position in {partition}")]
    NoPosition {
        /// The group.
        group: String,
        /// The topic and the partition.
        partition: String,
    },
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
            Self::Client { source, .. } => source.is_unreachable(),
            _ => false,
        }
    }

    /// Classifies a client error by its kind.
    #[must_use]
    pub fn from_client(what: impl Into<String>, source: impl Into<ClientError>) -> Self {
        let (what, source) = (what.into(), source.into());
        match source.kind {
            ErrorKind::Denied | ErrorKind::TopicDenied => Self::Denied { what, source },
            ErrorKind::Fenced => Self::Fenced { what, source },
            _ => Self::Client { what, source },
        }
    }
}

/// Why a batch did not become visible. The caller reads the inputs again.
#[derive(Debug, Error)]
pub enum BatchError {
    /// The broker or the client rejected a record for its size; retrying does not help.
    #[error("a record is larger than the broker's limit")]
    TooLarge {
        /// The input that the record comes from.
        tag: usize,
        /// The client rejected this record before it queued it: the rest of the batch is not affected. Otherwise the
        /// broker rejected all records that it received together with this one, and the batch must be abandoned.
        at_once: bool,
    },
    /// Retriable: the batch was not written, the transaction was aborted, or the outcome is unknown.
    #[error("batch not committed: {0}")]
    Aborted(ClientError),
    /// Permanent for this process.
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl BatchError {
    /// The error of a record with this tag, or of a request, of the client for `purpose`.
    #[must_use]
    pub fn of_record(purpose: &str, tag: usize, error: ClientError) -> Self {
        if error.is_too_large() {
            return Self::TooLarge {
                tag,
                at_once: false,
            };
        }
        if error.is_denied() {
            return Failure::from_client(format!("writing as {purpose}"), error).into();
        }
        Self::Aborted(error)
    }

    /// How the batch's transaction ended.
    #[must_use]
    pub fn end(&self) -> TransactionEnd {
        match self {
            Self::TooLarge { tag, .. } => TransactionEnd::TooLarge { tag: *tag },
            Self::Failed(_) => TransactionEnd::Fatal,
            Self::Aborted(error) if error.kind == ErrorKind::Fenced => TransactionEnd::Fenced,
            // The broker may have done what the client has no response to.
            Self::Aborted(error) if error.is_ambiguous => TransactionEnd::Ambiguous,
            Self::Aborted(_) => TransactionEnd::Aborted,
        }
    }
}

/// A record that was not written.
#[derive(Clone, Debug)]
pub struct Refused {
    /// The input of the batch that it comes from.
    pub tag: usize,
    /// The partition that it was for, if the client had chosen one.
    pub partition: Option<i32>,
    /// Why.
    pub error: ClientError,
}
