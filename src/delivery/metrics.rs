//! The metrics of delivery.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::{
    Gauge, GaugeVec, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
};

use super::open_breakers::{OpenBreakers, Shown};
use super::top_subscribers::SubscriberAttempts;
use crate::edge::kafka::best_effort::RecordCounters;
use crate::model::outcome::{AttemptOutcome, Class, ParkReason};
use crate::runtime::metrics::{Counters, Label, Registry, index, labels};

labels!(
    /// The result of a record for the attempt log.
    AttemptRecord {
        /// The broker acknowledged it.
        Written = "written",
        /// There was no room for it, or the broker rejected it.
        Dropped = "dropped",
    }
);

labels!(
    /// The result of a look-ahead.
    LookAheadResult {
        /// Everything committed was read.
        Complete = "complete",
        /// A transaction stayed open; what lies behind it counts as unfinished.
        OpenTransaction = "open_transaction",
        /// It failed and is repeated.
        Failed = "failed",
    }
);

labels!(
    /// Why a subscription cannot be served.
    Refusal {
        /// A secret of its signature or headers cannot be read or used: its commands wait.
        Secret = "secret",
        /// The egress rules deny its URL: its commands become dead letters.
        Egress = "egress",
    }
);

labels!(
    /// What became of asking an endpoint for consent.
    VerificationResult {
        /// It consents.
        Verified = "verified",
        /// It does not, or could not be asked.
        Refused = "refused",
    }
);

impl Label for Class {
    const ALL: &'static [Self] = &Self::ALL;
    fn text(self) -> &'static str {
        self.as_str()
    }
}

impl Label for AttemptOutcome {
    const ALL: &'static [Self] = &Self::ALL;
    fn text(self) -> &'static str {
        self.as_str()
    }
}

impl Label for ParkReason {
    const ALL: &'static [Self] = &Self::ALL;
    fn text(self) -> &'static str {
        self.as_str()
    }
}

/// Whose clocks this one is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Against {
    /// Those of the endpoints.
    Endpoints,
    /// Those of the brokers.
    Brokers,
}

impl Against {
    fn as_str(self) -> &'static str {
        match self {
            Self::Endpoints => "endpoints",
            Self::Brokers => "brokers",
        }
    }
}

const ATTEMPT_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0,
];
const DELIVERY_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    300.0, 900.0, 3600.0,
];
/// The metrics of delivery; cheap to clone.
#[derive(Clone)]
pub struct DeliveryMetrics(Arc<All>);

struct All {
    attempts: Vec<Counters>,
    attempt_duration: Histogram,
    attempt_records: Counters,
    event_to_delivery: Histogram,
    parked: Counters,
    look_aheads: Counters,
    in_flight: IntGauge,
    queued_commands: IntGauge,
    queued_bytes: IntGauge,
    oldest_attempt: Gauge,
    breaker_open: IntGaugeVec,
    breakers_open: IntGauge,
    open_breakers: Mutex<OpenBreakers>,
    systemic_failure: IntGauge,
    window_offsets: IntGaugeVec,
    stalled: GaugeVec,
    runnable_commands: IntGaugeVec,
    deferred_commands: IntGaugeVec,
    deferred: IntCounter,
    deferred_reads: IntCounter,
    deferred_lost: IntCounter,
    worker_busy: GaugeVec,
    clock_skew: GaugeVec,
    foreign_commit_metadata: IntCounter,
    duplicate_commands: IntCounter,
    source_holes: IntGauge,
    refused_subscriptions: Counters,
    verifications: Counters,
    subscriber_attempts: IntCounterVec,
}

impl std::fmt::Debug for DeliveryMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DeliveryMetrics")
    }
}

