//! Reads ahead for a worker, outside the group and on a separate thread, so that neither polling nor sending waits for
//! it.
//!
//! - Finds the unfinished commands of a partition's ordered subscriptions, in the tiers and released from them. It
//!   fetches the release group's positions first, then reads the tiers, and the commands last: whatever release moves
//!   meanwhile appears in at least one of them, and its sequence identifies duplicates. Each is read to its high
//!   watermark. A crashed owner's open transaction would otherwise hide what others committed behind it, and its
//!   subject would appear to be free.
//! - Finds whether other subscribers have commands behind a backlog that blocks its partition. Without any, sending the
//!   backlog through the tiers would be wasted work.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::{Offset as At, TopicPartitionList};
use tokio::sync::mpsc::WeakUnboundedSender;

use super::messages::Message;
use super::partition::effect::Question;
use super::partition::event::{Found, LookAhead, UnderWay};
use crate::config::Settings;
use crate::edge::kafka::client::consumer_config;
use crate::edge::kafka::cluster::ClusterId;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::log::{LogContext, LoggedConsumer};
use crate::edge::kafka::log_reader::{ANSWER, Log, Range};
use crate::edge::kafka::record::{each_header, read_command};
use crate::model::command::header;
use crate::model::units::{Offset, Position};

/// Used in client names and logs.
const PURPOSE: &str = "ahead";

/// A request for one ownership of a partition; a result for a former owner is dropped.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) partition: i32,
    pub(super) epoch: u64,
    pub(super) question: Question,
}

/// Reads on a separate thread and sends the result to `worker`; retries until that works or the worker has ended.
///
/// # Errors
/// When the thread cannot be started.
pub(super) fn start(
    settings: &Arc<Settings>,
    cluster: &ClusterId,
    asked: Asked,
    worker: WeakUnboundedSender<Message>,
) -> std::io::Result<()> {
    const BETWEEN_TRIES: Duration = Duration::from_secs(1);
    let (settings, cluster) = (Arc::clone(settings), cluster.clone());
    let name = format!("ahead-{}", asked.partition);
    let read = move || {
        let stop = || worker.strong_count() == 0;
        while !stop() {
            match answer(&settings, &cluster, &asked, &stop) {
                Ok(answer) => {
                    if let Some(worker) = worker.upgrade() {
                        // If the worker has just ended, nobody needs the result.
                        worker
                            .send(Message::LookedAhead(asked.partition, asked.epoch, answer))
                            .ok();
                    }
                    return;
                }
                Err(error) => {
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
) -> Result<LookAhead, Failure> {
    match &asked.question {
        Question::UnderWay(from) => {
            under_way(settings, cluster, asked.partition, *from, stop).map(LookAhead::UnderWay)
        }
        Question::Others(from, of) => others(settings, asked.partition, *from, of, stop),
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
    from: Position,
    stop: &dyn Fn() -> bool,
) -> Result<UnderWay, Failure> {
    let topics = &settings.topics;
    let tiers: Vec<String> = settings
        .tiers
        .delays()
        .iter()
        .rev()
        .map(|&delay| topics.retry(delay))
        .collect();
    let released_to = released(settings, &tiers, partition)?;
    let mut found = UnderWay::new();
    for (topic, position) in tiers.into_iter().zip(released_to) {
        let log = Log::open(settings, topic, PURPOSE)?;
        let ends = log.high_watermarks(stop)?;
        read(&log, ends, partition, position, stop, |message| {
            note(&mut found, message, None, cluster);
        })?;
    }
    let log = Log::open(settings, topics.commands(), PURPOSE)?;
    let ends = log.high_watermarks(stop)?;
    read(&log, ends, partition, Some(from), stop, |message| {
        note(&mut found, message, Some(Offset(message.offset())), cluster);
    })?;
    Ok(found)
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
        found.entry(command.subscription).or_default().push(Found {
            subject,
            sequence,
            attempt: command.attempt,
            due: command.due.unwrap_or(command.enqueued),
            released,
        });
    }
}
