//! Reads ahead for a worker, outside the group and on a separate thread, so that neither polling nor sending waits for
//! it.
//!
//! - Finds the unfinished commands of a partition's ordered subscriptions, in the tiers and released from them. It
//!   fetches the release group's positions first, then reads the tiers, and the commands last: whatever release moves
//!   meanwhile appears in at least one of them, and its sequence identifies duplicates. Each is read to its high
//!   watermark. A crashed owner's open transaction would otherwise hide what others committed behind it, and its
//!   subject would appear to be free. Only the transactions of this partition matter, and those for five seconds. The
//!   moves to tiers that this owner has decided have to be durable before, each of them: a command on its way is in
//!   neither. Other outcomes end their commands, whether they are durable or not.
//! - Finds whether other subscribers have commands behind a backlog that blocks its partition. Without any, sending the
//!   backlog through the tiers would be wasted work. It ends early once there are some.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::mpsc::WeakUnboundedSender;

use super::messages::{self, Load, Message};
use super::metrics::{DeliveryMetrics, LookAheadResult};
use super::partition::effect::Question;
use super::partition::env::ORDER_BYTES;
use super::partition::event::LookAhead;
use super::partition::fairness::Search;
use super::partition::under_way::{Found, UnderWay};
use super::read_again::subscription;
use crate::config::Settings;
use crate::edge::kafka::cluster::ClusterId;
use crate::edge::kafka::record::read_command;
use crate::edge::port::failure::Failure;
use crate::edge::port::records::{Isolation, Range, RecordView, TopicPartition};
use crate::edge::port::{Log, Port};
use crate::model::units::{Offset, Position};
use crate::model::window::Window;

/// Used in client names and logs.
const PURPOSE: &str = "ahead";

/// How long a look-ahead waits for a transaction to end.
const OPEN_TRANSACTION: Duration = Duration::from_secs(5);

/// A request for one ownership of a partition; a result for a former owner is dropped.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) partition: i32,
    pub(super) epoch: u64,
    /// The moves to tiers before the question, which are to be durable before the topics are read.
    pub(super) moves: u64,
    pub(super) load: Weak<Load>,
    pub(super) question: Question,
}

impl Asked {
    /// Waits for the moves before the question; `false` when nobody needs the answer any more.
    async fn waits_until_durable(&self, port: &impl Port, stop: &dyn Fn() -> bool) -> bool {
        const BETWEEN_LOOKS: Duration = Duration::from_millis(10);
        if !matches!(self.question, Question::UnderWay(_)) {
            return true;
        }
        while let Some(load) = self.load.upgrade().filter(|_| !stop()) {
            if load.are_moves_durable(self.moves) {
                return true;
            }
            drop(load);
            port.sleep(BETWEEN_LOOKS).await;
        }
        false
    }
}

/// Reads in a separate task and sends the result to `worker`; retries until that works or the worker has ended.
///
/// # Errors
/// [`Failure`] when the task cannot be started.
pub(super) fn start<P: Port>(
    port: &P,
    settings: &Arc<Settings>,
    cluster: &ClusterId,
    metrics: &DeliveryMetrics,
    asked: Asked,
    worker: WeakUnboundedSender<Message>,
) -> Result<(), Failure> {
    const BETWEEN_TRIES: Duration = Duration::from_secs(1);
    let (settings, cluster) = (Arc::clone(settings), cluster.clone());
    let metrics = metrics.clone();
    let name = format!("ahead-{}", asked.partition);
    let own = port.clone();
    let read = move || async move {
        let stop = || worker.strong_count() == 0;
        if !asked.waits_until_durable(&own, &stop).await {
            return;
        }
        while !stop() {
            match answer(&own, &settings, &cluster, &asked, &stop).await {
                Ok((answer, result)) => {
                    metrics.look_aheads(result).inc();
                    return messages::answer(&worker, asked.partition, asked.epoch, answer);
                }
                Err(error) => {
                    metrics.look_aheads(LookAheadResult::Failed).inc();
                    tracing::warn!(
                        partition = asked.partition,
                        "look-ahead failed, retrying: {error}"
                    );
                    own.sleep(BETWEEN_TRIES).await;
                }
            }
        }
    };
    port.spawn(name, read).map(drop)
}

async fn answer(
    port: &impl Port,
    settings: &Settings,
    cluster: &ClusterId,
    asked: &Asked,
    stop: &dyn Fn() -> bool,
) -> Result<(LookAhead, LookAheadResult), Failure> {
    match &asked.question {
        Question::UnderWay(window) => {
            let (found, result) =
                under_way(port, settings, cluster, asked.partition, window, stop).await?;
            Ok((LookAhead::UnderWay(found), result))
        }
        Question::Others(from, of) => {
            let found = others(port, settings, asked.partition, *from, of, stop).await?;
            Ok((found, LookAheadResult::Complete))
        }
    }
}

