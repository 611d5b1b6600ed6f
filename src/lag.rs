//! The lag role: the exact backlog per subscriber, without a database or a group membership, even while delivery is down.
//!
//! It reads the commands, the retry tiers and the dead letters into an index of pending records, and once a second
//! subtracts what the groups' committed offsets and the windows' finished offsets show as done. Each replica reads all
//! partitions, so each can answer any query, and a second one is needed only for availability. With partitions shared
//! among replicas, every query would need all of them, and a missing replica would falsify the sums. One core reads
//! faster than a cluster of deliverers sends.

pub mod board;
mod clients;
mod events;
pub mod figures;
mod history;
pub mod index;
pub mod metrics;
mod oldest;
pub mod pages;
pub mod port;
pub mod progress;
pub mod reader;
mod retention;
mod source;
mod standings;
mod times;
pub mod top;
mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::error::Failure;
use crate::edge::live::Live;
use crate::edge::port::task::block_on;
use crate::model::units::EpochMs;
use crate::runtime::context::RoleContext;
use crate::runtime::metrics::Registry;
use board::Board;
use clients::Clients;
use figures::{EventPartition, Figures};
use metrics::LagMetrics;
use reader::Reader;
use top::TopSubscribers;
use watch::Watch;

/// How often committed offsets are read and figures published.
const EVERY: Duration = Duration::from_secs(1);
/// The least interval between figures, as a multiple of the time that the last ones took: an index of ten million
/// commands is not scanned continuously.
const INTERVAL_FACTOR: u32 = 50;
/// The longest interval between figures.
const AT_LEAST: Duration = Duration::from_secs(15);
/// A reader that has failed for this long is replaced.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often `--once` and `--watch` check whether everything is read.
const AGAIN: Duration = Duration::from_millis(200);
/// `--once` and `--watch` fail after this long.
const SHORT_PATIENCE: Duration = Duration::from_secs(5);
/// How long to sleep when there is nothing to read.
const IDLE: Duration = Duration::from_millis(50);

/// Runs until shutdown.
///
/// # Errors
/// [`Failure`] when the role cannot continue.
pub fn run(context: &RoleContext, metrics: &LagMetrics, board: &Board) -> Result<(), Failure> {
    let settings = &context.settings;
    let topics = needed_topics(settings);
    if !block_on(context.wait_until_possible(&Live, "lag", &topics))? {
        return Ok(());
    }
    let mut top = TopSubscribers::new(settings.lag_top);
    let mut reader: Option<Reader<Clients>> = None;
    let mut next = clock::instant();
    let mut failing_since: Option<Instant> = None;
    let watches = Watches {
        events: events::watch(settings, metrics)?,
        standings: standings::watch(settings)?,
    };
    let _retention = retention::watch(settings, metrics)?;
    context.ready();
    while !context.stopping() {
        context.heartbeat();
        let turned = match &mut reader {
            Some(reader) => turn(context, reader, &mut next).map(|due| {
                if due {
                    let sinks = (metrics, board);
                    publish(reader, &mut top, &mut next, &watches, sinks);
                }
            }),
            None => open(settings).map(|made| {
                top.restart();
                reader = Some(made);
            }),
        };
        match turned {
            Ok(()) => failing_since = None,
            Err(failure @ Failure::Denied { .. }) => return Err(failure),
            // Deleted while it was read, since it was there at the start.
            Err(Failure::TopicMissing(topic)) => {
                tracing::warn!(
                    topic,
                    "topic deleted, its backlog is not shown; waiting until it is back"
                );
                reader = None;
                context.pause(EVERY);
            }
            // Brokers restart and coordinators move: the last figures stay published, with the time that they are from.
            Err(failure) => {
                tracing::warn!("reading the backlog failed, retrying: {failure}");
                let since = *failing_since.get_or_insert_with(clock::instant);
                if clock::instant() - since >= PATIENCE {
                    reader = None;
                    failing_since = None;
                }
                context.pause(EVERY);
            }
        }
    }
    context.draining();
    Ok(())
}

/// What is read beside the backlog.
struct Watches {
    events: Watch<Vec<EventPartition>>,
    standings: Watch<Arc<standings::Standings>>,
}

/// Whether a retry cannot help.
fn is_permanent(failure: &Failure) -> bool {
    matches!(failure, Failure::Denied { .. } | Failure::TopicMissing(_))
}

fn needed_topics(settings: &Settings) -> Vec<String> {
    let topics = &settings.topics;
    let mut needed = settings.retry_topics();
    needed.extend([
        topics.commands(),
        topics.dead_letters(),
        topics.subscriptions(),
        topics.status(),
    ]);
    needed
}

