//! Reads deferred commands again for a worker, outside the group: see [`super::partition::deferral`].
//!
//! Each worker has one reader. The passes of its partitions come in turn; one that gets nothing from its broker answers
//! with what it has, so that it does not hold up the others.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use super::metrics::LookAheadResult;
use super::partition::deferral::{Collector, Found, Pass};
use super::partition::env::Amount;
use super::partition::event::LookAhead;
use super::reader::{Asked, Next, Queue, ReaderContext};
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::record::{each_header, read_command};
use crate::edge::port::failure::Failure;
use crate::edge::port::records::{Isolation, Range, RecordView};
use crate::edge::port::{AGAIN, Log, Port};
use crate::model::command::header;
use crate::model::units::Offset;

/// A pass that gets no record for this long ends.
const PATIENCE: Duration = Duration::from_secs(1);
/// The pause after a failure.
const BETWEEN_TRIES: Duration = Duration::from_secs(1);

/// Answers until nothing can be asked any more.
pub(super) async fn serve<P: Port>(context: ReaderContext<P>, mut queue: Queue<Asked<Box<Pass>>>) {
    let (port, settings) = (&context.port, &context.settings);
    let mut log: Option<P::Log> = None;
    loop {
        let asked = match queue.next(port, log.is_some()).await {
            Next::One(asked) => asked,
            Next::Idle => {
                log = None;
                continue;
            }
            Next::Ended => return,
        };
        if context.is_over() {
            return;
        }
        let Some(load) = asked.load() else {
            continue;
        };
        let most = load.share().of_a_pass();
        drop(load);
        let stop = || context.is_over();
        match read(port, settings, &mut log, &asked, most, &stop).await {
            Ok(found) => context.answer(&asked, LookAhead::Again(Box::new(found))),
            Err(error) => {
                context.metrics.look_aheads(LookAheadResult::Failed).inc();
                tracing::warn!(
                    partition = asked.partition,
                    "reading deferred commands again failed, retrying: {error}"
                );
                log = None;
                port.sleep(BETWEEN_TRIES).await;
                queue.put_back(asked);
            }
        }
    }
}

/// Reads a part of a partition; takes at most `most`.
async fn read<P: Port>(
    port: &P,
    settings: &Settings,
    log: &mut Option<P::Log>,
    asked: &Asked<Box<Pass>>,
    most: Amount,
    stop: &dyn Fn() -> bool,
) -> Result<Found, Failure> {
    let log = match log {
        Some(open) => open,
        None => {
            let topic = settings.topics.commands();
            log.insert(port.log(settings, topic, AGAIN).await?)
        }
    };
    let (partition, pass) = (asked.partition, &*asked.question);
    let part = Range {
        partition,
        low: pass.from,
        end: pass.to,
    };
    let collector = RefCell::new(Collector::new(pass.clone(), most));
    let last: Cell<Instant> = Cell::new(clock::instant());
    let waits_in_vain = || clock::instant().saturating_duration_since(last.get()) > PATIENCE;
    let is_done = || stop() || collector.borrow().is_done() || waits_in_vain();
    log.read(Isolation::Committed, &[part], &is_done, |message| {
        last.set(clock::instant());
        let offset = Offset(message.offset());
        let command = || read_command(message).ok()?.ok();
        collector
            .borrow_mut()
            .visit(offset, subscription(message), command);
    })
    .await?;
    let mut collector = collector.into_inner();
    if collector.is_untouched() {
        // Retention may have deleted all of it.
        let (range, _) = log.high_watermark(partition, Duration::ZERO, stop).await?;
        collector.begin(range.low);
    }
    Ok(collector.finish())
}

/// The subscription of a command's record.
pub(super) fn subscription(message: &impl RecordView) -> Option<&str> {
    let (_, value) = each_header(message).find(|(name, _)| *name == header::SUBSCRIPTION)?;
    std::str::from_utf8(value?).ok()
}
