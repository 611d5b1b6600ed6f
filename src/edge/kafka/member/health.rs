//! The health of the client, from its own statistics: whether it is stuck, and whether a connection broke.
//!
//! Neither is reported otherwise: a stuck client raises no error, and a broken connection raises one only when no broker
//! is left.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;

use super::partition::TopicPartition;

/// The part of the client's statistics that is used.
#[derive(Deserialize)]
struct Statistics {
    cgrp: Option<Group>,
    #[serde(default)]
    brokers: HashMap<String, Connection>,
    #[serde(default)]
    topics: HashMap<String, Topic>,
}

#[derive(Deserialize)]
struct Topic {
    #[serde(default)]
    partitions: HashMap<String, Partition>,
}

/// The high watermark that the client knows; negative before the first.
#[derive(Deserialize)]
struct Partition {
    #[serde(default)]
    hi_offset: i64,
}

/// The client's group state, and how long it has lasted, ms.
#[derive(Deserialize)]
struct Group {
    state: String,
    stateage: i64,
}

/// Failures of the connections to one broker since the client started.
#[derive(Deserialize)]
struct Connection {
    #[serde(default)]
    disconnects: i64,
    #[serde(default)]
    req_timeouts: i64,
}

/// The findings, written by the client's thread and read by the member's.
#[derive(Debug)]
pub(super) struct ClientHealth {
    /// A response arrives within this time or not at all, ms.
    response_bound: i64,
    stuck: AtomicBool,
    disturbed: AtomicBool,
    failures: AtomicI64,
    /// The highest end of each partition that was known.
    ends: Mutex<HashMap<(String, i32), i64>>,
}

impl ClientHealth {
    /// The health of a client whose requests time out after `timeout`, ms.
    #[must_use]
    pub(super) fn new(timeout: i64) -> Self {
        /// The interval of the statistics.
        const GRACE: i64 = 3_000;
        Self {
            response_bound: timeout.saturating_add(GRACE),
            stuck: AtomicBool::new(false),
            disturbed: AtomicBool::new(false),
            failures: AtomicI64::new(0),
            ends: Mutex::default(),
        }
    }

    /// Reads the client's statistics, JSON (librdkafka, STATISTICS.md).
    pub(super) fn read(&self, statistics: &[u8]) {
        let statistics: Statistics = match serde_json::from_slice(statistics) {
            Ok(statistics) => statistics,
            Err(error) => {
                tracing::debug!("unreadable client statistics: {error}");
                return;
            }
        };
        self.note_ends(statistics.topics);
        let brokers = statistics.brokers.values();
        let failures = brokers.map(|broker| broker.disconnects + broker.req_timeouts);
        let failures = failures.sum();
        // The sum drops when a broker is removed, which is a disturbance too.
        if self.failures.swap(failures, Ordering::Relaxed) != failures {
            self.disturb();
        }
        // The client asks one broker for the coordinator and waits for the response; the only limit is the request's
        // `socket.timeout.ms`. If it drops that broker at that moment, after a metadata update, the request can be lost
        // without an error (librdkafka 2.12, `rd_kafka_cgrp_handle_FindCoordinator`), and the member is stuck.
        let is_stuck =
            |group: Group| group.state == "wait-coord" && group.stateage > self.response_bound;
        if statistics.cgrp.is_some_and(is_stuck) {
            self.stuck.store(true, Ordering::Relaxed);
        }
    }

    fn note_ends(&self, topics: HashMap<String, Topic>) {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        for (topic, found) in topics {
            for (number, partition) in found.partitions {
                if let Ok(number) = number.parse()
                    && partition.hi_offset >= 0
                {
                    let end = ends.entry((topic.clone(), number)).or_default();
                    *end = partition.hi_offset.max(*end);
                }
            }
        }
    }

    /// The highest end of a partition that was known since it was last forgotten.
    pub(super) fn known_end(&self, at: &TopicPartition) -> Option<i64> {
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.get(&(at.topic.to_string(), at.partition)).copied()
    }

    /// The partition is read from elsewhere, perhaps of a topic that was made again.
    pub(super) fn forget_end(&self, at: &TopicPartition) {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.remove(&(at.topic.to_string(), at.partition));
    }

    /// Notes that a connection broke or a request timed out.
    pub(super) fn disturb(&self) {
        self.disturbed.store(true, Ordering::Relaxed);
    }

    /// Whether a connection broke or a request timed out since the last call.
    pub(super) fn was_disturbed(&self) -> bool {
        self.disturbed.swap(false, Ordering::Relaxed)
    }

    /// Whether the client waits for a response about the coordinator that was lost.
    pub(super) fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::{ClientHealth, TopicPartition};

    fn statistics(state: &str, age: i64, disconnects: [i64; 2]) -> String {
        let [a, b] = disconnects;
        serde_json::json!({
            "cgrp": { "state": state, "stateage": age, "rebalance_cnt": 1 },
            "brokers": { "a:1/1": { "disconnects": a, "req_timeouts": 0 }, "b:1/2": { "disconnects": b } },
        })
        .to_string()
    }

    #[test]
    fn a_client_that_waits_for_longer_than_a_request_can_take_is_stuck() {
        let health = ClientHealth::new(12_000);
        for (state, age) in [("up", 90_000), ("wait-coord", 15_000)] {
            health.read(statistics(state, age, [0, 0]).as_bytes());
            assert!(!health.is_stuck(), "{state} for {age} ms");
        }
        health.read(statistics("wait-coord", 15_001, [0, 0]).as_bytes());
        assert!(health.is_stuck());
    }

    #[test]
    fn the_highest_end_of_a_partition_is_known_until_it_is_forgotten() {
        let health = ClientHealth::new(12_000);
        let at = TopicPartition {
            topic: "t".into(),
            partition: 3,
        };
        let read = |end: i64| {
            let told = serde_json::json!({"topics": {"t": {"partitions": {"3": {"hi_offset": end}, "-1": {}}}}});
            health.read(told.to_string().as_bytes());
        };
        read(-1001);
        assert_eq!(health.known_end(&at), None);
        read(7);
        read(2);
        assert_eq!(health.known_end(&at), Some(7), "it was made again");
        health.forget_end(&at);
        assert_eq!(health.known_end(&at), None);
    }

    #[test]
    fn each_broken_connection_disturbs_once() {
        let health = ClientHealth::new(12_000);
        health.read(statistics("up", 1, [0, 0]).as_bytes());
        assert!(!health.was_disturbed());
        health.read(statistics("up", 1, [0, 1]).as_bytes());
        assert!(health.was_disturbed());
        assert!(!health.was_disturbed());
        health.read(statistics("up", 1, [0, 1]).as_bytes());
        assert!(!health.was_disturbed());
        health.read(b"no JSON");
        health.read(br#"{"brokers":{}}"#);
        assert!(health.was_disturbed(), "a broker was removed");
    }
}