async fn others(
    port: &impl Port,
    settings: &Settings,
    partition: i32,
    from: Offset,
    of: &HashSet<Box<str>>,
    stop: &dyn Fn() -> bool,
) -> Result<LookAhead, Failure> {
    let topic = settings.topics.commands();
    let log = port.log(settings, topic, PURPOSE).await?;
    // Of this partition only: another one may have no leader, or a transaction that hangs.
    let (range, stable) = log.high_watermark(partition, Duration::ZERO, stop).await?;
    let part = Range {
        low: range.low.max(from.0),
        end: stable,
        ..range
    };
    let search = RefCell::new(Search::new(from, of.clone()));
    let is_done = || stop() || search.borrow().is_done();
    log.read(Isolation::Committed, &[part], &is_done, |message| {
        let offset = Offset(message.offset());
        search.borrow_mut().visit(offset, subscription(message));
    })
    .await?;
    Ok(LookAhead::Others(search.into_inner().finish()))
}

async fn under_way(
    port: &impl Port,
    settings: &Settings,
    cluster: &ClusterId,
    partition: i32,
    window: &Window,
    stop: &dyn Fn() -> bool,
) -> Result<(UnderWay, LookAheadResult), Failure> {
    let topics = &settings.topics;
    let tiers: Vec<String> = settings
        .tiers
        .delays()
        .iter()
        .rev()
        .map(|&delay| topics.retry(delay))
        .collect();
    let asked: Vec<_> = tiers
        .iter()
        .map(|tier| TopicPartition {
            topic: Arc::from(tier.as_str()),
            partition,
        })
        .collect();
    let group = format!("{}release", settings.group_prefix);
    let released_to = port.positions(settings, &group, PURPOSE, &asked).await?;
    let mut found = UnderWay::new(ORDER_BYTES);
    let mut result = LookAheadResult::Complete;
    for (topic, position) in tiers.into_iter().zip(released_to) {
        let log = port.log(settings, topic, PURPOSE).await?;
        let read = read_all(&log, partition, position, stop, |message| {
            note(&mut found, message, None, cluster);
        });
        let read = read.await?;
        result = worse(result, read);
    }
    let log = port.log(settings, topics.commands(), PURPOSE).await?;
    let from = Some(window.position());
    let read = read_all(&log, partition, from, stop, |message| {
        let offset = Offset(message.offset());
        if !window.is_finished(offset) {
            note(&mut found, message, Some(offset), cluster);
        }
    });
    let read = read.await?;
    Ok((found, worse(result, read)))
}

fn worse(one: LookAheadResult, other: LookAheadResult) -> LookAheadResult {
    if one == LookAheadResult::Complete {
        other
    } else {
        one
    }
}

/// Reads one partition to its high watermark.
///
/// A transaction that stays open must not withhold the order of the whole partition. What lies behind it is read then
/// whatever becomes of it. A command whose record is aborted later is unfinished all the same, as its original is, so
/// this blocks too much rather than too little: a subject may wait until its command is overdue.
async fn read_all<L: Log>(
    log: &L,
    partition: i32,
    from: Option<Position>,
    stop: &dyn Fn() -> bool,
    mut each: impl FnMut(&L::Record<'_>),
) -> Result<LookAheadResult, Failure> {
    let asked = log.high_watermark(partition, OPEN_TRANSACTION, stop);
    let (range, stable) = asked.await?;
    let low = from.map_or(range.low, |from| from.0.max(range.low));
    let committed = Range {
        low,
        end: stable,
        ..range
    };
    log.read(Isolation::Committed, &[committed], stop, &mut each)
        .await?;
    if stable >= range.end {
        return Ok(LookAheadResult::Complete);
    }
    tracing::warn!(
        topic = log.topic(),
        partition,
        offset = stable,
        records = range.end - stable,
        "a transaction has been open for more than {OPEN_TRANSACTION:?}: what lies behind it counts as unfinished for \
         the order of commands; find it with kafka-transactions.sh find-hanging",
    );
    let behind = Range {
        low: stable.max(low),
        ..range
    };
    log.read(Isolation::Uncommitted, &[behind], stop, each)
        .await?;
    Ok(LookAheadResult::OpenTransaction)
}

fn note(
    found: &mut UnderWay,
    message: &impl RecordView,
    released: Option<Offset>,
    cluster: &ClusterId,
) {
    // The role that handles unreadable records reports them.
    let Ok(Ok(mut command)) = read_command(message) else {
        return;
    };
    // A command without a sequence was never taken.
    if command.sequence.is_none() {
        return;
    }
    command.place_in_order(cluster.as_str(), message.offset());
    if let (Some(subject), Some(sequence)) = (command.subject, command.sequence) {
        let one = Found {
            subject,
            sequence,
            attempt: command.attempt,
            due: command.due.unwrap_or(command.enqueued),
            released,
        };
        found.add(&command.subscription, &command.subscriber, one);
    }
}
