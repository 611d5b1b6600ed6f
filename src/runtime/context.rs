//! What a role needs from the process that it runs in.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::health::{Health, State};
use super::metrics::Metrics;
use super::shutdown::Stop;
use crate::config::Settings;
use crate::edge::clock;
use crate::edge::kafka::cluster::ClusterId;
use crate::edge::kafka::error::Failure;
use crate::edge::kafka::subscription_cache::Table;
use crate::edge::kafka::wait::{Pulse, wait_for_topics};
use crate::edge::otlp::Tracer;

/// What all roles of a process share; cheap to clone.
#[derive(Clone)]
pub struct Process {
    /// The settings, checked.
    pub settings: Arc<Settings>,
    /// What every role counts.
    pub metrics: Metrics,
    /// The subscriptions.
    pub table: Arc<Table>,
    /// Begins spans.
    pub tracer: Tracer,
    /// The state of every role.
    pub health: Arc<Health>,
    /// How the process is told to stop.
    pub stop: Arc<Stop>,
    /// Whether `table` has been read to its end once.
    pub subscriptions_loaded: Arc<AtomicBool>,
    /// Known after [`RoleContext::wait_until_possible`] of any role.
    pub cluster: Arc<OnceLock<ClusterId>>,
}

/// What a role needs of the process that it runs in.
pub struct RoleContext {
    /// The settings, checked.
    pub settings: Arc<Settings>,
    /// Where it counts.
    pub metrics: Metrics,
    /// The subscriptions.
    pub table: Arc<Table>,
    /// Where it tells of traces.
    pub tracer: Tracer,
    role: &'static str,
    process: Process,
    /// Whether the role waits for the subscriptions.
    needs_subscriptions: bool,
}

impl RoleContext {
    /// The context of `role` in `process`.
    #[must_use]
    pub fn new(process: &Process, role: &'static str, needs_subscriptions: bool) -> Self {
        Self {
            settings: Arc::clone(&process.settings),
            metrics: process.metrics.clone(),
            table: Arc::clone(&process.table),
            tracer: process.tracer.clone(),
            role,
            process: process.clone(),
            needs_subscriptions,
        }
    }

    /// The cluster that this process works on.
    ///
    /// # Errors
    /// [`Failure::Internal`] before [`RoleContext::wait_until_possible`] has succeeded.
    pub fn cluster(&self) -> Result<ClusterId, Failure> {
        let known = self.process.cluster.get().cloned();
        known.ok_or_else(|| Failure::Internal("the cluster's id is not known yet".to_owned()))
    }

    /// All roles of a process, also one that begins anew, work on one cluster.
    fn check_cluster(&self, found: ClusterId) -> Result<(), Failure> {
        let known = self.process.cluster.get_or_init(|| found.clone());
        if *known == found {
            return Ok(());
        }
        Err(Failure::Internal(format!(
            "{} was the cluster {:?} and is the cluster {:?} now: restart this process",
            self.settings.brokers,
            known.as_str(),
            found.as_str(),
        )))
    }

    /// Whether the role is to stop.
    #[must_use]
    pub fn stopping(&self) -> bool {
        self.process.stop.is_told()
    }

    /// The role's loop goes round: without this for a while, `/livez` turns red.
    pub fn beat(&self) {
        self.process.health.beat(self.role);
    }

    /// A beat, and whether to go on, for a thread that waits within the client library.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        let (health, stop, role) = (
            Arc::clone(&self.process.health),
            Arc::clone(&self.process.stop),
            self.role,
        );
        Arc::new(move || {
            health.beat(role);
            !stop.is_told()
        })
    }

    /// The role does its work now.
    pub fn ready(&self) {
        tracing::info!(role = self.role, "ready");
        self.set(State::Ready);
    }

    /// Waits for at most `time`, less when told to stop.
    pub fn pause(&self, time: Duration) {
        self.process.stop.wait(time);
    }

    /// The role finishes what it has begun.
    pub fn draining(&self) {
        self.set(State::Draining);
    }

    /// The role cannot continue.
    pub fn failed(&self) {
        self.set(State::Failed);
    }

    fn set(&self, state: State) {
        self.process.health.set(self.role, state);
    }

    /// Waits for a broker, checks that `topics` exist, and waits until the subscriptions are read if the role
    /// needs them. `Ok(false)` when told to stop meanwhile.
    ///
    /// # Errors
    /// [`Failure`] names what is missing or denied.
    pub fn wait_until_possible(
        &self,
        purpose: &'static str,
        topics: &[String],
    ) -> Result<bool, Failure> {
        let mut told: Option<std::time::Instant> = None;
        let mut waiting = |reason: &str| {
            /// How often the log repeats that there is no broker.
            const REMIND: Duration = Duration::from_secs(10);
            self.beat();
            self.set(State::Waiting(reason.to_owned()));
            let now = clock::instant();
            if told.is_none_or(|before| now - before >= REMIND) {
                told = Some(now);
                tracing::warn!(role = purpose, "{reason}");
            }
        };
        let cluster = wait_for_topics(
            &self.settings,
            purpose,
            topics,
            &|| self.stopping(),
            &mut waiting,
        )?;
        let Some(cluster) = cluster else {
            return Ok(false);
        };
        self.check_cluster(cluster)?;
        self.set(State::Starting("reading the subscriptions".to_owned()));
        while self.needs_subscriptions && !self.process.subscriptions_loaded.load(Ordering::Acquire)
        {
            if self.stopping() {
                return Ok(false);
            }
            self.beat();
            self.process.stop.wait(Duration::from_millis(20));
        }
        Ok(true)
    }
}
