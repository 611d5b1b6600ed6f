//! The metrics of every role, registered together.

use std::sync::Arc;

use crate::delivery::metrics::DeliveryMetrics;
use crate::fanout::metrics::FanoutMetrics;
use crate::lag::board::Board;
use crate::lag::metrics::LagMetrics;
use crate::retry::metrics::ReleaseMetrics;
use crate::runtime::metrics::Registry;

/// The metrics of each role, and the board on which the lag role publishes its figures.
#[derive(Clone)]
pub(super) struct Families {
    pub(super) fanout: FanoutMetrics,
    pub(super) delivery: DeliveryMetrics,
    pub(super) release: ReleaseMetrics,
    pub(super) lag: LagMetrics,
    pub(super) board: Arc<Board>,
}

impl Families {
    /// Registers all families in every process, whatever its roles, so that dashboards find series at 0 instead of gaps.
    pub(super) fn register(registry: &Registry) -> Self {
        Self {
            fanout: FanoutMetrics::register(registry),
            delivery: DeliveryMetrics::register(registry),
            release: ReleaseMetrics::register(registry),
            lag: LagMetrics::register(registry),
            board: Arc::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Write;
    use std::time::Duration;

    use super::*;
    use crate::delivery::metrics::Against;
    use crate::delivery::partition::counts::AttemptCounts;
    use crate::delivery::top_subscribers::SubscriberAttempts;
    use crate::lag::figures::Figures;
    use crate::lag::index::Waiting;
    use crate::lag::top::SubscriberSeries;
    use crate::model::outcome::Class;
    use crate::runtime::metrics::{Metrics, TransactionalRole};

    fn all() -> (Registry, Metrics, Families) {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry);
        let families = Families::register(&registry);
        (registry, metrics, families)
    }

    /// One line per metric: name, type, labels, help.
    fn listing() -> String {
        let (registry, common, families) = all();
        let (metrics, lag) = (&families.delivery, &families.lag);
        metrics.window(0, 0);
        metrics.stalled(0, Duration::ZERO);
        metrics.runnable_commands(0, 0);
        metrics.deferred_commands(0, 0);
        metrics.worker_busy(0.0);
        metrics.clock_skew(Against::Endpoints, Some(0.0));
        lag.topic_oldest("topic", Some(0.0));
        lag.retention("topic", Some(None));
        lag.disabled([("operator", 0)].into());
        lag.event_lag("topic", 0, 0);
        common.role_ready("fanout").set(0);
        common.role_restarts("fanout").reset();
        metrics.reset_breakers(1);
        metrics.breaker_open("acme", "orders", true);
        common.lost_offsets("topic", 0);
        common.unwritable(TransactionalRole::Deliver, "topic", None, Duration::ZERO);
        families.fanout.blocked("topic", 0, Duration::ZERO, 0);
        common.set_aside("topic").inc_by(0);
        families.fanout.held("topic").inc_by(0);
        families.fanout.schema_wait("topic", 0, Duration::ZERO);
        common.stopped_partitions("topic").set(0);
        let mut series = SubscriberSeries::default();
        let waiting = Waiting {
            oldest: Some(0),
            tiers: [(0, 1)].into(),
            ..Waiting::default()
        };
        series.figures.insert("acme".into(), waiting);
        series.finished.insert("acme".into(), 0);
        lag.lag(&series, &Figures::default(), &["5s".to_owned()]);
        let mut report = SubscriberAttempts::default();
        report
            .attempts
            .insert("acme".into(), AttemptCounts::default());
        metrics.subscriber_attempts(&report);
        let mut lines = String::new();
        for family in registry.gather() {
            let labels: BTreeSet<&str> = family
                .get_metric()
                .iter()
                .flat_map(|metric| metric.get_label())
                .map(|label| label.name())
                .collect();
            let labels: Vec<_> = labels.into_iter().collect();
            let kind = format!("{:?}", family.get_field_type()).to_lowercase();
            writeln!(
                lines,
                "{} {kind} {{{}}} {}",
                family.name(),
                labels.join(","),
                family.help()
            )
            .unwrap();
        }
        lines
    }

    #[test]
    fn the_metrics_are_those_of_the_golden_file() {
        let now = listing();
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/metrics.golden");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, &now).unwrap();
        }
        let golden = std::fs::read_to_string(path).unwrap();
        assert_eq!(
            now, golden,
            "a metric changed, and names are an interface; UPDATE_GOLDEN=1 cargo test golden updates the file"
        );
    }

