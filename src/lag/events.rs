//! How many event records wait for fan-out: for each partition of the event topics, from the position that the fan-out
//! group has committed to the last stable offset.
//!
//! It runs on a thread with clients of its own: an event topic that is missing, or a partition without a leader, delays
//! its answers, and must not delay the other figures. No record is read. Once a second the positions of all partitions
//! are asked for in one request, and their ends in one request for each broker. Figures that cannot be renewed are
//! removed after a while: a scaler must not act on them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use rdkafka::Offset;
use rdkafka::consumer::Consumer;
use rdkafka::topic_partition_list::TopicPartitionList;

use super::metrics::LagMetrics;
use super::reader::{Client, client};
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::error::Failure;

/// How often the figures are renewed.
const EVERY: Duration = Duration::from_secs(1);
/// How often the topics are asked for partitions that were added, and for where their records begin.
const GROWTH: Duration = Duration::from_secs(5);
/// How long an answer of the brokers may take.
const ANSWER: Duration = Duration::from_secs(5);
/// Figures that could not be renewed for so long are removed.
const PATIENCE: Duration = Duration::from_secs(30);

/// A topic by its number in the settings, and a partition of it.
type At = (usize, i32);

/// Ends the thread when it is dropped.
pub(super) struct Watch {
    _open: Sender<()>,
}

/// Begins to export the figures.
///
/// # Errors
/// [`Failure`] when there can be no thread.
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
    let mut shown = Shown::new(&settings.topics.events);
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
                shown.show(metrics, behind);
            }
            Err(failure) => {
                if failing.is_news() {
                    tracing::warn!("reading how much waits for fan-out: {failure}; trying again");
                }
                if failing.is_lasting(now) {
                    shown.show(metrics, BTreeMap::new());
                    reader = None;
                }
            }
        }
        match closed.recv_timeout(EVERY) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    // The role may begin again within the process.
    shown.show(metrics, BTreeMap::new());
}

/// For how long the figures could not be renewed.
#[derive(Default)]
struct Failing {
    since: Option<Instant>,
    logged: bool,
}

impl Failing {
    fn is_news(&mut self) -> bool {
        !std::mem::replace(&mut self.logged, true)
    }

    /// Whether it is time to remove the figures and to begin with new clients; not again before as much time has passed.
    fn is_lasting(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let lasting = now.saturating_duration_since(since) >= PATIENCE;
        if lasting {
            *self = Self::default();
        }
        lasting
    }
}

/// The series that there are.
struct Shown<'a> {
    topics: &'a [String],
    series: BTreeSet<At>,
}

impl<'a> Shown<'a> {
    fn new(topics: &'a [String]) -> Self {
        Self {
            topics,
            series: BTreeSet::new(),
        }
    }

    /// Exports these, and removes all others.
    fn show(&mut self, metrics: &LagMetrics, behind: BTreeMap<At, u64>) {
        for (topic, partition) in &self.series {
            if !behind.contains_key(&(*topic, *partition)) {
                metrics.forget_event_lag(&self.topics[*topic], *partition);
            }
        }
        for ((topic, partition), behind) in &behind {
            metrics.event_lag(&self.topics[*topic], *partition, *behind);
        }
        self.series = behind.into_keys().collect();
    }
}

/// How many offsets of a partition wait: fan-out goes on at its position; where there is none, or the partition does not
/// hold it any more, at the first record.
fn behind(position: Option<i64>, low: i64, end: i64) -> u64 {
    let held = position.filter(|position| (low..=end).contains(position));
    u64::try_from(end - held.unwrap_or(low)).unwrap_or(0)
}

struct Reader {
    topics: Vec<String>,
    /// Reads the group's positions: as uncommitted, or an answer would wait for a transaction that is about to move them.
    positions: Client,
    /// Reads the ends: as committed, so that they are the last stable offsets.
    ends: Client,
    /// Where the records of each partition begin.
    lows: BTreeMap<At, i64>,
    grown: Option<Instant>,
    /// Topics that do not exist, which is logged once.
    missing: BTreeSet<usize>,
}

impl Reader {
    fn new(settings: &Settings) -> Result<Self, Failure> {
        let group = format!("{}fanout", settings.group_prefix);
        Ok(Self {
            topics: settings.topics.events.clone(),
            positions: client(settings, &group, "read_uncommitted")?,
            ends: client(settings, &group, "read_committed")?,
            lows: BTreeMap::new(),
            grown: None,
            missing: BTreeSet::new(),
        })
    }

