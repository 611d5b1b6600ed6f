//! The workers of a replica: their threads, and the partitions that each one owns.
//!
//! A partition goes to the worker with the fewest. Its number does not decide: a group assigns partitions in turn, so
//! with two replicas one gets the odd ones, which modulo two workers would all go to the same worker.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedSender, WeakUnboundedSender, unbounded_channel};
use tokio::sync::oneshot::channel;

use super::attempt_log::AttemptLog;
use super::messages::{Message, WorkerState};
use super::metrics::DeliveryMetrics;
use super::refused::Refused;
use super::secrets::{Secrets, Wake};
use super::shares::Shares;
use super::terms::Directory;
use super::tokens::Tokens;
use super::verifying::Verifier;
use super::worker::{self, Surroundings};
use crate::config::Settings;
use crate::edge::descriptors;
use crate::edge::egress::EgressPolicy;
use crate::edge::http::{ClockSamples, HttpOptions, TlsMaker, max_idle, with_causes};
use crate::edge::port::failure::Failure;
use crate::edge::port::{Port, Task as _};
use crate::model::units::Offset;
use crate::model::window::Snapshot;
use crate::runtime::context::RoleContext;

pub(super) struct WorkerHandle<T> {
    messages: UnboundedSender<Message>,
    task: T,
}

impl<T> WorkerHandle<T> {
    pub(super) fn send(&self, message: Message) {
        if self.messages.send(message).is_err() {
            // The worker's thread has panicked; the role notices when it asks for the state.
            tracing::error!("a delivery worker has ended");
        }
    }
}

