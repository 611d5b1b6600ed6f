//! Open transactions of publishers that hold up event partitions.
//!
//! A transaction that its publisher neither commits nor aborts hides all records behind it: the partition's last stable
//! offset stands still below its high watermark. Waiting is right, but an operator has to know of it. A thread compares
//! the two for the partitions that this process owns, and logs and exports those that stand still.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot::{Receiver, Sender, channel};

use super::metrics::FanoutMetrics;
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::port::failure::Failure;
use crate::edge::port::records::TopicPartition;
use crate::edge::port::{Ends, Port};

/// How often the offsets are compared.
const EVERY: Duration = Duration::from_secs(10);
/// A last stable offset that stands still for this long is reported; transactions of healthy publishers are shorter.
const LONG: Duration = Duration::from_secs(60);
/// How often the log repeats it.
const REMIND: Duration = Duration::from_secs(60);

/// The partitions that this process owns, for the thread.
pub(super) type OwnedPartitions = Arc<Mutex<Vec<TopicPartition>>>;

/// The two ends of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    /// The last stable offset: read-committed readers end here.
    stable: i64,
    /// The high watermark.
    high: i64,
}

/// A partition whose last stable offset stands still.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Blocked {
    at: TopicPartition,
    /// Where the open transaction begins.
    offset: i64,
    /// Offsets hidden behind it.
    hidden: u64,
    /// For how long.
    age: Duration,
    /// Whether to log it now.
    log: bool,
}

#[derive(Debug)]
struct Still {
    stable: i64,
    since: Instant,
    logged: Option<Instant>,
}

/// Which partitions stand still, and since when. Pure.
#[derive(Debug, Default)]
struct Tracker(BTreeMap<TopicPartition, Still>);

impl Tracker {
    /// Takes the ends of all owned partitions; returns those that have stood still for [`LONG`].
    fn observe(&mut self, ends: BTreeMap<TopicPartition, End>, now: Instant) -> Vec<Blocked> {
        self.0.retain(|at, still| {
            ends.get(at)
                .is_some_and(|end| end.stable == still.stable && end.stable < end.high)
        });
        let mut blocked = Vec::new();
        for (at, end) in ends {
            if end.stable >= end.high {
                continue;
            }
            let still = self.0.entry(at.clone()).or_insert(Still {
                stable: end.stable,
                since: now,
                logged: None,
            });
            let age = now.saturating_duration_since(still.since);
            if age < LONG {
                continue;
            }
            let log = still
                .logged
                .is_none_or(|logged| now.saturating_duration_since(logged) >= REMIND);
            if log {
                still.logged = Some(now);
            }
            blocked.push(Blocked {
                at,
                offset: end.stable,
                hidden: u64::try_from(end.high - end.stable).unwrap_or(0),
                age,
                log,
            });
        }
        blocked
    }
}

/// The running task; it stops when this is dropped.
pub(super) struct Watch {
    open: Sender<()>,
    ended: Receiver<()>,
}

impl Watch {
    /// Stops the task, and waits for the end of its clients, which would report a broker that stops next.
    pub(super) async fn end(self, port: &impl Port) {
        /// A broker that does not respond must not delay the end of the role.
        const LONGEST: Duration = Duration::from_secs(2);
        drop(self.open);
        // Nothing is ever sent: the task drops its end of the channel.
        let _ended = port.within(LONGEST, self.ended).await;
    }
}

/// Starts the task.
///
/// # Errors
/// [`Failure`] when it cannot be started.
pub(super) fn watch<P: Port>(
    port: &P,
    settings: &Arc<Settings>,
    metrics: &FanoutMetrics,
    owned: &OwnedPartitions,
) -> Result<Watch, Failure> {
    let (open, closed) = channel();
    let (running, ended) = channel::<()>();
    let (settings, metrics, owned) = (Arc::clone(settings), metrics.clone(), Arc::clone(owned));
    let own = port.clone();
    port.spawn("event-ends".to_owned(), move || async move {
        run(&own, &settings, &metrics, &owned, closed).await;
        drop(running);
    })?;
    Ok(Watch { open, ended })
}

