//! What former owners wrote about endpoints: the compacted topic of statuses in memory, kept current by a reader that
//! joins no group.
//!
//! Delivery continues from it when it gets a partition. A record that cannot be read is counted, logged and ignored:
//! nothing depends on it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use prometheus::IntCounter;
use rdkafka::message::Message as _;

use super::subscription_cache::follow_topic;
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::error::Failure;
use crate::model::status::Status;
use crate::model::throttle::Throttle;

/// The most statuses that are kept, some hundred bytes each. Beyond it those of further subscriptions are ignored: their
/// next owner begins anew.
const MAX_STATUSES: usize = 200_000;

/// The latest status of each subscription.
#[derive(Default)]
pub struct StatusCache {
    all: RwLock<HashMap<Box<str>, Arc<Status>>>,
    version: AtomicU64,
    loaded: AtomicBool,
}

impl StatusCache {
    /// An empty cache that nothing is read into.
    #[must_use]
    pub fn without_reader() -> Self {
        Self {
            loaded: AtomicBool::new(true),
            ..Self::default()
        }
    }

    /// The status of a subscription of this subscriber.
    #[must_use]
    pub fn get(&self, id: &str, subscriber: &str) -> Option<Arc<Status>> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let found = all.get(id).map(Arc::clone);
        found.filter(|status| *status.subscriber == *subscriber)
    }

    /// Changes whenever a status does.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Whether all that was there at the start was read.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::Acquire)
    }

    /// Takes a record.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn apply(&self, key: Option<&[u8]>, value: Option<&[u8]>) -> Result<(), String> {
        let change = read(key, value)?;
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        match change {
            (id, None) => drop(all.remove(id)),
            (id, Some(status)) => {
                if all.len() < MAX_STATUSES || all.contains_key(id) {
                    all.insert(id.into(), Arc::new(status));
                }
            }
        }
        drop(all);
        self.version.fetch_add(1, Ordering::Release);
        Ok(())
    }
}

/// The id and the status of a record; without a value, the subscription has none any more.
///
/// # Errors
/// Why it cannot be read.
pub fn read<'a>(
    key: Option<&'a [u8]>,
    value: Option<&[u8]>,
) -> Result<(&'a str, Option<Status>), String> {
    let id = key.and_then(|key| std::str::from_utf8(key).ok());
    let id = id.ok_or("the key is not the id of a subscription")?;
    let Some(value) = value else {
        return Ok((id, None));
    };
    let status = Status::read(value)?;
    if *status.subscription != *id {
        let other = &status.subscription;
        return Err(format!("it is of {other:?}, and its key of {id:?}"));
    }
    Ok((id, Some(status)))
}

/// Reads the topic from its beginning and follows it until `stop` returns true.
///
/// # Errors
/// As for the subscriptions.
pub fn follow(
    settings: &Settings,
    cache: &StatusCache,
    set_aside: &IntCounter,
    stop: &dyn Fn() -> bool,
) -> Result<(), Failure> {
    let topic = settings.topics.status();
    let mut lines = Throttle::new(Duration::from_secs(10));
    let mut ready = || cache.loaded.store(true, Ordering::Release);
    follow_topic(
        settings,
        "statuses",
        &topic,
        stop,
        &mut ready,
        &mut |messages| {
            for message in messages {
                if let Err(error) = cache.apply(message.key(), message.payload()) {
                    set_aside.inc();
                    if let Some(suppressed) = lines.pass(clock::instant()) {
                        let (partition, offset) = (message.partition(), message.offset());
                        tracing::warn!(
                            topic,
                            partition,
                            offset,
                            suppressed,
                            "unreadable status ignored: {error}"
                        );
                    }
                }
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, subscriber: &str, at: i64) -> Vec<u8> {
        format!(
            r#"{{"subscription":"{id}","subscriber":"{subscriber}","at":{at},"state":"active"}}"#
        )
        .into_bytes()
    }

    #[test]
    fn the_latest_status_of_a_subscription_and_its_subscriber_is_known() {
        let cache = StatusCache::default();
        let apply =
            |key: &str, value: Option<Vec<u8>>| cache.apply(Some(key.as_bytes()), value.as_deref());
        apply("s", Some(record("s", "acme", 1))).unwrap();
        apply("s", Some(record("s", "acme", 2))).unwrap();
        assert_eq!(cache.version(), 2);
        assert_eq!(cache.get("s", "acme").unwrap().at.0, 2);
        assert_eq!(
            cache.get("s", "beta"),
            None,
            "it was created again for another"
        );
        for (key, value) in [("s", record("t", "acme", 3)), ("s", b"5".to_vec())] {
            apply(key, Some(value)).unwrap_err();
        }
        assert!(cache.apply(None, Some(b"{}")).unwrap_err().contains("key"));
        assert_eq!(
            cache.get("s", "acme").unwrap().at.0,
            2,
            "what cannot be read is ignored"
        );
        apply("s", None).unwrap();
        assert_eq!(cache.get("s", "acme"), None);
    }
}
