//! The workers of a replica: their threads, and the partitions that each one owns.
//!
//! A partition goes to the worker with the fewest. Its number does not decide: a group assigns partitions in turn, so
//! with two replicas one gets the odd ones, which modulo two workers would all go to the same worker.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions, RuntimeMetrics};
use tokio::sync::mpsc::{
    UnboundedReceiver, UnboundedSender, WeakUnboundedSender, unbounded_channel,
};

use super::attempt_log::AttemptLog;
use super::messages::{Message, WorkerState};
use super::metrics::DeliveryMetrics;
use super::refused::Refused;
use super::secrets::{Secrets, Wake};
use super::terms::Directory;
use super::worker::{self, Surroundings};
use crate::edge::descriptors;
use crate::edge::egress::EgressPolicy;
use crate::edge::http::{HttpClient, HttpOptions, max_idle};
use crate::edge::kafka::error::Failure;
use crate::model::units::Offset;
use crate::model::window::Snapshot;
use crate::runtime::context::RoleContext;

pub(super) struct WorkerHandle {
    messages: UnboundedSender<Message>,
    thread: JoinHandle<()>,
    runtime: RuntimeMetrics,
}

impl WorkerHandle {
    pub(super) fn send(&self, message: Message) {
        if self.messages.send(message).is_err() {
            // The worker's thread has panicked; the role notices when it asks for the state.
            tracing::error!("a delivery worker has ended");
        }
    }
}

