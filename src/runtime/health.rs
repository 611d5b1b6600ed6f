//! The state of every role of a process, for `/livez` and `/readyz`.
//!
//! Ready means that every role of the process does its work. Alive means that every role sends heartbeats: a role that
//! waits for a broker is alive; one that hangs in the client library is not, and must be restarted.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::edge::clock;
use crate::edge::kafka::watchdog::Brokers;

/// What a role is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Starting, with the reason it is not ready.
    Starting(String),
    /// Waiting for a broker, with the reason.
    Waiting(String),
    /// Working.
    Ready,
    /// Finishing its work in progress.
    Draining,
    /// Failed permanently.
    Failed,
}

impl State {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Starting(_) => "starting",
            Self::Waiting(_) => "waiting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Failed => "failed",
        }
    }

    fn reason(&self) -> Option<&str> {
        match self {
            Self::Starting(reason) | Self::Waiting(reason) => Some(reason),
            Self::Ready | Self::Draining | Self::Failed => None,
        }
    }
}

#[derive(Debug)]
struct RoleHealth {
    state: State,
    heartbeat: Instant,
    /// Without a heartbeat for longer than this, the role is not alive.
    bound: Duration,
}

/// The state of every role of this process.
#[derive(Debug, Default)]
pub struct Health(Mutex<BTreeMap<&'static str, RoleHealth>>);

impl Health {
    /// No roles yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn roles(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, RoleHealth>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds `role`, which is alive as long as it sends a heartbeat at least every `bound`.
    pub fn register(&self, role: &'static str, bound: Duration) {
        let state = State::Waiting("starting".to_owned());
        self.roles().insert(
            role,
            RoleHealth {
                state,
                heartbeat: clock::instant(),
                bound,
            },
        );
    }

    /// `role` is in `state` now.
    pub fn set(&self, role: &str, state: State) {
        if let Some(known) = self.roles().get_mut(role) {
            known.state = state;
            known.heartbeat = clock::instant();
        }
    }

    /// Records a heartbeat of `role`.
    pub fn heartbeat(&self, role: &str) {
        if let Some(known) = self.roles().get_mut(role) {
            known.heartbeat = clock::instant();
        }
    }

    /// The state of each role; none is ready while no broker is reachable.
    pub(super) fn states(&self, brokers: &Brokers) -> Vec<(&'static str, State)> {
        let roles = self.roles();
        let each = roles.iter().map(|(name, role)| {
            let waits = brokers.away && role.state == State::Ready;
            let state = if waits {
                State::Waiting("no broker answers".to_owned())
            } else {
                role.state.clone()
            };
            (*name, state)
        });
        each.collect()
    }

    /// Whether all roles are ready, and what each is doing.
    #[must_use]
    pub fn readiness(&self, brokers: &Brokers) -> (bool, serde_json::Value) {
        let states = self.states(brokers);
        let ready = !states.is_empty() && states.iter().all(|(_, state)| *state == State::Ready);
        let told: serde_json::Map<_, _> = states
            .iter()
            .map(|(name, state)| {
                let told = match state.reason() {
                    Some(reason) => serde_json::json!({"state": state.name(), "reason": reason}),
                    None => serde_json::json!({"state": state.name()}),
                };
                ((*name).to_owned(), told)
            })
            .collect();
        let status = if ready { "ready" } else { "not ready" };
        (ready, serde_json::json!({"status": status, "roles": told}))
    }

    /// Whether all roles sent a heartbeat within their bounds before `now`, and which did not. Time in which
    /// the role's own clients, or all, reached no broker does not count: it may wait for one within the client library, and a
    /// restart would not help. Those of other roles do not matter.
    #[must_use]
    pub fn liveness(&self, now: Instant, brokers: &Brokers) -> (bool, serde_json::Value) {
        let stale: serde_json::Map<_, _> = self
            .roles()
            .iter()
            .filter_map(|(name, role)| {
                let since = brokers.excused(name).map_or(role.heartbeat, |at| at.max(role.heartbeat));
                let silent = now.saturating_duration_since(since);
                let dead = silent > role.bound || role.state == State::Failed;
                dead.then(|| {
                    let told = serde_json::json!({"silent_seconds": silent.as_secs(), "bound_seconds": role.bound.as_secs(), "state": role.state.name()});
                    ((*name).to_owned(), told)
                })
            })
            .collect();
        let alive = stale.is_empty();
        let status = if alive { "alive" } else { "not alive" };
        (alive, serde_json::json!({"status": status, "stale": stale}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(5);

    #[test]
    fn a_role_that_waits_is_alive_and_one_that_hangs_is_not() {
        let health = Health::new();
        health.register("fanout", BOUND);
        health.set("fanout", State::Waiting("no broker".to_owned()));
        let now = clock::instant();
        assert!(health.liveness(now, &Brokers::default()).0);
        let (alive, told) =
            health.liveness(now + BOUND + Duration::from_secs(1), &Brokers::default());
        assert!(!alive);
        assert!(told["stale"]["fanout"]["silent_seconds"].as_u64().unwrap() > BOUND.as_secs());
    }

    #[test]
    fn a_role_that_reaches_no_broker_does_not_mask_another_that_hangs() {
        let health = Health::new();
        for role in ["deliver", "fanout"] {
            health.register(role, BOUND);
            health.set(role, State::Ready);
        }
        let now = clock::instant() + BOUND * 2;
        let brokers = Brokers {
            excused: vec![("deliver".into(), now)],
            ..Brokers::default()
        };
        let (alive, told) = health.liveness(now, &brokers);
        assert!(!alive);
        assert!(told["stale"]["fanout"].is_object(), "{told}");
        assert!(told["stale"]["deliver"].is_null(), "{told}");
        health.heartbeat("fanout");
        assert!(health.readiness(&brokers).0, "one client is no outage");
    }
}
