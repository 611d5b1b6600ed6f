//! What operators see on `/metrics`: every metric, declared once, with help and unit.
//!
//! Labels are closed sets, and their handles are resolved when the registry is made: counting on the hot path is
//! one atomic addition. Names are an interface (`tests/data/metrics.golden` shows a rename in review).

use std::sync::Arc;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::command::Cause;
use crate::delivery::outcome::Class;
use crate::delivery::shown;
use crate::lag::figures::Figures;
use crate::lag::top::Told;

/// A closed set of label values.
trait Label: Copy + 'static {
    const ALL: &'static [Self];
    fn text(self) -> &'static str;
}

macro_rules! labels {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $variant),+ }
        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];
            fn text(self) -> &'static str { match self { $(Self::$variant => $text),+ } }
        }
    };
}

labels!(
    /// What became of an event.
    EventResult {
        /// At least one subscription matched.
        FannedOut = "fanned_out",
        /// None matched.
        Unmatched = "unmatched",
        /// It could not be read.
        Invalid = "invalid",
    }
);
labels!(
    /// What became of an attempt.
    AttemptOutcome {
        /// The endpoint took it.
        Delivered = "delivered",
        /// Another attempt follows.
        Retry = "retry",
        /// None follows.
        DeadLettered = "dead_lettered",
    }
);
labels!(
    /// What became of a record of the log of attempts.
    AttemptRecord {
        /// The broker has it.
        Written = "written",
        /// There was no room for it, or the broker did not take it.
        Dropped = "dropped",
    }
);
labels!(
    /// Why a command went to a tier without an attempt.
    ParkReason {
        /// The breaker is open.
        Breaker = "breaker",
        /// The lane was full and slow.
        LaneFull = "lane_full",
        /// The rate limit, or the endpoint's own `Retry-After`.
        Rate = "rate",
        /// Its subscription asks for order, and one ahead of it is in a tier.
        Order = "order",
        /// The subscription is paused, unknown yet, or cannot be signed for.
        Paused = "paused",
    }
);
labels!(
    /// How a transaction ended.
    TransactionResult {
        /// It is visible.
        Committed = "committed",
        /// It is not.
        Aborted = "aborted",
    }
);
labels!(
    /// Who writes transactions.
    Role {
        /// Events to commands.
        Fanout = "fanout",
        /// Commands to requests.
        Deliver = "deliver",
        /// Tiers to commands.
        Release = "release",
    }
);
labels!(
    /// Where release moved a record.
    Released {
        /// It was due.
        Commands = "commands",
        /// The rest of its wait is in another tier.
        Tier = "tier",
    }
);

labels!(
    /// What became of a span.
    SpanResult {
        /// The collector took it.
        Exported = "exported",
        /// The collector refused it, or did not answer.
        Failed = "failed",
        /// The queue was full.
        Dropped = "dropped",
    }
);

impl AttemptOutcome {
    /// As it stands in the label, and in the log of attempts.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.text()
    }
}

impl Label for Cause {
    const ALL: &'static [Self] = &Self::ALL;
    fn text(self) -> &'static str {
        self.as_str()
    }
}

impl Label for Class {
    const ALL: &'static [Self] = &Self::ALL;
    fn text(self) -> &'static str {
        self.as_str()
    }
}

fn index<L: Label>(label: L) -> usize {
    L::ALL
        .iter()
        .position(|other| other.text() == label.text())
        .unwrap_or(0)
}

/// Counters of a metric with one label, resolved.
struct Counters(Vec<IntCounter>);

impl Counters {
    fn of<L: Label>(&self, label: L) -> &IntCounter {
        &self.0[index(label)]
    }
}

/// All metrics of a process, in a registry of its own; cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<All>);

