//! The metrics of fan-out.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts};

use crate::runtime::metrics::{Counters, Registry, labels};

labels!(
    /// What became of an event.
    EventResult {
        /// At least one subscription matched.
        FannedOut = "fanned_out",
        /// None matched.
        Unmatched = "unmatched",
        /// It could not be read.
        Invalid = "invalid",
        /// A tombstone of a compacted topic, which is no event.
        Tombstone = "tombstone",
    }
);

labels!(
    /// Why the commands of a partition of events begin a new epoch, in which copies of earlier ones are not recognised.
    NewEpoch {
        /// The group has no committed position in it, or only that of its first start.
        First = "first",
        /// The committed position has no metadata: an older hookstream committed it, or a tool has set it.
        Lost = "lost",
        /// The metadata belongs to another position, topic or cluster.
        Foreign = "foreign",
        /// Offsets came again: the topic was made again, or its log was cut off.
        Moved = "moved",
        /// The commands topic has another number of partitions.
        Partitions = "partitions",
    }
);

labels!(
    /// What became of a request for a schema.
    SchemaResult {
        /// There is such a schema.
        Found = "found",
        /// There is none.
        Missing = "missing",
        /// There is one, but it cannot be used.
        Unusable = "unusable",
        /// The registry did not say.
        Failed = "failed",
    }
);

/// The metrics of fan-out; cheap to clone.
#[derive(Clone)]
pub struct FanoutMetrics(Arc<All>);

struct All {
    events: Counters,
    record_times_replaced: IntCounter,
    attributes_left_out: IntCounter,
    webhook_id_collisions: IntCounter,
    blocked: GaugeVec,
    blocked_offsets: IntGaugeVec,
    held: IntCounterVec,
    schema_lookups: Counters,
    schema_wait: GaugeVec,
    epochs: Counters,
    uncommitted: IntGauge,
}

impl std::fmt::Debug for FanoutMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FanoutMetrics")
    }
}

impl FanoutMetrics {
    /// Registers the family in `registry`, at zero.
    #[must_use]
    pub fn register(registry: &Registry) -> Self {
        Self(Arc::new(All {
            events: registry.counters::<EventResult>(
                "hookstream_events_total",
                "Events read, by what became of them.",
                "result",
            ),
            record_times_replaced: registry.counter(
                "hookstream_record_times_replaced_total",
                "Events read whose record has no usable timestamp, so that the time of reading stands for it.",
            ),
            attributes_left_out: registry.counter(
                "hookstream_event_attributes_left_out_total",
                "Attributes of events read that CloudEvents does not allow, and that its format therefore leaves out.",
            ),
            webhook_id_collisions: registry.counter(
                "hookstream_webhook_id_collisions_total",
                "Events with the webhook ids of another event that was read within the same tenth of a second, but other contents.",
            ),
            blocked: registry.add(GaugeVec::new(
                Opts::new("hookstream_event_blocked_seconds", "How long a publisher's open transaction has held up a partition of an event topic, seconds; no series below a minute."),
                &["topic", "partition"],
            )),
            blocked_offsets: registry.add(IntGaugeVec::new(
                Opts::new("hookstream_event_blocked_offsets", "Offsets of an event topic that a publisher's open transaction hides, from the last stable offset to the high watermark; no series below a minute."),
                &["topic", "partition"],
            )),
            held: registry.add(IntCounterVec::new(
                Opts::new(
                    "hookstream_held_events_total",
                    "Events whose commands could not be written although they were tried alone, by topic; each failure counts.",
                ),
                &["topic"],
            )),
            schema_lookups: registry.counters::<SchemaResult>(
                "hookstream_schema_lookups_total",
                "Schemas that the Schema Registry was asked for, by what became of it.",
                "result",
            ),
            schema_wait: registry.add(GaugeVec::new(
                Opts::new("hookstream_schema_wait_seconds", "How long a partition of an event topic has waited for the Schema Registry to return the schema of its next event, seconds; no series while it does not wait."),
                &["topic", "partition"],
            )),
            epochs: registry.counters::<NewEpoch>(
                "hookstream_source_epochs_total",
                "Partitions of event topics whose commands began a new epoch, by why: copies of what was written before are not recognised.",
                "reason",
            ),
            uncommitted: registry.gauge(
                "hookstream_uncommitted_events",
                "Events whose commands were written, at least in part, and whose positions are not committed.",
            ),
        }))
    }

    /// Events read whose record has no usable timestamp.
    #[must_use]
    pub fn record_times_replaced(&self) -> &IntCounter {
        &self.0.record_times_replaced
    }

    /// Attributes that a body in CloudEvents format leaves out.
    #[must_use]
    pub fn attributes_left_out(&self) -> &IntCounter {
        &self.0.attributes_left_out
    }

    /// Events with the webhook ids of another event.
    #[must_use]
    pub fn webhook_id_collisions(&self) -> &IntCounter {
        &self.0.webhook_id_collisions
    }

    /// An open transaction has held up a partition for `time`, and hides so many offsets.
    pub fn blocked(&self, topic: &str, partition: i32, time: Duration, offsets: u64) {
        let labels = [topic, &partition.to_string()];
        let seconds = self.0.blocked.with_label_values(&labels);
        seconds.set(time.as_secs_f64());
        let hidden = self.0.blocked_offsets.with_label_values(&labels);
        hidden.set(i64::try_from(offsets).unwrap_or(i64::MAX));
    }

    /// Removes the series of all partitions that were held up.
    pub fn forget_blocked(&self) {
        self.0.blocked.reset();
        self.0.blocked_offsets.reset();
    }

    /// Events of `topic` that failed alone.
    #[must_use]
    pub fn held(&self, topic: &str) -> IntCounter {
        self.0.held.with_label_values(&[topic])
    }

    /// Schemas that the registry was asked for.
    #[must_use]
    pub fn schema_lookups(&self, result: SchemaResult) -> &IntCounter {
        self.0.schema_lookups.of(result)
    }

    /// A partition has waited for a schema for `time`.
    pub fn schema_wait(&self, topic: &str, partition: i32, time: Duration) {
        let labels = [topic, &partition.to_string()];
        let seconds = self.0.schema_wait.with_label_values(&labels);
        seconds.set(time.as_secs_f64());
    }

    /// No partition waits for a schema: the role has just started.
    pub fn forget_schema_waits(&self) {
        self.0.schema_wait.reset();
    }

    /// A partition waits for no schema any more.
    pub fn forget_schema_wait(&self, topic: &str, partition: i32) {
        let labels = [topic, &partition.to_string()];
        // It has no series if it did not wait for long enough to be looked at.
        self.0.schema_wait.remove_label_values(&labels).ok();
    }

    /// Partitions whose commands began a new epoch.
    #[must_use]
    pub fn epochs(&self, why: NewEpoch) -> &IntCounter {
        self.0.epochs.of(why)
    }

    /// Events that were taken and are not committed.
    #[must_use]
    pub fn uncommitted(&self) -> &IntGauge {
        &self.0.uncommitted
    }

    /// Events read.
    #[must_use]
    pub fn events(&self, result: EventResult) -> &IntCounter {
        self.0.events.of(result)
    }
}
