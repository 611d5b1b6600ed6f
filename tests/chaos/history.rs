//! All that was seen of one run, in a form that the checker can decide on and tests can tamper with.

use std::fmt;
use std::time::Duration;

/// An event that was produced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    pub event: u32,
    /// The broker has it for sure; if not, it may or may not have it.
    pub acknowledged: bool,
    /// How often it stands in the topic: twice when the generator's own client wrote it again after a fault.
    pub records: usize,
    /// When it was first written, epoch ms; 0 when it is not there.
    pub at: i64,
}

/// A request that an endpoint got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// When its last byte was read, epoch ms.
    pub at: i64,
    pub id: String,
    /// By the path.
    pub subscription: usize,
    /// By the body.
    pub event: u32,
    /// As `hookstream-attempt` says, from 1.
    pub attempt: u32,
    /// Of the body.
    pub hash: u64,
    pub accepted: bool,
}

/// Where a copy of a command lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    Commands,
    Tier,
    DeadLetters,
}

/// What a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The command itself, or its dead letter.
    Command,
    /// The fact that the letter at this partition and offset was replayed.
    Replayed(i32, i64),
}

/// A record of a command on any topic, visible to read-committed readers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    pub place: Place,
    pub partition: i32,
    pub offset: i64,
    /// The record's timestamp, epoch ms.
    pub at: i64,
    pub id: String,
    pub subscription: usize,
    pub event: u32,
    /// Attempts made so far.
    pub attempt: u32,
    pub cause: String,
    pub due: Option<i64>,
    pub hash: u64,
    pub what: What,
    pub reason: Option<String>,
}

/// What the delivery group had committed for a partition at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    pub at: i64,
    pub partition: i32,
    /// Everything below is finished.
    pub position: i64,
    /// What is finished above.
    pub finished: Vec<i64>,
}

/// One fault as it was injected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injected {
    pub what: String,
    /// Whether brokers were away.
    pub of_brokers: bool,
    /// Whether only one tenant was at fault, and nothing else was wrong meanwhile.
    pub of_tenant: bool,
    /// Epoch ms.
    pub from: i64,
    pub until: i64,
}

/// One run, at rest.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub sent: Vec<Sent>,
    pub requests: Vec<Request>,
    pub copies: Vec<Copy>,
    /// In the order in which they were read.
    pub positions: Vec<Position>,
    pub faults: Vec<Injected>,
    /// How long a member of a group may be silent before the others take over.
    pub session: Duration,
    /// When deliveries found that they were out of their group, epoch ms.
    pub evictions: Vec<i64>,
    /// Records that no group has come past, and transactions that are still open, though the run is over: topic, partition,
    /// offset.
    pub left: Vec<(String, i32, i64)>,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = if self.accepted { "accepted" } else { "failed" };
        write!(
            f,
            "{} request, attempt {}, body {:08x}: {end}",
            self.at, self.attempt, self.hash as u32
        )
    }
}

impl fmt::Display for Copy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {:?} {}:{} {}, {} attempts, due {:?}, body {:08x}",
            self.at,
            self.place,
            self.partition,
            self.offset,
            self.cause,
            self.attempt,
            self.due,
            self.hash as u32
        )?;
        if let What::Replayed(partition, offset) = self.what {
            write!(f, ", says that {partition}:{offset} was replayed")?;
        }
        self.reason
            .iter()
            .try_for_each(|reason| write!(f, ", {reason}"))
    }
}
