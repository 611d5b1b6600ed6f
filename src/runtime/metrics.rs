//! The metrics registry, and the metrics common to all roles.
//!
//! Each stage registers its own family, declared once, with help and unit. Labels are closed sets, and their handles are
//! resolved at registration: counting on the hot path is one atomic addition. Names are an interface
//! (`tests/data/metrics.golden` shows a rename in review).

use std::sync::Arc;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, TextEncoder,
};

use crate::edge::otlp::SpanCounters;
use crate::model::command::Cause;

/// The label of the sum over all other subscribers. A subscriber of this name is included in it.
pub const OTHER: &str = "_other";

/// A closed set of label values.
pub trait Label: Copy + 'static {
    /// Every value.
    const ALL: &'static [Self];
    /// The text of the label.
    fn text(self) -> &'static str;
}

/// Declares an enum whose variants are the values of a label.
macro_rules! labels {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $variant),+ }
        impl $crate::runtime::metrics::Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];
            fn text(self) -> &'static str { match self { $(Self::$variant => $text),+ } }
        }
    };
}
pub(crate) use labels;

labels!(
    /// How a transaction ended.
    TransactionResult {
        /// Committed and visible.
        Committed = "committed",
        /// Aborted.
        Aborted = "aborted",
    }
);

labels!(
    /// Who writes transactions.
    TransactionalRole {
        /// Commands to requests.
        Deliver = "deliver",
        /// Tiers to commands.
        Release = "release",
    }
);

labels!(
    /// The result of a span.
    SpanResult {
        /// Accepted by the collector.
        Exported = "exported",
        /// Rejected by the collector, or no response.
        Failed = "failed",
        /// The queue was full.
        Dropped = "dropped",
    }
);

impl Label for Cause {
    const ALL: &'static [Self] = &Self::ALL;
    fn text(self) -> &'static str {
        self.as_str()
    }
}

/// The index of a label value.
pub(crate) fn index<L: Label>(label: L) -> usize {
    L::ALL
        .iter()
        .position(|other| other.text() == label.text())
        .unwrap_or(0)
}

/// Counters of a metric with one label, resolved.
pub(crate) struct Counters(pub(crate) Vec<IntCounter>);

impl Counters {
    /// The counter of a label's value.
    pub(crate) fn of<L: Label>(&self, label: L) -> &IntCounter {
        &self.0[index(label)]
    }
}

/// All metrics of a process; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Registry(prometheus::Registry);

impl Registry {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Names, labels and buckets are constants, and the golden test covers them all, so registration does not fail.
    #[allow(clippy::expect_used, reason = "see above")]
    pub(crate) fn add<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let collector = made.expect("the constants of a family are valid");
        self.0
            .register(Box::new(collector.clone()))
            .expect("each metric is registered once");
        collector
    }

    pub(crate) fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    pub(crate) fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    pub(crate) fn counters<L: Label>(&self, name: &str, help: &str, label: &str) -> Counters {
        let all = self.add(IntCounterVec::new(Opts::new(name, help), &[label]));
        Counters(
            L::ALL
                .iter()
                .map(|value| all.with_label_values(&[value.text()]))
                .collect(),
        )
    }

    pub(crate) fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.add(Histogram::with_opts(
            HistogramOpts::new(name, help).buckets(buckets.to_vec()),
        ))
    }

    /// Every metric with its labels and values.
    #[must_use]
    pub fn gather(&self) -> Vec<prometheus::proto::MetricFamily> {
        self.0.gather()
    }

    /// All metrics in the text format 0.0.4.
    ///
    /// # Errors
    /// The library's error, which does not occur for the metrics registered here.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

fn partition_label(partition: Option<i32>) -> String {
    partition.map_or_else(|| "all".to_owned(), |partition| partition.to_string())
}

const TRANSACTION_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// The metrics common to all roles; cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<All>);

