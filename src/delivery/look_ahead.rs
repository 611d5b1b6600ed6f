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
//!   backlog through the tiers would be wasted work.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::{Offset as At, TopicPartitionList};
use tokio::sync::mpsc::WeakUnboundedSender;

use super::messages::{Load, Message};
use super::metrics::{DeliveryMetrics, LookAheadResult};
use super::partition::effect::Question;
use super::partition::env::ORDER_BYTES;
use super::partition::event::LookAhead;
use super::partition::under_way::{Found, UnderWay};
use crate::config::Settings;
use crate::edge::kafka::client::consumer_config;
use crate::edge::kafka::cluster::ClusterId;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log::{LogContext, LoggedConsumer};
use crate::edge::kafka::log_reader::{ANSWER, Log, Range};
use crate::edge::kafka::record::{each_header, read_command};
use crate::model::command::header;
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
    fn waits_until_durable(&self, stop: &dyn Fn() -> bool) -> bool {
        const BETWEEN_LOOKS: Duration = Duration::from_millis(10);
        if matches!(self.question, Question::Others(..)) {
            return true;
        }
        while let Some(load) = self.load.upgrade().filter(|_| !stop()) {
            if load.are_moves_durable(self.moves) {
                return true;
            }
            drop(load);
            std::thread::sleep(BETWEEN_LOOKS);
        }
        false
    }
}

/// Reads on a separate thread and sends the result to `worker`; retries until that works or the worker has ended.
///
/// # Errors
/// When the thread cannot be started.
pub(super) fn start(
    settings: &Arc<Settings>,
    cluster: &ClusterId,
    metrics: &DeliveryMetrics,
    asked: Asked,
    worker: WeakUnboundedSender<Message>,
) -> std::io::Result<()> {
    const BETWEEN_TRIES: Duration = Duration::from_secs(1);
    let (settings, cluster) = (Arc::clone(settings), cluster.clone());
    let metrics = metrics.clone();
    let name = format!("ahead-{}", asked.partition);
    let read = move || {
        let stop = || worker.strong_count() == 0;
        if !asked.waits_until_durable(&stop) {
            return;
        }
        while !stop() {
            match answer(&settings, &cluster, &asked, &stop) {
                Ok((answer, result)) => {
                    metrics.look_aheads(result).inc();
                    if let Some(worker) = worker.upgrade() {
                        // If the worker has just ended, nobody needs the result.
                        worker
                            .send(Message::LookedAhead(asked.partition, asked.epoch, answer))
                            .ok();
                    }
                    return;
                }
                Err(error) => {
                    metrics.look_aheads(LookAheadResult::Failed).inc();
                    tracing::warn!(
                        partition = asked.partition,
                        "look-ahead failed, retrying: {error}"
                    );
                    std::thread::sleep(BETWEEN_TRIES);
                }
            }
        }
    };
    std::thread::Builder::new().name(name).spawn(read).map(drop)
}

fn answer(
    settings: &Settings,
    cluster: &ClusterId,
    asked: &Asked,
    stop: &dyn Fn() -> bool,
) -> Result<(LookAhead, LookAheadResult), Failure> {
    match &asked.question {
        Question::UnderWay(window) => {
            let (found, result) = under_way(settings, cluster, asked.partition, window, stop)?;
            Ok((LookAhead::UnderWay(found), result))
        }
        Question::Others(from, of) => {
            let found = others(settings, asked.partition, *from, of, stop)?;
            Ok((found, LookAheadResult::Complete))
        }
    }
}

fn others(
    settings: &Settings,
    partition: i32,
    from: Offset,
    of: &HashSet<Box<str>>,
    stop: &dyn Fn() -> bool,
) -> Result<LookAhead, Failure> {
    let mut last = None;
    let mut end = Position(from.0);
    let log = Log::open(settings, settings.topics.commands(), PURPOSE)?;
    let ends = log.stable_ends()?;
    read(&log, ends, partition, Some(end), stop, |message| {
        let offset = Offset(message.offset());
        end = offset.next();
        if !subscription(message).is_some_and(|subscription| of.contains(subscription)) {
            last = Some(offset);
        }
    })?;
    Ok(LookAhead::Others(last, end))
}

