//! Reads deferred commands again for a worker, outside the group: see [`super::partition::deferral`].
//!
//! Each worker has one reader: a thread, and clients that are dropped when nothing was deferred for a while. The
//! passes of its partitions come in turn; one that gets nothing from its broker answers with what it has, so that it does
//! not hold up the others.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{
    UnboundedReceiver, UnboundedSender, WeakUnboundedSender, unbounded_channel,
};

use super::messages::{self, Load, Message};
use super::metrics::{DeliveryMetrics, LookAheadResult};
use super::partition::deferral::{Collector, Found, Pass};
use super::partition::env::Amount;
use super::partition::event::LookAhead;
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::record::{each_header, read_command};
use crate::edge::port::failure::Failure;
use crate::edge::port::records::{Isolation, Range, RecordView};
use crate::edge::port::{AGAIN, Log, Port};
use crate::model::command::header;
use crate::model::units::Offset;

/// How long the clients are kept without a pass.
const KEEP: Duration = Duration::from_secs(30);
/// A pass that gets no record for this long ends.
const PATIENCE: Duration = Duration::from_secs(1);
/// The pause after a failure.
const BETWEEN_TRIES: Duration = Duration::from_secs(1);

/// A pass of one ownership of a partition; a result for a former owner is dropped.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) partition: i32,
    pub(super) epoch: u64,
    pub(super) load: Weak<Load>,
    pub(super) pass: Box<Pass>,
}

/// The passes that one reader is asked for.
#[derive(Debug)]
pub(super) struct Rereader(UnboundedSender<Asked>);

impl Rereader {
    /// Starts a reader that answers `worker`, and ends with it.
    ///
    /// # Errors
    /// [`Failure`] when the task cannot be started.
    pub(super) fn start<P: Port>(
        port: &P,
        settings: &Arc<Settings>,
        metrics: &DeliveryMetrics,
        worker: WeakUnboundedSender<Message>,
    ) -> Result<Self, Failure> {
        let (sender, passes) = unbounded_channel();
        let own = port.clone();
        let (settings, metrics) = (Arc::clone(settings), metrics.clone());
        let run = move || serve(own, settings, metrics, passes, worker);
        port.spawn(AGAIN.to_owned(), run)?;
        Ok(Self(sender))
    }

    /// Asks for a pass.
    pub(super) fn ask(&self, asked: Asked) {
        if self.0.send(asked).is_err() {
            // Its thread has panicked.
            tracing::error!("the reader of deferred commands has ended");
        }
    }
}

/// Answers until nothing can be asked any more.
async fn serve<P: Port>(
    port: P,
    settings: Arc<Settings>,
    metrics: DeliveryMetrics,
    mut passes: UnboundedReceiver<Asked>,
    worker: WeakUnboundedSender<Message>,
) {
    let stop = || worker.strong_count() == 0;
    let mut log: Option<P::Log> = None;
    // What came while there was a failure, then what failed.
    let mut waiting: VecDeque<Asked> = VecDeque::new();
    loop {
        let next = match (&log, waiting.pop_front()) {
            (_, Some(asked)) => Some(asked),
            (None, None) => passes.recv().await,
            (Some(_), None) => match port.within(KEEP, passes.recv()).await {
                Some(next) => next,
                None => {
                    log = None;
                    continue;
                }
            },
        };
        let Some(asked) = next.filter(|_| !stop()) else {
            return;
        };
        // Its partition has left meanwhile.
        let Some(load) = asked.load.upgrade() else {
            continue;
        };
        let most = load.share().of_a_pass();
        drop(load);
        match read(&port, &settings, &mut log, &asked, most, &stop).await {
            Ok(found) => {
                let found = LookAhead::Again(Box::new(found));
                messages::answer(&worker, asked.partition, asked.epoch, found);
            }
            Err(error) => {
                metrics.look_aheads(LookAheadResult::Failed).inc();
                tracing::warn!(
                    partition = asked.partition,
                    "reading deferred commands again failed, retrying: {error}"
                );
                log = None;
                port.sleep(BETWEEN_TRIES).await;
                while let Ok(other) = passes.try_recv() {
                    waiting.push_back(other);
                }
                waiting.push_back(asked);
            }
        }
    }
}

/// Reads a part of a partition; takes at most `most`.
async fn read<P: Port>(
    port: &P,
    settings: &Settings,
    log: &mut Option<P::Log>,
    asked: &Asked,
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
    let (partition, pass) = (asked.partition, &*asked.pass);
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