fn panicked() -> Failure {
    Failure::Internal("a delivery worker has panicked".to_owned())
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

/// What requests are sent with.
pub(super) fn http_options(settings: &Settings, policy: &Arc<EgressPolicy>) -> HttpOptions {
    let mut options = HttpOptions::new(Arc::clone(policy));
    options.ca_file.clone_from(&settings.ca_file);
    options.proxy.clone_from(&settings.egress.proxy);
    options
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

pub(super) struct Workers<P: Port> {
    pub(super) all: Vec<WorkerHandle<P::Task>>,
    /// Asks endpoints for consent.
    pub(super) verifier: Verifier<P>,
    /// Samples of the endpoints' clocks.
    pub(super) clocks: ClockSamples,
    places: Places,
    /// Set when the attempt log is enabled.
    attempt_log: Option<AttemptLog>,
}

impl<P: Port> Workers<P> {
    pub(super) fn start(
        port: &P,
        context: &RoleContext,
        metrics: &DeliveryMetrics,
    ) -> Result<Self, Failure> {
        let settings = &context.settings;
        let cluster = context.cluster()?;
        let policy = Arc::new(EgressPolicy::new(&settings.egress));
        let mut options = http_options(settings, &policy);
        let count = settings.workers.max(1);
        let files = descriptors::raise_limit();
        options.max_idle = max_idle(files, settings.max_in_flight).div_ceil(count);
        let attempt_log = match settings.attempt_log {
            true => Some(AttemptLog::start(context, metrics)?),
            false => None,
        };
        let secrets = Arc::new(Secrets::new());
        let trust = Arc::new(TlsMaker::new(settings.ca_file.clone()));
        let refused = Arc::new(Refused::new(metrics.clone()));
        let client = |options: HttpOptions| {
            port.http(options)
                .map_err(|error| Failure::Internal(with_causes(&error)))
        };
        let tokens = Arc::new(Tokens::start(port, client(options.clone())?)?);
        let directory = {
            let (table, statuses) = (Arc::clone(&context.table), Arc::clone(&context.statuses));
            let settings = Arc::clone(settings);
            move |wake: Wake| Directory {
                table: Arc::clone(&table),
                statuses: Arc::clone(&statuses),
                policy: Arc::clone(&policy),
                settings: Arc::clone(&settings),
                secrets: Arc::clone(&secrets),
                tokens: Arc::clone(&tokens),
                trust: Arc::clone(&trust),
                shares: Shares::default(),
                refused: Arc::clone(&refused),
                wake,
            }
        };
        // All workers share one set of trust roots and the lookups; each has its own connections.
        let mut all = Vec::with_capacity(count);
        for index in 0..count {
            let client = client(options.clone())?;
            let (messages, inbox) = unbounded_channel();
            let surroundings = Surroundings {
                port: port.clone(),
                settings: Arc::clone(settings),
                cluster: cluster.clone(),
                metrics: metrics.clone(),
                tracer: context.tracer.clone(),
                directory: directory(waker(messages.downgrade())),
                client,
                max_in_flight: settings.max_in_flight.div_ceil(count),
                own: messages.downgrade(),
                notes: attempt_log.as_ref().map(AttemptLog::notes),
            };
            let task = port.spawn_worker(format!("deliver-{index}"), move || {
                worker::run(surroundings, inbox)
            })?;
            all.push(WorkerHandle { messages, task });
        }
        let clocks = options.clocks.clone();
        let table = Arc::clone(&context.table);
        let verifier = Verifier::new(port, options, table, metrics.clone(), move |read| {
            directory(Arc::new(move || read.notify_waiters()))
        });
        let places = Places::default();
        Ok(Self {
            all,
            verifier,
            clocks,
            places,
            attempt_log,
        })
    }

    /// Assigns a partition to a worker and returns the worker.
    pub(super) fn place(&mut self, partition: i32) -> &WorkerHandle<P::Task> {
        self.places.take(partition, self.all.len());
        self.of(partition)
    }

    /// Removes the assignments of these partitions.
    pub(super) fn give_up(&mut self, partitions: &[i32]) {
        self.places.give_up(partitions);
    }

    pub(super) fn of(&self, partition: i32) -> &WorkerHandle<P::Task> {
        &self.all[self.places.of(partition)]
    }

    pub(super) fn owns(&self, worker: &WorkerHandle<P::Task>, partition: i32) -> bool {
        std::ptr::eq(self.of(partition), worker)
    }

    /// Sends a message to every worker.
    pub(super) fn send_all(&self, message: impl Fn() -> Message) {
        self.all.iter().for_each(|worker| worker.send(message()));
    }

    /// The total busy time of all threads since they began. Unlike CPU time, it includes waiting for a processor: a
    /// replica throttled by its CPU quota is short of capacity too.
    pub(super) fn busy(&self) -> Duration {
        self.all.iter().map(|worker| worker.task.busy()).sum()
    }

    pub(super) async fn states(&self) -> Result<Vec<WorkerState>, Failure> {
        let asked = self.all.iter().map(|worker| {
            let (reply, state) = channel();
            worker.send(Message::Snapshot(reply));
            state
        });
        let asked: Vec<_> = asked.collect();
        let mut states = Vec::with_capacity(asked.len());
        for state in asked {
            states.push(state.await.map_err(|_| panicked())?);
        }
        Ok(states)
    }

    /// What may be committed together with the outcomes of these offsets, by partition.
    pub(super) async fn snapshots_with(
        &self,
        offsets: &BTreeMap<i32, Vec<Offset>>,
    ) -> Result<BTreeMap<i32, Snapshot>, Failure> {
        let mut asked = Vec::new();
        for worker in &self.all {
            let theirs = offsets
                .iter()
                .filter(|(number, _)| self.owns(worker, **number));
            let theirs: BTreeMap<i32, Vec<Offset>> = theirs
                .map(|(&number, offsets)| (number, offsets.clone()))
                .collect();
            if !theirs.is_empty() {
                let (reply, snapshots) = channel();
                worker.send(Message::SnapshotWith(theirs, reply));
                asked.push(snapshots);
            }
        }
        let mut all = BTreeMap::new();
        for snapshots in asked {
            all.extend(snapshots.await.map_err(|_| panicked())?);
        }
        Ok(all)
    }

    pub(super) async fn end(self) {
        for worker in self.all {
            drop(worker.messages);
            if !worker.task.join().await {
                tracing::error!("a delivery worker has panicked");
            }
        }
        self.verifier.end().await;
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
