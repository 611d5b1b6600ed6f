//! The lag of fan-out: for each partition of the event topics, the offsets from the one that the fan-out group has
//! committed to the last stable offset, and those beyond it that an open transaction hides. The metric sums up both: what
//! is hidden waits for fan-out too.
//!
//! It has its own thread and clients, so that a missing event topic or a partition without a leader does not delay the
//! other figures. Once a second it queries the committed offsets in one request, and the end offsets in two requests per
//! broker. It reads one record of a partition that is behind, now and then, for its time ([`super::oldest`]). Figures that
//! cannot be refreshed are removed after a while, so that an autoscaler does not act on stale ones.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::consumer::Consumer;
use rdkafka::topic_partition_list::TopicPartitionList;

use super::clients::{Client, client};
use super::figures::EventPartition;
use super::metrics::LagMetrics;
use super::oldest::{At, Oldest};
use super::watch::{Shown, Watch};
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log::explain;
use crate::model::units::EpochMs;

/// How often the figures are refreshed.
const EVERY: Duration = Duration::from_secs(1);
/// How often to look for new partitions and for the first offsets.
const GROWTH: Duration = Duration::from_secs(5);
/// Timeout of requests to the brokers.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Figures that could not be refreshed for this long are removed.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a command waits for the first figures.
pub(super) const FIRST: Duration = Duration::from_secs(3);

fn figures(topics: &[String], lags: &BTreeMap<At, Lag>) -> Vec<EventPartition> {
    let each = lags
        .iter()
        .map(|(&(topic, partition), lag)| EventPartition {
            topic: topics[topic].clone(),
            partition,
            behind: lag.behind,
            oldest: lag.oldest.map(EpochMs::rfc3339),
            age_seconds: lag
                .oldest
                .map(|oldest| clock::now().since(oldest).as_secs()),
            hidden: lag.hidden,
            blocked_seconds: lag.blocked.as_secs(),
        });
    each.collect()
}

/// Starts exporting the figures. There is no value while they could not be read for a while.
///
/// # Errors
/// [`Failure`] when the thread cannot be started.
pub(super) fn watch(
    settings: &Arc<Settings>,
    metrics: &LagMetrics,
) -> Result<Watch<Vec<EventPartition>>, Failure> {
    let (settings, metrics) = (Arc::clone(settings), metrics.clone());
    Watch::start("event-lag", move |shown| run(&settings, &metrics, shown))
}

fn run(settings: &Settings, metrics: &LagMetrics, shown: &Shown<Vec<EventPartition>>) {
    let mut exported = ExportedSeries::new(&settings.topics.events);
    let mut reader: Option<Reader> = None;
    let mut failing = Failing::default();
    loop {
        let read = match &mut reader {
            Some(reader) => reader.read(clock::instant()),
            None => {
                Reader::new(settings).and_then(|made| reader.insert(made).read(clock::instant()))
            }
        };
        let now = clock::instant();
        match read {
            Ok(behind) => {
                failing = Failing::default();
                shown.show(Some(figures(&settings.topics.events, &behind)));
                exported.replace(metrics, behind);
            }
            Err(failure) => {
                if failing.is_news() {
                    tracing::warn!("reading the event lag failed, retrying: {failure}");
                }
                if failing.is_stale(now) {
                    shown.show(None);
                    exported.replace(metrics, BTreeMap::new());
                    reader = None;
                }
            }
        }
        if !shown.goes_on(EVERY) {
            break;
        }
    }
    // The role may be restarted within the process.
    exported.replace(metrics, BTreeMap::new());
}

/// Since when the figures could not be refreshed.
#[derive(Default)]
struct Failing {
    since: Option<Instant>,
    logged: bool,
}

impl Failing {
    fn is_news(&mut self) -> bool {
        !std::mem::replace(&mut self.logged, true)
    }

    /// Whether to remove the figures and to create new clients; then not again for [`PATIENCE`].
    fn is_stale(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let stale = now.saturating_duration_since(since) >= PATIENCE;
        if stale {
            *self = Self::default();
        }
        stale
    }
}

/// The exported series.
struct ExportedSeries<'a> {
    topics: &'a [String],
    partitions: BTreeSet<At>,
}

