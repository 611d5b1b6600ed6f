//! The metrics of the lag role.

use std::sync::Arc;

use prometheus::{Gauge, GaugeVec, IntCounterVec, IntGauge, IntGaugeVec, Opts};

use super::figures::Figures;
use super::top::Told;
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
}

impl std::fmt::Debug for LagMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LagMetrics")
    }
}

impl LagMetrics {
    /// Registers the family in `registry`, at zero.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        Self(Arc::new(All {
            subscriber_lag: registry.add(IntGaugeVec::new(
                Opts::new("hookstream_subscriber_lag", "Pending commands: ready in the commands topic, or waiting in a tier. By the lag role; the same in each replica."),
                &["subscriber", "state"],
            )),
            subscriber_oldest: registry.add(GaugeVec::new(
                Opts::new("hookstream_subscriber_oldest_timestamp_seconds", "When the oldest pending command was first written, seconds since the epoch; no series when nothing is pending."),
                &["subscriber"],
            )),
            subscriber_dead_letters: registry.add(IntGaugeVec::new(
                Opts::new("hookstream_subscriber_dead_letters", "Dead letters that are neither replayed nor discarded."),
                &["subscriber"],
            )),
            subscriber_waiting: registry.add(IntGaugeVec::new(
                Opts::new("hookstream_subscriber_waiting", "Commands that wait in a tier, by its delay; no series where none does."),
                &["subscriber", "tier"],
            )),
            subscriber_finished: registry.add(IntCounterVec::new(
                Opts::new("hookstream_subscriber_finished_total", "Commands that delivery has finished, whatever came of them, since the subscriber has series of its own."),
                &["subscriber"],
            )),
            lag_as_of: registry.add(Gauge::new(
                "hookstream_lag_as_of_timestamp_seconds",
                "Of when the lag role's figures are, seconds since the epoch; 0 before the first.",
            )),
            lag_behind: registry.gauge("hookstream_lag_behind_offsets", "Offsets that the lag role has still to read; 0 when its figures are exact."),
            event_lag: registry.add(IntGaugeVec::new(
                Opts::new("hookstream_event_lag", "Offsets of an event topic that wait for fan-out, from its committed position to the last stable offset. By the lag role; the same in each replica."),
                &["topic", "partition"],
            )),
        }))
    }

    /// The lag role's figures; `tiers` are the names of the tiers.
    pub fn lag(&self, told: &Told, figures: &Figures, tiers: &[String]) {
        let inner = &self.0;
        for name in &told.gone {
            // A series that is not there is as good as removed.
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
        for (name, waiting) in &told.figures {
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
        for (name, &finished) in &told.finished {
            let counter = inner.subscriber_finished.with_label_values(&[&**name]);
            counter.inc_by(finished);
        }
        inner.lag_as_of.set(figures.as_of_seconds);
        inner.lag_behind.set(count(figures.behind));
    }

    /// Offsets of a partition of an event topic that wait for fan-out.
    pub fn event_lag(&self, topic: &str, partition: i32, behind: u64) {
        self.0
            .event_lag
            .with_label_values(&[topic, &partition.to_string()])
            .set(i64::try_from(behind).unwrap_or(i64::MAX));
    }

    /// Removes the series of a partition of an event topic of which nothing is known any more.
    pub fn forget_event_lag(&self, topic: &str, partition: i32) {
        // A partition that was never observed has no series to remove.
        self.0
            .event_lag
            .remove_label_values(&[topic, &partition.to_string()])
            .ok();
    }
}