fn subscription<'a>(message: &'a BorrowedMessage<'_>) -> Option<&'a str> {
    let (_, value) = each_header(message).find(|(name, _)| *name == header::SUBSCRIPTION)?;
    std::str::from_utf8(value?).ok()
}

fn under_way(
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
    let released_to = released(settings, &tiers, partition)?;
    let mut found = UnderWay::new(ORDER_BYTES);
    let mut result = LookAheadResult::Complete;
    for (topic, position) in tiers.into_iter().zip(released_to) {
        let log = Log::open(settings, topic, PURPOSE)?;
        let read = read_all(&log, partition, position, stop, |message| {
            note(&mut found, message, None, cluster);
        })?;
        result = worse(result, read);
    }
    let log = Log::open(settings, topics.commands(), PURPOSE)?;
    let from = Some(window.position());
    let read = read_all(&log, partition, from, stop, |message| {
        let offset = Offset(message.offset());
        if !window.is_finished(offset) {
            note(&mut found, message, Some(offset), cluster);
        }
    })?;
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
fn read_all(
    log: &Log,
    partition: i32,
    from: Option<Position>,
    stop: &dyn Fn() -> bool,
    mut each: impl FnMut(&BorrowedMessage<'_>),
) -> Result<LookAheadResult, Failure> {
    let (range, stable) = log.high_watermark(partition, OPEN_TRANSACTION, stop)?;
    let low = from.map_or(range.low, |from| from.0.max(range.low));
    let committed = Range {
        low,
        end: stable,
        ..range
    };
    read(log, vec![committed], partition, None, stop, &mut each)?;
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
    log.read_uncommitted::<Failure>(&[behind], stop, |message| {
        each(message);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(LookAheadResult::OpenTransaction)
}

fn read(
    log: &Log,
    ends: Vec<Range>,
    partition: i32,
    from: Option<Position>,
    stop: &dyn Fn() -> bool,
    mut each: impl FnMut(&BorrowedMessage<'_>),
) -> Result<(), Failure> {
    let ranges: Vec<Range> = ends
        .into_iter()
        .filter(|range| range.partition == partition)
        .map(|range| Range {
            low: from.map_or(range.low, |from| from.0.max(range.low)),
            ..range
        })
        .collect();
    log.read::<Failure>(&ranges, stop, |message| {
        each(message);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(())
}

/// The position up to which each tier's partition has been released.
fn released(
    settings: &Settings,
    tiers: &[String],
    partition: i32,
) -> Result<Vec<Option<Position>>, Failure> {
    let group = format!("{}release", settings.group_prefix);
    let asking = || format!("reading the offsets of {group}");
    // It never joins the group: it only fetches the group's offsets.
    let consumer: BaseConsumer<LoggedConsumer> = consumer_config(settings, PURPOSE, &group)
        .create_with_context(LoggedConsumer(LogContext::new(PURPOSE)))
        .map_err(|error| Failure::from_client(asking(), error))?;
    let mut wanted = TopicPartitionList::new();
    for tier in tiers {
        wanted.add_partition(tier, partition);
    }
    let committed = consumer
        .committed_offsets(wanted, ANSWER)
        .map_err(|error| Failure::from_client(asking(), error))?;
    Ok(tiers
        .iter()
        .map(
            |tier| match committed.find_partition(tier, partition)?.offset() {
                At::Offset(offset) => Some(Position(offset)),
                _ => None,
            },
        )
        .collect())
}

fn note(
    found: &mut UnderWay,
    message: &BorrowedMessage<'_>,
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
        found.add(&command.subscription, one);
    }
}