impl<'a> ExportedSeries<'a> {
    fn new(topics: &'a [String]) -> Self {
        Self {
            topics,
            partitions: BTreeSet::new(),
        }
    }

    /// Exports these figures, and removes all others.
    fn replace(&mut self, metrics: &LagMetrics, behind: BTreeMap<At, Lag>) {
        for (topic, partition) in &self.partitions {
            if !behind.contains_key(&(*topic, *partition)) {
                metrics.forget_event_lag(&self.topics[*topic], *partition);
            }
        }
        let mut oldest: BTreeMap<usize, EpochMs> = BTreeMap::new();
        for ((topic, partition), lag) in &behind {
            let waits = lag.behind + lag.hidden;
            metrics.event_lag(&self.topics[*topic], *partition, waits);
            if let Some(written) = lag.oldest {
                let least = oldest.entry(*topic).or_insert(written);
                *least = written.min(*least);
            }
        }
        for (number, topic) in self.topics.iter().enumerate() {
            let oldest = oldest.get(&number).map(|at| at.0 as f64 / 1000.0);
            metrics.topic_oldest(topic, oldest);
        }
        self.partitions = behind.into_keys().collect();
    }
}

/// The lag of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lag {
    /// Offsets that fan-out can read.
    behind: u64,
    /// Offsets that an open transaction hides.
    hidden: u64,
    /// How long the last stable offset has stood still behind an open transaction, as far as this reader saw it.
    blocked: Duration,
    /// When the oldest event that waits was written.
    oldest: Option<EpochMs>,
}

/// Since when the last stable offset of each partition has stood still below the high watermark.
#[derive(Default)]
struct Blocked(BTreeMap<At, (i64, Instant)>);

impl Blocked {
    fn observe(&mut self, at: At, stable: i64, end: i64, now: Instant) -> Duration {
        if stable >= end {
            self.0.remove(&at);
            return Duration::ZERO;
        }
        let known = self.0.entry(at).or_insert((stable, now));
        if known.0 != stable {
            *known = (stable, now);
        }
        now.saturating_duration_since(known.1)
    }
}

/// The offsets from where fan-out continues to `end`. It continues at its committed offset; without one, or if it is out of range,
/// at the first record.
fn behind(position: Option<i64>, low: i64, end: i64) -> u64 {
    let held = position.filter(|position| (low..=end).contains(position));
    u64::try_from(end - held.unwrap_or(low)).unwrap_or(0)
}

struct Reader {
    topics: Vec<String>,
    /// Reads the committed offsets, as uncommitted: else a request would wait for a transaction that is about to move them.
    positions: Client,
    /// Reads the end offsets, as uncommitted, so that they are the high watermarks.
    ends: Client,
    /// Reads the last stable offsets.
    stable: Client,
    oldest: Oldest,
    /// Whether it is logged that the times could not be read.
    times_failed: bool,
    blocked: Blocked,
    /// The first offset of each partition.
    lows: BTreeMap<At, i64>,
    grown: Option<Instant>,
    /// Missing topics, which are logged once.
    missing: BTreeSet<usize>,
}

impl Reader {
    fn new(settings: &Settings) -> Result<Self, Failure> {
        let group = format!("{}fanout", settings.group_prefix);
        let reading = format!("{}lag", settings.group_prefix);
        Ok(Self {
            topics: settings.topics.events.clone(),
            positions: client(settings, &group, "read_uncommitted")?,
            ends: client(settings, &group, "read_uncommitted")?,
            stable: client(settings, &group, "read_committed")?,
            oldest: Oldest::new(client(settings, &reading, "read_committed")?),
            times_failed: false,
            blocked: Blocked::default(),
            lows: BTreeMap::new(),
            grown: None,
            missing: BTreeSet::new(),
        })
    }

