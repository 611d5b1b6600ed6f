//! The events of a group, and its members.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::kafka::{Code, Reply, Token, Tp};

pub(super) type Life = u32;

#[derive(Debug)]
pub(super) enum Event {
    /// A member's next heartbeat is due.
    Beat(usize, Life),
    BeatArrives(usize, Life, i32),
    Beaten(usize, Life, Result<(), Code>),
    JoinArrives(usize, Life),
    NeedsId(usize, Life, Arc<str>),
    Refused(usize, Life, Code),
    Replied(Token, Reply),
    SyncArrives(usize, Life, i32, Option<Vec<(Arc<str>, Vec<Tp>)>>),
    Drained(usize, Life),
    Taken(usize, Life),
    LeaveArrives(Arc<str>),
    Start(usize),
    Stop(usize),
    CoordinatorBack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Off,
    Joining,
    /// It waits for its drain, then for what it takes.
    Draining,
    Taking,
    Stable,
    /// On SIGTERM; leaves after the drain.
    Stopping,
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) life: Life,
    pub(super) state: State,
    pub(super) id: Arc<str>,
    pub(super) generation: i32,
    pub(super) owned: BTreeSet<i32>,
    pub(super) revoked: BTreeSet<i32>,
    pub(super) added: BTreeSet<i32>,
    pub(super) rejoin: bool,
}