async fn run<P: Port>(
    port: &P,
    settings: &Settings,
    metrics: &FanoutMetrics,
    owned: &OwnedPartitions,
    mut closed: Receiver<()>,
) {
    let mut tracker = Tracker::default();
    let mut clients: Option<P::Ends> = None;
    while port.within(EVERY, &mut closed).await.is_none() {
        let partitions = owned.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let found = match &clients {
            Some(ends) => read(ends, &partitions).await,
            None => match port.ends(settings, "fanout") {
                Ok(ends) => read(clients.insert(ends), &partitions).await,
                Err(failure) => Err(failure),
            },
        };
        match found {
            Ok(ends) => report(settings, metrics, &tracker.observe(ends, clock::instant())),
            // The next try may succeed; a partition without a leader is logged by the client.
            Err(failure) => tracing::debug!("reading the ends of event partitions: {failure}"),
        }
    }
    metrics.forget_blocked();
}

async fn read(
    clients: &impl Ends,
    partitions: &[TopicPartition],
) -> Result<BTreeMap<TopicPartition, End>, Failure> {
    let stable = clients.stable(partitions).await?;
    let high = clients.high(partitions).await?;
    let each = stable.into_iter().filter_map(|(at, stable)| {
        let high = *high.get(&at)?;
        Some((at, End { stable, high }))
    });
    Ok(each.collect())
}

fn report(settings: &Settings, metrics: &FanoutMetrics, blocked: &[Blocked]) {
    metrics.forget_blocked();
    for one in blocked {
        let TopicPartition { topic, partition } = &one.at;
        metrics.blocked(topic, *partition, one.age, one.hidden);
        if !one.log {
            continue;
        }
        tracing::error!(
            topic = &**topic,
            partition,
            offset = one.offset,
            hidden = one.hidden,
            open = ?one.age,
            metric = "hookstream_event_blocked_seconds",
            "a publisher's transaction stays open at offset {} of {topic} {partition}: {} offsets behind it are hidden and wait. Find its producer with `kafka-transactions.sh --bootstrap-server {} describe-producers --topic {topic} --partition {partition}`; if it is gone, abort the transaction with `kafka-transactions.sh --bootstrap-server {} abort --topic {topic} --partition {partition} --start-offset {}`",
            one.offset,
            one.hidden,
            settings.brokers,
            settings.brokers,
            one.offset,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(all: &[(i32, i64, i64)]) -> BTreeMap<TopicPartition, End> {
        let each = all.iter().map(|&(partition, stable, high)| {
            let topic = Arc::from("orders");
            (TopicPartition { topic, partition }, End { stable, high })
        });
        each.collect()
    }

    #[test]
    fn a_partition_is_reported_when_its_stable_offset_has_stood_still_for_a_minute() {
        let began = clock::instant();
        let mut tracker = Tracker::default();
        // Partition 0 stands still, 1 moves on behind open transactions, 2 has none.
        let at = |seconds: i64| ends(&[(0, 7, 9 + seconds), (1, seconds, seconds + 5), (2, 4, 4)]);
        for seconds in 0..6 {
            let now = began + Duration::from_secs(10 * seconds);
            let seconds = i64::try_from(seconds).unwrap();
            assert_eq!(tracker.observe(at(seconds), now), []);
        }
        let found = tracker.observe(at(60), began + LONG);
        assert_eq!(found.len(), 1);
        let Blocked {
            at: place,
            offset,
            hidden,
            log,
            ..
        } = &found[0];
        assert_eq!((place.partition, *offset, *hidden, *log), (0, 7, 62, true));
        let found = tracker.observe(at(61), began + LONG + EVERY);
        assert!(!found[0].log, "once a minute");
        let found = tracker.observe(at(61), began + LONG + REMIND);
        assert!(found[0].log, "again");
    }

    #[test]
    fn a_partition_that_moves_or_leaves_is_forgotten() {
        let mut now = clock::instant();
        let mut tracker = Tracker::default();
        tracker.observe(ends(&[(0, 7, 9)]), now);
        now += LONG;
        tracker.observe(ends(&[]), now);
        assert_eq!(tracker.observe(ends(&[(0, 7, 9)]), now), [], "taken again");
        now += LONG;
        assert_eq!(tracker.observe(ends(&[(0, 8, 9)]), now), [], "it moved");
        now += LONG;
        assert_eq!(tracker.observe(ends(&[(0, 9, 9)]), now), [], "it ended");
        assert!(tracker.0.is_empty());
    }
}
