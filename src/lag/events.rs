//! The lag of fan-out: for each partition of the event topics, the offsets from the one that the fan-out group has
//! committed to the high watermark: what an open transaction hides waits for fan-out too.
//!
//! It has its own thread and clients, so that a missing event topic or a partition without a leader does not delay the
//! other figures. It reads no records: once a second it queries the committed offsets in one request, and the end offsets
//! in one request per broker. Figures that cannot be refreshed are removed after a while, so that an autoscaler does not
//! act on stale ones.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::consumer::Consumer;
use rdkafka::topic_partition_list::TopicPartitionList;

use super::metrics::LagMetrics;
use super::source::{Client, client};
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log::explain;

/// How often the figures are refreshed.
const EVERY: Duration = Duration::from_secs(1);
/// How often to look for new partitions and for the first offsets.
const GROWTH: Duration = Duration::from_secs(5);
/// Timeout of requests to the brokers.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Figures that could not be refreshed for this long are removed.
const PATIENCE: Duration = Duration::from_secs(30);

/// The number of a topic in the settings, and a partition of it.
type At = (usize, i32);

/// Stops the thread when dropped.
pub(super) struct Watch {
    _open: Sender<()>,
}

/// Starts exporting the figures.
///
/// # Errors
/// [`Failure`] when the thread cannot be started.
pub(super) fn watch(settings: &Arc<Settings>, metrics: &LagMetrics) -> Result<Watch, Failure> {
    let (open, closed) = channel();
    let (settings, metrics) = (Arc::clone(settings), metrics.clone());
    std::thread::Builder::new()
        .name("event-lag".to_owned())
        .spawn(move || run(&settings, &metrics, &closed))
        .map_err(|error| Failure::Internal(format!("starting a thread: {error}")))?;
    Ok(Watch { _open: open })
}

fn run(settings: &Settings, metrics: &LagMetrics, closed: &Receiver<()>) {
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
                exported.replace(metrics, behind);
            }
            Err(failure) => {
                if failing.is_news() {
                    tracing::warn!("reading the event lag failed, retrying: {failure}");
                }
                if failing.is_stale(now) {
                    exported.replace(metrics, BTreeMap::new());
                    reader = None;
                }
            }
        }
        match closed.recv_timeout(EVERY) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
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
    fn replace(&mut self, metrics: &LagMetrics, behind: BTreeMap<At, u64>) {
        for (topic, partition) in &self.partitions {
            if !behind.contains_key(&(*topic, *partition)) {
                metrics.forget_event_lag(&self.topics[*topic], *partition);
            }
        }
        for ((topic, partition), behind) in &behind {
            metrics.event_lag(&self.topics[*topic], *partition, *behind);
        }
        self.partitions = behind.into_keys().collect();
    }
}

/// The lag of a partition. Fan-out continues at its committed offset; without one, or if it is out of range, at the first
/// record.
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
    /// The first offset of each partition.
    lows: BTreeMap<At, i64>,
    grown: Option<Instant>,
    /// Missing topics, which are logged once.
    missing: BTreeSet<usize>,
}

impl Reader {
    fn new(settings: &Settings) -> Result<Self, Failure> {
        let group = format!("{}fanout", settings.group_prefix);
        Ok(Self {
            topics: settings.topics.events.clone(),
            positions: client(settings, &group, "read_uncommitted")?,
            ends: client(settings, &group, "read_uncommitted")?,
            lows: BTreeMap::new(),
            grown: None,
            missing: BTreeSet::new(),
        })
    }

    /// The lag of each partition.
    fn read(&mut self, now: Instant) -> Result<BTreeMap<At, u64>, Failure> {
        // Handles the clients' log and error events, which would pile up otherwise.
        for client in [&self.positions, &self.ends] {
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
        let ends = self.offsets(&all, Offset::End)?;
        self.grown = Some(grown);
        let each = ends.into_iter().filter_map(|(at, end)| {
            let low = *self.lows.get(&at)?;
            Some((at, behind(positions.get(&at).copied(), low, end)))
        });
        Ok(each.collect())
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
        self.lows = self.offsets(&all, Offset::Beginning)?;
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

    /// The first offset of each partition, or the high watermark.
    fn offsets(&self, of: &[At], which: Offset) -> Result<BTreeMap<At, i64>, Failure> {
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
        let found = self
            .ends
            .offsets_for_times(asked, TIMEOUT)
            .map_err(failed)?;
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
        exported.replace(&metrics, BTreeMap::from([((0, 0), 5), ((1, 2), 7)]));
        let text = registry.render().unwrap();
        for line in [
            r#"hookstream_event_lag{partition="0",topic="orders"} 5"#,
            r#"hookstream_event_lag{partition="2",topic="bills"} 7"#,
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
        exported.replace(&metrics, BTreeMap::from([((1, 2), 0)]));
        let text = registry.render().unwrap();
        assert!(!text.contains("orders"), "{text}");
        assert!(text.contains(r#"topic="bills"} 0"#), "{text}");
    }
}
