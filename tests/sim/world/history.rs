//! What happened in a run: for the checks, for the hash that two runs of a seed have in common, and for people.

use std::fmt;
use std::sync::Arc;

use crate::kafka::log::Ms;

/// Where virtual time begins.
pub const EPOCH: Ms = 1_800_000_000_000;

/// By which secret of its subscription a request is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signed {
    /// By none of them.
    No,
    /// By one that was replaced.
    Before,
    /// By the present one.
    Now,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A replica sent a request, and it arrived.
    Request {
        replica: Arc<str>,
        host: Arc<str>,
        id: Arc<str>,
        attempt: u32,
        body: u64,
        event: Arc<str>,
        signed: Signed,
    },
    /// An operator replays its dead letter: its attempts begin again.
    Replayed { id: Arc<str> },
    /// An attempt without a connection.
    Unsent { id: Arc<str>, attempt: u32 },
    /// An endpoint responded to one, or did not (status 0).
    Response {
        host: Arc<str>,
        id: Arc<str>,
        attempt: u32,
        status: u16,
    },
    /// Something that the plan did.
    Plan(String),
    /// Something that a process did.
    Process(Arc<str>, String),
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request {
                replica,
                host,
                id,
                attempt,
                event,
                signed,
                ..
            } => {
                let signed = match signed {
                    Signed::No => ", not signed",
                    Signed::Before => ", signed by the secret before",
                    Signed::Now => "",
                };
                write!(
                    f,
                    "{replica} -> {host}: event {event}, attempt {attempt}, {id}{signed}"
                )
            }
            Self::Replayed { id } => write!(f, "*** replayed: {id}"),
            Self::Unsent { id, attempt } => write!(f, "no connection: attempt {attempt}, {id}"),
            Self::Response {
                host, id, status, ..
            } => match status {
                0 => write!(f, "{host}: no response, {id}"),
                status => write!(f, "{host}: {status}, {id}"),
            },
            Self::Plan(what) => write!(f, "*** {what}"),
            Self::Process(name, what) => write!(f, "[{name}] {what}"),
        }
    }
}

/// All of it, in order, with times in ms since the beginning.
#[derive(Clone, Debug, Default)]
pub struct History(pub Vec<(Ms, What)>);

impl History {
    /// Adds something.
    pub fn add(&mut self, at: Ms, what: What) {
        self.0.push((at - EPOCH, what));
    }

    /// A hash over everything.
    pub fn hash(&self) -> u64 {
        let mut hash = Hash::default();
        for (at, what) in &self.0 {
            hash.add(&at.to_le_bytes());
            hash.add(what.to_string().as_bytes());
            if let What::Request { body, .. } = what {
                hash.add(&body.to_le_bytes());
            }
        }
        hash.0
    }

    /// For people.
    pub fn print(&self) {
        for (at, what) in &self.0 {
            println!("{:>9.3} {what}", *at as f64 / 1000.0);
        }
    }
}

/// FNV-1a.
pub struct Hash(pub u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hash {
    /// Adds bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// The hash of these bytes.
    pub fn of(bytes: &[u8]) -> u64 {
        let mut hash = Self::default();
        hash.add(bytes);
        hash.0
    }
}
