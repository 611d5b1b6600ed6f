//! The topics that hookstream uses and the settings that each must have. Pure.

use std::time::Duration;

use crate::config::Settings;
use crate::edge::kafka::client::{COPY_OVERHEAD, RECORD_OVERHEAD};

pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Commands and retries are work, not history, but must outlive an outage of delivery or release that lasts
/// over a holiday.
pub const WORK_RETENTION: Duration = DAY.saturating_mul(14);

/// A dead letter and its facts: time for an operator to notice, fix the cause and replay.
const LETTER_RETENTION: Duration = DAY.saturating_mul(90);

/// Invalid events are evidence for a producer's developer. Notices are kept as long.
const INVALID_RETENTION: Duration = DAY.saturating_mul(30);

/// Endpoints that nothing was sent to for so long are forgotten.
const STATUS_RETENTION: Duration = DAY.saturating_mul(30);

/// Small segments: what was replaced is removed soon, and readers begin at the first record.
const STATUS_SEGMENT_BYTES: i64 = 32 * 1024 * 1024;

/// Requests and responses, for questions about the last days.
const ATTEMPT_RETENTION: Duration = DAY.saturating_mul(3);

/// A tier retains records for at least this many times its delay, which matters for tiers longer than a day.
const TIER_DELAYS_KEPT: u32 = 14;

/// A rule for the value of a topic setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Exactly this text.
    Exactly(&'static str),
    /// This number or more, or −1 (unlimited).
    AtLeast(i64),
    /// This number on creation; the operator may change it later.
    AtFirst(i64),
}

impl Rule {
    pub(super) fn allows(&self, found: &str) -> bool {
        match self {
            Self::Exactly(wanted) => found == *wanted,
            Self::AtLeast(least) => found
                .parse::<i64>()
                .is_ok_and(|found| found == -1 || found >= *least),
            Self::AtFirst(_) => true,
        }
    }

    pub(super) fn value(&self) -> String {
        match self {
            Self::Exactly(value) => (*value).to_owned(),
            Self::AtLeast(number) | Self::AtFirst(number) => number.to_string(),
        }
    }

    pub(super) fn wanted(&self) -> String {
        match self {
            Self::Exactly(value) => (*value).to_owned(),
            Self::AtLeast(least) => format!("at least {least}"),
            Self::AtFirst(number) => format!("{number} or another number"),
        }
    }
}

/// How many partitions a topic has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partitions {
    /// As many as `webhook-commands`: commands, tiers, dead letters.
    Common,
    /// One on creation: the subscriptions topic is small, and every replica reads all of it.
    One,
    /// The common number on creation, any number afterwards.
    Any,
}

/// The plan of one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// How many partitions.
    pub partitions: Partitions,
    /// Rules for its settings; empty for event topics.
    pub rules: Vec<(&'static str, Rule)>,
    /// Whether it is one of hookstream's own topics.
    pub own: bool,
}

/// All topics that hookstream uses: its own, then the event topics.
#[must_use]
pub fn topics(settings: &Settings) -> Vec<TopicSpec> {
    topics_kept(settings, WORK_RETENTION)
}

/// The same where commands and retries are kept for at least `retention`, which must outlive an outage.
#[must_use]
pub fn topics_kept(settings: &Settings, retention: Duration) -> Vec<TopicSpec> {
    let record = settings.max_event_bytes.saturating_add(RECORD_OVERHEAD);
    let copy = record.saturating_add(COPY_OVERHEAD);
    let names = &settings.topics;
    let mut all = vec![
        own(
            names.subscriptions(),
            Partitions::One,
            record,
            vec![("cleanup.policy", Rule::Exactly("compact"))],
        ),
        own(
            names.commands(),
            Partitions::Common,
            record,
            kept(retention),
        ),
    ];
    for delay in settings.tiers.delays() {
        let mut rules = kept(retention.max(delay.saturating_mul(TIER_DELAYS_KEPT)));
        // Tiers use the broker's clock: it is the same for all writers and never runs backwards within a partition,
        // so the head of a partition is always due first.
        rules.push(("message.timestamp.type", Rule::Exactly("LogAppendTime")));
        all.push(own(names.retry(*delay), Partitions::Common, copy, rules));
    }
    all.push(own(
        names.dead_letters(),
        Partitions::Common,
        copy,
        kept(LETTER_RETENTION),
    ));
    all.push(own(
        names.invalid_events(),
        Partitions::Any,
        copy,
        kept(INVALID_RETENTION),
    ));
    all.push(own(
        names.notices(),
        Partitions::Any,
        record,
        kept(INVALID_RETENTION),
    ));
    all.push(own(
        names.status(),
        Partitions::One,
        record,
        vec![
            ("cleanup.policy", Rule::Exactly("compact,delete")),
            ("retention.ms", Rule::AtFirst(in_ms(STATUS_RETENTION))),
            ("segment.bytes", Rule::AtFirst(STATUS_SEGMENT_BYTES)),
        ],
    ));
    if settings.attempt_log {
        let retention = in_ms(ATTEMPT_RETENTION);
        all.push(own(
            names.attempts(),
            Partitions::Any,
            record,
            vec![
                ("cleanup.policy", Rule::Exactly("delete")),
                ("retention.ms", Rule::AtFirst(retention)),
            ],
        ));
    }
    all.extend(names.events.iter().map(|name| TopicSpec {
        name: name.clone(),
        partitions: Partitions::Any,
        rules: Vec::new(),
        own: false,
    }));
    all
}

fn own(
    name: String,
    partitions: Partitions,
    max_bytes: usize,
    mut rules: Vec<(&'static str, Rule)>,
) -> TopicSpec {
    let max_bytes = i64::try_from(max_bytes).unwrap_or(i64::MAX);
    rules.push(("max.message.bytes", Rule::AtLeast(max_bytes)));
    rules.push(("compression.type", Rule::Exactly("producer")));
    TopicSpec {
        name,
        partitions,
        rules,
        own: true,
    }
}

pub(super) fn in_ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Retention by time only: a size limit would silently drop work of a backlog.
fn kept(retention: Duration) -> Vec<(&'static str, Rule)> {
    vec![
        ("cleanup.policy", Rule::Exactly("delete")),
        ("retention.ms", Rule::AtLeast(in_ms(retention))),
        ("retention.bytes", Rule::Exactly("-1")),
    ]
}

/// The partitions of the commands for this rate, in commands per second: from the rate and the requests in flight as in
/// docs/sizing.md, for endpoints
/// that respond in 200 ms.
#[must_use]
pub fn partitions_for(rate: u32) -> i32 {
    /// Requests a second of one worker, so of one partition at most; half of it is for peaks.
    const PARTITION_RATE: u64 = 29_100 / 2;
    /// Unfinished commands of a partition that its commit holds.
    const PARTITION_IN_FLIGHT: u64 = 1_500;
    const RESPONSES_PER_SECOND: u64 = 5;
    /// Partitions are added with a pause only, so twice as many as needed now.
    const SPARE: u64 = 2;
    /// Twelve divides evenly among two, three, four and six replicas.
    const STEP: u64 = 12;
    let rate = u64::from(rate);
    let needed = rate
        .div_ceil(PARTITION_RATE)
        .max(rate.div_ceil(RESPONSES_PER_SECOND * PARTITION_IN_FLIGHT))
        .saturating_mul(SPARE);
    let partitions = needed.next_multiple_of(STEP).max(STEP);
    i32::try_from(partitions).unwrap_or(i32::MAX)
}