    /// How many offsets wait in each partition.
    fn read(&mut self, now: Instant) -> Result<BTreeMap<At, u64>, Failure> {
        // Serves their log and error events, which would pile up otherwise.
        for client in [&self.positions, &self.ends] {
            while client.poll(Duration::ZERO).is_some() {}
        }
        // After an error the topics are looked at anew: one may have been deleted.
        let grown = match self.grown.take().filter(|grown| now - *grown < GROWTH) {
            Some(grown) => grown,
            None => {
                self.grow()?;
                now
            }
        };
        // Positions first: fan-out may move on meanwhile, but never beyond an end that is asked for later.
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

    /// Learns which partitions there are, and where each begins.
    fn grow(&mut self) -> Result<(), Failure> {
        let mut all: Vec<At> = Vec::new();
        for (number, topic) in self.topics.iter().enumerate() {
            let metadata = self
                .ends
                .fetch_metadata(Some(topic), ANSWER)
                .map_err(|error| Failure::from_client("reading the event topics", error))?;
            let partitions = metadata
                .topics()
                .iter()
                .flat_map(|topic| topic.partitions());
            let before = all.len();
            all.extend(partitions.map(|partition| (number, partition.id())));
            if all.len() > before {
                self.missing.remove(&number);
            } else if self.missing.insert(number) {
                tracing::warn!(
                    topic,
                    "the event topic does not exist: nothing waits for fan-out in it"
                );
            }
        }
        self.lows = self.offsets(&all, Offset::Beginning)?;
        Ok(())
    }

    /// What the fan-out group has committed.
    fn committed(&self) -> Result<BTreeMap<At, i64>, Failure> {
        let failed = |error| Failure::from_client("reading the positions of fan-out", error);
        if self.lows.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut asked = TopicPartitionList::with_capacity(self.lows.len());
        for (topic, partition) in self.lows.keys() {
            asked.add_partition(&self.topics[*topic], *partition);
        }
        let found = self
            .positions
            .committed_offsets(asked, ANSWER)
            .map_err(failed)?;
        let mut positions = BTreeMap::new();
        for &(topic, partition) in self.lows.keys() {
            let Some(element) = found.find_partition(&self.topics[topic], partition) else {
                continue;
            };
            // Not the same as no position, after which the whole partition would count.
            element.error().map_err(failed)?;
            if let Offset::Offset(position) = element.offset() {
                positions.insert((topic, partition), position);
            }
        }
        Ok(positions)
    }

    /// The first offset of each partition, or its last stable one.
    fn offsets(&self, of: &[At], which: Offset) -> Result<BTreeMap<At, i64>, Failure> {
        let failed = |error| Failure::from_client("reading where the event topics end", error);
        if of.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut asked = TopicPartitionList::with_capacity(of.len());
        for (topic, partition) in of {
            asked
                .add_partition_offset(&self.topics[*topic], *partition, which)
                .map_err(failed)?;
        }
        // By time, in which the first and the last are special: one request to each broker, not one for each partition.
        let found = self.ends.offsets_for_times(asked, ANSWER).map_err(failed)?;
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
    fn what_waits_is_counted_from_where_fan_out_goes_on() {
        assert_eq!(behind(Some(7), 0, 10), 3);
        assert_eq!(behind(Some(10), 0, 10), 0);
        assert_eq!(behind(None, 4, 10), 6, "it begins with the first record");
        assert_eq!(behind(Some(2), 4, 10), 6, "retention has overtaken it");
        assert_eq!(behind(Some(20), 0, 5), 5, "the topic was made anew");
        assert_eq!(behind(None, 0, 0), 0);
    }

    #[test]
    fn figures_that_are_not_renewed_are_removed_after_a_while_and_the_log_says_so_once() {
        let begin = clock::instant();
        let mut failing = Failing::default();
        assert!(failing.is_news());
        assert!(!failing.is_lasting(begin));
        assert!(!failing.is_news());
        assert!(!failing.is_lasting(begin + PATIENCE / 2));
        assert!(failing.is_lasting(begin + PATIENCE));
        assert!(failing.is_news(), "now and then again");
    }

    #[test]
    fn a_partition_of_which_nothing_is_known_any_more_has_no_series() {
        let registry = Registry::new();
        let metrics = LagMetrics::register(&registry);
        let topics = ["orders".to_owned(), "bills".to_owned()];
        let mut shown = Shown::new(&topics);
        shown.show(&metrics, BTreeMap::from([((0, 0), 5), ((1, 2), 7)]));
        let text = registry.render().unwrap();
        for line in [
            r#"hookstream_event_lag{partition="0",topic="orders"} 5"#,
            r#"hookstream_event_lag{partition="2",topic="bills"} 7"#,
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
        shown.show(&metrics, BTreeMap::from([((1, 2), 0)]));
        let text = registry.render().unwrap();
        assert!(!text.contains("orders"), "{text}");
        assert!(text.contains(r#"topic="bills"} 0"#), "{text}");
    }
}