struct All {
    registry: Registry,
    events: Counters,
    commands: Counters,
    attempts: Vec<Counters>,
    attempt_duration: Histogram,
    attempt_records: Counters,
    event_to_delivery: Histogram,
    parked: Counters,
    released: Counters,
    in_flight: IntGauge,
    queued_commands: IntGauge,
    queued_bytes: IntGauge,
    oldest_attempt: Gauge,
    breaker_open: IntGaugeVec,
    systemic_failure: IntGauge,
    window_offsets: IntGaugeVec,
    stalled: GaugeVec,
    runnable_commands: IntGaugeVec,
    worker_busy: GaugeVec,
    transactions: Vec<Counters>,
    transaction_seconds: Vec<Histogram>,
    invalid_subscriptions: IntCounter,
    foreign_commit_metadata: IntCounter,
    lost_offsets: IntCounterVec,
    subscriber_lag: IntGaugeVec,
    subscriber_oldest: GaugeVec,
    subscriber_dead_letters: IntGaugeVec,
    subscriber_waiting: IntGaugeVec,
    subscriber_finished: IntCounterVec,
    subscriber_attempts: IntCounterVec,
    lag_as_of: Gauge,
    lag_behind: IntGauge,
    event_lag: IntGaugeVec,
    spans: Counters,
    broker_up: IntGauge,
    role_ready: IntGaugeVec,
    role_restarts: IntCounterVec,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

const ATTEMPT_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0,
];
const DELIVERY_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    300.0, 900.0, 3600.0,
];
const TRANSACTION_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Makes metrics and registers them: the one place where names, help and labels stand.
struct Declare {
    registry: Registry,
}

impl Declare {
    /// Names, labels and buckets are constants of this file, which the golden test goes over: they are all valid.
    #[allow(clippy::expect_used, reason = "see above")]
    fn add<C: Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let collector = made.expect("the constants of this file are valid");
        self.registry
            .register(Box::new(collector.clone()))
            .expect("each metric is declared once");
        collector
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    fn counters<L: Label>(&self, name: &str, help: &str, label: &str) -> Counters {
        let all = self.add(IntCounterVec::new(Opts::new(name, help), &[label]));
        Counters(
            L::ALL
                .iter()
                .map(|value| all.with_label_values(&[value.text()]))
                .collect(),
        )
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.add(Histogram::with_opts(
            HistogramOpts::new(name, help).buckets(buckets.to_vec()),
        ))
    }
}

