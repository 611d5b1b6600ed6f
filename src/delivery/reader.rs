//! What reads for a worker, beside it and outside the group: a task with clients of its own, which are dropped when nothing
//! is to be read for a while. However many partitions a worker has, it has one such task for each kind of reading.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{
    UnboundedReceiver, UnboundedSender, WeakUnboundedSender, unbounded_channel,
};

use super::messages::{self, Load, Message};
use super::metrics::DeliveryMetrics;
use super::partition::event::LookAhead;
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::cluster::ClusterId;
use crate::edge::port::Port;
use crate::edge::port::failure::Failure;

/// How long clients are kept that nothing is read with.
pub(super) const KEEP: Duration = Duration::from_secs(30);

/// A request of one ownership of a partition; a result for a former owner is dropped.
#[derive(Clone, Debug)]
pub(super) struct Asked<Q> {
    pub(super) partition: i32,
    pub(super) epoch: u64,
    pub(super) load: Weak<Load>,
    pub(super) question: Q,
}

impl<Q> Asked<Q> {
    /// The partition's use of memory; `None` when the partition has left, and nobody needs the answer any more.
    pub(super) fn load(&self) -> Option<Arc<Load>> {
        self.load.upgrade()
    }

    /// Whether the partition has left.
    pub(super) fn has_left(&self) -> bool {
        self.load.strong_count() == 0
    }

    /// Separates the question from who asks.
    pub(super) fn take(self) -> (Asked<()>, Q) {
        let asked = Asked {
            partition: self.partition,
            epoch: self.epoch,
            load: self.load,
            question: (),
        };
        (asked, self.question)
    }
}

/// What a reader needs.
#[derive(Clone)]
pub(super) struct ReaderContext<P> {
    pub(super) port: P,
    pub(super) settings: Arc<Settings>,
    pub(super) cluster: ClusterId,
    pub(super) metrics: DeliveryMetrics,
    /// The worker that is answered.
    pub(super) worker: WeakUnboundedSender<Message>,
}

impl<P> ReaderContext<P> {
    /// Whether the worker has ended.
    pub(super) fn is_over(&self) -> bool {
        self.worker.strong_count() == 0
    }

    pub(super) fn answer<Q>(&self, asked: &Asked<Q>, found: LookAhead) {
        messages::answer(&self.worker, asked.partition, asked.epoch, found);
    }
}

/// A started reader. A partition asks it for one thing of a kind at a time, so what waits is bounded by the number of
/// partitions.
#[derive(Debug)]
pub(super) struct Reader<A>(UnboundedSender<A>);

impl<A: Send + 'static> Reader<A> {
    /// Starts one: `serve` runs until its queue ends.
    ///
    /// # Errors
    /// [`Failure`] when the task cannot be started.
    pub(super) fn start<P: Port, T: Future<Output = ()> + 'static>(
        context: ReaderContext<P>,
        name: &str,
        serve: impl FnOnce(ReaderContext<P>, Queue<A>) -> T + Send + 'static,
    ) -> Result<Self, Failure> {
        let (sender, asked) = unbounded_channel();
        let waiting = VecDeque::new();
        let port = context.port.clone();
        port.spawn(name.to_owned(), move || {
            serve(context, Queue { asked, waiting })
        })?;
        Ok(Self(sender))
    }

    pub(super) fn ask(&self, asked: A) {
        // Of a thread that has panicked the role learns when it asks for the worker's state.
        self.0.send(asked).ok();
    }

    /// Whether its thread has panicked: what it was asked for is lost.
    pub(super) fn has_ended(&self) -> bool {
        self.0.is_closed()
    }
}

/// What a reader is asked for, in the order in which it comes.
#[derive(Debug)]
pub(super) struct Queue<A> {
    asked: UnboundedReceiver<A>,
    /// What came before it was looked for, and what was put back.
    waiting: VecDeque<A>,
}

/// What comes next.
#[derive(Debug)]
pub(super) enum Next<A> {
    One(A),
    /// Nothing for a while: clients are of no use now.
    Idle,
    /// Nothing ever again.
    Ended,
}

impl<A> Queue<A> {
    /// Waits for the next one: for a while if there are clients, else until it comes.
    pub(super) async fn next(&mut self, port: &impl Port, has_clients: bool) -> Next<A> {
        let next = match self.waiting.pop_front() {
            Some(asked) => Some(asked),
            None if !has_clients => self.asked.recv().await,
            None => match port.within(KEEP, self.asked.recv()).await {
                Some(next) => next,
                None => return Next::Idle,
            },
        };
        next.map_or(Next::Ended, Next::One)
    }

    /// Puts one back, behind all others.
    pub(super) fn put_back(&mut self, asked: A) {
        while let Ok(other) = self.asked.try_recv() {
            self.waiting.push_back(other);
        }
        self.waiting.push_back(asked);
    }

    /// How many were put back or had come by then, and wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Waits until one of these is to go on, by the time that `at` says, or another one comes.
    pub(super) async fn pause(&mut self, port: &impl Port, at: impl Fn(&A) -> Instant) {
        let Some(earliest) = self.waiting.iter().map(at).min() else {
            return;
        };
        let time = earliest.saturating_duration_since(clock::instant());
        if let Some(Some(other)) = port.within(time, self.asked.recv()).await {
            self.waiting.push_front(other);
        }
    }
}
