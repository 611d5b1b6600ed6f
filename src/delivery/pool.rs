//! The workers of a replica: their threads, and which one owns a partition.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions, RuntimeMetrics};
use tokio::sync::mpsc::{
    UnboundedReceiver, UnboundedSender, WeakUnboundedSender, unbounded_channel,
};

use super::journal::Journal;
use super::worker::{self, Order, Surroundings, WorkerState};
use crate::egress::EgressPolicy;
use crate::http::{HttpClient, HttpOptions};
use crate::kafka::Failure;
use crate::service::RoleContext;

/// Look-ups of names at a time, per worker; more wait, within their attempts' deadlines.
const RESOLVERS: usize = 16;

pub(super) struct WorkerHandle {
    orders: UnboundedSender<Order>,
    thread: JoinHandle<()>,
    runtime: RuntimeMetrics,
}

impl WorkerHandle {
    pub(super) fn send(&self, order: Order) {
        if self.orders.send(order).is_err() {
            // Its thread has panicked; asking for states tells the role so.
            tracing::error!("a delivery worker has ended");
        }
    }
}

fn not_started(error: io::Error) -> Failure {
    Failure::Internal(format!("starting a delivery worker: {error}"))
}

/// The whole life of a worker's thread. Its runtime never leaves it, so that its tasks need no queue of their own
/// beside the runtime's.
fn work(
    surroundings: Surroundings,
    inbox: UnboundedReceiver<Order>,
    started: &Sender<io::Result<RuntimeMetrics>>,
) {
    let runtime = match Builder::new_current_thread()
        .enable_all()
        // Names are resolved there: slow DNS must not become hundreds of threads.
        .max_blocking_threads(RESOLVERS)
        .build_local(LocalOptions::default())
    {
        Ok(runtime) => runtime,
        Err(error) => {
            // Whoever starts a worker waits for this.
            started.send(Err(error)).ok();
            return;
        }
    };
    started.send(Ok(runtime.metrics())).ok();
    runtime.block_on(worker::run(surroundings, inbox));
    // A name that still resolves on the blocking pool must not hold the process up.
    runtime.shutdown_background();
}

pub(super) struct Workers {
    pub(super) all: Vec<WorkerHandle>,
    /// While the log of attempts is on.
    journal: Option<Journal>,
}

impl Workers {
    pub(super) fn start(context: &RoleContext) -> Result<Self, Failure> {
        let settings = &context.settings;
        let policy = Arc::new(EgressPolicy::new(&settings.egress));
        let mut options = HttpOptions::new(Arc::clone(&policy));
        options.ca_file.clone_from(&settings.ca_file);
        let journal = match settings.attempt_log {
            true => Some(Journal::start(context)?),
            false => None,
        };
        // One set of trust roots for all; each worker has its own connections.
        let count = settings.workers.max(1);
        let mut all = Vec::with_capacity(count);
        for index in 0..count {
            let client = HttpClient::new(options.clone())
                .map_err(|error| Failure::Internal(error.to_string()))?;
            let surroundings = Surroundings {
                settings: Arc::clone(settings),
                table: Arc::clone(&context.table),
                metrics: context.metrics.clone(),
                tracer: context.tracer.clone(),
                policy: Arc::clone(&policy),
                client,
                max_in_flight: settings.max_in_flight.div_ceil(count),
                notes: journal.as_ref().map(Journal::notes),
            };
            let (orders, inbox) = unbounded_channel();
            let (started, starts) = channel();
            let thread = std::thread::Builder::new()
                .name(format!("deliver-{index}"))
                .spawn(move || work(surroundings, inbox, &started))
                .map_err(not_started)?;
            let runtime = starts
                .recv()
                .unwrap_or_else(|_| Err(io::Error::other("its thread has ended")))
                .map_err(not_started)?;
            all.push(WorkerHandle {
                orders,
                thread,
                runtime,
            });
        }
        Ok(Self { all, journal })
    }

    fn index(&self, partition: i32) -> usize {
        usize::try_from(partition).unwrap_or(0) % self.all.len()
    }

    pub(super) fn of(&self, partition: i32) -> &WorkerHandle {
        &self.all[self.index(partition)]
    }

    /// A way to tell a partition's worker something that does not keep it alive.
    pub(super) fn weakly(&self, partition: i32) -> WeakUnboundedSender<Order> {
        self.of(partition).orders.downgrade()
    }

    pub(super) fn owns(&self, worker: &WorkerHandle, partition: i32) -> bool {
        std::ptr::eq(self.of(partition), worker)
    }

    /// To every worker.
    pub(super) fn tell(&self, order: impl Fn() -> Order) {
        self.all.iter().for_each(|worker| worker.send(order()));
    }

    /// For how long all threads together have been busy since they began: not waiting for anything. A thread that waits for
    /// a processor counts as busy, unlike in its processor time: a replica that its quota slows down is short too.
    pub(super) fn busy(&self) -> Duration {
        let each = self.all.iter();
        each.map(|worker| worker.runtime.worker_total_busy_duration(0))
            .sum()
    }

    pub(super) fn states(&self) -> Result<Vec<WorkerState>, Failure> {
        let asked: Vec<Receiver<WorkerState>> = self
            .all
            .iter()
            .map(|worker| {
                let (reply, states) = channel();
                worker.send(Order::Snapshot(reply));
                states
            })
            .collect();
        asked
            .into_iter()
            .map(|state| {
                state
                    .recv()
                    .map_err(|_| Failure::Internal("a delivery worker has panicked".to_owned()))
            })
            .collect()
    }

    pub(super) fn end(self) {
        for worker in self.all {
            drop(worker.orders);
            if worker.thread.join().is_err() {
                tracing::error!("a delivery worker has panicked");
            }
        }
        if let Some(journal) = self.journal {
            journal.end();
        }
    }
}