fn not_started(error: io::Error) -> Failure {
    Failure::Internal(format!("starting a delivery worker: {error}"))
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

/// Lets a worker look at its lanes when a secret was read.
fn waker(worker: WeakUnboundedSender<Message>) -> Wake {
    Arc::new(move || {
        if let Some(worker) = worker.upgrade() {
            // A worker that has ended needs no secret.
            worker.send(Message::SecretRead).ok();
        }
    })
}

/// Runs a worker's thread. The runtime never leaves the thread, so that its tasks need no queue besides the runtime's.
fn work(
    surroundings: Surroundings,
    inbox: UnboundedReceiver<Message>,
    started: &Sender<io::Result<RuntimeMetrics>>,
) {
    let runtime = match Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
    {
        Ok(runtime) => runtime,
        Err(error) => {
            // The thread that starts a worker waits for this.
            started.send(Err(error)).ok();
            return;
        }
    };
    started.send(Ok(runtime.metrics())).ok();
    runtime.block_on(worker::run(surroundings, inbox));
}

/// The worker of each partition.
#[derive(Debug, Default)]
struct Places(HashMap<i32, usize>);

impl Places {
    /// Assigns a partition to one of `workers` workers; an assigned partition keeps its worker.
    fn take(&mut self, partition: i32, workers: usize) {
        let mut held = vec![0; workers];
        for &worker in self.0.values() {
            held[worker] += 1;
        }
        let fewest = (0..workers).min_by_key(|&worker| held[worker]);
        self.0.entry(partition).or_insert(fewest.unwrap_or(0));
    }

    fn give_up(&mut self, partitions: &[i32]) {
        for partition in partitions {
            self.0.remove(partition);
        }
    }

    /// Any worker may be asked about an unassigned partition: it does not know it.
    fn of(&self, partition: i32) -> usize {
        self.0.get(&partition).copied().unwrap_or(0)
    }
}

pub(super) struct Workers {
    pub(super) all: Vec<WorkerHandle>,
    places: Places,
    /// Set when the attempt log is enabled.
    attempt_log: Option<AttemptLog>,
}

impl Workers {
    pub(super) fn start(context: &RoleContext, metrics: &DeliveryMetrics) -> Result<Self, Failure> {
        let settings = &context.settings;
        let cluster = context.cluster()?;
        let policy = Arc::new(EgressPolicy::new(&settings.egress));
        let mut options = HttpOptions::new(Arc::clone(&policy));
        options.ca_file.clone_from(&settings.ca_file);
        let count = settings.workers.max(1);
        let files = descriptors::raise_limit();
        options.max_idle = max_idle(files, settings.max_in_flight).div_ceil(count);
        let attempt_log = match settings.attempt_log {
            true => Some(AttemptLog::start(context, metrics)?),
            false => None,
        };
        let secrets = Arc::new(Secrets::new());
        let refused = Arc::new(Refused::new(metrics.clone()));
        // All workers share one set of trust roots and the lookups; each has its own connections.
        let mut all = Vec::with_capacity(count);
        for index in 0..count {
            let client = HttpClient::new(options.clone())
                .map_err(|error| Failure::Internal(with_causes(&error)))?;
            let (messages, inbox) = unbounded_channel();
            let surroundings = Surroundings {
                settings: Arc::clone(settings),
                cluster: cluster.clone(),
                metrics: metrics.clone(),
                tracer: context.tracer.clone(),
                directory: Directory {
                    table: Arc::clone(&context.table),
                    policy: Arc::clone(&policy),
                    settings: Arc::clone(settings),
                    secrets: Arc::clone(&secrets),
                    refused: Arc::clone(&refused),
                    wake: waker(messages.downgrade()),
                },
                client,
                max_in_flight: settings.max_in_flight.div_ceil(count),
                own: messages.downgrade(),
                notes: attempt_log.as_ref().map(AttemptLog::notes),
            };
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
                messages,
                thread,
                runtime,
            });
        }
        let places = Places::default();
        Ok(Self {
            all,
            places,
            attempt_log,
        })
    }

    /// Assigns a partition to a worker and returns the worker.
    pub(super) fn place(&mut self, partition: i32) -> &WorkerHandle {
        self.places.take(partition, self.all.len());
        self.of(partition)
    }

    /// Removes the assignments of these partitions.
    pub(super) fn give_up(&mut self, partitions: &[i32]) {
        self.places.give_up(partitions);
    }

    pub(super) fn of(&self, partition: i32) -> &WorkerHandle {
        &self.all[self.places.of(partition)]
    }

    pub(super) fn owns(&self, worker: &WorkerHandle, partition: i32) -> bool {
        std::ptr::eq(self.of(partition), worker)
    }

    /// Sends a message to every worker.
    pub(super) fn send_all(&self, message: impl Fn() -> Message) {
        self.all.iter().for_each(|worker| worker.send(message()));
    }

    /// The total busy time of all threads since they began. Unlike CPU time, it includes waiting for a processor: a
    /// replica throttled by its CPU quota is short of capacity too.
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
                worker.send(Message::Snapshot(reply));
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

    /// What may be committed together with the outcomes of these offsets, by partition.
    pub(super) fn snapshots_with(
        &self,
        offsets: &HashMap<i32, Vec<Offset>>,
    ) -> Result<HashMap<i32, Snapshot>, Failure> {
        let mut asked = Vec::new();
        for worker in &self.all {
            let theirs = offsets
                .iter()
                .filter(|(number, _)| self.owns(worker, **number));
            let theirs: HashMap<i32, Vec<Offset>> = theirs
                .map(|(&number, offsets)| (number, offsets.clone()))
                .collect();
            if !theirs.is_empty() {
                let (reply, snapshots) = channel();
                worker.send(Message::SnapshotWith(theirs, reply));
                asked.push(snapshots);
            }
        }
        let mut all = HashMap::new();
        for snapshots in asked {
            let snapshots = snapshots
                .recv()
                .map_err(|_| Failure::Internal("a delivery worker has panicked".to_owned()))?;
            all.extend(snapshots);
        }
        Ok(all)
    }

    pub(super) fn end(self) {
        for worker in self.all {
            drop(worker.messages);
            if worker.thread.join().is_err() {
                tracing::error!("a delivery worker has panicked");
            }
        }
        if let Some(attempt_log) = self.attempt_log {
            attempt_log.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(places: &Places, workers: usize) -> Vec<usize> {
        let of = |worker| places.0.values().filter(|&&held| held == worker).count();
        (0..workers).map(of).collect()
    }

    #[test]
    fn partitions_are_spread_over_the_workers_whatever_their_numbers() {
        let mut places = Places::default();
        // The partitions that the second of four replicas gets.
        for partition in [1, 5, 9, 13, 17, 21] {
            places.take(partition, 4);
        }
        assert_eq!(held(&places, 4), [2, 2, 1, 1]);
        let before = places.of(5);
        places.take(5, 4);
        assert_eq!(places.of(5), before, "it stays where it is");
        let gone: Vec<i32> = [1, 5, 9]
            .into_iter()
            .filter(|&one| places.of(one) != 2)
            .collect();
        places.give_up(&gone);
        for partition in [2, 6, 10, 14] {
            places.take(partition, 4);
        }
        assert_eq!(held(&places, 4), [2, 2, 2, 2]);
    }
}
