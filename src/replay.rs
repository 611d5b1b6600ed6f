//! Replay: open dead letters become commands again, each exactly once; or they are discarded, under the same lock.
//!
//! The new command and the record `replayed` of a dead letter are written in one transaction, so a killed replay leaves
//! each dead letter either open or replayed, and the next run takes the open ones.
//!
//! Several runs, such as ones with different filters, work at the same time. Each partition of the dead-letter topic has a
//! transactional id that they share, and an order of steps that must not change:
//!
//! 1. initialise transactions with the partition's id: this fences a run that works on it; its open transaction is aborted,
//!    or its commit completed, before the call returns;
//! 2. query the partition's end, and wait until it is stable ([`Log::settled_end`]): from here on all records of other
//!    runs are visible, and no more can follow without fencing this one;
//! 3. read what has settled dead letters of the partition since it was last read, then send those that are open and whose
//!    subscription takes them; the others stay open ([`Why`]).
//!
//! A run that was fenced goes on with other partitions and comes back later, with step 1. A run ends after any other
//! failure. In `at_least_once` there are no transactions and nothing excludes other runs: the commands are acknowledged
//! before their settling records are written, so a kill in between sends up to one batch twice.
//!
//! Before all that, the whole topic is read once, without excluding anybody: what has settled dead letters, and which part
//! of each partition has any that match. Only that part is read again.
//!
//! A preview keeps those that match, without their bodies, if they are few: then it reads the topic once.
//!
//! Memory: the identities of settled dead letters, one batch, and what is kept and fetched ahead.

mod counts;
mod events;
mod import;
mod invalid;
mod plan;
mod records;
mod sender;
mod survey;
mod withheld;

use std::ops::ControlFlow;

use self::plan::PURPOSE;
use self::sender::Sender;
use self::survey::{Keep, Survey};
use crate::config::Settings;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log_reader::{Log, Reading};
use crate::edge::kafka::producer::Producer;
use crate::edge::kafka::subscription_log::{Freshness, SubscriptionLog};
use crate::model::dead_letter::DeadLetter;

pub use counts::{Count, DeadLetterCounts};
pub use events::{EventCounts, EventPlan, replay_events};
pub use import::{Imported, Permit, import};
pub use invalid::{
    InvalidCopy, InvalidFilter, InvalidLog, InvalidReplay, RawRecord, replay_invalid,
};
pub use plan::{MAX_BATCH, Plan, Progress, ReplayError};
pub use records::{Newer, NewerFacts, Undecoded, decode, place};
pub use withheld::{Why, WithheldGroup};

/// How a run ended.
#[derive(Debug)]
pub enum End {
    /// All matching dead letters that were open at the start are replayed, or the limit is reached.
    Complete,
    /// It was stopped.
    Stopped,
    /// It failed.
    Failed(ReplayError),
}

/// The result of a run.
#[derive(Debug)]
pub struct Report {
    /// Dead letters durably replayed or discarded.
    pub replayed: DeadLetterCounts,
    /// How it ended.
    pub end: End,
}

/// DeadLetterCounts what a replay would send, without sending it.
///
/// # Errors
/// [`Failure`] when the dead-letter topic cannot be read.
pub fn preview(
    settings: &Settings,
    plan: &Plan,
    stop: &dyn Fn() -> bool,
) -> Result<(DeadLetterCounts, Reading), Failure> {
    let log = Log::open(settings, settings.topics.dead_letters(), PURPOSE)?;
    let mut subscriptions = SubscriptionLog::open(settings, PURPOSE)?;
    subscriptions.catch_up(Freshness::Visible, stop, &mut |_, _| {})?;
    let ends = log.stable_ends()?;
    let mut survey = Survey::read(&log, plan, &ends, Keep::Few, stop, &mut |_| {})?;
    let mut counts = DeadLetterCounts {
        newer: survey.newer.clone(),
        ..DeadLetterCounts::default()
    };
    let matching = survey.matching.take();
    let take = |counts: &mut DeadLetterCounts, letter: &DeadLetter, bytes| {
        if !counts.newer.stops(letter.at.partition) && survey.open.is_open(letter) {
            match plan.withholds(letter, subscriptions.fold()) {
                Some(why) => counts.withhold(letter, why),
                None => counts.add(letter, bytes),
            }
        }
        if plan.is_reached(counts.letters()) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let reading = if let Some(matching) = matching {
        let mut all = matching.iter();
        // The limit ends it, as below.
        let _limited = all.try_for_each(|(letter, bytes)| take(&mut counts, letter, *bytes));
        counts.unreadable = survey.unreadable;
        if stop() {
            Reading::Stopped
        } else {
            Reading::Complete
        }
    } else {
        let parts: Vec<_> = survey.parts.values().copied().collect();
        log.read::<Failure>(&parts, stop, |message| {
            Ok(match decode(message) {
                Ok(Some(letter)) if plan.filter.matches(&letter) => {
                    take(&mut counts, &letter, message.payload_len())
                }
                Ok(_) | Err(Undecoded::Newer(_)) => ControlFlow::Continue(()),
                Err(Undecoded::Unreadable(_)) => {
                    counts.unreadable += 1;
                    ControlFlow::Continue(())
                }
            })
        })?
    };
    // Stopping at the limit is a complete preview.
    let reading = if plan.is_reached(counts.letters()) {
        Reading::Complete
    } else {
        reading
    };
    Ok((counts, reading))
}

/// Replays. `stop` is checked between dead letters; the current batch is completed first.
pub fn run(
    settings: &Settings,
    plan: &Plan,
    stop: &dyn Fn() -> bool,
    report: &mut dyn FnMut(Progress),
) -> Report {
    let mut replayed = DeadLetterCounts::default();
    let end = match replay(settings, plan, stop, report, &mut replayed) {
        Ok(Reading::Complete) => End::Complete,
        Ok(Reading::Stopped) => End::Stopped,
        Err(error) => End::Failed(error),
    };
    Report { replayed, end }
}

fn replay(
    settings: &Settings,
    plan: &Plan,
    stop: &dyn Fn() -> bool,
    report: &mut dyn FnMut(Progress),
    replayed: &mut DeadLetterCounts,
) -> Result<Reading, ReplayError> {
    // Before a producer, which would wait for brokers and topics instead of failing.
    let log = Log::open(settings, settings.topics.dead_letters(), PURPOSE)?;
    drop(Log::open(settings, settings.topics.commands(), PURPOSE)?);
    let subscriptions = SubscriptionLog::open(settings, PURPOSE)?;
    let ends = log.stable_ends()?;
    let survey = Survey::read(&log, plan, &ends, Keep::Nothing, stop, report)?;
    replayed.newer = survey.newer.clone();
    // After an incomplete first pass, replayed dead letters would seem open.
    if stop() {
        return Ok(Reading::Stopped);
    }
    // Fences a replay of hookstream 0.1.0, which knows no other lock.
    Producer::sole(settings, PURPOSE)?.abandon();
    Sender::new(settings, &log, plan, survey, subscriptions, replayed)?.run(stop, report)
}

#[cfg(test)]
mod tests;
