//! What the client's own statistics say of its health: whether it is silent for good, and whether a connection broke.
//!
//! Neither can be learnt otherwise: the client tells of no error in the first case, and in the second only when no broker
//! at all is left.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use serde::Deserialize;

/// What the client tells of itself, as far as it is read.
#[derive(Deserialize)]
struct Statistics {
    cgrp: Option<Group>,
    #[serde(default)]
    brokers: HashMap<String, Connection>,
}

/// The group's state in the client, and for how long it has been that, ms.
#[derive(Deserialize)]
struct Group {
    state: String,
    stateage: i64,
}

/// What went wrong with the connections to one broker, since the client began.
#[derive(Deserialize)]
struct Connection {
    #[serde(default)]
    disconnects: i64,
    #[serde(default)]
    req_timeouts: i64,
}

/// The findings, which the client's thread leaves and the member's reads.
#[derive(Debug)]
pub(super) struct ClientHealth {
    /// An answer comes within this or not at all, ms.
    answered: i64,
    forgotten: AtomicBool,
    disturbed: AtomicBool,
    troubles: AtomicI64,
}

impl ClientHealth {
    /// Of a client whose requests time out after `timeout`, ms.
    #[must_use]
    pub(super) fn new(timeout: i64) -> Self {
        /// The statistics come every three seconds.
        const GRACE: i64 = 3_000;
        Self {
            answered: timeout.saturating_add(GRACE),
            forgotten: AtomicBool::new(false),
            disturbed: AtomicBool::new(false),
            troubles: AtomicI64::new(0),
        }
    }

    /// Reads what the client tells of itself, as JSON (librdkafka, STATISTICS.md).
    pub(super) fn read(&self, statistics: &[u8]) {
        let told: Statistics = match serde_json::from_slice(statistics) {
            Ok(told) => told,
            Err(error) => {
                tracing::debug!("the client's statistics: {error}");
                return;
            }
        };
        let troubles = told.brokers.values();
        let troubles = troubles.map(|broker| broker.disconnects + broker.req_timeouts);
        let troubles = troubles.sum();
        // Less when a broker is gone for good, which is a disturbance too.
        if self.troubles.swap(troubles, Ordering::Relaxed) != troubles {
            self.disturb();
        }
        // The client asks one broker for the coordinator and waits for the answer without a limit of its own: the
        // request's is `socket.timeout.ms`. When it drops that broker at the same moment, having just learned who the
        // brokers are, the request can be lost without an error (librdkafka 2.12, `rd_kafka_cgrp_handle_FindCoordinator`):
        // the member is silent for good.
        let is_forgotten =
            |group: Group| group.state == "wait-coord" && group.stateage > self.answered;
        if told.cgrp.is_some_and(is_forgotten) {
            self.forgotten.store(true, Ordering::Relaxed);
        }
    }

    /// Notes that a connection broke, or that an answer did not come in time.
    pub(super) fn disturb(&self) {
        self.disturbed.store(true, Ordering::Relaxed);
    }

    /// Whether a connection broke, or an answer did not come in time, since this was last asked.
    pub(super) fn was_disturbed(&self) -> bool {
        self.disturbed.swap(false, Ordering::Relaxed)
    }

    /// Whether the client waits for a coordinator that it does not ask for any more.
    pub(super) fn is_forgotten(&self) -> bool {
        self.forgotten.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::ClientHealth;

    fn told(state: &str, age: i64, disconnects: [i64; 2]) -> String {
        let [a, b] = disconnects;
        serde_json::json!({
            "cgrp": { "state": state, "stateage": age, "rebalance_cnt": 1 },
            "brokers": { "a:1/1": { "disconnects": a, "req_timeouts": 0 }, "b:1/2": { "disconnects": b } },
        })
        .to_string()
    }

    #[test]
    fn a_client_that_waits_for_longer_than_a_request_can_take_is_forgotten() {
        let health = ClientHealth::new(12_000);
        for (state, age) in [("up", 90_000), ("wait-coord", 15_000)] {
            health.read(told(state, age, [0, 0]).as_bytes());
            assert!(!health.is_forgotten(), "{state} for {age} ms");
        }
        health.read(told("wait-coord", 15_001, [0, 0]).as_bytes());
        assert!(health.is_forgotten());
    }

    #[test]
    fn each_connection_that_breaks_disturbs_once() {
        let health = ClientHealth::new(12_000);
        health.read(told("up", 1, [0, 0]).as_bytes());
        assert!(!health.was_disturbed());
        health.read(told("up", 1, [0, 1]).as_bytes());
        assert!(health.was_disturbed());
        assert!(!health.was_disturbed());
        health.read(told("up", 1, [0, 1]).as_bytes());
        assert!(!health.was_disturbed());
        health.read(b"no JSON");
        health.read(br#"{"brokers":{}}"#);
        assert!(health.was_disturbed(), "a broker is gone");
    }
}