    #[test]
    fn every_metric_that_is_declared_is_in_the_golden_file() {
        let sources = [
            include_str!("../runtime/metrics.rs"),
            include_str!("../fanout/metrics.rs"),
            include_str!("../delivery/metrics.rs"),
            include_str!("../retry/metrics.rs"),
            include_str!("../lag/metrics.rs"),
        ];
        let golden = include_str!("../../tests/data/metrics.golden");
        let names = sources
            .iter()
            .flat_map(|source| source.split('"'))
            .filter(|text| text.starts_with("hookstream_"));
        assert!(names.clone().count() > 25);
        for name in names {
            assert!(
                golden.contains(&format!("{name} ")),
                "{name} has no series in `listing`"
            );
        }
    }

    #[test]
    fn every_label_value_is_there_from_the_start() {
        let text = all().0.render().unwrap();
        for line in [
            r#"hookstream_events_total{result="invalid"} 0"#,
            r#"hookstream_attempts_total{class="timeout",outcome="retry"} 0"#,
            r#"hookstream_parked_total{why="lane_full"} 0"#,
            r#"hookstream_transactions_total{result="aborted",role="release"} 0"#,
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
    }

    #[test]
    fn a_top_subscriber_has_all_classes_and_a_removed_one_has_none() {
        let (registry, _, families) = all();
        let metrics = &families.delivery;
        let mut counts = AttemptCounts::default();
        counts.count(Class::Timeout, true);
        let mut told = SubscriberAttempts::default();
        told.attempts.insert("acme".into(), counts);
        metrics.subscriber_attempts(&told);
        metrics.subscriber_attempts(&told);
        let text = registry.render().unwrap();
        for (class, count) in [("timeout", 2), ("2xx", 0)] {
            let line = format!(
                r#"hookstream_subscriber_attempts_total{{class="{class}",subscriber="acme"}} {count}"#
            );
            assert!(text.contains(&line), "{line} is missing in:\n{text}");
        }
        let told = SubscriberAttempts {
            gone: vec!["acme".into()],
            ..SubscriberAttempts::default()
        };
        metrics.subscriber_attempts(&told);
        assert!(!registry.render().unwrap().contains("acme"));
    }

    #[test]
    fn a_role_without_workers_exports_no_busy_ratio() {
        let (registry, _, families) = all();
        let metrics = &families.delivery;
        assert!(!registry.render().unwrap().contains("worker_busy_ratio"));
        metrics.worker_busy(0.25);
        let text = registry.render().unwrap();
        assert!(
            text.contains("\nhookstream_worker_busy_ratio 0.25\n"),
            "{text}"
        );
    }

    #[test]
    fn a_revoked_partition_has_no_series() {
        let (registry, _, families) = all();
        let metrics = &families.delivery;
        metrics.window(7, 12);
        metrics.runnable_commands(7, 3);
        families.lag.event_lag("events", 7, 5);
        assert!(
            registry
                .render()
                .unwrap()
                .contains(r#"hookstream_window_offsets{partition="7"} 12"#)
        );
        metrics.forget_partition(7);
        let text = registry.render().unwrap();
        assert!(text.contains(r#"hookstream_event_lag{partition="7",topic="events"} 5"#));
        families.lag.forget_event_lag("events", 7);
        assert!(!registry.render().unwrap().contains(r#"partition="7""#));
    }
}