    /// The lag of each partition.
    fn read(&mut self, now: Instant) -> Result<BTreeMap<At, Lag>, Failure> {
        // Handles the clients' log and error events, which would pile up otherwise.
        for client in [&self.positions, &self.ends, &self.stable] {
            while client.poll(Duration::ZERO).is_some() {}
        }
        // After an error the topics are queried again: one may have been deleted.
        let grown = match self.grown.take().filter(|grown| now - *grown < GROWTH) {
            Some(grown) => grown,
            None => {
                self.grow()?;
                now
            }
        };
        // Committed offsets first: fan-out may advance meanwhile, but not beyond an end offset that is queried later.
        let positions = self.committed()?;
        let all: Vec<At> = self.lows.keys().copied().collect();
        let stable = self.offsets(&self.stable, &all, Offset::End)?;
        let ends = self.offsets(&self.ends, &all, Offset::End)?;
        self.grown = Some(grown);
        let mut lags = BTreeMap::new();
        let mut waiting = BTreeMap::new();
        for (at, end) in ends {
            let Some(&low) = self.lows.get(&at) else {
                continue;
            };
            let stable = stable.get(&at).copied().unwrap_or(end).min(end);
            let position = positions.get(&at).copied();
            let lag = Lag {
                behind: behind(position, low, stable),
                hidden: u64::try_from(end - stable).unwrap_or(0),
                blocked: self.blocked.observe(at, stable, end, now),
                oldest: None,
            };
            if lag.behind > 0 {
                waiting.insert(at, stable - i64::try_from(lag.behind).unwrap_or(0));
            }
            lags.insert(at, lag);
        }
        match self.oldest.of(&self.topics, &waiting, now) {
            Ok(all) => {
                self.times_failed = false;
                for (at, oldest) in all {
                    if let Some(lag) = lags.get_mut(&at) {
                        lag.oldest = oldest;
                    }
                }
            }
            // The counts need less permission than the records.
            Err(failure) => {
                if !std::mem::replace(&mut self.times_failed, true) {
                    tracing::warn!("the time of the oldest events is not known: {failure}");
                }
            }
        }
        Ok(lags)
    }

    /// Finds new partitions and the first offsets.
    fn grow(&mut self) -> Result<(), Failure> {
        let mut all: Vec<At> = Vec::new();
        for (number, topic) in self.topics.iter().enumerate() {
            let metadata = self
                .ends
                .fetch_metadata(Some(topic), TIMEOUT)
                .map_err(|error| {
                    Failure::from_client("reading the metadata of the event topics", error)
                })?;
            let partitions = metadata
                .topics()
                .iter()
                .flat_map(|topic| topic.partitions());
            let before = all.len();
            all.extend(partitions.map(|partition| (number, partition.id())));
            if all.len() > before {
                self.missing.remove(&number);
            } else if self.missing.insert(number) {
                tracing::warn!(topic, "event topic does not exist, its lag is not exported");
            }
        }
        self.lows = self.offsets(&self.ends, &all, Offset::Beginning)?;
        Ok(())
    }

    /// The committed offsets of the fan-out group.
    fn committed(&self) -> Result<BTreeMap<At, i64>, Failure> {
        let what = "reading the committed offsets of fan-out";
        let failed = |error| Failure::from_client(what, error);
        if self.lows.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut asked = TopicPartitionList::with_capacity(self.lows.len());
        for (topic, partition) in self.lows.keys() {
            asked.add_partition(&self.topics[*topic], *partition);
        }
        let client = &self.positions;
        let found = client
            .committed_offsets(asked, TIMEOUT)
            .map_err(|error| explain(client, &client.context().0, what, error))?;
        let mut positions = BTreeMap::new();
        for &(topic, partition) in self.lows.keys() {
            let Some(element) = found.find_partition(&self.topics[topic], partition) else {
                continue;
            };
            // An error is not a missing offset, after which the whole partition would count.
            element.error().map_err(failed)?;
            if let Offset::Offset(position) = element.offset() {
                positions.insert((topic, partition), position);
            }
        }
        Ok(positions)
    }

