//! The metrics of the lag role.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{Gauge, GaugeVec, IntCounterVec, IntGauge, IntGaugeVec, Opts};

use super::figures::Figures;
use super::top::SubscriberSeries;
use crate::runtime::metrics::Registry;

/// The metrics of the lag role; cheap to clone.
#[derive(Clone)]
pub struct LagMetrics(Arc<All>);

struct All {
    subscriber_lag: IntGaugeVec,
    subscriber_oldest: GaugeVec,
    subscriber_dead_letters: IntGaugeVec,
    subscriber_waiting: IntGaugeVec,
    subscriber_finished: IntCounterVec,
    lag_as_of: Gauge,
    lag_behind: IntGauge,
    event_lag: IntGaugeVec,
    topic_oldest: GaugeVec,
    topic_retention: GaugeVec,
    disabled: IntGaugeVec,
}

impl std::fmt::Debug for LagMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LagMetrics")
    }
}

impl LagMetrics {
    /// Registers the metrics in `registry`, at zero.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        Self(Arc::new(All {
            subscriber_lag: registry.add(IntGaugeVec::new(
                Opts::new("hookstream_subscriber_lag", "Pending commands: ready in the commands topic, or waiting in a retry tier. Exported by the lag role; the same in each replica."),
                &["subscriber", "state"],
            )),
            subscriber_oldest: registry.add(GaugeVec::new(
                Opts::new("hookstream_subscriber_oldest_timestamp_seconds", "Time when the oldest pending command was first written, seconds since the epoch; no series if nothing is pending."),
                &["subscriber"],
            )),
            subscriber_dead_letters: registry.add(IntGaugeVec::new(
                Opts::new("hookstream_subscriber_dead_letters", "Open dead letters: neither replayed nor discarded."),
                &["subscriber"],
            )),
            subscriber_waiting: registry.add(IntGaugeVec::new(
                Opts::new("hookstream_subscriber_waiting", "Commands waiting in a retry tier, by its delay; no series without any."),
                &["subscriber", "tier"],
            )),
            subscriber_finished: registry.add(IntCounterVec::new(
                Opts::new("hookstream_subscriber_finished_total", "Commands that reached an end (delivered, dead-lettered or discarded) since the subscriber got its own metric series; parking and retrying are not ends."),
                &["subscriber"],
            )),
            lag_as_of: registry.add(Gauge::new(
                "hookstream_lag_as_of_timestamp_seconds",
                "Time of the lag role's figures, seconds since the epoch; 0 before the first.",
            )),
            lag_behind: registry.gauge("hookstream_lag_behind_offsets", "Offsets that the lag role has not read yet; 0 when its figures are exact."),
            event_lag: registry.add(IntGaugeVec::new(
                Opts::new("hookstream_event_lag", "Offsets of an event topic not yet processed by fan-out, from its committed offset to the high watermark. Exported by the lag role; the same in each replica."),
                &["topic", "partition"],
            )),
            topic_oldest: registry.add(GaugeVec::new(
                Opts::new("hookstream_topic_oldest_timestamp_seconds", "Time when the oldest unfinished record of a topic of events, commands or retries was written, seconds since the epoch, or up to ten minutes before; no series if all are finished. Exported by the lag role; the same in each replica."),
                &["topic"],
            )),
            topic_retention: registry.add(GaugeVec::new(
                Opts::new("hookstream_topic_retention_seconds", "How long the brokers keep the records of a topic of events, commands or retries (retention.ms); +Inf if they delete none by age, no series if that is not known. Exported by the lag role; the same in each replica."),
                &["topic"],
            )),
            disabled: registry.add(IntGaugeVec::new(
                Opts::new("hookstream_disabled_subscriptions", "Subscriptions that are disabled, by who disabled them: operator (a command), hookstream (a 410, or --disable-after) or document (what was applied). Exported by the lag role; the same in each replica."),
                &["by"],
            )),
        }))
    }

    /// Publishes the figures; `tiers` are the tier labels.
    pub fn lag(&self, series: &SubscriberSeries, figures: &Figures, tiers: &[String]) {
        let inner = &self.0;
        for name in &series.removed {
            // An error means that there is no such series.
            for state in ["ready", "waiting"] {
                inner
                    .subscriber_lag
                    .remove_label_values(&[&**name, state])
                    .ok();
            }
            for tier in tiers {
                inner
                    .subscriber_waiting
                    .remove_label_values(&[&**name, tier])
                    .ok();
            }
            inner
                .subscriber_finished
                .remove_label_values(&[&**name])
                .ok();
            inner.subscriber_oldest.remove_label_values(&[&**name]).ok();
            inner
                .subscriber_dead_letters
                .remove_label_values(&[&**name])
                .ok();
        }
        let count = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        for (name, waiting) in &series.figures {
            let lag = &inner.subscriber_lag;
            lag.with_label_values(&[&**name, "ready"])
                .set(count(waiting.ready));
            lag.with_label_values(&[&**name, "waiting"])
                .set(count(waiting.waiting));
            inner
                .subscriber_dead_letters
                .with_label_values(&[&**name])
                .set(count(waiting.dead.values().sum()));
            for (number, tier) in tiers.iter().enumerate() {
                let labels = [&**name, tier];
                match waiting.tiers.get(&number) {
                    Some(&waiting) => inner
                        .subscriber_waiting
                        .with_label_values(&labels)
                        .set(count(waiting)),
                    None => drop(inner.subscriber_waiting.remove_label_values(&labels)),
                }
            }
            match waiting.oldest {
                Some(oldest) => inner
                    .subscriber_oldest
                    .with_label_values(&[&**name])
                    .set(oldest.into()),
                None => drop(inner.subscriber_oldest.remove_label_values(&[&**name])),
            }
        }
        for (name, &finished) in &series.finished {
            let counter = inner.subscriber_finished.with_label_values(&[&**name]);
            counter.inc_by(finished);
        }
        inner.lag_as_of.set(figures.as_of_seconds);
        inner.lag_behind.set(count(figures.behind));
    }

    /// Sets the offsets of an event topic partition that fan-out has not processed.
    pub fn event_lag(&self, topic: &str, partition: i32, behind: u64) {
        self.0
            .event_lag
            .with_label_values(&[topic, &partition.to_string()])
            .set(i64::try_from(behind).unwrap_or(i64::MAX));
    }

    /// Removes the series of an event topic partition whose figure is unknown.
    pub fn forget_event_lag(&self, topic: &str, partition: i32) {
        // An error means that there is no such series.
        self.0
            .event_lag
            .remove_label_values(&[topic, &partition.to_string()])
            .ok();
    }

    /// Sets when the oldest unfinished record of a topic was written, or removes the series if there is none.
    pub fn topic_oldest(&self, topic: &str, oldest: Option<f64>) {
        set_or_remove(&self.0.topic_oldest, topic, oldest);
    }

    /// Sets how long a topic keeps its records (`Some(None)`: whatever their age), or removes the series if that is not known.
    pub fn retention(&self, topic: &str, kept: Option<Option<Duration>>) {
        let kept = kept.map(|kept| kept.map_or(f64::INFINITY, |kept| kept.as_secs_f64()));
        set_or_remove(&self.0.topic_retention, topic, kept);
    }

    /// Sets how many subscriptions are disabled, by who disabled them.
    pub fn disabled(&self, by: BTreeMap<&'static str, u64>) {
        for (by, count) in by {
            let gauge = self.0.disabled.with_label_values(&[by]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}

fn set_or_remove(gauge: &GaugeVec, label: &str, value: Option<f64>) {
    match value {
        Some(value) => gauge.with_label_values(&[label]).set(value),
        // There may be no series to remove.
        None => drop(gauge.remove_label_values(&[label])),
    }
}
