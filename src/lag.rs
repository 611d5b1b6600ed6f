//! The lag role: exact figures per subscriber, without a database and without joining a group, also while delivery is
//! down.
//!
//! It reads the commands, the tiers and the dead letters into an index of who waits for what, and each second subtracts
//! what the groups' positions and the windows' finished offsets say is done. Each replica is complete: it reads all
//! partitions, so that any one of them answers any question, and a second one is only for when the first is away. Shared
//! partitions would make every answer wait for all replicas, and a replica that is away would be missing in the sums;
//! and one core reads more than a second of what a cluster of deliverers sends in that second.

mod events;
pub mod figures;
pub mod index;
pub mod metrics;
pub mod pages;
pub mod progress;
mod reader;
pub mod top;

use std::time::{Duration, Instant};

use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::error::Failure;
use crate::model::units::EpochMs;
use crate::runtime::context::RoleContext;
use figures::{Board, Figures};
use metrics::LagMetrics;
use reader::Reader;
use top::Top;

/// How often positions are read and figures told.
const EVERY: Duration = Duration::from_secs(1);
/// And at least so many times as long as telling them took: ten million commands are not walked over all the time.
const SHARE: u32 = 50;
/// But at least so often.
const AT_LEAST: Duration = Duration::from_secs(15);
/// A reader that has failed for so long is made anew.
const PATIENCE: Duration = Duration::from_secs(30);
/// How soon a terminal asks again whether everything was read.
const AGAIN: Duration = Duration::from_millis(200);
/// A terminal is told of what has failed for so long.
const SHORT_PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait when there is nothing to read.
const IDLE: Duration = Duration::from_millis(50);

/// Runs until told to stop.
///
/// # Errors
/// [`Failure`] when the role cannot go on.
pub fn run(context: &RoleContext, metrics: &LagMetrics, board: &Board) -> Result<(), Failure> {
    let settings = &context.settings;
    if !context.wait_until_possible("lag", &needed_topics(settings))? {
        return Ok(());
    }
    let mut top = Top::new(settings.lag_top);
    let mut reader: Option<Reader> = None;
    let mut next = clock::instant();
    let mut failing_since: Option<Instant> = None;
    let _event_lag = events::watch(settings, metrics)?;
    context.ready();
    while !context.stopping() {
        context.beat();
        let told = match &mut reader {
            Some(reader) => turn(context, reader, &mut next).map(|due| {
                if due {
                    publish(reader, &mut top, &mut next, metrics, board);
                }
            }),
            None => Reader::new(settings).map(|made| reader = Some(made)),
        };
        match told {
            Ok(()) => failing_since = None,
            Err(failure) if is_lasting(&failure) => return Err(failure),
            // Brokers come and go, coordinators move: the figures stay what they were, and say of when they are.
            Err(failure) => {
                tracing::warn!("the lag is not read: {failure}; trying again");
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

/// Whether trying again does not help.
fn is_lasting(failure: &Failure) -> bool {
    matches!(failure, Failure::Denied { .. } | Failure::TopicMissing(_))
}

fn needed_topics(settings: &Settings) -> Vec<String> {
    let topics = &settings.topics;
    let tiers = settings.tiers.delays().iter();
    let mut needed: Vec<String> = tiers.map(|&delay| topics.retry(delay)).collect();
    needed.extend([topics.commands(), topics.dead_letters()]);
    needed
}

/// Reads what there is; whether new figures are due.
fn turn(context: &RoleContext, reader: &mut Reader, next: &mut Instant) -> Result<bool, Failure> {
    if !reader.turn()? {
        context.pause(IDLE);
    }
    if clock::instant() < *next {
        return Ok(false);
    }
    reader.tick()?;
    Ok(true)
}

fn publish(
    reader: &mut Reader,
    top: &mut Top,
    next: &mut Instant,
    metrics: &LagMetrics,
    board: &Board,
) {
    let began = clock::instant();
    let (sums, figures) = reader.figures();
    let told = top.update(&sums, clock::instant());
    metrics.lag(&told, &figures, reader.tiers());
    board.put(figures);
    let took = clock::instant() - began;
    *next = began + (took * SHARE).clamp(EVERY, AT_LEAST);
}

/// Figures of one moment after the other, for a terminal.
pub struct Watcher {
    reader: Reader,
    next: Instant,
}

impl Watcher {
    /// Begins to read.
    ///
    /// # Errors
    /// [`Failure`] when there is no broker, or a topic is missing or denied.
    pub fn new(settings: &Settings) -> Result<Self, Failure> {
        Ok(Self {
            reader: Reader::new(settings)?,
            next: clock::instant(),
        })
    }

    /// The next figures, of a moment after this call and after `every` has passed since the last ones; `None` when told
    /// to stop before.
    ///
    /// # Errors
    /// [`Failure`] for what waiting does not mend.
    pub fn next(
        &mut self,
        every: Duration,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Figures>, Failure> {
        let mut since: Option<EpochMs> = None;
        let mut failing_since: Option<Instant> = None;
        let mut tick = self.next;
        while !stop() {
            let any = self.reader.turn()?;
            let now = clock::instant();
            if now >= tick && (!any || now - tick >= EVERY) {
                let since = *since.get_or_insert_with(clock::now);
                match self.reader.tick() {
                    Ok(()) => failing_since = None,
                    Err(failure) if is_lasting(&failure) => return Err(failure),
                    // A leader or a coordinator moves, or a topic is quite new.
                    Err(failure) => {
                        let began = *failing_since.get_or_insert(now);
                        if now - began >= SHORT_PATIENCE {
                            return Err(failure);
                        }
                    }
                }
                if self.reader.as_of().is_some_and(|as_of| as_of >= since) {
                    self.next = clock::instant() + every;
                    return Ok(Some(self.reader.figures().1));
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