    /// The first offset of each partition, or the end offset as `client` sees it.
    fn offsets(
        &self,
        client: &Client,
        of: &[At],
        which: Offset,
    ) -> Result<BTreeMap<At, i64>, Failure> {
        let failed = |error| Failure::from_client("reading the offsets of the event topics", error);
        if of.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut asked = TopicPartitionList::with_capacity(of.len());
        for (topic, partition) in of {
            asked
                .add_partition_offset(&self.topics[*topic], *partition, which)
                .map_err(failed)?;
        }
        // A query by time, with its special values for first and end: one request per broker instead of per partition.
        let found = client.offsets_for_times(asked, TIMEOUT).map_err(failed)?;
        let mut offsets = BTreeMap::new();
        for &(topic, partition) in of {
            let Some(element) = found.find_partition(&self.topics[topic], partition) else {
                continue;
            };
            element.error().map_err(failed)?;
            if let Offset::Offset(offset) = element.offset() {
                offsets.insert((topic, partition), offset);
            }
        }
        Ok(offsets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::metrics::Registry;

    #[test]
    fn the_lag_counts_from_the_offset_at_which_fan_out_continues() {
        assert_eq!(behind(Some(7), 0, 10), 3);
        assert_eq!(behind(Some(10), 0, 10), 0);
        assert_eq!(behind(None, 4, 10), 6, "it starts at the first record");
        assert_eq!(behind(Some(2), 4, 10), 6, "retention deleted the records");
        assert_eq!(behind(Some(20), 0, 5), 5, "the topic was recreated");
        assert_eq!(behind(None, 0, 0), 0);
    }

    #[test]
    fn a_partition_is_blocked_while_its_stable_offset_stands_still_below_its_end() {
        let begin = clock::instant();
        let after = |seconds| begin + Duration::from_secs(seconds);
        let mut blocked = Blocked::default();
        let mut observe = |stable, end, seconds| {
            blocked
                .observe((0, 0), stable, end, after(seconds))
                .as_secs()
        };
        assert_eq!(observe(5, 5, 0), 0);
        assert_eq!(observe(5, 9, 10), 0, "the transaction began");
        assert_eq!(observe(5, 12, 17), 7);
        assert_eq!(observe(8, 12, 20), 0, "another one holds it up");
        assert_eq!(observe(8, 12, 21), 1);
        assert_eq!(observe(12, 12, 30), 0);
        assert_eq!(observe(12, 13, 31), 0);
    }

    #[test]
    fn stale_figures_are_removed_after_a_while_and_the_failure_is_logged_once() {
        let begin = clock::instant();
        let mut failing = Failing::default();
        assert!(failing.is_news());
        assert!(!failing.is_stale(begin));
        assert!(!failing.is_news());
        assert!(!failing.is_stale(begin + PATIENCE / 2));
        assert!(failing.is_stale(begin + PATIENCE));
        assert!(failing.is_news(), "logged again after the removal");
    }

    #[test]
    fn a_partition_without_a_figure_has_no_series() {
        let registry = Registry::new();
        let metrics = LagMetrics::register(&registry);
        let topics = ["orders".to_owned(), "bills".to_owned()];
        let mut exported = ExportedSeries::new(&topics);
        let lag = |behind, hidden| Lag {
            behind,
            hidden,
            ..Lag::default()
        };
        let two = BTreeMap::from([((0, 0), lag(5, 0)), ((1, 2), lag(3, 4))]);
        exported.replace(&metrics, two);
        let text = registry.render().unwrap();
        for line in [
            r#"hookstream_event_lag{partition="0",topic="orders"} 5"#,
            r#"hookstream_event_lag{partition="2",topic="bills"} 7"#,
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
        assert!(!text.contains("hookstream_topic_oldest"), "{text}");
        let written = |behind, at| Lag {
            oldest: Some(EpochMs(at)),
            ..lag(behind, 0)
        };
        let both = [((0, 0), written(1, 7500)), ((0, 1), written(1, 5500))];
        exported.replace(&metrics, BTreeMap::from(both));
        let text = registry.render().unwrap();
        let line = r#"hookstream_topic_oldest_timestamp_seconds{topic="orders"} 5.5"#;
        assert!(text.contains(line), "the oldest of all partitions:\n{text}");
        exported.replace(&metrics, BTreeMap::from([((1, 2), lag(0, 0))]));
        let text = registry.render().unwrap();
        assert!(!text.contains("orders"), "{text}");
        assert!(text.contains(r#"topic="bills"} 0"#), "{text}");
    }
}