struct All {
    invalid_subscriptions: IntCounter,
    lost_offsets: IntCounterVec,
    set_aside: IntCounterVec,
    stopped_partitions: IntGaugeVec,
    commands: Counters,
    spans: Counters,
    unwritable: GaugeVec,
    broker_up: IntGauge,
    role_ready: IntGaugeVec,
    role_restarts: IntCounterVec,
    transactions: Vec<Counters>,
    transaction_seconds: Vec<Histogram>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Registers the family in `registry`, at zero.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let transactions = registry.add(IntCounterVec::new(
            Opts::new(
                "hookstream_transactions_total",
                "Batches that ended, by role and result.",
            ),
            &["role", "result"],
        ));
        let transaction_seconds = registry.add(HistogramVec::new(
            HistogramOpts::new(
                "hookstream_transaction_seconds",
                "How long the end of a batch took, seconds.",
            )
            .buckets(TRANSACTION_BUCKETS.to_vec()),
            &["role"],
        ));
        let build = registry.add(IntGaugeVec::new(
            Opts::new(
                "hookstream_build_info",
                "Always 1; the labels tell the version and the commit.",
            ),
            &["version", "commit"],
        ));
        build
            .with_label_values(&[
                env!("CARGO_PKG_VERSION"),
                option_env!("HOOKSTREAM_COMMIT").unwrap_or("unknown"),
            ])
            .set(1);
        Self(Arc::new(All {
            invalid_subscriptions: registry.counter(
                "hookstream_invalid_subscriptions_total",
                "Subscription records that were not used because they are invalid.",
            ),
            lost_offsets: registry.add(IntCounterVec::new(
                Opts::new("hookstream_lost_offsets_total", "Offsets that were deleted before they were read: retention has overtaken a group."),
                &["topic"],
            )),
            set_aside: registry.add(IntCounterVec::new(
                Opts::new("hookstream_set_aside_total", "Records that could not be used, by the topic that they were read from; fanout, deliver and release copy them to the topic of invalid events."),
                &["topic"],
            )),
            stopped_partitions: registry.add(IntGaugeVec::new(
                Opts::new("hookstream_stopped_partitions", "Partitions that are not read further, because a record or a commit in them was written by a newer hookstream."),
                &["topic"],
            )),
            commands: registry.counters::<Cause>("hookstream_commands_total", "Commands written to the commands topic, by cause.", "cause"),
            spans: registry.counters::<SpanResult>("hookstream_spans_total", "Spans that ended, by whether the collector has them.", "result"),
            unwritable: registry.add(GaugeVec::new(
                Opts::new("hookstream_unwritable_seconds", "How long a role has been unable to write to a partition, seconds; the partition is `all` when the topic as a whole cannot be written. No series while it can be written."),
                &["role", "topic", "partition"],
            )),
            broker_up: registry.gauge("hookstream_broker_up", "1 while brokers answer; 0 while a role waits for one."),
            role_ready: registry.add(IntGaugeVec::new(
                Opts::new("hookstream_role_ready", "1 while the role does its work."),
                &["role"],
            )),
            role_restarts: registry.add(IntCounterVec::new(
                Opts::new("hookstream_role_restarts_total", "Restarts of a role within the process because its Kafka client was stuck, or its group had no position in a partition."),
                &["role"],
            )),
            transactions: TransactionalRole::ALL
                .iter()
                .map(|role| {
                    let of = |result: &TransactionResult| transactions.with_label_values(&[role.text(), result.text()]);
                    Counters(TransactionResult::ALL.iter().map(of).collect())
                })
                .collect(),
            transaction_seconds: TransactionalRole::ALL.iter().map(|role| transaction_seconds.with_label_values(&[role.text()])).collect(),
        }))
    }

    /// Invalid subscription records, which are ignored.
    #[must_use]
    pub fn invalid_subscriptions(&self) -> &IntCounter {
        &self.0.invalid_subscriptions
    }

    /// Counts offsets of `topic` that were deleted before a group read them.
    pub fn lost_offsets(&self, topic: &str, count: u64) {
        self.0
            .lost_offsets
            .with_label_values(&[topic])
            .inc_by(count);
    }

    /// A role has been unable to write to a partition, or the whole topic, for `time`.
    pub fn unwritable(
        &self,
        role: TransactionalRole,
        topic: &str,
        partition: Option<i32>,
        time: Duration,
    ) {
        self.0
            .unwritable
            .with_label_values(&[role.text(), topic, &partition_label(partition)])
            .set(time.as_secs_f64());
    }

    /// The partition can be written, or the role no longer writes to it.
    pub fn writable(&self, role: TransactionalRole, topic: &str, partition: Option<i32>) {
        // A partition that was writable all the time has no series to remove.
        self.0
            .unwritable
            .remove_label_values(&[role.text(), topic, &partition_label(partition)])
            .ok();
    }

    /// Records of `topic` that were set aside, or, by a reader without a group, ignored.
    #[must_use]
    pub fn set_aside(&self, topic: &str) -> IntCounter {
        self.0.set_aside.with_label_values(&[topic])
    }

    /// Partitions of `topic` that this process has stopped at a record or a commit of a newer program.
    #[must_use]
    pub fn stopped_partitions(&self, topic: &str) -> IntGauge {
        self.0.stopped_partitions.with_label_values(&[topic])
    }

    /// Commands written to the commands topic.
    #[must_use]
    pub fn commands(&self, cause: Cause) -> &IntCounter {
        self.0.commands.of(cause)
    }

    /// Spans that ended, for the export.
    #[must_use]
    pub fn span_counters(&self) -> SpanCounters {
        let of = |result| self.0.spans.of(result).clone();
        SpanCounters {
            exported: of(SpanResult::Exported),
            failed: of(SpanResult::Failed),
            dropped: of(SpanResult::Dropped),
        }
    }

    /// Whether brokers are reachable.
    #[must_use]
    pub fn broker_up(&self) -> &IntGauge {
        &self.0.broker_up
    }

    /// Whether a role is ready.
    #[must_use]
    pub fn role_ready(&self, role: &str) -> IntGauge {
        self.0.role_ready.with_label_values(&[role])
    }

    /// Restarts of a role within the process.
    #[must_use]
    pub fn role_restarts(&self, role: &str) -> IntCounter {
        self.0.role_restarts.with_label_values(&[role])
    }

    /// Counts the end of a batch: its result and duration.
    pub fn transaction(&self, role: TransactionalRole, committed: bool, took: Duration) {
        let result = if committed {
            TransactionResult::Committed
        } else {
            TransactionResult::Aborted
        };
        self.0.transactions[index(role)].of(result).inc();
        self.0.transaction_seconds[index(role)].observe(took.as_secs_f64());
    }
}