impl DeliveryMetrics {
    /// Registers the family in `registry`, at zero.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        let attempts = registry.add(IntCounterVec::new(
            Opts::new(
                "hookstream_attempts_total",
                "Attempts that ended, by outcome and class of answer.",
            ),
            &["outcome", "class"],
        ));
        Self(Arc::new(All {
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
            attempt_duration: registry.histogram(
                "hookstream_attempt_duration_seconds",
                "How long an attempt took, from its start to the answer's headers or its failure, seconds.",
                ATTEMPT_BUCKETS,
            ),
            attempt_records: registry.counters::<AttemptRecord>(
                "hookstream_attempt_records_total",
                "Records of the log of attempts, by what became of them; 0 while it is off.",
                "result",
            ),
            event_to_delivery: registry.histogram(
                "hookstream_event_to_delivery_seconds",
                "From the time of the event's record to its delivery at the first attempt, seconds.",
                DELIVERY_BUCKETS,
            ),
            parked: registry.counters::<ParkReason>("hookstream_parked_total", "Commands moved to a tier without an attempt.", "why"),
            look_aheads: registry.counters::<LookAheadResult>(
                "hookstream_look_aheads_total",
                "Reads ahead of a partition, for the order of commands and for fairness.",
                "result",
            ),
            in_flight: registry.gauge("hookstream_in_flight", "Requests in flight."),
            queued_commands: registry.gauge("hookstream_queued_commands", "Commands that delivery holds in memory."),
            queued_bytes: registry.gauge("hookstream_queued_bytes", "What the commands that delivery holds weigh, bytes."),
            oldest_attempt: registry.add(Gauge::new(
                "hookstream_oldest_attempt_seconds",
                "The age of the oldest attempt in flight, seconds.",
            )),
            breaker_open: registry.add(IntGaugeVec::new(
                Opts::new("hookstream_breaker_open", "1 while a subscription's breaker is open; no series while it is closed, nor for more than --lag-top at once."),
                &["subscriber", "subscription"],
            )),
            breakers_open: registry.gauge("hookstream_breakers_open", "Subscriptions whose breaker is open."),
            open_breakers: Mutex::new(OpenBreakers::new(0)),
            systemic_failure: registry.gauge(
                "hookstream_systemic_failure",
                "1 during an egress outage: most endpoints do not respond and get only probes.",
            ),
            window_offsets: registry.add(IntGaugeVec::new(
                Opts::new("hookstream_window_offsets", "From a partition's committed position to the last offset taken."),
                &["partition"],
            )),
            stalled: registry.add(GaugeVec::new(
                Opts::new(
                    "hookstream_partition_stalled_seconds",
                    "How long a partition's intake has been waiting for room, seconds.",
                ),
                &["partition"],
            )),
            runnable_commands: registry.add(IntGaugeVec::new(
                Opts::new(
                    "hookstream_runnable_commands",
                    "Queued commands that their endpoints would take at once, but that this replica has no free request for: not held by the subscription's limits, its breaker, a pause, Retry-After or order. About 0 unless the replica is short.",
                ),
                &["partition"],
            )),
            deferred_commands: registry.add(IntGaugeVec::new(
                Opts::new(
                    "hookstream_deferred_commands",
                    "Commands that wait in their partition, out of memory, until their endpoint, which works, takes more, or until the next probe of one that is down. They are read again.",
                ),
                &["partition"],
            )),
            deferred: registry.counter(
                "hookstream_deferred_total",
                "Commands that were deferred.",
            ),
            deferred_reads: registry.counter(
                "hookstream_deferred_reads_total",
                "Records that were read again for deferred commands; commands of others between them count too.",
            ),
            deferred_lost: registry.counter(
                "hookstream_deferred_lost_total",
                "Deferred commands that retention deleted from the topic of commands before they were read again.",
            ),
            worker_busy: registry.add(GaugeVec::new(
                Opts::new(
                    "hookstream_worker_busy_ratio",
                    "Share of the last ten seconds in which delivery's threads were busy, 0 to 1: the mean of all threads of the replica, since more replicas relieve a replica that is busy as a whole, and not one thread that a single partition keeps busy.",
                ),
                &[],
            )),
            clock_skew: registry.add(GaugeVec::new(
                Opts::new(
                    "hookstream_clock_skew_seconds",
                    "By how much this machine's clock is ahead of those of others, seconds; negative if it is behind. Of endpoints, by the Date of their responses: the median of at least three hosts. Of brokers, by the time that they give to retries: the median of their partitions. No series while there is no estimate.",
                ),
                &["against"],
            )),
            foreign_commit_metadata: registry.counter(
                "hookstream_foreign_commit_metadata_total",
                "Partitions whose commit metadata could not be used: finished commands may be delivered again.",
            ),
            duplicate_commands: registry.counter(
                "hookstream_duplicate_commands_total",
                "Commands that fan-out wrote again and that were recognised as copies: not delivered.",
            ),
            source_holes: registry.gauge(
                "hookstream_source_holes",
                "Places at which commands of fan-out are missing: a write was lost, and it has not written them again yet.",
            ),
            refused_subscriptions: registry.counters::<Refusal>(
                "hookstream_refused_subscriptions_total",
                "Times that a subscription with commands could not be served: a secret cannot be used (checked every ten seconds, its commands wait), or the egress rules deny its URL (its commands become dead letters).",
                "reason",
            ),
            verifications: registry.counters::<VerificationResult>(
                "hookstream_verifications_total",
                "Times that the endpoint of a pending subscription was asked for consent, by what became of it.",
                "result",
            ),
            subscriber_attempts: registry.add(IntCounterVec::new(
                Opts::new("hookstream_subscriber_attempts_total", "Attempts that ended, by class of answer, since the subscriber has series of its own in this replica; the rest is _other."),
                &["subscriber", "class"],
            )),
        }))
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

    /// Records of the attempt log.
    #[must_use]
    pub fn attempt_records(&self, result: AttemptRecord) -> &IntCounter {
        self.0.attempt_records.of(result)
    }

    /// The same counters, for the producer.
    #[must_use]
    pub fn record_counters(&self) -> RecordCounters {
        let of = |result| self.attempt_records(result).clone();
        RecordCounters {
            written: of(AttemptRecord::Written),
            dropped: of(AttemptRecord::Dropped),
        }
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

    /// Look-aheads by result.
    #[must_use]
    pub fn look_aheads(&self, result: LookAheadResult) -> &IntCounter {
        self.0.look_aheads.of(result)
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

    /// The age of the oldest attempt in flight, over all partitions.
    pub fn oldest_attempt(&self, age: Duration) {
        self.0.oldest_attempt.set(age.as_secs_f64());
    }

    /// Removes the series of an earlier run of the role within this process; at most `most` breakers have one from now on.
    pub fn reset_breakers(&self, most: usize) {
        *self.open_breakers() = OpenBreakers::new(most);
        self.0.breaker_open.reset();
        self.0.breakers_open.set(0);
    }

    /// Whether a subscription's breaker is open.
    pub fn breaker_open(&self, subscriber: &str, subscription: &str, open: bool) {
        let labels = (subscriber.into(), subscription.into());
        // The series change under the lock, so that a thread cannot remove what another one has just added.
        let mut all = self.open_breakers();
        let Shown { gone, new } = match open {
            true => all.opened(labels),
            false => all.closed(labels),
        };
        let series = &self.0.breaker_open;
        if let Some((subscriber, subscription)) = gone {
            // A missing series counts as removed.
            series
                .remove_label_values(&[&*subscriber, &*subscription])
                .ok();
        }
        if let Some((subscriber, subscription)) = new {
            series
                .with_label_values(&[&*subscriber, &*subscription])
                .set(1);
        }
        let count = i64::try_from(all.count()).unwrap_or(i64::MAX);
        self.0.breakers_open.set(count);
    }

    /// How many breakers are open.
    #[must_use]
    pub fn breakers_open(&self) -> i64 {
        self.0.breakers_open.get()
    }

    fn open_breakers(&self) -> std::sync::MutexGuard<'_, OpenBreakers> {
        let all = self.0.open_breakers.lock();
        all.unwrap_or_else(PoisonError::into_inner)
    }

    /// 1 while intake is paused during an egress outage.
    #[must_use]
    pub fn systemic_failure(&self) -> &IntGauge {
        &self.0.systemic_failure
    }

    /// The number of offsets from the committed position to the last one taken.
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

    /// Commands of a partition that wait only for requests of the replica.
    pub fn runnable_commands(&self, partition: i32, count: usize) {
        self.0
            .runnable_commands
            .with_label_values(&[&partition.to_string()])
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Commands of a partition that wait to be read again.
    pub fn deferred_commands(&self, partition: i32, count: usize) {
        self.0
            .deferred_commands
            .with_label_values(&[&partition.to_string()])
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Commands that were deferred.
    #[must_use]
    pub fn deferred(&self) -> &IntCounter {
        &self.0.deferred
    }

    /// Records that were read again for deferred commands.
    #[must_use]
    pub fn deferred_reads(&self) -> &IntCounter {
        &self.0.deferred_reads
    }

    /// Deferred commands that were deleted before they were read again.
    #[must_use]
    pub fn deferred_lost(&self) -> &IntCounter {
        &self.0.deferred_lost
    }

    /// The share of time during which delivery's threads were busy.
    pub fn worker_busy(&self, ratio: f64) {
        const NO_LABELS: [&str; 0] = [];
        let gauge = self.0.worker_busy.with_label_values(&NO_LABELS);
        gauge.set(ratio);
    }

    /// By how many seconds this clock is ahead of those of others, if that is known.
    pub fn clock_skew(&self, against: Against, ahead: Option<f64>) {
        let (gauge, labels) = (&self.0.clock_skew, [against.as_str()]);
        match ahead {
            Some(ahead) => gauge.with_label_values(&labels).set(ahead),
            // There may be no series to remove.
            None => drop(gauge.remove_label_values(&labels)),
        }
    }

    /// Removes the series of a partition that this process no longer owns.
    pub fn forget_partition(&self, partition: i32) {
        let label = partition.to_string();
        // A partition that was never observed has no series to remove.
        self.0.window_offsets.remove_label_values(&[&label]).ok();
        self.0.stalled.remove_label_values(&[&label]).ok();
        self.0.runnable_commands.remove_label_values(&[&label]).ok();
        self.0.deferred_commands.remove_label_values(&[&label]).ok();
    }

    /// Partitions whose metadata could not be used.
    #[must_use]
    pub fn foreign_commit_metadata(&self) -> &IntCounter {
        &self.0.foreign_commit_metadata
    }

    /// Copies of commands that were not delivered.
    #[must_use]
    pub fn duplicate_commands(&self) -> &IntCounter {
        &self.0.duplicate_commands
    }

    /// Places at which commands of fan-out are missing.
    #[must_use]
    pub fn source_holes(&self) -> &IntGauge {
        &self.0.source_holes
    }

    /// Subscriptions with commands that could not be served.
    #[must_use]
    pub fn refused_subscriptions(&self, reason: Refusal) -> &IntCounter {
        self.0.refused_subscriptions.of(reason)
    }

    /// Tries to get the consent of endpoints.
    #[must_use]
    pub fn verifications(&self, result: VerificationResult) -> &IntCounter {
        self.0.verifications.of(result)
    }

    /// Attempts by subscriber. A series starts with all classes, so that the first failure shows as an increase.
    pub fn subscriber_attempts(&self, told: &SubscriberAttempts) {
        let series = &self.0.subscriber_attempts;
        for name in &told.gone {
            for class in Class::ALL {
                // A missing series counts as removed.
                series.remove_label_values(&[name, class.as_str()]).ok();
            }
        }
        for (name, counts) in &told.attempts {
            for (class, count) in counts.by_class() {
                let counter = series.with_label_values(&[&**name, class.as_str()]);
                counter.inc_by(count);
            }
        }
    }

    /// Removes the series of an earlier run of the role within this process: a new run does not know them.
    pub fn forget_subscriber_attempts(&self) {
        self.0.subscriber_attempts.reset();
    }
}