fn open(settings: &Settings) -> Result<Reader<Clients>, Failure> {
    block_on(Reader::new(settings, Clients::new(settings)?))
}

/// Reads available records; returns whether new figures are due.
fn turn(
    context: &RoleContext,
    reader: &mut Reader<Clients>,
    next: &mut Instant,
) -> Result<bool, Failure> {
    let any = block_on(reader.turn())?;
    let dead_letters = context.settings.topics.dead_letters();
    let set_aside = context.metrics.set_aside(&dead_letters);
    set_aside.inc_by(reader.take_unreadable());
    if !any {
        context.pause(IDLE);
    }
    if clock::instant() < *next {
        return Ok(false);
    }
    block_on(reader.tick())?;
    Ok(true)
}

fn publish(
    reader: &mut Reader<Clients>,
    top: &mut TopSubscribers,
    next: &mut Instant,
    watches: &Watches,
    (metrics, board): (&LagMetrics, &Board),
) {
    let began = clock::instant();
    let (sums, mut figures) = reader.figures();
    figures.events = watches.events.latest().unwrap_or_default();
    if let Some(standings) = watches.standings.latest() {
        standings.annotate(&mut figures.subscribers, clock::now());
        metrics.disabled(standings.disabled());
    }
    for (topic, oldest) in reader.oldest() {
        metrics.topic_oldest(&topic, oldest.map(f64::from));
    }
    let series = top.update(&sums, clock::instant());
    metrics.lag(&series, &figures, reader.tiers());
    board.put(figures);
    let took = clock::instant() - began;
    *next = began + (took * INTERVAL_FACTOR).clamp(EVERY, AT_LEAST);
}

/// Successive figures for a terminal.
pub struct Watcher {
    reader: Reader<Clients>,
    watches: Watches,
    next: Instant,
}

impl Watcher {
    /// Starts reading.
    ///
    /// # Errors
    /// [`Failure`] when there is no broker, or a topic is missing or denied.
    pub fn new(settings: &Settings) -> Result<Self, Failure> {
        // Its metrics are not exported.
        let metrics = LagMetrics::register(&Registry::new());
        let shared = Arc::new(settings.clone());
        let watches = Watches {
            events: events::watch(&shared, &metrics)?,
            standings: standings::watch(&shared)?,
        };
        let began = clock::instant();
        loop {
            match open(settings) {
                Ok(reader) => {
                    let next = clock::instant();
                    return Ok(Self {
                        reader,
                        watches,
                        next,
                    });
                }
                Err(failure) if is_permanent(&failure) => return Err(failure),
                // A leader is moving, or a topic was just created.
                Err(failure) if clock::instant() - began >= SHORT_PATIENCE => return Err(failure),
                Err(_) => std::thread::sleep(AGAIN),
            }
        }
    }

    /// The next figures, at least `every` after the last ones and no older than this call; `None` if stopped first.
    ///
    /// # Errors
    /// [`Failure`] for errors that do not go away by waiting.
    pub fn next(
        &mut self,
        every: Duration,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Figures>, Failure> {
        let mut since: Option<EpochMs> = None;
        let mut failing_since: Option<Instant> = None;
        let mut tick = self.next;
        while !stop() {
            let any = block_on(self.reader.turn())?;
            let now = clock::instant();
            if now >= tick && (!any || now - tick >= EVERY) {
                let since = *since.get_or_insert_with(clock::now);
                match block_on(self.reader.tick()) {
                    Ok(()) => failing_since = None,
                    Err(failure) if is_permanent(&failure) => return Err(failure),
                    // A leader or a coordinator is moving, or a topic was just created.
                    Err(failure) => {
                        let began = *failing_since.get_or_insert(now);
                        if now - began >= SHORT_PATIENCE {
                            return Err(failure);
                        }
                    }
                }
                if self.reader.as_of().is_some_and(|as_of| as_of >= since) {
                    self.next = clock::instant() + every;
                    let (_, mut figures) = self.reader.figures();
                    figures.events = self.watches.events.first(events::FIRST).unwrap_or_default();
                    if let Some(standings) = self.watches.standings.first(standings::FIRST) {
                        standings.annotate(&mut figures.subscribers, clock::now());
                    }
                    return Ok(Some(figures));
                }
                tick = clock::instant() + AGAIN;
            }
            if !any {
                std::thread::sleep(IDLE);
            }
        }
        Ok(None)
    }
}