impl Metrics {
    /// Declares all, at zero.
    #[must_use]
    pub fn new() -> Self {
        let declare = Declare {
            registry: Registry::new(),
        };
        let attempts = declare.add(IntCounterVec::new(
            Opts::new(
                "hookstream_attempts_total",
                "Attempts that ended, by outcome and class of answer.",
            ),
            &["outcome", "class"],
        ));
        let transactions = declare.add(IntCounterVec::new(
            Opts::new(
                "hookstream_transactions_total",
                "Batches that ended, by role and result.",
            ),
            &["role", "result"],
        ));
        let transaction_seconds = declare.add(HistogramVec::new(
            HistogramOpts::new(
                "hookstream_transaction_seconds",
                "How long the end of a batch took, seconds.",
            )
            .buckets(TRANSACTION_BUCKETS.to_vec()),
            &["role"],
        ));
        let build = declare.add(IntGaugeVec::new(
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
            events: declare.counters::<EventResult>("hookstream_events_total", "Events read, by what became of them.", "result"),
            commands: declare.counters::<Cause>("hookstream_commands_total", "Commands written to the commands topic, by cause.", "cause"),
            attempts: AttemptOutcome::ALL
                .iter()
                .map(|outcome| {
                    Counters(
                        Class::ALL
                            .iter()
                            .map(|class| attempts.with_label_values(&[outcome.text(), class.text()]))
                            .collect(),
                    )
                })
                .collect(),
            attempt_duration: declare.histogram(
                "hookstream_attempt_duration_seconds",
                "How long an attempt took, from its start to the answer's headers or its failure, seconds.",
                ATTEMPT_BUCKETS,
            ),
            attempt_records: declare.counters::<AttemptRecord>(
                "hookstream_attempt_records_total",
                "Records of the log of attempts, by what became of them; 0 while it is off.",
                "result",
            ),
            event_to_delivery: declare.histogram(
                "hookstream_event_to_delivery_seconds",
                "From fan-out's reading of the event to its delivery at the first attempt, seconds.",
                DELIVERY_BUCKETS,
            ),
            parked: declare.counters::<ParkReason>("hookstream_parked_total", "Commands moved to a tier without an attempt.", "why"),
            released: declare.counters::<Released>("hookstream_released_total", "Records moved out of a tier, by where they went.", "to"),
            in_flight: declare.gauge("hookstream_in_flight", "Requests in flight."),
            queued_commands: declare.gauge("hookstream_queued_commands", "Commands that delivery holds in memory."),
            queued_bytes: declare.gauge("hookstream_queued_bytes", "What the commands that delivery holds weigh, bytes."),
            oldest_attempt: declare.add(Gauge::new(
                "hookstream_oldest_attempt_seconds",
                "The age of the oldest attempt in flight, seconds.",
            )),
            breaker_open: declare.add(IntGaugeVec::new(
                Opts::new("hookstream_breaker_open", "1 while a subscription's breaker is open; no series while it is closed."),
                &["subscriber", "subscription"],
            )),
            systemic_failure: declare.gauge(
                "hookstream_systemic_failure",
                "1 while intake is paused because most endpoints give no answer.",
            ),
            window_offsets: declare.add(IntGaugeVec::new(
                Opts::new("hookstream_window_offsets", "From a partition's committed position to the last offset taken."),
                &["partition"],
            )),
            stalled: declare.add(GaugeVec::new(
                Opts::new(
                    "hookstream_partition_stalled_seconds",
                    "How long a partition's intake has been waiting for room, seconds.",
                ),
                &["partition"],
            )),
            runnable_commands: declare.add(IntGaugeVec::new(
                Opts::new(
                    "hookstream_runnable_commands",
                    "Queued commands that their endpoints would take at once, but that this replica has no free request for: not held by the subscription's limits, its breaker, a pause, Retry-After or order. About 0 unless the replica is short.",
                ),
                &["partition"],
            )),
            // Without labels, and by the deliver role alone: an average over replicas must not count the zeros of other roles.
            worker_busy: declare.add(GaugeVec::new(
                Opts::new(
                    "hookstream_worker_busy_ratio",
                    "Share of the last ten seconds in which delivery's threads were busy, 0 to 1: the mean of all threads of the replica, since more replicas relieve a replica that is busy as a whole, and not one thread that a single partition keeps busy.",
                ),
                &[],
            )),
            transactions: Role::ALL
                .iter()
                .map(|role| {
                    let of = |result: &TransactionResult| transactions.with_label_values(&[role.text(), result.text()]);
                    Counters(TransactionResult::ALL.iter().map(of).collect())
                })
                .collect(),
            transaction_seconds: Role::ALL.iter().map(|role| transaction_seconds.with_label_values(&[role.text()])).collect(),
            invalid_subscriptions: declare.counter(
                "hookstream_invalid_subscriptions_total",
                "Subscription records that were not used because they are invalid.",
            ),
            foreign_commit_metadata: declare.counter(
                "hookstream_foreign_commit_metadata_total",
                "Partitions whose commit metadata could not be used: finished commands may be delivered again.",
            ),
            lost_offsets: declare.add(IntCounterVec::new(
                Opts::new("hookstream_lost_offsets_total", "Offsets that were deleted before they were read: retention has overtaken a group."),
                &["topic"],
            )),
            subscriber_lag: declare.add(IntGaugeVec::new(
                Opts::new("hookstream_subscriber_lag", "Pending commands: ready in the commands topic, or waiting in a tier. By the lag role; the same in each replica."),
                &["subscriber", "state"],
            )),
            subscriber_oldest: declare.add(GaugeVec::new(
                Opts::new("hookstream_subscriber_oldest_timestamp_seconds", "When the oldest pending command was first written, seconds since the epoch; no series when nothing is pending."),
                &["subscriber"],
            )),
            subscriber_dead_letters: declare.add(IntGaugeVec::new(
                Opts::new("hookstream_subscriber_dead_letters", "Dead letters that are neither replayed nor discarded."),
                &["subscriber"],
            )),
            subscriber_waiting: declare.add(IntGaugeVec::new(
                Opts::new("hookstream_subscriber_waiting", "Commands that wait in a tier, by its delay; no series where none does."),
                &["subscriber", "tier"],
            )),
            subscriber_finished: declare.add(IntCounterVec::new(
                Opts::new("hookstream_subscriber_finished_total", "Commands that delivery has finished, whatever came of them, since the subscriber has series of its own."),
                &["subscriber"],
            )),
            subscriber_attempts: declare.add(IntCounterVec::new(
                Opts::new("hookstream_subscriber_attempts_total", "Attempts that ended, by class of answer, since the subscriber has series of its own in this replica; the rest is _other."),
                &["subscriber", "class"],
            )),
            lag_as_of: declare.add(Gauge::new(
                "hookstream_lag_as_of_timestamp_seconds",
                "Of when the lag role's figures are, seconds since the epoch; 0 before the first.",
            )),
            lag_behind: declare.gauge("hookstream_lag_behind_offsets", "Offsets that the lag role has still to read; 0 when its figures are exact."),
            event_lag: declare.add(IntGaugeVec::new(
                Opts::new("hookstream_event_lag", "Offsets of an event topic that wait for fan-out, from its committed position to the last stable offset. By the lag role; the same in each replica."),
                &["topic", "partition"],
            )),
            spans: declare.counters::<SpanResult>("hookstream_spans_total", "Spans that ended, by whether the collector has them.", "result"),
            broker_up: declare.gauge("hookstream_broker_up", "1 while brokers answer; 0 while a role waits for one."),
            role_ready: declare.add(IntGaugeVec::new(
                Opts::new("hookstream_role_ready", "1 while the role does its work."),
                &["role"],
            )),
            role_restarts: declare.add(IntCounterVec::new(
                Opts::new("hookstream_role_restarts_total", "Times that a role began anew within the process, because its Kafka client had become silent for good."),
                &["role"],
            )),
            registry: declare.registry,
        }))
    }

    /// Events read.
    #[must_use]
    pub fn events(&self, result: EventResult) -> &IntCounter {
        self.0.events.of(result)
    }

    /// Commands written to the commands topic.
    #[must_use]
    pub fn commands(&self, cause: Cause) -> &IntCounter {
        self.0.commands.of(cause)
    }

    /// Attempts that ended.
    #[must_use]
    pub fn attempts(&self, outcome: AttemptOutcome, class: Class) -> &IntCounter {
        self.0.attempts[index(outcome)].of(class)
    }

    /// Seconds.
    #[must_use]
    pub fn attempt_duration(&self) -> &Histogram {
        &self.0.attempt_duration
    }

    /// Records of the log of attempts.
    #[must_use]
    pub fn attempt_records(&self, result: AttemptRecord) -> &IntCounter {
        self.0.attempt_records.of(result)
    }

    /// Seconds.
    #[must_use]
    pub fn event_to_delivery(&self) -> &Histogram {
        &self.0.event_to_delivery
    }

    /// Commands moved to a tier without an attempt.
    #[must_use]
    pub fn parked(&self, why: ParkReason) -> &IntCounter {
        self.0.parked.of(why)
    }

    /// Spans that ended.
    #[must_use]
    pub fn spans(&self, result: SpanResult) -> &IntCounter {
        self.0.spans.of(result)
    }

    /// Records moved out of a tier.
    #[must_use]
    pub fn released(&self, to: Released) -> &IntCounter {
        self.0.released.of(to)
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> &IntGauge {
        &self.0.in_flight
    }

    /// Commands in memory.
    #[must_use]
    pub fn queued_commands(&self) -> &IntGauge {
        &self.0.queued_commands
    }

    /// Bytes.
    #[must_use]
    pub fn queued_bytes(&self) -> &IntGauge {
        &self.0.queued_bytes
    }

    /// Of all partitions.
    pub fn oldest_attempt(&self, age: Duration) {
        self.0.oldest_attempt.set(age.as_secs_f64());
    }

    /// Whether a subscription's breaker is open; closed ones have no series.
    pub fn breaker_open(&self, subscriber: &str, subscription: &str, open: bool) {
        let labels = [subscriber, subscription];
        if open {
            self.0.breaker_open.with_label_values(&labels).set(1);
        } else {
            // One that was never open has none to take away.
            self.0.breaker_open.remove_label_values(&labels).ok();
        }
    }

    /// 1 while intake is paused because the fault is ours.
    #[must_use]
    pub fn systemic_failure(&self) -> &IntGauge {
        &self.0.systemic_failure
    }

    /// From the committed position to the last offset taken.
    pub fn window(&self, partition: i32, span: u64) {
        let gauge = self
            .0
            .window_offsets
            .with_label_values(&[&partition.to_string()]);
        gauge.set(i64::try_from(span).unwrap_or(i64::MAX));
    }

    /// How long intake has been waiting for room.
    pub fn stalled(&self, partition: i32, time: Duration) {
        self.0
            .stalled
            .with_label_values(&[&partition.to_string()])
            .set(time.as_secs_f64());
    }

    /// Commands of a partition that only the replica's shortage holds up.
    pub fn runnable_commands(&self, partition: i32, count: usize) {
        self.0
            .runnable_commands
            .with_label_values(&[&partition.to_string()])
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// The share of time in which delivery's threads were busy.
    pub fn worker_busy(&self, ratio: f64) {
        const NO_LABELS: [&str; 0] = [];
        let gauge = self.0.worker_busy.with_label_values(&NO_LABELS);
        gauge.set(ratio);
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

    /// Takes the series of a partition away that this process does not own any more.
    pub fn forget_partition(&self, partition: i32) {
        let label = partition.to_string();
        // A partition that was never observed has no series to take away.
        self.0.window_offsets.remove_label_values(&[&label]).ok();
        self.0.stalled.remove_label_values(&[&label]).ok();
        self.0.runnable_commands.remove_label_values(&[&label]).ok();
    }

    /// The end of a batch: whether it is visible, and how long that took.
    pub fn transaction(&self, role: Role, committed: bool, took: Duration) {
        let result = if committed {
            TransactionResult::Committed
        } else {
            TransactionResult::Aborted
        };
        self.0.transactions[index(role)].of(result).inc();
        self.0.transaction_seconds[index(role)].observe(took.as_secs_f64());
    }

    /// Subscription records that are not used.
    #[must_use]
    pub fn invalid_subscriptions(&self) -> &IntCounter {
        &self.0.invalid_subscriptions
    }

    /// Partitions whose metadata could not be used.
    #[must_use]
    pub fn foreign_commit_metadata(&self) -> &IntCounter {
        &self.0.foreign_commit_metadata
    }

    /// A group met a gap in `topic`.
    pub fn lost_offsets(&self, topic: &str, count: u64) {
        self.0
            .lost_offsets
            .with_label_values(&[topic])
            .inc_by(count);
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

    /// Attempts of subscribers. A series has all classes from its start: what fails for the first time is seen to grow.
    pub fn subscriber_attempts(&self, told: &shown::Told) {
        let series = &self.0.subscriber_attempts;
        for name in &told.gone {
            for class in Class::ALL {
                // A series that is not there is as good as removed.
                series.remove_label_values(&[name, class.as_str()]).ok();
            }
        }
        for (name, tally) in &told.attempts {
            for (class, count) in tally.by_class() {
                let counter = series.with_label_values(&[&**name, class.as_str()]);
                counter.inc_by(count);
            }
        }
    }

    /// Takes away what a role has told before that begins anew within the process: it knows nothing of that.
    pub fn forget_subscriber_attempts(&self) {
        self.0.subscriber_attempts.reset();
    }

    /// Whether a broker has answered.
    #[must_use]
    pub fn broker_up(&self) -> &IntGauge {
        &self.0.broker_up
    }

    /// Whether a role does its work.
    #[must_use]
    pub fn role_ready(&self, role: &str) -> IntGauge {
        self.0.role_ready.with_label_values(&[role])
    }

    /// Times that a role began anew within the process.
    #[must_use]
    pub fn role_restarts(&self, role: &str) -> IntCounter {
        self.0.role_restarts.with_label_values(&[role])
    }

    /// All of it in the text format 0.0.4.
    ///
    /// # Errors
    /// The library's, which it has none of for what is registered here.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.0.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Write;

    use super::*;
    use crate::delivery::tally::Tally;
    use crate::lag::index::Waiting;

    /// A line a metric: name, type, labels, help.
    fn listing(metrics: &Metrics) -> String {
        metrics.window(0, 0);
        metrics.stalled(0, Duration::ZERO);
        metrics.runnable_commands(0, 0);
        metrics.worker_busy(0.0);
        metrics.event_lag("topic", 0, 0);
        metrics.role_ready("fanout").set(0);
        metrics.role_restarts("fanout").reset();
        metrics.breaker_open("acme", "orders", true);
        metrics.lost_offsets("topic", 0);
        let mut told = Told::default();
        let waiting = Waiting {
            oldest: Some(0),
            tiers: [(0, 1)].into(),
            ..Waiting::default()
        };
        told.figures.insert("acme".into(), waiting);
        told.finished.insert("acme".into(), 0);
        metrics.lag(&told, &Figures::default(), &["5s".to_owned()]);
        let mut told = shown::Told::default();
        told.attempts.insert("acme".into(), Tally::default());
        metrics.subscriber_attempts(&told);
        let mut lines = String::new();
        for family in metrics.0.registry.gather() {
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
        let now = listing(&Metrics::new());
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/metrics.golden");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(path, &now).unwrap();
        }
        let golden = std::fs::read_to_string(path).unwrap();
        assert_eq!(
            now, golden,
            "a metric changed; names are an interface. UPDATE_GOLDEN=1 cargo test golden renews the file"
        );
    }

    #[test]
    fn every_metric_that_is_declared_is_in_the_golden_file() {
        let source = include_str!("metrics.rs");
        let (declared, _) = source.split_once("mod tests").unwrap();
        let golden = include_str!("../tests/data/metrics.golden");
        let names = declared
            .split('"')
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
        let text = Metrics::new().render().unwrap();
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
    fn a_subscriber_that_is_shown_has_all_classes_and_one_that_is_gone_has_none() {
        let metrics = Metrics::new();
        let mut tally = Tally::default();
        tally.count(Class::Timeout, true);
        let mut told = shown::Told::default();
        told.attempts.insert("acme".into(), tally);
        metrics.subscriber_attempts(&told);
        metrics.subscriber_attempts(&told);
        let text = metrics.render().unwrap();
        for (class, count) in [("timeout", 2), ("2xx", 0)] {
            let line = format!(
                r#"hookstream_subscriber_attempts_total{{class="{class}",subscriber="acme"}} {count}"#
            );
            assert!(text.contains(&line), "{line} is missing in:\n{text}");
        }
        let told = shown::Told {
            gone: vec!["acme".into()],
            ..shown::Told::default()
        };
        metrics.subscriber_attempts(&told);
        assert!(!metrics.render().unwrap().contains("acme"));
    }

    #[test]
    fn a_role_without_workers_exports_no_share_of_their_time() {
        let metrics = Metrics::new();
        assert!(!metrics.render().unwrap().contains("worker_busy_ratio"));
        metrics.worker_busy(0.25);
        let text = metrics.render().unwrap();
        assert!(
            text.contains("\nhookstream_worker_busy_ratio 0.25\n"),
            "{text}"
        );
    }

    #[test]
    fn a_partition_that_is_gone_has_no_series() {
        let metrics = Metrics::new();
        metrics.window(7, 12);
        metrics.runnable_commands(7, 3);
        metrics.event_lag("events", 7, 5);
        assert!(
            metrics
                .render()
                .unwrap()
                .contains(r#"hookstream_window_offsets{partition="7"} 12"#)
        );
        metrics.forget_partition(7);
        let text = metrics.render().unwrap();
        assert!(text.contains(r#"hookstream_event_lag{partition="7",topic="events"} 5"#));
        metrics.forget_event_lag("events", 7);
        assert!(!metrics.render().unwrap().contains(r#"partition="7""#));
    }
}
