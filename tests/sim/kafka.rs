//! A simulated Kafka.
//!
//! | layer | modules |
//! |---|---|
//! | pure: no I/O, no clock, no chance of its own | [`log`] one partition; [`group`] one consumer group; [`transaction`] one transactional id; [`cluster`] brokers, topics, coordinators, timers; [`assignor`] who gets which partition |
//! | in virtual time | [`net`] requests that take time, are lost, or lose their response; [`client`] what the program's use of librdkafka does; [`port`] that as the roles' port |
//!
//! Errors are those of the protocol, by the names of the client library. `docs/simulation.md` lists what is simulated, and
//! the scenario that compares it with a real broker.

use std::sync::Arc;

pub use hookstream::edge::port::records::TopicPartition as Tp;
pub use rdkafka::types::RDKafkaErrorCode as Code;

pub mod assignor;
pub mod client;
pub mod cluster;
pub mod group;
pub mod log;
pub mod net;
pub mod planted;
pub mod port;
pub mod transaction;

use group::Subscription;
use log::Appended;

/// A broker, numbered from 1.
pub type Node = i32;

/// A request whose response comes later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(pub u64);

/// The response to a join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The member's id.
    pub member: Arc<str>,
    /// The generation that has begun.
    pub generation: i32,
    /// All members and what they want, for the one that assigns.
    pub members: Option<Vec<(Arc<str>, Subscription)>>,
}

/// A response that came later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To a batch: all in-sync replicas have it, or it is not known.
    Appended(Result<Appended, Code>),
    /// To a join.
    Joined(Result<Joined, Code>),
    /// To a sync: the member's partitions.
    Synced(Result<Vec<Tp>, Code>),
    /// A watched partition has something new.
    Moved(Tp),
}

/// A response at once, or a token for one that comes later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pending<T> {
    /// At once.
    Now(T),
    /// With this token.
    Later(Token),
}
