//! How long the brokers keep the records of the topics in which work waits: the retry tiers, the commands and the events.
//!
//! It has its own thread, since a request may take its time. Retention changes rarely, and it needs one more permission
//! (DescribeConfigs): without it the figures are missing, which is logged once, and nothing else is affected.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::metrics::LagMetrics;
use super::watch::{Shown, Watch};
use crate::config::Settings;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::topics::retentions;
use crate::edge::port::task::block_on;

/// How often the brokers are asked.
const EVERY: Duration = Duration::from_secs(300);
/// The same after a failure: a broker may be starting.
const AGAIN: Duration = Duration::from_secs(15);

/// Starts exporting the figures.
///
/// # Errors
/// [`Failure`] when the thread cannot be started.
pub(super) fn watch(settings: &Arc<Settings>, metrics: &LagMetrics) -> Result<Watch<()>, Failure> {
    let (settings, metrics) = (Arc::clone(settings), metrics.clone());
    Watch::start("retention", move |shown| run(&settings, &metrics, shown))
}

fn topics(settings: &Settings) -> Vec<String> {
    let mut topics = settings.retry_topics();
    topics.push(settings.topics.commands());
    topics.extend(settings.topics.events.iter().cloned());
    topics
}

fn run(settings: &Settings, metrics: &LagMetrics, shown: &Shown<()>) {
    let topics = topics(settings);
    // By topic, or by nothing: the failure that is logged.
    let mut logged: BTreeMap<&str, String> = BTreeMap::new();
    loop {
        let mut failing: BTreeMap<&str, String> = BTreeMap::new();
        match block_on(retentions(settings, &topics)) {
            Ok(found) => {
                for (topic, retention) in found {
                    metrics.retention(topic, retention.as_ref().ok().copied());
                    if let Err(failure) = retention {
                        failing.insert(topic, failure.to_string());
                    }
                }
            }
            // The last figures stay.
            Err(failure) => drop(failing.insert("", failure.to_string())),
        }
        for (topic, failure) in &failing {
            if logged.get(topic) != Some(failure) {
                tracing::warn!("the retention of topics is not known: {failure}");
            }
        }
        let pause = if failing.is_empty() { EVERY } else { AGAIN };
        logged = failing;
        if !shown.goes_on(pause) {
            return;
        }
    }
}
